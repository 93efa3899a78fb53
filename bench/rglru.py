"""Hawk against attention of the same parameter count: training tokens/s by length, decoding by position.

About 13M parameters at D = 384: 6 layers, bytes, bf16 autocast, fused AdamW, gradient norm clipped. Hawk has
recurrent width 512 and a gated MLP of ratio 3; attention (6 heads, RoPE) has the ratio that makes the counts
equal. The two take turns, step by step; medians over the turns. Decoding: one sequence, a token at a time,
float32; attention is shown at the positions that fit its cache into 1 GiB, full of noise.

    python bench/rglru.py [--steps 5] [--lengths 256:16 4096:1] [--positions 100 100000] [--skip-decode]
"""

import json

import torch

import mixlab
from common import count, decode_ms, late_over_early, parser, race, rates, read


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


def training(a, T, B):
    """Tokens a second of both at one length, by the clock and by the processors' time, and the ratios."""
    seconds = race(models(a, T), a.steps, T, B)
    ours, other = seconds["rglru"], seconds["attention"]
    return {
        "tokens_per_second": rates(seconds, B * T),
        "ratio": round(other.wall / ours.wall, 3),
        "ratio_by_processor_time": round(other.work / ours.work, 3),
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
    return read(model, state, position)


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
        ms = decode_ms(model, states, repeats)
        result[name] = {
            "ms_per_token": ms,
            "late_over_early": late_over_early(ms),
            "state_bytes": {p: model.state_bytes(p) for p in fit},
        }
    return result


def main():
    options = parser(__doc__, steps=5, dim=384, depth=6, threads=2)
    options.add_argument("--lengths", nargs="+", default=["256:16", "1024:4", "4096:1"])
    options.add_argument("--positions", nargs="+", type=int, default=[100, 100_000])
    options.add_argument("--skip-decode", action="store_true")
    a = options.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    result = {n: count(m) for n, m in models(a, 256).items()}
    result = {"parameters": result, "threads": a.threads}
    for pair in a.lengths:
        T, B = map(int, pair.split(":"))
        result[f"T={T}, B={B}"] = training(a, T, B)
    if not a.skip_decode:
        result["decode"] = decoding(a)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
