"""The playbook of docs/add-a-part.md, followed to the letter in an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "add-a-part.md"


def blocks(language):
    """The page's code blocks in that language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The three files, saved under the names that the page gives them."""
    place = tmp_path_factory.mktemp("own part")
    part, test = blocks("python")
    (place / "average.py").write_text(part)
    (place / "test_average.py").write_text(test)
    (place / "average.toml").write_text(blocks("toml")[0])
    return place


def run(folder, *arguments):
    """A command in the folder, as a user has it: the output, after a check that it succeeded."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MIXLAB_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["pytest", "_pytest", "beartype", "hypothesis"]))  # importing them fails
from mixlab.cli import main
main()
"""


def test_the_part_is_checked_with_what_mixlab_itself_needs(folder):
    command, expected = re.search(r"\$ mixlab (check .*)\n((?:.*\n)*?)```", PAGE.read_text()).groups()
    assert run(folder, "-c", WITHOUT, *command.split()) == expected


def test_the_failure_that_the_page_shows_is_what_a_broken_part_gets(folder):
    (folder / "broken.py").write_text(
        (folder / "average.py").read_text().replace("AverageState(h.to(", "AverageState(0 * h.to(")
    )
    code = """
import broken
from mixlab.parts.checks import Case, check_chunks
try:
    check_chunks(Case("temporal", "average"))
except AssertionError as error:
    print(f"  FAILED  chunks: {error}")
"""
    shown = re.search(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    without_digits = [re.sub(r"0\.\d+", "0.", text) for text in (run(folder, "-c", code), shown)]
    assert without_digits[0] == without_digits[1]


def test_the_part_keeps_the_contract_as_the_page_says(folder):
    command, expected = re.search(
        r"\$ python -m (pytest .*)\n(?:.*\n)*?(\d+ passed)", PAGE.read_text()
    ).groups()
    assert expected in run(folder, "-m", *command.split(), "-p", "no:cacheprovider")


def test_the_part_is_compared_like_any_other(folder):
    command = re.search(r"\$ mixlab (compare .*)", PAGE.read_text()).group(1).split()
    run(folder, "-m", "mixlab", *command)
    comparison = json.loads((folder / "comparison" / "comparison.json").read_text())
    rows = {row["model"]: row for row in comparison["results"]}
    assert set(rows) == {"average", "gru", "ngram (all of the text)", "ngram (same text)"}
    assert all(row["status"] == "done" for row in rows.values()), rows
    assert rows["average"]["parameters"] == pytest.approx(100_000, rel=0.02)
    assert rows["average"]["bits_per_byte"] < 8
    assert (folder / "comparison" / "report.html").stat().st_size > 1_000_000
