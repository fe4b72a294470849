"""`tl.correlations`: what mixing makes and hides, shuffled data, against dense references, slots, refusals."""

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

import scmmgan as smm
from planted import TRUTH, planted
from scmmgan.data import read as _read
from scmmgan.data import record as _record
from scmmgan.data.keys import Keys
from scmmgan.model.space.transform import Transform

QUERIES = ["A_0", "B_0"]


def score(table: pd.DataFrame, verdict: str) -> tuple[float, float]:
    """Precision and recall of a verdict over all queries."""
    group = table["feature"].str.split("_").str[0]
    truth = group == table["query"].map(lambda q: TRUTH[q][["spurious", "novel"].index(verdict)])
    called = table["verdict"] == verdict
    hits = float((called & truth).sum())
    return hits / max(float(called.sum()), 1.0), hits / float(truth.sum())


def support_nothing(mdata: md.MuData) -> None:
    """As if no evidence had been found for the alignment."""
    record = mdata.uns["scmmgan"]
    of = record["diagnosis"]
    found = {a: {b: {**pair, "supported": False} for b, pair in others.items()} for a, others in of.items()}
    mdata.uns["scmmgan"] = _record.sealed({"diagnosis": found}, record)


@pytest.fixture(scope="module")
def _spots() -> md.MuData:
    mdata = planted(0)
    smm.tl.align(mdata, "spatial", "rna", method="coupling", progress_bar=False)
    smm.tl.correlations(mdata, "spatial", "rna", gene=QUERIES, n_top=100)
    return mdata


@pytest.fixture
def spots(_spots: md.MuData) -> md.MuData:
    return _spots.copy()


# --- planted, and nothing planted ----------------------------------------------------------------------------------


def test_what_mixing_makes_and_hides(spots: md.MuData):
    table = smm.get.correlations(spots, "spatial", "rna")
    for verdict in ("spurious", "novel"):
        precision, recall = score(table, verdict)
        assert precision >= 0.8, verdict
        assert recall >= 0.8, verdict


def test_in_a_shared_space_the_default_alignment_finds_them_too():
    mdata = planted(1, n_spots=250, n_cells=300)
    smm.tl.align(mdata, "spatial", "rna", max_steps=40, progress_bar=False)
    smm.tl.correlations(mdata, "spatial", "rna", gene=QUERIES, n_top=100)
    assert mdata.uns["scmmgan"]["correlations"]["spatial"]["rna"]["method"] == "coupling"
    table = smm.get.correlations(mdata, "spatial", "rna")
    assert min(score(table, "spurious") + score(table, "novel")) >= 0.8
    support_nothing(mdata)
    # links and identity keep the generator's images of mixed spots mixed
    smm.tl.correlations(mdata, "spatial", "rna", gene=QUERIES, n_top=100)
    assert mdata.uns["scmmgan"]["correlations"]["spatial"]["rna"]["method"] == "generator"
    by_generator = smm.get.correlations(mdata, "spatial", "rna")
    only_mixed = (table["query"] == "A_0") & table["feature"].str.startswith("B_")
    assert (by_generator["r_mapped"] - table["r_mapped"])[only_mixed].mean() > 0.2


@pytest.mark.parametrize("n_top", [None, 100])
def test_genes_of_no_type_correlate_with_nothing(spots: md.MuData, n_top: int | None):
    """The alignment is supported, and averages of few types make chance correlations of .9."""
    smm.tl.correlations(spots, "spatial", "rna", gene=[f"none_{i}" for i in range(8)], n_top=n_top)
    table = smm.get.correlations(spots, "spatial", "rna")
    table = table[table["query"].str.startswith("none")]
    assert table["r_mapped"].abs().max() > 0.6
    assert (table["verdict"] != "").mean() < 0.002
    assert (table[["q_measured", "q_mapped"]] < 0.05).to_numpy().mean() < 0.005


@pytest.mark.parametrize(("seed", "method"), [(0, "coupling"), (1, "coupling"), (0, "scmmgan")])
def test_nothing_passes_on_shuffled_data(seed: int, method: str):
    mdata = planted(seed, n_spots=130, n_cells=130)
    mdata["spatial"].X = np.random.default_rng(seed).permuted(mdata["spatial"].X, axis=0)
    smm.tl.align(mdata, "spatial", "rna", method=method, max_steps=30, progress_bar=False)
    smm.tl.correlations(mdata, "spatial", "rna", gene=QUERIES, n_top=100)
    table = smm.get.correlations(mdata, "spatial", "rna")
    assert (table["verdict"] == "").all()
    # without a look at the alignment either: nothing measured stands out
    assert (table["q_measured"] < 0.05).mean() < 0.01


