"""Workers as the parent sees them: forked by a server or begun from nothing, they behave alike."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixlab.compare.child import Signals, run_job
from mixlab.compare.workers import Forked, Workers
from mixlab.config import to_mapping
from mixlab.data.config import DataConfig
from mixlab.model.ngram import NGramConfig
from mixlab.train.config import RunConfig

PART = """
import os, sys, resource
from pathlib import Path
print("on stdout of", os.getpid())
peak = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
ballast = b"x" * ({megabytes} << 20)
after = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print("peak", peak[0].split()[1], "after", after[0].split()[1])
{then}
"""


@pytest.fixture(scope="module")
def forking() -> Iterator[Workers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS")  # as a user's shell has none
        workers = Workers(forked=True)
    with workers:
        yield workers


def work(workers: Workers, tmp_path: Path, then: str, megabytes: int = 0) -> tuple[dict[str, Any], str]:
    """The last line and the log of a job whose imported module does `then`."""
    part = tmp_path / "part.py"
    part.write_text(PART.format(megabytes=megabytes, then=then), encoding="utf-8")
    config = RunConfig(ngram=NGramConfig(), data=DataConfig(sources=(str(tmp_path / "absent.txt"),)))
    job = {"kind": "run", "resume": False, "config": to_mapping(config), "imports": [str(part)]}
    job |= {"run": str(tmp_path / "run"), "context": 8, "prompt": "", "decode_from": []}
    log = tmp_path / "a.log"
    last = run_job(job, log=log, signals=Signals(), progress=lambda line: None, workers=workers)
    return last, log.read_text(encoding="utf-8") if log.exists() else ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_workers_are_processes_of_their_own_with_their_own_end_log_and_peak(
    forking: Workers, tmp_path: Path
) -> None:
    last, large = work(forking, tmp_path, "", megabytes=300)
    assert forking.server is not None
    tasks = Path(f"/proc/{forking.server.process.pid}/task")
    assert not tasks.exists() or len(list(tasks.iterdir())) == 1  # threads do not survive a fork
    assert (last["kind"], "absent.txt" in last["reason"]) == ("failed", True)
    last, killed = work(forking, tmp_path, "os.kill(os.getpid(), 9)")
    assert "killed, most likely for" in last["reason"]
    last, ended = work(forking, tmp_path, "os._exit(3)")
    assert "ended with status 3" in last["reason"] and str(tmp_path / "a.log") in last["reason"]
    last, aborted = work(forking, tmp_path, "os.kill(os.getpid(), 6)")
    assert "SIGABRT" in last["reason"]
    logs = [large, killed, ended, aborted]
    assert len({log.split("stdout of")[1].split()[0] for log in logs}) == 4
    if Path("/proc/self/status").exists():
        before, after = (int(large.split(f"{word} ")[1].split()[0]) for word in ("peak", "after"))
        assert after > before + 250_000
        assert all(int(log.split("peak ")[1].split()[0]) < before + 100_000 for log in logs[1:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_server_that_is_killed_is_done_without(tmp_path: Path) -> None:
    with Workers(forked=True) as workers:
        assert workers.server is not None
        workers.server.process.kill()
        workers.server.process.wait()
        last, log = work(workers, tmp_path, "")
        assert (last["kind"], workers.server) == ("failed", None)
        assert "absent.txt" in last["reason"] and "on stdout of" in log


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_worker_is_stopped_by_a_signal(forking: Workers, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as errors:
        child = forking(errors)
        assert isinstance(child, Forked)
        assert os.getsid(child.pid) != os.getsid(0)  # a terminal's Ctrl-C does not reach it
        child.terminate()
        assert child.wait() == -signal.SIGTERM
        child.terminate()  # of one that has ended nothing is asked
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()
