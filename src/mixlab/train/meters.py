"""The numbers that a step says of itself, each computed here and nowhere else."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from mixlab.train import machine, randomness, shortage
from mixlab.train.optimizers import Optimizers

CLIP_EPS = 1e-6
"""What torch's clip_grad_norm_ adds to the norm that it divides by."""


class Speed:
    """What a step makes a second, and how much of this machine's peak of matrix products that is."""

    def __init__(self, device: str, bfloat16: bool) -> None:
        self.device, self.bfloat16 = device, bfloat16
        self.peak, self._measured_again = machine.measure(device).peak(bfloat16), False

    def rates(self, tokens: int, flops: int, seconds: float) -> dict[str, float]:
        """Of one step. A peak below it was taken while the machine was busy: it is measured once more."""
        speed = flops / seconds
        if speed > self.peak and not self._measured_again:
            self._measured_again = True
            with randomness.kept():
                again = machine.measure(self.device, refresh=True).peak(self.bfloat16)
            self.peak = max(self.peak, again)
        return {
            "tokens_per_second": tokens / seconds,
            "flops_per_second": speed,
            "peak_fraction": speed / self.peak,
        }


def memory(device: torch.device) -> dict[str, int]:
    """Bytes in use now and at most so far: the GPU's tensors, else what is resident; 0 if it is not known."""
    return {
        "memory_bytes": machine.memory_bytes(device),
        "peak_memory_bytes": machine.peak_memory_bytes(device),
    }


def clipped_norm(norm: float, limit: float) -> float:
    """The gradient's norm after clip_grad_norm_ with this limit (0: none), from its norm before."""
    return norm * min(1.0, limit / (norm + CLIP_EPS)) if limit else norm


def learning_rates(optimizers: Optimizers) -> dict[str, float]:
    """What each group of parameters was updated with: "RULE/ROLE" -> its learning rate, and "RULE/ROLE x0.5"
    for the parameters of a role that learn at half of its rate."""
    rates = {}
    for group, table in optimizers.tables:
        if table["params"]:
            scale = "" if group.lr_scale == 1 else f" x{group.lr_scale:g}"
            rates[f"{group.rule}/{group.role}{scale}"] = float(table["lr"])
    return rates


def mean_over_ranks(value: Tensor, weight: float) -> Tensor:
    """The mean of a tensor over a group's processes, each counting `weight`; itself where there is no group.

    All processes must call it, and get the same.
    """
    # Where nothing imported it there is no group; importing it costs every run a part of a second.
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return value
    sums = torch.stack([value.double() * weight, torch.full_like(value, weight, dtype=torch.float64)])
    distributed.all_reduce(sums)
    return (sums[0] / sums[1]).to(value.dtype)


class Update:
    """Measures a real update: made before it, from a copy of the parameters, and asked after it."""

    @classmethod
    def begin(cls, optimizers: Optimizers) -> Update | None:
        """For the coming update; None where memory does not hold the copy, which costs no run its life."""
        try:
            return cls(optimizers)
        except (RuntimeError, MemoryError) as error:
            if not shortage.ran_out(error):
                raise
            return None

    def __init__(self, optimizers: Optimizers) -> None:
        self.optimizers = optimizers
        self.before = {name: p.detach().clone() for name, p in optimizers.parameters.items()}

    @torch.no_grad()
    def ratios(self) -> dict[str, float | None]:
        """Role -> norm of the change over the norm before, all its parameters as one vector; None where that
        norm is 0. It uses up the copy.
        """
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, old in self.before.items():
            role = self.optimizers.plan[name].role
            pairs.setdefault(role, []).append((old, self.optimizers.parameters[name]))
        found: dict[str, float | None] = {}
        for role, of_role in sorted(pairs.items()):
            size = get_total_norm([old for old, _ in of_role])
            change = get_total_norm([old.sub_(new) for old, new in of_role])
            before, moved = torch.stack([size, change]).tolist()
            found[role] = moved / before if before else None
        self.before = {}
        return found
