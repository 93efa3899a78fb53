"""What a comparison concludes: a ranking of neural models, baselines apart, and what to train next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from mixlab.cli.comparison import print_comparison
from mixlab.report import render
from mixlab.report.joined import merge
from mixlab.report.recommend import conclude
from mixlab.report.statistics import difference, student_t
from mixlab.report.verdict import rank
from mixlab.report.view import group
from tests.report.test_page import Page

CORPUS = {"train_tokens": 1_000_000, "valid_tokens": 10_000}


def result(model: str, seed: int, score: float, **changed: Any) -> dict[str, Any]:
    return {
        "model": model,
        "kind": "neural",
        "seed": seed,
        "status": "done",
        "reason": "",
        "bits_per_byte": score,
        "tokens": 100_000,
        "tokens_per_second": 1_000.0,
        "seconds": 100.0,
        "flops_per_token": 2_000_000,
        "run": f"runs/{model}-seed{seed}",
        "config": {"name": model, "model": {"dim": 8}, "data": {"sources": ["my text.txt"]}, "train": {}},
    } | changed


def ngram(score: float, counted_on: str = "all", **changed: Any) -> dict[str, Any]:
    return (
        result("ngram", 0, score)
        | {
            "kind": "baseline",
            "counted_on": counted_on,
            "config": {"name": "ngram", "ngram": {"order": 6}},
        }
        | changed
    )


def comparison(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    budget = {"context": 256, "unequal": []}
    return {"results": list(results), "corpus": CORPUS, "folder": "out dir", "budget": budget} | more


def test_the_baseline_is_no_rival_even_where_it_has_the_lowest_loss() -> None:
    found = conclude(comparison(ngram(1.9), result("a", 0, 2.0), result("b", 0, 2.1)))
    assert (
        "At this budget a has the lowest loss, 2.000 bits per byte, 0.100 (4.8%) below b." in found.headline
    )
    assert "a is 0.100 above ngram counted on the whole training text (1.900)." in found.headline
    assert "ngram counted on the whole training text still has the lower loss (1.900)" in found.advice
    models = group(comparison(ngram(1.9), result("a", 0, 2.0)))
    assert [model.name for model in models] == ["a", "ngram"]


def test_a_baseline_is_shown_for_the_same_text_and_for_all_of_it() -> None:
    data = comparison(ngram(1.9), ngram(2.3, "same"), result("a", 0, 2.0))
    found = conclude(data).headline
    assert "0.300 below ngram counted on the text that the others were trained on (2.300)" in found
    assert "and 0.100 above ngram counted on the whole training text (1.900)" in found
    page = Page(render(data)).text
    assert "Baselines: counted, not trained" in page and "ngram, same" in page and "ngram, all" in page


def test_an_ngram_of_an_older_record_is_known_by_its_config() -> None:
    old = ngram(1.9)
    del old["kind"], old["counted_on"]
    (model,) = group({"results": [old]})
    assert model.is_baseline and model.counted_on == "all"


def test_part_of_a_text_is_not_called_the_whole() -> None:
    part = ngram(1.9, tokens=50_000, config={"name": "ngram", "ngram": {"max_tokens": 50_000}})
    assert (
        "counted on 50.0k tokens of the training text"
        in conclude(comparison(part, result("a", 0, 2.0))).headline
    )


def test_one_seed_settles_nothing() -> None:
    found = conclude(comparison(*(result(name, 0, 2 + i / 10) for i, name in enumerate("abc"))))
    assert found.headline.startswith("Not settled: with one seed each the noise between runs is unknown.")
    assert "a has the lowest loss of 3 neural models" in found.headline
    assert "wins" not in found.headline and "Train next: a, the lowest so far" in found.advice


def test_the_seeds_crown_only_whom_they_separate_from_every_rival() -> None:
    clear = [result("a", s, 2.0 + s / 1000) for s in range(3)] + [
        result("b", s, 2.2 + s / 999) for s in range(3)
    ]
    assert "a wins with 2.001 bits per byte" in conclude(comparison(*clear)).headline
    close = [result("c", s, 2.0 + (-1) ** s / 50) for s in range(3)]
    found = conclude(comparison(*clear, *close)).headline
    assert found.startswith("Not settled: the seeds cannot separate a and c. At this budget a has")


def test_many_rivals_widen_the_intervals() -> None:
    """Of many rivals one seems far by chance: Bonferroni divides what may be wrong by their number."""
    a = [result("a", s, 2.0 + s / 100) for s in range(3)]
    b = [result("b", s, 2.1 + s / 20) for s in range(3)]
    first, second = group({"results": [*a, *b]})
    alone, among = difference(first, second), difference(first, second, comparisons=5)
    assert alone is not None and among is not None and alone.half and among.half
    assert among.half / alone.half == pytest.approx(student_t(2, 0.99) / student_t(2, 0.95))
    others = [result(name, s, 3.0 + s / 100) for name in "cdef" for s in range(3)]
    assert alone.clear and not rank(group({"results": [*a, *b, *others]})).settled


def test_what_the_seeds_cannot_separate_is_decided_by_cost() -> None:
    slow = [result("slow", s, 2.00 + (-1) ** s / 50, seconds=200.0) for s in range(2)]
    fast = [result("fast", s, 2.01, flops_per_token=3_000_000) for s in range(2)]
    data = comparison(*slow, *fast)
    assert "Train next: fast, the cheapest (1 min 40 s to train)" in conclude(data).advice
    data["timing"] = {"trusted": False, "why": "slow trained at 1k to 5k tokens/s within one run."}
    found = conclude(data)
    assert (
        "Train next: slow, the cheapest (2.00M FLOPs per token)" in found.advice
        and "about" not in found.advice
    )
    assert found.warnings == [
        "Nothing is concluded from times: slow trained at 1k to 5k tokens/s within one run."
    ]


def test_untrusted_times_have_no_best_and_no_ratio() -> None:
    def curve(speed: float) -> dict[str, Any]:
        at = [
            {"step": n, "tokens": n, "seconds": n / speed, "flops": n, "bits_per_byte": 3 - n / 10}
            for n in (1, 9)
        ]
        return {"evals": at, "seconds": 9 / speed, "tokens_per_second": speed}

    data = comparison(result("a", 0, 2.0, **curve(5.0)), result("b", 0, 2.1, **curve(1.0)))
    assert "needs the least, 1.80 s" in (page := render(data)) and 'number best" data-value="5.0"' in page
    data["timing"] = {"trusted": False, "why": "the machine was busy"}
    page = render(data)
    assert "needs the least, 1.80 s" not in page and 'number best" data-value="5.0"' not in page
    assert "Nothing is concluded from times: the machine was busy." in page


def test_the_command_names_the_best_models_config_and_quotes_paths() -> None:
    found = conclude(comparison(result("a", 1, 2.0), result("b", 0, 2.1), imports=["my part.py"]))
    assert shlex.split(found.command) == [
        "mixlab", "train", "my text.txt", "--preset", "out dir/runs/a-seed1/config.toml", "--epochs", "1",
        "--set", "train.evaluations=10", "--import", "my part.py",
    ]  # fmt: skip
    assert "One pass over the whole training text: 1.00M tokens, 10 times as many" in found.advice


def test_a_text_that_was_read_whole_is_read_for_twice_as_long() -> None:
    found = conclude(comparison(result("a", 0, 2.0, tokens=2_500_000), result("b", 0, 2.1)))
    assert "--epochs 5" in found.command and "5 passes over the whole training text" in found.advice


@pytest.mark.parametrize(("tokens", "epochs"), [(100, 1), (740_000, 1), (760_000, 2), (1_000_000, 2)])
def test_a_text_of_which_most_was_read_is_read_for_twice_as_long(tokens: int, epochs: int) -> None:
    found = conclude(comparison(result("a", 0, 2.0, tokens=tokens), result("b", 0, 2.1, tokens=tokens)))
    assert found.command.endswith(f"--epochs {epochs} --set train.evaluations=10")


def test_page_and_terminal_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    data = comparison(ngram(1.9), result("a", 0, 2.0), result("b", 0, 2.1))
    found, page = conclude(data), " ".join(Page(render(data)).text.split())
    print_comparison(data)
    printed = capsys.readouterr().out
    for words in (found.headline, found.advice, found.command):
        assert words and words in page and words in printed
    table = printed.split("\n\n")[:2]
    assert "ngram" not in table[0] and table[1].startswith("ngram")


def test_a_single_run_is_not_told_what_to_train() -> None:
    data = comparison(result("a", 0, 2.0))
    assert conclude(data).advice  # a comparison's only model that finished
    del data["folder"]
    assert conclude(data).advice == "" == conclude(data).command


def test_all_that_failed_and_baselines_alone_have_a_headline_and_no_advice() -> None:
    failed = result("a", 0, 2.0, status="failed", reason="x")
    for data in (comparison(failed), comparison(ngram(1.9), ngram(2.3, "same"))):
        found = conclude(data)
        assert found.headline and not found.advice and not found.command
        Page(render(data))


def test_several_records_are_ranked_alike_and_keep_their_runs() -> None:
    one = comparison(result("a", 0, 2.0), folder="first")
    two = comparison(ngram(1.9), result("b", 0, 2.1), folder="second")
    joined = merge([one, two], [Path("first"), Path("second")])
    found = conclude(joined)
    assert "Of these runs a has the lowest loss" in found.headline and "above ngram" in found.headline
    assert "first/runs/a-seed0/config.toml" in found.command


def test_the_title_of_several_records_counts_runs() -> None:
    one, two = comparison(result("a", 0, 2.0), command="mixlab x"), comparison(result("b", 0, 2.1))
    joined = merge([one, two], [Path("x"), Path("y")])
    assert joined["title"] == "2 runs" and not joined.get("command")


def test_odd_facts_of_a_damaged_record_are_no_traceback() -> None:
    odd = comparison(result("a", 0, 2.0), corpus={"split": {"a": 1}, "valid_fraction": [1], "tokenizer": 3})
    odd |= {"environment": {"machine": {"name": {}}}, "budget": {"unequal": None}, "timing": 3, "grid": [1]}
    joined = merge([odd, comparison(result("b", 0, 2.1))], [Path("x"), Path("y")])
    Page(render(joined))
    Page(render(merge([odd], [Path("x")])))


def test_of_models_that_reach_the_same_loss_none_is_the_best() -> None:
    evals = [{"step": n, "tokens": n, "seconds": n, "flops": n, "bits_per_byte": 9.0 - n} for n in (1, 2)]
    data = comparison(
        *(result(name, 0, 7.0, seconds=s, evals=evals) for name, s in (("a", 9.0), ("b", 5.0))),
        result("c", 0, 7.5),
    )
    found = conclude(data)
    assert found.headline == (
        "Not settled: with one seed each the noise between runs is unknown. "
        "At this budget a and b reach the same loss, 7.000 bits per byte."
    )
    assert found.advice.startswith(
        "Train next: b, the cheapest (5.00 s to train) of those that reach the same"
    )
    page = render(data)
    text = Page(page).text
    assert "ends lowest" not in text and "led at" not in text and "ends at 7.000 bits per byte" in text
    assert page.count('class="number best"') == 1  # the time of b
    same = comparison(result("a", 0, 7.0), result("b", 0, 7.0003))
    advice = conclude(same).advice
    assert (
        "a, the first of those that reach the same loss at the lowest cost (1 min 40 s to train)." in advice
    )
    seeds = comparison(*(result(name, seed, 7.0) for name in "ab" for seed in (0, 1)))
    assert "the seeds cannot separate a and b. At this budget a and b reach" in conclude(seeds).headline


def test_a_page_of_ngrams_alone_says_what_is_true_of_them() -> None:
    swept = [
        ngram(
            2.0 + order, model=f"ngram[order={order}]", config={"name": f"ngram-order={order}", "ngram": {}}
        )
        for order in (2, 5)
    ]
    budget = {"params": 40_000, "steps": 9, "tokens": 1_000, "context": 16, "batch_size": 4, "unequal": []}
    page = render(comparison(*swept, budget=budget))
    text = " ".join(Page(page).text.partition("Facts")[0].split())
    assert "ngram[order=2] reaches 4.000 bits per byte" in text and "ngram-order" not in text
    facts = page.partition('<dl class="budget">')[2].partition("</dl>")[0]
    assert "context" in facts and facts.count("<dt>") == 1
    beside = render(comparison(*swept, result("a", 0, 2.0), budget=budget))
    assert "<dt>steps</dt>" in beside and "below ngram[order=2] counted on" in beside
