"""What a part computes: its shapes, what reads what, and that every way to the same output gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixlab.parts.agreement import Broken, close, expect, first_difference
from mixlab.parts.case import Case, gradient, kind_of, name_of, output, run_in_chunks, tensors
from mixlab.parts.contract import Part
from mixlab.parts.products import PackedProducts, Products, has_packed_products


def check_forward(case: Case) -> None:
    """(B, T, D) to (B, T, D) in the input's dtype; no state in, no state out; a state keeps its layout."""
    part, x = case.build(), case.sample(2, 5)
    y = output(part, x)
    expect(
        y.dtype == x.dtype,
        f"the output is {name_of(y.dtype)} for an input in {name_of(x.dtype)}: something is cast or made "
        "in a dtype of its own; make tensors with dtype=x.dtype",
    )
    _, state = part(x)
    expect(state is None, f"without a state the part returns {kind_of(state)} as the state: it must be None")
    before = part.init_state(2, 5, device="cpu", dtype=torch.float64)
    layout = [(t.shape, t.dtype) for t in tensors(before)]
    for t in tensors(part.init_state(3, 5, device="cpu", dtype=torch.float64)):
        expect(
            not t.ndim or len(t) == 3,
            f"init_state for 3 sequences holds a tensor of shape {tuple(t.shape)}: "
            "the first axis of a state's tensors is the batch",
        )
    _, after = part(x, before)
    expect(
        after is not None or before is None,
        "with a state the part returns None as the state: return the state after the last token",
    )
    expect(
        type(after) is type(before),
        f"the state changes its type from {type(before).__name__} to {type(after).__name__}",
    )
    expect(len(tensors(after)) == len(layout), "the state changes how many tensors it holds")
    for number, (t, (shape, dtype)) in enumerate(zip(tensors(after), layout, strict=True)):
        name = f"tensor {number} of the state"
        expect(t.shape == shape, f"{name} changes its shape from {tuple(shape)} to {tuple(t.shape)}")
        expect(t.dtype == dtype, f"{name} changes its dtype from {name_of(dtype)} to {name_of(t.dtype)}")


def check_batch(case: Case, B: int = 3, T: int = 5) -> None:
    """No sequence of a batch reads another one, in evaluation or in training; alone each gives the same, and
    of an empty batch nothing comes out."""
    part, x, fresh = case.build(), case.sample(B, T), case.sample(B, T, seed=2)
    for training in (False, True):
        part.train(training)
        y = _seeded(part, x)
        for other in range(B):
            changed = x.clone()
            changed[other] = fresh[other]
            rest = [b for b in range(B) if b != other]
            index = first_difference(_seeded(part, changed)[rest], y[rest])
            if index is not None:
                mode = "in training" if training else "in evaluation"
                raise Broken(
                    f"sequence {rest[index[0]]}'s output depends on sequence {other}'s input ({mode}, first "
                    f"at position {index[1]}): something is computed across the batch, such as a batch norm, "
                    "a mean over the first axis, or a view that mixes batch and time"
                )
    part.eval()
    alone = "a sequence alone differs from the same one in a batch"
    close(output(part, x[1:2]), output(part, x)[1:2], alone, cause="the batch size enters the computation")
    empty = tuple(output(part, x[:0]).shape)
    expect(
        empty == (0, T, case.dim),
        f"the output of an empty batch has the shape {empty}, not that of its input",
    )


