"""What every part of a model promises, and the registry that holds them.

Shape vocabulary, used in annotations and trailing comments everywhere:
B batch, T time, D model width, H heads, K head width, F feature hidden width, V vocabulary,
S cached and new time together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.errors import UserError, unknown
from mixlab.parts.products import Products
from mixlab.parts.shift import document_starts

Kind = Literal["temporal", "feature", "position", "norm"]
KINDS: tuple[Kind, ...] = ("temporal", "feature", "position", "norm")

Role = Literal["matrix", "embedding", "head", "gain", "recurrence"]
"""What a parameter is to the optimizer: `matrix` multiplies activations, `gain` is a vector that scales or
shifts, `recurrence` acts on a state at every step, `embedding` and `head` face the vocabulary."""

Split = Literal["column", "row", "shared"]
"""How parameters go onto a tensor-parallel mesh (Shoeybi et al. 2019): divided along their first axis (a
Linear's outputs, a channel's own numbers), a Linear divided by its inputs, or whole on every process but
read by the divided ones, so that the gradient is a sum over them."""


Watched = Literal["scores", "units"]
"""What a part may show of itself while it mixes (B, T, D) from a sequence's start. `scores` (B, H, T, S):
what each query's softmax over the keys is of, -inf where a key is hidden. `units` (B, T, F): what hidden
units pass on; one that passes on nothing for any token is lost to the model."""


Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""One token of one sequence, (1, 1, D), and a state, to the mixed token and the state after it."""


class Choice(NamedTuple):
    """A registered name with the knobs it is to be built with."""

    name: str
    config: Any


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a component stands. The parent computes it, so that no part asks which layer it is.

    dim: model width D. depth, layer: blocks in the model, and this block's index from 0.
    context: the T the model trains at. position: the model's position scheme, if it has one. base_dim: the
    width that the model's scales were chosen at, 0 if they do not follow the width. residual: whether what
    the mixers make is added to what they read, or takes its place.
    """

    dim: int
    depth: int = 1
    layer: int = 0
    context: int = 256
    position: Choice | None = None
    base_dim: int = 0
    residual: bool = True

    @property
    def widening(self) -> float:
        """D over the width that scales were chosen at; 1 if they do not follow the width."""
        return self.dim / self.base_dim if self.base_dim else 1.0

    def std(self, std: float) -> float:
        """The standard deviation of weights that read channels of the model, where `std` was chosen at one
        width: in 1 / sqrt(fan-in) from there (Yang et al. 2022, Tensor Programs V, table 8, hidden weights).
        """
        return std * self.widening**-0.5

    @property
    def residual_scale(self) -> float:
        """Factor on the init of what writes to the residual stream: 1/sqrt(2N) for N blocks of two
        branches, so that the stream's variance at the top does not grow with N (Radford et al. 2019); 1 where
        there is no such stream."""
        return (2 * self.depth) ** -0.5 if self.residual else 1.0


class Component(nn.Module):
    """What the registry holds: knobs, initialisation and bookkeeping, without a say on what it computes."""

    paper: ClassVar[str] = ""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """No knobs."""

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__()
        self.config = config
        self.place = place
        self.dim = place.dim

    @classmethod
    def build(cls, config: Any = None, *, dim: int, depth: int = 1, layer: int = 0, **rest: Any) -> Any:
        """Make the component for a place; `rest` takes the other fields of `Place`.

        The parameters come initialised. Raises UserError where the knobs do not fit the width.
        """
        place = Place(dim=dim, depth=depth, layer=layer, **rest)
        component = cls(cls.Config() if config is None else config, place)
        component.reset_parameters()
        return component

    def reset_parameters(self) -> None:
        """Draw the paper's initialisation."""

    def parameter_roles(self) -> Mapping[str, Role]:
        """Parameter name -> role. Default: what has two or more axes is a matrix, the rest are gains."""
        return {name: "matrix" if p.ndim > 1 else "gain" for name, p in self.named_parameters()}

    def lr_scales(self) -> Mapping[str, float]:
        """Parameter name -> factor on the learning rate, for those that the paper or its released code
        trains at another rate than the rest. Default: none."""
        return {}

    def parameter_count(self) -> int:
        """Number of parameters in closed form, from the knobs and the place alone."""
        raise NotImplementedError(f"{type(self).__name__}.parameter_count")

    def flops(self, T: int) -> int:
        """FLOPs of one sequence's forward over T tokens, by the rule of `torch.utils.flop_counter`.

        2 for each multiply-add of a matrix product, whoever makes it: a Linear, matmul, einsum, the products
        inside a recurrence, a convolution (at every output position that it computes, padding included), and
        both products of attention (over all T x T pairs, masked ones included). 0 for everything else:
        element-wise operations, norms, softmax, sums and scans, and looking up an embedding.
        """
        raise NotImplementedError(f"{type(self).__name__}.flops")


