"""Learning rates that carry over from one width to another (Yang et al. 2022, Tensor Programs V).

Where `model.mup_base_dim` is set, the model scales its initial weights, attention and logits itself; here is
what the learning rates add, a factor for every parameter: each is to change what it writes by as much at any
width. It depends on the size of an update, so that every kind of optimizer has its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from mixlab.train.muon import scale


class Shape(NamedTuple):
    """A parameter: fan-in and fan-out over those at the base width; its rows and columns; whether it is the
    head, whose logits the model divides by the widening."""

    fan_in: float
    fan_out: float
    rows: int
    columns: int
    head: bool


Rule = Callable[[Shape], float]


def shape_of(parameter: Tensor, role: str, ratios: tuple[float, float]) -> Shape:
    """An embedding reads one of its rows, whatever their number, and a gain one number for each it writes."""
    fan_in, fan_out = ratios
    if role in ("embedding", "gain"):
        fan_in, fan_out = 1.0, fan_in * fan_out
    rows, columns = (1, *parameter.shape)[-2:]
    return Shape(fan_in, fan_out, rows, columns, role == "head")


def adam(shape: Shape) -> float:
    """An update's numbers are of one size whatever the gradient's, and aligned with what is read: as many add
    up as there are (table 8)."""
    return 1.0 if shape.head else 1.0 / shape.fan_in


def sgd(shape: Shape) -> float:
    """A gradient's numbers are smaller the wider what it writes to (table 8)."""
    return shape.fan_in if shape.head else shape.fan_out / shape.fan_in


def muon(shape: Shape) -> float:
    """All singular values of an update are to be as sqrt(fan-out / fan-in) (Yang, Simon & Bernstein 2023);
    by torch's scaling to AdamW's size they are as sqrt(max(rows, columns))."""
    base = shape.rows / shape.fan_out, shape.columns / shape.fan_in
    torchs = scale("match_rms_adamw", shape.rows, shape.columns) / scale("match_rms_adamw", *base)
    return math.sqrt(shape.fan_out / shape.fan_in) / torchs


def relative(shape: Shape) -> float:
    """Adafactor's update is Adam's times the size of the parameter's own numbers, 1 / sqrt(fan-in) but in the
    head."""
    return 1.0 if shape.head else adam(shape) * math.sqrt(shape.fan_in)
