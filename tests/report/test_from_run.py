from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixlab.errors import UserError
from mixlab.report import from_run, render
from mixlab.train.folder import RunFolder

CONFIG = """
name = "gru"
[model]
vocab_size = 256
dim = 32
depth = 2
context = 64
temporal = "gru"
[train]
seed = 3
batch_size = 4
steps = 40
"""


def step(n: int) -> dict:
    return {
        "kind": "step",
        "step": n,
        "tokens": 256 * n,
        "seconds": n / 2,
        "flops": 1e6 * n,
        "loss": 4 - n / 50,
    }


def evaluation(n: int, value: float) -> dict:
    at = {"tokens": 256 * n, "seconds": n / 2, "flops": 1e6 * n}
    return {"kind": "eval", "step": n, **at, "bits_per_byte": value, "loss_by_position": [3.0, value]}


def run(folder: Path, lines: list[dict], config: str = CONFIG, torn: str = "") -> Path:
    (folder / "config.toml").write_text(config)
    (folder / "data.json").write_text(json.dumps({"valid_bytes": 10, "valid_tokens": 10}))
    (folder / "environment.json").write_text(json.dumps({"cores": 2}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    return folder


def test_a_run_becomes_a_comparison_of_one(tmp_path: Path):
    lines = [
        *(step(n) for n in range(1, 41)),
        evaluation(20, 2.5),
        evaluation(40, 2.6),
        {"kind": "end", "status": "done"},
    ]
    data = from_run(run(tmp_path, lines))
    (result,) = data["results"]
    assert (result["model"], result["seed"], result["status"]) == ("gru", 3, "done")
    assert result["bits_per_byte"] == 2.5 and result["loss_by_position"] == [
        3.0,
        2.5,
    ]  # the best evaluation's
    assert result["tokens_per_second"] == 512 and result["seconds"] == 20
    assert len(result["curve"]) == 40 and len(result["evals"]) == 2
    assert data["budget"]["context"] == 64 and data["budget"]["tokens"] == 256 * 40
    assert data["corpus"]["valid_bytes"] == 10 and data["environment"] == {"cores": 2}
    json.dumps(data, allow_nan=False)
    html = render(data)
    assert "gru reaches 2.500 bits per byte at step 20, after 5,120 tokens in 10.0 s." in html
    assert "its loss is that of step 20" in html
    assert 'data-figure="loss-tokens"' in html and 'data-figure="components-flops"' in html


def test_the_counts_are_the_models_own(tmp_path: Path):
    from mixlab import build_model

    result = from_run(run(tmp_path, [step(1)]))["results"][0]
    model = build_model({"vocab_size": 256, "dim": 32, "depth": 2, "context": 64, "temporal": "gru"})
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    assert sum(part["parameters"] for part in result["components"].values()) == result["parameters"]
    assert result["flops_per_token"] == model.flops(64) // 64
    assert result["state_bytes"] == model.state_bytes(64)


def test_a_run_that_is_being_written_is_shown_as_far_as_it_got(tmp_path: Path):
    run(tmp_path, [step(1), step(2)], torn='{"kind": "eval", "step": 2, "bits_per')
    with RunFolder(tmp_path).locked():
        data = from_run(tmp_path)
        (result,) = data["results"]
        assert result["status"] == "running" and result["evals"] == [] and len(result["curve"]) == 2
        assert "still running" in render(data)
        for name in ("data.json", "environment.json", "metrics.jsonl"):
            (tmp_path / name).unlink()
        assert "still running" in render(from_run(tmp_path))
    killed = render(from_run(tmp_path))
    assert "its process ended without a word" in killed and "still " not in killed.split("<script")[0]


def test_a_failed_run_keeps_its_curves_and_says_why(tmp_path: Path):
    end = {"kind": "end", "status": "failed", "reason": "the loss became NaN"}
    html = render(from_run(run(tmp_path, [step(1), evaluation(1, 5.0), step(2), end])))
    assert "failed after step 2: the loss became NaN" in html and "5.000" in html


def test_the_sources_of_a_mixture_have_their_own_losses(tmp_path: Path):
    def evaluated(n: int, value: float, code: float) -> dict:
        return evaluation(n, value) | {"sources": {"code": code, "<prose>": 3.25}}

    best, last = evaluated(20, 2.5, 1.75), evaluated(40, 2.6, 1.875)
    mixture = [{"source": "code", "share": 0.75}, {"source": "<prose>", "share": 0.25}]

    def table(*lines: dict) -> str:
        run(tmp_path, [step(1), *lines])
        (tmp_path / "data.json").write_text(json.dumps({"mixture": mixture}))
        return (
            render(from_run(tmp_path)).partition("Loss by source of the mixture")[2].partition("</table>")[0]
        )

    row = '<tr><th scope="row">{}</th>' + '<td class="number">{}</td>' * 3 + "</tr>"
    assert row.format("code", "75%", "1.750", "1.875") in table(best, last)
    assert row.format("&lt;prose&gt;", "25%", "3.250", "3.250") in table(best, last)
    assert '<td class="number">1.750</td></tr>' in table(best)
    assert "Last evaluation" not in table(best)
    assert table(evaluation(20, 2.5)) == ""


def test_an_ngram_run_needs_no_model(tmp_path: Path):
    config = 'name = "ngram"\n[ngram]\norder = 5\n'
    data = from_run(
        run(tmp_path, [evaluation(0, 2.3), {"kind": "end", "status": "done", "seconds": 0.9}], config)
    )
    assert data["results"][0]["seconds"] == 0.9
    assert "ngram reaches 2.300 bits per byte in 0.90 s." in render(data)


def test_what_is_no_run_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="is not a run folder"):
        from_run(tmp_path)
    (tmp_path / "config.toml").write_text("= broken")
    with pytest.raises(UserError, match=r"config\.toml: not valid TOML"):
        from_run(tmp_path)


def test_the_page_of_a_run_says_its_throughput_once(tmp_path: Path):
    lines = [step(n) | {"tokens_per_second": 100.0 * n} for n in range(1, 21)]  # the first two warm up
    data = from_run(run(tmp_path, lines))
    (result,) = data["results"]
    assert result["throughput"]["median"] == 1150.0
    assert "1,150 tokens/s in the median; 100 tokens/s in the slowest step, 1," in render(data)
