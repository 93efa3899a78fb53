"""The generalised delta rule: a matrix memory that decays, erases along one direction and writes another.

S_t = S_{t-1} (diag(w_t) + a_t b_t^T) + v_t k_t^T,   y_t = S_t r_t

with S (V x K) a head's memory; w_t in (0, 1)^K, a_t, b_t, k_t, r_t in R^K and v_t in R^V. DeltaNet is w = 1,
a = -k, b = beta k. The sequence is cut into chunks of C steps. With W_t the product of the decays of a chunk
up to t, and u_t = S_{t-1} a_t, a chunk that starts from S_0 has

    S_t = (S_0 + sum_{s<=t} (u_s b_s^T + v_s k_s^T) diag(1 / W_s)) diag(W_t)

so that u solves a triangular system (the WY form of Yang et al. 2024, arXiv 2406.06484, with decay) and
everything else is a matrix product. Only S goes from chunk to chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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

    log_w: natural logarithms of the decays, at most 0; `chunk` of them may sum to -80 before 1 / W leaves
    float32, so a decay no faster than exp(-e^(-1/2)) allows chunks of 128.
    """
    if r.shape[1] == 1:
        return _step(r, log_w, k, v, a, b, memory)
    T = r.shape[1]
    size = min(chunk, T)
    log_w, r, k, v, a, b = (_cut(x, size) for x in (log_w, r, k, v, a, b))
    total = log_w.cumsum(-2)  # log W_t, (N, B, H, C, K) as all that follows
    shrink, grow = total.exp(), (-total).exp()
    readers = torch.cat(((total - log_w).exp() * a, shrink * r), -2)  # (N, B, H, 2C, K)
    writers = torch.cat((grow * b, grow * k), -2)
    scores = _mask(readers @ writers.mT, size)  # (N, B, H, 2C, 2C)
    strict = scores[..., :size, :size]
    system = torch.cat((readers[..., :size, :], scores[..., :size, size:] @ v), -1)
    solved = torch.linalg.solve_triangular(
        torch.eye(size, dtype=r.dtype, device=r.device) - strict, system, upper=False, unitriangular=True
    )
    from_memory, from_values = solved.split((r.shape[-1], v.shape[-1]), -1)
    end = shrink[..., -1:, :]  # W_C, (N, B, H, 1, K)
    memories, written = [], []
    pieces = zip(*(x.unbind(0) for x in (from_memory, from_values, v, writers * end, end)), strict=True)
    for P, Q, v_n, Z, W in pieces:
        memories.append(memory)
        u = torch.cat((Q + P @ memory.mT, v_n), -2)  # u and v, (B, H, 2C, V)
        written.append(u)
        memory = memory * W + u.mT @ Z
    y = readers[..., size:, :] @ torch.stack(memories).mT + scores[..., size:, :] @ torch.stack(written)
    return y.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :T], memory  # (N, B, H, C, V) -> (B, T, H, V)


def _step(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """One step as written: the recurrence, then the read."""
    r, log_w, k, v, a, b = (x.squeeze(1).unsqueeze(-1) for x in (r, log_w, k, v, a, b))  # (B, H, K, 1)
    u = memory @ a  # (B, H, V, 1)
    memory = memory * log_w.exp().mT + u * b.mT + v * k.mT
    return (memory @ r).squeeze(-1).unsqueeze(1), memory


def _cut(x: Tensor, size: int) -> Tensor:
    """(B, T, H, K) -> (N, B, H, C, K), the last chunk filled up with zeros, which leave S as it is."""
    missing = -x.shape[1] % size
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    return x.unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4)


def _mask(scores: Tensor, size: int) -> Tensor:
    """u_t reads what was written before t, y_t also what is written at t."""
    causal = torch.ones(size, size, dtype=torch.bool, device=scores.device).tril()
    rows = torch.cat((causal.tril(-1), causal))
    return scores.masked_fill(~torch.cat((rows, rows), 1), 0)


def delta_rule_flops(T: int, heads: int, width: int, chunk: int) -> int:
    """Matrix products of `delta_rule` over T steps of one sequence, where V = K = `width`.

    A chunk multiplies readers with writers (4 C^2 K), scores with values (C^2 K and 4 C^2 K / 2), and the
    memory with a, r, and what is written (4 C K^2). The triangular solves, C^2 K more, are not products.
    """
    if T == 1:
        return 4 * heads * width**2
    size = min(chunk, T)
    padded = -(-T // size) * size
    return 2 * padded * heads * width * (7 * size + 4 * width)
