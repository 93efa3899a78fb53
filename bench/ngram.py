"""Training and scoring speed of the n-gram on one core, against KenLM's lmplz where it is installed.

    python bench/ngram.py [TEXT] [--order 6] [--train 1000000] [--score 100000] [--lmplz PATH]

The tokens are the text's characters. Prints the median of several runs, and the ratio to lmplz where that
program is given or on the PATH; lmplz's time includes reading the text (one line of the same characters) and
writing its ARPA file, which it cannot do without.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy loads its libraries

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.errors import UserError
from mixlab.model.ngram import NGram

DEFAULT_TEXT = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare" / "input.txt"


def median_seconds(work: Callable[[], Any], repeats: int = 7) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def lmplz_seconds(program: str, ids: np.ndarray, order: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        text.write_text(" ".join(f"w{i}" for i in ids.tolist()) + "\n")
        command = [program, "-o", str(order), "--discount_fallback", "-S", "1G", "-T", folder]

        def run() -> None:
            with text.open() as source, (Path(folder) / "arpa").open("w") as target:
                subprocess.run(command, stdin=source, stdout=target, stderr=subprocess.DEVNULL, check=True)

        return median_seconds(run, repeats=3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--order", type=int, default=6)
    parser.add_argument("--train", type=int, default=1_000_000)
    parser.add_argument("--score", type=int, default=100_000)
    parser.add_argument("--lmplz", default=shutil.which("lmplz"))
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, for lmplz too
    try:
        text = given.text.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{given.text} cannot be read: {error.strerror}") from None
    characters, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    train, held_out = ids[: given.train], ids[given.train :][: given.score]
    V = len(characters)

    model = NGram.train(train, order=given.order, vocab_size=V)
    training = median_seconds(lambda: NGram.train(train, order=given.order, vocab_size=V))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{given.order}-gram, {V} characters, one core, {model.parameters:,} numbers stored")
    print(f"train  {len(train):>9,} characters  {training:.3f} s   peak memory {peak:.0f} MiB in all")
    if len(held_out):
        scoring = median_seconds(lambda: model.log_prob(held_out))
        nats = -float(model.log_prob(held_out, start=False).mean())
        print(f"score  {len(held_out):>9,} characters  {scoring:.3f} s   {nats:.4f} nats per character")
    if given.lmplz:
        peer = lmplz_seconds(given.lmplz, train, given.order)
        print(
            f"lmplz  {len(train):>9,} characters  {peer:.3f} s   ratio {peer / training:.1f} (lmplz / mixlab)"
        )
    else:
        print("lmplz is not installed: no ratio")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
