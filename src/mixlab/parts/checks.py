"""The contract as checks that any registered part can be put through, in or out of this repository.

Each check takes a `Case`, builds the part small and in float64 where exactness matters, and raises
AssertionError with what was promised and what was found. `docs/add-a-part.md` shows them under pytest.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mixlab.parts.contract import Choice, Kind, Part, Place, Role, Split, Watched, build, get
from mixlab.parts.products import PackedProducts, Products, has_packed_products

TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 5e-3,  # 11 bits: an eighth of bfloat16's
    torch.bfloat16: 4e-2,  # 8 bits of significand: 2^-8 a rounding, about ten roundings deep
}
"""The one table: largest allowed difference, relative to the largest value compared."""


@dataclass(frozen=True)
class Case:
    """A part, by its registered name and knobs, in a small model."""

    kind: Kind
    name: str
    config: Any = None
    position: str = "none"
    dim: int = 16
    context: int = 24

    @property
    def place(self) -> Place:
        """The second of two blocks."""
        position = Choice(self.position, get("position", self.position).Config())
        return Place(dim=self.dim, depth=2, layer=1, context=self.context, position=position)

    def build(self, dtype: torch.dtype = torch.float64, *, jitter: float = 0.3, seed: int = 0) -> Any:
        """The part in evaluation mode, every parameter moved off its init by `jitter` so that a path
        which starts at zero is tested too."""
        config = get(self.kind, self.name).Config() if self.config is None else self.config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            part = build(self.kind, Choice(self.name, config), self.place).to(dtype).eval()
            with torch.no_grad():
                for parameter in part.parameters():
                    parameter.add_(jitter * torch.randn_like(parameter))
        return part

    def sample(self, B: int, T: int, dtype: torch.dtype = torch.float64, *, seed: int = 1) -> Tensor:
        """A normal input (B, T, D)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(B, T, self.dim, generator=generator, dtype=torch.float64).to(dtype)


def expect(condition: bool, message: str) -> None:
    """Raise AssertionError(message) unless the condition holds; unlike `assert`, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def close(found: Tensor, wanted: Tensor, what: str, dtype: torch.dtype | None = None) -> None:
    """Expect equality within the table's tolerance for `dtype` (the found tensor's own by default)."""
    expect(found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    found, wanted, dtype = found.detach(), wanted.detach(), dtype or found.dtype
    scale = max(1.0, wanted.abs().max().item() if wanted.numel() else 1.0)
    gap = (found.double() - wanted.double()).abs().max().item() if wanted.numel() else 0.0
    expect(gap <= TOLERANCE[dtype] * scale, f"{what}: differs by {gap:.2e} at scale {scale:.2e}")


def tensors(state: Any) -> list[Tensor]:
    """The tensors in a state, in order, however its tuples nest."""
    if state is None:
        return []
    return [state] if isinstance(state, Tensor) else [t for item in state for t in tensors(item)]


def gradient(value: Tensor, x: Tensor) -> Tensor:
    """d value / d x, zero where there is no path; the graph stays for another call."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (grad,) = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if grad is None else grad


def run_in_chunks(part: Part, x: Tensor, cuts: Sequence[int]) -> Tensor:
    """The part over x (B, T, D) in pieces that end at `cuts` and at T, the state carried across."""
    B, T, _ = x.shape
    state = part.init_state(B, T, device=x.device, dtype=x.dtype)
    pieces = []
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
        y, state = part(x[:, start:stop], state)
        pieces.append(y)
    return torch.cat(pieces, 1)


def check_forward(case: Case) -> None:
    """(B, T, D) to (B, T, D) in the input's dtype; no state in, no state out; a state keeps its layout."""
    part, x = case.build(), case.sample(2, 5)
    y, state = part(x)
    expect(
        y.shape == x.shape and y.dtype == x.dtype, f"forward: {y.shape} {y.dtype}, not {x.shape} {x.dtype}"
    )
    expect(state is None, "forward without a state must return None as the state")
    before = part.init_state(2, 5, device="cpu", dtype=torch.float64)
    layout = [(t.shape, t.dtype) for t in tensors(before)]
    three = tensors(part.init_state(3, 5, device="cpu", dtype=torch.float64))
    expect(all(len(t) == 3 for t in three if t.ndim), "a state's first axis must be the batch's")
    _, after = part(x, before)
    expect(type(after) is type(before), f"state changes its type from {type(before)} to {type(after)}")
    found = [(t.shape, t.dtype) for t in tensors(after)]
    expect(found == layout, f"state changes its layout from {layout} to {found}")


def check_causality(case: Case, T: int = 9, at: int = 4) -> None:
    """What comes at `at` or later changes no earlier output, by value or gradient, and does reach its own."""
    part, x = case.build(), case.sample(2, T).requires_grad_()
    y, _ = part(x)
    other = x.detach().clone()
    other[:, at:] = case.sample(2, T, seed=2)[:, at:]
    close(part(other)[0][:, :at], y[:, :at], "causality: an earlier output changed")
    leak = gradient(y[:, :at].square().sum(), x)[:, at:].abs().max().item()
    expect(leak == 0.0, f"causality: gradient {leak:.2e} from an earlier output to a later input")
    if part.mixes:
        own = gradient(y[:, at].square().sum(), x)[:, at].abs().max().item()
        expect(own > 0, "an output does not depend on its own input")


