"""Reading a run back: `load` for the model, `open_run` for everything beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixlab.data import TokenFile, load_tokenizer
from mixlab.data.tokenizer import Tokenizer
from mixlab.errors import UserError
from mixlab.model.language_model import LanguageModel
from mixlab.model.ngram import NGram
from mixlab.model.weights import hollow_model
from mixlab.train import auto, checkpoint, diagnose, machine, surroundings, threads
from mixlab.train.config import RunConfig
from mixlab.train.count import CONTEXT
from mixlab.train.evaluate import Evaluation, evaluate
from mixlab.train.files import check_name
from mixlab.train.folder import RunFolder, check_tokenizer
from mixlab.train.metrics import best_step

Notes = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run that was opened. checkpoint: the one asked for, or the run's best; its hashes were checked."""

    path: Path
    config: RunConfig
    tokenizer: Tokenizer
    checkpoint: Path

    @property
    def context(self) -> int:
        """Tokens of context that it was trained and evaluated at."""
        return self.config.model.context if self.config.model is not None else CONTEXT

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return checkpoint.step_of(self.checkpoint)

    def load(self, device: torch.device | str = "cpu") -> LanguageModel | NGram:
        """The scorer, in eval mode; an n-gram is on the CPU whatever `device` says."""
        if self.config.model is None:
            return NGram.load(self.checkpoint)
        with surroundings.pinned():
            model = hollow_model(self.config.model)
            checkpoint.load_model(model, self.checkpoint / checkpoint.MODEL)
        diagnose.check_finite(model, self.checkpoint)
        try:
            return model.to(device).eval()
        except (RuntimeError, AssertionError) as error:  # the latter: a torch without CUDA
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the model cannot be put on device '{device}': {reason}") from None

    def evaluate(
        self,
        text: TokenFile,
        scorer: LanguageModel | NGram | None = None,
        *,
        stride: int | None = None,
        by_document: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """How well the checkpoint predicts a text, scored as its training scores the validation text.

        That is with the run's context, `train.dtype`, `train.threads` and `train.device`, as far as this
        machine has them: of the same text it gives the same numbers on the same machine. scorer: the model,
        where it is loaded already. stride, by_document, progress: as in `mixlab.train.evaluate.evaluate`.
        """
        text = replace(text, apart=self.config.data.packing == "documents")
        how: dict[str, Any] = {"stride": stride, "by_document": by_document, "progress": progress}
        if self.config.model is None:
            scorer = scorer or self.load()
            return evaluate(scorer, text, context=self.context, dtype="float32", **how)
        train = self.config.train
        scorer = scorer or self.load(auto.usable(train.device))
        with threads.using(min(train.threads, machine.usable_cores())):
            return evaluate(scorer, text, context=self.context, dtype=train.dtype, **how)


def open_run(path: Path | str, *, notes: Notes | None = None) -> Run:
    """The run at `path`: a run folder (its best checkpoint, else its latest) or a checkpoint folder.

    A damaged checkpoint of a run folder is passed over for the next one, newest first, with a note (by
    default a Python warning). Raises UserError for a path that is no run, a damaged checkpoint that was
    asked for by name, and a run that has none left.
    """
    try:
        path = Path(path)
    except TypeError:
        raise UserError(f"a run is given by the path of its folder, not by {type(path).__name__}") from None
    check_name(path)
    if not path.is_dir():
        raise UserError(
            f"{path}: no such run folder" if not path.exists() else f"{path} is a file, not a run folder"
        )
    one = checkpoint.step_of(path) >= 0 or (path / checkpoint.MANIFEST).exists()
    folder = RunFolder(path.resolve().parent.parent if one else path)
    config = folder.read_config()
    if one:
        checkpoint.verify(path)
        chosen = path
    else:
        chosen = checkpoint.first_whole(_by_merit(folder), notes or _warn)
    tokenizer = load_tokenizer(folder.path)
    check_tokenizer(tokenizer, checkpoint.scalars(chosen).get("tokenizer"), folder, chosen)
    if config.model is not None and config.model.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{folder.tokenizer} has {tokenizer.vocab_size} tokens and the model of {folder.config} "
            f"{config.model.vocab_size} (model.vocab_size): restore the run's own tokenizer.json"
        )
    return Run(folder.path, config, tokenizer, chosen)


def load(
    path: Path | str, *, device: torch.device | str = "cpu", notes: Notes | None = None
) -> LanguageModel | NGram:
    """The trained model of a run or checkpoint folder, in eval mode; raises as `open_run` does, and UserError
    for a device that cannot be used."""
    return open_run(path, notes=notes).load(device)


def _by_merit(folder: RunFolder) -> list[Path]:
    """The run's checkpoints, the best first, then from the newest on; UserError if there are none."""
    found = checkpoint.list_checkpoints(folder.checkpoints)
    if not found:
        raise UserError(f"{folder.path} has no checkpoint yet: nothing was saved")
    best = best_step(folder.metrics)
    return sorted(found, key=lambda path: checkpoint.step_of(path) != best)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
