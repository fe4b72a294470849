"""`tl.diagnose` and what `tl.align` does of it: verdicts on known truth and controls, slots, what must still be there."""

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
from scmmgan.model.evidence import quality as _quality
from scmmgan.model.evidence import verdict as _verdict
from scmmgan.model.nets import aligner

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


def test_links_that_hold(caplog: pytest.LogCaptureFixture):
    mdata = smm.datasets.toy()
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        record = align(mdata, links="gene")
    assert record["verdict"] == "supported by links"
    assert record["supported"]
    assert record["links_mean"] > 0.8
    score = record["links"]["correlation"]
    assert record["links_error"] == pytest.approx(np.std(score, ddof=1) / len(score) ** 0.5)
    assert record["links_p"] == 0.01
    assert list(record["links"].columns) == ["rna", "protein", "correlation"]
    said = [r for r in caplog.records if "held-out links" in r.message]
    assert [r.levelno for r in said] == [logging.INFO]
    assert said[0].message.startswith("rna and protein: supported by links (held-out links correlate")
    assert f"{record['links_mean']:.2f}" in record["statement"]


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_links_are_not_supported(seed: int, caplog: pytest.LogCaptureFixture):
    mdata = smm.datasets.toy(n_cells=200)
    record = align(mdata, links=shuffled_links(mdata, seed))
    assert record["verdict"] == "not identifiable"
    assert not record["supported"]
    assert [r.levelno for r in caplog.records if r.message.startswith("rna and protein: not ident")] == [logging.WARNING]


def test_one_modality_without_structure():
    mdata = smm.datasets.toy(n_cells=200)
    mdata["protein"].X = np.random.default_rng(0).permuted(mdata["protein"].X, axis=0)
    assert not align(mdata, links="gene")["supported"]


def test_pairs():
    mdata = smm.datasets.toy(n_cells=200)
    record = align(mdata, links=None, pairs=true_pairs(mdata, 30))
    assert record["verdict"] == "supported by pairs"
    assert record["pairs_mean"] < 0.2
    assert len(record["pairs"]) == 30
    assert record["pairs_error"] == pytest.approx(np.std(record["pairs"], ddof=1) / 30**0.5)
    wrong = align(mdata, links=None, pairs=true_pairs(mdata, 30, shuffle=True))
    assert not wrong["supported"]
    assert wrong["pairs_mean"] > 0.3


def test_links_and_pairs():
    mdata = smm.datasets.toy(n_cells=200)
    assert align(mdata, links="gene", pairs=true_pairs(mdata, 30))["verdict"] == "supported by links and pairs"
    contradicted = align(mdata, links="gene", pairs=true_pairs(mdata, 30, shuffle=True))
    assert contradicted["links_p"] == 0.01
    assert not contradicted["supported"]
    assert "contradict" in contradicted["statement"]
    # three pairs prove nothing, and outweigh nothing
    assert align(mdata, links="gene", pairs=true_pairs(mdata, 3))["verdict"] == "supported by links"


def test_right_links_do_not_support_what_wrong_labels_made_of_them():
    """Labels renamed in one modality lead the coupling away from links that hold among themselves."""
    mdata = smm.datasets.toy()
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
    assert "links" not in wrong["verdict"]
    assert "labels or pairs contradict them" in wrong["statement"]


@pytest.mark.parametrize("n", [3, 5])
def test_a_few_wrong_pairs_do_not_outweigh_the_links(n: int):
    mdata = smm.datasets.toy()
    pairs = true_pairs(mdata, n)
    pairs["protein"] = np.roll(pairs["protein"], 1)
    score = {}
    for name, known in (("without", None), ("with", pairs)):
        align(mdata, links="gene", pairs=known)
        rows = [np.argsort(mdata.uns["truth"][m]["cell"]) for m in ("rna", "protein")]
        joint = [mdata[m].obsm["X_scmmgan"][r] for m, r in zip(("rna", "protein"), rows)]
        score[name] = smm.metrics.foscttm(*joint)
    assert score["with"] < score["without"] + 0.05


@pytest.mark.parametrize("n_linked", [3, 6, 9])
def test_few_links_make_a_coupling_but_no_support(n_linked: int):
    record = align(smm.datasets.toy(n_linked=n_linked), links="gene")
    assert record["kind"] == "links"
    assert len(record["links"]) == n_linked
    assert not record["supported"]
    assert "and 10 links of different features" in record["statement"]


