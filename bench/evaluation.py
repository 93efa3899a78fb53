"""What a step spends on its data, and whether evaluating 1 MB takes longer than training on 0.5 MB.

Two models on bytes of the embedded text, in the dtype that this machine trains in or as told: the preset
`transformer` as it is, and 10.8M parameters as in bench/train_step.py. In each turn the trainer takes
`--steps` steps and evaluates twice as many tokens as they have; the ratio of the two times is that of 1 MB to
0.5 MB, as both are a sum over equal pieces. The data's share is the time of drawing a batch, alone, over that
of a step. Medians over the turns, by the clock and by the processors' time, which other work disturbs less.

    python bench/evaluation.py [--steps 4] [--turns 5] [--dtype auto] [--models preset 10.8M]
"""

import json
import statistics
import tempfile
from pathlib import Path

from common import count, medians, parser, take_turns
from mixlab.config import load_run_config
from mixlab.data import TokenFile, prepare
from mixlab.train.allocator import keep_freed_memory
from mixlab.train.evaluate import evaluate
from mixlab.train.folder import RunFolder
from mixlab.train.loop import Trainer

LARGE = ["model.dim=384", "model.depth=6", "model.temporal.heads=6"]
MODELS = {"preset": [], "10.8M": LARGE}


def build(name, dtype, folder):
    """A trainer of one of MODELS that writes nothing, and its text."""
    sets = ["train.checkpoint.every=0", "train.checkpoint.minutes=0", "train.watch_every=0"]
    config = load_run_config("transformer", [*MODELS[name], *sets, f"train.dtype={dtype}"])
    dataset = prepare(config.data, context=config.model.context)
    trainer = Trainer(config, RunFolder(Path(folder) / name), dataset, lambda line: None)
    trainer.model.train()
    return trainer, dataset


def measure(name, a):
    with tempfile.TemporaryDirectory() as folder:
        trainer, dataset = build(name, a.dtype, folder)
    tokens = a.steps * trainer.stepper.tokens
    text = TokenFile(dataset.train.tokens[: 2 * tokens + 1], 2 * tokens)
    dtype = "bfloat16" if trainer.bfloat16 else "float32"

    def train():
        for _ in range(a.steps):
            trainer.step()

    def score():
        evaluate(trainer.model, text, context=trainer.context, dtype=dtype)

    times = take_turns({"train": train, "score": score, "draw": trainer.batches.next}, a.turns)
    found = medians(times)
    pairs = list(zip(times["score"], times["train"], strict=True))
    step = found["train"].work / a.steps
    return {
        "model": name,
        "parameters": count(trainer.model),
        "dtype": dtype,
        "step_seconds": round(found["train"].wall / a.steps, 3),
        "step_processor_seconds": round(step, 3),
        "evaluating_1MB_over_training_0.5MB": round(statistics.median(s.wall / t.wall for s, t in pairs), 3),
        "by_processor_time": round(statistics.median(s.work / t.work for s, t in pairs), 3),
        "evaluated_tokens_per_processor_second": round(2 * tokens / found["score"].work),
        "data_share_of_a_step": round(found["draw"].work / step, 5),
    }


def main():
    p = parser(__doc__, steps=4, turns=5)
    p.add_argument("--dtype", default="auto")
    p.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    a = p.parse_args()
    keep_freed_memory()
    for name in a.models:
        print(json.dumps(measure(name, a)), flush=True)


if __name__ == "__main__":
    main()
