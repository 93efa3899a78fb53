"""Temporal mixers as their papers write them: float64, one position at a time, no code shared with the parts.

Each takes the parameters by name and the input x (B, T, D), and returns (B, T, D).
"""

import math

import torch


def rotate_pairs(vector, position, base, kept=1.0):
    """Turn the pair (i, i + K/2) of one head's vector by position x base^(-2i/K); the first of them."""
    K = len(vector)
    turned = list(vector)
    for i in range(int(kept * K // 2)):
        angle = position * base ** (-2 * i / K)
        a, b = vector[i], vector[i + K // 2]
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + K // 2] = a * math.sin(angle) + b * math.cos(angle)
    return torch.stack(turned)


def slope(h, H):
    """ALiBi's for a number of heads that is a power of two: 2^(-8/H), 2^(-16/H), ..."""
    return 2 ** (-8 * (h + 1) / H)


def score(p, q, k, distance, h, H, config, position):
    """What the exponential is taken of: one query, one key."""
    temperature = config.temperature
    if config.learned_temperature:
        temperature = torch.exp(p["log_temperature"][h])
    value = q @ k / math.sqrt(len(q)) / temperature
    if config.softcap:
        value = config.softcap * torch.tanh(value / config.softcap)
    return value - slope(h, H) * distance if position == "alibi" else value


def attention(p, x, config, position):
    """Equation 1 of Vaswani et al., head by head, the sum cut off at the present and before the window."""
    D = x.shape[2]
    H = config.heads or 4
    G = config.kv_heads or H
    K = D // H
    kept = {"rope": 1.0, "p-rope": 0.75}.get(position, 0.0)

    def project(name, v, h, t):
        part = slice(h * K, (h + 1) * K)
        v = p[f"{name}.weight"][part] @ v
        if config.bias in ("qkv", "all"):
            v = v + p[f"{name}.bias"][part]
        if config.qk_norm and name != "v":
            v = v / torch.sqrt((v * v).mean() + 1e-6) * p[f"{name}_norm.gain"]
        return v if name == "v" else rotate_pairs(v, t, 10_000.0, kept)

    rows = []
    for row in x:
        outputs = []
        for t in range(len(row)):
            past = range(max(0, t + 1 - config.window) if config.window else 0, t + 1)
            heads = []
            for h in range(H):
                g = h * G // H  # consecutive query heads share a key-value head
                q = project("q", row[t], h, t)
                keys, values = ([project(n, row[s], g, s) for s in past] for n in "kv")
                pairs = zip(past, keys, strict=True)
                scores = torch.stack([score(p, q, k, t - s, h, H, config, position) for s, k in pairs]).exp()
                heads.append(sum(a * v for a, v in zip(scores / scores.sum(), values, strict=True)))
            y = p["out.weight"] @ torch.cat(heads)
            outputs.append(y + p["out.bias"] if config.bias in ("out", "all") else y)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def window(p, x, config, position):
    """Equation 1 of Bengio et al. without the softmax: U tanh(d + H [x_t; ...; x_{t-n+1}]), zeros before."""
    rows = []
    for row in x:
        outputs = []
        for t in range(len(row)):
            seen = [row[s] if s >= 0 else torch.zeros_like(row[0]) for s in range(t - config.size + 1, t + 1)]
            # The part stores H with the window axis innermost.
            concatenation = torch.stack(seen, 1).flatten()
            hidden = torch.tanh(p["input.bias"] + p["input.weight"] @ concatenation)
            outputs.append(p["out.weight"] @ hidden)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def gates(p, x, h, count):
    """The input's and the state's share of each gate of one head, biases included."""
    W, R, b, b_ = p
    return (W @ x + b).chunk(count), (R @ h + b_).chunk(count)


def recur(p, x, step, config):
    """Run `step(head's parameters, x_t, h, c) -> h, c` along every row, head by head, and project the h."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    heads = list(zip(*(p[f"cell.{name}"].chunk(config.heads) for name in names), strict=True))
    heads = [(W, R.flatten(0, -2), b, b_) for W, R, b, b_ in heads]
    rows = []
    for row in x:
        states = [(torch.zeros(R.shape[1], dtype=x.dtype),) * 2 for _, R, *_ in heads]
        outputs = []
        for t in range(len(row)):
            states = [step(head, row[t], h, c) for head, (h, c) in zip(heads, states, strict=True)]
            outputs.append(p["out.weight"] @ torch.cat([h for h, _ in states]))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def rnn(p, x, config, position):
    """Elman: h_t = tanh(W x_t + R h_{t-1} + b)."""

    def step(head, u, h, c):
        (a,), (b,) = gates(head, u, h, 1)
        return torch.tanh(a + b), c

    return recur(p, x, step, config)


def gru(p, x, config, position):
    """Cho et al., the reset gate after the recurrent product."""

    def step(head, u, h, c):
        (r, z, n), (r_, z_, n_) = gates(head, u, h, 3)
        r, z = 1 / (1 + torch.exp(-r - r_)), 1 / (1 + torch.exp(-z - z_))
        return (1 - z) * torch.tanh(n + r * n_) + z * h, c

    return recur(p, x, step, config)


def lstm(p, x, config, position):
    """Hochreiter & Schmidhuber with a forget gate."""

    def step(head, u, h, c):
        (i, f, g, o), (i_, f_, g_, o_) = gates(head, u, h, 4)
        i, f, o = (1 / (1 + torch.exp(-a - b)) for a, b in ((i, i_), (f, f_), (o, o_)))
        c = f * c + i * torch.tanh(g + g_)
        return o * torch.tanh(c), c

    return recur(p, x, step, config)


ORACLES = {("temporal", f.__name__): f for f in (attention, window, rnn, gru, lstm)}

VARIANTS = [
    ("temporal", "attention", {"heads": 4}, "none"),
    ("temporal", "attention", {"heads": 4, "kv_heads": 2}, "rope"),
    ("temporal", "attention", {"heads": 2, "kv_heads": 1}, "rope"),
    ("temporal", "attention", {"heads": 4, "kv_heads": 2, "window": 3, "bias": "all"}, "rope"),
    ("temporal", "attention", {"heads": 2, "kv_heads": 1, "window": 2, "qk_norm": True}, "alibi"),
    ("temporal", "attention", {"heads": 4, "bias": "out", "temperature": 0.7}, "alibi"),
    ("temporal", "attention", {"heads": 2, "window": 4, "softcap": 2.0, "bias": "qkv"}, "p-rope"),
    (
        "temporal",
        "attention",
        {"heads": 4, "kv_heads": 2, "softcap": 3.0, "learned_temperature": True},
        "alibi",
    ),
    ("temporal", "window", {"size": 2}, "none"),
    ("temporal", "window", {"size": 30, "ratio": 0.5}, "none"),
    ("temporal", "rnn", {"heads": 2}, "none"),
    ("temporal", "gru", {"heads": 2}, "none"),
    ("temporal", "lstm", {"heads": 2}, "none"),
    ("temporal", "lstm", {"ratio": 1.5}, "none"),
    ("temporal", "lstm", {"ratio": 1.5, "heads": 4}, "none"),
]
