"""Tensor parallelism: the one module that applies the parts' plans (Shoeybi et al. 2019).

Model code stays single-device. Each split Linear keeps its shard of a DTensor weight and multiplies
locally; Megatron's operators stand around the pair: f (identity forward, all-reduce backward) where a part
begins, g (all-reduce forward, identity backward) after its row-split projection. A part whose plan is empty
runs whole on every process.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from mixlab.errors import UserError
from mixlab.parts.contract import Part


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


class SplitLinear(nn.Module):
    """A Linear divided by outputs ("column") or inputs ("row"), or "shared": whole, its gradient summed."""

    def __init__(self, linear: nn.Linear, split: str, mesh: DeviceMesh) -> None:
        super().__init__()
        self.group = mesh.get_group()
        self.split = split
        placement = {"column": Shard(0), "row": Shard(1), "shared": Replicate()}[split]
        self.weight = nn.Parameter(distribute_tensor(linear.weight.data, mesh, [placement]))
        self.bias: nn.Parameter | None = linear.bias
        if linear.bias is not None and split == "column":
            self.bias = nn.Parameter(distribute_tensor(linear.bias.data, mesh, [Shard(0)]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs of this shard) -> (..., outputs of this shard, or all of them after a row split)."""
        weight = local(self.weight)
        if self.split == "shared":
            bias = None if self.bias is None else enter(self.bias, self.group)
            return F.linear(x, enter(weight, self.group), bias)
        if self.split == "column":
            return F.linear(x, weight, None if self.bias is None else local(self.bias))
        y = leave(F.linear(x, weight), self.group)
        return y if self.bias is None else y + self.bias


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor; gradients flow back to it."""
    return cast("DTensor", tensor).to_local()


def enter(x: Tensor, group: ProcessGroup) -> Tensor:
    """Megatron's f."""
    return cast("Tensor", _Enter.apply(x, group))  # type: ignore[no-untyped-call]


def leave(x: Tensor, group: ProcessGroup) -> Tensor:
    """Megatron's g."""
    return cast("Tensor", _Leave.apply(x, group))  # type: ignore[no-untyped-call]


def apply_tensor_plan(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Split every part inside `module` over a one-dimensional mesh, in place.

    All processes must hold equal weights. Parameters keep their names; those that are split become
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
            setattr(owner, leaf, SplitLinear(part.get_submodule(name), split, mesh))  # type: ignore[arg-type]
        if plan:
            part.register_forward_pre_hook(_enter(mesh.get_group()))
    return module


def _enter(group: ProcessGroup) -> Any:
    """A forward pre-hook that puts f before a part's first argument."""

    def hook(part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (enter(args[0], group), *args[1:])

    return hook


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; a collective call if it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
