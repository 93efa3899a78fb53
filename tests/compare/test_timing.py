"""When a comparison's times are believed: what a step's throughput is, and what makes it doubtful."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixlab.compare.fairness import unequal
from mixlab.compare.timing import append, judge, product_flops, read, throughput

BUDGET = {"params": 1_000_000, "steps": 100, "tokens": 400_000, "context": 256, "batch_size": 16}


def steps(*rates: float | None) -> list[dict[str, Any]]:
    return [{"kind": "step", "step": n, "tokens_per_second": rate} for n, rate in enumerate(rates, 1)]


def result(
    model: str, *parts: list[float], threads: int = 1, product: tuple[float, ...] = (1e10,)
) -> dict[str, Any]:
    return {
        "model": model,
        "seed": 0,
        "status": "done",
        "throughput": {"median": 1.0, "low": 1.0, "high": 1.0, "steps": 9, "parts": list(parts)},
        "threads": [threads],
        "product_flops": list(product),
    }


def test_throughput_is_the_median_steps_with_the_slow_and_the_fast_ones() -> None:
    found = throughput(steps(1.0, 5.0, *range(100, 201), None), [])
    assert found is not None  # without the first two, which allocate
    assert (found["median"], found["low"], found["high"], found["steps"]) == (150.0, 110.0, 190.0, 101)
    assert len(found["parts"]) == 1 and len(found["parts"][0]) == 4
    assert throughput([], []) is None
    assert throughput(steps(3.0, 4.0), [])["median"] == 3.5  # type: ignore[index]


def test_a_resumed_run_is_cut_where_a_process_took_over() -> None:
    found = throughput(steps(*[100.0] * 30, *[9.0, 9.0], *[40.0] * 30), [{"step": 1}, {"step": 31}])
    assert found is not None
    assert found["parts"] == [[100.0] * 4, [40.0] * 4]


def test_processes_whose_steps_were_cut_from_the_record_are_forgotten(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    for step in (1, 41, 31):
        append(tmp_path, step=step, threads=1, before=step * 1e9)
    with (tmp_path / "processes.jsonl").open("a") as file:
        file.write('{"step": "no"\n')
    assert [line["step"] for line in read(tmp_path)] == [1, 31]


@pytest.mark.parametrize(
    ("results", "why"),
    [
        (
            [result("a", [100, 101, 99, 210]), result("b", [50])],
            "a trained at 99 to 210 tokens/s within one run.",
        ),
        (
            [result("a", [100, 101], [30, 31])],
            "a was resumed and trained at 30 to 101 tokens/s before and after.",
        ),
        (
            [result("a", [100]), result("a", [201])],
            "a trained at 100 to 201 tokens/s with one seed and another.",
        ),
        (
            [result("a", [9], threads=1), result("b", [9], threads=2)],
            "the runs had different numbers of threads (1: a; 2: b).",
        ),
        (
            [result("a", [9], product=(5e10, 4e10)), result("b", [9], product=(1e10,))],
            "the machine changed: one and the same matrix product ran at 10 GFLOP/s beside b and at 50 "
            "beside a.",
        ),
    ],
)
def test_times_that_moved_more_than_twofold_are_not_believed_and_the_reason_is_computed(
    results: list[dict[str, Any]], why: str
) -> None:
    assert judge(results) == {"trusted": False, "why": why}


def test_steady_times_are_believed_and_so_are_those_of_older_results() -> None:
    steady = [result("a", [100, 150, 120, 199]), result("b", [9], product=(1.9e10, 1e10))]
    old = {"model": "c", "seed": 0, "status": "done", "tokens_per_second": 3.0}
    assert judge([*steady, old]) == judge([]) == {"trusted": True, "why": ""}


def test_nothing_is_said_of_times_that_are_not_believed() -> None:
    config = {"model": {"dim": 8}, "train": {"optimizer": {"kind": "muon", "lr": 0.01}}}
    common = {"status": "done", "seed": 0, "parameters": 1, "flops_per_token": 2, "peak_memory_bytes": 1,
              "state_bytes": 1, "config": config}  # fmt: skip
    results = [{"model": "a", "seconds": 1.0} | common, {"model": "b", "seconds": 9.0} | common]
    assert any(said.startswith("Time:") for said in unequal(results, BUDGET, {}))
    assert not any(said.startswith("Time:") for said in unequal(results, BUDGET, {}, timed=False))


def test_the_product_leaves_the_threads_as_they_are() -> None:
    import torch

    before = torch.get_num_threads()
    assert product_flops() > 1e6
    assert torch.get_num_threads() == before
