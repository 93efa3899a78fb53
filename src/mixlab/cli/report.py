"""`mixlab report`: one offline HTML page from runs or a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mixlab.cli.options import Imports, Json
from mixlab.errors import UserError

COMPARISON = "comparison.json"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, or a comparison's folder.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Default: report.html in the folder, or here for several."),
    ] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Write one offline HTML page about runs.

    Table, curves, samples and facts.

    mixlab report runs/transformer runs/gru
    """
    from mixlab.cli.console import print_json
    from mixlab.report import write_report

    folders = [run_folder(path) for path in runs]
    comparison = merge([read(folder) for folder in folders], folders)
    path = write_report(comparison, out or (folders[0] if len(folders) == 1 else Path()) / "report.html")
    if as_json:
        print_json({"report": str(path), "results": len(comparison["results"])})
    else:
        print(path)


def run_folder(path: Path) -> Path:
    """The run that a checkpoint folder lies in; any other path as it is."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def read(folder: Path) -> dict[str, Any]:
    """The comparison in a comparison's folder, or a run as a comparison of one; UserError for neither."""
    from mixlab.report import from_run

    file = folder / COMPARISON
    if not file.is_file():
        return from_run(folder)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged: it is not JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("results"), list):
        raise UserError(f"{file} is not a comparison: it has no list of results")
    return found


def merge(comparisons: Sequence[dict[str, Any]], folders: Sequence[Path]) -> dict[str, Any]:
    """Several as one: all their results, and a sentence for what they do not have in common.

    Results that would share model and seed, and so be taken for one, get their folder's name.
    """
    if len(comparisons) == 1:
        return comparisons[0]
    results = [
        (result, folder)
        for comparison, folder in zip(comparisons, folders, strict=True)
        for result in comparison["results"]
    ]
    names = [(result.get("model"), result.get("seed")) for result, _ in results]
    if len(set(names)) < len(names):
        results = [({**result, "model": folder.name}, folder) for result, folder in results]
    first = comparisons[0]
    return {
        **first,
        "title": f"{len(comparisons)} runs",
        "budget": common(comparison.get("budget", {}) for comparison in comparisons)
        | {"unequal": unequal(comparisons)},
        "results": [result for result, _ in results],
    }


def common(budgets: Any) -> dict[str, Any]:
    """The entries that all budgets share."""
    first, *rest = list(budgets)
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}


def unequal(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the runs do not share, a sentence each, and what was unequal inside each."""
    sentences = [
        sentence for comparison in comparisons for sentence in comparison.get("budget", {}).get("unequal", [])
    ]
    if len({comparison.get("corpus", {}).get("sha256") for comparison in comparisons}) > 1:
        sentences.append("The runs read different texts, so their bits per byte do not compare.")
    for key, what in (("tokens", "numbers of tokens"), ("context", "context lengths")):
        if len({comparison.get("budget", {}).get(key) for comparison in comparisons}) > 1:
            sentences.append(f"The runs had different {what}.")
    return list(dict.fromkeys(sentences))
