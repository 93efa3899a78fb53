"""The synthetic tasks: seeded rows, answers that follow from their inputs, and the entropies as stated."""

import doctest
import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

import mixlab
from mixlab.data.synthetic import (
    IGNORE,
    AssociativeRecall,
    Copy,
    Induction,
    Parity,
    accuracy,
    interleave,
    nats,
)
from mixlab.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "synthetic.md"

TASKS = [
    AssociativeRecall(),
    AssociativeRecall(pairs=3, queries=5, keys=4, values=2),
    Induction(),
    Induction(vocab_size=5, shown=5, repeat=5),
    Copy(),
    Copy(vocab_size=3, lag=1, length=4),
    Copy(vocab_size=3, lag=0, length=4),
    Parity(),
    Parity(length=5, start=2),
    Parity(length=1),
]


def rows(task, batch_size=64, seed=0):
    return task.sample(batch_size, torch.Generator().manual_seed(seed))


def answers(task, row):
    """What the task's docstring says of one row, token by token; None where nothing is asked."""
    if isinstance(task, AssociativeRecall):
        pairs = dict(zip(row[: 2 * task.pairs : 2], row[1 : 2 * task.pairs : 2], strict=True))
        return [None] * (2 * task.pairs) + [pairs[query] for query in row[2 * task.pairs :]]
    if isinstance(task, Induction):
        # At the last of the tokens shown nothing can be asked: the run may begin anywhere.
        return [None] * task.shown + [row[row.index(token) + 1] for token in row[task.shown :]]
    if isinstance(task, Copy):
        return [row[t - task.lag] if t >= task.lag else None for t in range(task.length)]
    return [sum(row[: t + 1]) % 2 if t >= task.start else None for t in range(task.length)]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_every_answer_follows_from_the_inputs_up_to_it(task):
    inputs, targets = rows(task)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (64, task.length)
    assert inputs.min() >= 0 and inputs.max() < task.vocab_size
    for row, asked in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert answers(task, row) == [None if target == IGNORE else target for target in asked]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_seed_gives_its_rows_and_another_seed_others(task):
    first, again, other = rows(task, seed=1), rows(task, seed=1), rows(task, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_generator_goes_on(task):
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(task.sample(64, generator)[0], task.sample(64, generator)[0])


def conditional_entropy(inputs, targets):
    """Of the targets that are asked given their token and place, nats a target, from counts; the bias of an
    entropy from counts, (kinds - 1) / 2n, is taken off (Miller 1955)."""
    joint, given = Counter(), Counter()
    for row, asked in zip(inputs.tolist(), targets.tolist(), strict=True):
        for t, (token, target) in enumerate(zip(row, asked, strict=True)):
            if target != IGNORE:
                joint[t, token, target] += 1
                given[t, token] += 1
    n = given.total()
    plain = -sum(count / n * math.log(count / given[t, token]) for (t, token, _), count in joint.items())
    return plain + (len(joint) - len(given)) / (2 * n)


@pytest.mark.parametrize("task", [task for task in TASKS if task.vocab_size <= 8], ids=repr)
def test_the_entropy_of_an_answer_given_its_token_alone_is_the_stated_one(task):
    # 20,000 rows: the standard error of an entropy near ln V is below 0.005.
    assert conditional_entropy(*rows(task, 20_000)) == pytest.approx(task.blind, abs=0.01)


def test_every_row_of_the_smallest_tasks_is_equally_likely():
    n = 40_000
    for task, kinds in (
        (Parity(length=3), 2**3),
        (Copy(vocab_size=3, lag=1, length=3), 3**3),
        (Induction(vocab_size=3, shown=3, repeat=2), 6 * 2),  # orders, starts
        (AssociativeRecall(pairs=2, queries=1, keys=3, values=2), 6 * 4 * 2),  # keys, values, queries
    ):
        seen = Counter(map(tuple, rows(task, n)[0].tolist()))
        assert len(seen) == kinds
        spread = math.sqrt(n / kinds)
        assert all(abs(count - n / kinds) < 5 * spread for count in seen.values())


def test_the_tokens_after_the_one_asked_say_nothing_of_it():
    """Copy: over all V^T sequences, each answer is as frequent after each sight of the last `lag` tokens."""
    task = Copy(vocab_size=2, lag=3, length=6)
    seen = Counter()
    for row in itertools.product(range(2), repeat=task.length):
        target = answers(task, list(row))[-1]
        seen[row[-task.lag :], target] += 1
    assert len(set(seen.values())) == 1 and len(seen) == 2 ** (task.lag + 1)
    assert task.entropy == math.log(2)


def test_nats_and_accuracy_count_what_is_asked_alone():
    targets = torch.tensor([[IGNORE, 1, 0], [IGNORE, IGNORE, 1]])
    logits = torch.zeros(2, 3, 2)
    logits[0, 1] = torch.tensor([0.0, math.log(3)])  # right, 3/4
    logits[0, 2] = torch.tensor([0.0, math.log(3)])  # wrong, 1/4
    logits[1, 2] = torch.tensor([0.0, math.log(7)])  # right, 7/8
    logits[:, 0] = torch.tensor([1e9, -1e9])  # nobody asked
    expected = -(math.log(3 / 4) + math.log(1 / 4) + math.log(7 / 8)) / 3
    assert nats(logits, targets).item() == pytest.approx(expected, rel=1e-6)
    assert accuracy(logits, targets) == pytest.approx(2 / 3)


def test_nats_has_the_gradient_of_a_model_on_what_is_asked_alone():
    task = Copy(vocab_size=3, lag=3, length=4)
    model = mixlab.build_model({"vocab_size": 3, "context": 4, "dim": 8, "depth": 1, "temporal": "rnn"})
    logits = model(rows(task)[0]).logits
    logits.retain_grad()
    nats(logits, rows(task)[1]).backward()
    assert not logits.grad[:, :3].any() and logits.grad[:, 3].any()


def test_interleave_puts_each_answer_after_its_input():
    inputs, targets = torch.tensor([[1, 0, 2]]), torch.tensor([[IGNORE, 1, 0]])
    assert interleave(inputs, targets, 3).tolist() == [[1, 6, 0, 4, 2, 3]]


@pytest.mark.parametrize(
    ("task", "knobs", "says"),
    [
        (AssociativeRecall, {"pairs": 0}, "needs pairs of at least 1, got 0"),
        (AssociativeRecall, {"queries": 0}, "needs queries of at least 1, got 0"),
        (AssociativeRecall, {"pairs": 9, "keys": 8}, "at least pairs (9)"),
        (Induction, {"repeat": 1}, "needs repeat of at least 2, got 1"),
        (Induction, {"shown": 40}, "repeat <= shown <= vocab_size, got 12, 40 and 32"),
        (Copy, {"lag": 24}, "lag=24 and length=24"),
        (Copy, {"lag": -1}, "lag=-1"),
        (Copy, {"vocab_size": 0}, "needs vocab_size of at least 1, got 0"),
        (Parity, {"length": 0}, "start=0 and length=0"),
        (Parity, {"start": 16}, "start=16 and length=16"),
    ],
)
def test_a_task_that_cannot_be_is_refused_in_a_sentence(task, knobs, says):
    with pytest.raises(UserError) as error:
        task(**knobs)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_python_lines_of_the_page_give_what_they_show():
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted >= 10 and not results.failed
