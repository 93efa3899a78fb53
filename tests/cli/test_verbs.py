"""Each verb does its work, on a neural run and on an n-gram alike, and prints its result and nothing else."""

from __future__ import annotations

import contextlib
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import TEXT, Command, contents, settings

from mixlab.cli.train import unused

KINDS = ["neural", "ngram"]


def test_train_leaves_a_run_and_says_where(mixlab: Command, runs: Path) -> None:
    done = mixlab("train", runs / "text.txt", "--preset", "gru", "--tokens", "192", *settings())
    assert done.status == 0
    assert done.out.startswith("runs/gru  ")
    assert "bits/byte on the validation text  3 steps  192 tokens" in done.out
    assert (Path("runs/gru") / "config.toml").is_file()
    assert done.err.splitlines()[0] == "note: training gru in runs/gru"
    assert "Traceback" not in done.err


def test_train_prints_one_json_object_for_those_who_ask(mixlab: Command, runs: Path) -> None:
    done = mixlab("train", runs / "text.txt", "--preset", "ngram", "--json", "--set", "ngram.order=3")
    result = json.loads(done.out)
    assert (result["run"], result["status"]) == ("runs/ngram", "done")
    assert 0 < result["bits_per_byte"] < 8


def test_a_second_run_does_not_touch_the_first(mixlab: Command, runs: Path) -> None:
    for name in ("ngram", "ngram-2", "ngram-3"):
        assert mixlab("train", runs / "text.txt", "--preset", "ngram").out.startswith(f"runs/{name}  ")
    assert unused(Path("runs"), "ngram") == Path("runs/ngram-4")


def test_options_and_set_take_the_place_of_what_the_preset_says(mixlab: Command, runs: Path) -> None:
    mixlab("train", runs / "text.txt", "--preset", "rnn", "--steps", "1", *settings("train.seed=6"))
    written = Path("runs/rnn/config.toml").read_text()
    assert "seed = 6" in written
    assert "steps = 1" in written
    assert "text.txt" in written


def test_resume_goes_on_for_longer_when_told(mixlab: Command, runs: Path) -> None:
    done = mixlab("train", "--resume", runs / "neural", "--steps", "5", "--json")
    assert done.status == 0
    assert json.loads(done.out)["step"] == 5


def test_the_length_may_be_flops_or_epochs(mixlab: Command, runs: Path) -> None:
    flops = json.loads(mixlab("train", "--resume", runs / "neural", "--steps", "4", "--json").out)["flops"]
    longer = ("train", "--resume", runs / "neural", "--json")
    assert json.loads(mixlab(*longer, "--flops", f"{flops * 1.25:.0f}").out)["step"] == 5
    done = mixlab(*longer, "--epochs", "0.1")
    assert json.loads(done.out)["tokens"] >= 0.1 * 0.8 * len(TEXT.encode())
    assert "100%" in done.err


def test_explain_says_what_a_run_would_do_and_writes_nothing(mixlab: Command, runs: Path) -> None:
    before = contents(Path())
    command = (
        "train",
        runs / "text.txt",
        "--preset",
        "transformer",
        "--steps",
        "40",
        "--explain",
        *settings(),
    )
    done = mixlab(*command)
    assert (done.status, done.err) == (0, "")
    head, *rows = done.out.split("\n\n")[0].splitlines()
    assert head.split() == ["role", "optimizer", "tensors", "parameters", "peak", "rate", "scale", "decay"]
    assert [row.split()[0] for row in rows] == ["matrix", "embedding", "head", "gain", "all"]
    assert rows[0].split()[:3] == ["matrix", "muon", "7"]
    assert "schedule   cosine: up to 0.01 over 2 steps, then to 0" in done.out
    found = json.loads(mixlab(*command, "--json").out)
    assert found["length"]["steps"] == 40
    resumed = mixlab("train", "--resume", runs / "neural", "--explain", "--json")
    assert json.loads(resumed.out)["length"]["steps"] == 3
    assert contents(Path()) == before
    assert mixlab("train", "--preset", "ngram", "--explain").status == 2


