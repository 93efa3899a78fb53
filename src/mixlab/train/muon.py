"""Muon where bfloat16 products are slow: the iteration of torch's, in the gradient's own precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon


class FullPrecisionMuon(Muon):
    """torch.optim.Muon but for the type of its products, which torch fixes at bfloat16.

    A processor without bfloat16 emulates them: one step of a 192 x 192 matrix took 136 ms there and 10 ms so.
    State and settings are the base class's.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """momentum, orthogonalise, decay, update (Jordan et al. 2024)."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, mu = self.state[p], group["momentum"]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - mu)
                direction = p.grad.lerp(buffer, mu) if group["nesterov"] else buffer
                update = orthogonalised(direction, group["ns_coefficients"], group["ns_steps"], group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale(group["adjust_lr_fn"], *p.shape))


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """U S V^T -> U S' V^T with S' near 1: S / |S| taken `steps` times through a s + b s^3 + c s^5."""
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T  # the smaller of the two Gram matrices
    x: Tensor = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


def scale(rule: str | None, rows: float, columns: float) -> float:
    """What torch multiplies the learning rate by: Jordan's, or for the size of AdamW's updates (kinds.py)."""
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
