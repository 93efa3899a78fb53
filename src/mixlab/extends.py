"""`extends = "gru"` in a TOML file: the tables of another preset or file, with this file's own on top."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixlab.config import preset_names, read_packaged, read_toml, recipe_names
from mixlab.errors import UserError, unknown

KEY = "extends"


def read_tables(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, on top of those of what it extends, if anything; without `extends`.

    `extends` names a preset or recipe, or a file by a path that ends in `.toml`, from the file's own folder.
    Raises UserError for a name that is none, for files that extend each other, and as `read_toml` does.
    """
    return _read(Path(path), ())


def _read(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    chain = (*before, path)
    # Not Path.resolve, which raises for a link that leads to itself: reading it says what is wrong.
    if os.path.realpath(path) in map(os.path.realpath, before):
        raise UserError(
            f"{before[0]}: {KEY} goes in a circle ({' -> '.join(map(str, chain))}): one of these files must "
            "stand on its own"
        )
    own = read_toml(path)
    base = own.pop(KEY, None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise UserError(f"{path}: {KEY}: expected the name of a preset or the path of a .toml file")
    if base.endswith(".toml"):
        tables = _read(path.parent / base, chain)
    else:
        known = (*preset_names(), *recipe_names())
        if base not in known:
            raise UserError(f"{path}: {KEY}: {unknown('preset', base, known)}")
        tables = read_packaged(base)
    tables.pop("name", None)  # a run is named for its own file
    return merged(_without_rivals(tables, own), own)


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `own` on top, table by table.

    A part or optimizer of another `kind` replaces the base's with all its knobs, which it would not know.
    """
    return {**base, **{key: _on_top(base.get(key), value) for key, value in own.items()}}


def _on_top(base: Any, value: Any) -> Any:
    if isinstance(base, str):
        base = {"kind": base}  # a part that the base gives by its name
    if not (isinstance(base, Mapping) and isinstance(value, Mapping)):
        return value
    if "kind" in value and value["kind"] != base.get("kind"):
        return value
    return merged(base, value)


def _without_rivals(base: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The base without the keys of [train] that `own` sets by another name: length, tokens per step."""
    from mixlab.train.config import HORIZONS

    train, given = base.get("train"), own.get("train")
    if not (isinstance(train, Mapping) and isinstance(given, Mapping)):
        return base
    rivals = [keys for keys in (HORIZONS, ("batch_tokens", "batch_size")) if set(keys) & set(given)]
    gone = {key for keys in rivals for key in keys}
    return {**base, "train": {key: value for key, value in train.items() if key not in gone}}
