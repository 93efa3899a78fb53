"""A bias on the head, one after each mixer, no norms and no residual stream: every promise holds for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mixlab
from mixlab.compare.width import parameter_count
from mixlab.decode import decoder
from mixlab.parts.checks import close, measured_flops, tensors
from mixlab.parts.contract import available
from mixlab.parts.products import has_packed_products
from mixlab.train import checkpoint

SHAPE = {"vocab_size": 12, "dim": 32, "depth": 2, "context": 16, "position": "rope"}
KNOBS: list[dict[str, Any]] = [
    {"head_bias": True},
    {"head_bias": True, "tied": True},
    {"mixer_bias": True},
    {"norm": "none", "embedding_norm": True},
    {"residual": False},
    {"head_bias": True, "mixer_bias": True, "norm": "none", "residual": False, "feature": "none"},
]
PARTS = [*({"temporal": n} for n in available("temporal")), *({"feature": n} for n in available("feature"))]
every_knob = pytest.mark.parametrize("knobs", KNOBS, ids=lambda keys: ",".join(keys))


def model_of(knobs: dict[str, Any], **keys: Any) -> Any:
    """With biases away from zero, where they would not show."""
    torch.manual_seed(0)
    model = mixlab.build_model({**SHAPE, **keys, **knobs}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias.shift", "head.bias")):
                parameter.normal_()
    return model


def tokens(B: int = 2, T: int = 12) -> torch.Tensor:
    return torch.randint(12, (B, T), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read(scorer: Any, pieces: list[torch.Tensor]) -> torch.Tensor:
    state, found = scorer.init_state(len(pieces[0]), 12), []
    for piece in pieces:
        output = scorer(piece, state)
        found.append(output.logits)
        state = output.state
    return torch.cat(found, 1)


@every_knob
def test_the_model_computes_what_the_knobs_say(knobs: dict[str, Any]) -> None:
    model, x = model_of(knobs, feature="relu").double(), tokens()
    stream = model.embedding(x)
    without = model_of({}, norm="none").norm  # gives back what it is given
    if model.embedding_norm is not None:
        assert torch.equal(model.embedding_norm(stream), stream)
    for block in model.blocks:
        for mixer, norm, bias in (
            (block.temporal, block.temporal_norm, block.temporal_bias),
            (block.feature, block.feature_norm, block.feature_bias),
        ):
            if not mixer.mixes:
                continue
            read_by_it = stream if knobs.get("norm") == "none" else norm(stream)
            y = mixer(read_by_it)[0] + (bias.shift if knobs.get("mixer_bias") else 0)
            stream = y if knobs.get("residual") is False else stream + y
    last = without(stream) if knobs.get("norm") == "none" else model.norm(stream)
    wanted = last @ model.head.weight.T + (model.head.bias if knobs.get("head_bias") else 0)
    assert (model(x).logits - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("knobs", "part"),
    [(knobs, part) for knobs in KNOBS for part in PARTS if not knobs.keys() & part.keys()],
    ids=lambda keys: ",".join(f"{key}={value}" for key, value in keys.items()),
)
def test_steps_and_fast_steps_are_the_whole(knobs: dict[str, Any], part: dict[str, Any]) -> None:
    model, x = model_of(knobs, **part), tokens(B=1)
    with torch.no_grad():
        wanted = model(x).logits
    ones = list(x.split(1, 1))
    close(read(model, [x[:, :5], *ones[5:]]), wanted, "steps", torch.float32)
    made: Any = decoder(model, "float32")
    assert made is not model
    with torch.inference_mode():
        close(read(made, ones), wanted, "fast steps", torch.float32)


@every_knob
@pytest.mark.skipif(not has_packed_products(), reason="no float16 products on this processor")
def test_packed_steps_are_the_whole(knobs: dict[str, Any]) -> None:
    model, x = model_of(knobs), tokens(B=1)
    with torch.inference_mode():
        close(read(decoder(model, "float16"), list(x.split(1, 1))), model(x).logits, "packed", torch.float16)


@every_knob
def test_bookkeeping_adds_up(knobs: dict[str, Any]) -> None:
    model = model_of(knobs, temporal=["attention", "rglru"])
    counted = model.parameters_by_component()
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())
    assert parameter_count(model.config) == sum(counted.values())
    roles = model.parameter_roles()
    assert roles.keys() == dict(model.named_parameters()).keys()
    assert all(role == "gain" for name, role in roles.items() if name.endswith(("shift", "head.bias")))
    assert measured_flops(lambda: model(tokens(1, 16))) == model.flops(16)
    state = model(tokens(1, 12), model.init_state(1, 12)).state
    assert sum(t.nbytes for t in tensors(state)) == model.state_bytes(12)


@every_knob
def test_packed_documents_recomputation_and_gradients(knobs: dict[str, Any]) -> None:
    model = model_of(knobs).double()
    x, segment = tokens(B=1), torch.tensor([[0] * 5 + [1] * 7])
    alone = torch.cat([model(piece).logits for piece in x.split([5, 7], 1)], 1)
    assert torch.allclose(model(x, segment=segment).logits, alone, atol=1e-10)
    model.train()
    found = []
    for model.recompute in (False, True):
        model.zero_grad()
        model.loss(x, x).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *found))
    assert all(grad.abs().max() > 0 for grad in found[0])


@every_knob
def test_saved_and_loaded_is_the_same_model(knobs: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(knobs)
    checkpoint.save_model(model, tmp_path / "m")
    other = mixlab.build_model(model.config.to_dict())
    checkpoint.load_model(other, tmp_path / "m")
    assert torch.equal(other.eval()(tokens()).logits, model(tokens()).logits)
    assert {key: getattr(other.config, key) for key in knobs if key != "norm"} | {
        "norm": model.config.norm
    } == {**knobs, "norm": model.config.norm}


@every_knob
def test_bfloat16_keeps_the_stream_in_float32(knobs: dict[str, Any]) -> None:
    model = model_of(knobs)
    seen: list[torch.dtype] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, made: seen.append(made[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        close(model(tokens()).logits.float(), model_of(knobs)(tokens()).logits.float(), "autocast")
    assert set(seen) == {torch.float32}


def test_new_biases_are_zero_and_what_writes_to_no_stream_is_not_scaled_down() -> None:
    shape = {**SHAPE, "depth": 8}
    torch.manual_seed(0)
    plain = mixlab.build_model(shape)
    torch.manual_seed(0)
    other = mixlab.build_model(shape | {"head_bias": True, "mixer_bias": True, "residual": False})
    biases = [p for name, p in other.named_parameters() if name.endswith(("bias.shift", "head.bias"))]
    assert len(biases) == 17
    assert not any(bias.abs().sum() for bias in biases)
    ratio = other.blocks[0].temporal.out.weight.std() / plain.blocks[0].temporal.out.weight.std()
    assert ratio.item() == pytest.approx(4.0, rel=1e-5)
