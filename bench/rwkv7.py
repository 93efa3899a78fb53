"""RWKV-7 against attention of the same parameter count: training tokens/s by length, decoding by position.

About 11M parameters at D = 384: 6 layers, 6 heads, bytes, fused AdamW, gradient norm clipped; bf16 autocast
where `mixlab doctor` finds it worth it, else float32, or as told. Attention has the MLP that makes the counts
equal to within a per cent. The two take turns, step by step; medians over the turns, in a process that keeps
freed memory as `mixlab train` does. Decoding: one sequence, a token at a time, float32, from states of both
positions.

    python bench/rwkv7.py [--steps 5] [--lengths 256:16 4096:1] [--positions 100 100000] [--skip-decode]
        [--dtype bfloat16]
"""

import mixlab
from common import count, decode_ms, late_over_early, over_attention, read


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


if __name__ == "__main__":
    over_attention(__doc__, models, decoding)
