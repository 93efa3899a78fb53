"""What is freed stays with the process that trains."""

import platform
import subprocess
import sys

import pytest

from mixlab.train import loop

FAULTS = """
import resource, torch
from mixlab.train.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in range(2, 31, 2):
    torch.ones(megabytes << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    """Pages the kernel had to bring while 2, 4, ... 30 MiB were taken and freed, 240 MiB in all."""
    script = FAULTS.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_was_freed_is_used_again_and_not_fetched_anew():
    assert 2 * faults(keep=True) < faults(keep=False)


def test_training_asks_for_it_once_the_text_is_prepared(config, tmp_path, monkeypatch):
    order = []
    for name in ("prepare", "Trainer", "keep_freed_memory"):
        real = getattr(loop, name)
        monkeypatch.setattr(
            loop, name, lambda *a, real=real, name=name, **k: order.append(name) or real(*a, **k)
        )
    loop.train(config, tmp_path / "run", progress=lambda line: None)
    assert order == ["prepare", "Trainer", "keep_freed_memory"]
