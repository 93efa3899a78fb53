"""The contract over the whole registry: registering a part is enough to be tested."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlab.parts.checks import CHECKS, check_causality, check_chunks, check_segments
from tests.contract.cases import CASES, label

cases = pytest.mark.parametrize("case", CASES, ids=label)


@cases
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_part_keeps_the_contract(case, check):
    check(case)


@cases
@settings(max_examples=8)
@given(data=st.data())
def test_any_chunking_equals_the_whole(case, data):
    T = data.draw(st.integers(1, 20), label="T")
    cuts = data.draw(st.sets(st.integers(1, max(1, T - 1)), max_size=4), label="cuts") - {T}
    check_chunks(case, B=data.draw(st.integers(1, 3), label="B"), T=T, cuts=sorted(cuts))


@cases
@settings(max_examples=4)
@given(data=st.data())
def test_no_output_sees_a_later_input(case, data):
    T = data.draw(st.integers(1, 12), label="T")
    check_causality(case, T=T, at=data.draw(st.integers(0, T - 1), label="at"))


@cases
@settings(max_examples=4)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_packed_documents_equal_separate_ones(case, lengths):
    check_segments(case, lengths=[lengths, lengths[::-1], [sum(lengths)]])
