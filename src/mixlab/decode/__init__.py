"""Sampling and streaming generation from any scorer, neural or counted."""

from __future__ import annotations

from mixlab.decode.generate import generate
from mixlab.decode.sampling import check_sampling, sample_next
from mixlab.decode.text import stream_text

__all__ = ["check_sampling", "generate", "sample_next", "stream_text"]
