"""The read side: mapped values, embedding, history, model; whatever happened to the data since the alignment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from helpers import own_space, space_of, transform_of
from scmmgan.data.fingerprint import cell_hashes
from scmmgan.data.modality import layers_of
from scmmgan.data.record import sealed
from scmmgan.settings import unpulled

pytestmark = pytest.mark.usefixtures("few_tables_throughout")


def align(mdata: md.MuData, *names: str, **arguments: Any) -> None:
    smm.tl.align(mdata, *names, **{"links": "gene", "max_steps": 3, "progress_bar": False, **arguments})


# --- mapped ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [("rna", "protein"), ("protein", "rna")])
def test_mapped_is_translate_and_inverse(small_aligned: md.MuData, source: str, target: str):
    x = own_space(small_aligned, source)
    y = smm.get.model(small_aligned).translate(x, source, target)
    expected = transform_of(small_aligned, target).inverse(y)
    got = smm.get.mapped(small_aligned, source, target)
    np.testing.assert_allclose(got.X, expected, atol=1e-4)
    np.testing.assert_array_equal(got.X, small_aligned[source].obsm[f"scmmgan_{target}"])
    # the definition of the inverse, written out
    t = transform_of(small_aligned, target)
    by_hand = (y.astype(float) * float(t.scale)) @ t.decoder * t.sd + t.mean
    np.testing.assert_allclose(got.X, np.maximum(by_hand, t.lowest), atol=1e-4)


def test_mapped_is_a_complete_annotated_matrix():
    mdata = smm.datasets.toy(n_cells=120, spatial=True, n_features=[30, 20])
    mdata["rna"].uns["spatial"] = {"lib": {"images": {"hires": np.zeros((2, 2))}}}
    mdata["rna"].uns["spatialdata_attrs"] = {"region": "spots", "region_key": "r", "instance_key": "i"}
    mdata["protein"].var["n"] = np.arange(20)
    mdata["protein"].var["flag"] = True
    mdata["protein"].var["kind"] = pd.Categorical(["x", "y"] * 10)
    align(mdata)
    got = smm.get.mapped(mdata, "rna", "protein")
    assert got.shape == (120, 20)
    assert got.X.dtype == np.float32
    pd.testing.assert_frame_equal(got.obs, mdata["rna"].obs)
    pd.testing.assert_frame_equal(got.var, mdata["protein"].var)
    np.testing.assert_array_equal(got.obsm["spatial"], mdata["rna"].obsm["spatial"])
    assert got.uns["spatial"]["lib"]["images"]["hires"].shape == (2, 2)
    assert got.uns["spatialdata_attrs"] == {"region": "spots", "region_key": "r", "instance_key": "i"}
    back = smm.get.mapped(mdata, "protein", "rna")
    assert "spatial" not in back.obsm
    assert "spatial" not in back.uns
    # types of var columns survive a choice of features
    assert smm.get.mapped(mdata, "rna", "protein", features=got.var_names[:3]).var.dtypes.equals(got.var.dtypes)


def test_mapped_with_what_is_known_of_its_features():
    """Evidence and uncertainty of one source of two, and for chosen features cell by cell."""
    mdata = smm.datasets.toy(n_cells=60, n_modalities=3, n_features=[20, 15, 15], n_linked=8)
    align(mdata, method="coupling")
    smm.tl.uncertainty(mdata, "rna", "protein")
    names = mdata["protein"].var_names[[4, 1]]
    got = smm.get.mapped(mdata, "rna", "protein", features=names)
    for column in ("scmmgan_evidence", "scmmgan_evidence_q", "scmmgan_uncertainty", "scmmgan_uncertainty_coupling"):
        np.testing.assert_array_equal(got.var[column], mdata["protein"].var.loc[names, f"{column}_rna"])
    relative = smm.get.uncertainty(mdata, "rna", "protein", features=names).layers["relative"]
    np.testing.assert_array_equal(got.layers["uncertainty"], relative)
    np.testing.assert_array_equal(got.obsm["X_scmmgan"], mdata["rna"].obsm["X_scmmgan"])
    # of all features, and of another source, it is not computed
    assert "uncertainty" not in smm.get.mapped(mdata, "rna", "protein").layers
    other = smm.get.mapped(mdata, "atac", "protein", features=names)
    assert layers_of(other) == []
    assert "scmmgan_uncertainty" not in other.var
    assert "scmmgan_evidence" in other.var


def test_mapped_is_a_copy(small_aligned: md.MuData, fingerprint: Callable):
    small_aligned["rna"].obsm["spatial"] = np.random.default_rng(0).random((120, 2))
    small_aligned["rna"].uns["spatial"] = {"lib": {"scale": np.ones(2)}}
    before = fingerprint(small_aligned)
    got = smm.get.mapped(small_aligned, "rna", "protein")
    got.X[:] = 0
    got.obs["cell_type"] = "x"
    got.var["gene"] = "x"
    got.obsm["spatial"][:] = 0
    got.uns["spatial"]["lib"]["scale"][:] = 0
    smm.get.embedding(small_aligned).X[:] = 0
    history = smm.get.history(small_aligned)
    history["cycle"] = 0
    for net in smm.get.model(small_aligned).aligner.generators.values():
        for p in net.parameters():
            p.data.zero_()
    assert fingerprint(small_aligned) == before


def test_decoded_features_equal_written_ones(small_aligned: md.MuData):
    whole = smm.get.mapped(small_aligned, "rna", "protein")
    for wanted in (whole.var_names[[7, 2, 11]].tolist(), whole.var_names[[3]], np.array(whole.var_names[::-1])):
        got = smm.get.mapped(small_aligned, "rna", "protein", features=wanted)
        assert got.var_names.tolist() == list(wanted)
        np.testing.assert_allclose(got.X, whole[:, wanted].X, atol=1e-4)
    # a single name
    name = whole.var_names[4]
    np.testing.assert_allclose(
        smm.get.mapped(small_aligned, "rna", "protein", features=name).X, whole[:, [name]].X, atol=1e-4
    )


def test_axes_without_a_metric_count_alike(small_aligned: md.MuData):
    """As those of methods that follow no coupling: the same cells in another embedding decode to the same values."""
    mdata = small_aligned
    cells = {m: {o: space_of(mdata, m, o) for o in mdata.mod} for m in mdata.mod}
    sd = {m: float(cells[m][m].std()) for m in mdata.mod}
    written = smm.get.mapped(mdata, "rna", "protein")
    record = mdata.uns["scmmgan"]
    stored = dict(record["model"])
    assert {"metric:0", "metric:1"} <= set(stored["weights"])
    stored["weights"] = {k: v for k, v in stored["weights"].items() if not k.startswith("metric:")}
    stored["config"] = json.dumps({**json.loads(stored["config"]), "block_sd": sd})
    for m in mdata.mod:
        mdata[m].obsm["X_scmmgan"] = np.hstack([cells[m][o] / sd[o] for o in mdata.mod]).astype(np.float32)
    known = {
        m: {**of, "cells": cell_hashes(mdata[m].obs_names, mdata[m].obsm["X_scmmgan"])}
        for m, of in record["fingerprint"].items()
    }
    mdata.uns["scmmgan"] = sealed({"model": stored, "fingerprint": known}, record)
    decoded = smm.get.mapped(mdata, "rna", "protein", features=written.var_names[:5])
    np.testing.assert_allclose(decoded.X, written[:, :5].X, atol=1e-4)
    assert smm.get.model(mdata).aligner.metric == {}
    embedded = smm.get.model(mdata).embed(cells["rna"]["rna"].astype(np.float32), "rna")
    np.testing.assert_allclose(embedded, mdata["rna"].obsm["X_scmmgan"], atol=1e-4)


def test_features_that_were_not_written(small: md.MuData):
    whole = small.copy()
    align(whole)
    names = small["protein"].var_names
    align(small, features={"protein": names[:4].tolist()})
    assert smm.get.mapped(small, "rna", "protein").var_names.tolist() == names[:4].tolist()
    got = smm.get.mapped(small, "rna", "protein", features=names[10:])
    np.testing.assert_allclose(got.X, smm.get.mapped(whole, "rna", "protein")[:, names[10:]].X, atol=1e-4)


def test_features_of_layers():
    mdata = smm.datasets.toy(n_cells=120, shared_genes=True)
    align(mdata, links="var_names")
    whole = smm.get.mapped(mdata, "rna", "protein")
    np.testing.assert_array_equal(whole.X, mdata["rna"].layers["scmmgan_protein"])
    assert whole.var_names.tolist() == mdata["protein"].var_names.tolist()
    got = smm.get.mapped(mdata, "rna", "protein", features=["gene_5", "gene_1"])
    np.testing.assert_allclose(got.X, whole[:, ["gene_5", "gene_1"]].X, atol=1e-4)


def test_cells_are_cut_along(small_aligned: md.MuData):
    whole = smm.get.mapped(small_aligned, "rna", "protein")
    names = small_aligned["rna"].obs_names[10:40]
    both = names.append(small_aligned["protein"].obs_names[[3]])
    with pytest.raises(
        ValueError, match=r"'protein' has no cells left\. Use the object that was aligned, or another part"
    ):
        smm.get.mapped(small_aligned[names], "rna", "protein")
    for part in (small_aligned[both], small_aligned[both].copy()):
        got = smm.get.mapped(part, "rna", "protein")
        assert got.obs_names.tolist() == names.tolist()
        np.testing.assert_array_equal(got.X, whole[names].X)
        decoded = smm.get.mapped(part, "rna", "protein", features=whole.var_names[:2])
        np.testing.assert_allclose(decoded.X, whole[names, :2].X, atol=1e-4)


def test_features_are_cut_along():
    mdata = smm.datasets.toy(n_cells=120, shared_genes=True)
    align(mdata, links="var_names")
    whole = smm.get.mapped(mdata, "rna", "protein")
    mdata.mod["rna"] = mdata["rna"][:, 20:30].copy()
    got = smm.get.mapped(mdata, "rna", "protein")
    assert got.var_names.tolist() == whole.var_names.tolist()
    np.testing.assert_array_equal(got.X, whole.X)
    # files of earlier versions have the layer alone, which is cut along
    del mdata["rna"].obsm["scmmgan_protein"]
    got = smm.get.mapped(mdata, "rna", "protein")
    assert got.var_names.tolist() == whole.var_names[20:30].tolist()
    np.testing.assert_array_equal(got.X, whole.X[:, 20:30])
    # the model still knows the others
    decoded = smm.get.mapped(mdata, "rna", "protein", features=["gene_50"])
    np.testing.assert_allclose(decoded.X, whole[:, ["gene_50"]].X, atol=1e-4)


def test_representations_are_mapped_as_they_are(small: md.MuData, tmp_path: Path):
    rng = np.random.default_rng(0)
    for name in ("rna", "protein"):
        x = small[name].X
        u, d, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
        small[name].obsm["X_rep"] = (u * d)[:, :6] + 3
    small["protein"].var["n"] = rng.integers(5, size=20)
    align(small, links=None, use_rep="X_rep")
    got = smm.get.mapped(small, "rna", "protein")
    assert got.var_names.tolist() == [f"X_rep_{i}" for i in range(6)]
    assert list(got.var.columns) == []
    got.write(tmp_path / "rep.h5ad")
    # in the units of the representation
    np.testing.assert_allclose(got.X.mean(0), 3, atol=1.5)
    own = transform_of(small, "protein").inverse(own_space(small, "protein"))
    np.testing.assert_allclose(own, small["protein"].obsm["X_rep"], atol=1e-4)


def test_mapped_refusals(small_aligned: md.MuData, small: md.MuData):
    with pytest.raises(KeyError, match=r"feature in 'protein' 'protein_gene_x'.*Closest"):
        smm.get.mapped(small_aligned, "rna", "protein", features=["protein_gene_x"])
    with pytest.raises(KeyError, match=r"No modality 'adt'.*\['rna', 'protein'\]"):
        smm.get.mapped(small_aligned, "rna", "adt")
    with pytest.raises(KeyError, match="No alignment 'other'"):
        smm.get.mapped(small_aligned, "rna", "protein", key="other")
    with pytest.raises(KeyError, match=r"No alignment 'scmmgan'.*Run `scmmgan.tl.align"):
        smm.get.mapped(small, "rna", "protein")
    with pytest.raises(TypeError, match="`features` must be names"):
        smm.get.mapped(small_aligned, "rna", "protein", features=3)
    with pytest.raises(TypeError, match=r"must be a MuData.*got AnnData"):
        smm.get.mapped(small_aligned["rna"], "rna", "protein")


def test_no_features_at_all(small_aligned: md.MuData):
    assert smm.get.mapped(small_aligned, "rna", "protein", features=[]).shape == (120, 0)


# --- embedding ---------------------------------------------------------------------------------------------------


def test_embedding(small_aligned: md.MuData):
    got = smm.get.embedding(small_aligned)
    assert got.shape == (240, 50)
    assert got.X.dtype == np.float32
    assert got.obs_names[:2].tolist() == ["rna:rna_0", "rna:rna_1"]
    assert got.obs["modality"].cat.categories.tolist() == ["rna", "protein"]
    assert got.obs["modality"].tolist() == ["rna"] * 120 + ["protein"] * 120
    for i, name in enumerate(("rna", "protein")):
        rows = slice(120 * i, 120 * (i + 1))
        np.testing.assert_array_equal(got.X[rows], small_aligned[name].obsm["X_scmmgan"])
        assert got.obs["cell_type"].tolist()[rows] == small_aligned[name].obs["cell_type"].tolist()
        np.testing.assert_array_equal(got.obs["gradient"][rows], small_aligned[name].obs["gradient"])
    assert got.var["modality"].tolist() == ["rna"] * 30 + ["protein"] * 20
    assert got.var_names[[0, 30]].tolist() == ["rna_0", "protein_0"]
    # each block over the sd of its measured cells
    assert got.X[:120, :30].std() == pytest.approx(1, abs=1e-3)
    assert got.X[120:, 30:].std() == pytest.approx(1, abs=1e-3)


def test_embedding_of_unlike_annotations(small_aligned: md.MuData, tmp_path: Path):
    rna, protein = small_aligned["rna"].obs, small_aligned["protein"].obs
    rna["modality"] = "mine"
    rna["empty"], protein["empty"] = np.nan, 1.5
    rna["flag"] = True
    rna["mixed"], protein["mixed"] = 1, "one"
    rna["whole"] = pd.array([1, None] * 60, dtype="Int64")
    rna["text"] = pd.array(["t"] * 120, dtype="string")
    protein["batch"] = pd.Categorical(["b1", "b2"] * 60, ordered=True)
    got = smm.get.embedding(small_aligned).obs
    assert got["modality"].value_counts().to_dict() == {"rna": 120, "protein": 120}
    assert rna["modality"].unique().tolist() == ["mine"]
    assert got["empty"].isna().sum() == 120
    assert got["empty"].iloc[120:].eq(1.5).all()
    assert [str(value) for value in got["flag"]] == ["True"] * 120 + ["nan"] * 120
    assert set(got["mixed"]) == {"1", "one"}
    assert got["batch"].iloc[120:].tolist() == ["b1", "b2"] * 60
    assert got["batch"].isna().sum() == 120
    smm.get.embedding(small_aligned).write(tmp_path / "embedding.h5ad")


def test_embedding_of_a_part(small_aligned: md.MuData):
    names = np.r_[small_aligned["rna"].obs_names[:10], small_aligned["protein"].obs_names[:5]]
    assert smm.get.embedding(small_aligned[names]).shape == (15, 50)


# --- history and model -------------------------------------------------------------------------------------------


def test_history(small: md.MuData):
    align(small, max_steps=30)
    got = smm.get.history(small)
    assert got.index.name == "step"
    assert got.index.tolist() == [10, 20, 30]
    assert {"adversarial", "cycle", "anchors", "links", "geometry", "discriminator"} <= set(got)
    assert np.isfinite(got.to_numpy()).all()
    assert set(got.dtypes) == {np.dtype(float)}


def test_history_of_any_length():
    """Also of less than one entry, and with a last one that holds fewer steps."""
    mdata = smm.datasets.toy(n_cells=50, n_features=[20, 16])
    for max_steps in (1, 11, 12):
        align(mdata, max_steps=max_steps)
        got = smm.get.history(mdata)
        assert got.index[-1] == max_steps
        assert np.isfinite(got["cycle"]).all()


def test_model(small_aligned: md.MuData):
    model = smm.get.model(small_aligned).aligner
    assert model.modalities == ["rna", "protein"]
    x = own_space(small_aligned, "rna")
    np.testing.assert_allclose(model.embed(x, "rna"), small_aligned["rna"].obsm["X_scmmgan"], atol=1e-5)
    # one cell alone, and in any order
    alone = np.concatenate([model.translate(row[None], "rna", "protein") for row in x])
    np.testing.assert_allclose(alone, model.translate(x, "rna", "protein"), atol=1e-5)
    order = np.random.default_rng(0).permutation(120)
    np.testing.assert_allclose(model.translate(x[order], "rna", "protein"), alone[order], atol=1e-5)


@pytest.mark.parametrize("read", [smm.get.embedding, smm.get.history, smm.get.model])
def test_refusals(read: Callable, small: md.MuData):
    with pytest.raises(KeyError, match=r"No alignment 'scmmgan' in `mdata.uns`"):
        read(small)
    with pytest.raises(KeyError, match="No alignment 'truth'"):
        read(small, key="truth")
    with pytest.raises(TypeError, match=r"must be a MuData.*got AnnData"):
        read(small["rna"])


# --- matches, transferred columns, importance --------------------------------------------------------------------


def test_match(small_aligned: md.MuData):
    with pytest.raises(KeyError, match=r"No partners of 'rna' in 'protein'.*Run `scmmgan.tl.match\(mdata, 'rna'"):
        smm.get.match(small_aligned, "rna", "protein")
    smm.tl.match(small_aligned, "rna", "protein", k=3)
    got, obs = smm.get.match(small_aligned, "rna", "protein"), small_aligned["rna"].obs
    assert got.index.equals(small_aligned["rna"].obs_names)
    assert got["match"].tolist() == obs["scmmgan_match_protein"].tolist()
    np.testing.assert_array_equal(got["confidence"], obs["scmmgan_match_protein_confidence"])
    # of a part, in another order
    part = small_aligned[[*small_aligned["rna"].obs_names[[9, 2]], *small_aligned["protein"].obs_names]].copy()
    cut = smm.get.match(part, "rna", "protein")
    pd.testing.assert_frame_equal(cut, got.loc[cut.index])


def test_transfer(small_aligned: md.MuData):
    mdata = small_aligned
    smm.tl.transfer(mdata, "rna", "protein", obs=["cell_type", "gradient"])
    got = smm.get.transfer(mdata, "rna", "protein", obs="cell_type")
    names = [f"share_{label}" for label in mdata.uns["scmmgan"]["transfer"]["rna"]["scmmgan_protein_cell_type"]]
    assert list(got) == ["value", "unassigned", "probability", *names]
    assert got["value"].tolist() == mdata["rna"].obs["scmmgan_protein_cell_type"].tolist()
    np.testing.assert_allclose(got[names].sum(axis=1) + got["unassigned"], 1, atol=1e-5)
    certain = got["value"].notna()
    best = got.loc[certain, names].to_numpy().argmax(1)
    assert [names[i].removeprefix("share_") for i in best] == got.loc[certain, "value"].tolist()
    numbers = smm.get.transfer(mdata, "rna", "protein", obs="gradient")
    assert list(numbers) == ["value", "unassigned", "spread"]
    np.testing.assert_array_equal(numbers["value"], mdata["rna"].obs["scmmgan_protein_gradient"])
    with pytest.raises(
        KeyError, match=r"'celltype'\. Closest: \['cell_type'.*tl.transfer\(mdata, 'rna', 'protein', obs='celltype'"
    ):
        smm.get.transfer(mdata, "rna", "protein", obs="celltype")
    with pytest.raises(KeyError, match="column of 'rna' that 'protein' got"):
        smm.get.transfer(mdata, "protein", "rna", obs="cell_type")
    del mdata["rna"].obsm["scmmgan_protein_cell_type"]
    with pytest.raises(KeyError, match=r"run `scmmgan\.tl\.transfer` again"):
        smm.get.transfer(mdata, "rna", "protein", obs="cell_type")


def test_importance(small_aligned: md.MuData):
    with pytest.raises(KeyError, match=r"Run `scmmgan.tl.importance\(mdata, 'rna', 'protein', features"):
        smm.get.importance(small_aligned, "rna", "protein")
    names = small_aligned["protein"].var_names[:2]
    smm.tl.importance(small_aligned, "rna", "protein", features=names, n_cells=20)
    stored = small_aligned.uns["scmmgan"]["importance"]["rna"]["protein"]
    whole = smm.get.importance(small_aligned, "rna", "protein")
    pd.testing.assert_frame_equal(whole, stored)
    one = smm.get.importance(small_aligned, "rna", "protein", features=names[1])
    pd.testing.assert_frame_equal(one, stored[stored["feature"] == names[1]].reset_index(drop=True))
    one["share"] = 0
    assert smm.get.importance(small_aligned, "rna", "protein")["share"].any()
    with pytest.raises(KeyError, match=r"No importance of \['x'\]. Found: "):
        smm.get.importance(small_aligned, "rna", "protein", features="x")


# --- correlations ------------------------------------------------------------------------------------------------


def test_correlations_of_chosen_genes_as_a_copy(small_aligned: md.MuData, fingerprint: Callable):
    genes = smm.pp.link_features(small_aligned, "rna", "protein", on="gene")["rna"].tolist()
    with pytest.raises(KeyError, match=r"Run `scmmgan\.tl\.correlations"):
        smm.get.correlations(small_aligned, "rna", "protein")
    smm.tl.correlations(small_aligned, "rna", "protein", gene=genes[:3])
    before = fingerprint(small_aligned)
    table = smm.get.correlations(small_aligned, "rna", "protein")
    assert table["query"].unique().tolist() == genes[:3]
    assert list(table.columns[:5]) == ["query", "feature", "measured_as", "r_measured", "r_mapped"]
    chosen = smm.get.correlations(small_aligned, "rna", "protein", gene=[genes[2], genes[0]])
    assert chosen["query"].unique().tolist() == [genes[2], genes[0]]
    table["verdict"] = "mine"
    table.loc[0, "r_mapped"] = 2.0
    assert fingerprint(small_aligned) == before
    with pytest.raises(KeyError, match="nowhere"):
        smm.get.correlations(small_aligned, "rna", "protein", gene="nowhere")
    with pytest.raises(KeyError, match="No correlations of 'protein' mapped to 'rna'"):
        smm.get.correlations(small_aligned, "protein", "rna")


# --- uncertainty -------------------------------------------------------------------------------------------------


def test_variance_of_chosen_features(small_aligned: md.MuData, fingerprint: Callable):
    smm.tl.uncertainty(small_aligned, "rna", "protein")
    names = list(small_aligned["protein"].var_names[[5, 2]])
    before = fingerprint(small_aligned)
    got = smm.get.uncertainty(small_aligned, "rna", "protein", features=names)
    assert fingerprint(small_aligned) == before
    assert list(got.var_names) == names
    assert list(got.obs_names) == list(small_aligned["rna"].obs_names)
    assert got.X.dtype == got.layers["relative"].dtype == np.float32
    # squared units over squared units: one factor per feature, about its variance in the smoothed layer
    factor = got.X / got.layers["relative"]
    np.testing.assert_allclose(factor, factor[:1].repeat(len(factor), 0), rtol=1e-4)
    at = small_aligned["protein"].var_names.get_indexer(names)
    np.testing.assert_allclose(factor[0], transform_of(small_aligned, "protein").sd[at] ** 2, rtol=0.3)
    one = smm.get.uncertainty(small_aligned, "rna", "protein", features=names[0])
    np.testing.assert_array_equal(one.X[:, 0], got.X[:, 0])
    # fewer cells and features of the same data
    part = md.MuData({"rna": small_aligned["rna"][10:40].copy(), "protein": small_aligned["protein"][:, names].copy()})
    part.uns["scmmgan"] = small_aligned.uns["scmmgan"]
    np.testing.assert_allclose(smm.get.uncertainty(part, "rna", "protein", features=names).X, got.X[10:40], rtol=1e-6)


def test_unmatched_share_counts_as_uncertain(small_aligned: md.MuData):
    smm.tl.uncertainty(small_aligned, "rna", "protein")
    small_aligned["rna"].obs["scmmgan_unmatched"] = np.r_[1.0, np.zeros(small_aligned["rna"].n_obs - 1)]
    features = list(small_aligned["protein"].var_names)
    relative = smm.get.uncertainty(small_aligned, "rna", "protein", features=features).layers["relative"]
    np.testing.assert_allclose(relative[0], 1, rtol=1e-5)
    assert (relative[1:].mean(1) < 0.9).mean() > 0.5


def test_uncertainty_that_is_not_there(small_aligned: md.MuData):
    for read in (smm.get.uncertainty_summary, lambda *of: smm.get.uncertainty(*of, features=["x"])):
        with pytest.raises(KeyError, match=r"scmmgan\.tl\.uncertainty"):
            read(small_aligned, "rna", "protein")
    smm.tl.uncertainty(small_aligned, "rna", "protein")
    with pytest.raises(KeyError, match="feature in 'protein' 'x'"):
        smm.get.uncertainty(small_aligned, "rna", "protein", features=["x"])
    smm.tl.uncertainty(small_aligned, "protein", "rna", method="seeds", progress_bar=False)
    with pytest.raises(KeyError, match="not that of the coupling"):
        smm.get.uncertainty(small_aligned, "protein", "rna", features=list(small_aligned["rna"].var_names[:2]))
    found = smm.get.uncertainty_summary(small_aligned, "protein", "rna")
    assert list(found["features"].columns) == ["uncertainty", "seeds", "detection"]
    assert found["method"] == "seeds"


# --- input that people have --------------------------------------------------------------------------------------


def test_categories_keep_their_order_and_a_column_named_modality_its_values(small_aligned: md.MuData):
    for m in small_aligned.mod:
        obs = small_aligned[m].obs
        order = np.arange(len(obs)) % 2
        obs["level"] = pd.Categorical(np.array(["high", "low"])[order], ["low", "unused", "high"], ordered=True)
        obs["stage"] = pd.Categorical(np.array(["late", "early"])[order], ["late", "early"])
    small_aligned["rna"].obs["modality"] = "mine"
    small_aligned["protein"].obs["stage"] = "middle"
    obs = smm.get.embedding(small_aligned).obs
    assert obs["level"].cat.categories.tolist() == ["low", "high"]
    assert obs["level"].cat.ordered
    assert obs["stage"].cat.categories.tolist() == ["late", "early", "middle"]
    assert obs["own_modality"].dropna().unique().tolist() == ["mine"]
    assert obs["modality"].value_counts().to_dict() == {"rna": 120, "protein": 120}


def test_equal_barcodes_are_said_with_the_way_out(small: md.MuData, caplog: pytest.LogCaptureFixture):
    small["protein"].obs_names = small["rna"].obs_names
    with unpulled():
        mdata = md.MuData(dict(small.mod))
    with caplog.at_level("INFO", logger="scmmgan"):
        align(mdata, method="coupling")
    assert [text for text in caplog.messages if "occur in several modalities" in text and "`get.embedding`" in text]
    assert smm.get.embedding(mdata).n_obs == 240
