"""The count-based n-gram: interpolated modified Kneser-Ney over integer tokens, behind the scorer protocol.

It is not a part and has no gradients, but it answers the same calls as a LanguageModel, so evaluation,
comparison, generation and reports take either. Training is in `ngram_estimate`, ARPA files in `ngram_arpa`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mixlab.errors import UserError
from mixlab.model.ngram_estimate import Floats, Ints, Level, as_documents, as_ids, check_ids, estimate
from mixlab.records import parse_json

if TYPE_CHECKING:
    import torch

    from mixlab.model.scorer import Output

MAX_ORDER = 8
_TENSORS, _FACTS = "ngram.safetensors", "ngram.json"
_NOTHING = -1  # a position before the first token: no token, not even <s>


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The part of a text that training draws: its first `windows` windows of `context` tokens, by `seed`."""

    windows: int
    context: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class NGramConfig:
    """What an n-gram run chooses. Of a longer text `max_tokens` (0: all), evenly spread, are counted.

    drawn: count only what a neural model would have been trained on; None is the whole training text.
    """

    order: int = 6  # the best of 1..8 on character text of a few MB, and what KenLM's default build stops at
    max_tokens: int = 20_000_000  # 1.2 GB of memory for bytes of prose, 6 GB for tokens drawn at random
    drawn: Drawn | None = None


class NGramState(NamedTuple):
    """What decoding keeps: the last order - 1 tokens, (B, order - 1) int64; -1 where nothing came before."""

    tokens: torch.Tensor