def _seeded(part: Part, x: Tensor) -> Tensor:
    """The output, the same random numbers drawn each time (dropout)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return output(part, x)


LOOKS_AHEAD = "the mixer looks ahead"


def check_causality(case: Case, T: int = 9, at: int = 4) -> None:
    """What comes at `at` or later changes no earlier output, by value or gradient, and does reach its own."""
    part, x = case.build(), case.sample(2, T).requires_grad_()
    y = output(part, x)
    fresh = case.sample(2, T, seed=2)

    def changed(later: slice) -> Tensor:
        other = x.detach().clone()
        other[:, later] = fresh[:, later]
        return output(part, other)[:, :at]

    index = first_difference(changed(slice(at, T)), y[:, :at])
    if index is not None:
        early = index[1]
        alone = (j for j in range(at, T) if first_difference(changed(slice(j, j + 1)), y[:, :at]))
        later = next(alone, None)
        on = f"position {later}" if later is not None else f"positions {at} to {T - 1} together"
        raise Broken(f"position {early} depends on {on}: {LOOKS_AHEAD}")
    leak = gradient(y[:, :at].square().sum(), x)[:, at:].abs().amax((0, 2))
    if bool((leak != 0).any()):
        later = at + int(leak.nonzero()[0])
        early = next(i for i in range(at) if gradient(y[:, i].square().sum(), x)[:, later].any())
        raise Broken(
            f"position {early} has a gradient to position {later} ({float(leak[later - at]):.2e}), though "
            f"not by value: {LOOKS_AHEAD}"
        )
    if part.mixes:
        own = gradient(y[:, at].square().sum(), x)[:, at].abs().max().item()
        expect(
            own > 0,
            f"position {at} does not depend on its own input: the output at t must read the input at t "
            "(a shift too many, or a detach)",
        )


def check_chunks(case: Case, B: int = 2, T: int = 9, cuts: Sequence[int] = (1, 2, 6)) -> None:
    """Whole == any chunking == one token at a time, in value and in gradient."""
    part, x = case.build(), case.sample(B, T).requires_grad_()
    whole = output(part, x)
    weight = case.sample(B, T, seed=3)
    grad = gradient((whole * weight).sum(), x)
    stateless = part.init_state(B, T, device="cpu", dtype=x.dtype) is None
    for places in (list(cuts), list(range(1, T))):
        lengths = [stop - start for start, stop in zip([0, *places], [*places, T], strict=True)]
        steps = "steps of one token" if places == list(range(1, T)) else None
        name = steps or f"chunks of {', '.join(map(str, lengths))}"
        cause = _cut(places, stateless)
        chunks = run_in_chunks(part, x, places)
        close(chunks, whole, name, cause=cause)
        close(
            gradient((chunks * weight).sum(), x),
            grad,
            f"gradient through {name}",
            cause="the gradient does not pass through the state: a detach, or an update in place",
        )
        with torch.no_grad():
            found = run_in_chunks(part, x, places)
        close(found, whole, f"{name} without gradient", cause="what is done in place then is not the same")


def _cut(cuts: Sequence[int], stateless: bool) -> Callable[[tuple[int, ...]], str]:
    """The likely cause of a difference, by where it is from the last cut before it."""

    def cause(index: tuple[int, ...]) -> str:
        position = index[1]
        start = max((cut for cut in cuts if cut <= position), default=0)
        if not start:
            return "in the first chunk: a state from init_state is not the same as none"
        if stateless:
            return f"{_after(position, start)}: init_state returns None, yet earlier positions are needed"
        if position == start:
            return "right after the cut: the state returned does not hold what the next chunk needs"
        return f"{_after(position, start)}: the state holds too little of what came before the cut"

    return cause


def _after(position: int, cut: int) -> str:
    return "right after the cut" if position == cut else f"{position - cut} after the cut at {cut}"


def check_stepper(case: Case, T: int = 9) -> None:
    """The part's own step of single tokens == `mix`, in outputs and states; with packed products too."""
    packed = [(PackedProducts(), torch.float32, torch.float16)] if has_packed_products() else []
    for products, dtype, within in [(Products(), torch.float64, torch.float64), *packed]:
        part, x = case.build(dtype, jitter=0.05), case.sample(1, T, dtype)
        step = part.stepper(products) or products.inside(part)
        state, other = (part.init_state(1, T, device="cpu", dtype=dtype) for _ in range(2))
        with torch.no_grad():
            for t, x_t in enumerate(x.split(1, 1)):
                wanted, state = part(x_t, state)
                found, other = step(x_t, other)
                name = f"stepper with {type(products).__name__}, token {t}"
                close(found, wanted, name, within, cause="it computes something else than mix")
                for number, (a, b) in enumerate(zip(tensors(other), tensors(state), strict=True)):
                    close(a, b, f"{name}, tensor {number} of the state", within)
        expect(
            type(other) is type(state),
            f"stepper makes {kind_of(other)} of the state, mix makes {kind_of(state)}",
        )


def check_segments(case: Case, lengths: Sequence[Sequence[int]] = ((3, 1, 4), (8,), (2, 6))) -> None:
    """Packed documents equal the same ones run separately, in value and in gradient."""
    T = sum(lengths[0])
    part, x = case.build(), case.sample(len(lengths), T).requires_grad_()
    numbers = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
    segment = torch.stack(numbers)
    packed = output(part, x, segment=segment)
    _, state = part(x, segment=segment)
    expect(state is None, f"with segment the part returns {kind_of(state)} as the state: it must be None")

    def cause(index: tuple[int, ...]) -> str:
        row, position = index[:2]
        document = int(segment[row, position])
        if not document:
            return "in the first document: a sequence with segment is not computed as one without"
        first = sum(lengths[row][:document])
        which = f"{position - first} into document {document}" if position > first else f"document {document}"
        begins = "begins there" if position == first else f"which begins at {first}"
        return f"{which}, {begins}: something of the documents before it gets in"

    pairs = zip(x, lengths, strict=True)
    alone = torch.stack([torch.cat([part(d[None])[0][0] for d in row.split(list(n))]) for row, n in pairs])
    names = " and of ".join(", ".join(map(str, row)) for row in lengths)
    close(packed, alone, f"packed documents of {names} tokens", cause=cause)
    separate = gradient(alone.square().sum(), x)
    close(
        gradient(packed.square().sum(), x),
        separate,
        f"gradient through packed documents of {names} tokens",
        cause=cause,
    )


def check_bfloat16(case: Case) -> None:
    """Under bf16 autocast the output stays within the table of float32's."""
    part, x = case.build(torch.float32, jitter=0.05), case.sample(2, 12, torch.float32)
    wanted, _ = part(x)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = part(x.bfloat16())
    keep = "keep recurrent states and softmax statistics in float32 (mixlab.parts.contract.state_dtype)"
    close(found, wanted, "bf16 autocast against float32", torch.bfloat16, cause=keep)
