"""Tools: alignment of modalities, and its diagnosis."""

from __future__ import annotations

from ._align import align
from ._diagnose import diagnose
from ._place import place

__all__ = ["align", "diagnose", "place"]
