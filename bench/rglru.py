"""Hawk against attention of the same parameter count: training tokens/s by length, decoding by position.

About 13M parameters at D = 384: 6 layers, bytes, bf16 autocast, fused AdamW, gradient norm clipped. Hawk has
recurrent width 512 and a gated MLP of ratio 3; attention (6 heads, RoPE) has the ratio that makes the counts
equal. The two take turns, step by step; medians over the turns. Decoding: one sequence, a token at a time,
float32; attention is shown at the positions that fit its cache into 1 GiB, full of noise.

    python bench/rglru.py [--steps 5] [--lengths 256:16 4096:1] [--positions 100 100000] [--skip-decode]
"""

import argparse
import json
import statistics
import time

import torch

import mixlab


def models(a, T):
    """Both, with equal numbers of parameters to within a MLP column."""
    shape = {"vocab_size": 256, "dim": a.dim, "depth": a.depth, "context": T}
    feature = {"kind": "geglu", "ratio": 3.0}
    hawk = mixlab.build_model({**shape, "temporal": "rglru", "feature": feature, "position": "none"})
    temporal, mixers = hawk.blocks[0].temporal.parameter_count(), hawk.blocks[0].feature.parameter_count()
    ratio = (temporal + mixers - 4 * a.dim**2) / (3 * a.dim**2)
    feature = {"kind": "geglu", "ratio": ratio, "multiple": 1}
    heads = {"kind": "attention", "heads": a.dim // 64}
    attention = mixlab.build_model({**shape, "temporal": heads, "feature": feature, "position": "rope"})
    return {"rglru": hawk, "attention": attention}


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
    """Tokens a second of both at one length, by the clock and by the processors' time, and the ratios."""
    steps = {name: stepper(model) for name, model in models(a, T).items()}
    wall, work = {name: [] for name in steps}, {name: [] for name in steps}
    for turn in range(a.steps + 1):
        inputs, targets = torch.randint(256, (2, B, T))
        for name, step in steps.items():
            start, start_work = time.perf_counter(), time.process_time()
            step(inputs, targets)
            if turn:
                wall[name].append(time.perf_counter() - start)
                work[name].append(time.process_time() - start_work)
    rate, effort = (
        {name: B * T / statistics.median(t) for name, t in times.items()} for times in (wall, work)
    )
    return {
        "tokens_per_second": {name: round(r) for name, r in rate.items()},
        "ratio": round(rate["rglru"] / rate["attention"], 3),
        "ratio_by_processor_time": round(effort["rglru"] / effort["attention"], 3),
    }


def arrived(model, position, room):
    """A state after `position` tokens."""
    state = model.init_state(1, room)
    if hasattr(state.blocks[0].temporal, "keys"):  # only its size matters to the clock
        blocks = []
        for block in state.blocks:
            block.temporal.keys.normal_()
            block.temporal.values.normal_()
            blocks.append(block._replace(temporal=block.temporal._replace(length=torch.tensor(position))))
        return state._replace(length=torch.tensor(position), blocks=tuple(blocks))
    for start in range(0, position, 4096):
        _, state = model(torch.randint(256, (1, min(4096, position - start))), state)
    return state


@torch.no_grad()
def decoding(a, repeats=200):
    """Milliseconds a token after each of `positions` tokens, taken in turns, and the state's bytes."""
    result = {}
    for name, model in models(a, 256).items():
        model.eval()
        fit = [p for p in sorted(a.positions) if model.state_bytes(p) < 1 << 30] or a.positions[:1]
        if name == "attention" and len(fit) < 2:
            fit.append(20_000)
        states = {p: arrived(model, p, p + repeats + 1) for p in fit}
        times = {p: [] for p in fit}
        for _ in range(repeats):
            for p in fit:
                token = torch.randint(256, (1, 1))
                start = time.perf_counter()
                _, states[p] = model(token, states[p])
                times[p].append(time.perf_counter() - start)
        ms = {p: 1e3 * statistics.median(t) for p, t in times.items()}
        result[name] = {
            "ms_per_token": {p: round(t, 3) for p, t in ms.items()},
            "late_over_early": round(ms[max(fit)] / ms[min(fit)], 3),
            "state_bytes": {p: model.state_bytes(p) for p in fit},
        }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("steps", 5), ("dim", 384), ("depth", 6), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lengths", nargs="+", default=["256:16", "1024:4", "4096:1"])
    parser.add_argument("--positions", nargs="+", type=int, default=[100, 100_000])
    parser.add_argument("--skip-decode", action="store_true")
    a = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    result = {n: sum(p.numel() for p in m.parameters()) for n, m in models(a, 256).items()}
    result = {"parameters": result, "threads": a.threads}
    for pair in a.lengths:
        T, B = map(int, pair.split(":"))
        result[f"T={T}, B={B}"] = training(a, T, B)
    if not a.skip_decode:
        result["decode"] = decoding(a)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
