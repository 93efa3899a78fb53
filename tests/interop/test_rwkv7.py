"""RWKV-7 in its author's layout and in flash-linear-attention's: the same function in ours.

The reference here is written from the paper's equations (arXiv 2503.14456, section 4; the value residual and
the norms as in the released code) on tensors with the released names, one token and one head at a time.
"""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from mixlab.errors import UserError
from mixlab.interop.rwkv7 import from_released, from_transformers

V, D, H, L, F = 23, 16, 2, 3, 40  # vocabulary, width, heads, layers, hidden width
RANKS = {"w": 4, "a": 5, "v": 3, "g": 6}


def released(dtype=torch.float32, unused=False):
    """Random tensors under the names, and in the shapes, of a released file."""
    torch.manual_seed(0)
    shapes = {"emb.weight": (V, D), "head.weight": (V, D)}
    norms = [
        "blocks.0.ln0",
        "ln_out",
        *(f"blocks.{i}.{n}" for i in range(L) for n in ("ln1", "ln2", "att.ln_x")),
    ]
    shapes |= {f"{norm}.{end}": (D,) for norm in norms for end in ("weight", "bias")}
    for i in range(L):
        att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        shapes |= {f"{att}x_{c}": (1, 1, D) for c in "rwkvag"}
        shapes |= {f"{att}{c}.weight": (D, D) for c in ("receptance", "key", "value", "output")}
        shapes |= {f"{att}{c}": (1, 1, D) for c in ("w0", "a0", "k_k", "k_a")} | {f"{att}r_k": (H, D // H)}
        pairs = "wavg" if i or unused else "wag"
        shapes |= {f"{att}v0": (1, 1, D)} if "v" in pairs else {}
        for c in pairs:
            shapes |= {f"{att}{c}1": (D, RANKS[c]), f"{att}{c}2": (RANKS[c], D)}
        shapes |= {f"{ffn}x_k": (1, 1, D), f"{ffn}key.weight": (F, D), f"{ffn}value.weight": (D, F)}
    return {name: (0.5 * torch.randn(shape)).to(dtype) for name, shape in shapes.items()}


def normed(x, p, name, groups=1, eps=1e-5):
    """Mean 0 and variance 1 in each group of channels, then gain and shift."""
    parts = [(g - g.mean()) / torch.sqrt(((g - g.mean()) ** 2).mean() + eps) for g in x.chunk(groups)]
    return torch.cat(parts) * p[f"{name}.weight"] + p[f"{name}.bias"]


def time_mixed(p, x, last, S, first):
    """Output, value and memories of one layer at one token; first is the bottom layer's value, or None."""
    at = {c: x + (last - x) * p[f"x_{c}"].flatten() for c in "rwkvag"}
    r, k, v = (p[f"{n}.weight"] @ at[c] for n, c in (("receptance", "r"), ("key", "k"), ("value", "v")))
    w = torch.exp(
        -torch.sigmoid(p["w0"].flatten() + torch.tanh(at["w"] @ p["w1"]) @ p["w2"]) * math.exp(-0.5)
    )
    a = torch.sigmoid(p["a0"].flatten() + at["a"] @ p["a1"] @ p["a2"])
    g = torch.sigmoid(at["g"] @ p["g1"]) @ p["g2"]
    if first is None:
        first = v
    else:
        nu = torch.sigmoid(p["v0"].flatten() + at["v"] @ p["v1"] @ p["v2"])
        v = (1 - nu) * v + nu * first
    removal = k * p["k_k"].flatten()
    k = k * (1 - p["k_a"].flatten() * (1 - a))
    read, bonus, memories = [], [], []
    for h, state in enumerate(S):
        cut = slice(h * D // H, (h + 1) * D // H)
        unit = removal[cut] / removal[cut].norm()
        state = state @ (torch.diag(w[cut]) - torch.outer(unit, a[cut] * unit)) + torch.outer(v[cut], k[cut])
        read.append(state @ r[cut])
        bonus.append((r[cut] * p["r_k"][h] * k[cut]).sum() * v[cut])
        memories.append(state)
    y = normed(torch.cat(read), p, "ln_x", groups=H, eps=64e-5) + torch.cat(bonus)
    return p["output.weight"] @ (g * y), first, memories


def reference(weights, tokens):
    """Logits (T, V) in float64."""
    p = {name: tensor.double() for name, tensor in weights.items()}
    below = {
        i: {n.split(".", 3)[3]: t for n, t in p.items() if n.startswith(f"blocks.{i}.att.")} for i in range(L)
    }
    zeros = torch.zeros(D, dtype=torch.float64)
    lasts = [[zeros, zeros] for _ in range(L)]
    memories = [[torch.zeros(D // H, D // H, dtype=torch.float64)] * H for _ in range(L)]
    logits = []
    for token in tokens:
        x, first = normed(p["emb.weight"][token], p, "blocks.0.ln0"), None
        for i in range(L):
            u = normed(x, p, f"blocks.{i}.ln1")
            y, first, memories[i] = time_mixed(below[i], u, lasts[i][0], memories[i], first)
            x, lasts[i][0] = x + y, u
            u = normed(x, p, f"blocks.{i}.ln2")
            k = p[f"blocks.{i}.ffn.key.weight"] @ (u + (lasts[i][1] - u) * p[f"blocks.{i}.ffn.x_k"].flatten())
            x, lasts[i][1] = x + p[f"blocks.{i}.ffn.value.weight"] @ torch.relu(k) ** 2, u
        logits.append(p["head.weight"] @ normed(x, p, "ln_out"))
    return torch.stack(logits)


RENAMED = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
OTHER = {"emb.weight": "model.embeddings.weight", "head.weight": "lm_head.weight"}
NORMS = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
LINEAR = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}  # w0 + tanh(x w1) w2 as two Linears


def as_fla(weights):
    """The same tensors as RWKV7ForCausalLM names and lays them out."""
    result = {}
    for name, tensor in weights.items():
        if not name.startswith("blocks."):
            result[OTHER.get(name) or name.replace("ln_out", "model.norm")] = tensor
            continue
        _, i, part, *rest = name.split(".")
        if part == "att" and rest[0][0] in RANKS and rest[0][1:] in LINEAR:
            tensor = tensor.t() if rest[0][1] != "0" else tensor.flatten()
            rest = [f"{rest[0][0]}_lora.lora.{LINEAR[rest[0][1]]}"]
        elif part == "att":
            rest[0] = RENAMED.get(rest[0], rest[0])
            tensor = tensor.flatten() if rest[0] in ("k_k", "k_a") else tensor
        elif rest[0] == "x_k":
            tensor = tensor.flatten()
        part = {"att": "attn", **NORMS}.get(part, part)
        result[".".join(["model.layers", i, part, *rest])] = tensor.contiguous()
    return result


def config(**changes):
    """What RWKV7Config writes of this model, as far as the weights' meaning depends on it."""
    return {
        "model_type": "rwkv7", "hidden_size": D, "num_hidden_layers": L, "head_dim": D // H, "num_heads": H,
        "norm_eps": 64e-5 / (D // H), "norm_first": True, "norm_bias": True, "hidden_act": "sqrelu",
        "value_dim": [D] * L, "attn": None, "tie_word_embeddings": False,
        "max_position_embeddings": 77, **changes,
    }  # fmt: skip


def folder(path, weights, **changes):
    save_file(as_fla(weights), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config(**changes)))
    return path


TOKENS = [3, 7, 7, 0, 22, 11, 3, 7, 1, 19, 3, 3]


@torch.no_grad()
def gap(model, wanted):
    return (model.double()(torch.tensor([TOKENS])).logits[0] - wanted).abs().max().item()


def test_a_released_model_computes_what_the_equations_say():
    weights = released()
    ours = from_released(weights)
    assert sum(p.numel() for p in ours.parameters()) == sum(t.numel() for t in weights.values())
    assert gap(ours, reference(weights, TOKENS)) < 1e-10


def test_steps_give_the_same():
    weights = released()
    ours, wanted = from_released(weights).double(), reference(weights, TOKENS)
    state = ours.init_state(1, len(TOKENS))
    with torch.no_grad():
        for t, token in enumerate(TOKENS):
            out = ours(torch.tensor([[token]]), state)
            state = out.state
            assert (out.logits[0, 0] - wanted[t]).abs().max() < 1e-10


def test_the_bottom_layers_unused_residual_is_left_out():
    weights = released(unused=True)
    assert gap(from_released(weights), reference(weights, TOKENS)) < 1e-10


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_file_in_bfloat16_gives_its_own_numbers_in_float32(tmp_path, kind):
    weights, path = released(torch.bfloat16), tmp_path / f"model.{kind}"
    torch.save(weights, path) if kind == "pth" else save_file(weights, path)
    ours = from_released(path, context=512)
    assert ours.config.context == 512
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert gap(ours, reference(weights, TOKENS)) < 1e-10


class Mischief:
    """What an unrestricted unpickler would call."""

    def __reduce__(self):
        return print, ("called",)


def test_a_pth_file_makes_nothing_but_tensors(tmp_path, capsys):
    torch.save({**released(), "extra": Mischief()}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="not a file of tensors alone"):
        from_released(tmp_path / "model.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.att.k_a"), "the weights lack 'blocks.1.att.k_a'"),
        (lambda w: w.pop("blocks.0.att.r_k"), "no weights of RWKV-7"),
        (lambda w: w.update({"blocks.1.ffn.s_emb.weight": torch.zeros(2)}), "no place for the weights"),
        (lambda w: w.update({"blocks.1.att.k_a": torch.zeros(1, 1, D + 1)}), r"shape \(17,\)"),
        (lambda w: w.update({"blocks.1.att.k_a": 3.0}), "a table from names to tensors"),
    ],
    ids=["missing", "another family", "more", "shape", "no tensor"],
)
def test_what_is_no_rwkv7_is_refused(change, message):
    weights = released()
    change(weights)
    with pytest.raises(UserError, match=message):
        from_released(weights)


@pytest.mark.parametrize(
    ("name", "content"), [("a.pth", b"text"), ("a.safetensors", b"text"), ("b.pth", None)]
)
def test_a_file_that_is_none_is_named(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        from_released(path)


def test_half_a_file_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(released(), path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match="not a file of tensors"):
        from_released(path)


def test_flash_linear_attentions_layout_gives_the_same_model(tmp_path):
    weights = released()
    ours = from_transformers(folder(tmp_path, weights))
    assert ours.config.context == 77
    eps = 64e-5 / (D // H)  # theirs is one knob for all norms
    norms = [part for kind, part in ours.components() if kind == "norm"]
    assert [norm.config.eps for norm in norms] == [eps] * (2 + 2 * L)
    again = from_released(weights)
    for (name, a), b in zip(ours.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_flash_linear_attentions_first_version_had_the_shifts_in_one(tmp_path):
    weights = released()
    theirs = as_fla(weights)
    for i in range(L):
        rows = [theirs.pop(f"model.layers.{i}.attn.x_{c}").flatten() for c in "rwkvag"]
        theirs[f"model.layers.{i}.attn.x_x"] = torch.stack(rows)
    save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config()))
    for a, b in zip(
        from_transformers(tmp_path).parameters(), from_released(weights).parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_norms_without_shifts_and_without_the_first(tmp_path):
    weights = {n: t for n, t in released().items() if ".ln0." not in n}
    plain = {n: t for n, t in weights.items() if not (n.endswith(".bias") and "ln" in n and "ln_x" not in n)}
    ours = from_transformers(folder(tmp_path, plain, norm_first=False, norm_bias=False))
    assert ours.embedding_norm is None
    assert not [name for name, _ in ours.named_parameters() if name.endswith("norm.shift")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "rwkv6"}, "model_type is 'rwkv6', expected 'rwkv7'"),
        ({"norm_eps": 1e-5}, "8e-05 of the heads' norm; only 0.00064 has"),
        ({"attn": {"layers": [1]}}, "attention in some layers"),
        ({"value_dim": [2 * D] * L}, "value_dim"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": L + 1, "value_dim": None}, r"lack 'model\.layers\.3\."),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        from_transformers(folder(tmp_path, released(), **change))


def test_the_reader_imports_neither_transformers_nor_fla():
    code = "import sys, mixlab.interop.rwkv7; print({'transformers', 'fla'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