class NGram:
    """An interpolated modified Kneser-Ney model of one order over ids 0..vocab_size - 1.

    A document begins with <s>, which is context and is never predicted; there is no </s> (a corpus whose
    documents end has a token for it). N-grams of the top order, and those that begin with <s>, have their
    counts; shorter ones have the number of distinct tokens seen before them. The unigram is interpolated with
    the uniform 1/vocab_size, so every token has a probability above 0 after every context, and each
    distribution sums to one.

    Make one with `NGram.train` or `NGram.load`.
    """

    def __init__(self, levels: list[Level], *, vocab_size: int) -> None:
        self._levels = levels
        self.vocab_size = vocab_size

    @classmethod
    def train(cls, tokens: Any, *, order: int = 5, vocab_size: int | None = None) -> NGram:
        """Count and smooth.

        tokens: a 1-D integer array or list (one document), or a 2-D array or sequence of 1-D arrays
            (documents, each of which starts afresh after <s>); numpy, memory-mapped or torch on the CPU.
            Empty documents add nothing.
        order: 1..8; an n-gram sees order - 1 tokens of context.
        vocab_size: number of token ids; by default one more than the largest in the text.

        Raises UserError for an order outside 1..8, an empty corpus, a token outside the vocabulary, and a
        vocabulary that is no positive integer or has no room in memory.
        """
        if isinstance(order, bool) or not isinstance(order, Integral) or not 1 <= order <= MAX_ORDER:
            raise UserError(
                f"an n-gram of order {order} is not possible: the order is an integer from 1 to {MAX_ORDER}"
            )
        documents = [document for document in as_documents(tokens) if document.size]
        if not documents:
            raise UserError("the corpus is empty: an n-gram needs at least one token to count")
        if vocab_size is None:
            vocab_size = max(1, *(int(document.max()) + 1 for document in documents))
        if not isinstance(vocab_size, int | np.integer) or vocab_size < 1:
            raise UserError(f"vocab_size {vocab_size} is not possible: it is the number of ids, at least 1")
        for document in documents:
            check_ids(document, vocab_size)
        try:
            return cls(
                estimate(documents, order=order, vocab_size=int(vocab_size)), vocab_size=int(vocab_size)
            )
        except MemoryError:
            raise UserError(
                f"an n-gram of order {order} over {vocab_size} ids does not fit in memory; "
                "choose a smaller order or vocab_size"
            ) from None

    @property
    def order(self) -> int:
        """The length of the longest n-gram."""
        return len(self._levels)

    @property
    def grams(self) -> tuple[int, ...]:
        """How many n-grams of each length are stored."""
        return tuple(len(level.log_prob) for level in self._levels)

    @property
    def parameters(self) -> int:
        """Stored numbers: a log-probability for each n-gram, a back-off for each below the top order."""
        return sum(len(level.log_prob) + max(0, len(level.back_off) - 1) for level in self._levels)

    def log_prob(self, tokens: Any, *, start: bool = True) -> Floats:
        """The natural log-probability of each token given those before it: float64, of the shape of `tokens`.

        tokens: (N,) one document, or (B, N) rows that know nothing of each other; integers.
        start: whether <s> stands before the first token; without it that token is scored with no context.
        Raises UserError for a token outside the vocabulary or an array of other than 1 or 2 dimensions.
        """
        ids = as_ids(tokens)
        if ids.ndim not in (1, 2):
            raise UserError(f"tokens have {ids.ndim} dimensions: (N,) or (B, N) would be right")
        check_ids(ids, self.vocab_size)
        rows = np.atleast_2d(ids)
        before = np.full((len(rows), 1), self.vocab_size if start else _NOTHING)
        inputs = np.concatenate([before, rows], axis=1)[:, :-1]
        return self._score(inputs, rows).reshape(ids.shape)

    def score(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B, T) float32 natural log-probability of targets[:, t] given inputs[:, : t + 1]; fresh rows.

        Nothing is assumed before the first input, not even <s>: a row may be any window of a text.
        """
        import torch

        from mixlab.model.inputs import check_rows

        check_rows("inputs", inputs)
        check_rows("targets", targets, inputs)
        x, y = as_ids(inputs.cpu(), "inputs"), as_ids(targets.cpu(), "targets")
        check_ids(x, self.vocab_size)
        check_ids(y, self.vocab_size)
        return torch.from_numpy(self._score(x, y).astype(np.float32)).to(targets.device)

    def __call__(self, tokens: torch.Tensor, state: NGramState | None = None) -> Output:
        """Natural log-probabilities of the token after each of `tokens` (B, T): logits (B, T, V) float32.

        Without a state a row starts at its first token, as in `score`, and the returned state is None; with
        one the rows continue from it and the state after the last token is returned.
        """
        import torch

        from mixlab.model.inputs import check_rows, check_state
        from mixlab.model.scorer import Output

        check_rows("tokens", tokens)
        ids = as_ids(tokens.cpu())
        check_ids(ids, self.vocab_size)
        B, T = ids.shape
        if state is not None:
            check_state(state, NGramState, B)
            ids = np.concatenate([state.tokens.cpu().numpy(), ids], axis=1)
        contexts = [rows[:, rows.shape[1] - T :].reshape(-1) for rows in self._contexts(ids)]
        logits = torch.from_numpy(self._distributions(contexts, B * T)).view(B, T, self.vocab_size)
        if state is not None:
            kept = np.ascontiguousarray(ids[:, ids.shape[1] - (self.order - 1) :])
            state = NGramState(torch.from_numpy(kept).to(tokens.device))
        return Output(logits.to(tokens.device), state)

    def init_state(
        self, batch_size: int, max_length: int, *, device: Any = None, dtype: Any = None
    ) -> NGramState:
        """The state before the first token: nothing known. max_length and dtype change nothing here."""
        import torch

        from mixlab.model.inputs import check_room

        check_room(batch_size, max_length)
        return NGramState(
            torch.full((batch_size, self.order - 1), _NOTHING, dtype=torch.int64, device=device)
        )

    def flops(self, T: int) -> int:
        """0: scoring T tokens looks numbers up and adds logarithms; it multiplies nothing."""
        return 0

    def flops_by_component(self, T: int) -> dict[str, int]:
        """Zero for each component of a LanguageModel."""
        return dict.fromkeys(("embedding", "temporal", "feature", "norm", "head"), 0)

    def parameters_by_component(self) -> dict[str, int]:
        """All stored numbers count as temporal mixing: they are what the model knows of the tokens before."""
        return self.flops_by_component(0) | {"temporal": self.parameters}

    def state_bytes(self, T: int, dtype: Any = None) -> int:
        """Bytes of one sequence's decoding state: the last order - 1 ids, whatever T and dtype."""
        return 8 * (self.order - 1)

    def save(self, directory: str | Path) -> None:
        """Write ngram.safetensors and, last, ngram.json with its hash into `directory`, made if need be."""
        from safetensors.numpy import save

        directory = _path(directory, "an n-gram is saved to the path of a folder, not to")
        tensors: dict[str, Any] = {}
        for k, level in enumerate(self._levels, start=1):
            tensors |= {f"{name}.{k}": np.ascontiguousarray(value) for name, value in level._asdict().items()}
        data = save(tensors)
        facts = {
            "format": "mixlab-ngram-1",
            "order": self.order,
            "vocab_size": self.vocab_size,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / _TENSORS).write_bytes(data)
            (directory / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"the n-gram cannot be written to {directory}: {error.strerror}") from None

    @classmethod
    def load(cls, directory: str | Path) -> NGram:
        """The model that `save` wrote, to the last bit; UserError if missing, damaged or of another kind."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        directory = _path(directory, "an n-gram is given by the path of its folder, not by")
        try:
            facts = parse_json((directory / _FACTS).read_bytes())
            data = (directory / _TENSORS).read_bytes()
        except OSError as error:
            missing = Path(error.filename or directory).name
            raise UserError(
                f"{directory} holds no n-gram: {missing} cannot be read ({error.strerror})"
            ) from None
        except ValueError as error:
            raise UserError(f"{directory / _FACTS} is damaged: it is not JSON ({error})") from None
        if not isinstance(facts, dict) or facts.get("format") != "mixlab-ngram-1":
            raise UserError(
                f"{directory / _FACTS} does not describe an n-gram that this version of mixlab can read"
            )
        if facts.get("sha256") != hashlib.sha256(data).hexdigest():
            raise UserError(f"{directory / _TENSORS} is damaged: its sha256 is not the one in {_FACTS}")
        try:
            tensors = load(data)
            order, vocab_size = int(facts["order"]), int(facts["vocab_size"])
            if order < 1:
                raise ValueError(f"order {order}")
            levels = [Level(**{f: tensors[f"{f}.{k}"] for f in Level._fields}) for k in range(1, order + 1)]
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(f"{directory} is not a whole n-gram: {error!r}") from None
        _check_shapes(levels, order, vocab_size, directory)
        return cls(levels, vocab_size=vocab_size)

    def write_arpa(self, path: str | Path, words: list[str] | None = None) -> None:
        """Write an ARPA file: see `mixlab.model.ngram_arpa.write_arpa`, also for <s>, </s> and <unk>."""
        from mixlab.model.ngram_arpa import write_arpa

        path = _path(path, "an ARPA file is given by its path, not by")
        write_arpa(path, self._levels, words=words, vocab_size=self.vocab_size)

    def _find(self, k: int, prefix: Ints, tokens: Ints) -> Ints:
        """Rows of the k-grams (row of the prefix in the level below, token), -1 where never seen."""
        keys = self._levels[k - 1].keys
        if not len(keys):
            return np.full(tokens.shape, -1)
        wanted = (
            prefix * (self.vocab_size + 1) + tokens
        )  # negative, so never found, where the prefix is unseen
        row = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[row] == wanted, row, -1)

    def _longer(self, k: int, shorter: Ints, tokens: Ints) -> Ints:
        """Rows of the k-grams that end at each column of `tokens`, from the rows one shorter; all (B, N)."""
        none = np.full((len(tokens), min(1, tokens.shape[1])), -1)
        return np.concatenate([none, self._find(k, shorter[:, :-1], tokens[:, 1:])], axis=1)

    def _contexts(self, tokens: Ints) -> list[Ints]:
        """For k = 1..order - 1 the rows of the k-grams that end at each column of `tokens`: (B, N) each."""
        contexts = [tokens][: self.order - 1]
        for k in range(2, self.order):
            contexts.append(self._longer(k, contexts[-1], tokens))
        return contexts

    def _score(self, inputs: Ints, targets: Ints) -> Floats:
        """log P(targets[:, t] | inputs[:, : t + 1]), float64; inputs may begin with <s> or nothing (-1)."""
        total = self._levels[0].log_prob[targets]
        aligned = np.array_equal(inputs[:, 1:], targets[:, :-1])
        context = inputs
        for k in range(2, self.order + 1):
            gram = self._find(k, context, targets)
            level, below = self._levels[k - 1], self._levels[k - 2]
            backed_off = total + below.back_off[context]
            total = np.where(gram >= 0, level.log_prob[gram], backed_off) if len(level.keys) else backed_off
            if aligned:  # the k-gram that ends at an input is the one that ended at the target before it
                context = np.concatenate([np.full((len(gram), 1), -1), gram[:, :-1]], axis=1)[
                    :, : gram.shape[1]
                ]
            else:
                context = self._longer(k, context, inputs)
        return total

    def _distributions(self, contexts: list[Ints], N: int) -> Any:
        """(N, V) float32 log-probabilities of the next token; contexts: (N,) rows for k = 1..order - 1."""
        # weight[k - 1]: what a k-gram's log-probability is given when only contexts of k - 1 tokens know it.
        weight = [np.zeros(N)]
        for context, level in zip(reversed(contexts), reversed(self._levels[:-1]), strict=True):
            weight.insert(0, weight[0] + level.back_off[context])
        log_prob = np.empty((N, self.vocab_size), np.float32)
        np.add(self._levels[0].log_prob, weight[0][:, None], out=log_prob, casting="same_kind")
        base = self.vocab_size + 1
        for context, level, backed_off in zip(contexts, self._levels[1:], weight[1:], strict=True):
            first = np.searchsorted(level.keys, context * base)  # an unseen context (-1) spans nothing
            count = np.searchsorted(level.keys, (context + 1) * base) - first
            of = np.repeat(np.arange(N), count)
            gram = np.arange(len(of)) + (first - (np.cumsum(count) - count))[of]
            log_prob[of, level.keys[gram] - context[of] * base] = level.log_prob[gram] + backed_off[of]
        return log_prob


def _path(path: Any, sentence: str) -> Path:
    """The path; UserError that says what was given in its place."""
    if not isinstance(path, str | Path):
        raise UserError(f"{sentence} {type(path).__name__}")
    return Path(path)


def _check_shapes(levels: list[Level], order: int, vocab_size: int, directory: Path) -> None:
    """UserError unless the tables fit the order, the vocabulary and one another."""
    rows = vocab_size + 1
    for k, level in enumerate(levels, start=1):
        grams = 0 if k == 1 else len(level.log_prob)
        rows = rows if k == 1 else grams
        expected = (grams, vocab_size if k == 1 else grams, 0 if k == order else rows + 1)
        found = tuple(table.shape for table in level)
        if found != tuple((size,) for size in expected):
            raise UserError(f"{directory} is not a whole n-gram: the {k}-gram tables have shapes {found}")
