"""`build_model` by a preset's name, by a file, and with single keys replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

import mixlab
from mixlab.config import preset_names, read_preset, recipe_names
from mixlab.errors import UserError
from mixlab.model.config import model_config

NEURAL = [name for name in (*preset_names(), *recipe_names()) if name != "ngram"]


@pytest.mark.parametrize("name", NEURAL)
def test_a_preset_gives_its_model(name: str) -> None:
    tables = read_preset(name)["model"]
    config = model_config(name)
    assert config == model_config(tables)
    assert model_config(name, vocab_size=300, dropout=0.5) == model_config(
        {**tables, "vocab_size": 300, "dropout": 0.5}
    )


def test_a_model_is_built_by_name() -> None:
    model = mixlab.build_model("griffin", dim=32, temporal=["rglru", {"kind": "attention", "window": 8}])
    assert model.config.dim == 32
    assert [type(block.temporal).__name__ for block in model.layers()] == ["RGLRU", "Attention", "RGLRU"]
    assert model.config.depth == read_preset("griffin")["model"]["depth"]


def test_a_file_is_read_with_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "gru"\n[model]\ndim = 48\n')
    (tmp_path / "plain.toml").write_text("dim = 48\ndepth = 1\n")
    for path in (tmp_path / "mine.toml", str(tmp_path / "mine.toml")):
        assert model_config(path) == model_config("gru", dim=48)
    assert model_config(tmp_path / "plain.toml", depth=3) == model_config({"dim": 48, "depth": 3})


@pytest.mark.parametrize(
    ("source", "knobs", "sentence"),
    [
        ("grifin", {}, "unknown preset 'grifin': did you mean 'griffin'?"),
        ("", {}, "unknown preset '': choose from: .*griffin"),
        ("ngram", {}, "'ngram' is an n-gram, which counts a text .* mixlab.NGram.train"),
        ("gru", {"dims": 8}, "model.dims: unknown key; did you mean 'dim'?"),
        ("gru", {"dim": "wide"}, "model.dim: expected an integer, got 'wide'"),
        ("no/such/file.toml", {}, "no/such/file.toml: no such file"),
        ("no/such/file", {}, "no/such/file: no such file"),
    ],
)
def test_what_names_no_model_is_one_sentence(source: str, knobs: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        mixlab.build_model(source, **knobs)
