"""`mixlab` and `python -m mixlab`: the command, from its first moment to its last under a signal."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from mixlab.signals import INTERRUPTED, ignore_ending, on_ending


def main() -> None:
    """Run the command line. A signal that asks to end is an interruption, where nothing else is made of it,
    and changes nothing once the work is done."""
    own = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a process that was forked ends as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    try:
        on_ending(interrupt)
        from mixlab.cli import run
        from mixlab.cli.streams import outlive_readers

        outlive_readers()
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # before `run` could say it
        ignore_ending()
        print("mixlab: interrupted", file=sys.stderr)
        status = INTERRUPTED
    ignore_ending()
    sys.exit(status)


if __name__ == "__main__":
    main()
