"""`tl.place` and `tl.align(spatial=)`: what generators read and emit, places against references, errors, slots."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scmmgan as smm
from helpers import own_space, space_of
from scmmgan.data import read as _read
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.defaults import LOSS_WEIGHTS
from scmmgan.model.nets import aligner, training
from scmmgan.model.nets.aligner import Aligner, Frame
from scmmgan.model.problem import Sections
from scmmgan.settings import unpulled

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

SLOT, SPREAD, LANDMARK = "scmmgan_coordinates_rna", "scmmgan_spread", "scmmgan_landmark"
N = 180


def tissue(n: int = N, seed: int = 0, d: int = 2, noise: float = 0.15) -> tuple[md.MuData, pd.DataFrame, np.ndarray]:
    """Spots on a band far from the origin with genes that vary smoothly over it, cells of the same band, shuffled, truth."""
    rng = np.random.default_rng(seed)
    places = rng.random((2 * n, d)) * np.array([4.0, 1.0, 0.5])[:d]
    waves, phase = rng.normal(size=(d, 30)), rng.random(30) * 2 * np.pi
    values = np.sin(1.2 * places @ waves + phase) + noise * rng.normal(size=(2 * n, 30))
    order = rng.permutation(n) + n
    # only the first 15 genes are linked, by a table
    rna = ad.AnnData(values[:n].astype(np.float32), var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))
    cells = ad.AnnData(values[order].astype(np.float32), var=pd.DataFrame(index=[f"c{i}" for i in range(30)]))
    rna.obs_names, cells.obs_names = [f"s{i}" for i in range(n)], [f"q{i}" for i in range(n)]
    rna.obsm["spatial"] = 100 * places[:n] + 5_000
    with unpulled():
        mdata = md.MuData({"cells": cells, "rna": rna})
    links = pd.DataFrame({"cells": cells.var_names[:15], "rna": rna.var_names[:15]})
    return mdata, links, 100 * places[order] + 5_000


def error(placed: np.ndarray, truth: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(placed - truth, axis=1)))


@pytest.fixture(scope="module")
def _placed() -> tuple[md.MuData, np.ndarray]:
    mdata, links, truth = tissue()
    smm.tl.align(mdata, links=links, spatial="spatial", max_steps=120, batch_size=64, progress_bar=False)
    return mdata, truth


@pytest.fixture
def placed(_placed: tuple[md.MuData, np.ndarray]) -> tuple[md.MuData, np.ndarray]:
    return _placed[0].copy(), _placed[1]


# --- places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["generator", "nearest", "plan"])
def test_cells_are_placed_near_the_truth(placed: tuple[md.MuData, np.ndarray], method: str):
    mdata, truth = placed
    smm.tl.place(mdata, "cells", "rna", method=method)
    found = mdata["cells"].obsm[SLOT]
    centre = mdata["rna"].obsm["spatial"].mean(0)
    assert found.shape == truth.shape
    assert error(found, truth) < 0.35 * error(centre[None], truth)
    # in the units of the tissue, and spread over all of it
    np.testing.assert_allclose(found.mean(0), truth.mean(0), atol=25)
    assert np.ptp(found[:, 0]) > 0.7 * np.ptp(truth[:, 0])


def test_three_columns_and_two_tissues():
    mdata, links, truth = tissue(d=3)
    mdata["cells"].obsm["spatial"] = truth[:, :2] / 10
    smm.tl.align(mdata, links=links, spatial="spatial", max_steps=60, progress_bar=False)
    for source, target in (("cells", "rna"), ("rna", "cells")):
        smm.tl.place(mdata, source, target, method="generator")
    assert error(mdata["cells"].obsm[SLOT], truth) < 0.4 * error(truth.mean(0)[None], truth)
    assert mdata["rna"].obsm["scmmgan_coordinates_cells"].shape == (N, 2)
    own = mdata["rna"].obsm["spatial"][:, :2] / 10
    assert error(mdata["rna"].obsm["scmmgan_coordinates_cells"], own) < 0.4 * error(own.mean(0)[None], own)


def under_plan(mdata: md.MuData) -> tuple[np.ndarray, np.ndarray]:
    """Mean place and spread of every cell: the plain sum over all pairs of a cell and a spot."""
    places, label = mdata["rna"].obsm["spatial"], mdata["rna"].obs[LANDMARK].to_numpy()
    plan = mdata["cells"].obsm["scmmgan_plan_rna"].toarray().astype(float)
    weight = np.zeros((len(plan), len(places)))
    for spot, landmark in enumerate(label):
        weight[:, spot] = plan[:, landmark] / (label == landmark).sum()
    mean = weight @ places
    return mean, np.sqrt((weight * ((places[None] - mean[:, None]) ** 2).sum(2)).sum(1))


def test_spread_and_mean_under_the_plan(placed: tuple[md.MuData, np.ndarray]):
    """Every spot counts with the landmark that stood for it in the coupling, not with the nearest one."""
    mdata, _ = placed
    x, label = own_space(mdata, "rna").astype(float), mdata["rna"].obs[LANDMARK].to_numpy()
    nodes = mdata["rna"].obs_names.get_indexer(mdata.uns["scmmgan"]["landmarks"]["rna"])
    np.testing.assert_array_equal(label[nodes], np.arange(len(nodes)))
    guessed = ((x[:, None] - x[nodes][None]) ** 2).sum(2).argmin(1)
    assert (guessed != label).any()
    spreads = []
    for landmark in (label, np.random.default_rng(0).permutation(label)):
        mdata["rna"].obs[LANDMARK] = landmark
        smm.tl.place(mdata, "cells", "rna", method="plan")
        mean, spread = under_plan(mdata)
        np.testing.assert_allclose(mdata["cells"].obsm[SLOT], mean, rtol=1e-5)
        np.testing.assert_allclose(mdata["cells"].obs[SPREAD], spread, rtol=1e-3)
        spreads.append(spread)
    # spots of one landmark lie together
    assert np.median(spreads[0]) < 0.6 * np.median(spreads[1])


def test_spread_says_where_a_tissue_repeats_itself():
    """Two halves with the same genes: a cell of them fits both, a cell of the middle one place."""
    rng = np.random.default_rng(0)
    n = 150
    at = rng.random(2 * n)
    folded = np.abs(at - 0.5)
    values = np.sin(6 * folded[:, None] * rng.normal(size=24) + rng.random(24) * 6) + 0.05 * rng.normal(
        size=(2 * n, 24)
    )
    order = rng.permutation(n)
    spots = ad.AnnData(values[:n].astype(np.float32), obsm={"spatial": np.column_stack([at, 0.01 * at])[:n]})
    cells = ad.AnnData(values[n:][order].astype(np.float32))
    spots.obs_names, cells.obs_names = [f"s{i}" for i in range(n)], [f"q{i}" for i in range(n)]
    spots.var_names = cells.var_names = [f"G{i}" for i in range(24)]
    with unpulled():
        mdata = md.MuData({"cells": cells, "rna": spots})
    smm.tl.align(mdata, links="var_names", method="coupling", progress_bar=False)
    smm.tl.place(mdata, "cells", "rna")
    far = folded[n:][order]
    spread = mdata["cells"].obs[SPREAD].to_numpy()
    # two places at 2 · far of each other: their rms distance from the middle is far
    assert np.corrcoef(spread, far)[0, 1] > 0.9
    np.testing.assert_allclose(np.median(spread[far > 0.3] / far[far > 0.3]), 1, atol=0.15)


def test_nearest_is_the_most_central_of_twenty_spots(placed: tuple[md.MuData, np.ndarray]):
    mdata, _ = placed
    smm.tl.place(mdata, "cells", "rna", method="nearest")
    y = space_of(mdata, "cells", "rna")
    distance = ((y[:, None] - own_space(mdata, "rna")[None]) ** 2).sum(2)
    near = mdata["rna"].obsm["spatial"][np.argsort(distance, axis=1)[:, :20]]
    apart = np.sqrt(((near[:, :, None] - near[:, None]) ** 2).sum(3)).sum(2)
    np.testing.assert_array_equal(mdata["cells"].obsm[SLOT], near[np.arange(N), apart.argmin(1)])


def test_without_spatial_the_nearest_spots_serve_and_the_log_says_so(caplog: pytest.LogCaptureFixture):
    mdata, links, truth = tissue()
    mdata["rna"].obsm["other"] = mdata["rna"].obsm["spatial"] * 2
    smm.tl.align(mdata, links=links, method="coupling", progress_bar=False)
    with caplog.at_level("INFO", "scmmgan"):
        smm.tl.place(mdata, "cells", "rna", spatial="other")
    assert "'rna' was aligned without `spatial`" in caplog.text
    assert error(mdata["cells"].obsm[SLOT], truth * 2) < 0.4 * error(2 * truth.mean(0)[None], 2 * truth)
    assert mdata.uns["scmmgan"]["coordinates"]["cells"]["rna"] == {"method": "nearest", "spatial": "other"}
    with pytest.raises(ValueError, match="does not map coordinates of 'rna' along"):
        smm.tl.place(mdata, "cells", "rna", method="generator")


def test_coordinates_do_not_change_with_the_rows(placed: tuple[md.MuData, np.ndarray]):
    """A cell's place is its own: the same whatever other cells are placed with it."""
    mdata, _ = placed
    aligner, x = smm.get.model(mdata).aligner, own_space(mdata, "cells")
    whole = aligner.place(x, "cells", "rna")
    np.testing.assert_allclose(aligner.place(x[:7], "cells", "rna"), whole[:7], rtol=1e-5)
    smm.tl.place(mdata, "cells", "rna", method="generator")
    np.testing.assert_allclose(mdata["cells"].obsm[SLOT], whole, rtol=1e-5)


