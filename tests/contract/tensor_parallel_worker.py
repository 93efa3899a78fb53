"""One of two processes: every case split over both, each parameter's gradient against the whole part's.

Arguments: rank, port. Prints one JSON line a case on rank 0.
"""

import json
import os
import sys
from collections import Counter

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixlab.model.block import Block
from mixlab.parallel.tensor import apply_tensor_plan, full_tensor
from mixlab.parts.checks import Case
from mixlab.parts.contract import Choice, Part, Place, get
from tests.contract.cases import BUILT_IN, CASES, label

GROUPED = [("rnn", {"heads": 2}), ("gru", {"heads": 2}), ("lstm", {"heads": 2}), ("gmlp", {"groups": 2})]
"""With their defaults these run whole."""

STACKED = [Case(kind, name) for kind, name in BUILT_IN]
STACKED += [Case("temporal", name, get("temporal", name).Config(**knobs)) for name, knobs in GROUPED]
STACKS = [
    (case, Case("feature", "gelu")) if case.kind == "temporal" else (Case("temporal", "attention"), case)
    for case in STACKED
]


def stacked(pair):
    """A readable test id."""
    return "+".join(map(label, pair))


class Collectives(TorchDispatchMode):
    """Counts every operation of torch.distributed, by name."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Stack(nn.Module):
    """Two blocks of one temporal and one feature part, and what the first hands up to the second."""

    def __init__(self, temporal, feature):
        super().__init__()
        choices = [
            Choice(case.name, get(case.kind, case.name).Config() if case.config is None else case.config)
            for case in (temporal, feature, Case("norm", "rmsnorm"))
        ]
        places = [Place(dim=16, depth=2, layer=layer, context=24) for layer in range(2)]
        self.blocks = nn.ModuleList(Block(*choices, place, dropout=0.0, mixer_bias=True) for place in places)

    def forward(self, x):
        carry = {}
        for block in self.blocks:
            x, _ = block(x, carry=carry)
        return x, None

    @classmethod
    def build(cls, temporal, feature):
        """In float64, with every parameter off its init, the same in both processes."""
        torch.manual_seed(0)
        stack = cls(temporal, feature).double().eval()
        with torch.no_grad():
            for parameter in stack.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return stack


def gradients(part, x):
    """Output, input gradient and parameter gradients of a fixed weighted sum; the collectives of each way."""
    x = x.clone().requires_grad_()
    with Collectives() as forward:
        y, _ = part(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    with Collectives() as backward:
        (y * weight).sum().backward() if y.requires_grad else None
    grads = {n: full_tensor(p.grad) for n, p in part.named_parameters() if p.grad is not None}
    found = {"output": y.detach(), "x": torch.zeros_like(x) if x.grad is None else x.grad, **grads}
    return found, {"forward": forward.seen, "backward": backward.seen}


def compare(build, x, mesh):
    """The largest difference over outputs and gradients, how many parameters were split, and what it took."""
    whole, split = build(), apply_tensor_plan(build(), mesh)
    (wanted, _), (found, collectives) = gradients(whole, x), gradients(split, x)
    if wanted.keys() != found.keys():
        return {"gap": float("inf"), "split": 0, "planned": 0, "keys": sorted(found), **collectives}
    parts = [m for m in whole.modules() if isinstance(m, Part)]
    return {
        "gap": max((wanted[k] - found[k]).abs().max().item() for k in wanted),
        "split": sum(isinstance(p, DTensor) for p in split.parameters()),
        "planned": sum(len(p.tensor_plan().keys() - dict(p.named_buffers()).keys()) for p in parts),
        **collectives,
    }


def recomputed(mesh):
    """The gradient of a shared parameter read outside of its part's forward, 1 from rank 0, 2 from rank 1."""
    part = apply_tensor_plan(Case("temporal", "rwkv4").build(), mesh)
    (part.mu_r.sum() * (dist.get_rank() + 1)).backward()
    return full_tensor(part._parameters["mu_r"].grad).tolist()


def main(rank, port):
    """Join the group and go through the cases in step with the other process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    x = Case("feature", "gelu").sample(2, 7)
    rows = {label(case): compare(case.build, x, mesh) for case in CASES}
    rows |= {stacked(pair): compare(lambda pair=pair: Stack.build(*pair), x, mesh) for pair in STACKS}
    rows["recomputed"] = recomputed(mesh)
    if rank == 0:
        print(json.dumps(rows), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    # A gloo thread may yet let go of a Python object that a collective kept (the mode that counts them), and
    # asking an interpreter that is closing down for its lock aborts the process: leave without closing down.
    os._exit(0)
