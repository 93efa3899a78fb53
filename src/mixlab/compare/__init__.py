"""Comparisons: models brought to one parameter budget, given the same text, and measured the same way.

The names below are imported on first use, so that reading a request does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Request": "mixlab.compare.request",
    "Plan": "mixlab.compare.plan",
    "make_plan": "mixlab.compare.plan",
    "compare": "mixlab.compare.runner",
    "Stopped": "mixlab.compare.runner",
    "solve": "mixlab.compare.width",
    "parameter_count": "mixlab.compare.width",
    "Bands": "mixlab.compare.bands",
    "read_bands": "mixlab.compare.bands",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mixlab.compare' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
