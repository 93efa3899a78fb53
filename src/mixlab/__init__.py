"""mixlab: build language models from parts, train them on your own text, and compare the choices fairly.

The names below are imported on first use, so that `import mixlab` and `mixlab --help` stay light.
"""

from __future__ import annotations

from mixlab.lazy import on_first_use

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
__getattr__, __dir__ = on_first_use(__name__, _HOME)
