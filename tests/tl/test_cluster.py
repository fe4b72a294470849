"""`tl.cluster`: planted domains, graphs in parts, copies of cells, seeds, slots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

import scmmgan as smm
from scmmgan.data import fingerprint as _fingerprint
from scmmgan.data import record as _record
from scmmgan.model.evidence import clusters

pytestmark = pytest.mark.usefixtures("few_tables_throughout")


def domains(n: int = 600, *, distance: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells of five domains of unequal size in fifty dimensions, and their domains."""
    rng = np.random.default_rng(seed)
    domain = rng.choice(5, size=n, p=[0.3, 0.25, 0.2, 0.15, 0.1])
    x = distance * rng.normal(size=(5, 50))[domain] + rng.normal(size=(n, 50))
    return x.astype(np.float32), domain


# --- arrays ------------------------------------------------------------------------------------------------------


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


# --- MuData ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clustered(small_coupled: md.MuData) -> md.MuData:
    smm.tl.cluster(small_coupled, "rna", "protein", n_clusters=4)
    return small_coupled


def test_populations_of_the_toy(aligned_toy: md.MuData):
    smm.tl.cluster(aligned_toy, "rna", "protein", n_clusters=5)
    obs = aligned_toy["rna"].obs
    assert adjusted_rand_score(obs["cell_type"], obs["scmmgan_cluster"]) > 0.8


def test_labels(clustered: md.MuData):
    labels = clustered["rna"].obs["scmmgan_cluster"]
    assert isinstance(labels.dtype, pd.CategoricalDtype)
    assert labels.cat.categories.tolist() == ["0", "1", "2", "3"]
    assert labels.value_counts(sort=False).is_monotonic_decreasing
    assert not labels.isna().any()
    # the mapped cells, not the measured ones: the block of the target
    widths = smm.get.model(clustered).aligner.widths
    mapped = clustered["rna"].obsm["X_scmmgan"][:, widths["rna"] :]
    np.testing.assert_array_equal(labels.cat.codes, clusters.spectral(mapped, 4))


def test_only_its_own_slots_change(small_aligned: md.MuData, fingerprint: Callable[[md.MuData], dict[str, str]]):
    before = fingerprint(small_aligned)
    smm.tl.cluster(small_aligned, "protein", "rna", n_clusters=3)
    after = fingerprint(small_aligned)
    changed = {slot for slot in before | after if before.get(slot) != after.get(slot)}
    assert changed == {"protein.obs[scmmgan_cluster]", ".uns[scmmgan]"}


def test_again_and_aligned_again(clustered: md.MuData):
    first = clustered["rna"].obs["scmmgan_cluster"].copy()
    smm.tl.cluster(clustered, "rna", "protein", n_clusters=4, random_state=0)
    pd.testing.assert_series_equal(clustered["rna"].obs["scmmgan_cluster"], first)
    smm.tl.cluster(clustered, "rna", "protein", n_clusters=2, n_neighbors=30)
    assert clustered["rna"].obs["scmmgan_cluster"].nunique() == 2
    smm.tl.align(clustered, links="gene", method="coupling", progress_bar=False)
    assert "scmmgan_cluster" not in clustered["rna"].obs


