"""What all models of a comparison run on: device, threads and precision, chosen once for its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mixlab.errors import UserError
from mixlab.train import auto
from mixlab.train.config import TrainConfig

WIDTH = 128
"""Width of the work that threads are measured on: about that of a model of a million parameters."""


@dataclass(frozen=True)
class Terms:
    """What "auto" comes to. begun: as the comparison was begun; here: as this machine can keep it."""

    begun: TrainConfig
    here: TrainConfig

    def to_dict(self) -> dict[str, Any]:
        """As plan.json holds it."""
        return {key: getattr(self.begun, key) for key in auto.UNSET}


def agree(saved: Mapping[str, Any] | None, note: Callable[[str], None]) -> Terms:
    """The terms of a comparison: those that its folder's plan says, or chosen now where it says none.

    note: told what was measured, and what this machine cannot keep. UserError for a plan that is damaged.
    """
    said = (saved or {}).get("machine")
    if said is None:
        chosen = auto.settle(TrainConfig(steps=1), width=WIDTH, note=note)
        return Terms(chosen, chosen)
    try:
        begun = TrainConfig(steps=1, **{key: said[key] for key in auto.UNSET}).validate()
    except (TypeError, KeyError, UserError):
        raise UserError("plan.json is damaged: its 'machine' must name a device, threads and dtype") from None
    return Terms(begun, auto.settle(begun, width=WIDTH, note=note, begun=begun))
