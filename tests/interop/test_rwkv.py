"""transformers' RWKV-4 and ours compute the same from the same weights."""

import json
import subprocess
import sys

import pytest
import torch

from mixlab.errors import UserError
from mixlab.interop.rwkv import from_transformers

transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 4, "context_length": 64}


def peer(kind="RwkvForCausalLM", **knobs):
    """A small random model of theirs, every parameter moved so that no path is zero or one."""
    torch.manual_seed(0)
    config = transformers.RwkvConfig(**{**SHAPE, "rescale_every": 0, **knobs})
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def gap(ours, theirs, tokens):
    return (ours(tokens).logits - theirs(tokens, use_cache=False).logits).abs().max().item()


@pytest.mark.parametrize(
    "knobs",
    [{}, {"attention_hidden_size": 48, "intermediate_size": 80}, {"tie_word_embeddings": True}],
    ids=["plain", "widths", "tied"],
)
def test_logits_are_equal(knobs):
    theirs = peer(**knobs)
    ours = from_transformers(theirs)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert gap(ours, theirs, torch.randint(61, (3, 40))) < 1e-5


def test_hidden_states_are_equal_over_512_tokens():
    theirs = peer("RwkvModel")
    ours, tokens = from_transformers(theirs), torch.randint(61, (2, 512))
    with torch.no_grad():
        found, _ = ours.hidden(tokens)
        wanted = theirs(tokens, use_cache=False).last_hidden_state
    assert (found - wanted).abs().max() < 1e-4


def test_steps_are_equal():
    theirs = peer()
    ours, tokens = from_transformers(theirs), torch.randint(61, (1, 24))
    state, cache = ours.init_state(1, 24), None
    with torch.no_grad():
        for t in range(24):
            token = tokens[:, t : t + 1]
            found, state = ours(token, state)
            wanted = theirs(token, state=cache, use_cache=True)
            cache = wanted.state
            assert (found - wanted.logits).abs().max() < 1e-5


def test_weights_rescaled_for_evaluation_are_brought_back():
    theirs = peer(rescale_every=2)  # halving changes what the norms' eps adds, by 1e-5 of it here
    tokens = torch.randint(61, (2, 20))
    before = from_transformers(theirs)
    theirs(tokens)
    assert theirs.rwkv.layers_are_rescaled
    after = from_transformers(theirs)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert gap(after, theirs, tokens) < 1e-4


def test_a_folder_gives_the_same_model(tmp_path):
    theirs = peer()
    theirs.save_pretrained(tmp_path)
    for a, b in zip(
        from_transformers(tmp_path).parameters(), from_transformers(theirs).parameters(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', expected 'rwkv'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06 has no counterpart"),
        ({"num_hidden_layers": 5}, r"lack 'rwkv\.blocks\.4\."),
        ({"num_hidden_layers": 3}, r"no place for the weights 'rwkv\.blocks\.3\."),
    ],
)
def test_what_is_not_rwkv4_is_refused(tmp_path, change, message):
    peer().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        from_transformers(tmp_path)


def test_the_reader_does_not_import_transformers():
    code = "import sys, mixlab.interop.rwkv; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
