"""Tokenizers of others, in the file format of the tokenizers library: that library encodes and decodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mixlab.data.tokenizer import END, _Base, _checked, _utf8, token_dtype
from mixlab.errors import UserError

ENDS = (
    "<|endoftext|>",  # GPT-2, GPT-NeoX, SmolLM2
    "<|end_of_text|>",  # Llama 3
    "</s>",  # Llama 2, T5
    "<eos>",  # Gemma
    "[SEP]",  # BERT
)
"""What families call the token that stands between documents."""


def parse(content: dict[str, Any]) -> Any:
    """The library's tokenizer of that JSON; ValueError for what it refuses."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library has no narrower type
        raise ValueError(f"the tokenizers library refuses it: {error}") from None


class LibraryTokenizer(_Base):
    """Any tokenizer of the library, whole: texts are given to it uncut, whatever their length.

    What the file says of truncation, padding, dropout of merges and tokens around a text (a post-processor)
    is of single requests, and does not apply here. `end` is the id of the first of ENDS that there is.
    """

    kind = "library"

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content
        self._engine = parse({**content, "model": {**content["model"], "dropout": None}})
        self._engine.no_truncation()
        self._engine.no_padding()
        vocab: dict[str, int] = self._engine.get_vocab(with_added_tokens=True)
        if not vocab:
            raise ValueError("its vocabulary is empty")
        self.vocab_size = 1 + max(vocab.values())  # ids may have gaps
        self.end: int | None = next((vocab[name] for name in ENDS if name in vocab), None)
        self.slow = self.end == 0  # others are refused by `encode_stretch`, which another process cannot do
        self._unknown = _unknown(content["model"], vocab)
        self._dtype = token_dtype(self.vocab_size)

    def to_json(self) -> dict[str, Any]:
        """The file's content, as it was."""
        return self._content

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text` as the library gives them, without tokens around it."""
        [found] = self._engine.encode_batch_fast([_utf8(text).decode()], add_special_tokens=False)
        return np.array(found.ids, dtype=self._dtype)

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """The stream `[0, document, 0, ..., 0]`; UserError if 0 is not the end of a document."""
        if self.end != 0:
            raise UserError(
                "this tokenizer cannot make a stream of documents: that takes one whose token 0 is "
                f"the end of a document ({', '.join(ENDS)})"
            )
        end = np.zeros(1, self._dtype)
        return np.concatenate([end, *(part for d in documents for part in (self.encode(d), end))])

    def encode_stretch(self, text: str) -> np.ndarray:
        """Ids of a chunk of a stream, in which NUL ends a document."""
        first, *others = text.split(END)
        return np.concatenate([self.encode(first), self.encode_documents(others)[: -1 if others else 0]])

    def cut(self, text: str) -> int:
        """Nowhere: where a cut changes no token is not known of a tokenizer in general."""
        return 0

    def count_unknown(self, ids: np.ndarray) -> int:
        """How many of `ids` are the unknown token."""
        return 0 if self._unknown is None else int(np.count_nonzero(ids == self._unknown))

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of all ids together, special tokens by name; `ValueError` for an id out of range."""
        text: str = self._engine.decode(_checked(ids, self.vocab_size).tolist(), skip_special_tokens=False)
        return text

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The text's bytes."""
        return self.decode(ids).encode()


def _unknown(model: dict[str, Any], vocab: dict[str, int]) -> int | None:
    """The id that stands for text that the vocabulary cannot write, if there is one."""
    if model.get("unk_id") is not None:  # Unigram
        return int(model["unk_id"])
    name = model.get("unk_token")
    return vocab.get(name) if isinstance(name, str) else None
