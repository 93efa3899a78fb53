"""Normalisations over the model width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixlab.parts.contract import Component, Place, register


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype the next matrix product will run in: autocast's where it is on, else the input's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Norm(Component):
    """(..., D) -> (..., D): statistics in the input's precision, result in the compute dtype.

    The residual stream stays float32 under autocast; casting here, once, spares each of the
    several projections that read the result a cast of its own.
    """

    def flops(self, T: int) -> int:
        """No matrix products."""
        return 0

    def stepper(self) -> Callable[[Tensor], Tensor]:
        """`forward` of one vector, (1, 1, D), on a CPU, without gradients and outside autocast."""
        return self

    def reset_parameters(self) -> None:
        """Unit gain, zero shift."""
        for name, parameter in self.named_parameters():
            nn.init.constant_(parameter, 1.0 if name == "gain" else 0.0)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., 1): (mean(x^2) + eps)^(-1/2) in x's dtype, without a temporary of x's size."""
    norm = torch.linalg.vector_norm(
        x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm in few passes over memory, which is what a norm costs on a CPU.

    With z = x r, r = 1 / rms(x) and u = dy gain, the gradient is dx = r (u - z mean(u z)). LayerNorm's fused
    kernel, told that the mean is 0 and the inverse deviation r, gives r (u - mean(u) - z mean(u z)): adding
    r mean(u) back makes it RMSNorm's, at 0.3 to 0.5 times the cost of the composed operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """x (..., D), gain (D) in x's dtype -> (..., D) in `dtype`."""
        r = _inverse_rms(x, eps)
        ctx.save_for_backward(x, gain, r)
        ctx.eps = eps
        return (x * r).mul_(gain).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Fused, or in differentiable operations when the gradient itself is to be differentiated."""
        x, gain, r = ctx.saved_tensors
        dy, D = grads[0].to(x.dtype), x.shape[-1]
        if torch.is_grad_enabled():
            y = F.rms_norm(x, (D,), gain, ctx.eps)
            return *torch.autograd.grad(y, (x, gain), dy, create_graph=True), None, None
        dx, dgain, _ = torch.ops.aten.native_layer_norm_backward(
            dy, x, [D], torch.zeros_like(r), r, gain, None, [True, True, False]
        )
        dx.addcmul_(r, (dy @ gain).unsqueeze(-1), value=1 / D)
        return dx, dgain, None, None


@register("norm", "rmsnorm")
class RMSNorm(Norm):
    """x / rms(x) * gain; no mean is subtracted."""

    paper = "Zhang & Sennrich 2019, Root Mean Square Layer Normalization"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """eps: added to the mean square; 1e-6 as in Llama and RecurrentGemma."""

        eps: float = 1e-6

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.gain = nn.Parameter(torch.empty(self.dim))

    def parameter_count(self) -> int:
        """D."""
        return self.dim

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Scale each vector to unit root mean square, then by the gain."""
        gain, eps, dtype = self.gain.to(x.dtype), self.config.eps, compute_dtype(x)
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, gain, eps, dtype)
        return (x * _inverse_rms(x, eps)).mul_(gain).to(dtype)

    def stepper(self) -> Callable[[Tensor], Tensor]:
        """The same with the mean square as a Python number, which spares operations."""
        gain, eps, D = self.gain, self.config.eps, self.dim
        zero = torch.zeros((), dtype=gain.dtype)

        def step(x: Tensor) -> Tensor:
            v = x.view(-1)
            return torch.addcmul(zero, x, gain, value=(torch.dot(v, v).item() / D + eps) ** -0.5)

        return step if eps > 0 else self


@register("norm", "none")
class NoNorm(Norm):
    """Stands for leaving normalisation out: x itself, in the compute dtype."""

    def parameter_count(self) -> int:
        """No parameters."""
        return 0

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Nothing is changed."""
        return x.to(compute_dtype(x))

    def stepper(self) -> Callable[[Tensor], Tensor]:
        """The same outside autocast."""
        return lambda x: x


@register("norm", "layernorm")
class LayerNorm(Norm):
    """(x - mean) / std * gain + shift."""

    paper = "Ba, Kiros & Hinton 2016, Layer Normalization"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """eps: added to the variance; 1e-5 as in GPT-2 and RWKV. bias: whether a shift is learned."""

        eps: float = 1e-5
        bias: bool = True

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.gain = nn.Parameter(torch.empty(self.dim))
        self.shift = nn.Parameter(torch.empty(self.dim)) if config.bias else None

    def parameter_count(self) -> int:
        """D, or 2D with the shift."""
        return self.dim * (1 + self.config.bias)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Standardise each vector, then scale and shift it."""
        shift = None if self.shift is None else self.shift.to(x.dtype)
        return F.layer_norm(x, (self.dim,), self.gain.to(x.dtype), shift, self.config.eps).to(
            compute_dtype(x)
        )
