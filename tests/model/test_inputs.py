"""A mistake in what a model is given is one sentence, from a neural model and an n-gram alike."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

import mixlab
from mixlab.errors import UserError
from mixlab.model import language_model
from mixlab.model.config import ModelConfig
from mixlab.model.inputs import check_rows, cross_entropy, look_up
from mixlab.parts.contract import available

IDS = torch.zeros(2, 8, dtype=torch.int64)


@pytest.fixture(autouse=True)
def _as_users_have_it():
    """Without the tests' shape checks, which would refuse a mistake first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def model():
    return mixlab.build_model({"vocab_size": 19, "dim": 16, "depth": 2, "temporal": ["attention", "gru"]})


WRONG_TOKENS = {
    "too large": (IDS + 19, "id 19 is outside the vocabulary of 19: ids run from 0 to 18"),
    "negative": (IDS - 1, "id -1 is outside the vocabulary of 19"),
    "one among many": (torch.tensor([[3, 18, 4, 25]]), "id 25 is outside"),
    "float": (IDS.float(), "tokens must be int64, got float32"),
    "bytes": (IDS.byte(), "tokens must be int64, got uint8"),
    "a row": (IDS[0], r"tokens must have the shape \(B, T\), T at least 1, got \(8,\)"),
    "three axes": (IDS[None], r"tokens must have the shape \(B, T\), T at least 1, got \(1, 2, 8\)"),
    "nothing": (IDS[:, :0], r"tokens must have the shape \(B, T\), T at least 1, got \(2, 0\)"),
    "a list": ([[1, 2]], r"tokens must be an int64 tensor of shape \(B, T\), got list"),
}


@pytest.mark.parametrize("name", WRONG_TOKENS)
def test_wrong_tokens_are_one_sentence(model, name):
    tokens, sentence = WRONG_TOKENS[name]
    with torch.no_grad():
        for call in (
            model,
            lambda x: model(x, model.init_state(2, 8)),
            lambda x: model.loss(x, IDS),
            lambda x: model.score(x, IDS),
        ):
            with pytest.raises(UserError, match=sentence):
                call(tokens)


WRONG_TARGETS = {
    "too large": (IDS + 19, "targets: id 19 is outside the vocabulary of 19"),
    "negative": (IDS - 1, "targets: id -1 is outside the vocabulary of 19"),
    "torch's own mark for none": (IDS - 100, "targets: id -100 is outside the vocabulary of 19"),
    "float": (IDS.float(), "targets must be int64, got float32"),
    "short": (IDS[:, :4], r"targets \(2, 4\) must have the shape of the tokens before them, \(2, 8\)"),
    "as many, but other rows": (IDS.view(4, 4), r"targets \(4, 4\) must have the shape"),
    "a list": ([1, 2], "targets must be an int64 tensor"),
}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", WRONG_TARGETS)
def test_wrong_targets_are_one_sentence(model, monkeypatch, name, chunked):
    targets, sentence = WRONG_TARGETS[name]
    if chunked:
        monkeypatch.setattr(language_model, "CHUNK_LOGITS", 3 * 19)
    for call in (model.loss, model.score):
        with pytest.raises(UserError, match=sentence):
            call(IDS, targets)


def test_segment_numbers_of_another_shape_are_one_sentence(model):
    with pytest.raises(UserError, match=r"segment numbers \(2, 4\) must have the shape"):
        model(IDS, segment=IDS[:, :4])


def test_segment_numbers_cannot_continue_a_state(model):
    with pytest.raises(UserError, match="of whole packed sequences: they cannot continue a state"):
        model(IDS, model.init_state(2, 8), segment=IDS)


@pytest.mark.parametrize("terms", [{"z_loss": -1.0}, {"z_loss": float("nan")}, {"label_smoothing": 1.0}])
def test_terms_of_the_loss_out_of_range_are_one_sentence(model, terms):
    with pytest.raises(UserError, match=r"z_loss must be 0 \(off\) or positive and label_smoothing"):
        model.losses(IDS, IDS, **terms)


@pytest.mark.parametrize("order", ["3", 2.0, True, 0, 9, None])
def test_an_ngram_names_an_order_that_cannot_be(order):
    with pytest.raises(UserError, match=f"order {order} is not possible: the order is an integer"):
        mixlab.NGram.train([1, 2, 3], order=order)


def test_an_ngram_is_written_to_a_path():
    for write in (NGRAM.save, NGRAM.write_arpa):
        for path in (None, 3):
            with pytest.raises(UserError, match=f"path.*, not (to|by) {type(path).__name__}"):
                write(path)


def test_a_part_is_registered_under_a_name():
    with pytest.raises(UserError, match="a part is registered under a name, got 5"):
        mixlab.register("temporal", 5)


def test_an_error_that_is_no_mistake_in_the_ids_stays_as_it_is(model, monkeypatch):
    def broken(tokens):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.embedding, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(IDS)


