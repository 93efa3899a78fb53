"""The random generators that training may draw from: torch's on each device, Python's and numpy's own."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixlab.errors import UserError


@dataclass(frozen=True)
class Generators:
    """The state of each generator. tensors: torch's; scalars: the others', in what JSON holds exactly."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


def seed(number: int) -> None:
    """Start every generator from `number`, 0 or more."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # as much as it takes


def capture(device: torch.device) -> Generators:
    """Where the generators stand."""
    tensors = {"random.torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    version, words, gauss = random.getstate()
    state: tuple[Any, ...] = np.random.get_state()  # type: ignore[assignment]
    name, key, place, has_gauss, value = state
    numpy = [name, key.tolist(), int(place), int(has_gauss), float(value)]
    return Generators(tensors, {"python": [version, list(words), gauss], "numpy": numpy})


def put_back(tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], device: torch.device) -> None:
    """Go on from what `capture` found; a generator that it did not find stays as it is."""
    torch.set_rng_state(tensors["random.torch"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    version, words, gauss = scalars["python"]
    random.setstate((version, tuple(words), gauss))
    name, key, place, has_gauss, value = scalars["numpy"]
    np.random.set_state((name, np.array(key, np.uint32), place, has_gauss, value))


@contextmanager
def kept() -> Iterator[None]:
    """Leave every generator as it was found: the caller's random state is not ours to move."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """If wanted, only kernels that give the same bits each time; torch's settings come back afterwards.

    On a CPU all that mixlab uses do so anyway. UserError for an operation that has no such kernel.
    """
    if not wanted:
        yield
        return
    filled: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), filled.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    filled.fill_uninitialized_memory = False  # a pass over every new tensor, to find bugs that tests look for
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(".")[0]
        raise UserError(f"train.deterministic cannot be kept: {reason}; train without it") from None
    finally:
        torch.set_deterministic_debug_mode(before[0])
        filled.fill_uninitialized_memory = before[1]
