"""Recurrent networks, with a projection back to the residual stream.

Parameters and kernels are torch.nn's; under autocast on a CPU, and with several heads, `recurrent_core` runs
the recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixlab.errors import UserError, near_divisors
from mixlab.parts.contract import Part, Place, Role, Split, init_linear, register, state_dtype
from mixlab.parts.temporal.recurrent_core import Cell, ElmanCell, GRUCell, LSTMCell, scan


class HiddenState(NamedTuple):
    """The hidden vector of an Elman network or a GRU."""

    h: Float[Tensor, "B H"]


class LSTMState(NamedTuple):
    """Hidden and cell vectors."""

    h: Float[Tensor, "B H"]
    c: Float[Tensor, "B H"]


class HeadCells(nn.Module):
    """The parameters of torch.nn's cell for H heads, each a recurrence of its own, head after head."""

    def __init__(self, dim: int, hidden: int, gates: int, heads: int) -> None:
        super().__init__()
        width = hidden // heads
        self.weight_ih_l0 = nn.Parameter(torch.empty(gates * hidden, dim))
        self.weight_hh_l0 = nn.Parameter(torch.empty(heads, gates * width, width))
        self.bias_ih_l0 = nn.Parameter(torch.empty(gates * hidden))
        self.bias_hh_l0 = nn.Parameter(torch.empty(gates * hidden))


def heads_first(x: Float[Tensor, "*T B HK"], heads: int) -> Float[Tensor, "*T H B K"]:
    """What each head reads, as a matrix of its own."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3).contiguous()


def heads_last(x: Float[Tensor, "*T H B K"]) -> Float[Tensor, "*T B HK"]:
    """The heads side by side again."""
    return x.transpose(-2, -3).flatten(-2)


class Recurrent(Part):
    """y_t = U h_t, with h_t from a torch.nn cell.

    One head's recurrence couples all its hidden channels at each step, so that it cannot be cut; over a
    tensor-parallel mesh whole heads are divided, and a part of one head runs whole on every process.
    """

    gates: ClassVar[int]
    cell_class: ClassVar[Callable[..., Any]]
    steps: ClassVar[Cell]
    state_class: ClassVar[type[HiddenState] | type[LSTMState]] = HiddenState

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """ratio: hidden width over D. heads: blocks of hidden channels that see each other's past, the
        recurrent matrices being block-diagonal; 1 is the papers' full matrix, more are a head-wise memory
        (Beck et al. 2024, xLSTM, section 2.2), with fewer parameters."""

        ratio: float = 1.0
        heads: int = 1

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        if config.ratio <= 0:
            raise UserError(f"a recurrent part needs ratio > 0, got {config.ratio}")
        self.hidden = max(1, round(config.ratio * self.dim))
        if config.heads < 1 or self.hidden % config.heads:
            raise UserError(
                f"a recurrent part of hidden width {self.hidden} cannot have heads={config.heads}; the "
                f"nearest that divide it are {near_divisors(self.hidden, config.heads)}"
            )
        self.width = self.hidden // config.heads
        self.cell: Any
        if config.heads == 1:
            self.cell = self.cell_class(self.dim, self.hidden, batch_first=True)
        else:
            self.cell = HeadCells(self.dim, self.hidden, self.gates, config.heads)
        self.out = nn.Linear(self.hidden, self.dim, bias=False)

    def reset_parameters(self) -> None:
        """Recurrent matrices orthogonal, gate by gate and head by head (singular values 1: neither the
        state nor its gradient shrinks or grows at the start, Saxe et al. 2013); inputs N(0, 1/D); biases
        zero; the projection that writes to the residual stream divided by sqrt(2N)."""
        for gate in self.cell.weight_hh_l0.data.view(-1, self.width, self.width):
            nn.init.orthogonal_(gate)
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
        return self.gates * self.hidden * (self.dim + self.width + 2) + self.hidden * self.dim

    def flops(self, T: int) -> int:
        """Input and recurrent products of each gate, then U."""
        return 2 * T * self.hidden * (self.gates * (self.dim + self.width) + self.dim)

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> Any:
        """Zeros."""
        # A tensor-parallel process holds the channels of its heads.
        hidden = self.cell.bias_hh_l0.shape[0] // self.gates
        zeros = torch.zeros(batch_size, hidden, device=device, dtype=state_dtype(dtype))
        return self.state_class(*(zeros.clone() for _ in self.state_class._fields))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """One vector a field of the state, whatever T."""
        return len(self.state_class._fields) * self.hidden * state_dtype(dtype).itemsize

    def tensor_plan(self) -> Mapping[str, Split]:
        """Whole heads on each device: a head reads its own past only."""
        return {"cell": "column", "out": "row"} if self.config.heads > 1 else {}

    def tensor_units(self) -> int:
        """Heads, where there are several."""
        return self.config.heads if self.config.heads > 1 else 0

    def run(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, T, D) through the cell, from `state` or zeros: all hidden vectors, and the state after them."""
        dtype = self.cell.weight_hh_l0.dtype
        before = None if state is None else state.h.to(dtype)[None]
        h, last = self.cell(x.to(dtype), before)
        return h, HiddenState(last[0])

    def run_steps(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """As `run`, with products in autocast's dtype where it is on and the state at least in float32."""
        cell = self.cell
        bias, apart = cell.bias_ih_l0, cell.bias_hh_l0
        if self.steps.additive:
            bias, apart = bias + apart, None
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(bias.dtype)
        a = F.linear(x.transpose(0, 1), cell.weight_ih_l0, bias)  # (B, T, D) -> (T, B, H G K)
        if state is None:
            state = self.init_state(len(x), 0, device=x.device, dtype=x.dtype)
        before = [s.to(torch.promote_types(bias.dtype, torch.float32)) for s in state]
        if cell.weight_hh_l0.ndim == 3:
            heads = len(cell.weight_hh_l0)
            a, before = heads_first(a, heads), [heads_first(s, heads) for s in before]
            apart = None if apart is None else apart.view(heads, 1, -1)
        with torch.autocast(x.device.type, enabled=False):
            h, after = scan(self.steps, a, cell.weight_hh_l0.to(a.dtype), apart, tuple(before))
        if cell.weight_hh_l0.ndim == 3:
            h, after = heads_last(h), tuple(heads_last(s) for s in after)
        return h.transpose(0, 1), self.state_class(*after)

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """Run the recurrence, its state in the parameters' own precision, then project."""
        if self.config.heads > 1 or (x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            h, after = self.run_steps(x, state)
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
        nn.init.ones_(self.cell.bias_ih_l0.data.view(-1, self.gates, self.width)[:, 1])

    def run(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """As for every recurrent part, with the cell vector beside the hidden one."""
        cell, dtype = self.cell, self.cell.weight_hh_l0.dtype
        if state is not None and x.shape[1] == 1 and x.device.type == "cpu":
            # torch.nn's module would have oneDNN pack the weights anew for every token (LOG.md).
            weights = (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0)
            one = torch.lstm_cell(x[:, 0].to(dtype), [state.h.to(dtype), state.c.to(dtype)], *weights)
            return one[0][:, None], LSTMState(*one)
        before = None if state is None else (state.h.to(dtype)[None], state.c.to(dtype)[None])
        h, (last, memory) = cell(x.to(dtype), before)
        return h, LSTMState(last[0], memory[0])
