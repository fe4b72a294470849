"""Features as autoencoders read them: which, z-scores, scores; the way back, also to features that are not read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.problem import Modality
from scmmgan.model.space import pca
from scmmgan.model.space.reading import Reading, fit_reading

NOTHING = np.arange(0)


def modality(values: Any, **more: Any) -> Modality:
    n, g = values.shape
    return Modality("a", values, np.arange(n).astype(object), np.arange(g).astype(object), steps=0, **more)


def values(n: int = 60, g: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(n, 3)) @ rng.normal(size=(3, g)) + 0.3 * rng.normal(size=(n, g)), 0).astype(
        np.float32
    )


@pytest.mark.parametrize("store", [np.asarray, sp.csr_matrix])
def test_zscores_are_clipped_and_come_back(store: Any):
    found = values()
    found[0, 0] = 200
    reading, matrix = fit_reading(modality(store(found)), NOTHING)
    x = reading.of_matrix(matrix)
    assert x.dtype == np.float32
    expected = (found - found.mean(0)) / found.std(0)
    np.testing.assert_allclose(x, np.clip(expected, -10, 10), atol=2e-4)
    assert x.max() <= 10
    z = np.zeros((len(found), 2), np.float32)
    reading = reading.learnt(matrix, z)
    back = reading.inverse(x, z, np.arange(12))
    np.testing.assert_allclose(back[1:], found[1:], atol=1e-3)
    np.testing.assert_allclose(reading.inverse(x, z, np.array([7, 2])), back[:, [7, 2]])


def test_dispersed_and_linked_features_are_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pca, "N_DISPERSED", 4)
    found = values()
    found[:, 5] = 1
    plain = fit_reading(modality(found), NOTHING)[0].read
    linked = fit_reading(modality(found), np.array([0, 1, 5]))[0].read
    assert len(plain) == 4
    # what never varies is not read
    np.testing.assert_array_equal(linked, np.setdiff1d(np.union1d(plain, [0, 1]), [5]))
    assert set(fit_reading(modality(found, allowed=np.arange(3)), np.array([8]))[0].read) <= {0, 1, 2}


def test_features_that_are_not_read_follow_the_latent_cells(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pca, "N_DISPERSED", 4)
    found = values(400)
    reading, matrix = fit_reading(modality(found), NOTHING)
    latent = (found[:, reading.read] - found[:, reading.read].mean(0)).astype(np.float32)
    reading = reading.learnt(matrix, latent)
    rest = np.setdiff1d(np.arange(12), reading.read)
    predicted = reading.inverse(reading.of_matrix(matrix), latent, rest)
    assert np.median([np.corrcoef(predicted[:, i], found[:, j])[0, 1] for i, j in enumerate(rest)]) > 0.6
    assert predicted.min() >= 0
    np.testing.assert_allclose(
        reading.inverse(reading.of_matrix(matrix), latent, reading.read), found[:, reading.read], atol=1e-3
    )


def test_scores_are_a_rotation_over_one_scale():
    found = values()
    reading, matrix = fit_reading(modality(found), NOTHING, n_pcs=512)
    x = reading.of_matrix(matrix)
    assert x.shape == (60, 12)
    assert np.sqrt((x**2).mean()) == pytest.approx(1, rel=1e-4)
    z = (found - found.mean(0)) / found.std(0)
    first, second = (((v[:, None] - v) ** 2).sum(2) for v in (x * reading.scale, z))
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)
    nothing = np.zeros((60, 1), np.float32)
    np.testing.assert_allclose(reading.learnt(matrix, nothing).inverse(x, nothing, np.arange(12)), found, atol=1e-3)
    assert fit_reading(modality(found), NOTHING, n_pcs=3)[0].width == 3


@pytest.mark.parametrize("n_pcs", [0, 5])
def test_new_cells_with_some_features(n_pcs: int):
    """In another order, and those that are not there count as their mean."""
    found = values()
    reading, matrix = fit_reading(modality(found), NOTHING, n_pcs=n_pcs)
    x, order = reading.of_matrix(matrix), np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(reading.of_values(found[:, order], order), x, atol=1e-4)
    np.testing.assert_allclose(reading.of_values(sp.csr_matrix(found[:5]), np.arange(12)), x[:5], atol=1e-4)
    part, filled = np.arange(3, 12), found.copy()
    filled[:, :3] = found.mean(0)[:3]
    np.testing.assert_allclose(
        reading.of_values(found[:, part], part), reading.of_values(filled, np.arange(12)), atol=1e-4
    )


def test_state():
    reading, matrix = fit_reading(modality(values()), NOTHING, n_pcs=4)
    reading = reading.learnt(matrix, np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32))
    again = Reading.from_state(reading.state())
    np.testing.assert_array_equal(again.of_matrix(matrix), reading.of_matrix(matrix))
    assert all(type(v) is np.ndarray for v in reading.state().values())
