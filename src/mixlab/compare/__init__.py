"""Comparisons: models brought to one parameter budget, given the same text, and measured the same way.

The names below are imported on first use, so that reading a request does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixlab.lazy import on_first_use

if TYPE_CHECKING:
    from mixlab.compare.bands import Bands as Bands
    from mixlab.compare.bands import read_bands as read_bands
    from mixlab.compare.plan import Plan as Plan
    from mixlab.compare.plan import make_plan as make_plan
    from mixlab.compare.request import Request as Request
    from mixlab.compare.runner import Stopped as Stopped
    from mixlab.compare.runner import compare as compare
    from mixlab.compare.width import parameter_count as parameter_count
    from mixlab.compare.width import solve as solve
else:
    __all__, __getattr__, __dir__ = on_first_use(__name__)
