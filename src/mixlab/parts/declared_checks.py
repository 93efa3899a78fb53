"""What a part says of itself against what is found; its initialisation, its weights, whether it learns."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from mixlab.parts.agreement import Broken, close, expect
from mixlab.parts.case import Case, name_of, tensors
from mixlab.parts.contract import Role, Split, Watched
from mixlab.parts.flop_count import flop_mismatch, flops_by_operator


def check_initialisation(case: Case) -> None:
    """`reset_parameters` sets every parameter, and a seed decides them."""
    part = case.build(jitter=0.0)

    def drawn(seed: int) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for parameter in part.parameters():
                parameter.fill_(math.nan)
            part.reset_parameters()
        return {name: p.detach().clone() for name, p in part.named_parameters()}

    first, again, other = drawn(5), drawn(5), drawn(6)
    for name, value in first.items():
        left = int((~value.isfinite()).sum())
        expect(
            left == 0,
            f"reset_parameters leaves {left} of {value.numel()} numbers of {name} unset or not finite: it "
            "must set every parameter, those of submodules too",
        )
        expect(torch.equal(value, again[name]), f"{name} differs between two resets from one seed")
    matrices = [name for name, value in first.items() if value.ndim > 1]
    expect(
        not matrices or any(not torch.equal(first[name], other[name]) for name in matrices),
        f"two seeds give the same {', '.join(matrices)}: reset_parameters draws nothing at random",
    )


def check_bookkeeping(case: Case) -> None:
    """Parameter count and roles are those of the parameters; rates, plan and adapters name what exists."""
    part = case.build()
    sizes = {name: p.numel() for name, p in part.named_parameters()}
    found, said = sum(sizes.values()), part.parameter_count()
    held = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "none"
    expect(said == found, f"parameter_count() is {said}, the parameters hold {found} numbers ({held})")
    roles, allowed = part.parameter_roles(), get_args(Role)
    one_of = f"one of {', '.join(allowed)}"
    for name in sizes:
        expect(name in roles, f"parameter_roles() leaves out {name}: each parameter has {one_of}")
    for name, role in roles.items():
        expect(name in sizes, f"parameter_roles() names {name}, and there is no such parameter")
        expect(role in allowed, f"parameter_roles(): {name} is '{role}', not {one_of}")
    for name, scale in part.lr_scales().items():
        expect(name in sizes, f"lr_scales() names {name}, and there is no such parameter")
        expect(0 < scale < math.inf, f"lr_scales(): {name} has {scale}, not a positive factor")
    modules = dict(part.named_modules())
    adaptable = part.adaptable_linears()
    for name, linear in adaptable.items():
        expect(modules.get(name) is linear, f"adaptable_linears(): {name} is not the name of that module")
        expect(isinstance(linear, nn.Linear), f"adaptable_linears(): {name} is no Linear")
    for name, module in modules.items():
        expect(
            not isinstance(module, nn.Linear) or name in adaptable,
            f"adaptable_linears() leaves out {name}: adapters would pass it by; name every Linear, gates too",
        )
    held_names = set(sizes) | {name for name, _ in part.named_buffers()}
    for name, split in part.tensor_plan().items():
        expect(
            name in held_names or name in modules,
            f"tensor_plan() names {name}, and there is no such parameter, buffer or submodule",
        )
        expect(split in get_args(Split), f"tensor_plan(): {name} has the unknown split '{split}'")
        row = split != "row" or isinstance(modules.get(name), nn.Linear)
        expect(row, f"tensor_plan(): {name} is split by rows and is no Linear")
    units = part.tensor_units()
    expect(
        bool(part.tensor_plan()) == (units > 0),
        f"tensor_units() is {units} and tensor_plan() names {len(part.tensor_plan())}: both or neither",
    )


def check_flops(case: Case, lengths: Sequence[int] = (1, 7, 24)) -> None:
    """flops(T) is what torch's own counter sees in a forward over T tokens; the rule is in `Part.flops`."""
    part = case.build()
    for T in lengths:
        x = case.sample(1, T)
        counted = flops_by_operator(lambda x=x: part(x))  # type: ignore[misc]
        said = part.flops(T)
        expect(said == sum(counted.values()), flop_mismatch(said, counted, T))


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
            held = ", ".join(f"{tuple(t.shape)} in {name_of(t.dtype)}" for t in tensors(state)) or "no tensor"
            expect(
                said == found,
                f"state_bytes({T}, {name_of(dtype)}) is {said}, the state after {T} token{'s'[: T != 1]} "
                f"takes {found} bytes: {held}",
            )


