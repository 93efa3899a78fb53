"""RWKV-4 against transformers' RwkvForCausalLM and against attention of the same size, on 2 threads.

train: 11.7M parameters (6 layers, width 384, bytes), T = 256, B = 16, fused AdamW for all, bf16
autocast where `mixlab doctor` finds it worth it, else float32;
tokens a second, the models taking turns, medians. long: ours and attention at T = 4096, B = 1. decode:
milliseconds a token at token 100 and at token 100,000 from one running state, and the bytes it holds, with
attention's for comparison at the lengths given.

    python bench/rwkv4.py [train|long|decode] [--steps 5] [--peer-steps 2] [--dtype bfloat16]
"""

import json

import torch

import mixlab
from common import count, decode_ms, late_over_early, parsed, parser, peer_loss, race, rates, read
from mixlab.parts.checks import tensors

SHAPE = {"vocab_size": 256, "dim": 384, "depth": 6}
RWKV = {
    "temporal": "rwkv4", "feature": {"kind": "channel_mix", "version": 4}, "position": "none",
    "norm": "layernorm", "embedding_norm": True,
}  # fmt: skip
ATTENTION = {"temporal": {"kind": "attention", "heads": 6}, "position": "rope"}


def ours(T):
    return mixlab.build_model({**SHAPE, "context": T, **RWKV})


def attention(T, parameters):
    """The transformer whose feed-forward width brings it nearest to as many parameters."""

    def build(ratio):
        return mixlab.build_model(
            {**SHAPE, "context": T, "feature": {"kind": "swiglu", "ratio": ratio}, **ATTENTION}
        )  # fmt: skip

    return min((build(8 / 3 + i / 24) for i in range(16)), key=lambda m: abs(count(m) - parameters))


def peer(T):
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(vocab_size=256, hidden_size=384, num_hidden_layers=6, context_length=T)
    return RwkvForCausalLM(config).train()


def report(models, seconds, tokens):
    """Sizes, tokens a second, and how many times as fast as each of the others RWKV-4 is."""
    ours = seconds["rwkv4"].wall
    return {
        "parameters": {name: count(model) for name, model in models.items()},
        "tokens_per_second": rates(seconds, tokens),
        **{f"over_{name}": round(s.wall / ours, 2) for name, s in seconds.items() if name != "rwkv4"},
    }


def train(a):
    models = {"rwkv4": ours(256)}
    models |= {"attention": attention(256, count(models["rwkv4"])), "transformers": peer(256)}
    turns = {"rwkv4": a.steps, "attention": a.steps, "transformers": a.peer_steps}
    return report(
        models, race(models, turns, 256, 16, losses={"transformers": peer_loss}, bf16=a.bf16), 16 * 256
    )


def long(a):
    models = {"rwkv4": ours(4096)}
    models["attention"] = attention(4096, count(models["rwkv4"]))
    return report(models, race(models, a.steps, 4096, 1, bf16=a.bf16), 4096)


def held(state):
    return sum(t.numel() * t.element_size() for t in tensors(state))


def decode(a):
    """Time per token at two depths of one sequence, by turns."""
    lengths, rows = (100, 100_000), {}
    for name, model in (("rwkv4", ours(256)), ("attention", attention(256, 11_700_000))):
        model.eval()
        states = {}
        for length in lengths if name == "rwkv4" else (100, 2_000):
            with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):  # only to get there sooner
                states[length] = read(model, model.init_state(1, length + 10_000), length, chunk=2000)
        ms = decode_ms(model, states, a.decode_turns)
        rows[name] = {
            "ms_per_token": ms,
            "ratio": late_over_early(ms),
            "state_bytes": {n: model.state_bytes(n) for n in states},
        }
        if name == "rwkv4":
            rows[name]["held_bytes"] = {n: held(s) for n, s in states.items()}
    return rows


RACES = {"train": train, "long": long, "decode": decode}


def main():
    options = parser(__doc__, steps=5, peer_steps=2, threads=2, decode_turns=1000)
    options.add_argument("what", nargs="*", choices=[*RACES, "all"], default="all")
    a = parsed(options)
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    result = {"bf16": a.bf16} | {name: RACES[name](a) for name in (RACES if "all" in a.what else a.what)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
