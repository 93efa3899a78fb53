"""A small text, tiny settings, and a cache of the tests' own."""

from __future__ import annotations

from pathlib import Path

import pytest

TEXT = "".join(f"line {n}: {n % 7} green bottles and {n * 31 % 97} more\n" for n in range(2_000))

TINY = ("model.depth=1", "train.dtype=float32")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")  # of the processes that are started: tests run side by side
        yield


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path