# --- training ----------------------------------------------------------------------------------------------------


def test_widths_of_networks(placed: tuple[md.MuData, np.ndarray]):
    """The generator that enters the tissue emits coordinates; the one that leaves it does not read them."""
    aligner = smm.get.model(placed[0]).aligner
    p = aligner.widths
    into, out = aligner.generators["cells", "rna"], aligner.generators["rna", "cells"]
    assert into.skip.weight.shape == (p["rna"] + 2, p["cells"])
    assert out.skip.weight.shape == (p["cells"], p["rna"])
    assert aligner.translate(own_space(placed[0], "cells"), "cells", "rna").shape[1] == p["rna"]


def test_terms_that_see_coordinates():
    """Discriminator, cycle and anchors do; geometry, links and identity do not."""
    rng = np.random.default_rng(0)
    seen: dict[str, set[int]] = {}

    def spy(name: str):
        original = getattr(training.losses, name)

        def loss(*arguments, **settings):
            seen.setdefault(name, set()).update(
                a.shape[1] for a in arguments if isinstance(a, torch.Tensor) and a.dim() == 2
            )
            return original(*arguments, **settings)

        return loss

    x = {"a": rng.normal(size=(64, 5)).astype(np.float32), "b": rng.normal(size=(64, 5)).astype(np.float32)}
    landmarks = Landmarks(np.arange(64), np.full(64, 1 / 64), np.arange(64), x["b"])

    found = {
        ("a", "b"): Coupling(sp.identity(64, format="csr"), x["b"], landmarks),
        ("b", "a"): Coupling(sp.identity(64, format="csr"), x["a"], landmarks),
    }
    link = (np.eye(5)[:, :3], np.eye(5)[:, :3], np.ones(3), np.ones(3))
    names = ("cycle_loss", "anchor_loss", "identity_loss", "heat_loss", "gradient_penalty")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(training.losses, name, spy(name))
        Aligner.fit(
            x, found, {("a", "b"): link, ("b", "a"): link}, shared=(("a", "b"), ("b", "a")), weights=LOSS_WEIGHTS,
            recipe=training.Recipe(4, 32, 1e-3), random_state=0, device="cpu", progress_bar=False,
            coordinates={"b": rng.normal(size=(64, 3))},
        )  # fmt: skip
    assert seen["cycle_loss"] == seen["anchor_loss"] == seen["gradient_penalty"] == {5, 8}
    assert seen["identity_loss"] == seen["heat_loss"] == {5}


