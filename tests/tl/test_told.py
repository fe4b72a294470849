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
from scmmgan import _slots
from scmmgan._keys import Keys
from scmmgan.model.transform import Transform

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
    mixed, apart = (
        align(mdata, max_steps=3, batch=batch).uns["scmmgan"]["params"]["told"]["a"]["b"] for batch in (None, "sample")
    )
    assert apart["tissue"] - apart["links"] > mixed["tissue"] - mixed["links"] + 0.02


def test_slots(told: tuple[md.MuData, np.ndarray]):
    mdata, _ = told
    image = mdata["a"].obsm["scmmgan_told_b"]
    assert image.dtype == np.float32
    assert image.shape == (400, widths(mdata)["b"])
    written = smm.get.mapped(mdata, "a", "b")
    some = smm.get.mapped(mdata, "a", "b", features=["b_g3", "b_b30"])
    np.testing.assert_allclose(some.X, written[:, ["b_g3", "b_b30"]].X, atol=1e-5)
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
    align(mdata, links=table, max_steps=3)
    found = mdata.uns["scmmgan"]["params"]["told"]["a"]["b"]
    expected = told[0].uns["scmmgan"]["params"]["told"]["a"]["b"]
    assert found["links"] == pytest.approx(expected["links"], abs=1e-3)


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


@pytest.mark.parametrize("given", ["seven links", "pairs", "labels", "cyclegan"])
def test_asked_of_links_alone(given: str):
    mdata, _ = panels()
    arguments: dict[str, Any] = {"max_steps": 3}
    if given == "seven links":
        mdata["a"].var["gene"] = [f"g{j}" if j < 7 else f"a{j}" for j in range(21)]
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
