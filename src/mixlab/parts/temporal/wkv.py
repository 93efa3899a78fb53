"""RWKV-4's weighted average over the past, without an autograd graph per time step.

The paper's recurrence in its stable form (equations 23 to 28) carries a = sum e^{..} v and b = sum e^{..} as
a e^p and b e^p with a running maximum p. Given all p_t, every exponential of the sequence can be taken at
once, and what is left to do step by step is one multiply-add. p cancels out of the result, so that it counts
as a constant to the gradient.

Measured against a chunked form, in which a chunk is a Toeplitz product per channel, on 2 cores at T = 256,
B = 16, D = 384: the two loops over time take 2.5 ms; the batched product of chunks of 64 takes 1.4 ms, but
wants the channels outermost, two transpositions that cost more than it saves, and one exponent for a whole
chunk, which underflows once keys differ by 88.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mixlab.parts.contract import state_dtype

EMPTY = -1e38
"""The exponent p of a sum without terms: below every key, and far enough from float32's end to subtract."""

CERTAIN = 40.0
"""Past this lead of the present token's exponent the past has a weight under e^-40 = 4e-18, less than
float64 resolves; cutting it off there keeps e^lead finite."""


def wkv(
    k: Float[Tensor, "B T A"],
    v: Float[Tensor, "B T A"],
    w: Float[Tensor, "A"],
    u: Float[Tensor, "A"],
    state: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "B T A"], tuple[Tensor, Tensor, Tensor]]:
    """The average of v (B, T, A) weighted by the exponential of k, which fades by exp(-exp(w)) a step; the
    present token's weight has u in place of the fading (Peng et al. 2023, equation 16).

    state: (a, b, p), each (B, A), after what came before. Returns the average in v's dtype and the state
    after the last token; inside, float32, or float64 for float64. No gradient flows through p.
    """
    dtype = state_dtype(v.dtype)
    with torch.autocast(v.device.type, enabled=False):
        rate, u = w.to(dtype).exp(), u.to(dtype)
        if state is None:
            a = torch.zeros(k.shape[0], k.shape[2], dtype=dtype, device=k.device)
            a, b, p = a, a, torch.full_like(a, EMPTY)
        else:
            a, b, p = (s.to(dtype) for s in state)
        # Time outermost, so that a step is one block of memory.
        k_, v_ = (z.transpose(0, 1).to(dtype).contiguous() for z in (k, v))  # (B, T, A) -> (T, B, A)
        y, a, b, p = cast("tuple[Tensor, ...]", _WKV.apply(k_, v_, rate, u, a, b, p))
        y = y.transpose(0, 1)  # (T, B, A) -> (B, T, A)
        return torch.empty(v.shape, dtype=v.dtype, device=v.device).copy_(y), (a, b, p)


def maxima(k: Tensor, rate: Tensor, p: Tensor) -> Tensor:
    """p_t = max(p_{t-1} - w, k_t), equation 25, from p_0 = p: (T, B, A) -> (T + 1, B, A)."""
    all_p = torch.empty(len(k) + 1, *p.shape, dtype=p.dtype, device=p.device)
    all_p[0] = p
    onwards, faded = all_p.unbind(0), torch.empty_like(p)
    for before, k_t, after in zip(onwards, k.unbind(0), onwards[1:], strict=False):
        torch.sub(before, rate, out=faded)
        torch.maximum(faded, k_t, out=after)
    return all_p


def lead(k: Tensor, u: Tensor, p: Tensor) -> Tensor:
    """e^{u + k_t - p_{t-1}}: the present token's weight beside b_{t-1}, (T, B, A)."""
    return (k - p[:-1]).add_(u).clamp_(max=CERTAIN).exp_()


