"""Muon where bfloat16 products are slow: the iteration of torch's, in the gradient's own precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

NUMBERS = 1 << 22
"""How many numbers of small matrices are orthogonalised together, at the most: 16 MB, and as much again for
each of a handful of products."""

GRAM_STEPS = 5
"""So many steps, torch's number, may be taken on the Gram matrix: of a matrix of low rank it has eigenvalues
a rounding below 0, and each step multiplies them by 12, where singular values cannot pass through 0."""


class FullPrecisionMuon(Muon):
    """torch.optim.Muon but for the type of its products, which torch fixes at bfloat16, and for small
    matrices of one shape, which go together.

    A processor without bfloat16 emulates them: one step of a 192 x 192 matrix took 50 ms there and 1.8 ms so.
    State and settings are the base class's; `step` takes no closure.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """momentum, orthogonalise, decay, update (Jordan et al. 2024)."""
        for group in self.param_groups:
            for matrices in batches([p for p in group["params"] if p.grad is not None]):
                stack = torch.stack([wide(self.direction(p, group)) for p in matrices])
                found = orthogonalised(stack, group["ns_coefficients"], group["ns_steps"], group["eps"])
                for p, update in zip(matrices, found, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    wide(p).add_(update, alpha=-group["lr"] * scale(group["adjust_lr_fn"], *p.shape))

    def direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The momentum of p, its present gradient taken in."""
        assert p.grad is not None
        state, mu = self.state[p], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"].lerp_(p.grad, 1 - mu)
        return p.grad.lerp(buffer, mu) if group["nesterov"] else buffer


def wide(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose if it has more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def batches(matrices: list[Tensor]) -> Iterator[list[Tensor]]:
    """Matrices of one shape, whichever way they lie: up to NUMBERS at a time, or one alone."""
    alike: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        alike.setdefault(wide(matrix).shape, []).append(matrix)
    for shape, group in alike.items():
        size = max(1, NUMBERS // shape.numel())
        yield from (group[i : i + size] for i in range(0, len(group), size))


def orthogonalised(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """U S V^T -> U S' V^T with S' near 1: S / |S| taken `steps` times through a s + b s^3 + c s^5.

    x (n, rows, columns), no matrix of more rows than columns.
    """
    a, b, c = coefficients
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    if steps > GRAM_STEPS or 2 * x.shape[-1] < 3 * x.shape[-2]:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x
    # The rows' Gram matrix and the product of all factors are square: long rows are multiplied twice in all.
    gram, product = x @ x.mT, None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
    return x if product is None else product @ x


def scale(rule: str | None, rows: float, columns: float) -> float:
    """What torch multiplies the learning rate by: Jordan's, or for the size of AdamW's updates (kinds.py)."""
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