def test_known_partners_lend_their_places():
    mdata, _, _ = tissue(n=120)
    pairs = pd.DataFrame({"cells": mdata["cells"].obs_names[:110], "rna": mdata["rna"].obs_names[110:0:-1]})
    smm.tl.align(mdata, links=None, pairs=pairs, method="coupling", spatial="spatial", progress_bar=False)
    smm.tl.place(mdata, "cells", "rna", method="generator")
    # the coupling's map sends a remembered cell to its anchor
    np.testing.assert_allclose(
        mdata["cells"][pairs["cells"]].obsm[SLOT], mdata["rna"][pairs["rna"]].obsm["spatial"], rtol=1e-4
    )


@pytest.mark.parametrize("method", ["coupling", "scmmgan-paper", "cyclegan"])
def test_every_method_maps_coordinates(method: str):
    mdata, links, _ = tissue(n=60)
    smm.tl.align(mdata, links=links, method=method, spatial={"rna": "spatial"}, max_steps=4, progress_bar=False)
    smm.tl.place(mdata, "cells", "rna", method="generator")
    assert np.isfinite(mdata["cells"].obsm[SLOT]).all()


def test_frame_keeps_the_tissue_in_shape():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(50, 3)) * [30, 3, 1] + 1e4
    frame = Frame.of(places)
    small = frame.encode(places)
    np.testing.assert_allclose(frame.decode(small), places)
    np.testing.assert_allclose(small.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(
        np.ptp(small, axis=0) / np.ptp(small[:, 0]), np.ptp(places, axis=0) / np.ptp(places[:, 0])
    )


def test_the_same_seed_gives_the_same_places():
    runs = []
    for _ in range(2):
        mdata, links, _ = tissue(n=60)
        smm.tl.align(mdata, links=links, spatial="spatial", max_steps=6, random_state=3, progress_bar=False)
        smm.tl.place(mdata, "cells", "rna", method="generator")
        runs.append(mdata["cells"].obsm[SLOT])
    np.testing.assert_array_equal(*runs)


def test_without_spatial_nothing_is_recorded():
    mdata, links, _ = tissue(n=60)
    smm.tl.align(mdata, links=links, max_steps=2, progress_bar=False)
    assert "frames" not in str(mdata.uns["scmmgan"]["model"]["config"])
    assert mdata.uns["scmmgan"]["params"]["spatial"] == "None"
    assert smm.get.model(mdata).aligner.frames == {}


def test_other_tools_go_on_with_features_alone(placed: tuple[md.MuData, np.ndarray]):
    mdata, _ = placed
    smm.tl.diagnose(mdata)
    smm.tl.match(mdata, "cells", "rna")
    smm.tl.importance(mdata, "cells", "rna", features="G0", n_cells=40)
    assert mdata["cells"].obsm["X_scmmgan"].shape[1] == sum(smm.get.model(mdata).aligner.widths.values())
    assert len(smm.get.mapped(mdata, "cells", "rna").var_names) == 30


# --- sections ----------------------------------------------------------------------------------------------------


def sections(n: int = 160, k: int = 2, mark: float = 0.7) -> tuple[md.MuData, pd.DataFrame, np.ndarray, np.ndarray]:
    """Spots of k sections drawn over one another, every second one turned round; cells, true places, true sections."""
    rng = np.random.default_rng(0)
    inside, section = rng.random((2 * n, 2)) * [4.0, 1.0], rng.integers(0, k, 2 * n)
    waves, phase = rng.normal(size=(2, 30)), rng.random(30) * 2 * np.pi
    values = np.sin(1.2 * inside @ waves + phase) + mark * rng.normal(size=(k, 30))[section]
    values = (values + 0.15 * rng.normal(size=(2 * n, 30))).astype(np.float32)
    at = 100 * np.where(section[:, None] % 2, [4.0, 1.0] - inside, inside) + 5_000
    order, names = rng.permutation(n) + n, np.array([f"S{i}" for i in range(k)])
    slide = pd.Categorical(names[section[:n]], categories=[*names[::-1], "unused"])
    spots = ad.AnnData(values[:n], obs=pd.DataFrame({"slide": slide}, index=[f"s{i}" for i in range(n)]))
    cells = ad.AnnData(values[order], obs=pd.DataFrame(index=[f"q{i}" for i in range(n)]))
    spots.var_names, cells.var_names = [f"G{i}" for i in range(30)], [f"c{i}" for i in range(30)]
    spots.obsm["spatial"] = at[:n]
    with unpulled():
        mdata = md.MuData({"cells": cells, "rna": spots})
    links = pd.DataFrame({"cells": cells.var_names[:15], "rna": spots.var_names[:15]})
    return mdata, links, at[order], names[section[order]]


@pytest.fixture(scope="module")
def _in_sections() -> tuple[md.MuData, np.ndarray, np.ndarray]:
    mdata, links, truth, section = sections()
    smm.tl.align(
        mdata, links=links, spatial="spatial", library_key="slide", max_steps=120, batch_size=64, progress_bar=False
    )
    return mdata, truth, section


@pytest.fixture
def in_sections(_in_sections: tuple[md.MuData, np.ndarray, np.ndarray]) -> tuple[md.MuData, np.ndarray, np.ndarray]:
    return _in_sections[0].copy(), *_in_sections[1:]


@pytest.mark.parametrize("method", ["nearest", "generator", "plan"])
def test_places_and_spread_inside_a_section(in_sections: tuple[md.MuData, np.ndarray, np.ndarray], method: str):
    mdata, truth, section = in_sections
    smm.tl.place(mdata, "cells", "rna", method=method)
    found = smm.get.coordinates(mdata, "cells", "rna")
    assert found.attrs == {"method": method, "spatial": "spatial", "library_key": "slide"}
    assert mdata["cells"].obs["scmmgan_section_rna"].cat.categories.tolist() == ["S1", "S0"]
    right = (found["section"] == section).to_numpy()
    assert right.mean() > 0.85
    # turned round, a place that is a mean of both sections lies in the middle
    off = np.linalg.norm(found[["x", "y"]].to_numpy() - truth, axis=1)
    assert np.median(off[right]) < 0.4 * error(truth.mean(0)[None], truth)
    assert found["spread"].median() < 0.75 * np.linalg.norm(truth.std(0))


def test_spread_and_mean_under_the_plan_of_one_section(in_sections: tuple[md.MuData, np.ndarray, np.ndarray]):
    """Against the plain sum over all pairs of a cell and a spot of its section."""
    mdata, _, _ = in_sections
    smm.tl.place(mdata, "cells", "rna", method="plan")
    label, places = mdata["rna"].obs[LANDMARK].to_numpy(), mdata["rna"].obsm["spatial"]
    weight = mdata["cells"].obsm["scmmgan_plan_rna"].toarray()[:, label].astype(float) / np.bincount(label)[label]
    own = mdata["rna"].obs["slide"].astype(str).to_numpy()
    weight *= mdata["cells"].obs["scmmgan_section_rna"].astype(str).to_numpy()[:, None] == own
    weight /= weight.sum(1, keepdims=True)
    mean = weight @ places
    spread = np.sqrt((weight * ((places[None] - mean[:, None]) ** 2).sum(2)).sum(1))
    np.testing.assert_allclose(mdata["cells"].obsm[SLOT], mean, rtol=1e-5)
    np.testing.assert_allclose(mdata["cells"].obs[SPREAD], spread, rtol=1e-3, atol=1e-3)


def test_section_and_place_among_the_nearest_spots(in_sections: tuple[md.MuData, np.ndarray, np.ndarray]):
    mdata, _, _ = in_sections
    smm.tl.place(mdata, "cells", "rna")
    own, places = mdata["rna"].obs["slide"].astype(str).to_numpy(), mdata["rna"].obsm["spatial"]
    y = space_of(mdata, "cells", "rna")
    distance = ((y[:, None] - own_space(mdata, "rna")[None]) ** 2).sum(2)
    votes = (own[np.argsort(distance, axis=1)[:, :20]] == "S1").mean(1)
    placed_in = mdata["cells"].obs["scmmgan_section_rna"].astype(str).to_numpy()
    coupled = mdata["cells"].obsm["scmmgan_plan_rna"].toarray()[:, mdata["rna"].obs[LANDMARK]] > 0
    sure = (votes != 0.5) & np.array([(coupled[:, own == name]).any(1) for name in ("S0", "S1")]).all(0)
    np.testing.assert_array_equal(placed_in[sure], np.where(votes[sure] > 0.5, "S1", "S0"))
    for name in ("S0", "S1"):
        rows, there = placed_in == name, own == name
        near = places[there][np.argsort(distance[rows][:, there], axis=1)[:, :20]]
        apart = np.sqrt(((near[:, :, None] - near[:, None]) ** 2).sum(3)).sum(2)
        expected = near[np.arange(len(near)), apart.argmin(1)]
        np.testing.assert_array_equal(mdata["cells"].obsm[SLOT][rows], expected)


def test_a_frame_has_axes_for_each_section():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 60)
    places = rng.random((60, 2)) * [4, 1] + 1_000 * codes[:, None]
    frame = Frame.of(places, Sections("slide", ("a", "b", "c"), codes))
    own = np.repeat(np.arange(3) == codes[:, None], 2, axis=1)
    small = frame.encode(places, own)
    assert small.shape == (60, 6)
    assert (small[~own] == 0).all()
    np.testing.assert_allclose(frame.decode(small, codes), places)
    for code in range(3):
        np.testing.assert_allclose(small[codes == code][:, 2 * code : 2 * code + 2].mean(0), 0, atol=1e-9)
    # as much as one section would vary
    np.testing.assert_allclose((small**2).sum() / 60, 2 * 10**2 / 3, rtol=1e-9)


