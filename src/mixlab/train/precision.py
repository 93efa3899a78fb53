"""Which number type the products of a forward pass use."""

from __future__ import annotations

import torch

from mixlab.train import machine


def resolve(dtype: str, device: torch.device) -> bool:
    """Whether to run under bfloat16 autocast: as told, or for "auto" as this machine was measured."""
    if dtype == "auto":
        return machine.measure(device.type).use_bfloat16
    return dtype == "bfloat16"


def autocast(device: torch.device, bfloat16: bool) -> torch.autocast:
    """The context a forward pass runs in; parameters, gradients and optimizer state stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
