"""Recurrences of Elman, GRU and LSTM networks with products in the compute dtype and a state in float32.

torch.nn's kernels run all in one dtype: a bfloat16 state forgets what a step adds below 2^-9 of it, and
float32 products take three times as long on a CPU with bfloat16 instructions. Here a step is one product of
bfloat16 and a few operations in float32, without an autograd graph. The backward pass computes the gates
again, a stretch of time at once; what it must do step by step is linear in the gradient, with its factors
ready by then. The recurrent weights get their gradient from one product over all steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 1 << 17
"""Numbers in a temporary: 512 KiB in float32, so that a stretch of time stays in the cache."""

ONE = torch.ones(())
"""A Python number would become a tensor, and be cast, at each step."""

Tensors = tuple[Tensor, ...]


_sigmoid_backward = torch.ops.aten.sigmoid_backward  # of x and y: x y (1 - y), in one pass over memory
_tanh_backward = torch.ops.aten.tanh_backward  # x (1 - y^2)


class Cell:
    """One step of a network with G gates of width H; its state is a tuple of (B, H), the hidden vector first.

    a is the input's share of the gates and g the recurrent product, (..., G H) each, biases included.
    `step` and `factors` take one step, (B, ...), as well as a stretch of them, (n, B, ...); of several heads
    alike, (heads, B, ...).
    """

    additive: ClassVar[bool] = True
    """Whether a and g occur in their sum alone, so that a can bring all biases."""

    def step(self, a: Tensor, g: Tensor, state: Tensors) -> Tensors:
        """The state after a step, in differentiable operations."""
        raise NotImplementedError

    def factors(self, a: Tensor, g: Tensor, before: Tensors, after: Tensors) -> Tensors:
        """What `back` multiplies gradients by, for steps whose states are known."""
        raise NotImplementedError

    def back(self, factors: Tensors, grads: Tensors, dg: Sequence[Tensor]) -> tuple[Tensor | None, Tensors]:
        """Gradients of the state after one step -> into dg, gate by gate, that of g; returned, those of the
        state before by paths around g: the hidden vector's, None if there is no such path, and the rest."""
        raise NotImplementedError

    def inputs(self, factors: Tensors, dh: Tensor, dg: Tensor) -> Tensor:
        """Gradient of a, from those of the hidden vectors and of g, for a cell that is not additive."""
        raise NotImplementedError


class ElmanCell(Cell):
    """h' = tanh(a + g)."""

    def step(self, a: Tensor, g: Tensor, state: Tensors) -> Tensors:
        """As the class says."""
        return (tanh(a + g),)

    def factors(self, a: Tensor, g: Tensor, before: Tensors, after: Tensors) -> Tensors:
        """dh' / dg."""
        return (_tanh_backward(torch.ones_like(a), after[0]),)

    def back(self, factors: Tensors, grads: Tensors, dg: Sequence[Tensor]) -> tuple[Tensor | None, Tensors]:
        """Through g alone."""
        torch.mul(factors[0], grads[0], out=dg[0])
        return None, ()


