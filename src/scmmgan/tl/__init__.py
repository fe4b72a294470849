"""Tools: alignment of modalities, its diagnosis, clusters of mapped cells."""

from __future__ import annotations

from ._align import align
from ._cluster import cluster
from ._diagnose import diagnose

__all__ = ["align", "cluster", "diagnose"]