def check_chunks(case: Case, B: int = 2, T: int = 9, cuts: Sequence[int] = (1, 2, 6)) -> None:
    """Whole == any chunking == one token at a time, in value and in gradient."""
    part, x = case.build(), case.sample(B, T).requires_grad_()
    whole, _ = part(x)
    weight = case.sample(B, T, seed=3)
    grad = gradient((whole * weight).sum(), x)
    for name, places in (("chunks", list(cuts)), ("steps", list(range(1, T)))):
        pieces = run_in_chunks(part, x, places)
        close(pieces, whole, f"{name} differ from the whole")
        close(gradient((pieces * weight).sum(), x), grad, f"gradient through {name}")
        with torch.no_grad():
            close(run_in_chunks(part, x, places), whole, f"{name} without gradient differ from the whole")


def check_stepper(case: Case, T: int = 9) -> None:
    """The short way of single tokens == the part's own, in outputs and states; with packed products too."""
    packed = [(PackedProducts(), torch.float32, torch.float16)] if has_packed_products() else []
    for products, dtype, within in [(Products(), torch.float64, torch.float64), *packed]:
        part, x = case.build(dtype, jitter=0.05), case.sample(1, T, dtype)
        step = part.stepper(products) or products.inside(part)
        state, other = (part.init_state(1, T, device="cpu", dtype=dtype) for _ in range(2))
        with torch.no_grad():
            for t, x_t in enumerate(x.split(1, 1)):
                wanted, state = part(x_t, state)
                found, other = step(x_t, other)
                close(found, wanted, f"stepper with {type(products).__name__}, token {t}", within)
                for a, b in zip(tensors(other), tensors(state), strict=True):
                    close(a, b, f"state of the stepper with {type(products).__name__}, token {t}", within)
        expect(type(other) is type(state), f"stepper makes a {type(other)} of a {type(state)}")


def check_segments(case: Case, lengths: Sequence[Sequence[int]] = ((3, 1, 4), (8,), (2, 6))) -> None:
    """A packed row equals its documents run separately, in value and in gradient."""
    T = sum(lengths[0])
    part, x = case.build(), case.sample(len(lengths), T).requires_grad_()
    numbers = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
    packed, state = part(x, segment=torch.stack(numbers))
    expect(state is None, "packed rows must return None as the state")
    rows = zip(x, lengths, strict=True)
    alone = torch.stack([torch.cat([part(p[None])[0][0] for p in row.split(list(n))]) for row, n in rows])
    close(packed, alone, "packed documents differ from separate ones")
    separate = gradient(alone.square().sum(), x)
    close(gradient(packed.square().sum(), x), separate, "gradient through packed documents")


def check_initialisation(case: Case) -> None:
    """`reset_parameters` sets every parameter, and a seed decides them."""
    first, again, other = (case.build(jitter=0.0, seed=s) for s in (5, 5, 6))
    for (name, a), (_, b) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        expect(bool(a.isfinite().all()), f"{name} is not finite after reset_parameters")
        expect(torch.equal(a, b), f"{name} differs between two resets from one seed")
    if any(p.ndim > 1 for p in first.parameters()):
        moved = [torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)]
        expect(not all(moved), "two seeds give the same parameters")


def check_bookkeeping(case: Case) -> None:
    """Parameter count and roles are those of the parameters; rates, plan and adapters name what exists."""
    part = case.build()
    found = sum(p.numel() for p in part.parameters())
    expect(part.parameter_count() == found, f"parameter_count() is {part.parameter_count()}, found {found}")
    names = {name for name, _ in part.named_parameters()}
    roles = part.parameter_roles()
    expect(set(roles) == names, f"roles for {sorted(roles)}, parameters {sorted(names)}")
    expect(set(roles.values()) <= set(get_args(Role)), f"unknown role among {set(roles.values())}")
    for name, scale in part.lr_scales().items():
        expect(name in names, f"lr_scales: no parameter {name} among {sorted(names)}")
        expect(0 < scale < math.inf, f"lr_scales: {name} has {scale}, not a positive factor")
    for name, linear in part.adaptable_linears().items():
        expect(part.get_submodule(name) is linear, f"adaptable_linears: {name} is not that module")
        expect(isinstance(linear, nn.Linear), f"adaptable_linears: {name} is not a Linear")
    held = names | {name for name, _ in part.named_buffers()}
    for name, split in part.tensor_plan().items():
        module = part.get_submodule(name) if name not in held else None
        expect(split != "row" or isinstance(module, nn.Linear), f"tensor_plan: row-split {name} is no Linear")
        expect(split in get_args(Split), f"tensor_plan: unknown split {split} for {name}")
    expect(bool(part.tensor_plan()) == (part.tensor_units() > 0), "tensor_plan and tensor_units disagree")