def test_find_lr_draws_the_curve_and_leaves_no_run(mixlab: Command, runs: Path) -> None:
    before = contents(Path())
    command = ("train", runs / "text.txt", "--preset", "transformer", "--find-lr", *settings())
    done = mixlab(*command)
    assert done.status == 0
    scale, bars, mark, ticks, names, _, ended, suggested = done.out.splitlines()
    assert "nats a token at \u2581" in scale
    assert set(bars) <= set("\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588")
    assert ticks.index("|", 1) == 20  # steps a decade
    assert names.split()[:3] == ["1e-5", "1e-4", "1e-3"]
    assert ended.startswith("it ended because ")
    assert contents(Path()) == before
    found = json.loads(mixlab(*command, "--json", "--out", "drawn").out)
    assert f"try train.optimizer.lr={found['suggestion']:g}: {found['rule']}" == suggested
    place = mark.index("^")
    assert found["rates"][place] == pytest.approx(found["suggestion"], rel=0.06)
    assert len(bars) == len(found["rates"]) == len(found["losses"])
    assert found["page"] == "drawn/learning-rate.html"
    assert sorted(set(contents(Path())) - set(before)) == ["drawn/learning-rate.html"]
    assert mixlab(*command, "--explain").status == 2
    assert mixlab("train", "--preset", "ngram", "--find-lr").status == 2
    Path("mine.html").write_text("mine")
    assert mixlab(*command, "--out", "mine.html").status == 2
    assert Path("mine.html").read_text() == "mine"


