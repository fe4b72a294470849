"""Smoothed matrices whose cells keep a share of their own values: products against a float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix
from scmmgan.model.space.transform import fit_operator

FORMATS = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}


def counts(n: int = 120, g: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.log1p(rng.poisson(np.exp(rng.normal(size=(n, 5)) @ rng.normal(size=(5, g)) / 2))).astype(np.float32)


def reference(x: np.ndarray, operator: sp.csr_matrix, t: int, own: float) -> np.ndarray:
    smoothed = np.linalg.matrix_power(operator.toarray().astype(np.float64), t) @ x
    return own * x + (1 - own) * smoothed


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [1, 3])
def test_cells_keep_a_share(kind: str, t: int):
    x, rng = counts(), np.random.default_rng(1)
    operator = fit_operator(x)
    matrix = SmoothedMatrix(FORMATS[kind](x), operator, t)
    expected, at = reference(x, operator, t, 0.3), np.array([7, 0])
    v, u = rng.normal(size=(40, 3)), rng.normal(size=(120, 2))
    kept = matrix.keeping(0.3)
    np.testing.assert_allclose(kept.dot(v), expected @ v, atol=1e-4)
    np.testing.assert_allclose(kept.tdot(u), expected.T @ u, atol=1e-4)
    np.testing.assert_allclose(kept.columns(at), expected[:, at], atol=1e-5)
    np.testing.assert_allclose(kept.by_column().columns(at), expected[:, at], atol=1e-5)
    mean, sd = kept.moments()
    np.testing.assert_allclose(mean, expected.mean(0), atol=1e-5)
    np.testing.assert_allclose(sd, expected.std(0), atol=1e-5)
    # what was measured, and who is a neighbour, is the same for both
    np.testing.assert_array_equal(kept.measured(at), x[:, at])
    np.testing.assert_array_equal(kept.averaged(x[:, 3]), matrix.averaged(x[:, 3]))
    # the matrix itself stays as it was
    np.testing.assert_allclose(matrix.columns(at), reference(x, operator, t, 0)[:, at], atol=1e-5)
    assert matrix.keeping(0.0) is matrix


@pytest.mark.parametrize("kind", FORMATS)
def test_cells_of_batches_keep_a_share(kind: str):
    """Smoothed and mixed inside the batch, then moved to the pooled mean and sd of what was mixed."""
    x, rows = counts(), [np.arange(0, 120, 2), np.arange(1, 120, 2)]
    x[rows[1]] = 2 * x[rows[1]] + 1
    operators = [fit_operator(x[r]) for r in rows]
    matrix = BatchedMatrix([SmoothedMatrix(FORMATS[kind](x[r]), op, 2) for r, op in zip(rows, operators)], rows)
    mixed = [reference(x[r], op, 2, 0.3) for r, op in zip(rows, operators)]
    pooled = np.sqrt(np.mean([m.var(0) for m in mixed], axis=0))
    expected = np.empty(x.shape)
    for r, m in zip(rows, mixed):
        expected[r] = (m - m.mean(0)) / m.std(0) * pooled + np.mean([v.mean(0) for v in mixed], axis=0)
    kept, v = matrix.keeping(0.3), np.random.default_rng(1).normal(size=(40, 3))
    np.testing.assert_allclose(kept.columns(np.arange(40)), expected, atol=1e-4)
    np.testing.assert_allclose(kept.dot(v), expected @ v, atol=1e-3)
    np.testing.assert_allclose(kept.moments()[1], pooled, atol=1e-5)
    assert matrix.keeping(0.0) is matrix
