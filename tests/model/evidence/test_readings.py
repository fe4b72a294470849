"""Steps of smoothing follow what is known; held-out pairs choose where they decide."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.data import read as _problem
from scmmgan.data.keys import Keys
from scmmgan.model.evidence import readings as _smoothing

AUTO = {"a": "auto", "b": "auto"}
TABLE, SHORT = ({("a", "b"): pd.DataFrame(index=range(k))} for k in (10, 9))
MANY, FEW = ({("a", "b"): np.zeros((k, 2), dtype=int)} for k in (100, 99))


@pytest.mark.parametrize(
    ("smooth", "fine", "tables", "pairs", "expected"),
    [
        (AUTO, [], {}, {}, [{"a": 3, "b": 3}]),
        (AUTO, ["b"], {}, FEW, [{"a": 3, "b": 3}]),
        (AUTO, [], TABLE, {}, [{"a": 2, "b": 2}]),
        (AUTO, ["b"], TABLE, {}, [{"a": 2, "b": 1}]),
        (AUTO, ["b"], TABLE, MANY, [{"a": 2, "b": 1}]),
        # beside 100 pairs nine links do not couple
        (AUTO, ["b"], SHORT, FEW, [{"a": 2, "b": 1}]),
        (AUTO, ["b"], SHORT, MANY, [{"a": 1, "b": 1}, {"a": 3, "b": 3}]),
        (AUTO, ["b"], {}, MANY, [{"a": 1, "b": 1}, {"a": 3, "b": 3}]),
        ({"a": 5, "b": "auto"}, [], {}, MANY, [{"a": 5, "b": 1}, {"a": 5, "b": 3}]),
        ({"a": 5, "b": None}, [], {}, MANY, [{"a": 5, "b": None}]),
    ],
)
def test_what_is_known_decides(smooth: Any, fine: Any, tables: Any, pairs: Any, expected: Any):
    assert _smoothing.candidates(smooth, fine, tables, pairs) == expected


def test_of_three_modalities_all_must_be_known():
    smooth = dict.fromkeys("abc", "auto")
    linked = dict.fromkeys((("a", "b"), ("a", "c")), TABLE["a", "b"])
    assert _smoothing.candidates(smooth, [], linked, {}) == [dict.fromkeys("abc", 3)]
    paired = {("b", "c"): MANY["a", "b"]}
    assert _smoothing.candidates(smooth, [], linked, paired) == [dict.fromkeys("abc", t) for t in (1, 3)]


def spaces(noise: float, n: int = 300) -> list[Any]:
    """Two views of the same cells, in model space."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 4))
    views = {m: z @ rng.normal(size=(4, 12)) + noise * rng.normal(size=(n, 12)) for m in "ab"}
    return [SimpleNamespace(name=m, x=x.astype(np.float32)) for m, x in views.items()]


def test_held_out_pairs_choose(caplog: pytest.LogCaptureFixture):
    pairs = {("a", "b"): np.repeat(np.random.default_rng(1).permutation(300)[:150, None], 2, axis=1)}
    clear, vague = spaces(0.1), spaces(3.0)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        assert _smoothing.fewest_mistakes([clear, vague], pairs) == 0
    assert _smoothing.fewest_mistakes([vague, clear], pairs) == 1
    assert "after 1 and 3 steps of smoothing" in caplog.text
    # nothing to choose between: the pairs are not asked
    assert _smoothing.fewest_mistakes([vague], {}) == 0


def test_mistakes_are_those_of_pairs_held_out():
    """Partners that are none are found by chance: a map that saw the pairs it is judged by would do better."""
    x = {d.name: d.x for d in spaces(0.1)}
    rows = np.arange(150)
    right = {("a", "b"): np.stack([rows, rows], axis=1)}
    wrong = {("a", "b"): np.stack([rows, np.random.default_rng(2).permutation(rows)], axis=1)}
    assert _smoothing.held_out_mistakes(x, right) < 0.01
    assert _smoothing.held_out_mistakes(x, wrong) == pytest.approx(0.5, abs=0.05)
    # too few pairs of other modalities have no say
    assert _smoothing.held_out_mistakes(x, {**wrong, ("b", "a"): right["a", "b"][:99]}) > 0.4


def test_steps_as_used_are_stored_and_read_again():
    mdata = smm.datasets.toy()
    smm.tl.align(mdata, links="gene", max_steps=20, progress_bar=False)
    assert mdata.uns["scmmgan"]["params"]["smooth"] == {"rna": 2, "protein": 1}
    smm.tl.diagnose(mdata)
    equal = smm.datasets.toy(shared_genes=True)
    smm.tl.align(equal, max_steps=20, progress_bar=False)
    assert equal.uns["scmmgan"]["params"]["shared_space"]
    assert equal.uns["scmmgan"]["params"]["smooth"] == {"rna": 1, "protein": 1}
    smm.tl.align(mdata, links=None, max_steps=20, progress_bar=False)
    assert mdata.uns["scmmgan"]["params"]["smooth"] == {"rna": 3, "protein": 3}


