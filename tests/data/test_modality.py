"""Reading modalities: what is handled, what is refused, and which features make the model space."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm
from scmmgan.data import links as _links
from scmmgan.data import modality as _domain

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


def read(mdata: md.MuData, names: list[str] | None = None, **arguments: Any) -> tuple[dict[str, _domain.Domain], bool]:
    names = names or list(mdata.mod)
    defaults = {"layer": None, "use_rep": None, "mask_var": None, "smooth": None, "n_pcs": None}
    per = {k: _domain.per_modality(arguments.pop(k, v), names, k) for k, v in defaults.items()}
    batches = {**dict.fromkeys(names), **arguments.pop("batches", {})}
    domains, shared = _domain.read_domains(
        mdata,
        names,
        links=arguments.pop("links", {}),
        batches=batches,
        labels=arguments.pop("labels", None),
        denoise=arguments.pop("denoise", False),
        own_share=arguments.pop("own_share", 0.0),
        random_state=0,
        **per,
    )
    return {d.name: d for d in domains}, shared


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_formats_and_types(fmt: str, dtype: str):
    x = values().astype(dtype)
    mdata = make(FORMATS[fmt](x))
    got, columns = _domain.read_matrix(mdata, "a")
    assert got.dtype == np.float32
    assert sp.issparse(got) == ("cs" in fmt)
    np.testing.assert_array_equal(got.toarray() if sp.issparse(got) else got, values())
    assert columns.tolist() == [f"a_f{i}" for i in range(6)]


def test_layers_are_read_by_name():
    mdata = make(values())
    mdata["a"].layers["twice"] = 2 * values()
    np.testing.assert_array_equal(_domain.read_matrix(mdata, "a", layer="twice")[0], 2 * values())
    mdata["a"].X = None
    np.testing.assert_array_equal(_domain.read_matrix(mdata, "a", layer="twice")[0], 2 * values())
    with pytest.raises(ValueError, match=r"'a' has no X.*layers found: \['twice'\]"):
        _domain.read_matrix(mdata, "a")


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
    got, columns = _domain.read_matrix(mdata, "a", use_rep="X_rep")
    np.testing.assert_array_equal(got.toarray() if sp.issparse(got) else got, rep)
    assert columns.tolist() == ["X_rep_0", "X_rep_1", "X_rep_2"]


@pytest.mark.parametrize("x", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_reading_leaves_the_input_alone(x: Callable, fingerprint: Callable):
    mdata = make(x(values()))
    before = fingerprint(mdata)
    got, _ = _domain.read_matrix(mdata, "a")
    read(mdata, smooth=3)
    assert fingerprint(mdata) == before
    if not sp.issparse(got):
        got[:] = 0
        assert fingerprint(mdata) == before


def test_unsorted_and_doubled_entries():
    """Legal CSR: descending indices, and one entry in two parts. Read as what it stands for, and left as it is."""
    x = values(40, 6) + 1
    indices = np.tile([5, 4, 3, 2, 1, 0, 0], 40)
    data = np.column_stack([x[:, ::-1], np.full(40, 0.5)]).ravel()
    odd = sp.csr_matrix((data.astype(np.float32), indices, np.arange(0, 281, 7)), shape=(40, 6))
    mdata = make(odd)
    stored = mdata["a"].X
    before = stored.indices.copy(), stored.data.copy()
    x[:, 0] += 0.5
    reference, _ = read(make(x), smooth=3)
    found, _ = read(mdata, smooth=3)
    np.testing.assert_allclose(found["a"].x, reference["a"].x, atol=1e-4)
    np.testing.assert_array_equal(mdata["a"].X.indices, before[0])
    np.testing.assert_array_equal(mdata["a"].X.data, before[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fmt", ["dense", "csr", "csc"])
def test_non_finite_values(bad: float, fmt: str):
    x = values()
    x[3, 2] = x[7, 1] = bad
    with pytest.raises(ValueError, match=r"X of 'a' holds 2 NaN or infinite values.*Impute or drop"):
        _domain.read_matrix(make(FORMATS[fmt](x)), "a")


def test_values_beyond_float32():
    x = values().astype(np.float64)
    x[0, 0] = 1e300
    with pytest.raises(ValueError, match=r"1 NaN or infinite values.*3e38"):
        _domain.read_matrix(make(x), "a")


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
        _domain.read_matrix(make(x), "a")


def test_one_varying_value_is_enough():
    x = np.tile(np.arange(6, dtype=np.float32), (300, 1))
    x[299, 5] += 1
    assert _domain.read_matrix(make(x), "a")[0].shape == (300, 6)
    assert _domain.read_matrix(make(sp.csr_matrix(x)), "a")[0].shape == (300, 6)


@pytest.mark.parametrize(("n", "g"), [(0, 6), (1, 6), (31, 6), (40, 0)])
def test_too_small(n: int, g: int):
    with pytest.raises(
        ValueError, match=rf"'a' has {n} cells and {g} features; 32 cells and 1 feature are the minimum"
    ):
        _domain.read_matrix(make(values(40, 6)[:n, :g]), "a")


def test_just_large_enough():
    assert _domain.read_matrix(make(values(32, 1)), "a")[0].shape == (32, 1)


@pytest.mark.parametrize("dtype", ["object", "complex64"])
def test_values_that_are_no_numbers(dtype: str):
    mdata = make(values())
    mdata["a"].layers["odd"] = values().astype(dtype)
    with pytest.raises(TypeError, match=rf"layer 'odd' of 'a' has shape \(40, 6\) and dtype {dtype}.*real numbers"):
        _domain.read_matrix(mdata, "a", layer="odd")


def test_table_of_text_as_representation():
    mdata = make(values())
    mdata["a"].obsm["t"] = pd.DataFrame({"x": ["u"] * 40}, index=mdata["a"].obs_names)
    with pytest.raises(TypeError, match=r"obsm 't' of 'a'.*dtype object"):
        _domain.read_matrix(mdata, "a", use_rep="t")


def test_raw_counts_are_noticed(caplog: pytest.LogCaptureFixture):
    counts = np.random.default_rng(0).poisson(60, (40, 6)).astype(np.float32)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        _domain.read_matrix(make(np.log1p(counts)), "a")
        assert caplog.messages == []
        _domain.read_matrix(make(counts), "a")
    assert len(caplog.messages) == 1
    assert f"up to {int(counts.max())}" in caplog.messages[0]
    assert "pp.normalize" in caplog.messages[0]


# --- names and arguments -----------------------------------------------------------------------------------------


def test_modalities():
    mdata = make(values())
    assert _domain.check_modalities(mdata, ()) == ["a", "b"]
    assert _domain.check_modalities(mdata, ("b", "a")) == ["b", "a"]
    with pytest.raises(KeyError, match=r"No modality 'rna'.*\['a', 'b'\]"):
        _domain.check_modalities(mdata, ("a", "rna"))
    for names in (("a",), ("a", "a")):
        with pytest.raises(ValueError, match="two different modalities"):
            _domain.check_modalities(mdata, names)
    for wrong in (["a", "b"], 1, None):
        with pytest.raises(TypeError, match="one by one, as str"):
            _domain.check_modalities(mdata, (wrong,))
    for wrong in (mdata["a"], values(), None):
        with pytest.raises(TypeError, match=rf"must be a MuData.*got {type(wrong).__name__}"):
            _domain.check_modalities(wrong, ())


@pytest.mark.parametrize("name", ["a/b", "/", ".", ""])
def test_modality_names_that_cannot_be_stored(name: str):
    mdata = md.MuData({name: ad.AnnData(values()), "b": ad.AnnData(values())})
    with pytest.raises(ValueError, match=r"cannot be stored.*Rename it"):
        _domain.check_modalities(mdata, ())


@pytest.mark.parametrize("axis", ["obs_names", "var_names"])
def test_names_that_occur_twice(axis: str):
    mdata = make(values())
    names = getattr(mdata["a"], axis).tolist()
    setattr(mdata["a"], axis, [*names[:-1], names[0]])
    with pytest.raises(ValueError, match=rf"{axis} of 'a' are not unique, e.g. '{names[0]}'.*{axis}_make_unique"):
        _domain.read_matrix(mdata, "a")


def test_unknown_keys_name_what_is_there():
    mdata = make(values())
    mdata["a"].layers["log1p"] = values()
    mdata["a"].obsm["X_pca"] = values()
    with pytest.raises(KeyError, match=r"layer in 'a' 'logp1'.*Closest: \['log1p'\].*reads X"):
        _domain.read_matrix(mdata, "a", layer="logp1")
    with pytest.raises(KeyError, match=r"obsm key in 'a' 'X_umap'.*X_pca"):
        _domain.read_matrix(mdata, "a", use_rep="X_umap")
    with pytest.raises(ValueError, match=r"`layer` or `use_rep`, not both.*'log1p' and 'X_pca'"):
        _domain.read_matrix(mdata, "a", layer="log1p", use_rep="X_pca")


def test_arguments_per_modality():
    assert _domain.per_modality(3, ["a", "b"], "x") == {"a": 3, "b": 3}
    assert _domain.per_modality({"b": 3}, ["a", "b"], "x") == {"a": None, "b": 3}
    with pytest.raises(KeyError, match=r"`x` names modalities \['c'\].*\['a', 'b'\]"):
        _domain.per_modality({"c": 3}, ["a", "b"], "x")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers(value: Any):
    got = _domain.whole_number(value, "t", low=1)
    assert (type(got), got) == (int, 3)


def test_numbers_that_are_not_whole():
    for wrong in (2.5, 3.0, "3", None, [3]):
        with pytest.raises(TypeError, match="`t` must be a whole number, got"):
            _domain.whole_number(wrong, "t", low=1)
    with pytest.raises(ValueError, match="`t` must be at least 1, got 0"):
        _domain.whole_number(0, "t", low=1)
    with pytest.raises(ValueError, match="at least 0 and at most 7, got 8"):
        _domain.whole_number(8, "t", low=0, high=7)


# --- domains -----------------------------------------------------------------------------------------------------


def test_domain_is_smoothed_and_transformed(small: md.MuData):
    from scmmgan.model.space.transform import fit_operator

    domains, shared = read(small, smooth=3, n_pcs=10)
    assert not shared
    for name, d in domains.items():
        x = small[name].X
        s = np.linalg.matrix_power(fit_operator(x).toarray().astype(float), 3) @ x
        z = (s - s.mean(0)) / s.std(0)
        scores = z @ np.linalg.svd(z, full_matrices=False)[2][:10].T
        expected = scores / np.sqrt((scores**2).mean())
        # up to the signs of the axes
        np.testing.assert_allclose(np.abs(d.x), np.abs(expected), atol=2e-3)
        assert d.x.dtype == np.float32
        assert d.x.shape == (120, 10)
        np.testing.assert_allclose(d.zscored(np.array([4, 1])), z[:, [4, 1]], atol=1e-4)
        assert d.obs_names.tolist() == small[name].obs_names.tolist()


def test_model_space_keeps_a_share_of_own_values(small: md.MuData):
    """Not without smoothing, nor of a representation; the layer that is decoded to is the smoothed one."""
    from scmmgan.model.space.transform import fit_operator

    small["protein"].obsm["X_rep"] = small["protein"].X[:, :4].copy()
    domains, _ = read(small, smooth=3, n_pcs=10, use_rep={"protein": "X_rep"}, own_share=0.3)
    d, x = domains["rna"], small["rna"].X
    s = np.linalg.matrix_power(fit_operator(x).toarray().astype(float), 3) @ x
    kept = 0.3 * x + 0.7 * s
    z = (kept - kept.mean(0)) / kept.std(0)
    scores = z @ np.linalg.svd(z, full_matrices=False)[2][:10].T
    np.testing.assert_allclose(np.abs(d.x), np.abs(scores) / np.sqrt((scores**2).mean()), atol=2e-3)
    np.testing.assert_allclose(d.cells.columns(np.arange(30)), kept, atol=1e-4)
    np.testing.assert_allclose(d.smoothed.columns(np.arange(30)), s, atol=1e-4)
    np.testing.assert_allclose(d.transform.mean, s.mean(0), atol=1e-4)
    assert (d.own_share, domains["protein"].own_share) == (0.3, 0.0)
    assert read(small, smooth=None, own_share=0.3)[0]["rna"].own_share == 0.0
    shared = read(mdata := genes_in_common(60), smooth=3, own_share=0.3, links=links_of(mdata))
    assert shared[1]
    assert {d.own_share for d in shared[0].values()} == {0.0}


@pytest.mark.parametrize("fmt", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("steps", [None, 3])
def test_half_smoothed_features(small: md.MuData, fmt: Callable, steps: int | None):
    """z-scores before and after the smoothing count alike, however much it takes away."""
    small["rna"].X = fmt(small["rna"].X)
    before, at = small["rna"].X.copy(), np.array([4, 1, 7])
    d = read(small, smooth=steps, n_pcs=10)[0]["rna"]
    x, s = d.smoothed.measured(at).astype(float), d.smoothed.columns(at).astype(float)
    np.testing.assert_array_equal(x, (before.toarray() if sp.issparse(before) else before)[:, at])
    assert (s.std(0) < 0.9 * x.std(0)).all() == (steps is not None)
    both = (x - x.mean(0)) / x.std(0) + (s - s.mean(0)) / s.std(0)
    found = d.half_smoothed(at)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, both / both.std(0), atol=1e-4)


def test_arguments_reach_their_modality(small: md.MuData):
    small["rna"].layers["other"] = small["rna"].X[::-1].copy()
    small["protein"].obsm["X_rep"] = small["protein"].X[:, :4].copy()
    domains, _ = read(
        small, layer={"rna": "other"}, use_rep={"protein": "X_rep"}, n_pcs={"rna": 7}, smooth={"rna": 2, "protein": 3}
    )
    assert domains["rna"].x.shape == (120, 7)
    assert domains["rna"].smoothed.t == 0  # dense: smoothed at once
    assert not np.allclose(domains["rna"].smoothed.x, small["rna"].layers["other"])
    # a representation is taken as it is: not smoothed, no PCA, centred and one scale
    np.testing.assert_array_equal(domains["protein"].smoothed.x, small["protein"].X[:, :4])
    r = np.corrcoef(domains["protein"].x[:, 0], small["protein"].X[:, 0])[0, 1]
    assert r == pytest.approx(1, abs=1e-5)
    assert domains["protein"].var_names.tolist() == [f"X_rep_{i}" for i in range(4)]
    assert np.sqrt((domains["protein"].x ** 2).mean()) == pytest.approx(1, abs=1e-4)


def test_default_number_of_components(small: md.MuData):
    domains, _ = read(small)
    # min(50, g, n - 1)
    assert {name: d.x.shape[1] for name, d in domains.items()} == {"rna": 30, "protein": 20}
    assert read(smm.datasets.toy(n_cells=80, n_features=[60, 20]))[0]["rna"].x.shape == (80, 50)
    # 52 cells of which the smaller modality holds fewer
    tiny = make(np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32))
    assert read(tiny)[0]["a"].x.shape == (40, 39)


def test_mask(small: md.MuData):
    chosen = np.arange(30) < 12
    small["rna"].var["hv"] = chosen
    for mask in ("hv", chosen, chosen.tolist()):
        domains, _ = read(small, mask_var={"rna": mask})
        np.testing.assert_array_equal(domains["rna"].transform.encoded, np.arange(12))
        assert domains["rna"].x.shape == (120, 12)
        np.testing.assert_array_equal(domains["protein"].transform.encoded, np.arange(20))


def test_wrong_masks(small: md.MuData):
    small["rna"].var["n"] = 1
    small["rna"].var["none"] = False
    with pytest.raises(KeyError, match=r"var column in 'rna' 'hv'.*\['gene', 'n', 'none'\]"):
        read(small, mask_var={"rna": "hv"})
    with pytest.raises(ValueError, match=r"'rna' must be 30 booleans, got \(30,\) of int64"):
        read(small, mask_var={"rna": "n"})
    with pytest.raises(ValueError, match=r"'rna' must be 30 booleans, got \(29,\) of bool"):
        read(small, mask_var={"rna": np.ones(29, bool)})
    with pytest.raises(ValueError, match="chooses no feature"):
        read(small, mask_var={"rna": "none"})
    small["rna"].X[:, :3] = 2
    with pytest.raises(ValueError, match="All features of 'rna' that `mask_var` chooses are constant"):
        read(small, mask_var={"rna": np.arange(30) < 3})


# --- shared space ------------------------------------------------------------------------------------------------


def genes_in_common(n_common: int, n_own: int = 10) -> md.MuData:
    """Two modalities with `n_common` equal names each in its own order, and more of their own."""
    rng = np.random.default_rng(0)
    latent, loadings = rng.normal(size=(90, 4)), rng.normal(size=(4, n_common))
    parts = {}
    for name, rows in (("a", slice(0, 50)), ("b", slice(50, 90))):
        x = np.hstack([latent[rows] @ loadings, latent[rows] @ rng.normal(size=(4, n_own))])
        names = [f"g{i}" for i in range(n_common)] + [f"{name}_{i}" for i in range(n_own)]
        order = rng.permutation(len(names))
        x = (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
        obs = pd.DataFrame(index=[f"{name}{i}" for i in range(len(x))])
        parts[name] = ad.AnnData(x[:, order], obs=obs, var=pd.DataFrame(index=[names[i] for i in order]))
    return md.MuData(parts)


def links_of(mdata: md.MuData, links: Any = "auto") -> dict:
    table = _links.link_table(mdata, "a", "b", links)
    return {} if table is None else {("a", "b"): table}


@pytest.mark.parametrize(
    ("n_common", "n_own", "expected"),
    [(60, 10, True), (50, 10, True), (49, 10, False), (60, 60, True), (60, 61, False)],
    ids=["many", "just enough", "one too few", "half", "less than half"],
)
def test_equal_names_make_a_shared_space(n_common: int, n_own: int, expected: bool):
    mdata = genes_in_common(n_common, n_own)
    domains, shared = read(mdata, links=links_of(mdata), n_pcs=8)
    assert shared == expected
    a, b = domains["a"], domains["b"]
    same = a.transform.encoder.shape == b.transform.encoder.shape and np.array_equal(
        a.transform.encoder, b.transform.encoder
    )
    assert same == expected
    if expected:
        # axis by axis the same features, whatever their positions
        first, second = a.var_names[a.transform.encoded], b.var_names[b.transform.encoded]
        assert first.tolist() == second.tolist()
        assert set(first) == {f"g{i}" for i in range(n_common)}


def test_no_shared_space_without_links_that_say_so():
    mdata = genes_in_common(60)
    assert not read(mdata)[1]
    crossed = pd.DataFrame({"a": [f"g{i}" for i in range(12)], "b": [f"g{(i + 1) % 12}" for i in range(12)]})
    assert not read(mdata, links=links_of(mdata, crossed))[1]
    mdata["a"].obsm["r"] = np.random.default_rng(0).normal(size=(50, 3))
    assert not read(mdata, links=links_of(mdata), use_rep={"a": "r"})[1]


def test_masks_limit_the_shared_space():
    mdata = genes_in_common(60)
    keep = mdata["a"].var_names.isin([f"g{i}" for i in range(55)])
    domains, shared = read(mdata, links=links_of(mdata), mask_var={"a": keep})
    assert shared
    assert set(domains["b"].var_names[domains["b"].transform.encoded]) == {f"g{i}" for i in range(55)}
    assert not read(mdata, links=links_of(mdata), mask_var={"a": mdata["a"].var_names.isin(["g0", "g1"])})[1]


def test_linked_features_enter_the_space(monkeypatch: pytest.MonkeyPatch, small: md.MuData):
    """With few places the flattest features stay outside, unless they are linked."""
    from scmmgan.model.space import transform

    monkeypatch.setattr(transform, "N_DISPERSED", 5)
    table = _links.link_table(small, "rna", "protein", "gene")
    domains, _ = read(small, links={("rna", "protein"): table})
    for name, d in domains.items():
        linked = d.var_names.get_indexer(table[name])
        assert set(linked) <= set(d.transform.encoded)
        assert 15 <= len(d.transform.encoded) <= 20
