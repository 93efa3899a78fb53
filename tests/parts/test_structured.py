"""Structured feed-forward layers: what they reduce to, the paper's sizes, and their start."""

import pytest
import torch

from mixlab.errors import UserError
from mixlab.parts.checks import measured_flops
from mixlab.parts.contract import get
from mixlab.parts.feature.maps import BlockDenseMap, BlockShuffleMap, LowRankMap

NAMES = ["low_rank", "block_dense", "block_shuffle"]


def built(name, dim=64, layer=1, **knobs):
    torch.manual_seed(0)
    part = get("feature", name)
    return part.build(part.Config(**knobs), dim=dim, depth=8, layer=layer)


def dense(map):
    """The matrix of a map without a bias."""
    with torch.no_grad():
        return map(torch.eye(map.inputs)).T


def test_block_dense_with_one_block_is_low_rank():
    one, other = LowRankMap(24, 48, 8), BlockDenseMap(24, 48, 8, 1)
    one.reset(1.0)
    with torch.no_grad():
        other.v.weight[0] = one.v.weight
        other.u.weight.copy_(one.u.weight)
    x = torch.randn(5, 24)
    assert torch.allclose(other(x), one(x), atol=1e-6)
    assert other.parameter_count() == one.parameter_count()


def test_block_shuffle_with_one_block_is_a_product_of_dense_matrices():
    map = BlockShuffleMap(24, 48, 1)
    map.reset(1.0)
    x = torch.randn(5, 24)
    assert torch.allclose(map(x), x @ map.v.weight[0].T @ map.u.weight[0].T, atol=1e-6)


def test_block_shuffle_connects_every_input_with_every_output():
    map = BlockShuffleMap(16, 32, 4)
    torch.nn.init.ones_(map.v.weight)
    torch.nn.init.ones_(map.u.weight)
    assert (dense(map) > 0).all()


# The paper's XL: width 2048, 24 blocks of which the first is dense; knobs and millions of parameters.
XL = {
    "low_rank 63%": ("low_rank", {"share": 5 / 8}, 515.90),
    "block_dense 63%": ("block_dense", {"blocks": 4, "rank": 1536}, 485.75),
    "block_shuffle 63%": ("block_shuffle", {"blocks": 2}, 515.90),
    "low_rank 32%": ("low_rank", {}, 274.73),
    "block_dense 32%": ("block_dense", {"blocks": 4, "rank": 768}, 259.65),
    "block_shuffle 32%": ("block_shuffle", {}, 274.73),
    "dense": ("gelu", {}, 805.31),
}


@pytest.mark.parametrize("name", XL)
def test_networks_hold_the_papers_parameters(name):
    part, knobs, millions = XL[name]
    with torch.device("meta"):
        layers = [built(part, 2048, layer, **knobs) for layer in range(2)]
    found = layers[0].parameter_count() + 23 * layers[1].parameter_count()
    assert found / 1e6 == pytest.approx(millions, abs=0.005)
    for layer in layers:
        assert layer.parameter_count() == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize(("dim", "rank", "blocks"), [(768, 256, 2), (1536, 512, 2)])
def test_a_third_gives_block_dense_the_papers_ranks(dim, rank, blocks):
    with torch.device("meta"):
        assert built("block_dense", dim, blocks=blocks).up.rank == rank
        assert built("block_dense", dim, blocks=blocks, share=5 / 8).up.rank == 2 * rank
        assert built("low_rank", dim).up.rank == dim // 4


@pytest.mark.parametrize("name", NAMES)
def test_the_first_block_of_the_network_stays_dense_unless_told(name):
    first = built(name, layer=0)
    assert first.up.whole.weight.shape == (256, 64)
    assert first.tensor_plan() == {"up.whole": "column", "down.whole": "row"}
    assert first.parameter_count() == sum(p.numel() for p in first.parameters()) == 2 * 64 * 256
    assert first.flops(3) == 3 * 4 * 64 * 256
    assert built(name, layer=0, dense_first=False).parameter_count() == built(name).parameter_count()


