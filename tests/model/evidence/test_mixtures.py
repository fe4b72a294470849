"""Compositions of spots: against the truth, against expectation maximisation by hand, and what makes no difference."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import nnls

from planted import mixed_spots
from scmmgan.model.defaults import MIXTURE_RATE, MIXTURE_ROUNDS, MIXTURE_STEPS
from scmmgan.model.evidence import mixtures
from scmmgan.model.evidence.mixtures import compositions


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()))


def by_least_squares(spots: np.ndarray, cells: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Weights of mean profiles (shares of molecules), over the mean totals of the types."""
    mean = np.array([cells[types == t].mean(0) for t in range(types.max() + 1)])
    total = mean.sum(1)
    found = np.array([nnls((mean / total[:, None]).T, y / max(y.sum(), 1))[0] for y in spots]) / total
    return found / np.maximum(found.sum(1, keepdims=True), 1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_compositions_are_better_than_least_squares(seed: int):
    """Every gene of the spots is caught at a rate of its own; rows in no order."""
    spots, _, truth, cells, types = mixed_spots(seed)
    order = np.random.default_rng(seed).permutation(len(spots))
    found = compositions(sp.csr_matrix(spots[order], dtype=np.float32), cells, types, 6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-9)
    assert found.min() >= 0
    assert rmse(found, truth[order]) < 0.7 * rmse(by_least_squares(spots, cells, types), truth)
    assert rmse(found, truth[order]) < 0.12


def test_shares_are_those_of_cells_not_of_molecules():
    """A cell of one type holds four times as many molecules."""
    rng = np.random.default_rng(0)
    profile = np.array([[100.0, 100, 0, 0, 20], [0, 0, 400, 400, 80]])
    types = np.arange(200) % 2
    spots = rng.poisson(np.outer(rng.uniform(0.5, 2, 60), 3 * profile[0] + profile[1]))
    found = compositions(spots, rng.poisson(profile[types]), types, 2)
    np.testing.assert_allclose(found.mean(0), [0.75, 0.25], atol=0.02)


def test_steps_are_those_of_expectation_maximisation():
    spots, _, _, cells, types = (v[:40] for v in mixed_spots(0))
    types = types.copy()
    types[:5] = -1
    sums = np.array([cells[types == t].sum(0) for t in range(6)])
    profile, per_cell = sums / sums.sum(1, keepdims=True), sums.sum(1) / np.bincount(types[5:], minlength=6)
    w, rate = np.ones((40, 6)), np.ones(90)
    for turn in range(MIXTURE_ROUNDS):
        if turn:
            rate = spots.sum(0) / (w.sum(0) @ profile)
            rate /= np.exp(np.log(rate) @ spots.sum(0) / spots.sum())
            assert 1 / MIXTURE_RATE < rate.min() < rate.max() < MIXTURE_RATE
        for _ in range(MIXTURE_STEPS):
            expected = w @ (profile * rate)
            w = w * np.einsum("sg,tg->st", spots / expected, profile * rate) / (profile * rate).sum(1)
    w /= per_cell
    np.testing.assert_allclose(compositions(spots, cells, types, 6), w / w.sum(1, keepdims=True), atol=1e-6)


def test_sparse_blocks_and_unknown_labels(monkeypatch: pytest.MonkeyPatch):
    spots, _, _, cells, types = mixed_spots(0, n_spots=60, n_cells=120)
    whole = compositions(spots, cells, types, 6)
    given = sp.csr_matrix(spots, dtype=np.float32), sp.csr_matrix(cells, dtype=np.float32)
    np.testing.assert_allclose(compositions(*given, types, 6), whole, atol=1e-5)
    monkeypatch.setattr(mixtures, "MAP_CHUNK", 7)
    np.testing.assert_allclose(compositions(*given, types, 6), whole, atol=1e-5)
    # cells without a label change nothing; a label without a cell has no share
    more = np.vstack([cells, np.full((9, 90), 50)])
    found = compositions(spots, more, np.concatenate([types, np.full(9, -1)]), 8)
    np.testing.assert_allclose(found[:, :6], whole, atol=1e-9)
    assert not found[:, 6:].any()


def test_rows_without_counts_have_no_shares():
    spots, _, _, cells, types = mixed_spots(0, n_spots=30, n_cells=60)
    spots[3] = 0
    spots[:, 5], cells[:, 7] = 0, 0
    found = compositions(spots, cells, types, 6)
    assert not found[3].any()
    np.testing.assert_allclose(np.delete(found, 3, axis=0).sum(1), 1, atol=1e-9)
    assert np.isfinite(found).all()
    # a gene that the spots have and no labelled cell spoils nothing
    more = np.column_stack([spots, np.full(len(spots), 9)])
    none = np.column_stack([cells, np.zeros(len(cells), dtype=int)])
    np.testing.assert_allclose(compositions(more, none, types, 6)[4:], found[4:], atol=1e-6)
    empty = cells * (types != 2)[:, None]
    assert np.isfinite(compositions(spots, empty, types, 6)).all()
