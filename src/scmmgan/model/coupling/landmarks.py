"""Landmarks: k-means clusters that stand for the cells of a modality in couplings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import LANDMARKS
from scmmgan.model.space.linear import row_blocks, transposed_product


@dataclass(frozen=True)
class Landmarks:
    """k-means clusters of one modality: `label` (n,), `mass` (m,), `nodes` (m,) cell nearest each centroid."""

    label: np.ndarray
    mass: np.ndarray
    nodes: np.ndarray
    centroids: np.ndarray

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Cluster means (m × d) of cell values (n × d)."""
        n, m = len(self.label), len(self.mass)
        member = sp.csr_matrix((np.ones(n), self.label, np.arange(n + 1)), shape=(n, m))
        return transposed_product(member, values) / (self.mass * n)[:, None]


def find_landmarks(
    x: np.ndarray, *, n_landmarks: int = LANDMARKS, random_state: int = 0, labels: np.ndarray | None = None
) -> Landmarks:
    """At most n // 2 k-means clusters of a modality's cells, inside each label where there are `labels` (n,)."""
    from sklearn.neighbors import NearestNeighbors

    m = max(1, min(n_landmarks, len(x) // 2))
    groups = np.zeros(len(x), dtype=int) if labels is None else np.unique(labels, return_inverse=True)[1]
    label, found = np.empty(len(x), dtype=int), 0
    centroids: list[np.ndarray] = []
    nodes: list[np.ndarray] = []
    for group in range(groups.max() + 1):
        rows = np.flatnonzero(groups == group)
        share = max(1, round(m * len(rows) / len(x)))
        inside, centres = _clusters(x[rows], share, random_state)
        label[rows] = inside + found
        found += len(centres)
        centroids.append(centres)
        nearest = NearestNeighbors(n_neighbors=1).fit(x[rows]).kneighbors(centres, return_distance=False)[:, 0]
        nodes.append(rows[nearest])
    return Landmarks(label, np.bincount(label) / len(x), np.concatenate(nodes), np.vstack(centroids))


def _clusters(x: np.ndarray, m: int, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """At most m k-means clusters that are not empty: label of each cell, and centroids."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # one thread: the order in which threads add up decides the last bit
    with threadpool_limits(1, user_api="openmp"):
        rows = np.random.default_rng(random_state).permutation(len(x))[: max(100 * m, 5_000)]
        cells = np.asarray(x[rows], dtype=np.float64)
        # k-means warns when copies of cells leave fewer places than clusters
        m = min(m, len(np.unique(cells.round(5), axis=0)))
        means = KMeans(m, n_init=1, random_state=random_state).fit(cells)
        label = np.concatenate([means.predict(np.asarray(part, dtype=np.float64)) for _, part in row_blocks(x)])
    used, label = np.unique(label, return_inverse=True)
    return label, means.cluster_centers_[used]
