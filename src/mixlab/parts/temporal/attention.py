"""Causal softmax attention, over all of the past or a window of it, with a cache of keys and values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.errors import UserError, near_divisors
from mixlab.parts.contract import Part, Place, Split, Step, Watched, get, init_linear, register
from mixlab.parts.norm import RMSNorm
from mixlab.parts.position import LinearBias, Position
from mixlab.parts.products import Products
from mixlab.parts.temporal.attention_core import Scoring, attend, scores


class AttentionState(NamedTuple):
    """Keys and values of the tokens seen, `length` in all: that of position p in slot p modulo the number
    of slots S, which is the room that was asked for or, if less, the window."""

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
        raise UserError(
            f"attention: {heads} heads do not divide the width {dim}; the nearest that do are "
            f"{near_divisors(dim, heads)}"
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
        """heads: 0 takes `default_heads`. kv_heads: 0 takes one a head; 1 is multi-query (Shazeer 2019).
        window: how many tokens each sees, itself included (Beltagy et al. 2020); 0 is all.
        bias: which projections have one: GPT-2 all, Qwen2 qkv, RecurrentGemma out.
        qk_norm: RMSNorm over each head's queries and keys, before positions turn them (Henry et al. 2020;
        placed as in Qwen3 and Gemma 3); its eps is the model's default, 1e-6.
        softcap: c in c tanh(scores / c), 0 is off (Gemma 2: 50).
        temperature: divides the scores, after sqrt(K) and before the cap; with learned_temperature, what a
        factor of each head's own starts at, kept positive as an exponential.
        """

        heads: int = 0
        kv_heads: int = 0
        window: int = 0
        bias: Literal["none", "qkv", "out", "all"] = "none"
        qk_norm: bool = False
        softcap: float = 0.0
        temperature: float = 1.0
        learned_temperature: bool = False

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.heads = config.heads or default_heads(self.dim)
        self.kv_heads = config.kv_heads or self.heads
        check_heads(self.dim, self.heads, self.kv_heads)
        if config.window < 0 or config.softcap < 0 or config.temperature <= 0:
            raise UserError(
                "attention needs window >= 0, softcap >= 0 and temperature > 0, got "
                f"window={config.window}, softcap={config.softcap}, temperature={config.temperature}"
            )
        self.width = self.dim // self.heads
        self.scoring = Scoring(self._scale(), config.softcap, config.window)
        inner, outer = (config.bias in (one, "all") for one in ("qkv", "out"))
        self.q = nn.Linear(self.dim, self.dim, bias=inner)
        self.k = nn.Linear(self.dim, self.kv_heads * self.width, bias=inner)
        self.v = nn.Linear(self.dim, self.kv_heads * self.width, bias=inner)
        self.out = nn.Linear(self.dim, self.dim, bias=outer)
        head = Place(dim=self.width, context=place.context)
        self.q_norm = RMSNorm(RMSNorm.Config(), head) if config.qk_norm else None
        self.k_norm = RMSNorm(RMSNorm.Config(), head) if config.qk_norm else None
        self.log_temperature = nn.Parameter(torch.empty(self.heads)) if config.learned_temperature else None
        scheme = self._position(place, head)
        biased = isinstance(scheme, LinearBias)
        self.slopes: Tensor | None
        self.register_buffer("slopes", LinearBias.slopes(self.heads) if biased else None, persistent=False)
        self.position = None if biased else scheme

    def _scale(self) -> float | None:
        """1 / sqrt(K) over a fixed temperature; where scales follow the width, sqrt(K_0) / K from the head
        width K_0 of the base: trained queries and keys are aligned, so that their product grows with K (Yang
        et al. 2022, definition 4.1). None: the fused kernel's own."""
        base = self.place.base_dim
        widened = self.width * (self.config.heads or default_heads(base)) / base if base else 1.0
        fixed = 1.0 if self.config.learned_temperature else self.config.temperature
        return None if fixed == widened == 1 else (self.width * widened) ** -0.5 / fixed

    @staticmethod
    def _position(place: Place, head: Place) -> Position | None:
        """The model's scheme, at head width, if it is one that acts inside attention."""
        if place.position is None:
            return None
        scheme = get("position", place.position.name)
        if not issubclass(scheme, Position) or scheme.acts_on not in ("attention", "scores"):
            return None
        return scheme(place.position.config, head)

    def reset_parameters(self) -> None:
        """N(0, 0.02); the projection that writes to the residual stream divided by sqrt(2N) (GPT-2). Biases
        at zero, norms at unit gain."""
        for linear in (self.q, self.k, self.v):
            init_linear(linear, self.place.std(0.02))
        init_linear(self.out, self.place.std(0.02) * self.place.residual_scale)
        if self.q_norm is not None and self.k_norm is not None:
            self.q_norm.reset_parameters()
            self.k_norm.reset_parameters()
        if self.log_temperature is not None:
            nn.init.constant_(self.log_temperature, math.log(self.config.temperature))

    def parameter_count(self) -> int:
        """Queries and output D x D, keys and values D x H_kv K, and the vectors that are asked for."""
        c, narrow = self.config, self.kv_heads * self.width
        biases = (self.dim + 2 * narrow) * (c.bias in ("qkv", "all")) + self.dim * (c.bias in ("out", "all"))
        vectors = 2 * self.width * c.qk_norm + self.heads * c.learned_temperature
        return 2 * self.dim * (self.dim + narrow) + biases + vectors

    def flops(self, T: int) -> int:
        """Four projections, then scores and weighted sums over the whole squares that are computed: T x T,
        or, beyond two windows w, one of w x w and then w queries at a time over 2w keys."""
        w = self.config.window
        square = T * T
        if 0 < 2 * w < T:
            blocks, rest = divmod(T, w)
            square = w * w + (blocks - 1) * 2 * w * w + rest * (w + rest)
        return 4 * T * self.dim * (self.dim + self.kv_heads * self.width) + 4 * square * self.dim

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> AttentionState:
        """Empty buffers for `max_length` tokens, or for a window of them."""
        room = min(max_length, self.config.window or max_length)
        shape = (batch_size, self.kv_heads, room, self.width)
        empty = torch.zeros(shape, device=device, dtype=dtype)
        return AttentionState(empty, empty.clone(), torch.zeros((), dtype=torch.int64))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """A key and a value a token within the window, and the counter."""
        kept = min(T, self.config.window or T)
        return 2 * kept * self.kv_heads * self.width * dtype.itemsize + torch.int64.itemsize

    def tensor_plan(self) -> Mapping[str, Split]:
        """Whole heads on each device, as the softmax is local to its head; a single key-value head, which
        every query reads, stays on all, and so do norms that all heads share."""
        keys: Split = "column" if self.kv_heads > 1 else "shared"
        plan: dict[str, Split] = {"q": "column", "k": keys, "v": keys, "out": "row"}
        if self.config.qk_norm:
            plan |= {"q_norm": "shared", "k_norm": "shared"}
        if self.log_temperature is not None:
            plan["log_temperature"] = "column"
        if self.slopes is not None:
            plan["slopes"] = "column"
        return plan

    def tensor_units(self) -> int:
        """Heads, in groups that share keys and values."""
        return self.kv_heads if self.kv_heads > 1 else self.heads

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """Project, turn by position, append to the cache, attend, project back."""
        q, k, scoring = self._compared(x, 0 if state is None else int(state.length))
        v = self._heads(self.v(x))
        if state is not None:
            k, v, state = extend(state, k, v, scoring)
        y = attend(q, k, v, scoring)
        return self.out(y.transpose(1, 2).flatten(2)), state  # (B, H, T, K) -> (B, T, D)

    def stepper(self, products: Products) -> Step | None:
        """The same where scores are plain. Queries, keys and values stay side by side as one set of heads as
        long as that spares operations; a ring's order means nothing to one token."""
        c, K, window = self.config, self.width, self.scoring.window
        if c.qk_norm or c.learned_temperature or c.softcap or self.slopes is not None:
            return None
        project, out = products(self.q, self.k, self.v), products(self.out)
        turn = None if self.position is None else self.position.stepper()
        # As tensors, because an operation takes a Python number at twice the price.
        scale = torch.tensor(self.scoring.scale or K**-0.5, dtype=self.q.weight.dtype)
        one = torch.tensor(1)
        H, G = self.heads, self.kv_heads

        def step(x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
            keys, values, length = state
            start, room = int(length), keys.shape[2]
            usual = keys.dtype == x.dtype and keys.is_contiguous() and values.is_contiguous()
            if not usual or start >= room != window:
                return self.mix(x, state)
            qk, v = project(x).view(1, -1, 1, K).split_with_sizes((H + G, G), 1)
            if turn is not None:
                qk = turn(qk, start)
            q, k = qk.split_with_sizes((H, G), 1)
            slot, filled = start % room, min(start + 1, room)
            keys.narrow(2, slot, 1).copy_(k)
            values.narrow(2, slot, 1).copy_(v)
            past_k = keys.as_strided((G, K, filled), (room * K, 1, K))  # of each head, transposed
            past_v = values.as_strided((G, filled, K), (room * K, K, 1))
            q = q.view(G, H // G, K).mul_(scale)  # the queries of one key-value head as one matrix
            y = torch.bmm(torch.bmm(q, past_k).softmax(-1), past_v)
            return out(y.view(1, 1, -1)), AttentionState(keys, values, length.add(one))

        return step

    def watched(self, x: Float[Tensor, "B T D"]) -> Mapping[Watched, Tensor]:
        """The scores."""
        return {"scores": scores(*self._compared(x, 0))}

    def _compared(
        self, x: Float[Tensor, "B T D"], start: int
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B G T K"], Scoring]:
        """Queries and keys of tokens from position `start` on, and how scores are made of them."""
        q, k = self._heads(self.q(x)), self._heads(self.k(x))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.position is not None:
            q, k = self.position(q, start), self.position(k, start)
        if self.log_temperature is not None:
            q = q * torch.exp(-self.log_temperature).to(q.dtype)[:, None, None]
        return q, k, self.scoring if self.slopes is None else self.scoring._replace(slopes=self.slopes)

    def _heads(self, h: Float[Tensor, "B T HK"]) -> Float[Tensor, "B H T K"]:
        """Cut the channels into heads, heads first."""
        return h.unflatten(-1, (-1, self.width)).transpose(1, 2)


def extend(
    state: AttentionState, k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T K"], scoring: Scoring
) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"], AttentionState]:
    """The keys and values that the T new tokens may see, and the state after them; oldest first, except that
    one token alone, to which order means nothing without slopes, takes a full ring as it lies."""
    start, room, T = int(state.length), state.keys.shape[2], k.shape[2]
    stop = start + T
    if stop > room == scoring.window and (T > 1 or scoring.slopes is not None):
        past = (c[:, :, :start] if start <= room else c.roll(-start, 2) for c in state[:2])
        keys, values = (torch.cat((c.to(h.dtype), h), 2) for c, h in zip(past, (k, v), strict=True))
        return keys, values, append(state, k, v, scoring.window)
    state = append(state, k, v, scoring.window)
    return state.keys[:, :, :stop].to(k.dtype), state.values[:, :, :stop].to(v.dtype), state


def append(
    state: AttentionState, k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T K"], window: int = 0
) -> AttentionState:
    """Write new keys and values behind the cached ones, or, in buffers of the window's size, over those that
    left it; in place unless a gradient is recorded.

    Raises UserError when the buffers are full and smaller than the window.
    """
    start, room = int(state.length), state.keys.shape[2]
    stop = start + k.shape[2]
    if stop > room != window:
        raise UserError(
            f"this state has room for {room} tokens, {stop} were given; ask for a larger max_length"
        )
    slots: Any = slice(start, stop)
    if stop > room:
        k, v = k[:, :, -room:], v[:, :, -room:]
        slots = torch.arange(stop - k.shape[2], stop, device=k.device) % room
    keys, values = state.keys, state.values
    if torch.is_grad_enabled():
        keys, values = keys.clone(), values.clone()
    keys[:, :, slots] = k.to(keys.dtype)
    values[:, :, slots] = v.to(values.dtype)
    return AttentionState(keys, values, state.length.new_tensor(stop))
