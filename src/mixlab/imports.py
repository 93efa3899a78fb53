"""Parts of one's own: importing a module or a file, so that what it registers can be named in a config.

A run records which import its parts came from. The record is only ever shown: a folder that somebody else
made must not be able to choose what is imported.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

from mixlab.errors import UserError

if TYPE_CHECKING:
    from mixlab.model.config import ModelConfig
    from mixlab.parts.contract import Kind

_brought: dict[str, set[tuple[Kind, str]]] = {}
"""What `import_parts` was given -> the parts that were registered meanwhile."""

_files: dict[str, str] = {}
"""Name of a module that was imported as a file -> the file's absolute path."""


def import_parts(modules: Sequence[str]) -> None:
    """Import each module (`my_package.my_part`) or file (`my_part.py`), so that its parts register.

    The current folder is searched too. Raises UserError when there is no such module or file, and with the
    file, the line and the error when it does not import; the error is its cause.
    """
    for name in modules:
        before = _registered()
        try:
            _import_file(Path(name)) if name.endswith(".py") else _import_module(name)
        except _Missing as error:
            raise UserError(f"--import {name}: {error}") from None
        except (Exception, SystemExit) as error:
            raise UserError(f"--import {name}: {_where(error)}{_said(error)}") from error
        _brought.setdefault(name, set()).update(_registered() - before)


def brought_by(modules: Sequence[str]) -> list[tuple[Kind, str]]:
    """(kind, name) of the parts that importing `modules` registered, or that are defined in them."""
    from mixlab.parts.contract import get

    found = set()
    for name in modules:
        home = Path(name).stem if name.endswith(".py") else name
        defined = {part for part in _registered() if f"{get(*part).__module__}.".startswith(f"{home}.")}
        found |= _brought.get(name, set()) | defined
    return sorted(found)


def _registered() -> set[tuple[Kind, str]]:
    from mixlab.parts.contract import KINDS, available

    return {(kind, name) for kind in KINDS for name in available(kind)}


class _Missing(Exception):
    """There is nothing of that name to import."""


def _where(error: BaseException) -> str:
    """The line at which an import failed, as "file:line: ": the innermost of somebody's own code, if any."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    installed = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "purelib", "platlib"))
    machinery = ("<", f"{Path(__file__).parent}{os.sep}", f"{Path(importlib.__file__).parent}{os.sep}")
    calls = [call for call in extract_tb(error.__traceback__) if not call.filename.startswith(machinery)]
    own = [call for call in calls if not call.filename.startswith(installed)]
    return "".join(f"{call.filename}:{call.lineno}: " for call in (own or calls)[-1:])


def _said(error: BaseException) -> str:
    """What an error says, on one line, after its type."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    kind = "" if isinstance(error, UserError) else type(error).__name__
    return ": ".join(filter(None, [kind, " ".join(message.split())]))


def _import_module(name: str) -> None:
    if "" not in sys.path:
        sys.path.append("")  # last: a file here must not shadow an installed package
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise
        raise _Missing(f"there is no module '{missing}' here or among the installed packages") from None


def _import_file(path: Path) -> None:
    """Import a file under its own name; a second import of the same file finds it there."""
    from importlib.util import module_from_spec, spec_from_file_location

    if path.stem in sys.modules:
        return
    spec = spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise _Missing("no such file")
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    _files[path.stem] = str(path.absolute())
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem], _files[path.stem]
        raise


def providers(model: ModelConfig | None) -> dict[str, dict[str, str]]:
    """kind -> name -> what `--import` takes, of those parts of `model` that are not mixlab's own.

    A part defined in the script that runs (`__main__`) has no module to name and is left out.
    """
    from mixlab.model.config import PER_BLOCK, PER_MODEL
    from mixlab.parts.contract import get

    if model is None:
        return {}
    chosen = [(kind, choice.name) for kind in PER_BLOCK for choice in model.pattern(kind)]
    chosen += [(kind, model.choice(kind).name) for kind in PER_MODEL]
    found: dict[str, dict[str, str]] = {}
    for kind, name in chosen:
        module = get(kind, name).__module__
        if module != "__main__" and module.partition(".")[0] != "mixlab":
            found.setdefault(kind, {})[name] = _files.get(module, module)
    return found


def check_imported(recorded: Any, what: str) -> None:
    """UserError naming the `--import` for the first part of a run's record (`providers`) that is not here.

    what: the run, as the sentence begins. A record that is not one is passed over.
    """
    from mixlab.parts.contract import KINDS, available

    for kind in KINDS:
        names = recorded.get(kind) if isinstance(recorded, dict) else None
        for name, module in names.items() if isinstance(names, dict) else ():
            if name not in available(kind):
                raise UserError(
                    f"{what} has a {kind} part of its own, '{name}', which is not known here: "
                    f"add --import {shlex.quote(str(module))} (in Python: import it first)"
                )