NOT_SAVED = "a tensor that it reads is no parameter and no persistent buffer, so the weights' file lacks it"


def check_save_and_load(case: Case) -> None:
    """Weights written with safetensors and read into a fresh part give the same output, bit for bit."""
    from safetensors.torch import load_file, save_file

    part, x = case.build(), case.sample(2, 6)
    other = case.build(seed=9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.safetensors"
        save_file(part.state_dict(), path)
        other.load_state_dict(load_file(path))
    wanted, found = part(x)[0], other(x)[0]
    if not torch.equal(found, wanted):
        close(found, wanted, (what := "a loaded part computes something else"), cause=NOT_SAVED)
        raise Broken(f"{what} in the last bits; {NOT_SAVED}")


LATER = "what is shown looks ahead"


def check_watched(case: Case, B: int = 2, T: int = 6) -> None:
    """What a part shows is what the contract names, in its shapes, causal; showing draws no random number."""
    part, x = case.build(), case.sample(B, T)
    other = torch.cat((x[:, :-1], case.sample(B, T, seed=2)[:, -1:]), 1)
    before = torch.get_rng_state()
    shown, again = part.watched(x), part.watched(other)
    same = torch.equal(before, torch.get_rng_state())
    expect(same, "watched draws random numbers: a run that is looked at would go another way")
    for name in shown:
        known = ", ".join(get_args(Watched))
        expect(name in get_args(Watched), f"watched shows '{name}', which is none of {known}")
    for name, axes in (("scores", "BHTS"), ("units", "BTF")):
        if name in shown:
            found, at = tuple(shown[name].shape), axes.index("T")
            fits = len(found) == len(axes) and (found[0], found[at]) == (B, T)
            layout = ", ".join(axes)
            expect(fits, f"watched {name} have the shape {found}, not ({layout}) with B {B} and T {T}")
            values = [s[name].narrow(at, 0, T - 1).nan_to_num().movedim(at, 0) for s in (shown, again)]
            changed = [t for t in range(T - 1) if not torch.equal(values[0][t], values[1][t])]
            if changed:
                raise Broken(f"watched {name} at position {changed[0]} depend on position {T - 1}: {LATER}")
    if "scores" in shown:
        future = torch.ones(T, shown["scores"].shape[-1], dtype=torch.bool).triu(1)
        hidden = (shown["scores"] == -torch.inf) | ~future  # (B, H, T, S)
        for *_, query, key in (~hidden).nonzero().tolist()[:1]:
            raise Broken(f"watched scores at position {query} of the key at {key} are not -inf: {LATER}")
        blind = ~shown["scores"].isfinite().any(-1)  # (B, H, T)
        for *_, query in blind.nonzero().tolist()[:1]:
            raise Broken(f"watched scores at position {query} are -inf for every key: it sees none")


def check_overfits(case: Case, steps: int = 150) -> None:
    """In a one-block model every parameter gets a gradient, and the loss on one batch falls below half of its
    unigram entropy."""
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
    unreached = dict(getattr(model.layers()[0], case.kind).named_parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(inputs, targets)
        loss.backward()
        unreached = {name: p for name, p in unreached.items() if p.grad is None or not p.grad.any()}
        optimizer.step()
    expect(
        not unreached,
        f"no gradient reaches {', '.join(unreached)} in {steps} steps: the output does not depend on it, or "
        "a detach stands between",
    )
    share = torch.bincount(targets.flatten(), minlength=16) / targets.numel()
    entropy = -(share * share.clamp_min(1e-9).log()).sum().item()
    expect(
        loss.item() < entropy / 2,
        f"after {steps} steps on one batch of {inputs.numel()} tokens the loss is {loss.item():.3f} nats, "
        f"not below half the unigram entropy of {entropy:.3f}: the part keeps the model from learning",
    )
