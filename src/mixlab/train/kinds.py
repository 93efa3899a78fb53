"""The kinds of optimizer: one table of what each is, which knobs it takes and what it asks of the loop.

A kind of torch.optim goes by a short name; any class of the package pytorch_optimizer goes by
`pytorch_optimizer:NAME` where that is installed (the extra `optimizers`).
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, Adafactor, Adam, AdamW, Muon, Optimizer

from mixlab.errors import UserError
from mixlab.train import width
from mixlab.train.muon import FullPrecisionMuon

PACKAGE = "pytorch_optimizer"
OURS = ("self", "params", "lr", "foreach", "fused", "capturable", "differentiable", "maximize", "model")
"""Arguments of an optimizer that a person does not give: the loop's and the schedule's to choose."""


class Passes(Protocol):
    """Further looks at the step's own batch, for an optimizer that needs more than its gradient."""

    def again(self) -> None:
        """Replace the gradients by those at the present parameters, clipped; RunFailed if not finite."""

    def drawn(self) -> int:
        """Replace the gradients by those towards tokens drawn from the model's own predictions; returns
        how many tokens the mean is over."""


def plain(optimizer: Optimizer, passes: Passes) -> None:
    """The gradient is all it takes."""
    optimizer.step()


def twice(optimizer: Any, passes: Passes) -> None:
    """To the worst place nearby, the gradient there, and the update from where it was (Foret et al. 2021)."""
    optimizer.first_step(zero_grad=True)
    passes.again()
    optimizer.second_step()


def with_curvature(optimizer: Any, passes: Passes) -> None:
    """Every few steps the diagonal of the Gauss-Newton matrix, estimated from the gradient g towards B drawn
    tokens as B g^2 (Liu et al. 2023, Sophia, algorithm 2): no second derivative is taken."""
    estimate = None
    if optimizer.param_groups[0].get("step", 0) % optimizer.update_period == 0:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = [p.grad for p in parameters]
        tokens = passes.drawn()
        estimate = [_or_zero(p).square().mul_(tokens) for p in parameters]
        for p, gradient in zip(parameters, kept, strict=True):
            p.grad = gradient
    optimizer.step(hessian=estimate)


