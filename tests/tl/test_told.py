"""Values that links tell where nothing supports the map: when, that they are better, and what is written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.data import modality as _domain
from scmmgan.data import read as _problem
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.space.transform import Transform
from scmmgan.tl import _told

LINKS, HIDDEN = 9, 8


def panels(seed: int = 2, n: int = 400, noise: float = 2.0, groups: int = 0) -> tuple[md.MuData, np.ndarray]:
    """Two panels, 9 weak links (of two gradients over the tissue, or of cells in `groups`), 8 more features that "b" alone shows.

    The second value is what cells of "a" would have shown of these.
    """
    rng = np.random.default_rng(seed)
    width = groups or 2
    slopes, hidden = rng.normal(size=(width, LINKS)), rng.normal(size=(width, HIDDEN))
    mods, truth = {}, {}
    for name, p in (("a", 12), ("b", 20)):
        place = rng.uniform(size=(n, 2))
        common = np.c_[np.sin(3 * place[:, 0]), np.cos(4 * place[:, 1])]
        common = np.eye(groups)[rng.integers(groups, size=n)] if groups else (common - common.mean(0)) / common.std(0)
        own = 2 * rng.normal(size=(n, 3)) @ rng.normal(size=(3, p)) + rng.normal(size=(n, p))
        truth[name] = common @ hidden
        parts = [common @ slopes + noise * rng.normal(size=(n, LINKS)), own]
        parts += [truth[name] + 0.5 * rng.normal(size=(n, HIDDEN))] if name == "b" else []
        x = np.hstack(parts).astype(np.float32)
        genes = [f"g{j}" if j < LINKS else f"{name}{j}" for j in range(x.shape[1])]
        var = pd.DataFrame({"gene": genes}, index=[f"{name}_{g}" for g in genes])
        mods[name] = ad.AnnData(x, obs=pd.DataFrame(index=[f"{name}{i}" for i in range(n)]), var=var)
        mods[name].obsm["spatial"] = place
    return md.MuData(mods), truth["a"]


def align(mdata: md.MuData, **arguments: Any) -> md.MuData:
    smm.tl.align(mdata, **{"links": "gene", "max_steps": 100, "progress_bar": False, **arguments})
    return mdata


def asked(mdata: md.MuData, **arguments: Any) -> dict[str, Any]:
    """What `align` would ask where nothing is supported, without the training."""
    names = ["a", "b"]
    per = ("layer", "use_rep", "mask_var", "smooth", "n_pcs", "labels", "batch")
    given = {n: _domain.per_modality(arguments.get(n, _problem.DEFAULTS.get(n)), names, n) for n in per}
    problem = _problem.read(mdata, names, given, links=arguments.get("links", "gene"), pairs=None, random_state=0)
    settings = {
        "method": "scmmgan",
        "random_state": arguments.get("random_state", 0),
        "batch": arguments.get("batch"),
        "spatial": arguments.get("spatial"),
    }
    return _told.by_links(mdata, problem, {("a", "b"): {"supported": False}}, settings)[1]


def correlation(values: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(values[:, j], truth[:, j])[0, 1] for j in range(HIDDEN)]))


def of_the_map(mdata: md.MuData) -> np.ndarray:
    """What the generator would have put there."""
    stored = mdata.uns["scmmgan"]["model"]["transforms"]["b"]
    transform = Transform(**{name: np.asarray(value) for name, value in stored.items()})
    return transform.inverse(_slots.model_space(mdata, "a", "b", Keys()))


@pytest.fixture(scope="module")
def told() -> tuple[md.MuData, np.ndarray]:
    mdata, truth = panels()
    return align(mdata), truth


def test_values_are_better_than_the_maps(told: tuple[md.MuData, np.ndarray]):
    mdata, truth = told
    choice = mdata.uns["scmmgan"]["params"]["told"]["a"]["b"]
    assert choice["by"] == "tissue"
    assert choice["tissue"] > choice["links"] > choice["coupling"]
    # the other direction has a choice of its own
    other = mdata.uns["scmmgan"]["params"]["told"]["b"]["a"]
    assert other["by"] == "tissue"
    assert other["tissue"] != choice["tissue"]
    values = smm.get.mapped(mdata, "a", "b").X
    assert correlation(values[:, -HIDDEN:], truth) > correlation(of_the_map(mdata)[:, -HIDDEN:], truth) + 0.05
    assert correlation(values[:, -HIDDEN:], truth) > 0.8


def test_without_coordinates_links_tell_alone(told: tuple[md.MuData, np.ndarray]):
    mdata, truth = panels()
    for m in ("a", "b"):
        del mdata[m].obsm["spatial"]
    align(mdata)
    choice = mdata.uns["scmmgan"]["params"]["told"]["a"]["b"]
    assert (choice["by"], "tissue" in choice) == ("links", False)
    assert choice["links"] == told[0].uns["scmmgan"]["params"]["told"]["a"]["b"]["links"]
    here, with_tissue = (smm.get.mapped(m, "a", "b").X[:, -HIDDEN:] for m in (mdata, told[0]))
    assert correlation(here, truth) < correlation(with_tissue, truth)


def test_coordinates_that_are_none_are_left_alone(caplog: pytest.LogCaptureFixture):
    mdata, _ = panels()
    for m in ("a", "b"):
        mdata[m].obsm["where"] = mdata[m].obsm["spatial"]
        mdata[m].obsm["spatial"] = np.full((400, 2), np.nan)
    with caplog.at_level(logging.INFO, "scmmgan"):
        align(mdata, max_steps=3)
    assert "No neighbours in the tissue: obsm['spatial'] of 'a' holds NaN" in caplog.text
    assert "tissue" not in mdata.uns["scmmgan"]["params"]["told"]["a"]["b"]
    assert align(mdata, max_steps=3, spatial="where").uns["scmmgan"]["params"]["told"]["a"]["b"]["by"] == "tissue"


def test_neighbors_are_of_one_sample():
    """Two samples in one frame: without `batch` half of a cell's neighbours are of the other."""
    mdata, _ = panels(n=800)
    for m in ("a", "b"):
        sample = np.arange(800) % 2
        mdata[m].obs["sample"] = pd.Categorical([f"s{i}" for i in sample])
        mdata[m].obsm["spatial"][sample == 1] = mdata[m].obsm["spatial"][sample == 1][:, ::-1]
    mixed, apart = (asked(mdata, batch=batch)["a"]["b"] for batch in (None, "sample"))
    assert apart["tissue"] - apart["links"] > mixed["tissue"] - mixed["links"] + 0.02


