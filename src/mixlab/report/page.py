"""The page of a comparison: its numbers in, one self-contained HTML document out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixlab.errors import UserError
from mixlab.report import (
    component_figures,
    downloads,
    facts,
    figures,
    grid,
    offline,
    readings,
    recommend,
    table,
    units,
)
from mixlab.report.figures import Figure
from mixlab.report.view import ModelView, clean, group, mapping, number, rows


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
    budget = mapping(data.get("budget"))
    joined, apart = rows(data.get("joined")), str(data.get("apart") or "")
    timed = recommend.trusted(data)
    corpora, machines = (
        [(str(one.get("name")), mapping(one.get(key))) for one in joined or [data]]
        for key in ("corpus", "environment")
    )
    shown = draw(models, corpora, apart=bool(apart), timed=timed)
    first = figures.first_view(shown)
    shown = [figure.seen_as(first) for figure in shown]
    sweep = grid.figures(data, models)
    meters = _meters(models)
    shown += [*sweep, *(figure for section in meters for figure in section["figures"])]
    head, groups = table.table(models, number(budget.get("context")), apart=bool(apart), timed=timed)
    return offline.fill(
        "report.html.j2",
        shown,
        downloads=downloads.files(data, models),
        title=str(data.get("title") or "Comparison"),
        single=len(models) == 1,
        conclusion=recommend.conclusion(data, models),
        created=units.date(str(data.get("created") or "")),
        command=str(data.get("command") or ""),
        budget=table.budget_words(budget, models),
        joined=bool(joined),
        unequal=[str(item) for item in budget.get("unequal") or []],
        columns=head,
        groups=groups,
        ranked=recommend.ranked(models, apart),
        footnotes=table.footnotes(models, mapping(data.get("evaluation"))),
        seeds=table.by_seed(models),
        ended=table.ended(models),
        sources=table.sources(models),
        sweep=sweep,
        first_view=first,
        models=models,
        training_views=sorted(
            {view for f in shown if f.id.startswith("loss-") for view in f.views}, reverse=True
        ),
        meters=meters,
        samples=_samples(models),
        corpus=facts.together(corpora),
        environment=facts.together(machines),
        configs=[
            (m.name, facts.config_text(c))
            for m in models
            for r in m.done[:1]
            if (c := mapping(r.get("config")))
        ],
    )


def draw(
    models: list[ModelView],
    corpora: Sequence[tuple[str, dict[str, Any]]],
    *,
    apart: bool = False,
    timed: bool = True,
) -> list[Figure]:
    """Every figure that the numbers allow, in the page's order.

    apart: the losses are of texts that do not compare. timed: whether times are fit to conclude from.
    """
    each = [_nats_per_bit(corpus) for _, corpus in corpora]
    nats = each[0] if len(set(each)) == 1 else None
    alike = not apart and len({_tokenizer(corpus) for _, corpus in corpora}) == 1
    own = apart and sum(model.bits is not None for model in models) > 1
    wanted = [
        figures.loss_figure(models, key, readings.loss(models, key, apart=own, timed=timed), nats)
        for key in ("tokens", "seconds", "flops")
    ] + [
        component_figures.component_figure(
            models,
            "flops",
            "Work per token by component",
            "forward FLOPs per token",
            readings.component_flops(models),
        ),
        component_figures.component_figure(
            models,
            "parameters",
            "Parameters by component",
            "parameters",
            readings.component_parameters(models),
        ),
        figures.position_figure(models, readings.position(models, alike=alike)),
    ]
    return [figure for figure in wanted if figure is not None]


def _meters(models: list[ModelView]) -> list[dict[str, Any]]:
    """The sections of the runs' meters: title, figures, warnings, footnotes; none for a comparison."""
    from mixlab.report import meter_figures, meter_readings
    from mixlab.train.bands import BANDS

    runs = meter_figures.runs(models)
    watched = meter_figures.watch_figures(models)
    keys = [key for key in BANDS if meter_readings.is_drawn(runs, key)]
    sections = [
        {
            "id": "training",
            "title": "How training went",
            "figures": meter_figures.training_figures(models),
            "warnings": [],
            "notes": meter_readings.changes(runs),
        },
        {
            "id": "watch-list",
            "title": "The watch list",
            "figures": watched,
            "warnings": meter_readings.warnings(runs),
            "notes": [sentence for sentence in (meter_readings.quiet(runs),) if sentence]
            + meter_readings.bands(keys),
        },
    ]
    return [section for section in sections if section["figures"]]


def _tokenizer(corpus: dict[str, Any]) -> str:
    return str(mapping(corpus.get("tokenizer")).get("hash"))


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


def write_report(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write the page to `path` (folders are made) through a temporary file beside it: never half a page.

    Returns `path`. Raises UserError, leaving what was there, if the place cannot be written or holds
    anything but an earlier report.
    """
    path = Path(path)
    offline.check_place(path)
    return offline.write_page(render(comparison), path)
