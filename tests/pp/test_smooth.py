"""`pp.smooth`: P^t X, what it writes, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pytest
import scipy.sparse as sp

import scmmgan as smm


def operator(x: np.ndarray, k: int, n_pcs: int) -> np.ndarray:
    """In plain loops: adaptive Gaussian kernel on the k nearest cells in the denoised PCs of the z-scores."""
    z = (x - x.mean(0)) / x.std(0)
    u, d, _ = np.linalg.svd(z.astype(float), full_matrices=False)
    n, g = x.shape
    y = denoised((u * d)[:, :n_pcs], d[:n_pcs] ** 2 / n, g)
    distance = np.sqrt(((y[:, None] - y[None]) ** 2).sum(2))
    kernel = np.zeros((n, n))
    for a in range(n):
        others = sorted((b for b in range(n) if b != a), key=lambda b: distance[a, b])
        for b in others[:k]:
            kernel[a, b] = np.exp(-((distance[a, b] / distance[a, others[min(5, k) - 1]]) ** 2))
    kernel = (kernel + kernel.T) / 2 + np.eye(n)
    return kernel / kernel.sum(1, keepdims=True)


def denoised(y: np.ndarray, variance: np.ndarray, g: int) -> np.ndarray:
    """PCs, each shrunk as in Gavish and Donoho (2017); as they are where no feature is left beside them."""
    n, p = y.shape
    if g <= p:
        return y
    kept = list(range(p))
    while True:
        noise = (g - sum(variance[i] for i in kept)) / (g - len(kept))
        above = [i for i in kept if variance[i] > noise * (1 + (g / n) ** 0.5) ** 2]
        if above == kept:
            break
        kept = above
    assert len(kept) >= 2
    out = np.zeros_like(y)
    for i in kept:
        v = variance[i] / noise
        out[:, i] = y[:, i] * ((v - g / n - 1) ** 2 - 4 * g / n) ** 0.5 / v
    return out


@pytest.mark.parametrize(("t", "k", "n_pcs"), [(3, 15, 50), (1, 15, 10), (2, 4, 5)])
@pytest.mark.parametrize("fmt", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_values(small: md.MuData, t: int, k: int, n_pcs: int, fmt: Callable):
    x = small["rna"].X.copy()
    small["rna"].X = fmt(x)
    smm.pp.smooth(small, "rna", t=t, n_neighbors=k, n_pcs=n_pcs)
    got = small["rna"].layers["smoothed"]
    assert sp.issparse(got) == (fmt is not np.asarray)
    assert got.dtype == np.float32
    expected = np.linalg.matrix_power(operator(x, k, n_pcs), t) @ x
    np.testing.assert_allclose(got.toarray() if sp.issparse(got) else got, expected, atol=1e-4)


def test_a_layer_into_a_layer(small: md.MuData, fingerprint: Callable):
    small["rna"].layers["log"] = small["rna"].X * 2
    before = fingerprint(small)
    smm.pp.smooth(small, "rna", layer="log", key_added="soft")
    after = fingerprint(small)
    assert set(after) - set(before) == {"rna.layers[soft]"}
    assert {name: after[name] for name in before} == before
    smm.pp.smooth(small, "rna")
    np.testing.assert_allclose(small["rna"].layers["soft"], 2 * small["rna"].layers["smoothed"], atol=1e-4)
    # written again
    smm.pp.smooth(small, "rna", key_added="soft", t=1)
    assert not np.allclose(small["rna"].layers["soft"], 2 * small["rna"].layers["smoothed"], atol=1e-2)


def test_constants_stay_and_columns_keep_their_range(small: md.MuData):
    x = small["rna"].X
    x[:, 0] = 2
    smm.pp.smooth(small, "rna")
    got = small["rna"].layers["smoothed"]
    np.testing.assert_allclose(got[:, 0], 2, rtol=1e-6)
    assert (got.min(0) >= x.min(0) - 1e-5).all()
    assert (got.max(0) <= x.max(0) + 1e-5).all()
    assert (got.std(0)[1:] < x.std(0)[1:]).all()


def test_noise_goes_and_populations_stay():
    mdata = smm.datasets.toy(n_cells=300)
    smm.pp.smooth(mdata, "rna")
    label = mdata["rna"].obs["cell_type"].cat.codes.to_numpy()
    within, between = [], []
    for x in (mdata["rna"].X, mdata["rna"].layers["smoothed"]):
        means = np.array([x[label == i].mean(0) for i in range(5)])
        within.append(((x - means[label]) ** 2).mean(0))
        between.append(means[label].var(0))
    # counts around 2 are mostly noise
    assert np.median(within[1] / within[0]) < 0.35
    assert np.median(between[1] / between[0]) > 0.75


def test_survives_a_file(small: md.MuData, tmp_path: Path):
    small["protein"].X = sp.csr_matrix(small["protein"].X)
    for name in ("rna", "protein"):
        smm.pp.smooth(small, name)
    small.write(tmp_path / "smoothed.h5mu")
    again = md.read_h5mu(tmp_path / "smoothed.h5mu")
    np.testing.assert_array_equal(again["rna"].layers["smoothed"], small["rna"].layers["smoothed"])
    assert (again["protein"].layers["smoothed"] != small["protein"].layers["smoothed"]).nnz == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"t": 0}, ValueError, "`t` must be at least 1, got 0"),
        ({"t": 1.5}, TypeError, "`t` must be a whole number, got 1.5"),
        ({"n_neighbors": 0}, ValueError, "`n_neighbors` must be at least 1"),
        ({"n_pcs": -1}, ValueError, "`n_pcs` must be at least 1"),
        ({"random_state": -1}, ValueError, "`random_state` must be at least 0"),
        ({"random_state": None}, TypeError, "`random_state` must be a whole number"),
        ({"layer": "logs"}, KeyError, r"'logs'.*Closest: \['log'\]"),
        ({"layer": "log", "key_added": "log"}, ValueError, "'log' is the layer that is read"),
        ({"key_added": "a/b"}, ValueError, "without slashes, .* got 'a/b'"),
        ({"key_added": None}, ValueError, "`key_added` must be a name"),
        ({"modality": "atac"}, KeyError, r"No modality 'atac'.*\['rna', 'protein'\]"),
    ],
)
def test_refusals_write_nothing(
    small: md.MuData, fingerprint: Callable, arguments: dict[str, Any], error: type[Exception], message: str
):
    small["rna"].layers["log"] = small["rna"].X.copy()
    before = fingerprint(small)
    with pytest.raises(error, match=message):
        smm.pp.smooth(small, **{"modality": "rna", **arguments})
    assert fingerprint(small) == before


def test_values_that_cannot_be_smoothed(small: md.MuData, fingerprint: Callable):
    small["rna"].X[2, 3] = np.nan
    before = fingerprint(small)
    with pytest.raises(ValueError, match="X of 'rna' holds 1 NaN"):
        smm.pp.smooth(small, "rna")
    small["protein"].X[:] = 1
    with pytest.raises(ValueError, match="X of 'protein' is constant"):
        smm.pp.smooth(small, "protein")
    assert set(fingerprint(small)) == set(before)
    few = md.MuData({"a": small["protein"][:31].copy()})
    with pytest.raises(ValueError, match=r"31 cells.*32 cells"):
        smm.pp.smooth(few, "a")


def test_views_and_other_types(small: md.MuData):
    with pytest.raises(ValueError, match=r"'rna' is a view.*copy\(\)"):
        smm.pp.smooth(small[:100], "rna")
    with pytest.raises(TypeError, match=r"must be a MuData.*got AnnData"):
        smm.pp.smooth(small["rna"], "rna")


def test_backed(small: md.MuData, tmp_path: Path):
    small["protein"].X = sp.csr_matrix(small["protein"].X)
    small.write(tmp_path / "toy.h5mu")
    backed = md.read_h5mu(tmp_path / "toy.h5mu", backed=True)
    try:
        for name in ("rna", "protein"):
            smm.pp.smooth(small, name)
            smm.pp.smooth(backed, name)
            got, expected = backed[name].layers["smoothed"], small[name].layers["smoothed"]
            assert abs(got - expected).max() == 0
    finally:
        backed.file.close()


def test_repeatable_and_global_state_untouched(small: md.MuData):
    np.random.seed(3)
    before = np.random.get_state()[1].tobytes()
    smm.pp.smooth(small, "rna", key_added="first")
    smm.pp.smooth(small, "rna", key_added="second")
    np.testing.assert_array_equal(small["rna"].layers["first"], small["rna"].layers["second"])
    assert np.random.get_state()[1].tobytes() == before
