"""Causal attention in tiles, as batched bfloat16 matrix products: a CPU's fastest way at training lengths.

PyTorch's fused kernel on the CPU makes products too small to run near the processor's peak, most of all in
its backward. Here a few heads at a time go through whole products whose scores stay in the cache.
Probabilities are kept for the backward up to `KEPT` tokens and made again beyond, where memory grows linearly
with T.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mixlab.parts.contract import state_dtype

QUERIES = 256
"""Queries a tile: keys after the last of them are never multiplied."""

SCORES = 1 << 20
"""Scores a tile: 2 MiB in bfloat16, which a core's own cache holds (1, 2, 4 and 16 rows of 6 x 256 x 256 were
tried; see LOG.md)."""

KEPT = 512
"""Tokens up to which the backward finds the probabilities where the forward left them: H T numbers a token,
at 512 with 6 heads 6 KiB, half of what the rest of a layer of width 384 keeps."""

LONGEST = 2048
"""Tokens up to which tiles win forward and backward together: at 256 by 2.4, at 2048 by 1.3; at 4096 they
lose by 1.06 (LOG.md)."""


def suits(x: Float[Tensor, "B H T K"]) -> bool:
    """Whether tiles are the fast way for these queries: bfloat16 on a CPU, several and not too many."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and 1 < x.shape[2] <= LONGEST


def causal_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    scale: float | None = None,
) -> Float[Tensor, "B H T K"]:
    """softmax(scale Q K^T) V over the past and the present; scale defaults to 1 / sqrt(K).

    Scores are rounded to the inputs' dtype, as in any unfused attention; the softmax over them is float32
    inside.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _Tiled.apply(q, k, v, scale, torch.is_grad_enabled())


def _tiles(q: Tensor) -> Iterator[tuple[slice, slice, list[slice]]]:
    """(rows, heads, blocks of queries) that cover q (B, H, T, K), about `SCORES` at a time."""
    B, H, T, _ = q.shape
    matrices = max(1, SCORES // (min(T, QUERIES) * T))
    heads, rows = min(H, matrices), max(1, matrices // H)
    blocks = [slice(t, min(T, t + QUERIES)) for t in range(0, T, QUERIES)]
    for b in range(0, B, rows):
        for h in range(0, H, heads):
            yield slice(b, b + rows), slice(h, h + heads), blocks


@lru_cache(maxsize=16)
def _triangle(queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of the last `queries` of `keys` positions: -inf after their own."""
    with torch.inference_mode(False):
        return torch.full((queries, keys), -torch.inf, dtype=dtype).triu_(keys - queries + 1)


def _probabilities(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """softmax of the scores of q (N, T, K), the last T positions of k (N, S, K): (N, T, S)."""
    mask = _triangle(q.shape[1], k.shape[1], q.dtype)
    return torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)


class _Tiled(torch.autograd.Function):
    """Forward and gradient, tile by tile."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, recorded: bool) -> Tensor:
        """q, k and v (B, H, T, K) -> (B, H, T, K)."""
        ctx.scale = scale
        keep = recorded and q.shape[2] <= KEPT
        kept, y = [], torch.empty_like(q)
        for rows, heads, blocks in _tiles(q):
            qs, ks, vs = (x[rows, heads].flatten(0, 1) for x in (q, k, v))  # (N, T, K)
            for at in blocks:
                p = _probabilities(qs[:, at], ks[:, : at.stop], scale)
                out = y[rows, heads, at]
                out.copy_((p @ vs[:, : at.stop]).view_as(out))
                if keep:
                    kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """dV = P^T dY; dP = dY V^T; dS = P (dP - rowsum(P dP)); dQ = scale dS K; dK = scale dS^T Q.

        In differentiable operations when the gradient itself is to be differentiated.
        """
        q, k, v, *kept = ctx.saved_tensors
        dy, probabilities = grads[0], iter(kept)
        if torch.is_grad_enabled():
            with sdpa_kernel(SDPBackend.MATH):
                y = scaled_dot_product_attention(q, k, v, is_causal=True, scale=ctx.scale)
            return *torch.autograd.grad(y, (q, k, v), dy, create_graph=True), None, None
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for rows, heads, blocks in _tiles(q):
            qs, ks, vs, dys = (x[rows, heads].flatten(0, 1) for x in (q, k, v, dy))
            sums: list[Tensor] = []
            for at in blocks:
                keys = slice(at.stop)
                p = next(probabilities) if kept else _probabilities(qs[:, at], ks[:, keys], ctx.scale)
                dp = dys[:, at] @ vs[:, keys].transpose(1, 2)
                ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
                out = dq[rows, heads, at]
                torch.mul((ds @ ks[:, keys]).view_as(out), ctx.scale, out=out)
                parts = [ds.transpose(1, 2) @ qs[:, at], p.transpose(1, 2) @ dys[:, at]]
                if len(blocks) == 1:
                    sums = parts
                    break
                sums = sums or [x.new_zeros(ks.shape, dtype=state_dtype(x.dtype)) for x in parts]
                for total, part in zip(sums, parts, strict=True):
                    total[:, keys] += part
            out = dk[rows, heads]
            torch.mul(sums[0].view_as(out), ctx.scale, out=out)
            dv[rows, heads] = sums[1].view_as(out)
        return dq, dk, dv, None, None
