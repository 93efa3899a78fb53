"""What a run continues from: the things that change as it goes, as a checkpoint's files and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mixlab.data import Batches
from mixlab.model.language_model import LanguageModel
from mixlab.train import checkpoint
from mixlab.train.counters import Counters
from mixlab.train.files import write_text
from mixlab.train.folder import read_json
from mixlab.train.optimizers import Optimizers


@dataclass
class State:
    """All that a checkpoint holds, together with the states of the random generators."""

    model: LanguageModel
    optimizers: Optimizers
    batches: Batches
    done: Counters
    device: torch.device

    def set_progress(self, fraction: float) -> bool:
        """Tell the model how far training is; returns whether parameters went, from the optimizers too."""
        changed = self.model.set_progress(fraction)
        if changed:
            self.optimizers.keep(self.model)
        return changed

    def write(self, path: Path) -> None:
        """Put everything the run continues from into a checkpoint's folder."""
        random = {"random.torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["random.cuda"] = torch.cuda.get_rng_state(self.device)
        optimizer = {f"optimizer.{name}": t for name, t in self.optimizers.state_dict().items()}
        checkpoint.save_model(self.model, path / checkpoint.MODEL)
        guides = {f"training.{name}": p for name, p in checkpoint.training_only(self.model).items()}
        save_file({**optimizer, **guides, **random}, path / checkpoint.TENSORS)
        scalars = {"counters": asdict(self.done), "batches": self.batches.state_dict()}
        write_text(path / checkpoint.SCALARS, json.dumps(scalars, indent=1) + "\n")

    def load(self, path: Path) -> None:
        """Put back what `write` put there."""
        checkpoint.load_model(self.model, path / checkpoint.MODEL)
        tensors = checkpoint.load_tensors(path / checkpoint.TENSORS)
        scalars = read_json(path / checkpoint.SCALARS)
        torch.set_rng_state(tensors.pop("random.torch"))
        cuda = tensors.pop("random.cuda", None)
        if cuda is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(cuda, self.device)
        self._load_training_only(tensors)
        self.optimizers.load_state_dict({n.removeprefix("optimizer."): t for n, t in tensors.items()})
        counters = Counters(**scalars["counters"])
        for field in fields(Counters):
            setattr(self.done, field.name, getattr(counters, field.name))
        self.batches.load_state_dict(scalars["batches"])

    def _load_training_only(self, tensors: dict[str, Tensor]) -> None:
        """Take parameters that serve training alone out of `tensors`; without them there, they had gone."""
        for name, parameter in checkpoint.training_only(self.model).items():
            saved = tensors.pop(f"training.{name}", None)
            if saved is None:
                self.set_progress(1.0)
                break
            parameter.copy_(saved)
