"""A process that has imported everything a run needs, and forks a worker for each job.

    python -m mixlab.compare.server FD

Importing PyTorch and what its optimizers draw in takes seconds, and a forked worker has all of it at once. It
is still a process of its own, with its own peak memory, which a fork resets. The server computes nothing
itself: threads that a first product would start do not survive a fork.

FD is a socket to the parent. Each message there is one byte that carries three file descriptors, the
worker's standard input, output and error; the answers are two numbers of eight bytes each: the worker's
process id, and its exit status once it has ended, negative for a signal's number. The end of the socket ends
the server.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import socket
import sys
import threading
import traceback
from typing import NoReturn

NUMBER = 8
"""Bytes of an answer."""


def serve(channel: socket.socket) -> int:
    """Fork a worker for each message until there are no more; returns the exit status."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1, 3)
        if not message:
            return 0
        worker = os.fork()
        if worker == 0:
            channel.close()
            leave(work(descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
        answer(channel, worker)
        answer(channel, os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))


def answer(channel: socket.socket, number: int) -> None:
    """Send one number."""
    channel.sendall(number.to_bytes(NUMBER, "big", signed=True))


def work(descriptors: list[int]) -> int:
    """Be the worker of the job on the first of three descriptors; returns its exit status."""
    from mixlab.compare import worker

    os.setsid()
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    try:
        return worker.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # it must not continue as a server
        traceback.print_exc()
        return 1


def leave(status: int) -> NoReturn:
    """End a worker as Python does, but without taking apart what it shares with the server."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def preload() -> None:
    """Import what runs import, and what these import late, without computing anything."""
    import torch

    from mixlab.compare import measure, worker  # noqa: F401
    from mixlab.config import load_run_config
    from mixlab.train import count, loop  # noqa: F401

    load_run_config("transformer")  # builds the checks of configs
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])  # draws in PyTorch's compiler, for seconds
    gc.collect()
    gc.freeze()  # a worker's collections leave alone, and so share, what is there already


def main() -> int:
    """Preload and serve; returns the exit status."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    preload()
    try:
        return serve(channel)
    except (BrokenPipeError, ConnectionResetError):  # the parent was killed
        return 0


if __name__ == "__main__":
    sys.exit(main())
