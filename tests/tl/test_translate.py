"""New cells map as those that were trained on do: by name, alone or together, in this process or another one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset, write_elem
from sklearn.metrics import roc_auc_score

import scmmgan as smm
from scmmgan.data import on_disk
from scmmgan.data.query import modality_of

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

NAMES = ("rna", "protein")


def columns(adata: ad.AnnData) -> set[str]:
    return {c for c in adata.obs if c.startswith("scmmgan")}


@pytest.mark.parametrize(("source", "target"), [NAMES, NAMES[::-1]])
def test_training_cells_map_as_they_did(small_aligned: md.MuData, source: str, target: str):
    got = smm.tl.translate(small_aligned, source, target, model=small_aligned)
    expected = smm.get.mapped(small_aligned, source, target)
    np.testing.assert_allclose(got.X, expected.X, atol=1e-3)
    np.testing.assert_allclose(got.obsm["X_scmmgan"], small_aligned[source].obsm["X_scmmgan"], atol=1e-4)
    pd.testing.assert_frame_equal(got.var, expected.var)
    assert got.X.dtype == got.obsm["X_scmmgan"].dtype == np.float32
    assert got.obs_names.equals(expected.obs_names)
    few = smm.tl.translate(small_aligned, source, target, model=small_aligned, features=expected.var_names[[4, 1]])
    np.testing.assert_allclose(few.X, got.X[:, [4, 1]], atol=1e-5)


@pytest.fixture(scope="module")
def _split() -> tuple[md.MuData, dict[str, ad.AnnData], dict[str, np.ndarray]]:
    """A toy that was aligned without a fifth of its cells, these, and rows of cells that are the same."""
    whole = smm.datasets.toy(n_cells=400)
    truth = {m: np.asarray(whole.uns["truth"][m]["cell"]) for m in NAMES}
    new = {m: truth[m] < 80 for m in NAMES}
    train = md.MuData({m: whole[m][~new[m]].copy() for m in NAMES})
    smm.tl.align(train, links="gene", max_steps=80, batch_size=64, progress_bar=False)
    cells = {m: whole[m][new[m]].copy() for m in NAMES}
    return train, cells, {m: truth[m][new[m]] for m in NAMES} | {f"{m} trained": truth[m][~new[m]] for m in NAMES}


@pytest.fixture
def split(_split: tuple) -> tuple[md.MuData, dict[str, ad.AnnData], dict[str, np.ndarray]]:
    return _split[0].copy(), {m: of.copy() for m, of in _split[1].items()}, _split[2]


def test_new_cells_are_as_accurate_as_trained_ones(split):
    train, cells, truth = split
    got = {m: smm.tl.translate(cells[m], m, other, model=train) for m, other in (NAMES, NAMES[::-1])}

    def foscttm(x: dict[str, np.ndarray], names: dict[str, np.ndarray], n: int) -> float:
        (a, b), (i, j) = ([of[m] for m in NAMES] for of in (x, {m: np.argsort(names[m])[:n] for m in NAMES}))
        return smm.metrics.foscttm(a[i], b[j])

    new = foscttm({m: np.asarray(of.obsm["X_scmmgan"]) for m, of in got.items()}, truth, 80)
    trained = foscttm({m: train[m].obsm["X_scmmgan"] for m in NAMES}, {m: truth[f"{m} trained"] for m in NAMES}, 80)
    # in so small a toy; benchmarks/translate.md has real data
    assert new < trained + 0.06 < 0.2
    # a map that hits the cloud of cells and nothing else
    order = np.random.default_rng(0).permutation(80)
    shuffled = {m: np.asarray(of.obsm["X_scmmgan"])[order if m == "rna" else slice(None)] for m, of in got.items()}
    assert foscttm(shuffled, truth, 80) > 0.4
    assert columns(got["rna"]) == {"scmmgan_unmatched", "scmmgan_ood"}
    assert 0.3 < got["rna"].obs["scmmgan_ood"].mean() < 0.7
    assert got["rna"].obs["scmmgan_unmatched"].mean() < 0.1


def test_one_cell_alone_maps_as_in_a_batch(split):
    train, cells, _ = split
    model = smm.get.model(train)
    whole = smm.tl.translate(cells["rna"], "rna", "protein", model=model)
    for i in (0, 79):
        one = smm.tl.translate(cells["rna"][[i]], "rna", "protein", model=model)
        np.testing.assert_allclose(one.X[0], whole.X[i], atol=1e-4)
        np.testing.assert_allclose(one.obsm["X_scmmgan"][0], whole.obsm["X_scmmgan"][i], atol=1e-4)
        for column in columns(whole):
            assert one.obs[column].iloc[0] == pytest.approx(whole.obs[column].iloc[i], abs=1e-5)
    parts = smm.tl.translate(cells["rna"], "rna", "protein", model=model, batch_size=3)
    np.testing.assert_allclose(parts.X, whole.X, atol=1e-4)


def test_features_by_name(split, caplog: pytest.LogCaptureFixture):
    train, cells, _ = split
    rna = cells["rna"]
    whole = smm.tl.translate(rna, "rna", "protein", model=train)
    more = ad.AnnData(np.ones((80, 3), np.float32), obs=rna.obs, var=pd.DataFrame(index=["x", "y", "z"]))
    other = ad.concat([more, rna[:, ::-1]], axis=1, merge="first")
    np.testing.assert_allclose(smm.tl.translate(other, "rna", "protein", model=train).X, whole.X, atol=1e-4)
    assert not caplog.records
    few = smm.tl.translate(rna[:, 5:], "rna", "protein", model=train)
    assert "5 of 60 features that 'rna' is mapped by are missing in the new cells ('" in caplog.text
    assert "they count as the training mean" in caplog.text
    assert 0.9 < np.corrcoef(few.X.ravel(), whole.X.ravel())[0, 1] < 0.9999
    with pytest.raises(ValueError, match=r"50 of 60 features.*of the variance of the model, and 50% is the most"):
        smm.tl.translate(rna[:, 50:], "rna", "protein", model=train)
    with pytest.raises(ValueError, match=r"60 of 60 features.*spelt as in the training cells"):
        smm.tl.translate(other[:, :3], "rna", "protein", model=train)


@pytest.mark.parametrize(("factor", "said"), [(1.0, False), (10.0, True), (0.0, True)])
def test_other_units_are_noticed(split, factor: float, said: bool, caplog: pytest.LogCaptureFixture):
    train, cells, _ = split
    # a few cells of one kind are no other units
    rna = cells["rna"][:3].copy()
    rna.X = rna.X * factor
    smm.tl.translate(rna, "rna", "protein", model=train)
    assert ("in other units" in caplog.text) == said


def test_a_type_that_training_lacked_is_out_of_distribution():
    whole = smm.datasets.toy(n_cells=300)
    lacks = {m: whole[m].obs["cell_type"].astype(str).to_numpy() == "type_E" for m in NAMES}
    held = {m: lacks[m] | (np.arange(300) % 5 == 0) for m in NAMES}
    train = md.MuData({m: whole[m][~held[m]].copy() for m in NAMES})
    smm.tl.align(train, links="gene", method="coupling", progress_bar=False)
    got = smm.tl.translate(whole["rna"][held["rna"]], "rna", "protein", model=train)
    assert roc_auc_score(lacks["rna"][held["rna"]], got.obs["scmmgan_ood"]) > 0.95
    # known cells are spread over 0 to 1
    known = got.obs["scmmgan_ood"][~lacks["rna"][held["rna"]]]
    assert (known > 0.95).mean() < 0.2


def test_a_type_that_the_target_lacks_is_unmatched(without_e: md.MuData):
    cells = smm.datasets.toy(overlap=0.8)["rna"][::3]
    noise = np.random.default_rng(0).normal(0, 0.05, cells.shape)
    new = ad.AnnData((cells.X + noise).astype(np.float32), obs=cells.obs.copy(), var=cells.var.copy())
    got = smm.tl.translate(new, "rna", "protein", model=without_e)
    trained = without_e["rna"].obs
    new, known = (
        roc_auc_score(of["cell_type"].astype(str) == "type_E", of["scmmgan_unmatched"]) for of in (got.obs, trained)
    )
    assert new > max(known - 0.05, 0.75)


def test_batches(tiny: md.MuData):
    rng = np.random.default_rng(0)
    mdata = smm.datasets.toy(n_cells=120, n_features=[30, 20])
    mdata["rna"].obs["donor"] = rng.permutation(np.repeat(["x/1", "y"], 60))
    mdata["rna"].X[mdata["rna"].obs["donor"] == "y"] += 1
    mdata["protein"].obs["donor"] = "x/1"
    smm.tl.align(mdata, links="gene", batch="donor", method="coupling", progress_bar=False)
    got = smm.tl.translate(mdata, "rna", "protein", model=mdata)
    np.testing.assert_allclose(got.X, smm.get.mapped(mdata, "rna", "protein").X, atol=1e-3)
    new = mdata["rna"].copy()
    del new.obs["donor"]
    pooled = smm.tl.translate(new, "rna", "protein", model=mdata)
    new.obs["donor"] = [None] * 120
    np.testing.assert_array_equal(smm.tl.translate(new, "rna", "protein", model=mdata).X, pooled.X)
    assert 1e-3 < np.abs(pooled.X - got.X).mean() < 1
    new.obs["donor"] = "z"
    with pytest.raises(ValueError, match=r"not trained on batches \['z'\] of 'rna'; it knows \['x/1', 'y'\]"):
        smm.tl.translate(new, "rna", "protein", model=mdata)


def test_layers_and_representations_are_read_as_then(tiny: md.MuData):
    for m in NAMES:
        tiny[m].layers["twice"] = 2 * tiny[m].X
        tiny[m].X = sp.csr_matrix(tiny[m].X)
    tiny["protein"].obsm["X_own"] = np.asarray(tiny["protein"].layers["twice"])[:, :6]
    how = {"layer": {"rna": "twice"}, "use_rep": {"protein": "X_own"}, "links": None, "pairs": "obs_names"}
    tiny["protein"].obs_names = tiny["rna"].obs_names = [f"cell_{i}" for i in range(60)]
    tiny = md.MuData(dict(tiny.mod))
    smm.tl.align(tiny, method="coupling", progress_bar=False, **how)
    for source, target in (NAMES, NAMES[::-1]):
        got = smm.tl.translate(tiny[source], source, target, model=tiny)
        np.testing.assert_allclose(got.X, smm.get.mapped(tiny, source, target).X, atol=1e-3)
    new = tiny["rna"].copy()
    del new.layers["twice"]
    with pytest.raises(KeyError, match="No layer in 'rna' 'twice'"):
        smm.tl.translate(new, "rna", "protein", model=tiny)
    new = tiny["protein"].copy()
    new.obsm["X_own"] = new.obsm["X_own"][:, :3]
    with pytest.raises(ValueError, match="has 3 columns, that of the training cells had 6"):
        smm.tl.translate(new, "protein", "rna", model=tiny)


def test_of_several_targets_columns_name_theirs(three_aligned: md.MuData):
    got = smm.tl.translate(three_aligned["rna"], "rna", "atac", model=three_aligned, key="mine")
    assert set(got.obs) - set(three_aligned["rna"].obs) == {"mine_ood"}
    np.testing.assert_allclose(
        got.obs["mine_unmatched_atac"], three_aligned["rna"].obs["mine_unmatched_atac"], atol=0.2
    )
    np.testing.assert_allclose(got.obsm["X_mine"], three_aligned["rna"].obsm["X_mine"], atol=1e-4)
    np.testing.assert_array_equal(got.obsm["spatial"], three_aligned["rna"].obsm["spatial"])


def test_nothing_is_written_to_cells_or_model(small_aligned: md.MuData, fingerprint: Callable):
    before = fingerprint(small_aligned)
    got = smm.tl.translate(small_aligned, "rna", "protein", model=small_aligned)
    got.X[:] = 0
    got.obs["cell_type"] = "x"
    assert fingerprint(small_aligned) == before


def test_shapes_alone_warn(tiny: md.MuData, coarse_shapes: None, caplog: pytest.LogCaptureFixture):
    smm.tl.align(tiny, links=None, method="coupling", progress_bar=False)
    caplog.clear()
    got = smm.tl.translate(tiny["rna"], "rna", "protein", model=tiny)
    assert "mapped values may be those of other populations" in caplog.text
    assert set(got.obs) - set(tiny["rna"].obs) == {"scmmgan_ood"}


SCRIPT = """
import sys, mudata as md, numpy as np, scmmgan as smm
folder, out = sys.argv[1:]
found = {}
for name in ("a.h5mu", "a.zarr"):
    mdata = md.read(f"{folder}/{name}") if name == "a.h5mu" else md.read_zarr(f"{folder}/{name}")
    found[name] = smm.tl.translate(mdata, "rna", "protein", model=mdata).X
    found[name + " features"] = smm.get.mapped(mdata, "rna", "protein", features=mdata["protein"].var_names[:3]).X
    if name == "a.h5mu":
        smm.tl.uncertainty(mdata, "rna", "protein")
        found["uncertainty"] = mdata["protein"].var["scmmgan_uncertainty"].to_numpy()
        smm.tl.importance(mdata, "rna", "protein", features="protein_gene_0")
        found["importance"] = mdata.uns["scmmgan"]["importance"]["rna"]["protein"]["share"].to_numpy()
