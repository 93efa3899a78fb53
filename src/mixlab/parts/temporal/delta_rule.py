"""The generalised delta rule: a matrix memory that decays, erases along one direction and writes another.

S_t = S_{t-1} (diag(w_t) + a_t b_t^T) + v_t k_t^T,   y_t = S_t r_t

with S (V x K) a head's memory; w_t in (0, 1)^K, a_t, b_t, k_t, r_t in R^K and v_t in R^V. DeltaNet is w = 1,
a = -k, b = beta k. The sequence is cut into chunks of C steps. With W_t the product of the decays of a chunk
up to t, and u_t = S_{t-1} a_t, a chunk that starts from S_0 has

    S_t = (S_0 + sum_{s<=t} (u_s b_s^T + v_s k_s^T) diag(1 / W_s)) diag(W_t)

so that u solves a triangular system (the WY form of Yang et al. 2024, arXiv 2406.06484, with decay) and
everything else is a matrix product. With readers X = [W_{t-1} a; W_t r] and writers Z = [b; k] / W_t stacked,
and G = X Z^T without what lies ahead:

    [u; y] = G [u; v] + X S_0^T,   S_C = (S_0 + [u; v]^T Z) diag(W_C)

Only S goes from chunk to chunk. Decays, their products and S are in the dtype of the inputs (float32, or
float64); what is multiplied within a chunk is rounded to a dtype of its own, bfloat16 under autocast. The
backward pass is written by hand in the same form, reversed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Steps(NamedTuple):
    """N chunks of C steps of B sequences with H heads. log_w: natural logarithms of the decays, at most 0;
    those of a chunk may sum to -40 before products of 1 / W near the end of float32's range, so a decay no
    faster than exp(-e^(-1/2)) allows chunks of 64."""

    r: Float[Tensor, "N B H C K"]
    log_w: Float[Tensor, "N B H C K"]
    k: Float[Tensor, "N B H C K"]
    v: Float[Tensor, "N B H C V"]
    a: Float[Tensor, "N B H C K"]
    b: Float[Tensor, "N B H C K"]


class Kept(NamedTuple):
    """What N chunks keep for their backward pass: `decay` (W) exactly, the rest as it was multiplied."""

    decay: Float[Tensor, "N B H C K"]
    X: Float[Tensor, "N B H 2C K"]
    Z: Float[Tensor, "N B H 2C K"]
    G: Float[Tensor, "N B H 2C 2C"]
    inverse: Float[Tensor, "N B H C C"]
    uv: Float[Tensor, "N B H 2C V"]
    S: Float[Tensor, "N+1 B H V K"]


def step(x: Steps, memory: Float[Tensor, "B H V K"]) -> tuple[Tensor, Tensor]:
    """One step (N = C = 1) as written: the recurrence, then the read. Returns y (1, B, H, 1, V) and S."""
    r, log_w, k, v, a, b = (t[0] for t in x)  # (B, H, 1, K)
    u = memory @ a.mT  # (B, H, V, 1)
    memory = memory * log_w.exp() + u * b + v.mT * k
    return (memory @ r.mT).mT[None], memory


def forward(
    x: Steps, memory: Float[Tensor, "B H V K"], low: torch.dtype
) -> tuple[Float[Tensor, "N B H C V"], Float[Tensor, "B H V K"], Kept]:
    """y in the dtype `low` of the products, the memory after, what `backward` needs.

    Plain operations, which autograd can follow too.
    """
    mask, sums, levels = _masks(x.r.shape[-2], low, x.r.dtype, x.r.device)
    C = x.r.shape[-2]
    decay = (sums @ x.log_w).exp()  # W_t; a product adds up faster than a cumulative sum across heads
    grow = decay.reciprocal()
    X, Z = (x.r.new_empty((*x.r.shape[:-2], 2 * C, x.r.shape[-1]), dtype=low) for _ in range(2))
    X[..., 0, :] = x.a[..., 0, :]
    X[..., 1:C, :] = x.a[..., 1:, :] * decay[..., :-1, :]
    X[..., C:, :] = x.r * decay
    Z[..., :C, :] = x.b * grow
    Z[..., C:, :] = x.k * grow
    G = (X @ Z.mT).mul_(mask)
    inverse = _inverse(G[..., :C, :C], levels)
    v = x.v.to(low)
    from_memory, from_values = inverse @ X[..., :C, :], inverse @ (G[..., :C, C:] @ v)
    S, uv = [memory.to(low)], []
    for n in range(len(X)):
        u = torch.baddbmm(from_values[n].flatten(0, 1), from_memory[n].flatten(0, 1), S[n].flatten(0, 1).mT)
        uv.append(torch.cat((u.view_as(v[n]), v[n]), -2))
        memory = (memory + uv[n].mT @ Z[n]) * decay[n, ..., -1:, :]
        S.append(memory.to(low))
    stacked, written = torch.stack(S), torch.stack(uv)
    y = X[..., C:, :] @ stacked[:-1].mT + G[..., C:, :] @ written
    return y, memory, Kept(decay, X, Z, G, inverse, written, stacked)


def backward(
    kept: Kept, dy: Float[Tensor, "N B H C V"], dS: Float[Tensor, "B H V K"]
) -> tuple[Steps, Float[Tensor, "B H V K"]]:
    """The gradients of the steps and of the first memory, from those of y and of the last memory.

    The gradient of log W_t is a difference of sums over pairs of steps, what t reads less what is written at
    t, in which all pairs on one side of a step cancel: only if both sums are of the same numbers, so that the
    rounded X and Z are what dX and dZ meet there, and those two keep their precision.
    """
    decay, X, Z, G, inverse, uv, S = kept
    C = decay.shape[-2]
    mask, sums, _ = _masks(C, X.dtype, decay.dtype, X.device)
    D = torch.empty_like(uv)  # gradients of [u; y]
    D[..., C:, :] = dy
    from_memory = inverse.mT @ Z[..., :C, :]
    from_y = inverse.mT @ (G[..., C:, :C].mT @ D[..., C:, :])
    dSbar = torch.empty_like(S[1:])  # gradient of S_C / W_C
    dend = torch.empty_like(decay[..., -1:, :])  # of log W_C
    for n in reversed(range(len(X))):
        dS = dS * decay[n, ..., -1:, :]
        dSbar[n] = dS
        dend[n] = (S[n] * dS).sum(-2, keepdim=True)
        D[n, ..., :C, :] = from_y[n] + from_memory[n] @ dSbar[n].mT
        dS = dS + D[n].mT @ X[n]
    dv = Z[..., C:, :] @ dSbar.mT + G[..., C:].mT @ D
    dG, kept_on = (D @ uv.mT).mul_(mask).to(decay.dtype), uv @ dSbar
    X, Z = X.to(decay.dtype), Z.to(decay.dtype)
    dX, dZ = dG @ Z + D @ S[:-1], dG.mT @ X + kept_on
    read, written, dend = dX * X, dZ * Z, dend.add_((Z * kept_on).sum(-2, keepdim=True))
    late = read[..., :C, :]
    dtotal = (late + read[..., C:, :]).sub_(written[..., :C, :]).sub_(written[..., C:, :])  # of log W_t
    dtotal[..., -1:, :] += dend
    dlog_w = (sums.mT @ dtotal).sub_(late)
    grow = decay.reciprocal()
    dr, db, dk = dX[..., C:, :] * decay, dZ[..., :C, :] * grow, dZ[..., C:, :] * grow
    da = dX[..., :C, :]
    da[..., 1:, :] *= decay[..., :-1, :]
    return Steps(dr, dlog_w, dk, dv, da, db), dS


def _inverse(A: Float[Tensor, "*B C C"], levels: tuple[Tensor, ...]) -> Float[Tensor, "*B C C"]:
    """(I - A)^-1 of a strictly lower A: from the inverses of the blocks on the diagonal, of 1, 2, 4, ...
    rows, to those of the blocks twice as large, [[P, 0], [Q A' P, Q]]. Bounded by the result, where a series
    of powers of A is not."""
    eye, first, *rest = levels
    T = torch.addcmul(eye, A, first)
    for level in rest:
        T = T + T @ (A * level) @ T
    return T


@lru_cache(maxsize=16)
def _masks(
    C: int, low: torch.dtype, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Of 0 and 1. (2C, 2C): u_t reads what was written before t, y_t also what is written at t. (C, C): what
    adds up the steps so far. For `_inverse`, the identity and what lies below the diagonal blocks of 1, 2,
    4, ... rows, within those of twice as many."""
    with torch.inference_mode(False):
        causal = torch.ones(C, C, dtype=dtype, device=device).tril()
        rows = torch.cat((causal.tril(-1), causal))
        at, levels, size = torch.arange(C, device=device), [torch.eye(C, dtype=low, device=device)], 1
        while size < C or len(levels) == 1:
            pair, odd = at // (2 * size), at // size % 2 == 1
            levels.append(((pair[:, None] == pair) & odd[:, None] & ~odd).to(low))
            size *= 2
        return torch.cat((rows, rows), 1).to(low), causal, tuple(levels)


def products(T: int, heads: int, width: int, chunk: int) -> int:
    """FLOPs of the matrix products over T steps of one sequence, where V = K = `width`.

    A chunk adds up decays (C^2 K), multiplies readers with writers (4 C^2 K), scores with values (C^2 K),
    the inverse with readers and with that (2 C^2 K) and scores with all that is written (2 C^2 K); the
    memory with a, r, and what is written (4 C K^2); the inverse takes 2 C^3 a doubling after the first.
    """
    if T == 1:
        return 4 * heads * width**2
    whole, rest = divmod(T, chunk)
    return 2 * heads * (whole * _chunk_products(chunk, width) + _chunk_products(rest, width))


def _chunk_products(C: int, K: int) -> int:
    """Multiply-adds of a head in a chunk of C steps."""
    doublings = max(0, (C - 1).bit_length() - 1)
    return 10 * C**2 * K + 4 * C * K**2 + doublings * 2 * C**3
