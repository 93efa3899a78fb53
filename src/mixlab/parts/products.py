"""Matrix products of one token on a CPU, where decoding waits for the bytes of the weights.

Packed products are FBGEMM's: float16 weights; float32 activations, sums and biases. No gradient passes.
Packing costs as much as many products, so that a packed copy is kept for as long as its Linear lives and
holds the numbers that it was made of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from threading import RLock
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

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


class Snapshot(NamedTuple):
    """What tells whether a Linear still has the numbers that it had: marks, which change with nearly every
    write, and sums over all its bits, for writes that leave no mark (through `.data`, numpy or a pointer)."""

    marks: tuple[int, ...]
    sums: tuple[Tensor, ...]

    @classmethod
    def of(cls, linear: Any) -> Snapshot:
        """The one of now. Reads the weights once, in about the time of a product."""
        tensors = [t.detach() for t in (linear.weight, linear.bias) if t is not None]
        return cls(marks(linear.weight, linear.bias), tuple(map(_bit_sums, tensors)))

    def same(self, other: Snapshot) -> bool:
        """Whether both are of the same numbers."""
        return self.marks == other.marks and all(map(torch.equal, self.sums, other.sums))


@dataclass(eq=False)
class _Record:
    """A Linear's weights as they were: why float16 does not hold them, if it does not, and packed copies by
    the number of Linears in one, with the records of the others."""

    snapshot: Snapshot
    reason: str | None
    packed: dict[int, tuple[list[_Record], Any]] = field(default_factory=dict)


_RECORDS: WeakKeyDictionary[nn.Module, _Record] = WeakKeyDictionary()
_LOCK = RLock()


class PackedProducts(Products):
    """The same with float16 copies of the weights; what is not a plain Linear is left as it is.

    An instance looks once whether a weight still is what was packed, so that it serves one generation.
    """

    def __init__(self) -> None:
        self._seen: dict[nn.Module, _Record] = {}

    def __call__(self, *linears: nn.Module) -> Callable[[Tensor], Tensor]:
        """One product for all."""
        if not all(is_plain(linear) for linear in linears):
            return super().__call__(*linears)
        packed, multiply = self._packed(*linears), _multiply()
        return lambda x: multiply(x, packed)

    def inside(self, module: M) -> M:
        """A copy that shares parameters and buffers, its Linears replaced."""
        originals = dict(module.named_modules(remove_duplicate=False))
        shared: dict[int, Any] = {id(t): t for t in chain(module.parameters(), module.buffers())}
        twin = copy.deepcopy(module, shared)
        made: dict[nn.Module, PackedLinear] = {}
        for path, parent in list(twin.named_modules()):
            for name, child in list(parent.named_children()):
                if is_plain(child):
                    if child not in made:
                        original = originals[f"{path}.{name}".lstrip(".")]
                        made[child] = PackedLinear(original, self._packed(original))
                    setattr(parent, name, made[child])
        return twin

    def cannot_pack(self, model: nn.Module) -> str | None:
        """Which weight of `model` float16 does not hold, and why; None if it holds all."""
        for name, linear in model.named_modules():
            if is_plain(linear) and (reason := self._record(linear).reason) is not None:
                return f"{name}.weight has {reason}"
        return None

    def _record(self, linear: nn.Module) -> _Record:
        """The record of the current weights."""
        if linear not in self._seen:
            with _LOCK:
                # Taken before the weights are read: whatever another thread writes meanwhile makes it differ.
                snapshot, record = Snapshot.of(linear), _RECORDS.get(linear)
                if record is None or not record.snapshot.same(snapshot):
                    record = _RECORDS[linear] = _Record(snapshot, _unfit(linear))
                self._seen[linear] = record
        return self._seen[linear]

    def _packed(self, *linears: nn.Module) -> Any:
        """The packed weight of Linears side by side, as it was made before or made now."""
        first, *others = (self._record(linear) for linear in linears)
        with _LOCK:
            kept = first.packed.get(len(linears))
            if kept is None or kept[0] != others:
                kept = first.packed[len(linears)] = others, _pack(*linears)
            return kept[1]


class PackedLinear(nn.Module):
    """In place of a Linear; weight and bias stay for whoever else reads them."""

    def __init__(self, linear: Any, packed: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.packed, self.multiply = packed, _multiply()

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) -> (..., M)."""
        return self.multiply(x, self.packed)


def marks(*tensors: Tensor | None) -> tuple[int, ...]:
    """What changes when a tensor is replaced, moved or written to in place."""
    kept = [t for t in tensors if t is not None]
    return tuple(n for t in kept for n in (id(t), t.data_ptr(), -1 if t.is_inference() else t._version))


def _bit_sums(tensor: Tensor) -> Tensor:
    """Sums, modulo 2^64, over the bits of a tensor in words of eight bytes, a row or all in one."""
    if tensor.is_contiguous() and tensor.storage_offset() % 2 == 0 and tensor.shape[-1] % 2 == 0:
        return tensor.view(torch.int64).sum(-1)
    return tensor.view({4: torch.int32, 8: torch.int64}[tensor.itemsize]).sum(-1, dtype=torch.int64)


def is_plain(module: nn.Module) -> bool:
    """A Linear and nothing besides: no adapter around it, no parametrisation, nobody who watches it."""
    return type(module) is nn.Linear and not (module._forward_hooks or module._forward_pre_hooks)


def has_packed_products() -> bool:
    """Whether this torch has them for this processor: x86 with AVX2."""
    engine, ops = torch.backends.quantized.engine, torch.ops.quantized
    return engine in ("x86", "fbgemm") and hasattr(ops, "linear_dynamic_fp16")


def _unfit(linear: Any) -> str | None:
    """What of a Linear's weights float16 does not hold; None if it holds all."""
    weight: Tensor = linear.weight.detach()
    if not (weight.abs() <= LARGEST).all():  # nor is NaN
        return "numbers beyond float16's largest, 65504"
    if weight.half().float().sub_(weight).norm() > ROUNDING * weight.norm():
        return "too many numbers below float16's smallest, 6e-5"
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