def _cpu_attention_flops(
    query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **_: Any
) -> int:
    """The count of the other attention kernels; torch's counter takes the CPU's for 0 (seen in 2.13)."""
    return sdpa_flop_count(query, key, value)


def measured_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products `run` makes; in float64, as oneDNN's fused recurrences, which the
    counter does not know, take over in lower precisions."""
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with counter:
        run()
    return int(counter.get_total_flops())


def check_flops(case: Case, lengths: Sequence[int] = (1, 7, 24)) -> None:
    """flops(T) is what torch's own counter sees in a forward over T tokens."""
    part = case.build()
    for T in lengths:
        x = case.sample(1, T)
        found = measured_flops(lambda x=x: part(x))  # type: ignore[misc]
        expect(part.flops(T) == found, f"flops({T}) is {part.flops(T)}, measured {found}")


def check_state_bytes(case: Case, lengths: Sequence[int] = (1, 7, 24)) -> None:
    """state_bytes(T, dtype) is the size of a state with room for T tokens, after T tokens."""
    for dtype in (torch.float32, torch.bfloat16):
        part = case.build(dtype)
        for T in lengths:
            state = part.init_state(1, T, device="cpu", dtype=dtype)
            with torch.no_grad():
                _, state = part(case.sample(1, T, dtype), state)
            found = sum(t.numel() * t.element_size() for t in tensors(state))
            said = part.state_bytes(T, dtype)
            expect(said == found, f"state_bytes({T}, {dtype}) is {said}, measured {found}")


def check_save_and_load(case: Case) -> None:
    """Weights written with safetensors and read into a fresh part give the same output, bit for bit."""
    from safetensors.torch import load_file, save_file

    part, x = case.build(), case.sample(2, 6)
    other = case.build(seed=9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.safetensors"
        save_file(part.state_dict(), path)
        other.load_state_dict(load_file(path))
    expect(torch.equal(other(x)[0], part(x)[0]), "a loaded part computes something else")


def check_bfloat16(case: Case) -> None:
    """Under bf16 autocast the output stays within the table of float32's."""
    part, x = case.build(torch.float32, jitter=0.05), case.sample(2, 12, torch.float32)
    wanted, _ = part(x)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = part(x.bfloat16())
    close(found, wanted, "bf16 autocast", torch.bfloat16)


def check_watched(case: Case, B: int = 2, T: int = 6) -> None:
    """What meters see is what the contract names, in its shapes, causal; seeing it draws no random number."""
    part, x = case.build(), case.sample(B, T)
    other = torch.cat((x[:, :-1], case.sample(B, T, seed=2)[:, -1:]), 1)
    before = torch.get_rng_state()
    shown, again = part.watched(x), part.watched(other)
    expect(torch.equal(before, torch.get_rng_state()), "watched draws random numbers")
    expect(set(shown) <= set(get_args(Watched)), f"watched shows {set(shown)}, not among {get_args(Watched)}")
    for name, axis in (("scores", 2), ("units", 1)):
        if name in shown:
            found, ndim = shown[name], axis + 2
            expect(found.ndim == ndim, f"watched {name} have {found.ndim} axes, not {ndim}")
            expect(
                found.shape[0] == B and found.shape[axis] == T, f"watched {name}: shape {tuple(found.shape)}"
            )
            early = [s[name].narrow(axis, 0, T - 1) for s in (shown, again)]
            expect(torch.equal(*(e.nan_to_num() for e in early)), f"an earlier token's {name} changed")
    if "scores" in shown:
        future = torch.ones(T, shown["scores"].shape[-1], dtype=torch.bool).triu(1)
        expect(bool((shown["scores"][..., future] == -torch.inf).all()), "a later key's score is not -inf")
        expect(bool(shown["scores"].isfinite().any(-1).all()), "a query sees no key")


def check_overfits(case: Case, steps: int = 150) -> None:
    """A one-block model around the part drives the loss on one batch below half of its unigram entropy."""
    from mixlab.model.language_model import build_model

    spec = {"kind": case.name, **({} if case.config is None else vars(case.config))}
    keys = {case.kind: spec, **({"feature": "none"} if case.kind == "temporal" else {"temporal": "gru"})}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(
            {"vocab_size": 16, "dim": 32, "depth": 1, "context": 16, "position": case.position, **keys}
        )
        tokens = torch.randint(16, (4, 17))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(inputs, targets)
        loss.backward()
        optimizer.step()
    share = torch.bincount(targets.flatten(), minlength=16) / targets.numel()
    entropy = -(share * share.clamp_min(1e-9).log()).sum().item()
    expect(loss.item() < entropy / 2, f"loss {loss.item():.3f} on one batch, unigram entropy {entropy:.3f}")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_forward,
    check_causality,
    check_chunks,
    check_stepper,
    check_segments,
    check_initialisation,
    check_bookkeeping,
    check_flops,
    check_state_bytes,
    check_save_and_load,
    check_bfloat16,
    check_watched,
    check_overfits,
)
"""What every part must pass; tensor parallelism needs processes and is tested beside them."""
