"""Runs in a process of their own, to be killed: what the tests of test_killed.py start.

Each is forked from a server that has imported all this once, so that thirty of them take seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from mixlab.config import load_run_config
from mixlab.errors import UserError
from mixlab.train import checkpoint, machine
from mixlab.train.loop import train

from .conftest import FAKE

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
REFUSED = 2


def prepare(slow: float) -> None:
    """One thread, no measuring, and a writer that sleeps for `slow` seconds at each of its stages."""
    torch.set_num_threads(1)
    machine.measure = lambda device=None, refresh=False: FAKE  # type: ignore[assignment]
    if not slow:
        return
    save_tensors, fsync = checkpoint.save_tensors, checkpoint.fsync

    def save_in_halves(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_tensors(tensors, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        time.sleep(slow)
        path.write_bytes(content)

    def fsync_slowly(path: Path) -> None:
        time.sleep(slow)
        fsync(path)

    checkpoint.save_tensors, checkpoint.fsync = save_in_halves, fsync_slowly


def life(config: Path, run: Path, slow: float, started: Connection) -> None:
    """Begin the run, or go on with it, and tell `started` when training begins."""
    prepare(slow)

    def progress(line: dict[str, object]) -> None:
        if line["kind"] == "start":
            started.send(True)

    try:
        train(load_run_config(str(config)), run, resume=(run / "config.toml").exists(), progress=progress)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)


def life_until(config: Path, run: Path, count: int) -> None:
    """Go on with the run, and die when a file of its checkpoints is touched for the `count`-th time."""
    prepare(0.0)
    left = [count]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in FILE_EVENTS and "/checkpoints" in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train(load_run_config(str(config)), run, resume=True, progress=lambda line: None)


def at_terminal(arguments: list[str], terminal: str, out: Path) -> None:
    """The command in the foreground of a terminal of its own; its exit status goes to the file `out`."""
    prepare(0.0)
    os.setsid()
    slave = os.open(terminal, os.O_RDWR)  # a session's first terminal becomes its own
    for number in (0, 1, 2):
        os.dup2(slave, number)
    os.close(slave)
    main_with(arguments, out)


def into_pipe(arguments: list[str], pipe: Path, out: Path) -> None:
    """The command with standard error in the named pipe; its exit status goes to the file `out`."""
    prepare(0.0)
    writer = os.open(pipe, os.O_WRONLY)
    os.dup2(writer, 2)
    os.close(writer)
    main_with(arguments, out)


def main_with(arguments: list[str], out: Path) -> None:
    """`mixlab` with these arguments on the standard streams as they are now."""
    from mixlab.__main__ import main

    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        out.write_text(str(end.code))
    except BaseException as error:
        out.write_text(repr(error))


def command(arguments: list[str], slow: float, out: Path) -> None:
    """A command line of mixlab; what it prints goes to the file `out`."""
    from mixlab.cli import run

    prepare(slow)
    with (
        out.open("w", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        status = run(arguments)
    sys.exit(status)
