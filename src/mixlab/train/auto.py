"""What "auto" comes to in a run: device, threads and precision are chosen once, and then belong to the run.

They are spelled out in the run's config.toml and in every checkpoint. A resumed run keeps them; on a machine
that cannot keep them, the change is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mixlab.errors import UserError
from mixlab.records import read_json
from mixlab.train import machine, threads
from mixlab.train.config import Device, Dtype, RunConfig, TrainConfig
from mixlab.train.precision import resolve

UNSET: Mapping[str, Any] = {"device": "auto", "threads": 0, "dtype": "auto"}
"""Key of TrainConfig -> the value that leaves it to the machine."""

Notes = Callable[[str], None]


def settle(
    train: TrainConfig,
    *,
    width: int,
    note: Notes,
    begun: TrainConfig | None = None,
) -> TrainConfig:
    """`train` with device, threads and dtype spelled out.

    width: the model's, for which threads are measured. begun: of a run that is resumed, whose values stand
    for what `train` leaves open. `note` is told of what was measured and of what cannot be kept.

    UserError for a device that is asked for and not there.
    """
    asked = train
    if begun is not None:
        train = fill(train, begun)
    kept = begun is not None and asked.device in ("auto", begun.device)
    train = replace(train, device=_device(train, kept=kept, note=note))
    train = replace(train, threads=_threads(train, width, note))
    if train.dtype != "auto":
        return train
    with threads.using(train.threads):
        bfloat16 = resolve("auto", torch.device(train.device))
    if begun is not None:
        note(f"the run does not say its precision: train.dtype is {_name(bfloat16)}, as for a new run here")
    return replace(train, dtype=_name(bfloat16))


def fill(train: TrainConfig, source: TrainConfig) -> TrainConfig:
    """`train` with what it leaves open as `source` has it."""
    known = {key: getattr(source, key) for key, unset in UNSET.items() if getattr(train, key) == unset}
    return replace(train, **known)


def recorded(config: RunConfig, environment: Path, metrics: Path) -> RunConfig:
    """The config of a run by an older mixlab with what its files say was used; the config itself if it is
    spelled out, or if they do not say."""
    if config.model is None or all(getattr(config.train, key) != unset for key, unset in UNSET.items()):
        return config
    from mixlab.train.metrics import read_metrics

    used: dict[str, Any] = {}
    try:
        facts = read_json(environment, dict[str, Any])["machine"]
        used = {"device": facts["device"], "threads": facts["threads"], "dtype": _name(facts["use_bfloat16"])}
    except (UserError, TypeError, KeyError):
        pass
    try:
        ends = read_metrics(metrics, "end") if metrics.is_file() else []
    except UserError:
        ends = []
    if ends:
        used["dtype"] = ends[-1].get("dtype")
    allowed = {"device": ("cpu", "cuda"), "dtype": ("float32", "bfloat16")}
    whole = isinstance(used.get("threads"), int) and used["threads"] >= 1
    used = {key: v for key, v in used.items() if (whole if key == "threads" else v in allowed[key])}
    return replace(config, train=fill(config.train, replace(config.train, **{**UNSET, **used})))


def usable(name: Device) -> Device:
    """The device of that name, or the processor where this machine has none such; "auto" is the best."""
    best: Device = "cuda" if machine.default_device().type == "cuda" else "cpu"
    return best if name != "cpu" else name


def _device(train: TrainConfig, *, kept: bool, note: Notes) -> Device:
    found = usable(train.device)
    if train.device not in ("auto", found):
        if not kept:
            raise UserError(
                f"train.device is {train.device}, and torch finds no such device here: "
                "leave it out (auto), or give cpu"
            )
        note(f"the run was trained on {train.device}, which torch does not find here: resuming on {found}")
    return found


def _threads(train: TrainConfig, width: int, note: Notes) -> int:
    cores = machine.usable_cores()
    if train.threads > cores:
        note(f"train.threads is {train.threads}, and this process may use {cores} cores: {cores} are used")
    if train.threads:
        return min(train.threads, cores)
    if train.device != "cpu":
        return min(torch.get_num_threads(), cores)
    choice = threads.choose(width)
    if choice.measured:
        note(choice.reason)
    return choice.number


def _name(bfloat16: bool) -> Dtype:
    return "bfloat16" if bfloat16 else "float32"