def test_anchors_are_means_inside_each_section():
    """Two landmarks: of the first both sections have spots, of the second one."""
    plan = sp.csr_matrix([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]])
    landmarks = Landmarks(np.array([0, 0, 0, 1]), np.array([0.75, 0.25]), np.array([0, 3]), np.zeros((2, 1)))
    own = np.array([[True, False], [True, False], [False, True], [True, False]])
    places = np.where(own, np.array([1.0, 3.0, -8.0, 6.0])[:, None], 0)
    everywhere = aligner._in_all_sections(places, own, landmarks)
    # spots of the other section of the same landmark; no spot of the second lies in section 1
    np.testing.assert_allclose(everywhere, [[1, -8], [3, -8], [2, -8], [6, 0]])
    coupling = Coupling(plan, np.zeros((3, 1)), landmarks, np.ones(3), np.zeros(3, dtype=bool))
    found = aligner._placed(coupling, np.zeros((4, 1)), everywhere, own).anchors
    share = 0.25 * 2 / 3
    between = (share * 2 + 0.75 * 6) / (share + 0.75)
    np.testing.assert_allclose(found, [[0, 2, -8], [0, between, -8], [0, 6, 0]])


def test_sections_after_a_file_and_in_a_subset(in_sections: tuple[md.MuData, np.ndarray, np.ndarray], tmp_path: Path):
    mdata, _, _ = in_sections
    smm.tl.place(mdata, "cells", "rna", method="generator")
    before = smm.get.coordinates(mdata, "cells", "rna")
    mdata.write(tmp_path / "a.h5mu")
    back = md.read(tmp_path / "a.h5mu")
    pd.testing.assert_frame_equal(smm.get.coordinates(back, "cells", "rna"), before)
    smm.tl.place(back, "cells", "rna", method="generator")
    pd.testing.assert_frame_equal(smm.get.coordinates(back, "cells", "rna"), before)
    # fewer cells, in another order, each at its place
    rows = np.random.default_rng(0).permutation(160)[:50]
    with unpulled():
        part = md.MuData({"cells": back["cells"][rows].copy(), "rna": back["rna"].copy()}, uns=dict(back.uns))
    smm.tl.place(part, "cells", "rna", method="generator")
    found = smm.get.coordinates(part, "cells", "rna")
    np.testing.assert_allclose(found[["x", "y"]], before[["x", "y"]].iloc[rows], rtol=1e-6)
    assert found["section"].tolist() == before["section"].iloc[rows].tolist()


