"""Files that extend a preset or each other: what is merged, what replaces, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixlab.config import load_run_config, read_preset, to_toml
from mixlab.errors import UserError
from mixlab.extends import merged, read_tables
from mixlab.model.config import model_config


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_has_the_presets_tables_with_its_own_on_top_and_its_own_name(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.toml", 'extends = "gru"\n[model]\ndepth = 3\n[train.optimizer]\nlr = 0.5\n')
    base, own = read_preset("gru"), read_preset(mine)
    assert own == {
        **base,
        "name": "mine",
        "model": base["model"] | {"depth": 3},
        "train": base["train"] | {"optimizer": base["train"]["optimizer"] | {"lr": 0.5}},
    }
    assert "extends" not in to_toml(load_run_config(mine))
    assert model_config(mine).depth == 3


def test_a_path_is_taken_from_the_files_own_folder_and_a_chain_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "base.toml", 'extends = "gru"\nname = "other"\n[model]\ndepth = 3\n')
    last = write(tmp_path / "deep" / "last.toml", 'extends = "../base.toml"\n[model]\nnorm = "layernorm"\n')
    config = load_run_config(last)
    assert config.model is not None
    assert (config.name, config.model.depth, config.model.norm) == ("last", 3, "layernorm")
    assert config.model.temporal == "gru"


@pytest.mark.parametrize(
    ("base", "own", "both"),
    [
        ("attention", {"heads": 2}, {"kind": "attention", "heads": 2}),
        ({"kind": "attention", "heads": 2}, {"window": 8}, {"kind": "attention", "heads": 2, "window": 8}),
        (
            {"kind": "attention", "heads": 2},
            {"kind": "attention", "window": 8},
            {"kind": "attention", "heads": 2, "window": 8},
        ),
        ({"kind": "attention", "heads": 2}, {"kind": "rwkv4"}, {"kind": "rwkv4"}),
        ({"kind": "attention", "heads": 2}, "gru", "gru"),
        (["gru", "attention"], {"kind": "gru"}, {"kind": "gru"}),
    ],
)
def test_knobs_are_merged_within_one_kind_and_go_with_another(
    base: object, own: object, both: object
) -> None:
    assert merged({"temporal": base, "depth": 2}, {"temporal": own}) == {"temporal": both, "depth": 2}


def test_another_length_replaces_the_bases_and_so_does_another_measure_of_a_step(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.toml", 'extends = "gru"\n[train]\ntokens = 99\nbatch_size = 2\n')
    train = load_run_config(mine).train
    assert (train.steps, train.tokens, train.batch_tokens) == (None, 99, 2 * 256)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('extends = "gur"', r"mine\.toml: extends: unknown preset 'gur': did you mean 'gru'\?"),
        ("extends = 3", r"mine\.toml: extends: expected the name of a preset or the path of a \.toml file"),
        ('extends = "absent.toml"', r"absent\.toml: no such file"),
        ('extends = "mine.toml"', r"extends goes in a circle \(.*mine\.toml -> .*mine\.toml\)"),
        ('extends = "sub/other.toml"', r"in a circle \(.*mine\.toml -> .*other\.toml -> .*mine\.toml\)"),
    ],
)
def test_what_cannot_be_extended_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    write(tmp_path / "sub" / "other.toml", 'extends = "../mine.toml"\n')
    mine = write(tmp_path / "mine.toml", text)
    with pytest.raises(UserError, match=sentence):
        read_tables(mine)


def test_a_file_that_links_to_itself_is_refused_in_a_sentence(tmp_path: Path) -> None:
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop.name)
    for path in (loop, write(tmp_path / "over.toml", 'extends = "loop.toml"\n')):
        with pytest.raises(UserError, match="loop.toml: cannot be read .*links"):
            read_preset(path)
