"""One offline HTML page from a comparison or a run: table, figures, samples and facts."""

from __future__ import annotations

from mixlab.report.offline import check_place
from mixlab.report.page import render, write_report
from mixlab.report.run import from_run

__all__ = ["check_place", "from_run", "render", "write_report"]
