"""Tools: alignment of modalities, its diagnosis and its uncertainty."""

from __future__ import annotations

from ._align import align
from ._diagnose import diagnose
from ._uncertainty import uncertainty

__all__ = ["align", "diagnose", "uncertainty"]