def test_columns_that_are_found_and_no_column(caplog: pytest.LogCaptureFixture):
    mdata, links, _, _ = sections(n=80, k=3, mark=0.0)  # alike: only the column says which is which
    smm.tl.align(mdata, links=links, method="coupling", progress_bar=False)
    smm.tl.place(mdata, "cells", "rna")
    assert "lie over one another" in caplog.text
    assert "`library_key='slide'`" in caplog.text
    assert "scmmgan_section_rna" not in mdata["cells"].obs
    everywhere = mdata["cells"].obs[SPREAD].median()
    mdata["rna"].uns["spatial"] = {name: {"images": {}, "scalefactors": {}} for name in ("S0", "S1", "S2")}
    smm.tl.place(mdata, "cells", "rna")
    assert mdata["cells"].obs["scmmgan_section_rna"].cat.categories.tolist() == ["S2", "S1", "S0"]
    assert mdata["cells"].obs[SPREAD].median() < 0.9 * everywhere
    # and without sections again
    del mdata["rna"].uns["spatial"]
    smm.tl.place(mdata, "cells", "rna")
    assert "scmmgan_section_rna" not in mdata["cells"].obs
    assert "section" not in smm.get.coordinates(mdata, "cells", "rna")


@pytest.mark.parametrize(
    ("change", "arguments", "kind", "message"),
    [
        ("gone", {}, KeyError, "No obs column in 'rna' for `library_key` 'slide'"),
        ("gap", {}, ValueError, "'slide' of 'rna' has gaps, in 1 of 160 cells"),
        (
            "renamed",
            {"method": "generator"},
            ValueError,
            r"sections \['S1', 'S0'\] of 'rna' along, not of \['T0', 'T1'\]",
        ),
        (None, {"library_key": "other"}, KeyError, "for `library_key` 'other'"),
        (None, {"library_key": 1}, TypeError, "must name an obs column of 'rna', got 1"),
    ],
)
def test_errors_of_sections(in_sections, fingerprint, change, arguments, kind, message):
    mdata, _, _ = in_sections
    slide = mdata["rna"].obs.pop("slide").astype(object)
    if change != "gone":
        slide.iloc[0] = np.nan if change == "gap" else slide.iloc[0]
        mdata["rna"].obs["slide"] = slide.str.replace("S", "T") if change == "renamed" else slide
    before = fingerprint(mdata)
    with pytest.raises(kind, match=message):
        smm.tl.place(mdata, "cells", "rna", **arguments)
    assert fingerprint(mdata) == before


