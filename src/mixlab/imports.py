"""Parts of one's own: importing a module or a file, so that what it registers can be named in a config."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from mixlab.errors import UserError


def import_parts(modules: Sequence[str]) -> None:
    """Import each module (`my_package.my_part`) or file (`my_part.py`), so that its parts register.

    The current folder is searched too. Raises UserError when there is no such module or file; an error inside
    it is its author's to see, traceback and all.
    """
    for name in modules:
        if name.endswith(".py"):
            _import_file(Path(name))
            continue
        if "" not in sys.path:
            sys.path.append("")  # last: a file here must not shadow an installed package
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if name != missing and not name.startswith(f"{missing}."):
                raise
            raise UserError(
                f"--import {name}: there is no module '{missing}' here or among the installed packages"
            ) from None


def _import_file(path: Path) -> None:
    """Import a file under its own name; a second import of the same file finds it there."""
    from importlib.util import module_from_spec, spec_from_file_location

    if path.stem in sys.modules:
        return
    spec = spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--import {path}: no such file")
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
