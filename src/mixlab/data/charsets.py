"""Text that is not UTF-8: which encodings can be named, and which one some bytes are most likely in."""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterable
from encodings.aliases import aliases

from mixlab.errors import UserError

DEFAULT = "utf-8"

BYTE_ORDER_MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
"""Encodings in whose text NUL bytes are usual."""

_KANA = "".join(map(chr, (*range(0x3041, 0x3097), *range(0x30A1, 0x30FB)))) + "ー、。「」の"
_HANGUL = "".join(map(chr, range(0xAC00, 0xD7A4)))
# The most frequent characters of written Chinese, in both scripts.
_CHINESE = (
    "的一是不了在人有我他中大来上和国到地说以要就出得可你年生自会那后能对着事其里去行过家十用发天然作方"
    "成者多日都，。、"
)
_TRADITIONAL = _CHINESE.translate(str.maketrans("来国说会后对着里过发", "來國說會後對著裡過發"))
_CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъіїєґўјљњћђџѓќѕё"
_GREEK = "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώϊϋ"
_WESTERN = "éèêëàâáäãåæçìíîïñòóôöõøùúûüýÿßœþðº¿¡«»°£€§"
_CENTRAL = "ąćęłńóśźżáčďéěíňřšťúůýžôľĺŕäöüőűăâîşţđ"

# Of each codec the letters beyond ASCII that its texts mostly consist of. Of equals the first is taken: the
# more usual one.
_TYPICAL = (
    ("cp932", _KANA),
    ("euc_jp", _KANA),
    ("euc_kr", _HANGUL),
    ("gb18030", _CHINESE),
    ("big5", _TRADITIONAL),
    ("cp1252", _WESTERN + "’“”‘–—…´\xa0"),
    ("cp1255", "אבגדהוזחטיכךלמםנןסעפףצץקרשת’“”–"),
    ("cp1251", _CYRILLIC),
    ("koi8_r", _CYRILLIC),
    ("koi8_u", _CYRILLIC),
    ("iso8859_5", _CYRILLIC),
    ("cp866", _CYRILLIC),
    ("iso8859_2", _CENTRAL),
    ("cp1250", _CENTRAL + "’“”„–—…"),
    ("cp1253", _GREEK + "’“”–«»"),
    ("iso8859_7", _GREEK),
    ("cp1254", "ğışçöüâîİŞ’“”–"),
    ("cp1257", "āčēģīķļņšūžąęėįųõäöü’“”„–"),
    ("cp1256", "ابتثجحخدذرزسشصضطظعغفقكلمنهويىةأإآءئؤ،؛؟"),
    ("tis_620", "".join(map(chr, (*range(0xE01, 0xE3B), *range(0xE40, 0xE4F))))),
    ("cp850", _WESTERN),
    ("mac_roman", _WESTERN + "’“”‘–—…"),
)
_LATIN = ("cp1252", "iso8859_2", "cp1250", "cp1254", "cp1257", "cp850", "mac_roman")
# Latin letters beyond ASCII stand among others; letters of other scripts stand among their own.
_STRANGE = {
    True: re.compile(r"[^\W\d_a-zA-Z]{3,}"),
    False: re.compile(r"(?<=[a-zA-Z])[^\x00-\x7f]|[^\x00-\x7f](?=[a-zA-Z])"),
}

_LEAST = 0.5
"""Share of the characters beyond ASCII that must be typical of a codec; texts reach 0.6 in their own."""


def check_codec(name: str) -> None:
    """UserError, with the nearest name, unless any bytes can be read in a text encoding of that name."""
    if _reads(name):
        return
    known = sorted({*aliases, *aliases.values()})
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=10)
    hint = next((f"did you mean '{other}'? " for other in near if _reads(other)), "")
    raise UserError(
        f"unknown encoding '{name}': {hint}give the name of a text encoding that Python has, "
        "such as utf-8, cp1252, cp1251 or gb18030"
    )


def _reads(name: str) -> bool:
    """Whether Python has a text encoding of that name that replaces what is no text in it.

    Not base64, which is no text, nor idna, which replaces nothing.
    """
    try:
        b"a\xff".decode(name, "replace")
    except (LookupError, ValueError):
        return False
    return True


def plain_name(name: str) -> str:
    """One spelling for each encoding: "UTF8" and "u8" are "utf-8"; without a mark UTF-16 is little-endian."""
    found = codecs.lookup(name).name
    return {"utf-8-sig": DEFAULT, "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(found, found)


def marked(head: bytes) -> tuple[bytes, str]:
    """The byte-order mark that a text begins with, and its encoding; two empty ones for none."""
    return next((pair for pair in BYTE_ORDER_MARKS if head.startswith(pair[0])), (b"", ""))


def wide(head: bytes) -> str:
    """The encoding of WIDE that a text without a byte-order mark is in by its first bytes, or ""."""
    head = head[:8192]
    for name in WIDE:
        size = 4 if "32" in name else 2
        try:
            text = head[: len(head) // size * size].decode(name)
        except UnicodeDecodeError as error:
            if error.start < len(head) - 4:  # not merely a pair of surrogates that is cut
                continue
            text = head[: error.start].decode(name)
        usual = sum(character.isalnum() or character in " \n\r\t.,;:!?'\"()-" for character in text)
        gaps = sum(character in " \n、。，" for character in text)
        if text and usual >= 0.9 * len(text) and gaps * 100 >= len(text):
            return name
    return ""


def likely(sample: bytes) -> list[str]:
    """Encodings that decode `sample`, lines of text with bytes beyond ASCII, the likeliest first."""
    scores: dict[str, float] = {}
    for name, typical in _TYPICAL:
        usual = set(typical)
        try:
            text = sample.decode(name)
        except UnicodeDecodeError:
            continue
        beyond = [character for character in text if character > "\x7f"]
        good = [c for c in _STRANGE[name in _LATIN].sub("", text) if c > "\x7f" and c in usual]
        share = len(good) / max(1, len(beyond))
        # Half of a Chinese or Japanese text is of characters that are not among these.
        scores[name] = share * (2 if typical in (_CHINESE, _TRADITIONAL, _KANA) else 1)
    found = [name for name in scores if scores[name] >= _LEAST]
    return sorted(found, key=lambda name: -round(scores[name], 2))


def lines_beyond_ascii(blocks: Iterable[bytes], most: int = 1 << 16) -> bytes:
    """Lines with bytes beyond ASCII, about `most` bytes of them, out of the blocks of a text."""
    found, size, rest = [], 0, b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines if size < most else ():
            if not line.isascii():
                found.append(line)
                size += len(line)
        if size >= most:
            break
    if size < most and not rest.isascii():
        found.append(rest)
    return b"\n".join(found)