def test_sections_that_the_generator_does_not_know():
    mdata, links, _, _ = sections(n=60)
    smm.tl.align(mdata, links=links, method="coupling", spatial="spatial", progress_bar=False)
    assert mdata.uns["scmmgan"]["params"]["library_key"] == "None"
    with pytest.raises(ValueError, match="sections of one frame of 'rna' along, not of"):
        smm.tl.place(mdata, "cells", "rna", method="generator", library_key="slide")
    smm.tl.place(mdata, "cells", "rna", library_key="slide")
    mdata["rna"].obs["core"] = np.resize([f"c{i}" for i in range(20)], 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_read, "MAX_FRAMES", 10)
        with pytest.raises(ValueError, match=r"names 20 sections; coordinates of at most 10.*Leave `spatial` out"):
            smm.tl.align(mdata, links=links, spatial="spatial", library_key="core", progress_bar=False)
    smm.tl.align(mdata, links=links, library_key="core", method="coupling", progress_bar=False)
    smm.tl.place(mdata, "cells", "rna")
    assert mdata["cells"].obs["scmmgan_section_rna"].nunique() > 5


# --- slots and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_round_trip(three_aligned: md.MuData, tmp_path: Path, fmt: str):
    mdata = three_aligned
    smm.tl.place(mdata, "atac", "rna", key="mine")
    path = tmp_path / f"a.{fmt}"
    if fmt == "h5mu":
        mdata.write(path)
        back = md.read(path)
    else:
        mdata.write_zarr(path)
        back = md.read_zarr(path)
    before, after = (smm.get.coordinates(m, "atac", "rna", key="mine") for m in (mdata, back))
    pd.testing.assert_frame_equal(after, before)
    smm.tl.place(back, "atac", "rna", key="mine")
    pd.testing.assert_frame_equal(smm.get.coordinates(back, "atac", "rna", key="mine"), before)