def test_no_verdict_without_support(caplog: pytest.LogCaptureFixture, spots: md.MuData):
    support_nothing(spots)
    smm.tl.correlations(spots, "spatial", "rna", gene="A_0", n_top=100)
    table = smm.get.correlations(spots, "spatial", "rna")
    assert (table["verdict"] == "").all()
    assert (table["candidate"] == "spurious").any()
    assert "Nothing supports" in caplog.text
    assert (table["q_measured"] < 0.05).any()


# --- what the numbers are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["source", "target"])
def test_correlations_are_those_of_the_layers(spots: md.MuData, reference: str):
    smm.tl.correlations(spots, "spatial", "rna", gene="C_3", reference=reference)
    table = smm.get.correlations(spots, "spatial", "rna", gene="C_3").set_index("feature")
    domain = _read.reread(spots, Keys())[1]["spatial" if reference == "source" else "rna"]
    names = domain.modality.features
    layer = pd.DataFrame(domain.smoothed.columns(np.arange(len(names))), columns=names, dtype=float)
    mapped = smm.get.mapped(spots, "spatial", "rna")
    values = pd.DataFrame(mapped.X, columns=mapped.var_names, dtype=float)
    a, b = (v.corrwith(v["C_3"]).drop("C_3") for v in (layer, values))
    np.testing.assert_allclose(table["r_measured"], a[table.index], atol=1e-4)
    np.testing.assert_allclose(table["r_mapped"], b[table.index], atol=1e-4)
    np.testing.assert_allclose(table["change"], np.arctanh(b[table.index]) - np.arctanh(a[table.index]), atol=2e-2)
    assert table["rank_mapped"].sort_values().tolist() == list(range(1, len(table) + 1))
    assert table["r_measured"].idxmax() == table["rank_measured"].idxmin()
    assert (table["upper_mapped"] > table["r_mapped"] - 0.02).all()


def test_verdicts_follow_their_rule(spots: md.MuData):
    table = smm.get.correlations(spots, "spatial", "rna")
    lists = {}
    for verdict, strong, weak in (("spurious", "measured", "mapped"), ("novel", "mapped", "measured")):
        rule = (table[f"rank_{strong}"] <= 100) & (table[f"q_{strong}"] < 0.05) & (table[f"upper_{weak}"] < 0.1)
        rule &= table[f"r_{strong}"] >= 0.1
        np.testing.assert_array_equal(table["verdict"] == verdict, rule)
        lists[verdict] = (table[f"rank_{strong}"] <= 100) & (table[f"r_{weak}"] < 0.1)
    both = lists["spurious"] & lists["novel"]
    for verdict, paper in lists.items():
        # weak on both sides and high in both ranks: neither
        np.testing.assert_array_equal(table["listed"] == verdict, paper & ~both)
    assert both.sum() < 10 < min(paper.sum() for paper in lists.values())


def test_unsigned_sees_negative_correlations(spots: md.MuData):
    smm.tl.correlations(spots, "spatial", "rna", gene="A_0", signed=False)
    table = smm.get.correlations(spots, "spatial", "rna", gene="A_0").set_index("feature")
    assert table.loc["BC_3", "r_measured"] < -0.8
    assert table.loc["BC_3", "q_measured"] < 0.05
    assert table.loc["BC_3", "upper_measured"] > 0.8
    by_strength = table["r_measured"].abs().sort_values(ascending=False).index
    assert table.loc[by_strength, "rank_measured"].tolist() == list(range(1, len(table) + 1))


@pytest.mark.usefixtures("few_tables")
def test_sparse_and_dense_agree():
    tables = []
    for sparse in (False, True):
        mdata = planted(0, n_spots=100, n_cells=120)
        if sparse:
            for name in mdata.mod:
                mdata[name].X = sp.csr_matrix(mdata[name].X)
        smm.tl.align(mdata, method="coupling", progress_bar=False)
        smm.tl.correlations(mdata, "spatial", "rna", gene="A_0")
        tables.append(smm.get.correlations(mdata, "spatial", "rna"))
    dense, found = tables
    np.testing.assert_allclose(found["r_measured"], dense["r_measured"], atol=1e-3)
    # permutations differ, what they say does not
    assert np.corrcoef(found["z_measured"], dense["z_measured"])[0, 1] > 0.95