def test_low_rank_starts_as_the_best_approximation_of_a_dense_draw():
    part = built("low_rank", dim=64)
    torch.manual_seed(0)
    part.reset_parameters()
    torch.manual_seed(0)
    draws = [torch.empty(256, 64).normal_(std=0.02), torch.empty(64, 256).normal_(std=0.02 / 4)]
    for map, draw in zip((part.up, part.down), draws, strict=True):
        singular = torch.linalg.svdvals(draw)
        left, values, right = torch.linalg.svd(draw, full_matrices=False)
        assert torch.allclose(dense(map), left[:, :16] * values[:16] @ right[:16], atol=1e-5)
        error = torch.linalg.matrix_norm(draw - dense(map))
        assert error.item() == pytest.approx(singular[16:].square().sum().sqrt().item(), rel=1e-4)
        for factor in (map.u.weight, map.v.weight):
            assert torch.allclose(torch.linalg.svdvals(factor), singular[:16].sqrt(), atol=1e-5)


def test_blocks_start_orthogonal():
    for name in ("block_dense", "block_shuffle"):
        part = built(name)
        values = torch.linalg.svdvals(dense(part.up))
        rank = part.up.rank if name == "block_dense" else part.up.waist
        assert torch.allclose(values[:rank], torch.ones(rank), atol=1e-5)
        assert torch.linalg.svdvals(dense(part.down)).max().item() == pytest.approx(1 / 4, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("low_rank", {"rank": 65}, "rank 65 is out of range: 1 to the width 64"),
        ("low_rank", {"share": 0.0}, "share=0.0 is out of range"),
        ("block_dense", {"rank": 9}, "rank 9 is not a multiple of 2 blocks"),
        (
            "block_dense",
            {"blocks": 3},
            "3 blocks do not divide the width 64; the nearest that do are 2 and 4",
        ),
        ("block_shuffle", {"blocks": 0}, "0 blocks do not divide the width 64"),
    ],
)
def test_knobs_that_do_not_fit_are_named(name, knobs, words):
    with pytest.raises(UserError, match=words):
        built(name, **knobs)


def guided(name, dim=32):
    part = built(name, dim=dim, guidance=0.5).double()
    assert part.set_progress(0.0)
    return part


@pytest.mark.parametrize("name", NAMES)
def test_guides_start_as_the_product_whatever_their_weight(name):
    part, x = guided(name), torch.randn(2, 3, 32, dtype=torch.float64)
    plain = part.eval()(x)[0]
    for fraction in (0.01, 0.2, 0.49):
        assert not part.set_progress(fraction)
        assert torch.allclose(part.train()(x)[0], plain, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_alpha_w_x_and_the_rest_the_structure_and_evaluation_has_no_guide(name):
    part, x = guided(name), torch.randn(5, 32, dtype=torch.float64)
    torch.nn.init.normal_(part.up.guide)
    part.set_progress(0.125)
    alpha = (1 + 2**-0.5) / 2  # a quarter of the way down the cosine
    wanted = alpha * x @ part.up.guide.T + (1 - alpha) * part.up.multiply(x)
    assert torch.allclose(part.up(x), wanted, atol=1e-12)
    part.eval()
    assert torch.equal(part.up(x), part.up.multiply(x))


def test_guides_fade_to_nothing_and_leave_no_parameter():
    part = guided("low_rank")
    bare = {name for name, _ in built("low_rank", dim=32).named_parameters()}
    weights = []
    for step in range(8):
        changed = part.set_progress((step + 0.5) / 8)
        assert changed == (step == 4)
        weights.append(part.up.alpha)
        roles = part.parameter_roles()
        assert set(roles) == {name for name, _ in part.named_parameters()}
        assert set(roles) == bare | ({"up.guide", "down.guide"} if step < 4 else set())
        assert set(part.state_dict()) == bare
    assert weights[:4] == sorted(weights[:4], reverse=True)
    assert weights[0] > 0.95 and weights[3] < 0.05 and weights[4:] == [0.0] * 4
    assert not part.set_progress(0.1)
    assert part.up.guide is None


@pytest.mark.parametrize("name", NAMES)
def test_flops_count_the_guides_in_training_alone(name):
    part, x = guided(name), torch.randn(1, 3, 32, dtype=torch.float64)
    for training in (True, False):
        part.train(training)
        assert part.flops(3) == measured_flops(lambda: part(x))
    assert part.train().flops(3) - part.eval().flops(3) == 3 * 4 * 32 * 128


@pytest.mark.parametrize("name", NAMES)
def test_a_guided_network_stays_whole_on_every_process(name):
    part = guided(name)
    assert not part.tensor_plan() and part.tensor_units() == 0
    part.set_progress(0.5)
    assert part.tensor_plan() == built(name, dim=32).tensor_plan()


def test_the_networks_dense_first_block_needs_no_guide():
    assert not built("low_rank", layer=0, guidance=0.5).set_progress(0.0)
