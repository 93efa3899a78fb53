"""What a run is: a model or an n-gram, its data, and how it is trained. Frozen dataclasses, TOML-able."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from mixlab.data.config import DataConfig
from mixlab.errors import UserError, nearest, unknown
from mixlab.model.config import ModelConfig
from mixlab.model.ngram import MAX_ORDER, NGramConfig
from mixlab.parts.contract import Role
from mixlab.train import kinds

ScheduleKind = Literal["cosine", "linear", "wsd", "constant", "onecycle"]
Dtype = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]

ROLES: tuple[str, ...] = get_args(Role)
SCHEDULES = ("cosine", "linear", "wsd", "constant", "onecycle")
SINKS = ("tensorboard", "wandb", "trackio")
DTYPES = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
LONGEST = {"steps": 1e10, "tokens": 1e15, "epochs": 1e6, "minutes": 10 * 365.25 * 24 * 60, "flops": 1e27}
"""Horizon -> what is taken for a slip beyond: ten years, ten times the largest trainings known by 2026."""

MOST_RATE = 1e4
"""A range test ends at 10; more serves nobody but tests of divergence."""

MOST_BATCH, MOST_THREADS = 1 << 28, 4096
"""Ten times the tokens of the largest batches in use; more threads than any machine has cores."""

HORIZONS = ("steps", "tokens", "epochs", "minutes", "flops")


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

    kind: a name in `mixlab.train.kinds.KINDS`, or pytorch_optimizer:NAME; where it is for matrices alone
    (muon), the 2-D matrices inside the blocks, AdamW takes the rest. weight_decay, betas, eps, momentum: None
    is the kind's own. weight_decay reaches matrices and the head; decay: role -> another one. lr_scale: role
    -> factor on the learning rate. clip: largest global gradient norm, 0 for no clipping. options: other
    arguments of the kind's class.
    """

    kind: str = "adamw"
    lr: float = 2e-3  # peak, for about 1M parameters (nanoGPT: 1e-3 at 10M, 6e-4 at 124M)
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float | None = None
    clip: float = 1.0  # GPT-3, Llama
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    decay: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The knobs that the kind takes, its own defaults in place of None."""
        own = kinds.find(self.kind).takes
        return {key: own[key] if (value := getattr(self, key)) is None else value for key in own}

    def settings_of(self, rule: str) -> dict[str, Any]:
        """What the class of `rule`, the kind or what takes its rest, is made with besides the rate."""
        knobs = {key: value for key, value in self.settings().items() if key in kinds.find(rule).knobs}
        options = self.options if rule == self.kind else {}
        return knobs | {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}

    def spelled_out(self) -> OptimizerConfig:
        """The same with the kind's own defaults written in place of None."""
        return replace(self, **self.settings())

    def of_kind(self, kind: str) -> OptimizerConfig:
        """The same for another kind, by that kind's own knobs and options in place of this one's."""
        own: dict[str, Any] = dict.fromkeys(("weight_decay", "betas", "eps", "momentum"))
        return replace(self, kind=kind, options={}, **own)

    def validate(self) -> OptimizerConfig:
        """Return self; UserError for a kind that is none and for a value that no optimizer can use."""
        where = "train.optimizer"
        kind = kinds.find(self.kind)
        fits = 0 < self.lr <= MOST_RATE
        _require(fits, f"{where}.lr", self.lr, f"a positive number, at most {MOST_RATE:g}")
        _require(0 <= self.clip < math.inf, f"{where}.clip", self.clip, "0 (off) or positive")
        for key in ("weight_decay", "betas", "eps", "momentum"):
            if getattr(self, key) is not None and key not in kind.takes:
                raise UserError(f"{where}.{key}: {self.kind} takes none ({_instead(kind, key)})")
        found = self.settings()
        decay, betas = found.get("weight_decay", 0.0), found.get("betas", (0.0, 0.0))
        eps, momentum = found.get("eps", 1e-8), found.get("momentum", 0.0)
        _require(0 <= decay < math.inf, f"{where}.weight_decay", decay, "0 or more")
        in_range = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        _require(in_range, f"{where}.betas", list(betas), "two numbers in [0, 1)")
        _require(0 < eps < 1, f"{where}.eps", eps, "a small positive number")
        _require(0 <= momentum < 1, f"{where}.momentum", momentum, "in [0, 1)")
        for table, least in (("lr_scale", "a positive number"), ("decay", "0 or more")):
            for role, value in getattr(self, table).items():
                _require_one_of(f"role in {where}.{table}", role, ROLES)
                fits = 0 < value < math.inf or (table == "decay" and value == 0)
                _require(fits, f"{where}.{table}.{role}", value, least)
        if self.decay and "weight_decay" not in kind.takes:
            raise UserError(f"{where}.decay: {self.kind} takes no weight decay")
        for key in self.options:
            if key not in kind.options():
                raise UserError(f"{where}.options.{key}: {self.kind} takes none; {_nearest(key, kind)}")
        return self


