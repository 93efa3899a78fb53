"""The watch list: numbers of a model's inside that go bad before its loss does, each with its healthy band.

Taken now and then on one fixed batch, the beginning of the validation text, in eval mode and without
gradients: nothing that training computes changes by it. What can be seen of a part, the part says itself
(`Part.watched`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixlab.data import TokenFile, eval_windows
from mixlab.model.language_model import LanguageModel
from mixlab.train import randomness, shortage
from mixlab.train.bands import BANDS, warning
from mixlab.train.precision import autocast
from mixlab.train.trend import LATELY

TOKENS = 512
"""Of the fixed batch, in rows of the context or less: a forward over them is a small part of a step, and a
head's scores stay below a million."""

STREAM = 256
"""Of them, evenly spread, those whose vectors the effective rank is of: it cannot be larger, and its cost
grows with the cube."""

SILENT = 1e-6
"""What a dead unit passes on at most. A part's input has unit scale, so that this is 0 but for rounding: 0
itself from a ReLU of what is negative, a gelu of less than -5."""


class WatchList:
    """Looks at a model every so many steps; 0 is never. text: whose beginning is the batch."""

    def __init__(
        self,
        model: LanguageModel,
        text: TokenFile,
        *,
        every: int,
        context: int,
        device: torch.device,
        bfloat16: bool,
    ) -> None:
        self.model, self.every, self.device, self.bfloat16 = model, every, device, bfloat16
        length = min(context, TOKENS)
        windows = eval_windows(text.tokens, context=length, batch_size=TOKENS // length)
        self.tokens = next(windows)[0].to(device)  # (B, T)
        self._told: set[str] = set()

    def is_due(self, step: int) -> bool:
        """At the first step, which shows a bad start, and every so many."""
        return self.every > 0 and (step == 1 or step % self.every == 0)

    def look(
        self, update_ratio: Mapping[str, float | None], readings: Mapping[str, float | None] | None = None
    ) -> dict[str, Any]:
        """The numbers of each layer (None: it has nothing to see), and warnings: number -> sentence.

        update_ratio: this step's, by role, and readings: the trend's, to be held against their bands too.
        Without memory for a look there is nothing to see.
        """
        readings = readings or {}
        seen = _Seen(self.model)
        precision = autocast(self.device, self.bfloat16)
        try:
            with randomness.kept(), _evaluating(self.model), torch.no_grad(), precision, seen.hooks():
                self.model.hidden(self.tokens)
        except (RuntimeError, MemoryError) as error:
            if not shortage.ran_out(error):
                raise
            seen = _Seen(self.model)
        numbers = seen.numbers()
        places = {name: {f"layer {i}": x for i, x in enumerate(values)} for name, values in numbers.items()}
        places["update_ratio"] = {f"the {role} parameters": ratio for role, ratio in update_ratio.items()}
        places |= {name: {f"the last {LATELY} steps": value} for name, value in readings.items()}
        warnings = {name: words for name, found in places.items() if (words := warning(BANDS[name], found))}
        return {**numbers, **readings, "warnings": warnings}

    def news(self, warnings: Mapping[str, str]) -> list[str]:
        """Those that were not told before, a number's only once."""
        fresh = [words for name, words in warnings.items() if name not in self._told]
        self._told |= set(warnings)
        return fresh


class _Seen:
    """What hooks on a model's blocks and parts saw in one forward, by layer."""

    def __init__(self, model: LanguageModel) -> None:
        self.blocks = model.layers()
        depth = len(self.blocks)
        self.scores: list[list[Tensor]] = [[] for _ in range(depth)]  # [largest, entropy] of each part's
        self.units: list[list[Tensor]] = [[] for _ in range(depth)]  # 1 for each dead unit
        self.streams: list[Tensor | None] = [None] * depth

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch while inside."""
        handles = []
        for layer, block in enumerate(self.blocks):
            handles.append(block.register_forward_hook(self._stream(layer)))
            for part in (block.temporal, block.feature):
                handles.append(part.register_forward_pre_hook(self._part(layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _stream(self, layer: int) -> Any:
        def keep(block: nn.Module, inputs: Any, output: Any) -> None:
            x = output[0].flatten(0, 1)  # (B, T, D) -> (B T, D)
            self.streams[layer] = x[:: math.ceil(len(x) / STREAM)]

        return keep

    def _part(self, layer: int) -> Any:
        def look(part: Any, inputs: Any) -> None:
            shown = part.watched(inputs[0])
            if "scores" in shown:
                found = shown["scores"].float()
                self.scores[layer].append(torch.stack([found.max(), attention_entropy(found)]))
            if "units" in shown:
                self.units[layer].append(dead(shown["units"]))

        return look

    def numbers(self) -> dict[str, list[float | None]]:
        """Name -> a value for each layer."""
        scores = [torch.stack(found).tolist() if found else [] for found in self.scores]
        dead_shares = [torch.cat(found).mean().item() if found else math.nan for found in self.units]
        return {
            "attention_logit": [_finite(max((s[0] for s in found), default=math.nan)) for found in scores],
            "attention_entropy": [_finite(min((s[1] for s in found), default=math.nan)) for found in scores],
            "effective_rank": [_finite(effective_rank(x)) if x is not None else None for x in self.streams],
            "dead_units": [_finite(share) for share in dead_shares],
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def attention_entropy(scores: Float[Tensor, "*B T S"]) -> Float[Tensor, ""]:
    """The mean over queries of the entropy of softmax(scores), nats: 0 for one key, ln S for all alike.

    Of the queries that see more than one key: a first token's attention says nothing. NaN if there are none.
    """
    several = scores.isfinite().sum(-1) > 1
    entropy: Tensor = torch.special.entr(scores.softmax(-1)).sum(-1)
    return entropy[several].mean()


def effective_rank(x: Float[Tensor, "N D"]) -> float:
    """exp of the entropy of the singular values over their sum: 1 if all rows point one way, D if every
    direction is used alike (Roy & Vetterli 2007). NaN of nothing but zeros, and of what is not finite.

    Not centred: the mean direction counts.
    """
    x = x.double()
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    if not bool(gram.isfinite().all()):
        return math.nan
    singular = torch.linalg.eigvalsh(gram.cpu()).clamp_min(0).sqrt()
    entropy: Tensor = torch.special.entr(singular / singular.sum()).sum()
    return entropy.exp().item()


def dead(units: Float[Tensor, "B T F"]) -> Float[Tensor, "F"]:
    """1 for a unit that is silent for every token, else 0; NaN where one is NaN."""
    loudest = units.abs().amax((0, 1)).float()
    return (loudest <= SILENT).where(~loudest.isnan(), loudest)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
