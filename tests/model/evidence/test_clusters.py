"""Spectral clustering on arrays: planted domains, graphs in parts, copies of cells, seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from scmmgan.model.evidence import clusters


def domains(n: int = 600, *, distance: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells of five domains of unequal size in fifty dimensions, and their domains."""
    rng = np.random.default_rng(seed)
    domain = rng.choice(5, size=n, p=[0.3, 0.25, 0.2, 0.15, 0.1])
    x = distance * rng.normal(size=(5, 50))[domain] + rng.normal(size=(n, 50))
    return x.astype(np.float32), domain


@pytest.mark.parametrize("distance", [1.0, 30.0])
def test_planted_domains(distance: float):
    """Touching ones, and ones so far apart that the graph falls into five parts."""
    x, domain = domains(distance=distance)
    label = clusters.spectral(x, 5)
    assert adjusted_rand_score(domain, label) > 0.98
    # the largest first
    assert (np.diff(np.bincount(label)) <= 0).all()


def test_domains_that_only_the_graph_shows():
    """Two rings in each other: k-means on the cells themselves finds nothing."""
    rng = np.random.default_rng(0)
    domain, angle = np.repeat([0, 1], 300), rng.uniform(0, 2 * np.pi, 600)
    x = (1 + 2 * domain)[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]) + 0.1 * rng.normal(size=(600, 2))
    assert adjusted_rand_score(domain, clusters.spectral(x, 2)) == 1


def test_against_scikit_learn():
    """The same partition as its SpectralClustering on the same affinity."""
    for seed in range(3):
        x, _ = domains(400, distance=0.6, seed=seed)
        affinity = clusters.neighbor_graph(x, 15)
        reference = SpectralClustering(4, affinity="precomputed", random_state=0).fit_predict(affinity)
        assert adjusted_rand_score(reference, clusters.spectral(x, 4)) > 0.95


def test_affinity():
    x = np.array([[0.0], [1.0], [2.5], [10.0]])
    graph = clusters.neighbor_graph(x, 1).toarray()
    # 0 and 1 are each other's nearest, 1 is 2's and 2 is 3's nearest
    expected = np.zeros((4, 4))
    expected[0, 1], expected[1, 2], expected[2, 3] = 1, 0.5, 0.5
    np.testing.assert_allclose(graph, expected + expected.T)


def test_parts_of_the_graph_are_joined_by_single_edges():
    x, domain = domains(distance=30.0)
    graph = clusters.neighbor_graph(x, 15)
    assert connected_components(graph, directed=False)[0] == 1
    assert (graph != graph.T).nnz == 0
    rows, columns = graph.nonzero()
    between = domain[rows] != domain[columns]
    assert 4 <= between.sum() / 2 <= 5
    # fewer clusters than parts: whole parts are put together
    label = clusters.spectral(x, 3)
    assert all(len(np.unique(label[domain == d])) == 1 for d in range(5))


def test_leading_vectors_are_eigenvectors_of_the_random_walk():
    x, _ = domains(200, distance=0.5)
    affinity = clusters.neighbor_graph(x, 10)
    vectors = clusters.leading_vectors(affinity, 4)
    dense = affinity.toarray().astype(np.float64)
    walk = dense / dense.sum(1, keepdims=True)
    values = np.sort(np.linalg.eigvals(walk).real)[::-1][:4]
    np.testing.assert_allclose(walk @ vectors, vectors * values, atol=1e-7)
    assert np.ptp(vectors[:, 0]) < 1e-8


def test_a_thin_curve_falls_back_on_a_factorisation(monkeypatch: pytest.MonkeyPatch):
    """Hardly a gap below 1: the same vectors, whichever way they were found."""
    t = np.linspace(0, 1, 1_000)
    x = np.column_stack([np.cos(9 * t), np.sin(9 * t), 8 * t]).astype(np.float32)
    graph = clusters.neighbor_graph(x, 15)
    by_lanczos = clusters.leading_vectors(graph, 4)
    monkeypatch.setattr(clusters, "LANCZOS_ROUNDS", 1)
    by_factors = clusters.leading_vectors(graph, 4)
    signs = np.sign((by_lanczos * by_factors).sum(0))
    np.testing.assert_allclose(by_factors * signs, by_lanczos, atol=1e-3 * np.abs(by_lanczos).max())
    assert not np.array_equal(by_factors, by_lanczos)
    # pieces of the curve, one after the other
    label = clusters.spectral(x, 4)
    assert (np.diff(label) != 0).sum() == 3


def test_copies_of_cells():
    x = np.repeat(np.eye(6, dtype=np.float32) * [1, 2, 3, 4, 5, 6], 20, axis=0)
    label = clusters.spectral(x, 6)
    assert adjusted_rand_score(np.repeat(np.arange(6), 20), label) == 1


def test_same_seed_same_bits():
    x, _ = domains(distance=0.4)
    before = np.random.get_state()[1].copy()
    first = clusters.leading_vectors(clusters.neighbor_graph(x, 15), 5, random_state=3)
    with threadpool_limits(2):
        second = clusters.leading_vectors(clusters.neighbor_graph(x, 15), 5, random_state=3)
        np.testing.assert_array_equal(clusters.spectral(x, 5, random_state=3), clusters.spectral(x, 5, random_state=3))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_large_graphs_stay_sparse():
    """3,000 cells: no array of cells × cells on the way."""
    import tracemalloc

    x, domain = domains(3_000)
    tracemalloc.start()
    label = clusters.spectral(x, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert adjusted_rand_score(domain, label) > 0.98
    assert peak < 3_000**2 * 8 / 4