def test_writes_only_its_slots(placed: tuple[md.MuData, np.ndarray], fingerprint):
    mdata, _ = placed
    before = fingerprint(mdata)
    smm.tl.place(mdata, "cells", "rna")
    after = fingerprint(mdata)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"cells.obsm[{SLOT}]", f"cells.obs[{SPREAD}]", ".uns[scmmgan]"}
    assert set(before) <= set(after)


def test_the_next_alignment_removes_places(placed: tuple[md.MuData, np.ndarray]):
    mdata, _ = placed
    smm.tl.place(mdata, "cells", "rna")
    smm.tl.align(mdata, links=tissue()[1], method="coupling", progress_bar=False)
    assert SLOT not in mdata["cells"].obsm
    assert SPREAD not in mdata["cells"].obs
    with pytest.raises(KeyError, match="have no place in 'rna'"):
        smm.get.coordinates(mdata, "cells", "rna")


def test_three_modalities_name_the_target(three_aligned: md.MuData):
    smm.tl.place(three_aligned, "atac", "rna", key="mine")
    smm.tl.place(three_aligned, "protein", "rna", method="plan", key="mine")
    assert "mine_spread_rna" in three_aligned["atac"].obs
    assert smm.get.coordinates(three_aligned, "atac", "rna", key="mine").attrs["method"] == "nearest"
    assert smm.get.coordinates(three_aligned, "protein", "rna", key="mine").attrs["method"] == "plan"


