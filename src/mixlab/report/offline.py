"""Pages that open offline: styles, scripts and numbers inside, written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from mixlab.errors import UserError
from mixlab.report.figures import Figure
from mixlab.report.palette import THEMES
from mixlab.train.files import check_name, disk_errors, write_text

MARK = b'<meta name="generator" content="mixlab">'
"""By which a report is known."""


def fill(
    template: str, shown: Sequence[Figure], downloads: Sequence[Mapping[str, Any]] = (), **values: Any
) -> str:
    """The HTML of a template of this folder with `values`, and all that its figures need to be drawn.

    downloads: files that the page offers, each with its "name", "type" and "content".
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mixlab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, plotly = _source("report.js"), _plotly()
    views = {figure.id: asdict(figure)["views"] for figure in shown}
    html: str = environment.get_template(template).render(
        figures={figure.id: figure for figure in shown},
        payload=_json({"themes": THEMES, "figures": views, "downloads": list(downloads)}),
        downloads=downloads,
        themes=THEMES,
        style=_markup(environment.get_template("report.css").render(themes=THEMES)),
        script=_markup(script),
        plotly=_markup(plotly),
        hashes=[_hash(plotly), _hash(script)],
        **values,
    )
    return html


def _json(value: Any) -> Any:
    """`value` as JSON that may stand inside a script element: no '<', '>' or '&' appears in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return _markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _newlines(get_plotlyjs())


def _source(name: str) -> str:
    return _newlines((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


def _newlines(text: str) -> str:
    """One kind of line break: browsers turn the others into it before they hash a script."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    """The script's source expression for the page's content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def check_place(path: Path) -> None:
    """UserError if `path` holds something other than a report: a text given for a report is not lost."""
    check_name(path)
    if path.is_dir():
        raise UserError(f"cannot write the report to {path}: it is a folder; name a file in it")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if MARK not in file.read(400):
                raise UserError(f"{path} exists and is not a report of mixlab: choose another file")


def write_page(html: str, path: Path) -> Path:
    """Write a page to `path` (folders are made) through a temporary file beside it; returns `path`.

    Raises UserError, leaving what was there, if the place cannot be written or holds anything but an
    earlier report.
    """
    check_place(path)
    with disk_errors(f"the report to {path}", failure=UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, html)
    return path
