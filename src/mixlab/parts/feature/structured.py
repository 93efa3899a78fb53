"""Structured feed-forward networks: both projections as products of smaller maps (Wei et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mixlab.errors import UserError, near_divisors
from mixlab.parts.contract import Place, Split, Watched, register
from mixlab.parts.feature.maps import DENSE_STD, BlockDenseMap, BlockShuffleMap, DenseMap, LowRankMap, Map
from mixlab.parts.feature.mlp import FeatureMix, hidden_width

RANK_MULTIPLE = 4
"""Ranks are rounded to it, for whole vector registers."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all structures have. ratio: hidden width over D, 4 as in the paper. multiple: it is rounded to it.
    dense_first: whether the network's first block keeps a dense one, as in the paper. guidance: the part of
    training, from its start, in which dense matrices guide; 0.5 in the paper, 0 leaves it out.
    """

    ratio: float = 4.0
    multiple: int = 16
    dense_first: bool = True
    guidance: float = 0.0


class Structured(FeatureMix):
    """W2 gelu(W1 x), no biases, with structured W1 and W2."""

    paper = (
        "Wei et al. 2024, Building on Efficient Foundations: Effectively Training LLMs with Structured FFNs"
    )

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = hidden_width(self.dim, config.ratio, config.multiple)
        self.dense = config.dense_first and place.layer == 0
        if not 0 <= config.guidance <= 1:
            raise UserError(f"feed-forward: guidance={config.guidance} is out of range: a fraction, 0 to 1")
        sizes = (self.dim, self.hidden), (self.hidden, self.dim)
        self.up, self.down = (DenseMap(*s) if self.dense else self.map(*s) for s in sizes)

    def map(self, inputs: int, outputs: int) -> Map:
        """One structured projection."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """The map's own; what writes to the residual stream is divided by sqrt(2N), as in the other parts."""
        std = self.place.std(DENSE_STD)
        self.up.reset(1.0, std)
        self.down.reset(self.place.residual_scale, std)

    def parameter_count(self) -> int:
        """Both maps, without their guides."""
        return self.up.parameter_count() + self.down.parameter_count()

    def flops(self, T: int) -> int:
        """Every weight multiplies once a token."""
        return T * (self.up.flops() + self.down.flops())

    def set_progress(self, fraction: float) -> bool:
        """Fade the guides from all of the output to none, by a cosine; they come at 0 and never come back."""
        if self.dense or not self.config.guidance:
            return False
        guides = [map.guide is not None for map in (self.up, self.down)]
        for map in (self.up, self.down):
            map.alpha = guide_weight(fraction / self.config.guidance)
            if fraction == 0:
                map.start_guide()
            elif map.alpha == 0:
                map.guide = None
        return guides != [map.guide is not None for map in (self.up, self.down)]

    def mix(self, x: Float[Tensor, "B T D"], state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """FFN(x) = W2 gelu(W1 x)."""
        return self.down(F.gelu(self.up(x))), state

    def watched(self, x: Float[Tensor, "B T D"]) -> Mapping[Watched, Tensor]:
        """The hidden units."""
        return {"units": F.gelu(self.up(x))}

    def tensor_plan(self) -> Mapping[str, Split]:
        """A dense first layer splits by hidden units; a guided one stays whole, as its guides would need a
        second sum."""
        if self.dense:
            return {"up.whole": "column", "down.whole": "row"}
        return {} if self.up.guide is not None else self.structured_plan()

    def structured_plan(self) -> Mapping[str, Split]:
        """How the structured maps split."""
        return {}

    def structured_units(self) -> int:
        """What a split of the structured maps may not cut through."""
        return self.hidden

    def tensor_units(self) -> int:
        """Hidden units, or what the structure says, where anything is split."""
        return (self.hidden if self.dense else self.structured_units()) if self.tensor_plan() else 0


def guide_weight(fraction: float) -> float:
    """alpha after this fraction of the guidance: 1 at the start, 0 from its end on."""
    return 0.5 * (1 + math.cos(math.pi * fraction)) if fraction < 1 else 0.0


@register("feature", "low_rank")
class LowRank(Structured):
    """W = U V with a narrow waist of R."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Shared):
        """share: of a dense network's parameters; 5/16 gives R = D / 4, the paper's 32%, and 5/8 its 63%.
        rank: R itself; 0 takes it from share."""

        share: float = 5 / 16
        rank: int = 0

    def map(self, inputs: int, outputs: int) -> Map:
        """U V of one rank in both projections."""
        rank = self.config.rank or self._rank(self.config.share, blocks=1)
        if not 0 < rank <= self.dim:
            raise UserError(f"low_rank: rank {rank} is out of range: 1 to the width {self.dim}")
        return LowRankMap(inputs, outputs, rank)

    def structured_plan(self) -> Mapping[str, Split]:
        """Hidden units split: the waist before them is whole on every process, the sum over processes is made
        in the waist behind them, R numbers a token in place of D."""
        return {"up.v": "shared", "up.u": "column", "down.v": "row"}

    def _rank(self, share: float, blocks: int) -> int:
        """R at which the two projections hold `share` of the dense parameters 2 D F between them."""
        if not 0 < share <= 1:
            raise UserError(f"feed-forward: share={share} is out of range: above 0, to 1")
        both = (self.dim + self.hidden) * (1 + 1 / blocks)  # parameters a unit of R
        step = math.lcm(RANK_MULTIPLE, blocks)
        return max(step, round(2 * share * self.dim * self.hidden / both / step) * step)


@register("feature", "block_dense")
class BlockDense(LowRank):
    """W = U V with V block-diagonal."""

    @dataclass(frozen=True, kw_only=True)
    class Config(LowRank.Config):
        """blocks: B of the paper's S and L; its M and XL have 4. share, rank: as in low_rank."""

        blocks: int = 2

    def map(self, inputs: int, outputs: int) -> Map:
        """U V of one rank and one number of blocks in both projections."""
        blocks = self.config.blocks
        _check_blocks("block_dense", blocks, width=self.dim, hidden=self.hidden)
        rank = self.config.rank or self._rank(self.config.share, blocks)
        if rank < 1 or rank % blocks:
            raise UserError(f"block_dense: rank {rank} is not a multiple of {blocks} blocks")
        return BlockDenseMap(inputs, outputs, rank, blocks)

    def structured_plan(self) -> Mapping[str, Split]:
        """Whole blocks of the second projection, with the hidden units they read."""
        return {"up.v": "shared", "up.u": "column", "down.v": "column", "down.u": "row"}

    def structured_units(self) -> int:
        """Blocks."""
        return self.config.blocks


@register("feature", "block_shuffle")
class BlockShuffle(Structured):
    """W = f^-1 U f V with both block-diagonal and f a transposition of blocks and their members."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Shared):
        """blocks: B; 4 holds 5/16 of a dense network's parameters, the paper's 32%, and 2 its 63%."""

        blocks: int = 4

    def map(self, inputs: int, outputs: int) -> Map:
        """Two block-diagonal maps; the waist is the narrower side."""
        _check_blocks("block_shuffle", self.config.blocks, width=self.dim, hidden=self.hidden)
        return BlockShuffleMap(inputs, outputs, self.config.blocks)


def _check_blocks(name: str, blocks: int, **sizes: int) -> None:
    """UserError unless the blocks divide every size."""
    for what, size in sizes.items():
        if blocks < 1 or size % blocks:
            raise UserError(
                f"{name}: {blocks} blocks do not divide the {what} {size}; the nearest that do are "
                f"{near_divisors(size, blocks)}"
            )
