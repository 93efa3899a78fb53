"""RecurrentGemma's weights (transformers' RecurrentGemmaForCausalLM): Griffin with scaled embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mixlab.interop import hf
from mixlab.interop.llama import rotary
from mixlab.model.language_model import LanguageModel

NORMS = {
    "blocks.{i}.temporal_norm.gain": "layers.{i}.temporal_pre_norm.weight",
    "blocks.{i}.feature_norm.gain": "layers.{i}.channel_pre_norm.weight",
    "norm.gain": "final_norm.weight",
}
"""Ours -> theirs below `model.`; theirs are stored less one."""

FEATURE = {
    f"feature.{ours}.{end}": f"mlp_block.{theirs}_proj.{end}"
    for ours, theirs in (("gate", "gate"), ("up", "up"), ("down", "down"))
    for end in ("weight", "bias")
}

RECURRENT = {
    f"temporal.{ours}.{end}": f"temporal_block.linear_{theirs}.{end}"
    for ours, theirs in (("value", "x"), ("gate", "y"), ("out", "out"))
    for end in ("weight", "bias")
} | {
    "temporal.taps": "temporal_block.conv_1d.weight",
    "temporal.shift": "temporal_block.conv_1d.bias",
    "temporal.recurrence_gate": "temporal_block.rg_lru.recurrent_gate_weight",
    "temporal.recurrence_bias": "temporal_block.rg_lru.recurrent_gate_bias",
    "temporal.input_gate": "temporal_block.rg_lru.input_gate_weight",
    "temporal.input_bias": "temporal_block.rg_lru.input_gate_bias",
    "temporal.decay": "temporal_block.rg_lru.recurrent_param",
}

ATTENTION = {
    f"temporal.{ours}.weight": f"temporal_block.{theirs}_proj.weight"
    for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
} | {"temporal.out.bias": "temporal_block.o_proj.bias"}

INNER_BIASES = {f"temporal.{n}.bias": f"temporal_block.{n}_proj.bias" for n in ("q", "k", "v")}

RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "temporal.taps": lambda w: w.squeeze(1),  # (R, 1, N) -> (R, N)
    "temporal.recurrence_bias": torch.flatten,  # (H, W) -> (R,)
    "temporal.input_bias": torch.flatten,
}


def from_transformers(source: Any) -> LanguageModel:
    """The same function as a RecurrentGemmaForCausalLM: logits equal up to rounding, in full and in steps.

    source: the model object, or the path of its folder. Raises UserError for what has no counterpart (another
    activation than the tanh approximation of GELU, a head that is not tied, scaled RoPE).
    """
    given = hf.checkpoint(source)
    hf.check_type(given, "recurrent_gemma")
    c = given.config
    given.want(
        hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True, embeddings_scale_by_sqrt_dim=True
    )
    prefix = given.prefix("model.")
    weights = {"embedding.weight": given.take(f"{prefix}embed_tokens.weight")}
    for ours, theirs in hf.by_layer(NORMS, c["num_hidden_layers"]):
        weights[ours] = 1 + given.take(prefix + theirs)
    for i, kind in enumerate(kinds(c)):
        names = FEATURE | (RECURRENT if kind == "recurrent" else ATTENTION)
        if kind == "attention" and c.get("attention_bias"):
            names |= INNER_BIASES
        for ours, theirs in names.items():
            weight = given.take(f"{prefix}layers.{i}.{theirs}")
            weights[f"blocks.{i}.{ours}"] = RESHAPED[ours](weight) if ours in RESHAPED else weight
    given.finish(ignore=r"rotary_emb\.inv_freq$|^lm_head\.weight$|normalizer$")
    return hf.fill(configure(c), weights)


def kinds(c: Mapping[str, Any]) -> list[str]:
    """ "recurrent" or "attention" for each layer."""
    period = c.get("block_types") or c.get("_block_types") or ("recurrent", "recurrent", "attention")
    return [period[i % len(period)] for i in range(c["num_hidden_layers"])]


def configure(c: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config from the keys of a RecurrentGemma config.json."""
    dim, heads = c["hidden_size"], c["num_attention_heads"]
    parts = {
        "recurrent": {
            "kind": "rglru",
            "ratio": (c.get("lru_width") or dim) / dim,
            "multiple": 1,
            "blocks": heads,
            "conv": c.get("conv1d_width", 4),
        },
        "attention": {
            "kind": "attention",
            "heads": heads,
            "kv_heads": c.get("num_key_value_heads") or heads,
            "window": c.get("attention_window_size") or c["sliding_window"],
            "bias": "all" if c.get("attention_bias") else "out",
        },
    }
    # Half of a head's channels turn; the width of the feed-forward layer is stored twice too large.
    turning = {"channels": float(c.get("partial_rotary_factor", 0.5)), **rotary(c)}
    ratio = c["intermediate_size"] // 2 / dim
    return {
        "vocab_size": c["vocab_size"],
        "dim": dim,
        "depth": c["num_hidden_layers"],
        "context": c.get("max_position_embeddings", 8192),  # what it was trained at
        "temporal": [parts[kind] for kind in kinds(c)],
        "feature": {"kind": "geglu", "ratio": ratio, "multiple": 1, "bias": True, "tanh": True},
        "position": {"kind": "rope", **turning},
        "norm": {"kind": "rmsnorm", "eps": c.get("rms_norm_eps", 1e-6)},
        "tied": True,
        # The released weights were trained with sqrt(D) rounded to bfloat16.
        "embedding_scale": torch.tensor(dim**0.5).bfloat16().item(),
        "logit_softcap": c.get("logits_soft_cap") or 0.0,
    }
