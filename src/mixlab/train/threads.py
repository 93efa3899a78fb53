"""How many threads torch computes with: measured, as on a busy machine several can be slower than one."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from mixlab.train import machine

WORTH_IT = 1.1
"""All threads must be at least so much faster than one to be used: they take cores from other programs."""

BUSY = 1.5
"""Times slower than one thread, from which only other programs on the same cores explain it."""

ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Where a person says how many threads there are to be; then nothing is measured."""

WORK = 1e9
"""FLOPs of the work that is timed, about 10 ms of a core: as long as a few operations of a small model."""

WIDEST = 256
SECONDS, FEWEST, MOST = 1.0, 3, 7
"""Rounds end once they have taken so long, but there are at least FEWEST and at most MOST."""


class Choice(NamedTuple):
    """A number of threads, why it is so many, and whether that was measured."""

    number: int
    reason: str
    measured: bool = False


def choose(width: int = 128, *, timings: Callable[[int, int], tuple[float, float]] | None = None) -> Choice:
    """One thread, or as many as torch has: whichever is faster at work like that of a model of this width.

    timings: (width, threads) -> seconds on one thread and on all; by default they are measured, in about a
    second. Nothing is measured where torch has one thread or the environment says how many.
    """
    most = min(torch.get_num_threads(), machine.usable_cores())
    said = next((name for name in ENVIRONMENT if os.environ.get(name)), None)
    if said is not None:
        return Choice(most, f"{in_words(most)}, as {said} says")
    if most == 1:
        return Choice(1, "1 thread, all that there are")
    one, every = (timings or measured)(width, most)
    return judge(one, every, most)


def judge(one: float, every: float, threads: int) -> Choice:
    """The choice between one thread and `threads`, by the seconds that the same work took on each."""
    gain = one / every
    if gain >= WORTH_IT:
        return Choice(threads, f"{threads} threads: measured {gain:.1f}x one thread", True)
    if gain > 1 / WORTH_IT:
        return Choice(1, f"1 thread: {threads} threads were measured {gain:.2f}x as fast as one", True)
    why = ": other programs use the cores" if 1 / gain >= BUSY else ""
    return Choice(1, f"1 thread: {threads} threads were measured {1 / gain:.1f}x slower{why}", True)


def measured(width: int, threads: int) -> tuple[float, float]:
    """Median seconds of the same work on one thread and on `threads`, in turns."""
    work = _work(min(width, WIDEST))
    times: dict[int, list[float]] = {1: [], threads: []}
    began = time.perf_counter()
    for done in range(MOST):
        for number, taken in times.items():
            with using(number):
                work()  # threads are started, and the others' traces leave the caches
                start = time.perf_counter()
                work()
                taken.append(time.perf_counter() - start)
        if done + 1 >= FEWEST and time.perf_counter() - began > SECONDS:
            break
    return statistics.median(times[1]), statistics.median(times[threads])


def _work(width: int) -> Callable[[], None]:
    """Forward and backward of a block's feature mixing, D -> 4D -> D after a norm."""
    tokens = max(64, round(WORK / (48 * width**2)))

    def filled(*shape: int) -> torch.Tensor:  # no random numbers: they are the run's
        numbers = torch.linspace(-1.0, 1.0, shape[0] * shape[1], dtype=torch.float32, device="cpu")
        return numbers.view(shape).requires_grad_()

    x, wide, narrow = filled(tokens, width), filled(4 * width, width), filled(width, 4 * width)

    def work() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            hidden = F.silu(F.linear(F.rms_norm(x, (width,)), wide))
            loss = (x + F.linear(hidden, narrow)).square().mean()
            torch.autograd.grad(loss, (x, wide, narrow))

    return work


@contextlib.contextmanager
def using(number: int) -> Iterator[None]:
    """Compute with so many threads, 0 for as many as there are; afterwards with as many as before."""
    before = torch.get_num_threads()
    if number in (0, before):
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_words(number: int) -> str:
    """ "1 thread", "2 threads"."""
    return f"{number} thread{'s'[: number != 1]}"
