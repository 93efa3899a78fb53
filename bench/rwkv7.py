"""RWKV-7 against attention of the same parameter count: training tokens/s by length, decoding by position.

About 11M parameters at D = 384: 6 layers, 6 heads, bytes, bf16 autocast, fused AdamW, gradient norm clipped;
attention has the MLP that makes the counts equal to within a per cent. The two take turns, step by step;
medians over the turns. Decoding: one sequence, a token at a time, float32, from states of both positions.

    python bench/rwkv7.py [--steps 5] [--lengths 256:16 4096:1] [--positions 100 100000] [--skip-decode]
"""

import argparse
import json
import statistics
import time

import torch

import mixlab


def models(a, T):
    """RWKV-7 and the attention model whose MLP is sized to the same number of parameters."""
    shape = {"vocab_size": 256, "dim": a.dim, "depth": a.depth, "context": T}
    feature = {"kind": "gelu", "ratio": 4.0}
    recurrent = mixlab.build_model(
        {**shape, "temporal": "rwkv7", "feature": feature, "position": "none", "norm": "layernorm"}
    )
    count = sum(p.numel() for p in recurrent.parameters())
    rest = count - 2 * 256 * a.dim - (2 * a.depth + 1) * a.dim - a.depth * 4 * a.dim**2
    ratio = rest / (3 * a.depth * a.dim**2)  # three matrices of D x ratio D a layer
    feature = {"kind": "swiglu", "ratio": ratio, "multiple": 1}
    temporal = {"kind": "attention", "heads": a.dim // 64}
    attention = mixlab.build_model({**shape, "temporal": temporal, "feature": feature, "position": "rope"})
    return {"rwkv7": recurrent, "attention": attention}


def stepper(model):
    """One whole training step: forward, backward, clip, update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(inputs, targets):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def training(a, T, B):
    """Tokens a second of both at one length, and their ratio."""
    steps = {name: stepper(model) for name, model in models(a, T).items()}
    times = {name: [] for name in steps}
    for turn in range(a.steps + 1):
        inputs, targets = torch.randint(256, (2, B, T))
        for name, step in steps.items():
            start = time.perf_counter()
            step(inputs, targets)
            if turn:
                times[name].append(time.perf_counter() - start)
    rate = {name: B * T / statistics.median(t) for name, t in times.items()}
    speeds = {name: round(r) for name, r in rate.items()}
    return {"tokens_per_second": speeds, "ratio": round(rate["rwkv7"] / rate["attention"], 3)}


@torch.no_grad()
def decoding(a, repeats=200):
    """Milliseconds a token after each of `positions` tokens, taken in turns, and the state's bytes."""
    model = models(a, 256)["rwkv7"].eval()
    states = {}
    state, seen = model.init_state(1, max(a.positions) + repeats + 1), 0
    for position in sorted(a.positions):
        while seen < position:
            n = min(4096, position - seen)
            _, state = model(torch.randint(256, (1, n)), state)
            seen += n
        states[position] = state
    times = {position: [] for position in states}
    for _ in range(repeats):
        for position in states:
            token = torch.randint(256, (1, 1))
            start = time.perf_counter()
            _, states[position] = model(token, states[position])
            times[position].append(time.perf_counter() - start)
    ms = {position: 1e3 * statistics.median(t) for position, t in times.items()}
    low, high = ms[min(ms)], ms[max(ms)]
    size = {position: model.state_bytes(position) for position in states}
    table = {position: round(t, 3) for position, t in ms.items()}
    return {"ms_per_token": table, "late_over_early": round(high / low, 3), "state_bytes": size}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("steps", 5), ("dim", 384), ("depth", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lengths", nargs="+", default=["256:16", "4096:1"])
    parser.add_argument("--positions", nargs="+", type=int, default=[100, 100_000])
    parser.add_argument("--skip-decode", action="store_true")
    a = parser.parse_args()
    torch.manual_seed(0)
    result = {n: sum(p.numel() for p in m.parameters()) for n, m in models(a, 256).items()}
    result = {"parameters": result, "threads": torch.get_num_threads()}
    for pair in a.lengths:
        T, B = map(int, pair.split(":"))
        result[f"T={T}, B={B}"] = training(a, T, B)
    if not a.skip_decode:
        result["decode"] = decoding(a)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
