"""One step of training: a batch, its gradient a micro-batch at a time, and the update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixlab.data.batches import Batch
from mixlab.errors import RunFailed, UserError
from mixlab.train import diagnose, shortage
from mixlab.train.advice import NotFinite
from mixlab.train.config import TrainConfig
from mixlab.train.meters import Update, mean_over_ranks
from mixlab.train.precision import autocast
from mixlab.train.schedules import lr_factor
from mixlab.train.state import State
from mixlab.train.stopping import StopRequest, at_each_block

TERMS = ("z_loss", "label_smoothing")
"""What may be added to the loss, in the order of `LanguageModel.losses`; the keys of TrainConfig."""


class StepStopped(Exception):
    """A step was given up half-way, because a stop was requested."""


class Taken(NamedTuple):
    """What a step says of itself. loss: mean nats a token of its batch. norm: the gradient's, unclipped.
    flops: of all the passes that it took. added: name -> what a term that is on added to the objective.
    update_ratio: by role, if it was to be measured.
    """

    loss: float
    lr: float
    norm: float
    flops: int
    added: dict[str, float]
    update_ratio: dict[str, float | None] | None = None


class Stepper:
    """Takes a run's steps, each of which changes `state` as a whole or leaves it as it was.

    tokens, flops: of one step with a single gradient, the flops by the model's own forward formula. rate: the
    learning rate at a fraction of the horizon.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: State,
        context: int,
        *,
        bfloat16: bool,
        stop: StopRequest,
        note: Callable[[str], None],
    ) -> None:
        self.config, self.state, self.context = config, state, context
        self.bfloat16, self.stop, self.note = bfloat16, stop, note
        self.rows = config.rows(context)
        self.tokens = self.rows * context
        self.rate: Callable[[float], float] = lambda at: config.optimizer.lr * lr_factor(config.schedule, at)
        self.flops = 0
        self.count_flops()

    @property
    def micro_batches(self) -> int:
        """Into how many a batch is cut: as the config says, or more since memory ran out."""
        return max(self.config.accumulate, min(self.rows, self.state.done.micro_batches))

    def take(self, fraction: float, *, measured: bool = False) -> Taken:
        """One update from one batch, `fraction` of the horizon being done half-way through it.

        measured: whether the update itself is, which takes a copy of the parameters.

        Raises RunFailed if loss or gradient is not finite, or if memory does not hold even one row;
        StepStopped, with all as it was before but for parameters that end with `fraction`, if a stop is
        requested until the gradient is there.
        """
        state, optimizers = self.state, self.state.optimizers
        if state.set_progress(fraction):
            self.count_flops()
        lr = self.rate(fraction)
        optimizers.set_lr(lr)
        batch, losses, norm = self.gradient()
        passes = FurtherPasses(self, batch)
        try:
            update = Update.begin(optimizers) if measured else None
            optimizers.step(passes)
            if state.average is not None:
                state.average.update(state.done.step + 1)
        except (RuntimeError, MemoryError) as error:
            if not shortage.ran_out(error):
                raise
            # Some parameters are updated and some are not, so there is no way on from here.
            raise RunFailed(
                f"out of memory in the optimizer's update at step {state.done.step + 1}: the model and what "
                "the optimizer keeps do not fit; choose a smaller model.dim or model.depth"
            ) from None
        added = {name: losses[i] for i, name in enumerate(TERMS, 1) if getattr(self.config, name)}
        ratios = update.ratios() if update else None
        return Taken(losses[0], lr, norm, self.flops + passes.flops, added, ratios)

    def gradient(self) -> tuple[Batch, list[float], float]:
        """The next batch, its losses and gradient norm; the gradient, clipped, is left with the parameters.

        Where memory is short the same batch is tried again in smaller micro-batches, from the same random
        numbers, so that it is as if they had been that small at once.
        """
        before = self.state.draws()
        while True:
            batch = self.state.batches.next()
            try:
                return batch, *self.clip(self.backward(*batch), batch)
            except StepStopped:
                self.state.rewind(before)
                raise
            except UserError as error:
                raise damaged(self.state.batches.tokens, f"step {self.state.done.step + 1}", error) from None
            except (RuntimeError, MemoryError) as error:
                if not shortage.ran_out(error):
                    raise
            self.state.rewind(before)
            shortage.release(self.state.device)
            self.halve()

    def halve(self) -> None:
        """Cut batches into twice as many micro-batches from now on; RunFailed if each has only one row."""
        step, rows, tried = self.state.done.step + 1, self.rows, self.micro_batches
        if tried >= rows:
            anew = "" if self.config.recompute else "set train.recompute=true, or "
            raise RunFailed(
                f"out of memory at step {step}: not even one row of {self.context} tokens fits; "
                f"{anew}choose a smaller model.context, model.dim or model.depth"
            )
        self.state.done.micro_batches = min(rows, 2 * tried)
        sizes = [math.ceil(rows / pieces) for pieces in (tried, self.micro_batches)]
        large, small = (f"{n} row{'s'[: n != 1]}" for n in sizes)
        self.note(
            f"out of memory at step {step} with micro-batches of {large}: going on with {small} at a time; "
            f"a step is still {self.tokens} tokens"
        )

    def clip(self, losses: Tensor, batch: Batch) -> tuple[list[float], float]:
        """(losses, gradient norm before it is clipped) of a batch; RunFailed if any is not finite."""
        mean = mean_over_ranks(losses, self.tokens)
        *found, norm = torch.cat([mean, self.state.optimizers.clip()[None]]).tolist()
        if not all(map(math.isfinite, (*found, norm))):
            raise NotFinite(self.what_went_bad(found[0], norm, *batch))
        return found, norm

    def backward(self, *batch: Tensor, stops: bool = True, plain: bool = False) -> Tensor:
        """Add up the gradients of the batch, a micro-batch at a time; returns its mean losses, nats a token.

        They are three: see `LanguageModel.losses`. plain: the gradient is of the first alone. StepStopped, if
        it `stops`, at the next block once a stop is requested.
        """
        total = torch.zeros(1 + len(TERMS), device=self.state.device)
        model = self.state.model
        with at_each_block(model, self.check_stop) if stops else contextlib.nullcontext():
            for piece in zip(*(t.tensor_split(self.micro_batches) for t in batch), strict=True):
                # Weighted by its tokens, so that pieces of unequal size still sum to the batch's own mean.
                losses = self.loss(*piece) * (piece[1].numel() / batch[1].numel())
                (losses[0] if plain else losses.sum()).backward()
                total += losses.detach()
        return total

    def check_stop(self) -> None:
        """StepStopped if a stop is requested."""
        if self.stop.requested:
            raise StepStopped

    def loss(self, inputs: Tensor, targets: Tensor, segment: Tensor | None = None) -> Tensor:
        """The model's loss, and what each of TERMS adds to it, on this device in this run's precision."""
        device = self.state.device
        inputs, targets = (t.to(device, non_blocking=True) for t in (inputs, targets))
        segment = None if segment is None else segment.to(device, non_blocking=True)
        terms = {name: getattr(self.config, name) for name in TERMS}
        with autocast(device, self.bfloat16):
            return self.state.model.losses(inputs, targets, segment=segment, **terms)

    @torch.no_grad()
    def draw(self, inputs: Tensor, segment: Tensor | None = None) -> Tensor:
        """A token after each of `inputs` (B, T), by the model's own probabilities."""
        drawn = []
        given = [inputs] if segment is None else [inputs, segment]
        for x, *s in zip(
            *(t.to(self.state.device).tensor_split(self.micro_batches) for t in given), strict=True
        ):
            with autocast(self.state.device, self.bfloat16):
                logits = self.state.model(x, segment=s[0] if s else None).logits
            probabilities = logits.float().flatten(0, 1).softmax(-1)
            drawn.append(torch.multinomial(probabilities, 1).view_as(x))
        return torch.cat(drawn)

    def count_flops(self) -> None:
        """Set `flops`: backward costs two forwards, as a product has a gradient for each of its factors."""
        self.flops = 3 * self.state.model.flops(self.context) * self.rows

    def what_went_bad(self, loss: float, norm: float, *batch: Tensor) -> str:
        """The message for a step that cannot be taken: which number, where it began."""
        what = (
            f"the loss is {loss}"
            if not math.isfinite(loss)
            else f"the gradient norm is {norm} (loss {loss:.4g})"
        )
        where = diagnose.explain(self.state.model, lambda: self.loss(*batch))
        return f"{what} at step {self.state.done.step + 1}: {where}"


