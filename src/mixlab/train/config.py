"""What a run is: a model or an n-gram, its data, and how it is trained. Frozen dataclasses, TOML-able."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from mixlab.data.config import DataConfig
from mixlab.errors import UserError, unknown
from mixlab.model.config import ModelConfig
from mixlab.model.ngram import MAX_ORDER, NGramConfig

OptimizerKind = Literal["adamw", "muon"]
ScheduleKind = Literal["cosine", "wsd", "constant"]
Dtype = Literal["auto", "float32", "bfloat16"]

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd", "constant")
DTYPES = ("auto", "float32", "bfloat16")
HORIZONS = ("steps", "tokens", "minutes")


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    """UserError that names the key, what it must be and what it is, unless `holds`."""
    if not holds:
        raise UserError(f"{key} must be {expected}, got {value}")


def _require_one_of(key: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise unknown(key, value, options)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates.

    adamw: AdamW for every parameter. muon: Muon for the 2-D matrices inside the blocks, AdamW for the rest;
    its updates are scaled to the size of AdamW's, so one learning rate serves both. Weight decay reaches
    matrices and the head only. clip: largest global gradient norm, 0 for no clipping.
    """

    kind: OptimizerKind = "adamw"
    lr: float = 2e-3  # peak, for about 1M parameters (nanoGPT: 1e-3 at 10M, 6e-4 at 124M)
    weight_decay: float = 0.1  # GPT-3, Llama
    betas: tuple[float, float] = (0.9, 0.95)  # GPT-3, Llama: a short memory of squares stands bursts better
    eps: float = 1e-8  # Adam's own; GPT-3
    momentum: float = 0.95  # Muon only; Jordan et al. 2024
    clip: float = 1.0  # GPT-3, Llama

    def validate(self) -> OptimizerConfig:
        """Return self; UserError for a value that no optimizer can use."""
        where = "train.optimizer"
        _require_one_of(f"{where}.kind", self.kind, OPTIMIZERS)
        _require(0 < self.lr < math.inf, f"{where}.lr", self.lr, "a positive number")
        _require(0 <= self.weight_decay < math.inf, f"{where}.weight_decay", self.weight_decay, "0 or more")
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(in_range, f"{where}.betas", list(self.betas), "two numbers in [0, 1)")
        _require(0 < self.eps < 1, f"{where}.eps", self.eps, "a small positive number")
        _require(0 <= self.momentum < 1, f"{where}.momentum", self.momentum, "in [0, 1)")
        _require(0 <= self.clip < math.inf, f"{where}.clip", self.clip, "0 (off) or positive")
        return self


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the horizon; `warmup`, `decay`: fractions of it, `final`: of the peak."""

    kind: ScheduleKind = "cosine"
    warmup: float = 0.05  # 2% is usual for 5000 steps; a run of hundreds needs its tens of steps too
    decay: float = 0.2  # wsd only; Haegele et al. 2024: 20% is where longer stops helping
    final: float = 0.0  # Bergsma et al. 2025 (arXiv 2502.15938): to zero beats to a tenth

    def validate(self) -> ScheduleConfig:
        """Return self; UserError for fractions out of range or phases that overlap."""
        where = "train.schedule"
        _require_one_of(f"{where}.kind", self.kind, SCHEDULES)
        _require(0 <= self.warmup < 1, f"{where}.warmup", self.warmup, "a fraction of the horizon in [0, 1)")
        _require(0 <= self.final <= 1, f"{where}.final", self.final, "a fraction of the peak in [0, 1]")
        if self.kind == "wsd":
            _require(0 < self.decay <= 1, f"{where}.decay", self.decay, "a fraction of the horizon in (0, 1]")
            together = self.warmup + self.decay
            _require(together <= 1, f"{where}.warmup + {where}.decay", together, "at most 1")
        return self


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep. A checkpoint is also made before each evaluation and at the end.

    every: steps; 0 is off. minutes: since the last checkpoint, by the clock, so that which steps are saved
    differs from run to run, the losses do not; 0 is off.
    """

    every: int = 500
    minutes: float = 10.0  # what a crash may cost, however slow the steps; a save costs seconds at most
    keep: int = 2  # the newest K, and always the best: one to fall back on if the newest is damaged

    def validate(self) -> CheckpointConfig:
        """Return self; UserError for numbers out of range."""
        _require(self.every >= 0, "train.checkpoint.every", self.every, "0 (off) or a number of steps")
        fits = 0 <= self.minutes < math.inf
        _require(fits, "train.checkpoint.minutes", self.minutes, "0 (off) or a number of minutes")
        _require(self.keep >= 1, "train.checkpoint.keep", self.keep, "at least 1")
        return self


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run; exactly one of `steps`, `tokens` and `minutes` says how long.

    minutes: of training; evaluations and checkpoints are not counted. batch_size: rows of `context` tokens
    per step, cut into `accumulate` micro-batches when they do not fit in memory at once. eval_every: steps
    between evaluations, 0 for one at the end only. dtype: auto is bfloat16 autocast where that was measured
    to be faster. deterministic: on a GPU, only kernels that give the same bits each time, so that a
    resumed run equals an uninterrupted one there too.
    """

    seed: int = 0
    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None
    batch_size: int = 16  # 4096 tokens a step at the default context: small models learn most a token there
    accumulate: int = 1
    eval_every: int = 250
    dtype: Dtype = "auto"
    deterministic: bool = False  # costs speed on a GPU; a CPU gives the same bits anyway
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def horizon(self) -> Literal["steps", "tokens", "minutes"]:
        """Which of the three was given; UserError unless it is exactly one."""
        given = [name for name in ("steps", "tokens", "minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            what = "none was" if not given else " and ".join(given) + " were"
            raise UserError(f"train: give exactly one of steps, tokens and minutes ({what} given)")
        return given[0]  # type: ignore[return-value]

    @property
    def eval_batch_size(self) -> int:
        """Rows an evaluation scores at once: as many as training has in memory, but no fewer than 32."""
        return max(32, self.batch_size // self.accumulate)

    def with_horizon(
        self, *, steps: int | None = None, tokens: int | None = None, minutes: float | None = None
    ) -> TrainConfig:
        """The same run for another length, whatever length it had before; give exactly one."""
        return replace(self, steps=steps, tokens=tokens, minutes=minutes).validate()

    def progress(self, *, steps: float, tokens: float, seconds: float) -> float:
        """Fraction of the horizon behind a run that has done this much; 1 or more is the end."""
        done = {"steps": steps, "tokens": tokens, "minutes": seconds / 60}[self.horizon]
        return done / float(getattr(self, self.horizon))

    def validate(self) -> TrainConfig:
        """Return self; UserError for the first value, here or below, that cannot work."""
        length = getattr(self, self.horizon)
        _require(0 < length < math.inf, f"train.{self.horizon}", length, "a positive number")
        # torch takes seeds below 2**64; TOML and JSON agree on integers up to 2**63.
        _require(0 <= self.seed < 2**63, "train.seed", self.seed, "a whole number from 0 to 2**63 - 1")
        _require(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1 row")
        fits = 1 <= self.accumulate <= self.batch_size
        _require(fits, "train.accumulate", self.accumulate, f"from 1 to batch_size ({self.batch_size})")
        _require(
            self.eval_every >= 0, "train.eval_every", self.eval_every, "0 (at the end) or a number of steps"
        )
        _require_one_of("train.dtype", self.dtype, DTYPES)
        for nested in (self.optimizer, self.schedule, self.checkpoint):
            nested.validate()
        return self


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: exactly one of `model` and `ngram`, the text, and the training.

    `model.vocab_size` follows the tokenizer: `train` sets it once the text is prepared.
    """

    name: str = "run"
    model: ModelConfig | None = None
    ngram: NGramConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def validate(self) -> RunConfig:
        """Return self; UserError for the first key that cannot work."""
        if (self.model is None) == (self.ngram is None):
            given = "neither is" if self.model is None else "both are"
            raise UserError(f"a run needs exactly one of [model] and [ngram] ({given} given)")
        if self.model is not None:
            self.model.validate()
            self.train.validate()  # an n-gram counts once: it needs no horizon
        if self.ngram is not None:
            _require(
                1 <= self.ngram.order <= MAX_ORDER, "ngram.order", self.ngram.order, f"from 1 to {MAX_ORDER}"
            )
        return self