def test_links_batches_masks_and_other_layers(fingerprint: Callable):
    """Names that differ, through a `var` column; what `align` may read in other ways is read so again."""
    mdata = smm.datasets.toy(n_cells=120, n_features=[30, 20])
    mdata["rna"].layers["twice"] = 2 * mdata["rna"].X
    mdata["rna"].obs["donor"] = np.repeat(["x", "y"], 60)
    mdata["protein"].var["use"] = np.arange(20) > 1
    smm.tl.align(
        mdata, links="gene", layer={"rna": "twice"}, batch={"rna": "donor"}, mask_var={"protein": "use"},
        smooth={"rna": 3, "protein": None}, max_steps=5, progress_bar=False,
    )  # fmt: skip
    before = fingerprint(mdata)
    linked = smm.pp.link_features(mdata, "rna", "protein", on="gene")
    for source, target in (("rna", "protein"), ("protein", "rna")):
        for gene in linked.iloc[3][["rna", "protein"]]:
            smm.tl.correlations(mdata, source, target, gene=gene)
        table = smm.get.correlations(mdata, source, target)
        assert set(table["query"]) == set(linked.iloc[3][["rna", "protein"]])
        own = table[table["query"] == gene]
        assert set(zip(own["measured_as"], own["feature"])) == set(zip(linked[source], linked[target])) - {
            tuple(linked.loc[3, [source, target]])
        }
        np.testing.assert_allclose(*(t[["r_measured", "r_mapped", "p_mapped"]] for _, t in table.groupby("query")))
    after = fingerprint(mdata)
    assert {k for k in before if before[k] != after[k]} == {".uns[scmmgan]"}
    # all features of the target, the linked ones or not
    free = mdata["protein"].var_names[~mdata["protein"].var_names.isin(linked["protein"])][0]
    smm.tl.correlations(mdata, "rna", "protein", gene=free, reference="target")
    assert len(smm.get.correlations(mdata, "rna", "protein")) == 19
    with pytest.raises(KeyError, match="needs it there only"):
        smm.tl.correlations(mdata, "rna", "protein", gene=free)


def test_constant_features_are_left_out():
    mdata = planted(0, n_spots=100, n_cells=120)
    for name, gene in (("spatial", "B_2"), ("rna", "C_2")):
        mdata[name].X[:, mdata[name].var_names.get_loc(gene)] = 1.0
    smm.tl.align(mdata, method="coupling", progress_bar=False)
    smm.tl.correlations(mdata, "spatial", "rna", gene="A_0")
    found = smm.get.correlations(mdata, "spatial", "rna")["feature"]
    assert not found.isin(["B_2", "C_2"]).any()
    assert len(found) == 200 - 3
    for gene in ("B_2", "C_2"):
        with pytest.raises(ValueError, match="constant"):
            smm.tl.correlations(mdata, "spatial", "rna", gene=gene)


# --- slots ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["h5mu", "zarr"])
def test_survives_a_file_and_goes_on(spots: md.MuData, tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    spots.write(path) if suffix == "h5mu" else spots.write_zarr(path)
    again = md.read_h5mu(path) if suffix == "h5mu" else md.read_zarr(path)
    before, after = (smm.get.correlations(m, "spatial", "rna") for m in (spots, again))
    pd.testing.assert_frame_equal(after, before, check_dtype=False)
    smm.tl.correlations(again, "spatial", "rna", gene="A_0", n_top=100)
    assert set(smm.get.correlations(again, "spatial", "rna")["query"]) == set(QUERIES)


def test_reproducible_and_global_generator_untouched(spots: md.MuData):
    whole = smm.get.correlations(spots, "spatial", "rna")
    state = np.random.get_state()[1].copy()
    smm.tl.correlations(spots, "spatial", "rna", gene=QUERIES, n_top=100)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    pd.testing.assert_frame_equal(smm.get.correlations(spots, "spatial", "rna"), whole, check_exact=True)
    before = smm.get.correlations(spots, "spatial", "rna", gene="A_0")
    smm.tl.correlations(spots, "spatial", "rna", gene="A_0", n_top=100, random_state=5)
    other = smm.get.correlations(spots, "spatial", "rna", gene="A_0")
    assert (other["p_measured"] != before["p_measured"]).any()
    np.testing.assert_allclose(other["r_measured"], before["r_measured"], atol=1e-5)


def test_earlier_genes_stay_while_settings_are_the_same(spots: md.MuData, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="scmmgan")
    smm.tl.correlations(spots, "rna", "spatial", gene="C_0")
    smm.tl.correlations(spots, "spatial", "rna", gene=["C_0", "A_0"], n_top=100)
    table = smm.get.correlations(spots, "spatial", "rna")
    assert table["query"].value_counts().to_dict() == {"A_0": 199, "B_0": 199, "C_0": 199}
    assert set(smm.get.correlations(spots, "rna", "spatial")["query"]) == {"C_0"}
    assert "replaced" not in caplog.text
    smm.tl.correlations(spots, "spatial", "rna", gene="C_0", n_top=100, threshold=0.2)
    assert set(smm.get.correlations(spots, "spatial", "rna")["query"]) == {"C_0"}
    assert "['B_0', 'A_0'] were made with other settings" in caplog.text
    stored = spots.uns["scmmgan"]["correlations"]["spatial"]["rna"]
    assert (stored["n_top"], stored["threshold"], stored["signed"], stored["reference"]) == (100, 0.2, True, "source")


@pytest.mark.usefixtures("few_tables")
def test_the_next_alignment_removes_them(spots: md.MuData):
    smm.tl.align(spots, "spatial", "rna", method="coupling", progress_bar=False)
    assert "correlations" not in spots.uns["scmmgan"]


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"gene": "A_"}, KeyError, "Closest"),
        ({"gene": []}, ValueError, "names no feature"),
        ({"gene": 3}, TypeError, "`gene`"),
        ({"n_top": 0}, ValueError, "`n_top`"),
        ({"n_top": 1.5}, TypeError, "`n_top`"),
        ({"threshold": 1.0}, ValueError, "`threshold`"),
        ({"threshold": "x"}, ValueError, "`threshold`"),
        ({"signed": 1}, TypeError, "`signed`"),
        ({"reference": "rna"}, ValueError, "`reference`"),
        ({"method": "plan"}, ValueError, "`method`"),
        ({"random_state": -1}, ValueError, "`random_state`"),
        ({"key": "other"}, KeyError, "No alignment 'other'"),
        ({"target": "spatial"}, ValueError, "both 'spatial'"),
        ({"target": "protein"}, KeyError, "No modality 'protein'"),
    ],
)
def test_refusals(
    spots: md.MuData, fingerprint: Callable, arguments: dict[str, Any], error: type[Exception], text: str
):
    before = fingerprint(spots)
    with pytest.raises(error, match=text):
        smm.tl.correlations(spots, **{"source": "spatial", "target": "rna", "gene": "A_0", **arguments})
    assert fingerprint(spots) == before


