"""Smoothed matrices, of one batch and of several: products, columns and moments against dense float64 references."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.space import linear
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix

FORMATS = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}


def expression(n: int = 150, g: int = 80, rank: int = 6, seed: int = 0) -> np.ndarray:
    """log1p of counts with `rank` programmes, about a third of them zero."""
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(size=(n, rank)) @ rng.normal(size=(rank, g)) / np.sqrt(rank) + rng.normal(size=g) / 2)
    return np.log1p(rng.poisson(rate)).astype(np.float32)


def dense_smooth(x: np.ndarray, operator: sp.csr_matrix | None, t: int) -> np.ndarray:
    s = x.astype(np.float64)
    for _ in range(t):
        s = operator.toarray().astype(np.float64) @ s
    return s


# --- one batch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [0, 1, 3])
def test_products_and_columns(kind: str, t: int):
    x, rng = expression(), np.random.default_rng(0)
    operator = smoothing_operator(x) if t else None
    s = dense_smooth(x, operator, t)
    v, u, at = rng.normal(size=(80, 3)), rng.normal(size=(150, 3)), np.array([5, 0, 5])
    matrix = SmoothedMatrix(FORMATS[kind](x), operator, t)
    assert matrix.shape == (150, 80)
    assert matrix.steps == t
    np.testing.assert_allclose(matrix.dot(v), s @ v, atol=1e-4)
    np.testing.assert_allclose(matrix.tdot(u), s.T @ u, atol=1e-4)
    for same in (matrix, matrix.by_column()):
        np.testing.assert_allclose(same.columns(at), s[:, at], atol=1e-5)
        np.testing.assert_array_equal(same.measured(at), x[:, at])
        np.testing.assert_allclose(same.dot(v), s @ v, atol=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [0, 1, 3])
@pytest.mark.parametrize("with_covariates", [False, True])
def test_rows_of_chosen_cells(kind: str, t: int, with_covariates: bool):
    x, at = expression(), np.array([3, 40, 41, 149])
    covariates = x[:, :2].astype(np.float64) - x[:, :2].mean(0) if with_covariates else None
    matrix = SmoothedMatrix(FORMATS[kind](x), smoothing_operator(x) if t else None, t, covariates)
    found = matrix.of_cells(at)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, matrix.columns(np.arange(80))[at], atol=1e-5)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [0, 1, 3])
@pytest.mark.parametrize("with_covariates", [False, True])
def test_moments_of_many_cells(kind: str, t: int, with_covariates: bool, monkeypatch: pytest.MonkeyPatch):
    """By rows or by few columns at a time: the same numbers, and rounding is no variance."""
    x = expression(130, 60)
    x[:, 3] = 2.5
    covariates = x[:, :2].astype(np.float64) - x[:, :2].mean(0) if with_covariates else None
    matrix = SmoothedMatrix(FORMATS[kind](x), smoothing_operator(x) if t else None, t, covariates)
    whole = matrix.moments()
    for name, value in (("BLOCKED_FROM", 100), ("BLOCK_ROWS", 40), ("BLOCK_VALUES", 1_000)):
        monkeypatch.setattr(linear, name, value)
    mean, sd = matrix.moments()
    np.testing.assert_allclose(mean, whole[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sd, whole[1], rtol=1e-4, atol=1e-6)
    assert sd[3] == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_moments(kind: str):
    """Of more columns than are dense at one time."""
    x = expression(g=600)
    x[:, 3] = 2.5
    operator = smoothing_operator(x)
    s = dense_smooth(x, operator, 3)
    mean, sd = SmoothedMatrix(FORMATS[kind](x), operator, 3).moments()
    np.testing.assert_allclose(mean, s.mean(0), atol=1e-5)
    np.testing.assert_allclose(sd, s.std(0), atol=1e-5)
    # smoothing leaves 1e-7 of a constant: rounding is no variance
    assert sd[3] == 0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [1, 3])
def test_values_of_cells_are_averaged_over_neighbours(kind: str, t: int):
    x, values = expression(), np.random.default_rng(0).random(150).astype(np.float32)
    operator = smoothing_operator(x)
    # two steps, however many the features take
    expected = dense_smooth(values, operator, 2)
    np.testing.assert_allclose(SmoothedMatrix(FORMATS[kind](x), operator, t).averaged(values), expected, atol=1e-6)
    assert expected.std() < 0.7 * values.std()
    np.testing.assert_array_equal(SmoothedMatrix(FORMATS[kind](x)).averaged(values), values)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [0, 2])
def test_chosen_columns_are_those_of_the_whole_matrix(kind: str, t: int):
    """Smoothed and measured values, products, moments and neighbours; the matrix itself stays as it was."""
    x, rng = expression(), np.random.default_rng(0)
    matrix = SmoothedMatrix(FORMATS[kind](x), smoothing_operator(x) if t else None, t)
    before, at = matrix.columns(np.arange(80)), np.array([70, 3, 3, 11])
    part = matrix.take(at)
    assert part.shape == (150, 4)
    assert matrix.shape == (150, 80)
    order = np.array([2, 0])
    v, u = rng.normal(size=(4, 3)), rng.normal(size=(150, 2))
    full = np.zeros((80, 3))
    np.add.at(full, at, v)
    np.testing.assert_allclose(part.dot(v), matrix.dot(full), atol=1e-5)
    np.testing.assert_allclose(part.tdot(u), matrix.tdot(u)[at], atol=1e-5)
    np.testing.assert_array_equal(part.columns(order), matrix.columns(at[order]))
    np.testing.assert_array_equal(part.measured(order), x[:, at[order]])
    np.testing.assert_array_equal(part.by_column().columns(order), matrix.columns(at[order]))
    for got, whole in zip(part.moments(), matrix.moments()):
        np.testing.assert_allclose(got, whole[at], rtol=1e-12)
    np.testing.assert_array_equal(part.averaged(x[:, 3]), matrix.averaged(x[:, 3]))
    np.testing.assert_array_equal(matrix.columns(np.arange(80)), before)
    # chosen again
    np.testing.assert_array_equal(part.take(order).columns(np.arange(2)), matrix.columns(at[order]))


@pytest.mark.parametrize("kind", FORMATS)
def test_inputs_are_left_alone(kind: str):
    x = FORMATS[kind](expression())
    before, at = x.copy(), np.array([5, 3])
    matrix = SmoothedMatrix(x, smoothing_operator(expression()), 3)
    part = matrix.take(at)
    part.columns(np.arange(2))[:] = 7
    part.measured(np.arange(2))[:] = 7
    assert (before != x).sum() == 0


# --- batches -----------------------------------------------------------------------------------------------------


def batched(kind: str = "dense", t: int = 3) -> tuple[BatchedMatrix, np.ndarray]:
    """Three batches of unequal size with shifts and scales of their own, and the same in dense float64."""
    x = expression(150, 40)
    rng = np.random.default_rng(1)
    batch = rng.permutation(np.repeat([0, 1, 2], [70, 45, 35]))
    x = (x * rng.uniform(0.5, 2, (3, 40))[batch] + rng.uniform(0, 3, (3, 40))[batch]).astype(np.float32)
    x[:, 5] = 2.5  # constant
    x[batch == 1, 6] = 1.5  # constant in one batch
    x[:, 7] = np.array([1, 4, 2], np.float32)[batch]  # constant in each
    x[batch == 2, 8] = x[batch == 2, 8].mean() + 0.01 * (x[batch == 2, 8] - x[batch == 2, 8].mean())  # hardly varies
    rows = [np.flatnonzero(batch == i) for i in range(3)]
    operators = [smoothing_operator(x[r]) if t else None for r in rows]
    parts = [SmoothedMatrix(FORMATS[kind](x[r]), op, t) for r, op in zip(rows, operators)]
    smoothed = np.empty((150, 40))
    for r, op in zip(rows, operators):
        smoothed[r] = dense_smooth(x[r], op, t)
    # every feature to the pooled mean and the pooled within-batch sd, at most fivefold
    pooled_mean, pooled_sd = smoothed.mean(0), np.sqrt(sum(len(r) * smoothed[r].var(0) for r in rows) / 150)
    expected = np.empty((150, 40))
    for r in rows:
        mean, sd = smoothed[r].mean(0), smoothed[r].std(0)
        sd[sd < 1e-5] = 0
        ratio = np.divide(pooled_sd, sd, out=np.ones(40), where=(sd > 0) & (pooled_sd > 1e-5))
        expected[r] = (smoothed[r] - mean) * np.clip(ratio, 1 / 5, 5) + pooled_mean
    return BatchedMatrix(parts, rows), expected


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [0, 3])
def test_batched_products(kind: str, t: int):
    matrix, expected = batched(kind, t)
    assert matrix.shape == (150, 40)
    rng = np.random.default_rng(0)
    v, u = rng.normal(size=(40, 6)), rng.normal(size=(150, 4))
    np.testing.assert_allclose(matrix.dot(v), expected @ v, atol=1e-3)
    np.testing.assert_allclose(matrix.tdot(u), expected.T @ u, atol=1e-3)
    at = np.array([30, 5, 6, 7, 8, 5])
    got = matrix.columns(at)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected[:, at], atol=1e-4)
    np.testing.assert_array_equal(matrix.by_column().columns(at), got)
    mean, sd = matrix.moments()
    np.testing.assert_allclose(mean, expected.mean(0), atol=1e-4)
    np.testing.assert_allclose(sd, expected.std(0), atol=1e-4)
    # before the smoothing every batch is moved alike
    measured = matrix.measured(at)
    assert measured.dtype == np.float32
    for part, r in zip(matrix.parts, matrix.rows):
        smoothed = part.columns(at).astype(float)
        line = np.stack([np.polyfit(v, w, 1) if np.ptp(v) > 1e-4 else (1, np.mean(w - v))
                         for v, w in zip(smoothed.T, expected[np.ix_(r, at)].T)])  # fmt: skip
        np.testing.assert_allclose(measured[r], part.measured(at) * line[:, 0] + line[:, 1], atol=2e-3)


@pytest.mark.parametrize("kind", FORMATS)
def test_chosen_columns_of_batches_are_moved_as_all_are(kind: str):
    matrix, expected = batched(kind)
    at, order, rng = np.array([30, 5, 8, 30]), np.array([3, 1]), np.random.default_rng(0)
    part = matrix.take(at)
    assert part.shape == (150, 4)
    assert matrix.shape == (150, 40)
    v, u = rng.normal(size=(4, 3)), rng.normal(size=(150, 2))
    np.testing.assert_allclose(part.dot(v), expected[:, at] @ v, atol=1e-3)
    np.testing.assert_allclose(part.tdot(u), expected[:, at].T @ u, atol=1e-3)
    np.testing.assert_array_equal(part.columns(order), matrix.columns(at[order]))
    np.testing.assert_array_equal(part.measured(order), matrix.measured(at[order]))
    for got, whole in zip(part.moments(), matrix.moments()):
        np.testing.assert_array_equal(got, whole[at])


@pytest.mark.parametrize("t", [0, 3])
def test_rows_of_batches_are_moved_as_all_are(t: int):
    matrix, at = batched("csr", t)[0], np.array([0, 7, 8, 99, 149])
    np.testing.assert_allclose(matrix.of_cells(at), matrix.columns(np.arange(40))[at], atol=1e-5)


def test_other_values_are_moved_as_these_are():
    """Shift and scale are those of the matrix, not of the new values."""
    matrix, _ = batched("csr", 1)
    rng = np.random.default_rng(3)
    others = [rng.random((len(r), 40)).astype(np.float32) for r in matrix.rows]
    moved = matrix.of_parts([SmoothedMatrix(v) for v in others])
    got = moved.columns(np.arange(40))
    for i, (v, r) in enumerate(zip(others, matrix.rows)):
        np.testing.assert_allclose(got[r], v * matrix.scale[i] + matrix.shift[i], atol=1e-5)
    assert moved.parts[0] is not matrix.parts[0]


@pytest.mark.parametrize("t", [0, 3])
def test_values_of_cells_are_averaged_in_their_batch(t: int):
    matrix, values = batched("csr", t)[0], np.random.default_rng(0).random(150).astype(np.float32)
    expected = values.astype(np.float64)
    for part, r in zip(matrix.parts, matrix.rows):
        expected[r] = dense_smooth(values[r], part.operator, 2 if t else 0)
    np.testing.assert_allclose(matrix.averaged(values), expected, atol=1e-6)


def test_batches_have_equal_moments():
    matrix, _ = batched()
    columns = matrix.columns(np.arange(40))
    usual = np.flatnonzero((matrix.scale > 0.21).all(0) & (matrix.scale < 4.9).all(0))
    usual = np.setdiff1d(usual, [5, 6, 7, 8])
    assert len(usual) > 30
    first = columns[matrix.rows[0]]
    for rows in matrix.rows[1:]:
        np.testing.assert_allclose(columns[rows].mean(0), first.mean(0), atol=1e-3)
        np.testing.assert_allclose(columns[rows][:, usual].std(0), first[:, usual].std(0), rtol=1e-3)
    # constant features: constant still, and what was constant in each batch differs no more
    assert np.ptp(columns[:, [5, 7]], axis=0).max() < 1e-4
    assert np.ptp(columns[matrix.rows[1]][:, 6]) < 1e-4
    assert matrix.moments()[1][[5, 7]].max() < 1e-6
    # a feature that hardly varies in one batch is blown up fivefold and no more
    ratio = columns[matrix.rows[2]][:, 8].std() / matrix.parts[2].columns(np.array([8])).std()
    assert ratio == pytest.approx(5, rel=1e-3)
    # cells keep their places inside their batch
    for rows, part in zip(matrix.rows, matrix.parts):
        for j in (0, 20):
            assert np.corrcoef(columns[rows, j], part.columns(np.array([j]))[:, 0])[0, 1] > 0.9999


def test_one_batch_is_the_matrix_itself():
    x = expression(60, 20)
    single = BatchedMatrix([SmoothedMatrix(x)], [np.arange(60)])
    np.testing.assert_allclose(single.columns(np.arange(20)), x, atol=1e-5)
    np.testing.assert_allclose(single.moments()[1], x.std(0), atol=1e-5)


def test_sparse_batches_stay_sparse():
    n, g = 600, 3_000
    rng = np.random.default_rng(0)
    x = sp.random(n, g, 0.02, format="csr", dtype=np.float32, random_state=0)
    rows = np.array_split(rng.permutation(n), 2)
    parts = [SmoothedMatrix(x[r]) for r in rows]
    tracemalloc.start()
    matrix = BatchedMatrix(parts, rows)
    matrix.dot(rng.normal(size=(g, 5)))
    matrix.tdot(rng.normal(size=(n, 5)))
    matrix.take(np.arange(g // 2)).dot(rng.normal(size=(g // 2, 5)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * g * 4 * 0.6
