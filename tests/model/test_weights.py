"""Models are filled from files without being drawn first, and without a second copy in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import mixlab
from mixlab.errors import UserError
from mixlab.model.weights import StoredTensors, hollow_model
from mixlab.parts.contract import _REGISTRY, available, register
from mixlab.parts.feature.mlp import FeatureMix
from mixlab.train import checkpoint

SHAPE = {"vocab_size": 11, "dim": 32, "depth": 2, "context": 16}
MODELS: list[dict[str, Any]] = [
    *({"temporal": name} for name in available("temporal")),
    *({"feature": name} for name in available("feature")),
    *({"position": name, "embedding_norm": True} for name in available("position")),
    {"norm": "layernorm", "tied": True},
    {"temporal": {"kind": "attention", "qk_norm": True, "learned_temperature": True, "bias": "all"}},
]


@pytest.mark.parametrize("keys", MODELS, ids=str)
def test_a_hollow_model_when_filled_is_the_model(keys: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = mixlab.build_model(SHAPE | keys).eval()
    checkpoint.save_model(model, tmp_path / "m")
    before = torch.get_rng_state()
    hollow = hollow_model(SHAPE | keys)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.is_meta for parameter in hollow.parameters()), "drawn for nothing"
    checkpoint.load_model(hollow, tmp_path / "m")
    hollow.eval()
    for kind in ("named_parameters", "named_buffers"):
        wanted, found = dict(getattr(model, kind)()), dict(getattr(hollow, kind)())
        assert wanted.keys() == found.keys(), "what was tied has one name"
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name
            assert (found[name].dtype, found[name].requires_grad) == (tensor.dtype, tensor.requires_grad)
    tokens = torch.randint(11, (2, 9))
    assert torch.equal(hollow(tokens).logits, model(tokens).logits)
    hollow.train().loss(tokens, tokens).backward()


def test_a_part_that_cannot_be_hollow_is_built_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_REGISTRY, "feature", dict(_REGISTRY["feature"]))

    @register("feature", "test-table")
    class Table(FeatureMix):
        """Keeps what it computes from its weights, and weights that are in no file."""

        def __init__(self, config: Any, place: Any) -> None:
            super().__init__(config, place)
            self.weight = torch.nn.Parameter(torch.empty(3))

        def reset_parameters(self) -> None:
            torch.nn.init.normal_(self.weight)
            self.norm = float(self.weight.norm())

        def mix(self, x: Any, state: Any) -> Any:
            return x * self.norm, state

    @register("feature", "test-scratch")
    class Scratch(Table):
        def reset_parameters(self) -> None:
            self.register_buffer("scratch", torch.empty(3), persistent=False)

    for name in ("test-table", "test-scratch"):
        before = torch.get_rng_state()
        model = hollow_model(SHAPE | {"feature": name})
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_tensors_of_every_type_are_read_as_they_were_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    types = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
    ]
    tensors = {str(dtype): (4 * torch.randn(3, 5)).to(dtype) for dtype in types}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "after": torch.arange(2)}
    save_file(tensors, tmp_path / "a", metadata={"format": "pt"})
    save_file({"other": torch.ones(2)}, tmp_path / "b")
    stored = StoredTensors(tmp_path / "a", tmp_path / "b")
    assert stored.keys() == {*tensors, "other"}
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor), name
        assert stored.shape(name) == tensor.shape


def test_weights_of_another_type_and_in_another_order_are_read_into_their_place(tmp_path: Path) -> None:
    wanted = torch.randn(4, 6, dtype=torch.float64)
    save_file({"w": wanted}, tmp_path / "m")
    stored = StoredTensors(tmp_path / "m")
    for tensor in (torch.zeros(4, 6), torch.zeros(6, 4, dtype=torch.float64).t(), torch.zeros(4, 6).double()):
        at, version = tensor.data_ptr(), tensor._version
        stored.read_into("w", tensor)
        assert torch.equal(tensor, wanted.to(tensor.dtype))
        assert (tensor.data_ptr(), tensor._version > version) == (at, True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_file_of_another_type_fills_a_model_of_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model, hollow = mixlab.build_model(SHAPE | {"tied": True}), hollow_model(SHAPE | {"tied": True})
    stored = {name: t.to(dtype) for name, t in checkpoint.model_tensors(model).items()}
    save_file(stored, tmp_path / "m")
    checkpoint.load_model(hollow, tmp_path / "m")
    assert hollow.head.weight is hollow.embedding.weight
    for name, parameter in hollow.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, stored[name].float())


def test_a_checkpoint_is_read_into_the_parameters_that_an_optimizer_holds(tmp_path: Path) -> None:
    model, other = (mixlab.build_model(SHAPE) for _ in range(2))
    checkpoint.save_model(model, tmp_path / "m")
    held = dict(other.named_parameters())
    checkpoint.load_model(other, tmp_path / "m")
    for name, parameter in other.named_parameters():
        assert parameter is held[name]
        assert torch.equal(parameter, model.get_parameter(name))


def test_a_file_cut_short_or_replaced_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1000)}, tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    stored = StoredTensors(tmp_path / "m")
    (tmp_path / "m").write_bytes(content[:-8])
    with pytest.raises(SafetensorError, match="ends inside a tensor"):
        stored["w"]
    with pytest.raises(SafetensorError):
        StoredTensors(tmp_path / "m")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        checkpoint.load_model(mixlab.build_model(SHAPE), tmp_path / "m")


LARGE = {"vocab_size": 4000, "dim": 768, "depth": 3, "context": 64, "temporal": ["attention", "rglru"]}

PROGRAM = """
import gc, json, sys
from pathlib import Path
from mixlab.interop import llama
from mixlab.model.config import model_config
from mixlab.train.config import RunConfig
from mixlab.train.run import Run

