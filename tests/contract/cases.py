"""Every registered temporal and feature part with its defaults, and the knobs worth a case of their own.

A module in tests/oracles/ may hold ORACLES, {(kind, name): function}, and VARIANTS, rows of
(kind, name, knobs, position).
"""

from importlib import import_module
from pkgutil import iter_modules

import tests.oracles
from mixlab.parts.checks import Case
from mixlab.parts.contract import available, get

BUILT_IN = [(kind, name) for kind in ("temporal", "feature") for name in available(kind)]

MODULES = [import_module(f"tests.oracles.{module.name}") for module in iter_modules(tests.oracles.__path__)]
ORACLES = {key: oracle for module in MODULES for key, oracle in getattr(module, "ORACLES", {}).items()}

DEFAULTS = [Case(kind, name, position="rope" if kind == "temporal" else "none") for kind, name in BUILT_IN]
VARIANTS = [
    Case(kind, name, get(kind, name).Config(**knobs), position=position)
    for module in MODULES
    for kind, name, knobs, position in getattr(module, "VARIANTS", [])
]
CASES = DEFAULTS + VARIANTS


def label(case):
    """A readable test id."""
    knobs = "" if case.config is None else ",".join(f"{k}={v}" for k, v in vars(case.config).items())
    return f"{case.name}[{knobs}]-{case.position}" if knobs else case.name
