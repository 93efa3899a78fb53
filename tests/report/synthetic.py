"""A comparison that looks like a real one: seven models, two seeds, one failure, text that wants escaping."""

from __future__ import annotations

import math
import random
from typing import Any

CONTEXT, BATCH, STEPS, PARAMETERS = 256, 16, 400, 1_000_000

# model: final bits per byte, tokens/s, forward FLOPs per token, decode ms, state bytes, positions it can use
MODELS = {
    "transformer": (2.141, 41_300, 2_630_000, 1.31, 1_572_864, 256),
    "lstm": (2.212, 27_800, 1_940_000, 0.62, 12_288, 60),
    "gru": (2.207, 30_100, 1_930_000, 0.55, 6_144, 50),
    "rnn": (2.409, 52_400, 1_910_000, 0.34, 6_144, 22),
    "window": (2.533, 88_700, 1_890_000, 0.21, 8_192, 8),
    "ngram": (2.318, 4_120_000, 0, 0.08, 40, 6),
}
SHARES = {
    "transformer": (0.06, 0.33, 0.54, 0.005, 0.065),
    "lstm": (0.08, 0.56, 0.28, 0.004, 0.076),
    "gru": (0.08, 0.52, 0.32, 0.004, 0.076),
    "rnn": (0.1, 0.4, 0.4, 0.004, 0.096),
    "window": (0.09, 0.62, 0.2, 0.004, 0.086),
}
NAMES = ("embedding", "temporal", "feature", "norm", "head")
CODE = """def read(self, path):
    'Return <b>all</b> lines & more.'
    if self.closed:
        raise ValueError("x")
"""


def result(model: str, seed: int) -> dict[str, Any]:
    """One finished result of `model`."""
    final, speed, flops, decode, state, reach = MODELS[model]
    rng = random.Random(f"{model}{seed}")
    final += rng.uniform(-0.006, 0.006)
    base = {
        "model": model,
        "seed": seed,
        "status": "done",
        "reason": "",
        "parameters": PARAMETERS + rng.randint(-9_000, 9_000),
        "bits_per_byte": final,
        "tokens_per_second": speed * rng.uniform(0.98, 1.02),
        "flops_per_token": flops,
        "decode_ms_per_token": decode,
        "state_bytes": state,
        "peak_memory_bytes": int(4.1e8 + speed * 1000),
        "loss_by_position": [
            (final - 0.1 + 2.6 * (1 + min(p, reach)) ** -0.62) * math.log(2) + rng.gauss(0, 0.03)
            for p in range(CONTEXT)
        ],
        "sample": {
            "prompt": "def ",
            "text": f"{model}(self, name):\n" + CODE * 3 + "<script>alert('x')</script>\n\x00end \u202e",
        },
        "config": {"model": {"temporal": model, "dim": 128}, "train": {"steps": STEPS, "seed": seed}},
    }
    if model == "ngram":
        only = [{"step": 1, "tokens": 3_611_930, "seconds": 0.92, "flops": 0, "bits_per_byte": final}]
        parts = {name: {"parameters": 6_412_330 * (name == "temporal"), "flops": 0} for name in NAMES}
        return base | {
            "parameters": 6_412_330,
            "seconds": 0.92,
            "curve": [],
            "evals": only,
            "components": parts,
            "config": {"name": "ngram", "ngram": {"order": 6}},
        }
    tokens = BATCH * CONTEXT

    def at(step: int) -> dict[str, float]:
        done = step * tokens
        return {"step": step, "tokens": done, "seconds": done / speed, "flops": 3 * done * flops}

    def loss(step: int) -> float:
        left = math.exp(-step / 70) - math.exp(-STEPS / 70)  # nothing at the last step: it ends at `final`
        return final + 5.9 * math.exp(-step / 9) + 1.9 * left * (1 - 0.2 * (model == "gru"))

    steps = range(1, STEPS + 1)
    return base | {
        "seconds": STEPS * tokens / speed,
        "components": {
            name: {
                "parameters": int(PARAMETERS * share),
                "flops": int(flops * share) if name != "embedding" else 0,
            }
            for name, share in zip(NAMES, SHARES[model], strict=True)
        },
        "curve": [at(s) | {"loss": loss(s) * math.log(2) + rng.gauss(0, 0.06)} for s in steps],
        "evals": [
            at(s) | {"bits_per_byte": loss(s) + rng.gauss(0, 0.004) * (s < STEPS)}
            for s in (1, *range(25, 401, 25))
        ],
    }


def comparison(seeds: int = 2) -> dict[str, Any]:
    """The whole comparison, in the structure of comparison.json."""
    results = [result(model, seed) for model in MODELS for seed in range(seeds if model != "ngram" else 1)]
    failed = {
        "model": "window-64",
        "seed": 0,
        "status": "failed",
        "reason": "the loss became NaN at step 57; the last good checkpoint is step 50",
    }
    return {
        "title": "Six ways to mix positions on Python source",
        "created": "2026-02-11T14:32:07+00:00",
        "command": "mixlab compare --budget params=1M --tokens 1.6M --seeds 2 --out runs/python",
        "corpus": {
            "sources": ["corpus:python"],
            "documents": 214,
            "bytes": 3_999_412,
            "characters": 3_990_101,
            "sha256": "9f2c4b1e" * 8,
            "replaced": 0,
            "notes": ["2 files were left out because they are empty"],
            "tokenizer": {"kind": "byte", "vocab_size": 256, "hash": "51aa" * 16},
            "split": "by a hash of each document's content",
            "valid_fraction": 0.1,
            "train_documents": 193,
            "train_bytes": 3_611_930,
            "train_tokens": 3_611_930,
            "valid_documents": 21,
            "valid_bytes": 387_696,
            "valid_tokens": 387_696,
            "tokens": 3_999_626,
        },
        "environment": {
            "mixlab": "0.1.0",
            "python": "3.11.2",
            "torch": "2.13.0+cpu",
            "platform": "Linux-6.1-x86_64",
            "cpu": "Intel(R) Xeon(R) Platinum 8481C",
            "cores": 2,
            "memory_bytes": 8_589_934_592,
            "float32_flops": 1.36e11,
            "bfloat16_flops": 3.79e11,
            "memory_bandwidth": 2.9e10,
            "use_bfloat16": True,
            "threads": 2,
        },
        "budget": {
            "params": PARAMETERS,
            "steps": STEPS,
            "tokens": STEPS * BATCH * CONTEXT,
            "context": CONTEXT,
            "batch_size": BATCH,
            "unequal": [
                "Time: the slowest model (lstm) trained 3.2 times as long as the fastest (window).",
                "Compute: transformer did 1.4 times the FLOPs of window.",
                "The n-gram's parameters are its stored counts; the budget does not bound them.",
            ],
        },
        "results": [*results, failed],
    }
