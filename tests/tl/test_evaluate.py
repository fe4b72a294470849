"""All scores in one table: against `metrics` by hand, against chance where the truth is shuffled."""

from __future__ import annotations

from collections.abc import Callable

import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

import scmmgan as smm
from scmmgan.settings import unpulled
from scmmgan.tl import _evaluate

NAMES = ("rna", "protein")


def true_pairs(mdata: md.MuData, seed: int | None = None) -> pd.DataFrame:
    """The truth, or the same cells paired at random."""
    found = {m: mdata[m].obs_names[np.argsort(mdata.uns["truth"][m]["cell"])] for m in NAMES}
    if seed is not None:
        found["rna"] = np.random.default_rng(seed).permutation(found["rna"])
    return pd.DataFrame(found)


def scores(mdata: md.MuData, **how: object) -> pd.DataFrame:
    return smm.tl.evaluate(mdata, *NAMES, **how).set_index(["metric", "direction"])


@pytest.fixture(scope="module")
def table(_small_coupled: md.MuData) -> pd.DataFrame:
    return scores(_small_coupled, pairs=true_pairs(_small_coupled), labels="cell_type")


def test_the_table(table: pd.DataFrame):
    both, there, back = "both", "rna → protein", "protein → rna"
    each = ["recall_at_10", "label_transfer", "matched_label_accuracy", "js_distance", "correlation", "auroc"]
    each += ["correlation given depth", "wins against neighbors", "neighborhood_overlap", "cycle"]
    expected = {(m, both) for m in ("mmd", "two_sample_auc", "foscttm", "foscttm by correlation")} | {
        (m, w) for m in each for w in (there, back)
    }
    assert set(table.index) == expected
    assert table.index.is_unique
    assert list(table) == ["value", "error", "chance", "best", "n", "needs", "p"]
    assert np.isfinite(table[["value", "best", "n"]].to_numpy()).all()
    # nearer to the best than chance; the baseline knows pairs
    known = table[table["chance"].notna() & (table.index.get_level_values(0) != "wins against neighbors")]
    assert ((known["value"] - known["best"]).abs() < (known["chance"] - known["best"]).abs()).all()
    assert (table["error"].dropna() >= 0).all()
    assert table["error"].notna().sum() >= len(table) - 1


def test_values_are_those_of_metrics(small_coupled: md.MuData, table: pd.DataFrame):
    mdata, rows = small_coupled, {m: np.argsort(small_coupled.uns["truth"][m]["cell"]) for m in NAMES}
    z = {m: mdata[m].obsm["X_scmmgan"][rows[m]] for m in NAMES}
    way = "rna → protein"
    assert table.loc[("foscttm", "both"), "value"] == pytest.approx(smm.metrics.foscttm(z["rna"], z["protein"]))
    distance = cdist(z["rna"], z["protein"], "correlation")
    own, n = np.diag(distance), len(distance)
    nearer = (distance < own[:, None]).sum() + (distance < own).sum()
    assert table.loc[("foscttm by correlation", "both"), "value"] == pytest.approx(nearer / (2 * n * (n - 1)))
    recall = smm.metrics.recall_at_k(z["rna"], z["protein"], k=10)
    assert table.loc[("recall_at_10", way), "value"] == pytest.approx(recall)
    assert table.loc[("recall_at_10", way), "error"] == pytest.approx(np.sqrt(recall * (1 - recall) / 120))
    mapped, measured = smm.get.mapped(mdata, *NAMES).X[rows["rna"]], mdata["protein"].X[rows["protein"]]
    r = smm.metrics.column_correlation(mapped, measured)
    assert table.loc[("correlation", way), "value"] == pytest.approx(r.mean(), abs=1e-5)
    assert table.loc[("correlation", way), "error"] == pytest.approx(r.std(ddof=1) / np.sqrt(20), abs=1e-5)
    assert table.loc[("auroc", way), "value"] == pytest.approx(
        smm.metrics.column_auroc(mapped, measured).mean(), abs=1e-5
    )
    depth = np.log1p(mdata["rna"].X.sum(1))[rows["rna"]]
    given = smm.metrics.column_correlation(mapped, measured, method="spearman", given=depth)
    assert table.loc[("correlation given depth", way), "value"] == pytest.approx(given.mean(), abs=1e-4)


