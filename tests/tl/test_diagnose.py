"""`tl.diagnose` and what `tl.align` does of it: verdicts on known truth and controls, scores, slots, what must still be there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.data import record as _record

COUPLED = {"method": "coupling", "progress_bar": False}


def align(mdata: md.MuData, **arguments: Any) -> dict[str, Any]:
    """Record of an alignment whose map is the coupling itself."""
    smm.tl.align(mdata, **{**COUPLED, **arguments})
    return smm.get.diagnosis(mdata, "rna", "protein")


def true_pairs(mdata: md.MuData, n: int, *, shuffle: bool = False) -> pd.DataFrame:
    cells = {m: np.argsort(mdata.uns["truth"][m]["cell"]) for m in ("rna", "protein")}
    chosen = np.random.default_rng(0).permutation(len(cells["rna"]))[:n]
    partner = np.random.default_rng(1).permutation(chosen) if shuffle else chosen
    rows = {"rna": cells["rna"][chosen], "protein": cells["protein"][partner]}
    return pd.DataFrame({m: mdata[m].obs_names[i] for m, i in rows.items()})


def shuffled_links(mdata: md.MuData, seed: int = 0) -> pd.DataFrame:
    table = smm.pp.link_features(mdata, "rna", "protein", on="gene")
    table["protein"] = np.random.default_rng(seed).permutation(table["protein"].to_numpy())
    return table


# --- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_tables")
def test_links_that_hold(caplog: pytest.LogCaptureFixture):
    mdata = smm.datasets.toy(n_cells=120)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        record = align(mdata, links="gene")
    assert record["verdict"].startswith("supported by links")
    assert record["supported"]
    assert record["links_mean"] > 0.8
    score = record["links"]["correlation"]
    assert record["links_error"] == pytest.approx(np.std(score, ddof=1) / len(score) ** 0.5)
    assert record["links_p"] == 0.01
    assert list(record["links"].columns) == ["rna", "protein", "correlation", "p", "q", "ceiling", "share"]
    assert record["grade"] == "supported"
    assert (record["links_evident"], record["links_features"]) == (15, 15)
    assert 0.6 < record["links_ceiling"] < 1
    assert 0 < record["links_ceiling_error"] < 0.1
    assert record["links_share"] == pytest.approx(record["links_mean"] / record["links_ceiling"])
    said = [r for r in caplog.records if "held-out links" in r.message]
    assert [r.levelno for r in said] == [logging.INFO]
    mean, most = f"{record['links_mean']:.2f}", f"{record['links_null'].max():.2f}"
    allowed = f"{record['links_ceiling']:.2f}"
    assert said[0].message == (
        f"rna and protein: {record['verdict']} (held-out links correlate {mean}, shuffled ones at most {most}, "
        f"noise allows {allowed}). "
        "All numbers: `scmmgan.get.diagnosis`."
    )
    assert f"15 held-out links correlate {mean} ± " in record["statement"]
    assert f"at most {most})" in record["statement"]


@pytest.mark.usefixtures("all_tables")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_shuffled_links_are_not_supported(seed: int, caplog: pytest.LogCaptureFixture):
    mdata = smm.datasets.toy(n_cells=120)
    record = align(mdata, links=shuffled_links(mdata, seed))
    assert record["grade"] == "not identifiable"
    assert not record["supported"]
    said = [r for r in caplog.records if r.message.startswith("rna and protein: not identifiable")]
    assert [r.levelno for r in said] == [logging.WARNING]
    assert ". Nothing shows" in said[0].message
    assert record["statement"].startswith("rna and protein: not identifiable")
    # nor has any feature evidence of its own
    assert record["links_evident"] == 0


@pytest.mark.usefixtures("all_tables")
def test_one_modality_without_structure():
    mdata = smm.datasets.toy(n_cells=120)
    mdata["protein"].X = np.random.default_rng(0).permuted(mdata["protein"].X, axis=0)
    assert not align(mdata, links="gene")["supported"]


@pytest.mark.usefixtures("all_tables")
def test_pairs():
    mdata = smm.datasets.toy(n_cells=100)
    record = align(mdata, links=None, pairs=true_pairs(mdata, 30))
    assert record["verdict"].startswith("supported by pairs")
    assert (record["pairs_q"] < 0.05).mean() > 0.5
    assert record["pairs_mean"] < 0.2
    assert len(record["pairs"]) == 30
    assert record["pairs_error"] == pytest.approx(np.std(record["pairs"], ddof=1) / 30**0.5)
    mdata = smm.datasets.toy(n_cells=64)
    wrong = align(mdata, links=None, pairs=true_pairs(mdata, 30, shuffle=True))
    assert not wrong["supported"]
    assert wrong["pairs_mean"] > 0.3


def test_links_and_pairs():
    mdata = smm.datasets.toy(n_cells=80)
    assert align(mdata, links="gene", pairs=true_pairs(mdata, 30))["verdict"].startswith("supported by links and pairs")
    contradicted = align(mdata, links="gene", pairs=true_pairs(mdata, 30, shuffle=True))
    assert contradicted["links_p"] == 1 / (1 + len(contradicted["links_null"]))
    # links that beat every shuffled table are never called chance
    assert contradicted["verdict"].startswith("weak: more than chance, but known pairs contradict it")
    assert "contradict" in contradicted["statement"]
    # three pairs prove nothing, and outweigh nothing
    assert align(mdata, links="gene", pairs=true_pairs(mdata, 3))["verdict"].startswith("supported by links")


def test_right_links_do_not_support_what_wrong_labels_made_of_them():
    """Labels renamed in one modality lead the coupling away from links that hold among themselves."""
    mdata = smm.datasets.toy(n_cells=100)
    types = sorted(set(mdata["rna"].obs["cell_type"]))
    renamed = dict(zip(types, types[1:] + types[:1]))
    mdata["rna"].obs["known"] = mdata["rna"].obs["cell_type"].astype(str)
    mdata["protein"].obs["known"] = mdata["protein"].obs["cell_type"].astype(str)
    right = align(mdata, links="gene", labels="known")
    assert right["supported"]
    assert right["links_in_use"] > 0.8
    mdata["protein"].obs["known"] = [renamed[t] for t in mdata["protein"].obs["cell_type"]]
    wrong = align(mdata, links="gene", labels="known")
    assert wrong["links_mean"] > 0.8
    assert wrong["links_in_use"] < 0.3
    assert wrong["grade"] in ("weak", "in part")
    assert "by links" not in wrong["verdict"]
    assert "labels or pairs contradict them" in wrong["statement"]


@pytest.mark.usefixtures("few_tables")
@pytest.mark.parametrize("n", [3, 5])
def test_a_few_wrong_pairs_do_not_outweigh_the_links(n: int):
    mdata = smm.datasets.toy(n_cells=150)
    pairs = true_pairs(mdata, n)
    pairs["protein"] = np.roll(pairs["protein"], 1)
    score = {}
    for name, known in (("without", None), ("with", pairs)):
        align(mdata, links="gene", pairs=known)
        rows = [np.argsort(mdata.uns["truth"][m]["cell"]) for m in ("rna", "protein")]
        joint = [mdata[m].obsm["X_scmmgan"][r] for m, r in zip(("rna", "protein"), rows)]
        score[name] = smm.metrics.foscttm(*joint)
    assert score["with"] < score["without"] + 0.05


@pytest.mark.parametrize("n_linked", [3, pytest.param(6, marks=pytest.mark.slow), 9])
def test_few_links_make_a_coupling_but_no_support(n_linked: int):
    record = align(smm.datasets.toy(n_cells=120, n_linked=n_linked), links="gene")
    assert record["kind"] == "links"
    assert len(record["links"]) == n_linked
    assert not record["supported"]
    assert "and 10 links of different features" in record["statement"]


@pytest.mark.usefixtures("all_tables")
@pytest.mark.parametrize(("genes", "peaks"), [(3, 8), pytest.param(4, 6, marks=pytest.mark.slow), (9, 2)])
def test_links_of_few_features_are_no_support(genes: int, peaks: int):
    """Genes of pure noise, each linked to features that vary together: the links of any such table agree with each other."""
    rng, n = np.random.default_rng(0), 100
    own = {
        m: 2 * rng.normal(size=(n, 3)) @ rng.normal(size=(3, 15)) + rng.normal(size=(n, 15)) for m in ("rna", "protein")
    }
    factors = {m: rng.normal(size=(n, genes)) for m in own}
    together = np.repeat(factors["protein"], peaks, axis=1) + 0.7 * rng.normal(size=(n, genes * peaks))
    x = {"rna": np.hstack([factors["rna"], own["rna"]]), "protein": np.hstack([together, own["protein"]])}
    mods = {
        m: ad.AnnData(v.astype(np.float32), var=pd.DataFrame(index=[f"{m}_{j}" for j in range(v.shape[1])]))
        for m, v in x.items()
    }
    for m, a in mods.items():
        a.obs_names = [f"{m}{i}" for i in range(n)]
    links = [(f"rna_{j // peaks}", f"protein_{j}") for j in range(genes * peaks)]
    record = align(md.MuData(mods), links=pd.DataFrame(links, columns=["rna", "protein"]))
    assert not record["supported"]


@pytest.mark.usefixtures("all_tables", "coarse_shapes")
def test_nothing_known_is_never_support():
    for seed in range(2):
        record = align(smm.datasets.toy(n_cells=80, random_state=seed), links=None)
        assert record["kind"] == "geometry"
        assert not record["supported"]
        assert "Shapes alone" in record["statement"]
        assert "links_mean" not in record


@pytest.mark.usefixtures("all_tables", "coarse_shapes")
def test_labels_alone():
    mdata = smm.datasets.toy(n_cells=120)
    record = align(mdata, links=None, labels="cell_type")
    assert set(record["populations"]["population"]) == {f"type_{c}" for c in "ABCDE"}
    assert record["labels_separated"] > 0.8
    # labels are compared by the order of their distances: never more than in part
    assert record["grade"] == ("in part" if record["labels_p"] <= 0.01 else "not identifiable")
    assert "inside a label they say nothing" in record["statement"]
    mdata["protein"].obs["cell_type"] = np.random.default_rng(0).permutation(mdata["protein"].obs["cell_type"])
    assert not align(mdata, links=None, labels="cell_type")["supported"]


def test_a_map_that_does_not_follow_its_coupling():
    mdata = smm.datasets.toy(n_cells=120)
    smm.tl.align(mdata, links="gene", method="cyclegan", max_steps=5, progress_bar=False)
    record = smm.get.diagnosis(mdata, "rna", "protein")
    assert record["links_p"] == 1 / (1 + len(record["links_null"]))
    assert record["quality_follows"] > 0.3
    assert record["verdict"].startswith("weak: more than chance, but the trained map does not follow the coupling")
    assert "does not follow" in record["statement"]


@pytest.mark.usefixtures("few_tables")
def test_three_modalities_and_a_representation():
    mdata = smm.datasets.toy(n_cells=80, n_modalities=3, n_features=[24, 24, 24])
    smm.tl.align(mdata, links="gene", **COUPLED)
    for a, b in (("rna", "protein"), ("rna", "atac"), ("atac", "protein")):
        record = smm.get.diagnosis(mdata, a, b)
        assert record["supported"]
        assert mdata[a].obs[f"scmmgan_ambiguous_{b}"].dtype == bool
        for one, other in ((a, b), (b, a)):
            # of the map from the other one
            found = mdata[one].var[f"scmmgan_evidence_{other}"].dropna()
            links = pd.DataFrame(record["links"]).set_index(one)["correlation"]
            pd.testing.assert_series_equal(
                found.sort_index(), links.sort_index(), check_names=False, check_index_type=False
            )
    mdata["protein"].obsm["X_own"] = np.asarray(mdata["protein"].X)[:, :7]
    smm.tl.align(mdata, "rna", "protein", use_rep={"protein": "X_own"}, key_added="rep", **COUPLED)
    record = smm.get.diagnosis(mdata, "rna", "protein", key="rep")
    assert any("X_own_" in name for name in record["populations"]["population"])


def test_shared_space():
    mdata = smm.datasets.toy(n_cells=100, shared_genes=True)
    assert align(mdata)["supported"]


@pytest.mark.usefixtures("all_tables")
def test_fewest_cells():
    rng = np.random.default_rng(0)
    parts = {
        m: ad.AnnData(
            rng.normal(size=(32, 12)).astype(np.float32),
            obs=pd.DataFrame(index=[f"{m}{i}" for i in range(32)]),
            var=pd.DataFrame({"gene": [f"g{i}" for i in range(12)]}, index=[f"{m}_f{i}" for i in range(12)]),
        )
        for m in ("rna", "protein")
    }
    assert not align(md.MuData(parts), links="gene")["supported"]


# --- slots -------------------------------------------------------------------------------------------------------


def test_again_gives_what_align_gave(small_aligned: md.MuData, fingerprint: Callable):
    before = fingerprint(small_aligned)
    smm.tl.diagnose(small_aligned)
    assert fingerprint(small_aligned) == before


@pytest.mark.usefixtures("few_tables")
@pytest.mark.parametrize("fmt", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_from_a_file(fmt: str, tmp_path: Path):
    """Everything that the diagnosis needs travels: tables, pairs, labels with gaps, dicts of arguments."""
    mdata = smm.datasets.toy(n_cells=70, n_features=[30, 20])
    mdata["rna"].obs["label"] = mdata["rna"].obs["cell_type"].astype(object).where(np.arange(70) % 3 > 0)
    mdata["protein"].obs["label"] = mdata["protein"].obs["cell_type"].astype(object)
    links = smm.pp.link_features(mdata, "rna", "protein", on="gene").iloc[:12]
    record = align(mdata, links=links, pairs=true_pairs(mdata, 20), labels="label", n_pcs={"rna": 8})
    path = tmp_path / f"mdata.{fmt}"
    mdata.write(path) if fmt == "h5mu" else mdata.write_zarr(path)
    read = md.read_h5mu(path) if fmt == "h5mu" else md.read_zarr(path)
    assert smm.get.diagnosis(read, "rna", "protein")["statement"] == record["statement"]
    read.uns["scmmgan"] = _record.sealed({"diagnosis": {}}, read.uns["scmmgan"])
    smm.tl.diagnose(read)
    again = smm.get.diagnosis(read, "protein", "rna")
    assert again["statement"] == record["statement"]
    pd.testing.assert_frame_equal(again["populations"], record["populations"], check_dtype=False)


def test_ambiguous_cells_and_second_alignment(small_aligned: md.MuData):
    column = small_aligned["rna"].obs["scmmgan_ambiguous"]
    record = smm.get.diagnosis(small_aligned, "rna", "protein")
    assert column.dtype == bool
    assert column.mean() == record["ambiguous_rna"]
    populations = record["populations"]
    of_rna = populations[populations["modality"] == "rna"]
    np.testing.assert_allclose((of_rna["ambiguous"] * of_rna["share"]).sum(), column.mean())
    np.testing.assert_allclose(of_rna["share"].sum(), 1)


@pytest.mark.slow
def test_full():
    mdata = smm.datasets.toy(n_cells=100, n_features=[30, 20])
    smm.tl.align(mdata, links="gene", max_steps=20, progress_bar=False)
    smm.tl.diagnose(mdata, full=True, max_steps=300, progress_bar=False)
    record = smm.get.diagnosis(mdata, "rna", "protein")
    assert record["restart_agreement"].shape == (4, 4)
    assert record["restart_share"] == 1
    assert record["restart_agreement"].min() > 0.9
    # shuffled anchors are learnt worse
    assert record["short_overlap"] > record["null_overlap"]
    assert record["short_cycle"] < 0.5 * record["null_cycle"]
    assert "restarts give the same map" in record["statement"]


@pytest.mark.slow
def test_full_without_links_tries_the_rivals():
    mdata = smm.datasets.toy(n_cells=80, n_features=[30, 20])
    smm.tl.align(mdata, links=None, max_steps=5, progress_bar=False)
    smm.tl.diagnose(mdata, full=True, progress_bar=False)
    record = smm.get.diagnosis(mdata, "rna", "protein")
    assert len(record["gaps"]) >= 1
    assert (np.diff(record["gaps"]) >= 0).all()
    # the second restart follows the first rival, which is another coupling
    assert record["restart_agreement"][0, 1] < 0.9


def test_the_seed_does_not_change_what_is_assessed(small_coupled: md.MuData):
    """It is the coupling in use, and its map, whatever the folds."""
    before = smm.get.diagnosis(small_coupled, "rna", "protein")
    smm.tl.diagnose(small_coupled, random_state=5)
    after = smm.get.diagnosis(small_coupled, "rna", "protein")
    assert not np.array_equal(after["links"]["correlation"], before["links"]["correlation"])
    assert not np.array_equal(after["links_null"], before["links_null"])
    same = ["modality", "population", "share", "partner", "unmatched"]
    pd.testing.assert_frame_equal(after["populations"][same], before["populations"][same])
    fixed = [k for k in before if k.startswith(("quality", "unmatched")) or k in ("links_in_use", "kind", "swap_limit")]
    assert {k: after[k] for k in fixed} == {k: before[k] for k in fixed}
    # another coupling would be carried over otherwise
    smm.tl.align(small_coupled, links="gene", random_state=5, **COUPLED)
    assert smm.get.diagnosis(small_coupled, "rna", "protein")["links_in_use"] != before["links_in_use"]


# --- evidence of features ----------------------------------------------------------------------------------------

PARTS = {"scmmgan_evidence": "correlation", "scmmgan_evidence_q": "q", "scmmgan_evidence_ceiling": "share"}


def test_every_linked_feature_has_its_evidence_in_var(small_coupled: md.MuData):
    links = pd.DataFrame(smm.get.diagnosis(small_coupled, "rna", "protein")["links"])
    for m in ("rna", "protein"):
        var = small_coupled[m].var
        linked = var.index.isin(links[m])
        assert linked.sum() == 15
        for slot, column in PARTS.items():
            np.testing.assert_allclose(var.loc[links[m], slot], links[column])
            assert var.loc[~linked, slot].isna().all()
        assert (var.loc[linked, "scmmgan_evidence_q"] < 0.05).all()
        assert var.loc[linked, "scmmgan_evidence_ceiling"].between(0, 1).all()


@pytest.mark.usefixtures("few_tables")
def test_a_feature_of_several_links_gets_its_best():
    mdata = smm.datasets.toy(n_cells=80, n_features=[30, 20])
    table = smm.pp.link_features(mdata, "rna", "protein", on="gene")[["rna", "protein"]]
    wrong = table.assign(rna=np.roll(mdata["rna"].var_names[-15:], 1))
    record = align(mdata, links=pd.concat([table, wrong], ignore_index=True))
    best = pd.DataFrame(record["links"]).groupby("protein")["correlation"].max()
    np.testing.assert_allclose(mdata["protein"].var.loc[best.index, "scmmgan_evidence"], best)


@pytest.mark.usefixtures("coarse_shapes", "few_tables")
def test_evidence_follows_its_features(small_coupled: md.MuData, tmp_path: Path):
    """Through files, subsets and other orders; another alignment of that name takes it away."""
    before = small_coupled["protein"].var[list(PARTS)].copy()
    small_coupled.write(tmp_path / "mdata.h5mu")
    read = md.read_h5mu(tmp_path / "mdata.h5mu")
    pd.testing.assert_frame_equal(read["protein"].var[list(PARTS)], before)
    turned = read[:, [*read["rna"].var_names, *read["protein"].var_names[:12][::-1]]].copy()
    part = turned["protein"].var[list(PARTS)]
    pd.testing.assert_frame_equal(part.sort_index(), before.loc[part.index].sort_index())
    smm.tl.align(read, links=None, labels=None, **COUPLED)
    assert not [c for c in read["protein"].var if "evidence" in c]
    assert not [c for c in read.var if "evidence" in c]


def test_diagnose_writes_it_again(small_coupled: md.MuData):
    before = small_coupled["rna"].var[list(PARTS)].copy()
    small_coupled["rna"].var = small_coupled["rna"].var.drop(columns=list(PARTS))
    smm.tl.diagnose(small_coupled)
    pd.testing.assert_frame_equal(small_coupled["rna"].var[list(PARTS)], before)


def test_a_column_of_the_user_is_not_replaced(small: md.MuData):
    small["protein"].var["scmmgan_evidence"] = 1.0
    with pytest.raises(ValueError, match="scmmgan_evidence"):
        align(small, links="gene")
    assert "scmmgan" not in small.uns


# --- depth -------------------------------------------------------------------------------------------------------


def test_a_map_of_depth_is_said_to_be_one(caplog: pytest.LogCaptureFixture):
    """One factor, the depth, in all features."""
    mdata = smm.datasets.toy(n_cells=80, n_features=[30, 20])
    rng = np.random.default_rng(0)
    for adata in mdata.mod.values():
        depth = rng.gamma(2, 5, size=(80, 1))
        adata.X = np.log1p(rng.poisson(depth * np.ones(adata.n_vars))).astype(np.float32)
    align(mdata, links="gene")
    caplog.clear()
    smm.tl.diagnose(mdata)
    record = smm.get.diagnosis(mdata, "rna", "protein")
    assert min(record["depth_rna"], record["depth_protein"]) > 0.6
    assert len([r for r in caplog.records if "depth is the main content of this map" in r.message]) == 2
    assert "Features mapped from rna correlate" in record["statement"]


# --- scores ------------------------------------------------------------------------------------------------------


def test_small_data_hold_out_too_few_and_say_so(small_aligned: md.MuData):
    record = smm.get.diagnosis(small_aligned, "rna", "protein")
    assert not record["quality_held_out"]
    assert record["quality_overlap_chance"] == pytest.approx(20 / 119)
    assert record["quality_overlap"] > 1.5 * record["quality_overlap_chance"]


# --- errors ------------------------------------------------------------------------------------------------------


def test_refused_with_reasons_and_nothing_written(small_aligned: md.MuData, small: md.MuData, fingerprint: Callable):
    with pytest.raises(KeyError, match=r"scmmgan\.tl\.align"):
        smm.tl.diagnose(small)
    before = fingerprint(small_aligned)
    with pytest.raises(ValueError, match="n_restarts"):
        smm.tl.diagnose(small_aligned, full=True, n_restarts=2)
    with pytest.raises(KeyError, match="other"):
        smm.tl.diagnose(small_aligned, key="other")
    assert fingerprint(small_aligned) == before
    gene = small_aligned["protein"].var.pop("gene")
    del small_aligned["rna"].var["gene"]
    with pytest.raises(ValueError, match=r"Restore it, or align again. Found: .*gene"):
        smm.tl.diagnose(small_aligned)
    small_aligned["rna"].var["gene"] = small_aligned["rna"].var_names
    small_aligned["protein"].var["gene"] = gene
    whole = small_aligned.uns["scmmgan"]
    small_aligned.uns["scmmgan"] = _record.sealed({"diagnosis": {}}, whole)
    with pytest.raises(KeyError, match=r"scmmgan\.tl\.diagnose"):
        smm.get.diagnosis(small_aligned, "rna", "protein")
    small_aligned.uns["scmmgan"] = {name: entry for name, entry in whole.items() if name != "diagnosis"}
    for tool in (smm.tl.diagnose, lambda mdata: smm.get.diagnosis(mdata, "rna", "protein")):
        with pytest.raises(ValueError, match=r"damaged: align again\. Found: it lacks \['diagnosis'\]"):
            tool(small_aligned)


@pytest.mark.usefixtures("few_tables")
def test_full_where_nothing_but_links_is_trained_on():
    mdata = smm.datasets.toy(n_cells=60)
    off = dict.fromkeys(("adversarial", "cycle", "anchors", "geometry"), 0)
    smm.tl.align(mdata, links="gene", weights=off, max_steps=5, progress_bar=False)
    smm.tl.diagnose(mdata, full=True, max_steps=5, progress_bar=False)
    assert "null_cycle" in smm.get.diagnosis(mdata, "rna", "protein")


def test_a_view_is_refused(small_aligned: md.MuData):
    view = small_aligned[:, :]
    with pytest.raises(ValueError, match="view"):
        smm.tl.diagnose(view)
    assert view.is_view


@pytest.mark.usefixtures("few_tables")
@pytest.mark.parametrize("changed", ["links", "labels", "pairs", "nothing"])
def test_what_was_known_must_still_be_there(changed: str, fingerprint: Callable):
    mdata = smm.datasets.toy(n_cells=60)
    table = true_pairs(mdata, 30)
    for m, adata in mdata.mod.items():
        adata.obs["known"] = adata.obs_names.isin(table[m])
    rename = dict(zip(table["protein"], table["rna"]))
    mdata["protein"].obs_names = [rename.get(name, name) for name in mdata["protein"].obs_names]
    mdata.update()
    smm.tl.align(mdata, links="gene", labels="cell_type", pairs="known", **COUPLED)
    var, obs = mdata["protein"].var, mdata["protein"].obs
    if changed == "links":
        var["gene"] = var["gene"].to_numpy()[::-1]
    elif changed == "labels":
        codes = obs["cell_type"].astype(str).to_numpy().copy()
        codes[0] = next(code for code in codes if code != codes[0])
        obs["cell_type"] = codes
    elif changed == "pairs":
        obs["known"] = obs["known"] & (np.cumsum(obs["known"]) != 3)
    before = fingerprint(mdata)
    if changed == "nothing":
        smm.tl.diagnose(mdata)
        return
    with pytest.raises(ValueError, match="no longer"):
        smm.tl.diagnose(mdata)
    assert fingerprint(mdata) == before


@pytest.mark.usefixtures("few_tables")
def test_cells_in_another_order_than_was_aligned():
    mdata = smm.datasets.toy(n_cells=60)
    record = align(mdata, links="gene")
    turned = mdata[::-1].copy()
    flags = turned["rna"].obs.pop("scmmgan_ambiguous")
    smm.tl.diagnose(turned)
    assert turned["rna"].obs_names.tolist() == mdata["rna"].obs_names[::-1].tolist()
    pd.testing.assert_series_equal(turned["rna"].obs["scmmgan_ambiguous"], flags)
    assert smm.get.diagnosis(turned, "rna", "protein")["statement"] == record["statement"]
    # their values, not the cells
    mdata["rna"].X = mdata["rna"].X[::-1].copy()
    with pytest.raises(ValueError, match="X of 'rna' is not what was aligned as 'scmmgan'"):
        smm.tl.diagnose(mdata)


@pytest.mark.usefixtures("few_tables")
def test_other_data_than_was_aligned():
    mdata = smm.datasets.toy(n_cells=60)
    smm.tl.align(mdata, links="gene", n_pcs=9, **COUPLED)
    params = {**mdata.uns["scmmgan"]["params"], "n_pcs": 5}
    mdata.uns["scmmgan"] = {**mdata.uns["scmmgan"], "params": params}
    with pytest.raises(ValueError, match=r"damaged: align again.* 'params' is not what was written"):
        smm.tl.diagnose(mdata)
    mdata.uns["scmmgan"] = _record.sealed({"params": params}, mdata.uns["scmmgan"])
    with pytest.raises(ValueError, match="'rna' is no longer what was aligned"):
        smm.tl.diagnose(mdata)


@pytest.mark.slow
def test_modalities_that_a_dict_left_out():
    mdata = smm.datasets.toy(n_cells=60)
    smm.tl.align(mdata, links="gene", smooth={"protein": None}, n_pcs={"rna": 9}, **COUPLED)
    smm.tl.diagnose(mdata)
    assert smm.get.diagnosis(mdata, "rna", "protein")["supported"]
