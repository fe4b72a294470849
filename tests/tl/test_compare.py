"""Several methods in one table: what they are handed, what is scored, what is kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm
from helpers import extra
from scmmgan.data.modality import layers_of
from scmmgan.settings import unpulled
from scmmgan.tl import _compare

NAMES = ("rna", "protein")
WAY = "rna → protein"


def true_pairs(mdata: md.MuData) -> pd.DataFrame:
    return pd.DataFrame({m: mdata[m].obs_names[np.argsort(mdata.uns["truth"][m]["cell"])] for m in NAMES})


def compare(mdata: md.MuData, **how: Any) -> pd.DataFrame:
    how = {"methods": [], "seeds": [0], "links": "gene", "progress_bar": False} | how
    table = smm.tl.compare(mdata, *NAMES, **how)
    return table.set_index(["method", "metric", "direction"]).sort_index()


@pytest.fixture
def mdata(tiny: md.MuData) -> md.MuData:
    """Two embeddings of other tools: one puts partners at one place, one knows nothing; and values as they are."""
    rng = np.random.default_rng(0)
    place = rng.normal(size=(60, 4)).astype(np.float32)
    for m in NAMES:
        cell = tiny.uns["truth"][m]["cell"]
        tiny[m].obsm["X_perfect"], tiny[m].obsm["X_none"] = place[cell], rng.normal(size=(60, 4))
    measured = tiny["protein"].X[np.argsort(tiny.uns["truth"]["protein"]["cell"])]
    tiny["rna"].obsm["their_values"] = measured[tiny.uns["truth"]["rna"]["cell"]]
    return tiny


@pytest.fixture(scope="module")
def compared() -> Iterator[tuple[md.MuData, pd.DataFrame]]:
    """Two seeds of a method that works and one of a method that does not."""
    from scmmgan.model.evidence import heldout

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "held_out_links", partial(heldout.held_out_links, n_null=3))
        mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
        mdata.uns["mine"] = "stays"
        table = compare(
            mdata,
            methods={"coupling": {}, "broken": {"method": "coupling", "noise_dim": 3}},
            seeds=[0, 1],
            pairs=true_pairs(mdata),
            labels="cell_type",
            heldout_features=["rna_gene_0", "rna_gene_1"],
        )
        yield mdata, table


def test_the_table(compared: tuple[md.MuData, pd.DataFrame]):
    mdata, table = compared
    coupling = table.loc["coupling"]
    assert coupling["seeds"].eq(2).all()
    assert coupling["uses"].eq("links").all()
    assert coupling["verdict"].ne("").all()
    assert coupling.loc[("foscttm", "both"), "median"] < 0.1
    assert coupling.loc[("label_transfer", WAY), "worst"] > 0.8
    assert coupling.loc[("cycle", WAY), "median"] < 0.9
    assert coupling.loc[("neighborhood_overlap", WAY), "median"] > 0.5
    assert coupling.loc[("correlation", WAY), "median"] > 0.6
    # genes that the method was not given, in cells that measured them
    assert coupling.loc[("held-out correlation", WAY), "median"] > 0.4
    assert coupling.loc[("held-out correlation given depth", WAY), "n"] == 2
    assert (coupling.loc[("seconds", "both"), ["median", "worst"]] > 0).all()
    assert coupling.loc[("memory", "both"), "worst"] >= 0
    # nothing but the comparison was written
    assert set(mdata.uns) == {"truth", "mine", "scmmgan_comparison"}
    assert not mdata["rna"].obsm


def test_a_method_that_fails_is_a_row(compared: tuple[md.MuData, pd.DataFrame]):
    row = compared[1].loc[("broken", "seconds", "both")]
    assert row["failed"] == 2
    assert row["error"].startswith("ValueError: `method='coupling'` trains nothing that could take noise")
    assert np.isnan(row["median"])
    assert set(compared[1].loc["broken"].index.get_level_values(0)) == {"seconds", "memory"}


def test_median_and_worst_are_those_of_the_seeds(compared: tuple[md.MuData, pd.DataFrame]):
    mdata, table = compared
    runs = smm.get.comparison(mdata, *NAMES, every_seed=True)
    for metric, way, worst in (("foscttm", "both", max), ("auroc", WAY, min)):
        values = runs.query("metric == @metric and direction == @way")["value"]
        assert len(values) == 2
        row = table.loc[("coupling", metric, way)]
        assert row["median"] == pytest.approx(values.mean())
        assert row["worst"] == worst(values)


@pytest.mark.slow
def test_imports_are_no_cost_of_the_first_method():
    """In a process of its own, in which nothing is imported: what the first run brings along."""
    code = (
        "import sys, scmmgan as smm\n"
        "from scmmgan.model.evidence import resources\n"
        "heavy = {'torch', 'sympy', 'ot', 'sklearn', 'networkx', 'scmmgan'}\n"
        "class Clock(resources.Cost):\n"
        "    def __enter__(self):\n"
        "        self.before = set(sys.modules)\n"
        "        return super().__enter__()\n"
        "    def __exit__(self, *of):\n"
        "        super().__exit__(*of)\n"
        "        print(sorted(name for name in set(sys.modules) - self.before if name.split('.')[0] in heavy))\n"
        "smm.tl._compare.Cost = Clock\n"
        "mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])\n"
        "how = {'links': 'gene', 'seeds': [0], 'arguments': {'max_steps': 2}, 'progress_bar': False}\n"
        "shapes = {'links': None, 'method': 'coupling'}\n"
        "smm.tl.compare(mdata, 'rna', 'protein', methods={'scmodal': {}, 'gw': shapes, 'scmmgan': {}}, **how)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]"] * 3


@pytest.mark.parametrize("kind", ["h5mu", "zarr"])
def test_kept_in_files(compared: tuple[md.MuData, pd.DataFrame], kind: str, tmp_path: Path, monkeypatch):
    mdata, table = compared
    path = tmp_path / f"a.{kind}"
    with unpulled():
        mdata.write_zarr(path) if kind == "zarr" else mdata.write(path)
        found = md.read_zarr(path) if kind == "zarr" else md.read(path)
    kept = smm.get.comparison(found, *NAMES)
    pd.testing.assert_frame_equal(kept, smm.get.comparison(mdata, *NAMES), check_dtype=False)
    monkeypatch.setattr(_compare, "align", lambda *_, **__: pytest.fail("was computed again"))
    how = {"pairs": true_pairs(mdata), "labels": "cell_type", "heldout_features": ["rna_gene_0", "rna_gene_1"]}
    pd.testing.assert_frame_equal(compare(found, methods=["coupling"], seeds=[0, 1], **how), table, check_dtype=False)


# --- what methods are handed -------------------------------------------------------------------------------------


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[md.MuData, dict[str, Any]]]:
    """Every object and all arguments that methods get; they learn nothing from them."""
    found = []

    def record(copy: md.MuData, *names: str, **arguments: Any) -> None:
        found.append((copy, arguments))
        raise RuntimeError("recorded")

    monkeypatch.setattr(_compare, "align", record)
    return found


def test_truth_never_reaches_a_method(mdata: md.MuData, handed: list, fingerprint: Callable):
    for m in NAMES:
        mdata[m].obs["known"] = True
        mdata[m].obsp["graph"] = sp.eye(60).tocsr()
        mdata[m].layers["other"] = mdata[m].X
        mdata[m].uns["truth"] = "here"
    before = fingerprint(mdata)
    truth = {"pairs": true_pairs(mdata), "labels": "cell_type"}
    table = compare(mdata, methods=["coupling"], seeds=[0, 1], heldout_features=["rna_gene_0"], **truth)
    assert table["error"].eq("RuntimeError: recorded").all()
    assert {k: v for k, v in fingerprint(mdata).items() if "comparison" not in k} == before
    assert len(handed) == 2
    orders = []
    for copy, arguments in handed:
        assert list(copy.mod) == list(NAMES)
        assert not copy.uns
        assert set(copy.obsm) == set(NAMES)
        for m in NAMES:
            adata = copy[m]
            assert [len(of) for of in (adata.obs.columns, adata.obsm, adata.obsp, layers_of(adata), adata.uns)] == [
                0
            ] * 5
            assert adata.obs_names.tolist() == [f"{m}_{i}" for i in range(60)]
            # the same cells in another order: a row is found again by its values
            features = adata.var_names
            original = mdata[m][:, features].X
            order = [int(np.flatnonzero((original == row).all(1))[0]) for row in adata.X]
            assert sorted(order) == list(range(60))
            assert order != list(range(60))
            orders.append(order)
        assert "rna_gene_0" not in copy["rna"].var_names
        assert copy["rna"].n_vars == 29
        assert copy["protein"].n_vars == 20
        assert arguments.get("pairs") is None
        assert arguments.get("labels") is None
    assert orders[0] != orders[2]
    # partners do not stand in one row either
    cells = [mdata.uns["truth"][m]["cell"][order] for m, order in zip(NAMES, orders)]
    assert (cells[0] == cells[1]).mean() < 0.2


def test_what_is_given_is_there_under_other_names_and_is_not_scored(mdata: md.MuData, handed: list):
    pairs = true_pairs(mdata)
    for m in NAMES:
        mdata[m].obs["half"] = mdata[m].obs["cell_type"].astype(object).where(np.arange(60) < 30)
    how = {"arguments": {"pairs": pairs[:20], "labels": "half"}, "pairs": pairs, "labels": "cell_type"}
    table = compare(mdata, methods=["coupling"], embeddings={"perfect": "X_perfect"}, **how)
    ((copy, given),) = handed
    assert list(copy["rna"].obs) == ["half"]
    for m in NAMES:
        rows = copy[m].obs_names.get_indexer(given["pairs"][m])
        original = mdata[m].obs_names.get_indexer(pairs[m][:20])
        np.testing.assert_array_equal(copy[m].X[rows], mdata[m].X[original])
        own = mdata[m].obs["half"].iloc[original].astype(str)
        assert copy[m].obs["half"].iloc[rows].astype(str).tolist() == own.tolist()
    assert table.loc[("perfect", "foscttm", "both"), "n"] == 40
    assert table.loc[("perfect", "label_transfer", WAY), "n"] == 30


def test_linked_features_are_hidden_together(mdata: md.MuData, handed: list):
    names = mdata["rna"].var_names
    links = pd.DataFrame(
        {"rna": names[[0, 1, 2, 3, 4]], "protein": mdata["protein"].var_names[[0, 0, 1, 2, 3]], "weight": 1.0}
    )
    compare(mdata, methods=["coupling"], links=links, heldout_features=[names[0]])
    copy, arguments = handed[0]
    # another gene of the same protein would say what the first one is
    assert set(names) - set(copy["rna"].var_names) == set(names[:2])
    assert arguments["links"]["rna"].tolist() == names[2:5].tolist()


def test_methods_are_given_what_they_can_use(mdata: md.MuData, handed: list):
    methods = {"a": {"method": "scmmgan", "max_steps": 7}, "cyclegan": {}, "coupling": {}}
    compare(mdata, methods=methods, arguments={"max_steps": 9, "n_pcs": 5})
    assert [of["method"] for _, of in handed] == ["scmmgan", "cyclegan", "coupling"]
    # a coupling trains nothing
    assert [of.get("max_steps") for _, of in handed] == [7, 9, None]
    assert {of["n_pcs"] for _, of in handed} == {5}
    assert {of["random_state"] for _, of in handed} == {0}


def test_what_belongs_to_a_training_is_left_out_where_nothing_is_trained(mdata: md.MuData, handed: list):
    how = {"geometry": "subspace", "noise_dim": 2, "weights": {"links": 2.0}}
    compare(mdata, methods=["cyclegan", "coupling", "random", "cmae"], arguments=how)
    left = {of["method"]: set(how) & set(of) for _, of in handed}
    # of autoencoders only scMODAL compares geometries
    assert left == {"cyclegan": set(how), "coupling": set(), "random": set(), "cmae": {"weights"}}


def test_options_go_to_the_methods_that_have_them(mdata: md.MuData, handed: list):
    how = {"options": {"dropout": 0.6, "weak_links": True}}
    compare(mdata, methods=["jamie", "links-matching", "coupling"], arguments=how)
    assert [of.get("options") for _, of in handed] == [{"dropout": 0.6}, {"weak_links": True}, None]
    with pytest.raises(KeyError, match="No method has the option 'drop'"):
        compare(mdata, methods=["jamie"], arguments={"options": {"drop": 0.6}})


def test_links_that_are_not_there_are_given_to_none(mdata: md.MuData, handed: list):
    for m in NAMES:
        mdata[m].var = mdata[m].var[[]]
    table = compare(mdata, methods=None, links="auto")
    # neither the same coupling twice, nor baselines that need links
    assert {name for name, *_ in table.index} == {"scmmgan", "coupling", "random", "depth"}
    assert table["uses"].eq("").all()
    assert all(given.get("links") is None for _, given in handed)


def test_what_is_left_in_a_file_is_handed_over(mdata: md.MuData, handed: list, tmp_path: Path):
    with unpulled():
        mdata.write(tmp_path / "a.h5mu")
        there = md.read(tmp_path / "a.h5mu", backed=True)
    compare(there, methods=["coupling"], heldout_features=["rna_gene_0"])
    compare(mdata, methods=["coupling"], heldout_features=["rna_gene_0"])
    for m in NAMES:
        np.testing.assert_array_equal(handed[0][0][m].X, handed[1][0][m].X)
    there.file.close()


# --- what other tools wrote --------------------------------------------------------------------------------------


def test_other_embeddings_and_values(mdata: md.MuData):
    embeddings = {"perfect": "X_perfect", "nothing": ["X_none", "X_none"]}
    layers = {"theirs": "their_values"}
    truth = {"pairs": true_pairs(mdata), "labels": "cell_type"}
    table = compare(mdata, embeddings=embeddings, layers=layers, **truth)
    assert table.loc[("perfect", "foscttm", "both"), "median"] == 0
    assert table.loc[("perfect", "recall_at_10", WAY), "median"] == 1
    assert table.loc[("nothing", "foscttm", "both"), "median"] == pytest.approx(0.5, abs=0.08)
    assert table.loc["nothing", "seeds"].drop(["seconds", "memory"]).eq(2).all()
    # no values were written: those of the nearest cells predict, the partner's own among them
    assert table.loc["perfect", "mapped"].eq("neighbors").all()
    assert table.loc[("perfect", "correlation", WAY), "median"] > table.loc[("nothing", "correlation", WAY), "median"]
    assert table.loc["theirs", "mapped"].eq("values").all()
    assert table.loc[("theirs", "correlation", WAY), "median"] == pytest.approx(1)
    # values alone: no embedding to score, and nothing for the way back
    assert "foscttm" not in table.loc["theirs"].index
    assert set(table.loc["theirs"].index.get_level_values("direction")) == {WAY, "both"}


def test_values_by_names(mdata: md.MuData):
    features = mdata["protein"].var_names[[7, 3, 5]]
    values = pd.DataFrame(mdata["rna"].obsm["their_values"], columns=mdata["protein"].var_names)
    mdata["rna"].obsm["table"] = values[features].set_axis(mdata["rna"].obs_names, axis=0)
    table = compare(mdata, layers={"theirs": "table"}, pairs=true_pairs(mdata))
    assert table.loc[("theirs", "correlation", WAY), ["median", "n"]].tolist() == pytest.approx([1, 3])


# --- what is kept ------------------------------------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which methods and seeds are run; they cost nothing."""
    ran: list[tuple[str, int]] = []

    def run(self: Any, mdata: md.MuData, truth: Any, own: Any, seed: int, *_: Any) -> tuple[dict, list]:
        ran.append((self.name, seed))
        if self.name == "stops":
            raise KeyboardInterrupt
        about = {"seconds": 1.0, "memory": 2.0, "uses": "", "mapped": "values", "verdict": ""}
        score = dict.fromkeys(("value", "error", "chance", "best", "p"), 0.5) | {"n": 3, "needs": "nothing"}
        error = "ValueError: x" if self.name == "fails" else ""
        return {**about, "error": error}, [] if error else [{"metric": "m", "direction": "both", **score}]

    monkeypatch.setattr(_compare._Method, "run", run)
    return ran


