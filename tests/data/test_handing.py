"""A text handed to another process is the one that was prepared, whatever part of it is to be scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixlab.data import DataConfig, prepare
from mixlab.data.handing import hand, take
from mixlab.data.tokens import TokenCache


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
def test_what_is_taken_is_what_prepare_gives(
    tmp_path: Path, tokenizer: str, weights: tuple[float, ...]
) -> None:
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"document {n} of {name}"}) for n in range(300)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sources = tuple(str(tmp_path / f"{name}.jsonl") for name in "ab")
    config = DataConfig(sources=sources, tokenizer=tokenizer, vocab_size=300, weights=weights)
    first = prepare(config, cache_dir=tmp_path / "cache")
    handed = json.loads(json.dumps(hand(first)))
    for most in (0, 300):
        asked, said = replace(config, valid_tokens=most), []
        taken, prepared = take(handed, asked, notes=said.append), prepare(asked, cache_dir=tmp_path / "cache")
        for one, other in ((taken.train, prepared.train), (taken.valid, prepared.valid)):
            assert np.array_equal(one.tokens, other.tokens)
            assert replace(one, tokens=other.tokens) == other
        assert taken.facts == prepared.facts and taken.tokenizer.hash == prepared.tokenizer.hash
        assert (taken.weights, taken.packing) == (prepared.weights, prepared.packing)
        assert said == prepared.facts["notes"][-1:] if most else not said


def test_a_sample_does_not_bound_what_another_may_score(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one long text " * 900, encoding="utf-8")
    config = DataConfig(sources=(str(tmp_path / "text.txt"),), valid_tokens=100)
    handed = hand(prepare(config, cache_dir=tmp_path / "cache"))
    assert handed is not None
    taken = take(handed, replace(config, valid_tokens=0))
    assert taken.valid.scored == 0 and not any("data.valid_tokens" in note for note in taken.facts["notes"])
    assert take(handed, replace(config, valid_tokens=200)).valid.scored == 200


def test_tokens_in_memory_are_not_handed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("one long text " * 90, encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TokenCache, "obtain", full)
    config = DataConfig(sources=(str(tmp_path / "text.txt"),))
    assert hand(prepare(config, cache_dir=tmp_path / "cache")) is None
