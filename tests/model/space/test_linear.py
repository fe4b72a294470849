"""Ridge regression, anchors that are moved to it, and correlations of columns, against plain references."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.defaults import STRAIGHT_RIDGE
from scmmgan.model.space import linear
from scmmgan.model.space.linear import (
    canonical_axes,
    column_blocks,
    column_correlation,
    constant,
    one_thread,
    product,
    ridge,
    row_blocks,
    solve_ridge,
    straightened,
    transposed_product,
    unexplained,
)

# --- columns and threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e-20, 1e-6, 1.0, 1e9])
def test_rounding_is_no_variance_in_whichever_units(unit: float):
    mean, sd = np.array([0.0, 3, -3, 3, 0, 1e-9]), np.array([0.0, 1e-7, 1e-7, 1e-5, 1e-9, 1.0])
    np.testing.assert_array_equal(constant(unit * mean, unit * sd), [True, True, True, False, False, False])


def test_one_thread_and_all_of_them_again():
    from threadpoolctl import threadpool_info

    before = [pool["num_threads"] for pool in threadpool_info()]
    with one_thread():
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    after = [pool["num_threads"] for pool in threadpool_info()]
    assert after[: len(before)] == before


# --- many cells --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("many", [False, True])
def test_blocks_of_many_rows_are_the_matrix(kind: Callable, many: bool, monkeypatch: pytest.MonkeyPatch):
    """What is not many is one block, as it is; blocks share memory, and make the products of the whole."""
    x = sp.random(103, 9, density=0.3, random_state=0, dtype=np.float32).toarray()
    x[40:60] = 0
    matrix = kind(x)
    if many:
        monkeypatch.setattr(linear, "BLOCKED_FROM", 103)
        monkeypatch.setattr(linear, "BLOCK_ROWS", 20)
    blocks = list(row_blocks(matrix))
    assert [at.stop - at.start for at, _ in blocks] == ([20] * 5 + [3] if many else [103])
    for at, part in blocks:
        dense = part.toarray() if sp.issparse(part) else part
        np.testing.assert_array_equal(dense, x[at])
    last = blocks[-1][1]
    assert np.shares_memory(*[of.data if sp.issparse(of) else of for of in (last, matrix)])
    rng = np.random.default_rng(0)
    v, u = rng.normal(size=(9, 4)), rng.normal(size=(103, 4))
    for found, whole in ((product(matrix, v), matrix @ v), (transposed_product(matrix, u), matrix.T @ u)):
        assert found.dtype == np.float64
        if many:
            np.testing.assert_allclose(found, whole, rtol=1e-12, atol=1e-12)
        else:
            np.testing.assert_array_equal(found, whole)


def test_columns_of_many_rows_come_in_blocks(monkeypatch: pytest.MonkeyPatch):
    assert list(column_blocks(103, 9)) == [slice(0, 9)]
    assert list(column_blocks(103, 0)) == [slice(0, 0)]
    monkeypatch.setattr(linear, "BLOCKED_FROM", 103)
    monkeypatch.setattr(linear, "BLOCK_VALUES", 400)
    assert list(column_blocks(103, 9)) == [slice(0, 3), slice(3, 6), slice(6, 9)]
    # never single columns, which are slow to take
    assert next(column_blocks(1_000, 9)) == slice(0, 2)


def test_products_of_many_cells_convert_no_matrix_as_a_whole(monkeypatch: pytest.MonkeyPatch):
    """In double precision its values would be twice what they are."""
    monkeypatch.setattr(linear, "BLOCKED_FROM", 10_000)
    monkeypatch.setattr(linear, "BLOCK_ROWS", 500)
    x = sp.random(20_000, 200, density=0.2, format="csr", random_state=0, dtype=np.float32)
    v, u = np.ones((200, 1)), np.ones((20_000, 1))
    tracemalloc.start()
    for _ in range(2):
        product(x, v), transposed_product(x, u)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * x.data.nbytes


# --- ridge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1e-9, 0.1, 1.0, 10.0])
def test_solve_ridge_is_penalised_least_squares(penalty: float):
    """In units of the mean variance: least squares with p more rows, the root of the penalty on the diagonal."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)) * [5, 3, 1, 0.3, 0.1], rng.normal(size=(60, 7))
    got = solve_ridge(x.T @ x, x.T @ y, penalty)
    strength = penalty * (x**2).sum() / 5
    rows = np.vstack([x, np.sqrt(strength) * np.eye(5)])
    expected = np.linalg.lstsq(rows, np.vstack([y, np.zeros((5, 7))]), rcond=None)[0]
    np.testing.assert_allclose(got, expected, atol=1e-7)
    # the unit of x is none of the penalty's
    np.testing.assert_allclose(solve_ridge(9 * x.T @ x, 3 * x.T @ y, penalty), expected / 3, atol=1e-7)


