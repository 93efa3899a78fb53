"""RWKV-7's time mixing by the official reference's equations: float64, one step and one head at a time."""

import math

import torch


def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1 / (1 + torch.exp(-x))


def standardised(y):
    """One head's vector with mean 0 and variance 1, GroupNorm's eps."""
    mean = sum(y) / len(y)
    return (y - mean) / torch.sqrt(sum((e - mean) ** 2 for e in y) / len(y) + 64e-5)


def rwkv7(p, x, config, position):
    """S <- S diag(w) - (S kk)(kk a)^T + v k^T; y = S r. Alone, its own value is the bottom layer's."""
    D = x.shape[2]
    H = config.heads or 2

    def low_rank(name, u, act):
        return p[f"{name}.up.weight"] @ act(p[f"{name}.down.weight"] @ u)

    rows = []
    for row in x:
        S, last, outputs = [torch.zeros(D // H, D // H, dtype=x.dtype)] * H, torch.zeros_like(row[0]), []
        for u in row:
            u_r, u_w, u_k, u_v, u_a, u_g = [u + m * (last - u) for m in p["mix_last"]]
            r, k, v = p["r.weight"] @ u_r, p["k.weight"] @ u_k, p["v.weight"] @ u_v
            w = torch.exp(-sigmoid(low_rank("decay", u_w, torch.tanh) + p["decay_bias"]) / math.sqrt(math.e))
            a = sigmoid(low_rank("rate", u_a, lambda h: h) + p["rate_bias"])
            g = low_rank("gate", u_g, sigmoid)
            v = v + (v - v) * sigmoid(low_rank("residual", u_v, lambda h: h) + p["residual_bias"])
            kk, k = k * p["k_k"], k + k * (a - 1) * p["k_a"]
            y = []
            for h in range(H):
                r_, w_, k_, v_, a_, kk_, bonus = (
                    t[h * D // H : (h + 1) * D // H] for t in (r, w, k, v, a, kk, p["r_k"])
                )
                kk_ = kk_ / torch.sqrt(sum(kk_ * kk_))
                S[h] = S[h] * w_ - torch.outer(S[h] @ kk_, kk_ * a_) + torch.outer(v_, k_)
                cut = slice(h * D // H, (h + 1) * D // H)
                normed = standardised(S[h] @ r_) * p["norm_gain"][cut] + p["norm_shift"][cut]
                y.append(normed + sum(r_ * k_ * bonus) * v_)
            outputs.append(p["out.weight"] @ (torch.cat(y) * g))
            last = u
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


ORACLES = {("temporal", "rwkv7"): rwkv7}

VARIANTS = [
    ("temporal", "rwkv7", {"heads": 4, "chunk": 4, "decay_rank": 3, "value_rank": 2}, "none"),
    ("temporal", "rwkv7", {"heads": 2, "chunk": 3, "gate_rank": 5}, "none"),
]
