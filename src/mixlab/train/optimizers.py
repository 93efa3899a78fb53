"""Optimizers by role: which parameter gets which update rule and whether it decays."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from mixlab.train.config import OptimizerConfig

# Decay pulls towards zero what multiplies a stream of activations. A gain is meant to be near one, an
# embedding row is touched only when its token occurs, and a recurrence's decays and biases set a memory's
# length.
DECAYS = {"matrix": True, "head": True, "embedding": False, "gain": False, "recurrence": False}


def assign(model: nn.Module, kind: str) -> dict[str, tuple[str, bool]]:
    """Parameter name -> (rule, decays): rule is "adamw" or "muon".

    Every trainable parameter has exactly one entry. RuntimeError where the model's roles are not one for
    each.
    """
    roles: Mapping[str, str] = model.parameter_roles()  # type: ignore[operator]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    every = {name for name, _ in model.named_parameters()}
    if not set(named) <= set(roles) <= every:
        wrong = sorted((set(named) - set(roles)) | (set(roles) - every))
        raise RuntimeError(f"parameter_roles() and named_parameters() disagree about {', '.join(wrong)}")
    strange = sorted(set(roles.values()) - set(DECAYS))
    if strange:
        raise RuntimeError(f"unknown parameter roles: {', '.join(strange)}")
    plan = {}
    for name, parameter in named.items():
        # torch's Muon takes 2-D tensors only; a matrix of another shape (a convolution) stays with AdamW.
        by_muon = kind == "muon" and roles[name] == "matrix" and parameter.ndim == 2
        plan[name] = ("muon" if by_muon else "adamw", DECAYS[roles[name]])
    return plan


class Optimizers:
    """The optimizers of one model, stepped together, with their state by parameter name."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.plan = assign(model, config.kind)
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, group in self.plan.items():
            groups.setdefault(group, []).append(self.parameters[name])
        decay = {True: config.weight_decay, False: 0.0}
        tables = {
            rule: [{"params": ps, "weight_decay": decay[d]} for (r, d), ps in groups.items() if r == rule]
            for rule in ("adamw", "muon")
        }
        self.by_rule: dict[str, Optimizer] = {}
        if tables["adamw"]:
            # One kernel a parameter, not a dozen: a third of the time of foreach on a CPU.
            self.by_rule["adamw"] = AdamW(
                tables["adamw"], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
            )
        if tables["muon"]:
            # match_rms_adamw scales an update of spectral norm 1 to the root mean square of AdamW's (about
            # 0.2), so that its learning rate and decay carry over (Liu et al. 2025, arXiv 2502.16982,
            # section 2.2).
            self.by_rule["muon"] = Muon(
                tables["muon"], lr=config.lr, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"
            )
        self._check_each_once()

    def _check_each_once(self) -> None:
        held = [id(p) for o in self.by_rule.values() for group in o.param_groups for p in group["params"]]
        if sorted(held) != sorted(id(p) for p in self.parameters.values()):
            raise RuntimeError("every parameter must be in exactly one optimizer group")

    def set_lr(self, lr: float) -> None:
        """Use `lr` in every group from the next step on."""
        for optimizer in self.by_rule.values():
            for group in optimizer.param_groups:
                group["lr"] = lr

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

    def step(self) -> None:
        """Update every parameter from its gradient, and drop the gradients."""
        for optimizer in self.by_rule.values():
            optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget what backward added up."""
        for optimizer in self.by_rule.values():
            optimizer.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Scale the gradients to a global norm of at most `clip`; returns the norm before, a scalar."""
        limit = self.config.clip or float("inf")
        return nn.utils.clip_grad_norm_(self.parameters.values(), limit, foreach=True)

    def state_dict(self) -> dict[str, Tensor]:
        """ "PARAMETER:KEY" -> tensor, for every tensor that any optimizer keeps."""
        names = {id(p): name for name, p in self.parameters.items()}
        return {
            f"{names[id(p)]}:{key}": value
            for optimizer in self.by_rule.values()
            for p, kept in optimizer.state.items()
            for key, value in kept.items()
            if isinstance(value, Tensor)
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave; KeyError for a parameter that the model does not have."""
        for optimizer in self.by_rule.values():
            optimizer.state.clear()
        for label, value in tensors.items():
            name, _, key = label.rpartition(":")
            parameter = self.parameters[name]
            # A fused optimizer keeps its step counter with the parameter too.
            self.by_rule[self.plan[name][0]].state[parameter][key] = value.to(parameter.device, copy=True)

    def explain(self) -> dict[str, str]:
        """Parameter name -> one phrase: the rule and the decay."""
        decay = self.config.weight_decay
        return {name: f"{rule}, decay {decay if d else 0}" for name, (rule, d) in self.plan.items()}
