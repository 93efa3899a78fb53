"""The config edge refuses with one sentence and loses nothing on the way through TOML."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlab import config
from mixlab.config import apply_overrides, parse, read_preset, read_toml, to_mapping, to_toml, toml_value
from mixlab.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.1
    kind: Literal["cosine", "wsd"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int | None = None

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise UserError(f"lr {self.lr} is negative; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    steps: int = 10
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    sources: tuple[str, ...] = ("a",)
    part: str | dict[str, Any] | tuple[str, ...] = "attention"
    maybe: Inner | None = None


def refused(mapping: dict[str, Any], where: str = "") -> str:
    with pytest.raises(UserError) as caught:
        parse(Outer, {"name": "x", **mapping}, where)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_nested_tables_become_dataclasses() -> None:
    built = parse(Outer, {"name": "x", "inner": {"lr": 1, "betas": [0.5, 1]}, "many": [{}, {"kind": "wsd"}]})
    assert built == Outer(name="x", inner=Inner(lr=1.0, betas=(0.5, 1.0)), many=(Inner(), Inner(kind="wsd")))
    assert isinstance(built.inner.lr, float)


def test_an_instance_passes_as_it_is_and_inside_a_mapping() -> None:
    inner = Inner(kind="wsd")
    assert parse(Inner, inner) is inner
    assert parse(Outer, {"name": "x", "inner": inner}).inner == inner


@pytest.mark.parametrize("part", ["rnn", {"kind": "rnn", "heads": 2}, ["rnn", "gru"]])
def test_a_union_keeps_the_form_it_was_given(part: Any) -> None:
    expected = tuple(part) if isinstance(part, list) else part
    assert parse(Outer, {"name": "x", "part": part}).part == expected


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"stesp": 3}, "stesp: unknown key; did you mean 'steps'? choose from: "),
        (
            {"inner": {"lrr": 3}},
            "inner.lrr: unknown key; did you mean 'lr'? choose from: betas, kind, lr, warmup",
        ),
        ({"many": [{"lrr": 3}]}, "many.lrr: unknown key; did you mean 'lr'?"),
        ({"maybe": {"lrr": 3}}, "maybe.lrr: unknown key"),
        ({"steps": "3"}, "steps: expected an integer, got '3'"),
        ({"steps": 3.5}, "steps: expected an integer, got 3.5"),
        ({"steps": True}, "steps: expected an integer, got true"),
        ({"flag": 1}, "flag: expected true or false, got 1"),
        ({"name": 1}, "name: expected a string, got 1"),
        ({"inner": {"lr": "fast"}}, "inner.lr: expected a number, got 'fast'"),
        ({"inner": {"lr": float("nan")}}, "inner.lr: expected a finite number, got nan"),
        ({"inner": {"kind": "cosin"}}, "inner.kind: unknown value 'cosin'; did you mean 'cosine'?"),
        ({"inner": {"kind": 3}}, "inner.kind: expected one of 'cosine', 'wsd', got 3"),
        ({"inner": {"betas": [0.9]}}, "inner.betas: expected a list of 2: a number, a number, got [0.9]"),
        ({"inner": {"warmup": "x"}}, "inner.warmup: expected an integer, got 'x'"),
        ({"inner": {"lr": -1}}, "inner: lr -1.0 is negative; it must be 0 or more"),
        ({"inner": 3}, "inner: expected a table, got 3"),
        ({"sources": "my.txt"}, "sources: expected a list (each item a string), got 'my.txt'"),
        ({"sources": ["a", 3]}, "sources: expected a list (each item a string), got ['a', 3]"),
        ({"part": 3}, "part: expected a string or a table or a list (each item a string), got 3"),
        ({"inner": object()}, "inner: a config cannot hold <object"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_with_its_path(mapping: dict[str, Any], message: str) -> None:
    assert refused(mapping).startswith(message)


def test_the_path_starts_where_the_mapping_came_from() -> None:
    assert refused({"inner": {"lr": "x"}}, "study.a").startswith("study.a.inner.lr: ")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="name: missing; it must be a string"):
        parse(Outer, {})
    with pytest.raises(UserError, match="here: expected a table, got 3"):
        parse(Outer, 3, "here")  # type: ignore[arg-type]


@settings(max_examples=50)
@given(
    lr=st.floats(0, 1e6),
    name=st.text(st.characters(exclude_categories=["Cs"])),
    warmup=st.none() | st.integers(0, 2**40),
    sources=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_toml_round_trip_loses_nothing(lr: float, name: str, warmup: int | None, sources: list[str]) -> None:
    inner = Inner(lr=lr, warmup=warmup)
    original = Outer(
        name=name, inner=inner, many=(inner, Inner()), sources=tuple(sources), part={"kind": "rnn"}
    )
    assert parse(Outer, tomllib.loads(to_toml(original))) == original


def test_none_is_left_out_and_paths_become_strings() -> None:
    @dataclass(frozen=True)
    class Where:
        path: Path
        rest: int | None = None

    assert to_mapping(Where(Path("a/b"))) == {"path": "a/b"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("7", 7),
        ("true", True),
        ('"7"', "7"),
        ("[1, 2]", [1, 2]),
        ("{kind = 'rnn'}", {"kind": "rnn"}),
        ("attention", "attention"),
        ("my file.txt", "my file.txt"),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
    ],
)
def test_an_override_is_toml_or_a_bare_string(text: str, value: Any) -> None:
    assert toml_value(text) == value


def test_overrides_reach_any_depth_and_leave_the_original_alone() -> None:
    tables = {"train": {"lr": 1.0}, "model": {"temporal": "attention"}}
    changed = apply_overrides(
        tables, ["train.lr=3e-4", "train.schedule.kind=wsd", "model.temporal.heads=8", "a = b=c"]
    )
    assert changed == {
        "train": {"lr": 3e-4, "schedule": {"kind": "wsd"}},
        "model": {"temporal": {"kind": "attention", "heads": 8}},
        "a": "b=c",
    }
    assert tables == {"train": {"lr": 1.0}, "model": {"temporal": "attention"}}


@pytest.mark.parametrize("override", ["lr", "=3", "a..b=3", ".a=3", "train.lr.x=3"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(UserError, match=r"an override is key=value|has no keys below it"):
        apply_overrides({"train": {"lr": 1.0}}, [override])


def test_toml_errors_name_the_file_and_the_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("a = 1\nb = = 2\n")
    with pytest.raises(UserError, match=r"bad\.toml: not valid TOML: .*line 2"):
        read_toml(bad)
    bad.write_bytes(b"\xff\xfa")
    with pytest.raises(UserError, match="not UTF-8"):
        read_toml(bad)
    with pytest.raises(UserError, match="no such file"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(UserError, match="not a file"):
        read_toml(tmp_path)


def test_a_preset_is_found_by_name_or_path(tmp_path: Path) -> None:
    assert set(config.preset_names()) >= {"ngram", "window", "rnn", "gru", "lstm", "transformer"}
    assert read_preset("gru")["name"] == "gru"
    own = tmp_path / "mine.toml"
    own.write_text("[model]\ndim = 8\n")
    assert read_preset(own) == {"name": "mine", "model": {"dim": 8}}
    with pytest.raises(UserError, match=r"unknown preset 'transfomer': did you mean 'transformer'\?"):
        read_preset("transfomer")


@pytest.mark.parametrize("name", [name for name in config.preset_names() if name != "ngram"])
def test_a_preset_is_about_a_million_parameters_and_survives_its_own_toml(name: str) -> None:
    from mixlab.model.language_model import build_model

    chosen = config.load_run_config(name)
    assert chosen.model is not None
    with torch.device("meta"):
        count = sum(build_model(chosen.model).parameters_by_component().values())
    assert 0.9e6 < count < 1.1e6
    text = to_toml(chosen)
    assert to_toml(config.load_run_config(tomllib.loads(text))) == text


@pytest.mark.parametrize("name", [name for name in config.preset_names() if name != "ngram"])
def test_the_sizes_in_a_presets_comments_are_true(name: str) -> None:
    from mixlab.compare.request import DEFAULT_BATCH

    chosen = config.load_run_config(name)
    assert chosen.model is not None and chosen.train.steps is not None
    text = (resources.files("mixlab") / "presets" / f"{name}.toml").read_text("utf-8")
    rows = chosen.train.rows(chosen.model.context)
    step = rows * chosen.model.context
    assert re.findall(r"# (\d+) rows: small", text) == [str(rows)]
    assert chosen.train.batch_tokens == step
    assert re.findall(r"mixlab compare sets its own, (\d+)", text) == [str(DEFAULT_BATCH)]
    assert re.findall(r"([\d.]+)M tokens", text) == [f"{chosen.train.steps * step / 1e6:.1f}"]


def test_the_ngram_preset_has_no_model() -> None:
    chosen = config.load_run_config("ngram", ["ngram.order=4"])
    assert chosen.model is None
    assert chosen.ngram is not None
    assert chosen.ngram.order == 4


def test_a_config_that_cannot_work_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(
        UserError, match=r"train\.batch_tokens must be at least one row of model\.context \(256\)"
    ):
        config.load_run_config("gru", ["train.batch_tokens=255"])
    with pytest.raises(UserError, match=r"train\.accumulate must be from 1 to the 16 rows of a step, got 17"):
        config.load_run_config("gru", ["train.accumulate=17"])
    with pytest.raises(UserError, match=r"exactly one of \[model\] and \[ngram\]"):
        config.load_run_config({"data": {}})


def test_rows_a_step_are_read_as_tokens_as_older_runs_say_them() -> None:
    tables = {"model": {"context": 32}, "train": {"steps": 1, "batch_size": 6, "accumulate": 2}}
    read = config.load_run_config(tables)
    assert (read.train.batch_tokens, read.train.accumulate, read.train.rows(32)) == (192, 2, 6)
    assert "batch_size" not in to_toml(read)
    del tables["model"]["context"]
    assert config.load_run_config(tables).train.batch_tokens == 6 * 256
    for wrong in (0, -1, 2.5, True, "six"):
        tables["train"]["batch_size"] = wrong
        with pytest.raises(UserError, match=r"train\.batch_size: expected a number of rows"):
            config.load_run_config(tables)


def test_a_step_is_not_said_twice() -> None:
    with pytest.raises(UserError, match=r"leave one out \(8 rows are train\.batch_tokens=2048"):
        config.load_run_config("gru", ["train.batch_size=8"])


def test_tokens_a_step_go_to_the_nearest_row() -> None:
    train = config.load_run_config("gru").train
    assert [train.rows(context) for context in (1, 256, 1000, 1170, 1172, 4096)] == [4096, 16, 4, 4, 3, 1]


def test_defaults_are_listed_field_by_field() -> None:
    listed = config.defaults(Outer)
    assert listed["name"] is dataclasses.MISSING
    assert (listed["steps"], listed["inner"]) == (10, Inner())


@pytest.mark.parametrize("name", config.recipe_names())
def test_every_recipe_loads_and_is_no_model_to_compare(name: str) -> None:
    run = config.load_run_config(name)
    assert run.name == name
    assert name not in config.preset_names()
    assert run.data.tokenizer != "byte"  # a recipe fixes what a comparison leaves to the user


def test_shakespeare_cpu_has_at_most_the_parameters_of_its_peer() -> None:
    """nanoGPT at 4 layers of 128, 65 characters, 64 positions, no biases: 12 D^2 and two norms a layer, two
    tables and a norm."""
    peer = 4 * (12 * 128**2 + 2 * 128) + 65 * 128 + 64 * 128 + 128
    from mixlab.model.language_model import build_model

    run = config.load_run_config("shakespeare-cpu")
    assert run.model is not None
    model = build_model(dataclasses.replace(run.model, vocab_size=66))  # 65 characters, end of a document
    assert sum(p.numel() for p in model.parameters()) <= peer


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.temporal.ratio=inf", "model.temporal.ratio: expected a finite number, got inf"),
        ("model.embedding_scale=-inf", "model.embedding_scale: expected a finite number, got -inf"),
        ("model.dim=99999999999999999999", "model.dim: expected a number below 2**63"),
        ("name='../../evil'", "name must be what a folder may be called, not a path, got '../../evil'"),
        ("name='..'", "name must be what a folder may be called"),
    ],
)
def test_numbers_that_no_tensor_holds_and_names_that_are_paths_are_refused(override, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)):
        config.load_run_config("gru", [override, "train.steps=1"])


def test_values_nested_beyond_reason_are_one_sentence(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 3000 + "]" * 3000)
    with pytest.raises(UserError, match=r"deep.toml: not a config: its values nest deeper"):
        read_toml(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_toml_is_read_in_what_editors_write(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text('name = "\u00e9t\u00e9"\r\n[model]\r\ndim = 3\r\n', encoding=encoding, newline="")
    assert read_toml(file) == {"name": "\u00e9t\u00e9", "model": {"dim": 3}}


@pytest.mark.parametrize("number", ["9" * 4301, "-" + "9" * 5000, "0x" + "f" * 5000, "9" * 400])
def test_numbers_of_thousands_of_digits_are_one_sentence(tmp_path: Path, number: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f"[train]\nseed = {number}\n")
    for read in (
        lambda: config.load_run_config(str(file)),
        lambda: config.load_run_config("gru", [f"train.seed={number}"]),
        lambda: config.load_run_config("gru", [f"data.weights=[{number}]"]),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert len(str(caught.value)) < 250


def test_values_that_nest_without_end_are_one_sentence() -> None:
    with pytest.raises(UserError, match="nest deeper"):
        config.load_run_config("gru", [f"train.seed={'[' * 5000}"])
