"""Hawk against attention of the same parameter count: training tokens/s by length, decoding by position.

About 13M parameters at D = 384: 6 layers, bytes, fused AdamW, gradient norm clipped; bf16 autocast where
`mixlab doctor` finds it worth it, else float32, or as told. Hawk has recurrent width 512 and a gated MLP of
ratio 3; attention (6 heads, RoPE) has the ratio that makes the counts equal. The two take turns, step by
step; medians over the turns, in a process that keeps freed memory as `mixlab train` does. Decoding: one
sequence, a token at a time, float32; attention is shown at the positions that fit its cache into 1 GiB, full
of noise.

    python bench/rglru.py [--steps 5] [--lengths 256:16 4096:1] [--positions 100 100000] [--skip-decode]
        [--dtype bfloat16]
"""

import torch

import mixlab
from common import decode_ms, late_over_early, over_attention, read


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


if __name__ == "__main__":
    over_attention(__doc__, models, decoding)
