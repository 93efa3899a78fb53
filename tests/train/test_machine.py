from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mixlab.train import machine, precision

from .conftest import FAKE, REAL_MEASURE


@pytest.fixture
def real(monkeypatch, tmp_path):
    """The module as it is, with small products and a cache of its own."""
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "measure", REAL_MEASURE)
    monkeypatch.setattr(machine, "_known", {})
    monkeypatch.setattr(machine, "SIZE", 64)
    monkeypatch.setattr(machine, "TRIAL", 32)
    monkeypatch.setattr(machine, "COPY_BYTES", {"cpu": 1 << 16})
    return machine


def test_a_measurement_is_positive_and_kept(real, tmp_path, monkeypatch):
    first = real.measure("cpu")
    assert min(first.float32_flops, first.bfloat16_flops, first.memory_bandwidth) > 0
    assert first.cores >= 1
    assert len(list(tmp_path.iterdir())) == 1
    real._known.clear()
    monkeypatch.setattr(real, "_measure", lambda device: pytest.fail("measured twice"))
    assert real.measure("cpu") == first


def test_refresh_measures_again_and_a_damaged_cache_is_no_obstacle(real, tmp_path, monkeypatch):
    real.measure("cpu")
    (path,) = tmp_path.iterdir()
    for content in ("", "[]", '{"device": 1}'):
        path.write_text(content)
        real._known.clear()
        assert real.measure("cpu").device == "cpu"
    monkeypatch.setattr(real, "_measure", lambda device: replace(FAKE, name="again"))
    assert real.measure("cpu", refresh=True).name == "again"
    assert json.loads(path.read_text())["name"] == "again"


def test_a_cache_that_cannot_be_written_does_not_matter(real, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "file" / "below"))
    real._known.clear()
    assert real.measure("cpu").float32_flops > 0


def test_a_machine_slow_at_large_products_is_not_kept_waiting(real, monkeypatch):
    sizes = []
    monkeypatch.setattr(real, "_product_speed", lambda device, dtype, size: sizes.append(size) or 1.0)
    real.matmul_flops("cpu", torch.bfloat16)
    assert sizes == [32]


@pytest.mark.parametrize(("ratio", "used"), [(0.3, False), (1.19, False), (1.21, True), (3.0, True)])
def test_bfloat16_is_used_where_it_was_measured_faster(ratio, used):
    decision, reason = machine.decide(1e9, ratio * 1e9)
    assert decision is used
    assert reason.startswith("bfloat16 is used" if used else "bfloat16 is not used")
    assert f"{ratio:.2f}x" in reason


def test_auto_follows_the_measurement_and_a_name_does_not(monkeypatch):
    device = torch.device("cpu")
    for use in (True, False):
        monkeypatch.setattr(machine, "measure", lambda d, use=use: replace(FAKE, use_bfloat16=use))
        assert precision.resolve("auto", device) is use
        assert precision.resolve("bfloat16", device) is True
        assert precision.resolve("float32", device) is False


def test_the_environment_is_json_and_says_what_ran(monkeypatch):
    facts = json.loads(json.dumps(machine.environment(FAKE), allow_nan=False))
    assert facts["torch"] == torch.__version__
    assert facts["machine"]["name"] == "test"
    assert facts["git"] is None or len(facts["git"]) == 40
    assert machine.peak_memory_bytes(machine.CPU) > 1 << 20
