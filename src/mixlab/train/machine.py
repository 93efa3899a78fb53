"""What this machine can do, measured: matrix-product peaks, memory bandwidth, and what follows from them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

import mixlab

# bf16 has 8 bits of mantissa: it must earn that. Below this ratio the casts eat the gain in a real step.
WORTH_IT = 1.2
SIZE = 2048  # square; large enough to reach the peak of a CPU, small enough to take a tenth of a second
CUDA_SIZE = 8192  # a GPU needs more work per product to reach its own
TRIAL = 512  # a first, small product tells how long the large one would take
PATIENCE = 0.3  # seconds a large product may take before the small one's speed is used instead
REPEATS = 4
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}  # far beyond the caches (256 MiB, 1 GiB)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Measured facts. Peaks: FLOP/s of square matrix products (2 a multiply-add); bandwidth: bytes/s read.

    use_bfloat16: what dtype "auto" means here; reason: why, as a sentence.
    """

    device: str
    name: str
    cores: int
    threads: int
    torch: str
    float32_flops: float
    bfloat16_flops: float
    memory_bandwidth: float
    use_bfloat16: bool
    reason: str

    def peak(self, bfloat16: bool) -> float:
        """The matrix-product peak, FLOP/s, of the dtype in use."""
        return self.bfloat16_flops if bfloat16 else self.float32_flops


_known: dict[str, Machine] = {}


CPU = torch.device("cpu")


def measure(device: str | None = None, *, refresh: bool = False) -> Machine:
    """The facts of `device` ("cpu" or "cuda"; by default the one training uses), measured once a machine.

    The measurement takes under 2 s and is kept in the cache folder, under the processor's name and
    instructions, torch's version and the number of threads; `refresh` measures again.
    """
    device = device or default_device().type
    identity = [device, _name(device), _instructions(), torch.__version__, _threads()]
    key = sha256(json.dumps(identity).encode()).hexdigest()[:16]
    if refresh or key not in _known:
        from mixlab.data import default_cache_dir

        path = default_cache_dir() / f"machine-{key}.json"
        machine = None if refresh else _read(path)
        if machine is None:
            machine = _measure(device)
            _write(path, machine)
        _known[key] = machine
    return _known[key]


def default_device() -> torch.device:
    """Where training runs: the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def decide(float32_flops: float, bfloat16_flops: float) -> tuple[bool, str]:
    """Whether bfloat16 autocast is worth it, from the two measured peaks, and the sentence that says why."""
    ratio = bfloat16_flops / float32_flops
    verb = "is" if ratio > WORTH_IT else "is not"
    return ratio > WORTH_IT, (
        f"bfloat16 {verb} used: its matrix products were measured at {bfloat16_flops / 1e9:.0f} GFLOP/s, "
        f"{ratio:.2f}x float32's {float32_flops / 1e9:.0f} (more than {WORTH_IT}x is worth the rounding)"
    )


def _measure(device: str) -> Machine:
    float32, bfloat16 = (matmul_flops(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    use, reason = decide(float32, bfloat16)
    return Machine(
        device=device,
        name=_name(device),
        cores=usable_cores(),
        threads=_threads(),
        torch=torch.__version__,
        float32_flops=float32,
        bfloat16_flops=bfloat16,
        memory_bandwidth=memory_bandwidth(device),
        use_bfloat16=use,
        reason=reason,
    )


def matmul_flops(device: str, dtype: torch.dtype) -> float:
    """The best FLOP/s of a few square matrix products; smaller ones where the machine is slow at them."""
    speed = _product_speed(device, dtype, TRIAL)
    size = CUDA_SIZE if device == "cuda" else SIZE
    return max(speed, _product_speed(device, dtype, size)) if 2 * size**3 / speed < PATIENCE else speed


def _product_speed(device: str, dtype: torch.dtype, size: int) -> float:
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _best_time(lambda: torch.mm(a, b, out=out), device)


def memory_bandwidth(device: str) -> float:
    """Bytes/s read while summing a tensor far larger than the caches."""
    size = COPY_BYTES[device]
    x = torch.ones(size // 4, device=device)
    return size / _best_time(lambda: x.sum(), device)


def _best_time(work: Callable[[], Any], device: str) -> float:
    """Seconds of the fastest of a few calls, after one to warm up."""
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    return torch.get_num_threads()


def _name(device: str) -> str:
    """The processor's marketing name, as far as the system tells."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _instructions() -> str:
    """What the processor says it can do; virtual machines share names and differ in this."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")


def _read(path: Path) -> Machine | None:
    """An earlier measurement; None if it is absent or not one."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Machine(**facts) if set(facts) == {f.name for f in fields(Machine)} else None
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, machine: Machine) -> None:
    """Keep the measurement; a cache that cannot be written costs the next process 2 s and nothing else."""
    from mixlab.train.files import write_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(machine), indent=1) + "\n")
    except OSError:
        return


def environment(machine: Machine | None) -> dict[str, Any]:
    """What environment.json records: versions, platform and the facts if they were measured, JSON-able."""
    measured = {} if machine is None else {"machine": asdict(machine)}
    return {
        "mixlab": mixlab.__version__,
        "git": git_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        **measured,
    }


def git_hash() -> str | None:
    """The commit of mixlab's own checkout; None for an installed package."""
    package = Path(mixlab.__file__).resolve().parent
    root = package.parent.parent
    # An installed package may lie inside somebody else's repository, whose commit says nothing about mixlab.
    if not (root / ".git").exists() or root / "src" / "mixlab" != package:
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def memory_bytes(device: torch.device) -> int:
    """Memory in use now: by the GPU's tensors, else resident in this process; 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # only Linux has it
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: by the GPU's allocator, else resident in this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such module; 0 says that it is not known
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
