"""mixlab: build language models from parts, train them on your own text, and compare the choices fairly.

The names below are imported on first use, so that `import mixlab` and `mixlab --help` stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "build_model": "mixlab.model.language_model",
    "LanguageModel": "mixlab.model.language_model",
    "ModelConfig": "mixlab.model.config",
    "NGram": "mixlab.model.ngram",
    "Part": "mixlab.parts.contract",
    "register": "mixlab.parts.contract",
    "available": "mixlab.parts.contract",
    "load": "mixlab.train.run",
    "UserError": "mixlab.errors",
}
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mixlab' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
