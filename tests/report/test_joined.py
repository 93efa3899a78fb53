"""A page of several run folders claims nothing that the runs do not allow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mixlab.report import from_run, render
from mixlab.report.facts import together
from mixlab.report.joined import apart_by, merge, unequal
from tests.report.test_from_run import CONFIG, evaluation, run, step

BYTES = {"kind": "byte", "vocab_size": 257, "hash": "b"}
TEXT = {"sha256": "one", "split": "by documents", "valid_bytes": 10, "valid_tokens": 10, "tokenizer": BYTES}
CLAIMS = (
    "At this budget",
    "lowest",
    "below",
    "led at",
    "ends at",
    "needs the least",
    "wins",
    'class="number best"',
)


def page(
    folder: Path,
    *corpora: dict[str, Any],
    dims: tuple[int, ...] = (32, 32),
    seeds: bool = False,
    machines: tuple[dict[str, Any], ...] = (),
) -> str:
    """The page of runs `a`, `b`, ... of these corpora and widths; `a` is best; with `seeds` all are grus."""
    found, folders = [], []
    for n, (corpus, dim) in enumerate(zip(corpora, dims, strict=True)):
        made = folder / "abc"[n]
        made.mkdir()
        config = CONFIG.replace("dim = 32", f"dim = {dim}").replace("seed = 3", f"seed = {n}")
        config = config if seeds else config.replace('name = "gru"', f'name = "{made.name}"')
        lines = [*(step(k) for k in range(1, 41)), evaluation(20, 2.5 + n / 8), evaluation(40, 2.0 + n / 8)]
        lines = [line | {"tokens_per_second": 9.0} for line in lines]
        run(made, [*lines, {"kind": "end", "status": "done"}], config)
        (made / "data.json").write_text(json.dumps(corpus))
        if machines:
            (made / "environment.json").write_text(json.dumps(machines[n]))
        found.append(from_run(made))
        folders.append(made)
    html = render(merge(found, folders))
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


def test_runs_of_one_text_are_told_apart_without_a_budget(tmp_path: Path):
    html = page(tmp_path, TEXT, TEXT)
    assert "Of these runs a has the lowest loss, 2.000 bits per byte, 0.125 (5.9%) below b." in html
    assert "led at every evaluation" in html and "a needs the least" in html
    assert "At this budget" not in html and "do not share" not in html


def test_machines_that_differ_are_told_apart(tmp_path: Path):
    two, eight = ({"torch": "2.13.0", "machine": {"cores": cores}} for cores in (2, 8))
    html = page(tmp_path, TEXT, TEXT, machines=(two, eight))
    assert "a: 2; b: 8" in html and html.count("2.13.0") == 1
    sentence = "The runs were made on different machines, so their seconds do not compare."
    assert sentence in html
    (tmp_path / "alike").mkdir()
    assert sentence not in page(tmp_path / "alike", TEXT, TEXT, machines=(two, two))


def test_runs_of_different_texts_have_no_winner(tmp_path: Path):
    html = page(tmp_path, TEXT, TEXT | {"sha256": "two"})
    assert (
        '<p class="headline">The runs read different texts, so their bits per byte do not compare. '
        "Of its own validation text, each reaches, in bits per byte: a 2.000 and b 2.125.</p>" in html
    )
    assert html.count('<p class="reading">Each curve is of its model&#39;s own text') == 3
    assert "the height of the curves does not compare" in html
    assert not [claim for claim in CLAIMS[:-1] if claim in html]
    loss = html.split("<tbody>")[1].split("</tbody>")[0].replace("\n", "")
    assert '<td class="number" data-value="2.0">2.000</td>' in loss


def test_other_parts_of_one_text_are_other_texts(tmp_path: Path):
    html = page(tmp_path, TEXT, TEXT | {"split": "the last tenth"})
    assert "The runs validate on different parts of the text, so their bits per byte do not compare." in html
    assert "has the lowest" not in html


def test_runs_of_one_model_on_different_texts_are_not_its_seeds(tmp_path: Path):
    html = page(tmp_path, TEXT, TEXT | {"sha256": "two"}, seeds=True)
    assert "in bits per byte: a 2.000 and b 2.125." in html
    (tmp_path / "same").mkdir()
    assert "gru reaches 2.062 bits per byte" in page(tmp_path / "same", TEXT, TEXT, seeds=True)


def test_folders_of_one_name_are_told_apart_by_what_holds_them():
    folders = [Path("/x/a/run"), Path("/x/b/run"), Path("/y/other")]
    assert apart_by(folders) == ["a/run", "b/run", "y/other"]
    assert apart_by(folders[:1] * 2) == ["run", "run"]
    comparison = {"results": [{"model": "gru", "seed": 0}], "corpus": TEXT, "environment": {}}
    found = merge([comparison] * 2, folders[:2])
    assert [result["model"] for result in found["results"]] == ["a/run", "b/run"]
    assert [one["name"] for one in found["joined"]] == ["a/run", "b/run"]


def test_what_the_runs_do_not_share_is_named(tmp_path: Path):
    letters = {"kind": "char", "vocab_size": 14, "hash": "c"}
    html = page(tmp_path, TEXT, TEXT | {"tokenizer": letters}, TEXT, dims=(32, 32, 64))
    assert "The runs had different tokenizers: byte of 257 (a, c), char of 14 (b)." in html
    assert re.search(r"different numbers of parameters: [\d.,]+k? \(a, b\), [\d.,]+k \(c\)\.", html)
    assert "<dt>Tokenizer</dt><dd>a and c: byte; b: char</dd>" in html
    assert "<dt>Split</dt><dd>by documents</dd>" in html
    assert "the height of the curves does not compare" in html
    assert "Of these runs a has the lowest loss of 3 neural models" in html


def test_what_a_run_does_not_have_is_no_difference():
    runs = [{"budget": {"tokens": 100, "params": 1_000_001}}, {"budget": {"params": 1_000_002}}]
    assert unequal(runs, ["a", "n"], "") == []
    runs.append({"budget": {"tokens": 200, "params": 1_000_000}})
    assert unequal(runs, ["a", "n", "b"], "") == [
        "The runs had different numbers of tokens: 100 (a), 200 (b)."
    ]


def test_a_fact_that_some_lack_names_those_who_have_it():
    facts = [("a", {"split": "x", "notes": ["y"]}), ("b", {"split": "x"})]
    assert together(facts) == [("Split", "x"), ("Notes", "a: y")]
