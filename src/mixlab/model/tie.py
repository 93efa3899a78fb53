"""A head that shares the embedding's weights, and still does after weights were assigned to both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixlab.errors import UserError


def tie(model: nn.Module) -> None:
    """Give `model.head` the weights of `model.embedding`, for good.

    `load_state_dict(assign=True)` replaces the two separately. The tie is then restored from the one that was
    given; UserError if both were and they differ.
    """
    model.get_submodule("head").weight = model.get_submodule("embedding").weight
    model.register_load_state_dict_post_hook(_tie_again)


def _tie_again(model: nn.Module, differences: Any) -> None:
    head, embedding = model.get_submodule("head"), model.get_submodule("embedding")
    own, table = head.weight, embedding.weight
    if own is table:
        return
    missing = {key.rpartition("embedding.")[1] or "head." for key in differences.missing_keys if _tied(key)}
    if missing == {"embedding."}:
        embedding.weight = own
        return
    head.weight = table
    if not missing and not _equal(own, table):
        raise UserError(
            "the head is tied to the embedding (model.tied), and the weights given for head.weight are not "
            "those of embedding.weight: leave one of them out, or build the model with tied = false"
        )


def _tied(key: str) -> bool:
    """Whether it names one of the two, in a model that may lie in another module."""
    return "blocks." not in key and key.endswith(("embedding.weight", "head.weight"))


def _equal(a: Any, b: Any) -> bool:
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return a.is_meta or torch.equal(a, b)
