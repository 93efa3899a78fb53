"""What must hold on a GPU too; skipped where there is none."""

import pytest
import torch

import mixlab
from mixlab.config import load_run_config
from mixlab.decode import generate
from mixlab.parts.contract import available
from mixlab.train import train

from .train.helpers import stop_at

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def _kernels_as_they_come():
    """Deterministic mode refuses some CUDA kernels; these tests compare within tolerances instead."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("temporal", available("temporal"))
def test_gpu_equals_cpu_and_steps_equal_the_whole(temporal):
    torch.manual_seed(0)
    model = mixlab.build_model({"dim": 64, "depth": 2, "context": 32, "temporal": temporal}).eval()
    tokens = torch.randint(256, (2, 32))
    with torch.no_grad():
        wanted = model(tokens).logits
        model, tokens = model.cuda(), tokens.cuda()
        whole, state, steps = model(tokens).logits, model.init_state(2, 32), []
        for t in range(32):
            out = model(tokens[:, t : t + 1], state)
            state = out.state
            steps.append(out.logits)
    assert torch.allclose(whole.cpu(), wanted, atol=1e-3)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-3)


def test_gradients_on_the_gpu_equal_the_cpus():
    torch.manual_seed(0)
    model = mixlab.build_model({"dim": 64, "depth": 2, "context": 32, "norm": "rmsnorm"}).double()
    x, y = torch.randint(256, (2, 2, 32))
    wanted = torch.autograd.grad(model.loss(x, y), list(model.parameters()))
    model = model.cuda()
    found = torch.autograd.grad(model.loss(x.cuda(), y.cuda()), list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a.cpu(), b, atol=1e-10)


@pytest.mark.parametrize("preset", ["transformer", "gru"])
def test_training_and_generating_run_on_the_gpu(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 4000)
    overrides = [f"data.sources=['{text}']", "train.steps=60", "train.eval_every=0", "model.context=128"]
    summary = train(load_run_config(preset, overrides), tmp_path / "run", progress=lambda line: None)
    assert summary["status"] == "done"
    assert summary["bits_per_byte"] < 3.5
    model = mixlab.load(tmp_path / "run", device="cuda")
    assert next(model.parameters()).is_cuda
    assert len(list(generate(model, [0], max_tokens=20, seed=1))) == 20


@pytest.mark.parametrize("preset", ["transformer", "gru", "rwkv4"])
def test_a_resumed_run_equals_an_uninterrupted_one_with_deterministic_kernels(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 4000)
    overrides = [f"data.sources=['{text}']", "train.steps=6", "train.deterministic=true", "model.context=64"]
    config = load_run_config(preset, [*overrides, "model.dropout=0.1"])
    train(config, tmp_path / "straight", progress=lambda line: None)
    train(config, tmp_path / "stopped", progress=stop_at(3))
    train(config, tmp_path / "stopped", resume=True, progress=lambda line: None)
    ours, theirs = (mixlab.load(tmp_path / run).state_dict() for run in ("stopped", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
