"""What RWKV-7's time mixing does between its projections, with a backward pass written by hand.

Both passes go through time in groups of chunks whose temporaries stay in the cache. The backward pass makes
the gates again instead of reading them from memory: a fresh large tensor costs a CPU more than the arithmetic
done on it. Kept from forward to backward are the inputs and what the delta rule multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mixlab.parts.temporal import delta_rule, kernels
from mixlab.parts.temporal.delta_rule import Kept, Steps

FASTEST = math.exp(-0.5)
"""Largest -log w: a step keeps between exp(-0.6065) = 0.5453 and all of the memory."""

NORM_EPS = 64e-5
"""Added to a head's variance; the official code's, whatever the head width."""

GROUP = 1 << 18
"""Numbers in a temporary of a group of chunks: 1 MiB in float32 (half, and twice as much, are as fast within
the noise of a shared machine; see LOG.md)."""


class Inputs(NamedTuple):
    """What the projections made of the tokens, (B, T, D) in the compute dtype; vectors (D); the memory.

    w, a and share are the low-rank pairs' outputs, to which the biases are added; share, first (the bottom
    layer's value) and residual_bias are None in a layer without a value residual.
    """

    r: Tensor
    k: Tensor
    v: Tensor
    w: Tensor
    a: Tensor
    g: Tensor
    share: Tensor | None
    first: Tensor | None
    decay_bias: Tensor
    rate_bias: Tensor
    k_k: Tensor
    k_a: Tensor
    r_k: Tensor
    norm_gain: Tensor
    norm_shift: Tensor
    residual_bias: Tensor | None
    memory: Float[Tensor, "B H V K"]


TOKENS = 8
"""How many fields of `Inputs` come first that have a row a token; vectors follow up to the memory."""


class Gates(NamedTuple):
    """What the steps of a group are made of, (N, B, H, C, K) in the state's dtype."""

    r: Tensor
    k: Tensor
    own: Tensor  # the value before the residual
    v: Tensor
    first: Tensor | None
    share: Tensor | None
    open: Tensor  # sigma of the decay: log w = -FASTEST open
    rate: Tensor
    scale: Tensor  # 1 / norm(k k_k)
    kk: Tensor
    replace: Tensor  # 1 + (a - 1) k_a

    def steps(self) -> Steps:
        """The delta rule's inputs."""
        k, b = self.k * self.replace, self.kk * self.rate
        return Steps(self.r, self.open * -FASTEST, k, self.v, -self.kk, b)


def core(p: Inputs, chunk: int) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H V K"]]:
    """Gates, delta rule, norm by head, bonus and output gate: (B, T, D) in the compute dtype, the memory.

    Within a chunk products are in bfloat16 where the inputs are; the rest is in the memory's dtype.
    """
    T, low = p.r.shape[1], _low(p)
    if T > 1 and low == torch.bfloat16 and p.memory.shape[3] in kernels.HEADS and kernels.use(p.r.device):
        return _by_kernel(p, low)  # in float32 the kernels are not meant to be used
    if T == 1 or not torch.is_grad_enabled():
        y, memory, _ = _run(p, chunk, keep=False)
        return y, memory
    return cast("tuple[Tensor, Tensor]", _Core.apply(*p, chunk))


