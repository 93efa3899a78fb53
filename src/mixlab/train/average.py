"""An exponential moving average of a model's weights: often better than the weights after any one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Average:
    """a <- d a + (1 - d) w after every step, for each parameter w that the state dict holds.

    decay: d once the average has a past. Before that it is (1 + t) / (10 + t) after step t, as in
    TensorFlow's ExponentialMovingAverage, so that the initial weights are soon forgotten. Parameters that
    serve training alone are not averaged: they may come and go.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        kept = model.state_dict().keys()
        self._parameters = {name: p for name, p in model.named_parameters() if name in kept}
        self._other = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._swapped = False

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after `step`, counted from 1, into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = (list[Tensor](group.values()) for group in (self._other, self._parameters))
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model's parameters are the average; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def trained(self) -> dict[str, Tensor]:
        """Inside `swapped`: the weights that are trained, by name."""
        return dict(self._other) if self._swapped else {}

    @torch.no_grad()
    def start(self, trained: Mapping[str, Tensor]) -> None:
        """Take the model's present weights for the average, and `trained` for those to train, if any."""
        for name, parameter in self._parameters.items():
            self._other[name].copy_(parameter)
            if name in trained:
                parameter.copy_(trained[name])

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            self._other[name], parameter.data = parameter.data, self._other[name]
        self._swapped = not self._swapped
