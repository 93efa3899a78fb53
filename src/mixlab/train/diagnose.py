"""Where a loss that is not finite comes from: the first parameter, layer or gradient that went bad."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixlab.errors import UserError


def bad_parameter(model: nn.Module) -> str | None:
    """The name of the first parameter that holds a NaN or an infinity, if any does."""
    return next((name for name, p in model.named_parameters() if not _finite(p.detach())), None)


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite, found without a temporary of its size."""
    if not tensor.numel():
        return True
    low, high = tensor.aminmax()  # a NaN anywhere is both
    return bool(low.isfinite() & high.isfinite())


def check_finite(model: nn.Module, path: Path) -> None:
    """UserError if a model that was just loaded from `path` has a parameter that is not finite."""
    bad = bad_parameter(model)
    if bad is not None:
        raise UserError(f"{path} holds a NaN or an infinity in {bad}: use an earlier checkpoint")


def bad_gradient(model: nn.Module) -> str | None:
    """The parameter whose gradient went bad first, read from last to first, as backward runs."""
    named = reversed(list(model.named_parameters()))
    return next((n for n, p in named if p.grad is not None and not bool(p.grad.isfinite().all())), None)


def bad_layer(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """The first module, in the order in which they finish, whose output is not finite when `forward` runs.

    Inner modules finish before those that hold them, so the name is as precise as the model has names.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(bool(t.isfinite().all()) for t in _floats(output)):
                found.append(name)

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _floats(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a module's output, however nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        yield from _floats(output.values())
    elif isinstance(output, Iterable) and not isinstance(output, str | bytes):
        for item in output:
            yield from _floats(item)


def explain(model: nn.Module, forward: Callable[[], Any]) -> str:
    """One clause for the message of a failed step, whose gradients are still there: what went bad first."""
    already = bad_parameter(model)
    layer = bad_layer(model, forward)
    gradient = None if layer else bad_gradient(model)
    if layer:
        what = f"the first layer whose output is not finite is {layer}"
    elif gradient:
        what = f"every layer's output is finite, the gradient of {gradient} is the first that is not"
    else:
        what = "no layer's output or gradient is to blame by itself, only the loss or the sum of squares"
    before = (
        f"parameter {already} was not finite before this step" if already else "all parameters are finite"
    )
    return f"{what}; {before}"
