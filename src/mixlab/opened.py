"""A run in one object: `mixlab.open(RUN)` gives its model, its tokenizer, text from it, and scores of texts.

`mixlab generate` and `mixlab evaluate` go through it too: the same run, settings and seed give the same text
and the same numbers in Python and on the command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from mixlab.errors import UserError, check_number

if TYPE_CHECKING:
    import torch

    from mixlab.data.tokenizer import Tokenizer
    from mixlab.model.language_model import LanguageModel
    from mixlab.model.ngram import NGram
    from mixlab.train.config import RunConfig
    from mixlab.train.evaluate import Evaluation
    from mixlab.train.run import Run

MAX_TOKENS = 400
TEMPERATURE = 0.8  # trims the tail of unlikely tokens that a small model gets wrong; 1 samples it as it is

Notes = Callable[[str], None]


class Continuation(Iterator[str]):
    """The text that continues a prompt, in chunks as they are drawn.

    ids: the token ids drawn so far. max_tokens: at most this many are drawn.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Iterator[int], max_tokens: int) -> None:
        from mixlab.decode import stream_text

        self.ids: list[int] = []
        self.max_tokens = max_tokens
        self._chunks = stream_text(tokenizer, self._remembered(ids))

    def __next__(self) -> str:
        return next(self._chunks)

    @property
    def ended(self) -> bool:
        """Whether, once all is drawn, the model ended the document by itself."""
        return len(self.ids) < self.max_tokens

    def _remembered(self, ids: Iterator[int]) -> Iterator[int]:
        for token in ids:
            self.ids.append(token)
            yield token


class OpenedRun:
    """A run or checkpoint folder: see `open`."""

    def __init__(self, run: Run, device: torch.device | str, notes: Notes | None) -> None:
        self._run, self._device, self._notes = run, device, notes

    def __repr__(self) -> str:
        return f"<run {self.path}, step {self._run.step}>"

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._run.path

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint in use."""
        return self._run.checkpoint

    @property
    def config(self) -> RunConfig:
        """What the run was made with."""
        return self._run.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""
        return self._run.tokenizer

    @cached_property
    def model(self) -> LanguageModel | NGram:
        """The model in eval mode, read when it is first asked for; `generate` and `evaluate` use this one."""
        return self._run.load(self._device)

    def stream(
        self,
        prompt: str = "",
        *,
        max_tokens: int = MAX_TOKENS,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        dtype: str = "auto",
    ) -> Continuation:
        """What continues `prompt`, chunk by chunk: arguments and text as of `mixlab generate`.

        max_tokens: at most this many; the text ends before where the model ends the document.
        temperature: 0 takes the likeliest token, 1 samples as learned. top_k, top_p: only among the K
        likeliest, or the likeliest that sum to P. seed: the same seed gives the same text. dtype: how weights
        are read, "float32", "float16" (faster) or "auto".
        Raises UserError for a setting out of range, at once.
        """
        from mixlab.decode import check_precision, check_sampling, generate, precision

        if not isinstance(prompt, str):
            raise UserError(f"a prompt is a text (str), got {type(prompt).__name__}")
        check_sampling(temperature, top_k, top_p)  # before the seconds that loading takes
        check_precision(dtype)
        encoded = self.tokenizer.encode(prompt)
        if (unknown := self.tokenizer.count_unknown(encoded)) and self._notes is not None:
            self._notes(
                f"{unknown} of the prompt's characters {'is' if unknown == 1 else 'are'} not in the "
                "tokenizer's vocabulary: the model reads one unknown character instead of each"
            )
        # What ends a document starts the next: the text before every prompt.
        ends = [] if self.tokenizer.end is None else [self.tokenizer.end]
        ids = generate(
            self.model,
            [*ends, *(int(token) for token in encoded)],
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=ends,
            note=self._notes,
            dtype=precision(self.model, dtype),
        )
        return Continuation(self.tokenizer, ids, max_tokens)

    def generate(
        self,
        prompt: str = "",
        *,
        max_tokens: int = MAX_TOKENS,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        dtype: str = "auto",
    ) -> str:
        """The text that continues `prompt`, without it; arguments as of `stream`."""
        return "".join(
            self.stream(
                prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                dtype=dtype,
            )
        )

    def evaluate(
        self,
        text: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        encoding: str | None = None,
        stride: int | None = None,
    ) -> Evaluation:
        """How well the model predicts a text: the numbers of `mixlab evaluate`.

        text: a file, folder, glob or `corpus:python`, or several of them. encoding: of plain text, as Python
        names it. stride: tokens from one window's start to the next one's, by default the context. Raises
        UserError for a text that cannot be read.
        """
        from mixlab.data import prepare_single
        from mixlab.data.charsets import DEFAULT

        sources = [text] if isinstance(text, str | os.PathLike) else text
        if not (isinstance(sources, Sequence) and all(isinstance(s, str | os.PathLike) for s in sources)):
            raise UserError(f"a text is given by its path or a list of paths, not by {type(text).__name__}")
        if stride is not None:
            check_number("stride", stride, Integral)
        tokens, _ = prepare_single(
            [os.fspath(source) for source in sources],
            self.tokenizer,
            context=1,
            text_field=self.config.data.text_field,
            encoding=encoding or DEFAULT,
            notes=self._notes,
        )
        return self._run.evaluate(tokens, self.model, stride=stride)


def open(path: Path | str, *, device: torch.device | str = "cpu", notes: Notes | None = None) -> OpenedRun:
    """A run folder (its best checkpoint, else its latest) or a checkpoint folder, ready to use.

    device: where the model goes. notes: called with each sentence worth telling a person, such as that a
    damaged checkpoint was passed over; by default only that is told, as a Python warning.
    Raises UserError for what is no run, and for a damaged checkpoint where none is left.
    """
    from mixlab.train.run import open_run

    return OpenedRun(open_run(path, notes=notes), device, notes)
