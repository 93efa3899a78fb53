"""The one model, whatever its parts."""

import math

import pytest
import torch

import mixlab
from mixlab.errors import UserError
from mixlab.model import language_model
from mixlab.model.config import ModelConfig
from mixlab.parts.checks import measured_flops, tensors
from mixlab.parts.contract import available

SMALL = {"vocab_size": 19, "dim": 24, "depth": 2, "context": 16}
MIXED = {
    **SMALL,
    "depth": 3,
    "temporal": ["lstm", {"kind": "attention", "heads": 2}],
    "feature": ["relu", "none"],
}


def model(**keys):
    torch.manual_seed(0)
    return mixlab.build_model({**SMALL, **keys}).double().eval()


def tokens(B=2, T=16, seed=0):
    return torch.randint(SMALL["vocab_size"], (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("position", available("position"))
@pytest.mark.parametrize("temporal", available("temporal"))
def test_chunks_and_steps_equal_the_whole_under_every_position(temporal, position):
    m, x = model(temporal=temporal, position=position), tokens()
    with torch.inference_mode():
        whole = m(x)
        assert whole.state is None
        for cuts in ([16], [5, 6, 16], list(range(1, 17))):
            state, start, pieces = m.init_state(2, 16), 0, []
            for stop in cuts:
                out = m(x[:, start:stop], state)
                pieces.append(out.logits)
                state, start = out.state, stop
            assert torch.allclose(torch.cat(pieces, 1), whole.logits, atol=1e-10)
            assert int(state.length) == 16


@pytest.mark.parametrize("position", available("position"))
def test_packed_documents_equal_separate_ones(position):
    m, x = model(temporal=["attention", "gru"], position=position), tokens(B=1)
    segment = torch.tensor([[0] * 5 + [1] * 4 + [2] * 7])
    packed = m(x, segment=segment).logits
    alone = torch.cat([m(piece).logits for piece in x.split([5, 4, 7], dim=1)], 1)
    assert torch.allclose(packed, alone, atol=1e-10)


@pytest.mark.parametrize(
    "keys", [{}, MIXED, {"tied": True, "position": "learned", "norm": "layernorm", "embedding_norm": True}]
)
def test_bookkeeping_adds_up(keys):
    m = model(**keys)
    assert sum(m.parameters_by_component().values()) == sum(p.numel() for p in m.parameters())
    assert set(m.parameter_roles()) == {name for name, _ in m.named_parameters()}
    x = tokens(B=1)
    assert m.flops(16) == measured_flops(lambda: m(x))
    assert m.flops(16) == sum(m.flops_by_component(16).values())
    state = m(x, m.init_state(1, 16)).state
    assert m.state_bytes(16, torch.float64) == sum(t.nbytes for t in tensors(state))


def test_rates_of_their_own_are_collected_by_full_name():
    m = model(temporal=["rwkv7", "attention"], feature="channel_mix")
    assert m.lr_scales() == {"blocks.0.temporal.decay_bias": 2.0}
    assert m.lr_scales().keys() <= dict(m.named_parameters()).keys()
    assert model(**MIXED).lr_scales() == {}


def test_loss_is_the_mean_negative_log_likelihood():
    m, x, y = model(), tokens(), tokens(seed=1)
    wanted = -torch.log_softmax(m(x).logits, -1).gather(-1, y[..., None]).mean()
    assert torch.allclose(m.loss(x, y), wanted)
    assert torch.allclose(m.score(x, y).double().mean(), -wanted, atol=1e-6)
    assert m.score(x, y).dtype == torch.float32


def test_loss_in_chunks_equals_the_loss_at_once(monkeypatch):
    m, x, y = model(logit_softcap=5.0), tokens(), tokens(seed=1)
    whole = m.loss(x, y)
    grads = torch.autograd.grad(whole, list(m.parameters()))
    monkeypatch.setattr(language_model, "CHUNK_LOGITS", 3 * SMALL["vocab_size"])
    chunked = m.loss(x, y)
    assert torch.allclose(chunked, whole)
    for a, b in zip(torch.autograd.grad(chunked, list(m.parameters())), grads, strict=True):
        assert torch.allclose(a, b)


def test_loss_never_holds_more_than_a_chunk_of_logits(monkeypatch):
    """The largest tensor with the vocabulary as its last axis, over forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in tensors(out if isinstance(out, (tuple, torch.Tensor)) else None):
                if t.ndim and t.shape[-1] == 501 and t.shape[0] != 24:
                    largest = max(largest, t.shape[0])
            return out

    m = model(vocab_size=501)
    monkeypatch.setattr(language_model, "CHUNK_LOGITS", 8 * 501)
    with Watch():
        m.loss(tokens(), tokens(seed=1)).backward()
    assert largest == 8


def test_fresh_models_start_near_the_uniform_loss():
    for temporal in available("temporal"):
        loss = model(temporal=temporal).loss(tokens(), tokens(seed=1)).item()
        assert loss == pytest.approx(math.log(19), rel=0.05)


def test_softcap_bounds_the_logits_and_is_off_by_default():
    m = model(logit_softcap=0.01)
    assert m(tokens()).logits.abs().max() <= 0.01
    assert ModelConfig().logit_softcap == 0


def test_tied_head_shares_the_table():
    m = model(tied=True)
    assert m.head.weight is m.embedding.weight
    assert "head.weight" not in m.parameter_roles()
    assert m.parameters_by_component()["head"] == 0


def test_dropout_acts_in_training_only():
    m = model(dropout=0.5)
    x = tokens()
    assert torch.equal(m(x).logits, m(x).logits)
    m.train()
    assert not torch.equal(m(x).logits, m(x).logits)


def test_pattern_repeats_over_the_depth():
    m = model(**MIXED)
    names = [type(block.temporal).__name__ for block in m.blocks]
    assert names == ["LSTM", "Attention", "LSTM"]
    assert [block.feature.mixes for block in m.blocks] == [True, False, True]
    assert m.blocks[1].temporal.heads == 2


def test_block_is_norm_mixer_residual_twice():
    block = model().blocks[0]
    x = torch.randn(1, 5, 24, dtype=torch.float64)
    y = x + block.temporal(block.temporal_norm(x))[0]
    y = y + block.feature(block.feature_norm(y))[0]
    assert torch.allclose(block(x)[0], y)


def test_resolved_config_builds_the_same_model():
    config = ModelConfig(**MIXED).validate()
    again = ModelConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()
    shapes = [
        [p.shape for p in mixlab.build_model(c).parameters()] for c in (config, again, config.to_dict())
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_a_model_is_built_from_a_toml_file(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text('[model]\ndim = 24\ndepth = 1\ntemporal = {kind = "attention", heads = 3}\n')
    assert mixlab.build_model(path).blocks[0].temporal.heads == 3
    path.write_text("dim = 24\ndepth = 1\n")
    assert mixlab.build_model(str(path)).config.dim == 24


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"temporal": "atention"}, "did you mean 'attention'"),
        ({"feature": {"kind": "swiglu", "ratoi": 2.0}}, "model.feature.ratoi.*did you mean 'ratio'"),
        ({"temporal": {"heads": 3}}, "needs 'kind'"),
        ({"temporal": {"kind": "attention", "heads": "three"}}, "model.temporal.heads"),
        ({"temporal": []}, "model.temporal is an empty list"),
        ({"position": ["rope"]}, "model.position takes one part"),
        ({"temporal": ["gru"] * 3}, "model.temporal lists 3 parts for a depth of 2"),
        ({"dim": 2**17}, "does not fit in memory"),
        ({"dmi": 24}, "did you mean 'dim'"),
        ({"dim": "24"}, "model.dim"),
        ({"dim": 0}, "model.dim must be at least 1"),
        ({"dim": 10**7}, "model.dim must be at most 131,072, got 10,000,000"),
        ({"depth": 10**9}, "model.depth must be at most 4,096"),
        ({"context": 2**60}, "model.context must be at most"),
        ({"vocab_size": 10**9}, "model.vocab_size must be at most"),
        ({"dim": 128, "mup_base_dim": 100_000}, "model.mup_base_dim is 100,000 at a model.dim of 128"),
        ({"dropout": 1.0}, "model.dropout must be in"),
        ({"logit_softcap": -1.0}, "model.logit_softcap"),
        ({"temporal": {"kind": "attention", "heads": 5}}, "nearest that do are 4 and 6"),
    ],
)
def test_a_wrong_config_gets_one_sentence(keys, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        mixlab.build_model({**SMALL, **keys})
    assert "\n" not in str(caught.value)


def test_a_full_cache_and_a_full_position_table_are_refused():
    m = model(position="rope")
    with pytest.raises(UserError, match="room for 8 tokens, 9 were given"):
        m(tokens(T=9), m.init_state(2, 8))
    with pytest.raises(UserError, match="learned positions end at the context of 16"):
        model(position="learned")(tokens(T=17))


def test_embedding_is_scaled_and_normalised_when_asked():
    m, x = model(embedding_scale=3.0), tokens()
    plain = model()
    plain.embedding.weight.data *= 3
    assert torch.allclose(m(x).logits, plain(x).logits)
    normed = model(embedding_norm=True)
    seen = []
    normed.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    normed(x)
    assert torch.allclose(seen[0].square().mean(-1), torch.ones(2, 16, dtype=torch.float64), rtol=1e-2)