def test_a_saved_config_makes_the_same_run_again(mixlab: Command, runs: Path) -> None:
    done = mixlab("train", "--preset", runs / "neural" / "config.toml", "--out", "again", "--json")
    lines = (runs / "neural" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(done.out)["bits_per_byte"] == json.loads(lines[-1])["bits_per_byte"]


@pytest.mark.parametrize("kind", KINDS)
def test_generate_continues_the_prompt_and_repeats_with_its_seed(
    mixlab: Command, runs: Path, kind: str
) -> None:
    def text(*options: str) -> str:
        done = mixlab("generate", runs / kind, "--prompt", "12 green", "--max-tokens", "40", *options)
        assert done.status == 0
        assert [line for line in done.err.splitlines() if not line.startswith("note: the model ended")] == []
        return done.out

    assert text().startswith("12 green")
    assert text("--seed", "3") == text("--seed", "3") != text("--seed", "4")


@pytest.mark.parametrize("kind", KINDS)
def test_generate_reads_the_weights_as_asked(mixlab: Command, runs: Path, kind: str) -> None:
    options = ["--prompt", "12", "--max-tokens", "9", "--dtype"]
    done = {d: mixlab("generate", runs / kind, *options, d) for d in ("auto", "float32", "float16")}
    assert all(d.status == 0 and d.out.startswith("12") for d in done.values())
    assert done["auto"].out == done["float32"].out  # a small model


@pytest.mark.parametrize("kind", KINDS)
def test_generate_gives_json(mixlab: Command, runs: Path, kind: str) -> None:
    plain = mixlab("generate", runs / kind, "--max-tokens", "20", "--prompt", "\u00e9").out
    result = json.loads(
        mixlab("generate", runs / kind, "--max-tokens", "20", "--prompt", "\u00e9", "--json").out
    )
    assert result["prompt"] == "\u00e9"
    assert result["tokens"] <= 20
    assert result["prompt"] + result["text"] + "\n" == plain


def test_generate_says_when_the_model_ended_the_document(mixlab: Command) -> None:
    lines = [json.dumps({"text": f"it is {n} o'clock."}) for n in range(200)]
    Path("clock.jsonl").write_text("\n".join(lines))
    mixlab("train", "clock.jsonl", "--preset", "ngram", "--out", "clock")
    greedy = ["generate", "clock", "--prompt", "it is 12", "--temperature", "0"]
    done = mixlab(*greedy)
    assert done.out == "it is 12 o'clock.\n"
    assert done.err == "note: the model ended the document after 9 tokens\n"
    assert json.loads(mixlab(*greedy, "--json").out)["ended"] is True
    assert json.loads(mixlab(*greedy, "--json", "--max-tokens", "9").out)["ended"] is False


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_generate_says_which_of_the_prompt_the_tokenizer_cannot_write(
    mixlab: Command, runs: Path, form: tuple[str, ...]
) -> None:
    given = (runs / "text.txt", "--preset", "ngram", "--set", "data.tokenizer=char", "--out", "letters")
    assert mixlab("train", *given).status == 0
    told = "2 of the prompt's characters are not in the tokenizer's vocabulary"
    for prompt, said in (("12 \u017cab\u0105", True), ("12 green", False)):
        done = mixlab("generate", "letters", "--prompt", prompt, "--max-tokens", "3", *form)
        assert done.status == 0
        assert (f"note: {told}" in done.err) == said
        assert "vocabulary" not in done.out


def test_generate_takes_a_checkpoint_folder(mixlab: Command, runs: Path) -> None:
    checkpoint = next((runs / "neural" / "checkpoints").iterdir())
    both = [mixlab("generate", path, "--max-tokens", "9").out for path in (checkpoint, runs / "neural")]
    assert both[0] == both[1]


def test_a_counted_model_knows_the_text_by_heart(mixlab: Command, runs: Path) -> None:
    greedy = ["--max-tokens", "29", "--temperature", "0"]
    # Bytes: the accented letter is two of the 29.
    assert mixlab("generate", runs / "ngram", "--prompt", "12 green bo", *greedy).out == (
        "12 green bottles hanging on the wall, \u00e9\n"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_prints_the_numbers_and_their_json(mixlab: Command, runs: Path, kind: str) -> None:
    done = mixlab("evaluate", runs / kind, runs / "text.txt")
    assert done.status == 0
    result: dict[str, Any] = json.loads(mixlab("evaluate", runs / kind, runs / "text.txt", "--json").out)
    assert f"bits per byte         {result['bits_per_byte']:.4f}" in done.out
    assert result["bytes"] == len(TEXT.encode()) + 1
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_token"]))
    # Byte tokens: a token is a byte, so the two measures are one.
    assert result["bits_per_byte"] == pytest.approx(result["nats_per_token"] / math.log(2))
    _, table = done.out.split("tokens before  nats per token\n")
    positions = [int(line.split()[0]) for line in table.splitlines()]
    assert positions == [2**k for k in range(len(positions))]
    assert positions[-1] == len(result["loss_by_position"])
    nats = result["nats_per_token"] * result["tokens"]
    assert (result["words"], result["lines"]) == (len(TEXT.split()), 300)
    assert result["perplexity_per_word"] == pytest.approx(math.exp(nats / result["words"]))
    assert f"{result['perplexity_per_word']:.5g} ({result['words']} words)" in done.out
    assert f"{result['perplexity_per_word_and_line_end']:.5g} (and the ends of 300 lines)" in done.out


def test_evaluate_counts_the_line_that_ends_with_its_document_and_leaves_out_words_where_are_none(
    mixlab: Command, runs: Path
) -> None:
    Path("one.txt").write_text("x y")
    assert " (2 words)\n" in (out := mixlab("evaluate", runs / "ngram", "one.txt").out)
    assert " (and the end of 1 line)\n" in out
    Path("blank.txt").write_text("\n" * 9)
    assert "per word" not in (out := mixlab("evaluate", runs / "ngram", "blank.txt").out)
    assert "with line ends" not in out and "bits per byte" in out
    result = json.loads(mixlab("evaluate", runs / "ngram", "blank.txt", "--json").out)
    assert (result["words"], result["lines"]) == (0, 9)
    assert result["perplexity_per_word"] is result["perplexity_per_word_and_line_end"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_in_overlapping_windows_and_by_document(mixlab: Command, runs: Path, kind: str) -> None:
    Path("d").mkdir()
    for name, text in (("usual.txt", TEXT[:900]), ("strange.txt", "ZQX~!" * 30), ("short.txt", "12 green")):
        Path("d", name).write_text(text, encoding="utf-8")
    plain = json.loads(mixlab("evaluate", runs / kind, "d", "--json").out)
    assert plain["stride"] == plain["context"] and "documents" not in plain
    command = ("evaluate", runs / kind, "d", "--stride", "4", "--per-document")
    found, shown = json.loads(mixlab(*command, "--json").out), mixlab(*command).out
    assert (found["stride"], found["tokens"]) == (4, plain["tokens"])
    assert found["bits_per_byte"] != plain["bits_per_byte"]
    assert found["documents"][0]["document"] == "d/strange.txt" and len(found["documents"]) == 3
    total = sum(one["bits_per_byte"] * one["bytes"] for one in found["documents"])
    assert total == pytest.approx(found["bits_per_byte"] * found["bytes"])
    assert f"4 apart: {plain['context'] - 4} tokens or more before each" in shown
    assert "one after the other" in mixlab("evaluate", runs / kind, "d").out
    rows = [line.split() for line in shown.splitlines() if line.startswith("d/")]
    assert [row[0] for row in rows] == [one["document"] for one in found["documents"]]
    wrong = mixlab("evaluate", runs / kind, "d", "--stride", plain["context"] + 1)
    assert wrong.status == 2 and "the run's context" in wrong.err


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "counted"])
def test_evaluate_gives_of_the_validation_text_what_training_recorded(
    mixlab: Command, runs: Path, kind: str
) -> None:
    run = "ngram" if kind == "counted" else kind
    if kind != "counted":
        train = ["train", runs / "text.txt", "--preset", "transformer", "--steps", "3", "--out", runs / run]
        # 40 rows at once: more than an evaluation takes when it is not told
        assert mixlab(*train, *settings(f"train.dtype={kind}", "train.batch_tokens=640")).status == 0
    Path("valid.txt").write_text(TEXT[int(0.9 * len(TEXT)) :], encoding="utf-8", newline="")
    recorded = json.loads((runs / run / "metrics.jsonl").read_text().splitlines()[-1])
    found = json.loads(mixlab("evaluate", runs / run, "valid.txt", "--json").out)
    assert found["bits_per_byte"] == recorded["bits_per_byte"]


def test_evaluate_reads_a_text_shorter_than_the_context(mixlab: Command, runs: Path) -> None:
    Path("short.txt").write_text("ab")
    done = mixlab("evaluate", runs / "neural", "short.txt", "--json")
    assert json.loads(done.out)["tokens"] == 3


def test_report_writes_one_page_for_runs_of_either_kind(mixlab: Command, runs: Path) -> None:
    done = mixlab("report", runs / "neural", runs / "ngram", "--out", "page.html", "--json")
    assert json.loads(done.out) == {"report": "page.html", "results": 2}
    page = Path("page.html").read_text(encoding="utf-8")
    assert "transformer" in page
    assert "ngram" in page


def test_report_of_one_run_lies_in_its_folder(mixlab: Command, runs: Path) -> None:
    assert mixlab("report", runs / "neural").out == f"{runs / 'neural' / 'report.html'}\n"
    assert (runs / "neural" / "report.html").is_file()


def test_parts_lists_every_part_with_its_paper_and_knobs(mixlab: Command) -> None:
    done = mixlab("parts")
    for word in ("temporal", "attention", "Vaswani et al. 2017", "heads = 0", "swiglu", "rope", "rmsnorm"):
        assert word in done.out
    listed = json.loads(mixlab("parts", "--json").out)
    assert {part["kind"] for part in listed} == {"temporal", "feature", "position", "norm"}
    attention = next(part for part in listed if part["name"] == "attention")
    assert attention["knobs"]["heads"] == 0
    assert mixlab("parts", "norm").out.startswith("norm\n")


def test_doctor_says_what_is_used_and_why(mixlab: Command) -> None:
    done = mixlab("doctor")
    assert done.status == 0
    for word in (
        "float32 matrix products",
        "bfloat16 matrix products",
        "GB/s",
        "bfloat16 is",
        "torch 2.",
        "extra 'data'",
    ):
        assert word in done.out
    result = json.loads(mixlab("doctor", "--json").out)
    assert result["machine"]["float32_flops"] > 0
    assert set(result["fast_paths"]) >= {"bfloat16", "cuda", "kernels", "threads"}
    assert result["extras"]["data"]["install"] == 'pip install "mixlab[data]"'


def test_the_extras_doctor_names_are_those_of_the_package() -> None:
    import tomllib

    from mixlab.cli.doctor import EXTRAS

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    packages = {"fla": "flash-linear-attention"}  # where a module has another name
    for name, (modules, _) in EXTRAS.items():
        required = {line.split(">")[0].split("=")[0] for line in project["optional-dependencies"][name]}
        assert {packages.get(module, module) for module in modules} <= required
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"dev"}