def test_slots(told: tuple[md.MuData, np.ndarray]):
    mdata, _ = told
    image = mdata["a"].obsm["scmmgan_told_b"]
    assert image.dtype == np.float32
    assert image.shape == (400, widths(mdata)["b"])
    written = smm.get.mapped(mdata, "a", "b")
    some = smm.get.mapped(mdata, "a", "b", features=["b_g3", "b_b30"])
    np.testing.assert_allclose(some.X, written[:, ["b_g3", "b_b30"]].X, atol=1e-5)
    cut = mdata.copy()
    del cut["a"].obsm["scmmgan_told_b"]
    with pytest.raises(KeyError, match=r"No obsm key in 'a' 'scmmgan_told_b'.*Align again"):
        smm.get.mapped(cut, "a", "b", features=["b_g3"])
    # the joint embedding is the map's
    x = mdata["a"].obsm["X_scmmgan"]
    assert not np.allclose(_slots.model_space(mdata, "a", "b", Keys()), image, atol=0.1)
    assert x.shape[1] == sum(widths(mdata).values())


def widths(mdata: md.MuData) -> dict[str, int]:
    return _slots.config(mdata, Keys())["widths"]


def test_importance_says_that_it_explains_the_map(told: tuple[md.MuData, np.ndarray], caplog: pytest.LogCaptureFixture):
    mdata = told[0].copy()
    smm.tl.importance(mdata, "a", "b", features="b_b30", n_cells=50)
    assert "Values of 'a' in 'b' are told by links, not by the map, which is what is explained" in caplog.text


