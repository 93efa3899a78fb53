"""gMLP as its paper writes it: float64, one token at a time, the sum over tokens cut off at the present."""

import math

import torch


def gelu(h):
    """h Phi(h)."""
    return h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))


def normalise(p, z, groups):
    """LN of each group of channels, then one gain and one shift a channel."""
    pieces = []
    for piece in z.chunk(groups):
        centred = piece - piece.sum() / len(piece)
        pieces.append(centred / torch.sqrt((centred * centred).sum() / len(piece) + 1e-5))
    return torch.cat(pieces) * p["gain"] + p["shift"]


def weight(p, i, j, toeplitz):
    """W_ij of the triangle: by its distance, or stored row after row."""
    return p["spatial"][i - j] if toeplitz else p["spatial"][sum(range(i + 1)) + j]


def tiny(p, row, t, a):
    """One head of softmax attention over the tokens up to t, lifted to the gate's channels."""
    Q, K, V = p["qkv.weight"][:a], p["qkv.weight"][a : 2 * a], p["qkv.weight"][2 * a :]
    scores = torch.stack([(Q @ row[t]) @ (K @ row[s]) / math.sqrt(a) for s in range(t + 1)]).exp()
    return p["lift.weight"] @ sum(w * (V @ row[s]) for s, w in enumerate(scores / scores.sum()))


def gmlp(p, x, config, position):
    """Y = V (Z1 * (W LN(Z2) + b)), equations 1, 2 and 4; in aMLP attention is added to the gate."""
    rows = []
    for row in x:
        z1 = [gelu(p["value.weight"] @ v + p["value.bias"]) for v in row]
        z2 = [gelu(p["gate.weight"] @ v + p["gate.bias"]) for v in row]
        z2 = [normalise(p, z, config.groups) for z in z2]
        outputs = []
        for t in range(len(row)):
            gate = p["bias"][t] + sum(weight(p, t, s, config.toeplitz) * z2[s] for s in range(t + 1))
            if config.attention:
                gate = gate + tiny(p, row, t, config.attention)
            outputs.append(p["out.weight"] @ (z1[t] * gate) + p["out.bias"])
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


ORACLES = {("temporal", "gmlp"): gmlp}

VARIANTS = [
    ("temporal", "gmlp", {"toeplitz": True, "ratio": 2.0}, "none"),
    ("temporal", "gmlp", {"attention": 4, "ratio": 2.0}, "none"),
    ("temporal", "gmlp", {"attention": 4, "ratio": 2.0, "groups": 4, "toeplitz": True}, "none"),
]