def memory(line):
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(x for x in text.splitlines() if x.startswith(line)).split()[1])

def run(folder, keys):
    return Run(Path(folder), RunConfig(model=model_config(keys)), None, Path(folder)).load()

def interop(folder, keys):
    return llama.from_transformers(folder)

cases, kept = json.loads(sys.argv[1]), []
for small, large in (cases[:2], cases[2:]):
    read = run if large[1] else interop
    read(*small)  # what is loaded but once
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = memory("VmHWM")
    kept.append(read(*large))  # kept: what it frees is not there for the next
    print(memory("VmHWM") - before)
"""


def run_folder(folder: Path, keys: dict[str, Any]) -> int:
    """A model of ones as a checkpoint's file."""
    folder.mkdir()
    own = hollow_model(keys).state_dict()
    save_file({name: torch.ones(t.shape) for name, t in own.items()}, folder / "model.safetensors")
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_loading_takes_the_memory_of_the_file_and_little_more(tmp_path: Path) -> None:
    small = LARGE | {"dim": 64, "vocab_size": 40}
    sizes = [run_folder(tmp_path / "run", LARGE), llama_folder(tmp_path / "llama", 768)]
    run_folder(tmp_path / "small-run", small)
    llama_folder(tmp_path / "small-llama", 64)
    cases = [("small-run", small), ("run", LARGE), ("small-llama", None), ("llama", None)]
    request = json.dumps([(str(tmp_path / name), keys) for name, keys in cases])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, request], capture_output=True, text=True, check=True
    )
    rises = [int(line) for line in done.stdout.split()]
    assert min(sizes) > 80e6
    assert [rise / size for rise, size in zip(rises, sizes, strict=True)] == pytest.approx(
        [1.05, 1.05], abs=0.15
    )


def llama_folder(folder: Path, width: int) -> int:
    """A Llama of ones as transformers saves it."""
    config = {
        "model_type": "llama", "vocab_size": 4000, "hidden_size": width, "intermediate_size": 3 * width,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    square, wide, norm = (width, width), (3 * width, width), (width,)
    layer = {f"self_attn.{n}_proj": square for n in "qkvo"} | {"mlp.gate_proj": wide, "mlp.up_proj": wide}
    layer |= {"mlp.down_proj": (width, 3 * width), "input_layernorm": norm, "post_attention_layernorm": norm}
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in layer.items()}
    shapes |= {"model.norm.weight": norm, "model.embed_tokens.weight": (4000, width)}
    shapes["lm_head.weight"] = (4000, width)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return (folder / "model.safetensors").stat().st_size
