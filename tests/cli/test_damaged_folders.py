"""Files of a run and of a comparison, damaged: each verb works or says one sentence."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli import damage
from tests.cli.conftest import TEXT, Command, settings

import mixlab as package
from mixlab.compare import worker
from mixlab.data.tokenizer import ByteTokenizer
from mixlab.errors import UserError

Verb = Callable[[Path], None]

FILES = ["config.toml", "environment.json", "data.json", "tokenizer.json", "metrics.jsonl"]
OF_CHECKPOINT = ["manifest.json", "training.json", "model.safetensors", "training.safetensors"]
STEP = "checkpoints/step-0000003"
OF_COMPARISON = ["plan.json", "comparison.json", "runs/ngram-seed0/result.json"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT[:3000], encoding="utf-8")
    return path


@pytest.fixture
def verbs(mixlab: Command, text: Path) -> dict[str, Verb]:
    """Each reads a run; an exception that is no UserError comes out."""

    def command(*arguments: Any) -> None:
        done = mixlab(*arguments)
        said = [line for line in done.err.splitlines() if line.startswith("mixlab: ")]
        assert done.status in (0, 1, 2)
        assert len(said) == (done.status != 0), done.err
        if said:
            assert len(said[0]) < 1000 and done.err.endswith(f"{said[0]}\n"), done.err

    def load(run: Path) -> None:
        try:
            package.load(run, notes=lambda message: None)
        except UserError as error:
            assert str(error) and "\n" not in str(error)

    return {
        "load": load,
        "generate": lambda run: command("generate", run, "--max-tokens", "2"),
        "evaluate": lambda run: command("evaluate", run, text),
        "report": lambda run: command("report", run),
        "resume": lambda run: command("train", "--resume", run),
        "compare": lambda out: command(*comparison(text, out)),
    }


def comparison(text: Path, out: Path) -> list[Any]:
    return ["compare", text, "--models", "ngram", "--steps", "2", "--context", "16", "--out", out]


def in_this_process(job: Mapping[str, Any], *, progress: Callable[..., None], **_: Any) -> Any:
    """What a worker of a comparison does, without its process."""
    try:
        return worker.work(job, progress)  # type: ignore[arg-type]
    except UserError as error:
        return {"kind": "failed", "reason": str(error)}


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixlab.compare.runner.run_job", in_this_process)


@pytest.fixture
def trained(mixlab: Command, text: Path, tmp_path: Path) -> Path:
    bpe = ["data.tokenizer=bpe", "data.vocab_size=300", "train.eval_every=2"]
    run = tmp_path / "whole"
    assert mixlab("train", text, "--preset", "gru", "--steps", "3", "--out", run, *settings(*bpe)).status == 0
    return run


@pytest.fixture
def counted(mixlab: Command, text: Path, tmp_path: Path) -> Path:
    assert mixlab(*comparison(text, tmp_path / "compared")).status == 0
    return tmp_path / "compared"


def each(folder: Path, names: list[str], verbs: Mapping[str, Verb], wanted: list[str]) -> int:
    """Damage every file in every other way, and try one verb after the other, in turn; returns how many."""
    draw, tried = random.Random(0), 0
    for first, name in enumerate(names):
        for number, happens in enumerate(damage.all_of(Path(name))[first % 2 :: 2]):
            run = damage.fresh(folder, folder.with_name("copy"))
            happens(run / name, draw)
            tried_on(run, verbs, wanted[(number + len(name)) % len(wanted)], f"{name}, {happens.__name__}")
            tried += 1
    return tried


def tried_on(run: Path, verbs: Mapping[str, Verb], verb: str, what: str) -> None:
    try:
        verbs[verb](run)
    except Exception as error:
        raise AssertionError(f"{verb}: {what}: {error!r}") from error


def test_a_run_folder(trained: Path, verbs: dict[str, Verb]) -> None:
    assert each(trained, FILES, verbs, ["load", "resume", "evaluate", "report"]) > 35


def test_a_checkpoint(trained: Path, verbs: dict[str, Verb]) -> None:
    assert each(trained, [f"{STEP}/{name}" for name in OF_CHECKPOINT], verbs, ["load", "resume"]) > 20


def test_a_checkpoint_whose_manifest_agrees_with_the_damage(trained: Path, verbs: dict[str, Verb]) -> None:
    draw, whole = random.Random(0), dict(load_file(trained / STEP / "model.safetensors"))
    shapes: list[dict[str, torch.Tensor]] = [
        {name: t.T.contiguous() if t.dim() == 2 else t for name, t in whole.items()},
        {name: t.to(torch.int64) for name, t in whole.items()},
        {name: t for name, t in whole.items() if "norm" not in name},
        {**whole, "another": torch.zeros(3)},
        {name: t * torch.nan for name, t in whole.items()},
        {},
    ]
    for number in range(len(shapes) + 8):
        run = damage.fresh(trained, trained.with_name("copy"))
        if number < len(shapes):
            save_file(shapes[number], run / STEP / "model.safetensors")
        else:
            damage.swapped(run / STEP / "training.json", draw)
        damage.seal(run / STEP)
        for verb in ("load", "resume"):
            tried_on(run, verbs, verb, f"sealed {number}")
        if number < len(shapes):
            with pytest.raises(UserError):
                package.load(run)


def test_what_lies_beside_checkpoints_is_none(trained: Path, verbs: dict[str, Verb]) -> None:
    checkpoints = trained / "checkpoints"
    for name in ("step-\u00b2", "step-", "step--1", "step-1e3", f"step-{'9' * 250}", "notes", ".hidden"):
        (checkpoints / name).mkdir()
    (checkpoints / "step-0000009").write_text("a file")
    (checkpoints / "step-0000010").symlink_to(checkpoints / "step-0000010")
    for verb in ("load", "generate", "resume", "report"):
        tried_on(trained, verbs, verb, "foreign folders")
    assert package.load(trained) is not None
    shutil.rmtree(checkpoints)
    for make in (checkpoints.touch, lambda: checkpoints.symlink_to(checkpoints)):
        make()
        for verb in ("load", "resume"):
            tried_on(trained, verbs, verb, "no folder of checkpoints")
        checkpoints.unlink()


def test_a_comparison(counted: Path, verbs: dict[str, Verb]) -> None:
    assert each(counted, OF_COMPARISON, verbs, ["compare", "report"]) > 20


def test_a_tokenizer_of_another_size_than_the_models_vocabulary(trained: Path) -> None:
    """Where the checkpoint is of a mixlab that did not note which tokenizer was its own."""
    scalars = trained / STEP / "training.json"
    kept = json.loads(scalars.read_text())
    del kept["tokenizer"]
    scalars.write_text(json.dumps(kept))
    damage.seal(trained / STEP)
    assert package.load(trained).vocab_size == 300
    ByteTokenizer().save(trained)
    with pytest.raises(UserError, match=r"tokenizer\.json has 256 tokens and the model of .* 300"):
        package.load(trained)