@pytest.mark.parametrize("suffix", ["h5mu", "zarr"])
def test_file(told: tuple[md.MuData, np.ndarray], tmp_path: Path, suffix: str):
    mdata = told[0].copy()
    path = tmp_path / f"told.{suffix}"
    mdata.write(path) if suffix == "h5mu" else mdata.write_zarr(path)
    again = md.read(path) if suffix == "h5mu" else md.read_zarr(path)
    for features in (None, ["b_b30"]):
        found, expected = (smm.get.mapped(m, "a", "b", features=features).X for m in (again, mdata))
        np.testing.assert_array_equal(found, expected)
    smm.tl.uncertainty(again, "a", "b")
    # aligned anew without links to ask: what was told before goes
    align(again, method="coupling")
    assert "scmmgan_told_b" not in again["a"].obsm
    assert len(again.uns["scmmgan"]["params"]["told"]) == 0
    np.testing.assert_allclose(smm.get.mapped(again, "a", "b").X, of_the_map(again), atol=1e-4)


def test_reproducible(told: tuple[md.MuData, np.ndarray]):
    again = align(panels()[0])
    np.testing.assert_array_equal(again["a"].obsm["scmmgan_told_b"], told[0]["a"].obsm["scmmgan_told_b"])


def test_signs_of_links_count(told: tuple[md.MuData, np.ndarray]):
    mdata, _ = panels()
    names = [f"g{j}" for j in range(LINKS)]
    table = pd.DataFrame({"a": [f"a_{g}" for g in names], "b": [f"b_{g}" for g in names], "sign": [-1, 1, -1] * 3})
    mdata["a"].X[:, [0, 2, 3, 5, 6, 8]] *= -1
    found = asked(mdata, links=table)["a"]["b"]
    expected = told[0].uns["scmmgan"]["params"]["told"]["a"]["b"]
    assert found["links"] == pytest.approx(expected["links"], abs=1e-3)
    assert found["coupling"] == pytest.approx(expected["coupling"], abs=0.05)


def test_batches_of_one_modality_only():
    mdata, _ = panels()
    mdata["a"].obs["sample"] = pd.Categorical(np.where(np.arange(400) % 2, "s1", "s0"))
    align(mdata, max_steps=3, batch={"a": "sample"})
    assert mdata.uns["scmmgan"]["params"]["told"]["a"]["b"]["by"] == "tissue"


def test_a_modality_can_be_left_out_of_the_tissue():
    mdata, _ = panels()
    found = asked(mdata, spatial={"a": None})
    assert "tissue" not in found["a"]["b"]
    assert "tissue" in found["b"]["a"]


def test_scores_are_of_what_was_measured():
    """Not of what the neighbours in the graph showed: a feature's own noise decides who they are."""
    mdata, _ = panels()
    more, less = (asked(mdata, smooth=steps)["a"]["b"] for steps in (5, 1))
    assert more["links"] == less["links"]
    assert more["coupling"] != less["coupling"]


def test_nothing_is_told_of_noise():
    rng = np.random.default_rng(0)
    mdata, _ = panels()
    for m in ("a", "b"):
        mdata[m].X = rng.normal(size=mdata[m].shape).astype(np.float32)
    told = asked(mdata)
    assert (told["a"]["b"]["by"], told["b"]["a"]["by"]) == ("coupling", "coupling")


@pytest.mark.parametrize(("genes", "enough"), [(4, False), (8, True)])
def test_links_of_few_features_are_not_asked(genes: int, enough: bool):
    """Four genes of pure noise with links to two features each would tell these by each other."""
    mdata, _ = panels()
    table = pd.DataFrame({"a": [f"a_g{j % genes}" for j in range(8)], "b": [f"b_g{j}" for j in range(8)]})
    assert len(asked(mdata, links=table)) == (2 if enough else 0)


