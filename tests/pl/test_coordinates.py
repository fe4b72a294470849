"""`pl.coordinates`: what is drawn where, in which colours; errors. Slots are filled by hand."""

from __future__ import annotations

import mudata as md
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import scmmgan as smm
from scmmgan.pl._style import MISSING, OKABE_ITO


@pytest.fixture
def placed(aligned: md.MuData) -> md.MuData:
    """Cells of `aligned` placed at random in the tissue of three coordinates."""
    rng = np.random.default_rng(1)
    cells = aligned["cells"]
    cells.obsm["scmmgan_coordinates_spots"] = rng.random((cells.n_obs, 3)) * [18.0, 10.0, 60.0]
    cells.obs["scmmgan_spread"] = rng.random(cells.n_obs).astype(np.float32)
    aligned.uns["scmmgan"]["coordinates"] = {"cells": {"spots": {"method": "nearest", "spatial": "spatial"}}}
    return aligned


def dots(ax: Axes) -> tuple[PathCollection, PathCollection]:
    tissue, cells = (c for c in ax.collections if isinstance(c, PathCollection))
    return tissue, cells


def sorted_rows(values: np.ndarray) -> np.ndarray:
    return values[np.lexsort(values.T)]


@pytest.mark.parametrize("dims", [(0, 1), (2, 0)])
def test_cells_over_the_real_tissue(placed: md.MuData, dims: tuple[int, int]):
    ax = smm.pl.coordinates(placed, "cells", "spots", dims=dims, show=False)
    tissue, cells = dots(ax)
    np.testing.assert_allclose(tissue.get_offsets(), placed["spots"].obsm["spatial"][:, dims])
    np.testing.assert_allclose(cells.get_offsets(), placed["cells"].obsm["scmmgan_coordinates_spots"][:, dims])
    np.testing.assert_allclose(tissue.get_facecolor()[0], to_rgba(MISSING))
    np.testing.assert_allclose(cells.get_facecolor()[0], to_rgba(OKABE_ITO[0]))
    assert tissue.get_zorder() < cells.get_zorder()
    assert (ax.get_xlabel(), ax.get_ylabel()) == tuple("xyz"[i] for i in dims)
    assert not ax.yaxis_inverted()
    assert ax.get_aspect() == 1


def test_two_coordinates_are_those_of_an_image(placed: md.MuData):
    for name, slot in (("spots", "spatial"), ("cells", "scmmgan_coordinates_spots")):
        placed[name].obsm[slot] = placed[name].obsm[slot][:, :2]
    axes = plt.subplots(1, 2, sharey=True)[1]
    smm.pl.coordinates(placed, "cells", "spots", color=["A1", "spread"], ax=axes, show=False)
    assert all(ax.yaxis_inverted() for ax in axes)


@pytest.mark.parametrize("color", ["A1", "spread"])
def test_numbers_belong_to_their_cells(placed: md.MuData, color: str):
    figure = smm.pl.coordinates(placed, "cells", "spots", color=color, return_fig=True)
    _, cells = dots(figure.axes[0])
    adata = placed["cells"]
    values = adata.obs["scmmgan_spread"].to_numpy() if color == "spread" else adata[:, "A1"].X.ravel()
    expected = np.column_stack([adata.obsm["scmmgan_coordinates_spots"][:, :2], values])
    drawn = np.column_stack([cells.get_offsets(), cells.get_array()])
    np.testing.assert_allclose(sorted_rows(drawn), sorted_rows(expected), rtol=1e-6)
    # the highest are drawn last
    assert (np.diff(cells.get_array()) >= 0).all()
    bar = figure.axes[0].child_axes[0]
    assert bar.get_ylabel().replace("\n", " ") == ("units of the coordinates" if color == "spread" else "cells")


