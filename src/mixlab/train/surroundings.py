"""What a caller may have set in torch, pinned while mixlab computes: a run is what its config says."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import nn

from mixlab.errors import UserError
from mixlab.train import threads as counts

_training = threading.Lock()


@contextlib.contextmanager
def pinned(threads: int = 0) -> Iterator[None]:
    """Inside, torch's settings are those that it starts with, but for `threads` (0: as many as before).

    These are the default dtype and device, autocast, grad and inference mode and the precision of float32
    products. Afterwards all are as they were. Deterministic kernels stay asked for where they were.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(plain())
        before = torch.get_float32_matmul_precision()
        if before != "highest":
            stack.callback(torch.set_float32_matmul_precision, before)
            torch.set_float32_matmul_precision("highest")
        stack.enter_context(counts.using(threads))
        yield


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Inside, tensors are made and multiplied in the types that the code says, where it says."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with contextlib.ExitStack() as stack:
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, nothing else of this process trains: all would draw from one random state. UserError if
    something does."""
    if not _training.acquire(blocking=False):
        raise UserError(
            "this process is training already, and two trainings would draw from the same random numbers: "
            "wait for the other one, or train in a process of its own"
        )
    try:
        yield
    finally:
        _training.release()


@contextlib.contextmanager
def evaluating(module: nn.Module | None) -> Iterator[None]:
    """Inside, the module is in evaluation mode; afterwards each of its modules is as it was."""
    trained = [] if module is None else [part for part in module.modules() if part.training]
    if module is not None and trained:
        module.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True
