"""The block: temporal mixing, then feature mixing, each normalised before and added after, or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.parts.contract import Choice, Component, Part, Place, build
from mixlab.parts.norm import Norm


class BlockState(NamedTuple):
    """What each of the two mixers keeps."""

    temporal: Any
    feature: Any


class MixerBias(Component):
    """A learned vector, added to what a mixer makes."""

    def __init__(self, place: Place) -> None:
        super().__init__(None, place)
        self.shift = nn.Parameter(torch.empty(self.dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero."""
        nn.init.zeros_(self.shift)

    def parameter_count(self) -> int:
        """D."""
        return self.dim

    def flops(self, T: int) -> int:
        """No matrix products."""
        return 0

    def forward(self, y: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """y + b."""
        return y + self.shift.to(y.dtype)


class Block(nn.Module):
    """x + dropout(temporal(norm(x)) + b), then x + dropout(feature(norm(x)) + c), the biases optional.

    Without residual, what is added to x takes its place.
    """

    def __init__(
        self,
        temporal: Choice,
        feature: Choice,
        norm: Choice,
        place: Place,
        *,
        dropout: float,
        mixer_bias: bool = False,
    ) -> None:
        super().__init__()
        self.residual = place.residual
        self.temporal_norm: Norm = build("norm", norm, place)
        self.temporal: Part = build("temporal", temporal, place)
        self.feature: Part = build("feature", feature, place)
        self.feature_norm: Any = build("norm", norm, place) if self.feature.mixes else None
        self.temporal_bias = MixerBias(place) if mixer_bias else None
        self.feature_bias = MixerBias(place) if mixer_bias and self.feature.mixes else None
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: BlockState | None = None,
        *,
        segment: Int[Tensor, "B T"] | None = None,
        carry: dict[str, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], BlockState | None]:
        """Mix over time, then over channels; the state is None if none was given."""
        t_state, f_state = (None, None) if state is None else state
        extra = {"carry": carry} if self.temporal.carries else {}
        y, t_state = self.temporal(self.temporal_norm(x), t_state, segment=segment, **extra)
        x = self._join(x, y, self.temporal_bias)
        if self.feature.mixes:
            y, f_state = self.feature(self.feature_norm(x), f_state, segment=segment)
            x = self._join(x, y, self.feature_bias)
        return x, None if state is None else BlockState(t_state, f_state)

    def _join(self, x: Tensor, y: Tensor, bias: MixerBias | None) -> Float[Tensor, "B T D"]:
        """The stream x after a mixer made y of it, in x's dtype."""
        y = self.dropout(y if bias is None else bias(y))
        return x + y if self.residual else y.to(x.dtype)

    def joins(self) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
        """What joins each mixer's output to the stream when nothing is dropped, with little around it."""
        biases = (self.temporal_bias, self.feature_bias)
        return tuple(
            torch.add if b is None and self.residual else partial(self._join, bias=b) for b in biases
        )
