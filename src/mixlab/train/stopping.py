"""A signal as a request: give up or finish what is under way, save, leave."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor, nn

from mixlab import signals


class StopRequest:
    """While entered, a first SIGTERM, SIGINT or SIGHUP is remembered in `requested`; a second acts as it did
    before, but for SIGHUP, of which a closed terminal sends several.

    Handlers can only be set in the main thread: elsewhere nothing is installed and nothing is ever
    requested. Leaving restores those that were there.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = signals.on_ending(self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signals.restore(self._before)
        self._before = {}

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self.requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        hangup = {n: handler for n, handler in self._before.items() if n == signals.HANGUP}
        signals.restore({n: handler for n, handler in self._before.items() if n not in hangup})
        self._before = hangup


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
