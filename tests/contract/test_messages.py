"""A part that breaks the contract is told where it does and what the likely cause is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixlab.parts import contract
from mixlab.parts.agreement import close
from mixlab.parts.checks import (
    CHECKS,
    Case,
    check_batch,
    check_bfloat16,
    check_bookkeeping,
    check_causality,
    check_chunks,
    check_flops,
    check_forward,
    check_initialisation,
    check_overfits,
    check_save_and_load,
    check_segments,
    check_state_bytes,
    check_stepper,
    check_watched,
)
from mixlab.parts.contract import Part, init_linear, state_dtype


class State(NamedTuple):
    """The average so far, (B, D)."""

    h: Tensor


class Right(Part):
    """A running average and a Linear: keeps the contract. Each part below breaks it in one way."""

    def __init__(self, config: Any, place: Any) -> None:
        super().__init__(config, place)
        self.raw = nn.Parameter(torch.empty(self.dim))
        self.out = nn.Linear(self.dim, self.dim, bias=False)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.raw, math.log(3))
        init_linear(self.out, self.dim**-0.5)

    def parameter_count(self) -> int:
        return self.dim + self.dim**2

    def flops(self, T: int) -> int:
        return 2 * T * self.dim**2

    def init_state(self, batch_size: int, max_length: int, *, device: Any, dtype: Any) -> Any:
        return State(torch.zeros(batch_size, self.dim, device=device, dtype=state_dtype(dtype)))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        return self.dim * state_dtype(dtype).itemsize

    def mix(self, x: Tensor, state: Any) -> Any:
        a = torch.sigmoid(self.raw)
        h = torch.zeros_like(x[:, 0], dtype=a.dtype) if state is None else state.h.to(a.dtype)
        averages = []
        for x_t in x.unbind(1):
            h = a * h + (1 - a) * x_t
            averages.append(h)
        y = self.out(torch.stack(averages, 1).to(x.dtype))
        return y, None if state is None else State(h.to(state.h.dtype))


class LooksAhead(Right):
    def mix(self, x, state):
        y, state = super().mix(x, state)
        return y + F.pad(x[:, 1:], (0, 0, 0, 1)), state


class LooksAheadForTheGradient(Right):
    def mix(self, x, state):
        y, state = super().mix(x, state)
        later = F.pad(x[:, 1:], (0, 0, 0, 1))
        return y + later - later.detach(), state


class Shifted(Right):
    def mix(self, x, state):
        y, state = super().mix(x, state)
        return F.pad(y[:, :-1], (0, 0, 1, 0)), state


class ForgetsItsState(Right):
    def mix(self, x, state):
        y, after = super().mix(x, state)
        return y, None if state is None else State(torch.zeros_like(after.h))


class StartsOtherwise(Right):
    def init_state(self, batch_size, max_length, *, device, dtype):
        return State(super().init_state(batch_size, max_length, device=device, dtype=dtype).h + 1)


class HoldsTooLittle(Right):
    """A window of three whose state holds the last token alone."""

    def mix(self, x, state):
        before = torch.zeros_like(x[:, :1]) if state is None else state.h.to(x.dtype)[:, None]
        long = torch.cat([torch.zeros_like(x[:, :1]), before, x], 1)
        y = self.out(long[:, 2:] + long[:, :-2])
        return y, None if state is None else State(x[:, -1].to(state.h.dtype))


class KeepsNothing(Right):
    def init_state(self, batch_size, max_length, *, device, dtype):
        return None

    def state_bytes(self, T, dtype):
        return 0


class DetachesItsState(Right):
    def mix(self, x, state):
        return super().mix(x, None if state is None else State(state.h.detach()))


class ReturnsNoState(Right):
    def mix(self, x, state):
        return super().mix(x, state)[0], None


class ReturnsTheOutputAlone(Right):
    def mix(self, x, state):
        return super().mix(x, state)[0]


class Narrower(Right):
    def mix(self, x, state):
        y, state = super().mix(x, state)
        return y[..., :-1], state


class OfItsOwnDtype(Right):
    def mix(self, x, state):
        y, state = super().mix(x, state)
        return y.float(), state


class MixesTheBatch(Right):
    def mix(self, x, state):
        y, state = super().mix(x, state)
        return y + x.mean(0, keepdim=True), state


class NormsTheBatch(Right):
    """Only in training."""

    def __init__(self, config, place):
        super().__init__(config, place)
        self.norm = nn.BatchNorm1d(self.dim, affine=False)

    def mix(self, x, state):
        return super().mix(self.norm(x.transpose(1, 2)).transpose(1, 2), state)


class MixesDocuments(Right):
    def mix_segments(self, x, segment, **rest):
        return self.mix(x, None)[0]


class DrawsNothing(Right):
    def reset_parameters(self):
        nn.init.constant_(self.raw, math.log(3))
        nn.init.eye_(self.out.weight)


class ForgetsAParameter(Right):
    def reset_parameters(self):
        nn.init.constant_(self.raw, math.log(3))


class MissesARole(Right):
    def parameter_roles(self):
        return {"raw": "recurrence"}


class HasAnOddRole(Right):
    def parameter_roles(self):
        return {"raw": "vector", "out.weight": "matrix"}


class Miscounts(Right):
    def parameter_count(self):
        return self.dim**2


class HidesALinear(Right):
    def adaptable_linears(self):
        return {}


class PlansNothing(Right):
    def tensor_plan(self):
        return {"gate": "column"}


class HalvesItsFlops(Right):
    def flops(self, T):
        return T * self.dim**2


class CountsElementWise(Right):
    def flops(self, T):
        return 2 * T * self.dim**2 + 3 * T * self.dim


class LeavesOutTheConvolution(Right):
    def __init__(self, config, place):
        super().__init__(config, place)
        self.kernel = nn.Parameter(torch.empty(self.dim, 1, 1))

    def mix(self, x, state):
        x = F.conv1d(x.transpose(1, 2), self.kernel.to(x.dtype), groups=self.dim).transpose(1, 2)
        return super().mix(x, state)


class HalvesItsState(Right):
    def state_bytes(self, T, dtype):
        return self.dim * dtype.itemsize


class SavesTooLittle(Right):
    def reset_parameters(self):
        super().reset_parameters()
        self.scale = torch.rand(())

    def mix(self, x, state):
        return super().mix(x * self.scale, state)


class RoundsItsAverage(Right):
    def mix(self, x, state):
        h, total = torch.zeros_like(x[:, 0]), []
        for x_t in (8 * x).unbind(1):
            h = h + x_t
            total.append(h)
        y = self.out(torch.stack(total, 1))
        return y - 8 * x.float().cumsum(1) @ self.out.weight.float().T, state


class LearnsNothing(Right):
    def mix(self, x, state):
        y, state = super().mix(x.detach() * 0, state)
        return y.detach(), state


class Drowns(Right):
    def mix(self, x, state):
        y, state = super().mix(x, state)
        return y + 1e6, state


class ShowsWhatIsToCome(Right):
    def watched(self, x):
        return {"units": x.flip(1)}


class ShowsALaterKey(Right):
    def watched(self, x):
        return {"scores": torch.zeros(*x.shape[:2], x.shape[1])[:, None]}


class ShowsAnOddShape(Right):
    def watched(self, x):
        return {"units": x[0]}


class StepsOtherwise(Right):
    def stepper(self, products):
        return lambda x, state: (2 * self.mix(x, state)[0], state)


BROKEN = [
    (LooksAhead, check_causality, r"position 3 depends on position 4: the mixer looks ahead"),
    (
        LooksAheadForTheGradient,
        check_causality,
        r"position 3 has a gradient to position 4 \(.*\), though not by value: the mixer looks ahead",
    ),
    (Shifted, check_causality, r"position 4 does not depend on its own input.*a shift too many"),
    (
        ForgetsItsState,
        check_chunks,
        r"chunks of 1, 1, 4, 3: first differs at position 1 \(sequence \d, channel \d+\): found \S+, "
        r"expected \S+; right after the cut: the state returned does not hold what the next chunk needs",
    ),
    (
        StartsOtherwise,
        check_chunks,
        r"first differs at position 0 .*in the first chunk: a state from init_state is not the same as none",
    ),
    (
        HoldsTooLittle,
        check_chunks,
        r"chunks of 1, 1, 4, 3: first differs at position 2 .*; right after the cut: the state returned does",
    ),
    (KeepsNothing, check_chunks, r"position 1 .*init_state returns None, yet earlier positions are needed"),
    (
        DetachesItsState,
        check_chunks,
        r"gradient through chunks of 1, 1, 4, 3: first differs at position 0 .*the gradient does not pass "
        r"through the state: a detach, or an update in place",
    ),
    (
        ReturnsNoState,
        check_forward,
        r"with a state the part returns None as the state: return the state after",
    ),
    (ReturnsTheOutputAlone, check_forward, r"the part returns a Tensor: return \(output, state\)"),
    (
        Narrower,
        check_forward,
        r"output has the shape \(2, 5, 15\) for an input of \(2, 5, 16\): a mixer keeps",
    ),
    (OfItsOwnDtype, check_forward, r"the output is float32 for an input in float64: .*with dtype=x\.dtype"),
    (
        MixesTheBatch,
        check_batch,
        r"sequence 1's output depends on sequence 0's input \(in evaluation, first at position 0\): "
        r"something is computed across the batch",
    ),
    (NormsTheBatch, check_batch, r"depends on sequence 0's input \(in training, .*such as a batch norm"),
    (
        MixesDocuments,
        check_segments,
        r"packed documents of 3, 1, 4 and of 8 and of 2, 6 tokens: first differs at position 2 \(sequence "
        r"2, .*document 1, begins there: something of the documents before it gets in",
    ),
    (
        DrawsNothing,
        check_initialisation,
        r"two seeds give the same out\.weight: reset_parameters draws nothing",
    ),
    (
        ForgetsAParameter,
        check_initialisation,
        r"reset_parameters leaves 256 of 256 numbers of out\.weight unset or not finite",
    ),
    (
        MissesARole,
        check_bookkeeping,
        r"parameter_roles\(\) leaves out out\.weight: each parameter has one of mat",
    ),
    (HasAnOddRole, check_bookkeeping, r"parameter_roles\(\): raw is 'vector', not one of matrix, embedding"),
    (
        Miscounts,
        check_bookkeeping,
        r"parameter_count\(\) is 256, the parameters hold 272 numbers \(raw 16, out\.weight 256\)",
    ),
    (HidesALinear, check_bookkeeping, r"adaptable_linears\(\) leaves out out: adapters would pass it by"),
    (PlansNothing, check_bookkeeping, r"tensor_plan\(\) names gate, and there is no such"),
    (
        HalvesItsFlops,
        check_flops,
        r"flops\(1\) is 256, torch counts 512 in a forward over 1 token \(aten\.mm 512\); the formula "
        r"counts a multiply-add as 1, not 2; the rule: 2 for each multiply-add",
    ),
    (
        CountsElementWise,
        check_flops,
        r"\(aten\.mm 512\); the formula has 48 too many; the rule: .*0 for element-w",
    ),
    (
        LeavesOutTheConvolution,
        check_flops,
        r"aten\.convolution 32.*the formula leaves out what aten\.convolution takes",
    ),
    (
        HalvesItsState,
        check_state_bytes,
        r"state_bytes\(1, bfloat16\) is 32, the state after 1 token takes 64 bytes: \(1, 16\) in float32",
    ),
    (
        SavesTooLittle,
        check_save_and_load,
        r"a loaded part computes something else: first differs at position 0 .*no ",
    ),
    (
        RoundsItsAverage,
        check_bfloat16,
        r"bf16 autocast against float32: first differs at .*; keep recurrent states",
    ),
    (LearnsNothing, check_overfits, r"no gradient reaches raw, out\.weight in 150 steps: .*a detach stands"),
    (
        Drowns,
        check_overfits,
        r"after 150 steps on one batch of 64 tokens the loss is \S+ nats, not below half",
    ),
    (
        ShowsWhatIsToCome,
        check_watched,
        r"watched units at position 0 depend on position 5: what is shown looks ahead",
    ),
    (ShowsALaterKey, check_watched, r"watched scores at position 0 of the key at 1 are not -inf"),
    (ShowsAnOddShape, check_watched, r"have the shape \(6, 16\), not \(B, T, F\) with B 2 and T 6"),
    (
        StepsOtherwise,
        check_stepper,
        r"stepper with Products, token 0: .*; it computes something else than mix",
    ),
]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch):
    """Registers a part for the time of a test, without the tests' shape checks, which would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)

    def of(part: type[Part]) -> Case:
        monkeypatch.setitem(contract._REGISTRY["temporal"], "broken", part)
        return Case("temporal", "broken")

    yield of
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("check", CHECKS)
def test_the_part_that_the_broken_ones_are_made_of_keeps_the_contract(case, check) -> None:
    check(case(Right))


@pytest.mark.parametrize(("part", "check", "sentence"), BROKEN, ids=[part.__name__ for part, *_ in BROKEN])
def test_a_broken_part_is_told_where_and_why(case, part, check, sentence) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(case(part))


def test_every_check_has_a_part_that_breaks_it() -> None:
    untold = {check.__name__ for check in CHECKS} - {check.__name__ for _, check, _ in BROKEN}
    assert untold == set()


def test_a_difference_of_other_shapes_is_placed_too() -> None:
    x = torch.arange(6.0).view(2, 3)
    close(x, x.clone(), "equal")
    with pytest.raises(AssertionError, match=r"^it: first differs at index \(1, 2\): found 5, expected 50$"):
        close(x, torch.where(x == 5, 50.0, x), "it")
    with pytest.raises(AssertionError, match="^it: found nan, expected 1; why$"):
        close(torch.tensor(math.nan), torch.tensor(1.0), "it", cause="why")
    with pytest.raises(AssertionError, match=r"it has the shape \(2, 3\), expected \(3, 2\)"):
        close(x, x.view(3, 2), "it")