class _WKV(torch.autograd.Function):
    """Equations 23 to 28 and their gradient; tensors (T, B, A), vectors (A), states (B, A)."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, v: Tensor, rate: Tensor, u: Tensor, a: Tensor, b: Tensor, p0: Tensor
    ) -> tuple[Tensor, ...]:
        """The averages y, and a, b, p after the last step."""
        p = maxima(k, rate, p0)
        keep = (p[:-1] - p[1:]).sub_(rate).exp_()  # e^{p_{t-1} - w - p_t}, at most 1
        s = torch.empty(len(k) + 1, 2, *k.shape[1:], dtype=k.dtype, device=k.device)  # (a, b) at each step
        s[0, 0], s[0, 1] = a, b
        new = torch.sub(k, p[1:], out=s[1:, 1]).exp_()  # e^{k_t - p_t}, at most 1
        torch.mul(new, v, out=s[1:, 0])
        onwards = s.unbind(0)
        for before, keep_t, after in zip(onwards, keep.unbind(0), onwards[1:], strict=False):
            after.addcmul_(keep_t, before)  # equations 26, 27
        now = lead(k, u, p)
        y = torch.addcmul(s[:-1, 0], now, v).div_(s[:-1, 1] + now)  # equation 24
        ctx.save_for_backward(k, v, rate, u, a, b, p0, p, s)
        last = p[-1].clone()
        ctx.mark_non_differentiable(last)
        return y, s[-1, 0].clone(), s[-1, 1].clone(), last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By hand, or through `steps` when the gradient itself is to be differentiated."""
        k, v, rate, u, a, b, p0, p, s = ctx.saved_tensors
        dy, da, db, _ = grads
        if torch.is_grad_enabled():
            inputs = (k, v, rate, u, a, b, p0)
            return differentiable_gradient(inputs, (dy, da, db), ctx.needs_input_grad)
        keep = (p[:-1] - p[1:]).sub_(rate).exp_()
        now = lead(k, u, p)
        below = s[:-1, 1] + now
        y = torch.addcmul(s[:-1, 0], now, v).div_(below)
        # The gradient of (a, b) at each step, from the last to the first.
        ds = torch.empty_like(s)
        ds[-1, 0], ds[-1, 1] = da, db
        share = torch.div(dy, below, out=ds[:-1, 0])
        torch.mul(share, y, out=ds[:-1, 1]).neg_()
        now.mul_(share)  # d loss / d (the present token's share of the numerator)
        backwards = ds.unbind(0)[::-1]
        for after, keep_t, before in zip(backwards, keep.unbind(0)[::-1], backwards[1:], strict=False):
            before.addcmul_(keep_t, after)
        new = torch.sub(k, p[1:], out=below).exp_()
        dv = torch.addcmul(now, new, ds[1:, 0])
        dk = torch.sub(v, y, out=y).mul_(now)
        du = dk.sum((0, 1))
        dk.add_(torch.addcmul(ds[1:, 1], v, ds[1:, 0]).mul_(new))
        drate = keep.mul_((s[:-1] * ds[1:]).sum(1)).sum((0, 1)).neg_()
        return dk, dv, drate, du, ds[0, 0].clone(), ds[0, 1].clone(), None


def steps(
    k: Tensor, v: Tensor, rate: Tensor, u: Tensor, a: Tensor, b: Tensor, p: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Equations 23 to 28 in differentiable operations, one time step after another; p counts as constant.

    k, v (T, B, A); rate, u (A); a, b, p (B, A). Returns y (T, B, A), and a and b after the last step.
    """
    averages = []
    exponents = maxima(k.detach(), rate.detach(), p.detach())
    for k_t, v_t, before, after in zip(k, v, exponents, exponents[1:], strict=False):
        now = (u + k_t - before).clamp(max=CERTAIN).exp()
        averages.append((a + now * v_t) / (b + now))
        keep, new = (before - rate - after).exp(), (k_t - after).exp()
        a, b = keep * a + new * v_t, keep * b + new
    return torch.stack(averages), a, b


def differentiable_gradient(
    inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradient of `steps` in each of its `inputs` that needs one, with a graph of its own."""
    k, v, rate, u, a, b, p = inputs
    pairs = [(y, dy) for y, dy in zip(steps(k, v, rate, u, a, b, p), grads, strict=True) if y.requires_grad]
    wanted = [z for z, need in zip(inputs, needed, strict=True) if need]
    found = torch.autograd.grad(
        [y for y, _ in pairs], wanted, [dy for _, dy in pairs], create_graph=True, allow_unused=True
    )
    each = iter(found)
    return tuple(next(each) if need else None for need in needed)
