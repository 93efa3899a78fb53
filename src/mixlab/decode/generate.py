"""Generation: one prefill, then one token a call through the scorer's state."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from numbers import Integral

import torch
from torch import nn

from mixlab.decode.decoder import check_precision, decoder
from mixlab.decode.sampling import check_sampling, sample_next
from mixlab.errors import UserError, check_number
from mixlab.model.scorer import Scorer
from mixlab.train.surroundings import evaluating, plain


def generate(
    scorer: Scorer,
    prompt_tokens: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Collection[int] = (),
    note: Callable[[str], None] | None = None,
    dtype: str = "float32",
) -> Iterator[int]:
    """Token ids that continue `prompt_tokens`, yielded as each is drawn; same seed, same ids.

    prompt_tokens: at least one id (0, the end of a document, starts a new one). max_tokens: at most this many
    are yielded; a token in `stop` ends the sequence and is not yielded. Sampling settings: see `sample_next`.
    Where the scorer can tell only so many positions apart (`max_positions`), it is started again on the last
    half of them whenever they are used up; `note` is told so once.
    dtype: how a model in float32 on a CPU reads its weights for one token after another: as they are, or in
    float16, in about half the time where they come from memory (see `decoder`). With auto, ids can depend on
    how many tokens were asked of the model before: few are not worth packing its weights.
    Raises UserError for an empty prompt, an id outside the vocabulary or settings out of range, at once.
    """
    check_sampling(temperature, top_k, top_p)
    check_precision(dtype)
    check_number("max-tokens", max_tokens, Integral)
    check_number("seed", seed, Integral)
    try:
        tokens = [operator.index(token) for token in prompt_tokens]
    except TypeError:
        raise UserError(
            f"a prompt is token ids, whole numbers one after another, got {prompt_tokens!r:.60}: "
            "a tokenizer's encode(text) gives them"
        ) from None
    if not tokens:
        raise UserError("the prompt is empty: it needs at least one token (0 starts a document)")
    if outside := [token for token in tokens if not 0 <= token < scorer.vocab_size]:
        raise UserError(f"token {outside[0]} is outside the vocabulary of {scorer.vocab_size}")
    if max_tokens < 0:
        raise UserError(f"max-tokens {max_tokens} is out of range: 0 or more")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed {seed} is out of range: a whole number from 0 to 2**63 - 1")
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: torch.Tensor) -> int:
        drawn = sample_next(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        return int(drawn)

    def reader() -> _Reader:
        with plain(), evaluating(_module(scorer)):
            made = decoder(scorer, dtype, note, tokens=max_tokens)
        return _Reader(made, _module(scorer), len(tokens) + max_tokens, note)

    return _stream(reader, tokens, max_tokens, choose, stop)


def _stream(
    begin: Callable[[], _Reader],
    tokens: list[int],
    max_tokens: int,
    choose: Callable[[torch.Tensor], int],
    stop: Collection[int],
) -> Iterator[int]:
    reader, pending = begin(), tokens
    for _ in range(max_tokens):
        token = choose(reader.read(pending))
        if token in stop:
            return
        yield token
        pending = [token]


class _Reader:
    """Feeds tokens to a scorer and keeps its state within the positions that the scorer has."""

    def __init__(
        self, scorer: Scorer, module: nn.Module | None, length: int, note: Callable[[str], None] | None
    ) -> None:
        self.scorer, self.module, self.device = scorer, module, _device(module)
        self.trains = module is not None and any(part.training for part in module.modules())
        self.limit: int | None = getattr(scorer, "max_positions", None)
        self.room = length if self.limit is None else min(length, self.limit)
        self.note = note
        self.seen: list[int] = []
        self.state = None

    def read(self, tokens: list[int]) -> torch.Tensor:
        """Logits (1, V) of the token after everything read so far and `tokens`, in evaluation mode."""
        # Entered for one call at a time: held open across a yield they would leak into the caller's code.
        training = self.trains or (self.module is not None and self.module.training)
        with plain(), torch.inference_mode(), evaluating(self.module) if training else nullcontext():
            return self._read(tokens)

    def _read(self, tokens: list[int]) -> torch.Tensor:
        if self.state is None or len(self.seen) + len(tokens) > self.room:
            tokens = self._restart(self.seen + tokens)
        self.seen += tokens
        output = self.scorer(torch.tensor([tokens], dtype=torch.int64, device=self.device), self.state)
        self.state = output.state
        return output.logits[:, -1].cpu()  # drawn on the CPU: the same seed gives the same text on any device

    def _restart(self, tokens: list[int]) -> list[int]:
        """Start the state afresh; what it is to read: everything, or the last half of what fits."""
        if self.limit is not None and len(tokens) > self.limit:
            kept = max(1, self.limit // 2)
            tokens = tokens[-kept:]
            if self.note is not None:
                self.note(
                    f"this model knows {self.limit} positions: past them it goes on from the last {kept}"
                )
                self.note = None
        try:
            self.state = self.scorer.init_state(1, self.room)
        except (RuntimeError, MemoryError, OverflowError):
            raise UserError(f"no memory for {self.room} tokens; ask for fewer max-tokens") from None
        self.seen = []
        return tokens


def _module(scorer: Scorer) -> nn.Module | None:
    """A neural scorer as torch's module."""
    return scorer if isinstance(scorer, nn.Module) else None


def _device(module: nn.Module | None) -> torch.device:
    """Where a neural scorer's parameters are; the CPU for a counted one."""
    parameter = None if module is None else next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
