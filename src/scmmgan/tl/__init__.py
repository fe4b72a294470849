"""Tools: alignment of modalities, its diagnosis, correlations that it changes."""

from __future__ import annotations

from ._align import align
from ._correlations import correlations
from ._diagnose import diagnose

__all__ = ["align", "correlations", "diagnose"]