@pytest.mark.parametrize(("links", "enough"), [(100, True), (101, False)])
def test_a_hundred_links_are_asked_at_most(links: int, enough: bool):
    rng = np.random.default_rng(0)
    x = {m: rng.normal(size=(80, 110)).astype(np.float32) for m in ("a", "b")}
    mods = {
        m: ad.AnnData(
            v,
            obs=pd.DataFrame(index=[f"{m}{i}" for i in range(80)]),
            var=pd.DataFrame(index=[f"{m}_{i}" for i in range(110)]),
        )
        for m, v in x.items()
    }
    table = pd.DataFrame({m: [f"{m}_{i}" for i in range(links)] for m in x})
    assert len(asked(md.MuData(mods), links=table)) == (2 if enough else 0)


def test_the_seed_is_that_of_the_alignment(told: tuple[md.MuData, np.ndarray]):
    found = told[0].uns["scmmgan"]["params"]["told"]["a"]["b"]
    assert asked(panels()[0])["a"]["b"] == found
    # other landmarks, other cells than the 2,000 at most that are asked: here all of them
    other = asked(panels()[0], random_state=1)["a"]["b"]
    assert other["links"] == pytest.approx(found["links"], abs=1e-9)
    assert other["coupling"] != found["coupling"]


def test_a_slot_of_the_users_own_is_left_alone():
    mdata, _ = panels(noise=0.2, groups=12)
    align(mdata, max_steps=3)
    before = smm.get.mapped(mdata, "a", "b", features=["b_b30"]).X
    own = np.ones((400, widths(mdata)["b"]), dtype=np.float32)
    mdata["a"].obsm["scmmgan_told_b"] = own
    np.testing.assert_array_equal(smm.get.mapped(mdata, "a", "b", features=["b_b30"]).X, before)
    with pytest.raises(ValueError, match="'a' has 'scmmgan_told_b' already"):
        align(mdata, max_steps=3)
    np.testing.assert_array_equal(mdata["a"].obsm["scmmgan_told_b"], own)


def test_the_map_stays_where_it_is_supported_or_tells_more():
    # clear links: a verdict of support, so nothing is asked
    toy = smm.datasets.toy()
    align(toy)
    assert smm.get.diagnosis(toy, "rna", "protein")["supported"]
    assert len(toy.uns["scmmgan"]["params"]["told"]) == 0
    # populations that 9 links can tell: too few for support, yet the coupling tells more
    mdata, _ = panels(noise=0.2, groups=12)
    align(mdata, max_steps=3)
    choice = mdata.uns["scmmgan"]["params"]["told"]["a"]["b"]
    assert not smm.get.diagnosis(mdata, "a", "b")["supported"]
    assert choice["by"] == "coupling"
    assert "scmmgan_told_b" not in mdata["a"].obsm


@pytest.mark.parametrize("given", ["seven links", "pairs", "labels", "shared names", "cyclegan"])
def test_asked_of_links_alone(given: str):
    mdata, _ = panels()
    arguments: dict[str, Any] = {"max_steps": 3}
    if given == "seven links":
        mdata["a"].var["gene"] = [f"g{j}" if j < 7 else f"a{j}" for j in range(21)]
    elif given == "shared names":
        x = {m: np.random.default_rng(i).normal(size=(400, 60)).astype(np.float32) for i, m in enumerate("ab")}
        mdata = md.MuData({m: ad.AnnData(v, obs=mdata[m].obs) for m, v in x.items()})
        arguments["links"] = "var_names"
    elif given == "pairs":
        rows = np.arange(5)
        arguments["pairs"] = pd.DataFrame({m: mdata[m].obs_names[rows] for m in ("a", "b")})
    elif given == "labels":
        for m in ("a", "b"):
            mdata[m].obs["type"] = pd.Categorical(np.where(mdata[m].obsm["spatial"][:, 0] > 0.5, "left", "right"))
        arguments["labels"] = "type"
    else:
        arguments["method"] = given
    align(mdata, **arguments)
    assert len(mdata.uns["scmmgan"]["params"]["told"]) == 0
    assert "scmmgan_told_b" not in mdata["a"].obsm


def test_slot_of_another_modality():
    mdata, _ = panels()
    clash = md.MuData({"b": mdata["b"], "told_b": mdata["a"]})
    with pytest.raises(ValueError, match="share the slot 'scmmgan_told_b' with what links tell"):
        align(clash, max_steps=3)
