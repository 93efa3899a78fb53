"""A disk that is full: a file system of its own, as small as wanted, mounted for one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mixlab.config import to_toml
from mixlab.train.config import CheckpointConfig
from mixlab.train.files import sha256
from mixlab.train.loop import train

from ..mounts import in_mount
from .helpers import record, with_train

MOUNT = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'
LEFT = 60_000
"""Bytes that are free when the third step ends: enough for the record, too few for a checkpoint."""

RUN = """
import json, os, sys
from pathlib import Path

import torch

from mixlab.config import load_run_config
from mixlab.errors import RunFailed
from mixlab.train import checkpoint, machine
from mixlab.train.loop import train
from tests.train.conftest import FAKE

torch.set_num_threads(1)
machine.measure = lambda device=None, refresh=False: FAKE
config, disk, left = load_run_config(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
run, filler = disk / "run", disk / "filler"


def fill(line):
    if line["kind"] == "step" and line["step"] == 3:
        status = os.statvfs(disk)
        filler.write_bytes(bytes(status.f_bavail * status.f_frsize - left))


result = {}
try:
    train(config, run, progress=fill)
except RunFailed as error:
    result["message"] = str(error)
result["left"] = sorted(path.name for path in (run / "checkpoints").iterdir())
for path in checkpoint.list_checkpoints(run / "checkpoints"):
    checkpoint.verify(path)
result["last"] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
filler.unlink()
result["resumed"] = train(config, run, resume=True, progress=lambda line: None)["status"]
(Path(sys.argv[4]) / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
result["weights"] = checkpoint.sha256(run / "checkpoints/step-0000008" / checkpoint.MODEL)
print(json.dumps(result))
"""


def on_small_disk(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where a file system of 2 MB is mounted at `folder`, for this command alone."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return in_mount(MOUNT, folder, *command, env=environment)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where a small disk can be mounted; skips where none can."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare, which makes mounts of one's own, on this system")
    tried = on_small_disk(folder, "stat", "--file-system", "--format=%T", str(folder))
    if tried.stdout.strip() != "tmpfs":
        pytest.skip(f"no small disk can be mounted here: {tried.stderr.strip() or tried.stdout.strip()}")
    return folder


def test_a_full_disk_leaves_the_last_checkpoint_says_so_and_the_run_can_go_on(config, tmp_path, disk):
    keep = CheckpointConfig(every=2, keep=2)
    config = with_train(config, eval_every=0, dtype="float32", checkpoint=keep)
    (tmp_path / "run.toml").write_text(to_toml(config))
    (tmp_path / "out").mkdir()
    arguments = [str(tmp_path / "run.toml"), str(disk), str(LEFT), str(tmp_path / "out")]
    done = on_small_disk(disk, sys.executable, "-c", RUN, *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    last_good = f"the last good checkpoint is {disk}/run/checkpoints/step-0000002"
    assert result["message"].endswith(f"No space left on device; {last_good}")
    assert f"cannot write to {disk}/run (" in result["message"]
    assert result["left"] == ["step-0000002"]  # and nothing half written
    assert (result["last"]["status"], result["last"]["message"]) == ("failed", result["message"])
    assert result["resumed"] == "done"
    train(config, tmp_path / "straight", progress=lambda line: None)
    assert record(tmp_path / "out") == record(tmp_path / "straight")
    weights = tmp_path / "straight/checkpoints/step-0000008/model.safetensors"
    assert result["weights"] == sha256(weights)
