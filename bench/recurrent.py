"""gru and lstm against torch.nn's own modules: training tokens/s of one model with the part, and with the
bare module and a Linear in the part's place. With --decode instead the time of one token early and late.

6 layers, width 384, bytes; T = 256, B = 16, fused AdamW, gradient norm clipped; in float32 and under bf16
autocast, or in one of them. They take turns, step by step; medians over the turns. Above 1 the part is the
faster one, by the clock and by the processors' time. With --heads the part of so many heads runs beside them.

    python bench/recurrent.py [gru|lstm|rnn] [--steps 9] [--dim 384 --depth 6 --T 256 --B 16 --threads 2]
        [--heads 4] [--dtypes float32]
    python bench/recurrent.py gru lstm rnn --decode [--positions 100 100000]
"""

import copy
import json

import torch
from torch import nn

import mixlab
from common import count, decode_ms, late_over_early, parser, race, rates, read


class Bare(nn.Module):
    """torch.nn's module, sequence first to last, and the projection back to D; no state, no contract."""

    carries = False

    def __init__(self, cell, out):
        super().__init__()
        self.cell, self.out = cell, out

    def forward(self, x, state=None, *, segment=None):
        """The whole sequence from zeros."""
        return self.out(self.cell(x)[0]), None


def models(kind, a):
    """Ours, a copy of it with the bare module and the same weights, and one with heads if asked for."""
    shape = {"vocab_size": 256, "dim": a.dim, "depth": a.depth, "context": a.T}
    shape |= {"feature": "gelu", "position": "none"}
    ours = mixlab.build_model({**shape, "temporal": kind})
    bare = copy.deepcopy(ours)
    for block in bare.blocks:
        block.temporal = Bare(block.temporal.cell, block.temporal.out)
    heads = {"kind": kind, "heads": a.heads}
    more = {} if a.heads == 1 else {f"{a.heads} heads": mixlab.build_model({**shape, "temporal": heads})}
    return {"mixlab": ours, "torch.nn": bare, **more}


def compare(kind, a, *, bf16):
    """Tokens a second of each, and ours over the bare one's."""
    seconds = race(models(kind, a), a.steps, a.T, a.B, bf16=bf16)
    ours, bare = seconds["mixlab"], seconds["torch.nn"]
    return {
        "tokens_per_second": rates(seconds, a.B * a.T),
        "ratio": round(bare.wall / ours.wall, 3),
        "ratio_by_processor_time": round(bare.work / ours.work, 3),
    }


def decode(kind, a, repeats=200):
    """Milliseconds a token after so many tokens, by turns, and the state's bytes; float32."""
    model = models(kind, a)["mixlab"].eval()
    states = {n: read(model, model.init_state(1, n), n) for n in a.positions}
    ms = decode_ms(model, states, repeats)
    sizes = {n: model.state_bytes(n) for n in a.positions}
    return {"ms_per_token": ms, "late_over_early": late_over_early(ms), "state_bytes": sizes}


def main():
    options = parser(__doc__, steps=9, dim=384, depth=6, T=256, B=16, threads=2, heads=1)
    options.add_argument("--dtypes", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    options.add_argument("--decode", action="store_true")
    options.add_argument("--positions", nargs="+", type=int, default=[100, 100_000])
    options.add_argument("kinds", nargs="*", metavar="KIND", help="gru and lstm unless named")
    a = options.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    result = {"threads": a.threads}
    for kind in a.kinds or ("gru", "lstm"):
        if a.decode:
            result[kind] = decode(kind, a)
            continue
        sizes = {name: count(model) for name, model in models(kind, a).items()}
        assert sizes["mixlab"] == sizes["torch.nn"]
        result[kind] = {"parameters": sizes}
        result[kind] |= {name: compare(kind, a, bf16=name == "bf16") for name in a.dtypes}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
