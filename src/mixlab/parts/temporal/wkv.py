"""RWKV-4's weighted average over the past, without an autograd graph per time step.

The paper's recurrence in its stable form (equations 23 to 28) carries a = sum e^{..} v and b = sum e^{..} as
a e^p and b e^p with a running maximum p. Given all p_t, every exponential can be taken at once, and what is
left to do step by step is one multiply-add. p cancels out of the result, so that it counts as a constant to
the gradient. A sequence goes in blocks of time that stay in the processor's cache; the backward pass keeps
the state at each block's start and computes the block again. Where a step is so narrow that calls take the
time, pieces of a block go on beside each other.

Measured against a chunked form, in which a chunk is a Toeplitz product per channel, on 2 cores at T = 256,
B = 16, D = 384: the loops over time take 2.5 ms; the batched product of chunks of 64 takes 1.4 ms, but wants
the channels outermost, two transpositions that cost more than it saves, and one exponent for a whole chunk,
which underflows once keys differ by 88.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mixlab.parts.contract import state_dtype

EMPTY = -1e38
"""The exponent p of a sum without terms: below every key, and far enough from float32's end to subtract."""

CERTAIN = 40.0
"""Past this lead of the present token's exponent the past has a weight under e^-40 = 4e-18, less than
float64 resolves; cutting it off there keeps e^lead finite."""

BLOCK = 1 << 18
"""Numbers of one quantity in a block of time: what two cores with a megabyte of cache between them and 32 MB
behind it took least time with, of 2^16, 2^17, 2^18."""

WIDE = 1 << 13
"""Numbers from which on an operation takes longer than its call: narrower time steps go several at a time."""


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
    rate, u = w.to(dtype).exp(), u.to(dtype)
    if state is None:
        a = torch.zeros(k.shape[0], k.shape[2], dtype=dtype, device=k.device)
        a, b, p = a, a, torch.full_like(a, EMPTY)
    else:
        a, b, p = (s.to(dtype) for s in state)
    y, a, b, p = cast("tuple[Tensor, ...]", _WKV.apply(k, v, rate, u, a, b, p))
    return y, (a, b, p)


class Block(NamedTuple):
    """Equations 23 to 28 over n steps: numbers (n, B, A); p, s one step longer, from before the first.

    p: the running maxima. s: (a, b) beside each other, (n + 1, 2, B, A). keep, new: what a step keeps of s,
    and the key's weight in it. now: the present token's weight, u included, beside b_{t-1}. y: the averages.
    """

    p: Tensor
    s: Tensor
    keep: Tensor
    new: Tensor
    now: Tensor
    y: Tensor


def run_block(k: Tensor, v: Tensor, rate: Tensor, u: Tensor, a: Tensor, b: Tensor, p: Tensor) -> Block:
    """The steps of k, v (n, B, A) from the state a, b, p (B, A)."""
    p = maxima(k, rate, p)
    keep = (p[:-1] - p[1:]).sub_(rate).exp_()  # e^{p_{t-1} - w - p_t}, at most 1
    new = (k - p[1:]).exp_()  # e^{k_t - p_t}, at most 1
    s = torch.empty(len(k) + 1, 2, *k.shape[1:], dtype=k.dtype, device=k.device)
    s[0, 0], s[0, 1] = a, b
    torch.mul(new, v, out=s[1:, 0])
    s[1:, 1] = new
    accumulate(s, keep)  # equations 26, 27
    now = (k - p[:-1]).add_(u).clamp_(max=CERTAIN).exp_()  # e^{u + k_t - p_{t-1}}
    y = torch.addcmul(s[:-1, 0], now, v).div_(s[:-1, 1] + now)  # equation 24, with e^{p - q} divided out
    return Block(p, s, keep, new, now, y)


