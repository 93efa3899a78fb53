"""What Griffin's recurrent block does between its projections, with a backward pass written by hand.

Both passes go through time in chunks small enough that a dozen temporaries stay in the cache, and the
backward pass computes the gates again instead of reading them from memory: a fresh large tensor costs a CPU
more than the arithmetic done on it. Kept from forward to backward are the two inputs and the hidden vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.parts.temporal import kernels

CHUNK = 1 << 17
"""Numbers in a temporary: 512 KiB in float32; half as many cost a tenth more time, twice as many the same."""

STEEPEST = 1000.0
"""Largest slope of the square root in sqrt(1 - a^2), as in the released code: at a = 1 it is infinite."""


class Inputs(NamedTuple):
    """Time comes first, so that a step is one stretch of memory; D is the recurrent width, of H blocks of W.

    value, gate (T, B, D): the two branches, in the compute dtype. past (N - 1, B, D): values before them.
    The rest is in the state's dtype. h (B, D): hidden vector before. taps (N, D), shift (D): the
    convolution. weight (H, W, 2W), bias (2, D): gates, recurrence then input; the weight is in the compute
    dtype. rate (D): log a of an open gate, <= 0.
    """

    value: Tensor
    gate: Tensor
    past: Tensor
    h: Tensor
    taps: Tensor
    shift: Tensor
    weight: Tensor
    bias: Tensor
    rate: Tensor


def core(p: Inputs, *, fresh: bool) -> tuple[Tensor, Tensor]:
    """Convolution, gates, recurrence and product: y (T, B, D) in the compute dtype, h_T (B, D).

    fresh: nothing came before, so that the first input enters whole.
    """
    if len(p.value) > 1 and p.h.dtype == torch.float32 and kernels.use(p.h.device):
        y, h = composed(p, fresh=fresh, scan=kernels.scan)
        return y, h.clone()  # not a view, which would keep all the others alive
    if torch.is_grad_enabled():
        return cast("tuple[Tensor, Tensor]", _Core.apply(*p, fresh))
    y, hs = _forward(p, fresh)
    return y, hs[-1].clone()


class _BoundedSqrt(torch.autograd.Function):
    """sqrt(x) with a slope of at most STEEPEST."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (4 * x).clamp(min=STEEPEST**-2).sqrt()


