"""transformers' RecurrentGemma and ours from its weights compute the same logits."""

import json

import pytest
import torch

from mixlab.errors import UserError
from mixlab.interop import recurrentgemma

transformers = pytest.importorskip("transformers")

KEYS = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 2 * 56, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 1, "attention_window_size": 6, "conv1d_width": 4,
}  # fmt: skip


def peer(**keys):
    """A small RecurrentGemma, every parameter away from zero and one."""
    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(**(KEYS | keys))
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "recurrent_param" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


VARIANTS = {
    "griffin": {},
    "wider-recurrence": {"lru_width": 48, "num_key_value_heads": 2, "attention_bias": True},
    "hawk": {"block_types": ["recurrent"], "logits_soft_cap": 5.0, "conv1d_width": 3},
}


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)
def test_logits_are_those_of_transformers(keys):
    theirs = peer(**keys)
    ours = recurrentgemma.from_transformers(theirs)
    tokens = torch.randint(1, 61, (2, 24))
    with torch.no_grad():
        wanted = theirs(tokens, use_cache=False).logits
        state, logits = ours.init_state(2, 24), []
        for piece in (tokens[:, :5], *tokens[:, 5:].split(1, 1)):
            out = ours(piece, state)
            state = out.state
            logits.append(out.logits)
        assert wanted.std() > 0.5
        assert (ours(tokens).logits - wanted).abs().max() < 1e-4
        assert (torch.cat(logits, 1) - wanted).abs().max() < 1e-4


def test_steps_are_those_of_transformers():
    theirs = peer()
    ours = recurrentgemma.from_transformers(theirs)
    tokens = torch.randint(1, 61, (1, 16))
    state, cache = ours.init_state(1, 16), transformers.DynamicCache(config=theirs.config)
    theirs.model._setup_cache(theirs.config, 1, "cpu", torch.float32)
    with torch.no_grad():
        for piece in (tokens[:, :7], *tokens[:, 7:].split(1, 1)):
            wanted = theirs(piece, past_key_values=cache, use_cache=True).logits
            out = ours(piece, state)
            state = out.state
            assert (out.logits - wanted).abs().max() < 1e-4


def test_every_parameter_has_a_gradient_equal_to_that_of_transformers():
    theirs = peer()
    ours = recurrentgemma.from_transformers(theirs)
    tokens = torch.randint(1, 61, (2, 12))
    for logits in (theirs(tokens, use_cache=False).logits, ours(tokens).logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    block, layer = ours.blocks[0].temporal, theirs.model.layers[0].temporal_block
    pairs = {
        "decay": (block.decay, layer.rg_lru.recurrent_param),
        "taps": (block.taps, layer.conv_1d.weight),
        "recurrence gate": (block.recurrence_gate, layer.rg_lru.recurrent_gate_weight),
        "value": (block.value.weight, layer.linear_x.weight),
        "gate": (block.gate.bias, layer.linear_y.bias),
    }
    for name, (a, b) in pairs.items():
        gap = (a.grad - b.grad.view_as(a)).abs().max() / b.grad.abs().max()
        assert gap < 1e-4, name


def test_a_folder_on_disk_gives_the_same_model(tmp_path):
    theirs = peer()
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(1, 61, (1, 9))
    with torch.no_grad():
        gap = recurrentgemma.from_transformers(tmp_path)(tokens).logits - theirs(tokens).logits
    assert gap.abs().max() < 1e-4


def test_what_has_no_counterpart_is_said(tmp_path):
    peer().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    keys = json.loads(path.read_text())
    path.write_text(json.dumps(keys | {"hidden_activation": "relu"}))
    with pytest.raises(UserError, match='hidden_activation="relu" has no counterpart'):
        recurrentgemma.from_transformers(tmp_path)
    path.write_text(json.dumps(keys | {"model_type": "gemma"}))
    with pytest.raises(UserError, match="model_type is 'gemma', expected 'recurrent_gemma'"):
        recurrentgemma.from_transformers(tmp_path)
