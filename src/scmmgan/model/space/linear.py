"""Weighted ridge regression: the linear part of a map from cells to their anchors (METHOD §4, skip)."""

from __future__ import annotations

import numpy as np

OUTLINE = 0.1  # ridge penalty, of the mean variance (benchmarks/accuracy.md)


def ridge(x: np.ndarray, y: np.ndarray, share: np.ndarray, *, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Linear map (weight p' × p, bias) of least squares from rows of x to those of y, weighted by `share` (n,).

    `penalty`: of the mean variance of x.
    """
    x, y, share = x.astype(np.float64), y.astype(np.float64), share.astype(np.float64)
    share = _shares(share)
    mean_x, mean_y = share @ x, share @ y
    centred = x - mean_x
    weighted = centred.T * share
    gram = weighted @ centred
    # cells that are all alike have no line
    gram += max(penalty * np.trace(gram) / len(gram), 1e-12) * np.eye(len(gram))
    weight = np.linalg.solve(gram, weighted @ (y - mean_y)).T
    return weight, mean_y - weight @ mean_x


def straightened(anchors: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Anchors (n × p') moved to their regression on the cells (n × p), in each dimension by the share R² it explains.

    The outline of a map is linear, and well determined; what a line does not tell keeps its spread. R² is adjusted for
    the p features, and weighted by `weight` (n,).
    """
    rest, left, variance = _off_the_line(anchors, x, weight)
    n, p = x.shape
    left = left * (n - 1) / max(n - p - 1, 1e-12)
    # where nothing varies there is nothing to explain
    unexplained = np.where(variance > 1e-12, left / np.maximum(variance, 1e-12), 1)
    return anchors - (1 - np.minimum(unexplained, 1)) * rest


def unexplained(anchors: np.ndarray, x: np.ndarray, weight: np.ndarray) -> float:
    """Share of the variance of anchors (n × p') that their regression on the cells (n × p) leaves, all dimensions together."""
    _, left, variance = _off_the_line(anchors, x, weight)
    # where nothing varies there is nothing to explain
    return float(left.sum() / variance.sum()) if variance.sum() > 1e-12 else 1.0


def _off_the_line(anchors: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the regression of anchors on cells leaves (n × p'), its mean square and the anchors' variance (p',)."""
    slope, intercept = ridge(x, anchors, weight, penalty=OUTLINE)
    rest, share = anchors - (x @ slope.T + intercept), _shares(weight)
    return rest, share @ rest**2, share @ (anchors - share @ anchors) ** 2


def _shares(weight: np.ndarray) -> np.ndarray:
    """Weights that sum to 1; alike where all are 0: no cell matched, and the anchors are still the best guess."""
    return weight / weight.sum() if weight.any() else np.full(len(weight), 1 / len(weight))
