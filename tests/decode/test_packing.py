"""Weights are packed once for each model, and never decoded from after they changed."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mixlab
from mixlab.decode import decoder, generate, precision
from mixlab.parts import products
from mixlab.parts.products import has_packed_products

settings = sys.modules["mixlab.decode.decoder"]  # the package has a function of that name
pytestmark = pytest.mark.skipif(not has_packed_products(), reason="no float16 products on this processor")
SHAPE = {"vocab_size": 12, "dim": 32, "depth": 2, "context": 16, "temporal": ["attention", "rwkv7"]}


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many Linears were in each packing."""
    seen: list[int] = []
    pack = products._pack

    def counted(*linears: Any) -> Any:
        seen.append(len(linears))
        return pack(*linears)

    monkeypatch.setattr(products, "_pack", counted)
    return seen


def model_of(**keys: Any) -> Any:
    torch.manual_seed(0)
    return mixlab.build_model({**SHAPE, **keys}).eval()


@torch.inference_mode()
def first_logits(model: Any, dtype: str = "float16") -> torch.Tensor:
    made: Any = decoder(model, dtype)
    state = made.init_state(1, 4)
    for token in (3, 1, 4):
        output = made(torch.tensor([[token]]), state)
        state = output.state
    return output.logits


def test_a_second_generation_packs_nothing(packings: list[int]) -> None:
    model = model_of()
    first = list(generate(model, [1], max_tokens=8, seed=1, dtype="float16"))
    made = len(packings)
    assert made > 4
    assert list(generate(model, [1], max_tokens=8, seed=1, dtype="float16")) == first
    assert len(packings) == made
    list(generate(model_of(), [1], max_tokens=2, dtype="float16"))
    assert len(packings) == 2 * made, "another model has weights of its own"


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.blocks[0].temporal.k.weight[5, 7] += 0.5


def through_data(model: Any) -> None:
    model.blocks[1].feature.down.weight.data[3, 4] += 0.5


def through_numpy(model: Any) -> None:
    model.blocks[0].temporal.q.weight.detach().numpy()[3, 4] += 0.5


def in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model.head.weight.mul_(1.5)


def state_dict(model: Any) -> None:
    model.load_state_dict({name: 1.25 * value for name, value in model.state_dict().items()})


def assigned(model: Any) -> None:
    model.load_state_dict({n: 1.25 * value for n, value in model.state_dict().items()}, assign=True)


def there_and_back(model: Any) -> None:
    """Rounded more than float16 rounds."""
    model.to(torch.bfloat16).to(torch.float32)


def new_parameter(model: Any) -> None:
    linear = model.blocks[0].temporal.v
    linear.weight = torch.nn.Parameter(linear.weight.detach() + 0.1)


def new_module(model: Any) -> None:
    model.blocks[0].temporal.out = torch.nn.Linear(32, 32, bias=False)


def swapped(model: Any) -> None:
    """As averaged weights take the place of the trained ones."""
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.25


def training_step(model: Any) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)  # writes without a mark
    tokens = torch.tensor([[1, 2, 3, 4]])
    model.loss(tokens, tokens).backward()
    optimizer.step()
    model.eval()


CHANGES: list[Callable[[Any], None]] = [
    in_place, through_data, through_numpy, in_inference_mode, state_dict, assigned, there_and_back,
    new_parameter, new_module, swapped, training_step,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_are_never_decoded_from_as_they_were(change: Callable[[Any], None]) -> None:
    model = model_of()
    before = first_logits(model)
    change(model)
    found = first_logits(model)
    assert torch.equal(found, first_logits(copy.deepcopy(model))), "a copy is packed anew"
    assert not torch.equal(found, before)


def test_a_bias_that_changed_is_packed_anew() -> None:
    model = model_of(feature={"kind": "gelu", "bias": True})
    before = first_logits(model)
    model.blocks[0].feature.up.bias.data[3] += 1
    assert not torch.equal(first_logits(model), before)
    assert torch.equal(first_logits(model), first_logits(copy.deepcopy(model)))


def test_only_what_changed_is_packed_anew(packings: list[int]) -> None:
    model = model_of()
    first_logits(model)
    packings.clear()
    in_place(model)
    first_logits(model)
    assert packings == [3], "queries, keys and values are in one product"


def test_weights_that_no_longer_fit_float16_are_noticed() -> None:
    model, notes = model_of(), []
    first_logits(model)
    model.blocks[0].feature.down.weight.data[3, 4] = 1e6
    decoder(model, "float16", notes.append)
    assert "blocks.0.feature.down.weight has numbers beyond float16's largest" in notes[0]
    model.blocks[0].feature.down.weight.data[3, 4] = 0
    assert torch.equal(first_logits(model), first_logits(copy.deepcopy(model)))


def test_weights_read_in_inference_mode_can_be_packed(tmp_path: Any) -> None:
    model = model_of()
    save_file(model.state_dict(), tmp_path / "weights")
    with torch.inference_mode():
        model.load_state_dict(load_file(tmp_path / "weights"), assign=True)
    before = first_logits(model)
    with torch.inference_mode():
        model.head.weight.mul_(1.5)
    assert not torch.equal(first_logits(model), before)


def test_packed_weights_go_with_their_model() -> None:
    gc.collect()
    kept = len(products._RECORDS)
    model = model_of()
    first_logits(model)
    assert len(products._RECORDS) > kept
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(products._RECORDS) == kept


def test_threads_share_one_packing(packings: list[int]) -> None:
    model = model_of()
    expected = first_logits(copy.deepcopy(model))
    made = len(packings)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: first_logits(model), range(8)))
    assert all(torch.equal(expected, logits) for logits in found)
    assert len(packings) == 2 * made


def test_auto_packs_once_as_many_tokens_were_asked_as_packing_is_worth(
    packings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "WORTH_PACKING", 1)
    monkeypatch.setattr(settings, "WORTH_TOKENS", 10)
    model = model_of()

    def ask(tokens: int) -> bool:
        before = len(packings)
        next(generate(model, [1], max_tokens=tokens, dtype="auto"))
        return len(packings) > before

    assert [ask(4), ask(4), ask(4), ask(4)] == [False, False, True, False]
    in_place(model)
    assert [ask(4), ask(10), ask(1)] == [False, True, False], "the count is of the weights as they are"
    assert precision(model, "auto") == "float16", "what a single long generation comes to"
    monkeypatch.setattr(settings, "WORTH_PACKING", 10**9)
    in_place(model)
    assert not ask(1000)
