"""Weights from safetensors files into a model, one tensor at a time and each into memory of its own.

A model that is only to be filled is built hollow: its parameters are on torch's meta device, without memory
and without the time to draw them, until they are given what a file holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixlab.errors import UserError
from mixlab.model.config import ModelConfig, model_config
from mixlab.model.language_model import LanguageModel, build_model

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""The format's names of the types that weights come in."""


class _Entry(NamedTuple):
    """Where a tensor is: its file, the first byte there, its type and shape."""

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files, each read when it is asked for.

    The safetensors library checks the headers, but its tensors are views of the mapped file: copied from
    there, weights are in memory twice. Raises SafetensorError or OSError for a file that cannot be read.
    """

    def __init__(self, *paths: Path) -> None:
        self._entries: dict[str, _Entry] = {}
        for path in paths:
            with safe_open(path, framework="pt"):
                self._entries |= _header(path)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, in new memory."""
        entry = self._entries[name]
        try:
            tensor = torch.empty(entry.shape, dtype=entry.dtype)
        except RuntimeError:
            raise UserError(f"{entry.path} does not fit in memory: none is left for {name}") from None
        self._read(entry, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, without reading it."""
        return self._entries[name].dtype

    @torch.no_grad()
    def read_into(self, name: str, tensor: Tensor) -> None:
        """Replace the content of `tensor` by the one of that name: in place, rounded to its type."""
        entry = self._entries[name]
        if tensor.device.type == "cpu" and tensor.dtype == entry.dtype and tensor.is_contiguous():
            self._read(entry, tensor.detach())
            torch.autograd.graph.increment_version(tensor)
        else:
            tensor.copy_(self[name])

    @staticmethod
    def _read(entry: _Entry, tensor: Tensor) -> None:
        """The bytes of `tensor`, contiguous, from the file."""
        left = tensor.view(-1).view(torch.uint8).numpy().data
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            while left:
                count = file.readinto(left)
                if not count:
                    raise SafetensorError(f"the file ends inside a tensor of shape {entry.shape}")
                left = left[count:]


def _header(path: Path) -> dict[str, _Entry]:
    """What a file says it holds, once its header was checked."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(size))
    entries = {}
    for name, said in table.items():
        if name == "__metadata__":
            continue
        if said["dtype"] not in DTYPES:
            raise SafetensorError(f"{name} is of type {said['dtype']}, which is none of {', '.join(DTYPES)}")
        start = 8 + size + said["data_offsets"][0]
        entries[name] = _Entry(path, start, DTYPES[said["dtype"]], tuple(said["shape"]))
    return entries


class _Hollow(TorchFunctionMode):
    """New uninitialised tensors, as parameters are made of, have no memory; all others are as ever."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`torch.empty` with no device named goes to meta."""
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def hollow_model(config: ModelConfig | Mapping[str, Any] | str | Any) -> LanguageModel:
    """A model to be filled by `assign`: parameters without memory, buffers as they are to be.

    Where a part cannot be built so, or keeps what no file holds, it is initialised as usual. The random
    generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with _Hollow():
                model = LanguageModel(model_config(config))
        except (RuntimeError, NotImplementedError):  # of an operation between meta and memory
            return build_model(config)
        return build_model(config) if _unfilled(model) else model


def _unfilled(model: nn.Module) -> bool:
    """Whether something without memory is not in the state dict."""
    filled = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    held = [t for m in model.modules() for t in (*vars(m).values(), *m._buffers.values())]
    held += model.parameters()
    return any(isinstance(t, Tensor) and t.is_meta and id(t) not in filled for t in held)


def without_aliases(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict with each stored tensor once, and the other names of those left out -> the name kept."""
    kept: dict[str, Tensor] = {}
    seen: dict[Any, str] = {}
    aliases = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = id(tensor) if tensor.is_meta else (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        kept[name] = tensor.detach()
    return kept, aliases


def assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """Make `tensors` the parameters and buffers of `model`; what was tied, named once in them, stays so.

    Returns what torch's `load_state_dict` does: the names that are missing and unexpected.
    """
    aliases = without_aliases(model)[1]
    differences = model.load_state_dict(tensors, strict=False, assign=True)
    for alias, name in aliases.items():
        parent, _, last = alias.rpartition(".")
        holder, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), last, getattr(model.get_submodule(holder), own))
    return differences
