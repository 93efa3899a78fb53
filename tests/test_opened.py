"""`mixlab.open`: one object for a run, with the command line's defaults and the command line's results."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch

import mixlab
from mixlab.cli import run as mixlab_command
from mixlab.cli.generate import generate as verb
from mixlab.data import CharTokenizer
from mixlab.errors import UserError
from mixlab.model.language_model import LanguageModel
from mixlab.opened import OpenedRun

TEXT = "a text of few words, long enough to be scored\n" * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose model has weights large enough to have preferences."""
    torch.manual_seed(1)
    model = mixlab.build_model("gru", dim=16, depth=1, context=16)
    with torch.no_grad():
        model.head.weight.mul_(50)
    (tmp_path / "text.txt").write_text(TEXT)
    return mixlab.save(model, tmp_path / "run")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seed": 3, "temperature": 1.5},
        {"seed": 4, "top_k": 5},
        {"seed": 4, "top_p": 0.5},
        {"temperature": 0.0, "dtype": "float32"},
    ],
)
def test_the_text_is_that_of_the_command(
    folder: Path, settings: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    command = ["generate", str(folder), "--prompt", "a te", "--max-tokens", "40", "--json", *options]
    assert mixlab_command(command) == 0
    said = json.loads(capsys.readouterr().out)
    run = mixlab.open(folder)
    assert run.generate("a te", max_tokens=40, **settings) == said["text"]  # type: ignore[arg-type]
    stream = run.stream("a te", max_tokens=40, **settings)  # type: ignore[arg-type]
    assert "".join(stream) == said["text"]
    assert (len(stream.ids), stream.ended) == (said["tokens"], said["ended"])


def test_the_defaults_are_those_of_the_command() -> None:
    options = inspect.signature(verb).parameters
    for method in (OpenedRun.generate, OpenedRun.stream):
        defaults = {name: p.default for name, p in inspect.signature(method).parameters.items()}
        assert {name: options[name].default for name in defaults if name != "self"} == {
            name: value for name, value in defaults.items() if name != "self"
        }


def test_a_stream_draws_as_it_is_read(folder: Path) -> None:
    stream = mixlab.open(folder).stream(max_tokens=10**9)
    for _ in range(5):
        next(stream)
    assert 5 <= len(stream.ids) < 50


def test_the_model_is_read_once_when_it_is_first_used(folder: Path) -> None:
    run = mixlab.open(folder)
    (folder / "checkpoints/step-0000000/model.safetensors").rename(folder / "away")
    assert run.tokenizer.vocab_size == run.config.model.vocab_size  # type: ignore[union-attr]
    (folder / "away").rename(folder / "checkpoints/step-0000000/model.safetensors")
    assert run.model is run.model
    assert isinstance(run.model, LanguageModel)
    assert not run.model.training


def test_what_is_scored_and_drawn_from_is_the_model_as_it_is_now(folder: Path) -> None:
    run, text = mixlab.open(folder), folder.parent / "text.txt"
    before, drawn = run.evaluate(text), run.generate(max_tokens=20)
    assert before == mixlab.open(folder).evaluate([str(text)])
    assert isinstance(run.model, LanguageModel)
    with torch.no_grad():
        run.model.head.weight.zero_()
    assert run.evaluate(text).bits_per_byte == pytest.approx(8)
    assert before.bits_per_byte > 8.1
    assert run.generate(max_tokens=20) != drawn


def test_mistakes_are_one_sentence(folder: Path) -> None:
    run = mixlab.open(folder)
    with pytest.raises(UserError, match="temperature -1 is out of range"):
        run.stream("a", temperature=-1)
    with pytest.raises(UserError, match=r"a prompt is a text \(str\), got bytes"):
        run.generate(b"a")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="max-tokens -1 is out of range"):
        run.generate("a", max_tokens=-1)
    with pytest.raises(UserError, match="unknown dtype 'float64'"):
        run.generate("a", dtype="float64")
    for text in (None, 3, b"x", [3]):
        with pytest.raises(UserError, match="given by its path or a list of paths, not by"):
            run.evaluate(text)  # type: ignore[arg-type]
    for stride, sentence in (
        (0, "must be from 1 to the context, 16"),
        (2.5, "stride must be a whole number"),
    ):
        with pytest.raises(UserError, match=sentence):
            run.evaluate(folder.parent / "text.txt", stride=stride)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no file or folder"):
        run.evaluate(folder / "no.txt")
    with pytest.raises(UserError, match="no such run folder"):
        mixlab.open(folder / "no")


def test_notes_are_told_to_whom_they_are_for(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abc")
    model = mixlab.build_model("gru", dim=16, depth=1, vocab_size=tokenizer.vocab_size)
    said: list[str] = []
    mixlab.save(model, tmp_path / "run", tokenizer=tokenizer)
    mixlab.open(tmp_path / "run", notes=said.append).generate("axyb", max_tokens=1)
    assert said == [
        "2 of the prompt's characters are not in the tokenizer's vocabulary: the model reads one unknown "
        "character instead of each"
    ]
