"""`tl.uncertainty`: planted truth, slots, what is left out, intervals, refusals; `noise_dim` of `tl.align`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import mannwhitneyu, spearmanr

import scmmgan as smm
from helpers import transform_of
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.coupling import couple as _couple
from scmmgan.model.evidence import calibration as _calibration
from scmmgan.model.space import imputation
from scmmgan.tl import _uncertainty
from scmmgan.tl._uncertainty import _expressed as expressed

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

COUPLED = {"method": "coupling", "links": "gene", "progress_bar": False}


def record(mdata: md.MuData, source: str = "protein", target: str = "rna") -> dict[str, Any]:
    return mdata.uns["scmmgan"]["uncertainty"][source][target]


def true_pairs(mdata: md.MuData, start: int, stop: int) -> pd.DataFrame:
    cells = {m: np.argsort(mdata.uns["truth"][m]["cell"]) for m in ("rna", "protein")}
    return pd.DataFrame({m: mdata[m].obs_names[rows[start:stop]] for m, rows in cells.items()})


def partners(mdata: md.MuData, source: str, target: str) -> np.ndarray:
    cells = {m: np.asarray(mdata.uns["truth"][m]["cell"]) for m in (source, target)}
    return np.argsort(cells[target])[cells[source]]


# --- against the truth -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> tuple[md.MuData, np.ndarray]:
    """A toy of which 15 unlinked rna features are permuted over cells together, aligned by the coupling."""
    mdata = smm.datasets.toy(n_cells=300)
    x = np.asarray(mdata["rna"].X.toarray() if sp.issparse(mdata["rna"].X) else mdata["rna"].X).copy()
    linked = mdata["rna"].var["gene"].isin(mdata["protein"].var["gene"]).to_numpy()
    unique = np.flatnonzero(~linked)[:15]
    x[:, unique] = x[np.random.default_rng(0).permutation(len(x))][:, unique]
    mdata["rna"].X = x
    smm.tl.align(mdata, "protein", "rna", **COUPLED)
    smm.tl.uncertainty(mdata, "protein", "rna")
    return mdata, unique


def test_planted_features_are_uncertain(planted: tuple[md.MuData, np.ndarray]):
    mdata, unique = planted
    score = mdata["rna"].var["scmmgan_uncertainty"].to_numpy()
    own = np.isin(np.arange(len(score)), unique)
    kept = np.isfinite(score)
    assert score[own & kept].min() > score[~own & kept].max()
    assert score[own & kept].mean() > 0.6
    assert score[~own & kept].mean() < 0.2
    domain = _read.reread(mdata, Keys())[1]["rna"]
    truth = domain.smoothed.columns(np.arange(len(score)))[partners(mdata, "protein", "rna")]
    error = ((smm.get.mapped(mdata, "protein", "rna").X - truth) ** 2).mean(0) / truth.var(0)
    assert spearmanr(score[kept], error[kept])[0] > 0.8


def test_slots(planted: tuple[md.MuData, np.ndarray]):
    mdata, _ = planted
    var, found = mdata["rna"].var, record(mdata)
    np.testing.assert_array_equal(var["scmmgan_uncertainty"], var["scmmgan_uncertainty_coupling"])
    # a tenth is lowly expressed: missing, not certain
    assert var["scmmgan_uncertainty"].isna().sum() == 6
    assert var["scmmgan_uncertainty"].dropna().between(0, 1).all()
    x = np.asarray(mdata["rna"].X)
    np.testing.assert_allclose(var["scmmgan_detection"], (x > 0).mean(0))
    lowest = np.argsort(x.mean(0))[:6]
    assert set(np.flatnonzero(var["scmmgan_uncertainty"].isna())) == set(lowest)
    assert mdata["protein"].obs["scmmgan_uncertainty"].notna().all()
    assert found["method"] == "coupling"
    kept = var["scmmgan_uncertainty"].notna()
    linked = var.index.isin(found["linked"])
    assert found["n_with"] == linked.sum() == len(found["linked"])
    assert found["n_with"] + found["n_without"] == kept.sum()
    np.testing.assert_allclose(found["with_counterpart"], var.loc[linked, "scmmgan_uncertainty"].mean())
    np.testing.assert_allclose(found["without_counterpart"], var.loc[kept & ~linked, "scmmgan_uncertainty"].mean())
    assert found["with_counterpart"] < found["without_counterpart"]
    of = [var.loc[kept & inside, "scmmgan_uncertainty"] for inside in (linked, ~linked)]
    np.testing.assert_allclose(found["p"], mannwhitneyu(*of, alternative="less").pvalue)
    assert found["p"] < 0.2


def test_cells_are_the_mean_over_features(planted: tuple[md.MuData, np.ndarray]):
    mdata, _ = planted
    kept = mdata["rna"].var_names[mdata["rna"].var["scmmgan_uncertainty"].notna()]
    relative = smm.get.uncertainty(mdata, "protein", "rna", features=list(kept)).layers["relative"]
    np.testing.assert_allclose(relative.mean(1).clip(max=1), mdata["protein"].obs["scmmgan_uncertainty"], rtol=1e-4)


def test_calibration_on_held_out_links(planted: tuple[md.MuData, np.ndarray]):
    mdata, _ = planted
    found = record(mdata)
    table = found["calibration"]
    assert found["calibration_source"] == "held-out links"
    assert set(table["feature"]) == set(found["linked"])
    assert table["predicted"].between(0, 1).all()
    assert table["observed"].between(0, 1).all()
    # links that were held out are predicted by the others
    assert table["observed"].median() < 0.3
    assert np.median(np.abs(table["observed"] - table["predicted"])) < 0.2


def test_cells_without_a_partner_are_uncertain():
    mdata = smm.datasets.toy(n_cells=150)
    rows = (mdata["rna"].obs["cell_type"] != "type_A").to_numpy()
    mdata = md.MuData({"protein": mdata["protein"].copy(), "rna": mdata["rna"][rows].copy()})
    smm.tl.align(mdata, "protein", "rna", **COUPLED)
    smm.tl.uncertainty(mdata, "protein", "rna")
    obs = mdata["protein"].obs
    orphan = (obs["cell_type"] == "type_A").to_numpy()
    assert np.median(obs["scmmgan_uncertainty"][orphan]) > np.quantile(obs["scmmgan_uncertainty"][~orphan], 0.9)
    assert obs["scmmgan_uncertainty"].between(0, 1).all()


@pytest.mark.parametrize("several", [False, True])
def test_scores_of_cells_lie_between_0_and_1(several: bool):
    """A cell may be more variable than the population, and parts add up."""
    both = (np.full(2, 0.4), np.array([0.7, 1.3])), (np.full(2, 0.5), np.array([0.6, 0.2]))
    slots = _uncertainty._score_slots(
        dict(zip(("coupling", "noise"), both)),
        np.full(2, 0.9),
        np.ones(2, dtype=bool),
        ("a", "b"),
        Keys(),
        several=several,
    )
    cells = slots["a", "obs", "scmmgan_uncertainty" + ("_b" if several else "")]
    np.testing.assert_array_equal(cells, [1, 1])


# --- what is expressed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
def test_expressed(kind: Callable):
    rng = np.random.default_rng(0)
    x = rng.poisson(1.0, (200, 60)).astype(np.float32)
    x[:, 0] = 0
    x[0, 0] = 50  # seen in one cell of 200, with a high mean
    x[:, 1] *= rng.random(200) < 0.02
    kept, detection = expressed(kind(x))
    np.testing.assert_allclose(detection, (x > 0).mean(0))
    mean = x.mean(0)
    np.testing.assert_array_equal(kept, (detection >= 0.01) & (mean >= np.quantile(mean, 0.1)))
    assert not kept[0]
    assert not kept[1]
    # a panel is chosen: nothing is dropped for its mean
    panel, _ = expressed(kind(x[:, :20]))
    np.testing.assert_array_equal(panel, detection[:20] >= 0.01)
    assert panel.sum() == 18
    # with negative values nothing says that a feature was not seen
    shifted, _ = expressed(kind(x - 0.5))
    assert shifted.all()
    x[:, 5] = 2
    assert not expressed(kind(x))[0][5]
    assert not expressed(kind(x - 0.5))[0][5]


def test_a_protein_panel_keeps_its_features():
    mdata = smm.datasets.toy(n_cells=60)
    x = np.asarray(mdata["protein"].X)
    mdata["protein"].X = (x - x.mean(1, keepdims=True)).astype(np.float32)
    smm.tl.align(mdata, "rna", "protein", **COUPLED)
    smm.tl.uncertainty(mdata, "rna", "protein")
    assert mdata["protein"].var["scmmgan_uncertainty"].notna().all()


def test_constant_features_are_missing():
    mdata = smm.datasets.toy(n_cells=60)
    x = mdata["protein"].X.toarray() if sp.issparse(mdata["protein"].X) else np.asarray(mdata["protein"].X).copy()
    x[:, -1] = 2.0
    mdata["protein"].X = x
    smm.tl.align(mdata, "rna", "protein", **COUPLED)
    smm.tl.uncertainty(mdata, "rna", "protein", pairs=true_pairs(mdata, 0, 30))
    assert np.isnan(mdata["protein"].var["scmmgan_uncertainty"].iloc[-1])
    assert mdata["protein"].var["scmmgan_uncertainty"].notna().sum() == mdata["protein"].n_vars - 1
    assert mdata["protein"].var_names[-1] not in set(record(mdata, "rna", "protein")["coverage_table"]["feature"])


# --- trainings ---------------------------------------------------------------------------------------------------


def test_all_methods(caplog: pytest.LogCaptureFixture):
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    smm.tl.align(mdata, links="gene", max_steps=4, batch_size=32, progress_bar=False)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        smm.tl.uncertainty(mdata, "rna", "protein", method="all", n_draws=5, progress_bar=False)
    assert [r for r in caplog.records if "ignore their noise" in r.message]
    var = mdata["protein"].var
    parts = var[[f"scmmgan_uncertainty_{part}" for part in ("coupling", "noise", "seeds")]]
    np.testing.assert_allclose(var["scmmgan_uncertainty"], np.minimum(parts.sum(axis=1), 1))
    assert (parts.to_numpy() >= 0).all()
    assert parts["scmmgan_uncertainty_seeds"].median() > 0
    assert record(mdata, "rna", "protein")["n_in_mode"] == 4
    # one part alone leaves the others where they are, and the same seed gives the same bits
    before = var["scmmgan_uncertainty_seeds"].copy()
    smm.tl.uncertainty(mdata, "rna", "protein", method="seeds", progress_bar=False)
    np.testing.assert_array_equal(mdata["protein"].var["scmmgan_uncertainty"], before)
    np.testing.assert_array_equal(mdata["protein"].var["scmmgan_uncertainty_noise"], parts["scmmgan_uncertainty_noise"])


def test_noise_of_the_alignment_is_used(caplog: pytest.LogCaptureFixture):
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    smm.tl.align(mdata, links="gene", max_steps=8, noise_dim={"rna": 4}, progress_bar=False)
    model = smm.get.model(mdata).aligner
    assert model.noise == {"rna": 4}
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        smm.tl.uncertainty(mdata, "rna", "protein", method="noise", n_draws=6, random_state=3)
    assert not [r for r in caplog.records if "Training" in r.message]
    # the definition, written out: variance over samples of the noise, mean over cells, over the variance in the data
    x = _read.reread(mdata, Keys())[1]["rna"].x
    rng, t = np.random.default_rng(3), transform_of(mdata, "protein")
    values = np.stack([t.inverse(model.sample(x, "rna", "protein", rng)) for _ in range(6)]).astype(np.float64)
    expected = values.var(0, ddof=1).mean(0) / t.sd**2
    np.testing.assert_allclose(mdata["protein"].var["scmmgan_uncertainty_noise"], expected, rtol=1e-2)
    # what is written is the map without noise
    np.testing.assert_array_equal(
        smm.get.mapped(mdata, "rna", "protein").X, t.inverse(model.translate(x, "rna", "protein"))
    )
    smm.tl.diagnose(mdata)


def test_noise_dim_is_checked(small: md.MuData, fingerprint: Callable):
    before = fingerprint(small)
    for wrong, error, match in (
        ({"noise_dim": -1}, ValueError, "noise_dim"),
        ({"noise_dim": 1.5}, TypeError, "noise_dim"),
        ({"noise_dim": {"dna": 3}}, KeyError, "dna"),
        ({"noise_dim": 2, "method": "coupling"}, ValueError, "noise"),
    ):
        with pytest.raises(error, match=match):
            smm.tl.align(small, links="gene", max_steps=1, progress_bar=False, **wrong)
    assert fingerprint(small) == before


# --- known pairs -------------------------------------------------------------------------------------------------


def test_intervals_cover_cells_that_did_not_calibrate():
    mdata = smm.datasets.toy(n_cells=300, n_features=[40, 30])
    smm.tl.align(mdata, "protein", "rna", **COUPLED)
    smm.tl.uncertainty(mdata, "protein", "rna", pairs=true_pairs(mdata, 0, 200))
    half = mdata["rna"].var["scmmgan_interval"].to_numpy()
    partner = partners(mdata, "protein", "rna")
    measured = mdata["rna"].X.toarray() if sp.issparse(mdata["rna"].X) else np.asarray(mdata["rna"].X)
    inside = np.abs(measured[partner] - smm.get.mapped(mdata, "protein", "rna").X) <= half + 1e-5
    used = mdata["protein"].obs_names.isin(true_pairs(mdata, 0, 200)["protein"])
    # the definition: 181st of 200 residuals
    np.testing.assert_array_equal(inside[used].sum(0), 181)
    assert abs(inside[~used].mean() - 0.9) < 0.03
    found = record(mdata)
    assert found["n_pairs"] == 200
    assert found["coverage"] == 0.9
    assert found["calibration_source"] == "known pairs"
    assert abs(found["coverage_reached"] - 0.9) < 0.02
    assert len(found["coverage_table"]) == mdata["rna"].var["scmmgan_uncertainty"].notna().sum()
    wide = mdata["rna"].var["scmmgan_interval"].copy()
    smm.tl.uncertainty(mdata, "protein", "rna", pairs=true_pairs(mdata, 0, 200), coverage=0.5)
    assert (mdata["rna"].var["scmmgan_interval"] < wide).all()


def test_intervals_are_those_of_imputed_values(monkeypatch: pytest.MonkeyPatch):
    """Genes that only the target has are imputed from counts: intervals lie around what `get.mapped` gives."""
    whole = smm.datasets.toy(n_cells=150, n_features=[70, 70], shared_genes=True)
    for adata in whole.mod.values():
        adata.layers["counts"] = np.round(np.expm1(adata.X))
    monkeypatch.setattr(imputation, "N_MIXTURES", 200)  # time
    mdata = md.MuData({"rna": whole["rna"], "protein": whole["protein"][:, :55].copy()})
    mdata.uns["truth"] = whole.uns["truth"]
    hidden = mdata["rna"].var_names[55:]
    smm.tl.align(mdata, "protein", "rna", method="coupling", progress_bar=False)
    smm.tl.uncertainty(mdata, "protein", "rna", pairs=true_pairs(mdata, 0, 100))
    half = mdata["rna"].var.loc[hidden, "scmmgan_interval"].to_numpy()
    mapped = smm.get.mapped(mdata, "protein", "rna", features=list(hidden)).X
    map_alone = transform_of(mdata, "rna").inverse(
        _slots.model_space(mdata, "protein", "rna", Keys()), np.arange(55, 70)
    )
    assert np.abs(mapped - map_alone).mean() > 0.05
    measured = np.asarray(mdata["rna"][:, hidden].X)[partners(mdata, "protein", "rna")]
    used = mdata["protein"].obs_names.isin(true_pairs(mdata, 0, 100)["protein"])
    inside, of_the_map = (np.abs(measured - values) <= half + 1e-5 for values in (mapped, map_alone))
    # the definition: 91st of 100 residuals
    np.testing.assert_array_equal(inside[used].sum(0), 91)
    assert (of_the_map[used].sum(0) != 91).any()
    assert abs(inside[~used].mean() - 0.9) < 0.06


def test_pairs_of_the_alignment_are_left_out(caplog: pytest.LogCaptureFixture):
    mdata = smm.datasets.toy(n_cells=100, n_features=[30, 20])
    smm.tl.align(mdata, "protein", "rna", pairs=true_pairs(mdata, 0, 60), **COUPLED)
    smm.tl.uncertainty(mdata, "protein", "rna", pairs=true_pairs(mdata, 60, 100))
    own = mdata["rna"].var["scmmgan_interval"].copy()
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        smm.tl.uncertainty(mdata, "protein", "rna", pairs=true_pairs(mdata, 40, 100))
    assert [r.message for r in caplog.records if r.message.startswith("20 of 60 pairs")]
    np.testing.assert_array_equal(mdata["rna"].var["scmmgan_interval"], own)
    with pytest.raises(ValueError, match=r"8 of 68 .* at least 9"):
        smm.tl.uncertainty(mdata, "protein", "rna", pairs=true_pairs(mdata, 0, 68))


def test_cells_of_known_pairs_do_not_know_their_pair():
    mdata = smm.datasets.toy(n_cells=120, n_features=[30, 20])
    pairs = true_pairs(mdata, 0, 60)
    smm.tl.align(mdata, "protein", "rna", pairs=pairs, **COUPLED)
    problem, domains = _read.reread(mdata, Keys())
    coupling = _couple.couple(problem, domains, random_state=0)[0]["protein", "rna"]
    plan = _calibration._without_own_pair(problem, domains, ("protein", "rna"), coupling, 0)
    known = coupling.known
    assert (plan[~known] != coupling.plan[~known]).nnz == 0
    assert len(np.unique((plan[known] != coupling.plan[known]).nonzero()[0])) == 60
    np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-5)


def test_intervals_with_batches_are_in_the_units_of_mapped_values():
    mdata = smm.datasets.toy(n_cells=120)
    mdata["rna"].obs["donor"] = np.where(np.arange(120) % 2 > 0, "a", "b")
    x = mdata["rna"].X.toarray() if sp.issparse(mdata["rna"].X) else np.asarray(mdata["rna"].X)
    mdata["rna"].X = (x + 3 * (np.arange(120) % 2)[:, None]).astype(np.float32)
    smm.tl.align(mdata, "protein", "rna", batch={"rna": "donor"}, **COUPLED)
    smm.tl.uncertainty(mdata, "protein", "rna", pairs=true_pairs(mdata, 0, 60))
    # a donor's shift of 3 is not in the intervals
    assert mdata["rna"].var["scmmgan_interval"].median() < 2


# --- slots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_from_a_file(fmt: str, tmp_path: Path, small_coupled: md.MuData):
    smm.tl.uncertainty(small_coupled, "rna", "protein")
    features = list(small_coupled["protein"].var_names[:4])
    before = smm.get.uncertainty(small_coupled, "rna", "protein", features=features)
    path = tmp_path / f"mdata.{fmt}"
    small_coupled.write(path) if fmt == "h5mu" else small_coupled.write_zarr(path)
    read = md.read_h5mu(path) if fmt == "h5mu" else md.read_zarr(path)
    again = smm.get.uncertainty(read, "rna", "protein", features=features)
    np.testing.assert_array_equal(again.X, before.X)
    smm.tl.uncertainty(read, "rna", "protein")
    np.testing.assert_allclose(
        read["protein"].var["scmmgan_uncertainty"], small_coupled["protein"].var["scmmgan_uncertainty"], rtol=1e-5
    )
    pd.testing.assert_frame_equal(
        pd.DataFrame(record(read, "rna", "protein")["calibration"]),
        record(small_coupled, "rna", "protein")["calibration"],
        check_dtype=False,
        check_index_type=False,
        check_column_type=False,
        rtol=1e-4,
    )
    smm.tl.align(read, **COUPLED)
    assert not [c for c in read["protein"].var if "uncertainty" in c or "interval" in c or "detection" in c]
    assert not list(read["protein"].varm)
    assert "scmmgan_uncertainty_plan_protein" not in read["rna"].obsm


def test_several_sources_have_columns_of_their_own(three_aligned: md.MuData):
    for source in ("rna", "atac"):
        smm.tl.uncertainty(three_aligned, source, "protein", key="mine")
    protein = three_aligned["protein"]
    assert {"mine_uncertainty_rna", "mine_uncertainty_coupling_rna", "mine_uncertainty_atac"} <= set(protein.var)
    assert "mine_uncertainty" not in protein.var
    assert "mine_uncertainty_protein" in three_aligned["rna"].obs
    relative = smm.get.uncertainty(three_aligned, "atac", "protein", features=list(protein.var_names), key="mine")
    np.testing.assert_allclose(
        relative.layers["relative"].mean(1), three_aligned["atac"].obs["mine_uncertainty_protein"], rtol=1e-4
    )


def test_few_links():
    """Without a fold of theirs too few would be left."""
    for n_linked in (11, 6):
        mdata = smm.datasets.toy(n_cells=60, n_linked=n_linked)
        smm.tl.align(mdata, **COUPLED)
        smm.tl.uncertainty(mdata, "rna", "protein")
        found = record(mdata, "rna", "protein")
        assert found["n_with"] == n_linked
        assert "calibration" not in found


@pytest.mark.usefixtures("coarse_shapes")
def test_nothing_linked_and_shared_space():
    mdata = smm.datasets.toy(n_cells=60, shared_genes=True)
    smm.tl.align(mdata, method="coupling", progress_bar=False)
    smm.tl.uncertainty(mdata, "rna", "protein")
    assert len(record(mdata, "rna", "protein")["calibration"])
    smm.tl.align(mdata, method="coupling", links=None, progress_bar=False)
    smm.tl.uncertainty(mdata, "rna", "protein")
    assert not {"calibration", "n_with", "p"} & set(record(mdata, "rna", "protein"))
    assert mdata["protein"].var["scmmgan_uncertainty"].dropna().between(0, 1).all()


def test_refused_with_reasons_and_nothing_written(small_aligned: md.MuData, small: md.MuData, fingerprint: Callable):
    with pytest.raises(KeyError, match=r"scmmgan\.tl\.align"):
        smm.tl.uncertainty(small, "rna", "protein")
    before = fingerprint(small_aligned)
    for wrong, error, match in (
        ({"method": "magic"}, ValueError, "coupling"),
        ({"coverage": 1.0}, ValueError, "coverage"),
        ({"coverage": "high"}, ValueError, "coverage"),
        ({"n_draws": 1}, ValueError, "n_draws"),
        ({"n_restarts": 3}, ValueError, "n_restarts"),
        ({"random_state": -1}, ValueError, "random_state"),
        ({"key": "other"}, KeyError, "other"),
        ({"pairs": "nowhere"}, KeyError, "nowhere"),
        ({"pairs": true_pairs(small_aligned, 0, 5)}, ValueError, "at least 9"),
    ):
        with pytest.raises(error, match=match):
            smm.tl.uncertainty(small_aligned, "rna", "protein", **wrong)
    with pytest.raises(ValueError, match="nothing is mapped"):
        smm.tl.uncertainty(small_aligned, "rna", "rna")
    with pytest.raises(KeyError, match="dna"):
        smm.tl.uncertainty(small_aligned, "dna", "rna")
    assert fingerprint(small_aligned) == before
    small_aligned["protein"].var["scmmgan_uncertainty"] = 1.0
    with pytest.raises(ValueError, match="scmmgan_uncertainty"):
        smm.tl.uncertainty(small_aligned, "rna", "protein")


def test_a_fixed_map_has_no_trainings_and_a_representation_no_features():
    mdata = smm.datasets.toy(n_cells=60)
    mdata["protein"].obsm["X_own"] = np.asarray(mdata["protein"].X)[:, :5].astype(np.float32)
    smm.tl.align(mdata, method="coupling", use_rep={"protein": "X_own"}, links=None, progress_bar=False)
    with pytest.raises(ValueError, match="X_own"):
        smm.tl.uncertainty(mdata, "rna", "protein")
    with pytest.raises(ValueError, match="trains nothing"):
        smm.tl.uncertainty(mdata, "protein", "rna", method="noise")
    smm.tl.uncertainty(mdata, "protein", "rna")
    assert mdata["rna"].var["scmmgan_uncertainty"].notna().any()


def test_calibration_does_not_depend_on_the_seed(small_aligned: md.MuData):
    found = []
    for seed in (0, 1):
        smm.tl.uncertainty(small_aligned, "rna", "protein", random_state=seed)
        found.append(smm.get.uncertainty_summary(small_aligned, "rna", "protein")["calibration"])
    pd.testing.assert_frame_equal(*found)


def test_cells_and_features_agree_where_shapes_decide():
    mdata = smm.datasets.toy(n_cells=60)
    smm.tl.align(mdata, links=None, method="coupling", progress_bar=False)
    smm.tl.uncertainty(mdata, "rna", "protein")
    var = mdata["protein"].var["scmmgan_uncertainty"]
    names = list(var.index[var.notna()])
    relative = smm.get.uncertainty(mdata, "rna", "protein", features=names).layers["relative"]
    np.testing.assert_allclose(relative.mean(1), mdata["rna"].obs["scmmgan_uncertainty"], atol=1e-4)


@pytest.mark.usefixtures("coarse_shapes")
def test_two_of_three_modalities_linked(monkeypatch: pytest.MonkeyPatch):
    """The third is coupled by shape, with fewer landmarks for all: so are the couplings of the folds."""
    monkeypatch.setattr(_couple, "LANDMARKS", 60)
    mdata = smm.datasets.toy(n_cells=80, n_modalities=3, n_features=[30, 20, 20])
    table = smm.pp.link_features(mdata, "rna", "protein", on="gene")
    smm.tl.align(mdata, links=table, method="coupling", progress_bar=False)
    smm.tl.uncertainty(mdata, "rna", "protein")
    assert len(smm.get.uncertainty_summary(mdata, "rna", "protein")["calibration"])
    assert mdata["rna"].obsm["scmmgan_uncertainty_plan_protein"].shape == (80, 24)
