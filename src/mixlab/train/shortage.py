"""Running out of memory: how it is told from other errors, and how what was in use is let go."""

from __future__ import annotations

import gc

import torch

SIGNS = ("DefaultCPUAllocator", "std::bad_alloc", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch's errors say when memory is short: on a CPU the first two, on GPUs the others; only CUDA's
allocator has a class of its own for it."""


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that memory was short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def release(device: torch.device) -> None:
    """Give back what failed work held; call it where the error is gone, as its frames keep their tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
