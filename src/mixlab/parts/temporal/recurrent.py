"""Recurrent networks, with a projection back to the residual stream.

Parameters and kernels are torch.nn's; under autocast on a CPU, `recurrent_core` runs the recurrence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixlab.errors import UserError
from mixlab.parts.contract import Part, Place, Role, init_linear, register, state_dtype
from mixlab.parts.temporal.recurrent_core import Cell, ElmanCell, GRUCell, LSTMCell, scan


class HiddenState(NamedTuple):
    """The hidden vector of an Elman network or a GRU."""

    h: Float[Tensor, "B H"]


class LSTMState(NamedTuple):
    """Hidden and cell vectors."""

    h: Float[Tensor, "B H"]
    c: Float[Tensor, "B H"]


class Recurrent(Part):
    """y_t = U h_t, with h_t from a torch.nn cell.

    The recurrence couples every hidden channel with every other at each step, so it is replicated
    over a tensor-parallel mesh; a split would cost an all-reduce a step.
    """

    gates: ClassVar[int]
    cell_class: ClassVar[Callable[..., Any]]
    steps: ClassVar[Cell]
    state_class: ClassVar[type[HiddenState] | type[LSTMState]] = HiddenState

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """ratio: hidden width over D."""

        ratio: float = 1.0

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        if config.ratio <= 0:
            raise UserError(f"a recurrent part needs ratio > 0, got {config.ratio}")
        self.hidden = max(1, round(config.ratio * self.dim))
        self.cell: Any = self.cell_class(self.dim, self.hidden, batch_first=True)
        self.out = nn.Linear(self.hidden, self.dim, bias=False)

    def reset_parameters(self) -> None:
        """Recurrent matrices orthogonal, gate by gate (singular values 1: neither the state nor its
        gradient shrinks or grows at the start, Saxe et al. 2013); inputs N(0, 1/D); biases zero;
        the projection that writes to the residual stream divided by sqrt(2N)."""
        for gate in range(self.gates):
            rows = slice(gate * self.hidden, (gate + 1) * self.hidden)
            nn.init.orthogonal_(self.cell.weight_hh_l0.data[rows])
        nn.init.normal_(self.cell.weight_ih_l0, std=self.dim**-0.5)
        nn.init.zeros_(self.cell.bias_ih_l0)
        nn.init.zeros_(self.cell.bias_hh_l0)
        init_linear(self.out, self.hidden**-0.5 * self.place.residual_scale)

    def parameter_roles(self) -> dict[str, Role]:
        """The recurrent matrix acts on the state at every step."""
        return {
            "cell.weight_ih_l0": "matrix",
            "cell.weight_hh_l0": "recurrence",
            "cell.bias_ih_l0": "gain",
            "cell.bias_hh_l0": "gain",
            "out.weight": "matrix",
        }

    def parameter_count(self) -> int:
        """A gate has an input matrix, a recurrent matrix and torch.nn's two biases; then U."""
        return self.gates * self.hidden * (self.dim + self.hidden + 2) + self.hidden * self.dim

    def flops(self, T: int) -> int:
        """Input and recurrent products of each gate, then U."""
        return 2 * T * self.hidden * (self.gates * (self.dim + self.hidden) + self.dim)

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> Any:
        """Zeros."""
        zeros = torch.zeros(batch_size, self.hidden, device=device, dtype=state_dtype(dtype))
        return self.state_class(*(zeros.clone() for _ in self.state_class._fields))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """One vector a field of the state, whatever T."""
        return len(self.state_class._fields) * self.hidden * state_dtype(dtype).itemsize

    def run(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, T, D) through the cell, from `state` or zeros: all hidden vectors, and the state after them."""
        dtype = self.cell.weight_hh_l0.dtype
        before = None if state is None else state.h.to(dtype)[None]
        h, last = self.cell(x.to(dtype), before)
        return h, HiddenState(last[0])

    def run_autocast(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """As `run`, with products in autocast's dtype and the state in the parameters'."""
        cell = self.cell
        bias, apart = cell.bias_ih_l0, cell.bias_hh_l0
        if self.steps.additive:
            bias, apart = bias + apart, None
        a = F.linear(x.transpose(0, 1), cell.weight_ih_l0, bias)  # (B, T, D) -> (T, B, G H)
        if state is None:
            state = self.init_state(len(x), 0, device=x.device, dtype=x.dtype)
        before = tuple(s.to(cell.weight_hh_l0.dtype) for s in state)
        with torch.autocast(x.device.type, enabled=False):
            h, after = scan(self.steps, a, cell.weight_hh_l0.to(a.dtype), apart, before)
        return h.transpose(0, 1), self.state_class(*after)

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """Run the recurrence, its state in the parameters' own precision, then project."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            h, after = self.run_autocast(x, state)
        else:
            with torch.autocast(x.device.type, enabled=False):
                h, after = self.run(x, state)
        y = self.out(h.to(x.dtype))
        if state is None:
            return y, None
        return y, self.state_class(*(new.to(old.dtype) for new, old in zip(after, state, strict=True)))


@register("temporal", "rnn")
class RNN(Recurrent):
    """h_t = tanh(W x_t + R h_{t-1} + b)."""

    paper = "Elman 1990, Finding Structure in Time"
    gates = 1
    cell_class = nn.RNN
    steps = ElmanCell()


@register("temporal", "gru")
class GRU(Recurrent):
    """r, z = sigmoid(...); n = tanh(W x + b + r * (R h + b')); h_t = (1 - z) * n + z * h_{t-1}.

    torch.nn's variant: the reset gate acts after the recurrent product, as in cuDNN.
    """

    paper = "Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder"
    gates = 3
    cell_class = nn.GRU
    steps = GRUCell()


@register("temporal", "lstm")
class LSTM(Recurrent):
    """i, f, o = sigmoid(...), g = tanh(...); c_t = f * c_{t-1} + i * g; h_t = o * tanh(c_t).

    The forget gate starts with bias 1, so that memory survives the first steps of training.
    """

    paper = "Hochreiter & Schmidhuber 1997; forget bias: Jozefowicz et al. 2015"
    gates = 4
    cell_class = nn.LSTM
    steps = LSTMCell()
    state_class = LSTMState

    def reset_parameters(self) -> None:
        """As for every recurrent part, and a forget bias of 1 (torch.nn's gate order is i, f, g, o)."""
        super().reset_parameters()
        nn.init.ones_(self.cell.bias_ih_l0.data[self.hidden : 2 * self.hidden])

    def run(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """As for every recurrent part, with the cell vector beside the hidden one."""
        dtype = self.cell.weight_hh_l0.dtype
        before = None if state is None else (state.h.to(dtype)[None], state.c.to(dtype)[None])
        h, (last, cell) = self.cell(x.to(dtype), before)
        return h, LSTMState(last[0], cell[0])
