"""Make the table of expected losses from a comparison, and put its numbers into the parts' cards.

    mixlab compare --models all --json > all.json
    python bench/bands.py all.json

The comparison, as JSON or as its comparison.json, is one of presets on corpus:python at the default budget.
Bands of presets that it did not run stay, if they are of the same text and budget. Without a comparison
only the cards are written anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixlab.compare.bands import FILE, Band, Bands, Budget, Text, read_bands
from mixlab.compare.folder import corpus_marks
from mixlab.compare.request import expand
from mixlab.config import load_run_config, preset_names, read_preset
from mixlab.errors import UserError

CARDS = Path(__file__).parents[1] / "docs" / "parts"

COUNTED = 0.001
NEURAL = 0.08
"""Half the width of a band. bands.toml says why; the text is here, as it is written anew with the numbers."""

HEADER = f"""\
# Expected bits per byte of each preset on the whole validation text of corpus:python, after the default
# comparison. `mixlab compare --check-bands` checks them; `python bench/bands.py COMPARISON.json` makes this
# file.
#
# The rule: expected is what one run with seed 0 measured. The band is that value +- {COUNTED} for counting,
# which is the same everywhere but for rounding, and +- {NEURAL} for what is trained: two standard
# deviations between seeds of the transformer, the noisier of the two that were tried (seeds 0, 1, 2: 2.512,
# 2.569, 2.495; window: 2.450, 2.451, 2.437). The check itself runs seed 0, so that this is room for what
# amounts to another seed: random numbers drawn in another order, or a processor that rounds otherwise
# (transformer: 2.523 on a Xeon, 2.512 on an EPYC). What a band is to catch costs more: the transformer
# loses 0.23 without its norm of queries and keys, and 0.16 at twice its learning rate (LOG.md).
"""

HEADING = "## Expected loss"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", nargs="?", type=Path, help="what `mixlab compare --json` printed")
    given = parser.parse_args()
    if given.comparison:
        bands = made_from(read_comparison(given.comparison))
        FILE.write_text(to_toml(bands), encoding="utf-8")
        print(f"{FILE}: {len(bands.models)} bands")
    bands = read_bands()
    for card in sorted(CARDS.glob("*.md")):
        card.write_text(with_bands(card.read_text(encoding="utf-8"), bands), encoding="utf-8")
    print(f"{CARDS}: written anew")
    lacking = [name for name in preset_names() if name not in bands.models]
    if lacking:
        print(f"no band yet: {', '.join(lacking)}")


def read_comparison(path: Path) -> dict[str, Any]:
    try:
        comparison = json.loads(path.read_text(encoding="utf-8"))
        return {key: comparison[key] for key in ("corpus", "budget", "results")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the JSON of a comparison: {error}") from None


def made_from(comparison: Mapping[str, Any]) -> Bands:
    """Bands of the comparison's finished presets, seed 0, after those that the file holds already."""
    corpus, budget = comparison["corpus"], comparison["budget"]
    if "python" not in corpus:
        raise UserError("the comparison is not of corpus:python")
    text = Text(python=corpus["python"], **corpus_marks(corpus))
    length = Budget(**{key: budget[key] for key in ("params", "steps", "context", "batch_size")})
    old = read_bands() if FILE.exists() else None
    models = dict(old.models) if old and (old.text, old.budget) == (text, length) else {}
    for result in comparison["results"]:
        name = result["config"].get("name", result["model"])  # "ngram", however its two runs are called
        if result.get("counted_on") == "same":
            continue
        if result["status"] == "done" and result["seed"] == 0 and name in preset_names():
            expected = round(result["bits_per_byte"], 3)
            half = COUNTED if result["config"].get("ngram") else NEURAL
            models[name] = Band(
                expected=expected, low=round(expected - half, 3), high=round(expected + half, 3)
            )
    order = [name for name in expand(("all",)) if name in models]
    return Bands(text=text, budget=length, models={name: models[name] for name in order})


def to_toml(bands: Bands) -> str:
    """The file: its header, the text, the budget, and a line a preset."""
    lines = [HEADER]
    for title, table in (("text", bands.text), ("budget", bands.budget)):
        lines += [f"[{title}]", *(f"{key} = {json.dumps(value)}" for key, value in vars(table).items()), ""]
    lines.append("[bands]")
    for name, band in bands.models.items():
        lines.append(
            f"{name} = {{ expected = {band.expected:.3f}, low = {band.low:.3f}, high = {band.high:.3f} }}"
        )
    return "\n".join(lines) + "\n"


def parts_of(preset: str) -> set[str]:
    """The temporal and feature parts that a preset is made of; counting is a card of its own."""
    model = load_run_config(read_preset(preset)).model
    if model is None:
        return {"ngram"}
    return {choice.name for kind in ("temporal", "feature") for choice in model.pattern(kind)}


def names_in(card: str) -> list[str]:
    """The parts that a card is about: its title, up to a colon."""
    return card.partition("\n")[0].removeprefix("# ").partition(":")[0].split(", ")


def section(parts: list[str], bands: Bands) -> str:
    """What a card says under its last heading: the band of every preset that has one of the parts."""
    presets = {name: parts_of(name) for name in expand(("all",))}
    lines = [
        HEADING,
        "",
        "Bits per byte on the validation text, at the default budget; `mixlab compare --check-bands` checks",
        "them ([how](../compare.md#bands)).",
        "",
        "| preset | expected | band |",
        "|---|---|---|",
    ]
    for name, used in presets.items():
        if used & set(parts):
            band = bands.models.get(name)
            lines.append(
                f"| `{name}` | {band.expected:.3f} | {band} |" if band else f"| `{name}` | no band yet | |"
            )
    unused = [part for part in parts if not any(part in used for used in presets.values())]
    if unused:
        listed = " and ".join(f"`{part}`" for part in unused)
        lines += [
            "",
            f"No preset uses {listed}, so no band is measured for {'them' if unused[1:] else 'it'}.",
        ]
    return "\n".join(lines) + "\n"


def with_bands(card: str, bands: Bands) -> str:
    """The card with its last section made anew."""
    before, found, _ = card.partition(f"\n{HEADING}\n")
    if not found:
        raise UserError(f"the card of {', '.join(names_in(card))} has no section '{HEADING}'")
    return f"{before}\n{section(names_in(card), bands)}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
