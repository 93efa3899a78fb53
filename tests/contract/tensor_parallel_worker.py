"""One of two processes: every case split over both, each parameter's gradient against the whole part's.

Arguments: rank, port. Prints one JSON line a case on rank 0.
"""

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from mixlab.parallel.tensor import apply_tensor_plan, full_tensor
from tests.contract.cases import CASES, label


def gradients(part, x):
    """Output, input gradient and parameter gradients of a fixed weighted sum."""
    x = x.clone().requires_grad_()
    y, _ = part(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (y * weight).sum().backward() if y.requires_grad else None
    grads = {n: full_tensor(p.grad) for n, p in part.named_parameters() if p.grad is not None}
    return {"output": y.detach(), "x": torch.zeros_like(x) if x.grad is None else x.grad, **grads}


def compare(case, mesh):
    """The largest difference over outputs and gradients, and how many parameters were split."""
    whole, split = case.build(), apply_tensor_plan(case.build(), mesh)
    x = case.sample(2, 7)
    wanted, found = gradients(whole, x), gradients(split, x)
    if wanted.keys() != found.keys():
        return {"case": label(case), "gap": float("inf"), "split": 0, "keys": sorted(found)}
    gap = max((wanted[k] - found[k]).abs().max().item() for k in wanted)
    sharded = sum(isinstance(p, DTensor) for p in split.parameters())
    held = dict(whole.named_buffers()).keys()
    return {
        "case": label(case),
        "gap": gap,
        "split": sharded,
        "planned": len(whole.tensor_plan().keys() - held),
    }


def main(rank, port):
    """Join the group and go through the cases in step with the other process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for case in CASES:
        row = compare(case, mesh)
        if rank == 0:
            print(json.dumps(row), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
