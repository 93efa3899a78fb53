"""Corpus, split, environment and configuration as name/value pairs, whatever keys they come with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mixlab.report.units import count, duration, listed, size

MOST_ITEMS = 6  # of a list; the rest is counted
MOST_CHARACTERS = 400


def pairs(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The leaves of nested `facts` in order, named in words ("Train bytes"), values in human units."""
    found: list[tuple[str, str]] = []
    for key, value in facts.items():
        words = key.replace("_", " ").replace(".", " ")
        name = f"{prefix} {words}".strip()
        if isinstance(value, dict):
            found += pairs(value, name)
        elif value is not None and value != "" and value != []:
            found.append((_title(name), _text(key, value)))
    return found


def together(named: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    """The `pairs` of several (name, facts): one value where all have the same, else whose each is."""
    found: dict[str, dict[str, list[str]]] = {}
    for owner, facts in named:
        for name, value in pairs(facts):
            found.setdefault(name, {}).setdefault(value, []).append(owner)
    shown = []
    for name, values in found.items():
        shared = len(values) == 1 and sum(map(len, values.values())) == len(named)
        each = (value if shared else f"{listed(owners)}: {value}" for value, owners in values.items())
        shown.append((name, "; ".join(each)))
    return shown


_WORDS = {
    "cpu": "CPU", "gpu": "GPU", "sha256": "SHA-256", "torch": "PyTorch", "os": "OS", "utf8": "UTF-8",
    "train": "training", "valid": "validation", "vocab": "vocabulary", "flops": "speed", "git": "Git commit",
    "ngram": "n-gram",
}  # fmt: skip
_NAMES = {
    "replaced": "Replaced characters",
    "machine device": "Device",
    "machine name": "Processor",
    "machine reason": "Precision",
    "tokenizer kind": "Tokenizer",
}
"""What a key alone does not say."""


def _title(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    words = [_WORDS.get(word, word) for word in name.split()]
    name = " ".join(words)
    return name if words[:1] == ["mixlab"] else name[:1].upper() + name[1:]


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(key, value)
    if isinstance(value, list):
        shown = [json.dumps(v) if isinstance(v, dict | list) else _text(key, v) for v in value[:MOST_ITEMS]]
        more = f" and {len(value) - MOST_ITEMS:,} more" if len(value) > MOST_ITEMS else ""
        joined = "; ".join(shown) if any(" " in item for item in shown) else ", ".join(shown)
        return _cut(joined) + more
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def _number(key: str, value: float) -> str:
    """A number with the unit that its key names."""
    low = key.lower()
    if "bandwidth" in low:
        return f"{_spaced(value)}B/s" if value >= 1e6 else f"{value:g}"
    if low.endswith("bytes") or low == "bytes" or low.startswith(("memory", "ram")):
        return f"{value:,.0f} bytes ({size(value)})" if value >= 1024 else f"{value:,.0f} bytes"
    if "flops" in low:
        return f"{_spaced(value)}FLOP/s" if value >= 1e6 else f"{value:g}"
    if low.endswith("seconds"):
        return duration(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _spaced(value: float) -> str:
    """29,000,000,000 -> '29.0 G': a unit follows."""
    text = count(value)
    return f"{text[:-1]} {text[-1]}" if text[-1].isalpha() else f"{text} "


def config_text(config: dict[str, Any]) -> str:
    """A configuration as indented JSON, for reading."""
    return json.dumps(config, indent=2, ensure_ascii=False)


def visible(text: str, most: int = 6_000) -> str:
    """Sampled text that is safe to show: control characters become their pictures, and it ends after `most`.

    Line breaks and tabs stay; NUL, which ends a document of bytes, is shown as the symbol U+2400. Characters
    that change the direction of the text around them become U+FFFD.
    """
    shown = []
    for character in text[:most]:
        code = ord(character)
        if code < 32 and character not in "\n\t":
            shown.append(chr(0x2400 + code))
        elif code == 127:
            shown.append("\u2421")
        elif 128 <= code < 160 or code in _DIRECTIONS:
            shown.append("\ufffd")
        else:
            shown.append(character)
    return "".join(shown) + ("…" if len(text) > most else "")


_DIRECTIONS = {*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
