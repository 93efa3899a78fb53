"""How a model knows where a token stands: added to the embedding, turned into queries and keys, or
subtracted from the scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.errors import UserError
from mixlab.parts.contract import Component, Place, Role, register, state_dtype


class Position(Component):
    """A position scheme. `acts_on` says what it is applied to: the embedding by the model, queries and keys
    ("attention") or their scores by attention, for which it is built at head width."""

    acts_on: ClassVar[Literal["nothing", "embedding", "attention", "scores"]] = "nothing"
    limit: int | None = None
    """Number of positions it can tell, if bounded."""

    def parameter_count(self) -> int:
        """No parameters."""
        return 0

    def flops(self, T: int) -> int:
        """No matrix products."""
        return 0

    def stepper(self) -> Callable[[Tensor, int], Tensor]:
        """What acts on heads (1, H, 1, K) that stand at a position, on a CPU and without gradients."""
        return self


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
    frequencies: tuple[float, ...], scale: float, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin) of position x frequency, times scale, each (length, 2 x frequencies)."""
    with torch.inference_mode(False):  # a table first asked for while decoding may later serve training
        turns = torch.tensor(frequencies, dtype=torch.float64, device=device)
        angle = torch.outer(torch.arange(length, dtype=torch.float64, device=device), turns)
        cos, sin = scale * angle.cos(), scale * angle.sin()
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


