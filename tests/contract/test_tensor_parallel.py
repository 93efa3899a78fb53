"""Split over two processes, every part gives the whole one's output and gradients, for one sum each way."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixlab.parts.checks import TOLERANCE
from tests.contract.cases import CASES, label
from tests.contract.tensor_parallel_worker import STACKS, stacked

ROOT = Path(__file__).parents[2]

# What runs whole, and why; and the sums each way, not four, of two blocks of it and a part that splits.
WHOLE = {
    "rnn": (2, "R couples every hidden channel with every other, and a split would cost a sum a time step; "
               "with several heads it splits"),
    "gru": (2, "as rnn"),
    "lstm": (2, "as rnn"),
    "gmlp": (2, "LN takes its mean and variance over all channels; with groups of them it splits"),
    "block_shuffle": (3, "each block of the second map reads from every block of the first; the first of the "
                         "two layers is dense and splits"),
    "none": (2, "computes nothing"),
}  # fmt: skip
KNOBS = ("heads", "groups")  # more than one of them, and these parts split after all


def runs_whole(case):
    """Whether the table excuses this case from splitting."""
    return case.name in WHOLE and all(getattr(case.config, knob, 1) == 1 for knob in KNOBS)


@pytest.fixture(scope="module")
def rows():
    """One spawn of two gloo processes for all cases."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.contract.tensor_parallel_worker"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": env}
    workers = [subprocess.Popen([*command, str(rank), str(port)], **pipes) for rank in range(2)]
    outputs = [worker.communicate(timeout=240) for worker in workers]
    for worker, (_, errors) in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, errors[-4000:]
    return json.loads(outputs[0][0])


@pytest.mark.parametrize("name", [*map(label, CASES), *map(stacked, STACKS)])
def test_two_processes_equal_one(rows, name):
    row = rows[name]
    assert row["gap"] <= TOLERANCE[torch.float64], row
    assert row["split"] >= row["planned"], "a Linear named in the plan kept a whole weight"


@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_part_costs_one_all_reduce_each_way(rows, case):
    row = rows[label(case)]
    if row["planned"]:
        assert row["forward"] == row["backward"] == {"allreduce_": 1}
    else:
        assert runs_whole(case), "an empty plan needs a reason"
        assert row["forward"] == row["backward"] == {}


@pytest.mark.parametrize("pair", STACKS, ids=stacked)
def test_a_block_costs_two_all_reduces_each_way(rows, pair):
    row = rows[stacked(pair)]
    exceptions = [WHOLE[case.name][0] for case in pair if runs_whole(case)]
    (sums,) = exceptions or [4]
    assert row["forward"] == row["backward"] == {"allreduce_": sums}, "in two blocks"


def test_a_shared_parameter_read_outside_of_forward_has_its_gradient_summed(rows):
    assert set(rows["recomputed"]) == {3.0}
