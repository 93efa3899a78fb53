"""`mixlab train --explain`: what the run would do, as a table; nothing is trained and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixlab.train.config import RunConfig


def show(config: RunConfig, *, as_json: bool) -> None:
    """Print who updates what, and how long."""
    from mixlab.cli.console import note, print_json
    from mixlab.data import prepare
    from mixlab.train.explain import explain

    context = config.model.context if config.model is not None else 0
    found = explain(config.validate(), prepare(config.data, context=context, notes=note, look=True))
    if as_json:
        print_json(found)
    else:
        print(describe(found))


def describe(found: Mapping[str, Any]) -> str:
    """The groups as a table, then the rest of the run a fact a line."""
    from mixlab.cli.console import short, table

    groups = [
        [group["role"], group["optimizer"], str(group["tensors"]), short(group["parameters"])]
        for group in found["groups"]
    ]
    for row, group in zip(groups, found["groups"], strict=True):
        row += [f"{group[key]:g}" for key in ("lr", "lr_scale", "decay")]
    every = [
        "all",
        "",
        f"{sum(g['tensors'] for g in found['groups'])}",
        short(found["parameters"]),
        "",
        "",
        "",
    ]
    head = ["role", "optimizer", "tensors", "parameters", "peak rate", "scale", "decay"]
    facts = {
        "batch": _batch(found["batch"]),
        "length": _length(found["length"]),
        "schedule": _schedule(found["schedule"]),
        "clipped": f"gradients longer than {found['clip']:g}" if found["clip"] else "nothing",
        "precision": found["dtype"],
        "evaluated": _evaluations(found["evaluations"]),
        "besides": ", ".join(
            key if value is True else f"{key} {value:g}" for key, value in found["besides"].items() if value
        ),
        "asks for": found["asks"],
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {fact}" for name, fact in facts.items() if fact]
    return "\n".join([table(head, [*groups, every]), "", *lines])


def _evaluations(plan: Mapping[str, Any]) -> str:
    from mixlab.cli.console import short

    often = f"every {plan['every']} steps and at the end" if plan["every"] else "at the end"
    if (number := len(plan["marks"])) > 1:
        often = f"{number} times, evenly spaced by the logarithm of the length"
    all_of_it = plan["full"] == plan["of"]
    on = f"on {'all' if all_of_it else short(plan['full']) + ' of'} {short(plan['of'])} validation tokens"
    if plan["sample"] < plan["full"] and often != "at the end":
        on = f"on {short(plan['sample'])} validation tokens, the last {on}"
    limit = (
        f"; before the last at most {plan['share']:.0%} of the time"
        if plan["share"] and often != "at the end"
        else ""
    )
    return f"{often}, {on}{limit}"


def _batch(batch: Mapping[str, Any]) -> str:
    from mixlab.cli.console import short

    pieces = f", in {batch['pieces']} pieces" if batch["pieces"] > 1 else ""
    return (
        f"{batch['rows']} rows of {batch['context']} tokens: {short(batch['tokens'])} tokens a step{pieces}"
    )


def _length(length: Mapping[str, Any]) -> str:
    from mixlab.cli.console import short

    if "minutes" in length:
        return f"{length['minutes']:g} minutes of training"
    return (
        f"{length['steps']} steps: {short(length['tokens'])} tokens, {length['epochs']:.2f} epochs, "
        f"{short(length['flops'])} FLOPs; {length['tokens_per_parameter']:.2f} tokens a parameter"
    )


def _schedule(schedule: Mapping[str, Any]) -> str:
    warmup = f"{schedule['warmup']:.0%} of the length"
    if schedule["warmup_steps"] is not None:
        warmup = f"{schedule['warmup_steps']} steps"
    fall = f"then to {schedule['final'] * schedule['peak']:g}"
    if schedule["kind"] == "constant":
        fall = "then level"
    if schedule["decay"] is not None:
        fall = f"level, and over the last {schedule['decay']:.0%} to {schedule['final'] * schedule['peak']:g}"
    return f"{schedule['kind']}: up to {schedule['peak']:g} over {warmup}, {fall}"
