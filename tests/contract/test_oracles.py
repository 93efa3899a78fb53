"""Every built-in part equals the paper's equation, written naively, in value and in every gradient."""

import pytest
import torch

from mixlab.parts.checks import close
from tests.contract.cases import BUILT_IN, CASES, ORACLES, label


def test_every_built_in_part_has_an_oracle():
    assert set(BUILT_IN) == set(ORACLES)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_part_equals_its_oracle(case):
    part = case.build()
    x = case.sample(2, 7).requires_grad_()
    weight = case.sample(2, 7, seed=4)
    parameters = dict(part.named_parameters())
    found, _ = part(x)
    wanted = ORACLES[case.kind, case.name](parameters, x, part.config, case.position)
    close(found, wanted, "forward")
    inputs = {"x": x, **parameters}
    gradients = [
        torch.autograd.grad((y * weight).sum(), list(inputs.values()), allow_unused=True)
        for y in (found, wanted)
        if y.requires_grad
    ]
    if len(gradients) == 2:
        for name, a, b in zip(inputs, *gradients, strict=True):
            close(a, b, f"gradient of {name}")
