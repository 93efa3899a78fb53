"""RWKV-4 against transformers' RwkvForCausalLM and against attention of the same size, on 2 threads.

train: 11.7M parameters (6 layers, width 384, bytes), T = 256, B = 16, bf16 autocast and fused AdamW for all;
tokens a second, the models taking turns, medians. long: ours and attention at T = 4096, B = 1. decode:
milliseconds a token at token 100 and at token 100,000 from one running state, and the bytes it holds, with
attention's for comparison at the lengths given.

    python bench/rwkv4.py [train|long|decode] [--steps 5] [--peer-steps 2]
"""

import argparse
import json
import statistics
import time

import torch

import mixlab
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

    def count(model):
        return sum(p.numel() for p in model.parameters())

    return min((build(8 / 3 + i / 24) for i in range(16)), key=lambda m: abs(count(m) - parameters))


def peer(T):
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(vocab_size=256, hidden_size=384, num_hidden_layers=6, context_length=T)
    return RwkvForCausalLM(config).train()


def stepper(model, loss):
    """One whole training step: forward, backward, clip, update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(inputs, targets):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, inputs, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peer_loss(model, inputs, targets):
    """Mean cross-entropy through the peer's own forward."""
    logits = model(input_ids=inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def race(models, steps, T, B):
    """Tokens a second of each model, one step at a time in turns."""
    losses = {"transformers": peer_loss}
    runs = {n: stepper(m, losses.get(n, lambda m, x, y: m.loss(x, y))) for n, m in models.items()}
    times = {name: [] for name in models}
    for turn in range(max(steps.values()) + 1):
        inputs, targets = torch.randint(256, (2, B, T))
        for name, run in runs.items():
            if turn <= steps[name]:
                start = time.perf_counter()
                run(inputs, targets)
                times[name].append(time.perf_counter() - start)
    return {name: round(B * T / statistics.median(t[1:])) for name, t in times.items()}


def parameters(models):
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def train(a):
    models = {"rwkv4": ours(256)}
    count = sum(p.numel() for p in models["rwkv4"].parameters())
    models |= {"attention": attention(256, count), "transformers": peer(256)}
    speed = race(models, {"rwkv4": a.steps, "attention": a.steps, "transformers": a.peer_steps}, 256, 16)
    return {
        "parameters": parameters(models),
        "tokens_per_second": speed,
        "over_transformers": round(speed["rwkv4"] / speed["transformers"], 2),
        "over_attention": round(speed["rwkv4"] / speed["attention"], 2),
    }


def long(a):
    models = {"rwkv4": ours(4096)}
    models["attention"] = attention(4096, sum(p.numel() for p in models["rwkv4"].parameters()))
    speed = race(models, dict.fromkeys(models, a.steps), 4096, 1)
    return {
        "parameters": parameters(models),
        "tokens_per_second": speed,
        "over_attention": round(speed["rwkv4"] / speed["attention"], 2),
    }


def held(state):
    return sum(t.numel() * t.element_size() for t in tensors(state))


@torch.no_grad()
def decode(a):
    """Time per token at two depths of one sequence, in turns, so that the machine's mood hits both alike."""
    lengths, rows = (100, 100_000), {}
    for name, model in (("rwkv4", ours(256)), ("attention", attention(256, 11_700_000))):
        model.eval()
        states = {}
        for length in lengths if name == "rwkv4" else (100, 2_000):
            state = model.init_state(1, length + 10_000)
            with torch.autocast("cpu", torch.bfloat16):  # only to get there sooner
                for chunk in torch.randint(256, (1, length)).split(2000, 1):
                    state = model.hidden(chunk, state)[1]
            states[length] = state
        times = {length: [] for length in states}
        for _ in range(a.decode_turns):
            for length in states:
                token = torch.randint(256, (1, 1))
                start = time.perf_counter()
                states[length] = model(token, states[length]).state
                times[length].append(time.perf_counter() - start)
        ms = {n: round(1e3 * statistics.median(t), 3) for n, t in times.items()}
        first, last = min(ms), max(ms)
        rows[name] = {
            "ms_per_token": ms,
            "ratio": round(ms[last] / ms[first], 3),
            "state_bytes": {n: model.state_bytes(n) for n in states},
        }
        if name == "rwkv4":
            rows[name]["held_bytes"] = {n: held(s) for n, s in states.items()}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["train", "long", "decode"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peer-steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decode-turns", type=int, default=1000)
    a = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    result = {name: globals()[name](a) for name in a.what or ("train", "long", "decode")}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
