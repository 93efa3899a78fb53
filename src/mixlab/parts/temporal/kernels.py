"""flash-linear-attention's kernels in place of our own passes, where they run: one place that decides.

Arguments are those that the package's versions from `OLDEST` on agree in: rows (B, T, ...), a state
(B, H, K, V), logarithms of decays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mixlab.errors import UserError
from mixlab.parts.temporal.delta_rule import Steps

PACKAGE, OLDEST = "flash-linear-attention", (0, 5)
"""The first version whose `chunk_rwkv7` takes what its own layer gives it today."""

DEVICES = ("cuda",)
"""Where the kernels run: they are Triton's."""

HEADS = range(16, 257)
"""Widths of a head that the delta rule's kernels take: a tensor core's smallest side, and their own limit."""

CHUNK = 64
"""Steps of a chunk, with decays that are known to be slow (`safe_gate`): as in their own RWKV-7 layer."""

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain() -> Iterator[None]:
    """Within it everything is computed in plain PyTorch, second derivatives included."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


@cache
def installed() -> tuple[bool, str]:
    """Whether a version that serves is installed, and which, or what is missing."""
    hint = 'pip install "mixlab[fla]"'
    if find_spec("fla") is None:
        return False, f"{PACKAGE} is not installed: {hint}"
    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        return False, f"a module 'fla' is there, but not {PACKAGE}: {hint}"
    major, minor = (int(part) for part in found.split(".")[:2])
    if (major, minor) < OLDEST:
        return False, f"{PACKAGE} {found} is older than {OLDEST[0]}.{OLDEST[1]}: {hint}"
    if find_spec("triton") is None:
        return False, f"{PACKAGE} {found} needs triton, which is not installed"
    return True, f"{PACKAGE} {found}"


def use(device: torch.device) -> bool:
    """Whether what runs on this device takes the kernels; not where the same bits are asked for each time,
    as Triton may choose another variant of a kernel in another process."""
    if device.type not in DEVICES or _plain.get() or torch.are_deterministic_algorithms_enabled():
        return False
    return installed()[0]


def delta_rule(
    x: Steps, memory: Float[Tensor, "B H V K"], low: torch.dtype
) -> tuple[Float[Tensor, "1 B H T V"], Float[Tensor, "B H V K"]]:
    """What `delta_rule.forward` gives for one chunk of all T steps, products in the dtype `low`.

    The decays must be those of RWKV-7, exp(-0.6066) and slower. First derivatives only.
    """
    from fla.ops.rwkv7 import chunk_rwkv7

    def rows(t: Tensor, dtype: torch.dtype) -> Tensor:
        return t[0].transpose(1, 2).to(dtype)  # (1, B, H, T, K) -> (B, T, H, K)

    r, log_w, k, v, a, b, S = _first_order(*x, memory)
    y, S = chunk_rwkv7(
        r=rows(r, low),
        w=rows(log_w, log_w.dtype),
        k=rows(k, low),
        v=rows(v, low),
        a=rows(a, low),
        b=rows(b, low),
        scale=1.0,
        initial_state=S.mT.contiguous(),
        output_final_state=True,
        safe_gate=True,
        chunk_size=CHUNK,
    )
    return y.transpose(1, 2)[None], S.mT


def scan(
    log_a: Float[Tensor, "T B D"], b: Float[Tensor, "T B D"], h: Float[Tensor, "B D"]
) -> Float[Tensor, "T B D"]:
    """All h_t = a_t h_{t-1} + b_t. First derivatives only.

    The state goes in with the first input and comes out as the last output: the kernel passes no gradient to
    a state given as such.
    """
    from fla.ops.hgrn import chunk_hgrn

    log_a, b, h = _first_order(log_a, b, h)
    b = torch.cat(((b[0] + log_a[0].exp() * h)[None], b[1:]))
    hs, _ = chunk_hgrn(b.transpose(0, 1).contiguous(), log_a.transpose(0, 1).contiguous())
    return hs.transpose(0, 1)


def _first_order(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors; to differentiate their gradients, constants behind a kernel, is an error."""
    return cast("tuple[Tensor, ...]", _FirstOrder.apply(*tensors))


class _FirstOrder(torch.autograd.Function):
    """Identity, once."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Pass through."""
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Pass through, unless a graph of the gradients is asked for."""
        if torch.is_grad_enabled():
            raise UserError(
                f"{PACKAGE}'s kernels have no second derivatives; run the model's forward within "
                "mixlab.parts.temporal.kernels.plain()"
            )
        return grads