@pytest.mark.parametrize(
    ("change", "arguments", "kind", "message"),
    [
        (None, {"source": "rna"}, ValueError, "both 'rna'"),
        (None, {"target": "prot"}, KeyError, "No modality 'prot'"),
        (None, {"key": "other"}, KeyError, "No alignment 'other'"),
        (None, {"method": "gan"}, ValueError, "must be one of .*'nearest'"),
        (
            None,
            {"spatial": "X_umap", "method": "generator"},
            ValueError,
            "maps obsm\\['spatial'\\] along, not 'X_umap'",
        ),
        (None, {"spatial": "X_umap"}, KeyError, "No obsm key in 'rna' 'X_umap'"),
        ("gone", {}, KeyError, "No obsm key in 'rna' 'spatial'"),
        ("nan", {}, ValueError, "NaN or infinite coordinates"),
        ("taken", {}, ValueError, "has 'scmmgan_spread' already"),
    ],
)
def test_errors_before_anything_is_written(placed, fingerprint, change, arguments, kind, message):
    mdata, _ = placed
    if change == "gone":
        del mdata["rna"].obsm["spatial"]
    elif change == "nan":
        mdata["rna"].obsm["spatial"] = np.where(np.arange(N)[:, None] == 3, np.nan, mdata["rna"].obsm["spatial"])
    elif change == "taken":
        mdata["cells"].obs[SPREAD] = 1.0
    before = fingerprint(mdata)
    call = {"source": "cells", "target": "rna", **arguments}
    with pytest.raises(kind, match=message):
        smm.tl.place(mdata, call.pop("source"), call.pop("target"), **call)
    assert fingerprint(mdata) == before


def test_a_view_is_refused(placed: tuple[md.MuData, np.ndarray]):
    with pytest.raises(ValueError, match="is a view"):
        smm.tl.place(placed[0][: N + 100], "cells", "rna")


def test_a_landmark_that_is_gone(placed: tuple[md.MuData, np.ndarray], fingerprint):
    mdata, _ = placed
    kept = (mdata["rna"].obs[LANDMARK] != 3).to_numpy()
    with unpulled():
        cut = md.MuData({"cells": mdata["cells"].copy(), "rna": mdata["rna"][kept].copy()}, uns=dict(mdata.uns))
    with pytest.raises(KeyError, match="1 of 90 landmarks of the alignment 'scmmgan' have no cell left in 'rna'"):
        smm.tl.place(cut, "cells", "rna")
    # some spots less are no loss
    first = np.unique(mdata["rna"].obs[LANDMARK], return_index=True)[1]
    with unpulled():
        cut = md.MuData({"cells": mdata["cells"].copy(), "rna": mdata["rna"][first].copy()}, uns=dict(mdata.uns))
    smm.tl.place(cut, "cells", "rna", method="plan")
    np.testing.assert_allclose(cut["cells"].obs[SPREAD], under_plan(cut)[1], rtol=1e-3)
    del mdata["rna"].obs[LANDMARK]
    before = fingerprint(mdata)
    with pytest.raises(KeyError, match=r"\.obs` has no 'scmmgan_landmark' any more: run `scmmgan\.tl\.align` again"):
        smm.tl.place(mdata, "cells", "rna")
    assert fingerprint(mdata) == before


@pytest.mark.parametrize(
    ("values", "spatial", "kind", "message"),
    [
        (None, "nowhere", KeyError, "No modality has obsm\\['nowhere'\\]"),
        (None, {"cells": "spatial"}, KeyError, "No obsm key in 'cells' 'spatial'"),
        (None, {"prot": "spatial"}, KeyError, "names modalities \\['prot'\\]"),
        (np.zeros((60, 4)), "spatial", ValueError, "2 or 3 columns"),
        (np.full((60, 2), np.nan), "spatial", ValueError, "NaN or infinite"),
        (np.ones((60, 2)), "spatial", ValueError, "all cells at one place"),
        (np.full((60, 2), "x"), "spatial", ValueError, "'rna' holds text that is no number .*'x'"),
        (np.ones((60, 2), dtype=complex), "spatial", ValueError, "columns of numbers"),
    ],
)
def test_align_refuses_what_are_no_coordinates(values, spatial, kind, message):
    mdata, links, _ = tissue(n=60)
    if values is not None:
        mdata["rna"].obsm["spatial"] = values
    with pytest.raises(kind, match=message):
        smm.tl.align(mdata, links=links, spatial=spatial, max_steps=2, progress_bar=False)
    assert "scmmgan" not in mdata.uns
