"""A part under test: built small, given an input, run whole or in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixlab.parts.agreement import Broken, expect
from mixlab.parts.contract import Choice, Kind, Part, Place, build, get


@dataclass(frozen=True)
class Case:
    """A part, by its registered name and knobs, in a small model."""

    kind: Kind
    name: str
    config: Any = None
    position: str = "none"
    dim: int = 16
    context: int = 24

    @property
    def place(self) -> Place:
        """The second of two blocks."""
        position = Choice(self.position, get("position", self.position).Config())
        return Place(dim=self.dim, depth=2, layer=1, context=self.context, position=position)

    def build(self, dtype: torch.dtype = torch.float64, *, jitter: float = 0.3, seed: int = 0) -> Any:
        """The part in evaluation mode, every parameter moved off its init by `jitter` so that a path
        which starts at zero is tested too."""
        config = get(self.kind, self.name).Config() if self.config is None else self.config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            part = build(self.kind, Choice(self.name, config), self.place).to(dtype).eval()
            with torch.no_grad():
                for parameter in part.parameters():
                    parameter.add_(jitter * torch.randn_like(parameter))
        return part

    def sample(self, B: int, T: int, dtype: torch.dtype = torch.float64, *, seed: int = 1) -> Tensor:
        """A normal input (B, T, D)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(B, T, self.dim, generator=generator, dtype=torch.float64).to(dtype)


def tensors(state: Any) -> list[Tensor]:
    """The tensors in a state, in order, however its tuples nest."""
    if state is None:
        return []
    return [state] if isinstance(state, Tensor) else [t for item in state for t in tensors(item)]


def gradient(value: Tensor, x: Tensor) -> Tensor:
    """d value / d x, zero where there is no path; the graph stays for another call."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (grad,) = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if grad is None else grad


def output(part: Part, x: Tensor, state: Any = None, **rest: Any) -> Tensor:
    """What the part makes of x (B, T, D), once it is sure to be an output and a state of the right kind."""
    result = part(x, state, **rest)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)):
        raise Broken(f"the part returns {kind_of(result)}: return (output, state)")
    y: Tensor = result[0]
    expect(
        y.shape == x.shape,
        f"the output has the shape {tuple(y.shape)} for an input of {tuple(x.shape)}: "
        "a mixer keeps (B, T, D)",
    )
    return y


def kind_of(value: Any) -> str:
    """What a value is, with an article."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def run_in_chunks(part: Part, x: Tensor, cuts: Sequence[int]) -> Tensor:
    """The part over x (B, T, D) in chunks that end at `cuts` and at T, the state carried across."""
    B, T, _ = x.shape
    state = part.init_state(B, T, device=x.device, dtype=x.dtype)
    chunks = []
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
        y, state = part(x[:, start:stop], state)
        chunks.append(y)
    return torch.cat(chunks, 1)


def name_of(dtype: torch.dtype) -> str:
    """As torch writes it after its own name."""
    return str(dtype).removeprefix("torch.")
