"""RWKV-7 against attention of the same parameter count: training tokens/s by length, decoding by position.

About 11M parameters at D = 384: 6 layers, 6 heads, bytes, bf16 autocast, fused AdamW, gradient norm clipped;
attention has the MLP that makes the counts equal to within a per cent. The two take turns, step by step;
medians over the turns, in a process that keeps freed memory as `mixlab train` does. Decoding:
one sequence, a token at a time, float32, from states of both positions.

    python bench/rwkv7.py [--steps 5] [--lengths 256:16 4096:1] [--positions 100 100000] [--skip-decode]
"""

import json

import torch

import mixlab
from common import count, decode_ms, late_over_early, parser, race, rates, read
from mixlab.train.allocator import keep_freed_memory


def models(a, T):
    """RWKV-7 and the attention model whose MLP is sized to the same number of parameters."""
    shape = {"vocab_size": 256, "dim": a.dim, "depth": a.depth, "context": T}
    feature = {"kind": "gelu", "ratio": 4.0}
    recurrent = mixlab.build_model(
        {**shape, "temporal": "rwkv7", "feature": feature, "position": "none", "norm": "layernorm"}
    )
    rest = count(recurrent) - 2 * 256 * a.dim - (2 * a.depth + 1) * a.dim - a.depth * 4 * a.dim**2
    ratio = rest / (3 * a.depth * a.dim**2)  # three matrices of D x ratio D a layer
    feature = {"kind": "swiglu", "ratio": ratio, "multiple": 1}
    temporal = {"kind": "attention", "heads": a.dim // 64}
    attention = mixlab.build_model({**shape, "temporal": temporal, "feature": feature, "position": "rope"})
    return {"rwkv7": recurrent, "attention": attention}


def training(a, T, B):
    """Tokens a second of both at one length, and their ratio."""
    seconds = race(models(a, T), a.steps, T, B)
    ratio = seconds["attention"].wall / seconds["rwkv7"].wall
    return {"tokens_per_second": rates(seconds, B * T), "ratio": round(ratio, 3)}


def decoding(a, repeats=200):
    """Milliseconds a token after each of `positions` tokens, taken in turns, and the state's bytes."""
    model = models(a, 256)["rwkv7"].eval()
    states, state, seen = {}, model.init_state(1, max(a.positions) + repeats + 1), 0
    for position in sorted(a.positions):
        state, seen = read(model, state, position - seen), position
        states[position] = state
    ms = decode_ms(model, states, repeats)
    size = {position: model.state_bytes(position) for position in states}
    return {"ms_per_token": ms, "late_over_early": late_over_early(ms), "state_bytes": size}


def main():
    options = parser(__doc__, steps=5, dim=384, depth=6)
    options.add_argument("--lengths", nargs="+", default=["256:16", "4096:1"])
    options.add_argument("--positions", nargs="+", type=int, default=[100, 100_000])
    options.add_argument("--skip-decode", action="store_true")
    a = options.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    result = {n: count(m) for n, m in models(a, 256).items()}
    result = {"parameters": result, "threads": torch.get_num_threads()}
    for pair in a.lengths:
        T, B = map(int, pair.split(":"))
        result[f"T={T}, B={B}"] = training(a, T, B)
    if not a.skip_decode:
        result["decode"] = decoding(a)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
