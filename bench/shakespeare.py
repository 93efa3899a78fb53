"""The preset `shakespeare-cpu` against nanoGPT's recipe for a CPU, and what each of its choices buys.

Both are whole processes on the same text with the same split (its last tenth is for validation); ours is
judged by the loss over the whole validation text, the peer by its own estimate. `--nanogpt` is a checkout of
karpathy/nanoGPT with data/shakespeare_char prepared; without it only ours runs.

    python bench/shakespeare.py input.txt [--nanogpt DIR] [--seeds 0 1 2]
    python bench/shakespeare.py input.txt --ladder [--minutes 0.67]

The ladder gives each rung the same minutes of training: the loss at their end, and the seconds to 1.885.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mixlab.train.metrics import read_metrics

TARGET = 1.885  # nats a character, where the peer ends
PEER = ["--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=100", "--block_size=64"]
PEER += ["--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000"]
PEER += ["--lr_decay_iters=2000", "--dropout=0.0"]

ATTENTION = 'model.temporal={kind="attention",heads=4} model.embedding_norm=false'
GPT2 = f"{ATTENTION} model.feature=gelu model.position=learned model.tied=true"
MODERN = f"{ATTENTION} model.feature=swiglu model.position=rope model.norm=rmsnorm"
SHIFTED = f"{ATTENTION} model.position=rope model.norm=rmsnorm"
ADAMW = "train.optimizer.kind=adamw train.optimizer.lr=1e-3 train.ema=0"
MUON = "train.optimizer.lr=0.01 train.ema=0"
SMALL = "model.context=64 train.batch_tokens=768"
LADDER = {
    "as nanoGPT: its block, AdamW, 12 x 64": f"{GPT2} {ADAMW} {SMALL}",
    "RMSNorm, RoPE, SwiGLU, untied": f"{MODERN} {ADAMW} {SMALL}",
    "Muon, learning rate 0.01": f"{MODERN} {MUON} {SMALL}",
    "8 x 128": f"{MODERN} {MUON}",
    "RWKV-4's channel mix in place of SwiGLU": f"{SHIFTED} {MUON}",
    "RWKV-4 in place of attention, learning rate 0.02": "train.ema=0",
    "the average of the weights, decay 0.98: the preset": "",
}


class Eval(NamedTuple):
    """nats a character; at: seconds from the process's start; trained: seconds of training alone."""

    nats: float
    at: float
    trained: float


def reached(evals):
    """Seconds of training until TARGET, on the line between the evaluations around it, at most those to the
    first of them; None if never."""
    if evals[0].nats <= TARGET:
        return round(evals[0].trained, 1)
    for before, after in pairwise(evals):
        if before.nats > TARGET >= after.nats:
            share = (before.nats - TARGET) / (before.nats - after.nats)
            return round(before.trained + share * (after.trained - before.trained), 1)
    return None


def train(text, seed, options=()):
    """One run of the preset; seconds of the whole process and the evaluations: nats a character, seconds from
    its start until each was on the disk, and those of training alone."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "run", "metrics.jsonl")
        command = [sys.executable, "-m", "mixlab", "train", text, "--preset", "shakespeare-cpu"]
        command += ["--seed", str(seed), "--out", str(record.parent), "--json", *options]
        start, evals = time.perf_counter(), []
        # The record's own seconds leave evaluations and start-up out, so the clock stands here.
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            running = True
            while running:
                time.sleep(0.1)
                running = process.poll() is None  # before the reading: what is written last is read too
                new = list(read_metrics(record, "eval"))[len(evals) :]
                now = time.perf_counter() - start
                evals += [Eval(line["nats_per_token"], now, line["seconds"]) for line in new]
        if process.returncode:
            raise SystemExit(f"mixlab train ended with status {process.returncode}")
        return time.perf_counter() - start, evals


def peer(folder):
    """nanoGPT's recipe; seconds of the whole process and its last estimate of the validation loss."""
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *PEER]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    return seconds, float(re.findall(r"val loss ([\d.]+)", done.stdout)[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--nanogpt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ladder", action="store_true")
    parser.add_argument("--minutes", type=float, default=0.67, help="of each run of the ladder")
    a = parser.parse_args()
    if a.ladder:
        for name, overrides in LADDER.items():
            options = [x for override in overrides.split() for x in ("--set", override)]
            options += ["--minutes", str(a.minutes), "--set", "train.eval_every=60"]
            runs = [train(a.text, seed, options)[1] for seed in a.seeds]
            ends, times = [round(evals[-1].nats, 4) for evals in runs], [*map(reached, runs)]
            late = [math.inf if seconds is None else seconds for seconds in times]
            medians = {"median": statistics.median(ends), "median_seconds": statistics.median(late)}
            print(json.dumps({name: ends, "seconds_to_target": times, **medians}), flush=True)
        return
    for seed in a.seeds:
        seconds, evals = train(a.text, seed)
        result = {
            "seed": seed,
            "seconds": round(seconds, 1),
            "evals": [[round(e.at, 1), round(e.nats, 4)] for e in evals],
        }
        if a.nanogpt:
            theirs, loss = peer(a.nanogpt)
            below = min((e.at for e in evals if e.nats <= TARGET), default=None)
            result |= {
                "peer_seconds": round(theirs, 1),
                "peer_loss": loss,
                "target_in_share_of_peer": below and round(below / theirs, 3),
                "whole_in_share_of_peer": round(seconds / theirs, 3),
            }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
