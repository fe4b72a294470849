"""`tl.correlations`: what mixing makes and hides, shuffled data, against dense references, slots, refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
from scmmgan.model.evidence import pooled
from scmmgan.model.space.transform import Transform

QUERIES = ["A_0", "B_0"]


def score(table: pd.DataFrame, verdict: str) -> tuple[float, float]:
    """Precision and recall of a verdict over all queries."""
    group = table["feature"].str.split("_").str[0]
    truth = group == table["query"].map(lambda q: TRUTH[q][["spurious", "novel"].index(verdict)])
    called = table["verdict"] == verdict
    hits = float((called & truth).sum())
    return hits / max(float(called.sum()), 1.0), hits / float(truth.sum())


def diagnosed(mdata: md.MuData, **fields: Any) -> None:
    """As if the diagnosis of every pair had found this."""
    record = mdata.uns["scmmgan"]
    of = record["diagnosis"]
    found = {a: {b: {**pair, **fields} for b, pair in others.items()} for a, others in of.items()}
    mdata.uns["scmmgan"] = _record.sealed({"diagnosis": found}, record)


def evidence(genes: Sequence[str], q: float | np.ndarray) -> pd.DataFrame:
    """Held-out evidence of genes that both sides have."""
    names = np.asarray(genes, dtype=object)
    return pd.DataFrame({"spatial": names, "rna": names, "q": q})


@pytest.fixture(scope="module")
def _spots() -> md.MuData:
    mdata = planted(0)
    smm.tl.align(mdata, "spatial", "rna", method="coupling", progress_bar=False)
    smm.tl.correlations(mdata, "spatial", "rna", gene=QUERIES, n_top=100)
    return mdata


@pytest.fixture
def spots(_spots: md.MuData) -> md.MuData:
    return _spots.copy()


@pytest.fixture
def few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 of the null, not 20: it is pooled over features, and costs most."""
    monkeypatch.setattr("scmmgan.model.evidence.correlations.PERMUTATIONS", 4)


# --- planted, and nothing planted ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_mixing_makes_and_hides(spots: md.MuData):
    table = smm.get.correlations(spots, "spatial", "rna")
    for verdict in ("spurious", "novel"):
        precision, recall = score(table, verdict)
        assert precision >= 0.8, verdict
        assert recall >= 0.8, verdict


def test_mapped_cells_give_candidates_only(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest):
    """The trained map keeps mixed spots mixed: what only mixing makes is there still."""
    mdata = planted(1, n_spots=250, n_cells=450)
    smm.tl.align(mdata, "spatial", "rna", max_steps=20, batch_size=64, progress_bar=False)
    smm.tl.correlations(mdata, "spatial", "rna", gene=QUERIES)
    stored = mdata.uns["scmmgan"]["correlations"]["spatial"]["rna"]
    assert (stored["method"], stored["supported"]) == ("cells", True)
    table = smm.get.correlations(mdata, "spatial", "rna")
    assert min(score(table, "spurious") + score(table, "novel")) >= 0.8
    caplog.clear()
    request.getfixturevalue("few_permutations")
    smm.tl.correlations(mdata, "spatial", "rna", gene=QUERIES, method="generator")
    assert "no verdict, only candidates: mapped cells are smoothed" in caplog.text
    mapped = smm.get.correlations(mdata, "spatial", "rna")
    assert (mapped["verdict"] == "").all()
    assert mapped["lower_mapped"].isna().all()
    only_mixed = (table["query"] == "A_0") & table["feature"].str.startswith("B_")
    assert (mapped["r_mapped"] - table["r_mapped"])[only_mixed].mean() > 0.2


def test_genes_of_no_type_correlate_with_nothing(spots: md.MuData):
    smm.tl.correlations(spots, "spatial", "rna", gene=[f"none_{i}" for i in range(8)], n_top=100)
    table = smm.get.correlations(spots, "spatial", "rna")
    table = table[table["query"].str.startswith("none")]
    assert (table["verdict"] != "").mean() < 0.002
    assert (table["q_measured"] < 0.05).mean() < 0.005
    # what q < .05 alone would call among pools is weaker than a novel correlation must be
    assert (table["q_mapped"] < 0.05).mean() < 0.05
    assert table["lower_mapped"].max() < 0.3


