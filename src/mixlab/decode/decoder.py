"""What generation runs a model by: its own forward, or a short way for one token after another on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from mixlab.errors import unknown
from mixlab.model.language_model import LanguageModel
from mixlab.model.scorer import Output, Scorer
from mixlab.model.stepping import can_step, stepper
from mixlab.parts.products import PackedProducts, Products, cannot_pack, has_packed_products

Precision = Literal["float32", "float16", "auto"]

WORTH_PACKING = 1_000_000
"""Parameters from which "auto" packs: weights of fewer are read from the processor's cache as they are."""

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


def decoder(scorer: Scorer, dtype: str, note: Callable[[str], None] | None = None) -> Scorer:
    """`scorer` as generation runs it.

    dtype: how the weights of a model in float32 on a CPU are read for single tokens. float32: as they are.
    float16: from packed copies, or, where that cannot be, as they are, and `note` is told why. auto: float16
    from a million parameters on, where the processor has its products. An n-gram multiplies nothing.
    """
    if not isinstance(scorer, LanguageModel):
        return scorer
    short = can_step(scorer)
    possible = short and has_packed_products() and scorer.embedding.weight.dtype == torch.float32
    if dtype == "auto":
        large = sum(p.numel() for p in scorer.parameters()) >= WORTH_PACKING
        dtype = "float16" if large and possible else "float32"
    if dtype == "float16":
        reason = cannot_pack(scorer) if possible else NEEDS
        if reason is None:
            return Decoder(scorer, PackedProducts())
        if note is not None:
            note(f"weights are read as they are, not in float16: {reason}")
    return Decoder(scorer, Products()) if short else scorer
