"""The coordinate check: do a few steps of training change activations by as much at every width?

Yang et al. 2022 (Tensor Programs V, appendix D.1): under width transfer the change of every activation's
numbers after t steps is of one size over widths; without it some grow with the width (or fade).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mixlab.data.batches import Pair
from mixlab.model.config import ModelConfig
from mixlab.model.language_model import LanguageModel, build_model
from mixlab.train import randomness
from mixlab.train.config import OptimizerConfig
from mixlab.train.optimizers import Optimizers

Changes = dict[str, list[float]]
"""Activation -> root mean square of its change, one a width."""


def coordinate_check(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    batches: Sequence[Pair],
    widths: Sequence[int],
    *,
    seed: int = 0,
) -> Changes:
    """Train the model at each width on all `batches` at the peak rate; how far the activations moved.

    The activations are the mixers' outputs, the stream before the last norm, and the logits, all of the
    first batch. Kinds that need more than a gradient are not for this.
    """
    found: Changes = {}
    for width in widths:
        with randomness.kept():
            randomness.seed(seed)
            built = build_model(replace(model, dim=width))
            built.set_progress(0.0)
            optimizers = Optimizers(built, optimizer)
            optimizers.set_lr(optimizer.lr)
            before = activations(built, batches[0][0])
            for inputs, targets in batches:
                built.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
                optimizers.clip()
                optimizers.step(None)  # type: ignore[arg-type]
            after = activations(built, batches[0][0])
        for name, value in after.items():
            found.setdefault(name, []).append((value - before[name]).square().mean().sqrt().item())
    return found


def growth(changes: Sequence[float], widths: Sequence[int]) -> float:
    """The exponent b of change = a width^b, by least squares: 0 is transfer."""
    x = [math.log(width) for width in widths]
    y = [math.log(change) for change in changes]
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((a - mean_x) ** 2 for a in x)
    return math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


@torch.no_grad()
def activations(model: LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """Name -> activation of a forward pass over `tokens` (B, T), without dropout."""
    seen: dict[str, Tensor] = {}
    with _watched(model, seen):
        training = model.training
        seen["logits"] = model.eval()(tokens).logits
        model.train(training)
    return seen


@contextmanager
def _watched(model: LanguageModel, seen: dict[str, Tensor]) -> Iterator[None]:
    def output(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, result: Any) -> None:
            seen[name] = (result[0] if isinstance(result, tuple) else result).clone()

        return hook

    def stream(module: nn.Module, inputs: Any) -> None:
        seen["stream"] = inputs[0].clone()

    handles = [model.norm.register_forward_pre_hook(stream)]
    for i, block in enumerate(model.layers()):
        handles.append(block.temporal.register_forward_hook(output(f"temporal {i}")))
        if block.feature.mixes:
            handles.append(block.feature.register_forward_hook(output(f"feature {i}")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
