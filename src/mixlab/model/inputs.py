"""What a model is given: token ids looked up and compared, and a mistake in them put into a sentence.

Shapes are looked at before each call; the ids themselves only once torch has refused them, because to read
them is a pass over the tensor, and on a GPU a wait for it. There ids out of range stay torch's own error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixlab.errors import UserError

NO_TARGET = -(2**63)
"""cross_entropy leaves out targets of -100 unless told otherwise; a mean over all tokens must not."""


def look_up(table: nn.Embedding, tokens: Tensor) -> Tensor:
    """The rows of `table` (V, D) at `tokens` (B, T) int64: (B, T, D); UserError for anything else."""
    check_rows("tokens", tokens)
    try:
        return table(tokens)
    except (IndexError, RuntimeError):
        check_ids("tokens", tokens, table.num_embeddings, (torch.int64, torch.int32))
        raise


def cross_entropy(logits: Tensor, targets: Tensor, *, reduction: Literal["sum", "none"]) -> Tensor:
    """Nats of `targets` (N,) int64 under `logits` (N, V); UserError for ids that are none."""
    try:
        return F.cross_entropy(logits, targets, reduction=reduction, ignore_index=NO_TARGET)
    except (IndexError, RuntimeError):
        check_ids("targets", targets, logits.shape[-1], (torch.int64, torch.uint8))
        raise


def check_rows(what: str, rows: Any, like: Tensor | None = None) -> None:
    """UserError unless `rows` is a tensor (B, T) with T >= 1, of the shape of the tokens `like` if given."""
    if not isinstance(rows, Tensor):
        raise UserError(f"{what} must be an int64 tensor of shape (B, T), got {type(rows).__name__}")
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise UserError(f"{what} must have the shape (B, T), T at least 1, got {tuple(rows.shape)}")
    if like is not None and rows.shape != like.shape:
        raise UserError(
            f"{what} {tuple(rows.shape)} must have the shape of the tokens before them, {tuple(like.shape)}"
        )


def check_state(state: Any, kind: type, sequences: int) -> None:
    """UserError unless `state` is a `kind` for so many sequences: the rows of its first tensor with any."""
    if not isinstance(state, kind):
        raise UserError(
            f"a state is the {kind.__name__} that init_state or the call before returned, got "
            f"{type(state).__name__}"
        )
    held = next(_rows(state), sequences)
    if held != sequences:
        raise UserError(f"this state is of {held} sequences, the tokens are of {sequences}")


def _rows(state: Any) -> Iterator[int]:
    """Length of the first axis of each tensor in a state that has one."""
    for item in state:
        if isinstance(item, Tensor):
            if item.ndim:
                yield len(item)
        elif isinstance(item, tuple):
            yield from _rows(item)


def check_room(batch_size: Any, max_length: Any, dtype: Any = None) -> None:
    """UserError unless a state can be for so many sequences, of such a length, in such a dtype."""
    for what, number, least in (("batch_size", batch_size, 1), ("max_length", max_length, 0)):
        if not isinstance(number, int) or number < least:
            raise UserError(f"{what} must be a whole number, {least} or more, got {number!r}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        name = str(dtype).removeprefix("torch.")
        raise UserError(f"a state's dtype must be one of floating point, such as torch.float32, got {name}")


def check_ids(what: str, ids: Tensor, vocab_size: int, dtypes: tuple[torch.dtype, ...]) -> None:
    """UserError for ids of a type not in `dtypes`, or the first one outside 0..vocab_size - 1."""
    if ids.dtype not in dtypes:
        raise UserError(f"{what} must be int64, got {str(ids.dtype).removeprefix('torch.')}")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise UserError(
            f"{what}: id {int(outside[0])} is outside the vocabulary of {vocab_size}: "
            f"ids run from 0 to {vocab_size - 1}"
        )
