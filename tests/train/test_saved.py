"""`mixlab.save` makes a run folder of a model of one's own, and every verb reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mixlab
from mixlab.cli import run as mixlab_command
from mixlab.data import CharTokenizer
from mixlab.errors import UserError
from mixlab.model.language_model import LanguageModel
from mixlab.model.ngram import NGram
from mixlab.train import read_metrics

Model = LanguageModel | NGram
WORDS = "what comes next is the next word of what comes"


@pytest.fixture
def neural() -> LanguageModel:
    return mixlab.build_model("gru", dim=16, depth=1, context=16, vocab_size=256)


@pytest.fixture
def counted() -> NGram:
    return mixlab.NGram.train(list(WORDS.encode()), order=3, vocab_size=256)


@pytest.fixture(params=["neural", "counted"])
def model(request: pytest.FixtureRequest) -> Model:
    return request.getfixturevalue(request.param)


def test_what_is_saved_is_what_is_read(model: Model, tmp_path: Path) -> None:
    folder = mixlab.save(model, tmp_path / "mine")
    assert folder == tmp_path / "mine"
    tokens = torch.tensor([[1, 2, 3, 255]])
    assert torch.equal(mixlab.load(folder)(tokens).logits, model(tokens).logits)
    opened = mixlab.open(folder)
    assert opened.config.name == "mine"
    assert opened.tokenizer.kind == "byte"
    assert [line["kind"] for line in read_metrics(folder / "metrics.jsonl")] == ["end"]


def test_a_model_in_bfloat16_or_with_a_tied_head_is_read_back(tmp_path: Path) -> None:
    model = mixlab.build_model("llama", dim=16, depth=1, context=16, tied=True).bfloat16()
    loaded = mixlab.load(mixlab.save(model, tmp_path / "mine"))
    assert isinstance(loaded, LanguageModel)
    assert loaded.head.weight is loaded.embedding.weight
    assert torch.equal(loaded.head.weight.bfloat16(), model.head.weight)


def test_every_verb_reads_it(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(WORDS)
    folder = mixlab.save(model, tmp_path / "mine")
    assert mixlab_command(["generate", str(folder), "--max-tokens", "5", "--seed", "1", "--json"]) == 0
    opened = mixlab.open(folder)
    assert json.loads(capsys.readouterr().out)["text"] == opened.generate(max_tokens=5, seed=1)
    assert mixlab_command(["evaluate", str(folder), str(tmp_path / "text.txt"), "--json"]) == 0
    bits = json.loads(capsys.readouterr().out)["bits_per_byte"]
    assert bits == opened.evaluate(tmp_path / "text.txt").bits_per_byte
    assert mixlab_command(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "saved from Python: no text is recorded" in page
    for untrue in ("corpus:python", "whole training text", "batch_tokens"):
        assert untrue not in page.partition("<body")[2].replace("Plotly", "")


@pytest.mark.parametrize("more", [[], ["--explain"], ["--steps", "5"]])
def test_it_has_nothing_to_resume(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    folder = mixlab.save(model, tmp_path / "mine")
    assert mixlab_command(["train", "--resume", str(folder), *more]) == 2
    assert "mine was saved from Python: it holds a model, but no text and no optimizer state" in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match="no text and no optimizer state to resume with"):
        mixlab.train.train(mixlab.open(folder).config, folder, resume=True)


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(WORDS)
    model = mixlab.build_model({"vocab_size": tokenizer.vocab_size, "dim": 16, "depth": 1, "context": 16})
    opened = mixlab.open(mixlab.save(model, tmp_path / "mine", tokenizer=tokenizer))
    assert opened.tokenizer.hash == tokenizer.hash
    assert set(opened.generate(max_tokens=30)) <= {*WORDS, "\ufffd"}


def test_what_cannot_be_saved_is_one_sentence(neural: LanguageModel, tmp_path: Path) -> None:
    odd = mixlab.build_model("gru", dim=16, depth=1, vocab_size=19)
    diverged, altered, wrapped = (mixlab.build_model("gru", dim=16, depth=1) for _ in range(3))
    with torch.no_grad():
        diverged.norm.gain[3] = torch.nan
    altered.head = torch.nn.Linear(16, 300)
    with torch.device("meta"):
        hollow = mixlab.build_model("gru", dim=16, depth=1)
    cases: list[tuple[Callable[[Path], object], str]] = [
        (
            lambda path: mixlab.save(odd, path),
            "a vocabulary of 19 is saved with its tokenizer: give tokenizer=",
        ),
        (
            lambda path: mixlab.save(neural, path, tokenizer=CharTokenizer("ab")),
            "the tokenizer has 4 tokens and the model a vocabulary of 256: give the one",
        ),
        *(
            (lambda path, wrong=wrong: mixlab.save(neural, path, tokenizer=wrong), f"tokenizer: .*got {said}")
            for wrong, said in (("byte", "'byte'"), (CharTokenizer, "<class"), (open, "builtin_function"))
        ),
        (lambda path: mixlab.save(hollow, path), "on the meta device"),
        (lambda path: mixlab.save(diverged, path), "parameter norm.gain is not finite"),
        (lambda path: mixlab.save(altered, path), "not what its config says, .*: head.bias has the shape"),
        (
            lambda path: mixlab.save(torch.nn.Sequential(wrapped), path),  # type: ignore[arg-type]
            "save takes a LanguageModel or an NGram, got Sequential",
        ),
    ]
    for save, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            save(tmp_path / "mine")
        assert not (tmp_path / "mine").exists()
    with pytest.raises(UserError, match="saved to the path of a folder, not to int"):
        mixlab.save(neural, 3)  # type: ignore[arg-type]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop: too many levels of symbolic links"):
        mixlab.save(neural, tmp_path / "loop")


def test_a_folder_that_holds_something_is_left_as_it_is(neural: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"taken holds other files \(notes.txt\)"):
        mixlab.save(neural, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]
    mixlab.save(neural, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="run already holds a run"):
        mixlab.save(neural, tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
