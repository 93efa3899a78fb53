"""gMLP and aMLP against attention with a feed-forward network: training tokens/s, and one token's decoding.

All at one parameter budget (the width solver's), bf16 autocast in training, float32 in decoding. The models
take turns; medians over the turns.

    python bench/gmlp.py [--params 1000000] [--context 256] [--batch 16] [--turns 7] [--threads 2]
"""

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch

import mixlab
from mixlab.compare.width import solve
from mixlab.config import load_run_config

NAMES = ("transformer", "gmlp", "amlp")


def training_seconds(model, tokens):
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens, tokens)
    loss.backward()
    seconds = time.perf_counter() - start
    model.zero_grad()
    return seconds


@torch.inference_mode()
def decode_seconds(model, tokens, steps):
    """Seconds a token over the last `steps` of the context."""
    T = tokens.shape[1]
    state = model(tokens[:1, : T - steps], model.init_state(1, T)).state
    start = time.perf_counter()
    for t in range(T - steps, T):
        state = model(tokens[:1, t : t + 1], state).state
    return (time.perf_counter() - start) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    defaults = {"params": 1_000_000, "context": 256, "batch": 16, "turns": 7, "threads": 2}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    models = {}
    for name in NAMES:
        config = replace(load_run_config(name).model, context=a.context)
        models[name] = mixlab.build_model(solve(config, a.params, name=name))
    tokens = torch.randint(256, (a.batch, a.context))
    training = {name: [] for name in NAMES}
    decoding = {name: [] for name in NAMES}
    for turn in range(a.turns + 1):
        for name, model in models.items():
            seconds = training_seconds(model, tokens), decode_seconds(model, tokens, min(64, a.context // 2))
            if turn:
                training[name].append(seconds[0])
                decoding[name].append(seconds[1])
    reference = statistics.median(training[NAMES[0]])
    for name, model in models.items():
        seconds = statistics.median(training[name])
        row = {
            "model": name,
            "parameters": sum(model.parameters_by_component().values()),
            "training_tokens_per_second": round(tokens.numel() / seconds),
            "of_the_transformer": round(reference / seconds, 2),
            "decode_ms_per_token": round(1000 * statistics.median(decoding[name]), 3),
            "state_bytes": model.state_bytes(a.context),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