def test_n_top_decides_the_papers_lists_only(spots: md.MuData):
    before = smm.get.correlations(spots, "spatial", "rna")
    smm.tl.correlations(spots, "spatial", "rna", gene=QUERIES, n_top=3)
    after = smm.get.correlations(spots, "spatial", "rna")
    pd.testing.assert_frame_equal(after.drop(columns="listed"), before.drop(columns="listed"))
    assert (after["listed"] != "").sum() < (before["listed"] != "").sum()


@pytest.mark.slow
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
    """Pairs or labels, and no links: the whole alignment must be supported."""
    diagnosed(spots, supported=False, links=None)
    smm.tl.correlations(spots, "spatial", "rna", gene="A_0", n_top=100)
    table = smm.get.correlations(spots, "spatial", "rna")
    assert (table["verdict"] == "").all()
    assert (table["candidate"] == "spurious").any()
    assert "A_0: no verdict, only candidates: the alignment has no evidence for this gene" in caplog.text
    assert (table["q_measured"] < 0.05).any()


def test_verdicts_need_evidence_of_both_genes(caplog: pytest.LogCaptureFixture, spots: md.MuData):
    """Gene by gene, whatever the alignment as a whole is worth."""
    genes = spots["rna"].var_names
    sure = genes.str.endswith(("0", "2", "4", "6", "8")) & (genes != "B_0")
    diagnosed(spots, supported=False, verdict="weak", grade="weak", links=evidence(genes, np.where(sure, 0.01, 0.3)))
    smm.tl.correlations(spots, "spatial", "rna", gene=QUERIES, n_top=100)
    table = smm.get.correlations(spots, "spatial", "rna")
    assert "B_0: no verdict" in caplog.text
    assert "A_0: no verdict" not in caplog.text
    known = (table["query"] == "A_0") & table["feature"].isin(genes[sure])
    np.testing.assert_array_equal(table["verdict"], table["candidate"].where(known, ""))
    assert (table["verdict"] == "spurious").sum() >= 8
    assert (table["candidate"][table["query"] == "B_0"] != "").any()
    # a map that is not identifiable has no verdicts, whatever its genes say
    diagnosed(spots, supported=False, verdict="not identifiable", grade="not identifiable", links=evidence(genes, 0.01))
    smm.tl.correlations(spots, "spatial", "rna", gene=QUERIES, n_top=100)
    assert (smm.get.correlations(spots, "spatial", "rna")["verdict"] == "").all()


# --- what the numbers are ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["source", "target"])
def test_correlations_are_those_of_the_layers(spots: md.MuData, reference: str):
    smm.tl.correlations(spots, "spatial", "rna", gene="C_3", reference=reference, method="generator")
    table = smm.get.correlations(spots, "spatial", "rna", gene="C_3").set_index("feature")
    domain = _read.reread(spots, Keys())[1]["spatial" if reference == "source" else "rna"]
    names = domain.modality.features
    layer = pd.DataFrame(domain.smoothed.columns(np.arange(len(names))), columns=names, dtype=float)
    mapped = smm.get.mapped(spots, "spatial", "rna")
    values = pd.DataFrame(mapped.X, columns=mapped.var_names, dtype=float)
    a, b = (v.corrwith(v["C_3"]).drop("C_3") for v in (layer, values))
    np.testing.assert_allclose(table["r_measured"], a[table.index], atol=1e-4)
    # of what is decoded: mapped values of a layer without negative ones are cut at 0
    np.testing.assert_allclose(table["r_mapped"], b[table.index], atol=2e-3)
    np.testing.assert_allclose(table["change"], np.arctanh(b[table.index]) - np.arctanh(a[table.index]), atol=2e-2)
    assert table["rank_mapped"].sort_values().tolist() == list(range(1, len(table) + 1))
    assert table["r_measured"].idxmax() == table["rank_measured"].idxmin()
    assert (table["upper_mapped"] > table["r_mapped"] - 0.02).all()


