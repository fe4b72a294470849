"""Modes of restarts: found, never averaged."""

from __future__ import annotations

import numpy as np

from scmmgan.model.coupling import coupling
from scmmgan.model.evidence import restarts


def test_modes_are_found_and_the_largest_comes_first():
    rng = np.random.default_rng(0)
    image, mirror = rng.normal(size=(2, 500))
    runs = [mirror, image, image + 0.1 * rng.normal(size=500), image + 0.1 * rng.normal(size=500), -image]
    agreement = restarts.agreement(runs)
    np.testing.assert_allclose(np.diag(agreement), 1)
    assert agreement[1, 2] > 0.97
    assert abs(agreement[0, 1]) < 0.2
    assert agreement[1, 4] < -0.95
    modes = restarts.modes(agreement)
    assert (modes[1:4] == 0).all()
    assert len(set(modes)) == 3


def test_a_rival_sends_cells_elsewhere():
    x = {m: np.random.default_rng(i).normal(size=(80, 3)).astype(np.float32) for i, m in enumerate("ab")}
    pairs = np.array([[0, 5], [1, 9], [2, 3]])
    found = coupling.couple_geometry(x, pairs=pairs, n_landmarks=10)
    own, other = found["b", "a"].landmarks, found["a", "b"].landmarks
    plan = np.random.default_rng(3).permuted(np.eye(len(own.mass), len(other.mass)), axis=1)
    rival = restarts.follow(found["a", "b"], plan, own, x["b"])
    expected = other.mean(x["b"])[plan.argmax(1)][own.label]
    np.testing.assert_allclose(rival.anchors[3:], expected[3:], rtol=1e-5)
    np.testing.assert_array_equal(rival.anchors[:3], x["b"][[5, 9, 3]])
    np.testing.assert_array_equal(rival.weight, found["a", "b"].weight)
