"""Running out of memory: how it is told from other errors, and how what was in use is let go."""

from __future__ import annotations

import gc

import torch

from mixlab.errors import UserError
from mixlab.model.config import ModelConfig
from mixlab.model.language_model import LanguageModel
from mixlab.train.counted import free_memory

SIGNS = ("DefaultCPUAllocator", "std::bad_alloc", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch's errors say when memory is short: on a CPU the first two, on GPUs the others; only CUDA's
allocator has a class of its own for it."""


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that memory was short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def check_model(config: ModelConfig, device: torch.device) -> None:
    """UserError if the weights and a gradient of them are more than the memory that is free, where the system
    says how much is: it would end the process, not raise an error."""
    free = free_memory() if device.type == "cpu" else None
    if free is None:
        return
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            parameters = sum(p.numel() for p in LanguageModel(config).parameters())
    except (RuntimeError, NotImplementedError):  # a part that cannot be built without memory
        return
    if (needed := 8 * parameters) > free:
        raise UserError(
            f"a model of {parameters:,} parameters takes {needed / 1e9:.1f} GB with its gradient, and "
            f"{free / 1e9:.1f} GB are free: choose a smaller model.dim, model.depth or model.vocab_size"
        )


def release(device: torch.device) -> None:
    """Give back what failed work held; call it where the error is gone, as its frames keep their tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