def test_only_what_is_missing_is_computed(mdata: md.MuData, computed: list):
    def ran(**how: Any) -> list[tuple[str, int]]:
        computed.clear()
        compare(mdata, **how)
        return list(computed)

    both = {"coupling": {}, "fails": {"method": "coupling"}}
    assert ran(methods=both, seeds=[0, 1]) == [(name, seed) for name in both for seed in (0, 1)]
    # what failed is tried again
    assert ran(methods=both, seeds=[0, 1]) == [("fails", 0), ("fails", 1)]
    assert ran(methods=["coupling"], seeds=[0, 1, 2]) == [("coupling", 2)]
    # one more method; the others' rows stay
    assert ran(methods=["cyclegan"]) == [("cyclegan", 0)]
    assert set(smm.get.comparison(mdata, *NAMES)["method"]) == {"coupling", "fails", "cyclegan"}
    # other arguments: all seeds of that name are of the past
    assert ran(methods=["coupling"], arguments={"n_pcs": 5}) == [("coupling", 0)]
    assert smm.get.comparison(mdata, *NAMES).query("method == 'coupling'")["seeds"].eq(1).all()
    # another truth, or other data: all is
    assert ran(methods=["cyclegan"], labels="cell_type") == [("cyclegan", 0)]
    assert set(smm.get.comparison(mdata, *NAMES)["method"]) == {"cyclegan"}
    mdata["rna"].X[0, 0] += 1
    assert ran(methods=["cyclegan"], labels="cell_type") == [("cyclegan", 0)]
    assert ran(methods=["cyclegan"], labels="cell_type") == []
    mdata["rna"].layers["counts"] = mdata["rna"].X.round()
    assert ran(methods=["cyclegan"], labels="cell_type") == [("cyclegan", 0)]


