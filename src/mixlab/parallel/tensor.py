"""Tensor parallelism: the one module that applies the parts' plans (Shoeybi et al. 2019).

Model code stays single-device. What a plan names becomes DTensors that the part reads as this process's
shard; Megatron's operators stand around them: f (identity forward, all-reduce backward) where a part begins,
g (all-reduce forward, identity backward) after its row-split projection. Parameters that the plan leaves
whole go through f together with the part's input, so that one all-reduce sums all their gradients: a part
costs one forward and one backward. A part whose plan is empty runs whole on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
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
    """Megatron's f over several tensors: identity forward, one all-reduce of all gradients backward."""

    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Pass through."""
        ctx.group = group
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Each process has the gradients through its own shard; their sums are the whole. They are summed
        in the first one's dtype, the activation's: autocast has computed all of them in it."""
        needed = ctx.needs_input_grad[1:]
        wanted = [grad for grad, need in zip(grads, needed, strict=True) if need]
        bucket = torch.cat([grad.flatten().to(wanted[0].dtype) for grad in wanted])
        all_reduce(bucket, group=ctx.group)
        sums = iter(torch.split(bucket, [grad.numel() for grad in wanted]))
        return None, *(
            next(sums).view_as(grad).to(grad.dtype) if need else None
            for grad, need in zip(grads, needed, strict=True)
        )


class _Leave(torch.autograd.Function):
    """Megatron's g: all-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        """Sum the partial products."""
        total = x.clone(memory_format=torch.contiguous_format)
        all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Pass through."""
        return grads[0], None


def enter(group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Megatron's f, one all-reduce for all the tensors."""
    return cast("tuple[Tensor, ...]", _Enter.apply(group, *tensors))  # type: ignore[no-untyped-call]


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
        shared: dict[str, Tensor | None] = {}
        for path, splits in _by_owner(part, plan).items():
            _divide(part.get_submodule(path), path, splits, mesh, shared)
        if plan:
            part.register_forward_pre_hook(_begin(mesh.get_group(), shared))
            part.register_forward_hook(_end(shared), always_call=True)
    return module


def _by_owner(part: Part, plan: Mapping[str, Split]) -> dict[str, dict[str, Split]]:
    """The plan by module and name in it; a submodule that the plan names stands for what it holds."""
    owners: dict[str, dict[str, Split]] = {}
    for full in (*dict(part.named_parameters()), *dict(part.named_buffers())):
        path, _, name = full.rpartition(".")
        split = plan.get(full, plan.get(path))
        if split is not None:
            owners.setdefault(path, {})[name] = split
    return owners


def _divide(
    owner: nn.Module,
    path: str,
    splits: Mapping[str, Split],
    mesh: DeviceMesh,
    shared: dict[str, Tensor | None],
) -> None:
    """Divide the named parameters and buffers of the module at `path`; list the shared ones in `shared`.

    Parameters become DTensors that the module's code reads as local shards: its class gains a property for
    each, so that the parameter stays registered under its name, while `self.name` is the shard.
    """
    group, members = mesh.get_group(), {}
    for name, split in splits.items():
        if name in owner._buffers:
            _divide_buffer(owner, name, split, mesh)
            continue
        whole = owner.get_parameter(name)
        if split == "row" and whole.ndim < 2:
            continue  # the bias of a row split is added whole, after the sum
        placement = {"column": Shard(0), "row": Shard(1), "shared": Replicate()}[split]
        owner._parameters[name] = nn.Parameter(distribute_tensor(whole.data, mesh, [placement]))
        if split == "shared":
            full = f"{path}.{name}".removeprefix(".")
            shared[full] = None
            members[name] = property(_shared_reader(name, full, group, shared))
        else:
            members[name] = property(partial(_local, name=name))
    base = type(owner)
    extra: dict[str, Any] = {"forward": _row_forward(group)} if "row" in splits.values() else {}
    owner.__class__ = type(f"Split{base.__name__}", (base,), {**members, **extra})


def _divide_buffer(owner: nn.Module, name: str, split: Split, mesh: DeviceMesh) -> None:
    """Keep this process's piece of a constant that has a number a unit; no gradient needs a sum."""
    whole = owner._buffers[name]
    if whole is not None and split == "column":
        owner._buffers[name] = whole.chunk(mesh.size())[mesh.get_local_rank()].clone()


def _local(module: nn.Module, name: str) -> Tensor:
    """What this process holds of a parameter of a split module; attributes give what its code reads."""
    path, _, leaf = name.rpartition(".")
    return cast("DTensor", module.get_submodule(path)._parameters[leaf]).to_local()


def _shared_reader(
    name: str, full: str, group: ProcessGroup, shared: Mapping[str, Tensor | None]
) -> Callable[[nn.Module], Tensor]:
    """What reading a shared parameter gives: the tensor that went through f with the part's input. Outside of
    the part's forward (a recomputation in the backward pass, say) it goes through by itself."""

    def read(module: nn.Module) -> Tensor:
        entered = shared[full]
        return enter(group, _local(module, name))[0] if entered is None else entered

    return read


def _row_forward(group: ProcessGroup) -> Callable[[nn.Linear, Tensor], Tensor]:
    """A Linear's forward when each process has a slice of its inputs."""

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        y = leave(F.linear(x, self.weight), group)
        return y if self.bias is None else y + self.bias

    return forward


def _begin(
    group: ProcessGroup, shared: dict[str, Tensor | None]
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A forward pre-hook that puts f before a part's first argument and its shared parameters."""

    def hook(part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *entered = enter(group, args[0], *(_local(part, name) for name in shared))
        for name, tensor in zip(shared, entered, strict=True):
            shared[name] = tensor
        return (x, *args[1:])

    return hook


def _end(shared: dict[str, Tensor | None]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """A forward hook that lets go of what `_begin` made, whether or not the forward came to its end."""

    def hook(part: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        for name in shared:
            shared[name] = None

    return hook


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; a collective call if it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
