"""GPT-2's weights (transformers' GPT2LMHeadModel): LayerNorm, learned positions, biases, GELU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mixlab.errors import UserError
from mixlab.interop import hf
from mixlab.model.language_model import LanguageModel

NAMES = {
    "embedding.weight": "wte.weight",
    "position.weight": "wpe.weight",
    "blocks.{i}.temporal_norm.gain": "h.{i}.ln_1.weight",
    "blocks.{i}.temporal_norm.shift": "h.{i}.ln_1.bias",
    "blocks.{i}.temporal.out.weight": "h.{i}.attn.c_proj.weight",
    "blocks.{i}.temporal.out.bias": "h.{i}.attn.c_proj.bias",
    "blocks.{i}.feature_norm.gain": "h.{i}.ln_2.weight",
    "blocks.{i}.feature_norm.shift": "h.{i}.ln_2.bias",
    "blocks.{i}.feature.up.weight": "h.{i}.mlp.c_fc.weight",
    "blocks.{i}.feature.up.bias": "h.{i}.mlp.c_fc.bias",
    "blocks.{i}.feature.down.weight": "h.{i}.mlp.c_proj.weight",
    "blocks.{i}.feature.down.bias": "h.{i}.mlp.c_proj.bias",
    "norm.gain": "ln_f.weight",
    "norm.shift": "ln_f.bias",
}
"""Ours -> theirs below `transformer.`; c_attn, queries, keys and values in one, is cut in three beside."""


ACTIVATIONS: dict[str, dict[str, Any]] = {
    "gelu_new": {"kind": "gelu", "tanh": True},
    "gelu_pytorch_tanh": {"kind": "gelu", "tanh": True},
    "gelu_fast": {"kind": "gelu", "tanh": True},
    "gelu": {"kind": "gelu", "tanh": False},
    "relu": {"kind": "relu"},
}
"""Their names of the activations that have a counterpart; three of them are one function."""


def from_transformers(source: Any) -> LanguageModel:
    """The same function as a GPT2LMHeadModel: logits equal up to rounding, in full and in steps.

    source: the model object, or the path of its folder. Raises UserError for what has no counterpart
    (cross-attention, scores that are not divided by sqrt(K), another activation).
    """
    given = hf.checkpoint(source)
    hf.check_type(given, "gpt2")
    given.want(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    config = configure(given.config)
    prefix, depth = given.prefix("transformer."), given.config["n_layer"]
    weights = {
        ours: _product(theirs, given.take(prefix + theirs)) for ours, theirs in hf.by_layer(NAMES, depth)
    }
    for i in range(depth):
        for end in ("weight", "bias"):
            fused = given.take(f"{prefix}h.{i}.attn.c_attn.{end}")  # (D, 3D) or (3D)
            for name, third in zip("qkv", fused.chunk(3, -1), strict=True):
                weights[f"blocks.{i}.temporal.{name}.{end}"] = _product("c_attn", third)
    if not config["tied"]:
        weights["head.weight"] = given.take("lm_head.weight")
    given.finish(ignore=r"\.attn\.(masked_)?bias$|^lm_head\.weight$")  # masks; the tied head
    return hf.fill(config, weights)


def _product(name: str, tensor: Tensor) -> Tensor:
    """GPT-2's Conv1D multiplies x W, a Linear x W^T."""
    return tensor.t().contiguous() if "c_" in name and tensor.ndim == 2 else tensor


def configure(c: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config from the keys of a GPT-2 config.json; UserError for an unknown activation."""
    activation = c.get("activation_function") or "gelu_new"
    if activation not in ACTIVATIONS:
        raise UserError(
            f"config: activation_function={json.dumps(activation)} has no counterpart here, "
            f"{', '.join(ACTIVATIONS)} have"
        )
    ratio = (c.get("n_inner") or 4 * c["n_embd"]) / c["n_embd"]
    return {
        "vocab_size": c["vocab_size"],
        "dim": c["n_embd"],
        "depth": c["n_layer"],
        "context": c["n_positions"],
        "temporal": {"kind": "attention", "heads": c["n_head"], "bias": "all"},
        "feature": {**ACTIVATIONS[activation], "ratio": ratio, "multiple": 1, "bias": True},
        "position": "learned",
        "norm": {"kind": "layernorm", "eps": c.get("layer_norm_epsilon", 1e-5)},
        "tied": c.get("tie_word_embeddings", True) is not False,
    }