@pytest.mark.parametrize(("genes", "peaks"), [(3, 8), (4, 6), (9, 2)])
def test_links_of_few_features_bear_each_other_out(genes: int, peaks: int):
    """Genes of pure noise, each linked to features that vary together: any table of such carries itself over."""
    rng = np.random.default_rng(0)
    own = {
        m: 2 * rng.normal(size=(400, 3)) @ rng.normal(size=(3, 15)) + rng.normal(size=(400, 15))
        for m in ("rna", "protein")
    }
    factors = {m: rng.normal(size=(400, genes)) for m in own}
    together = np.repeat(factors["protein"], peaks, axis=1) + 0.7 * rng.normal(size=(400, genes * peaks))
    x = {"rna": np.hstack([factors["rna"], own["rna"]]), "protein": np.hstack([together, own["protein"]])}
    mods = {
        m: ad.AnnData(v.astype(np.float32), var=pd.DataFrame(index=[f"{m}_{j}" for j in range(v.shape[1])]))
        for m, v in x.items()
    }
    for m, a in mods.items():
        a.obs_names = [f"{m}{i}" for i in range(400)]
    links = [(f"rna_{j // peaks}", f"protein_{j}") for j in range(genes * peaks)]
    record = align(md.MuData(mods), links=pd.DataFrame(links, columns=["rna", "protein"]))
    assert not record["supported"]


def test_nothing_known_is_never_support():
    for seed in range(2):
        record = align(smm.datasets.toy(n_cells=120, random_state=seed), links=None)
        assert record["kind"] == "geometry"
        assert not record["supported"]
        assert "Shapes alone" in record["statement"]
        assert "links_mean" not in record


def test_labels_alone():
    mdata = smm.datasets.toy(n_cells=200)
    record = align(mdata, links=None, labels="cell_type")
    assert set(record["populations"]["population"]) == {f"type_{c}" for c in "ABCDE"}
    assert record["labels_separated"] > 0.8
    assert record["supported"] == (record["labels_p"] <= 0.01)
    assert "inside a label they say nothing" in record["statement"]
    mdata["protein"].obs["cell_type"] = np.random.default_rng(0).permutation(mdata["protein"].obs["cell_type"])
    assert not align(mdata, links=None, labels="cell_type")["supported"]


def test_a_map_that_does_not_follow_its_coupling():
    mdata = smm.datasets.toy(n_cells=200)
    smm.tl.align(mdata, links="gene", method="cyclegan", max_steps=5, progress_bar=False)
    record = smm.get.diagnosis(mdata, "rna", "protein")
    assert record["links_p"] == 0.01
    assert record["quality_follows"] > 0.3
    assert record["verdict"] == "not identifiable"
    assert "does not follow" in record["statement"]


def test_three_modalities_and_a_representation():
    mdata = smm.datasets.toy(n_cells=100, n_modalities=3)
    smm.tl.align(mdata, links="gene", **COUPLED)
    for a, b in (("rna", "protein"), ("rna", "atac"), ("atac", "protein")):
        assert smm.get.diagnosis(mdata, a, b)["verdict"] == "supported by links"
        assert mdata[a].obs[f"scmmgan_ambiguous_{b}"].dtype == bool
    mdata["protein"].obsm["X_own"] = np.asarray(mdata["protein"].X)[:, :7]
    smm.tl.align(mdata, "rna", "protein", use_rep={"protein": "X_own"}, key_added="rep", **COUPLED)
    record = smm.get.diagnosis(mdata, "rna", "protein", key="rep")
    assert any("X_own_" in name for name in record["populations"]["population"])


def test_shared_space():
    mdata = smm.datasets.toy(n_cells=150, shared_genes=True)
    assert align(mdata)["verdict"] == "supported by links"


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


# --- words -------------------------------------------------------------------------------------------------------


def record_of(**changes: Any) -> dict[str, Any]:
    table = pd.DataFrame(
        {"population": ["A", "B"], "partner": ["X", "Y"], "swap": ["", ""], "gap": [1.0, 1.0], "share": [0.5, 0.5]}
    )
    links = {"links_mean": 0.5, "links_error": 0.05, "links_p": 0.01, "links_null": np.zeros(9)}
    links["links"] = pd.DataFrame({side: [f"{side}{j}" for j in range(12)] for side in ("a", "b")})
    return {"kind": "links", "swap_limit": 1 / 3, "populations": table, **links, **changes}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "supported by links"),
        ({"links_mean": 0.3}, "not identifiable"),
        # a mean of a few links may be large by chance
        ({"links_mean": 0.36}, "not identifiable"),
        ({"links_mean": 0.36, "links_error": 0.02}, "supported by links"),
        ({"links_mean": 0.32, "links_error": 0.0}, "not identifiable"),
        ({"links_p": 0.02}, "not identifiable"),
        ({"restart_share": 0.5, "restart_modes": np.array([0, 0, 1, 1])}, "not identifiable"),
        ({"restart_share": 0.75, "restart_modes": np.array([0, 0, 0, 1])}, "supported by links"),
        ({"quality_follows": 0.4}, "not identifiable"),
    ],
)
def test_what_support_takes(changes: dict[str, Any], verdict: str):
    record = record_of(**changes)
    found = _verdict.judge(record, ("a", "b"))
    assert found["verdict"] == verdict
    assert f"correlate {record['links_mean']:.2f} ± {record['links_error']:.2f} on average" in found["statement"]
    large = record["links_mean"] - record["links_error"] >= 1 / 3
    assert ("more than chance, and may be no more" in found["statement"]) == (record["links_p"] <= 0.01 and not large)


