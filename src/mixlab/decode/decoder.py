"""What generation runs a model by: its own forward, or a short way for one token after another on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeGuard, cast, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mixlab.errors import unknown
from mixlab.model.language_model import LanguageModel
from mixlab.model.scorer import Output, Scorer
from mixlab.model.stepping import can_step, stepper
from mixlab.parts.products import PackedProducts, Products, has_packed_products, marks

Precision = Literal["float32", "float16", "auto"]

WORTH_PACKING = 1_000_000
"""Parameters from which "auto" packs: weights of fewer are read from the processor's cache as they are."""

WORTH_TOKENS = 128
"""Tokens from which "auto" packs, all that were asked of the same weights together: packing takes about as
long as that many tokens save."""

NEEDS = "that needs a model in float32 on an x86 CPU with AVX2, in evaluation mode and without hooks"


class Decoder:
    """A neural model as a scorer: single tokens take the short way, longer pieces go through the model."""

    def __init__(self, model: LanguageModel, products: Products) -> None:
        self.model, self.step = model, stepper(model, products)

    def __call__(self, tokens: Tensor, state: Any = None) -> Output:
        """As the model's own."""
        if state is None or tokens.shape != (1, 1) or torch.is_grad_enabled():
            return cast("Output", self.model(tokens, state))
        # Or torch looks into every packed weight for an override, by an exception: 14 us a product.
        with torch._C.DisableTorchFunctionSubclass():
            return self.step(tokens, state)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def check_precision(dtype: str) -> None:
    """Raise UserError, naming what there is, unless `dtype` is a precision."""
    if dtype not in get_args(Precision):
        raise unknown("dtype", dtype, get_args(Precision))


def precision(scorer: Scorer, dtype: str) -> str:
    """`dtype`, or what "auto" comes to however many tokens are asked: float16 from a million parameters on,
    where the processor has its products."""
    if dtype != "auto":
        return dtype
    large = _can_pack(scorer) and sum(p.numel() for p in scorer.parameters()) >= WORTH_PACKING
    return "float16" if large else "float32"


def decoder(
    scorer: Scorer, dtype: str, note: Callable[[str], None] | None = None, *, tokens: int | None = None
) -> Scorer:
    """`scorer` as generation runs it.

    dtype: how the weights of a model in float32 on a CPU are read for single tokens. float32: as they are.
    float16: from packed copies, or, where that cannot be, as they are, and `note` is told why. auto: as
    `precision` says, but float32 while fewer than WORTH_TOKENS were asked of the weights as they now are.
    tokens: how many are asked; None is enough. An n-gram multiplies nothing.

    Packed copies are made once and kept as long as the model, half of its size. At the start of each
    generation the weights are checked, and those that changed since are packed again.
    """
    if not isinstance(scorer, LanguageModel):
        return scorer
    if dtype == "auto":
        enough = tokens is None or _asked(scorer, tokens) >= WORTH_TOKENS
        dtype = precision(scorer, dtype) if enough else "float32"
    if dtype == "float16":
        products = PackedProducts()
        reason = products.cannot_pack(scorer) if _can_pack(scorer) else NEEDS
        if reason is None:
            return Decoder(scorer, products)
        if note is not None:
            note(f"weights are read as they are, not in float16: {reason}")
    return Decoder(scorer, Products()) if can_step(scorer) else scorer


def _can_pack(scorer: Scorer) -> TypeGuard[LanguageModel]:
    """Whether model and processor are such that weights can be packed, whatever these are."""
    in_float32 = isinstance(scorer, LanguageModel) and scorer.embedding.weight.dtype == torch.float32
    return in_float32 and can_step(scorer) and has_packed_products()


_ASKED: WeakKeyDictionary[LanguageModel, tuple[tuple[int, ...], int]] = WeakKeyDictionary()


def _asked(model: LanguageModel, tokens: int) -> int:
    """How many tokens, these included, were asked of the model since its weights last changed."""
    now = marks(*model.parameters())
    before, count = _ASKED.get(model, (now, 0))
    count = tokens + (count if before == now else 0)
    _ASKED[model] = now, count
    return count
