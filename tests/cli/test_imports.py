"""`--import` brings in parts of one's own, before or after the verb."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Command, settings

from mixlab.parts import contract

PART = '''
"""A part."""
from mixlab.parts.contract import register
from mixlab.parts.temporal.window import Window

@register("temporal", "{name}")
class Toy(Window):
    """Looks back, like a window."""
'''


@pytest.fixture
def own_part():
    """Gives back the registry and the modules as they were: other tests run over everything registered."""
    path = list(sys.path)
    yield
    forget()
    sys.path[:] = path


def forget() -> None:
    """As another process would be, which has not imported the toys."""
    for held in (sys.modules, contract._REGISTRY["temporal"]):
        for name in [name for name in held if name.startswith("toy_")]:
            del held[name]


@pytest.mark.usefixtures("own_part")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--import", "toy_{n}.py", "parts", "temporal"],
        ["parts", "temporal", "--import", "toy_{n}"],
        ["parts", "temporal", "--import", "toy_folder_{n}.part"],
    ],
)
def test_a_part_of_ones_own_is_listed(
    mixlab: Command, request: pytest.FixtureRequest, arguments: list[str]
) -> None:
    n = str(abs(hash(request.node.name)))
    Path(f"toy_folder_{n}").mkdir()
    for file in (Path(f"toy_{n}.py"), Path(f"toy_folder_{n}/part.py")):
        file.write_text(PART.format(name=f"toy_{n}"))
    done = mixlab(*(argument.format(n=n) for argument in arguments))
    assert done.status == 0
    assert f"toy_{n}\n    Looks back, like a window." in done.out


@pytest.mark.usefixtures("own_part")
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("\nimport no_such_package", "2: ModuleNotFoundError: No module named 'no_such_package'"),
        ("\n\nx = (1,\n", "3: SyntaxError: '(' was never closed"),
        ("import sys\nsys.exit(3)", "2: SystemExit: 3"),
        ("import json\njson.loads('{')", "2: JSONDecodeError: Expecting property name enclosed in double"),
        ("raise ValueError('two\\nlines')", "1: ValueError: two lines"),
        ("assert not __file__", "1: AssertionError"),
        (
            PART.format(name="gru"),
            "6: temporal part 'gru' is already registered by mixlab.parts.temporal.recurrent",
        ),
    ],
)
def test_an_error_inside_an_imported_module_is_one_sentence_with_its_line(
    mixlab: Command, code: str, said: str
) -> None:
    Path("toy_broken.py").write_text(code)
    Path("toy_outer.py").write_text("import toy_broken\n")
    for name in ("toy_broken.py", "toy_broken", "toy_outer"):
        done = mixlab("parts", "--import", name)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
        assert done.err.startswith(f"mixlab: --import {name}: ") and f"toy_broken.py:{said}" in done.err
        importlib.invalidate_caches()


@pytest.mark.usefixtures("own_part")
@pytest.mark.parametrize("given", ["toy_kept.py", "toy_kept_folder.part"])
def test_a_run_names_the_import_that_it_needs(mixlab: Command, runs: Path, given: str) -> None:
    Path("toy_kept_folder").mkdir()
    for file in (Path("toy_kept.py"), Path("toy_kept_folder/part.py")):
        file.write_text(PART.format(name="toy_kept"))
    train = ["train", runs / "text.txt", "--preset", "window", "--steps", "2", "--out", "run"]
    assert mixlab(*train, "--import", given, *settings("model.temporal=toy_kept")).status == 0

    # A file by its full path, so that the command works from any folder.
    named = str(Path(given).absolute()) if given.endswith(".py") else given
    for verb in (
        ["generate", "run", "--max-tokens", "3"],
        ["evaluate", "run", runs / "text.txt"],
        ["train", "--resume", "run", "--steps", "3"],
    ):
        forget()
        done = mixlab(*verb)
        assert (done.status, done.out) == (2, "")
        assert done.err == (
            "mixlab: run has a temporal part of its own, 'toy_kept', which is not known here: "
            f"add --import {named} (in Python: import it first)\n"
        )
        assert mixlab(*verb, "--import", named).status == 0


@pytest.mark.usefixtures("own_part")
def test_what_a_run_records_is_never_imported(mixlab: Command, runs: Path) -> None:
    Path("toy_trap.py").write_text("raise SystemExit('imported')\n")
    record = runs / "neural" / "environment.json"
    facts = json.loads(record.read_text())
    assert facts["imports"] == {}
    for imports in ({"temporal": {"toy_trap": "toy_trap"}}, {"temporal": {"attention": "toy_trap"}}):
        record.write_text(json.dumps(facts | {"imports": imports}))
        mixlab("generate", runs / "neural", "--max-tokens", "3")
        assert "toy_trap" not in sys.modules


@pytest.mark.parametrize("record", ["{", "[]", '{"imports": 3}', '{"imports": {"temporal": ["gru"]}}', None])
def test_a_damaged_record_hinders_no_run(mixlab: Command, runs: Path, record: str | None) -> None:
    path = runs / "neural" / "environment.json"
    path.unlink() if record is None else path.write_text(record)
    assert mixlab("generate", runs / "neural", "--max-tokens", "3").status == 0