@lru_cache(maxsize=64)
def _rotary_row(
    frequencies: tuple[float, ...], scale: float, position: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One position's row of `_rotary_table`, which every layer asks for in turn, on the CPU."""
    length = 1 << max(position, 255).bit_length()
    cos, sin = _rotary_table(frequencies, scale, length, torch.device("cpu"), dtype)
    with torch.inference_mode(False):
        return cos[position], sin[position]


class _Rotate(torch.autograd.Function):
    """x cos + (x with its halves swapped) (-sin, sin): three passes over memory each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, H, T, K), cos and sin (T, K)."""
        ctx.save_for_backward(cos, sin)
        return torch.roll(x, x.shape[-1] // 2, -1).mul_(sin).addcmul_(x, cos)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The transpose of a rotation is the rotation back."""
        cos, sin = ctx.saved_tensors
        return _Rotate.apply(grads[0], cos, -sin), None, None


def frequencies_of(width: int, base: float) -> list[float]:
    """theta_i = base^(-2i/K) radians a position, for i = 0 .. K/2 - 1 (RoFormer, equation 15)."""
    return [base ** (-2 * i / width) for i in range(width // 2)]


def interpolated_by_rotations(
    frequencies: list[float], factor: float, original: int, slow: float, fast: float
) -> list[float]:
    """YaRN's section 3.2 ("NTK by parts"), which is also Llama 3.1's: a pair that makes fewer than
    `slow` rotations in the original context is slowed down by the factor, one that makes more than `fast`
    is kept, between the two the weight is linear in the rotations."""
    result = []
    for f in frequencies:
        keep = min(1.0, max(0.0, (original * f / (2 * math.pi) - slow) / (fast - slow)))
        result.append((1 - keep) * f / factor + keep * f)
    return result


def interpolated_by_index(
    frequencies: list[float], base: float, factor: float, original: int, slow: float, fast: float
) -> list[float]:
    """The ramp of YaRN's released code: linear in the pair's index, between the indices (rounded outwards)
    at which a pair makes `fast` and `slow` rotations in the original context."""
    width = 2 * len(frequencies)

    def index(rotations: float) -> float:
        return width * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), width - 1)
    span = max(high - low, 0.001)
    keep = [1 - min(1.0, max(0.0, (i - low) / span)) for i in range(len(frequencies))]
    return [(1 - w) * f / factor + w * f for w, f in zip(keep, frequencies, strict=True)]


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
        """base: theta of the paper; pair i turns by base^(-2i/K) a position. channels: the fraction of a
        head's channels that turn, the first ones, as if the head were that narrow (GPT-NeoX: 0.25).

        scaling: how a model trained on `original` tokens (0: the model's context) is run on `factor` times
        as many. linear: position interpolation (Chen et al. 2023), every frequency over the factor. ntk:
        base x factor^(K/(K-2)), which slows the lowest frequency by the factor and keeps the highest.
        yarn: Peng et al. 2023 as released, by index, with its temperature: cos and sin x (0.1 ln factor + 1).
        llama3: YaRN's ramp as written, by rotations, without the temperature. slow, fast: the rotations
        between which those two ramp; fast = 0 takes the scheme's own, 32 for yarn and 4 for llama3.
        """

        base: float = 10_000.0
        channels: float = 1.0
        scaling: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
        factor: float = 1.0
        original: int = 0
        slow: float = 1.0
        fast: float = 0.0

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        if self.dim % 2:
            raise UserError(
                f"position 'rope' turns pairs of channels: the head width {self.dim} must be even"
            )
        self.frequencies, self.scale = self._frequencies()

    def _frequencies(self) -> tuple[tuple[float, ...], float]:
        """Radians a position of each pair that turns, and the factor on cos and sin."""
        c = self.config
        width = int(c.channels * self.dim)
        if not 0 < c.channels <= 1 or width % 2 or not width:
            raise UserError(
                f"position 'rope': channels={c.channels} of a head of {self.dim} is {width}; it must be an "
                "even number above 0 and at most the head's width"
            )
        if c.base <= 1 or c.factor < 1 or c.original < 0:
            raise UserError(
                "position 'rope' needs base > 1, factor >= 1 and original >= 0, got "
                f"base={c.base}, factor={c.factor}, original={c.original}"
            )
        plain = frequencies_of(width, c.base)
        original, fast = c.original or self.place.context, c.fast or {"yarn": 32.0}.get(c.scaling, 4.0)
        if not 0 < c.slow < fast:
            raise UserError(f"position 'rope' needs 0 < slow < fast, got slow={c.slow}, fast={fast}")
        if c.scaling == "linear":
            return tuple(f / c.factor for f in plain), 1.0
        if c.scaling == "ntk":
            stretched = c.base * c.factor ** (width / (width - 2)) if width > 2 else c.base
            return tuple(frequencies_of(width, stretched)), 1.0
        if c.scaling == "yarn":
            ramped = interpolated_by_index(plain, c.base, c.factor, original, c.slow, fast)
            return tuple(ramped), 0.1 * math.log(c.factor) + 1  # section 3.4
        if c.scaling == "llama3":
            return tuple(interpolated_by_rotations(plain, c.factor, original, c.slow, fast)), 1.0
        return tuple(plain), 1.0

    def forward(self, x: Float[Tensor, "B H T K"], start: int = 0) -> Float[Tensor, "B H T K"]:
        """Rotate heads of queries or keys that stand at positions start, start + 1, ..."""
        width = 2 * len(self.frequencies)
        if width < self.dim:
            return torch.cat((self._turn(x[..., :width], start), x[..., width:]), -1)
        return self._turn(x, start)

    def stepper(self) -> Callable[[Tensor, int], Tensor]:
        """The same where all channels turn, the rows looked up once for all layers."""
        frequencies, scale, half = self.frequencies, self.scale, self.dim // 2

        def step(x: Tensor, start: int) -> Tensor:
            cos, sin = _rotary_row(frequencies, scale, start, x.dtype)
            return torch.addcmul(torch.roll(x, half, -1).mul_(sin), x, cos)

        return step if len(frequencies) == half else self

    def _turn(self, x: Float[Tensor, "B H T K"], start: int) -> Float[Tensor, "B H T K"]:
        """All channels of x, in pairs of halves."""
        stop = start + x.shape[2]
        # Rounded up, so that decoding token by token meets few distinct lengths.
        length = 1 << max(stop - 1, 255).bit_length()
        dtype = x.dtype if x.dtype in (torch.bfloat16, torch.float16) else state_dtype(x.dtype)
        cos, sin = _rotary_table(self.frequencies, self.scale, length, x.device, dtype)
        cos, sin = cos[start:stop], sin[start:stop]  # (T, K)
        if torch.is_grad_enabled():
            return _Rotate.apply(x, cos, sin)
        return torch.addcmul(torch.roll(x, x.shape[-1] // 2, -1) * sin, x, cos)


@register("position", "p-rope")
class PartialRotaryPosition(RotaryPosition):
    """RoPE whose lowest frequencies are dropped: their channels see content at every distance alike."""

    paper = "Barbero et al. 2025, Round and Round We Go!, appendix D"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """base: theta. kept: p, the fraction of frequencies that stay, the highest; 0.75 came out best in
        the paper's table 2. 1 is RoPE, 0 no positions."""

        base: float = 10_000.0
        kept: float = 0.75

    def _frequencies(self) -> tuple[tuple[float, ...], float]:
        """int(p K // 2) frequencies as in RoPE, 0 for the rest."""
        if not 0 <= self.config.kept <= 1 or self.config.base <= 1:
            raise UserError(
                f"position 'p-rope' needs 0 <= kept <= 1 and base > 1, got kept={self.config.kept}, "
                f"base={self.config.base}"
            )
        kept = int(self.config.kept * self.dim // 2)
        plain = frequencies_of(self.dim, self.config.base)
        return (*plain[:kept], *[0.0] * (len(plain) - kept)), 1.0


@register("position", "alibi")
class LinearBias(Position):
    """Subtracts from each score the distance times a slope that is the head's own; nothing is learned."""

    paper = "Press, Smith & Lewis 2021, Train Short, Test Long: Attention with Linear Biases"
    acts_on = "scores"

    @staticmethod
    def slopes(heads: int) -> Float[Tensor, "H"]:
        """2^(-8/n), 2^(-16/n), ... for n = 2^k heads; for other counts those of the next smaller power of
        two, then every other one of the next larger (the authors' code)."""
        power = 1 << (heads.bit_length() - 1)
        small, large = ([2 ** (-8 * (i + 1) / n) for i in range(n)] for n in (power, 2 * power))
        return torch.tensor((small + large[::2])[:heads], dtype=torch.float32)


def interleaved_to_half(weight: Float[Tensor, "HK D"], heads: int) -> Float[Tensor, "HK D"]:
    """Reorder a query or key projection from RoFormer's pairing (2i, 2i+1) to ours (i, i + K/2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)
