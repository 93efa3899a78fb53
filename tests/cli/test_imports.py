"""`--import` brings in parts of one's own, before or after the verb."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Command

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
def own_part(request: pytest.FixtureRequest):
    """Gives back the registry and the modules as they were: other tests run over everything registered."""
    modules, parts = set(sys.modules), dict(contract._REGISTRY["temporal"])
    path = list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("toy_"):
            del sys.modules[name]
    contract.available("temporal")
    for name in set(contract._REGISTRY["temporal"]) - set(parts):
        if name.startswith("toy_"):
            del contract._REGISTRY["temporal"][name]
    sys.path[:] = path


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
def test_an_error_inside_an_imported_module_is_its_authors_to_see(mixlab: Command) -> None:
    Path("toy_broken.py").write_text("import no_such_package_at_all\n")
    for name in ("toy_broken.py", "toy_broken"):
        with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
            mixlab("parts", "--import", name)