def test_refuses_a_representation_and_a_feature_with_several_partners():
    mdata = smm.datasets.toy(n_cells=60)
    mdata["rna"].obsm["X_own"] = mdata["rna"].X[:, :10]
    smm.tl.align(mdata, links=None, use_rep={"rna": "X_own"}, method="coupling", progress_bar=False)
    with pytest.raises(ValueError, match="representation"):
        smm.tl.correlations(mdata, "rna", "protein", gene="protein_gene_0")
    table = smm.pp.link_features(mdata, "rna", "protein", on="gene")
    table.loc[len(table)] = [table.loc[0, "rna"], mdata["protein"].var_names[-1], 1.0, 1.0]
    smm.tl.align(mdata, links=table, method="coupling", progress_bar=False)
    with pytest.raises(ValueError, match="linked to 2 features"):
        smm.tl.correlations(mdata, "rna", "protein", gene=table.loc[0, "rna"])


def test_refuses_data_that_changed(spots: md.MuData):
    spots["spatial"].X = spots["spatial"].X[::-1].copy()
    with pytest.raises(ValueError, match="X of 'spatial' is not what was aligned as 'scmmgan'"):
        smm.tl.correlations(spots, "spatial", "rna", gene="A_0")


def test_smoothing_of_a_modality_that_a_dict_left_out():
    """The null is smoothed as the data were."""
    mdata = smm.datasets.toy(n_cells=60, shared_genes=True)
    found = {}
    for smooth in (1, {"protein": 1}):
        smm.tl.align(mdata, smooth=smooth, method="coupling", progress_bar=False)
        smm.tl.correlations(mdata, "rna", "protein", gene="gene_0")
        found[str(smooth)] = smm.get.correlations(mdata, "rna", "protein")
    first, second = found.values()
    pd.testing.assert_frame_equal(first, second)
    assert mdata.uns["scmmgan"]["params"]["smooth"] == {"rna": 1, "protein": 1}


@pytest.mark.parametrize("smooth", [2, None])
def test_permuted_features_are_smoothed_as_the_data_were(monkeypatch: pytest.MonkeyPatch, smooth: int | None):
    mdata = smm.datasets.toy(n_cells=60)
    for part in mdata.mod.values():
        part.X = sp.csr_matrix(part.X)
    smm.tl.align(mdata, links="gene", smooth=smooth, method="coupling", progress_bar=False)
    own = _read.reread(mdata, Keys())[1]["rna"]
    transform, steps, spread = Transform.transform, [], []

    def seen(self: Transform, smoothed: Any) -> np.ndarray:
        found = transform(self, smoothed)
        if np.array_equal(self.decoder, own.transform.decoder):
            steps.append(smoothed.steps)
            spread.append(float(found.std()))
        return found

    monkeypatch.setattr(Transform, "transform", seen)
    smm.tl.correlations(mdata, "rna", "protein", gene="protein_gene_0", reference="target")
    assert len(steps) == 20
    assert set(steps) == {smooth or 0}
    # what varies independently has less in common: less variance after the same steps
    assert max(spread) < 0.9 * own.x.std() if smooth else min(spread) > 0.5 * own.x.std()
