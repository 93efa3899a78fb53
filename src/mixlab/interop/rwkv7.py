"""RWKV-7's weights: the files its author releases, and flash-linear-attention's RWKV7ForCausalLM."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixlab.errors import UserError
from mixlab.interop import hf
from mixlab.model.language_model import LanguageModel
from mixlab.model.weights import StoredTensors
from mixlab.parts.temporal.rwkv7_core import NORM_EPS

Layout = Literal[0, 1]
RELEASED: Layout = 0
FLA: Layout = 1

OUTSIDE = {
    "embedding.weight": ("emb.weight", "model.embeddings.weight"),
    "embedding_norm.gain": ("blocks.0.ln0.weight", "model.layers.0.pre_norm.weight"),
    "embedding_norm.shift": ("blocks.0.ln0.bias", "model.layers.0.pre_norm.bias"),
    "norm.gain": ("ln_out.weight", "model.norm.weight"),
    "norm.shift": ("ln_out.bias", "model.norm.bias"),
    "head.weight": ("head.weight", "lm_head.weight"),
}
"""Ours -> the name in the released layout, in flash-linear-attention's."""

LAYERS = ("blocks.{}.", "model.layers.{}.")
"""What stands before the names below."""

LAYER = {
    "temporal_norm.gain": ("ln1.weight", "attn_norm.weight"),
    "temporal_norm.shift": ("ln1.bias", "attn_norm.bias"),
    "temporal.r.weight": ("att.receptance.weight", "attn.r_proj.weight"),
    "temporal.k.weight": ("att.key.weight", "attn.k_proj.weight"),
    "temporal.v.weight": ("att.value.weight", "attn.v_proj.weight"),
    "temporal.out.weight": ("att.output.weight", "attn.o_proj.weight"),
    "temporal.decay_bias": ("att.w0", "attn.w_lora.lora.2.bias"),
    "temporal.decay.down.weight": ("att.w1", "attn.w_lora.lora.0.weight"),
    "temporal.decay.up.weight": ("att.w2", "attn.w_lora.lora.2.weight"),
    "temporal.rate_bias": ("att.a0", "attn.a_lora.lora.2.bias"),
    "temporal.rate.down.weight": ("att.a1", "attn.a_lora.lora.0.weight"),
    "temporal.rate.up.weight": ("att.a2", "attn.a_lora.lora.2.weight"),
    "temporal.gate.down.weight": ("att.g1", "attn.g_lora.lora.0.weight"),
    "temporal.gate.up.weight": ("att.g2", "attn.g_lora.lora.2.weight"),
    "temporal.k_k": ("att.k_k", "attn.k_k"),
    "temporal.k_a": ("att.k_a", "attn.k_a"),
    "temporal.r_k": ("att.r_k", "attn.r_k"),
    "temporal.norm_gain": ("att.ln_x.weight", "attn.g_norm.weight"),
    "temporal.norm_shift": ("att.ln_x.bias", "attn.g_norm.bias"),
    "feature_norm.gain": ("ln2.weight", "ffn_norm.weight"),
    "feature_norm.shift": ("ln2.bias", "ffn_norm.bias"),
    "feature.mu_k": ("ffn.x_k", "ffn.x_k"),
    "feature.k.weight": ("ffn.key.weight", "ffn.key.weight"),
    "feature.v.weight": ("ffn.value.weight", "ffn.value.weight"),
}

RESIDUAL = {
    "temporal.residual_bias": ("att.v0", "attn.v_lora.lora.2.bias"),
    "temporal.residual.down.weight": ("att.v1", "attn.v_lora.lora.0.weight"),
    "temporal.residual.up.weight": ("att.v2", "attn.v_lora.lora.2.weight"),
}
"""Of every layer but the bottom one, where a released file may hold them unused."""

SHIFTS = ("att.x_", "attn.x_")
"""Before each of r, w, k, v, a, g, the rows of `mix_last`."""


def from_released(source: Any, *, context: int = 4096) -> LanguageModel:
    """The function of a released model: logits equal up to rounding, in full and in steps.

    source: its `.pth` file, the same as safetensors, or its tensors by name. A `.pth` is read by torch's
    restricted unpickler, which makes tensors and nothing else. context: the length it was trained at, which
    only the file's name tells (ctx4096). Raises UserError for what is no RWKV-7, or one with parts that have
    no counterpart (deep embeddings).
    """
    shared = isinstance(source, Mapping)
    given = hf.Checkpoint({"model_type": "rwkv7"}, _tensors(source), shared)
    if "blocks.0.att.r_k" not in given.weights:
        raise UserError("these are no weights of RWKV-7: there is no 'blocks.0.att.r_k' among them")
    heads = len(given.weights["blocks.0.att.r_k"])
    weights = _take(given, RELEASED, 1 + max(_layer(name) for name in given.weights))
    given.finish(ignore=r"^blocks\.0\.att\.v[012]$")
    return hf.fill(_configure(weights, heads, context), weights)


