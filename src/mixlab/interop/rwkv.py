"""RWKV-4's weights (transformers' RwkvModel and RwkvForCausalLM): one for one, nothing transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixlab.interop import hf
from mixlab.model.language_model import LanguageModel

EPS = 1e-5
"""Of transformers' last norm, whatever its config says of the others; released models have it in all."""

NAMES = {
    "embedding.weight": "embeddings.weight",
    "embedding_norm.gain": "blocks.0.pre_ln.weight",
    "embedding_norm.shift": "blocks.0.pre_ln.bias",
    "blocks.{i}.temporal_norm.gain": "blocks.{i}.ln1.weight",
    "blocks.{i}.temporal_norm.shift": "blocks.{i}.ln1.bias",
    "blocks.{i}.temporal.w": "blocks.{i}.attention.time_decay",
    "blocks.{i}.temporal.u": "blocks.{i}.attention.time_first",
    "blocks.{i}.temporal.mu_r": "blocks.{i}.attention.time_mix_receptance",
    "blocks.{i}.temporal.mu_k": "blocks.{i}.attention.time_mix_key",
    "blocks.{i}.temporal.mu_v": "blocks.{i}.attention.time_mix_value",
    "blocks.{i}.temporal.r.weight": "blocks.{i}.attention.receptance.weight",
    "blocks.{i}.temporal.k.weight": "blocks.{i}.attention.key.weight",
    "blocks.{i}.temporal.v.weight": "blocks.{i}.attention.value.weight",
    "blocks.{i}.temporal.out.weight": "blocks.{i}.attention.output.weight",
    "blocks.{i}.feature_norm.gain": "blocks.{i}.ln2.weight",
    "blocks.{i}.feature_norm.shift": "blocks.{i}.ln2.bias",
    "blocks.{i}.feature.mu_k": "blocks.{i}.feed_forward.time_mix_key",
    "blocks.{i}.feature.mu_r": "blocks.{i}.feed_forward.time_mix_receptance",
    "blocks.{i}.feature.k.weight": "blocks.{i}.feed_forward.key.weight",
    "blocks.{i}.feature.r.weight": "blocks.{i}.feed_forward.receptance.weight",
    "blocks.{i}.feature.v.weight": "blocks.{i}.feed_forward.value.weight",
    "norm.gain": "ln_out.weight",
    "norm.shift": "ln_out.bias",
}
"""Ours -> theirs below `rwkv.`."""


def from_transformers(source: Any) -> LanguageModel:
    """The same function as an RwkvForCausalLM: logits equal up to rounding, in full and in steps.

    source: the model object, or the path of its folder. An RwkvModel has no head; the copy's is zero, and
    `hidden` is what can be compared. Raises UserError for what has no counterpart.
    """
    given = hf.checkpoint(source)
    hf.check_type(given, "rwkv")
    c = given.config
    given.want(layer_norm_epsilon=EPS)
    prefix, depth = given.prefix("rwkv."), c["num_hidden_layers"]
    halvings = _halvings(getattr(source, "rwkv", source), c)
    weights = {}
    for ours, theirs in hf.by_layer(NAMES, depth):
        tensor = given.take(prefix + theirs) * 2.0 ** halvings.get(theirs, 0)
        weights[ours] = tensor.flatten() if ".mu_" in ours else tensor  # theirs are (1, 1, D)
    config = configure(c)
    if not config["tied"]:
        weights["head.weight"] = _head(given, weights["embedding.weight"])
    given.finish(ignore=r"^head\.weight$")
    return hf.fill(config, weights)


def _head(given: hf.Checkpoint, embedding: Tensor) -> Tensor:
    """The head's weights, zero for a model that has none."""
    return given.take("head.weight") if "head.weight" in given.weights else torch.zeros_like(embedding)


def _halvings(body: Any, c: Mapping[str, Any]) -> dict[str, int]:
    """How often each weight of a model object has been halved.

    In evaluation transformers halves the stream every `rescale_every` layers and, once, the weights that
    write to it accordingly.
    """
    every = c.get("rescale_every", 0)
    if not getattr(body, "layers_are_rescaled", False) or every <= 0:
        return {}
    writers = ("attention.output.weight", "feed_forward.value.weight")
    depth = c["num_hidden_layers"]
    return {f"blocks.{i}.{name}": i // every for i in range(depth) for name in writers}


def configure(c: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config from the keys of an Rwkv config.json."""
    D = c["hidden_size"]
    channels, hidden = c.get("attention_hidden_size") or D, c.get("intermediate_size") or 4 * D
    return {
        "vocab_size": c["vocab_size"],
        "dim": D,
        "depth": c["num_hidden_layers"],
        "context": c.get("context_length", 1024),
        "temporal": {"kind": "rwkv4", "ratio": channels / D},
        "feature": {"kind": "channel_mix", "version": 4, "ratio": hidden / D, "multiple": 1},
        "position": "none",
        "norm": {"kind": "layernorm", "eps": EPS},
        "embedding_norm": True,
        "tied": bool(c.get("tie_word_embeddings")),
    }
