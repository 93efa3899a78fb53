"""RWKV-4's time mixing: a weighted average over the past with an exponential decay a channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixlab.errors import UserError
from mixlab.parts.contract import Part, Place, Role, Split, register, state_dtype
from mixlab.parts.shift import blend, ramp
from mixlab.parts.temporal.wkv import EMPTY, wkv


class RWKV4State(NamedTuple):
    """The last input, and the average as numerator a e^p and denominator b e^p, for A channels."""

    last: Float[Tensor, "B D"]
    a: Float[Tensor, "B A"]
    b: Float[Tensor, "B A"]
    p: Float[Tensor, "B A"]


@register("temporal", "rwkv4")
class RWKV4(Part):
    """W_o (sigmoid(r_t) * wkv_t), with wkv_t the average of v_i, i <= t, weighted by e^{k_i - (t-1-i) w},
    and by e^{k_t + u} for the present one."""

    paper = "Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era (arXiv 2305.13048)"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """ratio: channels of the average over D; 1 in the paper and in every released model."""

        ratio: float = 1.0

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        if config.ratio <= 0:
            raise UserError(f"rwkv4 needs ratio > 0, got {config.ratio}")
        self.channels = max(1, round(config.ratio * self.dim))
        self.mu_r = nn.Parameter(torch.empty(self.dim))
        self.mu_k = nn.Parameter(torch.empty(self.dim))
        self.mu_v = nn.Parameter(torch.empty(self.dim))
        self.w = nn.Parameter(torch.empty(self.channels))
        self.u = nn.Parameter(torch.empty(self.channels))
        self.r = nn.Linear(self.dim, self.channels, bias=False)
        self.k = nn.Linear(self.dim, self.channels, bias=False)
        self.v = nn.Linear(self.dim, self.channels, bias=False)
        self.out = nn.Linear(self.channels, self.dim, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The released code's (RWKV-LM, RWKV-v4/src/model.py), where the paper's appendix E differs.

        With l of L layers and channel i of D: mu_k, mu_v, mu_r ramp up over the channels, less steeply in
        higher layers; w holds the logarithm of the decay rate, from e^-5 to e^3 a step; u repeats -0.5, 0,
        0.5 around ln 0.3. W_v is orthogonal; W_r, W_k and W_o are zero, so that the block starts as the
        identity.
        """
        up = self.place.layer / max(1, self.place.depth - 1)  # 0 in the first layer, 1 in the last
        down = 1 - self.place.layer / self.place.depth  # 1 in the first layer, 1/L in the last
        self.mu_k.copy_(ramp(self.dim, down))
        self.mu_v.copy_(ramp(self.dim, down) + 0.3 * up)
        self.mu_r.copy_(ramp(self.dim, 0.5 * down))  # the paper halves the value, not the exponent
        i = torch.arange(self.channels)
        self.w.copy_(-5 + 8 * (i / max(1, self.channels - 1)) ** (0.7 + 1.3 * up))
        self.u.copy_(math.log(0.3) + 0.5 * ((i + 1) % 3 - 1))
        nn.init.orthogonal_(self.v.weight, gain=max(1.0, self.channels / self.dim) ** 0.5)
        for linear in (self.r, self.k, self.out):
            nn.init.zeros_(linear.weight)

    def parameter_roles(self) -> dict[str, Role]:
        """Decay and bonus act on the state at every step; the mixing weights are gains. None decays."""
        matrices = {f"{name}.weight": "matrix" for name in ("r", "k", "v", "out")}
        gains = {f"mu_{name}": "gain" for name in "rkv"}
        return {**gains, "w": "recurrence", "u": "recurrence", **matrices}  # type: ignore[dict-item]

    def lr_scales(self) -> dict[str, float]:
        """The released code's `time_decay` and `time_first` (RWKV-LM, RWKV-v4neo/src/model.py, whose
        `--layerwise_lr` is on unless told otherwise)."""
        return {"w": 2.0, "u": 3.0}

    def parameter_count(self) -> int:
        """Four matrices D x A, three mixing vectors of D, decay and bonus of A; 4 D^2 + 5 D for A = D."""
        return 4 * self.dim * self.channels + 3 * self.dim + 2 * self.channels

    def flops(self, T: int) -> int:
        """Four products a token; the average itself multiplies no matrices."""
        return 8 * T * self.dim * self.channels

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> RWKV4State:
        """Zeros, and the exponent of an empty sum."""
        # A tensor-parallel process holds the channels of its shard of w.
        average = torch.zeros(batch_size, self.w.shape[0], device=device, dtype=state_dtype(dtype))
        last = torch.zeros(batch_size, self.dim, device=device, dtype=dtype)
        return RWKV4State(last, average, average.clone(), torch.full_like(average, EMPTY))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """The last input and three vectors of the average, whatever T."""
        return self.dim * dtype.itemsize + 3 * self.channels * state_dtype(dtype).itemsize

    def tensor_plan(self) -> Mapping[str, Split]:
        """Channels split: decay, bonus and average are local to their channel. The mixing weights act on
        the whole input, before the columns."""
        columns: dict[str, Split] = dict.fromkeys(("r", "k", "v", "w", "u"), "column")
        return {"mu_r": "shared", "mu_k": "shared", "mu_v": "shared", **columns, "out": "row"}

    def tensor_units(self) -> int:
        """Channels of the average."""
        return self.channels

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """Equations 11 to 13 (mu weights the present token), the average, equation 17."""
        mus, last = (self.mu_r, self.mu_k, self.mu_v), None if state is None else state.last
        r, k, v = (f(z) for f, z in zip((self.r, self.k, self.v), blend(x, *mus, last=last), strict=True))
        y, after = wkv(k, v, self.w, self.u, None if state is None else state[1:])
        y = self.out(torch.sigmoid(r) * y)  # (B, T, A) -> (B, T, D)
        if state is None:
            return y, None
        average = (new.to(old.dtype) for new, old in zip(after, state[1:], strict=True))
        return y, RWKV4State(x[:, -1].to(state.last.dtype), *average)
