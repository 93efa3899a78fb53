"""What a run continues from: the things that change as it goes, as a checkpoint's contents and back."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixlab.data import Batches
from mixlab.model.language_model import LanguageModel
from mixlab.train import checkpoint, randomness
from mixlab.train.average import Average
from mixlab.train.counters import Counters
from mixlab.train.optimizers import Optimizers

TRAINED = "trained."
"""Before the names of the weights that are trained, where the model's file holds their average."""


@dataclass
class State:
    """All that a checkpoint holds but the record, together with the states of the random generators."""

    model: LanguageModel
    optimizers: Optimizers
    batches: Batches
    done: Counters
    device: torch.device
    average: Average | None = None

    def set_progress(self, fraction: float) -> bool:
        """Tell the model how far training is; returns whether parameters went, from the optimizers too."""
        changed = self.model.set_progress(fraction)
        if changed:
            self.optimizers.keep(self.model)
        return changed

    def draws(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Where the random generators and the data stand, for `rewind`: tensors, and what JSON holds."""
        generators = randomness.capture(self.device)
        return generators.tensors, {"batches": self.batches.state_dict(), "random": generators.scalars}

    def rewind(self, draws: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        """Draw again what was drawn since `draws`, and forget gradients."""
        tensors, scalars = draws
        randomness.put_back(tensors, scalars["random"], self.device)
        self.batches.load_state_dict(scalars["batches"])
        self.optimizers.drop_gradients()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model's parameters are those that count: to be evaluated, and kept as the model's."""
        with self.optimizers.averaged(), self.average.swapped() if self.average else contextlib.nullcontext():
            yield

    def contents(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """File -> name -> tensor, in the memory that training goes on to change, and training.json.

        Inside `averaged` the model is the one that counts, and what is trained is kept beside it.
        """
        random, scalars = self.draws()
        kept, remembered = self.optimizers.state_dict()
        optimizer = {f"optimizer.{name}": t for name, t in kept.items()}
        guides = {f"training.{name}": p for name, p in checkpoint.training_only(self.model).items()}
        trained = {} if self.average is None else self.average.trained()
        guides |= {f"{TRAINED}{name}": p for name, p in trained.items()}
        tensors = {
            checkpoint.MODEL: checkpoint.model_tensors(self.model),
            checkpoint.TENSORS: {**optimizer, **guides, **random},
        }
        return tensors, {"counters": asdict(self.done), "optimizers": remembered, **scalars}

    def load(self, path: Path, *, afresh: Collection[str] = ()) -> None:
        """Put back the `contents` that are in a checkpoint's folder, but for "optimizer" and "batches" where
        these are to begin afresh."""
        with checkpoint.loading(path):
            self._load(path, afresh)

    def _load(self, path: Path, afresh: Collection[str]) -> None:
        checkpoint.load_model(self.model, path / checkpoint.MODEL)
        tensors = checkpoint.load_tensors(path / checkpoint.TENSORS)
        scalars = checkpoint.scalars(path)
        random = {name: tensors.pop(name) for name in list(tensors) if name.startswith("random.")}
        self._load_average(tensors)
        self._load_training_only(tensors)
        kept = {name.removeprefix("optimizer."): tensor for name, tensor in tensors.items()}
        if "optimizer" not in afresh:
            self.optimizers.load_state_dict(kept, scalars.get("optimizers", {}))
        saved = Counters(**scalars["counters"])
        for field in fields(Counters):
            setattr(self.done, field.name, getattr(saved, field.name))
        if "batches" in afresh:
            scalars["batches"] = self.batches.state_dict()
        self.rewind((random, scalars))

    @torch.no_grad()
    def _load_average(self, tensors: dict[str, Tensor]) -> None:
        """Take the weights that are trained out of `tensors`, where the model just loaded is their average.

        A run that is resumed with another `train.ema` begins an average here, or goes on without one.
        """
        names = [name for name in tensors if name.startswith(TRAINED)]
        trained = {name.removeprefix(TRAINED): tensors.pop(name) for name in names}
        if self.average is not None:
            self.average.start(trained)
            return
        parameters = dict(self.model.named_parameters())
        for name, tensor in trained.items():
            parameters[name].copy_(tensor)

    def _load_training_only(self, tensors: dict[str, Tensor]) -> None:
        """Take parameters that serve training alone out of `tensors`; without them there, they had gone."""
        for name, parameter in checkpoint.training_only(self.model).items():
            saved = tensors.pop(f"training.{name}", None)
            if saved is None:
                self.set_progress(1.0)
                break
            parameter.copy_(saved)
