"""Split-conformal intervals: order statistics, coverage on new cells."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan.model.evidence import conformal


def test_half_widths_are_order_statistics():
    residuals = np.random.default_rng(0).random((19, 3))
    np.testing.assert_array_equal(conformal.half_widths(residuals, 0.9), np.sort(residuals, axis=0)[17])
    np.testing.assert_array_equal(conformal.half_widths(residuals, 0.95), np.sort(residuals, axis=0)[18])
    assert np.isinf(conformal.half_widths(residuals, 0.96)).all()
    assert np.isfinite(conformal.half_widths(residuals[:9], 0.9)).all()
    assert np.isinf(conformal.half_widths(residuals[:8], 0.9)).all()


@pytest.mark.parametrize(("coverage", "least"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (2 / 3, 2)])
def test_least_pairs(coverage: float, least: int):
    assert conformal.least_pairs(coverage) == least
    residuals = np.random.default_rng(0).random((least, 1))
    assert np.isfinite(conformal.half_widths(residuals, coverage)).all()
    assert np.isinf(conformal.half_widths(residuals[:-1], coverage)).all()


@pytest.mark.parametrize("detected", [1.0, 0.3, 0.02])
def test_coverage_of_features_with_many_zeros(detected: float):
    """Coverage on new cells is nominal for rarely detected features, too: the mapped value differs from cell to cell."""
    rng = np.random.default_rng(0)
    mapped = rng.gamma(2.0, 0.5, (3_000, 200))
    y = rng.poisson(3 * mapped) * (rng.random(mapped.shape) < detected)
    residuals = np.abs(y - mapped)
    covered = residuals[300:] <= conformal.half_widths(residuals[:300], 0.9)
    assert abs(covered.mean() - 0.9) < 0.005
    assert (np.abs(covered.mean(0) - 0.9) < 0.05).mean() > 0.95
    said = conformal.reached_coverage(residuals[:300], 0.9, np.random.default_rng(0))
    assert abs(said.mean() - 0.9) < 0.01


def test_reached_coverage_of_few_pairs_leaves_out_one():
    """Of ten pairs eight are too few: each is checked against the nine others."""
    residuals = np.random.default_rng(1).random((10, 6))
    expected = np.zeros(6)
    for i in range(10):
        expected += residuals[i] <= np.delete(residuals, i, axis=0).max(0)
    found = conformal.reached_coverage(residuals, 0.9, np.random.default_rng(0))
    np.testing.assert_allclose(found, expected / 10)
    assert found.max() == 0.9
    # and nine have nothing to be checked against
    assert np.isnan(conformal.reached_coverage(residuals[:9], 0.9, np.random.default_rng(0))).all()


def test_no_residual_is_checked_against_itself():
    """A residual far above all others is never inside."""
    residuals = np.ones((50, 1))
    residuals[7] = 100
    found = conformal.reached_coverage(residuals, 0.9, np.random.default_rng(0))
    assert found == pytest.approx([49 / 50])