def maxima(k: Tensor, rate: Tensor, p: Tensor) -> Tensor:
    """p_t = max(p_{t-1} - w, k_t), equation 25, from p_0 = p: (n, B, A) -> (n + 1, B, A)."""
    all_p = torch.cat([p[None], k])
    m = pieces(len(k), p.numel())
    each = all_p[1:].unflatten(0, (m, -1))  # (m, n / m, B, A)
    along, faded = each.unbind(1), torch.empty_like(each[:, 0])
    torch.maximum(each[0, 0], p - rate, out=each[0, 0])
    for before, after in pairwise(along):
        torch.maximum(after, torch.sub(before, rate, out=faded), out=after)
    if m > 1:
        length = each.shape[1]
        for before, after in pairwise(along[-1].unbind(0)):
            torch.maximum(after, before - length * rate, out=after)
        since = torch.arange(1, length, dtype=p.dtype, device=p.device)[:, None, None] * rate
        torch.maximum(each[1:, :-1], each[:-1, -1:] - since, out=each[1:, :-1])
    return all_p


def accumulate(s: Tensor, keep: Tensor, *, backwards: bool = False) -> None:
    """s_t += keep_t s_{t-1} in place, from s_0 on; backwards, s_{t-1} += keep_t s_t from s_n on.

    keep (n, B, A), s (n + 1, 2, B, A).
    """
    m = pieces(len(keep), keep[0].numel())
    start, rest = (s[-1], s[:-1]) if backwards else (s[0], s[1:])
    keeps, each = (
        keep.unflatten(0, (m, -1))[:, :, None],
        rest.unflatten(0, (m, -1)),
    )  # (m, n / m, 1 or 2, B, A)
    order = slice(None, None, -1 if backwards else 1)
    keep_along, along = keeps.unbind(1)[order], each.unbind(1)[order]
    first = m - 1 if backwards else 0
    along[0][first].addcmul_(keep_along[0][first], start)
    for keep_t, (before, after) in zip(keep_along[1:], pairwise(along), strict=True):
        after.addcmul_(keep_t, before)
    if m > 1:
        fade = torch.empty_like(keeps)
        fade_along = fade.unbind(1)[order]
        fade_along[0].copy_(keep_along[0])
        for keep_t, (before, after) in zip(keep_along[1:], pairwise(fade_along), strict=True):
            torch.mul(before, keep_t, out=after)
        ends = along[-1].unbind(0)[order]
        for fade_end, (before, after) in zip(
            fade_along[-1].unbind(0)[order][1:], pairwise(ends), strict=True
        ):
            after.addcmul_(fade_end, before)
        if backwards:
            each[:-1, 1:].addcmul_(fade[:-1, 1:], each[1:, :1])
        else:
            each[1:, :-1].addcmul_(fade[1:, :-1], each[:-1, -1:])


