"""What a recurrence keeps for its backward pass, and how many nodes of autograd it makes, as T grows."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from mixlab.parts.contract import get

RECURRENT = [
    ("rnn", {}),
    ("rnn", {"heads": 2}),
    ("gru", {}),
    ("gru", {"heads": 2}),
    ("lstm", {}),
    ("lstm", {"heads": 2}),
    ("rwkv4", {}),
    ("rwkv7", {}),
    ("rglru", {}),
]
parts = pytest.mark.parametrize(("name", "knobs"), RECURRENT, ids=lambda value: str(value))


def built(name, knobs):
    part = get("temporal", name)
    return part.build(part.Config(**knobs), dim=64, context=512).float()


def kept(part, T):
    """Bytes of the storages that the backward pass needs, parameters apart."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        part(torch.randn(2, T, 64, requires_grad=True))
    own = {p.untyped_storage().data_ptr() for p in part.parameters()}
    return sum(t.untyped_storage().nbytes() for key, t in storages.items() if key not in own)


def nodes(part, T):
    """Nodes of the graph behind an output."""
    y, _ = part(torch.randn(2, T, 64, requires_grad=True))
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return len(seen)


@parts
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_memory_for_the_backward_grows_linearly(name, knobs, bf16):
    part = built(name, knobs)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        first, second, third = (kept(part, T) for T in (128, 256, 512))
    assert first > 0
    assert third - second <= 2 * (second - first)


@parts
def test_the_graph_does_not_grow_with_time(name, knobs):
    part = built(name, knobs)
    # In float32 a single head's recurrence is torch.nn's own kernel, which unrolls in C++.
    own = name in ("rnn", "gru", "lstm") and not knobs
    with torch.autocast("cpu", torch.bfloat16, enabled=own):
        assert nodes(part, 512) == nodes(part, 128)
