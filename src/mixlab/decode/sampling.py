"""From logits to a token: temperature, top-k, top-p."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor

from mixlab.errors import RunFailed, UserError, check_number


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise UserError, naming the setting, unless temperature >= 0, top_k >= 1 and 0 < top_p <= 1."""
    check_number("temperature", temperature)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature {temperature} is out of range: 0 (always the likeliest token) or more")
    if top_k is not None:
        check_number("top-k", top_k, Integral)
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k {top_k} is out of range: 1 or more tokens to choose from")
    if top_p is not None:
        check_number("top-p", top_p)
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top-p {top_p} is out of range: more than 0, at most 1")


def sample_next(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token id a row, (B,) int64, from unnormalised log-probabilities `logits` (B, V).

    temperature: divides the logits; 0 takes the likeliest token. top_k: keep the k likeliest.
    top_p: of those, keep the smallest set whose probabilities sum to at least p (nucleus sampling, Holtzman
    et al. 2020); at least one token is always kept. Among equals the lower id comes first, everywhere.
    Raises UserError for settings out of range, RunFailed when a row holds NaN, +inf or nothing possible.
    """
    check_sampling(temperature, top_k, top_p)
    best = logits.amax(-1, keepdim=True)  # (B, 1)
    if not all(map(math.isfinite, best.flatten().tolist())):  # a NaN anywhere is the largest of its row
        raise RunFailed("the model's next-token scores are not finite; its weights may have diverged")
    if temperature == 0:
        return logits.argmax(-1)  # of equals, the first
    logits, best = logits.double(), best.double()
    # The likeliest token is moved to 0 first: a tiny temperature sends the rest to -inf and none to NaN.
    scaled = (logits - best) / temperature
    if top_k is not None or (top_p is not None and top_p < 1):
        scaled = truncate(scaled, top_k, top_p)
    return torch.multinomial(scaled.softmax(-1), 1, generator=generator).squeeze(-1)


def truncate(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """`logits` (B, V) with -inf for every token that top-k and then top-p leave out."""
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        keep[..., top_k:] = False
    if top_p is not None and top_p < 1:
        chance = ordered.masked_fill(~keep, -math.inf).softmax(-1)
        # A token stays while what stands before it has not reached p: the one that crosses p is included.
        keep &= (chance.cumsum(-1) - chance) < top_p
        keep[..., 0] = True
    return logits.masked_fill(~torch.empty_like(keep).scatter(-1, ids, keep), -math.inf)
