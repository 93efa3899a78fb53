"""Sampling and streaming generation from any scorer, neural or counted."""

from __future__ import annotations

from mixlab.decode.decoder import check_precision, decoder, precision
from mixlab.decode.generate import generate
from mixlab.decode.sampling import check_sampling, sample_next
from mixlab.decode.text import stream_text

__all__ = [
    "check_precision",
    "check_sampling",
    "decoder",
    "generate",
    "precision",
    "sample_next",
    "stream_text",
]