def test_graphs_are_denoised_and_own_values_kept_where_links_decide():
    """Beside links the same steps give another model space than beside shapes."""
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(150, 5)) @ rng.normal(size=(5, 80))
    parts = [ad.AnnData((cells + rng.normal(size=(150, 80))).astype(np.float32)) for _ in range(2)]
    for name, part in zip("ab", parts):
        part.obs_names, part.var_names = ([f"{name}{i}" for i in range(k)] for k in part.shape)
        part.var["gene"] = [f"{i if i < 20 else name + str(i)}" for i in range(80)]
    mdata = md.MuData(dict(zip("ab", parts)))
    found = {}
    for links in ("gene", None):
        smm.tl.align(mdata, links=links, smooth=2, method="coupling", progress_bar=False)
        problem = _problem.reread(mdata, Keys("scmmgan"))
        found[links] = problem.x["a"]
        assert problem.read_by["denoise"] == (links == "gene")
        params = mdata.uns["scmmgan"]["params"]
        assert params["denoise"] == (links == "gene")
        assert params["own_share"] == (0.3 if links == "gene" else 0.0)
    assert np.abs(found["gene"] - found[None]).max() > 0.01


def test_own_values_are_recorded_where_they_were_kept():
    for shared, links, kept in ((True, "auto", 0.0), (False, None, 0.0), (False, "gene", 0.3)):
        mdata = smm.datasets.toy(n_cells=100, shared_genes=shared)
        smm.tl.align(mdata, links=links, method="coupling", progress_bar=False)
        assert mdata.uns["scmmgan"]["params"]["own_share"] == kept
    smm.tl.align(mdata, links="gene", method="coupling", smooth=None, progress_bar=False)
    assert mdata.uns["scmmgan"]["params"]["own_share"] == 0.0


def test_files_from_before_cells_kept_their_own_are_read_as_they_were():
    mdata = smm.datasets.toy(n_cells=100)
    names, nothing = list(mdata.mod), dict.fromkeys(mdata.mod)
    per = dict.fromkeys(("layer", "use_rep", "mask_var", "labels", "batch"), nothing)
    per |= {"smooth": dict.fromkeys(names, 2), "n_pcs": dict.fromkeys(names, 20)}
    how: dict[str, Any] = {"links": "gene", "pairs": None, "random_state": 0}
    smm.tl.align(mdata, links="gene", smooth=2, n_pcs=20, method="coupling", progress_bar=False)
    params = mdata.uns["scmmgan"]["params"]
    of_today = _problem.reread(mdata, Keys("scmmgan")).x
    del params["own_share"]
    with pytest.raises(ValueError, match="is no longer what was aligned"):
        _problem.reread(mdata, Keys("scmmgan"))
    before = _problem.read(mdata, names, per, denoise=bool(params["denoise"]), own_share=0.0, **how)
    assert {d.own_share for d in before.domains} == {0.0}
    assert np.abs(before.x["rna"] - of_today["rna"]).max() > 0.01


def test_links_of_constant_features_decide_nothing(caplog: pytest.LogCaptureFixture):
    mdata = smm.datasets.toy(n_cells=100)
    for part in mdata.mod.values():
        part.var_names = [f"housekeeping_{i}" for i in range(12)] + part.var_names[12:].tolist()
    mdata["protein"].X[:, :12] = 1
    mdata.update()
    smm.tl.align(mdata, method="coupling", progress_bar=False)
    assert "12 of 12 links name a constant feature" in caplog.text
    params = mdata.uns["scmmgan"]["params"]
    assert params["smooth"] == {"rna": 3, "protein": 3}
    assert not params["denoise"]
    assert _problem.reread(mdata, Keys("scmmgan")).tables == {}


def test_other_words_are_an_error():
    mdata = smm.datasets.toy(n_cells=100)
    with pytest.raises(TypeError, match="`smooth` must be 'auto', a whole number or None, got 'Auto'"):
        smm.tl.align(mdata, links="gene", smooth="Auto")
    assert "scmmgan" not in mdata.uns


def test_pairs_that_changed_are_told():
    """They decide how much is smoothed; the message is about them all the same."""
    mdata = smm.datasets.toy(n_cells=260)
    at = np.argsort(mdata.uns["truth"]["rna"]["cell"]), np.argsort(mdata.uns["truth"]["protein"]["cell"])
    for part, rows in zip(mdata.mod.values(), at):
        names = part.obs_names.to_numpy().astype(object)
        names[rows[:120]] = [f"cell_{i}" for i in range(120)]
        part.obs_names = names
        part.obs["known"] = part.obs_names.str.startswith("cell_")
    mdata = md.MuData({m: part.copy() for m, part in mdata.mod.items()})
    smm.tl.align(mdata, links=None, pairs="known", method="coupling", progress_bar=False)
    mdata["rna"].obs["known"] &= mdata["rna"].obs_names.str.endswith("1")
    with pytest.raises(ValueError, match="Links, pairs or labels are no longer those"):
        smm.tl.diagnose(mdata)
