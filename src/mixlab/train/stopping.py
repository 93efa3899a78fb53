"""SIGTERM and SIGINT as a request: give up or finish what is under way, save, leave."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor, nn


class StopRequest:
    """While entered, a first SIGTERM or SIGINT is remembered in `requested`; a second acts as it did before.

    Handlers can only be set in the main thread: elsewhere nothing is installed and nothing is ever
    requested. The ones that were there are put back on leaving.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self.requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()


@contextlib.contextmanager
def at_each_block(model: Any, check: Callable[[], None]) -> Iterator[None]:
    """Inside, `check` is called after every block's forward and before its backward, and may raise: on a
    processor, a large model takes longer for a batch than a person waits for a stop. A scorer without blocks
    is as it was."""

    def backward(gradient: Tensor) -> None:
        check()

    def forward(block: nn.Module, given: Any, found: tuple[Tensor, Any]) -> None:
        check()
        if found[0].requires_grad:
            found[0].register_hook(backward)  # type: ignore[no-untyped-call]

    blocks = getattr(model, "blocks", ())
    handles = [block.register_forward_hook(forward) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
