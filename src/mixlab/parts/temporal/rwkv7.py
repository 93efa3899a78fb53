"""RWKV-7: a matrix memory a head, rewritten at every step by a generalised delta rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.errors import UserError, near_divisors
from mixlab.parts.contract import Part, Place, Role, Split, register, state_dtype
from mixlab.parts.shift import blend
from mixlab.parts.temporal.delta_rule import products
from mixlab.parts.temporal.rwkv7_core import Inputs, core


class RWKV7State(NamedTuple):
    """The last input, for the token shift, and each head's memory."""

    shift: Float[Tensor, "B D"]
    memory: Float[Tensor, "B H V K"]


def default_heads(dim: int) -> int:
    """The divisor of D nearest to D / 64 (the paper's head width), but to 2 in narrow models, so that a
    tensor-parallel pair has a head each."""
    fits = [h for h in range(1, dim + 1) if dim % h == 0]
    return min(fits, key=lambda h: (abs(h - max(2, dim / 64)), h))


def default_rank(dim: int, factor: float) -> int:
    """factor sqrt(D) to the nearest multiple of 32, at least 32: the official code's suggestion."""
    return max(32, 32 * round(factor * dim**0.5 / 32))


class LowRank(nn.Module):
    """x -> up(act(down(x))), D -> rank -> D."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, dim, bias=False)

    def reset_parameters(self) -> None:
        """Zero down, orthogonal up of gain 0.1: the same for every token at the start, with a gradient."""
        nn.init.zeros_(self.down.weight)
        dim, rank = self.up.weight.shape
        nn.init.orthogonal_(self.up.weight, gain=0.1 * max(1.0, rank / dim) ** 0.5)


@register("temporal", "rwkv7")
class RWKV7(Part):
    """S <- S (diag(w) - kk (a kk)^T) + v k^T, read by r; w, a, v and the gate depend on the token.

    The value of the first such layer is mixed into those of the later ones; it travels in `carry`.
    """

    paper = "Peng et al. 2025, RWKV-7 Goose with Expressive Dynamic State Evolution, arXiv 2503.14456"
    carries = True

    decay_bias: nn.Parameter
    rate_bias: nn.Parameter
    residual_bias: nn.Parameter
    k_k: nn.Parameter
    k_a: nn.Parameter
    r_k: nn.Parameter
    norm_gain: nn.Parameter
    norm_shift: nn.Parameter

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """heads: 0 takes `default_heads`. decay_rank, rate_rank, value_rank, gate_rank: inner widths of what
        makes w, a, the value residual and g; 0 takes `default_rank` (2.5, 2.5, 1.7 and 5 times sqrt(D), the
        official code). chunk: steps computed as one matrix product; 32 was faster than 16
        and 64 on one core (LOG.md).
        """

        heads: int = 0
        decay_rank: int = 0
        rate_rank: int = 0
        value_rank: int = 0
        gate_rank: int = 0
        chunk: int = 32

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        D = self.dim
        self.heads = config.heads or default_heads(D)
        if self.heads < 1 or D % self.heads:
            raise UserError(
                f"rwkv7: {self.heads} heads do not divide the width {D}; the nearest that do are "
                f"{near_divisors(D, self.heads)}"
            )
        if not 1 <= config.chunk <= 64:
            raise UserError(f"rwkv7: chunk must be from 1 to 64 (float32's range), got {config.chunk}")
        for name in ("decay_rank", "rate_rank", "value_rank", "gate_rank"):
            if getattr(config, name) < 0:
                raise UserError(f"rwkv7: {name} must be 0 (default) or positive, got {getattr(config, name)}")
        self.width = D // self.heads
        self.mix_last = nn.Parameter(torch.empty(6, D))  # shares of the last token in r, w, k, v, a, g
        self.r, self.k, self.v, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        ranks = [
            config.decay_rank or default_rank(D, 2.5),
            config.rate_rank or default_rank(D, 2.5),
            config.gate_rank or default_rank(D, 5.0),
            config.value_rank or default_rank(D, 1.7),
        ]
        self.decay, self.rate, self.gate = (LowRank(D, rank) for rank in ranks[:3])
        self.ranks = sum(ranks if place.layer else ranks[:3])
        vectors = ["decay_bias", "rate_bias", "k_k", "k_a", "r_k", "norm_gain", "norm_shift"]
        self.residual: LowRank | None = None
        if place.layer > 0:  # the bottom layer has no earlier value to mix in
            self.residual = LowRank(D, ranks[3])
            vectors.append("residual_bias")
        for name in vectors:
            self.register_parameter(name, nn.Parameter(torch.empty(D)))

    def reset_parameters(self) -> None:
        """The official code's values, by layer, channel i and place in the head (docs/parts/rwkv7.md)."""
        D, layer, depth = self.dim, self.place.layer, self.place.depth
        rise = layer / max(1, depth - 1)  # 0 to 1
        fall = 1 - layer / depth  # 1 to almost 0
        i = torch.arange(D, dtype=torch.float64)
        slope = i / max(1, D - 1) - 0.5
        n = (i % self.width) * 2 / max(1, self.width - 1) - 1
        zigzag = n * n.abs()
        powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2], dtype=torch.float64)[:, None]
        values = {
            "mix_last": 1 - (i / D) ** (powers * fall),
            "decay_bias": -5.5 + 6 * (i / max(1, D - 1)) ** (1 + rise**0.3) + 2.5 * zigzag,
            "rate_bias": -0.19 + 0.3 * zigzag + 0.4 * slope,
            "residual_bias": 0.73 - 0.4 * slope,
            "k_k": 0.71 - 0.1 * slope,
            "k_a": torch.full((D,), 1.02),
            "r_k": torch.full((D,), -0.04),
            "norm_gain": torch.full((D,), ((1 + layer) / depth) ** 0.7),
            "norm_shift": torch.zeros(D),
        }
        for name, parameter in self.named_parameters(recurse=False):
            parameter.data.copy_(values[name])
        for linear, gain in ((self.r, 1.0), (self.k, 0.1), (self.v, 1.0)):
            nn.init.orthogonal_(linear.weight, gain=gain)
        nn.init.zeros_(self.out.weight)
        for low_rank in (m for m in self.children() if isinstance(m, LowRank)):
            low_rank.reset_parameters()

    def parameter_roles(self) -> dict[str, Role]:
        """What makes w and a acts on the memory at every step; vectors scale, shift or mix."""
        roles: dict[str, Role] = {}
        for name, parameter in self.named_parameters():
            recurrent = name.startswith(("decay", "rate"))
            matrix = parameter.ndim > 1 and name != "mix_last"
            roles[name] = "recurrence" if recurrent else "matrix" if matrix else "gain"
        return roles

    def lr_scales(self) -> dict[str, float]:
        """The released code's `att.w0` (RWKV-LM, RWKV-v7/train_temp/src/model.py)."""
        return {"decay_bias": 2.0}

    def parameter_count(self) -> int:
        """r, k, v and out; the low-rank pairs; six shifts and seven or eight vectors."""
        vectors = 14 if self.place.layer else 13
        return self.dim * (4 * self.dim + 2 * self.ranks + vectors)

    def flops(self, T: int) -> int:
        """Projections, low-rank pairs and the delta rule."""
        projections = 2 * T * self.dim * (4 * self.dim + 2 * self.ranks)
        return projections + products(T, self.heads, self.width, self.config.chunk)

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> RWKV7State:
        """Zeros."""
        kept = state_dtype(dtype)
        memory = torch.zeros(batch_size, self.heads, self.width, self.width, device=device, dtype=kept)
        return RWKV7State(torch.zeros(batch_size, self.dim, device=device, dtype=kept), memory)

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """A vector and a square matrix a head, whatever T."""
        return self.dim * (1 + self.width) * state_dtype(dtype).itemsize

    def tensor_plan(self) -> Mapping[str, Split]:
        """Whole heads on each device; the inner sides of the low-rank pairs, read by every head, on all."""
        plan: dict[str, Split] = {"mix_last": "shared"}
        for name, module in self.named_children():
            if isinstance(module, LowRank):
                plan |= {f"{name}.down": "shared", f"{name}.up": "column"}
            else:
                plan[name] = "row" if name == "out" else "column"
        vectors = [name for name, _ in self.named_parameters(recurse=False) if name != "mix_last"]
        return plan | dict.fromkeys(vectors, "column")

    def tensor_units(self) -> int:
        """Heads."""
        return self.heads

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Any = None,
        *,
        segment: Int[Tensor, "B T"] | None = None,
        carry: dict[str, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """As `Part.forward`; carry["value"] is the bottom layer's v, made by whichever layer finds none.

        Packed rows are cut alike in every layer of a call, so the value is carried as it was cut.
        """
        if not len(x):
            return x, state
        if segment is None:
            return self.mix(x, state, carry)
        if state is not None:
            raise ValueError("segment numbers whole packed rows and cannot continue a state")
        return self.mix_segments(x, segment, carry=carry), None

    def mix(
        self, x: Float[Tensor, "B T D"], state: Any, carry: dict[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """The equations of the official numpy reference, in its order and with its names."""
        kept = state_dtype(x.dtype)
        now, last = (1 - self.mix_last).unbind(0), None if state is None else state.shift
        x_r, x_w, x_k, x_v, x_a, x_g = blend(x, *now, last=last)
        r, k, v = self.r(x_r), self.k(x_k), self.v(x_v)
        w = self.decay.up(torch.tanh(self.decay.down(x_w)))
        a = self.rate.up(self.rate.down(x_a))
        g = self.gate.up(torch.sigmoid(self.gate.down(x_g)))
        first, share = v if carry is None else carry.setdefault("value", v), None
        if self.residual is not None:
            share = self.residual.up(self.residual.down(x_v))
        heads = r.shape[2] // self.width
        memory = (
            x.new_zeros(len(x), heads, self.width, self.width, dtype=kept) if state is None else state.memory
        )
        tokens = (r, k, v, w, a, g, share, None if share is None else first)
        vectors = (
            self.decay_bias,
            self.rate_bias,
            self.k_k,
            self.k_a,
            self.r_k,
            self.norm_gain,
            self.norm_shift,
        )
        residual_bias = None if share is None else self.residual_bias
        with torch.autocast(x.device.type, enabled=False):
            y, memory = core(Inputs(*tokens, *vectors, residual_bias, memory), self.config.chunk)
        y = self.out(y.to(x.dtype))
        return y, None if state is None else RWKV7State(x[:, -1].to(kept), memory)
