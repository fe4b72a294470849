"""`tl.transfer`: labels and values on known truth, populations that are missing, slots, errors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm
from planted import mixed_spots

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

SLOT = "scmmgan_protein_cell_type"


def test_labels(aligned_toy: md.MuData):
    truth = aligned_toy["rna"].obs.pop("cell_type").astype(str)
    smm.tl.transfer(aligned_toy, "rna", "protein", obs="cell_type")
    rna = aligned_toy["rna"]
    label = rna.obs[SLOT]
    assert label.notna().mean() > 0.9
    assert (label.astype(str) == truth)[label.notna()].mean() > 0.95
    shares, names = rna.obsm[SLOT], aligned_toy.uns["scmmgan"]["transfer"]["rna"][SLOT]
    assert shares.dtype == np.float32
    assert names.tolist() == label.cat.categories.tolist() == sorted(set(truth))
    np.testing.assert_allclose(shares.sum(1) + rna.obs[f"{SLOT}_unassigned"], 1, atol=1e-5)
    np.testing.assert_array_equal(shares.max(1), rna.obs[f"{SLOT}_probability"])
    sure = shares.max(1) > 0.5
    assert (label.notna() == sure).all()
    assert (names[shares.argmax(1)][sure] == label[sure]).all()


def test_probabilities_are_calibrated(aligned_toy: md.MuData):
    smm.tl.transfer(aligned_toy, "rna", "protein", obs="cell_type")
    rna = aligned_toy["rna"]
    names = aligned_toy.uns["scmmgan"]["transfer"]["rna"][SLOT]
    given = rna.obsm[SLOT] / rna.obsm[SLOT].sum(1, keepdims=True)
    right = names[given.argmax(1)] == rna.obs["cell_type"].astype(str)
    assert abs(given.max(1).mean() - right.mean()) < 0.05


def test_a_population_that_the_target_lacks_is_unassigned(without_e: md.MuData):
    smm.tl.transfer(without_e, "rna", "protein", obs="cell_type")
    obs = without_e["rna"].obs
    orphan = obs["cell_type"] == "type_E"
    assert obs[SLOT].isna()[orphan].mean() > 0.9
    assert obs[SLOT].isna()[~orphan].mean() < 0.25
    assert obs[f"{SLOT}_unassigned"][orphan].median() > 0.6
    assert "type_E" not in obs[SLOT].cat.categories


def test_ambiguous_cells_are_half_assigned(small_aligned: md.MuData):
    rna = small_aligned["rna"]
    rna.obs["scmmgan_unmatched"], rna.obs["scmmgan_ambiguous"] = 0.0, True
    smm.tl.transfer(small_aligned, "rna", "protein", obs="cell_type")
    np.testing.assert_allclose(rna.obs[f"{SLOT}_unassigned"], 0.5, atol=1e-5)
    assert rna.obs[SLOT].isna().all()


def test_values(aligned_toy: md.MuData):
    rna, protein = aligned_toy["rna"], aligned_toy["protein"]
    protein.obs["first"] = np.asarray(protein.X)[:, 0]
    smm.tl.transfer(aligned_toy, "rna", "protein", obs=["first", "gradient"])
    truth = aligned_toy.uns["truth"]
    at = np.argsort(truth["protein"]["cell"])[truth["rna"]["cell"]]
    value, spread = rna.obs["scmmgan_protein_first"], rna.obs["scmmgan_protein_first_spread"]
    known = value.notna().to_numpy()
    assert known.mean() > 0.9
    expected = protein.obs["first"].to_numpy()[at]
    assert np.corrcoef(value[known], expected[known])[0, 1] > 0.7
    # the spread is that of measured cells
    covered = np.abs(expected - value)[known] <= 1.96 * spread[known]
    assert 0.85 < covered.mean() < 0.99
    assert {"scmmgan_protein_gradient", "scmmgan_protein_first_unassigned"} <= set(rna.obs)
    assert "scmmgan_protein_first" not in rna.obsm
    assert "transfer" not in aligned_toy.uns["scmmgan"]


def test_values_of_orphans_are_missing(without_e: md.MuData):
    smm.tl.transfer(without_e, "rna", "protein", obs="gradient")
    orphan = without_e["rna"].obs["cell_type"] == "type_E"
    assert without_e["rna"].obs["scmmgan_protein_gradient"].isna()[orphan].mean() > 0.9


def test_gaps_do_not_vote(aligned_toy: md.MuData):
    obs = aligned_toy["protein"].obs
    full = obs["cell_type"].astype(object)
    gaps = np.random.default_rng(0).random(len(obs)) < 0.5
    obs["half"] = full.where(~gaps, np.random.default_rng(1).choice(["", "nan", "-", "NA"], len(obs)))
    obs["half"] = obs["half"].where(obs["half"] != "NA", None)
    obs["number"] = np.where(gaps, np.nan, 3.0)
    smm.tl.transfer(aligned_toy, "rna", "protein", obs=["half", "number"])
    rna = aligned_toy["rna"].obs
    label = rna["scmmgan_protein_half"]
    assert label.cat.categories.tolist() == sorted(full.unique())
    assert (label.astype(str) == rna["cell_type"].astype(str))[label.notna()].mean() > 0.93
    np.testing.assert_allclose(rna["scmmgan_protein_number"].dropna(), 3, rtol=1e-6)


@pytest.mark.parametrize("kind", ["categories in an order of their own", "booleans", "text", "integers", "nullable"])
def test_types_of_columns(small_aligned: md.MuData, kind: str):
    obs = small_aligned["protein"].obs
    number = np.arange(len(obs)) % 2
    if kind == "categories in an order of their own":
        obs["c"] = pd.Categorical(np.array(["b", "a"])[number], categories=["b", "unused", "a"])
    else:
        dtypes = {"booleans": bool, "text": str, "integers": int}
        obs["c"] = pd.array(number, dtype="Int64") if kind == "nullable" else number.astype(dtypes[kind])
    smm.tl.transfer(small_aligned, "rna", "protein", obs="c")
    found = small_aligned["rna"].obs["scmmgan_protein_c"]
    if kind in ("integers", "nullable"):
        assert found.dtype == "Int64"
        assert set(found.dropna()) <= {0, 1}
    else:
        expected = {"booleans": ["False", "True"], "text": ["0", "1"]}.get(kind, ["b", "a"])
        assert found.cat.categories.tolist() == expected


@pytest.mark.parametrize("form", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_survives_a_file(small_coupled: md.MuData, form: str, tmp_path: Path):
    small_coupled["protein"].obs["a label"] = np.where(np.arange(small_coupled["protein"].n_obs) % 3, "x/y", "z")
    smm.tl.transfer(small_coupled, "rna", "protein", obs=["cell_type", "a label", "gradient"])
    file = tmp_path / f"a.{form}"
    (small_coupled.write if form == "h5mu" else small_coupled.write_zarr)(file)
    again = md.read(file) if form == "h5mu" else md.read_zarr(file)
    for name in (SLOT, "scmmgan_protein_a label", "scmmgan_protein_gradient", f"{SLOT}_unassigned"):
        pd.testing.assert_series_equal(again["rna"].obs[name], small_coupled["rna"].obs[name])
    names = again.uns["scmmgan"]["transfer"]["rna"]["scmmgan_protein_a label"]
    assert names.tolist() == ["x/y", "z"]
    smm.tl.transfer(again, "protein", "rna", obs="cell_type")
    assert set(again.uns["scmmgan"]["transfer"]) == {"rna", "protein"}
    # the next alignment takes it all away
    smm.tl.align(again, links="gene", method="coupling", progress_bar=False)
    assert not [c for c in again["rna"].obs if c.startswith("scmmgan_protein")]
    assert "transfer" not in again.uns["scmmgan"]


def test_nothing_else_is_changed(small_aligned: md.MuData, fingerprint: Callable[[md.MuData], dict[str, str]]):
    before = fingerprint(small_aligned)
    smm.tl.transfer(small_aligned, "rna", "protein", obs="cell_type")
    after = fingerprint(small_aligned)
    assert {k for k in before if before[k] != after.get(k)} == {".uns[scmmgan]"}
    assert all("rna." in k and SLOT in k for k in set(after) - set(before))
    smm.tl.transfer(small_aligned, "rna", "protein", obs="cell_type")
    assert fingerprint(small_aligned) == after


def test_says_how_many_are_unassigned(without_e: md.MuData, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        smm.tl.transfer(without_e, "rna", "protein", obs="cell_type")
    share = 100 * without_e["rna"].obs[SLOT].isna().mean()
    assert f"{share:.1f} % of the cells of 'rna' are unassigned" in caplog.text


def test_direction_is_explained(small_aligned: md.MuData):
    small_aligned["rna"].obs["only_here"] = "x"
    with pytest.raises(KeyError, match=r"tl.transfer\(mdata, 'protein', 'rna', obs='only_here'\)"):
        smm.tl.transfer(small_aligned, "rna", "protein", obs="only_here")


@pytest.mark.parametrize(
    ("obs", "kind", "message"),
    [
        ("cell_typ", KeyError, "Closest: \\['cell_type'\\]"),
        (7, TypeError, "`obs` must be"),
        ([], ValueError, "names no column"),
        ("dates", TypeError, "neither labels nor numbers"),
        ("empty", ValueError, "no value in any cell"),
        ("nothing", ValueError, "no value in any cell"),
        ("a/b", ValueError, "cannot be stored"),
    ],
)
def test_errors(small_aligned: md.MuData, obs: object, kind: type[Exception], message: str):
    table = small_aligned["protein"].obs
    table["dates"], table["empty"], table["nothing"] = pd.Timestamp("2020-01-01"), "", np.nan
    table["a/b"] = "x"
    before = list(small_aligned["rna"].obs)
    with pytest.raises(kind, match=message):
        smm.tl.transfer(small_aligned, "rna", "protein", obs=obs)
    assert list(small_aligned["rna"].obs) == before


def test_a_column_whose_kind_changed_leaves_nothing_stale(small_aligned: md.MuData):
    target = small_aligned["protein"]
    target.obs["state"] = np.where(np.arange(target.n_obs) % 2, "on", "off")
    smm.tl.transfer(small_aligned, "rna", "protein", obs=["state", "cell_type"])
    slot, rna = "scmmgan_protein_state", small_aligned["rna"]
    target.obs["state"] = np.linspace(0, 1, target.n_obs)
    smm.tl.transfer(small_aligned, "rna", "protein", obs="state")
    assert slot not in rna.obsm
    assert [c for c in rna.obs if c.startswith(slot)] == [slot, f"{slot}_unassigned", f"{slot}_spread"]
    assert set(small_aligned.uns["scmmgan"]["transfer"]["rna"]) == {SLOT}
    assert SLOT in rna.obsm
    target.obs["state"] = np.where(np.arange(target.n_obs) % 2, "on", "off")
    smm.tl.transfer(small_aligned, "rna", "protein", obs="state")
    assert f"{slot}_spread" not in rna.obs
    assert slot in rna.obsm


def test_a_users_own_column_stays(small_aligned: md.MuData):
    small_aligned["rna"].obs[f"{SLOT}_probability"] = 7
    with pytest.raises(ValueError, match="no result for the alignment"):
        smm.tl.transfer(small_aligned, "rna", "protein", obs="cell_type")
    assert SLOT not in small_aligned["rna"].obs


def test_columns_that_would_share_a_slot(small_aligned: md.MuData):
    small_aligned["protein"].obs["gradient_unassigned"] = 7.0
    with pytest.raises(ValueError, match="would share the slot"):
        smm.tl.transfer(small_aligned, "rna", "protein", obs=["gradient", "gradient_unassigned"])


# --- input that people have --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [int, "Int64", object])
def test_cluster_numbers_are_labels(
    aligned_toy: md.MuData, dtype: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    obs = aligned_toy["protein"].obs
    obs["cluster"] = obs["cell_type"].cat.codes.astype(int).to_numpy() * 5 + 6
    obs["cluster"] = obs["cluster"].astype(dtype)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        smm.tl.transfer(aligned_toy, "rna", "protein", obs=["cluster", "cell_type"])
    (said,) = [text for text in caplog.messages if "cluster" in text]
    assert "5 different whole numbers" in said
    assert "categories" in said
    found = aligned_toy["rna"].obs
    code, label = found["scmmgan_protein_cluster"], found["scmmgan_protein_cell_type"]
    pd.testing.assert_series_equal(
        (code - 6) // 5, label.cat.codes.astype("Int64").replace(-1, pd.NA), check_names=False
    )
    names = aligned_toy.uns["scmmgan"]["transfer"]["rna"]["scmmgan_protein_cluster"]
    assert list(names) == ["6", "11", "16", "21", "26"]
    aligned_toy["protein"].obs["cluster"] = obs["cluster"].astype(int)
    aligned_toy.write(tmp_path / "a.h5mu")
    pd.testing.assert_series_equal(md.read(tmp_path / "a.h5mu")["rna"].obs[code.name], code)


def test_cluster_numbers_as_floats_are_warned_of(small_aligned: md.MuData, caplog: pytest.LogCaptureFixture):
    obs = small_aligned["protein"].obs
    obs["c"] = np.where(np.arange(len(obs)) % 7 == 0, np.nan, np.arange(len(obs)) % 3)
    obs["value"] = np.arange(len(obs)) % 3 + 0.5
    obs["count"] = np.random.default_rng(0).permutation(len(obs))
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        smm.tl.transfer(small_aligned, "rna", "protein", obs=["c", "value", "count"])
    (said,) = [text for text in caplog.messages if "categories first" in text]
    assert said.startswith("'c' of 'protein' holds 3 different whole numbers, as floats")
    assert small_aligned["rna"].obs[["scmmgan_protein_c", "scmmgan_protein_count"]].dtypes.eq(np.float32).all()


def test_a_column_of_the_whole(small_aligned: md.MuData):
    small_aligned.obs["mine"] = "x"
    with pytest.raises(KeyError, match="push_obs"):
        smm.tl.transfer(small_aligned, "rna", "protein", obs="mine")


# --- spots ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spots_of_five() -> tuple[md.MuData, np.ndarray]:
    """Aligned spots of five cells and other cells, rows in no order, and the shares of the types in the spots."""
    spots, _, truth, cells, types = mixed_spots(0)
    places = np.random.default_rng(1).permutation(len(spots))
    parts = {}
    for name, counts in (("spots", spots[places]), ("cells", cells)):
        own = sp.csr_matrix(counts, dtype=np.float32)
        adata = ad.AnnData(np.log1p(1e4 * own.multiply(1 / np.maximum(own.sum(1), 1)).tocsr()))
        adata.obs_names = [f"{name}{i}" for i in range(len(counts))]
        adata.var_names = [f"g{i}" for i in range(90)]
        adata.layers["counts"] = own
        parts[name] = adata
    parts["cells"].obs["kind"] = [f"t{t}" for t in types]
    parts["cells"].obs["size"] = cells.sum(1)
    parts["spots"].obsm["spatial"] = np.random.default_rng(2).random((150, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="var_names are not unique")
        mdata = md.MuData(parts)
    smm.tl.align(mdata, method="coupling", progress_bar=False)
    return mdata, truth[places]


KIND = "scmmgan_cells_kind"


def test_labels_of_spots_are_compositions(
    spots_of_five: tuple[md.MuData, np.ndarray], caplog: pytest.LogCaptureFixture
):
    mdata, truth = spots_of_five[0].copy(), spots_of_five[1]
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        smm.tl.transfer(mdata, "spots", "cells", obs=["kind", "size"])
    share = 100 * mdata["spots"].obs[KIND].isna().mean()
    assert f"in {share:.1f} % of the spots of 'spots' no label has more than half" in caplog.text
    spots = mdata["spots"]
    shares, unassigned = spots.obsm[KIND], spots.obs[f"{KIND}_unassigned"].to_numpy()
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(1) + unassigned, 1, atol=1e-5)
    np.testing.assert_allclose(unassigned, spots.obs["scmmgan_unmatched"], atol=1e-5)
    assigned = shares / shares.sum(1, keepdims=True)
    np.testing.assert_array_equal(mdata.uns["scmmgan"]["transfer"]["spots"][KIND], [f"t{i}" for i in range(6)])
    error = np.sqrt(((assigned - truth) ** 2).mean())
    # non-negative least squares on mean profiles: tests/model/evidence/test_mixtures.py
    assert error < 0.12
    assert spots.obs[KIND].isna().mean() > 0.3
    assert {"scmmgan_cells_size", "scmmgan_cells_size_spread"} <= set(spots.obs)
    # in another order, with fewer genes
    rng = np.random.default_rng(3)
    rows = rng.permutation(150)
    part = md.MuData({"spots": mdata["spots"][rows].copy(), "cells": mdata["cells"][:, rng.permutation(90)].copy()})
    part.uns = mdata.uns
    smm.tl.transfer(part, "spots", "cells", obs="kind")
    np.testing.assert_allclose(part["spots"].obsm[KIND], shares[rows], atol=1e-4)


def test_without_counts_cells_vote(spots_of_five: tuple[md.MuData, np.ndarray]):
    mdata, truth = spots_of_five[0].copy(), spots_of_five[1]
    smm.tl.transfer(mdata, "spots", "cells", obs="kind")
    by_counts = mdata["spots"].obsm[KIND].copy()
    del mdata["spots"].layers["counts"]
    smm.tl.transfer(mdata, "spots", "cells", obs="kind")
    votes = mdata["spots"].obsm[KIND]
    errors = [np.sqrt(((s / s.sum(1, keepdims=True) - truth) ** 2).mean()) for s in (by_counts, votes)]
    assert errors[0] < 0.8 * errors[1]