class GRUCell(Cell):
    """r, z = sigmoid(a + g), n = tanh(a + r g), h' = (1 - z) n + z h, in torch.nn's order of gates."""

    additive = False

    def _gates(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        H = a.shape[-1] // 3
        r, z = torch.sigmoid(a[..., : 2 * H] + g[..., : 2 * H]).chunk(2, -1)
        return r, z, tanh(torch.addcmul(a[..., 2 * H :], r, g[..., 2 * H :]))

    def step(self, a: Tensor, g: Tensor, state: Tensors) -> Tensors:
        """As the class says."""
        _, z, n = self._gates(a, g)
        return (torch.lerp(n, state[0], z),)

    def factors(self, a: Tensor, g: Tensor, before: Tensors, after: Tensors) -> Tensors:
        """dh' / dg of r, z and n; dh' / dh around them; dh' / da of n."""
        r, z, n = self._gates(a, g)
        inner = _tanh_backward(1 - z, n)
        of_r = _sigmoid_backward(inner * g[..., 2 * n.shape[-1] :], r)
        return of_r, _sigmoid_backward(before[0] - n, z), inner * r, z, inner

    def back(self, factors: Tensors, grads: Tensors, dg: Sequence[Tensor]) -> tuple[Tensor | None, Tensors]:
        """Through the gates, and around them by z."""
        for factor, out in zip(factors, dg, strict=False):
            torch.mul(factor, grads[0], out=out)
        return factors[3] * grads[0], ()

    def inputs(self, factors: Tensors, dh: Tensor, dg: Tensor) -> Tensor:
        """r stands between n and g alone."""
        return torch.cat((dg[..., : 2 * dh.shape[-1]], (dh * factors[4]).to(dg.dtype)), -1)


class LSTMCell(Cell):
    """i, f, o = sigmoid(a + g), u = tanh(a + g), c' = f c + i u, h' = o tanh(c'); in the order i f u o."""

    def _gates(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sums, H = a + g, a.shape[-1] // 4
        doubled = sums[..., 2 * H : 3 * H]
        doubled.add_(doubled)  # as in `tanh`, so that one sigmoid serves all
        i, f, u, o = torch.sigmoid(sums).chunk(4, -1)
        return i, f, u + u - ONE, o

    def step(self, a: Tensor, g: Tensor, state: Tensors) -> Tensors:
        """As the class says."""
        i, f, u, o = self._gates(a, g)
        c = torch.addcmul(f * state[1], i, u)
        return o * tanh(c), c

    def factors(self, a: Tensor, g: Tensor, before: Tensors, after: Tensors) -> Tensors:
        """dc' / dg of i, f and u; dh' / dg of o; dh' / dc'; dc' / dc."""
        i, f, u, o = self._gates(a, g)
        bounded = tanh(after[1])
        inner = _sigmoid_backward(u, i), _sigmoid_backward(before[1], f), _tanh_backward(i, u)
        return *inner, _sigmoid_backward(bounded, o), _tanh_backward(o, bounded), f

    def back(self, factors: Tensors, grads: Tensors, dg: Sequence[Tensor]) -> tuple[Tensor | None, Tensors]:
        """Through the gates, and around them from cell to cell."""
        dh, dc = grads
        dc = torch.addcmul(dc, dh, factors[4])
        for factor, out in zip(factors, dg[:3], strict=False):
            torch.mul(factor, dc, out=out)
        torch.mul(factors[3], dh, out=dg[3])
        return None, (factors[5] * dc,)


def tanh(x: Tensor) -> Tensor:
    """2 sigmoid(2x) - 1, to within 2^-23: on a CPU it takes a third of torch.tanh's time."""
    y = torch.sigmoid(x + x)
    return y + y - ONE


def scan(
    cell: Cell,
    a: Float[Tensor, "T ... B G"],
    R: Float[Tensor, "... G H"],
    bias: Float[Tensor, "... G"] | None,
    state: Tensors,
) -> tuple[Float[Tensor, "T ... B H"], Tensors]:
    """All hidden vectors, in the dtype of a and R, and the state after them, in its own and the bias's.

    Heads are one more axis, before the batch's: a (T, heads, B, G), R (heads, G, H), bias (heads, 1, G).
    """
    if torch.is_grad_enabled():
        y, *last = cast("Tensors", _Scan.apply(cell, a, R, bias, *state))
        return y, tuple(last)
    kept, _ = _forward(cell, a, R, bias, state)
    return kept[0][1:].to(a.dtype), tuple(k[-1].clone() for k in kept)


def composed(cell: Cell, a: Tensor, R: Tensor, bias: Tensor | None, state: Tensors) -> Tensors:
    """`scan` in differentiable operations; autograd's graph grows with every step."""
    hs = []
    for a_t in a.to(state[0].dtype):
        product = state[0].to(R.dtype) @ R.mT
        state = cell.step(a_t, product if bias is None else bias + product, state)
        hs.append(state[0])
    return torch.stack(hs).to(a.dtype), *state


def _spans(a: Tensor) -> Iterator[slice]:
    """Stretches of time, first to last, of about CHUNK numbers of a."""
    length = max(1, CHUNK // a[0].numel())
    return (slice(start, min(start + length, len(a))) for start in range(0, len(a), length))


def _forward(cell: Cell, a: Tensor, R: Tensor, bias: Tensor | None, state: Tensors) -> tuple[Tensors, Tensor]:
    """The states, the first one included, (T + 1, B, H) each, and the recurrent products, of a's shape."""
    kept = tuple(s.new_empty(len(a) + 1, *s.shape) for s in state)
    products, transposed = torch.empty_like(a), R.mT.contiguous()
    multiply = torch.mm if R.ndim == 2 else torch.bmm
    for k, s in zip(kept, state, strict=True):
        k[0] = s
    for span in _spans(a):
        after = zip(*(k[span.start + 1 : span.stop + 1].unbind() for k in kept), strict=True)
        steps = zip(a[span].to(state[0].dtype).unbind(), products[span].unbind(), after, strict=True)
        for a_t, product, places in steps:
            multiply(state[0].to(R.dtype), transposed, out=product)
            state = cell.step(a_t, product if bias is None else bias + product, state)
            for place, s in zip(places, state, strict=True):
                place.copy_(s)
    return kept, products


class _Scan(torch.autograd.Function):
    """`scan` with a gradient."""

    @staticmethod
    def forward(ctx: Any, cell: Cell, a: Tensor, R: Tensor, bias: Tensor | None, *state: Tensor) -> Tensors:
        """a, R, bias and state -> hidden vectors, state."""
        kept, products = _forward(cell, a, R, bias, state)
        ctx.cell = cell
        ctx.save_for_backward(a, R, bias, *state, products, *kept)
        return kept[0][1:].to(a.dtype, copy=True), *(k[-1].clone() for k in kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By hand, or through `composed` when the gradient itself is to be differentiated."""
        n = 2 + len(grads)  # a, R, bias and the state's tensors
        saved = ctx.saved_tensors  # once: under recomputation they can be had only once
        tensors, (products, *kept) = saved[:n], saved[n:]
        a, R, bias, *state = tensors
        if not torch.is_grad_enabled():
            return None, *_backward(ctx.cell, (a, R, bias), products, tuple(kept), grads)
        needed = ctx.needs_input_grad[1:]
        outputs = composed(ctx.cell, a, R, bias, tuple(state))
        wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
        return None, *(next(found) if need else None for need in needed)


def _backward(
    cell: Cell,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    products: Tensor,
    kept: Tensors,
    grads: Tensors,
) -> tuple[Tensor | None, ...]:
    """Gradients of a, R, bias and the state."""
    a, R, bias = tensors
    dg, acc = torch.empty_like(a), kept[0].dtype
    da = dg if cell.additive else torch.empty_like(a)
    exact = torch.empty_like(a[0], dtype=acc)  # dg of one step
    gates = exact.split(R.shape[-1], -1)
    dh, carry = grads[1], grads[2:]
    for span in reversed(list(_spans(a))):
        before = tuple(k[span] for k in kept)
        after = tuple(k[span.start + 1 : span.stop + 1] for k in kept)
        g = products[span] if bias is None else bias + products[span]
        factors = cell.factors(a[span].to(acc), g, before, after)
        dhs = grads[0][span].to(acc, copy=True)
        each = zip(*(f.unbind() for f in factors), strict=True)
        for factors_t, dg_t, dh_t in reversed(list(zip(each, dg[span].unbind(), dhs.unbind(), strict=True))):
            dh_t.add_(dh)
            around, carry = cell.back(factors_t, (dh_t, *carry), gates)
            dh = dg_t.copy_(exact) @ R
            dh = dh if around is None else around.add_(dh)
        if not cell.additive:
            da[span] = cell.inputs(factors, dhs, dg[span])
    dR = _all_steps(dg).mT @ _all_steps(kept[0][:-1].to(dg.dtype))
    dbias = None if bias is None else dg.sum((0, -2), dtype=bias.dtype).view_as(bias)
    return da, dR, dbias, dh.to(acc), *carry


def _all_steps(x: Float[Tensor, "T ... B N"]) -> Float[Tensor, "... TB N"]:
    """The rows of all steps as one matrix, a matrix a head."""
    return x.movedim(0, -3).flatten(-3, -2)
