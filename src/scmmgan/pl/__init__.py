"""Pictures of an alignment: training history, modalities before and after, features in space, placed cells, diagnosis."""

from __future__ import annotations

from scmmgan.pl._alignment import alignment
from scmmgan.pl._coordinates import coordinates
from scmmgan.pl._diagnosis import diagnosis
from scmmgan.pl._history import history
from scmmgan.pl._spatial_map import spatial_map

__all__ = ["alignment", "coordinates", "diagnosis", "history", "spatial_map"]
