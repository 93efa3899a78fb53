"""FLOPs as torch's own counter sees them, by operator: the measurement beside `Part.flops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

RULE = (
    "the rule: 2 for each multiply-add of a matrix product, a convolution or attention, "
    "0 for element-wise operations, norms, softmax, sums, scans and look-ups"
)


def _cpu_attention_flops(
    query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **_: Any
) -> int:
    """The count of the other attention kernels; torch's counter takes the CPU's for 0 (seen in 2.13)."""
    return sdpa_flop_count(query, key, value)


def flops_by_operator(run: Callable[[], object]) -> dict[str, int]:
    """FLOPs of what `run` computes, by operator, such as "aten.mm".

    In float64 it sees all of them: oneDNN's fused recurrences, which the counter does not know, take over in
    lower precisions.
    """
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with counter:
        run()
    return {str(name): int(count) for name, count in counter.get_flop_counts().get("Global", {}).items()}


def measured_flops(run: Callable[[], object]) -> int:
    """FLOPs of what `run` computes, all operators together."""
    return sum(flops_by_operator(run).values())


def flop_mismatch(said: int, counted: Mapping[str, int], T: int) -> str:
    """The sentence for a formula that says `said` for T tokens where operators were counted."""
    found = sum(counted.values())
    parts = ", ".join(f"{name} {count}" for name, count in counted.items()) or "no operator that counts"
    cause = _cause(said, found, counted)
    return (
        f"flops({T}) is {said}, torch counts {found} in a forward over {T} token{'s'[: T != 1]} ({parts}); "
        f"{cause}{RULE}"
    )


def _cause(said: int, found: int, counted: Mapping[str, int]) -> str:
    if found == 2 * said:
        return "the formula counts a multiply-add as 1, not 2; "
    if not found:
        return "the formula counts what is no matrix product; "
    missing = [name for name, count in counted.items() if count == found - said]
    if missing:
        return f"the formula leaves out what {missing[0]} takes; "
    surplus = said - found
    return f"the formula has {surplus} too many; " if surplus > 0 else f"the formula lacks {-surplus}; "
