"""`mixlab doctor`: what this machine can do, what will be used, and what is missing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mixlab.cli.options import Json

EXTRAS = {
    "data": (("datasets", "pyarrow"), "parquet files and Hugging Face dataset folders as TEXT"),
    "bench": (("transformers",), "the side-by-side timings of bench/"),
    "optimizers": (
        ("pytorch_optimizer",),
        "optimizers by the name of their class, as pytorch_optimizer:SOAP",
    ),
    "fla": (("fla",), "kernels for rwkv7 and rglru on a GPU"),
    "tensorboard": (("tensorboard",), "--sink tensorboard"),
    "wandb": (("wandb",), "--sink wandb"),
    "trackio": (("trackio",), "--sink trackio"),
}
"""The optional groups of pyproject.toml: their modules, and what they add."""

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pydantic", "typer", "rich", "jinja2", "plotly")


def doctor(
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Measure again instead of using the last one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure this machine; say what is used, and why."""
    from dataclasses import asdict

    from mixlab.cli.console import note, print_json
    from mixlab.train import threads
    from mixlab.train.machine import measure

    note("measuring this machine takes up to 3 s the first time, up to 1 s after that")
    chosen = threads.choose()
    with threads.using(chosen.number):
        machine = measure(refresh=refresh)
    result = {
        "machine": asdict(machine),
        "versions": versions(),
        "extras": extras(),
        "fast_paths": fast_paths(machine, chosen),
    }
    if as_json:
        print_json(result)
    else:
        print(describe(result))


def versions() -> dict[str, str]:
    """Installed versions of mixlab, Python and what mixlab stands on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from mixlab import __version__

    found = {"mixlab": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def extras() -> dict[str, dict[str, Any]]:
    """Each optional group: whether all of it is installed, what it adds, and how to get it."""
    from importlib.util import find_spec

    return {
        name: {
            "found": all(find_spec(module) is not None for module in modules),
            "adds": adds,
            "install": f'pip install "mixlab[{name}]"',
        }
        for name, (modules, adds) in EXTRAS.items()
    }


def fast_paths(machine: Any, threads: Any) -> dict[str, dict[str, Any]]:
    """What makes training fast when it is there: whether it is on, and why."""
    import torch

    from mixlab.parts.temporal import kernels

    onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    cuda = torch.cuda.is_available()
    there, which = kernels.installed()
    return {
        "bfloat16": {"on": machine.use_bfloat16, "why": machine.reason},
        "cuda": {"on": cuda, "why": torch.cuda.get_device_name() if cuda else "no GPU that torch can use"},
        "kernels": {
            "on": cuda and there,
            "why": f"rwkv7 under bfloat16 autocast and rglru: {which if cuda else 'no GPU for them'}",
        },
        "onednn": {
            "on": onednn,
            "why": f"torch's matrix products on the CPU ({torch.backends.cpu.get_cpu_capability()})",
        },
        "threads": {
            "on": threads.number > 1,
            "why": f"{threads.reason} ({machine.cores} cores; OMP_NUM_THREADS or train.threads sets them)",
        },
    }


def describe(result: dict[str, Any]) -> str:
    """The result as text."""
    machine = result["machine"]
    lines = [
        f"{machine['name']}, {machine['cores']} cores ({machine['device']})",
        "",
        f"  float32 matrix products   {machine['float32_flops'] / 1e9:8.0f} GFLOP/s",
        f"  bfloat16 matrix products  {machine['bfloat16_flops'] / 1e9:8.0f} GFLOP/s",
        f"  memory reads              {machine['memory_bandwidth'] / 1e9:8.1f} GB/s",
        "",
    ]
    for name, path in result["fast_paths"].items():
        lines.append(f"  {name:<9} {'on ' if path['on'] else 'off'}  {path['why']}")
    lines.append("")
    for name, extra in result["extras"].items():
        state = "found" if extra["found"] else f"missing: {extra['install']}"
        lines.append(f"  extra '{name}' ({extra['adds']})  {state}")
    lines += ["", "  " + ", ".join(f"{name} {version}" for name, version in result["versions"].items())]
    return "\n".join(lines)
