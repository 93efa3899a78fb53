"""The block: temporal mixing, then feature mixing, each normalised before and added after."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.parts.contract import Choice, Part, Place, build
from mixlab.parts.norm import Norm


class BlockState(NamedTuple):
    """What each of the two mixers keeps."""

    temporal: Any
    feature: Any


class Block(nn.Module):
    """x + dropout(temporal(norm(x))), then x + dropout(feature(norm(x)))."""

    def __init__(self, temporal: Choice, feature: Choice, norm: Choice, place: Place, dropout: float) -> None:
        super().__init__()
        self.temporal_norm: Norm = build("norm", norm, place)
        self.temporal: Part = build("temporal", temporal, place)
        self.feature: Part = build("feature", feature, place)
        self.feature_norm: Any = build("norm", norm, place) if self.feature.mixes else None
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
        x = x + self.dropout(y)
        if self.feature.mixes:
            y, f_state = self.feature(self.feature_norm(x), f_state, segment=segment)
            x = x + self.dropout(y)
        return x, None if state is None else BlockState(t_state, f_state)
