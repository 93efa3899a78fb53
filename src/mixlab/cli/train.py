"""`mixlab train`: one model on one text, or an interrupted run continued."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixlab.cli.options import Encoding, Imports, Json, Overrides, Text, Valid, count, numbers
from mixlab.errors import UserError

if TYPE_CHECKING:
    from mixlab.train.config import RunConfig


def train(
    text: Text = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A preset such as transformer (left out: lists them), or a .toml file.", metavar="NAME"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder to make; by default a new one under runs/.", metavar="RUN"),
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Train for this many steps ...", metavar="N")] = None,
    tokens: Annotated[str | None, typer.Option(help="... or tokens, such as 2M ...", metavar="N")] = None,
    epochs: Annotated[float | None, typer.Option(help="... or epochs ...", metavar="E")] = None,
    minutes: Annotated[float | None, typer.Option(help="... or minutes ...", metavar="M")] = None,
    flops: Annotated[
        str | None,
        typer.Option(help="... or FLOPs, forward and backward, such as 1e15 or 500T.", metavar="N"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Draw from the TEXTs in these proportions, one number for each.", metavar="A,B,..."
        ),
    ] = None,
    valid: Valid = None,
    encoding: Encoding = None,
    batch_tokens: Annotated[
        str | None,
        typer.Option(help="Tokens a step; cut to fit when memory runs out.", metavar="N"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the weights and the order of the text.", metavar="S")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits on a GPU too, at some cost in speed.")
    ] = False,
    sink: Annotated[
        list[str] | None,
        typer.Option(
            help="Send the numbers to tensorboard, wandb or trackio too; repeatable.", metavar="NAME"
        ),
    ] = None,
    sinks_optional: Annotated[
        bool, typer.Option("--sinks-optional", help="Go on without a sink that cannot be used here.")
    ] = False,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run instead.", metavar="RUN")] = None,
    force_config: Annotated[
        bool, typer.Option("--force-config", help="Resume though the config or the text was changed.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Only say what the run would do: optimizers by role, length.")
    ] = False,
    find_lr: Annotated[
        bool,
        typer.Option("--find-lr", help="Only raise the learning rate until the loss does, and draw that."),
    ] = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Train a model on a text, or continue a run.

    mixlab train my.txt --preset transformer --minutes 5

    A run that was stopped (Ctrl-C saves first) goes on with --resume RUN, for longer if a length is given,
    with other settings (--set, --seed, --batch-tokens, --weights) only by --force-config.
    --find-lr begins anew whatever the run has learned, and leaves a page only with --out.
    """
    horizon = {"steps": steps, "tokens": tokens, "epochs": epochs, "minutes": minutes, "flops": flops}
    extra = ["train.deterministic=true"] if deterministic else []
    if weights is not None:
        extra.append(f"data.weights={numbers(weights, '--weights')}")
    options: dict[str, Any] = {
        "train.batch_tokens": batch_tokens,
        "train.seed": seed,
        "train.deterministic": deterministic or None,
        "data.weights": weights,
        "data.valid": valid or None,
        "data.encoding": encoding,
    }
    _refuse_twice(options, horizon, overrides or ())
    settings = [*extra, *(overrides or ())]
    if resume is not None:
        _refuse_with_resume(
            {"TEXT": text, "--valid": valid, "--preset": preset, "--out": out, "--encoding": encoding}
        )
        config, folder = _resumed(resume, horizon, batch_tokens, seed, settings), resume
    else:
        if force_config:
            raise UserError("--force-config is for --resume RUN: a new run has no config to differ from")
        data = {"sources": text, "valid": valid, "encoding": encoding}
        config = _new(data, preset, horizon, batch_tokens, seed, settings)
        folder = out or unused(Path("runs"), config.name)
    if explain and find_lr:
        raise UserError("--explain and --find-lr both take the place of training: give one of them")
    config = _with_sinks(config, sink or (), sinks_optional)
    if explain:
        from mixlab.cli import explain as explaining

        explaining.show(config, as_json=as_json)
    elif find_lr:
        from mixlab.cli import find_lr as finding

        finding.show(config, out=out, as_json=as_json)
    else:
        _train(config, folder, resume=resume is not None, force=force_config, as_json=as_json)


def _refuse_with_resume(given: Mapping[str, Any]) -> None:
    extra = [name for name, value in given.items() if value not in (None, [], ())]
    if extra:
        raise UserError(
            f"--resume continues a run on its own text in its own folder: leave out {', '.join(extra)}, "
            "or start a new run with --preset"
        )


