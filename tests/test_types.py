"""What a type checker and an editor see of mixlab: real types, and no name that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

LAZY = ("mixlab", "mixlab.compare", "mixlab.data", "mixlab.train")

CLIENT = """
import mixlab
import mixlab.compare, mixlab.data, mixlab.decode, mixlab.report, mixlab.train

reveal_type(mixlab.build_model({}))
reveal_type(mixlab.load("run"))
reveal_type(mixlab.available("temporal"))
reveal_type(mixlab.NGram.train([1, 2]))
reveal_type(mixlab.train.RunConfig().train.steps)
reveal_type(mixlab.data.load_tokenizer("run").decode([1]))
reveal_type(mixlab.compare.read_bands())
reveal_type(mixlab.open("run").generate("text", seed=1))
reveal_type(mixlab.open("run").evaluate("my.txt"))
reveal_type(mixlab.save(mixlab.build_model("gru", dim=64), "run"))
mixlab.nonsense
mixlab.train.nonsense
mixlab.compare.nonsense
mixlab.data.nonsense
mixlab.decode.nonsense
mixlab.report.nonsense
"""

SEEN = {
    5: "mixlab.model.language_model.LanguageModel",
    6: "mixlab.model.language_model.LanguageModel | mixlab.model.ngram.NGram",
    7: "tuple[str, ...]",
    8: "mixlab.model.ngram.NGram",
    9: "int | None",
    10: "str",
    11: "mixlab.compare.bands.Bands",
    12: "str",
    13: "mixlab.train.evaluate.Evaluation",
    14: "pathlib.Path",
}
"""Line of CLIENT -> the type revealed there."""

SKIPPED = ("torch", "numpy", "safetensors", "tokenizers", "pydantic", "scipy", "plotly", "rich", "jinja2")
"""Left out of the analysis, which is then of mixlab alone and takes seconds."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Line of CLIENT -> what mypy says of it."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("client")
    (folder / "client.py").write_text(CLIENT)
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in SKIPPED)
    (folder / "mypy.ini").write_text(
        f"[mypy]\nignore_missing_imports = true\nmypy_path = {Path('src').absolute()}\n{skipped}"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "client.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return {
        int(line): said for line, said in re.findall(r"^client\.py:(\d+): (.*)$", done.stdout, re.MULTILINE)
    }


def test_exported_names_have_their_types(seen: dict[int, str]) -> None:
    assert {line: seen.get(line, "nothing") for line in SEEN} == {
        line: f'note: Revealed type is "{kind}"' for line, kind in SEEN.items()
    }


def test_a_name_that_is_not_there_is_an_error_before_anything_runs(seen: dict[int, str]) -> None:
    lines = [number for number, line in enumerate(CLIENT.splitlines(), 1) if "nonsense" in line]
    assert len(lines) == 6
    for line in lines:
        assert 'error: Module has no attribute "nonsense"' in seen.get(line, "nothing")


@pytest.mark.parametrize("name", LAZY)
def test_a_package_lists_and_gives_every_name_that_it_offers(name: str) -> None:
    package = import_module(name)
    assert package.__all__
    for exported in package.__all__:
        assert exported in dir(package)
        assert find_spec(f"{name}.{exported}") is None, "a submodule of that name would take its place"
        assert getattr(package, exported).__name__ == exported
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018