def test_what_is_named_twice_is_computed_once(mdata: md.MuData, computed: list):
    compare(mdata, methods=["coupling", "coupling"], seeds=[0, 1, 0])
    assert computed == [("coupling", 0), ("coupling", 1)]


def test_what_was_done_before_an_interruption_is_kept(mdata: md.MuData, computed: list):
    with pytest.raises(KeyboardInterrupt):
        compare(mdata, methods={"coupling": {}, "stops": {"method": "coupling"}})
    assert set(smm.get.comparison(mdata, *NAMES)["method"]) == {"coupling"}


def test_a_folder_has_every_run_as_it_ends(mdata: md.MuData, computed: list, tmp_path: Path):
    folder = tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        compare(
            mdata,
            methods={"coupling": {}, "fails": {"method": "coupling"}, "stops": {"method": "coupling"}},
            keep=folder,
        )
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == ["coupling", "fails"]
    before = smm.get.comparison(mdata, *NAMES)
    del mdata.uns["scmmgan_comparison"]
    computed.clear()
    # as after a crash: what is missing, or failed
    compare(mdata, methods={"coupling": {}, "fails": {"method": "coupling"}}, keep=folder)
    assert computed == [("fails", 0)]
    pd.testing.assert_frame_equal(smm.get.comparison(mdata, *NAMES), before)
    # other arguments, and another truth
    compare(mdata, methods=["coupling"], arguments={"n_pcs": 5}, keep=folder)
    compare(mdata, methods=["coupling"], labels="cell_type", keep=folder)
    assert computed[1:] == [("coupling", 0)] * 2
    # these do not replace what was there
    del mdata.uns["scmmgan_comparison"]
    compare(mdata, methods=["coupling"], keep=folder)
    assert len(computed) == 3
    damaged = next(folder.glob("coupling-*"))
    del mdata.uns["scmmgan_comparison"]
    for text in ("{", '{"run": {"error": ""}, "scores": []}', '{"run": null, "scores": null}'):
        for path in folder.iterdir():
            path.write_text(text)
        with pytest.raises(ValueError, match=f"{damaged.name[:10]}.* is damaged, or of an earlier"):
            compare(mdata, methods=["coupling"], keep=folder)
    with pytest.raises(OSError, match=f"a file of that name is there: '.*{damaged.name}"):
        compare(mdata, methods=["coupling"], keep=damaged)
    # the file's name has room for a part of a long one
    compare(mdata, methods={"é" * 200: {"method": "coupling"}}, keep=folder)
    assert len(list(folder.glob("é*.json"))) == 1


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "text for a number": lambda of: of["scores"][0].update(value="abc"),
    "another number": lambda of: of["scores"][0].update(value=0.75),
    "another method": lambda of: of["run"].update(method="cyclegan"),
    "another method of a score": lambda of: of["scores"][0].update(method="cyclegan"),
    "another seed": lambda of: of["run"].update(seed=1),
    "an error that was none": lambda of: of["run"].update(error="x"),
    "no score": lambda of: of.update(scores=[]),
    "a score twice": lambda of: of["scores"].append(of["scores"][0]),
    "scores of no kind": lambda of: of.update(scores=3),
    "a column less": lambda of: of["scores"][0].pop("p"),
    "no seal": lambda of: of.pop("digest", None),
}
CONTENT: dict[str, bytes] = {
    **{"cut off": b'{"run": {', "no text": b"\xff\xfe\x00", "a list": b"[]", "a number": b"3", "nothing": b""},
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", [*DAMAGE, *CONTENT, "a folder", "of another seed"])
def test_a_damaged_file_of_a_folder_is_named(mdata: md.MuData, computed: list, tmp_path: Path, kind: str):
    compare(mdata, methods=["coupling"], seeds=[0, 1], keep=tmp_path)
    del mdata.uns["scmmgan_comparison"]
    (path,), (other,) = (list(tmp_path.glob(f"coupling-{seed}-*.json")) for seed in (0, 1))
    if kind in DAMAGE:
        stored = json.loads(path.read_text())
        DAMAGE[kind](stored)
        path.write_text(json.dumps(stored))
    elif kind in CONTENT:
        path.write_bytes(CONTENT[kind])
    else:
        path.unlink()
        path.mkdir() if kind == "a folder" else other.rename(path)
    computed.clear()
    with pytest.raises(
        ValueError, match=f"'{re.escape(str(path))}' is damaged, or of an earlier version: delete it, .* Found: "
    ):
        compare(mdata, methods=["coupling", "cyclegan"], keep=tmp_path)
    # nothing was computed or written before
    assert computed == []
    assert "scmmgan_comparison" not in mdata.uns


def test_two_comparisons_beside_each_other(mdata: md.MuData, computed: list):
    compare(mdata, methods=["coupling"])
    compare(mdata, methods=["cyclegan"], key_added="mine")
    smm.tl.compare(mdata, "protein", "rna", methods=["scmmgan"], seeds=[0], progress_bar=False)
    assert set(smm.get.comparison(mdata, *NAMES)["method"]) == {"coupling"}
    assert set(smm.get.comparison(mdata, *NAMES, key="mine")["method"]) == {"cyclegan"}
    assert set(smm.get.comparison(mdata, "protein", "rna")["method"]) == {"scmmgan"}


# --- refused -----------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "method": ({"methods": ["scmmgn"]}, ValueError, "Did you mean 'scmmgan'"),
    "one method as text": ({"methods": "scmmgan"}, TypeError, "must be a list of methods"),
    "argument": ({"methods": ["coupling"], "arguments": {"max_step": 3}}, KeyError, "'max_step'"),
    "a folder of one run": (
        {"methods": ["cyclegan"], "arguments": {"checkpoint_dir": "x"}},
        KeyError,
        "'checkpoint_dir'",
    ),
    "what was trained before": ({"methods": {"a": {"method": "scmmgan", "init": "x"}}}, KeyError, "'init'"),
    "keys by modality": ({"embeddings": {"x": {"rna": "X_none"}}}, TypeError, "must be a key, or a list of one"),
    "own argument": ({"methods": ["coupling"], "arguments": {"random_state": 3}}, KeyError, "'random_state'"),
    "arguments": ({"arguments": ["a"]}, TypeError, "must be a dict"),
    "links among arguments": ({"methods": ["coupling"], "arguments": {"links": None}}, KeyError, "give `links` itself"),
    "a method's arguments": ({"methods": {"a": "coupling"}}, TypeError, r"`methods\['a'\]` must be a dict"),
    "embedding": ({"embeddings": {"x": "X_non"}}, KeyError, "'X_non'"),
    "layer": ({"layers": {"x": "their_value"}}, KeyError, "'their_value'"),
    "pairs": ({"pairs": pd.DataFrame({m: [f"{m}_{i}" for i in range(4)] for m in NAMES})}, ValueError, "are too few"),
    "label": ({"methods": ["coupling"], "labels": "typ"}, KeyError, "No obs column in 'rna' for `labels` 'typ'"),
    "feature": ({"heldout_features": ["rna_gene_X"]}, KeyError, "No feature in 'rna'"),
    "not linked": ({"heldout_features": ["rna_gene_20"]}, ValueError, "linked with no feature"),
    "all links": (
        {"heldout_features": [f"rna_gene_{i}" for i in range(14)]},
        ValueError,
        "1 of 15 links are left",
    ),
    "nothing": ({}, ValueError, "nothing to compare"),
    "one name twice": (
        {"methods": ["coupling"], "embeddings": {"coupling": "X_none"}},
        ValueError,
        "choose another name",
    ),
    "key": ({"methods": ["coupling"], "key_added": "a/b"}, ValueError, "`key_added` must be a name without slashes"),
    "seed": ({"seeds": [-1]}, ValueError, "`seeds` must be at least 0"),
    "number of seeds": ({"seeds": 3}, TypeError, r"must be a list of whole numbers, e.g. `seeds=\[0, 1, 2\]`, got 3"),
    "embeddings": ({"embeddings": "X_other"}, TypeError, "`embeddings` must be a dict from names to keys"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_before_anything_is_written(mdata: md.MuData, kind: str, fingerprint: Callable):
    how, error, message = REFUSED[kind]
    before = fingerprint(mdata)
    with pytest.raises(error, match=message):
        compare(mdata, **how)
    assert fingerprint(mdata) == before


def test_damaged_records_are_refused(mdata: md.MuData, computed: list):
    compare(mdata, methods=["coupling"])
    mdata.uns["scmmgan_comparison"]["rna"]["protein"]["scores"].loc[0, "value"] = 7
    for read in (partial(smm.get.comparison, mdata, *NAMES), partial(compare, mdata, methods=["coupling"])):
        with pytest.raises(ValueError, match="is damaged: delete it"):
            read()
    with pytest.raises(KeyError, match="No comparison of 'protein' and 'rna'"):
        smm.get.comparison(mdata, "protein", "rna")


def test_scores_of_scib(mdata: md.MuData):
    extra("scib", "scib_metrics")
    table = compare(mdata, embeddings={"perfect": "X_perfect"}, labels="cell_type", scib=True)
    assert table.loc[("perfect", "scib iLISI", "both"), ["n", "needs", "best"]].tolist() == [120, "nothing", 1]
    assert table.loc[("perfect", "scib NMI", "both"), "needs"] == "labels"
    # without it these are not there, and all is scored anew
    assert not any(name.startswith("scib") for _, name, _ in compare(mdata, embeddings={"perfect": "X_perfect"}).index)


def test_scib_is_asked_for_where_it_is_not(mdata: md.MuData, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'scmmgan\[scib\]'"):
        compare(mdata, embeddings={"perfect": "X_perfect"}, scib=True)


def test_cells_with_a_weighted_partner_are_not_scored():
    mdata = smm.datasets.toy(n_cells=60)
    cells = {m: mdata[m].obs_names for m in ("rna", "protein")}
    # cells 3 and 5 of the first have two partners each, of which one is heavier
    table = pd.DataFrame({"rna": cells["rna"][[3, 3, 5, 5]], "protein": cells["protein"][[8, 4, 1, 2]]})
    every = np.stack([np.arange(60)] * 2, axis=1)
    given = {"pairs": table.assign(weight=[0.2, 0.4, 0.6, 0.8])}
    with pytest.raises(ValueError, match="gives 2 pairs"):
        _compare._not_given(mdata, ("rna", "protein"), given, every, None)
    more = pd.DataFrame({"rna": cells["rna"][[9]], "protein": cells["protein"][[9]], "weight": [1.0]})
    given["pairs"] = pd.concat([given["pairs"], more])
    left, _ = _compare._not_given(mdata, ("rna", "protein"), given, every, None)
    assert sorted(set(range(60)) - set(left[:, 0])) == [1, 2, 3, 4, 5, 8, 9]