@pytest.mark.parametrize(
    ("mean", "error", "n", "p", "alone", "beside_links"),
    [
        (0.24, 0.05, 10, 0.01, "supported by pairs", "supported by links and pairs"),
        # not sure enough to support, nor bad enough to contradict
        (0.24, 0.07, 10, 0.01, "not identifiable", "supported by links"),
        (0.31, 0.01, 10, 0.01, "not identifiable", "not identifiable"),
        (0.2, 0.01, 10, 0.02, "not identifiable", "not identifiable"),
        (0.31, 0.01, 9, 0.01, "not identifiable", "supported by links"),
        (0.1, 0.01, 4, 0.01, "not identifiable", "supported by links"),
    ],
)
def test_the_standard_error_of_few_pairs_counts(
    mean: float, error: float, n: int, p: float, alone: str, beside_links: str
):
    pairs = {"pairs_mean": mean, "pairs_error": error, "pairs_n": n, "pairs_p": p, "pairs_in_use": mean}
    pairs |= {"pairs": np.full(n, mean), "pairs_null": np.full(99, 0.5)}
    record = record_of(**pairs)
    assert _verdict.judge(record, ("a", "b"))["verdict"] == beside_links
    found = _verdict.judge({k: v for k, v in record.items() if "links" not in k}, ("a", "b"))
    assert found["verdict"] == alone
    assert f"{mean:.0%} ± {error:.0%} are nearer" in found["statement"]


def test_the_coupling_in_use_must_put_the_pairs_near():
    pairs = {"pairs_mean": 0.1, "pairs_error": 0.02, "pairs_n": 30, "pairs_p": 0.01, "pairs": np.full(30, 0.1)}
    pairs |= {"pairs_null": np.full(99, 0.5)}
    for in_use, verdict in ((0.29, "supported by links and pairs"), (0.31, "not identifiable")):
        assert _verdict.judge(record_of(**pairs, pairs_in_use=in_use), ("a", "b"))["verdict"] == verdict


def test_populations_that_could_be_swapped_are_named():
    swap = pd.DataFrame(
        {"population": ["A", "B", "C"], "partner": ["X", "Y", "Z"], "swap": ["B", "A", ""], "gap": [0.1, 0.1, 1.0]}
    ).assign(share=1 / 3)
    record = _verdict.judge(record_of(populations=swap), ("a", "b"))
    assert record["verdict"] == "supported by links"
    assert record["statement"].endswith("could be swapped: A with B.")
    swap["swap"], swap["gap"] = ["Y", "X", ""], [0.02, 0.03, 1.0]
    shapes = {
        k: v for k, v in record_of(kind="geometry", swap_limit=0.05, populations=swap).items() if "links" not in k
    }
    found = _verdict.judge({**shapes, "gaps": np.array([0.02])}, ("a", "b"))
    assert found["verdict"] == "ambiguous: populations X and Y could be swapped"
    assert not found["supported"]


# --- slots -------------------------------------------------------------------------------------------------------


def test_again_gives_what_align_gave(small_aligned: md.MuData, fingerprint: Callable):
    before = fingerprint(small_aligned)
    smm.tl.diagnose(small_aligned)
    assert fingerprint(small_aligned) == before


@pytest.mark.parametrize("fmt", ["h5mu", "zarr"])
def test_from_a_file(fmt: str, tmp_path: Path):
    """Everything that the diagnosis needs travels: tables, pairs, labels with gaps, dicts of arguments."""
    mdata = smm.datasets.toy(n_cells=120)
    mdata["rna"].obs["label"] = mdata["rna"].obs["cell_type"].astype(object).where(np.arange(120) % 3 > 0)
    mdata["protein"].obs["label"] = mdata["protein"].obs["cell_type"].astype(object)
    links = smm.pp.link_features(mdata, "rna", "protein", on="gene").iloc[:12]
    record = align(mdata, links=links, pairs=true_pairs(mdata, 20), labels="label", n_pcs={"rna": 8})
    path = tmp_path / f"mdata.{fmt}"
    mdata.write(path) if fmt == "h5mu" else mdata.write_zarr(path)
    read = md.read_h5mu(path) if fmt == "h5mu" else md.read_zarr(path)
    assert smm.get.diagnosis(read, "rna", "protein")["statement"] == record["statement"]
    del read.uns["scmmgan"]["diagnosis"]
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