found["directory"] = smm.tl.translate(mdata, "rna", "protein", model=f"{folder}/model").X
np.savez(out, **found)
"""


@pytest.mark.slow
def test_a_new_process_gives_the_same_bits(small_coupled: md.MuData, tmp_path: Path):
    mdata, names = small_coupled, small_coupled["protein"].var_names[:3]
    mdata.write(tmp_path / "a.h5mu")
    mdata.write_zarr(tmp_path / "a.zarr")
    smm.save(mdata, tmp_path / "model")
    expected = smm.tl.translate(mdata, "rna", "protein", model=mdata).X
    decoded = smm.get.mapped(mdata, "rna", "protein", features=names).X
    smm.tl.uncertainty(mdata, "rna", "protein")
    smm.tl.importance(mdata, "rna", "protein", features="protein_gene_0")
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), str(tmp_path / "out.npz")], check=True)
    found = np.load(tmp_path / "out.npz")
    for name in ("a.h5mu", "a.zarr", "directory"):
        np.testing.assert_array_equal(found[name], expected)
    for name in ("a.h5mu", "a.zarr"):
        np.testing.assert_array_equal(found[f"{name} features"], decoded)
    np.testing.assert_array_equal(found["uncertainty"], mdata["protein"].var["scmmgan_uncertainty"])
    table = mdata.uns["scmmgan"]["importance"]["rna"]["protein"]
    np.testing.assert_array_equal(found["importance"], table["share"])


REFUSED: dict[str, tuple[Callable[[md.MuData], Any], type[Exception], str]] = {
    "no cells": (lambda m: {"cells": m["rna"][:0]}, ValueError, "has no cells"),
    "a matrix": (lambda m: {"cells": m["rna"].X}, TypeError, "`cells` must be an AnnData, or a MuData with 'rna'"),
    "other MuData": (lambda m: {"cells": md.MuData({"x": m["rna"]})}, KeyError, "No modality 'rna'"),
    "a number": (lambda m: {"model": 3}, TypeError, "`model` must be an aligned MuData, a directory, or what"),
    "not aligned": (lambda m: {"model": md.MuData({"rna": m["rna"]})}, KeyError, "No alignment 'scmmgan'"),
    "no directory": (lambda m: {"model": "nowhere"}, FileNotFoundError, "no directory 'nowhere'"),
    "one modality": (lambda m: {"target": "rna"}, ValueError, "are both 'rna'"),
    "unknown modality": (lambda m: {"target": "atac"}, KeyError, "no modality 'atac'. It maps between"),
    "unknown feature": (lambda m: {"features": "protein_gen_0"}, KeyError, "Closest: .'protein_gene_0'"),
    "batch_size": (lambda m: {"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(small_coupled: md.MuData, kind: str):
    change, error, message = REFUSED[kind]
    arguments = {"cells": small_coupled["rna"], "target": "protein", "model": small_coupled} | change(small_coupled)
    with pytest.raises(error, match=message):
        smm.tl.translate(arguments.pop("cells"), "rna", arguments.pop("target"), **arguments)


def test_values_refused(small_coupled: md.MuData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    model, cells = smm.get.model(small_coupled), small_coupled["rna"].copy()
    cells.X[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        smm.tl.translate(cells, "rna", "protein", model=model)
    cells = small_coupled["rna"].copy()
    cells.var_names = ["a"] * cells.n_vars
    with pytest.raises(ValueError, match=r"not unique, e\.g\. 'a'"):
        smm.tl.translate(cells, "rna", "protein", model=model)
    counts = small_coupled["rna"].copy()
    counts.X = np.round(np.exp(counts.X))
    smm.tl.translate(counts, "rna", "protein", model=model)
    assert "looks like raw counts" in caplog.text
    monkeypatch.setattr("scmmgan.tl._translate.MAX_WRITTEN", 100)
    with pytest.raises(ValueError, match="120 cells × 20 features of 'protein' are too many"):
        smm.tl.translate(small_coupled, "rna", "protein", model=model)


def test_without_a_stored_model(tiny: md.MuData):
    smm.tl.align(tiny, links="gene", method="coupling", save_model=False, progress_bar=False)
    whole = tiny.copy()
    smm.tl.align(whole, links="gene", method="coupling", progress_bar=False)
    for m in NAMES:
        np.testing.assert_array_equal(tiny[m].obsm["X_scmmgan"], whole[m].obsm["X_scmmgan"])
    assert set(tiny.uns["scmmgan"]["model"]) == {"config", "weights"}
    readers: list[Callable[[], Any]] = [
        lambda: smm.get.model(tiny),
        lambda: smm.tl.translate(tiny, "rna", "protein", model=tiny),
        lambda: smm.get.mapped(tiny, "rna", "protein", features="protein_gene_0"),
        lambda: smm.tl.importance(tiny, "rna", "protein", features="protein_gene_0"),
        lambda: smm.save(tiny, "nowhere"),
    ]
    for reader in readers:
        with pytest.raises(ValueError, match="made with `save_model=False`"):
            reader()
    # what needs no model
    np.testing.assert_array_equal(smm.get.mapped(tiny, "rna", "protein").X, smm.get.mapped(whole, "rna", "protein").X)
    smm.tl.uncertainty(tiny, "rna", "protein")
    smm.tl.match(tiny, "rna", "protein")
    with pytest.raises(TypeError, match="`save_model` must be True or False"):
        smm.tl.align(tiny, save_model="no")


def test_a_mudata_of_cells(small_coupled: md.MuData):
    assert modality_of(small_coupled, "rna") is small_coupled["rna"]
    assert modality_of(small_coupled["rna"], "rna") is small_coupled["rna"]


# --- more values than can be held --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["zarr", "h5ad"])
def test_values_that_stay_in_a_file(small_aligned: md.MuData, ending: str, tmp_path: Path):
    """The same AnnData as in memory; another call replaces it; cells are read by name, and all of them again."""
    expected = smm.tl.translate(small_aligned, *NAMES, model=small_aligned)
    file = tmp_path / "deeper" / f"mapped.{ending}"
    for chosen in (expected.var_names[:3].tolist(), None):
        got = smm.tl.translate(
            small_aligned, *NAMES, model=small_aligned, features=chosen, out=file, batch_size=50, progress_bar=False
        )
        assert [entry.name for entry in file.parent.iterdir()] == [file.name]
        whole = expected if chosen is None else expected[:, chosen]
        assert not isinstance(got.X, np.ndarray)
        assert got.shape == whole.shape
        np.testing.assert_allclose(got[:, whole.var_names[[2, 0]]].X, whole.X[:, [2, 0]], rtol=1e-5, atol=1e-6)
        again = got.to_memory()
        if got.isbacked:
            got.file.close()
        read = ad.read_zarr(file) if ending == "zarr" else ad.read_h5ad(file)
        for found in (again, read):
            np.testing.assert_allclose(found.X, whole.X, rtol=1e-5, atol=1e-6)
            assert found.X.dtype == np.float32
            for frame, of in ((found.obs, whole.obs), (found.var, whole.var)):
                assert list(frame) == list(of)
                assert frame.astype(str).equals(of.astype(str))
            np.testing.assert_array_equal(found.obsm["X_scmmgan"], whole.obsm["X_scmmgan"])


def test_what_is_too_much_to_be_held_is_written(
    small_aligned: md.MuData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from scmmgan.tl import _translate

    monkeypatch.setattr(_translate, "MAX_WRITTEN", 100)
    with pytest.raises(ValueError, match=r"write them to a file: `out='mapped.zarr'`"):
        smm.tl.translate(small_aligned, *NAMES, model=small_aligned)
    got = smm.tl.translate(small_aligned, *NAMES, model=small_aligned, out=tmp_path / "mapped.zarr")
    assert got.shape == (120, 20)


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        pytest.param(KeyboardInterrupt, "zarr", id="Ctrl-C-zarr"),
        pytest.param(KeyboardInterrupt, "h5ad", id="Ctrl-C-h5ad", marks=pytest.mark.slow),
        pytest.param(OSError(28, "No space left on device"), "zarr", id="full disk-zarr", marks=pytest.mark.slow),
        pytest.param(OSError(28, "No space left on device"), "h5ad", id="full disk-h5ad"),
    ],
)
def test_a_file_is_whole_or_as_it_was(
    small_aligned: md.MuData, ending: str, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from scmmgan.model.nets.trained import Trained

    file, decode, calls = tmp_path / f"mapped.{ending}", Trained.decode, []

    def stopped(*of: Any) -> np.ndarray:
        calls.append(of)
        if len(calls) == 2:
            raise error
        return decode(*of)

    how = {"model": small_aligned, "out": file, "batch_size": 50, "features": ["protein_gene_0"]}
    monkeypatch.setattr(Trained, "decode", stopped)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        smm.tl.translate(small_aligned, *NAMES, **how)
    assert list(tmp_path.iterdir()) == []
    first = smm.tl.translate(small_aligned, *NAMES, **how).to_memory()
    calls.clear()
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        smm.tl.translate(small_aligned, *NAMES, **how)
    assert list(tmp_path.iterdir()) == [file]
    read = ad.read_zarr(file) if ending == "zarr" else ad.read_h5ad(file)
    np.testing.assert_array_equal(read.X, first.X)


def test_where_nothing_can_be_written(small_aligned: md.MuData, tmp_path: Path):
    def go(out: Any, cells: Any = small_aligned) -> None:
        smm.tl.translate(cells, *NAMES, model=small_aligned, out=out)

    with pytest.raises(ValueError, match=r"must end in .zarr or .h5ad, got 'mapped.csv'"):
        go("mapped.csv")
    with pytest.raises(TypeError, match="`out` must be a path"):
        go(3)
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.tex").touch()
    # others' data, a whole MuData among them, and a file of one modality
    small_aligned.write_zarr(tmp_path / "all.zarr")
    (tmp_path / "empty.h5ad").touch()
    small_aligned["protein"].write(tmp_path / "protein.h5ad")
    (tmp_path / "gone.zarr").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "protein.h5ad")
    zarr.open_array(tmp_path / "x.zarr", mode="w", shape=(3,), dtype="float32")
    zarr.open_group(tmp_path / "damaged.zarr", mode="w", zarr_format=2)
    (tmp_path / "damaged.zarr" / ".zgroup").write_text("{")
    theirs = ("mine.zarr", "all.zarr", "empty.h5ad", "protein.h5ad", "gone.zarr", "link.h5ad", "x.zarr", "damaged.zarr")
    for name in theirs:
        with pytest.raises(
            FileExistsError, match=r"is there already, and is no earlier result of `scmmgan.tl.translate`"
        ):
            go(tmp_path / name)
    assert md.read_zarr(tmp_path / "all.zarr").n_obs == small_aligned.n_obs
    small_aligned["rna"].write(tmp_path / "rna.h5ad")
    backed = ad.read_h5ad(tmp_path / "rna.h5ad", backed="r")
    with pytest.raises(ValueError, match="is the file that the cells are read from"):
        go(tmp_path / "rna.h5ad", backed)
    backed.file.close()
    assert ad.read_h5ad(tmp_path / "rna.h5ad").n_obs == 120


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("ending", ["zarr", "h5ad"])
def test_cells_that_lie_there_are_not_replaced(small_aligned: md.MuData, ending: str, form: Callable, tmp_path: Path):
    """Cells that are read lazily from a file that an earlier call wrote, or says that it did."""
    cells, file = small_aligned["rna"].copy(), tmp_path / f"rna.{ending}"
    cells.X = form(cells.X)
    group = zarr.open_group(file, mode="w", zarr_format=2) if ending == "zarr" else h5py.File(file, "w")
    write_elem(group, "/", cells)
    group["X"].attrs[on_disk.MARK] = True
    x = group["X"] if form is np.asarray else sparse_dataset(group["X"])
    lazy = ad.AnnData(x, obs=cells.obs.copy(), var=cells.var.copy())
    (tmp_path / f"link.{ending}").symlink_to(file)
    ways = [(lazy, file), (lazy, tmp_path / f"link.{ending}")]
    ways.append((ad.AnnData(cells.X, obs=cells.obs.copy(), var=cells.var.copy(), layers={"z": x}), file))
    if ending == "h5ad":
        # a view of cells in a file
        ways.append((ad.read_h5ad(file, backed="r")[:50], file))
    else:
        (tmp_path / "around.zarr").mkdir()
        file.rename(tmp_path / "around.zarr" / file.name)
        group = zarr.open_group(tmp_path / "around.zarr" / file.name, mode="r")
        lazy.X = group["X"] if form is np.asarray else sparse_dataset(group["X"])
        ways = [(lazy, tmp_path / "around.zarr")]
    for of, out in ways:
        with pytest.raises(ValueError, match="is the file that the cells are read from"):
            smm.tl.translate(of, *NAMES, model=small_aligned, out=out)
    assert smm.tl.translate(lazy, *NAMES, model=small_aligned, out=tmp_path / "out.zarr").n_obs == 120
    if ending == "h5ad":
        group.close()


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_cells_in_a_file(small_aligned: md.MuData, form: Callable, tmp_path: Path):
    expected = smm.tl.translate(small_aligned, *NAMES, model=small_aligned)
    cells = small_aligned["rna"].copy()
    cells.X = form(cells.X)
    cells.write(tmp_path / "rna.h5ad")
    backed = ad.read_h5ad(tmp_path / "rna.h5ad", backed="r")
    got = smm.tl.translate(backed, *NAMES, model=small_aligned)
    backed.file.close()
    np.testing.assert_allclose(got.X, expected.X, rtol=1e-6)
