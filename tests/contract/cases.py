"""Every registered temporal and feature part with its defaults, and knobs worth a case of their own."""

from mixlab.parts.checks import Case
from mixlab.parts.contract import available, get

BUILT_IN = {kind: available(kind) for kind in ("temporal", "feature")}

DEFAULTS = [
    *(Case("temporal", name, position="rope") for name in BUILT_IN["temporal"]),
    *(Case("feature", name) for name in BUILT_IN["feature"]),
]

Attention = get("temporal", "attention")
Window = get("temporal", "window")
LSTM = get("temporal", "lstm")

VARIANTS = [
    Case("temporal", "attention", Attention.Config(heads=4), position="none"),
    Case("temporal", "attention", Attention.Config(heads=4, kv_heads=2), position="rope"),
    Case("temporal", "attention", Attention.Config(heads=2, kv_heads=1), position="rope"),
    Case("temporal", "window", Window.Config(size=2)),
    Case("temporal", "window", Window.Config(size=30, ratio=0.5)),
    Case("temporal", "lstm", LSTM.Config(ratio=1.5)),
]

CASES = DEFAULTS + VARIANTS


def label(case):
    """A readable test id."""
    knobs = "" if case.config is None else ",".join(f"{k}={v}" for k, v in vars(case.config).items())
    return f"{case.name}[{knobs}]-{case.position}" if knobs else case.name
