"""gMLP: its start as a feed-forward network, the paper's parameter counts, and the length it is built for."""

import pytest
import torch

import mixlab
from mixlab.decode import generate
from mixlab.errors import UserError
from mixlab.parts.contract import get

GMLP = get("temporal", "gmlp")


def built(dim=32, context=16, **knobs):
    torch.manual_seed(0)
    return GMLP.build(GMLP.Config(**knobs), dim=dim, depth=8, context=context)


def test_it_starts_as_a_feed_forward_network_on_the_first_half():
    part, x = built().double(), torch.randn(2, 16, 32, dtype=torch.float64)
    plain = part.out(torch.nn.functional.gelu(part.value(x)))
    assert torch.allclose(part(x)[0], plain, atol=1e-6)


@pytest.mark.parametrize("toeplitz", [False, True])
def test_spatial_weights_start_near_zero_and_biases_at_one(toeplitz):
    part = built(context=64, toeplitz=toeplitz)
    assert 0 < part.spatial.abs().max() < 1e-5
    assert torch.equal(part.bias, torch.ones(64))
    assert part.value.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert part.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # 1/sqrt(2 x 8)


def test_toeplitz_weights_depend_on_the_distance_alone():
    part = built(toeplitz=True)
    W = part.rows(0, 16)
    for i in range(16):
        for j in range(16):
            assert W[i, j] == (part.spatial[i - j] if j <= i else 0)
    assert torch.equal(part.rows(5, 9), W[5:9, :9])


def test_the_triangle_holds_each_weight_once():
    part = built()
    with torch.no_grad():
        part.spatial.copy_(torch.arange(1, 16 * 17 // 2 + 1))
    W = part.rows(0, 16)
    assert torch.equal(W, W.tril())
    assert W[W != 0].unique().numel() == 16 * 17 // 2
    assert torch.equal(part.rows(5, 9), W[5:9, :9])


# Layers, width, width of Z and of the tiny attention, millions of parameters in the paper.
LANGUAGE = {
    "gMLPbase": (48, 512, 3072, 0, 130),
    "aMLPbase": (36, 512, 3072, 64, 109),
    "gMLPlarge": (96, 768, 3072, 0, 365),
    "aMLPlarge": (72, 768, 3072, 128, 316),
    "gMLPxlarge": (144, 1024, 4096, 0, 941),
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models_have_the_papers_parameters(name):
    layers, dim, wide, attention, millions = LANGUAGE[name]
    n, vocabulary = 512, 32_000
    with torch.device("meta"):
        part = built(dim, n, ratio=wide / dim, toeplitz=True, attention=attention)
    # The paper's W is an encoder's, with n - 1 distances to the right as well; its head is the embedding.
    block = part.parameter_count() + (n - 1) + 2 * dim
    assert (layers * block + vocabulary * dim) / 1e6 == pytest.approx(millions, abs=0.55)


@pytest.mark.parametrize(("dim", "wide", "millions"), [(128, 768, 5.9), (256, 1536, 19.5), (512, 3072, 73.4)])
def test_image_models_have_the_papers_parameters(dim, wide, millions):
    n, classes = 196, 1000
    with torch.device("meta"):
        part = built(dim, n, ratio=wide / dim)
    full = part.parameter_count() + n * (n - 1) // 2  # an encoder's W is square
    embedding = 16 * 16 * 3 * dim + dim
    head = 2 * dim + dim * classes + classes
    assert (30 * (full + 2 * dim) + embedding + head) / 1e6 == pytest.approx(millions, rel=0.01)


def test_more_tokens_than_it_was_built_for_are_refused_with_the_number():
    part = built()
    with pytest.raises(UserError, match="up to 16 tokens, the context it was built for; 17 were given"):
        part(torch.zeros(1, 17, 32))
    state = part.init_state(1, 100, device="cpu", dtype=torch.float32)
    _, state = part(torch.zeros(1, 16, 32), state)
    with pytest.raises(UserError, match="17 were given"):
        part(torch.zeros(1, 1, 32), state)
    small = part.init_state(1, 3, device="cpu", dtype=torch.float32)
    with pytest.raises(UserError, match="room for 3 tokens, 4 were given"):
        part(torch.zeros(1, 4, 32), small)


def test_generation_goes_on_past_the_context_from_its_last_half():
    torch.manual_seed(0)
    model = mixlab.build_model(
        {
            "vocab_size": 9,
            "dim": 16,
            "depth": 2,
            "context": 8,
            "temporal": ["gmlp", "gru"],
            "position": "none",
        }
    )
    assert model.max_positions == 8
    notes = []
    assert len(list(generate(model, [1, 2], max_tokens=30, note=notes.append))) == 30
    assert len(notes) == 1


def test_state_grows_with_the_tokens():
    part = built(attention=8)
    sizes = [part.state_bytes(T, torch.float32) for T in (4, 8, 16)]
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0]) == 8 * (part.channels + 16) * 4


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"multiple": 3, "ratio": 0.1}, "has no halves"),
        ({"groups": 5}, "groups=5 does not divide 96 channels; the nearest that do are 4 and 6"),
        ({"attention": -1}, "must not be negative"),
    ],
)
def test_knobs_that_do_not_fit_are_named(knobs, words):
    with pytest.raises(UserError, match=words):
        built(**knobs)