def step_by_step(log_a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """All h_t = a_t h_{t-1} + b_t (T, B, D); autograd's graph grows with every step."""
    hs = []
    for a_t, b_t in zip(log_a.exp(), b, strict=True):
        h = a_t * h + b_t  # equation 4
        hs.append(h)
    return torch.stack(hs)


def composed(
    p: Inputs, *, fresh: bool, scan: Callable[[Tensor, Tensor, Tensor], Tensor] = step_by_step
) -> tuple[Tensor, Tensor]:
    """The same in plain operations, as the paper writes it."""
    acc, (H, W, _) = p.h.dtype, p.weight.shape
    T = len(p.value)
    seen = torch.cat((p.past, p.value)).to(acc)
    u = p.shift + sum(tap * seen[j : j + T] for j, tap in enumerate(p.taps))
    pre = torch.einsum("tbhi,hij->tbhj", u.to(p.weight.dtype).unflatten(-1, (H, W)), p.weight).to(acc)
    r = torch.sigmoid(pre[..., :W].flatten(-2) + p.bias[0])  # equation 1
    i = torch.sigmoid(pre[..., W:].flatten(-2) + p.bias[1])  # equation 2
    log_a = p.rate * r  # equation 3
    m = _BoundedSqrt.apply(1 - log_a.exp().square())
    if fresh:
        m = torch.cat((torch.ones_like(m[:1]), m[1:]))
    hs = scan(log_a, m * (i * u), p.h)
    y = F.gelu(p.gate.to(acc), approximate="tanh") * hs
    return y.to(p.gate.dtype), hs[-1]


class _Chunks:
    """Gates of one stretch of time after another, in buffers used again and again."""

    def __init__(self, p: Inputs, fresh: bool) -> None:
        self.p, self.fresh = p, fresh
        self.T, self.B, self.D = p.value.shape
        self.H, self.W, _ = p.weight.shape
        self.before = len(p.past)
        # At least as long as the convolution reaches back: one chunk needs its neighbour only.
        self.length = min(self.T, max(CHUNK // (self.B * self.D), len(p.taps)))
        self.acc = p.h.dtype
        self.window = self.empty(self.before + self.length)
        self.buffers = self.empty(9, self.length)
        self.one = p.h.new_ones(())

    def empty(self, *shape: int) -> Tensor:
        """(*shape, B, D) in the state's dtype."""
        return self.p.h.new_empty((*shape, self.B, self.D))

    def spans(self) -> list[tuple[int, int]]:
        """Start and stop of each chunk, first to last."""
        return [(s, min(s + self.length, self.T)) for s in range(0, self.T, self.length)]

    def load(self, start: int, stop: int) -> None:
        """u, gates (r and i), a and the input's multiplier m, each (n, B, D), of the given times."""
        p, n = self.p, stop - start
        self.u, r, i, self.a, self.m = self.buffers[:5, :n]
        self.gates, self.r, self.i = self.buffers[1:3, :n], r, i
        self.seen = self.window[: self.before + n]
        if self.before:
            self.seen[: self.before] = p.past if start == 0 else p.value[start - self.before : start]
        self.seen[self.before :] = p.value[start:stop]
        torch.addcmul(p.shift, self.seen[:n], p.taps[0], out=self.u)
        for j in range(1, len(p.taps)):
            self.u.addcmul_(self.seen[j : j + n], p.taps[j])
        self.low = self.u.to(p.weight.dtype).view(-1, self.H, self.W).transpose(0, 1)  # (H, nB, W)
        pre = torch.bmm(self.low, p.weight)
        self.blocks(self.gates).copy_(pre.view(self.H, n, self.B, 2, self.W).permute(3, 1, 2, 0, 4))
        self.gates.add_(p.bias[:, None, None]).sigmoid_()
        torch.mul(self.r, p.rate, out=self.a).exp_()
        torch.addcmul(self.one, self.a, self.a, value=-1, out=self.m).sqrt_()
        if self.fresh and start == 0:
            self.m[0] = 1

    def blocks(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., H, W)."""
        return x.unflatten(-1, (self.H, self.W))


def _forward(p: Inputs, fresh: bool) -> tuple[Tensor, Tensor]:
    """y (T, B, D) and the hidden vectors, h before the first step included, (T + 1, B, D)."""
    c = _Chunks(p, fresh)
    y, hs = torch.empty_like(p.gate), c.empty(c.T + 1)
    hs[0] = p.h
    for start, stop in c.spans():
        c.load(start, stop)
        b = c.i.mul_(c.u).mul_(c.m)
        h = hs[start]
        for a_t, b_t, h_t in zip(c.a.unbind(), b.unbind(), hs[start + 1 : stop + 1].unbind(), strict=True):
            h = torch.addcmul(b_t, a_t, h, out=h_t)
        branch = F.gelu(p.gate[start:stop].to(c.acc), approximate="tanh")
        y[start:stop] = branch.mul_(hs[start + 1 : stop + 1])
    return y, hs


class _Core(torch.autograd.Function):
    """`core` with a gradient."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        """Inputs and whether they begin a sequence -> y, h_T."""
        *tensors, ctx.fresh = args
        y, hs = _forward(Inputs(*tensors), ctx.fresh)
        ctx.save_for_backward(*tensors, hs)
        return y, hs[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By hand, or through `composed` when the gradient itself is to be differentiated."""
        *tensors, hs = ctx.saved_tensors
        p = Inputs(*tensors)
        if not torch.is_grad_enabled():
            return *_backward(p, hs, grads[0], grads[1], ctx.fresh), None
        wanted = [t for t, needed in zip(tensors, ctx.needs_input_grad[:-1], strict=True) if needed]
        outputs = composed(p, fresh=ctx.fresh)
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


def _backward(p: Inputs, hs: Tensor, dy: Tensor, dlast: Tensor, fresh: bool) -> Iterator[Tensor]:
    """Gradients of `Inputs`, field by field."""
    c = _Chunks(p, fresh)
    N = len(p.taps)
    dvalue, dgate = torch.empty_like(p.value), torch.empty_like(p.gate)
    dtaps, dshift, dbias, drate = (torch.zeros_like(t) for t in (p.taps, p.shift, p.bias, p.rate))
    dweight = torch.zeros_like(p.weight, dtype=c.acc)
    du_after = c.empty(c.length + N - 1).zero_()  # du of a chunk, and of the N - 1 times behind it
    carry = dlast.to(c.acc)
    for start, stop in reversed(c.spans()):
        c.load(start, stop)
        n = stop - start
        gate, dh, dr, di = c.buffers[5:9, :n]
        dgates, du = c.buffers[7:9, :n], du_after[:n]

        gate.copy_(p.gate[start:stop])
        dh.copy_(dy[start:stop])
        du.copy_(hs[start + 1 : stop + 1]).mul_(dh)  # du serves as scratch until its turn
        dgate[start:stop] = torch.ops.aten.gelu_backward(du, gate, approximate="tanh")
        dh.mul_(F.gelu(gate, approximate="tanh"))

        steps, decays = dh.unbind(), c.a.unbind()
        steps[-1].add_(carry)
        for t in range(n - 2, -1, -1):  # dh_t += a_{t+1} dh_{t+1}
            steps[t].addcmul_(decays[t + 1], steps[t + 1])
        carry = decays[0] * steps[0]

        # h_t = a h + m i u with d m / d log a = -a^2 / m, the slope of the square root bounded.
        torch.mul(c.i, c.u, out=dr).mul_(c.a).div_(c.m.clamp(min=0.5 / STEEPEST))
        if fresh and start == 0:
            dr[0] = 0
        dr.neg_().add_(hs[start:stop]).mul_(c.a).mul_(dh)  # d log a
        drate += (dr * c.r).sum((0, 1))
        dr.mul_(p.rate)
        dh.mul_(c.m)  # now d (i u)
        torch.mul(dh, c.u, out=di)
        torch.mul(dh, c.i, out=du)
        torch.ops.aten.sigmoid_backward(dgates, c.gates, grad_input=dgates)
        dbias += dgates.sum((1, 2))
        dpre = p.weight.new_empty((c.H, n, c.B, 2, c.W))
        dpre.permute(3, 1, 2, 0, 4).copy_(c.blocks(dgates))
        dpre = dpre.view(c.H, n * c.B, 2 * c.W)
        back = torch.bmm(dpre, p.weight.transpose(1, 2)).view(c.H, n, c.B, c.W)
        c.blocks(du).add_(back.permute(1, 2, 0, 3))
        dweight += torch.bmm(c.low.transpose(1, 2), dpre)

        dshift += du.sum((0, 1))
        for j in range(N):
            dtaps[j] += torch.mul(c.seen[j : j + n], du, out=gate).sum((0, 1))
        torch.mul(du_after[:n], p.taps[-1], out=gate)
        for j in range(1, N):
            gate.addcmul_(du_after[j : j + n], p.taps[-1 - j])
        dvalue[start:stop] = gate
        if start:
            du_after[c.length :] = du_after[: N - 1].clone()
    dpast = [sum(p.taps[j] * du_after[s - j] for j in range(s + 1) if s - j < c.T) for s in range(N - 1)]
    past = torch.stack(dpast).to(p.past.dtype) if N > 1 else torch.zeros_like(p.past)  # type: ignore[arg-type]
    return iter((dvalue, dgate, past, carry, dtaps, dshift, dweight.to(p.weight.dtype), dbias, drate))
