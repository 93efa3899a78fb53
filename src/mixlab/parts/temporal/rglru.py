"""Griffin's recurrent block: a gated linear recurrence behind a short convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.errors import UserError
from mixlab.parts.contract import Part, Place, Role, Split, Watched, init_linear, register, state_dtype
from mixlab.parts.feature.mlp import hidden_width
from mixlab.parts.temporal.rglru_core import Inputs, core


class RGLRUState(NamedTuple):
    """The hidden vector, the last inputs of the convolution, and the number of tokens seen."""

    h: Float[Tensor, "B R"]
    inputs: Float[Tensor, "B N R"]
    length: Int[Tensor, ""]


@register("temporal", "rglru")
class RGLRU(Part):
    """W_out (gelu(W_g x) * rglru(conv(W_v x))), where, channel by channel and with block-diagonal W_a, W_x,

    r_t = sigmoid(W_a u_t + b_a), i_t = sigmoid(W_x u_t + b_x), log a_t = -c r_t softplus(decay),
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t), the first input of a sequence entering with factor 1.
    """

    paper = (
        "De et al. 2024, Griffin (arXiv 2402.19427), equations 1-4; recurrentgemma's code where it differs"
    )

    C: ClassVar[float] = 8.0  # the paper's c
    RADII: ClassVar[tuple[float, float]] = (0.9, 0.999)  # section 2.4: memories of 10 to 1000 steps

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """ratio: recurrent width R over D; 4/3, "approximately" in section 2.3. multiple: R is rounded to
        it; 16 fills vector registers. blocks: of the gates, dividing R; 0 takes one every 128 channels (a
        head of the paper's), but 4 at least. conv: width N of the convolution. init: whether at the start
        a ("code") or a^c ("paper") is in [0.9, 0.999]. bias: of the three projections (the released code).
        """

        ratio: float = 4 / 3
        multiple: int = 16
        blocks: int = 0
        conv: int = 4
        init: Literal["code", "paper"] = "code"
        bias: bool = True

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        if config.conv < 1 or config.blocks < 0:
            raise UserError(
                f"rglru needs conv >= 1 and blocks >= 0, got conv={config.conv}, blocks={config.blocks}"
            )
        blocks = config.blocks or max(4, round(config.ratio * self.dim / 128))
        self.hidden = hidden_width(self.dim, config.ratio, lcm(config.multiple, blocks))
        self.blocks, self.block_width = blocks, self.hidden // blocks
        self.value = nn.Linear(self.dim, self.hidden, bias=config.bias)
        self.gate = nn.Linear(self.dim, self.hidden, bias=config.bias)
        self.taps = nn.Parameter(torch.empty(self.hidden, config.conv))
        self.shift = nn.Parameter(torch.empty(self.hidden))
        square = (blocks, self.block_width, self.block_width)  # (block, in, out)
        self.recurrence_gate = nn.Parameter(torch.empty(square))
        self.recurrence_bias = nn.Parameter(torch.empty(self.hidden))
        self.input_gate = nn.Parameter(torch.empty(square))
        self.input_bias = nn.Parameter(torch.empty(self.hidden))
        self.decay = nn.Parameter(torch.empty(self.hidden))
        self.out = nn.Linear(self.hidden, self.dim, bias=config.bias)

    def reset_parameters(self) -> None:
        """The released code's: inputs of each product N(0, 1 / fan-in); taps N(0, 0.01 / N); the projection
        to the residual stream N(0, 2 / (depth R)); biases 0; decays by `init`."""
        for linear in (self.value, self.gate):
            init_linear(linear, self.dim**-0.5)
        init_linear(self.out, (2 / (self.place.depth * self.hidden)) ** 0.5)
        nn.init.normal_(self.taps, std=(0.01 / self.config.conv) ** 0.5)
        for weight in (self.recurrence_gate, self.input_gate):
            nn.init.normal_(weight, std=self.block_width**-0.5)
        for bias in (self.shift, self.recurrence_bias, self.input_bias):
            nn.init.zeros_(bias)
        self._reset_decay()

    def _reset_decay(self) -> None:
        """Code: a^2 uniform on [0.9^2, 0.999^2], uniform on a ring (Orvieto et al. 2023). Paper: a^c uniform
        on [0.9, 0.999]. softplus(decay) = -log a."""
        low, high = self.RADII
        with torch.no_grad():
            u = torch.empty_like(self.decay, dtype=torch.float64)
            if self.config.init == "code":
                minus_log_a = u.uniform_(low**2, high**2).log_().div_(-2)
            else:
                minus_log_a = u.uniform_(low, high).log_().div_(-self.C)
            self.decay.copy_(minus_log_a.expm1_().log_())

    def parameter_roles(self) -> dict[str, Role]:
        """The decay acts on the state at every step; a tap scales one channel."""
        roles: dict[str, Role] = {"decay": "recurrence", "taps": "gain"}
        return {
            name: roles.get(name, "matrix" if p.ndim > 1 else "gain") for name, p in self.named_parameters()
        }

    def parameter_count(self) -> int:
        """Three projections, two gates of R W weights, taps, and R each: decay and three biases."""
        D, R = self.dim, self.hidden
        biases = (2 * R + D) * self.config.bias
        return 3 * D * R + biases + 2 * R * self.block_width + R * self.config.conv + 4 * R

    def flops(self, T: int) -> int:
        """Three projections and two block-diagonal gates."""
        return 2 * T * self.hidden * (3 * self.dim + 2 * self.block_width)

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> RGLRUState:
        """Zeros, and no token seen."""
        h = torch.zeros(batch_size, self.hidden, device=device, dtype=state_dtype(dtype))
        inputs = torch.zeros(batch_size, self.config.conv - 1, self.hidden, device=device, dtype=dtype)
        return RGLRUState(h, inputs, torch.zeros((), dtype=torch.int64))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """R in float32, N - 1 times R in the compute dtype, and the counter, whatever T."""
        return (
            self.hidden * (state_dtype(dtype).itemsize + (self.config.conv - 1) * dtype.itemsize)
            + torch.int64.itemsize
        )

    def tensor_plan(self) -> Mapping[str, Split]:
        """Whole gate blocks on each device: a gate reads its own block only, convolution and recurrence their
        own channel, so the one sum is that of the last projection (section 4.1)."""
        rows = ("value", "gate", "taps", "shift", "decay")
        gates = ("recurrence_gate", "recurrence_bias", "input_gate", "input_bias")
        return {**dict.fromkeys(rows + gates, "column"), "out": "row"}

    def tensor_units(self) -> int:
        """Gate blocks."""
        return self.blocks

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """Project, run the recurrence time-major, project back."""
        x = x.transpose(0, 1).contiguous()  # (B, T, D) -> (T, B, D)
        value, gate = self.value(x), self.gate(x)  # (T, B, R)
        dtype, acc = value.dtype, state_dtype(value.dtype)
        if state is None:
            h = value.new_zeros(value.shape[1:], dtype=acc)
            past = value.new_zeros((self.config.conv - 1, *h.shape))
        else:
            h, past = state.h.to(acc), state.inputs.transpose(0, 1).to(dtype)
        inputs = Inputs(
            value, gate, past, h,
            taps=self.taps.t().to(acc).contiguous(),
            shift=self.shift.to(acc),
            weight=torch.cat((self.recurrence_gate, self.input_gate), 2).to(dtype),
            bias=torch.stack((self.recurrence_bias, self.input_bias)).to(acc),
            rate=-self.C * F.softplus(self.decay.to(acc)),
        )  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            y, h = core(inputs, fresh=state is None or int(state.length) == 0)
        y = self.out(y).transpose(0, 1)  # (T, B, D) -> (B, T, D)
        if state is None:
            return y, None
        T, kept = len(value), min(len(value), len(past))
        last = torch.cat((past[kept:], value[T - kept :])).transpose(0, 1)  # (N-1, B, R) -> (B, N-1, R)
        return y, RGLRUState(h.to(state.h.dtype), last.to(state.inputs.dtype), state.length + T)

    def watched(self, x: Float[Tensor, "B T D"]) -> Mapping[Watched, Tensor]:
        """The gate, which decides what of the recurrence gets out."""
        return {"units": F.gelu(self.gate(x), approximate="tanh")}
