"""Feature mixing: between the channels of one position."""

from mixlab.parts.feature import channel_mix, gated, mlp, structured

__all__ = ["channel_mix", "gated", "mlp", "structured"]