def pieces(n: int, width: int) -> int:
    """Into how many pieces of one length n steps are cut: these go on beside each other, each from nothing,
    and what came before a piece is added when the piece before has its end."""
    most = min(WIDE // max(1, width), math.isqrt(n))
    return next((m for m in range(most, 1, -1) if n % m == 0), 1)


def blocks(T: int, width: int) -> Iterator[slice]:
    """Spans of time, first to last, that hold about BLOCK numbers at `width` a step."""
    length = max(1, BLOCK // max(1, width))
    return (slice(start, min(start + length, T)) for start in range(0, T, length))


def cut(x: Tensor, span: slice, dtype: torch.dtype) -> Tensor:
    """One block, time outermost, so that a step is one piece of memory: (B, T, A) -> (n, B, A)."""
    return x[:, span].transpose(0, 1).to(dtype).contiguous()


class _WKV(torch.autograd.Function):
    """The blocks and their gradient; k, v and y (B, T, A), rate and u (A), states (B, A)."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, v: Tensor, rate: Tensor, u: Tensor, a: Tensor, b: Tensor, p: Tensor
    ) -> tuple[Tensor, ...]:
        """The averages, and a, b, p after the last step."""
        y, starts = torch.empty_like(v, memory_format=torch.contiguous_format), []
        for span in blocks(k.shape[1], a.numel()):
            starts += [a, b, p]
            block = run_block(cut(k, span, a.dtype), cut(v, span, a.dtype), rate, u, a, b, p)
            y[:, span] = block.y.transpose(0, 1)
            a, b, p = block.s[-1, 0].clone(), block.s[-1, 1].clone(), block.p[-1].clone()
        ctx.save_for_backward(k, v, rate, u, *starts)
        ctx.mark_non_differentiable(p)
        return y, a, b, p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By hand, block by block, or through `steps` when the gradient itself is to be differentiated."""
        k, v, rate, u, *starts = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (k, v, rate, u, *starts[:3])
            return differentiable_gradient(inputs, grads[:3], ctx.needs_input_grad)
        dy, da, db, _ = grads
        dk, dv = (torch.empty_like(z, memory_format=torch.contiguous_format) for z in (k, v))
        drate, du = torch.zeros_like(rate), torch.zeros_like(u)
        spans = list(blocks(k.shape[1], da.numel()))
        for i, span in reversed(list(enumerate(spans))):
            k_, v_, dy_ = (cut(z, span, da.dtype) for z in (k, v, dy))
            block = run_block(k_, v_, rate, u, *starts[3 * i : 3 * i + 3])
            dk_, dv_, drate_, du_, da, db = block_gradient(block, v_, dy_, da, db)
            dk[:, span], dv[:, span] = dk_.transpose(0, 1), dv_.transpose(0, 1)
            drate += drate_
            du += du_
        return dk, dv, drate, du, da, db, None


def block_gradient(block: Block, v: Tensor, dy: Tensor, da: Tensor, db: Tensor) -> tuple[Tensor, ...]:
    """Gradients of k, v, rate, u and of the state before the block, from dy and those of the state after.

    Overwrites the block.
    """
    _, s, keep, new, now, y = block
    ds = torch.empty_like(s)  # the gradient of (a, b) at each step, filled from the last to the first
    ds[-1, 0], ds[-1, 1] = da, db
    share = torch.div(dy, s[:-1, 1] + now, out=ds[:-1, 0])
    torch.mul(share, y, out=ds[:-1, 1]).neg_()
    now.mul_(share)  # of the present token's own value
    accumulate(ds, keep, backwards=True)
    dv = torch.addcmul(now, new, ds[1:, 0])
    dk = torch.sub(v, y, out=y).mul_(now)
    du = dk.sum((0, 1))
    dk.addcmul_(torch.addcmul(ds[1:, 1], v, ds[1:, 0]), new)
    drate = keep.mul_(s[:-1, 0].mul_(ds[1:, 0]).addcmul_(s[:-1, 1], ds[1:, 1])).sum((0, 1)).neg_()
    return dk, dv, drate, du, ds[0, 0].clone(), ds[0, 1].clone()


def steps(
    k: Tensor, v: Tensor, rate: Tensor, u: Tensor, a: Tensor, b: Tensor, p: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Equations 23 to 28 in differentiable operations, one time step after another; p counts as constant.

    k, v (B, T, A); rate, u (A); a, b, p (B, A). Returns y (B, T, A), and a and b after the last step.
    """
    averages, dtype = [], v.dtype
    k, v = k.transpose(0, 1).to(a.dtype), v.transpose(0, 1).to(a.dtype)
    exponents = maxima(k.detach(), rate.detach(), p.detach())
    for k_t, v_t, before, after in zip(k, v, exponents, exponents[1:], strict=False):
        now = (u + k_t - before).clamp(max=CERTAIN).exp()
        averages.append((a + now * v_t) / (b + now))
        keep, new = (before - rate - after).exp(), (k_t - after).exp()
        a, b = keep * a + new * v_t, keep * b + new
    return torch.stack(averages, 1).to(dtype), a, b


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
