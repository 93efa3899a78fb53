"""gMLP: a learned, causal linear map over time inside a gated unit; with a tiny attention, aMLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.errors import UserError, near_divisors
from mixlab.parts.contract import Part, Place, Role, Split, Watched, init_linear, register
from mixlab.parts.feature.mlp import hidden_width
from mixlab.parts.temporal.attention_core import Scoring, scores

EPS = 1e-5
"""Added to the variance, as in the model's own layer norm."""

SPATIAL_STD = 1e-6
"""Of the spatial weights at the start: the paper says near zero; timm's models, trained to the paper's
accuracy, took this."""


class GMLPState(NamedTuple):
    """What the first `length` tokens left, in buffers with room for more: the normalised second halves of Z,
    and the keys and values of the tiny attention (of width 0 without one)."""

    z2: Float[Tensor, "B S C"]
    keys: Float[Tensor, "B S a"]
    values: Float[Tensor, "B S a"]
    length: Int[Tensor, ""]


@register("temporal", "gmlp")
class GMLP(Part):
    """V (Z1 * (W LN(Z2) + b)) with [Z1, Z2] = gelu(U x), W lower triangular over the tokens."""

    paper = "Liu et al. 2021, Pay Attention to MLPs (arXiv 2105.08050)"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """ratio: width of Z over D, 6 as in gMLPbase. multiple: it is rounded to a multiple of this.
        context: longest sequence, the size of W; 0 takes the context the model trains at.
        toeplitz: W depends on the distance alone: n numbers in place of n (n + 1) / 2 (appendix C).
        attention: width of the tiny attention's one head, 64 in aMLPbase; 0 leaves it out.
        groups: LN in so many groups of channels, which may then stand on as many devices; the paper has 1."""

        ratio: float = 6.0
        multiple: int = 16
        context: int = 0
        toeplitz: bool = False
        attention: int = 0
        groups: int = 1

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = hidden_width(self.dim, config.ratio, config.multiple)
        self.channels = self.hidden // 2
        self.limit: int = config.context or place.context  # n: W has so many rows
        _check(config, self.hidden, self.channels)
        self.width = self.channels // config.groups
        n = self.limit
        self.value = nn.Linear(self.dim, self.channels)
        self.gate = nn.Linear(self.dim, self.channels)
        self.gain = nn.Parameter(torch.empty(self.channels))
        self.shift = nn.Parameter(torch.empty(self.channels))
        self.spatial = nn.Parameter(torch.empty(n if config.toeplitz else n * (n + 1) // 2))
        self.bias = nn.Parameter(torch.empty(n))
        self.qkv: nn.Linear | None = None
        if config.attention:
            self.qkv = nn.Linear(self.dim, 3 * config.attention, bias=False)
            self.lift = nn.Linear(config.attention, self.channels, bias=False)
        self.out = nn.Linear(self.channels, self.dim)

    def reset_parameters(self) -> None:
        """W near 0 and b = 1, so that the block starts as V Z1; the projections N(0, 0.02), as in the other
        parts, and what writes to the residual stream divided by sqrt(2N)."""
        for linear in (self.value, self.gate):
            init_linear(linear, self.place.std(0.02))
        if self.qkv is not None:  # to and from a width that is the same in every model
            init_linear(self.qkv, 0.02 / self.place.widening)
            init_linear(self.lift, 0.02)
        init_linear(self.out, self.place.std(0.02) * self.place.residual_scale)
        nn.init.normal_(self.spatial, std=SPATIAL_STD)
        nn.init.ones_(self.bias)
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.shift)

    def parameter_roles(self) -> Mapping[str, Role]:
        """W multiplies activations, whatever the shape it is stored in."""
        return {**super().parameter_roles(), "spatial": "matrix"}

    def parameter_count(self) -> int:
        """U, V and their biases, LN, W and b; the tiny attention's two products."""
        n, a = self.limit, self.config.attention
        linears = (self.hidden + self.channels) * self.dim + self.hidden + self.dim + 2 * self.channels
        spatial = (n if self.config.toeplitz else n * (n + 1) // 2) + n
        return linears + spatial + a * (3 * self.dim + self.channels)

    def flops(self, T: int) -> int:
        """U and V, the T x T map of each channel; the tiny attention's products and its T x T square."""
        a = self.config.attention
        linears = 2 * T * self.dim * (self.hidden + self.channels)
        tiny = 2 * T * a * (3 * self.dim + self.channels) + 4 * T * T * a
        return linears + 2 * T * T * self.channels + tiny

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> GMLPState:
        """Empty buffers for `max_length` tokens, or for all that W has rows for."""
        shape = (batch_size, min(max_length, self.limit))
        widths = (self.gate.weight.shape[0], self.config.attention, self.config.attention)
        z2, keys, values = (torch.zeros(*shape, width, device=device, dtype=dtype) for width in widths)
        return GMLPState(z2, keys, values, torch.zeros((), dtype=torch.int64))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """Half of Z, a key and a value of the tiny attention a token, and the counter."""
        return T * (self.channels + 2 * self.config.attention) * dtype.itemsize + torch.int64.itemsize

    def tensor_plan(self) -> Mapping[str, Split]:
        """By channel, as W and b are the same for all; LN holds whole groups together, so that with the
        paper's one group the part stays whole on every process."""
        if self.config.groups == 1:
            return {}
        plan: dict[str, Split] = dict.fromkeys(("value", "gate", "gain", "shift"), "column")
        if self.qkv is not None:
            plan |= {"qkv": "shared", "lift": "column"}
        return {**plan, "spatial": "shared", "bias": "shared", "out": "row"}

    def tensor_units(self) -> int:
        """Groups of channels."""
        return self.config.groups if self.config.groups > 1 else 0

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """Y = V s(gelu(U x)), s(Z) = Z1 * (W LN(Z2) + b) (docs/parts/gmlp.md)."""
        start = 0 if state is None else int(state.length)
        stop = start + x.shape[1]
        if stop > self.limit:
            raise UserError(
                f"gmlp mixes sequences of up to {self.limit} tokens, the context it was built for; "
                f"{stop} were given"
            )
        z1, z2 = F.gelu(self.value(x)), self.normalise(F.gelu(self.gate(x)))  # (B, T, C), of 2 C = F
        tiny = z2[..., :0] if self.qkv is None else self.qkv(x)
        q, k, v = tiny.chunk(3, -1)  # (B, T, a) each
        if state is not None:
            state = remember(state, z2, k, v)
            z2, k, v = (kept[:, :stop].to(x.dtype) for kept in state[:3])
        W = self.rows(start, stop).to(z2.dtype).expand(len(x), -1, -1)  # (T, S) -> (B, T, S), without copies
        mixed = torch.bmm(W, z2) + self.bias[start:stop, None].to(z2.dtype)  # (B, T, C)
        if self.qkv is not None:
            mixed = mixed + self.lift(attend(q, k, v))
        return self.out(z1 * mixed), state

    def watched(self, x: Float[Tensor, "B T D"]) -> Mapping[Watched, Tensor]:
        """Both halves of gelu(U x), and the scores of the tiny attention."""
        shown: dict[Watched, Tensor] = {"units": F.gelu(torch.cat((self.value(x), self.gate(x)), -1))}
        if self.qkv is not None:
            q, k, _ = self.qkv(x).unsqueeze(1).chunk(3, -1)  # (B, 1, T, a) each
            shown["scores"] = scores(q, k, Scoring())
        return shown

    def normalise(self, z: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """LN of each group of channels."""
        if z.shape[-1] == self.width:
            return F.layer_norm(z, (self.width,), self.gain.to(z.dtype), self.shift.to(z.dtype), EPS)
        grouped = F.layer_norm(z.unflatten(-1, (-1, self.width)), (self.width,), eps=EPS).flatten(-2)
        return (grouped * self.gain + self.shift).to(z.dtype)

    def rows(self, start: int, stop: int) -> Float[Tensor, "T S"]:
        """Rows `start` to `stop` of W, as far as the diagonal reaches."""
        T, w = stop - start, self.spatial
        if self.config.toeplitz:  # the entry at (i, j) is w[i - j]: windows of w reversed, zeros before w[0]
            return F.pad(w[:stop].flip(0), (0, T - 1)).unfold(0, stop, 1).flip(0)
        # The triangle is stored row after row, without the zeros.
        below = torch.ones(T, stop, dtype=torch.bool, device=w.device).tril(start)
        stored = w[start * (start + 1) // 2 : stop * (stop + 1) // 2]
        return w.new_zeros(T, stop).masked_scatter(below, stored)


def remember(
    state: GMLPState, z2: Float[Tensor, "B T C"], k: Float[Tensor, "B T a"], v: Float[Tensor, "B T a"]
) -> GMLPState:
    """Write what new tokens leave behind the kept; in place unless a gradient is recorded.

    Raises UserError when the buffers are full.
    """
    start, room = int(state.length), state.z2.shape[1]
    stop = start + z2.shape[1]
    if stop > room:
        raise UserError(
            f"this state has room for {room} tokens, {stop} were given; ask for a larger max_length"
        )
    buffers = [kept.clone() if torch.is_grad_enabled() else kept for kept in state[:3]]
    for buffer, new in zip(buffers, (z2, k, v), strict=True):
        buffer[:, start:stop] = new
    return state._replace(
        z2=buffers[0], keys=buffers[1], values=buffers[2], length=state.length.new_tensor(stop)
    )


def attend(
    q: Float[Tensor, "B T a"], k: Float[Tensor, "B S a"], v: Float[Tensor, "B S a"]
) -> Float[Tensor, "B T a"]:
    """The tiny attention of aMLP, one head: the last T of S tokens to all up to their own."""
    T, S = q.shape[1], k.shape[1]
    q, k, v = q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)  # (B, 1, S, a)
    # is_causal would align the triangle to the first key, not the last.
    mask = None if T in (1, S) else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=T == S).squeeze(1)


def _check(config: Any, hidden: int, half: int) -> None:
    """UserError for knobs that do not fit together."""
    if hidden % 2:
        raise UserError(
            f"gmlp: a hidden width of {hidden} has no halves; multiple={config.multiple} must be even"
        )
    if config.context < 0 or config.attention < 0:
        raise UserError(
            f"gmlp: context={config.context} and attention={config.attention} must not be negative"
        )
    if config.groups < 1 or half % config.groups:
        raise UserError(
            f"gmlp: groups={config.groups} does not divide {half} channels; the nearest that do are "
            f"{near_divisors(half, config.groups)}"
        )
