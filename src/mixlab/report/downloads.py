"""The numbers of a page as files that it offers: the table and the curves as CSV, everything as JSON."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mixlab.report.view import ModelView, mapping, rows

TABLE = (
    "status", "reason", "parameters", "bits_per_byte", "tokens", "tokens_per_second", "seconds",
    "flops_per_token", "decode_ms_per_token", "state_bytes", "peak_memory_bytes", "dtype",
)  # fmt: skip
CURVE = ("step", "tokens", "seconds", "flops", "bits_per_byte", "scored")


def files(data: Mapping[str, Any], models: Sequence[ModelView]) -> list[dict[str, Any]]:
    """Each file's label on the page, its name, its media type and its content; JSON's is a value."""
    name = re.sub(r"[^\w.-]+", "-", str(data.get("title") or "comparison")).strip("-.")[:60] or "comparison"
    results = [(model, result) for model in models for result in (*model.done, *model.failed)]
    found: list[dict[str, Any]] = [
        {"label": "Table (CSV)", "name": f"{name}.csv", "type": "text/csv", "content": _table(results)},
        {
            "label": "Evaluations (CSV)",
            "name": f"{name}-evaluations.csv",
            "type": "text/csv",
            "content": _curves(results),
        },
        {
            "label": "Everything (JSON)",
            "name": f"{name}.json",
            "type": "application/json",
            "content": data,
        },
    ]
    return found if results else []


def _table(results: Iterable[tuple[ModelView, Mapping[str, Any]]]) -> str:
    """A line for each run, in base units."""
    results = list(results)
    swept = list(dict.fromkeys(key for _, result in results for key in mapping(result.get("grid"))))
    head = ("model", "seed", "kind", "counted_on", *swept, *TABLE)
    return _csv(
        head,
        (
            [
                model.name,
                result.get("seed"),
                model.kind,
                model.counted_on,
                *(mapping(result.get("grid")).get(key) for key in swept),
                *(result.get(key) for key in TABLE),
            ]
            for model, result in results
        ),
    )


def _curves(results: Iterable[tuple[ModelView, Mapping[str, Any]]]) -> str:
    """A line for each evaluation."""
    return _csv(
        ("model", "seed", *CURVE),
        (
            [model.name, result.get("seed"), *(line.get(key) for key in CURVE)]
            for model, result in results
            for line in rows(result.get("evals"))
        ),
    )


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()
