"""Parquet files and `datasets` folders are read by column; what is wrong with one is a sentence."""

from __future__ import annotations

import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from mixlab.data import DataConfig, columns, prepare
from mixlab.data.corpus import Corpus
from mixlab.errors import UserError

ROWS = [f"row {n} with größer text" for n in range(50)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No progress bars; batches of a few rows."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(columns, "ROWS", 7)


def write(path, group=20, **table):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(table), path, row_group_size=group)
    return path


def read(path, **options):
    return Corpus.read([str(path)], **options)


def refused(path, **options):
    with pytest.raises(UserError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_are_documents_in_order_whatever_the_row_groups(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": row}) + "\n" for row in ROWS))
    expected = read(tmp_path / "rows.jsonl", text_field="body")
    for group in (1, 20, 1000):
        found = read(write(tmp_path / "x.parquet", group, n=range(50), body=ROWS), text_field="body")
        assert found.documents == tuple(ROWS) and found.sha256 == expected.sha256


def test_rows_without_text_are_left_out_and_said(tmp_path):
    corpus = read(write(tmp_path / "x.parquet", text=["one", None, "", "two"]))
    assert corpus.documents == ("one", "two")
    assert corpus.notes == (f"left out 2 rows without text in 1 file ('{tmp_path / 'x.parquet'}')",)


def test_nuls_and_invalid_utf8_are_replaced_and_counted(tmp_path):
    damaged = pyarrow.array([b"caf\xe9 a", b"fine", None], pyarrow.binary()).view(pyarrow.string())
    corpus = read(write(tmp_path / "x.parquet", text=damaged))
    assert corpus.documents == ("caf\ufffd a", "fine") and corpus.replaced == 1
    assert read(write(tmp_path / "y.parquet", text=["a\0b"])).documents == ("a\ufffdb",)


@pytest.mark.parametrize(
    "kind", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
)
def test_strings_of_every_kind_are_text(tmp_path, kind):
    assert read(write(tmp_path / "x.parquet", text=pyarrow.array(ROWS).cast(kind))).documents == tuple(ROWS)


def test_a_missing_column_lists_those_there_are_and_the_nearest(tmp_path):
    message = refused(write(tmp_path / "x.parquet", body=ROWS, n=range(50)), text_field="bdy")
    assert (
        "x.parquet' has no column 'bdy' (data.text_field): did you mean 'body'? choose from: body, n"
        in message
    )
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"content": ROWS, "id": list(range(50))}).save_to_disk(str(saved))
    assert (
        "saved' has no column 'text' (data.text_field): did you mean 'content'? choose from: content, id"
        in refused(saved)
    )


def test_a_column_that_is_no_text_names_the_row(tmp_path):
    path = write(tmp_path / "x.parquet", n=[None] * 9 + [3], text=ROWS[:10])
    assert "x.parquet', row 9: 'n' is int, not text" in refused(path, text_field="n")


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b"not parquet", lambda b: b""])
def test_a_damaged_shard_in_a_folder_is_named(tmp_path, damage):
    whole = write(tmp_path / "data" / "train-00000-of-00002.parquet", text=ROWS)
    (tmp_path / "data" / "train-00001-of-00002.parquet").write_bytes(damage(whole.read_bytes()))
    assert "train-00001-of-00002.parquet' is not a readable parquet file: " in refused(tmp_path / "data")


def test_a_damaged_page_is_named(tmp_path):
    path = write(tmp_path / "x.parquet", text=ROWS)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    assert "x.parquet' is not a readable parquet file" in refused(path)


def test_a_folder_of_shards_is_read_without_the_card_that_lies_beside(tmp_path):
    for n in range(3):
        write(tmp_path / "data" / f"train-0000{n}-of-00003.parquet", text=ROWS[n * 10 : n * 10 + 10])
    for name in ("README.md", "dataset_infos.json", "dataset_info.json"):
        (tmp_path / name).write_text("{} about the data")
        (tmp_path / "data" / name).write_text("{} about the data")
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "more"}))
    assert read(tmp_path).documents == (*ROWS[:30], "more")
    assert read(tmp_path / "data").documents == tuple(ROWS[:30])


def test_a_folder_without_parquet_keeps_its_readme(tmp_path):
    (tmp_path / "README.md").write_text("read me")
    assert read(tmp_path).documents == ("read me",)


def test_a_datasets_folder_is_read_shard_by_shard(tmp_path):
    data = datasets.Dataset.from_dict({"n": list(range(50)), "text": ROWS})
    data.save_to_disk(str(tmp_path / "plain"), num_shards=3)
    shuffled = data.shuffle(seed=0).select(range(20))
    shuffled.save_to_disk(str(tmp_path / "shuffled"))
    datasets.DatasetDict({"train": data, "test": shuffled}).save_to_disk(str(tmp_path / "parts"))
    assert read(tmp_path / "plain").documents == tuple(ROWS)
    assert read(tmp_path / "shuffled").documents == tuple(shuffled["text"])
    assert read(tmp_path / "parts").documents == (*ROWS, *shuffled["text"])
    assert read(tmp_path).documents == (*ROWS, *shuffled["text"], *ROWS, *shuffled["text"])  # several in one


@pytest.mark.parametrize("broken", ["state.json", "data-00000-of-00001.arrow"])
def test_a_damaged_datasets_folder_is_named(tmp_path, broken):
    datasets.Dataset.from_dict({"text": ROWS}).save_to_disk(str(tmp_path / "saved"))
    file = tmp_path / "saved" / broken
    file.write_bytes(file.read_bytes()[:30])
    assert "saved' is not a readable datasets folder" in refused(tmp_path / "saved")


def test_the_column_is_chosen_by_a_key_of_the_config(tmp_path):
    path = write(tmp_path / "x.parquet", review=[row * 5 for row in ROWS])
    data = prepare(DataConfig(sources=(str(path),), text_field="review"), cache_dir=tmp_path / "cache")
    assert data.facts["documents"] == 50 and data.train.num_documents + data.valid.num_documents == 50
