"""Expected losses: what each preset reaches in the default comparison, and how far a run of it may lie off.

The numbers are in bands.toml, with the text and the budget they hold for and the rule they are made by;
`bench/bands.py` makes the file from a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mixlab.compare.folder import ComparisonFolder, corpus_marks
from mixlab.compare.request import Request
from mixlab.compare.worker import RESULT
from mixlab.config import parse, read_toml
from mixlab.data.config import DataConfig
from mixlab.errors import UserError

FILE = Path(__file__).with_name("bands.toml")
SHOWN = 12
"""Hexadecimal digits of a hash that a message shows."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """Bits per byte on the validation text: as measured once, and the ends between which a run should lie."""

    expected: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.expected <= self.high:
            raise UserError(f"the expected {self.expected} is not between {self.low} and {self.high}")

    def __str__(self) -> str:
        return f"{self.low:.3f} to {self.high:.3f}"


@dataclass(frozen=True, kw_only=True)
class Text:
    """The text that was compared on: corpus:python of one Python, by its hash and its sizes in tokens."""

    python: str
    sha256: str
    train_tokens: int
    valid_tokens: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Parameters of each neural model, and its training: steps of `batch_size` rows of `context` tokens."""

    params: int
    steps: int
    context: int
    batch_size: int

    def __str__(self) -> str:
        rows = f"{self.batch_size:,} rows of {self.context:,} bytes"
        return f"{self.params:,} parameters, {self.steps:,} steps of {rows}, one seed"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one model; `measured` is None where it failed or has no finite loss."""

    model: str
    measured: float | None
    band: Band | None
    verdict: Literal["inside", "outside", "no band", "failed"]


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Bands by the names of presets, and what they hold for."""

    text: Text
    budget: Budget
    models: dict[str, Band]

    def check(self, request: Request, out: Path) -> None:
        """UserError if the comparison would be of another budget or text than the bands hold for, or if the
        folder `out` holds it finished, so that nothing would be measured. `request` is validated."""
        self.check_request(request)
        check_unfinished(out)
        from mixlab.data import prepare

        self.check_text(prepare(request.data, context=request.context).facts)

    def check_request(self, request: Request) -> None:
        """UserError, naming the options, for another budget, other settings or text from standard input."""
        length = next((key for key in ("steps", "minutes") if getattr(request, key) is not None), "tokens")
        usual = DataConfig()
        with_options = ("sources", "valid", "tokenizer", "encoding")
        data = replace(request.data, **{key: getattr(usual, key) for key in with_options})
        differs = {
            "--budget": request.params != self.budget.params,
            f"--{length}": request.fixed_steps() != self.budget.steps,
            "--context": request.context != self.budget.context,
            "--batch-size": request.batch_size != self.budget.batch_size,
            "--seeds": request.seeds != 1,
            "--tokenizer": request.data.tokenizer != usual.tokenizer,
            "--valid": request.data.valid != usual.valid,
            "--encoding": request.data.encoding != usual.encoding,
            "--grid": bool(request.grid),
            "--set": bool(request.overrides) or data != usual,
            "the text '-'": "-" in request.data.sources,
        }
        named = [option for option, other in differs.items() if other]
        if named:
            raise UserError(
                f"--check-bands: {' and '.join(named)} would make another comparison than the bands hold for "
                f"({self.budget}): leave {'them' if named[1:] else 'it'} out"
            )

    def check_text(self, facts: Mapping[str, Any]) -> None:
        """UserError if the facts of a prepared text are not those of the bands' text."""
        text = self.text
        if corpus_marks(facts) == corpus_marks(vars(text)):
            return
        this, right = ", ".join(facts["sources"]), "leave the text out"
        if "python" in facts:
            this += f" of Python {facts['python']}"
            right = "use that Python, or make bands for this one with bench/bands.py"
        raise UserError(
            f"--check-bands: the bands hold for corpus:python of Python {text.python} "
            f"(sha256 {text.sha256[:SHOWN]}), and this is {this} (sha256 {facts['sha256'][:SHOWN]}): {right}"
        )

    def verdicts(self, comparison: Mapping[str, Any], models: tuple[str, ...]) -> list[Verdict]:
        """Return the verdict on each result of a comparison of `models`.

        A .toml file has no band, whatever it is called. The band of an n-gram is for the one that is counted
        on all of the text: the other has no verdict.
        """
        banded = [result for result in comparison["results"] if result.get("counted_on") != "same"]
        return [self._verdict(result, models) for result in banded]

    def _verdict(self, result: Mapping[str, Any], models: tuple[str, ...]) -> Verdict:
        name = result["config"].get("name", result["model"])
        band = self.models.get(name) if name in models else None
        if result["status"] != "done":
            return Verdict(model=name, measured=None, band=band, verdict="failed")
        measured = result["bits_per_byte"]
        if band is None:
            return Verdict(model=name, measured=measured, band=None, verdict="no band")
        inside = measured is not None and band.low <= measured <= band.high
        return Verdict(model=name, measured=measured, band=band, verdict="inside" if inside else "outside")


def read_bands(path: Path | None = None) -> Bands:
    """The bands in `path`, or those that come with mixlab; UserError for a file that does not hold any."""
    path = FILE if path is None else path
    tables = read_toml(path)
    missing = [key for key in ("text", "budget", "bands") if not isinstance(tables.get(key), Mapping)]
    if missing:
        raise UserError(f"{path}: the table [{missing[0]}] is missing")
    return Bands(
        text=parse(Text, tables["text"], where=f"{path}: text"),
        budget=parse(Budget, tables["budget"], where=f"{path}: budget"),
        models={
            name: parse(Band, band, where=f"{path}: bands.{name}") for name, band in tables["bands"].items()
        },
    )


def check_unfinished(out: Path) -> None:
    """UserError if the folder holds a comparison all of whose runs are finished: they would be kept."""
    folder = ComparisonFolder(out)
    folder.check_usable()
    saved = folder.saved_plan()
    if saved and all((out / "runs" / label / RESULT).is_file() for label in saved["runs"]):
        raise UserError(
            f"--check-bands: {out} holds finished runs, which would be kept and not measured again: "
            "remove it, or choose another --out"
        )
