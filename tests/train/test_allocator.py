"""What is freed stays with the process that trains."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from mixlab.train.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        del [torch.ones(16 << 20, dtype=torch.uint8) for _ in range(6)][:]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(keep):
    """Pages the kernel had to bring while six times 16 MiB were taken and freed, five times."""
    script = FAULTS.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults():
    assert faults(keep=True) < 100 < 10_000 < faults(keep=False)
