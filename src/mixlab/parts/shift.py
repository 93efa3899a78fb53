"""Token shift: each position sees the one before it, channel by channel (RWKV)."""

from __future__ import annotations

from functools import reduce
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def blend(
    x: Float[Tensor, "B T D"],
    *weights: Float[Tensor, "D"],
    last: Float[Tensor, "B D"] | None = None,
    starts: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T D"], ...]:
    """w x_t + (1 - w) x_{t-1} for each of the weights, in x's dtype.

    last: what stands before the first position, in any dtype; None is zeros, as at a sequence's start.
    starts: positions where a packed document begins; they see zeros too.
    """
    return cast("tuple[Tensor, ...]", _Blend.apply(x, last, starts, *weights))


def shift(x: Tensor, last: Tensor | None, starts: Tensor | None) -> Tensor:
    """x_{t-1} at t."""
    first = torch.zeros_like(x[:, :1]) if last is None else last.to(x.dtype)[:, None]
    before = torch.cat([first, x[:, :-1]], 1) if x.shape[1] > 1 else first
    return before if starts is None else before.masked_fill(starts[..., None], 0)


class _Blend(torch.autograd.Function):
    """Several blends of one x; their gradients meet in two sums, half the passes over memory of autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, last: Tensor | None, starts: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """One blend a weight."""
        ctx.save_for_backward(x, last, starts, *weights)
        before = shift(x, last, starts)
        return tuple(torch.lerp(before, x, w.to(x.dtype)) for w in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By hand, or in differentiable operations when the gradient itself is to be differentiated."""
        x, last, starts, *weights = ctx.saved_tensors
        before = shift(x, last, starts)
        difference = x - before
        dw = [(g * difference).sum((0, 1)).to(w.dtype) for g, w in zip(grads, weights, strict=True)]
        dx = grads[0] * weights[0].to(x.dtype)
        for g, w in zip(grads[1:], weights[1:], strict=True):
            dx = torch.addcmul(dx, g, w.to(x.dtype))
        dbefore = reduce(torch.add, grads) - dx
        if starts is not None:
            dbefore = dbefore.masked_fill(starts[..., None], 0)
        dx[:, :-1] += dbefore[:, 1:]
        dlast = dbefore[:, 0].to(last.dtype) if last is not None else None
        return dx, dlast, None, *dw


def document_starts(segment: Tensor) -> Bool[Tensor, "B T"]:
    """Where a packed row's (B, T) document number differs from the one before, and at its first position."""
    starts = torch.ones_like(segment, dtype=torch.bool)
    starts[:, 1:] = segment[:, 1:] != segment[:, :-1]
    return starts


def ramp(D: int, power: float) -> Float[Tensor, "D"]:
    """(i / D)^power over the channels i = 0 .. D - 1: the shape of RWKV's mixing weights at init."""
    return (torch.arange(D) / D) ** power
