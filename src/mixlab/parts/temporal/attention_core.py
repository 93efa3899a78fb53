"""The arithmetic of attention: scores, what is hidden, the window; no parameters, no state."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mixlab.parts.contract import state_dtype
from mixlab.parts.temporal import tiled


class Scoring(NamedTuple):
    """How scores are made: softmax(softcap(scale Q K^T) - slope x distance), within the window."""

    scale: float | None = None
    softcap: float = 0.0
    window: int = 0
    slopes: Float[Tensor, "H"] | None = None


def attend(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    scoring: Scoring = Scoring(),  # noqa: B008 - an immutable tuple of constants
) -> Float[Tensor, "B H T K"]:
    """Attention of the last T of S positions to all up to their own, or to a window of them."""
    T, S = q.shape[2], k.shape[2]
    if 0 < 2 * scoring.window < T:
        return attend_in_blocks(q, k, v, scoring)
    if scoring.softcap:
        return attend_with_softcap(q, k, v, scoring)
    grouped = q.shape[1] != k.shape[1]
    if T == S and scoring.slopes is None and not 0 < scoring.window < T:
        if tiled.suits(q):
            groups = q.shape[1] // k.shape[1]
            k, v = (h.repeat_interleave(groups, 1) if grouped else h for h in (k, v))
            return tiled.causal_attention(q, k, v, scoring.scale)
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scoring.scale, enable_gqa=grouped
        )
    # is_causal would align the triangle to the first key, not the last.
    mask = bias_of(T, S, scoring, q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scoring.scale, enable_gqa=grouped)


def bias_of(
    T: int, S: int, scoring: Scoring, like: Tensor
) -> Float[Tensor, "1 H T S"] | Bool[Tensor, "T S"] | None:
    """What is added to the scores of the last T of S positions, or which of them count; None if all do."""
    limited = 0 < scoring.window < S
    if T == 1 and not limited and scoring.slopes is None:
        return None
    index = torch.arange(S, device=like.device)
    distance = index[S - T :, None] - index  # (T, S)
    visible = distance >= 0
    if limited:
        visible &= distance < scoring.window
    if scoring.slopes is None:
        return visible
    slopes = scoring.slopes.to(state_dtype(scoring.slopes.dtype))  # bf16 cannot count past 256
    bias = -slopes[:, None, None] * distance  # (H, T, S)
    return bias.masked_fill(~visible, -torch.inf).to(like.dtype).unsqueeze(0)


def attend_with_softcap(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B G S K"], v: Float[Tensor, "B G S K"], scoring: Scoring
) -> Float[Tensor, "B H T K"]:
    """softmax(c tanh(scores / c)) V in plain operations: no fused kernel has the cap (Gemma 2)."""
    p = scores(q, k, scoring).softmax(-1).to(v.dtype)
    return p @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def scores(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B G S K"], scoring: Scoring
) -> Float[Tensor, "B H T S"]:
    """What the softmax is of, in float32 at least: scaled, capped and biased, -inf where a key is hidden."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scale = q.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    made = (scale * q) @ k.transpose(2, 3)  # (B, H, T, S)
    made = made.to(state_dtype(made.dtype))
    if scoring.softcap:
        made = scoring.softcap * torch.tanh(made / scoring.softcap)
    bias = bias_of(q.shape[2], k.shape[2], scoring, made)
    if bias is None:
        return made
    return made.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else made + bias


def attend_in_blocks(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B G S K"], v: Float[Tensor, "B G S K"], scoring: Scoring
) -> Float[Tensor, "B H T K"]:
    """Sliding-window attention for T > 2w, at a cost linear in T: w queries at a time see the w keys before
    their own. The first w see what the cache holds instead, and the remainder comes by itself. (Up to 2w one
    masked square is as fast as the fused causal kernel, and faster than blocks.)"""
    w = scoring.window
    past, blocks = k.shape[2] - q.shape[2], q.shape[2] // w
    new_k, new_v = k[:, :, past:], v[:, :, past:]
    pieces = [attend(q[:, :, :w], k[:, :, : past + w], v[:, :, : past + w], scoring)]
    rows, keys, values = (
        h[:, :, : blocks * w].unflatten(2, (blocks, w)).transpose(1, 2) for h in (q, new_k, new_v)
    )  # (B, H, T, K) -> (B, N, H, w, K)
    keys, values = (torch.cat((h[:, :-1], h[:, 1:]), 3).flatten(0, 1) for h in (keys, values))
    middle = attend(rows[:, 1:].flatten(0, 1), keys, values, scoring)  # (B (N-1), H, w, K)
    pieces.append(middle.unflatten(0, (-1, blocks - 1)).transpose(1, 2).flatten(2, 3))
    if q.shape[2] > blocks * w:
        before = (blocks - 1) * w
        pieces.append(attend(q[:, :, blocks * w :], new_k[:, :, before:], new_v[:, :, before:], scoring))
    return torch.cat(pieces, 2)
