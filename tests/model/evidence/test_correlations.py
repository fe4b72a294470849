"""Correlations, limits and nulls against dense float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats
from scipy.spatial.distance import pdist

from scmmgan.model.evidence import correlations as cor
from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix
from scmmgan.model.space.transform import _graph_scores, decoder_of, fit_operator, fit_transform

AT = np.array([0, 3]), np.arange(1, 30)


def counts(n: int = 120, g: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(size=(n, 2)) @ rng.normal(size=(2, g)) * 0.7)
    return np.log1p(rng.poisson(rate)).astype(np.float32)


def smoothed(x: np.ndarray, kind: str) -> tuple[SmoothedMatrix | BatchedMatrix, np.ndarray]:
    """A matrix and the same dense, in float64."""
    if kind == "batched":
        rows = [np.arange(0, len(x), 2), np.arange(1, len(x), 2)]
        parts = [SmoothedMatrix(sp.csr_matrix(x[r]), fit_operator(x[r]), 2) for r in rows]
        matrix: SmoothedMatrix | BatchedMatrix = BatchedMatrix(parts, rows)
    else:
        matrix = SmoothedMatrix(sp.csr_matrix(x) if kind == "sparse" else x, fit_operator(x), 3)
    return matrix, matrix.columns(np.arange(x.shape[1])).astype(np.float64)


@pytest.mark.parametrize("kind", ["sparse", "dense", "batched"])
def test_measured_correlations_and_limits(kind: str):
    matrix, dense = smoothed(counts(), kind)
    by = cor.by_column(matrix)
    expected = np.corrcoef(dense.T)[np.ix_(*AT)]
    np.testing.assert_allclose(cor.correlate(by, *AT), expected, atol=1e-5)
    weights = cor.resampled(len(dense), np.random.default_rng(0))
    assert weights.sum(0) == pytest.approx(1)
    drawn = [np.repeat(dense, np.round(w * len(dense)).astype(int), axis=0) for w in weights.T]
    boot = np.array([np.corrcoef(d.T)[np.ix_(*AT)] for d in drawn])
    np.testing.assert_allclose(cor.limits(by, *AT, weights, True), np.quantile(boot, 0.95, axis=0), atol=1e-4)
    magnitude = np.quantile(np.abs(boot), 0.95, axis=0)
    np.testing.assert_allclose(cor.limits(by, *AT, weights, False), magnitude, atol=1e-4)


def test_decoded_correlations_and_limits():
    rng = np.random.default_rng(0)
    y, decoder = rng.normal(size=(80, 6)).astype(np.float32) * np.arange(1, 7), rng.normal(size=(6, 30))
    dense = y.astype(float) @ decoder
    expected = np.corrcoef(dense.T)[np.ix_(*AT)]
    np.testing.assert_allclose(cor.correlate_decoded(y, decoder, *AT), expected, atol=1e-10)
    weights = cor.resampled(80, rng)
    drawn = [np.repeat(dense, np.round(w * 80).astype(int), axis=0) for w in weights.T]
    boot = np.array([np.corrcoef(d.T)[np.ix_(*AT)] for d in drawn])
    np.testing.assert_allclose(
        cor.limits_decoded(y, decoder, *AT, weights, True), np.quantile(boot, 0.95, axis=0), atol=1e-8
    )
    np.testing.assert_allclose(cor.decoded_sd(y, decoder), dense.std(0))
    # other features of the same cells, over given sds
    others, sd = rng.normal(size=(6, 4)), np.array([1.0, 2.0, 50.0, 100.0])
    joint = np.cov(dense[:, 0], dense[:, 0] * 0, ddof=0)[0, 0]
    assert joint == pytest.approx(dense[:, 0].var())
    by_hand = [((dense[:, 0] - dense[:, 0].mean()) * (v - v.mean())).mean() for v in (y.astype(float) @ others).T]
    got = cor.covary_decoded(y, decoder[:, :1], others, np.array([1e3]), sd)[0]
    np.testing.assert_allclose(got, by_hand / (1e3 * sd), atol=1e-10)


def test_constant_features_correlate_with_nothing():
    x = counts()
    x[:, 4] = 7.0
    assert not cor.correlate(SmoothedMatrix(x), np.array([0]), np.array([4])).any()
    decoder = np.random.default_rng(0).normal(size=(3, 5))
    decoder[:, 4] = 0
    y = np.random.default_rng(1).normal(size=(40, 3))
    found = cor.correlate_decoded(y, decoder, np.array([0]), np.arange(5))
    assert found[0, 4] == 0
    assert found[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("sparse", [True, False])
def test_permuted_keeps_every_feature_and_breaks_all_ties(sparse: bool):
    x = counts(400)
    before = x.copy()
    drawn = cor.permuted(sp.csr_matrix(x) if sparse else x, np.random.default_rng(0))
    drawn = drawn.toarray() if sparse else drawn
    np.testing.assert_array_equal(np.sort(drawn, axis=0), np.sort(x, axis=0))
    np.testing.assert_array_equal(x, before)
    off = ~np.eye(30, dtype=bool)
    assert np.abs(np.corrcoef(x.T)[off]).mean() > 0.12
    assert np.abs(np.corrcoef(drawn.T)[off]).mean() < 0.06


def test_permuted_values_go_anywhere():
    """Stored values of a sparse column are not kept in their order."""
    x = sp.csr_matrix(np.arange(200.0)[:, None] * np.ones((1, 20)))
    drawn = cor.permuted(x, np.random.default_rng(0)).toarray()
    assert np.abs(np.corrcoef(drawn.T, np.arange(200.0))[-1, :-1]).max() < 0.3


def test_permuted_is_smoothed_as_the_pipeline_would():
    x = sp.csr_matrix(counts())
    drawn = cor.permuted(x, np.random.default_rng(5))
    expected = SmoothedMatrix(drawn, fit_operator(drawn.tocsr(), random_state=0), 3).columns(np.arange(30))
    how = {"t": 3, "allowed": None, "batch": None, "denoise": False, "random_state": 0}
    got = cor.permuted_smoothed(np.random.default_rng(5), x=x, **how).columns(np.arange(30))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_constant_features_of_a_sparse_matrix_have_no_sd():
    """Sums in float32 would give them one, and the graph of the null their rounding."""
    x = np.hstack([counts(400), np.full((400, 2), 0.7, dtype=np.float32)])
    mean, sd = cor.moments(sp.csc_matrix(x))
    np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(sd, cor.moments(x)[1], atol=1e-7)
    assert np.all(sd[-2:] == 0)


def test_graphs_of_the_null_are_denoised_as_those_of_the_data():
    """Features that never vary count for neither."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 250)) + rng.normal(size=(400, 250))
    x = np.hstack([x, np.ones((400, 30))]).astype(np.float32)
    got = cor.graph_scores(sp.csc_matrix(x), None, denoise=True)
    expected = _graph_scores(x, None, denoise=True)
    distances = [np.sort(pdist(v[:, v.any(0)])) for v in (got, expected)]
    np.testing.assert_allclose(distances[0] / distances[0].mean(), distances[1] / distances[1].mean(), rtol=1e-3)
    assert got.any(0).sum() == expected.any(0).sum() < 50


