"""Griffin's recurrent block, one position and one block at a time (De et al. 2024, section 2.3 and 2.4)."""

import math

import torch


def linear(p, name, x):
    """A projection with its bias, if it has one."""
    return p[f"{name}.weight"] @ x + p.get(f"{name}.bias", 0.0)


def rglru(p, x, config, position):
    """Equations 1-4 between a convolution and a product; the first input enters with factor 1."""
    R, N = p["taps"].shape
    H, W, _ = p["input_gate"].shape
    rows = []
    for row in x:
        h, values, outputs = torch.zeros(R, dtype=x.dtype), [], []
        for t in range(len(row)):
            values.append(linear(p, "value", row[t]))
            u = p["shift"]
            for back in range(min(N, t + 1)):
                u = u + p["taps"][:, N - 1 - back] * values[t - back]
            r, i = p["recurrence_bias"], p["input_bias"]
            r = r + torch.cat([u[b * W : (b + 1) * W] @ p["recurrence_gate"][b] for b in range(H)])
            i = i + torch.cat([u[b * W : (b + 1) * W] @ p["input_gate"][b] for b in range(H)])
            r, i = 1 / (1 + torch.exp(-r)), 1 / (1 + torch.exp(-i))
            a = (1 / (1 + torch.exp(p["decay"]))) ** (8 * r)
            h = a * h + (i * u if t == 0 else torch.sqrt(1 - a**2) * (i * u))
            g = linear(p, "gate", row[t])
            g = g / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
            outputs.append(linear(p, "out", g * h))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


ORACLES = {("temporal", "rglru"): rglru}

VARIANTS = [
    ("temporal", "rglru", {"blocks": 2, "conv": 1, "bias": False, "ratio": 1.0}, "none"),
    ("temporal", "rglru", {"blocks": 8, "conv": 12, "init": "paper", "ratio": 1.5, "multiple": 1}, "none"),
]
