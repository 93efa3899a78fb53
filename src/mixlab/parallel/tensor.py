"""Tensor parallelism: the one module that applies the parts' plans (Shoeybi et al. 2019).

Model code stays single-device. What a plan names becomes DTensors that the part reads as this process's
shard; Megatron's operators stand around them: f (identity forward, all-reduce backward) where a part begins,
g (all-reduce forward, identity backward) after its row-split projection. A part whose plan is empty runs
whole on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from mixlab.errors import UserError
from mixlab.parts.contract import Part, Split


class _Enter(torch.autograd.Function):
    """Megatron's f: identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        """Pass through."""
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Each process has the gradient through its own shard; their sum is the whole."""
        grad = grads[0].contiguous()
        all_reduce(grad, group=ctx.group)
        return grad, None


class _Leave(torch.autograd.Function):
    """Megatron's g: all-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        """Sum the partial products."""
        total = x.contiguous().clone()
        all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Pass through."""
        return grads[0], None


def enter(x: Tensor, group: ProcessGroup) -> Tensor:
    """Megatron's f."""
    return cast("Tensor", _Enter.apply(x, group))  # type: ignore[no-untyped-call]


def leave(x: Tensor, group: ProcessGroup) -> Tensor:
    """Megatron's g."""
    return cast("Tensor", _Leave.apply(x, group))  # type: ignore[no-untyped-call]


def apply_tensor_plan(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Split every part inside `module` over a one-dimensional mesh, in place.

    All processes must hold equal weights. Parameters keep their names; those that a plan names become
    DTensors. Raises UserError if a split does not come out even.
    """
    for part in [m for m in module.modules() if isinstance(m, Part)]:
        plan, units = part.tensor_plan(), part.tensor_units()
        if units % mesh.size():
            raise UserError(
                f"{type(part).__name__.lower()} splits into {units} units, which do not divide over "
                f"{mesh.size()} tensor-parallel processes; choose a divisor of {units}"
            )
        for name, split in plan.items():
            parent, _, leaf = name.rpartition(".")
            owner = part.get_submodule(parent)
            if leaf in owner._parameters:
                _divide(owner, {leaf: split}, mesh)
            elif leaf in owner._buffers:
                _divide_buffer(owner, leaf, split, mesh)
            else:
                target = owner.get_submodule(leaf)
                _divide(target, {key: split for key, _ in target.named_parameters(recurse=False)}, mesh)
        if plan:
            part.register_forward_pre_hook(_enter(mesh.get_group()))
    return module


def _divide(owner: nn.Module, splits: Mapping[str, Split], mesh: DeviceMesh) -> None:
    """Make the named parameters of one module DTensors that its code reads as local shards.

    The module's class gains a property for each: the parameter stays registered under its name, while
    `self.name` in the module's own code is the shard.
    """
    group, members = mesh.get_group(), {}
    for name, split in splits.items():
        whole = owner._parameters[name]
        if whole is None or (split == "row" and whole.ndim < 2):
            continue  # the bias of a row split is added whole, after the sum
        placement = {"column": Shard(0), "row": Shard(1), "shared": Replicate()}[split]
        owner._parameters[name] = nn.Parameter(distribute_tensor(whole.data, mesh, [placement]))
        members[name] = property(_reader(name, group if split == "shared" else None))
    base = type(owner)
    extra: dict[str, Any] = {"forward": _row_forward(group)} if "row" in splits.values() else {}
    owner.__class__ = type(f"Split{base.__name__}", (base,), {**members, **extra})


def _divide_buffer(owner: nn.Module, name: str, split: Split, mesh: DeviceMesh) -> None:
    """Keep this process's piece of a constant that has a number a unit; no gradient needs a sum."""
    whole = owner._buffers[name]
    if whole is not None and split == "column":
        owner._buffers[name] = whole.chunk(mesh.size())[mesh.get_local_rank()].clone()


def _reader(name: str, shared: ProcessGroup | None) -> Callable[[nn.Module], Tensor]:
    """What reading a split parameter gives: the local shard, or the whole with its gradient summed."""

    def read(module: nn.Module) -> Tensor:
        shard = cast("DTensor", module._parameters[name]).to_local()
        return shard if shared is None else enter(shard, shared)

    return read


def _row_forward(group: ProcessGroup) -> Callable[[nn.Linear, Tensor], Tensor]:
    """A Linear's forward when each process has a slice of its inputs."""

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        y = leave(F.linear(x, self.weight), group)
        return y if self.bias is None else y + self.bias

    return forward


def _enter(group: ProcessGroup) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A forward pre-hook that puts f before a part's first argument."""

    def hook(part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (enter(args[0], group), *args[1:])

    return hook


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; a collective call if it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
