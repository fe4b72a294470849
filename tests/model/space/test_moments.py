"""Moments of columns against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.space import linear
from scmmgan.model.space.moments import column_moments, pooled

FORMATS = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}


def expression(n: int = 120, g: int = 60) -> np.ndarray:
    """log1p of counts, about a third of them zero, of genes of different means."""
    rng = np.random.default_rng(0)
    return np.log1p(rng.poisson(np.exp(rng.normal(size=g)), size=(n, g))).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_column_moments(kind: str):
    x = expression()
    x[:, 0] += 1e4  # float32 sums would lose the spread
    mean, sd = column_moments(FORMATS[kind](x))
    assert mean.dtype == sd.dtype == np.float64
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(sd, x.astype(np.float64).std(0), rtol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_column_moments_of_many_cells(kind: str, monkeypatch: pytest.MonkeyPatch):
    """A block at a time: the same but for rounding."""
    x = FORMATS[kind](expression(130))
    whole = column_moments(x)
    for name, value in (("BLOCKED_FROM", 100), ("BLOCK_ROWS", 40), ("BLOCK_VALUES", 1_000)):
        monkeypatch.setattr(linear, name, value)
    for found, expected in zip(column_moments(x), whole):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("constant", [0.0, 0.1, 3.0, 1e6])
def test_rounding_is_no_variance(kind: str, constant: float):
    x = np.full((150, 2), constant, np.float32)
    x[:, 1] += 1e-3 * max(constant, 1) * np.arange(150)
    x[0, 0] = np.nextafter(x[0, 0], np.float32(np.inf)) if constant else 0
    sd = column_moments(FORMATS[kind](x))[1]
    assert sd[0] == 0
    assert sd[1] > 0


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_of_rows_together(kind: str):
    """Of different sizes, far from 0, and constant within a block but not over all."""
    x = expression(130)
    x[:, 0] += 1e4
    x[:, 1] = np.arange(130) >= 50
    x[:, 2] = 0.1
    blocks = [FORMATS[kind](x[start:stop]) for start, stop in ((0, 1), (1, 50), (50, 130))]
    mean, sd = pooled(blocks, spread=False)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(np.delete(sd, 2), np.delete(x.astype(np.float64).std(0), 2), rtol=1e-6)
    assert sd[2] == 0


def test_what_is_little_in_every_block_counts_over_all():
    """A spread that is rounding within blocks, and more than that from one block to the next."""
    x = (100 + 1e-4 * np.linspace(0, 10, 120)[:, None]).astype(np.float32)
    sd = pooled((x[start : start + 8] for start in range(0, 120, 8)), spread=False)[1]
    np.testing.assert_allclose(sd, x.astype(np.float64).std(0), rtol=1e-9)
