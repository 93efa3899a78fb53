"""Bands of expected losses: what is inside, what is outside, and what cannot be checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench.bands import COUNTED, NEURAL, made_from, to_toml

from mixlab.cli import run
from mixlab.compare.bands import FILE, Band, Bands, Budget, Text, read_bands
from mixlab.compare.request import Request
from mixlab.config import preset_names
from mixlab.data import prepare
from mixlab.data.config import DataConfig
from mixlab.errors import UserError
from tests.compare.conftest import TEXT

BUDGET = Budget(params=100_000, steps=4, context=16, batch_size=2)
TINY = ["--budget", "100k", "--steps", "4", "--context", "16", "--batch-size", "2"]
WIDE, LOW = Band(expected=4.0, low=0.01, high=8.0), Band(expected=0.002, low=0.001, high=0.003)

UNBUILDABLE = """
from mixlab.parts.contract import register
from mixlab.parts.temporal.window import Window

@register("temporal", "unfinished")
class Unfinished(Window):
    def __init__(self, config, place):
        raise LookupError("no such table")
"""


def result(model: str, loss: float | None, status: str = "done", **more: Any) -> dict[str, Any]:
    return {"model": model, "seed": 0, "status": status, "bits_per_byte": loss, "config": {}, **more}


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the tests' text, prepared."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return prepare(DataConfig(sources=(str(path),)), context=16).facts


@pytest.fixture
def bands(facts: dict[str, Any]) -> Bands:
    """Of the tests' text and budget: counting is inside, a transformer cannot be."""
    marks = {key: facts[key] for key in ("sha256", "train_tokens", "valid_tokens")}
    return Bands(
        text=Text(python="3.0.0", **marks), budget=BUDGET, models={"ngram": WIDE, "transformer": LOW}
    )


