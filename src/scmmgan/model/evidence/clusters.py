"""Spectral clustering on the kNN graph of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import LANCZOS_ROUNDS
from scmmgan.model.space.diffusion import bridges, nearest_neighbors


def spectral(x: np.ndarray, n_clusters: int, *, n_neighbors: int = 15, random_state: int = 0) -> np.ndarray:
    """Labels (n,) of normalised-cut clusters of the rows of `x`, 0 for the largest.

    Leading eigenvectors by Lanczos on the sparse graph, without scikit-learn's factorisation of it, then its k-means.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    affinity = neighbor_graph(x, n_neighbors, random_state=random_state)
    vectors = leading_vectors(affinity, n_clusters, random_state=random_state)
    # one thread: the order in which threads add up decides the last bit
    with threadpool_limits(1, user_api="openmp"):
        label = KMeans(n_clusters, n_init=10, random_state=random_state).fit(vectors).labels_
    sizes = np.bincount(label)
    return np.argsort(np.argsort(-sizes, kind="stable"))[label]


def neighbor_graph(x: np.ndarray, n_neighbors: int, *, random_state: int = 0) -> sp.csr_matrix:
    """Affinity n × n: 1 between mutual neighbours, .5 one-sided; components joined by single edges between near cells."""
    from scipy.sparse.csgraph import connected_components

    indices, _ = nearest_neighbors(x, n_neighbors, random_state=random_state)
    rows = np.repeat(np.arange(len(x)), indices.shape[1])
    graph = sp.csr_matrix((np.full(indices.size, 0.5), (rows, indices.ravel())), shape=(len(x), len(x)))
    graph = graph + graph.T
    while (parts := connected_components(graph, directed=False))[0] > 1:
        edges = bridges(x, parts[1])
        edges.data[:] = 0.5
        graph = graph + edges
    return graph


def leading_vectors(affinity: sp.csr_matrix, k: int, *, random_state: int = 0) -> np.ndarray:
    """The k leading eigenvectors (n × k) of the random walk on a connected graph, the constant one first."""
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    n = affinity.shape[0]
    root = np.sqrt(np.asarray(affinity.sum(1)).ravel())
    walk = sp.csc_matrix(sp.diags(1 / root) @ affinity @ sp.diags(1 / root))
    start = np.random.default_rng(random_state).uniform(-1, 1, n)
    # a space wider than ARPACK's own choice: eigenvalues crowd below 1
    how: dict[str, Any] = {"v0": start, "ncv": min(n, max(4 * k, 60)), "tol": 1e-8}
    try:
        values, vectors = eigsh(walk, k, which="LA", maxiter=LANCZOS_ROUNDS, **how)
    except ArpackNoConvergence:
        # long thin graphs, with hardly a gap: these factorise cheaply
        values, vectors = eigsh(walk, k, which="LM", sigma=1 + 1e-4, **how)
    return vectors[:, np.argsort(-values)] / root[:, None]
