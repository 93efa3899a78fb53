"""Feature mixers, norms and positions as their papers write them: float64, one position at a time."""

import math

import torch


def phi(h):
    """The Gaussian distribution function."""
    return 0.5 * (1 + torch.erf(h / math.sqrt(2)))


ACTIVATION = {
    "relu": lambda h: (h > 0) * h,
    "gelu": lambda h: h * phi(h),
    "glu": lambda h: 1 / (1 + torch.exp(-h)),
    "geglu": lambda h: h * phi(h),
    "swiglu": lambda h: h / (1 + torch.exp(-h)),
}


def gelu_tanh(h):
    """Hendrycks & Gimpel's approximation."""
    return h * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


def mlp(name):
    """FFN(x) = W2 act(W1 x + b1) + b2."""

    def run(p, x, config, position):
        act = gelu_tanh if getattr(config, "tanh", False) else ACTIVATION[name]
        b1, b2 = (p["up.bias"], p["down.bias"]) if config.bias else (0, 0)

        def one(v):
            return p["down.weight"] @ act(p["up.weight"] @ v + b1) + b2

        return torch.stack([torch.stack([one(v) for v in row]) for row in x])

    return run


def gated(name):
    """FFN(x) = W2 (act(W x + b) * (V x + c)) + b2."""

    def run(p, x, config, position):
        act = gelu_tanh if getattr(config, "tanh", False) else ACTIVATION[name]

        def linear(layer, v):
            return p[f"{layer}.weight"] @ v + (p[f"{layer}.bias"] if config.bias else 0)

        def one(v):
            return linear("down", act(linear("gate", v)) * linear("up", v))

        return torch.stack([torch.stack([one(v) for v in row]) for row in x])

    return run


ORACLES = {
    ("feature", "relu"): mlp("relu"),
    ("feature", "gelu"): mlp("gelu"),
    ("feature", "glu"): gated("glu"),
    ("feature", "geglu"): gated("geglu"),
    ("feature", "swiglu"): gated("swiglu"),
    ("feature", "none"): lambda p, x, config, position: 0 * x,
}

VARIANTS = [
    ("feature", "swiglu", {"ratio": 2.0, "multiple": 4}, "none"),
    ("feature", "gelu", {"bias": True, "tanh": True}, "none"),
    ("feature", "geglu", {"bias": True, "tanh": True}, "none"),
]


def rmsnorm(p, x, eps):
    """x / rms(x) * gain."""
    return torch.stack([v / math.sqrt(sum(float(u) ** 2 for u in v) / len(v) + eps) for v in x]) * p["gain"]


def layernorm(p, x, eps):
    """(x - mean) / sqrt(var + eps) * gain + shift."""
    rows = []
    for v in x:
        mean = sum(v) / len(v)
        variance = sum((u - mean) ** 2 for u in v) / len(v)
        rows.append((v - mean) / torch.sqrt(variance + eps))
    return torch.stack(rows) * p["gain"] + p["shift"]


def sinusoid(position, D, base=10_000.0):
    """PE(pos, 2i) = sin(pos / base^(2i/D)), PE(pos, 2i + 1) = cos(same)."""
    values = []
    for j in range(D):
        angle = position / base ** ((j - j % 2) / D)
        values.append(math.sin(angle) if j % 2 == 0 else math.cos(angle))
    return torch.tensor(values, dtype=torch.float64)
