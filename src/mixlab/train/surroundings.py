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

    These are what `plain` pins, and grad and inference mode. Afterwards all are as they were. Deterministic
    kernels stay asked for where they were.
    """
    with torch.inference_mode(False), torch.enable_grad(), plain(), counts.using(threads):
        yield


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Inside, tensors are made and multiplied in the types and on the devices that the code says: default
    dtype and device, autocast and the precision of float32 products are torch's own."""
    dtype, products = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    casts = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    # A default device is such a mode; to ask for the device itself takes longer than all the rest.
    elsewhere = torch._C._len_torch_function_stack() and torch.get_default_device().type != "cpu"
    if not (casts or elsewhere) and (dtype, products) == (torch.float32, "highest"):
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_float32_matmul_precision, products)
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(torch.device("cpu") if elsewhere else contextlib.nullcontext())
        for kind in casts:
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
