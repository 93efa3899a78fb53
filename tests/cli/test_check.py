"""`mixlab check` puts parts through the contract without pytest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Command

from mixlab.parts import checks, contract

PART = '''
from mixlab.parts.contract import Part, register
from mixlab.parts.norm import RMSNorm
from mixlab.parts.temporal.window import Window


@register("temporal", "toy_right")
class Right(Window):
    """Keeps the contract."""


@register("temporal", "toy_ahead")
class Ahead(Window):
    """Looks ahead."""

    def mix(self, x, state):
        y, state = super().mix(x, state)
        return y + x.roll(-1, 1), state


@register("feature", "toy_raises")
class Raises(Window):
    """Cannot mix."""

    def mix(self, x, state):
        return x @ x, state


@register("feature", "toy_unbuilt")
class Unbuilt(Window):
    """Cannot be built."""

    def __init__(self, config, place):
        super().__init__(config, place)
        self.width = config.width


@register("feature", "toy_unwritten")
class Unwritten(Part):
    """Only a name."""


@register("norm", "toy_norm")
class Norm(RMSNorm):
    """Not a mixer."""
'''


@pytest.fixture(autouse=True)
def _toys(mixlab: Command, monkeypatch: pytest.MonkeyPatch):
    """A file with parts; two checks in place of all; afterwards the registry and the modules as before."""
    Path("toy_parts.py").write_text(PART)
    monkeypatch.setattr(checks, "CHECKS", (checks.check_forward, checks.check_causality))
    path = list(sys.path)
    yield
    for held in (sys.modules, *contract._REGISTRY.values()):
        for name in [name for name in held if name.startswith("toy_")]:
            del held[name]
    sys.path[:] = path


def test_a_part_that_keeps_the_contract_is_a_line_per_check(mixlab: Command) -> None:
    done = mixlab("check", "--import", "toy_parts.py", "toy_right")
    assert (done.status, done.err) == (0, "")
    assert done.out == "temporal toy_right\n  ok      forward\n  ok      causality\n2 of 2 checks passed\n"


@pytest.mark.parametrize(
    "arguments", [["check", "--import", "toy_parts"], ["--import", "toy_parts.py", "check"]]
)
def test_the_imported_parts_are_checked_and_what_is_broken_is_said(
    mixlab: Command, arguments: list[str]
) -> None:
    done = mixlab(*arguments)
    assert (done.status, done.err) == (1, "")
    lines = done.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "feature toy_raises",
        "feature toy_unbuilt",
        "feature toy_unwritten",
        "temporal toy_ahead",
        "temporal toy_right",
        lines[-1],
    ]
    assert "  FAILED  causality: position 3 depends on position 4: the mixer looks ahead" in lines
    (raised,) = [line for line in lines if "forward: RuntimeError" in line]
    assert raised.startswith("  FAILED  forward: RuntimeError (toy_parts.py:26, in mix): Expected size")
    assert (
        "  FAILED  build: the part cannot be built: AttributeError (toy_parts.py:35, in __init__): "
        "'Config' object has no attribute 'width'"
    ) in lines
    assert "  FAILED  forward: Unwritten.mix is not written" in lines
    assert lines[-1] == (
        "3 of 9 checks passed; failed: toy_raises: forward, toy_raises: causality, toy_unbuilt: build, "
        "toy_unwritten: forward, toy_unwritten: causality, toy_ahead: causality"
    )


def test_the_result_as_json(mixlab: Command) -> None:
    done = mixlab("check", "--import", "toy_parts.py", "--kind", "temporal", "--json")
    assert done.status == 1
    result = json.loads(done.out)
    assert not result["passed"]
    assert {part["name"]: part["passed"] for part in result["parts"]} == {
        "toy_ahead": False,
        "toy_right": True,
    }
    assert result["parts"][0]["checks"][1] == {
        "check": "causality",
        "passed": False,
        "message": "position 3 depends on position 4: the mixer looks ahead",
    }


def test_without_names_and_imports_every_mixer_is_checked(
    mixlab: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECKS", (checks.check_forward,))
    done = mixlab("check", "--kind", "feature")
    assert done.status == 0
    for name in contract.available("feature"):
        assert f"feature {name}\n  ok      forward\n" in done.out
    assert "temporal" not in done.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["atention"], "unknown part 'atention': did you mean 'attention'?"),
        (["rope"], "'rope' is a part of kind 'position': only temporal and feature mixers are checked"),
        (["gru", "--kind", "feature"], "'gru' is a part of kind 'temporal': only feature mixers are checked"),
        (["--kind", "norm"], "unknown kind of mixer 'norm': choose from: feature, temporal"),
        (
            ["--import", "json"],
            '--import json registers no temporal or feature mixer: put @register("temporal"',
        ),
        (["--import", "no_such_module"], "there is no module 'no_such_module' here"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(mixlab: Command, arguments: list[str], sentence: str) -> None:
    done = mixlab("check", *arguments)
    assert (done.status, done.out) == (2, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1
