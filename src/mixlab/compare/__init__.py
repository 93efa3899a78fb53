"""Comparisons: models brought to one parameter budget, given the same text, and measured the same way.

The names below are imported on first use, so that reading a request does not import torch.
"""

from __future__ import annotations

from mixlab.lazy import on_first_use

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
__getattr__, __dir__ = on_first_use(__name__, _HOME)
