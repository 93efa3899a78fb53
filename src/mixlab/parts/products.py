"""Matrix products of one token on a CPU, where decoding waits for the bytes of the weights.

Packed products are FBGEMM's: float16 weights; float32 activations, sums and biases. No gradient passes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROUNDING = 2.0**-10
"""Largest change, relative to a matrix's norm, that its float16 copy may make. Rounding to 11 bits makes
about 2^-12.5; more means that much of the matrix is below float16's normal range, 6e-5."""

LARGEST = 65504.0
"""Of float16's numbers. Those up to 65520 round to it, but packing finds them out of range all the same."""

M = TypeVar("M", bound=nn.Module)


class Products:
    """Linears as functions of x, with the weights that they have."""

    def __call__(self, *linears: nn.Module) -> Callable[[Tensor], Tensor]:
        """What Linears make of one input, side by side: (..., N) -> (..., M1 + M2 + ...)."""
        functions = [_product(linear) for linear in linears]
        return functions[0] if len(functions) == 1 else lambda x: torch.cat([f(x) for f in functions], -1)

    def inside(self, module: M) -> M:
        """`module` with its Linears' products made this way."""
        return module


class PackedProducts(Products):
    """The same with float16 copies of the weights; what is not a plain Linear is left as it is."""

    def __call__(self, *linears: nn.Module) -> Callable[[Tensor], Tensor]:
        """One product for all."""
        if not all(is_plain(linear) for linear in linears):
            return super().__call__(*linears)
        packed, multiply = _pack(*linears), _multiply()
        return lambda x: multiply(x, packed)

    def inside(self, module: M) -> M:
        """A copy that shares parameters and buffers, its Linears replaced."""
        shared: dict[int, Any] = {id(t): t for t in chain(module.parameters(), module.buffers())}
        twin = copy.deepcopy(module, shared)
        made: dict[nn.Module, PackedLinear] = {}
        for parent in list(twin.modules()):
            for name, child in list(parent.named_children()):
                if is_plain(child):
                    if child not in made:
                        made[child] = PackedLinear(child)
                    setattr(parent, name, made[child])
        return twin


class PackedLinear(nn.Module):
    """In place of a Linear; weight and bias stay for whoever else reads them."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.packed, self.multiply = _pack(linear), _multiply()

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) -> (..., M)."""
        return self.multiply(x, self.packed)


def is_plain(module: nn.Module) -> bool:
    """A Linear and nothing besides: no adapter around it, no parametrisation, nobody who watches it."""
    return type(module) is nn.Linear and not (module._forward_hooks or module._forward_pre_hooks)


def has_packed_products() -> bool:
    """Whether this torch has them for this processor: x86 with AVX2."""
    engine, ops = torch.backends.quantized.engine, torch.ops.quantized
    return engine in ("x86", "fbgemm") and hasattr(ops, "linear_dynamic_fp16")


def cannot_pack(model: nn.Module) -> str | None:
    """Which weight of `model` float16 does not hold, and why; None if it holds all."""
    for name, linear in model.named_modules():
        if not is_plain(linear):
            continue
        weight: Any = linear.weight.detach()
        if not (weight.abs() <= LARGEST).all():  # nor is NaN
            return f"{name}.weight has numbers beyond float16's largest, 65504"
        if weight.half().float().sub_(weight).norm() > ROUNDING * weight.norm():
            return f"{name}.weight has too many numbers below float16's smallest, 6e-5"
    return None


def _product(linear: Any) -> Callable[[Tensor], Tensor]:
    if not is_plain(linear):
        return linear
    weight, bias = linear.weight, linear.bias
    return lambda x: F.linear(x, weight, bias)


def _pack(*linears: Any) -> Any:
    """The packed weight of Linears side by side."""
    bias = None
    if any(linear.bias is not None for linear in linears):
        biases = (x.weight.new_zeros(len(x.weight)) if x.bias is None else x.bias for x in linears)
        bias = torch.cat([b.detach() for b in biases])
    weight = torch.cat([linear.weight.detach() for linear in linears])
    return torch.ops.quantized.linear_prepack_fp16(weight, bias)


def _multiply() -> Any:
    op = torch.ops.quantized.linear_dynamic_fp16.default
    return getattr(op, "_op", op)  # without Python's look for arguments that stand for others, 2 us a product
