"""What an optimizer remembers, as named tensors and JSON, and back to the last bit: nothing is pickled.

Optimizers of torch keep tensors for each parameter. Others also keep numbers, lists and text there, in their
parameter groups (a step counter, an estimate of the learning rate) and in themselves.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Tensors = dict[str, Tensor]

NOT_MEMORY = ("params", "lr", "train_mode")
"""Entries of a parameter group that the loop sets."""


def pack(value: Any, name: str, tensors: Tensors) -> Any:
    """`value` as JSON, its tensors put into `tensors` under names that begin with `name`.

    TypeError for what neither tensors nor JSON hold.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        packed: dict[str, Any] = {"tensor": name, "device": value.device.type}
        # The order in memory may decide in which order a product is summed.
        return packed | ({} if value.is_contiguous() else {"stride": list(value.stride())})
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        pairs = [[pack(k, name, tensors), pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]
        return {"mapping": pairs}
    if type(value) in (list, tuple, deque):
        items = [pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return {type(value).__name__: items} | ({"maxlen": value.maxlen} if type(value) is deque else {})
    raise TypeError(f"{name} holds a {type(value).__name__}")


def unpack(packed: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """What `pack` was given; tensors are copies, those that were not on the CPU on `device`."""
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        saved = tensors[packed["tensor"]]
        place = torch.device("cpu") if packed["device"] == "cpu" else device
        if "stride" not in packed:
            return saved.to(place, copy=True)
        made = torch.empty_strided(saved.shape, packed["stride"], dtype=saved.dtype, device=place)
        return made.copy_(saved)
    if "mapping" in packed:
        pairs = packed["mapping"]
        return {unpack(k, tensors, device): unpack(v, tensors, device) for k, v in pairs}
    if "deque" in packed:
        return deque([unpack(item, tensors, device) for item in packed["deque"]], packed["maxlen"])
    (kind, items), *_ = packed.items()
    found = [unpack(item, tensors, device) for item in items]
    return tuple(found) if kind == "tuple" else found


class Memory:
    """The memory of one optimizer; make it before the first step.

    What the optimizer was built with is no memory: a resumed run may be told to go on with other settings.
    """

    def __init__(self, optimizer: Optimizer, label: str) -> None:
        self.optimizer, self.label = optimizer, label
        self._built = [_plain(entries) for _, entries in self._tables()]

    def _tables(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, entries) of the optimizer's own attributes and of each of its groups."""
        own = {k: v for k, v in vars(self.optimizer).items() if k[0] != "_" and k not in OF_TORCH}
        # Tensors among the attributes may be the parameters themselves.
        own = {k: v for k, v in own.items() if not _holds_tensors(v)}
        groups = [(f"{self.label}.{i}", group) for i, group in enumerate(self.optimizer.param_groups)]
        return [(self.label, own), *groups]

    def save(self, names: Mapping[int, str]) -> tuple[Tensors, dict[str, Any]]:
        """(tensors, JSON) of all that changed since it was built; names: id of a parameter -> its name.

        A parameter's tensor is PARAMETER:KEY, one inside something else begins PARAMETER#KEY. TypeError names
        what cannot be saved.
        """
        tensors: Tensors = {}
        state: dict[str, dict[str, Any]] = {}
        for holder, kept in self.optimizer.state.items():
            if not isinstance(holder, Tensor):
                state[f"{self.label}@{holder}"] = {"": pack(kept, f"{self.label}@{holder}", tensors)}
                continue
            name, rest = names[id(holder)], {}
            for key, value in kept.items():
                if isinstance(value, Tensor) and value.is_contiguous() and value.device == holder.device:
                    tensors[f"{name}:{key}"] = value
                else:
                    rest[key] = pack(value, f"{name}#{key}", tensors)
            if rest:
                state[name] = rest
        tables = []
        for built, (name, entries) in zip(self._built, self._tables(), strict=True):
            now = _plain(entries)
            changed = [key for key in now if key not in built or built[key] != now[key]]
            tables.append({key: pack(entries[key], f"{name}#{key}", tensors) for key in changed})
        return tensors, {"state": state, "tables": tables}

    def load(
        self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], parameters: Mapping[str, Tensor]
    ) -> None:
        """Remember what `save` gave; parameters: name -> parameter, of this optimizer alone."""
        state = self.optimizer.state
        state.clear()
        device = next(iter(parameters.values())).device
        for label, value in tensors.items():
            name, colon, key = label.partition(":")
            if colon and name in parameters:
                state[parameters[name]][key] = value.to(parameters[name].device, copy=True)
        for name, entries in scalars.get("state", {}).items():
            found = {key: unpack(value, tensors, device) for key, value in entries.items()}
            if name in parameters:
                state[parameters[name]].update(found)
            else:
                state[name.removeprefix(f"{self.label}@")] = found[""]
        tables = [vars(self.optimizer), *self.optimizer.param_groups]
        for table, changed in zip(tables, scalars.get("tables", ()), strict=False):
            table.update({key: unpack(value, tensors, device) for key, value in changed.items()})


OF_TORCH = ("param_groups", "state", "defaults")
"""Attributes that every optimizer of torch has."""


def _plain(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries as JSON, to be compared; as they are where that does not hold them, tensors as unlike any."""
    plain: dict[str, Any] = {}
    for key, value in entries.items():
        if key in NOT_MEMORY:
            continue
        tensors: Tensors = {}
        try:
            plain[key] = pack(value, "", tensors)
        except TypeError:
            plain[key] = value
        if tensors:
            plain[key] = math.nan
    return plain


def _holds_tensors(value: Any) -> bool:
    tensors: Tensors = {}
    with contextlib.suppress(TypeError):
        pack(value, "", tensors)
    return bool(tensors)
