"""One modality as arrays: what is handled, what is refused; checks of arguments, coordinates and masks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.model.space import linear
from scmmgan.model.space.domain import model_space
from scmmgan.pl._tissue import coordinates as tissue_coordinates

FORMATS: dict[str, Callable] = {
    "dense": np.asarray,
    "fortran": np.asfortranarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
}


def values(n: int = 40, g: int = 6) -> np.ndarray:
    return np.random.default_rng(0).poisson(2.0, (n, g)).astype(np.float32)


def make(x: Any, y: Any = None) -> md.MuData:
    """Modality "a" with x, and "b" with other features and cells."""
    a, b = ad.AnnData(x), ad.AnnData(values(50, 5) if y is None else y)
    for name, adata in (("a", a), ("b", b)):
        adata.obs_names = [f"{name}{i}" for i in range(adata.n_obs)]
        adata.var_names = [f"{name}_f{i}" for i in range(adata.n_vars)]
    return md.MuData({"a": a, "b": b})


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_formats_and_types(fmt: str, dtype: str):
    x = values().astype(dtype)
    mdata = make(FORMATS[fmt](x))
    got, columns = _modality.read_matrix(mdata, "a")
    assert got.dtype == np.float32
    assert sp.issparse(got) == ("cs" in fmt)
    np.testing.assert_array_equal(got.toarray() if sp.issparse(got) else got, values())
    assert columns.tolist() == [f"a_f{i}" for i in range(6)]


def test_layers_are_read_by_name():
    mdata = make(values())
    mdata["a"].layers["twice"] = 2 * values()
    np.testing.assert_array_equal(_modality.read_matrix(mdata, "a", layer="twice")[0], 2 * values())
    mdata["a"].X = None
    np.testing.assert_array_equal(_modality.read_matrix(mdata, "a", layer="twice")[0], 2 * values())
    with pytest.raises(ValueError, match=r"'a' has no X.*layers found: \['twice'\]"):
        _modality.read_matrix(mdata, "a")


@pytest.mark.parametrize("kind", ["array", "frame", "csr", "csc"])
def test_representations_are_read_by_name(kind: str):
    rep = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    mdata = make(values())
    mdata["a"].obsm["X_rep"] = {
        "array": rep,
        "frame": pd.DataFrame(rep, index=mdata["a"].obs_names, columns=list("uvw")),
        "csr": sp.csr_matrix(rep),
        "csc": sp.csc_matrix(rep),
    }[kind]
    got, columns = _modality.read_matrix(mdata, "a", use_rep="X_rep")
    np.testing.assert_array_equal(got.toarray() if sp.issparse(got) else got, rep)
    assert columns.tolist() == ["X_rep_0", "X_rep_1", "X_rep_2"]


@pytest.mark.parametrize("x", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_reading_leaves_the_input_alone(x: Callable, fingerprint: Callable):
    mdata = make(x(values()))
    before = fingerprint(mdata)
    # values are not copied: whatever would write into them later, fails
    for adata in mdata.mod.values():
        (adata.X.data if sp.issparse(adata.X) else adata.X).flags.writeable = False
    _modality.read_matrix(mdata, "a")
    assert fingerprint(mdata) == before
    problem = _read.read(mdata, ["a", "b"], {**_read.PER_MODALITY, "links": None, "pairs": None})
    model_space(problem, random_state=0)
    assert fingerprint(mdata) == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fmt", ["dense", "csr", "csc"])
def test_non_finite_values(bad: float, fmt: str):
    x = values()
    x[3, 2] = x[7, 1] = bad
    with pytest.raises(ValueError, match=r"X of 'a' holds 2 NaN or infinite values.*Impute or drop"):
        _modality.read_matrix(make(FORMATS[fmt](x)), "a")


def test_values_beyond_float32():
    x = values().astype(np.float64)
    x[0, 0] = 1e300
    with pytest.raises(ValueError, match=r"1 NaN or infinite values.*3e38"):
        _modality.read_matrix(make(x), "a")


@pytest.mark.parametrize(
    "x",
    [
        np.full((40, 6), 3.0, np.float32),
        np.tile(np.arange(6, dtype=np.float32), (40, 1)),
        sp.csr_matrix((40, 6), dtype=np.float32),
        sp.csr_matrix((np.zeros(5, np.float32), (range(5), range(5))), shape=(40, 6)),
        sp.csr_matrix(np.tile(np.arange(6, dtype=np.float32), (40, 1))),
    ],
    ids=["all equal", "every column", "empty sparse", "stored zeros", "every sparse column"],
)
def test_constant_matrices(x: Any):
    with pytest.raises(ValueError, match=r"X of 'a' is constant in every feature.*layer"):
        _modality.read_matrix(make(x), "a")


def test_one_varying_value_is_enough():
    x = np.tile(np.arange(6, dtype=np.float32), (300, 1))
    x[299, 5] += 1
    assert _modality.read_matrix(make(x), "a")[0].shape == (300, 6)
    assert _modality.read_matrix(make(sp.csr_matrix(x)), "a")[0].shape == (300, 6)


@pytest.mark.parametrize(("n", "g"), [(0, 6), (1, 6), (31, 6), (40, 0)])
def test_too_small(n: int, g: int):
    with pytest.raises(
        ValueError, match=rf"'a' has {n} cells and {g} features; 32 cells and 1 feature are the minimum"
    ):
        _modality.read_matrix(make(values(40, 6)[:n, :g]), "a")


def test_just_large_enough():
    assert _modality.read_matrix(make(values(32, 1)), "a")[0].shape == (32, 1)


@pytest.mark.parametrize("dtype", ["object", "complex64"])
def test_values_that_are_no_numbers(dtype: str):
    mdata = make(values())
    mdata["a"].layers["odd"] = values().astype(dtype)
    with pytest.raises(TypeError, match=rf"layer 'odd' of 'a' has shape \(40, 6\) and dtype {dtype}.*real numbers"):
        _modality.read_matrix(mdata, "a", layer="odd")


def test_table_of_text_as_representation():
    mdata = make(values())
    mdata["a"].obsm["t"] = pd.DataFrame({"x": ["u"] * 40}, index=mdata["a"].obs_names)
    with pytest.raises(TypeError, match=r"obsm 't' of 'a'.*dtype object"):
        _modality.read_matrix(mdata, "a", use_rep="t")


def test_raw_counts_are_noticed(caplog: pytest.LogCaptureFixture):
    counts = np.random.default_rng(0).poisson(60, (40, 6)).astype(np.float32)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        _modality.read_matrix(make(np.log1p(counts)), "a")
        assert caplog.messages == []
        _modality.read_matrix(make(counts), "a")
    assert len(caplog.messages) == 1
    assert f"up to {int(counts.max())}" in caplog.messages[0]
    assert "pp.normalize" in caplog.messages[0]


# --- names and arguments -----------------------------------------------------------------------------------------


def test_modalities():
    mdata = make(values())
    assert _modality.check_modalities(mdata, ()) == ["a", "b"]
    assert _modality.check_modalities(mdata, ("b", "a")) == ["b", "a"]
    with pytest.raises(KeyError, match=r"No modality 'rna'.*\['a', 'b'\]"):
        _modality.check_modalities(mdata, ("a", "rna"))
    for names in (("a",), ("a", "a")):
        with pytest.raises(ValueError, match="two different modalities"):
            _modality.check_modalities(mdata, names)
    for wrong in (["a", "b"], 1, None):
        with pytest.raises(TypeError, match="one by one, as str"):
            _modality.check_modalities(mdata, (wrong,))
    for wrong in (mdata["a"], values(), None):
        with pytest.raises(TypeError, match=rf"must be a MuData.*got {type(wrong).__name__}"):
            _modality.check_modalities(wrong, ())


@pytest.mark.parametrize("name", ["a/b", "/", ".", ""])
def test_modality_names_that_cannot_be_stored(name: str):
    mdata = md.MuData({name: ad.AnnData(values()), "b": ad.AnnData(values())})
    with pytest.raises(ValueError, match=r"cannot be stored.*Rename it"):
        _modality.check_modalities(mdata, ())


@pytest.mark.parametrize("axis", ["obs_names", "var_names"])
def test_names_that_occur_twice(axis: str):
    mdata = make(values())
    names = getattr(mdata["a"], axis).tolist()
    setattr(mdata["a"], axis, [*names[:-1], names[0]])
    with pytest.raises(ValueError, match=rf"{axis} of 'a' are not unique, e.g. '{names[0]}'.*{axis}_make_unique"):
        _modality.read_matrix(mdata, "a")


def test_unknown_keys_name_what_is_there():
    mdata = make(values())
    mdata["a"].layers["log1p"] = values()
    mdata["a"].obsm["X_pca"] = values()
    with pytest.raises(KeyError, match=r"layer in 'a' 'logp1'.*Closest: \['log1p'\].*reads X"):
        _modality.read_matrix(mdata, "a", layer="logp1")
    with pytest.raises(KeyError, match=r"obsm key in 'a' 'X_umap'.*X_pca"):
        _modality.read_matrix(mdata, "a", use_rep="X_umap")
    with pytest.raises(ValueError, match=r"`layer` or `use_rep`, not both.*'log1p' and 'X_pca'"):
        _modality.read_matrix(mdata, "a", layer="log1p", use_rep="X_pca")


def test_arguments_per_modality():
    assert _modality.per_modality(3, ["a", "b"], "x") == {"a": 3, "b": 3}
    assert _modality.per_modality({"b": 3}, ["a", "b"], "x") == {"a": None, "b": 3}
    with pytest.raises(KeyError, match=r"`x` names modalities \['c'\].*\['a', 'b'\]"):
        _modality.per_modality({"c": 3}, ["a", "b"], "x")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers(value: Any):
    got = _modality.whole_number(value, "t", low=1)
    assert (type(got), got) == (int, 3)


def test_numbers_that_are_not_whole():
    for wrong in (True, 2.5, 3.0, "3", None, [3]):
        with pytest.raises(TypeError, match="`t` must be a whole number, got"):
            _modality.whole_number(wrong, "t", low=1)
    with pytest.raises(ValueError, match="`t` must be at least 1, got 0"):
        _modality.whole_number(0, "t", low=1)
    with pytest.raises(ValueError, match="at least 0 and at most 7, got 8"):
        _modality.whole_number(8, "t", low=0, high=7)


# --- coordinates and masks ---------------------------------------------------------------------------------------


def placed(**obsm: Any) -> md.MuData:
    """Modality "a" of 40 cells with these coordinates."""
    mdata = make(values())
    for key, where in obsm.items():
        mdata["a"].obsm[key] = where
    return mdata


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "int64", "frame", "sparse"])
def test_coordinates(dims: int, dtype: str):
    where = np.random.default_rng(0).integers(0, 99, (40, dims))
    mdata = placed()
    as_given = pd.DataFrame(where, index=mdata["a"].obs_names, columns=list("xyz")[:dims])
    forms = {"frame": as_given, "sparse": sp.csr_matrix(where)}
    mdata["a"].obsm["spatial"] = forms[dtype] if dtype in forms else where.astype(dtype)
    # one name is of the modalities that have it; a dict says which
    for spatial in ("spatial", {"a": "spatial"}, {"a": "spatial", "b": None}):
        found = _modality.read_coordinates(mdata, ["a", "b"], spatial)
        assert list(found) == ["a"]
        assert found["a"].dtype == np.float64
        np.testing.assert_array_equal(found["a"], where)
    assert _modality.read_coordinates(mdata, ["a", "b"], None) == {}


@pytest.mark.parametrize(
    ("where", "spatial", "error", "message"),
    [
        (
            None,
            "nowhere",
            KeyError,
            r"No modality has obsm\['nowhere'\] that `spatial` names. Found: \{'a': \['x'\], 'b'",
        ),
        (None, {"a": "y"}, KeyError, r"No obsm key in 'a' 'y'"),
        (None, {"c": "x"}, KeyError, r"`spatial` names modalities \['c'\]"),
        (np.ones((40, 1)), "x", ValueError, r"obsm\['x'\] of 'a' has shape \(40, 1\).*2 or 3 columns"),
        (np.ones((40, 4)), "x", ValueError, r"shape \(40, 4\)"),
        (np.full((40, 2), 1j), "x", ValueError, "dtype complex128"),
        (np.full((40, 2), np.inf), "x", ValueError, r"obsm\['x'\] of 'a' holds NaN or infinite coordinates"),
        (np.r_[[[np.nan, 1]], np.ones((39, 2))], "x", ValueError, "NaN or infinite coordinates"),
        (np.ones((40, 2)), "x", ValueError, r"puts all cells at one place. Name another key"),
    ],
)
def test_coordinates_refused(where: Any, spatial: Any, error: type[Exception], message: str):
    mdata = placed(x=np.random.default_rng(0).random((40, 2)) if where is None else where)
    with pytest.raises(error, match=message):
        _modality.read_coordinates(mdata, ["a", "b"], spatial)


def test_cells_on_a_line_have_places():
    line = np.column_stack([np.zeros(40), np.arange(40)])
    np.testing.assert_array_equal(_modality.coordinates(placed(x=line), "a", "x"), line)


def test_masks():
    chosen = np.arange(6) < 4
    mdata = make(values())
    mdata["a"].var["hv"] = chosen
    for mask in ("hv", chosen, chosen.tolist(), pd.Series(chosen)):
        np.testing.assert_array_equal(_modality.read_mask(mdata, "a", mask, None), np.arange(4))
    assert _modality.read_mask(mdata, "a", None, None) is None
    # a representation has no features to choose
    assert _modality.read_mask(mdata, "a", "hv", "X_rep") is None


def test_masks_refused():
    mdata = make(values())
    mdata["a"].var["n"] = 2
    mdata["a"].var["none"] = False
    with pytest.raises(KeyError, match=r"var column in 'a' 'hv'.*\['n', 'none'\]"):
        _modality.read_mask(mdata, "a", "hv", None)
    with pytest.raises(ValueError, match=r"'a' must be 6 booleans, got \(6,\) of int64"):
        _modality.read_mask(mdata, "a", "n", None)
    with pytest.raises(ValueError, match=r"'a' must be 6 booleans, got \(5,\) of bool"):
        _modality.read_mask(mdata, "a", np.ones(5, bool), None)
    with pytest.raises(ValueError, match="`mask_var` of 'a' chooses no feature"):
        _modality.read_mask(mdata, "a", "none", None)


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix])
def test_what_varies(convert: Callable):
    x = np.tile(np.arange(4, dtype=np.float32), (300, 1))
    x[-1, 2] += 1
    assert _modality.varies(convert(x))
    assert _modality.varies(convert(x), np.array([2, 0]))
    assert not _modality.varies(convert(x), np.array([3, 1, 0]))


def test_views_cannot_be_written_to():
    mdata = make(values())
    _modality.check_writable(mdata, ["a", "b"])
    inner = md.MuData({"a": mdata["a"][:35], "b": mdata["b"].copy()})
    for wrong in (mdata[mdata.obs_names[:60]], inner):
        with pytest.raises(ValueError, match=r"`mdata` is a view.*mdata.copy\(\)"):
            _modality.check_writable(wrong, ["a", "b"])


# --- input that people have --------------------------------------------------------------------------------------


def test_features_and_cells_with_nan_are_named():
    x = values()
    x[3:5, 2] = np.nan
    x[7, 4] = np.inf
    for stored in (x, sp.csr_matrix(x)):
        with pytest.raises(ValueError, match=r"3 NaN.*2 of \d+ features \('\w+2', '\w+4'\) and 3 of 40 cells \('\w+3'"):
            _modality.read_matrix(make(stored), "a")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_entries_that_are_stored_in_parts(dtype: str, form: Callable, caplog: pytest.LogCaptureFixture):
    """Each entry as twice its half, as of matrices that were put together from coordinates: squares would differ."""
    whole = form(sp.csr_matrix(2 * values()))
    parts = form(whole.shape, dtype=np.float32)
    parts.data, parts.indices = np.repeat(whole.data / 2, 2).astype(dtype), np.repeat(whole.indices, 2)
    parts.indptr = 2 * whole.indptr
    read = _modality.read_matrix(make(parts), "a")[0]
    np.testing.assert_array_equal(read.data, sp.csr_matrix(whole).data)
    assert parts.nnz == 2 * whole.nnz  # the input stays


def test_masked_values_are_not_read():
    x = np.ma.masked_array(values(), mask=False)
    np.testing.assert_array_equal(_modality.read_matrix(make(x), "a")[0], x.data)
    x[3, 2] = np.ma.masked
    with pytest.raises(ValueError, match=r"1 NaN.*\('\w+2'\) and 1 of 40 cells \('\w+3'"):
        _modality.read_matrix(make(x), "a")


@pytest.mark.parametrize(("highest", "noticed"), [(1, False), (2, True), (49, True)])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_raw_counts_of_a_panel(highest: int, noticed: bool, form, caplog: pytest.LogCaptureFixture):
    counts = np.random.default_rng(0).integers(0, highest + 1, (40, 6)).astype(np.float32)
    counts[~counts.any(1), 0] = 1
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        _modality.read_matrix(make(form(counts)), "a")
        _modality.read_matrix(make(form(counts * 0.97)), "a")
    assert ["raw counts" in text for text in caplog.messages] == [True] * noticed


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("blocks", [False, True])
def test_cells_without_a_value_are_counted(
    form: Callable, blocks: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    if blocks:
        monkeypatch.setattr(linear, "BLOCKED_FROM", 10)
        monkeypatch.setattr(linear, "BLOCK_ROWS", 7)
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    x[::2, 1:] = 0
    _modality.read_matrix(make(form(x)), "a")
    assert caplog.messages == []
    stored = form(x)
    x[[3, 8, 39]] = 0
    if sp.issparse(stored):
        # zeros that are stored are zeros
        stored.data[:] = x[stored.nonzero()]
    else:
        stored = x
    mdata = make(stored)
    mdata["a"].layers["z"] = mdata["a"].X
    _modality.read_matrix(mdata, "a")
    _modality.read_matrix(mdata, "a", layer="z")
    assert caplog.messages == [
        f"3 of 40 cells of 'a' have no value but 0 in {slot}: nothing says where they belong. Remove them first."
        for slot in ("X", "layer 'z'")
    ]


@pytest.mark.parametrize("kind", ["text", "object", "table"])
def test_coordinates_stored_as_text(kind: str, caplog: pytest.LogCaptureFixture):
    mdata, xy = make(values()), np.random.default_rng(0).normal(size=(40, 2))
    text = xy.astype(str) if kind == "text" else xy.astype(str).astype(object)
    mdata["a"].obsm["x"] = pd.DataFrame(text, mdata["a"].obs_names, ["u", "v"]) if kind == "table" else text
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        np.testing.assert_array_equal(_modality.coordinates(mdata, "a", "x"), xy)
    assert caplog.messages == ["obsm['x'] of 'a' holds text: it is read as numbers."]


def test_coordinates_that_are_no_numbers():
    mdata = make(values())
    mdata["a"].obsm["x"] = np.array([["1", "2,5"]] * 40, dtype=object)
    with pytest.raises(ValueError, match=r"obsm\['x'\] of 'a' holds text that is no number.*2,5.*astype\(float\)"):
        _modality.coordinates(mdata, "a", "x")


@pytest.mark.parametrize("columns", [["x", "y"], ["x_centroid", "y_centroid"], ["x", "y", "z"]])
def test_coordinates_in_obs_are_named_and_the_code_runs(columns: list[str]):
    mdata = make(values())
    for column in columns:
        mdata["a"].obs[column] = np.arange(40.0)
    for call in (
        lambda: tissue_coordinates(mdata["a"], "a", "spatial"),
        lambda: _modality.coordinates(mdata, "a", "spatial"),
        lambda: _modality.read_coordinates(mdata, ["a", "b"], "spatial"),
    ):
        with pytest.raises(KeyError) as raised:
            call()
        code = raised.value.args[0].split("`")[-2]
    exec(code, {"mdata": mdata})
    assert _modality.coordinates(mdata, "a", "spatial").shape == (40, len(columns))


def test_cells_without_coordinates_are_named():
    mdata = make(values())
    mdata["a"].obsm["x"] = np.r_[np.ones((39, 2)), [[np.nan, 1]]]
    with pytest.raises(ValueError, match=f"1 of 40 cells, e.g. '{mdata['a'].obs_names[39]}'"):
        _modality.coordinates(mdata, "a", "x")


TRANSPOSED = {
    "cells named like features": (
        [f"g{i}" for i in range(40)],
        [f"c{i}" for i in range(5)],
        "like features of another",
    ),
    "features named like cells": ([f"r{i}" for i in range(40)], [f"b{i}" for i in range(5)], "like cells of another"),
    "barcodes": (
        [f"r{i}" for i in range(40)],
        [f"S1_ACGTACGTACGTAC{c}-1" for c in "ACGTA"[:4]] + ["x"],
        "like barcodes",
    ),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_a_transposed_matrix(case: str):
    rows, columns, reason = TRANSPOSED[case]
    other = ad.AnnData(np.ones((40, 40)), pd.DataFrame(index=[f"b{i}" for i in range(40)]))
    other.var_names = [f"g{i}" for i in range(40)]
    mdata = md.MuData(
        {"a": ad.AnnData(values()[:, :5], pd.DataFrame(index=rows), pd.DataFrame(index=columns)), "b": other}
    )
    with pytest.raises(ValueError, match=rf"'a' \(40 cells × 5 features\) looks transposed: .*{reason}") as raised:
        _modality.check_modalities(mdata, ())
    names = {"mudata": md, "mdata": mdata}
    exec(str(raised.value).split("`")[1], names)
    assert names["mdata"]["a"].shape == (5, 40)


def test_what_is_not_transposed():
    # numbers name anything; distances between cells have features named like cells
    x = np.random.default_rng(0).random((40, 40))
    numbers = md.MuData({"a": ad.AnnData(x), "b": ad.AnnData(x[:35])})
    assert _modality.check_modalities(numbers, ()) == ["a", "b"]
    index = pd.DataFrame(index=[f"cell{i}" for i in range(40)])
    distances = md.MuData({"a": ad.AnnData(x, index, index), "b": ad.AnnData(x[:, :5], index)})
    assert _modality.check_modalities(distances, ()) == ["a", "b"]


@pytest.mark.parametrize("mask", [[1, 0, 1], [True, None, "True"], ["true", "false", "TRUE"], [1.0, np.nan, 1.0]])
def test_yes_and_no_in_any_form(mask: list):
    np.testing.assert_array_equal(_modality.as_booleans(pd.Series(mask, dtype=object)), [True, False, True])
    np.testing.assert_array_equal(_modality.as_booleans(pd.Categorical(mask)), [True, False, True])
    assert _modality.as_booleans(pd.Series(["yes", "no"])) is None
    assert _modality.as_booleans(pd.Series([0, 2])) is None


# --- counts --------------------------------------------------------------------------------------------------------


def with_counts(counts: Any, name: str = "counts") -> md.MuData:
    mdata = make(np.log1p(values()))
    mdata["a"].layers[name] = counts
    return mdata


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("counts", ["auto", "counts"])
def test_counts_are_found(fmt: str, counts: str):
    found = _modality.read_counts(with_counts(FORMATS[fmt](values())), "a", counts)
    assert sp.issparse(found) == ("cs" in fmt)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.toarray() if sp.issparse(found) else found, values())


@pytest.mark.parametrize("counts", ["auto", None])
def test_no_counts_where_there_are_none(counts: str | None, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="scmmgan")
    assert _modality.read_counts(with_counts(values(), "raw"), "a", counts) is None
    if counts is None:
        assert _modality.read_counts(with_counts(values()), "a", None) is None
    assert not caplog.text


def test_counts_of_another_layer():
    found = _modality.read_counts(with_counts(sp.csr_matrix(values()), "raw"), "a", "raw")
    np.testing.assert_array_equal(found.toarray(), values())
    with pytest.raises(KeyError, match="counts=None"):
        _modality.read_counts(with_counts(values(), "raw"), "a", "ra")
    with pytest.raises(TypeError, match="`counts` must be 'auto', a layer or None"):
        _modality.read_counts(with_counts(values()), "a", 3)  # type: ignore[arg-type]


NO_COUNTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "not whole": lambda x: x / 2,
    "negative": lambda x: x - 1,
    "infinite": lambda x: np.where(x == x.max(), np.inf, x),
    "gaps": lambda x: np.where(x == x.max(), np.nan, x),
    "nothing but zeros": np.zeros_like,
}


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("kind", NO_COUNTS)
def test_what_are_no_counts(kind: str, form: Callable, caplog: pytest.LogCaptureFixture):
    """Not read where nobody asked, and said so; refused where somebody did."""
    caplog.set_level(logging.INFO, logger="scmmgan")
    mdata = with_counts(form(NO_COUNTS[kind](values())))
    assert _modality.read_counts(mdata, "a", "auto") is None
    assert "layers['counts'] of 'a' holds no whole numbers" in caplog.text
    with pytest.raises(ValueError, match=r"layers\['counts'\] of 'a' holds no counts"):
        _modality.read_counts(mdata, "a", "counts")


def test_x_is_no_layer():
    """anndata 0.13 lists it, as None."""
    assert _modality.layers_of(SimpleNamespace(layers={None: 1, "counts": 2})) == ["counts"]
