"""RWKV's mixers as the papers write them: float64, one position at a time, no code shared with the parts."""

import torch


def mixed(row, t, mu):
    """mu weights the present token, 1 - mu the one before; zeros before the first."""
    return mu * row[t] + (1 - mu) * (row[t - 1] if t else 0 * row[0])


def rwkv4(p, x, config, position):
    """Peng et al. 2023: equations 11 to 13, the sums of equation 16 term by term, equation 17."""
    rate, rows = torch.exp(p["w"]), []
    for row in x:
        k = [p["k.weight"] @ mixed(row, t, p["mu_k"]) for t in range(len(row))]
        v = [p["v.weight"] @ mixed(row, t, p["mu_v"]) for t in range(len(row))]
        outputs = []
        for t in range(len(row)):
            weights = [torch.exp(-(t - 1 - i) * rate + k[i]) for i in range(t)] + [torch.exp(p["u"] + k[t])]
            wkv = sum(e * v[i] for i, e in enumerate(weights)) / sum(weights)
            r = p["r.weight"] @ mixed(row, t, p["mu_r"])
            outputs.append(p["out.weight"] @ (wkv / (1 + torch.exp(-r))))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def channel_mix(p, x, config, position):
    """Equations 14, 15 and 18; in RWKV-7 no gate, and mu the weight of the token before."""
    rows = []
    for row in x:
        outputs = []
        for t in range(len(row)):
            mu = p["mu_k"] if config.version == 4 else 1 - p["mu_k"]
            k = p["k.weight"] @ mixed(row, t, mu)
            y = p["v.weight"] @ ((k > 0) * k * k)
            if config.version == 4:
                y = y / (1 + torch.exp(-p["r.weight"] @ mixed(row, t, p["mu_r"])))
            outputs.append(y)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


ORACLES = {("temporal", "rwkv4"): rwkv4, ("feature", "channel_mix"): channel_mix}

VARIANTS = [
    ("temporal", "rwkv4", {"ratio": 1.5}, "none"),
    ("feature", "channel_mix", {"version": 7}, "none"),
    ("feature", "channel_mix", {"version": 4, "ratio": 2.5, "multiple": 4}, "none"),
]
