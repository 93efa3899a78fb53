"""Structured feed-forward layers against the dense one: forward, and forward with backward, bf16 autocast.

The layers take turns; medians over the turns. The paper's own numbers, on a GPU at width 5120 and 30k
tokens: low rank and block-dense 1.4x (63% of the parameters) and 2.6x (32%), block-shuffle 1.1x and 2.0x.

    python bench/structured.py [--dim 1024] [--tokens 2048] [--turns 9] [--threads 2]
"""

import argparse
import json
import statistics
import time

import torch

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


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("dim", 1024), ("tokens", 2048), ("turns", 9), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    layers = {label: build(*layer, a.dim) for label, layer in LAYERS.items()}
    x = torch.randn(1, a.tokens, a.dim, requires_grad=True)
    times = {label: ([], []) for label in layers}
    for _ in range(a.turns):
        for label, layer in layers.items():
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    times[label][0].append(timed(lambda layer=layer: layer(x)))
                times[label][1].append(timed(lambda layer=layer: layer(x)[0].float().sum().backward()))
    medians = {label: [statistics.median(t) for t in both] for label, both in times.items()}
    dense = layers["dense"].parameter_count()
    for label, (forward, both) in medians.items():
        row = {
            "layer": label,
            "parameters": round(layers[label].parameter_count() / dense, 3),
            "forward_ms": round(1000 * forward, 2),
            "forward_speedup": round(medians["dense"][0] / forward, 2),
            "training_speedup": round(medians["dense"][1] / both, 2),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