def test_solve_ridge_where_nothing_varies():
    np.testing.assert_array_equal(solve_ridge(np.zeros((3, 3)), np.zeros((3, 2)), 0.1), 0)
    # one direction of three: no division by zero without a penalty
    x = np.outer(np.arange(5.0), [1, 0, 0])
    got = solve_ridge(x.T @ x, x.T @ (2 * x[:, :1]), 0)
    np.testing.assert_allclose(got, [[2], [0], [0]], atol=1e-9)


def test_ridge_is_weighted_least_squares_with_a_penalty():
    rng = np.random.default_rng(0)
    x, y, share = rng.normal(2, 3, (80, 4)), rng.normal(size=(80, 2)), rng.random(80)
    slope, intercept = ridge(x, y, share, penalty=0.3)
    # the normal equations, by an augmented least squares
    weight = share / share.sum()
    centred_x, centred_y = x - weight @ x, y - weight @ y
    penalty = 0.3 * (weight @ centred_x**2).mean()
    rows = np.vstack([np.sqrt(weight)[:, None] * centred_x, np.sqrt(penalty) * np.eye(4)])
    goal = np.vstack([np.sqrt(weight)[:, None] * centred_y, np.zeros((4, 2))])
    np.testing.assert_allclose(slope.T, np.linalg.lstsq(rows, goal, rcond=None)[0], atol=1e-10)
    np.testing.assert_allclose(intercept, weight @ y - slope @ (weight @ x), atol=1e-10)


def test_ridge_without_a_penalty_finds_the_line():
    rng = np.random.default_rng(1)
    x, slope = rng.normal(size=(50, 3)), rng.normal(size=(2, 3))
    got, intercept = ridge(x, x @ slope.T + 4, np.ones(50), penalty=0)
    np.testing.assert_allclose(got, slope, atol=1e-10)
    np.testing.assert_allclose(intercept, 4, atol=1e-10)


def test_cells_without_a_match_do_not_bend_the_line():
    rng = np.random.default_rng(2)
    x, slope = rng.normal(size=(60, 3)), rng.normal(size=(2, 3))
    y, share = x @ slope.T, np.ones(60)
    y[:20], share[:20] = 50, 0
    np.testing.assert_allclose(ridge(x, y, share, penalty=0)[0], slope, atol=1e-10)
    # where no cell has a match all count
    np.testing.assert_allclose(ridge(x, y, np.zeros(60), penalty=0)[0], ridge(x, y, np.ones(60), penalty=0)[0])


# --- anchors -----------------------------------------------------------------------------------------------------


def straight_and_noise(n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells, the line they are on in the first dimension (the second is noise), and anchors."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 5))
    line = np.c_[2 * x[:, 0] - x[:, 1], np.zeros(n)]
    return x, line, line + np.c_[0.5 * rng.normal(size=n), rng.normal(size=n)]


def test_straightened_anchors_by_hand():
    x, _, anchors = straight_and_noise()
    weight = np.random.default_rng(4).random(len(x))
    slope, intercept = ridge(x, anchors, weight, penalty=STRAIGHT_RIDGE)
    on_line = x @ slope.T + intercept
    for got, line, anchor in zip(straightened(anchors, x, weight).T, on_line.T, anchors.T):
        spread = np.average((anchor - np.average(anchor, weights=weight)) ** 2, weights=weight)
        unexplained = np.average((anchor - line) ** 2, weights=weight) / spread
        # adjusted for five features
        explained = max(0, 1 - unexplained * 399 / 394)
        np.testing.assert_allclose(got, explained * line + (1 - explained) * anchor, atol=1e-10)


def test_what_a_line_explains_is_rid_of_noise_and_the_rest_keeps_its_spread():
    x, line, anchors = straight_and_noise()
    got = straightened(anchors, x, np.ones(len(x)))
    error = ((got - line) ** 2).mean(0) / ((anchors - line) ** 2).mean(0)
    assert error[0] < 0.3
    # R² of noise on five features is about .01
    assert got[:, 1].var() == pytest.approx(anchors[:, 1].var(), rel=0.05)


def test_a_dimension_without_variance_stays():
    x, _, anchors = straight_and_noise()
    anchors[:, 1] = 7
    np.testing.assert_allclose(straightened(anchors, x, np.ones(len(x)))[:, 1], 7)


@pytest.mark.parametrize(("n", "p"), [(64, 50), (177, 30), (32, 31), (20, 40)])
def test_noise_keeps_its_spread_where_cells_are_few(n: int, p: int):
    rng = np.random.default_rng(5)
    x, noise = rng.normal(size=(n, p)), rng.normal(size=(n, 20))
    got = straightened(noise, x, np.ones(n))
    assert got.var() == pytest.approx(noise.var(), rel=0.1)


def test_cells_that_are_all_alike_have_no_line():
    rng = np.random.default_rng(6)
    y = rng.normal(size=(30, 2))
    slope, intercept = ridge(np.zeros((30, 3)), y, np.ones(30), penalty=0.1)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    np.testing.assert_allclose(intercept, y.mean(0))
    single = np.eye(30)[3]
    np.testing.assert_allclose(straightened(y, rng.normal(size=(30, 3)), single), y)


def test_share_that_a_line_leaves():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2000, 4)), rng.normal(size=(2000, 3))
    slope = rng.normal(size=(4, 3))
    anchors = x @ slope + 2 * noise
    expected = 12 / (12 + (slope**2).sum())
    assert unexplained(anchors, x, np.ones(2000)) == pytest.approx(expected, rel=0.06)
    assert unexplained(np.ones((2000, 3)), x, np.ones(2000)) == 1
    # of the cells that have a match
    weight = np.r_[np.ones(1000), np.zeros(1000)]
    anchors[1000:] = 100
    assert unexplained(anchors, x, weight) == pytest.approx(expected, rel=0.1)
    np.testing.assert_allclose(unexplained(anchors, x, weight), unexplained(anchors[:1000], x[:1000], weight[:1000]))


