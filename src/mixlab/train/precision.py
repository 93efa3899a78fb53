"""Which number type the products of a forward pass use."""

from __future__ import annotations

import os

import torch

from mixlab.errors import UserError
from mixlab.train import machine

SWITCH = "MIXLAB_AUTO_DTYPE"
"""Environment variable: what "auto" comes to, in place of what was measured."""


def resolve(dtype: str, device: torch.device) -> bool:
    """Whether to run under bfloat16 autocast: as told, or for "auto" as this machine was measured.

    UserError if the environment forces "auto" to something that is neither float32 nor bfloat16.
    """
    if dtype != "auto":
        return dtype == "bfloat16"
    forced = os.environ.get(SWITCH, "")
    if forced not in ("", "float32", "bfloat16"):
        raise UserError(f"the environment variable {SWITCH} must be float32 or bfloat16, got '{forced}'")
    return forced == "bfloat16" if forced else machine.measure(device.type).use_bfloat16


def autocast(device: torch.device, bfloat16: bool) -> torch.autocast:
    """The context a forward pass runs in; parameters, gradients and optimizer state stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
