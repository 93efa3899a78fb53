"""Temporal mixing: between positions, never from a later to an earlier one."""

from mixlab.parts.temporal import attention, recurrent, window

__all__ = ["attention", "recurrent", "window"]
