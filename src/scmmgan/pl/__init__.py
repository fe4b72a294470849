"""Pictures of an alignment, and of what follows from it."""

from __future__ import annotations

from scmmgan.pl._alignment import alignment
from scmmgan.pl._compare import compare
from scmmgan.pl._coordinates import coordinates
from scmmgan.pl._correlations import correlations
from scmmgan.pl._diagnosis import diagnosis
from scmmgan.pl._history import history
from scmmgan.pl._spatial_map import spatial_map
from scmmgan.pl._uncertainty import uncertainty

__all__ = ["alignment", "compare", "coordinates", "correlations", "diagnosis", "history", "spatial_map", "uncertainty"]
