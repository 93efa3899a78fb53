"""A sweep in one command: what is run under which name, what is refused, and what the terminal says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixlab.cli import run
from mixlab.cli.comparison import print_sweeps
from mixlab.compare.plan import Plan, make_plan
from mixlab.compare.request import Request
from mixlab.config import load_run_config, to_mapping
from mixlab.errors import UserError
from mixlab.report import grid
from mixlab.report.view import clean, group


def plan_of(*swept: str, models: tuple[str, ...] = ("gru",), **request: Any) -> Plan:
    asked = Request(models=models, params=60_000, context=32, batch_size=4, grid=swept, **request)
    return make_plan(asked.validate(), vocab_size=256, steps=30)


def test_each_model_is_run_at_each_point_of_the_product_at_the_same_parameters() -> None:
    plan = plan_of("train.optimizer.lr=0.01,2e-2", "model.depth=1,2", seeds=2)
    assert [entry.label for entry in plan.entries[::2]] == [
        "gru-lr=0.01-depth=1-seed0",
        "gru-lr=0.01-depth=2-seed0",
        "gru-lr=2e-2-depth=1-seed0",
        "gru-lr=2e-2-depth=2-seed0",
    ]
    assert plan.entries[3].label == "gru-lr=0.01-depth=2-seed1"
    last = plan.entries[-1]
    assert last.facts() == {
        "model": "gru[lr=2e-2,depth=2]",
        "kind": "neural",
        "base": "gru",
        "grid": {"train.optimizer.lr": 0.02, "model.depth": 2},
    }
    assert last.config.model is not None
    assert (last.config.train.optimizer.lr, last.config.model.depth) == (0.02, 2)
    widths = {entry.config.model.dim for entry in plan.entries if entry.config.model}
    assert len(widths) == 2  # narrower where it is deeper


def test_an_ngram_is_swept_over_its_own_keys_alone_and_a_neural_model_over_its_own() -> None:
    plan = plan_of("ngram.order=2,3", "model.depth=1,2", models=("ngram", "gru"))
    assert [entry.name for entry in plan.entries] == [
        "ngram[order=2] (all of the text)",
        "ngram[order=2] (same text)",
        "ngram[order=3] (all of the text)",
        "ngram[order=3] (same text)",
        "gru[depth=1]",
        "gru[depth=2]",
    ]
    assert [entry.config.ngram.order for entry in plan.entries if entry.config.ngram] == [2, 2, 3, 3]


def test_values_are_toml_and_a_folders_name_holds_none_of_its_signs() -> None:
    plan = plan_of(
        'model.temporal={kind = "attention", heads = 2},["gru", "attention"],lstm', "model.position=none"
    )
    assert [entry.grid["model.temporal"] for entry in plan.entries] == [
        {"kind": "attention", "heads": 2},
        ["gru", "attention"],
        "lstm",
    ]
    assert [entry.label for entry in plan.entries] == [
        "gru-temporal=kind=-attention-heads=2-position=none-seed0",
        "gru-temporal=gru-attention-position=none-seed0",
        "gru-temporal=lstm-position=none-seed0",
    ]


def test_names_tell_keys_with_the_same_last_word_apart() -> None:
    plan = plan_of("train.optimizer.kind=adamw", "train.schedule.kind=constant")
    assert plan.entries[0].name == "gru[optimizer.kind=adamw,schedule.kind=constant]"


@pytest.mark.parametrize(
    ("swept", "changed", "sentence"),
    [
        (("train.optimizer.lr",), {}, r"--grid train\.optimizer\.lr: write KEY=V1,V2, such as"),
        (("train.optimizer.lr=1,,2",), {}, "write KEY=V1,V2"),
        (("model.depth=1,2,1",), {}, r"--grid model\.depth: 1 is listed twice"),
        (("model.depth=1", "model.depth=2"), {}, r"--grid model\.depth is given twice"),
        (("model.depth=1",), {"overrides": ("model.depth=2",)}, "--set gives that key one value"),
        (("model.dim=8,16",), {}, r"--grid model\.dim: it is the same for all models; the parameter budget"),
        (("data.tokenizer=byte,char",), {}, "the text is the same for all models"),
        (("train.eval_every=1,2",), {}, "not what it learns"),
        (("lr=1,2",), {}, r"a swept key begins with model\., train\., ngram\."),
        (("ngram.order=2,3",), {}, r"none of the models has a \[ngram\] section"),
        (("model.dept=1,2",), {}, "did you mean 'depth'"),
        (("train.seed=1,2",), {}, "use --seeds"),
        (
            (f"model.depth={','.join(map(str, range(1, 103)))}",),
            {"seeds": 2},
            "come to 204 runs, more than 200",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused_in_a_sentence(
    swept: tuple[str, ...], changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        plan_of(*swept, **changed)


def test_a_sweep_has_no_bands(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["compare", "--check-bands", "--models", "gru", "--grid", "model.depth=1,2"]) == 2
    assert "--grid would make another comparison" in capsys.readouterr().err


def swept(*losses: tuple[float, ...], values: tuple[Any, ...] = (0.01, 0.02, 0.04)) -> dict[str, Any]:
    """A comparison of gru over learning rates; `losses` by value, each with those of its seeds."""
    results = [
        {
            "model": f"gru[lr={value}]",
            "base": "gru",
            "grid": {"lr": value},
            "kind": "neural",
            "seed": seed,
            "status": "done",
            "bits_per_byte": loss,
        }
        for value, seeds in zip(values, losses, strict=True)
        for seed, loss in enumerate(seeds)
    ]
    return {"grid": {"keys": {"lr": list(values)}}, "results": results, "budget": {"context": 8}}


def test_the_terminal_shows_the_loss_at_each_value_with_the_best_marked(capsys) -> None:
    print_sweeps(swept((2.5,), (2.25,), (2.75,)))
    assert capsys.readouterr().out.splitlines() == [
        "gru:",
        "    lr    bits/byte",
        "    0.01      2.500",
        "    0.02      2.250  best",
        "    0.04      2.750",
        "",
    ]
    print_sweeps({"results": [], "budget": {}})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (((2.5,), (2.25,), (2.75,)), None),
        (
            ((2.5,), (2.4,), (2.3,)),
            "0.04, is the largest that was tried: extend the sweep beyond it, a larger",
        ),
        (
            ((2.2,), (2.4,), (2.3,)),
            "0.01, is the smallest that was tried: extend the sweep beyond it, a smaller",
        ),
        (
            ((2.5, 2.5), (2.41, 2.42), (2.40, 2.415)),
            "0.04, is the largest that was tried, but 2 seeds do not separate",
        ),
        (((2.5, 2.5), (2.41, 2.42), (2.30, 2.31)), "0.04, is the largest that was tried: extend"),
    ],
)
def test_a_best_value_at_the_edge_is_named_unless_the_seeds_cannot_tell(losses, said: str | None) -> None:
    data = clean(swept(*losses))
    found = grid.warnings(data, group(data))
    assert found == [] if said is None else said in found[0]


@pytest.mark.parametrize(
    ("model", "key", "values", "losses", "beyond"),
    [
        ("transformer", "model.dropout", (0, 0.1), (2.2, 2.3), ""),  # no probability is below 0
        ("transformer", "model.dropout", (0.1, 0.2), (2.2, 2.3), "a smaller one may be better"),
        ("transformer", "model.dropout", (0.5, 0.9), (2.3, 2.2), "a larger one may be better"),
        ("gru", "model.depth", (1, 2), (2.2, 2.3), ""),
        ("gru", "model.depth", (2, 4), (2.2, 2.3), "a smaller one may be better"),
        ("transformer", "model.temporal.heads", (2, 4), (2.3, 2.2), "a larger one may be better"),
        ("gru", "train.threads", (1, 2), (2.2, 2.2), ""),  # a tie
        ("gru", "train.optimizer.lr", (0.01, 0.02, 0.04), (2.5, 2.2001, 2.2), ""),
        ("gru", "train.optimizer.kind", ("adamw", "muon"), (2.5, 2.2), ""),
        ("ngram", "ngram.order", (1, 2), (2.2, 2.3), ""),
        ("ngram", "ngram.order", (2, 3), (2.3, 2.2), "a larger one may be better."),
    ],
)
def test_only_values_that_the_key_allows_are_proposed(model, key, values, losses, beyond: str) -> None:
    horizon = () if model == "ngram" else ("train.steps=1",)
    results = [
        {
            "model": f"{model}[{value}]",
            "base": model,
            "grid": {key: value},
            "kind": "baseline" if model == "ngram" else "neural",
            "bits_per_byte": loss,
            "config": to_mapping(load_run_config(model, (f"{key}={value}", *horizon))),
        }
        for value, loss in zip(values, losses, strict=True)
    ]
    data = clean({"grid": {"keys": {key: list(values)}}, "results": results})
    found = grid.warnings(data, group(data))
    assert (beyond in found[0]) if beyond else found == []
    assert ("one seed" in "".join(found)) == (model != "ngram" and bool(beyond))


def test_no_value_is_the_best_where_several_reach_the_same_loss(capsys) -> None:
    data = swept((2.5,), (2.2501,), (2.25,))
    print_sweeps(data)
    assert "best" not in capsys.readouterr().out
    (figure,) = grid.figures(data, group(clean(data)))
    assert figure.reading == "gru reaches the same loss at 0.02 and 0.04 (2.250 bits per byte)."


def test_patterns_are_values_too() -> None:
    data = clean(swept((2.5,), (2.25,), values=(["gru", "attention"], "lstm")))
    assert len(grid.figures(data, group(data))) == 1
    assert grid.warnings(data, group(data)) == []


def test_a_sweep_is_run_and_its_results_say_what_was_swept(text: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(text.parent)
    assert (
        run(["compare", "text.txt", "--models", "ngram", "--grid", "ngram.order=2,3", "--context", "16"]) == 0
    )
    said = capsys.readouterr().out
    assert "ngram.order  bits/byte" in said
    comparison = json.loads(Path("comparison/comparison.json").read_text(encoding="utf-8"))
    assert comparison["grid"] == {"keys": {"ngram.order": [2, 3]}}
    assert [(r["model"], r["base"], r["grid"]) for r in comparison["results"]] == [
        ("ngram[order=2]", "ngram", {"ngram.order": 2}),
        ("ngram[order=3]", "ngram", {"ngram.order": 3}),
    ]
    assert Path("comparison/runs/ngram-order=3-seed0/result.json").is_file()
