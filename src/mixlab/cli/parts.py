"""`mixlab parts`: what a model can be made of."""

from __future__ import annotations

import textwrap
from typing import Annotated, Any

import typer

from mixlab.cli.options import Imports, Json


def parts(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="temporal, feature, position or norm; by default all."),
    ] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """List what a model can be made of.

    Each part with its paper and its knobs.

    mixlab parts temporal
    """
    from mixlab.cli.console import print_json
    from mixlab.errors import unknown
    from mixlab.parts.contract import KINDS, available, get

    if kind is not None and kind not in KINDS:
        raise unknown("kind of part", kind, KINDS)
    found = [
        facts(each, name, get(each, name))
        for each in KINDS
        if kind in (None, each)
        for name in available(each)
    ]
    if as_json:
        print_json(found)
        return
    for each in KINDS:
        listed = [part for part in found if part["kind"] == each]
        if listed:
            print(f"{each}\n")
            print("\n".join(describe(part) for part in listed))


def facts(kind: str, name: str, cls: Any) -> dict[str, Any]:
    """One part as JSON holds it: what it is, its paper, each knob's default, what the knobs mean."""
    from mixlab.config import defaults

    knobs = defaults(cls.Config)
    meaning = " ".join((cls.Config.__doc__ or "").split())
    return {
        "kind": kind,
        "name": name,
        "summary": _first_sentence(cls.__doc__ or ""),
        "paper": cls.paper,
        "knobs": {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in knobs.items()
        },
        # A dataclass without a docstring of its own is given its signature, which the knobs already say.
        "meaning": "" if not knobs or meaning.startswith(f"{cls.Config.__name__}(") else meaning,
        "module": cls.__module__,
    }


def _first_sentence(text: str) -> str:
    """A docstring's first paragraph on one line."""
    return " ".join(text.strip().split("\n\n")[0].split())


def describe(part: dict[str, Any]) -> str:
    """One part as a paragraph."""
    knobs = ", ".join(f"{key} = {value}" for key, value in part["knobs"].items())
    lines = [part["summary"], part["paper"], f"{knobs}: {part['meaning']}" if part["meaning"] else knobs]
    body = [
        textwrap.fill(line, 96, initial_indent="    ", subsequent_indent="    ") for line in lines if line
    ]
    return "\n".join([f"  {part['name']}", *body, ""])
