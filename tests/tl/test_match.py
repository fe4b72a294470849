"""`tl.match`: partners and confidence on known truth, slots, errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import mudata as md
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

import scmmgan as smm

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

NAME, SURE = "scmmgan_match_protein", "scmmgan_match_protein_confidence"


def test_partners_are_the_nearest_cells(aligned_toy: md.MuData):
    smm.tl.match(aligned_toy, "rna", "protein", k=3)
    rna, protein = aligned_toy["rna"], aligned_toy["protein"]
    order = np.argsort(cdist(rna.obsm["X_scmmgan"], protein.obsm["X_scmmgan"]), axis=1)[:, :3]
    assert rna.obs[NAME].tolist() == protein.obs_names[order[:, 0]].tolist()
    weights = rna.obsm[NAME]
    assert sp.issparse(weights)
    assert weights.shape == (rna.n_obs, protein.n_obs)
    assert [set(row.indices) for row in weights] == [set(columns) for columns in order]
    # the nearest has the largest weight; rows sum to the confidence
    assert (np.asarray(weights.argmax(1)).ravel() == order[:, 0]).all()
    np.testing.assert_allclose(np.asarray(weights.sum(1)).ravel(), rna.obs[SURE], rtol=1e-5)
    assert rna.obs[SURE].between(0, 1).all()


def test_partners_are_of_the_right_kind(aligned_toy: md.MuData):
    smm.tl.match(aligned_toy, "rna", "protein")
    rna, protein = aligned_toy["rna"].obs, aligned_toy["protein"].obs
    right = protein["cell_type"].astype(str)[rna[NAME]].to_numpy() == rna["cell_type"].astype(str).to_numpy()
    assert right.mean() > 0.9


def test_a_population_that_the_target_lacks_has_no_confidence(without_e: md.MuData):
    smm.tl.match(without_e, "rna", "protein")
    orphan = without_e["rna"].obs["cell_type"] == "type_E"
    confidence = without_e["rna"].obs[SURE]
    assert roc_auc_score(~orphan, confidence) > 0.8
    assert confidence[orphan].median() < 0.5 < 0.8 < confidence[~orphan].median()


def test_confidence_is_higher_where_the_label_is_right():
    """Noisy data, many wrong partners."""
    mdata = smm.datasets.toy(n_cells=180, n_features=[40, 20], n_linked=15, random_state=1)
    for m in ("rna", "protein"):
        rng = np.random.default_rng(0)
        mdata[m].X = mdata[m].X + rng.normal(scale=0.7, size=mdata[m].shape).astype(np.float32)
    smm.tl.align(mdata, links="gene", method="coupling", progress_bar=False)
    smm.tl.match(mdata, "rna", "protein")
    rna, protein = mdata["rna"].obs, mdata["protein"].obs
    right = protein["cell_type"].astype(str)[rna[NAME]].to_numpy() == rna["cell_type"].astype(str).to_numpy()
    assert 0.5 < right.mean() < 0.98
    assert roc_auc_score(right, rna[SURE]) > 0.6


def test_more_partners_than_cells(small_aligned: md.MuData):
    smm.tl.match(small_aligned, "rna", "protein", k=1000)
    assert (small_aligned["rna"].obsm[NAME].getnnz(1) == small_aligned["protein"].n_obs).all()


@pytest.mark.parametrize("form", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_survives_a_file(small_coupled: md.MuData, form: str, tmp_path: Path):
    smm.tl.match(small_coupled, "rna", "protein")
    expected = small_coupled["rna"].obs[NAME].tolist()
    file = tmp_path / f"a.{form}"
    (small_coupled.write if form == "h5mu" else small_coupled.write_zarr)(file)
    again = md.read(file) if form == "h5mu" else md.read_zarr(file)
    assert again["rna"].obs[NAME].tolist() == expected
    assert (again["rna"].obsm[NAME] != small_coupled["rna"].obsm[NAME]).nnz == 0
    smm.tl.match(again, "rna", "protein")
    assert again["rna"].obs[NAME].tolist() == expected


def test_nothing_else_is_changed_and_the_next_alignment_removes_it(
    small_aligned: md.MuData, fingerprint: Callable[[md.MuData], dict[str, str]]
):
    before = fingerprint(small_aligned)
    state = np.random.get_state()[1].copy()
    smm.tl.match(small_aligned, "rna", "protein")
    assert (np.random.get_state()[1] == state).all()
    after = fingerprint(small_aligned)
    assert {k for k in before if before[k] != after.get(k)} == {".uns[scmmgan]"}
    assert set(after) - set(before) == {f"rna.obs[{NAME}]", f"rna.obs[{SURE}]", f"rna.obsm[{NAME}]"}
    smm.tl.align(small_aligned, links="gene", method="coupling", progress_bar=False)
    assert NAME not in small_aligned["rna"].obs
    assert NAME not in small_aligned["rna"].obsm


def test_three_modalities(three_aligned: md.MuData):
    smm.tl.match(three_aligned, "rna", "atac", key="mine")
    smm.tl.match(three_aligned, "rna", "protein", key="mine")
    assert {"mine_match_atac", "mine_match_protein"} <= set(three_aligned["rna"].obs)


def test_an_alignment_that_nothing_supports_is_warned_of(tiny: md.MuData, caplog: pytest.LogCaptureFixture):
    smm.tl.align(tiny, links=None, method="coupling", progress_bar=False)
    caplog.clear()
    smm.tl.match(tiny, "rna", "protein")
    assert [r.levelno for r in caplog.records if "other populations" in r.message] == [logging.WARNING]


def test_a_supported_one_is_not(aligned_toy: md.MuData, caplog: pytest.LogCaptureFixture):
    smm.tl.match(aligned_toy, "rna", "protein")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("rna", "rna"), ValueError, "both 'rna'"),
        (("rna", "atac"), KeyError, "No modality 'atac'"),
    ],
)
def test_errors(small_aligned: md.MuData, arguments: tuple, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        smm.tl.match(small_aligned, *arguments)


def test_wrong_k_slot_taken_and_no_alignment(small: md.MuData, small_aligned: md.MuData):
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        smm.tl.match(small_aligned, "rna", "protein", k=0)
    small_aligned["rna"].obs[NAME] = "mine"
    with pytest.raises(ValueError, match="no result for the alignment"):
        smm.tl.match(small_aligned, "rna", "protein")
    assert (small_aligned["rna"].obs[NAME] == "mine").all()
    with pytest.raises(KeyError, match="No alignment"):
        smm.tl.match(small, "rna", "protein")
