"""What a checkpoint costs the training loop: the time of steps with saving over that of steps without.

10.8M parameters as in bench/train_step.py, AdamW, bf16 where the machine multiplies it faster: 130 MB a
checkpoint. One run; blocks of `--every` steps take turns: one with a checkpoint begun after its first step,
one without. A block's time is the whole loop's by the clock: stepping, the record, the snapshot, and waiting,
if it comes to that, for the checkpoint before. A last save, waited for, is what each would cost in the
foreground.

    python bench/checkpoint.py [--every 10] [--blocks 5] [--dim 384 --depth 6 --heads 6 --T 256 --B 16]
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

from common import count, parser
from mixlab.config import parse
from mixlab.data import prepare
from mixlab.train.allocator import keep_freed_memory
from mixlab.train.config import RunConfig
from mixlab.train.folder import RunFolder
from mixlab.train.loop import Trainer


def build(a, folder):
    """A trainer on the embedded text, its record open."""
    attention = {"kind": "attention", "heads": a.heads}
    shape = {"dim": a.dim, "depth": a.depth, "context": a.T, "temporal": attention, "feature": "swiglu"}
    train = {"steps": 10**6, "batch_tokens": a.B * a.T, "checkpoint": {"every": 0, "minutes": 0.0}}
    tables = {"model": shape, "data": {"max_bytes": 1_000_000}, "train": train}
    config = parse(RunConfig, tables)
    run = RunFolder(Path(folder) / "run")
    run.checkpoints.mkdir(parents=True)
    trainer = Trainer(config, run, prepare(config.data, context=a.T), lambda line: None)
    trainer.record.open()
    trainer.model.train()
    return trainer


def step(trainer):
    """A step as the loop takes it."""
    trainer.saver.check()
    trainer.record.write(trainer.step())


def block(trainer, steps, *, save):
    """Seconds of so many steps, with a checkpoint begun after the first or without, and of beginning it."""
    started, begun = time.perf_counter(), 0.0
    for number in range(steps):
        step(trainer)
        if save and number == 0:
            mark = time.perf_counter()
            trainer.save()
            begun = time.perf_counter() - mark
    return time.perf_counter() - started, begun


def main():
    a = parser(__doc__, every=10, blocks=5, dim=384, depth=6, heads=6, T=256, B=16).parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(a, folder)
        for _ in range(2):  # the first steps allocate, and so does the first snapshot
            step(trainer)
        trainer.save()
        trainer.saver.wait()
        times = {True: [], False: []}
        for _ in range(a.blocks):
            for save in (True, False):
                times[save].append(block(trainer, a.every, save=save))
                if save:
                    trainer.saver.wait()  # outside of both: the next block is to be free of it
        step(trainer)
        mark = time.perf_counter()
        trainer.save()
        trainer.saver.wait()
        foreground = time.perf_counter() - mark
        size = sum(path.stat().st_size for path in trainer.saver.saved.iterdir())
        pairs = list(zip(times[True], times[False], strict=True))
    plain = statistics.median(seconds for seconds, _ in times[False])
    result = {
        "parameters": count(trainer.model),
        "checkpoint_mb": round(size / 1e6, 1),
        "steps_between_checkpoints": a.every,
        "step_seconds": round(plain / a.every, 4),
        "ratio_of_step_time_with_saving": round(statistics.median(w[0] / p[0] for w, p in pairs), 4),
        "ratios": [round(w[0] / p[0], 3) for w, p in pairs],
        "seconds_the_loop_stands_still": round(statistics.median(begun for _, begun in times[True]), 4),
        "seconds_of_a_save_in_the_foreground": round(foreground, 3),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
