"""Methods without a coupling through `tl.align`: the same slots, files, new cells, readers; what needs a coupling refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.model.nets import baselines, methods
from scmmgan.model.nets.latent import Fitted
from scmmgan.settings import unpulled

QUICK: dict[str, Any] = {"max_steps": 3, "hidden": 8, "progress_bar": False}
GIVEN: dict[str, dict[str, Any]] = {
    "cmae": {"labels": "cell_type"}, "con-aae": {"labels": "cell_type"}, "scmodal": {"links": "gene"}, "jamie": {"pairs": "known"},
}  # fmt: skip


def toy(n: int = 60, **more: Any) -> md.MuData:
    """With eight known pairs."""
    mdata = smm.datasets.toy(n_cells=n, n_features=[20, 14], n_linked=10, **more)
    mdata["protein"].obs_names = [*mdata["rna"].obs_names[:8], *mdata["protein"].obs_names[8:]]
    for m in ("rna", "protein"):
        mdata[m].obs["known"] = np.arange(n) < 8
    return mdata


@pytest.fixture(scope="module", params=GIVEN)
def fitted(request: pytest.FixtureRequest) -> tuple[str, md.MuData]:
    mdata = toy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scmmgan.model.nets.jamie.MAX_COVERED", -1)
        smm.tl.align(mdata, method=request.param, **QUICK, **GIVEN[request.param])
    return request.param, mdata


def test_slots(fitted: tuple[str, md.MuData]):
    method, mdata = fitted
    q = methods.lookup(method).fit.args[0].latent
    for s, t in (("rna", "protein"), ("protein", "rna")):
        assert mdata[s].obsm["X_scmmgan"].shape == (60, q)
        assert mdata[s].obsm[f"scmmgan_{t}"].shape == (60, mdata[t].n_vars)
        assert mdata[s].obsm[f"scmmgan_{t}"].dtype == np.float32
        # no plan, landmarks or flags, which come from a coupling
        assert {name for name in (*mdata[s].obsm, *mdata[s].obs) if "scmmgan" in name} == {"X_scmmgan", f"scmmgan_{t}"}
    record = mdata.uns["scmmgan"]
    assert record["params"]["method"] == method
    assert record["params"]["fit"]["steps"] == 3
    assert record["params"]["fit"]["steps_used"] == 3
    assert record["params"]["coupling"]["rna"]["protein"]["kind"] == "none"
    assert smm.get.history(mdata).index[-1] == 3
    assert smm.get.embedding(mdata).var_names[0] == "joint_0"


@pytest.mark.parametrize("suffix", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_files_and_chosen_features(fitted: tuple[str, md.MuData], tmp_path: Path, suffix: str):
    _, mdata = fitted
    path = tmp_path / f"a.{suffix}"
    mdata.write(path) if suffix == "h5mu" else mdata.write_zarr(path)
    again = md.read_h5mu(path) if suffix == "h5mu" else md.read_zarr(path)
    names = list(mdata["protein"].var_names[[5, 2]])
    expected = smm.get.mapped(mdata, "rna", "protein")[:, names].X
    np.testing.assert_allclose(smm.get.mapped(again, "rna", "protein", features=names).X, expected, atol=1e-5)
    np.testing.assert_array_equal(smm.get.mapped(again, "rna", "protein").X, smm.get.mapped(mdata, "rna", "protein").X)
    np.testing.assert_array_equal(smm.get.embedding(again).X, smm.get.embedding(mdata).X)


def test_new_cells(fitted: tuple[str, md.MuData], tmp_path: Path):
    """A training cell is mapped as it was, through the object and through a directory."""
    _, mdata = fitted
    new = mdata["rna"][[7, 3]].copy()
    smm.save(mdata, tmp_path / "model")
    for model in (mdata, smm.load(tmp_path / "model")):
        found = smm.tl.translate(new, "rna", "protein", model=model)
        np.testing.assert_allclose(found.X, mdata["rna"].obsm["scmmgan_protein"][[7, 3]], atol=1e-4)
        np.testing.assert_allclose(found.obsm["X_scmmgan"], mdata["rna"].obsm["X_scmmgan"][[7, 3]], atol=1e-4)
        assert "scmmgan_ood" not in found.obs
    with pytest.raises(ValueError, match="no coupling"):
        _ = smm.get.model(mdata).aligner


NEED: dict[str, Callable[[md.MuData], Any]] = {
    "diagnose": smm.tl.diagnose,
    "uncertainty": lambda m: smm.tl.uncertainty(m, "rna", "protein"),
    "correlations": lambda m: smm.tl.correlations(m, "rna", "protein", gene="gene_0"),
    "importance": lambda m: smm.tl.importance(m, "rna", "protein", features=[m["protein"].var_names[0]]),
    "pl.diagnosis": lambda m: smm.pl.diagnosis(m, "rna", "protein", show=False),
    "place": lambda m: smm.tl.place(m, "rna", "protein"),
}


@pytest.mark.parametrize("tool", NEED)
def test_what_needs_a_coupling_names_the_method(fitted: tuple[str, md.MuData], fingerprint: Callable, tool: str):
    method, mdata = fitted
    before = fingerprint(mdata)
    with pytest.raises(ValueError, match=f"method '{method}' has no coupling: .*`method='scmmgan'`"):
        NEED[tool](mdata)
    assert fingerprint(mdata) == before


def test_what_reads_the_embedding_works(fitted: tuple[str, md.MuData]):
    mdata = fitted[1].copy()
    smm.tl.match(mdata, "rna", "protein")
    smm.tl.transfer(mdata, "rna", "protein", obs="cell_type")
    smm.tl.cluster(mdata, "rna", "protein", n_clusters=3)
    assert mdata["rna"].obs["scmmgan_match_protein"].isin(mdata["protein"].obs_names).all()
    assert mdata["rna"].obs["scmmgan_cluster"].nunique() == 3
    assert {"mmd", "label_transfer"} <= set(smm.tl.evaluate(mdata, "rna", "protein", labels="cell_type")["metric"])


def test_pictures(fitted: tuple[str, md.MuData]):
    """One panel of the joint embedding: there are no spaces before."""
    mdata = fitted[1]
    assert len(smm.pl.alignment(mdata, color="cell_type", show=False)) == 1
    smm.pl.history(mdata, show=False)
    plt.close("all")


@pytest.mark.parametrize(("given", "grade"), [({"labels": "cell_type"}, "not assessed"), ({}, "not identifiable")])
def test_no_verdict_is_claimed(given: dict[str, str], grade: str, caplog: pytest.LogCaptureFixture):
    mdata = toy()
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        smm.tl.align(mdata, method="cmae", **QUICK, **given)
    found = smm.get.diagnosis(mdata, "rna", "protein")
    assert (found["grade"], found["supported"]) == (grade, False)
    assert "nothing was tested" in found["statement"]
    (said,) = [r for r in caplog.records if "nothing was tested" in r.message]
    assert said.levelname == ("INFO" if given else "WARNING")


def test_equal_names_are_layers_and_an_alignment_replaces_another():
    mdata = smm.datasets.toy(n_cells=60, n_features=[50, 50], shared_genes=True)
    smm.tl.align(mdata, method="coupling", progress_bar=False)
    assert "scmmgan_plan_protein" in mdata["rna"].obsm
    smm.tl.align(mdata, method="cmae", **QUICK)
    assert mdata["rna"].layers["scmmgan_protein"].shape == (60, 50)
    assert [name for name in (*mdata["rna"].obsm, *mdata["rna"].obs) if "plan" in name or "landmark" in name] == []
    smm.tl.align(mdata, method="coupling", progress_bar=False)
    assert "scmmgan_plan_protein" in mdata["rna"].obsm


def test_without_a_model():
    mdata = toy()
    smm.tl.align(mdata, method="cmae", save_model=False, **QUICK)
    assert smm.get.mapped(mdata, "rna", "protein").shape == (60, 14)
    for read in (smm.get.model, lambda m: smm.get.mapped(m, "rna", "protein", features=[m["protein"].var_names[0]])):
        with pytest.raises(ValueError, match="keeps no model"):
            read(mdata)


def test_an_embedding_alone(monkeypatch: pytest.MonkeyPatch):
    """A method that maps nothing to features, with a table beside it."""

    def fit(problem: Any, settings: Any) -> Fitted:
        rng = np.random.default_rng(settings["random_state"])
        z = {m: rng.normal(size=(len(of), 3)) for m, of in problem.modalities.items()}
        return Fitted(z, info={"found": {"rna": np.array(["x", "y"], dtype=object), "r": np.ones(2)}})

    monkeypatch.setitem(
        methods.METHODS, "random", methods.Method(weights={}, geometry=None, geometries=(), fit=fit, takes=())
    )
    mdata = toy()
    smm.tl.align(mdata, method="random", progress_bar=False)
    assert mdata["rna"].obsm["X_scmmgan"].shape == (60, 3)
    assert "scmmgan_protein" not in mdata["rna"].obsm
    pd.testing.assert_frame_equal(
        mdata.uns["scmmgan"]["params"]["fit"]["found"], pd.DataFrame({"rna": ["x", "y"], "r": [1.0, 1.0]})
    )
    with pytest.raises(ValueError, match="No mapped values"):
        smm.get.mapped(mdata, "rna", "protein")


@pytest.mark.parametrize(
    ("method", "given", "stored"),
    [
        ("jamie", {"dropout": 0.6, "ratio": 0.5}, {"dropout": 0.6, "ratio": 0.5}),
        ("cmae", {"conditional_adversary": True}, {"conditional_adversary": True}),
        ("cmae", {}, {"conditional_adversary": False}),
    ],
)
def test_options_from_end_to_end(method: str, given: dict[str, Any], stored: dict[str, Any], tmp_path: Path):
    """They change the map, are recorded, and leave new cells mapped as the others, also by what a file holds."""
    mdata, plain = toy(), toy()
    known = {"jamie": {"pairs": "known"}, "cmae": {"labels": "cell_type"}}[method]
    smm.tl.align(mdata, method=method, options=given, **known, **QUICK)
    smm.tl.align(plain, method=method, **known, **QUICK)
    same = np.array_equal(mdata["rna"].obsm["X_scmmgan"], plain["rna"].obsm["X_scmmgan"])
    assert same == (not given)
    mdata.write(tmp_path / "a.h5mu")
    again = md.read_h5mu(tmp_path / "a.h5mu")
    assert again.uns["scmmgan"]["params"]["options"] == stored
    new = smm.tl.translate(mdata["rna"][:5].copy(), "rna", "protein", model=again)
    np.testing.assert_allclose(new.X, mdata["rna"].obsm["scmmgan_protein"][:5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "jamie", "options": {"dropout": 1}}, "`dropout` must be below 1"),
        ({"method": "cmae", "options": {"conditional_adversary": True}}, "needs labels, and there are none"),
        ({"method": "scmodal", "links": None}, "needs links.*'scmodal-cca'"),
        ({"method": "cmae", "geometry": "heat"}, "'cmae'` compares no geometry, got `geometry='heat'`: leave it out"),
        ({"method": "scmodal", "geometry": "heat"}, r"must be one of \['kernel', 'centred', None\]"),
        ({"method": "cmae", "hidden": 1}, "`hidden` must be at least 2"),
        ({"method": "cmae", "labels": "cell_type", "links": "gene"}, "cannot use `links`"),
    ],
)
def test_refused_before_anything_is_written(wrong: dict[str, Any], message: str, fingerprint: Callable):
    mdata = toy()
    before = fingerprint(mdata)
    with pytest.raises(ValueError, match=message):
        smm.tl.align(mdata, **{**QUICK, **wrong})
    assert fingerprint(mdata) == before


def test_new_cells_of_batches_are_refused():
    mdata = toy(70)
    mdata["rna"].obs["donor"] = np.resize(["x", "y"], 70)
    smm.tl.align(mdata, method="cmae", batch={"rna": "donor"}, **QUICK)
    with pytest.raises(ValueError, match="keeps nothing of the batches"):
        smm.tl.translate(mdata["rna"][:3].copy(), "rna", "protein", model=mdata)


# --- methods that keep no model, or that of another ---------------------------------------------------------------


def given_to(method: str) -> tuple[md.MuData, dict[str, Any]]:
    """Data and what the method can use of what is known; features of equal names where it asks for them."""
    mdata = toy()
    if method == "moment-matching":
        mdata["protein"].var_names = [*mdata["rna"].var_names[:6], *mdata["protein"].var_names[6:]]
        with unpulled():
            mdata = md.MuData(dict(mdata.mod))
    known = {"links": "gene", "pairs": "known", "labels": "cell_type", "max_steps": 3, "hidden": 8}
    return mdata, {name: of for name, of in known.items() if methods.can_use(method, name)}


@pytest.mark.parametrize("method", ["links-matching", "scmodal-cca", *baselines.BASELINES])
def test_other_methods_from_end_to_end(method: str, tmp_path: Path):
    """Slots, the same bits again, a file, and what is made of it."""
    mdata, given = given_to(method)
    other = mdata.copy()
    smm.tl.align(mdata, method=method, progress_bar=False, **given)
    np.random.seed(5)
    smm.tl.align(other, method=method, progress_bar=False, **given)
    mdata.write(tmp_path / "a.h5mu")
    again = md.read_h5mu(tmp_path / "a.h5mu")
    assert again.uns["scmmgan"]["params"]["method"] == method
    for s, t in (("rna", "protein"), ("protein", "rna")):
        mapped = mdata[s].obsm[f"scmmgan_{t}"]
        assert mapped.shape == (60, mdata[t].n_vars)
        assert mapped.dtype == mdata[s].obsm["X_scmmgan"].dtype == np.float32
        assert np.isfinite(mapped).all()
        assert mapped.std(0).max() > 0
        for name in ("X_scmmgan", f"scmmgan_{t}"):
            for found in (other, again):
                np.testing.assert_array_equal(found[s].obsm[name], mdata[s].obsm[name])
        np.testing.assert_array_equal(smm.get.mapped(again, s, t).X, mapped)
        assert {name for name in (*mdata[s].obsm, *mdata[s].obs) if "scmmgan" in name} == {"X_scmmgan", f"scmmgan_{t}"}
    smm.tl.match(again, "rna", "protein")
    smm.tl.transfer(again, "rna", "protein", obs="cell_type")
    assert again["rna"].obs["scmmgan_match_protein"].isin(again["protein"].obs_names).all()
    assert {"mmd", "label_transfer"} <= set(smm.tl.evaluate(again, "rna", "protein", labels="cell_type")["metric"])
    assert "nothing was tested" in smm.get.diagnosis(again, "rna", "protein")["statement"]
    with pytest.raises(ValueError, match=f"method '{method}' has no coupling"):
        smm.tl.diagnose(again)
    new, name = again["rna"][[7, 3]].copy(), again["protein"].var_names[[5]]
    decoders: list[Callable[[], Any]] = [
        lambda: smm.tl.translate(new, "rna", "protein", model=again)[:, name],
        lambda: smm.get.mapped(again, "rna", "protein", features=list(name))[[7, 3]],
    ]
    for decoded in decoders:
        if method == "scmodal-cca":
            np.testing.assert_allclose(decoded().X[:, 0], mdata["rna"].obsm["scmmgan_protein"][[7, 3], 5], atol=1e-4)
        else:
            with pytest.raises(ValueError, match=f"keeps no model: .*its method '{method}' has none that maps cells"):
                decoded()


def test_tables_of_matches_and_links_survive_a_file(tmp_path: Path):
    for method, tables in (("links-matching", ["matches_rna", "matches_protein"]), ("scmodal-cca", ["links"])):
        mdata, given = given_to(method)
        smm.tl.align(mdata, method=method, progress_bar=False, **given)
        mdata.write(tmp_path / "a.h5mu")
        again = md.read_h5mu(tmp_path / "a.h5mu").uns["scmmgan"]["params"]["fit"]
        for name in tables:
            table = mdata.uns["scmmgan"]["params"]["fit"][name]
            pd.testing.assert_frame_equal(again[name].reset_index(drop=True), table, check_dtype=False)
            assert {"rna", "protein", "score"} <= set(table)


def test_three_modalities():
    mdata = smm.datasets.toy(n_cells=50, n_modalities=3, n_features=[14, 12, 10], n_linked=6)
    smm.tl.align(mdata, method="scmodal", links="gene", **QUICK)
    names = list(mdata.mod)
    assert all(f"scmmgan_{t}" in mdata[s].obsm for s in names for t in names if s != t)
