"""The contract as checks that any registered part can be put through, in or out of this repository.

Each check takes a `Case`, builds the part small and in float64 where exactness matters, and raises
AssertionError with what was promised, where it does not hold, what was found there and the likely cause.
`mixlab check` runs them all, and `docs/add-a-part.md` shows them under pytest.
"""

from __future__ import annotations

from collections.abc import Callable

from mixlab.parts.agreement import TOLERANCE as TOLERANCE
from mixlab.parts.agreement import close as close
from mixlab.parts.case import Case as Case
from mixlab.parts.case import run_in_chunks as run_in_chunks
from mixlab.parts.case import tensors as tensors
from mixlab.parts.declared_checks import (
    check_bookkeeping,
    check_flops,
    check_initialisation,
    check_overfits,
    check_save_and_load,
    check_state_bytes,
    check_watched,
)
from mixlab.parts.flop_count import measured_flops as measured_flops
from mixlab.parts.mixing_checks import (
    check_batch,
    check_bfloat16,
    check_causality,
    check_chunks,
    check_forward,
    check_segments,
    check_stepper,
)

CHECKS: tuple[Callable[[Case], None], ...] = (
    check_forward,
    check_batch,
    check_causality,
    check_chunks,
    check_stepper,
    check_segments,
    check_initialisation,
    check_bookkeeping,
    check_flops,
    check_state_bytes,
    check_save_and_load,
    check_bfloat16,
    check_watched,
    check_overfits,
)
"""What every part must pass; tensor parallelism needs processes and is tested beside them."""
