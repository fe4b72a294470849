"""`pp.normalize` against the definitions, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import anndata as ad
import mudata as md
import numpy as np
import pytest
import scipy.sparse as sp

import scmmgan as smm
from scmmgan.data.modality import layers_of

FORMATS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
}


def counts(dtype: str = "float32") -> np.ndarray:
    """30 cells × 12 features; feature 3 has no counts, every cell has some."""
    values = np.random.default_rng(0).poisson(1.5, (30, 12))
    values[:, 3] = 0
    values[:, 0] += 1
    return values.astype(dtype)


def make(x: object, **layers: object) -> md.MuData:
    return md.MuData({"a": ad.AnnData(x, layers=layers), "b": ad.AnnData(np.ones((4, 2), np.float32))})


def dense(x: object) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def expected(kind: str, x: np.ndarray) -> np.ndarray:
    """The three definitions, written out."""
    x = x.astype(float)
    share = 1e4 * x / x.sum(axis=1, keepdims=True)
    if kind == "log1p":
        return np.log1p(share)
    if kind == "clr":
        return np.log1p(x / np.exp(np.log1p(x).mean(axis=0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.log1p(share) * np.log1p(len(x) / x.sum(axis=0)))


@pytest.mark.parametrize("kind", ["log1p", "clr", "tfidf"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_values(kind: str, fmt: str):
    mdata = make(FORMATS[fmt](counts()))
    smm.pp.normalize(mdata, "a", kind=kind)
    got = mdata["a"].layers[kind]
    assert sp.issparse(got) == (fmt != "dense")
    assert got.dtype == np.float32
    np.testing.assert_allclose(dense(got), expected(kind, counts()), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["log1p", "clr", "tfidf"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16", "float64", "bool"])
def test_dtypes(kind: str, dtype: str):
    mdata = make(counts(dtype))
    smm.pp.normalize(mdata, "a", kind=kind)
    np.testing.assert_allclose(mdata["a"].layers[kind], expected(kind, counts(dtype)), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["log1p", "clr", "tfidf"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_inputs_untouched(kind: str, fmt: str):
    mdata = make(FORMATS[fmt](counts() + 1), counts=FORMATS[fmt](counts()))
    before = mdata.copy()
    smm.pp.normalize(mdata, "a", kind=kind)
    for get in (lambda m: m["a"].X, lambda m: m["a"].layers["counts"]):
        assert type(get(mdata)) is type(get(before))
        np.testing.assert_array_equal(dense(get(mdata)), dense(get(before)))
    assert set(layers_of(mdata["a"])) == {"counts", kind}
    assert not mdata.uns
    assert not mdata["a"].uns
    assert not mdata["b"].layers


def test_reads_counts_layer_then_x_then_named_layer():
    other = counts() * 3 + 1
    mdata = make(other, counts=counts(), other=other)
    smm.pp.normalize(mdata, "a", kind="clr")
    np.testing.assert_allclose(mdata["a"].layers["clr"], expected("clr", counts()), rtol=2e-5, atol=1e-6)
    smm.pp.normalize(mdata, "a", kind="clr", layer="other", key_added="mine")
    np.testing.assert_allclose(mdata["a"].layers["mine"], expected("clr", other), rtol=2e-5, atol=1e-6)
    del mdata["a"].layers["counts"]
    smm.pp.normalize(mdata, "a", kind="clr")  # a second run replaces the layer
    np.testing.assert_allclose(mdata["a"].layers["clr"], expected("clr", other), rtol=2e-5, atol=1e-6)


def test_stored_zeros_do_not_become_nan():
    filled = counts()
    filled[:, 3] = 1
    x = sp.csr_matrix(filled)
    x.data[x.indices == 3] = 0
    mdata = make(x)
    smm.pp.normalize(mdata, "a", kind="tfidf")
    np.testing.assert_allclose(dense(mdata["a"].layers["tfidf"]), expected("tfidf", counts()), rtol=2e-5, atol=1e-6)


def test_backed_counts(tmp_path):
    file = tmp_path / "a.h5ad"
    ad.AnnData(sp.csr_matrix(counts())).write(file)
    mdata = md.MuData({"a": ad.read_h5ad(file, backed="r")})
    smm.pp.normalize(mdata, "a", kind="log1p")
    np.testing.assert_allclose(dense(mdata["a"].layers["log1p"]), expected("log1p", counts()), rtol=2e-5, atol=1e-6)
    mdata["a"].file.close()


def spoiled(value: float) -> np.ndarray:
    x = counts()
    x[2, 5] = value
    return x


@pytest.mark.parametrize("kind", ["log1p", "clr", "tfidf"])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "1 NaN or infinite"), (np.inf, "1 NaN or infinite"), (-2, "minimum -2"), (0.5, "instance 0.5")],
)
def test_refuses_what_is_no_count(kind: str, fmt: str, value: float, message: str):
    mdata = make(FORMATS[fmt](spoiled(value)))
    with pytest.raises(ValueError, match=message):
        smm.pp.normalize(mdata, "a", kind=kind)
    assert not mdata["a"].layers


def test_refuses_fractions_that_float32_would_round_away():
    x = counts("float64")
    x[2, 5] = 2.0**25 + 0.25
    with pytest.raises(ValueError, match="not whole numbers"):
        smm.pp.normalize(make(x), "a", kind="log1p")


def test_refuses_empty_cells():
    x = counts()
    x[[4, 7]] = 0
    mdata = make(x)
    with pytest.raises(ValueError, match="2 of 30 cells have no counts") as refused:
        smm.pp.normalize(mdata, "a", kind="log1p")
    # the way out that the message names
    exec(str(refused.value).split("`")[1], {"mdata": mdata, "numpy": np})
    smm.pp.normalize(mdata, "a", kind="log1p")
    assert mdata["a"].layers["log1p"].shape == (28, 12)


@pytest.mark.parametrize(
    ("modality", "kwargs", "error", "message"),
    [
        ("c", {"kind": "clr"}, KeyError, r"No modality 'c'.*\['a', 'b'\]"),
        ("a", {"kind": "clr", "layer": "raw"}, KeyError, r"No layer in 'a' 'raw'.*\['counts'\]"),
        ("a", {"kind": "log"}, ValueError, "Unknown kind 'log'"),
        ("a", {"kind": "clr", "key_added": "counts"}, ValueError, "is the layer that is read"),
        ("a", {"kind": "clr", "key_added": "x/y"}, ValueError, "without slashes, .* got 'x/y'"),
    ],
)
def test_refuses_wrong_names(modality: str, kwargs: dict, error: type[Exception], message: str):
    mdata = make(counts(), counts=counts())
    with pytest.raises(error, match=message):
        smm.pp.normalize(mdata, modality, **kwargs)
    assert set(layers_of(mdata["a"])) == {"counts"}


def test_refuses_views_empty_and_foreign_arrays():
    mdata = make(counts())
    with pytest.raises(ValueError, match="is a view"):
        smm.pp.normalize(mdata[:10], "a", kind="clr")
    with pytest.raises(ValueError, match="0 cells × 12 features"):
        smm.pp.normalize(make(counts()[:0]), "a", kind="clr")
    with pytest.raises(TypeError, match="is NoneType"):
        smm.pp.normalize(md.MuData({"a": ad.AnnData(shape=(3, 2))}), "a", kind="clr")
    with pytest.raises(TypeError, match="dtype complex64"):
        smm.pp.normalize(make(counts("complex64")), "a", kind="clr")


# --- input that people have --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["log1p", "clr", "tfidf"])
@pytest.mark.parametrize("fmt", ["dense", "csr"])
def test_counts_corrected_for_ambient_rna(kind: str, fmt: str):
    corrected = counts() * 0.97
    mdata = make(FORMATS[fmt](corrected))
    with pytest.raises(ValueError, match=r"not whole numbers.*SoupX.*`corrected=True`"):
        smm.pp.normalize(mdata, "a", kind=kind)
    assert not mdata["a"].layers
    smm.pp.normalize(mdata, "a", kind=kind, corrected=True)
    np.testing.assert_allclose(dense(mdata["a"].layers[kind]), expected(kind, corrected), rtol=2e-5, atol=1e-6)
    with pytest.raises(ValueError, match="negative"):
        smm.pp.normalize(make(-corrected), "a", kind=kind, corrected=True)


def test_features_with_nan_are_named():
    x = counts()
    x[2, 5] = np.nan
    with pytest.raises(ValueError, match=r"1 NaN .*1 of 12 features \('5'\) and 1 of 30 cells \('2'\)"):
        smm.pp.normalize(make(x), "a", kind="clr")


@pytest.mark.slow
def test_same_values_as_muon():
    """In a process of its own: muon's import warns."""
    code = (
        "import anndata as ad, muon, mudata as md, numpy as np, scmmgan as smm\n"
        "x = np.random.default_rng(0).poisson(1.5, (30, 12)).astype('float32') + np.eye(30, 12, dtype='float32')\n"
        "for kind, of in (('clr', muon.prot.pp.clr), ('tfidf', muon.atac.pp.tfidf)):\n"
        "    mdata, other = md.MuData({'a': ad.AnnData(x.copy())}), ad.AnnData(x.copy())\n"
        "    smm.pp.normalize(mdata, 'a', kind=kind)\n"
        "    of(other)\n"
        "    theirs = other.X.toarray() if hasattr(other.X, 'toarray') else other.X\n"
        "    np.testing.assert_allclose(mdata['a'].layers[kind], theirs, rtol=2e-5, atol=1e-6)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
