"""Moments, choice of features and principal axes, against dense float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.space import linear, pca
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.pca import Standardized, dispersed, dispersion, principal_axes
from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix

FORMATS = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}
NONE = np.array([], dtype=int)


def expression(n: int = 120, g: int = 60, rank: int = 6, seed: int = 0) -> np.ndarray:
    """log1p of counts with `rank` programmes, about a third of them zero."""
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(size=(n, rank)) @ rng.normal(size=(rank, g)) / np.sqrt(rank) + rng.normal(size=g) / 2)
    return np.log1p(rng.poisson(rate)).astype(np.float32)


def zscored(s: np.ndarray) -> np.ndarray:
    s = s.astype(np.float64)
    return (s - s.mean(0)) / s.std(0)


def standardized(matrix: SmoothedMatrix | BatchedMatrix) -> Standardized:
    return Standardized(matrix, *matrix.moments())


# --- moments and features ----------------------------------------------------------------------------------------


def test_up_to_2000_features_all_enter():
    rng = np.random.default_rng(0)
    allowed = np.sort(rng.permutation(2_500)[:2_000])
    np.testing.assert_array_equal(dispersed(rng.random(2_500), rng.random(2_500), allowed, np.arange(5)), allowed)


def test_of_more_features_the_most_dispersed_and_the_linked_enter():
    rng = np.random.default_rng(0)
    mean, sd = rng.uniform(0.1, 3, 2_600), rng.random(2_600)
    sd[[2_400, 2_550, 3]] = 1e-3
    # a mask wins against links
    allowed = np.arange(2_500)
    got = dispersed(mean, sd, allowed, np.array([2_400, 2_550, 3]))
    score = sd[:2_500] ** 2 / mean[:2_500]
    top = np.argsort(-score, kind="stable")[:2_000]
    np.testing.assert_array_equal(got, np.union1d(top, [2_400, 3]))
    assert len(got) == 2_002
    # next to 0 the mean is no measure: such a feature is not the most dispersed of all
    mean[7], sd[7] = 1e-12, 1e-4
    assert 7 not in dispersed(mean, sd, allowed, NONE)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e6])
def test_dispersion_is_variance_over_mean_in_whichever_units(unit: float):
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(size=2_600), rng.random(2_600)
    mean[:3] = 0, 1e-4, -1e-4
    typical = np.abs(mean).mean()
    for floor in (1e-6, 1e-3):
        expected = sd**2 / np.maximum(np.abs(mean), floor * typical)
        np.testing.assert_allclose(dispersion(unit * mean, unit * sd, floor=floor), unit * expected, rtol=1e-10)
    at = np.arange(2_600)
    np.testing.assert_array_equal(dispersed(unit * mean, unit * sd, at, NONE), dispersed(mean, sd, at, NONE))
    # features that are all 0
    np.testing.assert_array_equal(dispersion(np.zeros(3), np.zeros(3)), 0)


# --- products ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [0, 2])
def test_standardized_products(kind: str, t: int):
    x, rng = expression(), np.random.default_rng(0)
    operator = smoothing_operator(x) if t else None
    s = np.linalg.matrix_power(operator.toarray().astype(np.float64), t) @ x if t else x.astype(np.float64)
    z = standardized(SmoothedMatrix(FORMATS[kind](x), operator, t))
    assert z.shape == (120, 60)
    v, u = rng.normal(size=(60, 3)), rng.normal(size=(120, 2))
    np.testing.assert_allclose(z.dot(v), zscored(s) @ v, atol=2e-4)
    np.testing.assert_allclose(z.tdot(u), zscored(s).T @ u, atol=2e-4)


# --- axes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_axes_are_those_of_a_plain_svd(kind: str):
    x = expression()
    got = principal_axes([standardized(SmoothedMatrix(FORMATS[kind](x)))], 8)
    expected = np.linalg.svd(zscored(x), full_matrices=False)[2][:8]
    np.testing.assert_allclose(np.abs((got * expected).sum(1)), 1, atol=1e-6)
    # the largest loading of each is positive
    largest = np.take_along_axis(got, np.abs(got).argmax(1)[:, None], 1)
    assert (largest > 0).all()


def test_number_of_axes():
    x = expression(g=10)
    z = standardized(SmoothedMatrix(x))
    assert principal_axes([z], 50).shape == (10, 10)
    assert principal_axes([z], 0).shape == (1, 10)


def test_modalities_count_alike_whatever_their_sizes():
    a, b = expression(200, 30, seed=0), expression(50, 30, seed=1)
    got = principal_axes([standardized(SmoothedMatrix(v)) for v in (a, b)], 5)
    za, zb = zscored(a), zscored(b)
    vectors = np.linalg.eigh(za.T @ za / 200 + zb.T @ zb / 50)[1][:, ::-1][:, :5]
    np.testing.assert_allclose(np.abs((got * vectors.T).sum(1)), 1, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_iterative_axes_are_those_of_a_plain_svd(parts: int, tolerance: float, monkeypatch: pytest.MonkeyPatch):
    """Of many features few axes; with a tolerance nearly the same ones, of signal that is."""
    calls = []
    original = pca.svds
    monkeypatch.setattr(pca, "svds", lambda *a, **k: (calls.append(k["tol"]), original(*a, **k))[1])
    values = [expression(n, 600, seed=n) for n in (300, 200)][:parts]
    z = [standardized(SmoothedMatrix(v)) for v in values]
    got = principal_axes(z, 6, tolerance=tolerance)
    assert calls == [tolerance]
    stacked = np.vstack([zscored(v) / np.sqrt(len(v)) for v in values])
    expected = np.linalg.svd(stacked, full_matrices=False)[2][:6]
    np.testing.assert_allclose(np.abs((got * expected).sum(1)), 1, atol=1e-3 if tolerance else 1e-6)
    np.testing.assert_array_equal(principal_axes(z, 6, tolerance=tolerance), got)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("t", [0, 1])
def test_axes_of_many_cells_are_learnt_on_some(parts: int, t: int, monkeypatch: pytest.MonkeyPatch):
    """All cells in one pass: the same axes; all but one: the space of all, as good as; half of so few: most of it."""
    values = [expression(n, 600, seed=n) for n in (301, 200)][:parts]
    z = [standardized(SmoothedMatrix(sp.csr_matrix(v), smoothing_operator(v) if t else None, t)) for v in values]
    whole = principal_axes(z, 6)
    monkeypatch.setattr(linear, "BLOCKED_FROM", 200)
    monkeypatch.setattr(pca, "BLOCK_ROWS", 40)
    monkeypatch.setattr(pca, "svds", lambda *_, **__: pytest.fail("iterates"))
    for cells, least in ((301, 1 - 1e-6), (300, 0.998), (150, 0.8)):
        monkeypatch.setattr(pca, "PCA_CELLS", cells)
        got = principal_axes(z, 6)
        assert got.shape == (6, 600)
        assert np.linalg.svd(got @ whole.T, compute_uv=False).min() > least
        np.testing.assert_array_equal(principal_axes(z, 6), got)


@pytest.mark.parametrize("n", [31, 52, 100, 151])
def test_iterative_axes_of_few_cells(n: int):
    """Halves of small modalities with many features: fewer rows than three times the axes."""
    x = expression(n=n, g=700)
    p = min(50, n - 1)
    matrix = SmoothedMatrix(x, sp.eye(n, format="csr"), 0)
    got = principal_axes([standardized(matrix)], p, tolerance=1e-3)
    assert got.shape == (p, 700)
    np.testing.assert_allclose(got @ got.T, np.eye(p), atol=1e-6)
    kept = ((zscored(x) @ got.T) ** 2).sum()
    best = (np.linalg.svd(zscored(x), compute_uv=False)[:p] ** 2).sum()
    assert kept > 0.999 * best


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("g", [300, 700])
def test_axes_of_chosen_columns_are_those_of_the_whole_matrix(kind: str, batches: bool, g: int):
    """Products with the columns that enter only: the same axes as when all columns are multiplied and the rest has no say."""
    x = expression(150, g)
    at = np.sort(np.random.default_rng(0).permutation(g)[: g - 100])
    rows = [np.arange(0, 150, 2), np.arange(1, 150, 2)] if batches else [np.arange(150)]
    parts = [SmoothedMatrix(FORMATS[kind](x[r]), smoothing_operator(x[r]), 1) for r in rows]
    matrix = BatchedMatrix(parts, rows) if batches else parts[0]
    mean, sd = matrix.moments()
    sliced = Standardized(matrix.take(at), mean[at], sd[at])

    class Whole(Standardized):
        def dot(self, v: np.ndarray) -> np.ndarray:
            full = np.zeros((g, v.shape[1]))
            full[at] = v / sd[at, None]
            return matrix.dot(full) - mean @ full

        def tdot(self, u: np.ndarray) -> np.ndarray:
            return ((matrix.tdot(u) - np.outer(mean, u.sum(0))) / sd[:, None])[at]

    whole = Whole(matrix.take(at), mean[at], sd[at])
    got, expected = (principal_axes([z], 5) for z in (sliced, whole))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)
    reference = np.linalg.svd(zscored(matrix.columns(np.arange(g)))[:, at], full_matrices=False)[2][:5]
    np.testing.assert_allclose(np.abs((got * reference).sum(1)), 1, atol=1e-4)