def _refuse_twice(options: Mapping[str, Any], horizon: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """UserError if `--set` says what an option says too, or gives a second length. options: by key."""
    length = next((key for key, value in horizon.items() if value is not None), None)
    said = {key: key.partition(".")[2] for key, value in options.items() if value is not None}
    said |= {f"train.{key}": length for key in horizon} if length else {}
    for override in overrides:
        key = override.split("=", 1)[0].strip()
        if key in said:
            option = said[key].replace("_", "-")
            raise UserError(f"--{option} and --set {key} say the same: leave out one of them")


def _resumed(
    run: Path,
    horizon: Mapping[str, Any],
    batch_tokens: str | None,
    seed: int | None,
    overrides: Sequence[str],
) -> RunConfig:
    """The config a run was begun with, for another length and with other settings where they are given."""
    from mixlab.config import load_run_config, to_mapping
    from mixlab.train.folder import RunFolder
    from mixlab.train.saved import check_trained

    config = RunFolder(run).read_config()
    check_trained(RunFolder(run))
    length: dict[str, Any] = {}
    set_horizon(length, horizon)
    if config.model is None and length:
        raise UserError(f"{run} is an n-gram, which counts its text once: leave out --{next(iter(length))}")
    if length:
        config = replace(config, train=config.train.with_horizon(**length))
    if seed is None and batch_tokens is None and not overrides:
        return config
    tables = to_mapping(_of_new_kind(config, overrides))
    _set_given(tables["train"], batch_tokens, seed)
    return load_run_config(tables, overrides)


def _of_new_kind(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A saved config, which spells out its kind of optimizer, without that kind's knobs if `--set` names
    another kind."""
    from mixlab.config import apply_overrides

    optimizer = config.train.optimizer
    given: Any = apply_overrides({}, overrides)
    for key in ("train", "optimizer", "kind"):
        given = given.get(key) if isinstance(given, dict) else None
    if not isinstance(given, str) or given == optimizer.kind:
        return config
    return replace(config, train=replace(config.train, optimizer=optimizer.of_kind(given)))


def _set_given(train: dict[str, Any], batch_tokens: str | None, seed: int | None) -> None:
    """Put options that stand for keys into a `[train]` table."""
    if seed is not None:
        train["seed"] = seed
    if batch_tokens is not None:
        train.pop("batch_size", None)  # what an older preset says in rows
        train["batch_tokens"] = count(batch_tokens, "--batch-tokens")


def _with_sinks(config: RunConfig, names: Sequence[str], optional: bool) -> RunConfig:
    """The config with the sinks that the command line asks for, in place of its own."""
    if not (names or optional):
        return config
    sinks = tuple(dict.fromkeys(names)) or config.train.sinks
    train = replace(config.train, sinks=sinks, sinks_optional=optional or config.train.sinks_optional)
    return replace(config, train=train)


def _new(
    data: Mapping[str, Any],
    preset: str | None,
    horizon: Mapping[str, Any],
    batch_tokens: str | None,
    seed: int | None,
    overrides: Sequence[str],
) -> RunConfig:
    """The config of a new run: the preset, then the options, then `--set`; data: options that stand for keys
    of that table."""
    from mixlab.config import apply_overrides, load_run_config, preset_names, read_preset, recipe_names

    if preset is None:
        names = ", ".join((*preset_names(), *recipe_names()))
        raise UserError(f"give --preset NAME ({names}, or a .toml file) or --resume RUN")
    tables = apply_overrides(read_preset(preset), ())
    given = {key: value for key, value in data.items() if value}
    for key in {"sources", "valid"} & given.keys():
        given[key] = [absolute(source) for source in given[key]]
    if given:
        tables.setdefault("data", {}).update(given)
    train = tables.setdefault("train", {})
    _set_given(train, batch_tokens, seed)
    set_horizon(train, horizon)
    return load_run_config(tables, overrides)


def absolute(source: str) -> str:
    """A text's path from the root, so that the run can be resumed from any folder."""
    from mixlab.data.sources import spelled

    return source if source == "-" or source.startswith("corpus:") else spelled(str(Path(source).absolute()))


def set_horizon(train: dict[str, Any], horizon: Mapping[str, Any]) -> None:
    """Put the one length that is given into a `[train]` table, in place of the preset's."""
    given = {key: value for key, value in horizon.items() if value is not None}
    if len(given) > 1:
        raise UserError(f"give one of {' and '.join(f'--{key}' for key in given)}, not both")
    for key, value in given.items():
        for other in horizon:
            train.pop(other, None)
        train[key] = value if key in ("epochs", "minutes") else count(value, f"--{key}")


def unused(folder: Path, name: str) -> Path:
    """`folder/name`, or the first of name-2, name-3, ... not yet there: earlier runs stay as they are."""
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}"
    return path


def _train(config: RunConfig, folder: Path, *, resume: bool, force: bool, as_json: bool) -> None:
    from mixlab.cli.console import Progress, note, print_json
    from mixlab.train import train as work

    length: dict[str, float] = {}

    def fraction(line: Mapping[str, Any]) -> float:
        for key, whole in length.items():
            done = {**line, "steps": line["step"], "minutes": line["seconds"] / 60}
            return float(done[key] / whole)
        return 1.0  # an n-gram counts once

    with Progress(config.name, fraction) as progress:

        def report(line: Mapping[str, Any]) -> None:
            if line["kind"] == "start":
                length.update(line["length"])
                note(f"training {config.name} in {line['run']}")
            progress(line)

        summary = work(config, folder, resume=resume, force=force, progress=report)
    if summary.get("message"):
        note(summary["message"])
    if as_json:
        print_json({"run": str(folder), **summary})
    else:
        print(f"{folder}  {describe(summary)}")


def describe(summary: Mapping[str, Any]) -> str:
    """The result of a run in one line."""
    from mixlab.cli.console import clock, short

    best = summary.get("best_step")
    at = "" if best in (None, summary.get("step")) else f" at step {best}"
    write: dict[str, Callable[[Any], str]] = {
        "best_bits_per_byte": lambda value: f"{value:.3f} bits/byte on the validation text{at}",
        "step": lambda value: f"{value} step{'s'[: value != 1]}",
        "tokens": lambda value: f"{short(value)} tokens",
        "seconds": clock,
    }
    return "  ".join(say(summary[key]) for key, say in write.items() if summary.get(key) is not None)
