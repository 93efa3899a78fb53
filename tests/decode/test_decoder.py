"""The short way of single tokens says what the model says, from weights as they are or packed in float16."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import mixlab
from mixlab.decode import decoder, generate
from mixlab.decode.decoder import WORTH_PACKING, Decoder
from mixlab.errors import UserError
from mixlab.model.stepping import can_step
from mixlab.parts.checks import TOLERANCE, close, tensors
from mixlab.parts.contract import available
from mixlab.parts.products import PackedLinear, PackedProducts, has_packed_products

packs = pytest.mark.skipif(not has_packed_products(), reason="no float16 products on this processor")
SHAPE = {"vocab_size": 11, "dim": 32, "depth": 2, "context": 16}
PARTS = [("temporal", name) for name in available("temporal")]
PARTS += [("feature", name) for name in available("feature")]


def model_of(**keys: Any) -> Any:
    torch.manual_seed(0)
    return mixlab.build_model({**SHAPE, **keys}).eval()


@torch.inference_mode()
def read(scorer: Any, pieces: list[Tensor]) -> tuple[Tensor, Any]:
    """Logits of all tokens, and the state after them."""
    state, found = scorer.init_state(1, sum(piece.shape[1] for piece in pieces)), []
    for piece in pieces:
        output = scorer(piece, state)
        found.append(output.logits)
        state = output.state
    return torch.cat(found, 1), state


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=packs)])
@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_decodes_as_the_model_reads(kind: str, name: str, dtype: str) -> None:
    model = model_of(**{"temporal": "gru" if kind == "feature" else name, kind: name}, position="rope")
    made: Any = decoder(model, dtype)
    assert isinstance(made, Decoder)
    tokens = torch.randint(11, (1, 12), generator=torch.Generator().manual_seed(1))
    found, state = read(made, [tokens[:, :5], *tokens[:, 5:].split(1, 1)])  # a prompt, then tokens
    wanted, other = read(model, [tokens])
    within = getattr(torch, dtype)
    close(found, wanted, name, within)
    for a, b in zip(tensors(state), tensors(other), strict=True):
        close(a, b, f"state of {name}", within)


@packs
@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_float16_rounds_every_linear_and_nothing_else(kind: str, name: str) -> None:
    model = model_of(**{"temporal": "gru" if kind == "feature" else name, kind: name}, position="rope")
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.half().float()
    tokens = [torch.tensor([[token]]) for token in (3, 1, 4, 1, 5)]
    found, wanted = (
        read(decoder(m, dtype), tokens)[0] for m, dtype in ((model, "float16"), (rounded, "float32"))
    )
    close(found, wanted, name)
    assert (found - read(model, tokens)[0]).abs().max() > 1e-5


@pytest.mark.parametrize(
    "keys",
    [
        {"position": "learned", "tied": True, "embedding_norm": True, "embedding_scale": 3.0},
        {"norm": "layernorm", "logit_softcap": 5.0, "dropout": 0.5, "position": "alibi"},
        {"temporal": {"kind": "attention", "heads": 4, "kv_heads": 2, "window": 3}, "position": "p-rope"},
        {"temporal": {"kind": "attention", "bias": "all", "temperature": 0.5}, "feature": "none"},
        {"temporal": ["rglru", "attention"], "position": {"kind": "rope", "channels": 0.5}},
        {"mup_base_dim": 8, "temporal": {"kind": "attention", "qk_norm": True}},
    ],
)
def test_what_stands_around_the_parts_is_kept(keys: dict[str, Any]) -> None:
    model = model_of(**keys)
    tokens = torch.randint(11, (1, 12), generator=torch.Generator().manual_seed(1))
    found, _ = read(decoder(model, "float32"), list(tokens.split(1, 1)))
    close(found, read(model, [tokens])[0], "decoder")


@packs
def test_packed_weights_are_float16s_and_one_product_makes_several_with_their_biases() -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(24, 5, bias=False), torch.nn.Linear(24, 40)
    x = torch.randn(1, 1, 24)
    found = PackedProducts()(first, second)(x)
    rounded = [linear.weight.detach().half().double() for linear in (first, second)]
    wanted = [x.double() @ weight.T for weight in rounded]
    wanted[1] += second.bias.detach().double()
    assert (found - torch.cat(wanted, -1)).abs().max() < 1e-6
    exact = torch.cat([first(x), second(x)], -1)
    assert 1e-6 < (found - exact).abs().max() < TOLERANCE[torch.float16]


@packs
def test_a_packed_copy_shares_what_is_not_packed_and_leaves_the_part_alone() -> None:
    part = model_of(temporal="rwkv7").blocks[0].temporal
    kinds = [type(module) for module in part.modules()]
    twin = PackedProducts().inside(part)
    assert twin is not part
    assert [type(module) for module in part.modules()] == kinds
    assert not any(type(module) is torch.nn.Linear for module in twin.modules())
    assert sum(isinstance(module, PackedLinear) for module in twin.modules()) == kinds.count(torch.nn.Linear)
    own = dict(part.named_parameters())
    assert all(own[name] is parameter for name, parameter in twin.named_parameters())


@packs
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (70_000.0, "blocks.1.feature.down.weight has numbers beyond float16's largest, 65504"),
        (65_519.0, "blocks.1.feature.down.weight has numbers beyond"),
        (-65_504.01, "blocks.1.feature.down.weight has numbers beyond"),
        (float("nan"), "blocks.1.feature.down.weight has numbers beyond"),
        (1e-8, "blocks.1.feature.down.weight has too many numbers below float16's smallest, 6e-5"),
    ],
)
def test_weights_that_float16_does_not_hold_stay_and_it_is_said(value: float, sentence: str) -> None:
    model = model_of(feature="swiglu")
    weight = model.blocks[1].feature.down.weight.data
    if 0 < value < 1:
        weight.fill_(value)
    else:
        weight[3, 4] = value
    notes: list[str] = []
    made: Any = decoder(model, "float16", notes.append)
    assert len(notes) == 1
    assert sentence in notes[0]
    assert PackedProducts().cannot_pack(model) is not None
    if value == value:
        tokens = torch.tensor([[1, 2, 3]])
        close(read(made, list(tokens.split(1, 1)))[0], read(model, [tokens])[0], "decoder")


@packs
def test_auto_packs_large_models_alone() -> None:
    small, large = model_of(), model_of(vocab_size=WORTH_PACKING // 64 + 1)
    token = [torch.tensor([[1]])]
    for model, packed in ((small, False), (large, True)):
        notes: list[str] = []
        exact = read(decoder(model, "float32"), token)[0]
        assert torch.equal(read(decoder(model, "auto", notes.append), token)[0], exact) != packed
        assert notes == []


@pytest.mark.parametrize("change", ["training", "bfloat16", "hook"])
def test_a_model_that_the_short_way_would_not_serve_runs_as_it_is(change: str) -> None:
    model, notes = model_of(), []
    seen: list[int] = []
    if change == "hook":
        model.blocks[0].temporal.register_forward_hook(lambda *_: seen.append(1))
    elif change == "training":
        model.train()
    else:
        model.bfloat16()
    assert not can_step(model)
    assert decoder(model, "float16", notes.append) is model
    assert "needs a model in float32 on an x86 CPU" in notes[0]
    assert len(list(generate(model, [1], max_tokens=3, dtype="auto"))) == 3
    assert len(seen) == (3 if change == "hook" else 0)


@packs
def test_float16_repeats_with_its_seed_and_leaves_the_weights() -> None:
    model = model_of(temporal=["attention", "gru"], position="rope")
    before = copy.deepcopy(model.state_dict())
    texts = [list(generate(model, [1], max_tokens=30, seed=3, dtype="float16")) for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 30
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_each_generation_reads_the_weights_of_its_own_time() -> None:
    model = model_of()
    list(generate(model, [1], max_tokens=3, temperature=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    tokens = [1]
    for token in generate(model, [1], max_tokens=5, temperature=0):
        assert token == int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(token)


def test_a_full_state_and_an_unknown_dtype_get_a_sentence() -> None:
    made: Any = decoder(model_of(position="rope"), "float32")
    with torch.inference_mode():
        state = made.init_state(1, 1)
        state = made(torch.tensor([[1]]), state).state
        with pytest.raises(UserError, match="room for 1 tokens, 2 were given"):
            made(torch.tensor([[1]]), state)
    with pytest.raises(UserError, match="unknown dtype 'float61': did you mean 'float16'"):
        generate(model_of(), [1], max_tokens=1, dtype="float61")
