"""Optimizers by role: which parameter gets which update rule, at what rate and with what decay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mixlab.errors import UserError
from mixlab.train import kinds
from mixlab.train.config import ROLES, OptimizerConfig
from mixlab.train.kinds import Passes
from mixlab.train.memory import Memory, Tensors
from mixlab.train.trial import prove
from mixlab.train.width import Shape, shape_of

# Decay pulls towards zero what multiplies a stream of activations. A gain is meant to be near one, an
# embedding row is touched only when its token occurs, and a recurrence's decays and biases set a memory's
# length.
DECAYING = ("matrix", "head")
REST = "adamw"
"""The kind that takes what another leaves."""


class Group(NamedTuple):
    """What parameters that are treated alike share. rule: a kind. lr_scale: factor on the schedule's rate."""

    rule: str
    role: str
    lr_scale: float
    decay: float


def assign(model: nn.Module, config: OptimizerConfig) -> dict[str, Group]:
    """Parameter name -> its group, for every trainable parameter.

    RuntimeError where the model's roles are not one for each.
    """
    roles: Mapping[str, str] = model.parameter_roles()  # type: ignore[operator]
    scales: Mapping[str, float] = model.lr_scales()  # type: ignore[operator]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    every = {name for name, _ in model.named_parameters()}
    if not set(named) <= set(roles) <= every:
        wrong = sorted((set(named) - set(roles)) | (set(roles) - every))
        raise RuntimeError(f"parameter_roles() and named_parameters() disagree about {', '.join(wrong)}")
    strange = sorted(set(roles.values()) - set(ROLES))
    if strange:
        raise RuntimeError(f"unknown parameter roles: {', '.join(strange)}")
    kind, decay = kinds.find(config.kind), config.settings().get("weight_decay", 0.0)
    ratios: Mapping[str, tuple[float, float]] = model.width_ratios()  # type: ignore[operator]
    plan = {}
    for name, parameter in named.items():
        role = roles[name]
        # A matrix that is not stored in two dimensions (a convolution, blocks) is none to these rules.
        left = kind.matrices and not (role == "matrix" and parameter.ndim == 2)
        rule = REST if left else config.kind
        factor = _width_factor(rule, shape_of(parameter, role, ratios[name])) if ratios else 1.0
        plan[name] = Group(
            rule=rule,
            role=role,
            lr_scale=scales.get(name, 1.0) * config.lr_scale.get(role, 1.0) * factor,
            # What decays in a step, rate times decay, stays as it was tuned.
            decay=config.decay.get(role, decay if role in DECAYING else 0.0) / factor,
        )
    return plan


def _width_factor(rule: str, shape: Shape) -> float:
    follows = kinds.find(rule).width
    if follows is None:
        known = ", ".join(name for name, kind in kinds.KINDS.items() if kind.width)
        raise UserError(
            f"model.mup_base_dim: how the learning rate of {rule} follows the width is not known; "
            f"choose a kind for which it is ({known}), or set it to 0"
        )
    return follows(shape)


