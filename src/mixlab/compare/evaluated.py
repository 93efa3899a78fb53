"""On how much of the validation text a comparison's results rest, and what scoring it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def evaluated(results: Sequence[Mapping[str, Any]], corpus: Mapping[str, Any]) -> dict[str, Any]:
    """What comparison.json says of its evaluations.

    tokens_scored: by the full measure of every finished run, None where they differ or there are none.
    valid_tokens: that the text has. share_of_time: of training and evaluations together; None without either.
    """
    done = [result for result in results if result.get("status") == "done"]
    scored = {result.get("scored") for result in done}
    seconds = sum(float(result.get("evaluation_seconds") or 0) for result in done)
    time = seconds + sum(float(result.get("seconds") or 0) for result in done)
    return {
        "tokens_scored": scored.pop() if len(scored) == 1 else None,
        "valid_tokens": corpus.get("valid_tokens"),
        "share_of_time": seconds / time if time else None,
    }
