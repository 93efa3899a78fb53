"""The conditions of tests/conftest.py hold in every test."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from hypothesis import settings

import mixlab


def test_property_tests_have_no_deadline() -> None:
    assert settings().deadline is None


def test_uninitialised_memory_is_poisoned_and_one_thread_works() -> None:
    assert torch.empty(8).isnan().all()
    assert torch.get_num_threads() == 1


def test_a_wrong_shape_is_refused_by_its_annotation() -> None:
    model = mixlab.build_model({"dim": 16, "depth": 1})
    with pytest.raises(jaxtyping.TypeCheckError):
        model(torch.zeros(8, dtype=torch.int64))