class Optimizers:
    """The optimizers of one model, stepped together, with their memory by parameter name.

    bfloat16: whether the run multiplies in it; then Muon does too.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, *, bfloat16: bool = False) -> None:
        self.config, self.bfloat16 = config, bfloat16
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.plan = assign(model, config)
        self.by_rule: dict[str, Optimizer] = {}
        self.tables: list[tuple[Group, dict[str, Any]]] = []
        for rule in dict.fromkeys(group.rule for group in self.plan.values()):
            self._make(rule)
        self.memories = {rule: Memory(o, f"@{rule.replace(':', '.')}") for rule, o in self.by_rule.items()}
        self._apart: Tensors = {}
        self._check_each_once()

    def _make(self, rule: str) -> None:
        """The optimizer of one rule, with a parameter group for each of its groups."""
        kind, settings = kinds.find(rule), self.config.settings_of(rule)
        if rule not in kinds.KINDS or (rule == self.config.kind and self.config.options):
            prove(kind, rule, self.config.lr, settings)
        groups: dict[Group, list[nn.Parameter]] = {}
        for name, group in self.plan.items():
            if group.rule == rule:
                groups.setdefault(group, []).append(self.parameters[name])
        settings.pop("weight_decay", None)
        takes_decay = "weight_decay" in kind.knobs
        tables = [
            {"params": parameters, **({"weight_decay": group.decay} if takes_decay else {})}
            for group, parameters in groups.items()
        ]
        optimizer = self.by_rule[rule] = kind.make(tables, self.config.lr, settings, bfloat16=self.bfloat16)
        self.tables += zip(groups, optimizer.param_groups, strict=True)

    def _check_each_once(self) -> None:
        held = [id(p) for o in self.by_rule.values() for group in o.param_groups for p in group["params"]]
        if sorted(held) != sorted(id(p) for p in self.parameters.values()):
            raise RuntimeError("every parameter must be in exactly one optimizer group")

    def set_lr(self, lr: float) -> None:
        """Use `lr`, times its own scale, in every group from the next step on."""
        for group, table in self.tables:
            table["lr"] = lr * group.lr_scale

    def keep(self, model: nn.Module) -> None:
        """Go on with the parameters that `model` still has, and forget the others."""
        names = {name for name, _ in model.named_parameters()}
        gone = {id(p): p for name, p in self.parameters.items() if name not in names}
        self.parameters = {name: p for name, p in self.parameters.items() if name in names}
        self.plan = {name: group for name, group in self.plan.items() if name in names}
        for optimizer in self.by_rule.values():
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in gone]
            for p in gone.values():
                optimizer.state.pop(p, None)
        self._check_each_once()

    def step(self, passes: Passes) -> None:
        """Update every parameter from its gradient, and drop the gradients."""
        for rule, optimizer in self.by_rule.items():
            kinds.find(rule).drive(optimizer, passes)
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget what backward added up."""
        for optimizer in self.by_rule.values():
            optimizer.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Scale the gradients to a global norm of at most `clip`; returns the norm before, a scalar."""
        limit = self.config.clip or float("inf")
        return nn.utils.clip_grad_norm_(self.parameters.values(), limit, foreach=True)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, parameters are those that count: to be evaluated, and kept as the model's."""
        averaging: list[Any] = [o for rule, o in self.by_rule.items() if kinds.find(rule).averages]
        if not averaging:
            yield
            return
        # Changing over and back is an interpolation each way, which does not give the same bits.
        self._apart = {name: p.detach().clone() for name, p in self.parameters.items()}
        for optimizer in averaging:
            optimizer.eval()
        try:
            yield
        finally:
            for optimizer in averaging:
                optimizer.train()
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(self._apart[name])
            self._apart = {}

    def state_dict(self) -> tuple[Tensors, dict[str, Any]]:
        """What the optimizers remember: tensors, and what JSON holds.

        Inside `averaged` the parameters that are trained are among it.
        """
        names = {id(p): name for name, p in self.parameters.items()}
        tensors = {f"{name}:{TRAINED}": p for name, p in self._apart.items()}
        scalars = {}
        for rule, memory in self.memories.items():
            kept, scalars[rule] = memory.save(names)
            tensors |= kept
        return tensors, scalars

    def load_state_dict(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; UserError for a parameter that the model does not have."""
        strangers = {label.partition(":")[0] for label in tensors if ":" in label} - set(self.parameters)
        if strangers:
            raise UserError(f"the optimizer remembers {min(strangers)}, which the model does not have")
        trained = {n.partition(":")[0]: t for n, t in tensors.items() if n.endswith(f":{TRAINED}")}
        with torch.no_grad():
            for name, tensor in trained.items():
                self.parameters[name].copy_(tensor)
        kept = {label: t for label, t in tensors.items() if not label.endswith(f":{TRAINED}")}
        for rule, memory in self.memories.items():
            own = {name: p for name, p in self.parameters.items() if self.plan[name].rule == rule}
            memory.load(kept, scalars.get(rule, {}), own)


TRAINED = "trained"
"""The key of the parameters that `averaged` puts aside."""