@pytest.fixture
def folder(bands: Bands, text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with text.txt in it, while the bands are those of the fixture."""
    path = text.parent / "own.toml"
    path.write_text(to_toml(bands), encoding="utf-8")
    monkeypatch.setattr("mixlab.compare.bands.FILE", path)
    monkeypatch.chdir(text.parent)
    return text.parent


def check(*arguments: str) -> int:
    return run(["compare", "text.txt", "--check-bands", *TINY, *arguments])


def test_the_ends_of_a_band_are_inside_and_a_loss_that_is_no_number_is_not(bands: Bands) -> None:
    bands = replace(bands, models={"gru": Band(expected=2.0, low=1.9, high=2.1)})
    losses = (1.9, 2.1, 1.899, 2.101, None)
    verdicts = bands.verdicts({"results": [result("gru", loss) for loss in losses]}, ("gru",))
    assert [one.verdict for one in verdicts] == ["inside", "inside", "outside", "outside", "outside"]


def test_a_failed_model_is_failed_and_a_file_of_a_presets_name_has_no_band(bands: Bands) -> None:
    results = [result("transformer", None, "failed"), result("ngram", 2.0), result("gru", 2.0)]
    verdicts = bands.verdicts({"results": results}, ("transformer", "mine/ngram.toml", "gru"))
    assert [one.verdict for one in verdicts] == ["failed", "no band", "no band"]


def test_outside_failed_or_without_a_band_each_is_said_and_ends_with_status_1(folder: Path, capsys) -> None:
    (folder / "unfinished.py").write_text(UNBUILDABLE, encoding="utf-8")
    (folder / "unfinished.toml").write_text(
        '[model]\ntemporal = "unfinished"\n[train]\nsteps = 1\n', encoding="utf-8"
    )
    (folder / "mine.toml").write_text("[ngram]\norder = 2\n", encoding="utf-8")
    models = "ngram,transformer,mine.toml,unfinished.toml"
    assert check("--models", models, "--import", "unfinished.py") == 1
    said = capsys.readouterr()
    table = said.out[said.out.index("expected") :].splitlines()[1:]
    assert [(line.split()[0], line.split("  ")[-1].strip()) for line in table] == [
        ("ngram", "inside"),
        ("transformer", "outside"),
        ("mine", "no band"),
        ("unfinished", "failed"),
    ]
    assert said.err.splitlines()[-1] == (
        "mixlab: 1 of 4 losses is outside its band (transformer); "
        "1 of 6 runs failed (unfinished); the same command tries them again"
    )


def test_all_inside_ends_with_status_0_and_is_not_passed_off_as_a_second_check(folder: Path, capsys) -> None:
    assert check("--models", "ngram", "--json") == 0
    (verdict,) = json.loads(capsys.readouterr().out)["bands"]
    assert (verdict["model"], verdict["verdict"]) == ("ngram", "inside")
    assert verdict["band"] == {"expected": 4.0, "low": 0.01, "high": 8.0}
    assert verdict["band"]["low"] < verdict["measured"] < verdict["band"]["high"]
    assert (folder / "comparison-bands" / "report.html").exists()

    assert check("--models", "ngram") == 2
    said = capsys.readouterr()
    assert "comparison-bands holds finished runs, which would be kept and not measured again" in said.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--budget", "30k"], "--budget"),
        (["--steps", "5"], "--steps"),
        (["--context", "32"], "--context"),
        (["--batch-size", "4"], "--batch-size"),
        (["--seeds", "2"], "--seeds"),
        (["--tokenizer", "char"], "--tokenizer"),
        (["--valid", "text.txt"], "--valid"),
        (["--encoding", "cp1251"], "--encoding"),
        (["--set", "train.optimizer.lr=0.1"], "--set"),
        (["--set", "data.valid_fraction=0.2"], "--set"),
        (["--context", "32", "--seeds", "2"], "--context and --seeds"),
        (["-"], "the text '-'"),
    ],
)
def test_another_budget_is_refused_with_the_options_that_make_it_one(
    folder: Path, arguments: list[str], named: str, capsys
) -> None:
    before = sorted(folder.rglob("*"))
    assert check(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mixlab: --check-bands: {named} would make another comparison than the bands")
    assert "100,000 parameters, 4 steps of 2 rows of 16 bytes, one seed" in line
    assert sorted(folder.rglob("*")) == before


def test_tokens_that_come_to_the_same_steps_are_the_same_budget(bands: Bands) -> None:
    shared = {"models": ("ngram",), "params": 100_000, "context": 16, "batch_size": 2}
    bands.check_request(Request(**shared, tokens=127).validate())
    for length in ({"tokens": 129}, {"minutes": 1.0}, {}):
        with pytest.raises(UserError, match="--tokens would|--minutes would"):
            bands.check_request(Request(**shared, **length).validate())


def test_another_text_is_refused(folder: Path, capsys) -> None:
    (folder / "text.txt").write_text(TEXT + "one line more\n", encoding="utf-8")
    assert check() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the bands hold for corpus:python of Python 3.0.0 (sha256 " in line
    assert "and this is text.txt (sha256 " in line
    assert line.endswith(": leave the text out")
    assert not (folder / "comparison-bands").exists()


def test_another_python_is_named(bands: Bands, facts: dict[str, Any]) -> None:
    other = {**facts, "sha256": "0123456789abcdef", "sources": ["corpus:python"], "python": "3.12.1"}
    with pytest.raises(
        UserError, match=r"this is corpus:python of Python 3\.12\.1 \(sha256 0123456789ab\): use"
    ):
        bands.check_text(other)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("[text]\n", r"the table \[budget\] is missing"),
        ("low = 8.0", r"bands\.ngram: .*is not between 8\.0 and"),
        ("lo = 0.0", r"bands\.ngram\.lo: unknown key; did you mean 'low'\?"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(
    bands: Bands, tmp_path: Path, broken: str, sentence: str
) -> None:
    path = tmp_path / "bands.toml"
    text = to_toml(bands)
    path.write_text(broken if broken.startswith("[") else text.replace("low = 0.010", broken, 1))
    with pytest.raises(UserError, match=sentence):
        read_bands(path)


def test_the_bands_that_come_with_mixlab_are_of_presets_in_the_default_comparison() -> None:
    bands = read_bands(FILE)
    bands.check_request(Request(models=("ngram",)).validate())
    assert set(bands.models) <= set(preset_names())
    for name, band in bands.models.items():
        half = COUNTED if name == "ngram" else NEURAL
        assert (band.low, band.high) == pytest.approx((band.expected - half, band.expected + half), abs=1e-9)


def test_a_comparison_becomes_bands_beside_those_of_the_same_text_and_budget(
    folder: Path, bands: Bands
) -> None:
    corpus = {**vars(bands.text), "sources": ["corpus:python"]}
    done = [result("gru", 2.34567), result("lstm", None, "failed"), result("mine", 2.0)]
    made = made_from({"corpus": corpus, "budget": vars(BUDGET), "results": done})
    assert made.models == {
        "ngram": WIDE,
        "gru": Band(expected=2.346, low=2.266, high=2.426),
        "transformer": LOW,
    }
    other = made_from({"corpus": corpus, "budget": {**vars(BUDGET), "steps": 5}, "results": done})
    assert list(other.models) == ["gru"]
