"""Reading models in the Hugging Face form: a configuration and named tensors, in memory or in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mixlab.errors import UserError
from mixlab.model.language_model import LanguageModel
from mixlab.model.weights import StoredTensors, assign, hollow_model, without_aliases
from mixlab.records import read_json


@dataclass
class Checkpoint:
    """config: the keys of config.json. weights: name -> tensor. shared: whether these are somebody's, so that
    what is taken is a copy. taken: the names asked for so far."""

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    shared: bool = True
    taken: set[str] = field(default_factory=set)

    def take(self, name: str) -> Tensor:
        """The tensor of that name, in float32; it now counts as used. Raises UserError if there is none."""
        if name not in self.weights:
            raise UserError(f"the weights lack '{name}', which a {self.config.get('model_type')} model has")
        self.taken.add(name)
        return self.weights[name].detach().to("cpu", torch.float32, copy=self.shared)

    def prefix(self, name: str) -> str:
        """`name` if any weight starts with it, else "": a model saved without its head lacks the prefix."""
        return name if any(key.startswith(name) for key in self.weights) else ""

    def want(self, **values: Any) -> None:
        """UserError unless each key of the config, where present and not null, has the value given."""
        for key, value in values.items():
            found = self.config.get(key)
            if found is not None and found != value:
                raise UserError(
                    f"config: {key}={json.dumps(found)} has no counterpart here, {json.dumps(value)} has"
                )

    def finish(self, ignore: str = "$^") -> None:
        """UserError if a weight was not used whose name the pattern `ignore` does not match somewhere."""
        left = [n for n in self.weights if n not in self.taken and not re.search(ignore, n)]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise UserError(f"no place for the weights '{left[0]}'{more} in this model")


def checkpoint(source: Any) -> Checkpoint:
    """The configuration and weights of a transformers model, or of the folder at the path `source`.

    Raises UserError if the folder lacks config.json or safetensors, or a file in it cannot be read.
    """
    if isinstance(source, str | Path):
        folder = Path(source)
        return Checkpoint(read_table(folder / "config.json"), read_weights(folder), shared=False)
    if not (hasattr(source, "config") and hasattr(source, "state_dict")):
        raise UserError(f"expected a transformers model or a folder, got {type(source).__name__}")
    return Checkpoint(source.config.to_dict(), source.state_dict())


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file; UserError if it is missing or malformed."""
    if not path.exists():
        raise UserError(f"{path}: no such file; a model's folder has config.json beside its weights")
    return read_json(path, dict[str, Any])


def read_weights(folder: Path) -> StoredTensors:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        table = read_table(index).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise UserError(f"{index}: expected a 'weight_map' from tensors to files")
        names = set(table.values())
    return read_files(*(folder / name for name in sorted(names)))


def read_files(*paths: Path) -> StoredTensors:
    """The tensors of safetensors files, read when they are taken; UserError if one is missing or none."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file; weights must be in the safetensors format")
        try:
            StoredTensors(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a safetensors file: {error}") from None
    return StoredTensors(*paths)


def check_type(source: Checkpoint, *types: str) -> None:
    """UserError unless the config's model_type is one of `types`."""
    found = source.config.get("model_type")
    if found not in types:
        raise UserError(f"model_type is '{found}', expected {' or '.join(repr(t) for t in types)}")


def by_layer(names: Mapping[str, str], depth: int) -> Iterable[tuple[str, str]]:
    """Each pair of name patterns with every layer's index in place of `{i}`, once where there is none."""
    for ours, theirs in names.items():
        for i in range(depth if "{i}" in ours else 1):
            yield ours.replace("{i}", str(i)), theirs.replace("{i}", str(i))


def fill(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> LanguageModel:
    """A model of that config with exactly those weights, which become its own, in evaluation mode.

    weights: float32, without the head's where it is tied. Raises UserError if a name is missing, not known,
    or of another shape. The random generator is left as it was.
    """
    model = hollow_model(config)
    own, _ = without_aliases(model)
    _refuse(own.keys() - weights.keys(), "no weights were given for {}")
    _refuse(weights.keys() - own.keys(), "the model has no {}")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{name} has the shape {tuple(tensor.shape)}, the config asks for {tuple(own[name].shape)}"
            )
    assign(model, {name: _alone(tensor) for name, tensor in weights.items()})
    return model.eval()


def _alone(tensor: Tensor) -> Tensor:
    """The same numbers in memory that holds nothing else."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def _refuse(names: Iterable[str], sentence: str) -> None:
    listed = sorted(names)
    if listed:
        raise UserError(sentence.format(", ".join(listed[:3])))
