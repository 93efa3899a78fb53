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

Chunks go through these in groups whose temporaries stay in the cache; only S goes from chunk to chunk. The
backward pass is written by hand in the same form, reversed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

GROUP = 1 << 17
"""Numbers in a temporary of a group of chunks: 512 KiB in float32."""


def delta_rule(
    r: Float[Tensor, "B T H K"],
    log_w: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    a: Float[Tensor, "B T H K"],
    b: Float[Tensor, "B T H K"],
    memory: Float[Tensor, "B H V K"],
    chunk: int,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H V K"]]:
    """y_1 ... y_T and S_T, from S_0 = `memory`, in the dtype of the inputs (float32 or float64).

    log_w: natural logarithms of the decays, at most 0; those of a chunk may sum to -40 before products of
    1 / W near the end of float32's range, so a decay no faster than exp(-e^(-1/2)) allows chunks of 64.
    """
    if r.shape[1] == 1:
        return _step(r, log_w, k, v, a, b, memory)
    T = r.shape[1]
    size = min(chunk, T)
    missing = -T % size
    inputs = [F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x for x in (r, log_w, k, v, a, b)]
    y, memory = cast("tuple[Tensor, Tensor]", _DeltaRule.apply(*inputs, memory, size))
    return y[:, :T], memory  # the zeros that fill up the last chunk leave S as it is


def _step(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """One step as written: the recurrence, then the read."""
    r, log_w, k, v, a, b = (x.squeeze(1).unsqueeze(-1) for x in (r, log_w, k, v, a, b))  # (B, H, K, 1)
    u = memory @ a  # (B, H, V, 1)
    memory = memory * log_w.exp().mT + u * b.mT + v * k.mT
    return (memory @ r).squeeze(-1).unsqueeze(1), memory


class _Kept(NamedTuple):
    """What a group of N chunks keeps for its backward pass, and its results."""

    X: Float[Tensor, "N B H 2C K"]
    Z: Float[Tensor, "N B H 2C K"]
    G: Float[Tensor, "N B H 2C 2C"]
    uv: Float[Tensor, "N B H 2C V"]
    S: Float[Tensor, "N+1 B H V K"]
    y: Float[Tensor, "N B H C V"]


def _chunks(x: Tensor, size: int) -> Tensor:
    """(B, N C, H, K) -> (N, B, H, C, K), a view."""
    return x.unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4)


def _mask(size: int, like: Tensor) -> Tensor:
    """(2C, 2C) of 0 and 1: u_t reads what was written before t, y_t also what is written at t."""
    causal = torch.ones(size, size, dtype=like.dtype, device=like.device).tril()
    rows = torch.cat((causal.tril(-1), causal))
    return torch.cat((rows, rows), 1)


def _sums(mask: Tensor) -> Tensor:
    """(C, C): what adds up the steps so far; a product is faster than a cumulative sum across heads."""
    return mask[len(mask) // 2 :, : len(mask) // 2]


def _forward(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, memory: Tensor, mask: Tensor
) -> _Kept:
    """A group of chunks (N, B, H, C, K), in plain operations that autograd can follow too."""
    C, K = r.shape[-2:]
    total = _sums(mask) @ log_w  # log W_t
    X = torch.cat(((total - log_w).exp() * a, total.exp() * r), -2)
    grow = (-total).exp()
    Z = torch.cat((grow * b, grow * k), -2)
    G = (X @ Z.mT).mul_(mask)
    v = v.contiguous()
    system = torch.cat((X[..., :C, :], G[..., :C, C:] @ v), -1)
    solved = torch.linalg.solve_triangular(-G[..., :C, :C], system, upper=False, unitriangular=True)
    end = total[..., -1:, :].exp()  # W_C
    from_memory, from_values = solved.split((K, v.shape[-1]), -1)
    shrunk = Z * end
    S, uv = [memory], []
    for n in range(len(X)):
        uv.append(torch.cat((torch.add(from_memory[n] @ S[n].mT, from_values[n]), v[n]), -2))
        S.append(torch.addcmul(uv[n].mT @ shrunk[n], S[n], end[n]))
    stacked, written = torch.stack(S), torch.stack(uv)
    y = X[..., C:, :] @ stacked[:-1].mT + G[..., C:, :] @ written
    return _Kept(X, Z, G, written, stacked, y)


def _backward(
    log_w: Tensor, kept: _Kept, dy: Tensor, dS: Tensor, mask: Tensor, grads: tuple[Tensor, ...]
) -> Tensor:
    """Write the gradients of a group's r, log_w, k, v, a, b into `grads`; return that of its first memory."""
    X, Z, G, uv, S, _ = kept
    C, K = log_w.shape[-2:]
    system = torch.cat((Z[..., :C, :], G[..., C:, :C].mT @ dy), -1)
    solved = torch.linalg.solve_triangular(-G[..., :C, :C].mT, system, upper=True, unitriangular=True)
    from_memory, from_y = solved.split((K, dy.shape[-1]), -1)
    sums = _sums(mask)
    total = sums @ log_w
    end = total[..., -1:, :].exp()
    D, dSbar = torch.empty_like(uv), torch.empty_like(S[1:])  # gradients of [u; y], and of S_C / W_C
    D[..., C:, :] = dy
    dend = torch.empty_like(end)  # of log W_C
    for n in reversed(range(len(X))):
        dend[n] = (S[n + 1] * dS).sum(-2, keepdim=True)
        torch.mul(dS, end[n], out=dSbar[n])
        torch.add(from_y[n], from_memory[n] @ dSbar[n].mT, out=D[n, ..., :C, :])
        dS = dSbar[n] + D[n].mT @ X[n]
    dG = (D @ uv.mT).mul_(mask)
    dX = D @ S[:-1] + dG @ Z
    dZ = dG.mT @ X + uv @ dSbar
    dr, dlog_w, dk, dv, da, db = grads
    torch.add(Z[..., C:, :] @ dSbar.mT, G[..., C:].mT @ D, out=dv)
    before, shrink, grow = (total - log_w).exp_(), total.exp(), total.neg().exp_()
    torch.mul(dX[..., :C, :], before, out=da)
    torch.mul(dX[..., C:, :], shrink, out=dr)
    torch.mul(dZ[..., :C, :], grow, out=db)
    torch.mul(dZ[..., C:, :], grow, out=dk)
    dX.mul_(X)
    dZ.mul_(Z)
    dtotal = dX[..., :C, :] + dX[..., C:, :] - dZ[..., :C, :] - dZ[..., C:, :]
    dtotal[..., -1:, :] += dend
    torch.sub(sums.mT @ dtotal, dX[..., :C, :], out=dlog_w)
    return dS


class _DeltaRule(torch.autograd.Function):
    """`delta_rule` over whole chunks: memory is kept once a chunk, the rest a few vectors a step."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        """r, log_w, k, v, a, b (B, N C, H, K), memory (B, H, V, K), C -> y, memory."""
        *inputs, memory, size = args
        y, after, kept = _run(inputs, memory, size)
        ctx.size, ctx.groups = size, len(kept)
        ctx.save_for_backward(*inputs, memory, *(t for group in kept for t in group[:-1]))
        return y, after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By hand, or through plain operations when the gradient itself is to be differentiated."""
        saved, dS, size = ctx.saved_tensors, grads[1], ctx.size
        inputs, memory = saved[:6], saved[6]
        if torch.is_grad_enabled():
            y, after, _ = _run(inputs, memory, size)
            again = torch.autograd.grad((y, after), saved[:7], grads, create_graph=True, allow_unused=True)
            return *again, None
        out = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
        spans, mask = _spans(inputs[0], size), _mask(size, memory)
        for i in reversed(range(ctx.groups)):
            X, Z, G, uv, S = saved[7 + 5 * i : 12 + 5 * i]
            kept = _Kept(X, Z, G, uv, S, memory)  # y is not read again
            log_w, dy, *parts = (_chunks(x[:, spans[i]], size) for x in (inputs[1], grads[0], *out))
            dS = _backward(log_w, kept, dy, dS, mask, tuple(parts))
        return *out, dS, None


def _spans(x: Tensor, size: int) -> list[slice]:
    """Stretches of time of a few whole chunks each."""
    B, T, H, K = x.shape
    step = size * max(1, GROUP // (B * size * H * K))
    return [slice(start, min(start + step, T)) for start in range(0, T, step)]


def _run(inputs: Any, memory: Tensor, size: int) -> tuple[Tensor, Tensor, list[_Kept]]:
    """The groups one after another: y (B, N C, H, V), the last memory, what each group keeps."""
    kept, mask = [], _mask(size, memory)
    for span in _spans(inputs[0], size):
        r, log_w, k, v, a, b = (_chunks(x[:, span], size) for x in inputs)
        kept.append(_forward(r, log_w, k, v, a, b, memory, mask))
        memory = kept[-1].S[-1]
    y = torch.cat([group.y for group in kept])
    return y.permute(1, 0, 3, 2, 4).flatten(1, 2), memory, kept  # (N, B, H, C, V) -> (B, T, H, V)


def delta_rule_flops(T: int, heads: int, width: int, chunk: int) -> int:
    """Matrix products of `delta_rule` over T steps of one sequence, where V = K = `width`.

    A chunk adds up decays (C^2 K), multiplies readers with writers (4 C^2 K), scores with values (C^2 K) and
    with all that is written (2 C^2 K), and the memory with a, r, and what is written (4 C K^2). Solving the
    triangular system (C^2 K) is not a product.
    """
    if T == 1:
        return 4 * heads * width**2
    size = min(chunk, T)
    padded = -(-T // size) * size
    return 2 * padded * heads * width * (8 * size + 4 * width)