def test_permuted_inside_batches():
    x = counts()
    batch = np.repeat([0, 1], 60)
    x[60:] += 5
    how = {"t": 0, "allowed": None, "batch": batch, "denoise": False, "random_state": 0}
    drawn = cor.permuted_smoothed(np.random.default_rng(0), x=sp.csr_matrix(x), **how)
    own = BatchedMatrix([SmoothedMatrix(x[:60]), SmoothedMatrix(x[60:])], [np.arange(60), np.arange(60, 120)])
    got, expected = (m.columns(np.arange(30)) for m in (drawn, own))
    for part in (slice(0, 60), slice(60, 120)):
        np.testing.assert_allclose(np.sort(got[part], axis=0), np.sort(expected[part], axis=0), atol=1e-5)


def test_leading_eigenvectors_of_a_large_matrix():
    z = np.random.default_rng(0).normal(size=(700, 600)).astype(np.float32)
    gram = z.T @ z / 700
    got, expected = cor.leading(gram, 20), np.linalg.eigh(gram.astype(float))[1][:, -20:]
    assert np.linalg.svd(expected.T @ got)[1].min() > 0.999


def test_unrelated_features_keep_the_graph():
    x = counts()
    for kind in ("sparse", "dense", "batched"):
        matrix, _ = smoothed(x, kind)
        t = 2 if kind == "batched" else 3
        found = cor.unrelated(np.random.default_rng(0), matrix, sp.csr_matrix(x) if kind != "dense" else x, t)
        if kind != "batched":
            drawn = cor.permuted(sp.csr_matrix(x) if kind == "sparse" else x, np.random.default_rng(0))
            expected = SmoothedMatrix(drawn, matrix.operator, 3).columns(np.arange(30))
            np.testing.assert_allclose(found.columns(np.arange(30)), expected, atol=1e-6)
        own = cor.unit(matrix.columns(np.array([0])))
        sd = cor.column_sd(matrix, np.arange(30))
        dense = found.columns(np.arange(30)).astype(float)
        by_hand = own[:, 0].astype(float) @ (dense - dense.mean(0)) / np.sqrt(120) / sd
        np.testing.assert_allclose(cor.covary(own, found, np.arange(30), sd)[0], by_hand, atol=1e-5)


