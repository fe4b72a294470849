"""Landmarks: k-means clusters of a modality's cells, inside labels, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan.model.coupling.landmarks import find_landmarks


@pytest.mark.parametrize(("n", "m"), [(1_000, 300), (101, 50), (32, 16)])
def test_landmarks(n: int, m: int):
    x = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    found = find_landmarks(x)
    assert len(found.mass) == m  # min(300, n // 2)
    assert found.mass.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.mass, np.bincount(found.label) / n)
    # cells lie in the cluster with the nearest centroid, nodes nearest to it
    d = ((x[:, None] - found.centroids[None]) ** 2).sum(2)
    assert (found.label == d.argmin(1)).mean() > 0.99
    np.testing.assert_allclose(d[found.nodes, np.arange(m)], d.min(0), atol=1e-5)


def test_landmark_means():
    x = np.random.default_rng(0).normal(size=(90, 3))
    found = find_landmarks(x)
    expected = [x[found.label == i].mean(0) for i in range(len(found.mass))]
    np.testing.assert_allclose(found.mean(x), expected, atol=1e-10)


def test_landmarks_are_repeatable():
    x = np.random.default_rng(0).normal(size=(300, 4))
    first, second, other = (find_landmarks(x, n_landmarks=60, random_state=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.label, second.label)
    np.testing.assert_array_equal(first.centroids, second.centroids)
    assert not np.array_equal(first.centroids, other.centroids)


def test_landmarks_of_many_copies():
    """Fewer distinct cells than clusters: fewer landmarks, none empty, nothing said."""
    x = np.repeat(np.random.default_rng(0).normal(size=(10, 3)), 20, axis=0)
    found = find_landmarks(x)
    assert len(found.mass) == 10
    np.testing.assert_allclose(found.mass, 0.1)


@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_landmarks_stay_inside_labels(gaps: float):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))  # one cloud: nothing but the labels keeps them apart
    labels = rng.choice(4, 300, p=[0.6, 0.3, 0.09, 0.01])
    labels = np.where(rng.random(300) < gaps, -1, labels)
    found = find_landmarks(x, n_landmarks=60, labels=labels)
    for i in range(len(found.mass)):
        assert len(np.unique(labels[found.label == i])) == 1
        assert found.label[found.nodes[i]] == i
        np.testing.assert_allclose(found.centroids[i], x[found.label == i].mean(0), atol=0.2)
    assert found.mass.sum() == pytest.approx(1)
    # places go by shares, one at least
    of = labels[found.nodes]
    for label in np.unique(labels):
        assert (of == label).sum() == pytest.approx(60 * (labels == label).mean(), abs=1)
        assert (of == label).any()
