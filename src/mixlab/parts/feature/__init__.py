"""Feature mixing: between the channels of one position."""

from mixlab.parts.feature import gated, mlp

__all__ = ["gated", "mlp"]
