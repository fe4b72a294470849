"""Do trainings that start elsewhere end in the same map? Modes are found, never averaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.coupling.transport import barycentres, shares
from scmmgan.model.defaults import SAME_MAP


def map_similarity(images: list[np.ndarray]) -> np.ndarray:
    """Similarity (runs × runs) of centred images of the same cells: 1 the same, about 0 unrelated, negative mirrored."""
    stacked = np.stack([v.astype(np.float64) for v in images])
    product = stacked @ stacked.T
    squares = np.diag(product)
    return 2 * product / np.maximum(squares[:, None] + squares[None], 1e-12)


def modes(similarity: np.ndarray, *, least: float = SAME_MAP) -> np.ndarray:
    """Mode (runs,) of each run, the largest one 0: average linkage, in which runs agree at least so much."""
    from sklearn.cluster import AgglomerativeClustering

    search = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - least
    )
    found = search.fit_predict(1 - similarity)
    rank = np.argsort(np.argsort(-np.bincount(found), kind="stable"), kind="stable")
    return rank[found]


def follow(coupling: Coupling, plan: np.ndarray, own: Landmarks, x: np.ndarray) -> Coupling:
    """The coupling with another plan (m × m') between landmarks `own` and its own; `x`: target cells."""
    cells = shares(plan)[own.label]
    anchors = barycentres(cells, coupling.landmarks.mean(x)).astype(np.float32)
    anchors[coupling.known] = coupling.anchors[coupling.known]
    return replace(coupling, plan=sp.csr_matrix(cells.astype(np.float32)), anchors=anchors)
