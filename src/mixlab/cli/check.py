"""`mixlab check`: the contract that every part keeps, on parts of one's own or on those that are built in."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixlab.cli.options import Imports, Json
from mixlab.errors import UserError, unknown

if TYPE_CHECKING:
    from mixlab.parts.case import Case
    from mixlab.parts.contract import Kind

MIXERS = ("temporal", "feature")
"""The kinds that the contract is about; positions and norms have no state, no chunks and no segments."""


def check(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Parts; by default those that --import brings, else all."),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only temporal or feature mixers.", metavar="KIND")] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Put parts through the contract: causality, chunks, packed documents, FLOPs, state and more.

    Says of each promise whether it is kept, and if not, where it is broken and what the likely cause is. Exit
    status 1 if one is broken.

    mixlab check --import my_part.py
    """
    from mixlab.cli.console import print_json

    given = context.parent.params.get("imports") if context.parent is not None else None
    chosen = choose(names or (), kind, [*(given or ()), *(imports or ())])
    results = [examine(*part, say=_silent if as_json else _say) for part in chosen]
    failed = [result for result in results if not result["passed"]]
    if as_json:
        print_json({"passed": not failed, "parts": results})
    else:
        print(summary(results))
    if failed:
        raise typer.Exit(1)


def choose(names: Sequence[str], kind: str | None, modules: Sequence[str]) -> list[tuple[Kind, str]]:
    """The mixers that are meant; UserError for a name that is none and for modules that register none."""
    from mixlab.imports import brought_by
    from mixlab.parts.contract import KINDS, available

    if kind is not None and kind not in MIXERS:
        raise unknown("kind of mixer", kind, MIXERS)
    kinds: list[Kind] = [each for each in KINDS if each in MIXERS and kind in (None, each)]
    mixers = [(each, name) for each in kinds for name in available(each)]
    if names:
        for name in names:
            if name not in (found for _, found in mixers):
                raise _no_mixer(name, kinds, [found for _, found in mixers])
        return [mixer for mixer in mixers if mixer[1] in names]
    if not modules:
        return mixers
    brought = [mixer for mixer in brought_by(modules) if mixer[0] in kinds]
    if not brought:
        what = f"{kind} mixer" if kind else "temporal or feature mixer"
        raise UserError(
            f"--import {', '.join(modules)} registers no {what}: put "
            f'@register("{kind or "temporal"}", "NAME") above its class'
        )
    return brought


def _no_mixer(name: str, kinds: Sequence[Kind], mixers: Sequence[str]) -> UserError:
    from mixlab.parts.contract import KINDS, available

    for other in KINDS:
        if other not in kinds and name in available(other):
            return UserError(
                f"'{name}' is a part of kind '{other}': only {' and '.join(kinds)} mixers are checked"
            )
    return unknown("part", name, mixers)


def examine(kind: Kind, name: str, *, say: Callable[[str], None]) -> dict[str, Any]:
    """One part through all checks, or none if it cannot be built; what JSON holds of it."""
    from mixlab.parts.case import Case
    from mixlab.parts.checks import CHECKS

    case = Case(kind, name, position="rope" if kind == "temporal" else "none")
    say(f"{kind} {name}")
    problem = attempt(Case.build, case)
    if problem:
        say(f"  FAILED  build: the part cannot be built: {problem}")
        checks = [{"check": "build", "passed": False, "message": problem}]
        return {"kind": kind, "name": name, "passed": False, "checks": checks}
    checks = []
    for each in CHECKS:
        label = each.__name__.removeprefix("check_")
        problem = attempt(each, case)
        say(f"  FAILED  {label}: {problem}" if problem else f"  ok      {label}")
        checks.append({"check": label, "passed": not problem, "message": problem})
    passed = all(result["passed"] for result in checks)
    return {"kind": kind, "name": name, "passed": passed, "checks": checks}


def attempt(work: Callable[[Case], object], case: Case) -> str:
    """What went wrong in `work`, in a sentence; empty if nothing did."""
    from mixlab.parts.agreement import Broken
    from mixlab.parts.contract import get

    try:
        work(case)
    except (Broken, UserError) as error:
        return str(error)
    except NotImplementedError as error:
        return f"{error} is not written"
    except Exception as error:  # whatever a part of one's own raises is a finding about it
        return raised(error, get(case.kind, case.name))
    return ""


def raised(error: Exception, part: type) -> str:
    """An exception that is not about the contract, and the last line of the part that it came through."""
    file = getattr(sys.modules.get(part.__module__), "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}{at}: {' '.join(str(error).split())}"


def summary(results: Sequence[dict[str, Any]]) -> str:
    """The last line: how many checks were kept, and which were not."""
    checks = [(part["name"], check) for part in results for check in part["checks"]]
    broken = [f"{name}: {check['check']}" for name, check in checks if not check["passed"]]
    kept = f"{len(checks) - len(broken)} of {len(checks)} checks passed"
    return f"{kept}; failed: {', '.join(broken)}" if broken else kept


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    pass
