"""`tl.importance`: what was planted, knock-outs, completeness, slots, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.data import read as _read
from scmmgan.data.keys import Keys
from scmmgan.model.space.smoothing import SmoothedMatrix

pytestmark = pytest.mark.usefixtures("few_tables_throughout")


def table(mdata: md.MuData, source: str = "rna", target: str = "protein", **arguments) -> pd.DataFrame:
    arguments.setdefault("features", mdata[target].var_names[0])
    smm.tl.importance(mdata, source, target, **arguments)
    return mdata.uns["scmmgan"]["importance"][source][target]


@pytest.mark.slow
def test_knocked_out_features_change_the_prediction(aligned_toy: md.MuData):
    """Top ten set to their mean, against ten at random, through every step of the chain."""
    features = aligned_toy["protein"].var_names[:20].tolist()
    found = table(aligned_toy, features=features)
    _, domains = _read.reread(aligned_toy, Keys())
    rna, protein = domains["rna"], domains["protein"]
    cells, model = rna.smoothed.columns(np.arange(60)), smm.get.model(aligned_toy).aligner
    np.testing.assert_allclose(rna.transform.transform(SmoothedMatrix(cells)), rna.x, atol=1e-4)

    def predicted(without: np.ndarray) -> np.ndarray:
        changed = cells.copy()
        changed[:, without] = cells.mean(0)[without]
        x = rna.transform.transform(SmoothedMatrix(changed))
        return protein.transform.inverse(model.translate(x, "rna", "protein"), np.arange(20))

    whole, rng, names = predicted(np.array([], dtype=int)), np.random.default_rng(0), aligned_toy["rna"].var_names
    random = [np.abs(predicted(rng.permutation(60)[:10]) - whole).mean(0) for _ in range(5)]
    top = [
        np.abs(predicted(names.get_indexer(of["source_feature"][:10])) - whole).mean(0)[i]
        for i, (_, of) in enumerate(found.groupby("feature", sort=False))
    ]
    assert (np.array(top) > np.array(random)).mean() > 0.9


def test_one_feature_that_is_copied():
    """A feature that alone decides a mapped one is first, with its sign."""
    mdata = smm.datasets.toy(n_cells=130, n_features=[30, 20])
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=130)  # the same number means the same cell
    for m in ("rna", "protein"):
        cell = mdata.uns["truth"][m]["cell"]
        noise = rng.normal(size=mdata[m].shape).astype(np.float32)
        noise[:, 0] = (3 if m == "rna" else -3) * hidden[cell] + noise[:, 0] / 10
        mdata[m].X = noise
    cell = {m: pd.Series(mdata[m].obs_names, index=mdata.uns["truth"][m]["cell"]) for m in ("rna", "protein")}
    pairs = pd.DataFrame(cell).dropna()
    smm.tl.align(mdata, links=None, pairs=pairs, smooth=None, max_steps=40, batch_size=64, progress_bar=False)
    found = table(mdata)
    assert found["source_feature"][0] == mdata["rna"].var_names[0]
    assert found["share"][0] > 0.5
    assert found["effect"][0] < -0.5


def test_shares_effects_and_order(aligned_toy: md.MuData):
    features = ["protein_gene_1", "protein_gene_0"]
    found = table(aligned_toy, features=features)
    assert found.columns.tolist() == ["feature", "source_feature", "share", "importance", "effect"]
    assert found["feature"].drop_duplicates().tolist() == features
    for _, of in found.groupby("feature"):
        assert sorted(of["source_feature"]) == sorted(aligned_toy["rna"].var_names)
        assert of["share"].is_monotonic_decreasing
        assert of["share"].sum() == pytest.approx(1, abs=1e-6)
        assert (of["importance"] >= 0).all()
    mapped = smm.get.mapped(aligned_toy, "rna", "protein", features="protein_gene_0").X[:, 0]
    own = np.asarray(aligned_toy["rna"].X)[:, aligned_toy["rna"].var_names.get_indexer(["rna_gene_0"])[0]]
    linked = found[(found["feature"] == "protein_gene_0") & (found["source_feature"] == "rna_gene_0")]
    assert np.sign(linked["effect"].iloc[0]) == np.sign(np.corrcoef(own, mapped)[0, 1])


def test_a_sample_of_cells(aligned_toy: md.MuData):
    few, same, other = (table(aligned_toy, n_cells=100, random_state=seed).copy() for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(few, same)
    assert not np.array_equal(few["share"], other["share"])
    # deviations are those from the mean of all cells, drawn or not
    assert few["share"].sum() == pytest.approx(1, abs=1e-6)
    both = [of.set_index("source_feature")["importance"] for of in (few, table(aligned_toy))]
    assert both[0].corr(both[1]) > 0.95


def test_representations(tiny: md.MuData):
    tiny["rna"].obsm["X_pca"] = np.random.default_rng(0).normal(size=(tiny["rna"].n_obs, 4)).astype(np.float32)
    smm.tl.align(tiny, links=None, use_rep={"rna": "X_pca"}, max_steps=5, progress_bar=False)
    assert sorted(table(tiny)["source_feature"]) == [f"X_pca_{i}" for i in range(4)]
    assert table(tiny, "protein", "rna", features="X_pca_2")["feature"].eq("X_pca_2").all()


def test_batches_and_the_coupling_as_a_map():
    mdata = smm.datasets.toy(n_cells=80, n_features=[30, 20])
    mdata["rna"].obs["batch"] = np.where(np.arange(80) % 2, "a", "b")
    smm.tl.align(mdata, links="gene", batch={"rna": "batch"}, method="coupling", progress_bar=False)
    assert table(mdata)["share"].sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("form", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_survives_a_file(small_coupled: md.MuData, form: str, tmp_path: Path):
    found = table(small_coupled)
    table(small_coupled, "protein", "rna", features="rna_gene_0")
    file = tmp_path / f"a.{form}"
    (small_coupled.write if form == "h5mu" else small_coupled.write_zarr)(file)
    again = md.read(file) if form == "h5mu" else md.read_zarr(file)
    stored = again.uns["scmmgan"]["importance"]
    assert set(stored) == {"rna", "protein"}
    pd.testing.assert_frame_equal(stored["rna"]["protein"].reset_index(drop=True), found)
    pd.testing.assert_frame_equal(table(again), found)


def test_nothing_else_is_changed(small_aligned: md.MuData, fingerprint: Callable[[md.MuData], dict[str, str]]):
    before = fingerprint(small_aligned)
    table(small_aligned)
    after = fingerprint(small_aligned)
    assert {k for k in after if before.get(k) != after[k]} == {".uns[scmmgan]"}


def test_captum_is_missing(small_aligned: md.MuData, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"scmmgan\[interpret\]"):
        table(small_aligned)
    assert "importance" not in small_aligned.uns["scmmgan"]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"features": "protein_gene_x"}, KeyError, "No feature in 'protein'"),
        ({"features": 3}, TypeError, "`features` must be names"),
        ({"target": "rna", "features": "rna_gene_0"}, ValueError, "both 'rna'"),
        ({"n_cells": 0}, ValueError, "`n_cells` must be at least 1"),
    ],
)
def test_errors(small_aligned: md.MuData, arguments: dict, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        table(small_aligned, **arguments)
    assert "importance" not in small_aligned.uns["scmmgan"]


def test_no_alignment(small: md.MuData):
    with pytest.raises(KeyError, match="No alignment"):
        table(small)
