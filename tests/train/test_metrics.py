from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mixlab.train.metrics import MetricsLog, best_step, cut_back, read_metrics


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def test_lines_are_strict_json_whatever_the_numbers(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write(
        {"kind": "step", "step": 1, "loss": math.nan, "more": [math.inf, 1.5], "deep": {"x": -math.inf}}
    )
    log.close()
    line = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse)
    assert line == {"kind": "step", "step": 1, "loss": None, "more": [None, 1.5], "deep": {"x": None}}


def test_each_line_is_on_disk_at_once_and_half_a_line_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    log.write({"kind": "step", "step": 1})
    assert read_metrics(path) == [{"kind": "step", "step": 1}]
    log.close()
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    assert read_metrics(path) == [{"kind": "step", "step": 1}]
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_closing_does_not_hide_that_a_line_could_not_be_written():
    log = MetricsLog(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        log.write({"kind": "step", "step": 1})
    log.close()


def test_cutting_back_drops_later_lines_and_the_end(tmp_path):
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    for kind, step in (("step", 1), ("eval", 1), ("step", 2), ("eval", 2), ("end", 2)):
        log.write({"kind": kind, "step": step, "bits_per_byte": 3.0 - step})
    log.close()
    assert best_step(path) == 2
    cut_back(path, 2)
    assert [line["kind"] for line in read_metrics(path)] == ["step", "eval", "step", "eval"]
    cut_back(path, 1)
    assert [(line["kind"], line["step"]) for line in read_metrics(path)] == [("step", 1), ("eval", 1)]
    assert best_step(path) == 1
