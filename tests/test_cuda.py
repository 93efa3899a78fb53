"""What must hold on a GPU too; skipped where there is none."""

import pytest
import torch

import mixlab
from mixlab.config import load_run_config
from mixlab.decode import generate
from mixlab.parts.checks import close
from mixlab.parts.contract import available
from mixlab.parts.temporal import kernels, rglru_core, rwkv7_core
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


with_fla = pytest.mark.skipif(not kernels.installed()[0], reason=kernels.installed()[1])


def slopes(y, last, leaves):
    total = (y.double() * torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y)).sum()
    return torch.autograd.grad(total + last.double().square().sum(), leaves)


@with_fla
@pytest.mark.parametrize("T", [2, 64, 83, 300])
def test_flash_linear_attentions_delta_rule_equals_ours_in_every_gradient(T):
    tokens, B, H, K = torch.randn(8, 2, T, 128, dtype=torch.float64), 2, 2, 64
    tokens[1] *= 0.1
    vectors = [0.5 + 0.5 * torch.rand(H * K, dtype=torch.float64) for _ in range(8)]
    memory = 0.1 * torch.randn(B, H, K, K, dtype=torch.float64)
    low = [*(x.bfloat16() for x in tokens), *(x.float() for x in (*vectors, memory))]
    found = [x.cuda().requires_grad_() for x in low]
    wanted = [x.double().requires_grad_() for x in low]
    assert kernels.use(found[0].device)
    results = []
    for leaves in (found, wanted):
        y, after = rwkv7_core.core(rwkv7_core.Inputs(*leaves), 32)
        results.append([y, after, *slopes(y, after, leaves)])
    for name, a, b in zip(("y", "after", *rwkv7_core.Inputs._fields), *results, strict=True):
        close(a.cpu().double(), b, name, torch.bfloat16)


@with_fla
@pytest.mark.parametrize("T", [2, 128, 300])
def test_flash_linear_attentions_scan_equals_ours_in_every_gradient(T):
    log_a, b, h = -torch.rand(T, 3, 96).square(), torch.randn(T, 3, 96), torch.randn(3, 96)
    results = []
    for run, leaves in (
        (kernels.scan, [x.cuda() for x in (log_a, b, h)]),
        (rglru_core.step_by_step, [x.double() for x in (log_a, b, h)]),
    ):
        leaves = [x.requires_grad_() for x in leaves]
        hs = run(*leaves)
        results.append([hs, *slopes(hs, hs[-1], leaves)])
    for name, a, b in zip(("hs", "log_a", "b", "h"), *results, strict=True):
        close(a.cpu().double(), b, name, torch.float32)
