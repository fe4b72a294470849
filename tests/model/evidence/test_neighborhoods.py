"""Neighbours that an embedding keeps, and cells that come back: against chance, and where nothing is learnt."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan.model.evidence.neighborhoods import overlaps, round_trips


def test_overlap():
    x = np.random.default_rng(0).normal(size=(100, 3))
    kept, chance = overlaps(x, 2 * x + 1)
    assert kept.tolist() == [1.0] * 100
    assert overlaps(x, x[::-1])[0].mean() < 0.4
    assert chance == pytest.approx(20 / 99)


@pytest.mark.parametrize(("n", "k"), [(300, 20), (40, 10)])
def test_chance_is_what_drawn_neighbours_share(n: int, k: int):
    rng = np.random.default_rng(0)
    drawn = np.mean([overlaps(*rng.normal(size=(2, n, 3)))[0].mean() for _ in range(20)])
    assert drawn == pytest.approx(k / (n - 1), rel=0.1) == overlaps(*rng.normal(size=(2, n, 3)))[1]


def test_round_trips():
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(400, 2))
    other = rng.normal(size=(400, 2))
    # an embedding that is the cells' own space brings them back; one that knows nothing, or is a point, to the mean
    assert round_trips(cells, cells, other).mean() < 0.05
    assert round_trips(cells, *rng.normal(size=(2, 400, 2))).mean() == pytest.approx(1.1, abs=0.1)
    assert round_trips(cells, np.zeros((400, 2)), np.zeros((400, 2))).mean() > 0.95


def test_round_trip_by_hand():
    cells, x, y = np.array([[0.0], [2.0], [10.0]]), np.array([[0.0], [1.0], [5.0]]), np.array([[0.4], [4.9]])
    # two cells on the other side, each of which leads to the other two
    others = (cells.sum() - cells) / 2
    np.testing.assert_allclose(round_trips(cells, x, y), ((others - cells) ** 2).ravel() / cells.var())
