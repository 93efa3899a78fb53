"""Structured feed-forward layers as in their paper: float64, dense matrices put together entry by entry."""

import math

import torch


def gelu(h):
    """h Phi(h)."""
    return h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))


def diagonal(blocks):
    """The dense matrix of blocks (B, m, n)."""
    B, m, n = blocks.shape
    rows = []
    for i in range(B * m):
        b = i // m
        zeros = [torch.zeros(n, dtype=blocks.dtype)] * B
        zeros[b] = blocks[b, i % m]
        rows.append(torch.cat(zeros))
    return torch.stack(rows)


def shuffle(v, B):
    """f: entry i = r B + b becomes entry b (size / B) + r."""
    size = len(v) // B
    return torch.stack([v[r * B + b] for b in range(B) for r in range(size)])


def unshuffle(v, B):
    """f^-1."""
    size = len(v) // B
    return torch.stack([v[b * size + r] for r in range(size) for b in range(B)])


def low_rank(p, name, v, config):
    """U (V x)."""
    return p[f"{name}.u.weight"] @ (p[f"{name}.v.weight"] @ v)


def block_dense(p, name, v, config):
    """U (V^b x)."""
    return p[f"{name}.u.weight"] @ (diagonal(p[f"{name}.v.weight"]) @ v)


def block_shuffle(p, name, v, config):
    """f^-1 (U^b f (V^b x))."""
    h = shuffle(diagonal(p[f"{name}.v.weight"]) @ v, config.blocks)
    return unshuffle(diagonal(p[f"{name}.u.weight"]) @ h, config.blocks)


def network(linear):
    """FFN(x) = W2 gelu(W1 x), each position alone."""

    def run(p, x, config, position):
        def one(v):
            return linear(p, "down", gelu(linear(p, "up", v, config)), config)

        return torch.stack([torch.stack([one(v) for v in row]) for row in x])

    return run


ORACLES = {("feature", f.__name__): network(f) for f in (low_rank, block_dense, block_shuffle)}

VARIANTS = [
    ("feature", "low_rank", {"share": 0.625}, "none"),
    ("feature", "block_dense", {"blocks": 4, "rank": 12}, "none"),
    ("feature", "block_shuffle", {"blocks": 2, "ratio": 3.0}, "none"),
]