# --- correlations ------------------------------------------------------------------------------------------------


def test_correlation_of_columns():
    rng = np.random.default_rng(0)
    a, b = rng.normal(2, 3, (40, 5)), rng.normal(size=(40, 5))
    b += a * [1, -1, 0.2, 0, 0.5]
    expected = [np.corrcoef(u, v)[0, 1] for u, v in zip(a.T, b.T)]
    np.testing.assert_allclose(column_correlation(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(column_correlation(a, 3 - 2 * a), -1)
    # numpy takes integer weights by repeating rows
    times = rng.integers(0, 4, 40)
    repeated = [np.corrcoef(np.repeat(u, times), np.repeat(v, times))[0, 1] for u, v in zip(a.T, b.T)]
    np.testing.assert_allclose(column_correlation(a, b, times / times.sum()), repeated, atol=1e-12)
    covariance = [np.cov(u, v, aweights=times) for u, v in zip(a.T, b.T)]
    expected = [c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) for c in covariance]
    np.testing.assert_allclose(column_correlation(a, b, times / times.sum()), expected, atol=1e-12)


def test_correlation_of_stacks():
    """One matrix against a stack of others, or two stacks: each as if it were alone."""
    rng = np.random.default_rng(0)
    a, b, weight = rng.normal(size=(30, 4)), rng.normal(size=(3, 2, 30, 4)), rng.dirichlet(np.ones(30))
    for w in (None, weight):
        got = column_correlation(a, b, w)
        assert got.shape == (3, 2, 4)
        both = column_correlation(np.broadcast_to(a, b.shape) + b, b, w)
        for i in range(3):
            for j in range(2):
                np.testing.assert_allclose(got[i, j], column_correlation(a, b[i, j], w), atol=1e-12)
                np.testing.assert_allclose(both[i, j], column_correlation(a + b[i, j], b[i, j], w), atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.0, 1e6])
def test_correlation_with_a_constant_column_is_none(constant: float):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(31, 3)), rng.normal(size=(31, 3))
    a[:, 0] = b[:, 1] = constant
    a[:, 2] = b[:, 2] = constant
    for weight in (None, rng.dirichlet(np.ones(31))):
        np.testing.assert_allclose(column_correlation(a, b, weight), 0, atol=1e-7)


# --- canonical variates ------------------------------------------------------------------------------------------


def test_canonical_variates_without_a_penalty_correlate_as_said():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(300, 2))
    x = np.hstack([latent[:, :1] + 0.3 * rng.normal(size=(300, 1)), rng.normal(size=(300, 3))]) @ rng.normal(
        size=(4, 4)
    )
    y = np.hstack([rng.normal(size=(300, 2)), latent[:, :1]]) * 5 + 7
    found = canonical_axes(x, y, n=2, penalty=0)
    first, second = found.first(x), found.second(y)
    r = [np.corrcoef(first[:, i], second[:, i])[0, 1] for i in range(2)]
    np.testing.assert_allclose(r, found.strength, atol=1e-8)
    assert r[0] > 0.9
    np.testing.assert_allclose(first.T @ first / 300, np.eye(2), atol=1e-8)
    # a weight of 0 is a row that is not there
    weight = np.r_[np.ones(200), np.zeros(100)]
    part, weighted = (
        canonical_axes(x[:200], y[:200], n=2, penalty=0.1),
        canonical_axes(x, y, n=2, penalty=0.1, weight=weight),
    )
    np.testing.assert_allclose(weighted.strength, part.strength)


def test_a_penalty_shrinks_canonical_correlations_of_noise():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30, 20))
    assert canonical_axes(x, y, n=1, penalty=0).strength[0] > 0.95
    assert canonical_axes(x, y, n=1, penalty=10).strength[0] < 0.3
