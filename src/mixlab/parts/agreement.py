"""Two tensors that should agree: within which tolerance, and where they first do not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 5e-3,  # 11 bits: an eighth of bfloat16's
    torch.bfloat16: 4e-2,  # 8 bits of significand: 2^-8 a rounding, about ten roundings deep
}
"""The one table: largest allowed difference, relative to the largest value compared."""

Index = tuple[int, ...]
Cause = str | Callable[[Index], str]
"""The likely cause of a difference, in words, or a function of where it is."""


class Broken(AssertionError):
    """A promise of the contract that does not hold: what, where, what was found, and the likely cause."""


def expect(condition: bool, message: str) -> None:
    """Raise Broken(message) unless the condition holds."""
    if not condition:
        raise Broken(message)


def close(
    found: Tensor, wanted: Tensor, what: str, dtype: torch.dtype | None = None, *, cause: Cause = ""
) -> None:
    """Expect equality within the table's tolerance for `dtype` (the found tensor's own by default).

    `Broken` says where the first difference is, both values there, and the cause that is given.
    """
    shapes = f"has the shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    expect(found.shape == wanted.shape, f"{what} {shapes}")
    index = first_difference(found, wanted, dtype)
    if index is not None:
        a, b = (t.detach()[index].double().item() for t in (found, wanted))
        words = cause if isinstance(cause, str) else cause(index)
        raise Broken(
            f"{what}{place(index)}: found {a:.6g}, expected {b:.6g}" + (f"; {words}" if words else "")
        )


def first_difference(found: Tensor, wanted: Tensor, dtype: torch.dtype | None = None) -> Index | None:
    """Where two tensors of one shape first differ by more than the table allows; None where they agree.

    Of (B, T, D) that is the earliest position, whichever sequence and channel it is in.
    """
    found, wanted, dtype = found.detach(), wanted.detach(), dtype or found.dtype
    if not wanted.numel():
        return None
    scale = max(1.0, wanted.abs().max().item())
    within = (found.double() - wanted.double()).abs() <= TOLERANCE[dtype] * scale
    if bool(within.all()):
        return None
    outside: list[Index] = [tuple(row) for row in (~within).nonzero().tolist()]  # a NaN is never within
    return min(outside, key=lambda index: (index[1], *index)) if found.ndim == 3 else outside[0]


def place(index: Index) -> str:
    """An index in words, after what differs there."""
    if len(index) == 3:
        return f": first differs at position {index[1]} (sequence {index[0]}, channel {index[2]})"
    return f": first differs at index {index}" if index else ""
