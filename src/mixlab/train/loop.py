"""The training loop: one step after another, saved, evaluated, recorded, and stopped cleanly.

`train` is the one entry; it takes a model and an n-gram alike. The loop tells `progress` what it writes to
metrics.jsonl and knows nothing of terminals.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from mixlab.config import to_mapping
from mixlab.data import Dataset, load_tokenizer, prepare
from mixlab.data.streams import to_give_again
from mixlab.errors import RunFailed, UserError
from mixlab.model.language_model import build_model
from mixlab.train import (
    auto,
    checkpoint,
    diagnose,
    machine,
    meters,
    randomness,
    shortage,
    surroundings,
    threads,
)
from mixlab.train.advice import Diverged, NotFinite, advice
from mixlab.train.allocator import keep_freed_memory
from mixlab.train.average import Average
from mixlab.train.config import RunConfig, TrainConfig
from mixlab.train.counters import Clock, Counters
from mixlab.train.evaluate import EvaluationStopped
from mixlab.train.evaluations import Evaluations
from mixlab.train.files import check_name, disk_errors
from mixlab.train.folder import Changes, RunFolder, check_allowed, listed, resolve
from mixlab.train.metrics import Line, cut_back
from mixlab.train.optimizers import Optimizers
from mixlab.train.precision import resolve as resolve_dtype
from mixlab.train.progress import Progress, Told, notes
from mixlab.train.record import Record
from mixlab.train.resuming import afresh, beginnings, changed_since, fitting, identity
from mixlab.train.saved import check_trained
from mixlab.train.saver import Saver
from mixlab.train.sinks import Sinks
from mixlab.train.state import State
from mixlab.train.step import Stepper, StepStopped, damaged
from mixlab.train.stopping import StopRequest
from mixlab.train.watch import WatchList


def train(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    dataset: Dataset | None = None,
) -> Line:
    """Train what `config` says in the folder `out`; returns the record's last line, the summary.

    resume: continue the run in `out` from its newest whole checkpoint (from the start if it made none yet).
    force: resume even if config or text differ from those of the run; the record says what was changed.
    progress: called with every line of metrics.jsonl as it is written, with {"kind": "start", "run",
    "length": {what it is counted in: how much}, "evaluation": `Evaluations.plan`} before the first, with
    {"kind": "prepare", ...} while a long text is read and encoded (`mixlab.data.corpus.Progress`), with
    {"kind": "evaluating", ...} during an evaluation (`Evaluations.make`), and with {"kind": "note",
    "message"} for what a person should be told; without it, notes are Python warnings. After an OSError of
    its own it is not called again, and training continues.
    dataset: the text of `config.data`, where it is prepared already.

    The summary's `status` is "done", or "stopped" after SIGTERM, SIGINT or SIGHUP (its `message` says how to
    resume). Torch's settings are pinned meanwhile (`mixlab.train.surroundings`). Raises UserError for a
    config, text or folder that cannot work and if this process is training already, RunFailed for a loss
    that is not finite or a full disk.
    """
    with surroundings.alone(), surroundings.pinned():
        return _train(config, out, dataset, resume=resume, force=force, progress=progress)


def _train(
    config: RunConfig,
    out: Path | str,
    dataset: Dataset | None,
    *,
    resume: bool,
    force: bool,
    progress: Progress | None,
) -> Line:
    config.validate()
    report = Sinks(config.train.sinks, optional=config.train.sinks_optional, report=Told(progress or _warn))
    folder = RunFolder(Path(out))
    check_name(folder.path)
    begun = folder.read_config() if resume else None
    if begun is None:
        folder.check_free()
    else:
        check_trained(folder)
    dataset = _data(config, folder, dataset, resume, report)
    config = resolve(config, dataset)
    if config.model is None:
        from mixlab.train import count

        return count.begin(config, folder, dataset, report, resume=resume, force=force)

    width, before = config.model.dim, None if begun is None else begun.train
    config = replace(config, train=auto.settle(config.train, width=width, note=notes(report), begun=before))
    changes = folder.check_same(config, dataset, force=force) if resume else {}
    with (
        threads.using(config.train.threads),
        randomness.kept(),
        randomness.deterministic(config.train.deterministic),
    ):
        facts = machine.environment(machine.measure(config.train.device))
        trainer = Trainer(config, folder, dataset, report)  # first: a part that does not fit leaves no folder
        keep_freed_memory()  # not before: what preparing a long text took is given back
        with folder.locked():
            if resume:
                trainer.resume(folder.read_config().train, changes, force=force)
            else:
                folder.check_free()  # again, now that no other process can take it
            folder.write_start(config, dataset, facts)
            horizon = config.train.horizon
            report(
                {
                    "kind": "start",
                    "run": str(folder.path),
                    "length": {horizon: getattr(config.train, horizon)},
                    "evaluation": trainer.evaluations.plan(),
                }
            )
            with report.open(folder.path, trainer.done.step, to_mapping(config)):
                return trainer.run()


def _warn(line: Line) -> None:
    if line["kind"] == "note":
        warnings.warn(line["message"], stacklevel=2)


def _data(
    config: RunConfig, folder: RunFolder, dataset: Dataset | None, resume: bool, report: Progress
) -> Dataset:
    """The text, prepared unless it is; a resumed run keeps the tokenizer it began with."""
    context = config.model.context if config.model is not None else 0
    dataset = dataset or prepare(config.data, context=context, notes=notes(report), progress=report)
    if resume and (saved := load_tokenizer(folder.path)).hash != dataset.tokenizer.hash:
        dataset = prepare(config.data, context=context, tokenizer=saved, progress=report)
    return dataset


class Trainer:
    """One model's training. What changes as it goes is in `state`, which is what a checkpoint holds."""

    def __init__(self, config: RunConfig, folder: RunFolder, dataset: Dataset, report: Progress) -> None:
        assert config.model is not None
        self.folder, self.report, self.valid = folder, report, dataset.valid
        self.config, self.context = config.train, config.model.context
        self.run_config, self.dataset, self.changes = config, dataset, Changes()
        again = to_give_again((*config.data.sources, *config.data.valid))
        self.resume_command = f"mixlab train --resume {folder.path}{again}"
        self.device = torch.device(auto.usable(self.config.device))
        self.bfloat16 = resolve_dtype(self.config.dtype, self.device)
        shortage.check_model(config.model, self.device)
        randomness.seed(self.config.seed)
        self.model = build_model(config.model).to(self.device)
        self.model.recompute = self.config.recompute
        self.model.set_progress(0.0)  # before the optimizers: parameters that serve training alone come now
        self.optimizers = Optimizers(self.model, self.config.optimizer, bfloat16=self.bfloat16)
        rows = self.config.rows(self.context)
        self.batches = dataset.batches(context=self.context, batch_size=rows, seed=self.config.seed)
        for sentence in self.batches.notes():
            self.note(sentence)
        self.done = Counters()
        average = Average(self.model, self.config.ema) if self.config.ema else None
        self.state = State(self.model, self.optimizers, self.batches, self.done, self.device, average)
        self.stop = StopRequest()
        self.stepper = Stepper(
            self.config, self.state, self.context, bfloat16=self.bfloat16, stop=self.stop, note=self.note
        )
        self.record = Record(folder.metrics, report)
        self.saver = Saver(folder.checkpoints, self.config.checkpoint, self.record)
        self.evaluations = Evaluations(self.config, dataset, self.context)
        self.clock = Clock()
        self.speed = meters.Speed(self.device.type, self.bfloat16)
        self.watch = WatchList(
            self.model,
            self.valid,
            every=self.config.watch_every,
            context=self.context,
            device=self.device,
            bfloat16=self.bfloat16,
        )

    def run(self) -> Line:
        """Train to the horizon or to a requested stop; returns the summary, which ends the record."""
        with disk_errors(f"to {self.folder.path}", failure=UserError):
            self.record.open()
        with self.stop, contextlib.closing(self.record), self.saver:
            if self.changes:
                self.record.write({**self.totals("config"), "changes": self.changes})
            try:
                with disk_errors(f"to {self.folder.path}"):
                    self.loop()
            except RunFailed as failure:
                self.saver.settle()
                message = f"{failure}; {self.last_good(failure)}"
                with contextlib.suppress(OSError):
                    self.record.write(self.summary("failed", message))
                raise RunFailed(message) from failure
            done = self.finished() and not self.evaluation_is_due()
            resume = f"saved at step {self.done.step}; go on with: {self.resume_command}"
            summary = self.summary("done", "") if done else self.summary("stopped", resume)
            self.record.write(summary)
        return summary

    def loop(self) -> None:
        """Step, record, save, evaluate; on return, all that was saved is on the disk."""
        self.model.train()
        self.evaluate_if_due()  # a run that was killed just after saving has yet to make it
        self.clock.lap()
        while not self.finished() and not self.stop.requested:
            self.saver.check()
            pieces = self.stepper.micro_batches
            with contextlib.suppress(StepStopped):
                self.record.write(self.step())
                self.check_loss()
                self.watch_if_due()
                # A size that memory has just forced is saved, so that a resume goes on with it.
                cut = self.stepper.micro_batches != pieces
                full = self.evaluation_is_due() and self.evaluations.full(self.done)
                if cut or full or self.saver.is_due(self.done.step):
                    self.save()
                self.evaluate_if_due()
        if self.stop.requested:
            self.save()
        self.saver.wait()

    def step(self) -> Line:
        """One update from one batch; returns its line. Raises as `Stepper.take` does."""
        measured = self.watch.is_due(self.done.step + 1)
        taken = self.stepper.take(self.middle_of_step(), measured=measured)
        done, seconds, clip = self.done, self.clock.lap(), self.config.optimizer.clip
        tokens, flops = self.stepper.tokens, taken.flops
        done.step += 1
        done.tokens += tokens
        done.flops += flops
        done.seconds += seconds
        done.clipped += 0 < clip < taken.norm
        return {
            **self.totals("step"),
            "loss": taken.loss,
            **taken.added,
            "lr": taken.lr,
            "learning_rates": meters.learning_rates(self.optimizers),
            "grad_norm": taken.norm,
            "grad_norm_clipped": meters.clipped_norm(taken.norm, clip),
            "clipped_fraction": done.clipped / done.step,
            **({"update_ratio": taken.update_ratio or {}} if measured else {}),
            **self.speed.rates(tokens, flops, seconds),
            **meters.memory(self.device),
        }

    def check_loss(self) -> None:
        """Diverged if the loss has long been no better than that of a model that knows nothing, or worse."""
        if why := self.record.trend.hopeless(math.log(self.model.vocab_size)):
            raise Diverged(f"the loss diverged: up to step {self.done.step} {why}")

    def watch_if_due(self) -> None:
        """Write down what the watch list sees after this step, and tell what is newly out of its band."""
        if self.watch.is_due(self.done.step):
            ratios = self.record.last["step"]["update_ratio"]
            seen = self.watch.look(ratios, self.record.trend.readings())
            self.record.write({**self.totals("watch"), **seen})
            for sentence in self.watch.news(seen["warnings"]):
                self.note(f"step {self.done.step}: {sentence}")

    def middle_of_step(self) -> float:
        """Progress half-way through the coming step: neither the first nor the last has a factor of 0.

        A step that goes past the end ends there. Until one has been timed, a step takes what its products
        take at this machine's peak.
        """
        done = self.done
        second = done.seconds / done.step if done.step else self.stepper.flops / self.speed.peak
        middle = self.config.progress(
            steps=done.step + 0.5,
            tokens=done.tokens + self.stepper.tokens / 2,
            seconds=done.seconds + second / 2,
            flops=done.flops + self.stepper.flops / 2,
        )
        return min(middle, (done.progress(self.config) + 1) / 2)

    def finished(self) -> bool:
        """Whether the horizon is reached."""
        return self.done.progress(self.config) >= 1

    def evaluation_is_due(self) -> bool:
        """Whether the schedule asks for one that the record does not have."""
        return self.evaluations.due(self.done, self.record.last.get("eval"))

    def evaluate_if_due(self) -> None:
        """Score the validation text and note the best; given up if a stop is requested meanwhile.

        A full measure has its checkpoint on the disk by then: a process that ends here loses no step.
        """
        if not self.evaluation_is_due():
            return
        dtype = "bfloat16" if self.bfloat16 else "float32"
        full = self.evaluations.full(self.done)
        with self.clock.paused(), self.state.averaged(), contextlib.suppress(EvaluationStopped):
            if full:
                self.saver.wait()
            try:
                found = self.evaluations.make(
                    self.model, self.done, dtype=dtype, stop=self.stop, report=self.report
                )
            except UserError as error:
                raise damaged(self.valid.tokens, "an evaluation", error) from None
            self.record.write({**self.totals("eval"), **found})
            if full:
                self.saver.prune()

    def totals(self, kind: str) -> Line:
        """The fields that every line has."""
        return self.done.totals(kind)

    def summary(self, status: str, message: str) -> Line:
        """The record's last line."""
        last, best = self.record.last, self.record.best or {}
        steps, evaluation = last.get("step", {}), self.record.full or {}
        return {
            **self.totals("end"),
            "status": status,
            "message": message,
            "loss": steps.get("loss"),
            "bits_per_byte": evaluation.get("bits_per_byte"),
            "best_bits_per_byte": best.get("bits_per_byte"),
            "best_step": best.get("step"),
            "parameters": sum(self.model.parameters_by_component().values()),
            "dtype": "bfloat16" if self.bfloat16 else "float32",
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "tokens_per_second": self.done.tokens / self.done.seconds if self.done.seconds else None,
            "peak_memory_bytes": machine.peak_memory_bytes(self.device),
            "checkpoint": str(self.saver.saved) if self.saver.saved else None,
        }

    def save(self) -> None:
        """Begin a checkpoint of this step, unless it has one; RunFailed if the parameters are not finite."""
        if self.saver.step == self.done.step:
            return
        with self.clock.paused():
            bad = diagnose.bad_parameter(self.model)
            if bad is not None:
                raise NotFinite(
                    f"parameter {bad} is not finite after step {self.done.step}, which is not saved"
                )
            with self.state.averaged():
                tensors, scalars = self.state.contents()
                self.saver.save(self.done.step, tensors, scalars | identity(self.run_config, self.dataset))

    def resume(self, before: TrainConfig, changes: Changes, *, force: bool) -> None:
        """Put back the newest whole checkpoint and cut the record back to it.

        before: what the folder says it ran by. changes: what is not as there; the checkpoint itself may say
        more. UserError for these unless `force`, and for what does not fit the checkpoint in any case.
        """
        with disk_errors(f"to {self.folder.path}", failure=UserError):
            checkpoint.sweep(self.folder.checkpoints)
        found = checkpoint.list_checkpoints(self.folder.checkpoints)
        whole, early = None, None
        if found:
            whole = checkpoint.first_whole(found, self.note)
            early = whole / checkpoint.RECORD
            self.saver.continue_from(whole)
            changes = changes | changed_since(whole, self.folder, self.run_config, self.dataset)
            check_allowed(whole, changes, self.run_config, force=force)
            alone = checkpoint.training_only(self.model).keys()
            with fitting(whole, changes):
                self.state.load(whole, afresh=afresh(changes))
            gone = alone - checkpoint.training_only(self.model).keys()
            if gone and any(key.startswith("model.") for key in changes):
                self.note(f"{whole} has no {min(gone)}: what serves training alone is not begun half-way")
            diagnose.check_finite(self.model, whole)
            self.stepper.count_flops()
        else:
            self.note(f"{self.folder.path} has no checkpoint yet: starting from the first step")
        self.check_length(before)
        with disk_errors(f"to {self.folder.path}", failure=UserError):
            for damaged in found[: found.index(whole)] if whole else ():
                checkpoint.set_aside(damaged)
            cut_back(self.folder.metrics, self.done.step, early)
        self.record.recall()
        self.changes = changes
        if changes:
            self.note(f"going on with another config: {listed(changes)}{beginnings(changes)}")

    def check_length(self, before: TrainConfig) -> None:
        """UserError if the run is resumed for a length that it has already passed."""
        done, name = self.done, self.config.horizon
        no_shorter = name == before.horizon and getattr(self.config, name) >= getattr(before, name)
        passed = done.progress(self.config) > 1
        if passed and not no_shorter:
            raise UserError(
                f"{self.folder.path} is at step {done.step} ({done.tokens} tokens), past the {name} asked "
                "for; give a greater length to go on"
            )

    def last_good(self, failure: RunFailed) -> str:
        """What to do about a failure, where the record tells, and the checkpoint to go back to."""
        saved = self.saver.saved
        last = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
        if not isinstance(failure, Diverged | NotFinite):
            return last
        fraction = self.middle_of_step()
        words = advice(self.config, self.record.trend, fraction=fraction, bfloat16=self.bfloat16)
        step = self.record.best_step
        best = None if step is None else self.folder.checkpoints / checkpoint.name_of(step)
        if best is not None and isinstance(failure, Diverged):
            return f"{words}; the best checkpoint is {best}"
        return f"{words}; {last}" + (
            f", the best by its evaluation {best}" if best not in (None, saved) else ""
        )

    def note(self, message: str) -> None:
        """Tell a person something that is not a metric."""
        notes(self.report)(message)
