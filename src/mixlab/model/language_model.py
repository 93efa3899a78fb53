"""The one model: embedding, blocks, norm, head."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixlab.errors import UserError
from mixlab.model.block import Block, BlockState
from mixlab.model.config import ModelConfig, model_config
from mixlab.model.inputs import check_room, check_rows, check_state, cross_entropy, look_up
from mixlab.model.scorer import Output
from mixlab.model.tie import tie
from mixlab.parts.contract import Component, Place, Role, build, get
from mixlab.parts.norm import Norm
from mixlab.parts.position import Position

COMPONENTS = ("embedding", "temporal", "feature", "norm", "head")

CHUNK_LOGITS = 1 << 24
"""Float32 logits the loss holds at once: 64 MiB, far above what small vocabularies need, far below
what a batch of 32k tokens over a vocabulary of 50k would take (6.4 GB)."""


class ModelState(NamedTuple):
    """length: tokens seen so far. blocks: one state a block."""

    length: Int[Tensor, ""]
    blocks: tuple[BlockState, ...]


class LanguageModel(nn.Module):
    """tokens -> embedding -> N x block -> norm -> linear -> logits.

    recompute: in training, blocks keep their input alone and do their forward again for the gradient (Chen et
    al. 2016, Training Deep Nets with Sublinear Memory Cost); loss and gradients stay the same, bit for bit.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recompute = False
        self.config = config.validate()
        self.vocab_size = config.vocab_size
        place = Place(
            dim=config.dim,
            context=config.context,
            depth=config.depth,
            base_dim=config.mup_base_dim,
            residual=config.residual,
        )
        self.widening = place.widening
        norm, position = config.choice("norm"), config.choice("position")
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.embedding_norm: Norm | None = build("norm", norm, place) if config.embedding_norm else None
        scheme = build("position", position, place) if self._on_embedding(position.name) else None
        self.position: Position | None = scheme
        self.dropout = nn.Dropout(config.dropout)
        pairs = zip(config.pattern("temporal"), config.pattern("feature"), strict=True)
        self.blocks = nn.ModuleList(
            Block(
                temporal,
                feature,
                norm,
                replace(place, layer=layer, position=position),
                dropout=config.dropout,
                mixer_bias=config.mixer_bias,
            )
            for layer, (temporal, feature) in enumerate(pairs)
        )
        self.norm = build("norm", norm, place)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=config.head_bias)
        if config.tied:
            tie(self)
        nn.init.normal_(self.embedding.weight, std=0.02)  # GPT-2
        nn.init.normal_(self.head.weight, std=0.02)
        if config.head_bias:
            nn.init.zeros_(self.head.bias)

    @staticmethod
    def _on_embedding(name: str) -> bool:
        """Whether the position scheme of that name adds to the embedding."""
        scheme = get("position", name)
        return issubclass(scheme, Position) and scheme.acts_on == "embedding"

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the position scheme can tell apart and every mixer can mix; None if there is
        no bound."""
        limits = [None if self.position is None else self.position.limit]
        limits += [part.limit for block in self.layers() for part in (block.temporal, block.feature)]
        return min((limit for limit in limits if limit is not None), default=None)

    def forward(
        self, tokens: Int[Tensor, "B T"], state: Any = None, *, segment: Int[Tensor, "B T"] | None = None
    ) -> Output:
        """Next-token logits (B, T, V) after each of `tokens` (B, T) int64.

        state: from `init_state` or an earlier call, to continue a sequence for any T >= 1; None starts
        afresh and keeps nothing. segment: document numbers of packed rows. Raises UserError for what is no
        (B, T) ids of the vocabulary; on a GPU, ids outside it are torch's own error.
        """
        x, state = self.hidden(tokens, state, segment=segment)
        return Output(self.logits(x), state)

    def hidden(
        self, tokens: Int[Tensor, "B T"], state: Any = None, *, segment: Int[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """What the head reads: the normalised residual stream after the last block, and the state."""
        x = look_up(self.embedding, tokens)
        if segment is not None:
            check_rows("segment numbers", segment, tokens)
        if state is not None:
            check_state(state, ModelState, len(tokens))
            if segment is not None:
                raise UserError("segment numbers are of whole packed sequences: they cannot continue a state")
            if len(state.blocks) != len(self.blocks):
                raise UserError(
                    f"this state is of {len(state.blocks)} blocks, the model has {len(self.blocks)}"
                )
        x = self.dropout(self.placed(x, tokens, state, segment))
        after, carry = [], {}  # type: ignore[var-annotated]
        again = self.recompute and self.training and state is None and torch.is_grad_enabled()
        for i, block in enumerate(self.layers()):
            if again:
                x, carry = checkpoint(_run, block, x, segment, carry, use_reentrant=False)
                continue
            block_state = None if state is None else state.blocks[i]
            x, block_state = block(x, block_state, segment=segment, carry=carry)
            after.append(block_state)
        x = self.norm(x)
        if state is None:
            return x, None
        return x, ModelState(state.length + tokens.shape[1], tuple(after))

    def placed(
        self, x: Float[Tensor, "B T D"], tokens: Int[Tensor, "B T"], state: Any, segment: Tensor | None = None
    ) -> Float[Tensor, "B T D"]:
        """What the first block reads, before dropout, of the tokens' embeddings x."""
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.embedding_norm is not None:
            x = self.embedding_norm(x).to(x.dtype)  # the stream stays in full precision
        if self.position is not None:
            x = x + self.position(self._positions(tokens, state, segment)).to(x.dtype)
        return x

    @staticmethod
    def _positions(tokens: Tensor, state: Any, segment: Tensor | None) -> Tensor:
        """Index of each token in its document, (T,) or, for packed rows, (B, T)."""
        T = tokens.shape[1]
        index = torch.arange(T, device=tokens.device)
        if segment is not None:
            starts = F.pad(segment[:, 1:] != segment[:, :-1], (1, 0), value=True)
            return index - torch.where(starts, index, 0).cummax(1).values
        return index if state is None else index + int(state.length)

    def logits(
        self, x: Float[Tensor, "*B D"], head: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "*B V"]:
        """The head, divided by the widening (Yang et al. 2022, table 8), with its soft cap if one is set.

        head: what makes its product, if not the module itself.
        """
        head = self.head if head is None else head
        logits = head(x if self.widening == 1 else x / self.widening)
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits.float() / cap) if cap else logits

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ModelState:
        """The state before the first token, with room for `max_length`; device and dtype default to the
        parameters' own. Raises UserError for sizes and dtypes that cannot be."""
        check_room(batch_size, max_length, dtype)
        like = self.embedding.weight
        device, dtype = device or like.device, dtype or like.dtype
        blocks = tuple(
            BlockState(
                block.temporal.init_state(batch_size, max_length, device=device, dtype=dtype),
                block.feature.init_state(batch_size, max_length, device=device, dtype=dtype),
            )
            for block in self.layers()
        )
        return ModelState(torch.zeros((), dtype=torch.int64), blocks)

    def loss(
        self,
        inputs: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        *,
        segment: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean nats a token of `targets` after `inputs`, both (B, T) int64; float32.

        With a large vocabulary the logits are made, used and made again for the gradient a chunk of
        tokens at a time. Raises UserError as `forward` does, and for targets that do not fit the inputs.
        """
        return self.losses(inputs, targets, segment=segment)[0]

    def losses(
        self,
        inputs: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        *,
        segment: Int[Tensor, "B T"] | None = None,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, "3"]:
        """`loss`, and what each of two terms adds to it in an objective that is the sum of the three.

        With Z the sum over the vocabulary that normalises a token's probabilities: z_loss * mean(log^2 Z)
        (Chowdhery et al. 2022, PaLM, section 5) keeps the logits from drifting. label_smoothing e in place of
        the target asks for 1 - e of it and e of the uniform distribution u (Szegedy et al. 2016, section 7):
        the objective is (1 - e) H(target) + e H(u), so that e (H(u) - H(target)) is added.
        """
        if not (0 <= z_loss < math.inf and 0 <= label_smoothing < 1):
            raise UserError(
                f"z_loss must be 0 (off) or positive and label_smoothing 0 (off) or a fraction below 1, got "
                f"{z_loss} and {label_smoothing}"
            )
        x, _ = self.hidden(inputs, segment=segment)
        check_rows("targets", targets, inputs)
        if not len(targets):
            raise UserError(
                f"an empty batch has no loss: tokens must have a sequence, got {tuple(targets.shape)}"
            )
        x, y = x.flatten(0, 1), targets.flatten()
        rows = max(1, CHUNK_LOGITS // self.vocab_size)
        terms = partial(self._terms, z_loss=z_loss, label_smoothing=label_smoothing)
        if len(x) <= rows:
            return terms(x, y) / len(y)
        chunks = zip(x.split(rows), y.split(rows), strict=True)
        return sum(checkpoint(terms, a, b, use_reentrant=False) for a, b in chunks) / len(y)

    def _terms(
        self, x: Float[Tensor, "N D"], y: Int[Tensor, "N"], *, z_loss: float, label_smoothing: float
    ) -> Float[Tensor, "3"]:
        """The three of `losses`, summed over the tokens, at least in float32."""
        logits = self.logits(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = cross_entropy(logits, y, reduction="sum")
        z = smooth = nats.new_zeros(())
        if z_loss:
            z = z_loss * logits.logsumexp(-1).square().sum()
        if label_smoothing:
            # H(u) - H(target): log Z is in both.
            target = logits.gather(-1, y.long()[:, None]).squeeze(-1)
            smooth = label_smoothing * (target - logits.mean(-1)).sum()
        return torch.stack([nats, z, smooth])

    def score(
        self,
        inputs: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        *,
        segment: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """Natural log-probability, float32, of each target after its row's inputs (those of its `segment`);
        rows start afresh."""
        x, _ = self.hidden(inputs, segment=segment)
        check_rows("targets", targets, inputs)
        rows = max(1, CHUNK_LOGITS // self.vocab_size)
        chunks = zip(x.flatten(0, 1).split(rows), targets.flatten().split(rows), strict=True)
        nats = [cross_entropy(self.logits(a).float(), y, reduction="none") for a, y in chunks]
        return -torch.cat(nats).view_as(targets)

    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [cast("Block", block) for block in self.blocks]

    def components(self) -> Iterator[tuple[str, Component]]:
        """(component, module) of everything but embedding and head, each once."""
        if self.embedding_norm is not None:
            yield "norm", self.embedding_norm
        if self.position is not None:
            yield "embedding", self.position
        for block in self.layers():
            yield "norm", block.temporal_norm
            yield "temporal", block.temporal
            if block.temporal_bias is not None:
                yield "temporal", block.temporal_bias
            if block.feature.mixes:
                yield "norm", block.feature_norm
                yield "feature", block.feature
            if block.feature_bias is not None:
                yield "feature", block.feature_bias
        yield "norm", self.norm

    def set_progress(self, fraction: float) -> bool:
        """Tell every part how much of training is done; returns whether parameters came or went."""
        parts = [part for block in self.layers() for part in (block.temporal, block.feature)]
        changed = [part.set_progress(fraction) for part in parts]
        return any(changed)

    def parameter_roles(self) -> dict[str, Role]:
        """Name, as in `named_parameters()`, -> what the parameter is to the optimizer."""
        roles: dict[str, Role] = {"embedding.weight": "embedding"}
        if not self.config.tied:
            roles["head.weight"] = "head"
        if self.config.head_bias:
            roles["head.bias"] = "gain"
        for prefix, component in self._named_components():
            roles |= {f"{prefix}.{name}": role for name, role in component.parameter_roles().items()}
        return roles

    def lr_scales(self) -> dict[str, float]:
        """Name, as in `named_parameters()`, -> factor on the learning rate; 1 for those it does not name."""
        return {
            f"{prefix}.{name}": scale
            for prefix, component in self._named_components()
            for name, scale in component.lr_scales().items()
        }

    def width_ratios(self) -> dict[str, tuple[float, float]]:
        """Name -> fan-in and fan-out, each over that at the base width, by the last two axes; of a vector 1
        and its length. Empty where scales do not follow the width.

        UserError if the model cannot be built at its base width.
        """
        if not self.config.mup_base_dim:
            return {}
        try:
            with torch.device("meta"):  # shapes are enough: nothing is allocated
                base = LanguageModel(replace(self.config, dim=self.config.mup_base_dim))
                base.set_progress(0.0)
        except UserError as error:
            raise UserError(f"model.mup_base_dim: no model of that width: {error}") from None
        small = {name: _fans(p) for name, p in base.named_parameters()}
        large = {name: _fans(p) for name, p in self.named_parameters()}
        return {name: (i / small[name][0], o / small[name][1]) for name, (i, o) in large.items()}

    def _named_components(self) -> Iterator[tuple[str, Component]]:
        """`components()` by their names in `named_modules()`."""
        own = {id(module): name for name, module in self.named_modules()}
        return ((own[id(component)], component) for _, component in self.components())

    def parameters_by_component(self) -> Mapping[str, int]:
        """Parameters in closed form; a tied head counts with the embedding."""
        table = self.vocab_size * self.config.dim
        head = (0 if self.config.tied else table) + self.config.head_bias * self.vocab_size
        count = Counter({"embedding": table, "head": head})
        for name, component in self.components():
            count[name] += component.parameter_count()
        return {name: count[name] for name in COMPONENTS}

    def flops_by_component(self, T: int) -> Mapping[str, int]:
        """FLOPs of one sequence's forward; looking up the embedding multiplies nothing."""
        count = Counter({"head": 2 * T * self.config.dim * self.vocab_size})
        for name, component in self.components():
            count[name] += component.flops(T)
        return {name: count[name] for name in COMPONENTS}

    def flops(self, T: int) -> int:
        """FLOPs of one sequence's forward, 2 a multiply-add; training takes three times that."""
        return sum(self.flops_by_component(T).values())

    def state_bytes(self, T: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes one sequence keeps for decoding after T tokens: every mixer's, and the counter."""
        kept = sum(b.temporal.state_bytes(T, dtype) + b.feature.state_bytes(T, dtype) for b in self.layers())
        return kept + torch.int64.itemsize


def _run(block: Block, x: Tensor, segment: Tensor | None, carry: dict[str, Tensor]) -> Any:
    """A block without states on a copy of the carry, so that a second run finds it as the first did."""
    carry = dict(carry)
    x, _ = block(x, None, segment=segment, carry=carry)
    return x, carry


def _fans(parameter: Tensor) -> tuple[int, int]:
    """Fan-in and fan-out; a vector is read by a constant."""
    return (1, parameter.numel()) if parameter.ndim < 2 else (parameter.shape[-1], parameter.shape[-2])


def build_model(config: ModelConfig | Mapping[str, Any] | str | PathLike[str], **knobs: Any) -> LanguageModel:
    """A freshly initialised model, from a config, a mapping of its keys, the name of a preset ("griffin"), or
    the path of a TOML file.

    knobs: keys of ModelConfig in place of those of the source, such as `dim=128`. Draws from torch's global
    generator. Raises UserError for what does not fit.
    """
    checked = model_config(config, **knobs)
    try:
        return LanguageModel(checked)
    except (RuntimeError, MemoryError) as error:
        # torch says of a size beyond 2**63 bytes that computing it overflowed.
        too_large = any(word in str(error) for word in ("memory", "overflow"))
        if not too_large and not isinstance(error, MemoryError):
            raise
        raise UserError(
            f"a model of width {checked.dim} and depth {checked.depth} does not fit in memory; "
            "choose a smaller model.dim or model.depth"
        ) from None
