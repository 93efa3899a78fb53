"""The registry, and what a wrong name or knob gets."""

import pytest

from mixlab.errors import UserError
from mixlab.parts.contract import Part, available, get, register


def test_names_of_every_kind_are_listed():
    assert set(available("temporal")) >= {"attention", "gru", "lstm", "rnn", "window"}
    assert set(available("feature")) >= {"geglu", "gelu", "glu", "none", "relu", "swiglu"}
    assert set(available("position")) >= {"learned", "none", "rope", "sinusoidal"}
    assert set(available("norm")) >= {"layernorm", "rmsnorm"}


def test_unknown_name_gets_the_nearest_and_the_list():
    with pytest.raises(UserError, match="'atention': did you mean 'attention'.*gru, lstm"):
        get("temporal", "atention")
    with pytest.raises(UserError, match="unknown kind of part 'temporl': did you mean 'temporal'"):
        available("temporl")


def test_a_name_is_taken_once():
    with pytest.raises(UserError, match="temporal part 'gru' is already registered by mixlab"):

        @register("temporal", "gru")
        class Other(Part):
            pass


@pytest.mark.parametrize(
    ("name", "knobs", "sentence"),
    [
        ("attention", {"heads": 5}, "5 heads do not divide the width 24; the nearest that do are 4 and 6"),
        (
            "attention",
            {"heads": 6, "kv_heads": 4},
            "kv_heads=4 does not divide 6 heads; choose from 1, 2, 3, 6",
        ),
        ("window", {"size": 0}, "size >= 1"),
        ("lstm", {"ratio": 0.0}, "ratio > 0"),
    ],
)
def test_knobs_that_do_not_fit_are_named(name, knobs, sentence):
    part = get("temporal", name)
    with pytest.raises(UserError, match=sentence):
        part.build(part.Config(**knobs), dim=24)


def test_every_component_names_its_paper_and_its_purpose():
    for kind in ("temporal", "feature", "position", "norm"):
        for name in available(kind):
            cls = get(kind, name)
            assert cls.__doc__, name
            assert cls.paper or name == "none", name
