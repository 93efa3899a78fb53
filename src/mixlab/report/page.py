"""The page itself: a comparison in, one self-contained HTML document out, written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from mixlab.errors import UserError
from mixlab.report import facts, figures, readings, table, units, verdict
from mixlab.report.figures import Figure
from mixlab.report.palette import THEMES
from mixlab.report.view import ModelView, clean, group, mapping, number
from mixlab.train.files import disk_errors, write_text


def render(comparison: Mapping[str, Any]) -> str:
    """The HTML of `comparison` (the structure of comparison.json); it loads nothing from outside.

    Missing keys, failed results and values that are not finite are allowed and shown as such. Raises
    UserError if `comparison` is no mapping.
    """
    if not isinstance(comparison, Mapping):
        raise UserError(
            f"a report needs a comparison (a mapping with 'results'), not {type(comparison).__name__}"
        )
    data = clean(comparison)
    models = group(data)
    budget, corpus = mapping(data.get("budget")), mapping(data.get("corpus"))
    shown = draw(models, corpus)
    head, body = table.table(models, number(budget.get("context")))
    environment = _environment()
    script, plotly = _source("report.js"), _plotly()
    html: str = environment.get_template("report.html.j2").render(
        title=str(data.get("title") or "Comparison"),
        single=len(models) == 1,
        headline=verdict.headline(models),
        created=units.date(str(data.get("created") or "")),
        command=str(data.get("command") or ""),
        budget=table.budget_words(budget),
        unequal=[str(item) for item in budget.get("unequal") or []],
        columns=head,
        rows=body,
        footnotes=table.footnotes(models),
        models=models,
        figures={figure.id: figure for figure in shown},
        payload=_json(
            {"themes": THEMES, "figures": {figure.id: asdict(figure)["views"] for figure in shown}}
        ),
        training_views=sorted(
            {view for f in shown if f.id.startswith("loss-") for view in f.views}, reverse=True
        ),
        samples=_samples(models),
        corpus=facts.pairs(corpus),
        environment=facts.pairs(mapping(data.get("environment"))),
        configs=[
            (m.name, facts.config_text(c))
            for m in models
            for r in m.done[:1]
            if (c := mapping(r.get("config")))
        ],
        themes=THEMES,
        style=_markup(_style(environment)),
        script=_markup(script),
        plotly=_markup(plotly),
        hashes=[_hash(plotly), _hash(script)],
    )
    return html


def draw(models: list[ModelView], corpus: dict[str, Any]) -> list[Figure]:
    """Every figure that the numbers allow, in the page's order."""
    nats = _nats_per_bit(corpus)
    wanted = [
        figures.loss_figure(models, "tokens", readings.tokens(models), nats),
        figures.loss_figure(models, "seconds", readings.seconds(models), nats),
        figures.loss_figure(models, "flops", readings.flops(models), nats),
        figures.component_figure(
            models,
            "flops",
            "Work per token by component",
            "forward FLOPs per token",
            readings.component_flops(models),
        ),
        figures.component_figure(
            models,
            "parameters",
            "Parameters by component",
            "parameters",
            readings.component_parameters(models),
        ),
        figures.position_figure(models, readings.position(models)),
    ]
    return [figure for figure in wanted if figure is not None]


def _nats_per_bit(corpus: dict[str, Any]) -> float | None:
    """Nats per token of one bit per byte on the validation text, or None if its size is not known."""
    num_bytes, tokens = number(corpus.get("valid_bytes")), number(corpus.get("valid_tokens"))
    return math.log(2.0) * num_bytes / tokens if num_bytes and tokens else None


def _samples(models: list[ModelView]) -> list[dict[str, Any]]:
    """The first sample of each model: prompt and continuation, made visible."""
    found = []
    for model in models:
        for result in model.done:
            sample = mapping(result.get("sample"))
            if sample.get("text") or sample.get("prompt"):
                prompt, text = str(sample.get("prompt") or ""), str(sample.get("text") or "")
                text = text.removeprefix(prompt) if prompt else text
                found.append({"model": model, "prompt": facts.visible(prompt), "text": facts.visible(text)})
                break
    return found


def _json(value: Any) -> Any:
    """`value` as JSON that may stand inside a script element: no '<', '>' or '&' appears in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return _markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("mixlab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _style(environment: Any) -> str:
    style: str = environment.get_template("report.css").render(themes=THEMES)
    return style


MARK = b'<meta name="generator" content="mixlab">'
"""By which a report is known."""


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
    if path.is_dir():
        raise UserError(f"cannot write the report to {path}: it is a folder; name a file in it")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if MARK not in file.read(400):
                raise UserError(f"{path} exists and is not a report of mixlab: choose another file")


def write_report(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write the page to `path` (folders are made) through a temporary file beside it: never half a page.

    Returns `path`. Raises UserError, leaving what was there, if the place cannot be written or holds
    anything but an earlier report.
    """
    path = Path(path)
    check_place(path)
    html = render(comparison)
    with disk_errors(f"the report to {path}", failure=UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, html)
    return path