def _by_kernel(p: Inputs, low: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gates and read in plain operations, which autograd follows, around the delta rule's kernel."""
    T = p.r.shape[1]
    group = Group(p, slice(0, T), T)
    x = group.gates().steps()
    y, memory = kernels.delta_rule(x, p.memory, low)
    y = group.read(x, y) * group.view(p.g)  # (1, B, H, T, V)
    return y[0].transpose(1, 2).flatten(2).to(p.r.dtype), memory


def _spans(p: Inputs, chunk: int) -> Iterator[tuple[slice, int]]:
    """Stretches of time of a few whole chunks each, with the chunk's size; the last may be a shorter one."""
    B, T, D = p.r.shape
    whole = T - T % chunk
    length = chunk * max(1, GROUP // (B * chunk * D))
    for start in range(0, whole, length):
        yield slice(start, min(start + length, whole)), chunk
    if whole < T:
        yield slice(whole, T), T - whole


def _low(p: Inputs) -> torch.dtype:
    """The dtype of the products: bfloat16 has float32's range, which 1 / W needs; float16 has not."""
    return torch.bfloat16 if p.r.dtype == torch.bfloat16 else p.memory.dtype


class Group:
    """What a group of chunks, N of `size` steps, makes of the inputs over its stretch of time."""

    def __init__(self, p: Inputs, span: slice, size: int) -> None:
        self.p, self.span, self.size = p, span, size
        self.H, self.K = p.memory.shape[1], p.memory.shape[3]

    def view(self, x: Tensor) -> Tensor:
        """(B, T, H K) -> (N, B, H, C, K), of this stretch of time."""
        return (
            x[:, self.span]
            .unflatten(2, (self.H, self.K))
            .unflatten(1, (-1, self.size))
            .permute(1, 0, 3, 2, 4)
        )

    def load(self, x: Tensor) -> Tensor:
        """The same in the state's dtype, the chunks' matrices one after another."""
        return self.view(x).to(self.p.memory.dtype, memory_format=torch.contiguous_format)

    def vector(self, x: Tensor) -> Tensor:
        """(H K) -> (H, 1, K)."""
        return x.to(self.p.memory.dtype).view(self.H, 1, self.K)

    def gates(self) -> Gates:
        """Everything up to the delta rule."""
        p = self.p
        r, k, own, w, a = (self.load(x) for x in p[:5])
        v, first, share = own, None, None
        if p.share is not None and p.first is not None and p.residual_bias is not None:
            first = self.load(p.first)
            share = torch.sigmoid(self.load(p.share) + self.vector(p.residual_bias))
            v = torch.lerp(own, first, share)
        rate = torch.sigmoid(a + self.vector(p.rate_bias))
        opened = torch.sigmoid(w + self.vector(p.decay_bias))
        removal, k_a = k * self.vector(p.k_k), self.vector(p.k_a)
        scale = torch.linalg.vector_norm(removal, dim=-1, keepdim=True).clamp(min=1e-12).reciprocal()
        replace = torch.addcmul(1 - k_a, rate, k_a)
        return Gates(r, k, own, v, first, share, opened, rate, scale, removal * scale, replace)

    def bonus(self, x: Steps) -> Tensor:
        """(..., 1): what the present value counts for, besides what the memory gives."""
        return (x.r * x.k * self.vector(self.p.r_k)).sum(-1, keepdim=True)

    def read(self, x: Steps, y: Tensor) -> Tensor:
        """The delta rule's output, normalised by head, with the bonus: (N, B, H, C, V)."""
        y, _, _ = torch.native_layer_norm(y.to(self.p.memory.dtype), (self.K,), None, None, NORM_EPS)
        y = torch.addcmul(self.vector(self.p.norm_shift), y, self.vector(self.p.norm_gain))
        return torch.addcmul(y, self.bonus(x), x.v)


def _run(p: Inputs, chunk: int, *, keep: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Group after group in plain operations: output, memory, and what each group keeps."""
    out, memory, low, kept = torch.empty_like(p.r), p.memory, _low(p), []
    for span, size in _spans(p, chunk):
        group = Group(p, span, size)
        x = group.gates().steps()
        if p.r.shape[1] == 1:
            y, memory = delta_rule.step(x, memory)
        else:
            y, memory, saved = delta_rule.forward(x, memory, low)
            if keep:
                kept += [y, *saved]
        group.view(out).copy_(group.read(x, y) * group.view(p.g))
    return out, memory, kept


class _Core(torch.autograd.Function):
    """`core` with a gradient."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        """Inputs and the chunk -> output, memory."""
        *tensors, ctx.chunk = args
        y, memory, kept = _run(Inputs(*tensors), ctx.chunk, keep=True)
        ctx.save_for_backward(*tensors, *kept)
        return y, memory

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By hand, or through plain operations when the gradient itself is to be differentiated."""
        fields = len(Inputs._fields)
        saved = ctx.saved_tensors  # once: under recomputation they can be had only once
        p, kept = Inputs(*saved[:fields]), saved[fields:]
        if not torch.is_grad_enabled():
            return *_backward(p, kept, grads[0], grads[1], ctx.chunk), None
        y, memory, _ = _run(p, ctx.chunk, keep=False)
        wanted = [x for x, need in zip(p, ctx.needs_input_grad, strict=False) if need and x is not None]
        found = iter(torch.autograd.grad((y, memory), wanted, grads, create_graph=True, allow_unused=True))
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


def _backward(
    p: Inputs, kept: tuple[Tensor, ...], dout: Tensor, dS: Tensor, chunk: int
) -> tuple[Tensor | None, ...]:
    """Gradients of `Inputs`, field by field."""
    H, _, K = p.memory.shape[1:]
    dtokens = [None if x is None else torch.empty_like(x) for x in p[:TOKENS]]
    dvectors = [None if x is None else p.memory.new_zeros(H, K) for x in p[TOKENS:-1]]
    each = 1 + len(Kept._fields)
    for i, (span, size) in reversed(list(enumerate(_spans(p, chunk)))):
        group = Group(p, span, size)
        y, *saved = kept[each * i : each * (i + 1)]
        tokens, vectors, dS = _group_backward(group, y, Kept(*saved), group.load(dout), dS)
        for whole, part in zip(dtokens, tokens, strict=True):
            if whole is not None and part is not None:
                group.view(whole).copy_(part)
        for total, part in zip(dvectors, vectors, strict=True):
            if total is not None and part is not None:
                total += part.sum((0, 1, 3))
    totals = [
        None if x is None or d is None else d.flatten().to(x.dtype)
        for d, x in zip(dvectors, p[TOKENS:-1], strict=True)
    ]
    return *dtokens, *totals, dS


def _group_backward(
    group: Group, y: Tensor, kept: Kept, dout: Tensor, dS: Tensor
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...], Tensor]:
    """Gradients by token, by token of what the vectors met (still to be summed), and of the first memory."""
    p, z = group.p, group.gates()
    x, vector = z.steps(), group.vector
    # the read
    bonus, y = group.bonus(x), y.to(dout.dtype)
    normed, mean, scale = torch.native_layer_norm(y, (group.K,), None, None, NORM_EPS)
    read = torch.addcmul(vector(p.norm_shift), normed, vector(p.norm_gain)).addcmul_(bonus, x.v)
    dg, dread = dout * read, dout * group.load(p.g)
    dy, _, _ = torch.ops.aten.native_layer_norm_backward(
        dread * vector(p.norm_gain), y, (group.K,), mean, scale, None, None, [True, False, False]
    )
    dbonus = (dread * x.v).sum(-1, keepdim=True)
    # the delta rule
    d, dS = delta_rule.backward(kept, dy, dS)
    dr_k = x.r * x.k * dbonus
    pull = vector(p.r_k) * dbonus
    dr = torch.addcmul(d.r, pull, x.k)
    dk = torch.addcmul(d.k, pull, x.r)
    dv = torch.addcmul(d.v, dread, bonus)
    # the gates
    dremove = torch.addcmul(-d.a, d.b, z.rate)
    dremove = torch.addcmul(dremove, (dremove * z.kk).sum(-1, keepdim=True), z.kk, value=-1) * z.scale
    dreplace = dk * z.k
    drate = torch.addcmul(d.b * z.kk, dreplace, vector(p.k_a))
    dk = torch.addcmul(dk * z.replace, dremove, vector(p.k_k))
    da, dw = drate * z.rate * (1 - z.rate), d.log_w * z.open * (1 - z.open) * -FASTEST
    dshare = dfirst = None
    if z.share is not None and z.first is not None:
        dfirst = dv * z.share
        dshare = dfirst * (z.first - z.own) * (1 - z.share)
        dv = dv - dfirst
    tokens = (dr, dk, dv, dw, da, dg, dshare, dfirst)
    vectors = (dw, da, dremove * z.k, dreplace * (z.rate - 1), dr_k, dread * normed, dread, dshare)
    return tokens, vectors, dS
