"""The cards of docs/parts: every part has one, it says all that a card must, and what it says still holds."""

import ast
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from bench.bands import CARDS, HEADING, names_in, parts_of, section

from mixlab.compare.bands import read_bands
from mixlab.config import preset_names
from mixlab.parts.contract import available, get
from tests.contract.cases import CASES

ROOT = Path(__file__).parents[2]
FOLDERS = ("src/", "tests/", "bench/", "docs/")
SECTIONS = (
    "Equations",
    "Initialisation",
    "Parameter roles",
    "State, parameters, FLOPs",
    "Known deviations",
    HEADING.removeprefix("## "),
)

PARTS = [
    name
    for kind in ("temporal", "feature")
    for name in available(kind)
    if get(kind, name).__module__.startswith("mixlab.")  # other tests register parts of their own
]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(CARDS.glob("*.md"))}
COUNTED = "ngram"  # not a part, but compared with them
HOMES = {part: card for card, text in TEXTS.items() for part in names_in(text)}

every_card = pytest.mark.parametrize("card", TEXTS)


def under(card, heading):
    """The text below a heading of the second level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", TEXTS[card], re.MULTILINE | re.DOTALL)
    return found.group(1) if found else ""


def rows(card, heading):
    """The cells of the rows of the first table below a heading, without its head."""
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)*)", under(card, heading), re.MULTILINE)
    lines = table.group(1).splitlines() if table else []
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def quoted(text):
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


@cache
def symbols():
    """The modules of the package; what they define, by every ending of its full name."""
    found = set()
    for path in (ROOT / "src" / "mixlab").rglob("*.py"):
        module = path.relative_to(ROOT / "src").with_suffix("").parts
        found.add(".".join(module))
        for name in defined(ast.parse(path.read_text(encoding="utf-8"))):
            full = (*module, *name.split("."))
            found |= {".".join(full[start:]) for start in range(len(full))}
    return found


def defined(node):
    """Names that a module or a class defines, those of its classes' members with a dot."""
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield child.name
            yield from (f"{child.name}.{name}" for name in defined(child))
        elif isinstance(child, ast.FunctionDef):
            yield child.name
        elif isinstance(child, ast.Assign):
            yield from (target.id for target in child.targets if isinstance(target, ast.Name))
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield child.target.id


def modules():
    """Names of the modules that parts and models are written in."""
    folders = (ROOT / "src/mixlab/parts", ROOT / "src/mixlab/model")
    return {path.stem for folder in folders for path in folder.rglob("*.py")}


def is_symbol(token):
    """Whether a quoted word means something of the package: module.name, Class.name or mixlab.module.name."""
    first = token.partition(".")[0]
    if not re.fullmatch(r"\w+(\.\w+)+", token):
        return False
    return first == "mixlab" or first in modules() or first.lstrip("_")[:1].isupper()


def test_every_part_has_a_card():
    assert sorted(set(PARTS) - set(HOMES)) == []


def test_every_card_is_of_parts_that_there_are():
    assert sorted(set(HOMES) - set(PARTS)) == [COUNTED]


@every_card
def test_a_card_has_every_section_and_names_its_paper(card):
    missing = [heading for heading in SECTIONS if not under(card, heading).strip()]
    assert missing == []
    assert re.search(r"^Papers?: .*\b(19|20)\d\d\b", TEXTS[card], re.MULTILINE)
    assert under(card, SECTIONS[-1]) == TEXTS[card].partition(f"{HEADING}\n")[2], "the bands are to come last"


@every_card
def test_each_equation_stands_with_the_code_that_implements_it(card):
    where = [row[-1] for row in rows(card, "Equations")]
    assert where
    above = []
    for cell in where:
        named = [token for token in quoted(cell) if "." in token and token in symbols()]
        named = above if cell.startswith("the same") else named
        assert named, f"no code beside this equation: {cell}"
        above = named


@every_card
def test_the_code_and_the_files_that_a_card_names_are_there(card):
    assert not re.search(r"\.py:\d", TEXTS[card]), "lines move: name the function"
    for token in quoted(TEXTS[card]):
        if is_symbol(token):
            assert token in symbols(), token
        elif token.startswith(FOLDERS):
            assert (ROOT / token).exists(), token
    for script in re.findall(r"python (bench/\w+\.py)", TEXTS[card]):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("heading", ["Initialisation", "Parameter roles"])
@pytest.mark.parametrize("part", PARTS)
def test_the_tables_name_every_parameter_and_its_role(part, heading):
    table = [(quoted(row[0]), row[1]) for row in rows(HOMES[part], heading)]
    for case in CASES:
        if case.name != part:
            continue
        for name, role in case.build().parameter_roles().items():
            row = next((row for row in table if any(matches(name, pattern) for pattern in row[0])), None)
            assert row is not None, f"{name} is in no row"
            if heading == "Parameter roles":
                assert row[1] == role, name


def matches(name, pattern):
    """Whether a parameter is what the table calls `pattern`, or a parameter of it."""
    return fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*")


@pytest.mark.parametrize("part", [*PARTS, COUNTED])
def test_state_parameters_and_flops_are_given(part):
    text = under(HOMES[part], "State, parameters, FLOPs")
    for what in ("State", "Parameters", "FLOPs"):
        assert re.search(rf"^- {what}\b", text, re.MULTILINE), what


@every_card
def test_the_bands_of_a_card_are_those_of_the_file(card):
    assert TEXTS[card].endswith(f"\n{section(names_in(TEXTS[card]), read_bands())}"), (
        "python bench/bands.py writes them anew"
    )


def test_every_preset_is_on_the_cards_of_its_parts():
    for preset in preset_names():
        for part in parts_of(preset):
            assert f"| `{preset}` |" in under(HOMES[part], SECTIONS[-1]), (preset, part)


def test_every_preset_has_a_band():
    assert sorted(set(preset_names()) - set(read_bands().models)) == []
