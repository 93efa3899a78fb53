"""Token shift: each position sees the one before it, channel by channel (RWKV)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def shift(
    x: Float[Tensor, "B T D"],
    last: Float[Tensor, "B D"] | None = None,
    starts: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T D"]:
    """x_{t-1} at t, in x's dtype.

    last: what stands before the first position, in any dtype; None is zeros, as at a sequence's start.
    starts: positions where a packed document begins; they see zeros too.
    """
    first = torch.zeros_like(x[:, :1]) if last is None else last.to(x.dtype)[:, None]
    before = torch.cat([first, x[:, :-1]], 1) if x.shape[1] > 1 else first
    return before if starts is None else before.masked_fill(starts[..., None], 0)


def document_starts(segment: Tensor) -> Bool[Tensor, "B T"]:
    """Where a packed row's (B, T) document number differs from the one before, and at its first position."""
    starts = torch.ones_like(segment, dtype=torch.bool)
    starts[:, 1:] = segment[:, 1:] != segment[:, :-1]
    return starts


def ramp(D: int, power: float) -> Float[Tensor, "D"]:
    """(i / D)^power over the channels i = 0 .. D - 1: the shape of RWKV's mixing weights at init."""
    return (torch.arange(D) / D) ** power
