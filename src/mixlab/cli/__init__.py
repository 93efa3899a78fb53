"""The `mixlab` command: one file a verb, and the one place where an error becomes a sentence and a status.

Exit status: 0 done, 1 the work failed, 2 the input was wrong. Results go to stdout, all else to stderr.
Verbs import what they need when they run, so that `mixlab --help` imports neither torch nor rich.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from mixlab.cli.options import Imports
from mixlab.errors import RunFailed, UserError
from mixlab.signals import INTERRUPTED

VERBS = ("compare", "train", "generate", "evaluate", "report", "doctor", "parts", "check")
"""In the order `mixlab --help` lists them. The verb `x` is the function `x` of `mixlab.cli.x`."""

WRONG_PLACE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
"""A file that the user named or that stands in the way: wrong input."""
GAVE_OUT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE}
"""The machine could not go on: the work failed."""

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for a wrong command line; not a public name of every version, but always this base."""


def version(wanted: bool) -> None:
    """Print the version and stop, if it is wanted."""
    if wanted:
        from mixlab import __version__

        typer.echo(f"mixlab {__version__}")
        raise typer.Exit


def make_app() -> typer.Typer:
    """The command with its verbs."""
    # Plain help: rich's would add 0.1 s to every call.
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)

    @app.callback()
    def mixlab(
        imports: Imports = None,
        show_version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=version, is_eager=True)
        ] = False,
    ) -> None:
        """Build language models from parts, train them on your own text, and compare the choices fairly.

        TEXT is a file, a folder, a glob, '-' (standard input) or 'corpus:python' (the default). RUN is a run
        folder or a checkpoint folder in it. Start with: mixlab train --preset transformer
        """

    for name in VERBS:
        app.command(name)(getattr(import_module(f"mixlab.cli.{name}"), name))
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit status. Errors that are bugs propagate."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows '?', not a traceback
    if sys.stdout is None:
        return _say("standard output is closed, so there is nowhere to put a result", 2)
    command = typer.main.get_command(make_app())
    try:
        # make_context and invoke, not main(): that one handles interrupts and closed pipes in its own way.
        with command.make_context("mixlab", list(arguments) or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except UsageError as error:
        return _say(_usage(error), 2)
    except UserError as error:
        return _say(str(error), 2)
    except RunFailed as error:
        return _say(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except OSError as error:
        if error.errno not in WRONG_PLACE | GAVE_OUT:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{(error.strerror or str(error)).lower()}", 1 if error.errno in GAVE_OUT else 2)
    return 0


def _say(sentence: str, status: int) -> int:
    print(f"mixlab: {sentence}", file=sys.stderr)
    return status


def _usage(error: Exception) -> str:
    """What is wrong with the command line, on one line, and where to read what would be right."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "mixlab"
    return f"{' '.join(message.split()).rstrip('.')} (see '{path} --help')"


def main() -> None:
    """Entry point of the `mixlab` script."""
    from mixlab.__main__ import main as entry

    entry()
