"""The config edge: TOML files, mappings and `key=value` overrides become frozen dataclasses, or one sentence.

Inside the package a config is a nested frozen dataclass and is trusted. Everything from outside passes
through `parse`, which refuses unknown keys, wrong types and impossible combinations with the key's dotted
path, what was expected and the nearest match. pydantic does the checking and is imported on first use only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast

from mixlab.errors import UserError, nearest, unknown
from mixlab.records import DIGITS, parse_toml

if TYPE_CHECKING:
    from mixlab.train.config import RunConfig

C = TypeVar("C")


def parse(cls: type[C], mapping: Mapping[str, Any] | C, where: str = "") -> C:
    """Build the dataclass `cls` from `mapping`, nested dataclasses included.

    `where` is the dotted path of `mapping` in its file (`"model.temporal"`); it starts every message.
    An integer serves where a float is wanted and a list where a tuple is; nothing else is converted. A class
    with a `modernised(tables)` reads keys of older files through it.
    Raises UserError, one sentence, for the first thing wrong; a UserError (or ValueError) raised by a
    dataclass's own `__post_init__` is passed on with the path before it.
    """
    if isinstance(mapping, cls):
        return mapping
    if not isinstance(mapping, Mapping):
        raise UserError(f"{where or cls.__name__}: expected a table, got {_shown(mapping)}")
    plain = _plain(mapping, where)
    modernised = getattr(cls, "modernised", None)
    plain = plain if modernised is None else modernised(plain)
    _refuse_unknown_keys(cls, plain, where)
    from pydantic import ValidationError

    try:
        # Strict validation of JSON, not of Python objects: that is the mode in which a list may become a
        # tuple and a table a dataclass while "3" may not become 3.
        config: C = _adapter(cast(Any, cls)).validate_json(json.dumps(plain), strict=True)
        return config
    except ValidationError as error:
        raise UserError(_sentence(cls, plain, where, error.errors()[0])) from None


@cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The resolved types of a dataclass's settable fields, in their order."""
    resolved = typing.get_type_hints(cls)
    return {field.name: resolved[field.name] for field in dataclasses.fields(cls) if field.init}


def _plain(value: Any, where: str) -> Any:
    """`value` as what JSON holds; a type no config can hold is refused here, and so are NaN, infinities and
    integers beyond torch's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, _join(where, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: expected a finite number, got {value}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{where}: expected a number below 2**63, got {_shown(value)}")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{where}: {_shown(value)} is not UTF-8 text: write it in UTF-8")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{where}: a config cannot hold {_shown(value)} ({type(value).__name__})")


def _refuse_unknown_keys(cls: type, mapping: Mapping[str, Any], where: str) -> None:
    """pydantic ignores a stdlib dataclass's unknown keys: find the first, at any depth."""
    hints = _hints(cls)
    for key, value in mapping.items():
        if key not in hints:
            raise UserError(f"{_join(where, key)}: unknown key; {nearest(key, hints)}")
        inner = _dataclass_in(hints[key])
        if inner is None:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                _refuse_unknown_keys(inner, item, _join(where, key))


def _sentence(cls: type, mapping: Mapping[str, Any], where: str, error: Mapping[str, Any]) -> str:
    """One pydantic error in our words: the path the user wrote, what was expected, and what stood there."""
    path = where
    hint: Any = cls
    value: Any = mapping
    for step in error["loc"]:
        inner = _dataclass_in(hint)
        if inner is None or not isinstance(value, Mapping) or step not in _hints(inner):
            break  # a list's item or a union's branch: the key's description says what belongs
        path, hint, value = _join(path, step), _hints(inner)[step], value.get(step)
    if error["type"] == "value_error":
        return _join_message(path, str(error["ctx"]["error"]))
    if error["type"] == "missing" and value is None:
        return f"{path}: missing; it must be {_describe(hint)}"
    choices = _choices(hint)
    if choices and isinstance(value, str):
        return f"{path}: unknown value '{value}'; {nearest(value, choices)}"
    return f"{path}: expected {_describe(hint)}, got {_shown(value)}"


def _join_message(path: str, message: str) -> str:
    return f"{path}: {message}" if path and not message.startswith(path) else message


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    """A value as a message shows it: short, TOML-like."""
    if isinstance(value, Mapping):
        return f"a table with {', '.join(map(str, value)) or 'no keys'}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > 10**DIGITS:
        return f"a number of more than {DIGITS} digits"
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _branches(hint: Any) -> list[Any]:
    """The types a hint allows, None left out: `int | None` -> [int]."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [branch for member in typing.get_args(hint) for branch in _branches(member)]
    if typing.get_origin(hint) is typing.Annotated:
        return _branches(typing.get_args(hint)[0])
    return [] if hint in (None, type(None)) else [hint]


def _dataclass_in(hint: Any) -> type | None:
    """The one dataclass a hint allows, itself or as a list's item; None when there are none or several."""
    found = []
    for branch in _branches(hint):
        items = typing.get_args(branch) if typing.get_origin(branch) in (tuple, list) else (branch,)
        found += [item for item in items if dataclasses.is_dataclass(item) and isinstance(item, type)]
    return found[0] if len(set(found)) == 1 else None


def _choices(hint: Any) -> list[str]:
    """The strings that the Literals in a hint allow."""
    literals = [branch for branch in _branches(hint) if typing.get_origin(branch) is Literal]
    return [value for branch in literals for value in typing.get_args(branch) if isinstance(value, str)]


