"""RWKV's channel mixing: a squared-ReLU network that also sees the token before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixlab.errors import UserError
from mixlab.parts.contract import Part, Place, Role, Split, Watched, register
from mixlab.parts.feature.mlp import hidden_width
from mixlab.parts.shift import blend, document_starts, ramp


class ChannelMixState(NamedTuple):
    """The last input."""

    last: Float[Tensor, "B D"]


@register("feature", "channel_mix")
class ChannelMix(Part):
    """W_v relu(k)^2, with k from the present token and the one before; version 4 gates it by sigmoid(r)."""

    paper = "Peng et al. 2023, RWKV (arXiv 2305.13048); Peng et al. 2025, RWKV-7 Goose (arXiv 2503.14456)"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """version: 4 (gated by receptance) or 7 (not). ratio: hidden width over D, 4 in both. multiple:
        hidden width is rounded to it, as in the other feed-forward parts."""

        version: int = 4
        ratio: float = 4.0
        multiple: int = 16

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        if config.version not in (4, 7):
            raise UserError(f"channel_mix has version 4 and version 7, not {config.version}")
        self.gated = config.version == 4
        self.hidden = hidden_width(self.dim, config.ratio, config.multiple)
        self.mu_k = nn.Parameter(torch.empty(self.dim))
        self.mu_r = nn.Parameter(torch.empty(self.dim)) if self.gated else None
        self.k = nn.Linear(self.dim, self.hidden, bias=False)
        self.r = nn.Linear(self.dim, self.dim, bias=False) if self.gated else None
        self.v = nn.Linear(self.hidden, self.dim, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The released code's (RWKV-LM, RWKV-v4/src/model.py and RWKV-v7/train_temp/src/model.py).

        With l of L layers and channel i of D, version 4: mu_k = mu_r = (i/D)^(1 - l/L), W_k orthogonal
        with gain sqrt(F/D), W_r zero. Version 7, where mu weights the token before:
        mu_k = 1 - (i/D)^((1 - l/L)^4), W_k uniform in +-0.5 / sqrt(D). W_v is zero in both, so that the
        block starts as the identity.
        """
        down = 1 - self.place.layer / self.place.depth
        if self.mu_r is not None and self.r is not None:
            self.mu_k.copy_(ramp(self.dim, down))
            self.mu_r.copy_(ramp(self.dim, down))
            nn.init.orthogonal_(self.k.weight, gain=max(1.0, self.hidden / self.dim) ** 0.5)
            nn.init.zeros_(self.r.weight)
        else:
            self.mu_k.copy_(1 - ramp(self.dim, down**4))
            bound = 0.5 * self.dim**-0.5
            nn.init.uniform_(self.k.weight, -bound, bound)
        nn.init.zeros_(self.v.weight)

    def parameter_roles(self) -> dict[str, Role]:
        """The mixing weights are gains: no weight decay."""
        return {name: "gain" if name.startswith("mu_") else "matrix" for name, _ in self.named_parameters()}

    def parameter_count(self) -> int:
        """2 D F + D; the gate adds D^2 + D."""
        return self.dim * (2 * self.hidden + 1 + self.gated * (self.dim + 1))

    def flops(self, T: int) -> int:
        """Two products a token, and the gate's."""
        return 2 * T * self.dim * (2 * self.hidden + self.gated * self.dim)

    def init_state(
        self, batch_size: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> ChannelMixState:
        """Zeros: nothing before the first token."""
        return ChannelMixState(torch.zeros(batch_size, self.dim, device=device, dtype=dtype))

    def state_bytes(self, T: int, dtype: torch.dtype) -> int:
        """One vector, whatever T."""
        return self.dim * dtype.itemsize

    def tensor_plan(self) -> Mapping[str, Split]:
        """Hidden units split. The gate acts on the sum over them, so that it is whole on every process."""
        gate: dict[str, Split] = {"mu_r": "shared"} if self.gated else {}
        return {"mu_k": "shared", **gate, "k": "column", "v": "row"}

    def tensor_units(self) -> int:
        """Hidden units."""
        return self.hidden

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """One document a row, from `state`."""
        y = self.run(x, last=None if state is None else state.last)
        return y, None if state is None else ChannelMixState(x[:, -1].to(state.last.dtype))

    def mix_segments(
        self, x: Float[Tensor, "B T D"], segment: Int[Tensor, "B T"], **rest: Any
    ) -> Float[Tensor, "B T D"]:
        """Packed rows: a document's first token has none before it."""
        return self.run(x, starts=document_starts(segment))

    def run(
        self, x: Float[Tensor, "B T D"], last: Tensor | None = None, starts: Tensor | None = None
    ) -> Float[Tensor, "B T D"]:
        """Equations 14, 15 and 18 of RWKV-4; version 7 has no gate, and mu weights the token before."""
        if self.mu_r is None or self.r is None:
            (k,) = blend(x, 1 - self.mu_k, last=last, starts=starts)
            return self.v(squared_relu(self.k(k)))
        k, r = blend(x, self.mu_k, self.mu_r, last=last, starts=starts)
        y = self.v(squared_relu(self.k(k)))  # (B, T, F) -> (B, T, D)
        return torch.sigmoid(self.r(self.count_once(r))) * y

    def watched(self, x: Float[Tensor, "B T D"]) -> Mapping[Watched, Tensor]:
        """The hidden units."""
        (k,) = blend(x, 1 - self.mu_k if self.mu_r is None else self.mu_k)
        return {"units": squared_relu(self.k(k))}

    def count_once(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """x, with its gradient divided by the number of tensor-parallel processes.

        Each of them computes the whole gate, while the gradients of the part's input are summed over them.
        """
        share = self.v.weight.shape[1] / self.hidden
        return x if share == 1 else x * share + x.detach() * (1 - share)


def squared_relu(h: Tensor) -> Tensor:
    """max(0, h)^2, with one tensor of h's size kept for the gradient."""
    return cast("Tensor", _SquaredReLU.apply(h))


class _SquaredReLU(torch.autograd.Function):
    """The hidden layer is a block's largest tensor: here it is written once and read once each way."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        """max(0, h)^2."""
        ctx.save_for_backward(h)
        return F.relu(h).square_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """2 max(0, h), in operations that can be differentiated again."""
        (h,) = ctx.saved_tensors
        return torch.addcmul(h.new_zeros(()), F.relu(h), grads[0], value=2)
