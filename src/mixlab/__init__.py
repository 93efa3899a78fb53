"""mixlab: build language models from parts, train them on your own text, and compare the choices fairly.

The names below are imported on first use, so that `import mixlab` and `mixlab --help` stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixlab.lazy import on_first_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mixlab.errors import UserError as UserError
    from mixlab.model.config import ModelConfig as ModelConfig
    from mixlab.model.language_model import LanguageModel as LanguageModel
    from mixlab.model.language_model import build_model as build_model
    from mixlab.model.ngram import NGram as NGram
    from mixlab.opened import OpenedRun as OpenedRun
    from mixlab.opened import open as open
    from mixlab.parts.contract import Part as Part
    from mixlab.parts.contract import available as available
    from mixlab.parts.contract import register as register
    from mixlab.train.run import load as load
    from mixlab.train.saved import save as save
else:
    __all__, __getattr__, __dir__ = on_first_use(__name__)
