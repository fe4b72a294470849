"""Partners, confidence and votes, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import identity
from scipy.spatial.distance import cdist

from scmmgan.model.evidence import matching
from scmmgan.model.space.diffusion import nearest


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(80, 4)).astype(np.float32)


def test_closeness_is_relative_to_a_random_cell(clouds: tuple[np.ndarray, np.ndarray]):
    x, y = clouds
    distances = nearest(x, y, 3)[1]
    null = (cdist(x.astype(float), y.astype(float)) ** 2).mean(1)
    np.testing.assert_allclose(matching.closeness(x, y, distances), 1 - distances**2 / null[:, None], rtol=1e-5)
    # at the same place: 1; farther than a cell at random: 0, not below
    assert (matching.closeness(x, y, np.zeros((60, 1))) == 1).all()
    assert (matching.closeness(x, y, np.full((60, 1), 100.0)) == 0).all()


def test_closeness_of_cells_that_are_all_alike():
    same = np.ones((20, 3), dtype=np.float32)
    assert np.isfinite(matching.closeness(same, same, np.zeros((20, 1)))).all()


def test_own_neighbors_are_the_nearest_cells_and_the_cell_itself(clouds: tuple[np.ndarray, np.ndarray]):
    x = clouds[0]
    found = matching.own_neighbors(x).toarray()
    np.testing.assert_allclose(found.sum(1), 1)
    nearest = np.argsort(cdist(x, x), axis=1)[:, :15]
    for row, columns in zip(found, nearest):
        assert set(np.flatnonzero(row)) == set(columns)
    assert matching.own_neighbors(x[:5]).shape == (5, 5)


def test_assigned_share():
    x = np.repeat(np.arange(4.0), 20)[:, None] * 100 + np.random.default_rng(0).normal(size=(80, 3))
    neighbors = matching.own_neighbors(x)
    group = np.repeat(np.arange(4), 20)
    unmatched = np.array([0, 0.1, 0, 0.1])[group]
    ambiguous = np.array([False, False, True, True])[group]
    share = matching.assigned(unmatched, ambiguous, neighbors)
    # nothing said against it; a tenth unmatched counts half; ambiguous counts half; both
    np.testing.assert_allclose(share, np.array([1, 0.5, 0.5, 0.25])[group])


def test_little_unmatched_mass_is_forgiven():
    """u² / (u² + .1²): a twentieth counts a fifth, a fifth four fifths."""
    unmatched = np.array([0, 0.05, 0.1, 0.2, 1])
    share = matching.assigned(unmatched, np.zeros(5, bool), identity(5, format="csr"))
    np.testing.assert_allclose(share, [1, 0.8, 0.5, 0.2, 0.01 / 1.01])
    assert (np.diff(matching.assigned(np.linspace(0, 1, 80), np.zeros(80, bool), identity(80, format="csr"))) < 0).all()


def test_flags_are_averaged_over_neighbours():
    """After the unmatched share was bent, not before."""
    x = np.random.default_rng(0).normal(size=(40, 2))
    neighbors = matching.own_neighbors(x)
    unmatched, ambiguous = np.random.default_rng(1).random(40), np.random.default_rng(2).random(40) < 0.3
    near = np.argsort(cdist(x, x), axis=1)[:, :15]
    orphan = (unmatched**2 / (unmatched**2 + 0.01))[near].mean(1)
    expected = (1 - orphan) * (1 - 0.5 * ambiguous[near].mean(1))
    np.testing.assert_allclose(matching.assigned(unmatched, ambiguous, neighbors), expected)


def test_partners_matrix():
    found = matching.partners(np.array([[3, 1], [0, 2]]), np.array([[0.5, 0.25], [0.5, 0.5]]), 5)
    np.testing.assert_array_equal(found.toarray(), [[0, 0.25, 0, 0.5, 0], [0.5, 0, 0.5, 0, 0]])
    assert found.has_sorted_indices
    assert found.dtype == np.float32


def test_labels_are_averages_of_votes(clouds: tuple[np.ndarray, np.ndarray]):
    x, y = clouds
    votes = matching.Votes(nearest(x, y, matching.VOTES)[0], matching.own_neighbors(x))
    codes = np.random.default_rng(1).integers(-1, 3, len(y))
    expected = np.zeros((60, 3))
    mean, square, count = np.zeros(60), np.zeros(60), np.zeros(60)
    values = np.where(codes < 0, np.nan, np.random.default_rng(2).normal(size=len(y)) + 1000)
    for i in range(60):
        for neighbor in np.argsort(cdist(x, x)[i])[:15]:
            for partner in np.argsort(cdist(x, y)[neighbor])[:15]:
                if codes[partner] >= 0:
                    expected[i, codes[partner]] += 1
                    mean[i] += values[partner]
                    square[i] += (values[partner] - 1000) ** 2
                    count[i] += 1
    np.testing.assert_allclose(matching.carry_labels(votes, codes, 3), expected / expected.sum(1, keepdims=True))
    found, spread = matching.carry_values(votes, values)
    np.testing.assert_allclose(found, mean / count, rtol=1e-10)
    np.testing.assert_allclose(spread, np.sqrt(square / count - (mean / count - 1000) ** 2), rtol=1e-6)


def test_no_vote_is_known():
    x = np.random.default_rng(0).normal(size=(20, 2))
    votes = matching.Votes(nearest(x, x, 3)[0], matching.own_neighbors(x))
    assert (matching.carry_labels(votes, np.full(20, -1), 2) == 0).all()
    value, spread = matching.carry_values(votes, np.full(20, np.nan))
    assert np.isnan(value).all()
    assert np.isnan(spread).all()
