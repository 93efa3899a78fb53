"""The shape of a language model: widths, and the choice of part in each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from mixlab.errors import UserError
from mixlab.parts.contract import Choice, Kind, get

PartSpec = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""A part's name, a mapping with `kind` and its knobs, or a list of either that repeats over the depth."""


PER_BLOCK: tuple[Kind, ...] = ("temporal", "feature")
PER_MODEL: tuple[Kind, ...] = ("position", "norm")


LARGEST = {"vocab_size": 1 << 24, "dim": 1 << 17, "depth": 1 << 12, "context": 1 << 24}
"""Key -> several times what any model has by 2026: more is taken for a slip."""

MOST_WIDENING = 256
"""Widths further apart than 64 and 16384 are no use of muP."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A language model. The defaults are the block of Llama at a size that trains on a laptop.

    vocab_size: V; 256 for bytes. dim: width D. depth: blocks. context: T it trains at.
    temporal, feature: a PartSpec; a list repeats over the depth. position, norm: one part each.
    tied: whether the head shares the embedding's weights; untied by default, as the table is small for
    bytes. head_bias: whether the logits have a bias, one number for each token of the vocabulary (GPT-J, LSTM
    language models). mixer_bias: whether one is added to what each mixer makes, besides those of the part.
    residual: whether what a mixer makes is added to what it read, or takes its place, as in a plain stack of
    LSTMs (there with norm = "none" and feature = "none"). embedding_norm: a norm between embedding and blocks
    (RWKV). embedding_scale: factor on the embedding (Gemma and Griffin: sqrt(D)). dropout: after each mixer
    and the embedding. logit_softcap: c in c tanh(logits / c); 0 is off. mup_base_dim: the width that learning
    rates were tuned at, from which init, learning rates, attention and logits follow the width (Yang et al.
    2022, Tensor Programs V); 0 is off.
    """

    vocab_size: int = 256
    dim: int = 256
    depth: int = 4
    context: int = 256
    temporal: PartSpec = "attention"
    feature: PartSpec = "swiglu"
    position: PartSpec = "rope"
    norm: PartSpec = "rmsnorm"
    tied: bool = False
    head_bias: bool = False
    mixer_bias: bool = False
    residual: bool = True
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    dropout: float = 0.0
    logit_softcap: float = 0.0
    mup_base_dim: int = 0

    def validate(self) -> ModelConfig:
        """Return self; raises UserError naming the key that is out of range or the part that is unknown."""
        for key, most in LARGEST.items():
            if getattr(self, key) < 1:
                raise UserError(f"model.{key} must be at least 1, got {getattr(self, key)}")
            if getattr(self, key) > most:
                raise UserError(f"model.{key} must be at most {most:,}, got {getattr(self, key):,}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must be in [0, 1), got {self.dropout}")
        if self.logit_softcap < 0:
            raise UserError(f"model.logit_softcap must be 0 (off) or positive, got {self.logit_softcap}")
        if self.mup_base_dim < 0:
            raise UserError(f"model.mup_base_dim must be 0 (off) or a width, got {self.mup_base_dim}")
        if self.mup_base_dim and not 1 / MOST_WIDENING <= self.dim / self.mup_base_dim <= MOST_WIDENING:
            raise UserError(
                f"model.mup_base_dim is {self.mup_base_dim:,} at a model.dim of {self.dim:,}: learning rates "
                f"carry over to another width, not to one {MOST_WIDENING} times as wide or narrow; give the "
                "width that they were tuned at, or 0 (off)"
            )
        for kind in PER_BLOCK:
            self.pattern(kind)
        for kind in PER_MODEL:
            self.choice(kind)
        return self

    def pattern(self, kind: Kind) -> tuple[Choice, ...]:
        """The part of each block, from the first to the last."""
        spec = getattr(self, kind)
        listed = [spec] if isinstance(spec, (str, Mapping)) else list(spec)
        if not listed:
            raise UserError(f"model.{kind} is an empty list; name at least one part")
        if len(listed) > self.depth:
            raise UserError(f"model.{kind} lists {len(listed)} parts for a depth of {self.depth}")
        period = [_choose(kind, one) for one in listed]
        return tuple(period[layer % len(period)] for layer in range(self.depth))

    def choice(self, kind: Kind) -> Choice:
        """The one position scheme or norm of the model."""
        spec = getattr(self, kind)
        if not isinstance(spec, (str, Mapping)):
            raise UserError(f"model.{kind} takes one part, a name or a table with 'kind', not a list")
        return _choose(kind, spec)

    def to_dict(self) -> dict[str, Any]:
        """Every knob spelled out, in types that TOML holds; `model_config(c.to_dict())` builds the same."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        for kind in PER_MODEL:
            plain[kind] = _spell(self.choice(kind))
        for kind in PER_BLOCK:
            spelled = [_spell(choice) for choice in self.pattern(kind)]
            plain[kind] = spelled[0] if all(one == spelled[0] for one in spelled) else spelled
        return plain


def _choose(kind: Kind, spec: str | Mapping[str, Any]) -> Choice:
    """Resolve one part's spec; knobs go through the config edge, which names what is wrong with them."""
    if isinstance(spec, str):
        return Choice(spec, get(kind, spec).Config())
    knobs = dict(spec)
    name = knobs.pop("kind", None)
    if not isinstance(name, str):
        raise UserError(f"model.{kind}: a part given as a table needs 'kind', the name of the part")
    config = get(kind, name).Config
    if not knobs:
        return Choice(name, config())
    from mixlab.config import parse

    return Choice(name, parse(config, knobs, where=f"model.{kind}"))


def _spell(choice: Choice) -> str | dict[str, Any]:
    """A part with knobs as a table, one without as its name."""
    knobs = asdict(choice.config)
    return {"kind": choice.name, **knobs} if knobs else choice.name


def model_config(source: ModelConfig | Mapping[str, Any] | str | PathLike[str], **knobs: Any) -> ModelConfig:
    """A validated config from a config, a mapping, the name of a preset, or the path of a TOML file.

    A TOML file may hold the keys at its top or in a `[model]` table. knobs: keys in place of those of the
    source. Raises UserError.
    """
    from mixlab.config import parse

    if isinstance(source, ModelConfig):
        source = vars(source)  # a dataclass takes values of any type: they are checked here
    if isinstance(source, str | PathLike):
        source = _tables(source)
    if not isinstance(source, Mapping):
        raise UserError(
            "model: expected a ModelConfig, a table of its keys, the name of a preset or the path of a TOML "
            f"file, got {type(source).__name__}"
        )
    return parse(ModelConfig, {**source, **knobs}, where="model").validate()


def _tables(source: str | PathLike[str]) -> Mapping[str, Any]:
    """The `[model]` table of a preset or a TOML file, or the keys at the file's top."""
    from mixlab.config import read_preset, read_toml

    path = Path(source)
    named = (
        isinstance(source, str) and path.name == source and not (source and (path.suffix or path.exists()))
    )
    tables = read_preset(path if source else "") if named or path.suffix == ".toml" else read_toml(path)
    if "ngram" in tables and "model" not in tables:
        raise UserError(
            f"'{source}' is an n-gram, which counts a text and has nothing to build: "
            "mixlab.NGram.train(tokens) makes one"
        )
    top = {key: value for key, value in tables.items() if key != "name"}
    model = tables.get("model", top)
    if not isinstance(model, Mapping):
        raise UserError(f"{source}: model: expected a table, got {model!r}")
    return model
