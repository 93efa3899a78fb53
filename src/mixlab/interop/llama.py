"""Llama's weights (transformers' LlamaForCausalLM): RMSNorm, RoPE, grouped queries, SwiGLU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mixlab.errors import UserError
from mixlab.interop import hf
from mixlab.model.language_model import LanguageModel

NAMES = {
    "embedding.weight": "embed_tokens.weight",
    "blocks.{i}.temporal_norm.gain": "layers.{i}.input_layernorm.weight",
    "blocks.{i}.temporal.q.weight": "layers.{i}.self_attn.q_proj.weight",
    "blocks.{i}.temporal.k.weight": "layers.{i}.self_attn.k_proj.weight",
    "blocks.{i}.temporal.v.weight": "layers.{i}.self_attn.v_proj.weight",
    "blocks.{i}.temporal.out.weight": "layers.{i}.self_attn.o_proj.weight",
    "blocks.{i}.feature_norm.gain": "layers.{i}.post_attention_layernorm.weight",
    "blocks.{i}.feature.gate.weight": "layers.{i}.mlp.gate_proj.weight",
    "blocks.{i}.feature.up.weight": "layers.{i}.mlp.up_proj.weight",
    "blocks.{i}.feature.down.weight": "layers.{i}.mlp.down_proj.weight",
    "norm.gain": "norm.weight",
}
"""Ours -> theirs below `model.`; both pair a head's channels by halves and multiply W x, so nothing moves."""

BIASES = {
    f"blocks.{{i}}.temporal.{ours}.bias": f"layers.{{i}}.self_attn.{theirs}_proj.bias"
    for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
}
MLP_BIASES = {
    f"blocks.{{i}}.feature.{name}.bias": f"layers.{{i}}.mlp.{name}_proj.bias"
    for name in ("gate", "up", "down")
}


def from_transformers(source: Any) -> LanguageModel:
    """The same function as a LlamaForCausalLM: logits equal up to rounding, in full and in steps.

    source: the model object, or the path of its folder. Raises UserError for what has no counterpart
    (dynamic RoPE scaling, another activation, a head width that is not D / heads).
    """
    given = hf.checkpoint(source)
    hf.check_type(given, "llama")
    c = given.config
    given.want(hidden_act="silu", head_dim=c["hidden_size"] // c["num_attention_heads"])
    prefix, tied = given.prefix("model."), bool(c.get("tie_word_embeddings"))
    names = NAMES | (BIASES if c.get("attention_bias") else {}) | (MLP_BIASES if c.get("mlp_bias") else {})
    weights = {
        ours: given.take(prefix + theirs) for ours, theirs in hf.by_layer(names, c["num_hidden_layers"])
    }
    if not tied:
        weights["head.weight"] = given.take("lm_head.weight")
    given.finish(ignore=r"rotary_emb\.inv_freq$|^lm_head\.weight$")
    return hf.fill(configure(c), weights)


def configure(c: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config from the keys of a Llama config.json."""
    return {
        "vocab_size": c["vocab_size"],
        "dim": c["hidden_size"],
        "depth": c["num_hidden_layers"],
        "context": c["max_position_embeddings"],
        "temporal": {
            "kind": "attention",
            "heads": c["num_attention_heads"],
            "kv_heads": c.get("num_key_value_heads") or c["num_attention_heads"],
            "bias": "all" if c.get("attention_bias") else "none",
        },
        "feature": {
            "kind": "swiglu",
            "ratio": c["intermediate_size"] / c["hidden_size"],
            "multiple": 1,
            "bias": bool(c.get("mlp_bias")),
        },
        "position": {"kind": "rope", **rotary(c)},
        "norm": {"kind": "rmsnorm", "eps": c.get("rms_norm_eps", 1e-6)},
        "tied": bool(c.get("tie_word_embeddings")),
    }


def rotary(c: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE's knobs from `rope_parameters`, or from the older `rope_theta` and `rope_scaling`.

    Raises UserError for a scaling other than linear, yarn and llama3.
    """
    table = {**(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}
    kind = table.get("rope_type", table.get("type", "default"))
    knobs: dict[str, Any] = {"base": float(table.get("rope_theta", c.get("rope_theta", 10_000.0)))}
    if "partial_rotary_factor" in table:
        knobs["channels"] = float(table["partial_rotary_factor"])
    if kind == "default":
        return knobs
    if kind not in ("linear", "yarn", "llama3"):
        raise UserError(f"RoPE scaling '{kind}' has no counterpart; linear, yarn and llama3 have")
    knobs |= {"scaling": kind, "factor": float(table["factor"])}
    knobs["original"] = int(table.get("original_max_position_embeddings") or 0)
    slow, fast = ("beta_slow", "beta_fast") if kind == "yarn" else ("low_freq_factor", "high_freq_factor")
    knobs |= {ours: float(table[key]) for ours, key in (("slow", slow), ("fast", fast)) if table.get(key)}
    if kind == "yarn":
        check_yarn(table)
    return knobs


def check_yarn(table: Mapping[str, Any]) -> None:
    """UserError unless the temperature is the paper's and the ramp's ends are rounded as in its code."""
    usual = 0.1 * math.log(table["factor"]) + 1
    other = table.get("attention_factor")
    if (
        (other is not None and abs(other - usual) > 1e-6)
        or table.get("mscale")
        or table.get("mscale_all_dim")
    ):
        raise UserError(f"yarn: only the paper's attention factor, here {usual:.4f}, has a counterpart")
    if table.get("truncate") is False:
        raise UserError("yarn: truncate=false has no counterpart")
