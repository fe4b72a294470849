"""Preprocessing: counts to normalised values, smoothing, links between features."""

from __future__ import annotations

from scmmgan.pp._link_features import link_features
from scmmgan.pp._normalize import normalize
from scmmgan.pp._smooth import smooth

__all__ = ["link_features", "normalize", "smooth"]
