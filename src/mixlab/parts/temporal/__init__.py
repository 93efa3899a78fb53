"""Temporal mixing: between positions, never from a later to an earlier one."""

from mixlab.parts.temporal import attention, gmlp, recurrent, rglru, rwkv4, rwkv7, window

__all__ = ["attention", "gmlp", "recurrent", "rglru", "rwkv4", "rwkv7", "window"]
