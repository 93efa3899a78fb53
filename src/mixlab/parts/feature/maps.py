"""Linear maps stored as products of smaller ones (Wei et al. 2024), and the dense one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixlab.parts.contract import init_linear

DENSE_STD = 0.02
"""Of a dense map's weights (GPT-2, and the paper's own)."""


class Map(nn.Module):
    """(..., N) -> (..., M) without a bias; in training perhaps guided by a dense matrix.

    guide: W of o = alpha W x + (1 - alpha) U(V x), which is there only while it guides. It is
    no part of the model: evaluation leaves it out, and so does the state dict.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.guide: nn.Parameter | None
        self.register_parameter("guide", None)
        self.alpha = 0.0

    def reset(self, scale: float, std: float = DENSE_STD) -> None:
        """Draw the weights; `scale` multiplies the map as a whole. std: of a dense map's weights."""
        raise NotImplementedError

    def parameter_count(self) -> int:
        """Its weights, without a guide, in closed form."""
        raise NotImplementedError

    def multiply(self, x: Float[Tensor, "*B N"]) -> Float[Tensor, "*B M"]:
        """The map itself."""
        raise NotImplementedError

    @property
    def guided(self) -> bool:
        """Whether the next forward uses the guide."""
        return self.guide is not None and self.training

    def flops(self) -> int:
        """Of one vector: each weight multiplies and adds once."""
        return 2 * (self.parameter_count() + self.guided * self.inputs * self.outputs)

    def forward(self, x: Float[Tensor, "*B N"]) -> Float[Tensor, "*B M"]:
        """The map, while guided in part replaced by the guide."""
        y = self.multiply(x)
        if self.guide is None or not self.guided:
            return y
        return torch.lerp(y, F.linear(x, self.guide), self.alpha)

    @torch.no_grad()
    def start_guide(self) -> None:
        """W = the product, so that the output is the same whatever alpha."""
        weight = next(self.parameters())
        product = self.multiply(torch.eye(self.inputs, device=weight.device, dtype=weight.dtype)).T
        self.guide = nn.Parameter(product.contiguous())

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}guide", None)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        _, _, missing, _, _ = rest
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if f"{prefix}guide" in missing:
            missing.remove(f"{prefix}guide")


class DenseMap(Map):
    """W."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.whole = nn.Linear(inputs, outputs, bias=False)

    def reset(self, scale: float, std: float = DENSE_STD) -> None:
        """N(0, std)."""
        init_linear(self.whole, std * scale)

    def parameter_count(self) -> int:
        """M N."""
        return self.inputs * self.outputs

    def multiply(self, x: Float[Tensor, "*B N"]) -> Float[Tensor, "*B M"]:
        """W x."""
        return self.whole(x)


class LowRankMap(Map):
    """U V, with V (R, N) and U (M, R)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs)
        self.rank = rank
        self.v = nn.Linear(inputs, rank, bias=False)
        self.u = nn.Linear(rank, outputs, bias=False)

    @torch.no_grad()
    def reset(self, scale: float, std: float = DENSE_STD) -> None:
        """The best approximation of rank R to a dense draw, its singular values shared evenly by U and V."""
        dense = torch.empty(self.outputs, self.inputs, device=self.u.weight.device)
        nn.init.normal_(dense, std=std * scale)
        left, values, right = torch.linalg.svd(dense, full_matrices=False)
        root = values[: self.rank].sqrt()
        self.u.weight.copy_(left[:, : self.rank] * root)
        self.v.weight.copy_(root[:, None] * right[: self.rank])

    def parameter_count(self) -> int:
        """(N + M) R."""
        return (self.inputs + self.outputs) * self.rank

    def multiply(self, x: Float[Tensor, "*B N"]) -> Float[Tensor, "*B M"]:
        """U (V x)."""
        return self.u(self.v(x))


class BlockDiagonal(nn.Module):
    """B independent maps of consecutive channels: (..., B n) -> (..., B m), weight (B, m, n)."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, outputs // blocks, inputs // blocks))

    @torch.no_grad()
    def reset(self, scale: float) -> None:
        """Each block orthogonal, times `scale`."""
        for block in self.weight:
            nn.init.orthogonal_(block, scale)

    def forward(self, x: Float[Tensor, "*B N"]) -> Float[Tensor, "*B M"]:
        """A product a block: few blocks, so that on a CPU a loop beats one batched product, whose operands
        would be copied into its order and back."""
        w = self.weight
        pieces = zip(x.chunk(w.shape[0], -1), w.unbind(0), strict=True)  # (..., n) and (m, n)
        return torch.cat([F.linear(piece, block) for piece, block in pieces], -1)


class BlockDenseMap(Map):
    """U V, with V block-diagonal (R, N) and U dense (M, R)."""

    def __init__(self, inputs: int, outputs: int, rank: int, blocks: int) -> None:
        super().__init__(inputs, outputs)
        self.rank, self.blocks = rank, blocks
        self.v = BlockDiagonal(inputs, rank, blocks)
        self.u = nn.Linear(rank, outputs, bias=False)

    def reset(self, scale: float, std: float = DENSE_STD) -> None:
        """Both orthogonal, at any width."""
        self.v.reset(1.0)
        nn.init.orthogonal_(self.u.weight, scale)

    def parameter_count(self) -> int:
        """R (M + N / B)."""
        return self.rank * (self.outputs + self.inputs // self.blocks)

    def multiply(self, x: Float[Tensor, "*B N"]) -> Float[Tensor, "*B M"]:
        """U (V x)."""
        return self.u(self.v(x))


class BlockShuffleMap(Map):
    """f^-1 U f V, both block-diagonal; f sends member r of block b to member b of row r."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__(inputs, outputs)
        self.blocks, self.waist = blocks, min(inputs, outputs)
        self.v = BlockDiagonal(inputs, self.waist, blocks)
        self.u = BlockDiagonal(self.waist, outputs, blocks)

    def reset(self, scale: float, std: float = DENSE_STD) -> None:
        """Both orthogonal, at any width."""
        self.v.reset(1.0)
        self.u.reset(scale)

    def parameter_count(self) -> int:
        """min(N, M) (N + M) / B."""
        return self.waist * (self.inputs + self.outputs) // self.blocks

    def multiply(self, x: Float[Tensor, "*B N"]) -> Float[Tensor, "*B M"]:
        """Every block of U reads from every block of V: channel i of V's output goes to block i mod B."""
        h = self.v(x).unflatten(-1, (-1, self.blocks)).transpose(-1, -2).flatten(-2)  # f
        return self.u(h).unflatten(-1, (self.blocks, -1)).transpose(-1, -2).flatten(-2)  # f^-1
