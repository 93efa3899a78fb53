"""Causal softmax attention with a preallocated cache of keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.errors import UserError
from mixlab.parts.contract import Part, Place, Split, get, init_linear, register
from mixlab.parts.position import Position


class AttentionState(NamedTuple):
    """Keys and values of the first `length` tokens, in buffers with room for more."""

    keys: Float[Tensor, "B H S K"]
    values: Float[Tensor, "B H S K"]
    length: Int[Tensor, ""]


def default_heads(dim: int) -> int:
    """The divisor of D nearest to D / 64 (the paper's head width), but to 4 in narrow models, where one or
    two heads would leave one or two patterns a layer. Heads have an even width where D allows, so that
    positions can turn them."""
    fits = [h for h in range(1, dim + 1) if dim % h == 0 and (dim // h) % 2 == 0]
    return min(fits, key=lambda h: (abs(h - max(4, dim / 64)), h), default=1)


def check_heads(dim: int, heads: int, kv_heads: int) -> None:
    """UserError, naming the nearest counts that fit, unless heads divide the width and groups the heads."""
    if heads < 1 or dim % heads:
        fits = sorted((h for h in range(1, dim + 1) if dim % h == 0), key=lambda h: (abs(h - heads), h))
        raise UserError(
            f"attention: {heads} heads do not divide the width {dim}; the nearest that do are "
            f"{' and '.join(map(str, sorted(fits[:2])))}"
        )
    if kv_heads < 1 or heads % kv_heads:
        fits = [h for h in range(1, heads + 1) if heads % h == 0]
        raise UserError(
            f"attention: kv_heads={kv_heads} does not divide {heads} heads; choose from "
            f"{', '.join(map(str, fits))}"
        )


@register("temporal", "attention")
class Attention(Part):
    """softmax(Q K^T / sqrt(K)) V over the past and the present; G query heads may share a key-value head."""

    paper = (
        "Vaswani et al. 2017, Attention Is All You Need, equation 1; Ainslie et al. 2023 (grouped queries)"
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """heads: 0 takes `default_heads`. kv_heads: 0 takes one a head."""

        heads: int = 0
        kv_heads: int = 0

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.heads = config.heads or default_heads(self.dim)
        self.kv_heads = config.kv_heads or self.heads
        check_heads(self.dim, self.heads, self.kv_heads)
        self.width = self.dim // self.heads
        self.q = nn.Linear(self.dim, self.dim, bias=False)
        self.k = nn.Linear(self.dim, self.kv_heads * self.width, bias=False)
        self.v = nn.Linear(self.dim, self.kv_heads * self.width, bias=False)
        self.out = nn.Linear(self.dim, self.dim, bias=False)
        self.position = self._position(place)

    def _position(self, place: Place) -> Position | None:
        """The model's scheme, at head width, if it is one that acts inside attention."""
        if place.position is None:
            return None
        scheme = get("position", place.position.name)
        if not issubclass(scheme, Position) or scheme.acts_on != "attention":
            return None
        return scheme(place.position.config, Place(dim=self.width, context=place.context))

    def reset_parameters(self) -> None:
        """N(0, 0.02); the projection that writes to the residual stream divided by sqrt(2N) (GPT-2)."""
        for linear in (self.q, self.k, self.v):
            init_linear(linear, 0.02)
        init_linear(self.out, 0.02 * self.place.residual_scale)

    def parameter_count(self) -> int:
        """Queries and output D x D, keys and values D x H_kv K."""
        return 2 * self.dim * (self.dim + self.kv_heads * self.width)

    def flops(self, T: int) -> int:
        """Four projections, then scores and weighted sums over the full T x T square."""
        return 2 * T * self.parameter_count() + 4 * T * T * self.dim

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> AttentionState:
        """Empty buffers for `max_length` tokens."""
        shape = (batch_size, self.kv_heads, max_length, self.width)
        empty = torch.zeros(shape, device=device, dtype=dtype)
        return AttentionState(empty, empty.clone(), torch.zeros((), dtype=torch.int64))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """A key and a value a token, and the counter."""
        return 2 * T * self.kv_heads * self.width * dtype.itemsize + torch.int64.itemsize

    def tensor_plan(self) -> Mapping[str, Split]:
        """Whole heads on each device, as the softmax is local to its head; a single key-value head, which
        every query reads, stays on all."""
        keys: Split = "column" if self.kv_heads > 1 else "shared"
        return {"q": "column", "k": keys, "v": keys, "out": "row"}

    def tensor_units(self) -> int:
        """Heads, in groups that share keys and values."""
        return self.kv_heads if self.kv_heads > 1 else self.heads

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """Project, turn by position, append to the cache, attend, project back."""
        q, k, v = (f(x).unflatten(-1, (-1, self.width)) for f in (self.q, self.k, self.v))  # (B, T, H, K)
        start = 0 if state is None else int(state.length)
        if self.position is not None:
            q, k = self.position(q, start), self.position(k, start)
        q, k, v = (h.transpose(1, 2) for h in (q, k, v))  # (B, T, H, K) -> (B, H, T, K)
        if state is not None:
            state = append(state, k, v)
            k, v = (cache[:, :, : start + x.shape[1]].to(q.dtype) for cache in state[:2])
        y = attend(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2)), state  # (B, H, T, K) -> (B, T, D)


def append(state: AttentionState, k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T K"]) -> AttentionState:
    """Write new keys and values behind the cached ones; in place unless a gradient is recorded.

    Raises UserError when the buffers are full.
    """
    start, room = int(state.length), state.keys.shape[2]
    stop = start + k.shape[2]
    if stop > room:
        raise UserError(
            f"this state has room for {room} tokens, {stop} were given; ask for a larger max_length"
        )
    keys, values = state.keys, state.values
    if torch.is_grad_enabled():
        keys, values = keys.clone(), values.clone()
    keys[:, :, start:stop] = k
    values[:, :, start:stop] = v
    return AttentionState(keys, values, state.length.new_tensor(stop))


def attend(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B G S K"], v: Float[Tensor, "B G S K"]
) -> Float[Tensor, "B H T K"]:
    """Scaled dot-product attention of the last T of S positions to all up to their own."""
    T, S = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if T == S:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    # is_causal would align the triangle to the first key, not the last.
    mask = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