def from_transformers(source: Any) -> LanguageModel:
    """The same function as flash-linear-attention's RWKV7ForCausalLM, up to rounding.

    source: the model object, or the path of its folder. Raises UserError for what has no counterpart
    (attention in some layers, wider values, another eps of the heads' norm).
    """
    given = hf.checkpoint(source)
    hf.check_type(given, "rwkv7")
    c = given.config
    D, depth, eps = c["hidden_size"], c["num_hidden_layers"], c.get("norm_eps", 1e-5)
    width = c.get("head_dim") or D // c["num_heads"]
    given.want(hidden_act="sqrelu", value_dim=[D] * depth, tie_word_embeddings=False)
    if c.get("attn") is not None:
        raise UserError("config: attention in some layers has no counterpart here")
    if abs(width * eps - NORM_EPS) > 1e-9:
        raise UserError(
            f"config: norm_eps={eps:g} with heads of {width} makes {width * eps:g} of the heads' norm; only "
            f"{NORM_EPS:g} has a counterpart"
        )
    first, shifted = c.get("norm_first", True), c.get("norm_bias", True)
    weights = _take(given, FLA, depth, first=first, shifted=shifted)
    given.finish()
    config = _configure(weights, D // width, c.get("max_position_embeddings", 2048))
    norm = {"kind": "layernorm", "eps": eps, "bias": shifted}
    return hf.fill({**config, "embedding_norm": first, "norm": norm}, weights)


def _take(
    given: hf.Checkpoint, layout: Layout, depth: int, *, first: bool = True, shifted: bool = True
) -> dict[str, Tensor]:
    """Our names -> tensors of our shapes. first, shifted: whether the embedding has its norm, and the norms
    of the stream their shifts."""
    weights = {}
    for ours, theirs in _names(layout, depth):
        absent = not first and ours.startswith("embedding_norm")
        if absent or (not shifted and ours.endswith("norm.shift")):
            continue
        tensor = given.take(theirs)
        if ours.endswith((".down.weight", ".up.weight")):
            tensor = tensor.t().contiguous() if layout == RELEASED else tensor  # x W there, W x here
        elif not ours.endswith(".weight"):
            tensor = tensor.flatten()  # (1, 1, D), and (H, K) of r_k
        weights[ours] = tensor
    for i in range(depth):
        start = LAYERS[layout].format(i) + SHIFTS[layout]
        if f"{start}x" in given.weights:  # all six in one: flash-linear-attention's first version
            mixes = given.take(f"{start}x").flatten(1)
        else:
            mixes = torch.stack([given.take(start + each).flatten() for each in "rwkvag"])
        weights[f"blocks.{i}.temporal.mix_last"] = mixes
    return weights


def _names(layout: Layout, depth: int) -> Iterator[tuple[str, str]]:
    """(ours, theirs) of everything but the token shifts."""
    for ours, theirs in OUTSIDE.items():
        yield ours, theirs[layout]
    for i in range(depth):
        for ours, theirs in (LAYER | (RESIDUAL if i else {})).items():
            yield f"blocks.{i}.{ours}", LAYERS[layout].format(i) + theirs[layout]


def _layer(name: str) -> int:
    """The layer that a released name belongs to; -1 for none."""
    start, _, rest = name.partition(".")
    index = rest.partition(".")[0]
    return int(index) if start == "blocks" and index.isdecimal() else -1


def _tensors(source: Any) -> Mapping[str, Tensor]:
    """Released tensors by name, from a table of them or a file."""
    weights = source if isinstance(source, Mapping) else _read(Path(source))
    if isinstance(weights, StoredTensors):
        return weights
    if not isinstance(weights, Mapping) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise UserError("RWKV-7's weights must be a table from names to tensors")
    return weights


def _read(path: Path) -> Any:
    """What a `.pth` or safetensors file holds."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a model's .pth or .safetensors file")
    if path.suffix == ".safetensors":
        return hf.read_files(path)
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a file of tensors as torch.save writes it, and not named .safetensors")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(f"{path}: not a file of tensors alone: {str(error).splitlines()[0]}") from None


def _configure(weights: Mapping[str, Tensor], heads: int, context: int) -> dict[str, Any]:
    """A model's config, its sizes those of the weights."""
    V, D = weights["embedding.weight"].shape
    depth = 1 + max(_layer(name) for name in weights)
    pairs = {"decay": 0, "rate": 0, "gate": 0} | ({"residual": 1} if depth > 1 else {})
    ranks = {n: len(weights[f"blocks.{i}.temporal.{n}.down.weight"]) for n, i in pairs.items()}
    knobs = {"value" if name == "residual" else name: rank for name, rank in ranks.items()}
    hidden = len(weights["blocks.0.feature.k.weight"])
    return {
        "vocab_size": V,
        "dim": D,
        "depth": depth,
        "context": context,
        "temporal": {"kind": "rwkv7", "heads": heads, **{f"{n}_rank": r for n, r in knobs.items()}},
        "feature": {"kind": "channel_mix", "version": 7, "ratio": hidden / D, "multiple": 1},
        "position": "none",
        "norm": "layernorm",
        "embedding_norm": True,
    }