def test_full():
    mdata = smm.datasets.toy(n_cells=120)
    smm.tl.align(mdata, links="gene", max_steps=60, progress_bar=False)
    smm.tl.diagnose(mdata, full=True, max_steps=40, progress_bar=False)
    record = smm.get.diagnosis(mdata, "rna", "protein")
    assert record["restart_agreement"].shape == (4, 4)
    assert record["restart_share"] == 1
    assert record["restart_agreement"].min() > 0.9
    # shuffled anchors are learnt worse
    assert record["short_overlap"] > record["null_overlap"]
    assert record["short_cycle"] < 0.5 * record["null_cycle"]
    assert "restarts give the same map" in record["statement"]


def test_full_without_links_tries_the_rivals():
    mdata = smm.datasets.toy(n_cells=100)
    smm.tl.align(mdata, links=None, max_steps=20, progress_bar=False)
    smm.tl.diagnose(mdata, full=True, max_steps=20, progress_bar=False)
    record = smm.get.diagnosis(mdata, "rna", "protein")
    assert len(record["gaps"]) >= 1
    assert (np.diff(record["gaps"]) >= 0).all()
    # the second restart follows the first rival, which is another coupling
    assert record["restart_agreement"][0, 1] < 0.9


def test_held_out_rows_are_those_of_the_training(small: md.MuData):
    smm.tl.align(small, links="gene", max_steps=1, random_state=3, progress_bar=False)
    x = {m: np.zeros((n, 2), np.float32) for m, n in (("rna", 700), ("protein", 510))}
    weights = {"adversarial": 1.0}
    problem = aligner._problem(x, {}, {}, weights, True, 3, "cpu")
    rows = _quality.held_out_rows({m: len(v) for m, v in x.items()}, 3)
    for m in x:
        np.testing.assert_array_equal(rows[m], problem.held_out[m].numpy())
    assert len(_quality.held_out_rows({"rna": 120}, 0)["rna"]) == 120


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
    with pytest.raises(KeyError, match="gene"):
        smm.tl.diagnose(small_aligned)
    small_aligned["rna"].var["gene"] = small_aligned["rna"].var_names
    small_aligned["protein"].var["gene"] = gene
    del small_aligned.uns["scmmgan"]["diagnosis"]
    with pytest.raises(KeyError, match=r"scmmgan\.tl\.diagnose"):
        smm.get.diagnosis(small_aligned, "rna", "protein")


def test_scored_on_cells_that_training_held_out_whatever_the_seed(monkeypatch: pytest.MonkeyPatch):
    mdata = smm.datasets.toy(n_cells=60)
    smm.tl.align(mdata, links="gene", random_state=3, **COUPLED)
    seeds, score = [], _quality.score_map
    monkeypatch.setattr(_quality, "score_map", lambda *a, **k: (seeds.append(k["random_state"]), score(*a, **k))[1])
    smm.tl.diagnose(mdata, random_state=5)
    assert seeds == [3]


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


@pytest.mark.parametrize("changed", ["links", "labels", "pairs", "nothing"])
def test_what_was_known_must_still_be_there(changed: str, fingerprint: Callable):
    mdata = smm.datasets.toy(n_cells=120)
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


def test_cells_in_another_order_than_was_aligned():
    mdata = smm.datasets.toy(n_cells=60)
    smm.tl.align(mdata, links="gene", **COUPLED)
    mdata["rna"].X = mdata["rna"].X[::-1].copy()
    with pytest.raises(ValueError, match="no longer what was aligned"):
        smm.tl.diagnose(mdata)


def test_other_data_than_was_aligned():
    mdata = smm.datasets.toy(n_cells=60)
    smm.tl.align(mdata, links="gene", n_pcs=9, **COUPLED)
    mdata.uns["scmmgan"]["params"]["n_pcs"] = 5
    with pytest.raises(ValueError, match="no longer what was aligned"):
        smm.tl.diagnose(mdata)


def test_modalities_that_a_dict_left_out():
    mdata = smm.datasets.toy(n_cells=60)
    smm.tl.align(mdata, links="gene", smooth={"protein": None}, n_pcs={"rna": 9}, **COUPLED)
    smm.tl.diagnose(mdata)
    assert smm.get.diagnosis(mdata, "rna", "protein")["supported"]
