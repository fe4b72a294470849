"""Split-conformal intervals for measured values around mapped ones, from known pairs."""

from __future__ import annotations

import numpy as np

from scmmgan.model.defaults import FOLDS


def least_pairs(coverage: float) -> int:
    """The fewest pairs whose intervals are finite: k with ⌈(k + 1) coverage⌉ ≤ k."""
    return int(np.ceil(coverage / (1 - coverage) - 1e-9))


def half_widths(residuals: np.ndarray, coverage: float) -> np.ndarray:
    """Split-conformal half-widths (g,) of absolute residuals (k × g): the ⌈(k + 1) coverage⌉-th smallest."""
    k = len(residuals)
    rank = int(np.ceil((k + 1) * coverage - 1e-9))
    if rank > k:
        return np.full(residuals.shape[1], np.inf)
    return np.partition(residuals, rank - 1, axis=0)[rank - 1]


def reached_coverage(residuals: np.ndarray, coverage: float, rng: np.random.Generator) -> np.ndarray:
    """Share (g,) of residuals inside intervals from the other four fifths, or from all others where those are too few."""
    k = len(residuals)
    folds = FOLDS if np.isfinite(half_widths(residuals[: k - -(-k // FOLDS)], coverage)).all() else k
    if not np.isfinite(half_widths(residuals[:-1], coverage)).all():
        return np.full(residuals.shape[1], np.nan)
    fold = rng.permutation(np.arange(k) % folds)
    inside = np.zeros(residuals.shape[1])
    for f in range(folds):
        inside += (residuals[fold == f] <= half_widths(residuals[fold != f], coverage)).sum(0)
    return inside / len(residuals)