@pytest.mark.parametrize("fmt", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_round_trip(clustered: md.MuData, fmt: str, tmp_path: Path):
    if fmt == "h5mu":
        clustered.write(tmp_path / "x.h5mu")
        back = md.read(tmp_path / "x.h5mu")
    else:
        clustered.write_zarr(tmp_path / "x.zarr")
        back = md.read_zarr(tmp_path / "x.zarr")
    pd.testing.assert_series_equal(back["rna"].obs["scmmgan_cluster"], clustered["rna"].obs["scmmgan_cluster"])
    smm.tl.cluster(back, "rna", "protein", n_clusters=4)
    pd.testing.assert_series_equal(back["rna"].obs["scmmgan_cluster"], clustered["rna"].obs["scmmgan_cluster"])


def test_three_modalities_name_the_target(three_aligned: md.MuData):
    smm.tl.cluster(three_aligned, "rna", "atac", n_clusters=3, key="mine")
    smm.tl.cluster(three_aligned, "rna", "protein", n_clusters=2, key="mine")
    assert three_aligned["rna"].obs["mine_cluster_atac"].nunique() == 3
    assert three_aligned["rna"].obs["mine_cluster_protein"].nunique() == 2


def test_drawn_in_space(clustered: md.MuData):
    clustered["rna"].obsm["spatial"] = np.random.default_rng(0).random((120, 2))
    axes = smm.pl.spatial_map(clustered, "scmmgan_cluster", source="rna", target="protein", show=False)
    assert [text.get_text() for text in axes[0, 1].get_legend().get_texts()] == ["0", "1", "2", "3"]
    spots = axes[0, 0].collections[0]
    spots.update_scalarmappable()
    labels = clustered["rna"].obs["scmmgan_cluster"]
    colors = pd.Series([to_hex(face) for face in spots.get_facecolors()], index=labels.index)
    assert colors.groupby(labels, observed=True).nunique().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("names", "arguments", "error", "message"),
    [
        (["rna", "protein"], {"n_clusters": 1}, ValueError, "`n_clusters` must be at least 2"),
        (["rna", "protein"], {"n_clusters": 120}, ValueError, "at most 119"),
        (["rna", "protein"], {"n_clusters": 2.5}, TypeError, "`n_clusters` must be a whole number"),
        (["rna", "protein"], {"n_clusters": 3, "n_neighbors": 1}, ValueError, "`n_neighbors` must be at least 2"),
        (["rna", "protein"], {"n_clusters": 3, "random_state": -1}, ValueError, "`random_state` must be at least 0"),
        (["rna", "rna"], {"n_clusters": 3}, ValueError, "both 'rna'"),
        (["rna", "atac"], {"n_clusters": 3}, KeyError, r"No modality 'atac'.*'rna', 'protein'"),
        (["rna", "protein"], {"n_clusters": 3, "key": "other"}, KeyError, r"No alignment 'other'.*tl\.align"),
    ],
)
def test_errors(small_aligned: md.MuData, names: list[str], arguments: dict[str, Any], error: type, message: str):
    with pytest.raises(error, match=message):
        smm.tl.cluster(small_aligned, *names, **arguments)
    assert "scmmgan_cluster" not in small_aligned["rna"].obs


def test_copies_and_a_users_own_column(small_aligned: md.MuData):
    small_aligned["rna"].obs["scmmgan_cluster"] = "mine"
    with pytest.raises(ValueError, match="'scmmgan_cluster' already"):
        smm.tl.cluster(small_aligned, "rna", "protein", n_clusters=3)
    assert (small_aligned["rna"].obs["scmmgan_cluster"] == "mine").all()
    del small_aligned["rna"].obs["scmmgan_cluster"]
    rna, record = small_aligned["rna"], small_aligned.uns["scmmgan"]
    rna.obsm["X_scmmgan"] = np.repeat(rna.obsm["X_scmmgan"][:2], 60, axis=0)
    with pytest.raises(ValueError, match=r"119 of 120 cells of 'rna'.* have another embedding"):
        smm.tl.cluster(small_aligned, "rna", "protein", n_clusters=3)
    # copies that an alignment made itself
    cells = _fingerprint.cell_hashes(rna.obs_names, rna.obsm["X_scmmgan"])
    made = {**record["fingerprint"], "rna": {**record["fingerprint"]["rna"], "cells": cells}}
    small_aligned.uns["scmmgan"] = _record.sealed({"fingerprint": made}, record)
    with pytest.raises(ValueError, match="mapped cells of 'rna' are copies of 2 cells: no 3 clusters"):
        smm.tl.cluster(small_aligned, "rna", "protein", n_clusters=3)
