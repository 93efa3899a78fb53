"""`mixlab report`: one offline HTML page from runs or a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixlab.cli.options import Imports, Json


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, or a comparison's folder.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Default: report.html.")] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Write one offline HTML page about runs.

    Table, curves, samples and facts.

    mixlab report runs/transformer runs/gru
    """
