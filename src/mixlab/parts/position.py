"""How a model knows where a token stands: added to the embedding, or turned into queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.errors import UserError
from mixlab.parts.contract import Component, Place, Role, register, state_dtype


class Position(Component):
    """A position scheme. `acts_on` says who applies it: the model, to the embedding, or attention."""

    acts_on: ClassVar[Literal["nothing", "embedding", "attention"]] = "nothing"
    limit: int | None = None
    """Number of positions it can tell, if bounded."""

    def parameter_count(self) -> int:
        """No parameters."""
        return 0

    def flops(self, T: int) -> int:
        """No matrix products."""
        return 0


@register("position", "none")
class NoPosition(Position):
    """No position information beyond what causality gives."""

    paper = "Haviv et al. 2022, Transformer Language Models without Positional Encodings"


@register("position", "learned")
class LearnedPosition(Position):
    """A trained vector for each of the first `context` positions, added to the embedding."""

    paper = "Gehring et al. 2017, Convolutional Sequence to Sequence Learning"
    acts_on = "embedding"

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.limit = place.context
        self.weight = nn.Parameter(torch.empty(place.context, self.dim))

    def reset_parameters(self) -> None:
        """N(0, 0.02), the embedding's own scale (GPT-2)."""
        nn.init.normal_(self.weight, std=0.02)

    def parameter_roles(self) -> dict[str, Role]:
        """A table looked up by index."""
        return {"weight": "embedding"}

    def parameter_count(self) -> int:
        """Context x D."""
        return self.place.context * self.dim

    def forward(self, positions: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        """The vectors of the given positions. Raises UserError past the trained context."""
        if positions.numel() and int(positions.max()) >= self.place.context:
            raise UserError(
                f"learned positions end at the context of {self.place.context} tokens, position "
                f"{int(positions.max())} was asked for; train with a larger context or use position 'rope'"
            )
        return self.weight[positions]


@register("position", "sinusoidal")
class SinusoidalPosition(Position):
    """Fixed sines and cosines of geometric frequencies, added to the embedding.

    Scaled by 0.02 sqrt(2): the paper multiplies embeddings by sqrt(D) to match the unit sines; here the
    embedding keeps its N(0, 0.02) and the sines, of mean square 1/2, come down to the same size.
    """

    paper = "Vaswani et al. 2017, Attention Is All You Need, section 3.5"
    acts_on = "embedding"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """base: the longest wavelength is 2 pi base; 10000 as in the paper."""

        base: float = 10_000.0

    SCALE: ClassVar[float] = 0.02 * 2**0.5

    def forward(self, positions: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        """PE(pos, 2i) = sin(pos / base^(2i/D)), PE(pos, 2i+1) = cos(same), float32, scaled."""
        i = torch.arange(0, self.dim, 2, dtype=torch.float64, device=positions.device)
        angle = positions.unsqueeze(-1) * self.config.base ** (-i / self.dim)  # (*B, T, D/2)
        table = torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)[..., : self.dim]
        return (self.SCALE * table).to(torch.get_default_dtype())


@lru_cache(maxsize=64)
def _rotary_table(
    dim: int, base: float, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin) of position x frequency, each (length, dim); a pure function."""
    with torch.inference_mode(False):  # a table first asked for while decoding may later serve training
        frequency = base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
        angle = torch.outer(torch.arange(length, dtype=torch.float64, device=device), frequency)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


class _Rotate(torch.autograd.Function):
    """x cos + (x with its halves swapped) (-sin, sin): three passes over memory each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, H, K), cos and sin (T, 1, K)."""
        ctx.save_for_backward(cos, sin)
        return torch.roll(x, x.shape[-1] // 2, -1).mul_(sin).addcmul_(x, cos)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The transpose of a rotation is the rotation back."""
        cos, sin = ctx.saved_tensors
        return _Rotate.apply(grads[0], cos, -sin), None, None


@register("position", "rope")
class RotaryPosition(Position):
    """Turns queries and keys by an angle that grows with position, so that scores see distances only.

    Channel i is paired with channel i + K/2 (the convention of GPT-NeoX and Llama). RoFormer pairs 2i with
    2i + 1: the same scheme up to a fixed permutation of channels, so weights are not interchangeable
    between the two without `interleaved_to_half`.
    """

    paper = "Su et al. 2021, RoFormer, equations 14-16 and 34"
    acts_on = "attention"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """base: theta of the paper; pair i turns by base^(-2i/K) a position."""

        base: float = 10_000.0

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        if self.dim % 2:
            raise UserError(
                f"position 'rope' turns pairs of channels: the head width {self.dim} must be even"
            )

    def forward(self, x: Float[Tensor, "B T H K"], start: int = 0) -> Float[Tensor, "B T H K"]:
        """Rotate heads of queries or keys that stand at positions start, start + 1, ..."""
        stop = start + x.shape[1]
        # Rounded up, so that decoding token by token meets few distinct lengths.
        length = 1 << max(stop - 1, 255).bit_length()
        dtype = x.dtype if x.dtype in (torch.bfloat16, torch.float16) else state_dtype(x.dtype)
        cos, sin = _rotary_table(self.dim, self.config.base, length, x.device, dtype)
        cos, sin = cos[start:stop, None], sin[start:stop, None]  # (T, 1, K)
        if torch.is_grad_enabled():
            return _Rotate.apply(x, cos, sin)
        return torch.addcmul(torch.roll(x, self.dim // 2, -1) * sin, x, cos)


def interleaved_to_half(weight: Float[Tensor, "HK D"], heads: int) -> Float[Tensor, "HK D"]:
    """Reorder a query or key projection from RoFormer's pairing (2i, 2i+1) to ours (i, i + K/2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)