class Part(Component):
    """A temporal or feature mixer: (B, T, D) -> (B, T, D), causal, with a state that can be continued.

    A part writes `mix` and, if it keeps anything between calls, `init_state` and `state_bytes`.
    """

    mixes: ClassVar[bool] = True
    """False only for the part that stands for leaving a branch out."""

    limit: int | None = None
    """Longest sequence it can mix; None if it has no bound."""

    carries: ClassVar[bool] = False
    """True if `forward` takes `carry`: a dict, new for each call of the model, that hands tensors of this
    call from one layer's part up to the next (None where the part stands alone)."""

    def forward(
        self, x: Float[Tensor, "B T D"], state: Any = None, *, segment: Int[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """Mix a sequence, from its start (`state=None`: nothing is kept) or onward from `state`.

        segment: document numbers of a packed row; nothing mixes across two of them. Rows are packed for
        training only, so it excludes a state (ValueError).
        Returns the mixed sequence and the state after its last token (None if none was given). A state is
        consumed by the call: it may be updated in place when no gradient is recorded.
        """
        if not len(x):  # there is nothing to mix, and chunked passes would divide by it
            return x, state
        if segment is None:
            return self.mix(x, state)
        if state is not None:
            raise ValueError("segment numbers whole packed rows and cannot continue a state")
        return self.mix_segments(x, segment), None

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """The part's own computation, for rows that hold one document each."""
        raise NotImplementedError(f"{type(self).__name__}.mix")

    def mix_segments(
        self, x: Float[Tensor, "B T D"], segment: Int[Tensor, "B T"], **rest: Any
    ) -> Float[Tensor, "B T D"]:
        """Mix packed rows: cut them at the starts, run the pieces as rows, put them back.

        Correct for every causal part, because the padding stands to the right of each piece. `rest` is
        handed on to `mix`.
        """
        starts = document_starts(segment).flatten()
        piece = starts.cumsum(0) - 1
        first = starts.nonzero().squeeze(1)
        offset = torch.arange(len(piece), device=x.device) - first[piece]
        rows = x.new_zeros(len(first), int(offset.max()) + 1, x.shape[2])
        rows = rows.index_put((piece, offset), x.flatten(0, 1))
        mixed, _ = self.mix(rows, None, **rest)
        return mixed[piece, offset].view_as(x)

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> Any:
        """The state before the first token, with room for `max_length`; None if the part keeps nothing.

        Its tensors have the batch as their first axis; counters have no axis.
        """
        return None

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """Bytes one sequence must keep for decoding after T tokens."""
        return 0

    def stepper(self, products: Products) -> Step | None:
        """`mix` for one token after another of one sequence, on a CPU, without gradients or autocast.

        A function with all it needs at hand, because a token costs as much as it has operations and attribute
        look-ups; `products` makes functions of Linears. None, the default: the part itself serves.
        """
        return None

    def set_progress(self, fraction: float) -> bool:
        """Take note of how much of training is done, told before its first step (0) and before every step.

        Parameters may come at 0 and go later, if they serve training alone: the state dict leaves them out
        and evaluation does not use them. Returns whether any came or went.
        """
        return False

    def watched(self, x: Float[Tensor, "B T D"]) -> Mapping[Watched, Tensor]:
        """What meters may look at while x is mixed from a sequence's start; default: nothing.

        Called for them alone, now and then, without gradients: it computes again what `mix` computes.
        """
        return {}

    def adaptable_linears(self) -> Mapping[str, nn.Linear]:
        """Name -> Linear: where a low-rank adapter may go."""
        return {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}

    def tensor_plan(self) -> Mapping[str, Split]:
        """Name of a parameter, buffer or submodule -> how it splits over a tensor-parallel mesh.

        A part that names any begins with columns and ends with one row-split Linear: one all-reduce each
        way. It must then name all that the divided computation reads, and take sizes from the tensors it
        holds, not from its knobs; what comes after the row split (or before the columns) is not named.
        """
        return {}

    def tensor_units(self) -> int:
        """How many units a split may not cut through (heads, hidden channels); 0 if nothing is split."""
        return 0


def init_linear(linear: nn.Linear, std: float) -> None:
    """Normal weights and a zero bias."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of recurrent states and softmax statistics: float32, whatever the compute dtype, unless
    the computation is itself in float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


_REGISTRY: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}
_C = TypeVar("_C", bound=type[Component])


def register(kind: str, name: str) -> Callable[[_C], _C]:
    """Class decorator: `@register("temporal", "rglru")` puts a component into the registry.

    Raises UserError if the kind is unknown or another class already has the name.
    """
    if kind not in _REGISTRY:
        raise unknown("kind of part", kind, KINDS)
    if not isinstance(name, str):
        raise UserError(f"a part is registered under a name, got {name!r}")

    def add(cls: _C) -> _C:
        holder = _REGISTRY[kind].get(name)
        if holder is not None and holder.__qualname__ != cls.__qualname__:
            raise UserError(f"{kind} part '{name}' is already registered by {holder.__module__}")
        _REGISTRY[kind][name] = cls
        return cls

    return add


@cache
def _discover() -> None:
    """Import the package's own parts and those of installed packages (entry-point group `mixlab.parts`)."""
    import mixlab.parts.feature
    import mixlab.parts.norm
    import mixlab.parts.position
    import mixlab.parts.temporal  # noqa: F401

    for point in entry_points(group="mixlab.parts"):
        point.load()


def available(kind: str) -> tuple[str, ...]:
    """Names registered under `kind` ("temporal", "feature", "position" or "norm"), sorted."""
    if kind not in _REGISTRY:
        raise unknown("kind of part", kind, KINDS)
    _discover()
    return tuple(sorted(_REGISTRY[kind]))


def get(kind: str, name: str) -> type[Component]:
    """The class registered as `name`; UserError with the list and the nearest match if there is none."""
    names = available(kind)
    if name not in names:
        raise unknown(f"{kind} part", name, names)
    return _REGISTRY[kind][name]


def build(kind: Kind, choice: Choice, place: Place) -> Any:
    """Make the component that `choice` names, initialised, for `place`."""
    component = get(kind, choice.name)(choice.config, place)
    component.reset_parameters()
    return component