def test_correlations_of_cells_are_those_of_pools(spots: md.MuData):
    """Of the cells that have counterparts; limits of the spots as measured."""
    domains = _read.reread(spots, Keys(), counts=True)[1]
    table = smm.get.correlations(spots, "spatial", "rna", gene="A_0").set_index("feature")
    names = pd.Index(domains["rna"].modality.features)
    others, asked = names.get_indexer(table.index), names.get_indexer(["A_0"])
    matched = 1 - spots["rna"].obs["scmmgan_unmatched"].to_numpy(dtype=float)
    r, error = pooled.pooled_correlations(domains["rna"], matched, asked, others, random_state=0)
    np.testing.assert_allclose(table["r_mapped"], r[0], atol=1e-6)
    lower, upper = (
        pooled.limits(r[0], error[0], signed=True, alpha=alpha)[i] for i, alpha in enumerate((0.003, 0.025))
    )
    np.testing.assert_allclose(table["lower_mapped"], lower, atol=1e-6)
    np.testing.assert_allclose(table["upper_mapped"], upper, atol=1e-6)
    own = pd.Index(domains["spatial"].modality.features)
    raw = pooled.given_depth(domains["spatial"], own.get_indexer(["A_0"]), own.get_indexer(table.index))[0]
    np.testing.assert_allclose(
        table["upper_measured"], pooled.limits(raw, pooled.fisher_error(400), signed=True)[1], atol=1e-6
    )


@pytest.mark.slow
def test_depth_makes_no_gene_novel_or_absent():
    """Counts are read once more: what cells lack is judged at a given depth."""
    mdata = planted(0, n_spots=150, n_cells=200)
    rng = np.random.default_rng(0)
    for part in mdata.mod.values():
        part.layers["counts"] = np.round(np.expm1(part.X)).astype(np.float32)
    depth = rng.lognormal(0, 1, (150, 1))
    spots = rng.poisson(mdata["spatial"].layers["counts"] * depth).astype(np.float32)
    mdata["spatial"].layers["counts"], mdata["spatial"].X = spots, np.log1p(spots)
    smm.tl.align(mdata, "spatial", "rna", method="coupling", progress_bar=False)
    smm.tl.correlations(mdata, "spatial", "rna", gene="C_0")
    with_counts = smm.get.correlations(mdata, "spatial", "rna").set_index("feature")
    smm.tl.align(mdata, "spatial", "rna", method="coupling", counts=None, progress_bar=False)
    smm.tl.correlations(mdata, "spatial", "rna", gene="C_0")
    without = smm.get.correlations(mdata, "spatial", "rna").set_index("feature")
    unrelated = with_counts.index.str.startswith("none")
    assert without.loc[unrelated, "upper_measured"].median() > 0.3
    assert with_counts.loc[unrelated, "upper_measured"].median() < 0.3


def test_verdicts_follow_their_rule(spots: md.MuData):
    table = smm.get.correlations(spots, "spatial", "rna")
    spurious = (table["q_measured"] < 0.05) & (table["r_measured"] >= 0.1) & (table["upper_mapped"] < 0.1)
    novel = (table["q_mapped"] < 0.05) & (table["lower_mapped"] >= 0.3) & (table["upper_measured"] < 0.1)
    lists = {}
    for verdict, rule, strong, weak in (
        ("spurious", spurious, "measured", "mapped"),
        ("novel", novel, "mapped", "measured"),
    ):
        np.testing.assert_array_equal(table["candidate"] == verdict, rule)
        lists[verdict] = (table[f"rank_{strong}"] <= 100) & (table[f"r_{weak}"] < 0.1)
    both = lists["spurious"] & lists["novel"]
    for verdict, paper in lists.items():
        # weak on both sides and high in both ranks: neither
        np.testing.assert_array_equal(table["listed"] == verdict, paper & ~both)


def test_unsigned_sees_negative_correlations(spots: md.MuData):
    smm.tl.correlations(spots, "spatial", "rna", gene="A_0", signed=False)
    table = smm.get.correlations(spots, "spatial", "rna", gene="A_0").set_index("feature")
    assert table.loc["BC_3", "r_measured"] < -0.8
    assert table.loc["BC_3", "q_measured"] < 0.05
    assert table.loc["BC_3", "upper_measured"] > 0.5
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


@pytest.mark.usefixtures("few_permutations")
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


@pytest.mark.usefixtures("few_permutations")
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


@pytest.mark.usefixtures("few_permutations")
@pytest.mark.parametrize("suffix", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
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


@pytest.mark.usefixtures("few_permutations")
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
        ({"method": "coupling"}, ValueError, "'auto', 'cells' or 'generator'"),
        ({"method": "cells", "reference": "target"}, ValueError, "use `method='generator'`"),
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


@pytest.mark.usefixtures("coarse_shapes")
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


@pytest.mark.usefixtures("few_permutations")
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
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
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
