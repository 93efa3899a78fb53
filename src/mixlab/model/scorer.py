"""What evaluation, generation and reports ask of anything that assigns probabilities to text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Output(NamedTuple):
    """logits (B, T, V): unnormalised log-probabilities of each next token. state: after the last token, or
    None if the call was given none."""

    logits: Tensor
    state: Any


class Scorer(Protocol):
    """A neural model or an n-gram."""

    vocab_size: int

    def __call__(self, tokens: Tensor, state: Any = None) -> Output:
        """Next-token logits (B, T, V) after each of `tokens` (B, T) int64, continuing from `state`."""
        ...

    def init_state(self, batch_size: int, max_length: int) -> Any:
        """The state before the first token."""
        ...

    def score(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Natural log-probability (B, T) float32 of each target after its row's inputs; rows start afresh."""
        ...

    def flops(self, T: int) -> int:
        """FLOPs of one sequence's forward."""
        ...

    def state_bytes(self, T: int, dtype: Any) -> int:
        """Bytes one sequence must keep for decoding after T tokens."""
        ...

    def parameters_by_component(self) -> Mapping[str, int]:
        """Stored numbers by component."""
        ...

    def flops_by_component(self, T: int) -> Mapping[str, int]:
        """FLOPs of one sequence's forward by component."""
        ...
