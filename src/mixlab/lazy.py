"""Names that a package offers and imports on their first use, so that importing the package stays light.

    if TYPE_CHECKING:
        from mixlab.model.ngram import NGram as NGram
    else:
        __all__, __getattr__, __dir__ = on_first_use(__name__)

The imports under TYPE_CHECKING are the one list of names. Type checkers and editors follow them and never see
the `__getattr__`, which would let every name pass; at run time `on_first_use` reads them from the source.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def on_first_use(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """The `__all__`, `__getattr__` and `__dir__` (PEP 562) of a package that is being imported."""
    home = _typed_imports(package)

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(home[name]), name)

    return sorted(home), get, lambda: sorted({*home, *_private(package)})


def _typed_imports(package: str) -> dict[str, str]:
    """Name -> the module that has it, of every `from MODULE import NAME` in an `if TYPE_CHECKING:` block."""
    loader: Any = sys.modules[package].__spec__.loader  # type: ignore[union-attr]
    blocks = [
        node.body
        for node in ast.parse(loader.get_source(package)).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return {
        alias.name: str(line.module)
        for block in blocks
        for line in block
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }


def _private(package: str) -> list[str]:
    """What every module has, such as `__doc__`, and `__version__`."""
    return [name for name in vars(sys.modules[package]) if name.startswith("__")]
