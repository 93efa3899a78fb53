"""Damage to a file of a run or a comparison, as hands, disks and editors do it."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mixlab.train import checkpoint

Damage = Callable[[Path, random.Random], None]

DEEP, DIGITS = 100_000, 5_000
STRANGE: list[Any] = [None, True, "", "text", "\0", "\ud800", -1, 0.5, 10**200, [], {}, [[1]], {"a": 1}]
"""What a value becomes that is swapped."""


def absent(path: Path, draw: random.Random) -> None:
    path.unlink()


def emptied(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def truncated(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(1, max(2, len(content)))])


def not_utf8(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    at = draw.randrange(len(content))
    path.write_bytes(content[:at] + b"\xff\xfe\x00" + content[at:])


def a_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def links_in_a_circle(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


def deep(path: Path, draw: random.Random) -> None:
    path.write_text("[" * DEEP if path.suffix != ".toml" else "a = " + "[" * DEEP)


def deep_enough(path: Path, draw: random.Random) -> None:
    """What a parser takes and the functions after it may not."""
    path.write_text('{"results": [], "kind": "step", "a": ' + "[" * 900 + "]" * 900 + "}\n")


def digits(path: Path, draw: random.Random) -> None:
    """Its first number becomes one that Python does not convert."""
    content = path.read_text(encoding="utf-8")
    at = next((i for i, c in enumerate(content) if c.isdigit() and content[i - 1] in " [:"), len(content))
    path.write_text(content[:at] + "9" * DIGITS + content[at + 1 :], encoding="utf-8")


def other(text: str) -> Damage:
    def damage(path: Path, draw: random.Random) -> None:
        path.write_text(text)

    damage.__name__ = f"other: {text}"
    return damage


def swapped(path: Path, draw: random.Random) -> None:
    """One value of its JSON becomes another or goes; of lines, one of a line's."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(with_one_swapped(json.loads(lines[at]), draw))
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(json.dumps(with_one_swapped(json.loads("\n".join(lines)), draw)))


def with_one_swapped(value: Any, draw: random.Random) -> Any:
    value = copy.deepcopy(value)
    holder, key = draw.choice(list(places(value)))
    if draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = draw.choice(STRANGE)
    return value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(list or table, key) of every value inside; of long lists the first two."""
    keys = list(value) if isinstance(value, dict) else range(min(2, len(value)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def seal(path: Path) -> None:
    """Make the manifest of the checkpoint at `path` say what is there now."""
    file = path / checkpoint.MANIFEST
    manifest = json.loads(file.read_text())
    for name in manifest["files"]:
        manifest["files"][name] = checkpoint._facts(path / name)
    manifest["sha256"] = checkpoint._digest(manifest)
    file.write_text(json.dumps(manifest))


ANY: list[Damage] = [absent, emptied, truncated, not_utf8, a_folder, links_in_a_circle]
TEXT: list[Damage] = [deep, deep_enough, digits, *map(other, ("[]", "{}", "null", '"text"'))]
SWAPS = 4


def all_of(path: Path) -> list[Damage]:
    """What can happen to a file like this one."""
    if path.suffix == ".safetensors":
        return [*ANY, other("[]")]
    return [*ANY, *TEXT, *([] if path.suffix == ".toml" else [swapped] * SWAPS)]


def fresh(source: Path, target: Path) -> Path:
    """A copy to damage."""
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target)
