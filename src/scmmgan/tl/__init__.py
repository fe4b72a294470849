"""Tools: alignment of modalities."""

from __future__ import annotations

from ._align import align

__all__ = ["align"]
