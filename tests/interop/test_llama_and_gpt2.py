"""transformers' models and ours from their weights compute the same logits."""

import json

import pytest
import torch

from mixlab.compare.width import parameter_count
from mixlab.errors import UserError
from mixlab.interop import gpt2, hf, llama
from mixlab.model.config import model_config

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GPT2 = {
    "vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
EXTENDED = {"factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 16}


def scattered(model):
    """Every parameter away from zero and one, so that none can be forgotten or swapped unseen."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def llama_model(**keys):
    return scattered(transformers.LlamaForCausalLM(transformers.LlamaConfig(**(LLAMA | keys))))


def gpt2_model(**keys):
    return scattered(transformers.GPT2LMHeadModel(transformers.GPT2Config(**(GPT2 | keys))))


def assert_equal(ours, theirs, T=40):
    """Logits in one call, and token by token after a prefill."""
    tokens = torch.randint(61, (2, T))
    with torch.no_grad():
        wanted = theirs(tokens).logits
        state, logits = ours.init_state(2, T), []
        for piece in (tokens[:, :5], *tokens[:, 5:].split(1, 1)):
            out = ours(piece, state)
            state = out.state
            logits.append(out.logits)
        assert wanted.std() > 0.5
        assert (ours(tokens).logits - wanted).abs().max() < 1e-4
        assert (torch.cat(logits, 1) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "yarn", **EXTENDED, "beta_fast": 2.0, "beta_slow": 0.5}},
        {
            "rope_parameters": {
                "rope_type": "llama3", **EXTENDED, "low_freq_factor": 0.5, "high_freq_factor": 2.0
            }
        },
    ],
    ids=["plain", "multi-query", "attention-bias", "mlp-bias", "linear", "yarn", "llama3"],
)  # fmt: skip
def test_llama_is_transformers_llama(keys):
    theirs = llama_model(**keys)
    assert_equal(llama.from_transformers(theirs), theirs)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"n_inner": 48, "layer_norm_epsilon": 1e-3},
        {"tie_word_embeddings": False},
        {"activation_function": "gelu"},
        {"activation_function": "gelu", "tie_word_embeddings": False},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "relu"},
    ],
    ids=["plain", "narrow", "untied", "exact", "exact-untied", "tanh", "relu"],
)
def test_gpt2_is_transformers_gpt2(keys, tmp_path):
    theirs = gpt2_model(**keys)
    ours = gpt2.from_transformers(theirs)
    assert_equal(ours, theirs)
    assert (ours.head.weight is ours.embedding.weight) == keys.get("tie_word_embeddings", True)
    theirs.save_pretrained(tmp_path)
    again = gpt2.from_transformers(tmp_path)
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_what_is_read_from_a_model_is_a_copy_of_it():
    for theirs, family in ((gpt2_model(), gpt2), (llama_model(tie_word_embeddings=True), llama)):
        before = {name: value.clone() for name, value in theirs.state_dict().items()}
        ours = family.from_transformers(theirs)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.zero_()
        assert all(torch.equal(before[name], value) for name, value in theirs.state_dict().items())
        own = [p.untyped_storage().data_ptr() for p in ours.parameters()]
        assert len(own) == len(set(own)), "two parameters in one memory"


@pytest.mark.parametrize("shard", ["10GB", "10KB"])
def test_a_folder_is_read_whole_or_in_shards(tmp_path, shard):
    theirs = llama_model()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "10KB")
    assert_equal(llama.from_transformers(tmp_path), theirs)


def test_gpt2s_folder_may_lack_the_head_and_its_prefix(tmp_path):
    theirs = gpt2_model()
    theirs.transformer.save_pretrained(tmp_path)
    assert_equal(gpt2.from_transformers(str(tmp_path)), theirs)


@pytest.mark.parametrize(
    ("family", "change", "sentence"),
    [
        (llama, {"hidden_act": "gelu"}, 'hidden_act="gelu" has no counterpart'),
        (llama, {"head_dim": 16}, "head_dim=16 has no counterpart"),
        (llama, {"model_type": "mistral"}, "model_type is 'mistral', expected 'llama'"),
        (llama, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE scaling 'dynamic'"),
        (gpt2, GPT2 | {"model_type": "gpt2"}, "lack 'wte.weight'"),
        (gpt2, GPT2 | {"model_type": "gpt2", "activation_function": "quick_gelu"}, "gelu_new, .* relu have"),
    ],
)
def test_what_has_no_counterpart_is_named(tmp_path, family, change, sentence):
    llama_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=sentence):
        family.from_transformers(tmp_path)


def test_weights_and_config_must_agree(tmp_path):
    theirs = llama_model()
    given = hf.checkpoint(theirs)
    with pytest.raises(UserError, match="no place for the weights 'model.layers.1"):
        broken = dict(given.config) | {"num_hidden_layers": 1}
        (tmp_path / "config.json").write_text(json.dumps(broken))
        theirs.save_pretrained(tmp_path / "whole")
        (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "model.safetensors")
        llama.from_transformers(tmp_path)
    with pytest.raises(UserError, match="no such file; a model's folder has config.json"):
        hf.checkpoint(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights must be in the safetensors format"):
        hf.checkpoint(tmp_path)


def test_building_from_weights_leaves_the_random_generator_alone():
    theirs = llama_model()
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    llama.from_transformers(theirs)
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize(
    ("family", "config", "parameters"),
    [
        (gpt2, GPT2 | {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_positions": 1024}, 124_439_808),
        (
            llama,
            {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
             "num_attention_heads": 32, "max_position_embeddings": 4096},
            6_738_415_616,
        ),
        (
            llama,
            {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
             "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
             "tie_word_embeddings": True},
            1_235_814_400,
        ),
    ],
    ids=["GPT-2", "Llama 2 7B", "Llama 3.2 1B"],
)  # fmt: skip
def test_published_models_have_their_published_parameters(family, config, parameters):
    assert parameter_count(model_config(family.configure(config))) == parameters


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"[" * 5000, b'{"n_layer": ' + b"9" * 5000 + b"}", b"\xff\xfa"]
)
def test_a_config_that_is_no_table_is_one_sentence(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is missing or damaged \(.{10,120}\)$"):
        gpt2.from_transformers(tmp_path)
