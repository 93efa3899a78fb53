"""A fixed window: the n-th-order Markov assumption as a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixlab.errors import UserError
from mixlab.parts.contract import Part, Place, Split, init_linear, register


class WindowState(NamedTuple):
    """The last n - 1 inputs."""

    inputs: Float[Tensor, "B N D"]


@register("temporal", "window")
class Window(Part):
    """y_t = U tanh(d + H [x_t; x_{t-1}; ...; x_{t-n+1}]): the hidden layer of the feed-forward language
    model over the concatenation of the last n vectors. Before the start stand zeros."""

    paper = "Bengio et al. 2003, A Neural Probabilistic Language Model"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """size: n, the vectors seen, the current one included; 8 sees more bytes than a word has.
        ratio: hidden width over D."""

        size: int = 8
        ratio: float = 1.0

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        if config.size < 1 or config.ratio <= 0:
            raise UserError(
                f"window needs size >= 1 and ratio > 0, got size={config.size}, ratio={config.ratio}"
            )
        self.size = config.size
        self.hidden = max(1, round(config.ratio * self.dim))
        self.input = nn.Linear(self.size * self.dim, self.hidden)
        self.out = nn.Linear(self.hidden, self.dim, bias=False)

    def reset_parameters(self) -> None:
        """Glorot's normal for the tanh layer (std sqrt(2 / (fan-in + fan-out)) keeps it off saturation);
        the projection that writes to the residual stream divided by sqrt(2N)."""
        init_linear(self.input, (2 / (self.input.in_features + self.hidden)) ** 0.5)
        init_linear(self.out, self.hidden**-0.5 * self.place.residual_scale)

    def parameter_count(self) -> int:
        """H: n D h, d: h, U: h D."""
        return self.size * self.dim * self.hidden + self.hidden + self.hidden * self.dim

    def flops(self, T: int) -> int:
        """H and U."""
        return 2 * T * self.hidden * (self.size * self.dim + self.dim)

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> WindowState:
        """Zeros stand before the start."""
        return WindowState(torch.zeros(batch_size, self.size - 1, self.dim, device=device, dtype=dtype))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """n - 1 vectors, whatever T."""
        return (self.size - 1) * self.dim * dtype.itemsize

    def tensor_plan(self) -> Mapping[str, Split]:
        """Hidden units split."""
        return {"input": "column", "out": "row"}

    def tensor_units(self) -> int:
        """Hidden units."""
        return self.hidden

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """Concatenate, transform, project."""
        past = x.new_zeros(x.shape[0], self.size - 1, self.dim) if state is None else state.inputs
        seen = torch.cat((past.to(x.dtype), x), 1)
        windows = seen.unfold(1, self.size, 1)  # (B, n-1+T, D) -> (B, T, D, n)
        y = self.out(torch.tanh(self.input(windows.flatten(2))))
        if state is None:
            return y, None
        return y, WindowState(seen[:, seen.shape[1] - self.size + 1 :].to(past.dtype))
