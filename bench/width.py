"""Width transfer: how activations change with the width, and whether the best learning rate stays.

First the coordinate check: the exponent b of (change of an activation in a few steps) = a width^b, by kind of
optimizer, without and with model.mup_base_dim. With --steps N also N steps of characters of TEXT at each
width and rate: the mean loss of the last tenth, nats a token.

    python bench/width.py [TEXT] [--temporal attention] [--kinds adamw=3e-3 muon=1e-2] [--widths 64 128 256]
        [--steps 0] [--rates 1e-3 2e-3 4e-3 8e-3 16e-3]
"""

from dataclasses import replace

import torch

from common import parser
from mixlab.data import Batches, prepare
from mixlab.data.config import DataConfig
from mixlab.model.config import ModelConfig
from mixlab.model.language_model import build_model
from mixlab.train import randomness
from mixlab.train.config import OptimizerConfig
from mixlab.train.coordinates import coordinate_check, growth
from mixlab.train.optimizers import Optimizers

CHECKED = 4
"""Steps of the coordinate check."""


def arguments():
    made = parser(__doc__, steps=0, rows=16, context=64, threads=1)
    made.add_argument("text", nargs="?", default="corpus:python")
    made.add_argument("--temporal", default="attention")
    made.add_argument("--kinds", nargs="+", default=["sgd=0.5", "adamw=3e-3", "muon=1e-2", "adafactor=1e-2"])
    made.add_argument("--widths", nargs="+", type=int, default=[64, 128, 256])
    made.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3, 16e-3])
    return made.parse_args()


def final_loss(model, optimizer, batches, steps):
    """The mean loss of the last tenth of `steps`, of a rate that falls linearly to zero."""
    with randomness.kept():
        randomness.seed(0)
        built = build_model(model)
        optimizers, last = Optimizers(built, optimizer), []
        for step in range(steps):
            optimizers.set_lr(optimizer.lr * min((step + 1) / (0.1 * steps), 1 - step / steps))
            loss = built.loss(*batches[step])
            loss.backward()
            optimizers.clip()
            optimizers.step(None)
            last.append(loss.item())
    tail = last[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    data = prepare(DataConfig(sources=(a.text,), tokenizer="char"), context=a.context)
    stream = Batches(data.train, context=a.context, batch_size=a.rows, seed=0)
    batches = [stream.next() for _ in range(max(CHECKED, a.steps))]
    temporal = {"kind": "attention", "heads": 4} if a.temporal == "attention" else a.temporal
    model = ModelConfig(
        vocab_size=data.tokenizer.vocab_size, depth=2, context=a.context, temporal=temporal, dim=a.widths[0]
    )
    both = [model, replace(model, mup_base_dim=a.widths[0])]
    for kind, rate in (one.split("=") for one in a.kinds):
        optimizer = OptimizerConfig(kind=kind, lr=float(rate)).validate()
        for name, config in zip(("without", "with"), both, strict=True):
            changes = coordinate_check(config, optimizer, batches[:CHECKED], a.widths)
            exponents = "  ".join(f"{where} {growth(v, a.widths):+.2f}" for where, v in changes.items())
            print(f"{kind:>12} {name:>8}  {exponents}", flush=True)
    for kind, _ in (one.split("=") for one in a.kinds if a.steps):
        for name, config in zip(("without", "with"), both, strict=True):
            print(f"\n{kind} {name}, loss by width and rate:\n{'':>6}", *(f"{rate:>7g}" for rate in a.rates))
            for width in a.widths:
                print(f"{width:>6}", end=" ", flush=True)
                for rate in a.rates:
                    optimizer = OptimizerConfig(kind=kind, lr=rate).validate()
                    loss = final_loss(replace(config, dim=width), optimizer, batches, a.steps)
                    print(f"{loss:7.3f}", end=" ", flush=True)
                print()


if __name__ == "__main__":
    main()