@pytest.mark.parametrize("n_genes", [30, 2_100])
def test_decoder_of_the_features_themselves_is_theirs(n_genes: int):
    x = counts(150, n_genes)
    matrix = SmoothedMatrix(x)
    transform = fit_transform(matrix, n_pcs=5)
    scores = transform.transform(matrix) * float(transform.scale)
    got = decoder_of(matrix, scores, transform)
    np.testing.assert_allclose(got, transform.decoder, atol=2e-3 * np.abs(transform.decoder).max())


def test_p_of_null_values_is_uniform():
    rng = np.random.default_rng(0)
    p = np.concatenate([cor.against_null(z[0], z[1:])[1] for z in rng.normal(1, 2, size=(200, 21, 50))])
    assert (p > 0).all()
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.006)
    assert (p < 0.002).mean() < 0.003


def test_effects_leave_their_own_permutation_out():
    rng = np.random.default_rng(1)
    z, null = rng.normal(size=8), rng.normal(size=(20, 8))
    effect, p = cor.against_null(z, null)
    np.testing.assert_allclose(effect, (z - null.mean(0)) / null.std(0, ddof=1))
    apart = [np.delete(null, i, axis=0) for i in range(20)]
    pooled = np.array([(null[i] - rest.mean(0)) / rest.std(0, ddof=1) for i, rest in enumerate(apart)])
    np.testing.assert_allclose(p, [(1 + (pooled >= e).sum()) / 161 for e in effect])


def test_judge():
    rng = np.random.default_rng(0)
    r = np.concatenate([[0.9, 0.5, 0.3, -0.8], rng.normal(0, 0.05, 96)])
    null = rng.normal(0, 0.05, (20, 100))
    found = cor.judge(r, r + 0.05, correlated=null, n_top=2, threshold=0.1, signed=True)
    assert found["rank"][:4].tolist() == [1, 2, 3, 100]
    assert found["present"].nonzero()[0].tolist() == [0, 1]
    np.testing.assert_array_equal(found["absent"], r < 0.05)
    np.testing.assert_allclose(found["q"], stats.false_discovery_control(found["p"]))
    both = cor.judge(r, np.abs(r), covaried=[null], n_top=2, threshold=0.1, signed=False)
    assert both["present"].nonzero()[0].tolist() == [0, 3]
    # the null that explains more counts
    wide = rng.normal(0, 2, (20, 100))
    doubted = cor.judge(r, r + 0.05, correlated=null, covaried=[wide], n_top=2, threshold=0.1, signed=True)
    assert not doubted["present"].any()
    assert (doubted["p"] >= found["p"]).all()
