from __future__ import annotations

import pytest

from mixlab.compare.width import TOLERANCE, parameter_count, solve
from mixlab.config import load_run_config, preset_names
from mixlab.errors import UserError
from mixlab.model.config import ModelConfig
from mixlab.model.language_model import build_model
from mixlab.parts.contract import available

NEURAL = [name for name in preset_names() if load_run_config(name).model is not None]


def config(**knobs: object) -> ModelConfig:
    return ModelConfig(**{"depth": 2, "position": "none", **knobs})  # type: ignore[arg-type]


@pytest.mark.parametrize("params", [100_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("preset", NEURAL)
def test_every_preset_meets_every_budget(preset: str, params: int) -> None:
    model = load_run_config(preset).model
    assert model is not None
    solved = solve(model, params)
    assert abs(parameter_count(solved) / params - 1) <= TOLERANCE


@pytest.mark.parametrize("temporal", available("temporal"))
@pytest.mark.parametrize("feature", available("feature"))
def test_every_pair_of_parts_meets_a_small_budget(temporal: str, feature: str) -> None:
    solved = solve(config(temporal=temporal, feature=feature), 100_000)
    assert abs(parameter_count(solved) / 100_000 - 1) <= TOLERANCE


def test_the_count_is_that_of_the_model_itself() -> None:
    model = build_model(config(dim=24, temporal="lstm"))
    assert parameter_count(model.config) == sum(p.numel() for p in model.parameters())


def test_only_the_width_changes_where_a_round_width_fits() -> None:
    before = config(temporal="gru", feature="gelu", vocab_size=300)
    after = solve(before, parameter_count(config(temporal="gru", feature="gelu", vocab_size=300, dim=96)))
    assert after.dim == 96
    assert after.to_dict() == before.to_dict() | {"dim": 96}


def test_heads_that_are_set_keep_an_even_width_each() -> None:
    solved = solve(config(temporal={"kind": "attention", "heads": 6}, position="rope"), 500_000)
    assert solved.dim % 12 == 0
    assert abs(parameter_count(solved) / 500_000 - 1) <= TOLERANCE
    assert solved.pattern("temporal")[0].config.heads == 6


def test_a_pattern_over_the_depth_is_kept() -> None:
    solved = solve(config(depth=4, temporal=["gru", "attention"], feature=["swiglu", "none"]), 200_000)
    assert [choice.name for choice in solved.pattern("temporal")] == ["gru", "attention"] * 2
    assert [choice.name for choice in solved.pattern("feature")] == ["swiglu", "none"] * 2


def test_a_budget_too_small_for_the_vocabulary_names_the_smallest_that_works() -> None:
    with pytest.raises(
        UserError, match=r"gru: 50,000 parameters are too few for a vocabulary of 4,096"
    ) as error:
        solve(config(temporal="gru", vocab_size=4096), 50_000, name="gru")
    smallest = int(str(error.value).rpartition(" ")[2].replace(",", ""))
    assert parameter_count(solve(config(temporal="gru", vocab_size=4096), smallest)) == smallest
    with pytest.raises(UserError, match="too few"):
        solve(config(temporal="gru", vocab_size=4096), int(smallest / 1.03))


def test_steps_too_coarse_for_the_budget_are_said_with_the_nearest_that_works() -> None:
    # With 64 heads set D moves in steps of 128, and without a feature mixer nothing else can give way.
    coarse = config(temporal={"kind": "attention", "heads": 64}, feature="none")
    with pytest.raises(
        UserError, match=r"no width comes within 2% of 300,000 parameters; the nearest budget"
    ):
        solve(coarse, 300_000)


def test_a_model_whose_own_knobs_are_wrong_says_so() -> None:
    with pytest.raises(UserError, match="ratio"):
        solve(config(temporal={"kind": "gru", "ratio": -1.0}), 100_000)