def _instead(kind: kinds.Kind, key: str) -> str:
    """Where a knob that a kind does not take belongs, if anywhere."""
    if key in kind.options():
        return f"give its class's own as train.optimizer.options.{key}"
    return f"it takes {', '.join(kind.takes)}" if kind.takes else "its knobs are in train.optimizer.options"


def _nearest(key: str, kind: kinds.Kind) -> str:
    if key in kind.takes:
        return f"that is train.optimizer.{key}"
    return nearest(key, kind.options()) if kind.options() else "it has no options"


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the horizon; `warmup`, `decay`: fractions of it, `final`: of the peak.

    warmup: None is 0.05 (2% is usual for 5000 steps; a run of hundreds needs its tens of steps too), and for
    onecycle, whose first half it is, 0.3 (fastai's; Smith & Topin 2018 took 0.45).
    """

    kind: ScheduleKind = "cosine"
    warmup: float | None = None
    decay: float = 0.2  # wsd only; Haegele et al. 2024: 20% is where longer stops helping
    final: float = 0.0  # Bergsma et al. 2025 (arXiv 2502.15938): to zero beats to a tenth

    @property
    def rise(self) -> float:
        """The fraction of the horizon until the peak."""
        usual = 0.3 if self.kind == "onecycle" else 0.05
        return usual if self.warmup is None else self.warmup

    def validate(self) -> ScheduleConfig:
        """Return self; UserError for fractions out of range or phases that overlap."""
        where = "train.schedule"
        _require_one_of(f"{where}.kind", self.kind, SCHEDULES)
        _require(0 <= self.rise < 1, f"{where}.warmup", self.warmup, "a fraction of the horizon in [0, 1)")
        _require(0 <= self.final <= 1, f"{where}.final", self.final, "a fraction of the peak in [0, 1]")
        if self.kind == "wsd":
            _require(0 < self.decay <= 1, f"{where}.decay", self.decay, "a fraction of the horizon in (0, 1]")
            together = self.rise + self.decay
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
    """One training run; exactly one of `steps`, `tokens`, `epochs`, `minutes` and `flops` says how long.

    epochs: times every token of the training text. flops: the model's by its formula, forward and backward.
    minutes: of training; evaluations and checkpoints are not counted. batch_tokens: a step's, to the nearest
    row of `context` tokens. accumulate: micro-batches that a step is cut into from the start; training cuts
    further by itself when memory runs out. eval_every: steps between evaluations, 0 for one at the end only.
    evaluations: how many in all, the last at the end, evenly spaced by the logarithm of the length, in place
    of eval_every; 0 is off. eval_tokens: of the validation text, for evaluations before the last; 0 is all.
    watch_every: steps between looks at the watch list, 0 for none. sinks: what else gets the numbers, of
    SINKS; sinks_optional: go on without one that cannot be used here.
    z_loss, label_smoothing: see `LanguageModel.losses`; in the gradient, not in the loss that is reported.
    ema: decay of an average of the weights, which is then what is evaluated and kept as the model; 0 is off.
    recompute: blocks do their forward again for the gradient, in place of keeping what it needs.
    dtype: auto is bfloat16 autocast where that was measured to be faster. threads: torch's on a CPU; 0 (auto)
    is as many as there are, where that was measured to be faster than one. device: auto is the GPU if there
    is one. A run spells out what these three came to, and keeps it (`mixlab.train.auto`).
    deterministic: on a GPU, only kernels that give the same bits each time, so that a resumed run equals an
    uninterrupted one there too.
    """

    seed: int = 0
    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    flops: float | None = None
    batch_tokens: int = 4096  # 16 rows of the default context: small models learn most a token there
    accumulate: int = 1
    eval_every: int = 250
    evaluations: int = 0
    eval_tokens: int = 0  # a sample costs less, and only full evaluations decide which checkpoint is the best
    watch_every: int = 50  # a look takes a fifth of a step or less (LOG.md): under 1% of the time
    sinks: tuple[str, ...] = ()
    sinks_optional: bool = False
    z_loss: float = 0.0  # 1e-4 in PaLM; at this scale logits do not drift
    label_smoothing: float = 0.0  # 0.1 in Szegedy et al.; it costs nats, which are what is compared here
    ema: float = 0.0  # a falling learning rate averages too; 0.999 is usual where it stays constant
    recompute: bool = False  # a third more time for the memory of one block in place of all
    dtype: Dtype = "auto"
    threads: int = 0
    device: Device = "auto"
    deterministic: bool = False  # costs speed on a GPU; a CPU gives the same bits anyway
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def horizon(self) -> str:
        """Which of HORIZONS was given; UserError unless it is exactly one."""
        given = [name for name in HORIZONS if getattr(self, name) is not None]
        if len(given) != 1:
            what = "none was" if not given else " and ".join(given) + " were"
            *others, last = HORIZONS
            raise UserError(f"train: give exactly one of {', '.join(others)} and {last} ({what} given)")
        return given[0]

    def rows(self, context: int) -> int:
        """Rows of `context` tokens in a step: at least 1."""
        return max(1, (self.batch_tokens + context // 2) // context)

    def with_horizon(self, **length: float | None) -> TrainConfig:
        """The same run for another length, whatever length it had before; give exactly one of HORIZONS."""
        lengths: dict[str, Any] = dict.fromkeys(HORIZONS) | length
        return replace(self, **lengths).validate()

    def spelled_out(self) -> TrainConfig:
        """The same with what depends on a kind written in place of None."""
        schedule = replace(self.schedule, warmup=self.schedule.rise)
        return replace(self, optimizer=self.optimizer.spelled_out(), schedule=schedule)

    def for_text(self, tokens: int) -> TrainConfig:
        """The same with epochs as tokens of a training text that has so many."""
        if self.epochs is None:
            return self
        number, most = self.epochs * tokens, LONGEST["tokens"]
        expected = f"at most {most / tokens:.3g}, {most:.0e} tokens of this text"
        _require(number <= most, "train.epochs", self.epochs, expected)
        return self.with_horizon(tokens=max(1, round(number)))

    def progress(self, *, steps: float, tokens: float, seconds: float, flops: float) -> float:
        """Fraction of the horizon behind a run that has done this much; 1 or more is the end.

        RuntimeError for epochs, which `for_text` makes tokens.
        """
        if self.epochs is not None:
            raise RuntimeError("epochs have no length without a text")
        done = {"steps": steps, "tokens": tokens, "minutes": seconds / 60, "flops": flops}[self.horizon]
        return done / float(getattr(self, self.horizon))

    def validate(self) -> TrainConfig:
        """Return self; UserError for the first value, here or below, that cannot work."""
        length, most = getattr(self, self.horizon), LONGEST[self.horizon]
        fits = 0 < length <= most
        _require(fits, f"train.{self.horizon}", length, f"a positive number, at most {most:g}")
        # torch takes seeds below 2**64; TOML and JSON agree on integers up to 2**63.
        _require(0 <= self.seed < 2**63, "train.seed", self.seed, "a whole number from 0 to 2**63 - 1")
        fits = 1 <= self.batch_tokens <= MOST_BATCH
        _require(fits, "train.batch_tokens", self.batch_tokens, f"from 1 to {MOST_BATCH:,}")
        _require(self.accumulate >= 1, "train.accumulate", self.accumulate, "at least 1")
        _require(
            self.eval_every >= 0, "train.eval_every", self.eval_every, "0 (at the end) or a number of steps"
        )
        _require(self.evaluations >= 0, "train.evaluations", self.evaluations, "0 (off) or how many")
        _require(
            self.eval_tokens >= 0, "train.eval_tokens", self.eval_tokens, "0 (all) or a number of tokens"
        )
        _require(self.watch_every >= 0, "train.watch_every", self.watch_every, "0 (off) or a number of steps")
        for name in self.sinks:
            _require_one_of("train.sinks", name, SINKS)
        _require_one_of("train.dtype", self.dtype, DTYPES)
        _require_one_of("train.device", self.device, DEVICES)
        fits = 0 <= self.threads <= MOST_THREADS
        _require(fits, "train.threads", self.threads, f"0 (auto) or a number of threads up to {MOST_THREADS}")
        _require(
            0 <= self.z_loss < math.inf, "train.z_loss", self.z_loss, "0 (off) or positive, such as 1e-4"
        )
        smoothing = self.label_smoothing
        _require(0 <= smoothing < 1, "train.label_smoothing", smoothing, "0 (off) or a fraction below 1")
        _require(0 <= self.ema < 1, "train.ema", self.ema, "0 (off) or a decay below 1, such as 0.999")
        for nested in (self.optimizer, self.schedule, self.checkpoint):
            nested.validate()
        if self.ema and kinds.find(self.optimizer.kind).averages:
            raise UserError(
                f"train.ema: {self.optimizer.kind} averages the weights itself; leave train.ema out"
            )
        if kinds.find(self.optimizer.kind).averages and self.schedule.kind != "constant":
            raise UserError(
                f"train.schedule.kind: {self.optimizer.kind} averages in place of a falling learning rate; "
                f"it needs 'constant' (warm-up is fine), got '{self.schedule.kind}'"
            )
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
        plain = self.name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(self.name)
        _require(plain, "name", repr(self.name), "what a folder may be called, not a path")
        if self.model is not None:
            self.model.validate()
            self.train.validate()  # an n-gram counts once: it needs no horizon
            self._check_batch(self.model.context)
        if self.ngram is not None:
            _require(
                1 <= self.ngram.order <= MAX_ORDER, "ngram.order", self.ngram.order, f"from 1 to {MAX_ORDER}"
            )
            most = self.ngram.max_tokens
            _require(most >= 0, "ngram.max_tokens", most, "0 (all) or a number of tokens")
            if (part := self.ngram.drawn) is not None:
                for key, least in (("windows", 1), ("context", 1), ("seed", 0)):
                    value = getattr(part, key)
                    _require(value >= least, f"ngram.drawn.{key}", value, f"at least {least}")
        return self

    def _check_batch(self, context: int) -> None:
        """UserError unless a step has a row, and each micro-batch too."""
        tokens, pieces = self.train.batch_tokens, self.train.accumulate
        one_row = f"at least one row of model.context ({context}) tokens"
        _require(tokens >= context, "train.batch_tokens", tokens, one_row)
        rows = self.train.rows(context)
        _require(pieces <= rows, "train.accumulate", pieces, f"from 1 to the {rows} rows of a step")

    @staticmethod
    def modernised(tables: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tables of a run as they are written now: `train.batch_size`, rows a step, was the key before
        `train.batch_tokens`. UserError where both are given."""
        train, model = tables.get("train"), tables.get("model", {})
        if not (isinstance(train, Mapping) and isinstance(model, Mapping) and "batch_size" in train):
            return tables
        rows, context = train["batch_size"], model.get("context", ModelConfig.context)
        if not (type(rows) is type(context) is int and rows >= 1):
            raise UserError(f"train.batch_size: expected a number of rows, at least 1, got {rows!r}")
        tokens = rows * context
        if "batch_tokens" in train:
            raise UserError(
                "train.batch_size and train.batch_tokens both say how long a step is: leave one out "
                f"({rows} rows are train.batch_tokens={tokens} at a context of {context})"
            )
        rest = {key: value for key, value in train.items() if key != "batch_size"}
        return {**tables, "train": {**rest, "batch_tokens": tokens}}