def test_a_right_call_reads_no_ids(model):
    """Reading them would be a pass over the tensor, and on a GPU a wait for it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        model.loss(IDS, IDS)
    assert "embedding" in seen
    assert not seen & {"lt", "ge", "bitwise_or", "aminmax", "_local_scalar_dense", "any"}


def test_the_checks_leave_one_graph_to_the_compiler():
    table = torch.nn.Embedding(19, 19)

    def loss(inputs, targets):
        x = look_up(table, inputs)
        check_rows("targets", targets, inputs)
        return cross_entropy(x.flatten(0, 1), targets.flatten(), reduction="sum")

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IDS, IDS), loss(IDS, IDS))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (None, "a table of its keys, the name of a preset or the path of a TOML file, got NoneType"),
        (5, "got int"),
        (["dim"], "got list"),
        (b"model.toml", "got bytes"),
        ({"dim": "wide"}, "model.dim: expected an integer, got 'wide'"),
        ({"dim": 64.0}, r"model.dim: expected an integer, got 64\.0"),
        ({"depth": None}, "model.depth: expected an integer, got None"),
        ({"temporal": 5}, "model.temporal: expected a string or a table"),
    ],
)
def test_what_is_no_model_config_is_one_sentence(source, sentence):
    with pytest.raises(UserError, match=sentence):
        mixlab.build_model(source)
    if isinstance(source, dict):
        with pytest.raises(UserError, match=sentence):
            mixlab.build_model(ModelConfig(**source))


@pytest.mark.parametrize("size", [0, -3, 2.5, "many"])
def test_an_ngram_names_a_vocabulary_size_that_cannot_be(size):
    with pytest.raises(UserError, match=f"vocab_size {size} is not possible.*at least 1"):
        mixlab.NGram.train([1, 2, 3], vocab_size=size)


def test_an_ngram_names_a_vocabulary_too_large_for_memory():
    with pytest.raises(UserError, match="does not fit in memory; choose a smaller order or vocab_size"):
        mixlab.NGram.train([1, 2, 3], vocab_size=10**15)


@pytest.mark.parametrize("tokens", [IDS[0], IDS[None], [[1, 2]]])
def test_an_ngram_refuses_what_is_not_rows(tokens):
    ngram = mixlab.NGram.train([1, 2, 3])
    for call in (ngram, lambda x: ngram.score(x, IDS), lambda x: ngram.score(IDS, x)):
        with pytest.raises(UserError, match=r"must (have the shape|be an int64 tensor of shape) \(B, T\)"):
            call(tokens)


@pytest.mark.parametrize("path", [None, 5, b"run", ["run"]])
def test_a_run_is_loaded_by_its_path(path):
    with pytest.raises(UserError, match=f"by the path of its folder, not by {type(path).__name__}"):
        mixlab.load(path)


NGRAM = mixlab.NGram.train([[1, 2, 3, 1, 2]], order=3, vocab_size=19)


@pytest.mark.parametrize("kind", ["neural", "n-gram"])
@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((-1, 8), "batch_size must be a whole number, 1 or more, got -1"),
        ((0, 8), "batch_size must be a whole number, 1 or more, got 0"),
        (("2", 8), "batch_size must be a whole number, 1 or more, got '2'"),
        ((2, -3), "max_length must be a whole number, 0 or more, got -3"),
        ((2, 8.0), "max_length must be a whole number, 0 or more, got 8.0"),
    ],
)
def test_a_state_that_cannot_be_is_one_sentence(model, kind, sizes, sentence):
    with pytest.raises(UserError, match=sentence):
        (model if kind == "neural" else NGRAM).init_state(*sizes)


@pytest.mark.parametrize(("dtype", "name"), [(torch.int64, "int64"), (float, "<class 'float'>")])
def test_a_state_in_a_dtype_of_no_use_is_one_sentence(model, dtype, name):
    with pytest.raises(UserError, match=f"one of floating point, such as torch.float32, got {name}"):
        model.init_state(2, 8, dtype=dtype)


@pytest.mark.parametrize("temporal", available("temporal"))
def test_a_state_of_other_tokens_is_one_sentence(temporal):
    model = mixlab.build_model({"vocab_size": 19, "dim": 16, "depth": 2, "temporal": temporal})
    for sequences in (1, 3):
        with pytest.raises(UserError, match=f"this state is of {sequences} sequences, the tokens are of 2"):
            model(IDS, model.init_state(sequences, 8))


def test_a_state_of_something_else_is_one_sentence(model):
    other = mixlab.build_model({"vocab_size": 19, "dim": 16, "depth": 3, "temporal": "gru"})
    for state, sentence in (
        ("text", "the ModelState that init_state or the call before returned, got str"),
        (
            NGRAM.init_state(2, 8),
            "the ModelState that init_state or the call before returned, got NGramState",
        ),
        (
            model.init_state(2, 8).blocks,
            "the ModelState that init_state or the call before returned, got tuple",
        ),
        (other.init_state(2, 8), "this state is of 3 blocks, the model has 2"),
    ):
        with pytest.raises(UserError, match=sentence):
            model(IDS, state)
    with pytest.raises(UserError, match="this state is of 3 sequences, the tokens are of 2"):
        NGRAM(IDS, NGRAM.init_state(3, 8))
    with pytest.raises(
        UserError, match="the NGramState that init_state or the call before returned, got ModelState"
    ):
        NGRAM(IDS, model.init_state(2, 8))


@pytest.mark.parametrize("place", [None, 3])
def test_an_ngram_from_no_folder_is_one_sentence(place):
    with pytest.raises(UserError, match="an n-gram is given by the path of its folder, not by"):
        mixlab.NGram.load(place)


def test_an_empty_batch_has_logits_and_scores_of_none_but_no_loss():
    model = mixlab.build_model({"vocab_size": 16, "dim": 16, "depth": 1, "context": 8, "temporal": "rwkv7"})
    tokens = torch.zeros(0, 4, dtype=torch.int64)
    assert model(tokens).logits.shape == (0, 4, 16)
    assert model.score(tokens, tokens).shape == (0, 4)
    with pytest.raises(UserError, match=r"an empty batch has no loss: .* got \(0, 4\)"):
        model.loss(tokens, tokens)
