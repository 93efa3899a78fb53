"""Gated linear units: one projection scales another, channel by channel (Shazeer 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixlab.parts.contract import Place, Split, Step, Watched, init_linear, register
from mixlab.parts.feature.mlp import FeatureMix, hidden_width
from mixlab.parts.products import Products


class Gated(FeatureMix):
    """W2 (act(W x + b) * (V x + c)) + b2, the biases optional."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """ratio: hidden width over D; 8/3 = 2/3 of the plain 4, so that three matrices hold the
        parameters of two (Shazeer 2020, section 2). multiple: hidden width is rounded to it.
        bias: off as in Shazeer's and Llama's, on in Griffin's released code."""

        ratio: float = 8 / 3
        multiple: int = 16
        bias: bool = False

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = hidden_width(self.dim, config.ratio, config.multiple)
        self.gate = nn.Linear(self.dim, self.hidden, bias=config.bias)
        self.up = nn.Linear(self.dim, self.hidden, bias=config.bias)
        self.down = nn.Linear(self.hidden, self.dim, bias=config.bias)

    def reset_parameters(self) -> None:
        """N(0, 0.02); the projection that writes to the residual stream divided by sqrt(2N) (GPT-2). Biases
        at zero."""
        init_linear(self.gate, self.place.std(0.02))
        init_linear(self.up, self.place.std(0.02))
        init_linear(self.down, self.place.std(0.02) * self.place.residual_scale)

    def parameter_count(self) -> int:
        """3 D F, and 2 F + D for the biases."""
        return 3 * self.dim * self.hidden + self.config.bias * (2 * self.hidden + self.dim)

    def flops(self, T: int) -> int:
        """Three products a token."""
        return 6 * T * self.dim * self.hidden

    def tensor_plan(self) -> Mapping[str, Split]:
        """A hidden unit's gate and value stay together on one device."""
        return {"gate": "column", "up": "column", "down": "row"}

    def tensor_units(self) -> int:
        """Hidden units."""
        return self.hidden

    def activation(self, h: Tensor) -> Tensor:
        """The gate's nonlinearity."""
        raise NotImplementedError

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """FFN(x) = W2 (act(W x) * V x)."""
        return self.down(self.activation(self.gate(x)) * self.up(x)), state

    def stepper(self, products: Products) -> Step:
        """The same, W and V as one product."""
        both, down, activation = products(self.gate, self.up), products(self.down), self.activation
        halves = (self.hidden, self.hidden)

        def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
            gate, up = both(x).split_with_sizes(halves, -1)
            return down(activation(gate).mul_(up)), state

        return step

    def watched(self, x: Float[Tensor, "B T D"]) -> Mapping[Watched, Tensor]:
        """The hidden units."""
        return {"units": self.activation(self.gate(x)) * self.up(x)}


@register("feature", "glu")
class GLU(Gated):
    """W2 (sigmoid(W x) * V x)."""

    paper = (
        "Dauphin et al. 2016, Language Modeling with Gated Convolutional Networks; Shazeer 2020, equation 4"
    )

    def activation(self, h: Tensor) -> Tensor:
        """sigmoid(h)."""
        return torch.sigmoid(h)


@register("feature", "geglu")
class GEGLU(Gated):
    """W2 (gelu(W x) * V x)."""

    paper = "Shazeer 2020, GLU Variants Improve Transformer, equation 6"

    @dataclass(frozen=True, kw_only=True)
    class Config(Gated.Config):
        """tanh: gelu's approximation by a tanh, as in Gemma and Griffin's released code; it differs from the
        exact one by less than 5e-4."""

        tanh: bool = False

    def activation(self, h: Tensor) -> Tensor:
        """h Phi(h), or h (1 + tanh(sqrt(2/pi) (h + 0.044715 h^3))) / 2."""
        return F.gelu(h, approximate="tanh" if self.config.tanh else "none")


@register("feature", "swiglu")
class SwiGLU(Gated):
    """W2 (silu(W x) * V x)."""

    paper = "Shazeer 2020, GLU Variants Improve Transformer, equation 6"

    def activation(self, h: Tensor) -> Tensor:
        """h sigmoid(h)."""
        return F.silu(h)
