"""The way to flash-linear-attention's kernels, walked with a stand-in of plain torch; tests/test_cuda.py has
the real ones."""

import re
import sys

import pytest
import torch

import mixlab
from mixlab.errors import UserError
from mixlab.parts.checks import Case, close, run_in_chunks
from mixlab.parts.contract import get
from mixlab.parts.temporal import delta_rule, kernels, rglru_core
from mixlab.parts.temporal.rwkv7_core import Inputs, core
from tests.parts import fla_stand_in
from tests.parts.test_rwkv7 import cut, drawn, tokens_and_vectors


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in installed, and a CPU that takes it; the names of the functions called so far."""
    for name, module in fla_stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    real = kernels.find_spec  # torch looks for triton among the modules, so none is put there
    monkeypatch.setattr(kernels, "find_spec", lambda name: name if name == "triton" else real(name))
    monkeypatch.setattr(kernels, "version", lambda package: "0.6.0")
    monkeypatch.setattr(kernels, "DEVICES", ("cpu",))
    torch.use_deterministic_algorithms(False)
    kernels.installed.cache_clear()
    fla_stand_in.calls.clear()
    yield fla_stand_in.calls
    kernels.installed.cache_clear()
    torch.use_deterministic_algorithms(True)


def slopes(outputs, leaves):
    """Gradients of a fixed weighted sum of all the outputs."""
    total = sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in outputs)
    return torch.autograd.grad(total, leaves)


def test_the_delta_rules_arguments_mean_what_ours_do(stand_in):
    *tokens, memory = drawn(2, 37, 3, 8)
    leaves = [x.requires_grad_() for x in (*(cut(x, 37) for x in tokens), memory)]
    x, memory = delta_rule.Steps(*leaves[:-1]), leaves[-1]
    y, after = kernels.delta_rule(x, memory, torch.float64)
    wanted, last, _ = delta_rule.forward(x, memory, torch.float64)
    close(y, wanted, "read")
    close(after, last, "memory")
    names, found = (*x._fields, "memory"), slopes((y, after), leaves)
    for name, a, b in zip(names, found, slopes((wanted, last), leaves), strict=True):
        close(a, b, name)
    assert stand_in == ["chunk_rwkv7"]


@pytest.mark.parametrize("fresh", [True, False])
def test_the_scans_arguments_mean_what_ours_do(stand_in, fresh):
    T, B, H, W, N = 23, 2, 3, 4, 4
    shapes = rglru_core.Inputs(
        value=(T, B, H * W), gate=(T, B, H * W), past=(N - 1, B, H * W), h=(B, H * W), taps=(N, H * W),
        shift=(H * W,), weight=(H, W, 2 * W), bias=(2, H * W), rate=(H * W,),
    )  # fmt: skip
    p = rglru_core.Inputs(*(torch.randn(shape, dtype=torch.float64) for shape in shapes))
    p = rglru_core.Inputs(*(t.requires_grad_() for t in p._replace(rate=-p.rate.abs())))
    leaves = list(p)
    found = rglru_core.composed(p, fresh=fresh, scan=kernels.scan)
    wanted = rglru_core.core(p, fresh=fresh)
    for a, b in zip(found, wanted, strict=True):
        close(a, b, "value")
    for name, a, b in zip(p._fields, slopes(found, leaves), slopes(wanted, leaves), strict=True):
        close(a, b, name)
    assert stand_in == ["chunk_hgrn"]


def test_rwkv7s_pass_around_the_kernel_is_within_the_table_in_every_gradient(stand_in):
    exact = tokens_and_vectors(2, 50, 2, 64)
    low = Inputs(*(x.bfloat16() for x in exact[:8]), *(x.float() for x in exact[8:]))  # as under autocast
    found, wanted = [], []
    for p, into in ((low, found), (Inputs(*(x.double() for x in low)), wanted)):
        p = [x.requires_grad_() for x in p]
        y, memory = core(Inputs(*p), 32)
        into += [y.double(), memory, *slopes((y.double(), memory.double()), p)]
    assert stand_in == ["chunk_rwkv7"]  # float64 has none
    for name, a, b in zip(("y", "after", *Inputs._fields), found, wanted, strict=True):
        close(a.double(), b, name, torch.bfloat16)


def run(name, *, bf16):
    """Output of a part, in one and in chunks; and gradients, for the sake of the calls."""
    knobs = {"heads": 2} if name == "rwkv7" else {}
    case = Case("temporal", name, get("temporal", name).Config(**knobs), dim=64)
    part, x = case.build(torch.float32, jitter=0.05), case.sample(2, 21, torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y, _ = part(x)
        chunks = run_in_chunks(part, x, [7, 8])
    slopes([y.float(), chunks.float()], [x, *part.parameters()])
    return y, chunks


@pytest.mark.parametrize(("name", "function"), [("rwkv7", "chunk_rwkv7"), ("rglru", "chunk_hgrn")])
def test_a_part_with_the_kernel_equals_the_part_without(stand_in, name, function):
    found = run(name, bf16=True)
    assert stand_in == [function] * 3  # the whole and two chunks; a chunk of one token needs none
    with kernels.plain():
        wanted = run(name, bf16=True)
    assert len(stand_in) == 3
    for a, b in zip(found, wanted, strict=True):
        close(a.float(), b.float(), name, torch.bfloat16)


def test_rwkv7_in_float32_and_heads_too_narrow_stay_with_our_own_pass(stand_in):
    run("rwkv7", bf16=False)
    case = Case("temporal", "rwkv7", get("temporal", "rwkv7").Config(heads=8), dim=64)
    with torch.autocast("cpu", torch.bfloat16):
        case.build(torch.float32)(case.sample(1, 9, torch.float32))
    assert stand_in == []


def test_rglru_in_float64_stays_with_our_own_pass(stand_in):
    case = Case("temporal", "rglru")
    case.build()(case.sample(1, 9))
    assert stand_in == []


def test_deterministic_runs_stay_with_our_own_pass(stand_in):
    torch.use_deterministic_algorithms(True)
    run("rglru", bf16=True)
    assert stand_in == []


@pytest.mark.parametrize("name", ["rwkv7", "rglru"])
def test_a_second_derivative_is_refused_and_told_how_to_get(stand_in, name):
    model = mixlab.build_model({"dim": 64, "depth": 2, "temporal": name, "position": "none"})
    tokens = torch.randint(256, (1, 9))

    def twice():
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(tokens, tokens)
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), model.embedding.weight)

    with pytest.raises(UserError, match=r"kernels\.plain\(\)"):
        twice()
    with kernels.plain():
        (second,) = twice()
    assert second.isfinite().all() and second.any()


@pytest.mark.parametrize(
    ("missing", "found", "why"),
    [
        ("fla", "0.6.0", r"not installed: pip install .mixlab\[fla\]"),
        ("triton", "0.6.0", "needs triton"),
        (None, "0.4.2", "0.4.2 is older than 0.5"),
        (None, None, "a module 'fla' is there, but not flash-linear-attention"),
    ],
)
def test_what_is_missing_is_said(stand_in, monkeypatch, missing, found, why):
    def version(package):
        if found is None:
            raise kernels.PackageNotFoundError(package)
        return found

    real = kernels.find_spec
    monkeypatch.setattr(kernels, "version", version)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if name == missing else real(name))
    kernels.installed.cache_clear()
    there, reason = kernels.installed()
    assert not there
    assert re.search(why, reason)
    run("rglru", bf16=True)
    assert stand_in == []


def test_a_cpu_never_takes_them():
    torch.use_deterministic_algorithms(False)
    assert not kernels.use(torch.device("cpu"))
