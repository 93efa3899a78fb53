"""The plain position-wise feed-forward network, and the choice of having none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixlab.errors import UserError
from mixlab.parts.contract import Part, Place, Split, Step, Watched, init_linear, register
from mixlab.parts.products import Products


class FeatureMix(Part):
    """A part that treats every position alone: it keeps no state, and packed documents need no care."""

    def forward(
        self, x: Float[Tensor, "B T D"], state: Any = None, *, segment: Tensor | None = None
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """Mix the channels of each position."""
        return self.mix(x, state)


def hidden_width(dim: int, ratio: float, multiple: int) -> int:
    """The hidden width nearest to ratio x dim among multiples of `multiple`, at least one of them."""
    if ratio <= 0 or multiple < 1:
        raise UserError(
            f"a feed-forward part needs ratio > 0 and multiple >= 1, got ratio={ratio}, multiple={multiple}"
        )
    return max(multiple, round(ratio * dim / multiple) * multiple)


class MLP(FeatureMix):
    """W2 act(W1 x + b1) + b2, the biases optional."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """ratio: hidden width over D, 4 since the paper. multiple: hidden width is rounded to it; 16
        keeps matrix products on whole vector registers and splits over up to 16 devices. bias: the
        paper's and GPT-2's b1 and b2; off as in Llama, PaLM and their like."""

        ratio: float = 4.0
        multiple: int = 16
        bias: bool = False

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = hidden_width(self.dim, config.ratio, config.multiple)
        self.up = nn.Linear(self.dim, self.hidden, bias=config.bias)
        self.down = nn.Linear(self.hidden, self.dim, bias=config.bias)

    def reset_parameters(self) -> None:
        """N(0, 0.02); the projection that writes to the residual stream divided by sqrt(2N) (GPT-2). Biases
        at zero."""
        init_linear(self.up, self.place.std(0.02))
        init_linear(self.down, self.place.std(0.02) * self.place.residual_scale)

    def parameter_count(self) -> int:
        """2 D F, and F + D for the biases."""
        return 2 * self.dim * self.hidden + self.config.bias * (self.hidden + self.dim)

    def flops(self, T: int) -> int:
        """Two products a token."""
        return 4 * T * self.dim * self.hidden

    def tensor_plan(self) -> Mapping[str, Split]:
        """Hidden units split: the activation is local to its unit, so no sum is needed before it."""
        return {"up": "column", "down": "row"}

    def tensor_units(self) -> int:
        """Hidden units."""
        return self.hidden

    def activation(self, h: Tensor) -> Tensor:
        """The elementwise nonlinearity."""
        raise NotImplementedError

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """FFN(x) = W2 act(W1 x + b1) + b2."""
        return self.down(self.activation(self.up(x))), state

    def stepper(self, products: Products) -> Step:
        """The same."""
        up, down, activation = products(self.up), products(self.down), self.activation
        return lambda x, state: (down(activation(up(x))), state)

    def watched(self, x: Float[Tensor, "B T D"]) -> Mapping[Watched, Tensor]:
        """The hidden units."""
        return {"units": self.activation(self.up(x))}


@register("feature", "relu")
class ReLU(MLP):
    """W2 max(0, W1 x)."""

    paper = "Vaswani et al. 2017, Attention Is All You Need, equation 2"

    def activation(self, h: Tensor) -> Tensor:
        """max(0, h)."""
        return F.relu(h)


@register("feature", "gelu")
class GELU(MLP):
    """W2 gelu(W1 x), gelu(h) = h Phi(h) with the Gaussian distribution function."""

    paper = "Hendrycks & Gimpel 2016, Gaussian Error Linear Units"

    @dataclass(frozen=True, kw_only=True)
    class Config(MLP.Config):
        """tanh: the paper's approximation of Phi by a tanh, which GPT-2 was trained with; it differs from
        the exact one by less than 5e-4."""

        tanh: bool = False

    def activation(self, h: Tensor) -> Tensor:
        """h Phi(h), or h (1 + tanh(sqrt(2/pi) (h + 0.044715 h^3))) / 2."""
        return F.gelu(h, approximate="tanh" if self.config.tanh else "none")


@register("feature", "none")
class NoFeatureMix(FeatureMix):
    """Stands for leaving the feature branch out; the block then builds neither branch nor norm."""

    mixes = False

    def parameter_count(self) -> int:
        """No parameters."""
        return 0

    def flops(self, T: int) -> int:
        """Nothing is computed."""
        return 0

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """Zero, what a branch that is absent adds to the stream."""
        return torch.zeros_like(x), state
