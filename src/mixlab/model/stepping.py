"""One token of one sequence on a CPU, with little around the products.

At batch 1 a small model's token costs as much as it has operations, module calls and attribute look-ups.
Parts give their own short way (`Part.stepper`), and here they are strung together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixlab.model.block import Block, BlockState
from mixlab.model.inputs import look_up
from mixlab.model.language_model import LanguageModel, ModelState
from mixlab.model.scorer import Output
from mixlab.parts.contract import Part, Step
from mixlab.parts.products import Products


def can_step(model: Any) -> bool:
    """Whether `stepper` serves: a model on a CPU, not in training, in float32 or float64 throughout, and
    without hooks, which it would pass by."""
    return (
        isinstance(model, LanguageModel)
        and not model.training
        and {(p.device.type, p.dtype) for p in model.parameters()}
        in ({("cpu", torch.float32)}, {("cpu", torch.float64)})
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    )


def stepper(model: LanguageModel, products: Products) -> Callable[[Tensor, ModelState], Output]:
    """`model(tokens, state)` for tokens (1, 1), without gradients; later changes of its modules are not seen.

    The state is the model's own, so that longer pieces may be read by the model in between.
    """
    carry: dict[str, Tensor] = {}
    blocks = [_block(block, products, carry) for block in model.layers()]
    table, norm, head = model.embedding, model.norm.stepper(), products(model.head)

    def step(tokens: Tensor, state: ModelState) -> Output:
        x, after = model.placed(look_up(table, tokens), tokens, state), []
        carry.clear()
        for block, (t_state, f_state) in zip(blocks, state.blocks, strict=True):
            normed, temporal, join, then_normed, feature, then_join = block
            y, t_state = temporal(normed(x), t_state)
            x = join(x, y)
            if feature is not None:
                y, f_state = feature(then_normed(x), f_state)
                x = then_join(x, y)
            after.append(BlockState(t_state, f_state))
        return Output(model.logits(norm(x), head), ModelState(state.length + 1, tuple(after)))

    return step


def _block(block: Block, products: Products, carry: dict[str, Tensor]) -> tuple[Any, ...]:
    """Norm, mixer and what joins the two, for time and for features; None for what there is not."""
    join, then_join = block.joins()
    first = block.temporal_norm.stepper(), _step(block.temporal, products, carry), join
    if not block.feature.mixes:
        return *first, None, None, None
    return *first, block.feature_norm.stepper(), _step(block.feature, products, carry), then_join


def _step(part: Part, products: Products, carry: dict[str, Tensor]) -> Step:
    step = part.stepper(products)
    if step is not None:
        return step
    whole = products.inside(part)
    return (lambda x, state: whole(x, state, carry=carry)) if part.carries else whole