def damaged(tokens: Any, where: str, error: UserError) -> RunFailed:
    """For token ids, made by the trainer itself, that a model refuses: what to do about it."""
    file = getattr(tokens, "filename", None)
    return RunFailed(
        f"{error} at {where}: the tokens{f' in {file}' if file else ''} were damaged after they had been "
        "checked; a resume makes them anew"
    )


class FurtherPasses:
    """What an optimizer may ask for in the middle of a step: see `kinds.Passes`. flops: of those made.

    Parameters are not where a checkpoint may find them then: these passes do not stop half-way.
    """

    def __init__(self, stepper: Stepper, batch: Batch) -> None:
        self.stepper, self.batch = stepper, batch
        self.flops = 0

    def again(self) -> None:
        """The batch's gradients at the present parameters, clipped."""
        self.stepper.state.optimizers.drop_gradients()
        total = self.stepper.backward(*self.batch, stops=False)
        self.stepper.clip(total, self.batch)
        self.flops += self.stepper.flops

    def drawn(self) -> int:
        """Gradients towards drawn tokens, as they are; the forward that draws them is a pass of its own."""
        self.stepper.state.optimizers.drop_gradients()
        inputs, targets, *segment = self.batch
        drawn = self.stepper.draw(inputs, *segment)
        self.stepper.backward(inputs, drawn, *segment, stops=False, plain=True)
        self.flops += self.stepper.flops * 4 // 3
        return targets.numel()
