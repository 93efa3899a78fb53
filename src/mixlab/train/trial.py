"""An optimizer of somebody else is tried before a run depends on it: does it step, and does it resume?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mixlab.errors import UserError
from mixlab.train.kinds import Kind
from mixlab.train.memory import Memory

STEPS = 3
"""Before the memory is taken, and again after: the first steps are often special."""


def prove(kind: Kind, name: str, lr: float, settings: Mapping[str, Any]) -> None:
    """UserError, with the reason, unless an optimizer takes its settings, steps, and goes on from what can be
    saved of it exactly as it would have done.

    It is tried on two small matrices and, unless it is for matrices alone, a vector.
    """
    shapes = [(6, 4), (5, 5)] if kind.matrices else [(6, 4), (5, 5), (8,)]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            same = _resumes([torch.randn(shape) for shape in shapes], kind, lr, settings)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever it is: the code is not ours, and its words are the reason
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"train.optimizer.kind '{name}' cannot be used so: {reason}") from None
    if not same:
        raise UserError(
            f"train.optimizer.kind '{name}' cannot be used: it keeps something that a checkpoint does not "
            "hold, so that a resumed run would not be the same run"
        )


class _Trial:
    """The optimizer on parameters of its own and the loss sum(p^2) / 2: gradients are p and noise."""

    def __init__(self, start: list[Tensor], kind: Kind, lr: float, settings: Mapping[str, Any]) -> None:
        self.kind, self.lr = kind, lr
        self.parameters = [nn.Parameter(tensor.clone()) for tensor in start]
        half = len(start) // 2
        tables = [{"params": self.parameters[:half]}, {"params": self.parameters[half:]}]
        self.optimizer: Optimizer = kind.make(tables, lr, settings)
        self.names = {id(p): str(i) for i, p in enumerate(self.parameters)}
        self.memory = Memory(self.optimizer, "@trial")

    def again(self) -> None:
        """Gradients at the present place."""
        for p in self.parameters:
            p.grad = p.detach() + torch.randn_like(p)

    def drawn(self) -> int:
        """The same, for one token."""
        self.again()
        return 1

    def steps(self) -> None:
        """Some steps at rates that change, as a schedule would have it."""
        for step in range(STEPS):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr / (1 + step)
            self.again()
            self.kind.drive(self.optimizer, self)


def _resumes(start: list[Tensor], kind: Kind, lr: float, settings: Mapping[str, Any]) -> bool:
    first = _Trial(start, kind, lr, settings)
    first.steps()
    tensors, scalars = first.memory.save(first.names)
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    second = _Trial([p.detach() for p in first.parameters], kind, lr, settings)
    named = {second.names[id(p)]: p for p in second.parameters}
    second.memory.load(tensors, json.loads(json.dumps(scalars)), named)
    random = torch.get_rng_state()
    first.steps()
    torch.set_rng_state(random)
    second.steps()
    return all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))
