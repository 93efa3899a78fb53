"""Interpolated modified Kneser-Ney by the book: tuples in dictionaries, one recursion, no shared code."""

from __future__ import annotations

from collections import Counter, defaultdict

START = "<s>"


class NaiveNGram:
    """`prob(context, token)` in float64; context is any tuple, its last order - 1 entries count."""

    def __init__(self, documents: list[list[int]], order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        raw = [Counter() for _ in range(order + 1)]
        for document in documents:
            text = [START, *document]
            for k in range(1, order + 1):
                raw[k].update(tuple(text[i : i + k]) for i in range(len(text) - k + 1))
        self.discount, self.followers = [()] * (order + 1), [None] * (order + 1)
        for k in range(1, order + 1):
            counts = dict(raw[k])
            if k < order:
                before = defaultdict(set)
                for gram in raw[k + 1]:
                    before[gram[1:]].add(gram[0])
                counts = {g: c if g[0] == START else len(before[g]) for g, c in raw[k].items()}
            counts = {g: c for g, c in counts.items() if g[-1] != START}
            self.discount[k] = self.discounts(list(counts.values()))
            self.followers[k] = defaultdict(dict)
            for gram, count in counts.items():
                self.followers[k][gram[:-1]][gram[-1]] = count

    @staticmethod
    def discounts(counts: list[int]) -> tuple[float, ...]:
        n1, n2, n3, n4 = (counts.count(i) for i in (1, 2, 3, 4))
        if 0 in (n1, n2, n3, n4):
            return (0.0, 0.5, 1.0, 1.5)
        y = n1 / (n1 + 2 * n2)
        d = (0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return d if all(0 < d[i] <= i for i in (1, 2, 3)) else (0.0, 0.5, 1.0, 1.5)

    def prob(self, context: tuple, token: int) -> float:
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        shorter = self.prob(context[1:], token) if context else 1 / self.vocab_size
        counts, d = self.followers[len(context) + 1].get(context, {}), self.discount[len(context) + 1]
        taken, count = sum(d[min(c, 3)] for c in counts.values()), counts.get(token, 0)
        return (count - d[min(count, 3)] + taken * shorter) / sum(counts.values()) if counts else shorter
