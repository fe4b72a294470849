"""Correlations, limits and nulls against dense float64 references."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from scmmgan.model.evidence import correlations as cor
from scmmgan.model.problem import Modality
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.graphs import graph_scores
from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix
from scmmgan.model.space.transform import decoder_of, fit_transform

AT = np.array([0, 3]), np.arange(1, 30)


def counts(n: int = 120, g: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(size=(n, 2)) @ rng.normal(size=(2, g)) * 0.7)
    return np.log1p(rng.poisson(rate)).astype(np.float32)


def operator(x: np.ndarray | sp.csr_matrix, **how: bool) -> sp.csr_matrix:
    return smoothing_operator(graph_scores(x, **how))


def modality(x: np.ndarray | sp.csr_matrix, **fields: Any) -> Modality:
    cells, features = (np.array([f"{kind}{i}" for i in range(n)], dtype=object) for kind, n in zip("cf", x.shape))
    return Modality("a", x, cells, features, **fields)


def smoothed(x: np.ndarray, kind: str) -> tuple[SmoothedMatrix | BatchedMatrix, np.ndarray]:
    """A matrix and the same dense, in float64."""
    if kind == "batched":
        rows = [np.arange(0, len(x), 2), np.arange(1, len(x), 2)]
        parts = [SmoothedMatrix(sp.csr_matrix(x[r]), operator(x[r]), 2) for r in rows]
        matrix: SmoothedMatrix | BatchedMatrix = BatchedMatrix(parts, rows)
    else:
        matrix = SmoothedMatrix(sp.csr_matrix(x) if kind == "sparse" else x, operator(x), 3)
    return matrix, matrix.columns(np.arange(x.shape[1])).astype(np.float64)


@pytest.mark.parametrize("kind", ["sparse", "dense", "batched"])
def test_measured_correlations_and_limits(kind: str):
    matrix, dense = smoothed(counts(), kind)
    by = matrix.by_column()
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


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_permuted_is_smoothed_as_the_pipeline_would(sparse: bool, denoise: bool):
    x = sp.csr_matrix(counts()) if sparse else counts()
    drawn = cor.permuted(x, np.random.default_rng(5))
    graph = operator(drawn.tocsr() if sparse else drawn, denoise=denoise)
    expected = SmoothedMatrix(drawn, graph, 3).columns(np.arange(30))
    got = cor.permuted_smoothed(np.random.default_rng(5), modality(x), 3, denoise=denoise)
    np.testing.assert_allclose(got.columns(np.arange(30)), expected, atol=1e-4)
    # features that may not enter a PCA are smoothed on the graph of the others
    allowed = np.arange(10, 30)
    graph = smoothing_operator(graph_scores(drawn.tocsr() if sparse else drawn, allowed, denoise=denoise))
    got = cor.permuted_smoothed(np.random.default_rng(5), modality(x, allowed=allowed), 3, denoise=denoise)
    np.testing.assert_allclose(
        got.columns(np.arange(30)), SmoothedMatrix(drawn, graph, 3).columns(np.arange(30)), atol=1e-4
    )


def test_permuted_inside_batches():
    x = counts()
    x[60:] += 5
    rows = (np.arange(60), np.arange(60, 120))
    drawn = cor.permuted_smoothed(np.random.default_rng(0), modality(sp.csr_matrix(x), batches=rows), 0)
    own = BatchedMatrix([SmoothedMatrix(x[:60]), SmoothedMatrix(x[60:])], rows)
    got, expected = (m.columns(np.arange(30)) for m in (drawn, own))
    for part in (slice(0, 60), slice(60, 120)):
        np.testing.assert_allclose(np.sort(got[part], axis=0), np.sort(expected[part], axis=0), atol=1e-5)
    # on graphs of their own where there is a step
    steps = cor.permuted_smoothed(np.random.default_rng(0), modality(sp.csr_matrix(x), batches=rows), 1)
    assert [part.operator.shape for part in steps.parts] == [(60, 60)] * 2


@pytest.mark.parametrize("kind", ["sparse", "dense", "batched"])
def test_unrelated_features_keep_the_graph(kind: str):
    x = counts()
    matrix, _ = smoothed(x, kind)
    domain: Any = SimpleNamespace(smoothed=matrix)
    found = cor.unrelated(np.random.default_rng(0), domain)
    if kind == "batched":
        # the batches' shifts and scales are those of the features as they are
        np.testing.assert_array_equal(found.scale, matrix.scale)
        np.testing.assert_array_equal(found.shift, matrix.shift)
        assert all(a.operator is b.operator for a, b in zip(found.parts, matrix.parts))
    else:
        drawn = cor.permuted(sp.csr_matrix(x) if kind == "sparse" else x, np.random.default_rng(0))
        expected = SmoothedMatrix(drawn, matrix.operator, 3).columns(np.arange(30))
        np.testing.assert_allclose(found.columns(np.arange(30)), expected, atol=1e-6)
    own = cor.unit(matrix.columns(np.array([0])))
    sd = cor.column_sd(matrix, np.arange(30))
    dense = found.columns(np.arange(30)).astype(float)
    by_hand = own[:, 0].astype(float) @ (dense - dense.mean(0)) / np.sqrt(120) / sd
    np.testing.assert_allclose(cor.covary(own, found, np.arange(30), sd)[0], by_hand, atol=1e-5)


def test_unrelated_features_without_smoothing():
    x = sp.csr_matrix(counts())
    domain: Any = SimpleNamespace(smoothed=SmoothedMatrix(x))
    found = cor.unrelated(np.random.default_rng(0), domain).columns(np.arange(30))
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(x.toarray(), axis=0))


# --- both sides --------------------------------------------------------------------------------------------------


def covariances(a: np.ndarray, b: np.ndarray, sds: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a - a.mean(0)).T @ (b - b.mean(0)) / len(a) / np.outer(*sds)


@pytest.mark.parametrize("measured_in", ["a", "b"])
def test_correlations_of_both_sides_with_their_nulls(
    measured_in: str, make_planted: Callable, monkeypatch: pytest.MonkeyPatch
):
    """Against dense arrays: every null compares permuted features, smoothed anew or on the graph that is there."""
    monkeypatch.setattr(cor, "PERMUTATIONS", 2)
    monkeypatch.setattr(cor, "RESAMPLES", 30)
    found = make_planted()
    domains = found.domains
    turn = np.random.default_rng(1).normal(size=(found.x["a"].shape[1], found.x["b"].shape[1])) / 3
    asked = {"measured": np.array([2, 3, 4, 9]), "mapped": np.array([1, 3, 4, 11])}
    queries = {"measured": np.array([0, 7]), "mapped": np.array([0, 6])}
    got = cor.with_nulls(
        domains, "a", "b", measured_in, asked, queries, lambda x: np.tanh(x @ turn).astype(np.float32),
        steps={"a": 1, "b": 2}, denoise=True, signed=True, seed=4, graph_seed=0,
    )  # fmt: skip
    n, every = 120, {m: np.arange(len(d.modality.features)) for m, d in domains.items()}
    own = domains[measured_in].smoothed.columns(every[measured_in])
    y = np.tanh(found.x["a"] @ turn)
    decoder = domains["b"].transform.decoder
    for side, values in (("measured", own), ("mapped", y @ decoder)):
        r = np.corrcoef(values.T.astype(np.float64))[np.ix_(queries[side], asked[side])]
        np.testing.assert_allclose(got[side]["r"], r, atol=1e-4)
        # the same cells are drawn on both sides where they are the same
        drawn = np.random.default_rng([4, 0 if measured_in == "a" or side == "mapped" else 1, 1])
        weights = cor.resampled(n, drawn)
        cells = [np.repeat(values, np.round(w * n).astype(int), axis=0).astype(np.float64) for w in weights.T]
        boot = [np.corrcoef(v.T)[np.ix_(queries[side], asked[side])] for v in cells]
        np.testing.assert_allclose(got[side]["limit"], np.quantile(boot, 0.95, axis=0), atol=1e-3)
    assert [v.shape for v in got["measured"]["covaried"]] == [(2, 2, 4)] * 2
    assert [v.shape for v in got["mapped"]["covaried"]] == [(2, 2, 4)] * 3
    for i in range(2):
        rng = np.random.default_rng([4, i])
        noise = cor.permuted_smoothed(rng, domains["a"].modality, 1)
        drawn = noise if measured_in == "a" else cor.permuted_smoothed(rng, domains["b"].modality, 2)
        apart = {m: cor.unrelated(rng, domains[m]) for m in dict.fromkeys(("b", measured_in))}
        q, f = queries["measured"], asked["measured"]
        permuted = drawn.columns(every[measured_in]).astype(np.float64)
        np.testing.assert_allclose(
            got["measured"]["correlated"][:, i], np.corrcoef(permuted.T)[np.ix_(q, f)], atol=1e-4
        )
        strays = apart[measured_in].columns(every[measured_in])
        sds = own[:, q].std(0), own[:, f].std(0)
        np.testing.assert_allclose(
            got["measured"]["covaried"][0][:, i], covariances(own[:, q], strays[:, f], sds), atol=1e-4
        )
        np.testing.assert_allclose(
            got["measured"]["covaried"][1][:, i], covariances(strays[:, q], own[:, f], sds), atol=1e-4
        )
        q, f = queries["mapped"], asked["mapped"]
        mapped = y @ decoder
        sds = mapped[:, q].std(0), mapped[:, f].std(0)
        image = np.tanh(domains["a"].transform.transform(noise) @ turn) @ decoder
        other = decoder_of(apart["b"], domains["b"].x * float(domains["b"].transform.scale), domains["b"].transform)
        expected = (
            covariances(image[:, q], image[:, f], sds),
            covariances(mapped[:, q], (y @ other)[:, f], sds),
            covariances((y @ other)[:, q], mapped[:, f], sds),
        )
        for null, by_hand in zip(got["mapped"]["covaried"], expected):
            np.testing.assert_allclose(null[:, i], by_hand, atol=2e-4 * max(1, np.abs(by_hand).max()))


@pytest.mark.parametrize("n_genes", [30, 2_100])
def test_decoder_of_the_features_themselves_is_theirs(n_genes: int):
    x = counts(150, n_genes)
    matrix = SmoothedMatrix(x)
    transform, x = fit_transform(matrix, n_pcs=5)
    scores = x * float(transform.scale)
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


def test_ranks_and_the_null_that_explains_most():
    rng = np.random.default_rng(0)
    r = np.concatenate([[0.9, 0.5, 0.3, -0.8], rng.normal(0, 0.05, 96)])
    null = rng.normal(0, 0.05, (20, 100))
    found = cor.against_nulls(r, correlated=null, signed=True)
    assert found["rank"][:4].tolist() == [1, 2, 3, 100]
    assert (found["q"] < 0.05).nonzero()[0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found["q"], stats.false_discovery_control(found["p"]))
    both = cor.against_nulls(r, covaried=[null], signed=False)
    assert both["rank"][:4].tolist() == [1, 3, 4, 2]
    assert (both["q"] < 0.05).nonzero()[0].tolist() == [0, 1, 2, 3]
    # the null that explains more counts
    wide = rng.normal(0, 2, (20, 100))
    doubted = cor.against_nulls(r, correlated=null, covaried=[wide], signed=True)
    assert not (doubted["q"] < 0.05).any()
    assert (doubted["p"] >= found["p"]).all()
    assert (doubted["z"] <= found["z"]).all()


def test_the_measured_side_alone(make_planted: Callable, monkeypatch: pytest.MonkeyPatch):
    """Without a map: the same correlations and nulls of what was measured, and nothing else."""
    monkeypatch.setattr(cor, "PERMUTATIONS", 3)
    monkeypatch.setattr(cor, "RESAMPLES", 5)
    found = make_planted()
    at = {side: np.arange(4) for side in ("measured", "mapped")}
    how = {"steps": {"a": 1, "b": 2}, "denoise": True, "signed": True, "seed": 4, "graph_seed": 0}
    alone = cor.with_nulls(found.domains, "a", "b", "a", at, at, None, **how)
    turn = np.ones((found.x["a"].shape[1], found.x["b"].shape[1]), dtype=np.float32)
    whole = cor.with_nulls(found.domains, "a", "b", "a", at, at, lambda x: x @ turn, **how)
    assert list(alone) == ["measured"]
    assert set(alone["measured"]) == {"r", "correlated", "covaried"}
    for name in ("r", "correlated"):
        np.testing.assert_array_equal(alone["measured"][name], whole["measured"][name])
    np.testing.assert_array_equal(alone["measured"]["covaried"], whole["measured"]["covaried"])


def test_lists_and_calls():
    """Strong by rank on one side, below the threshold on the other; on both: neither."""
    a, b = np.array([0.9, 0.05, 0.08, -0.9, 0.5]), np.array([0.05, 0.9, 0.02, 0.05, 0.5])
    rank_a, rank_b = np.array([1, 2, 3, 4, 5]), np.array([5, 1, 3, 4, 2])
    how = {"n_top": 3, "threshold": 0.1}
    found = cor.listed(a, b, rank_a, rank_b, signed=True, **how)
    assert found.tolist() == ["spurious", "novel", "", "", ""]
    # a negative correlation is weak where signs count, and strong where they do not
    one = np.array([0.9]), np.array([-0.9]), np.array([1]), np.array([9])
    assert cor.listed(*one, signed=True, **how).tolist() == ["spurious"]
    assert cor.listed(*one, signed=False, **how).tolist() == [""]
    assert cor.called(np.array([True, False, False]), np.array([False, True, False])).tolist() == [
        "spurious",
        "novel",
        "",
    ]


def test_strength_is_fishers_z():
    r = np.array([-0.5, 0.2, 1.0])
    np.testing.assert_allclose(cor.strength(r, True)[:2], np.arctanh(r[:2]))
    np.testing.assert_allclose(cor.strength(r, False)[:2], np.arctanh([0.5, 0.2]))
    assert np.isfinite(cor.strength(r, True)).all()