_NAMES: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def _describe(hint: Any) -> str:
    """A type in words: `int | None` -> "an integer"."""
    return " or ".join(dict.fromkeys(_describe_one(branch) for branch in _branches(hint))) or "nothing"


def _describe_one(hint: Any) -> str:
    if hint in _NAMES:
        return _NAMES[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(_shown(value) for value in args)
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        items = [_describe(item) for item in args if item is not Ellipsis]
        if Ellipsis in args or origin is not tuple:
            return f"a list (each item {items[0]})" if items else "a list"
        return f"a list of {len(items)}: {', '.join(items)}"
    if origin in (dict, Mapping) or hint in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a table"
    return getattr(hint, "__name__", str(hint))


def to_mapping(config: Any) -> dict[str, Any]:
    """A config dataclass as nested dicts and lists for TOML: None is left out (absent means the default)."""
    return {
        field.name: _toml_value(value)
        for field in dataclasses.fields(config)
        if field.init and (value := getattr(config, field.name)) is not None
    }


def _toml_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A config that knows its own TOML form (parts written as name or table) says it.
        return _toml_value(value.to_dict()) if hasattr(value, "to_dict") else to_mapping(value)
    if isinstance(value, Mapping):
        return {str(key): _toml_value(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_toml_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def to_toml(config: Any) -> str:
    """The TOML text of a config dataclass; `parse` of it gives an equal config."""
    import tomli_w

    return tomli_w.dumps(to_mapping(config))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file; UserError for a missing, unreadable or malformed one."""
    path = Path(path)
    try:
        return parse_toml(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: not a file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a TOML file (it is not UTF-8 text)") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a config: {error}") from None


def preset_names() -> tuple[str, ...]:
    """The names of the presets in the package that `mixlab compare` takes, sorted."""
    return _toml_names("presets")


def recipe_names() -> tuple[str, ...]:
    """The names of the presets that fix the data's tokenizer too and so stand for one job, sorted."""
    return _toml_names("presets", "recipes")


def _toml_names(*folder: str) -> tuple[str, ...]:
    files = [item.name for item in resources.files("mixlab").joinpath(*folder).iterdir()]
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


def read_preset(name: str | Path) -> dict[str, Any]:
    """The tables of a preset or recipe, by its name (`"gru"`) or as a path that ends in `.toml`; `name` is
    filled in, and what a file `extends` is beneath its own tables (see `mixlab.extends`).

    Raises UserError with the nearest match for an unknown name.
    """
    text = str(name)
    if not text.endswith(".toml"):
        return {"name": text, **read_packaged(text)}
    from mixlab.extends import read_tables

    return {"name": Path(text).stem, **read_tables(text)}


def read_packaged(name: str) -> dict[str, Any]:
    """The tables of a packaged preset or recipe; UserError with the nearest match for an unknown name."""
    for folder, names in ((("presets",), preset_names()), (("presets", "recipes"), recipe_names())):
        if name in names:
            file = resources.files("mixlab").joinpath(*folder, f"{name}.toml")
            return tomllib.loads(file.read_text("utf-8"))
    raise unknown("preset", name, (*preset_names(), *recipe_names()))


def apply_overrides(tables: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`tables` with each `dotted.key=value` set; a value is TOML (`3e-4`, `true`, `[1, 2]`) or a bare string.

    A part given by its name becomes a table when one of its knobs is set: `model.temporal.heads=8` after
    `temporal = "attention"` means `{kind = "attention", heads = 8}`. Raises UserError for a malformed one.
    """
    result = _copied(tables)
    for override in overrides:
        key, equals, text = override.partition("=")
        steps = [step.strip() for step in key.split(".")]
        if not equals or not all(steps):
            raise UserError(f"'{override}': an override is key=value, such as train.optimizer.lr=3e-4")
        *parents, last = steps
        table = result
        for step in parents:
            table = _descend(table, step, override)
        table[last] = toml_value(text.strip())
    return result


def _copied(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tables.items()}


def _descend(table: dict[str, Any], step: str, override: str) -> dict[str, Any]:
    below = table.setdefault(step, {})
    if isinstance(below, str):
        below = table[step] = {"kind": below}
    if not isinstance(below, dict):
        raise UserError(f"'{override}': {step} is {_shown(below)} and has no keys below it")
    return below


def toml_value(text: str) -> Any:
    """The TOML value that `text` spells, or `text` itself where it spells none."""
    try:
        tables = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise UserError(f"'{_cut(text)}' is no value of a config: {error}") from None
    return tables["value"] if len(tables) == 1 else text


def load_run_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The RunConfig of a preset's name, a `.toml` path or a mapping, after the `key=value` overrides.

    Raises UserError for an unknown preset, a malformed file or override, and what `parse` or the
    configs themselves refuse.
    """
    from mixlab.train.config import RunConfig

    tables = source if isinstance(source, Mapping) else read_preset(source)
    return parse(RunConfig, apply_overrides(tables, overrides)).validate()


def defaults(cls: type) -> dict[str, Any]:
    """Each settable field of a config dataclass and its default (`dataclasses.MISSING` where it has none)."""
    return {field.name: _default(field) for field in dataclasses.fields(cls) if field.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    factory: Callable[[], Any] | Any = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()