def test_a_resume_with_other_settings_lists_them_and_goes_on_by_force(mixlab: Command, runs: Path) -> None:
    begin = ["train", runs / "text.txt", "--preset", "transformer", "--steps", "2", "--out", "run"]
    assert mixlab(*begin, *settings()).status == 0
    other = ["train", "--resume", "run", "--steps", "3", "--seed", "7", "--batch-tokens", "128"]
    other += ["--set", "train.optimizer.lr=0.02"]
    refused = mixlab(*other)
    assert (refused.status, refused.out) == (2, "")
    for part in (
        "train.batch_tokens (64, now 128)",
        "train.optimizer.lr (0.01, now 0.02)",
        "train.seed (0, now 7)",
    ):
        assert part in refused.err
    assert "--force-config" in refused.err
    done = mixlab(*other, "--force-config", "--json")
    assert done.status == 0
    assert json.loads(done.out)["tokens"] == 2 * 64 + 128
    assert "note: going on with another config: " in done.err


@pytest.mark.parametrize(
    ("begun", "given", "kept"),
    [
        (
            ["kind=muon", "momentum=0.8", "weight_decay=0.3", "options.ns_steps=3"],
            ["kind=adamw", "eps=1e-6"],
            {"kind": "adamw", "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-6},
        ),
        (["kind=adamw"], ["kind=sgd"], {"kind": "sgd", "weight_decay": 0.0}),
        (
            ["kind=muon", "momentum=0.8"],
            ["kind=muon", "weight_decay=0.2"],
            {"kind": "muon", "weight_decay": 0.2, "momentum": 0.8, "betas": [0.9, 0.95], "eps": 1e-8},
        ),
    ],
)
def test_another_kind_of_optimizer_on_a_resume_comes_with_its_own_knobs(
    mixlab: Command, runs: Path, begun: list[str], given: list[str], kept: dict[str, object]
) -> None:
    begin = ["train", runs / "text.txt", "--preset", "transformer", "--steps", "2", "--out", "run"]
    assert mixlab(*begin, *settings(*(f"train.optimizer.{knob}" for knob in begun))).status == 0
    other = [word for knob in given for word in ("--set", f"train.optimizer.{knob}")]
    done = mixlab("train", "--resume", "run", "--steps", "3", *other, "--force-config")
    assert done.status == 0, done.err
    optimizer = tomllib.loads(Path("run/config.toml").read_text())["train"]["optimizer"]
    shared = {"lr": 0.01, "clip": 1.0, "lr_scale": {}, "decay": {}, "options": {}}
    assert optimizer == shared | kept


def test_another_tokenizer_is_refused_even_by_force(mixlab: Command, runs: Path) -> None:
    other = ["train", "--resume", runs / "neural", "--steps", "9", "--set", "data.tokenizer=char"]
    for force in ([], ["--force-config"]):
        done = mixlab(*other, *force)
        assert (done.status, done.out) == (2, "")
        assert "data.tokenizer (byte, now char)" in done.err
        assert "--force-config" not in done.err


def test_force_is_for_a_resume_and_an_ngram_has_no_length(mixlab: Command, runs: Path) -> None:
    done = mixlab("train", runs / "text.txt", "--preset", "ngram", "--force-config")
    assert (done.status, "--force-config is for --resume" in done.err) == (2, True)
    done = mixlab("train", "--resume", runs / "ngram", "--steps", "9")
    assert (done.status, "counts its text once: leave out --steps" in done.err) == (2, True)
    again = mixlab("train", "--resume", runs / "ngram")
    assert again.status == 0


def test_sinks_are_chosen_on_the_command_line_also_for_a_resume(
    mixlab: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixlab.config import read_toml
    from mixlab.train import sinks

    asked: list[str] = []
    monkeypatch.setattr(sinks, "check", lambda name: asked.append(name))
    monkeypatch.setattr(sinks.Sinks, "open", lambda self, *start: contextlib.nullcontext())
    train = ["train", runs / "text.txt", "--preset", "gru", "--steps", "2", "--out", "run", *settings()]
    assert mixlab(*train, "--sink", "wandb", "--sink", "tensorboard").status == 0
    assert asked == ["wandb", "tensorboard"]
    assert read_toml("run/config.toml")["train"]["sinks"] == asked
    assert mixlab("train", "--resume", "run", "--steps", "3").status == 0
    assert asked == ["wandb", "tensorboard"] * 2
    again = ["train", "--resume", "run", "--steps", "4", "--sink", "trackio", "--sinks-optional"]
    assert mixlab(*again).status == 0
    assert asked[4:] == ["trackio"]
    saved = read_toml("run/config.toml")["train"]
    assert (saved["sinks"], saved["sinks_optional"]) == (["trackio"], True)
