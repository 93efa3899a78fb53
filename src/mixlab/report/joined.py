"""Several records on one page: what to call each, and what they do not share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixlab.report.units import count
from mixlab.report.view import mapping, number


def merge(comparisons: Sequence[dict[str, Any]], folders: Sequence[Path]) -> dict[str, Any]:
    """Several as one: all their results, and a sentence for what they do not have in common.

    Results that would be taken for one, or for seeds of one, and are not get their folder's name.
    """
    if len(comparisons) == 1:
        return comparisons[0]
    comparisons = [{**comparison, "results": _placed(comparison)} for comparison in comparisons]
    apart, names = texts(comparisons), apart_by(folders)
    results = [result for comparison in comparisons for result in comparison["results"]]
    # Of one text, two seeds of a model are one model; of two texts they are not.
    keys = [marks(result, "model") if apart else marks(result, "model", "seed") for result in results]
    if len(set(keys)) < len(keys):
        comparisons = [
            {
                **comparison,
                "results": [{**r, "model": named(name, r, comparison)} for r in comparison["results"]],
            }
            for comparison, name in zip(comparisons, names, strict=True)
        ]
    called = labels(comparisons, names)
    results = [result for comparison in comparisons for result in comparison["results"]]
    grids = [mapping(mapping(comparison.get("grid")).get("keys")) for comparison in comparisons]
    return {
        "title": f"{len(results)} runs",
        "corpus": {} if apart else mapping(comparisons[0].get("corpus")),
        "imports": list(dict.fromkeys(str(m) for c in comparisons for m in c.get("imports") or [])),
        "evaluation": common(mapping(comparison.get("evaluation")) for comparison in comparisons),
        "grid": {"keys": {key: values for keys in grids for key, values in keys.items()}},
        "timing": _timing(comparisons, results),
        "apart": apart,
        "joined": [
            {"name": name, "corpus": c.get("corpus", {}), "environment": c.get("environment", {})}
            for name, c in zip(called, comparisons, strict=True)
        ],
        "budget": common(comparison.get("budget", {}) for comparison in comparisons)
        | {"unequal": unequal(comparisons, called, apart)},
        "results": results,
    }


def _placed(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results with the path of each run's folder, which a comparison says from its own."""
    folder = comparison.get("folder")
    return [
        {**result, "run": str(Path(str(folder)) / result["run"])} if folder and result.get("run") else result
        for result in comparison["results"]
    ]


MACHINES = "The runs were made on different machines, so their seconds do not compare."


def _timing(comparisons: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the times of all of them together are fit to conclude from, and why not."""
    from mixlab.compare.timing import judge

    sound = [{**r, "model": str(r.get("model"))} for r in results if _measured(r)]
    return {"trusted": False, "why": MACHINES} if _machines_differ(comparisons) else judge(sound)


def _measured(result: Mapping[str, Any]) -> bool:
    """Whether its throughput is as a comparison writes it."""
    parts = mapping(result.get("throughput")).get("parts")
    return isinstance(parts, list) and all(isinstance(part, list) for part in parts)


def _machines_differ(comparisons: Sequence[Mapping[str, Any]]) -> bool:
    machines = [mapping(mapping(c.get("environment")).get("machine")) for c in comparisons]
    return len({marks(machine, "name", "cores", "threads") for machine in machines}) > 1


def apart_by(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as much of the path before it as tells all of them apart."""
    parts = [folder.absolute().parts for folder in folders]
    tried = (["/".join(own[-depth:]) for own in parts] for depth in range(1, max(map(len, parts)) + 1))
    return next(names for names in tried if len(set(names)) == len(set(parts)))


def named(folder: str, result: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """A result's model by its folder's name, which may hold several."""
    several = len({other.get("model") for other in comparison["results"]}) > 1
    return f"{folder} {result.get('model')}" if several else folder


def labels(comparisons: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> list[str]:
    """What each is called: its model, or its folder where it has several or others have the same."""
    models = [list(dict.fromkeys(str(r.get("model")) for r in c["results"])) for c in comparisons]
    return [
        own[0] if len(own) == 1 and models.count(own) == 1 else folder
        for own, folder in zip(models, folders, strict=True)
    ]


def common(budgets: Any) -> dict[str, Any]:
    """The entries that all budgets share."""
    first, *rest = list(budgets)
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}


def texts(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Why bits per byte do not compare, as a sentence; '' where they do."""
    corpora = [mapping(comparison.get("corpus")) for comparison in comparisons]
    own = {marks(corpus, "valid_sha256") for corpus in corpora}
    if own != {marks({}, "valid_sha256")}:  # a validation text of its own is the same whatever was trained on
        return (
            ""
            if len(own) == 1
            else "The runs validate on different texts, so their bits per byte do not compare."
        )
    if len({marks(corpus, "sha256") for corpus in corpora}) > 1:
        return "The runs read different texts, so their bits per byte do not compare."
    if len({marks(corpus, "split", "valid_fraction") for corpus in corpora}) > 1:
        return "The runs validate on different parts of the text, so their bits per byte do not compare."
    return ""


def marks(facts: Mapping[str, Any], *keys: str) -> str:
    """What tells facts apart, whatever a file holds."""
    return json.dumps([facts.get(key) for key in keys], sort_keys=True, default=str)


def unequal(comparisons: Sequence[Mapping[str, Any]], names: Sequence[str], apart: str) -> list[str]:
    """What the runs do not share, a sentence each, and what was unequal inside each."""
    budgets = [mapping(comparison.get("budget")) for comparison in comparisons]
    sentences = [str(sentence) for budget in budgets for sentence in budget.get("unequal") or []]
    sentences += [apart] if apart else []
    tokenizers = [mapping(mapping(c.get("corpus")).get("tokenizer")) for c in comparisons]
    if len({marks(tokenizer, "hash") for tokenizer in tokenizers}) > 1:
        kinds = [
            f"{t['kind']} of {count(number(t.get('vocab_size')))}" if "kind" in t else "unknown"
            for t in tokenizers
        ]
        sentences.append(differ("tokenizers", list(zip(kinds, names, strict=True))))
    if _machines_differ(comparisons):
        sentences.append(MACHINES)
    for key, what in (("params", "numbers of parameters"), ("tokens", "numbers of tokens"),
                      ("context", "context lengths")):  # fmt: skip
        known = [(number(budget.get(key)), name) for budget, name in zip(budgets, names, strict=True)]
        shown = [(count(value), name) for value, name in known if value is not None]  # counts have no context
        if len({value for value, _ in shown}) > 1:  # as written: a parameter more or less is no difference
            sentences.append(differ(what, shown))
    return list(dict.fromkeys(sentences))


def differ(what: str, values: Sequence[tuple[str, str]]) -> str:
    """'The runs had different context lengths: 64 (a), 256 (b, c).'"""
    owners: dict[str, list[str]] = {}
    for value, name in values:
        owners.setdefault(value, []).append(name)
    each = [f"{value} ({', '.join(own)})" for value, own in owners.items()]
    return f"The runs had different {what}: {', '.join(each)}."
