"""Starting worker processes: forked by a server that has imported everything, or begun from nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from types import TracebackType
from typing import IO

from mixlab.compare.child import Child
from mixlab.compare.server import NUMBER

WORKER = (sys.executable, "-m", "mixlab.compare.worker")
SERVER = (sys.executable, "-m", "mixlab.compare.server")

SPIN = {"GOMP_SPINCOUNT": "10000"}
"""How long PyTorch's idle threads spin before they sleep, where the user's environment does not say. The
default, 30 times that, gains nothing on idle cores (23k tokens/s either way, measured on two); once another
program wants a core, threads that spin keep those from running that they wait for (4k against 11k)."""


ALONE = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy's own products, which nothing here needs, would start threads as it is imported: before the fork."""


def can_fork() -> bool:
    """Whether a process that has imported PyTorch can be forked: on Linux, where there is no GPU to share."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


class Workers:
    """Starts workers, as `Workers()(errors)`; entered for as long as there is to be any.

    forked: whether a server forks them, about as long as it takes a worker to import PyTorch sooner. Where
    that server fails, workers begin from nothing.
    """

    def __init__(self, *, forked: bool) -> None:
        self.server = Server() if forked else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.server is not None:
            self.server.close()

    def __call__(self, errors: IO[str]) -> Child:
        """A new worker, whose stderr goes to the file `errors`."""
        if self.server is not None:
            try:
                return Forked(self.server, errors)
            except OSError:  # it could not start, or was killed: most likely for its memory
                self.server.close()
                self.server = None
        return begun(errors)


def begun(errors: IO[str]) -> Child:
    """A worker that begins from nothing."""
    return subprocess.Popen(
        WORKER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        env=SPIN | os.environ,
    )


class Server:
    """The process of `mixlab.compare.server`, in a session of its own, and the socket to it."""

    def __init__(self) -> None:
        self.channel, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                (*SERVER, str(other.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # if it fails, a worker from nothing fails alike, with a log
                pass_fds=(other.fileno(),),
                start_new_session=True,
                env=ALONE | SPIN | os.environ,
            )

    def fork(self, descriptors: list[int]) -> int:
        """The process id of a new worker with these as its standard files; OSError if there is none."""
        socket.send_fds(self.channel, [b"w"], descriptors)
        return self.number()

    def number(self) -> int:
        """The next answer; OSError if the server has ended."""
        found = b""
        while len(found) < NUMBER:
            part = self.channel.recv(NUMBER - len(found))
            if not part:
                raise ConnectionResetError("the server of workers has ended")
            found += part
        return int.from_bytes(found, "big", signed=True)

    def close(self) -> None:
        """End the server; a worker that still runs is not waited for."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


class Forked:
    """A worker that the server forked; its ends of the worker's pipes are open until they are closed."""

    def __init__(self, server: Server, errors: IO[str]) -> None:
        self.server = server
        self.returncode: int | None = None
        (their_input, our_output), (our_input, their_output) = os.pipe(), os.pipe()
        self.stdin: IO[str] | None = os.fdopen(our_output, "w", encoding="utf-8")
        self.stdout: IO[str] | None = os.fdopen(our_input, encoding="utf-8")
        try:
            self.pid = server.fork([their_input, their_output, errors.fileno()])
        except OSError:
            for pipe in (self.stdin, self.stdout):
                pipe.close()
            raise
        finally:
            os.close(their_input)
            os.close(their_output)

    def terminate(self) -> None:
        """Ask it to save and stop."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit status if that was waited for."""
        return self.returncode

    def wait(self) -> int:
        """Its exit status once it has ended, as `subprocess` gives it."""
        if self.returncode is None:
            try:
                self.returncode = self.server.number()
            except OSError:  # nobody is left to tell; the worker's last line, if any, says how it went
                self.returncode = self.server.process.wait()
        return self.returncode
