"""Structured feed-forward layers against the dense one: forward, and forward with backward, under bf16
autocast where `mixlab doctor` finds it worth it, else in float32.

The layers take turns; medians over the turns. The paper's own numbers, on a GPU at width 5120 and 30k
tokens: low rank and block-dense 1.4x (63% of the parameters) and 2.6x (32%), block-shuffle 1.1x and 2.0x.

    python bench/structured.py [--dim 1024] [--tokens 2048] [--turns 9] [--threads 2] [--dtype bfloat16]
"""

import json
from functools import partial

import torch

from common import medians, parsed, parser, take_turns
from mixlab.parts.contract import get

LAYERS = {
    "dense": ("gelu", {}),
    "low_rank 63%": ("low_rank", {"share": 5 / 8}),
    "block_dense 63%": ("block_dense", {"share": 5 / 8}),
    "block_shuffle 63%": ("block_shuffle", {"blocks": 2}),
    "low_rank 32%": ("low_rank", {}),
    "block_dense 32%": ("block_dense", {}),
    "block_shuffle 32%": ("block_shuffle", {}),
}


def build(name, knobs, dim):
    part = get("feature", name)
    return part.build(part.Config(**knobs), dim=dim, depth=2, layer=1)


def forward(layer, x, bf16):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        layer(x)


def both(layer, x, bf16):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        layer(x)[0].float().sum().backward()


def main():
    a = parsed(parser(__doc__, dim=1024, tokens=2048, turns=9, threads=2))
    torch.set_num_threads(a.threads)
    layers = {label: build(*layer, a.dim) for label, layer in LAYERS.items()}
    x = torch.randn(1, a.tokens, a.dim, requires_grad=True)
    ways = {"forward": forward, "training": both}
    runs = {
        (label, way): partial(run, layers[label], x, a.bf16) for label in layers for way, run in ways.items()
    }
    seconds = {key: s.wall for key, s in medians(take_turns(runs, a.turns, warmup=0)).items()}
    dense = layers["dense"].parameter_count()
    for label, layer in layers.items():
        row = {
            "layer": label,
            "parameters": round(layer.parameter_count() / dense, 3),
            "forward_ms": round(1000 * seconds[label, "forward"], 2),
            "forward_speedup": round(seconds["dense", "forward"] / seconds[label, "forward"], 2),
            "training_speedup": round(seconds["dense", "training"] / seconds[label, "training"], 2),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