def _or_zero(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One update rule.

    load: gives the class; full: the one for a run in float32, where that is another. knobs: key of
    OptimizerConfig that it takes -> its own default; the argument of the class goes by the same name.
    fixed: arguments that make the class this kind. group: entries of its parameter groups. matrices: it is
    for the 2-D matrices inside the blocks, and AdamW takes the rest. drive: makes a step. asks: what that
    costs besides a gradient, in words. work: FLOPs of a step over those of a gradient, by the options.
    averages: it keeps the parameters that count apart from those it trains, with train() and eval() to
    change over. width: how its rate follows the width; None if that is not known. refused: why it cannot be
    used.
    """

    load: Callable[[], type[Optimizer]]
    full: Callable[[], type[Optimizer]] | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    group: Mapping[str, Any] = field(default_factory=dict)
    matrices: bool = False
    drive: Callable[[Any, Passes], None] = plain
    asks: str = ""
    work: Callable[[Mapping[str, Any]], float] = lambda options: 1.0
    averages: bool = False
    width: width.Rule | None = None
    refused: str = ""

    @property
    def takes(self) -> Mapping[str, Any]:
        """Key of OptimizerConfig -> default, for this kind and what takes the rest."""
        return {**KINDS["adamw"].knobs, **self.knobs} if self.matrices else self.knobs

    def options(self) -> list[str]:
        """The class's arguments that are neither knobs nor fixed: what `options` may hold."""
        parameters = inspect.signature(self.load().__init__).parameters
        named = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        return [name for name in named if name not in (*OURS, *self.knobs, *self.fixed)]

    def make(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        settings: Mapping[str, Any],
        *,
        bfloat16: bool = False,
    ) -> Optimizer:
        """The optimizer of parameter groups; settings: knobs and options, lists as tuples. bfloat16: whether
        the run is under its autocast."""
        load = self.load if bfloat16 or self.full is None else self.full
        tables = [{**group, **self.group} for group in groups]
        arguments = {**self.fixed, **settings}
        return load()(tables, lr=lr, **arguments)  # type: ignore[call-arg]


# A decay is subtracted apart from the gradient's update (Loshchilov & Hutter 2019) but in torch's SGD and
# Adam, which add it to the gradient: there it is off unless asked for. Betas and decay of AdamW: GPT-3,
# Llama; a short memory of squares stands bursts better. One fused kernel a parameter takes a third of
# foreach's time on a CPU. match_rms_adamw scales an update of spectral norm 1 to the root mean square of
# AdamW's (about 0.2), so that learning rate and decay carry over (Liu et al. 2025, arXiv 2502.16982, 2.2).
KINDS: Mapping[str, Kind] = {
    "sgd": Kind(load=lambda: SGD, knobs={"weight_decay": 0.0}, fixed={"fused": True}, width=width.sgd),
    "momentum": Kind(
        load=lambda: SGD,
        knobs={"weight_decay": 0.0, "momentum": 0.9},
        fixed={"fused": True},
        width=width.sgd,
    ),
    "nesterov": Kind(
        load=lambda: SGD,
        knobs={"weight_decay": 0.0, "momentum": 0.9},
        fixed={"fused": True, "nesterov": True},
        width=width.sgd,
    ),
    "adam": Kind(
        load=lambda: Adam,
        knobs={"weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-8},
        fixed={"fused": True},
        width=width.adam,
    ),
    "adamw": Kind(
        load=lambda: AdamW,
        knobs={"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8},
        fixed={"fused": True},
        width=width.adam,
    ),
    "muon": Kind(
        load=lambda: Muon,
        full=lambda: FullPrecisionMuon,
        knobs={"weight_decay": 0.1, "momentum": 0.95},  # Jordan et al. 2024
        fixed={"adjust_lr_fn": "match_rms_adamw"},
        width=width.muon,
        matrices=True,
    ),
    "adafactor": Kind(load=lambda: Adafactor, knobs={"weight_decay": 0.0}, width=width.relative),
}

_MATRICES = {"matrices": True, "knobs": {"weight_decay": 0.1}}
_MUONS = {**_MATRICES, "group": {"use_muon": True}}
_AVERAGES = {"averages": True, "asks": "other parameters to evaluate and save than to train"}
_INSIDE = {"refused": "it updates parameters inside the backward pass, before they can be clipped"}
_TWICE = {"refused": "it differentiates twice, which the parts' own backward passes do not allow"}
_PARALLEL = {"refused": "it is for several processes"}

# What is different about a class of the package; all others take a gradient for every parameter alone.
PACKAGED: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("Muon", "AdaMuon", "AdaGO", "NorMuon", "MuonClip"), _MUONS),
    **dict.fromkeys(
        (
            "SOAP", "ScalableShampoo", "Kron", "SPlus", "DASH", "SpectralSphere", "SCION",
            "SCIONLight", "Alice", "RACS", "GaLore", "Fira", "APOLLO", "Conda",
        ),
        _MATRICES,
    ),
    "Shampoo": {**_MATRICES, "fixed": {"weight_decouple": True}},
    **dict.fromkeys(("ScheduleFreeSGD", "ScheduleFreeRAdam"), _AVERAGES),
    "ScheduleFreeAdamW": {**_AVERAGES, "width": width.adam},
    "Lion": {"width": width.adam},
    "SAM": {
        "fixed": {"base_optimizer": AdamW, "fused": True},
        "knobs": KINDS["adamw"].knobs,
        "drive": twice,
        "asks": "a second gradient of each batch",
        "work": lambda options: 2.0,
    },
    "SophiaH": {
        "drive": with_curvature,
        "asks": "the gradient towards tokens drawn from the model, every update_period steps",
        "work": lambda options: 1 + 4 / 3 / options.get("update_period", 10),
    },
    **dict.fromkeys(("LOMO", "AdaLOMO"), _INSIDE),
    "AdaHessian": _TWICE,
    **dict.fromkeys(("DistributedMuon", "DeMo"), _PARALLEL),
    "LBFGS": {"refused": "it evaluates the loss many times a step and takes no parameter groups"},
    "AliG": {"refused": "it sets the learning rate from the loss, so that no schedule can"},
    "BSAM": {"refused": "it draws its parameters anew for every gradient"},
    "AdamMini": {"refused": "it goes by the names of a model's parameters, not by their roles"},
    "LoRARite": {"refused": "it is for pairs of low-rank factors"},
}  # fmt: skip


@cache
def find(name: str) -> Kind:
    """The kind of that name. UserError, with the list and the nearest match, for a name that is none, for a
    package that is not installed, and for an optimizer that cannot be used, with the reason."""
    if name in KINDS:
        return KINDS[name]
    package, colon, short = name.partition(":")
    if not colon or package != PACKAGE:
        raise _unknown(name)
    try:
        classes = _classes()
    except ImportError:
        raise UserError(
            f"train.optimizer.kind '{name}' needs the package {PACKAGE}: "
            "install mixlab with the extra 'optimizers'"
        ) from None
    if short not in classes:
        raise _unknown(name)
    kind = _packaged(short, classes[short])
    if kind.refused:
        raise UserError(f"train.optimizer.kind '{name}' cannot be used: {kind.refused}")
    return kind


def _unknown(name: str) -> UserError:
    """For a name that is none: the nearest of torch's or the package's, whatever its case, and the list."""
    package, _, short = name.rpartition(":")
    offered = [*KINDS, f"{PACKAGE}:NAME"]
    near = [] if package else difflib.get_close_matches(name.lower(), KINDS, n=1, cutoff=0.6)
    if not near and package in ("", PACKAGE):
        with contextlib.suppress(ImportError):
            offered = sorted(_classes()) if package else offered
            lower = {other.lower(): f"{PACKAGE}:{other}" for other in _classes()}
            near = [lower[n] for n in difflib.get_close_matches(short.lower(), lower, n=1, cutoff=0.6)]
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown train.optimizer.kind '{name}': {hint}choose from: {', '.join(offered)}")


def _packaged(name: str, cls: type[Optimizer]) -> Kind:
    """A class of the package: what PACKAGED says of it; of its knobs the decay, by its own default."""
    decay = inspect.signature(cls.__init__).parameters.get("weight_decay")
    knobs = {} if decay is None else {"weight_decay": float(decay.default)}
    return Kind(load=lambda: cls, **{"knobs": knobs, **PACKAGED.get(name, {})})


@cache
def _classes() -> dict[str, type[Optimizer]]:
    """Class name -> class, of what the package offers; ImportError if it is not installed."""
    import pytorch_optimizer as package

    names = package.get_supported_optimizers()
    found: list[type[Optimizer]] = [*map(package.load_optimizer, names), package.SAM]
    return {cls.__name__: cls for cls in found}
