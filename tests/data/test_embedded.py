"""The corpus that is on every machine: deterministic, whole files, no more than asked for."""

import pytest

from mixlab.data import embedded
from mixlab.data.corpus import Corpus
from mixlab.errors import UserError


def test_the_default_slice_is_close_to_full_and_never_over():
    corpus = Corpus.read(["corpus:python"])
    size = sum(len(document.encode()) for document in corpus.documents)
    assert 3_900_000 <= size <= 4_000_000
    assert len(corpus.documents) > 100
    assert not corpus.replaced and not corpus.notes


def test_the_slice_is_the_same_every_time_and_grows_with_its_limit():
    first, second = (Corpus.read(["corpus:python"], max_bytes=300_000) for _ in range(2))
    assert first.documents == second.documents and first.sha256 == second.sha256
    assert Corpus.read(["corpus:python"], max_bytes=200_000).sha256 != first.sha256


def test_documents_are_whole_source_files_without_tests_and_tables():
    files = embedded.stdlib_files(embedded.stdlib_folder())
    names = [name for name, _ in files]
    assert names == sorted(names) and "argparse.py" in names and "json/decoder.py" in names
    for name in names:
        folders = name.split("/")[:-1]
        assert not {"test", "tests", "site-packages", "encodings", "__pycache__"} & set(folders)
    root = embedded.stdlib_folder()
    chosen = embedded.choose(files, 100_000)
    contents = {(root / name).read_bytes().decode() for name in chosen}
    assert set(Corpus.read(["corpus:python"], max_bytes=100_000).documents) == contents - {""}


def test_the_choice_does_not_depend_on_the_order_of_listing():
    files = [(f"m{i}.py", 100 + i) for i in range(50)]
    assert embedded.choose(files, 2000) == embedded.choose(files[::-1], 2000)


def test_no_room_and_no_source_are_said(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="max_bytes is 1,"):
        Corpus.read(["corpus:python"], max_bytes=1)
    monkeypatch.setattr(embedded, "stdlib_folder", lambda: tmp_path / "zipped")
    with pytest.raises(UserError, match="carries no source"):
        Corpus.read(["corpus:python"])
