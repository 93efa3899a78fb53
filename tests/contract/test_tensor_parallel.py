"""Split over two processes, every part gives the output and every gradient of the whole."""

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

ROOT = Path(__file__).parents[2]


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
    return {row["case"]: row for row in map(json.loads, outputs[0][0].splitlines())}


@pytest.mark.parametrize("case", CASES, ids=label)
def test_two_processes_equal_one(rows, case):
    row = rows[label(case)]
    assert row["gap"] <= TOLERANCE[torch.float64], row
    assert row["split"] >= row["planned"], "a Linear named in the plan kept a whole weight"