def test_shuffled_pairs_score_as_chance(small_coupled: md.MuData):
    found = scores(small_coupled, pairs=true_pairs(small_coupled, seed=0))
    assert found.loc[("foscttm", "both"), "value"] == pytest.approx(0.5, abs=0.06)
    for way in ("rna → protein", "protein → rna"):
        assert found.loc[("recall_at_10", way), "value"] < 0.16
        assert abs(found.loc[("correlation", way), "value"]) < 0.12
        assert found.loc[("auroc", way), "value"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("width", [2, 3])
def test_correlation_of_cells_needs_three_axes(width: int):
    """Of two all cells correlate by 1 or -1. Cells that are the same everywhere are ties, also in single precision."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(30, 1)).astype(np.float32), width, axis=1)
    pairs = np.stack([np.arange(30)] * 2, axis=1)
    found = _evaluate._Scored(NAMES, {"rna": x, "protein": x}, dict.fromkeys(NAMES, x), {}, pairs)
    rows = {row["metric"]: row["value"] for row in _evaluate._score(found, k=3, random_state=0)}
    assert rows.get("foscttm by correlation") == (None if width == 2 else 0.5)
    assert rows["foscttm"] == 0


def test_without_any_truth(small_coupled: md.MuData, fingerprint: Callable):
    before = fingerprint(small_coupled)
    found = scores(small_coupled)
    assert fingerprint(small_coupled) == before
    assert set(found.index.get_level_values(0)) == {
        *("mmd", "two_sample_auc", "js_distance", "neighborhood_overlap", "cycle")
    }
    assert set(found["needs"]) == {"nothing"}
    pd.testing.assert_frame_equal(scores(small_coupled), found)


def test_shared_features_are_compared_with_the_cells_own():
    mdata = smm.datasets.toy(n_cells=80, n_features=[60, 60], shared_genes=True)
    smm.tl.align(mdata, method="coupling", progress_bar=False)
    found = scores(mdata)
    way = ("correlation with own values", "rna → protein")
    shared = mdata["rna"].var_names.intersection(mdata["protein"].var_names)
    mapped = smm.get.mapped(mdata, *NAMES)[:, shared].X
    expected = smm.metrics.column_correlation(mapped, mdata["rna"][:, shared].X, method="spearman")
    assert found.loc[way, "value"] == pytest.approx(np.nanmean(expected), abs=1e-5)
    assert found.loc[way, "n"] == np.isfinite(expected).sum()
    one = scores(mdata, features=[shared[0]])
    assert one.loc[way, "value"] == pytest.approx(expected[mdata["rna"][:, shared].var_names == shared[0]][0], abs=1e-5)


def test_features_that_are_left(small_coupled: md.MuData, table: pd.DataFrame):
    part = small_coupled.copy()
    with unpulled():
        part = md.MuData({"rna": part["rna"][:, 3:].copy(), "protein": part["protein"][:, ::2].copy()})
    part.uns = small_coupled.uns
    found = scores(part).loc[("js_distance", "rna → protein")]
    assert found["n"] == part["protein"].n_vars
    assert np.isfinite(found["value"])
    gone = str(small_coupled["protein"].var_names[1])
    assert ("js_distance", "rna → protein") not in scores(part, features=[gone]).index


REFUSED = {
    "one modality": ({"target": "rna"}, ValueError, "are both 'rna'"),
    "few pairs": (
        {"pairs": pd.DataFrame({m: [f"{m}_{i}" for i in range(5)] for m in NAMES})},
        ValueError,
        "5 `pairs` are too few",
    ),
    "no column": ({"labels": "typ"}, KeyError, "No obs column in 'rna' for `labels` 'typ'"),
    "no feature": ({"features": ["protein_gen_0"]}, KeyError, "Closest: .'protein_gene_0'"),
    "k": ({"k": 0}, ValueError, "`k` must be at least 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(small_coupled: md.MuData, kind: str):
    how, error, message = REFUSED[kind]
    how = dict(how)
    with pytest.raises(error, match=message):
        smm.tl.evaluate(small_coupled, "rna", how.pop("target", "protein"), **how)
