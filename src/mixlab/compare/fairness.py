"""What a budget left unequal, computed from the results: sentences for the table and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

WORTH_SAYING = 1.1
"""Ratios below this are not worth a sentence: repeated timings differ as much."""

Result = Mapping[str, Any]


def unequal(
    results: Sequence[Result], budget: Mapping[str, Any], corpus: Mapping[str, Any], *, timed: bool = True
) -> list[str]:
    """Sentences, each with its numbers, on what differs between the finished models beside their parts.

    timed: whether times can be believed, see `mixlab.compare.timing`; if not, none is on them.
    """
    done = [result for result in results if result.get("status") == "done"]
    neural = [result for result in done if result["config"].get("model")]
    counted = [result for result in done if result["config"].get("ngram")]
    found = [
        _parameters(neural, budget),
        _spread(neural, _flops, "Compute: a training token costs", compact, " FLOPs"),
        _spread(neural, _seconds, "Time: training took", _duration, "") if timed else "",
        _counted(counted, neural, budget, corpus),
        _state(neural, budget),
        _spread(neural, _memory, "Memory: the peak of the training process goes", _size, ""),
        _rates(neural),
        _seeds(neural),
    ]
    return [sentence for sentence in found if sentence]


def _flops(result: Result) -> float:
    """Of training: a backward costs two forwards."""
    return 3.0 * float(result["flops_per_token"])


def _seconds(result: Result) -> float:
    return float(result["seconds"])


def _memory(result: Result) -> float:
    return float(result["peak_memory_bytes"])


def _mean_by_model(results: Sequence[Result], value: Callable[[Result], float]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for result in results:
        values.setdefault(result["model"], []).append(value(result))
    return {model: sum(several) / len(several) for model, several in values.items()}


def _spread(
    results: Sequence[Result],
    value: Callable[[Result], float],
    what: str,
    show: Callable[[float], str],
    unit: str,
) -> str:
    """ "... from 1 (a) to 3 (b), a ratio of 3.0", or nothing where all are about equal."""
    means = _mean_by_model(results, value)
    if len(means) < 2:
        return ""
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    if means[low] <= 0 or means[high] / means[low] < WORTH_SAYING:
        return ""
    ratio = means[high] / means[low]
    least, most = f"{show(means[low])}{unit} ({low})", f"{show(means[high])}{unit} ({high})"
    return f"{what} from {least} to {most}, a ratio of {ratio:.1f}."


def _parameters(neural: Sequence[Result], budget: Mapping[str, Any]) -> str:
    counts = _mean_by_model(neural, lambda result: float(result["parameters"]))
    if not counts:
        return ""
    off = max(abs(count / budget["params"] - 1) for count in counts.values())
    low, high = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[low] == counts[high]:
        each = " each" if len(counts) > 1 else ""
        return f"Parameters: {counts[low]:,.0f}{each}, {off:.1%} from the budget."
    extremes = f"{counts[low]:,.0f} ({low}) to {counts[high]:,.0f} ({high})"
    return f"Parameters: {extremes}, at most {off:.1%} from the budget."


def _counted(
    counted: Sequence[Result], neural: Sequence[Result], budget: Mapping[str, Any], corpus: Mapping[str, Any]
) -> str:
    """What each n-gram stores and read, beside what the neural models were trained on."""
    if not counted:
        return ""
    if not neural:
        return f"Counting: {_listed([_stored(one, None) for one in counted])}."
    read = [f"{_stored(one, budget)} after reading {compact(one['tokens'])} tokens once" for one in counted]
    share = budget["tokens"] / corpus["train_tokens"] if corpus.get("train_tokens") else 0.0
    of_text = ""
    if share:
        part = f"{share:.0%}" if share >= 0.01 else "under 1%"
        of_text = f", {part} of the training text" if share < 1 else f", {share:.1f} times the text"
    sentence = f"{'; '.join(read)}; the others were trained on {compact(budget['tokens'])} tokens{of_text}"
    one_is_both = share >= 1 and not any(one.get("counted_on") == "same" for one in counted)
    same = ", so that the same text and all of it are one" if one_is_both else ""
    return f"Counting: the budget does not bind it: {sentence}{same}."


def _stored(one: Result, budget: Mapping[str, Any] | None) -> str:
    times = "" if budget is None else f" ({one['parameters'] / budget['params']:.1f} times the budget)"
    return f"{one['model']} stores {compact(one['parameters'])} numbers{times}"


def _state(neural: Sequence[Result], budget: Mapping[str, Any]) -> str:
    growth = _mean_by_model(neural, lambda result: float(result.get("state_bytes_per_token") or 0))
    growing = {model: rate for model, rate in growth.items() if rate > 0}
    constant = [model for model in growth if model not in growing]
    if not growing:
        return ""
    sizes = _mean_by_model(neural, lambda result: float(result["state_bytes"]))
    parts = [
        f"{model}'s is {_size(sizes[model])} at {budget['context']} tokens and grows by {_size(rate)} a token"
        for model, rate in growing.items()
    ]
    verb = "keeps" if len(constant) == 1 else "keep"
    rest = f"; {_listed(constant)} {verb} {_range(sizes, constant)} at any length" if constant else ""
    return f"Decoding state: {'; '.join(parts)}{rest}."


def _range(sizes: Mapping[str, float], models: Sequence[str]) -> str:
    low, high = min(sizes[m] for m in models), max(sizes[m] for m in models)
    return _size(low) if low == high else f"{_size(low)} to {_size(high)}"


def _rates(neural: Sequence[Result]) -> str:
    """Each model's learning rate: nothing says that each is the best for its model."""
    rates: dict[tuple[str, float], list[str]] = {}
    for result in neural:
        optimizer = result["config"].get("train", {}).get("optimizer", {})
        rate = (str(optimizer.get("kind")), float(optimizer.get("lr", 0)))
        if result["model"] not in rates.setdefault(rate, []):
            rates[rate].append(result["model"])
    if not rates:
        return ""
    if len(rates) == 1:
        (kind, lr), models = next(iter(rates.items()))
        who = "all models" if len(models) > 1 else models[0]
        return f"Learning rate: {kind} at {lr:g} for {who}."
    parts = [f"{kind} at {lr:g} ({_listed(models)})" for (kind, lr), models in rates.items()]
    return f"Learning rates: {', '.join(parts)}."


def _seeds(neural: Sequence[Result]) -> str:
    seeds: dict[str, set[int]] = {}
    for result in neural:
        seeds.setdefault(result["model"], set()).add(result["seed"])
    single = [model for model, own in seeds.items() if len(own) < 2]
    if len(seeds) < 2 or not single:
        return ""
    who = "one seed each" if len(single) == len(seeds) else f"{_listed(single)} finished with one seed"
    return f"Chance: {who}, so the noise between runs is unknown and small differences may be noise."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def compact(value: float) -> str:
    """Three significant digits and a suffix: 1.07M, 912k."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # what rounds to 1000 belongs to the next suffix
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def _size(value: float) -> str:
    """Bytes in powers of 1024."""
    for size, suffix in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= size:
            return f"{value / size:.1f} {suffix}"
    return f"{value:.0f} bytes"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
