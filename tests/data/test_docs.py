"""The page on data says what happens."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_python_lines_of_the_page_give_what_they_show(monkeypatch, tmp_path):
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path))
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted >= 5 and not results.failed


def test_the_page_names_every_fact(tmp_path):
    from mixlab.data import DataConfig, prepare

    facts = prepare(DataConfig(max_bytes=50_000), cache_dir=tmp_path).facts
    page = PAGE.read_text()
    derived = {f"valid_{name}" for name in ("documents", "bytes", "tokens")}
    assert not [key for key in facts if f"`{key}`" not in page and key not in derived]