def test_labels_have_a_legend_and_gaps_are_grey(placed: md.MuData):
    ax = smm.pl.coordinates(placed, "cells", "spots", color="layer", show=False)
    _, cells = dots(ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["inner", "outer", "no value"]
    labels = placed["cells"].obs["layer"]
    colors = cells.cmap(cells.norm(np.ma.masked_invalid(cells.get_array())))
    at = pd.DataFrame(placed["cells"].obsm["scmmgan_coordinates_spots"][:, :2])
    for label, color in (("inner", OKABE_ITO[0]), ("outer", OKABE_ITO[1]), (None, MISSING)):
        mine = sorted_rows(at[(labels == label).to_numpy() if label else labels.isna().to_numpy()].to_numpy())
        drawn = sorted_rows(np.asarray(cells.get_offsets())[np.isclose(colors, to_rgba(color)).all(1)])
        np.testing.assert_allclose(drawn, mine)


def test_layer_and_several_panels(placed: md.MuData):
    placed["cells"].layers["twice"] = placed["cells"].X * 2
    axes = smm.pl.coordinates(placed, "cells", "spots", color=["A1", "layer", "spread"], layer="twice", show=False)
    assert axes.shape == (3,)
    assert [ax.get_title(loc="left") for ax in axes] == ["A1", "layer", "spread"]
    np.testing.assert_allclose(dots(axes[0])[1].get_array(), np.sort(placed["cells"][:, "A1"].X.ravel() * 2))


def test_own_axes_and_return_values(placed: md.MuData, fingerprint):
    before = fingerprint(placed)
    axes = plt.subplots(1, 2)[1]
    found = smm.pl.coordinates(placed, "cells", "spots", color=["A1", "A23"], ax=axes, show=False)
    assert list(found) == list(axes)
    assert isinstance(smm.pl.coordinates(placed, "cells", "spots", return_fig=True), Figure)
    assert isinstance(smm.pl.coordinates(placed, "cells", "spots", ax=axes[0], show=False), Axes)
    assert smm.pl.coordinates(placed, "cells", "spots", show=True) is None
    assert fingerprint(placed) == before


@pytest.fixture
def in_sections(placed: md.MuData) -> md.MuData:
    """The tissue in sections "b" and "a", all over one another, and every third cell placed in "a"."""
    placed["spots"].obs["slide"] = pd.Categorical(np.repeat(["a", "b"], 30), categories=["b", "none", "a"])
    n = placed["cells"].n_obs
    placed["cells"].obs["scmmgan_section_spots"] = pd.Categorical(np.resize(["a", "b", "b"], n))
    used = {"method": "nearest", "spatial": "spatial", "library_key": "slide"}
    placed.uns["scmmgan"]["coordinates"] = {"cells": {"spots": used}}
    return placed


def test_one_panel_for_each_section(in_sections: md.MuData):
    axes = smm.pl.coordinates(in_sections, "cells", "spots", color=["A1", "layer"], show=False)
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == ["A1, b", "A1, a", "layer, b", "layer, a"]
    real, cells = in_sections["spots"], in_sections["cells"]
    for ax, name in zip(axes, ["b", "a"]):
        tissue, drawn = dots(ax)
        own = (real.obs["slide"] == name).to_numpy()
        np.testing.assert_allclose(tissue.get_offsets(), real.obsm["spatial"][own][:, :2])
        mine = (cells.obs["scmmgan_section_spots"] == name).to_numpy()
        values = [*cells.obsm["scmmgan_coordinates_spots"][mine][:, :2].T, cells[mine, "A1"].X.ravel()]
        found = np.column_stack([drawn.get_offsets(), drawn.get_array()])
        np.testing.assert_allclose(sorted_rows(found), sorted_rows(np.column_stack(values)), rtol=1e-6)
    # on one scale of colours and of length
    assert len({dots(ax)[1].get_clim() for ax in axes[:2]}) == 1
    assert len({(round(np.ptp(ax.get_xlim()), 6), round(np.ptp(ax.get_ylim()), 6)) for ax in axes}) == 1


def test_a_section_that_is_chosen(in_sections: md.MuData):
    ax = smm.pl.coordinates(in_sections, "cells", "spots", library_id="a", show=False)
    assert isinstance(ax, Axes)
    assert ax.get_title(loc="left") == "cells placed in spots, a"
    assert [len(of.get_offsets()) for of in dots(ax)] == [30, 15]
    in_sections["spots"].obs["renamed"] = in_sections["spots"].obs.pop("slide")
    assert len(smm.pl.coordinates(in_sections, "cells", "spots", library_key="renamed", show=False)) == 2
    with pytest.raises(KeyError, match="for `library_key` 'slide'"):
        smm.pl.coordinates(in_sections, "cells", "spots", show=False)
    in_sections["spots"].obs["other"] = np.repeat(["x", "a"], 30)
    with pytest.raises(KeyError, match=r"placed in sections \['b'\] that obs\['other'\] of 'spots' does not have"):
        smm.pl.coordinates(in_sections, "cells", "spots", library_key="other", show=False)
    with pytest.raises(KeyError, match="No section 'c'"):
        smm.pl.coordinates(in_sections, "cells", "spots", library_key="renamed", library_id="c", show=False)


def test_cells_that_were_placed_without_sections(placed: md.MuData):
    placed["spots"].obs["slide"] = np.repeat(["a", "b"], 30)
    for arguments in ({"library_key": "slide"}, {"library_id": "a"}):
        with pytest.raises(ValueError, match=r"placed in 'spots' without sections. Run `scmmgan.tl.place"):
            smm.pl.coordinates(placed, "cells", "spots", show=False, **arguments)
    with pytest.raises(ValueError, match="42 panels are too many"):
        smm.pl.coordinates(placed, "cells", "spots", color=["A1"] * 42, show=False)


def test_nothing_overlaps(placed: md.MuData):
    """Titles, numbers, names of axes, legends and colour bars of neighbouring panels."""
    placed["cells"].obs["population"] = [f"population with a long name {i % 7}" for i in range(placed["cells"].n_obs)]
    figure = smm.pl.coordinates(placed, "cells", "spots", color=["A1", "population", "spread"], return_fig=True)
    figure.canvas.draw()
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    boxes = [ax.get_tightbbox() for ax in panels]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert not (a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1)
    for ax in panels:
        box, page = ax.get_tightbbox(), figure.bbox.padded(1)
        assert all(page.contains(*corner) for corner in box.corners())
        if legend := ax.get_legend():
            assert legend.get_window_extent().x0 >= ax.get_window_extent().x1


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"color": "A2"}, KeyError, "neither a feature of 'cells'.*Close matches: 'A23'"),
        ({"color": "A1", "layer": "raw"}, KeyError, "No layer 'raw'"),
        ({"color": []}, ValueError, "Nothing to draw"),
        ({"ncols": 0}, ValueError, "ncols is 1 or more"),
        ({"dims": (0, 3)}, ValueError, "from 0 to 2"),
        ({"dims": (1, 1)}, ValueError, "two different"),
        ({"dims": (0,)}, ValueError, "two different"),
        ({"key": "other"}, KeyError, "No alignment 'other'"),
        ({"target": "cells", "source": "spots"}, KeyError, "have no place in 'cells'"),
    ],
)
def test_errors(placed: md.MuData, arguments: dict, kind: type[Exception], message: str):
    call = {"source": "cells", "target": "spots", **arguments}
    with pytest.raises(kind, match=message):
        smm.pl.coordinates(placed, call.pop("source"), call.pop("target"), show=False, **call)


def test_coordinates_that_are_gone(placed: md.MuData):
    del placed["spots"].obsm["spatial"]
    with pytest.raises(KeyError, match="no 'spatial' any more"):
        smm.pl.coordinates(placed, "cells", "spots", show=False)
