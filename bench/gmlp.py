"""gMLP and aMLP against attention with a feed-forward network: training tokens/s, and one token's decoding.

All at one parameter budget (the width solver's), in training bf16 autocast where `mixlab doctor` finds it
worth it, else float32, as in decoding. The models take turns; medians over the turns.

    python bench/gmlp.py [--params 1000000] [--context 256] [--batch 16] [--turns 7] [--threads 2]
        [--dtype bfloat16]
"""

import json
from dataclasses import replace
from functools import partial

import torch

import mixlab
from common import count, medians, parsed, parser, take_turns
from mixlab.compare.width import solve
from mixlab.config import load_run_config

NAMES = ("transformer", "gmlp", "amlp")


def train(model, tokens, bf16):
    """Forward and backward."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model.loss(tokens, tokens)
    loss.backward()


@torch.inference_mode()
def decoding(models, tokens, steps, turns):
    """Seconds of the last `steps` tokens of the context, one by one; what comes before is not timed."""
    T = tokens.shape[1]

    def prefill():
        return ({n: m(tokens[:1, : T - steps], m.init_state(1, T)).state for n, m in models.items()},)

    def decode(name, states):
        for t in range(T - steps, T):
            states[name] = models[name](tokens[:1, t : t + 1], states[name]).state

    return medians(take_turns({name: partial(decode, name) for name in models}, turns, prefill))


def main():
    a = parsed(parser(__doc__, params=1_000_000, context=256, batch=16, turns=7, threads=2))
    torch.set_num_threads(a.threads)
    models = {}
    for name in NAMES:
        config = replace(load_run_config(name).model, context=a.context)
        models[name] = mixlab.build_model(solve(config, a.params, name=name))
    tokens = torch.randint(256, (a.batch, a.context))
    steps = min(64, a.context // 2)
    training = medians(take_turns({n: partial(train, m, tokens, a.bf16) for n, m in models.items()}, a.turns))
    decoded = decoding(models, tokens, steps, a.turns)
    for name, model in models.items():
        row = {
            "model": name,
            "parameters": count(model),
            "training_tokens_per_second": round(tokens.numel() / training[name].wall),
            "of_the_transformer": round(training[NAMES[0]].wall / training[name].wall, 2),
            "decode_ms_per_token": round(1000 * decoded[name].wall / steps, 3),
            "state_bytes": model.state_bytes(a.context),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
