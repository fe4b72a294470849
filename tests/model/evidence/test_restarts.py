"""Modes of restarts: found, never averaged; rivals as couplings."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan.model.coupling import coupling
from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.evidence import restarts


def test_modes_are_found_and_the_largest_comes_first():
    rng = np.random.default_rng(0)
    image, mirror = rng.normal(size=(2, 500))
    runs = [mirror, image, image + 0.1 * rng.normal(size=500), image + 0.1 * rng.normal(size=500), -image]
    similarity = restarts.map_similarity(runs)
    np.testing.assert_allclose(np.diag(similarity), 1)
    np.testing.assert_allclose(similarity, similarity.T)
    assert similarity[1, 2] > 0.97
    assert abs(similarity[0, 1]) < 0.2
    assert similarity[1, 4] < -0.95
    modes = restarts.modes(similarity)
    assert (modes[1:4] == 0).all()
    assert len(set(modes)) == 3
    # all alike: one mode
    assert set(restarts.modes(np.ones((4, 4)))) == {0}


def test_similarity_is_that_of_equal_images():
    """2 x·y / (|x|² + |y|²): an image twice as large is not the same."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 300)).astype(np.float32)
    found = restarts.map_similarity([x, y, 2 * x])
    assert found[0, 1] == pytest.approx(2 * x @ y / (x @ x + y @ y), abs=1e-6)
    assert found[0, 2] == pytest.approx(0.8, abs=1e-6)
    assert (restarts.map_similarity([np.zeros(3), np.zeros(3)]) == 0).all()


def test_modes_ask_for_half():
    """Average linkage at a similarity of .5."""
    for value, expected in ((0.55, 1), (0.45, 2)):
        assert len(set(restarts.modes(np.array([[1, value], [value, 1]])))) == expected


def test_a_rival_sends_cells_elsewhere():
    x = {m: np.random.default_rng(i).normal(size=(80, 3)).astype(np.float32) for i, m in enumerate("ab")}
    pairs = np.array([[0, 5], [1, 9], [2, 3]])
    landmarks = {m: find_landmarks(v, n_landmarks=10) for m, v in x.items()}
    found = coupling.couple_geometry(x, landmarks, pairs=pairs)
    own, other = found["b", "a"].landmarks, found["a", "b"].landmarks
    plan = np.random.default_rng(3).permuted(np.eye(len(own.mass), len(other.mass)), axis=1)
    rival = restarts.follow(found["a", "b"], plan, own, x["b"])
    expected = other.mean(x["b"])[plan.argmax(1)][own.label]
    np.testing.assert_allclose(rival.anchors[3:], expected[3:], rtol=1e-5)
    np.testing.assert_array_equal(rival.anchors[:3], x["b"][[5, 9, 3]])
    np.testing.assert_array_equal(rival.weight, found["a", "b"].weight)
    np.testing.assert_array_equal(rival.plan.toarray(), plan[own.label])
    # of a plan with several entries the larger ones count by their squares
    two = np.zeros(plan.shape)
    two[:, 0], two[:, 1] = 0.3, 0.1
    centres = other.mean(x["b"])
    anchors = restarts.follow(found["a", "b"], two, own, x["b"]).anchors
    np.testing.assert_allclose(anchors[3:], np.tile((9 * centres[0] + centres[1]) / 10, (77, 1)), rtol=1e-5)
