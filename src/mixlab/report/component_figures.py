"""The bars of what each component of a model takes: FLOPs and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mixlab.report.figures import MARGIN, Figure, axis, layout, plain, shortened
from mixlab.report.units import count, percent
from mixlab.report.view import ModelView, mapping, number

COMPONENTS = ("embedding", "temporal", "feature", "norm", "head")


def component_values(model: ModelView, what: str) -> dict[str, float]:
    """Component -> `what` ("flops" or "parameters") of the first finished result that has them."""
    for result in model.done:
        parts = mapping(result.get("components"))
        found = {name: number(mapping(part).get(what)) for name, part in parts.items()}
        values = {name: value for name, value in found.items() if value is not None}
        if values:
            known = [name for name in COMPONENTS if name in values]
            return {name: values[name] for name in [*known, *sorted(set(values) - set(known))]}
    return {}


def component_sums(models: list[ModelView], what: str) -> list[tuple[ModelView, dict[str, float]]]:
    """The models that `what` is known and not zero of, with their components.

    An n-gram's stored counts are no weights that a budget bounds: it is left out beside trained models.
    """
    found = [
        (model, values) for model in models if sum((values := component_values(model, what)).values()) > 0
    ]
    trained = [(model, values) for model, values in found if not model.is_baseline]
    return trained or found


def component_figure(
    models: list[ModelView],
    what: str,
    title: str,
    x_title: str,
    reading: str,
    unit: Callable[[float], str] = count,
) -> Figure | None:
    """Horizontal bars, one per model, stacked by component; None when no model says."""
    shown = component_sums(models, what)[::-1]  # Plotly draws the first bar at the bottom
    if not shown:
        return None
    names = list(dict.fromkeys(name for name in COMPONENTS if any(name in values for _, values in shown)))
    names += sorted({name for _, values in shown for name in values} - set(names))
    ticks = [f'<span style="color:${model.slot}">●</span> {shortened(model.label, 16)}' for model, _ in shown]
    totals = [sum(values.values()) for _, values in shown]
    data = []
    for index, name in enumerate(names):
        amounts = [values.get(name, 0.0) for _, values in shown]
        notes = [f"{unit(a)} ({percent(a / total)})" for a, total in zip(amounts, totals, strict=True)]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": plain(name),
                "x": amounts,
                "y": list(range(len(shown))),
                "customdata": notes,
                "marker": {"color": f"$part{index % 5}", "line": {"color": "$paper", "width": 1}},
                "hovertemplate": "%{customdata}<extra>%{fullData.name}</extra>",
            }
        )
    shape = layout(
        axis(x_title, tickformat="~s", nticks=5, range=[0, 1.01 * max(totals)]),
        axis("", tickvals=list(range(len(shown))), ticktext=ticks, automargin=True, showgrid=False),
        barmode="stack",
        bargap=0.38,
        height=MARGIN["t"] + MARGIN["b"] + 38 * len(shown),
        margin={**MARGIN, "r": 54, "l": 12},
    )
    del shape["yaxis"]["title"]
    shape["annotations"] = [_total(index, total, unit) for index, total in enumerate(totals)]
    keys = [(f"part{index % 5}", name) for index, name in enumerate(names)]
    return Figure(
        id=f"components-{what}",
        title=title,
        reading=reading,
        views={"all": {"data": data, "layout": shape}},
        keys=keys,
    )


def _total(index: int, total: float, unit: Callable[[float], str]) -> dict[str, Any]:
    return {
        "text": unit(total),
        "x": total,
        "y": index,
        "xanchor": "left",
        "xshift": 4,
        "showarrow": False,
        "font": {"color": "$soft", "size": 12},
    }
