"""Partners of cells in the joint embedding, how far they are to be trusted, and what is carried over by them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import RIVAL_CHANCE, UNMATCHED_HALF, VOTES
from scmmgan.model.space.diffusion import nearest_neighbors


def closeness(x: np.ndarray, y: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """1 − d² / mean squared distance of the cell to all cells of y, in [0, 1] (n × k): 0 is a cell drawn at random."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean = y.mean(0)
    null = ((x - mean) ** 2).sum(1) + ((y - mean) ** 2).sum() / len(y)
    return np.clip(1 - distances**2 / np.maximum(null, 1e-300)[:, None], 0, 1)


def own_neighbors(x: np.ndarray, *, random_state: int = 0) -> sp.csr_matrix:
    """Row-stochastic n × n sparse matrix: each cell and its 14 nearest ones count alike."""
    n = len(x)
    if n == 1:
        return sp.identity(1, format="csr")
    indices, _ = nearest_neighbors(x, VOTES - 1, random_state=random_state)
    columns = np.hstack([np.arange(n)[:, None], indices])
    return _rows(columns, np.full(columns.shape, 1 / columns.shape[1]), n)


def assigned(unmatched: np.ndarray, ambiguous: np.ndarray, neighbors: sp.csr_matrix) -> np.ndarray:
    """Share of each cell (n,) that has a partner at all and the right one, from flags averaged over its neighbours.

    Unmatched mass u counts as u² / (u² + .1²); an ambiguous cell is half assigned.
    """
    orphan = unmatched.astype(np.float64) ** 2
    orphan /= orphan + UNMATCHED_HALF**2
    return (1 - neighbors @ orphan) * (1 - RIVAL_CHANCE * (neighbors @ ambiguous.astype(np.float64)))


def partners(indices: np.ndarray, weights: np.ndarray, n_targets: int) -> sp.csr_matrix:
    """Weights (n × k) of partners as a sparse matrix n × target cells, columns in order."""
    found = _rows(indices, weights, n_targets)
    found.sort_indices()
    return found.astype(np.float32)


def _rows(columns: np.ndarray, values: np.ndarray, width: int) -> sp.csr_matrix:
    indptr = np.arange(0, columns.size + 1, columns.shape[1])
    return sp.csr_matrix((values.ravel(), columns.ravel(), indptr), shape=(len(columns), width))


@dataclass(frozen=True)
class Votes:
    """Who votes for a cell: its 15 partners (n × 15 row numbers), and those of its neighbours (sparse n × n)."""

    partners: np.ndarray
    neighbors: sp.csr_matrix

    def average(self, values: np.ndarray) -> np.ndarray:
        """Mean (n × d) of what the partners have (target cells × d)."""
        total = np.zeros((len(self.partners), values.shape[1]))
        for column in self.partners.T:
            total += values[column]
        return np.asarray(self.neighbors @ (total / self.partners.shape[1]))


def carry_labels(votes: Votes, codes: np.ndarray, n_labels: int) -> np.ndarray:
    """Label shares (n × labels) of the votes, from codes (target cells,), -1 unknown; all 0 where no vote is known."""
    known = codes >= 0
    ballots = np.zeros((len(codes), n_labels))
    ballots[known, codes[known]] = 1
    shares = votes.average(ballots)
    return shares / np.maximum(shares.sum(1, keepdims=True), 1e-300)


def carry_values(votes: Votes, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (n,) of the votes, from values (target cells,), NaN unknown; NaN where no vote is known."""
    known = np.isfinite(values)
    centre = values[known].mean() if known.any() else 0.0
    # about the mean, so that squares lose no digits
    away = np.where(known, values - centre, 0.0)
    moments = votes.average(np.stack([known.astype(np.float64), away, away**2], axis=1))
    share = np.where(moments[:, 0] > 0, moments[:, 0], np.nan)
    mean, square = moments[:, 1] / share, moments[:, 2] / share
    return centre + mean, np.sqrt(np.maximum(square - mean**2, 0))
