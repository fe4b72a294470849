"""Features in space, read back from the artists."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from scmmgan import get, pl
from scmmgan.data.keys import Keys


def draw(mdata, features, **kwargs):
    return pl.spatial_map(mdata, features, **{"source": "spots", "target": "cells", "show": False} | kwargs)


def bar_of(ax):
    (bar,) = ax.child_axes
    return bar


def heads(axes):
    """Titles, lines that were wrapped joined again; a second sentence begins with "as"."""
    return [ax.get_title(loc="left").replace("\n", " ") for ax in axes]


def said(ax):
    """Text of a panel without values."""
    assert not ax.collections
    assert not ax.images
    assert not ax.child_axes
    assert not any(spine.get_visible() for spine in ax.spines.values())
    (text,) = ax.texts
    return text.get_text().replace("\n", " ")


def column(mdata, *names):
    return mdata["spots"][:, list(names)].X.toarray().mean(axis=1)


def test_spots_lie_and_shine_as_in_the_data(aligned):
    axes = draw(aligned, "G0")
    assert axes.shape == (1, 2)
    measured, mapped = (ax.collections[0] for ax in axes[0])
    for spots in (measured, mapped):
        np.testing.assert_array_equal(spots.get_offsets(), aligned["spots"].obsm["spatial"][:, :2])
        assert np.isfinite(spots.get_array()).all()
        assert not np.ma.getmaskarray(spots.get_array()).any()
        assert spots.get_rasterized()
    np.testing.assert_allclose(measured.get_array(), column(aligned, "G0"))
    np.testing.assert_allclose(mapped.get_array(), aligned["spots"].obsm["scmmgan_cells"][:, 3], rtol=1e-4, atol=1e-5)
    assert heads(axes[0]) == ["measured in spots", "mapped to cells"]
    assert axes[0, 0].get_ylabel() == "G0"
    assert [bar_of(ax).get_xlabel() for ax in axes[0]] == ["spots: X", "cells: X"]


def test_panels_share_the_map_as_in_images(aligned):
    axes = draw(aligned, ["G0", "A1", "A-none"])
    assert {ax.get_xlim() for ax in axes.flat} == {(-2.0, 20.0)}
    assert {ax.get_ylim() for ax in axes.flat} == {(12.0, -2.0)}
    assert {ax.get_aspect() for ax in axes.flat} == {1.0}
    assert all(len(ax.get_xticks()) == len(ax.get_yticks()) == 0 for ax in axes.flat)


def test_spot_size_is_the_spacing(aligned):
    spots = draw(aligned, "G0")[0, 0].collections[0]
    np.testing.assert_allclose([spots.get_widths(), spots.get_heights()], 2.0)
    spots = draw(aligned, "G0", basis="flat")[0, 0].collections[0]
    np.testing.assert_allclose(spots.get_widths(), 6.0)
    spots = draw(aligned, "G0", size=0.5)[0, 0].collections[0]
    np.testing.assert_allclose(spots.get_widths(), 0.5)


def test_drawn_size_is_in_units_of_the_coordinates(aligned):
    axes = draw(aligned, "G0", size=2.0)
    figure = axes[0, 0].figure
    figure.canvas.draw()
    spots = axes[0, 0].collections[0]
    radius = spots.get_transforms()[0][0, 0] * spots.get_transform().get_matrix()[0, 0]
    # 22 units from edge to edge
    np.testing.assert_allclose(2 * radius, 2.0 * axes[0, 0].get_window_extent().width / 22, rtol=1e-6)


def test_limits_are_robust_and_say_so(aligned):
    measured, mapped = draw(aligned, "G0")[0]
    values = aligned["spots"].obsm["scmmgan_cells"][:, 3]
    np.testing.assert_allclose(mapped.collections[0].get_clim(), np.percentile(values, [1, 99]), rtol=1e-5)
    assert bar_of(mapped)._colorbar.extend == "both"
    assert measured.collections[0].get_clim()[0] == 0
    assert bar_of(measured)._colorbar.extend in ("max", "neither")


def test_rare_and_constant_features(aligned):
    values = np.zeros((60, 8), dtype=np.float32)
    values[0, 0] = 3  # one spot of 60 lies above the 99th percentile only by interpolation
    aligned["spots"].X = values
    rare = draw(aligned, "G0")[0, 0].collections[0]
    assert rare.get_clim()[1] > 0
    constant = draw(aligned, "G1")[0, 0].collections[0].get_clim()
    assert constant[0] < 0 < constant[1]


def test_linked_features(aligned):
    axes = draw(aligned, ["A1", "A23"])
    np.testing.assert_allclose(axes[0, 0].collections[0].get_array(), column(aligned, "G1"))
    assert heads(axes[0]) == ["measured in spots as G1", "mapped to cells"]
    np.testing.assert_allclose(axes[1, 0].collections[0].get_array(), column(aligned, "G2", "G3"))
    assert heads(axes[1]) == ["as the mean of G2, G3", ""]
    assert [row[0].get_ylabel() for row in axes] == ["A1", "A23"]


def test_table_of_links(aligned):
    links = pd.DataFrame({"cells": ["A-none", "A1"], "spots": ["G5", "G6"], "weight": [1.0, 1.0]})
    aligned.uns["scmmgan"]["params"]["links"] = links
    axes = draw(aligned, ["A-none", "A23"])
    np.testing.assert_allclose(axes[0, 0].collections[0].get_array(), column(aligned, "G5"))
    assert said(axes[1, 0]) == "not measured in spots"


@pytest.mark.parametrize("links", ["None", "auto", "var_names"])
def test_without_a_column_of_links_equal_names_count(aligned, links):
    aligned.uns["scmmgan"]["params"]["links"] = links
    axes = draw(aligned, ["G0", "A1"])
    np.testing.assert_allclose(axes[0, 0].collections[0].get_array(), column(aligned, "G0"))
    assert said(axes[1, 0]) == "not measured in spots"


def test_panels_of_what_one_side_lacks_say_so(aligned):
    axes = draw(aligned, ["A-none", "G7"])
    assert said(axes[0, 0]) == "not measured in spots"
    assert said(axes[1, 1]) == "not measured in cells"
    # the row keeps its name, the columns their heads
    assert axes[0, 0].get_ylabel() == "A-none"
    assert axes[0, 0].axison
    assert heads(axes[0]) == ["measured in spots", "mapped to cells"]
    assert len(axes[0, 1].collections) == len(axes[1, 0].collections) == 1


def test_layer_that_was_read(aligned):
    aligned.uns["scmmgan"]["params"]["layer"] = {"spots": "halved"}
    np.testing.assert_allclose(draw(aligned, "G0")[0, 0].collections[0].get_array(), column(aligned, "G0") / 2)
    aligned.uns["scmmgan"]["params"]["layer"] = "halved"
    np.testing.assert_allclose(draw(aligned, "G0")[0, 0].collections[0].get_array(), column(aligned, "G0") / 2)
    aligned.uns["scmmgan"]["params"]["layer"] = {"cells": "clr"}
    np.testing.assert_allclose(draw(aligned, "G0")[0, 0].collections[0].get_array(), column(aligned, "G0"))
    aligned.uns["scmmgan"]["params"]["layer"] = {"spots": "gone"}
    with pytest.raises(KeyError, match=r"read layer 'gone' of 'spots'.*\['halved'\]"):
        draw(aligned, "G0")


def test_labels_of_the_source(aligned):
    left, right = draw(aligned, "layer")[0]
    spots = left.collections[0]
    spots.update_scalarmappable()
    np.testing.assert_array_equal(spots.get_array(), np.repeat([0, 1], 30))
    legend = right.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["outer", "inner"]
    colors = [to_hex(face) for face in spots.get_facecolors()[[0, -1]]]
    assert colors == [handle.get_color().lower() for handle in legend.legend_handles]
    assert heads([left, right]) == ["", ""]
    assert len(left.child_axes) == 0


def test_labels_with_gaps_are_grey(aligned):
    aligned["spots"].obs["zone"] = np.resize(np.array(["a", None], dtype=object), 60)
    left, right = draw(aligned, "zone")[0]
    spots = left.collections[0]
    spots.update_scalarmappable()
    assert {to_hex(face) for face in spots.get_facecolors()[1::2]} == {"#d9d9d9"}
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["a", "no value"]


def test_numbers_of_the_source(aligned):
    left, right = draw(aligned, "depth")[0]
    np.testing.assert_allclose(left.collections[0].get_array(), aligned["spots"].obs["depth"])
    assert bar_of(left).get_xlabel() == "depth"
    assert said(right) == ""


def test_cells_without_coordinates_are_left_out(aligned):
    aligned["spots"].obsm["spatial"][:5, 0] = np.nan
    for ax in draw(aligned, "G0")[0]:
        np.testing.assert_array_equal(ax.collections[0].get_offsets(), aligned["spots"].obsm["spatial"][5:, :2])
        assert len(ax.collections[0].get_array()) == 55
        assert np.isfinite(ax.get_xlim()).all()


@pytest.mark.parametrize(("n_keys", "flat"), [pytest.param(1, False, marks=pytest.mark.slow), (2, True), (4, False)])
def test_grid_fits_the_page(aligned, with_uncertainty, n_keys, flat):
    if flat:
        aligned["spots"].obsm["spatial"][:, 1] /= 8
    with_uncertainty()
    keys = ["scmmgan", *(again(aligned, f"method{i}") for i in range(1, n_keys))]
    aligned["spots"].obs["a_long_name_without_gaps"] = 1.0
    names = ["A-none", "A23", "a_long_name_without_gaps", "depth", "G7"]
    figure = draw(aligned, names, keys=keys, return_fig=True)
    assert figure.get_figwidth() * 25.4 < 170.1
    figure.canvas.draw()
    panels = [ax for ax in figure.axes if ax.collections or ax.texts]
    boxes = [ax.get_tightbbox() for ax in panels]
    for i, one in enumerate(boxes):
        assert one.x0 >= -0.5  # half a pixel
        assert one.x1 <= figure.bbox.x1 + 0.5
        assert one.y0 >= -0.5
        assert one.y1 <= figure.bbox.y1 + 0.5
        for other in boxes[:i]:
            # heads, panels, bars and their names keep clear of each other
            assert not one.padded(-1).overlaps(other.padded(-1))


# --- several alignments and uncertainty --------------------------------------------------------------------------


def again(mdata, name: str, factor: float = 1.5) -> str:
    """A further alignment: the same one, its mapped values farther from the mean."""
    mdata.uns[name] = copy.deepcopy(mdata.uns["scmmgan"])
    for adata in mdata.mod.values():
        adata.obsm[f"X_{name}"] = adata.obsm["X_scmmgan"] * factor
    return name


@pytest.fixture
def with_uncertainty(aligned, monkeypatch):
    """As `tl.uncertainty` leaves it: `var` columns, NaN for a rarely seen feature, and `get.uncertainty`."""

    def run(key="scmmgan", source=None):
        aligned["cells"].var[Keys(key).uncertainty("coupling", source)] = [0.5, np.nan, 0.5, 0.5]
        return np.random.default_rng(1).random(60)

    def fake(mdata, source, target, *, features, key):
        found = get.mapped(mdata, source, target, features=features, key=key)
        values = np.repeat(np.random.default_rng(1).random(60)[:, None], len(features), axis=1)
        found.X = values * 7
        # a cell that is coupled with several kinds of cells
        values[0, [name == "A1" for name in features]] = 1.5
        found.layers["relative"] = values
        return found

    monkeypatch.setattr(get, "uncertainty", fake, raising=False)
    return run


def test_further_alignments_share_the_scale_of_a_feature(aligned):
    again(aligned, "other")
    axes = draw(aligned, ["G0", "A1"], keys=["scmmgan", "other"])
    assert axes.shape == (2, 3)
    assert heads(axes[0]) == ["measured in spots", "mapped to cells (scmmgan)", "mapped to cells (other)"]
    assert heads(axes[1]) == ["as G1", "", ""]
    for name, row in zip(["G0", "A1"], axes):
        mapped = [
            get.mapped(aligned, "spots", "cells", features=[name], key=key).X[:, 0] for key in ("scmmgan", "other")
        ]
        for ax, values in zip(row[1:], mapped):
            np.testing.assert_allclose(ax.collections[0].get_array(), values, rtol=1e-5)
            np.testing.assert_allclose(ax.collections[0].get_clim(), np.percentile(mapped, [1, 99]), rtol=1e-5)
    assert axes[0, 1].collections[0].get_clim() != axes[1, 1].collections[0].get_clim()
    assert axes[0, 0].collections[0].get_clim() != axes[0, 1].collections[0].get_clim()


def test_alignments_of_different_layers_do_not_share_it(aligned):
    again(aligned, "other")
    aligned.uns["other"]["params"]["layer"] = {"cells": "clr"}
    axes = draw(aligned, "G0", keys=["scmmgan", "other"])
    assert [bar_of(ax).get_xlabel() for ax in axes[0, 1:]] == ["cells: X", "cells: clr"]
    values = get.mapped(aligned, "spots", "cells", features=["G0"], key="other").X
    np.testing.assert_allclose(axes[0, 2].collections[0].get_clim(), np.percentile(values, [1, 99]), rtol=1e-5)


def test_units_of_smoothed_layers_and_representations(aligned):
    params = aligned.uns["scmmgan"]["params"]
    params["smooth"] = {"spots": 3, "cells": 3}
    assert [bar_of(ax).get_xlabel() for ax in draw(aligned, "G0")[0]] == ["spots: X", "cells: X, smoothed"]
    params["use_rep"] = {"spots": "None", "cells": "X_lsi"}
    assert bar_of(draw(aligned, "G0")[0, 1]).get_xlabel() == "cells: X_lsi"


def test_first_of_several_says_what_was_measured(aligned):
    again(aligned, "other")
    names = np.array(["spots", "cells"], dtype=object)
    aligned.uns["other"]["params"] = {"links": "None", "layer": {"spots": "halved"}, "modalities": names}
    axes = draw(aligned, ["A1", "G0"], keys=["other", "scmmgan"])
    assert said(axes[0, 0]) == "not measured in spots"
    np.testing.assert_allclose(axes[1, 0].collections[0].get_array(), column(aligned, "G0") / 2)
    assert bar_of(axes[1, 0]).get_xlabel() == "spots: halved"


@pytest.mark.parametrize("source", [None, "spots"])
def test_uncertainty_is_relative_from_0_to_1(aligned, with_uncertainty, source):
    expected = with_uncertainty(source=source)
    axes = draw(aligned, ["G0", "A23", "G7", "depth", "A1"])
    assert axes.shape == (5, 3)
    assert heads(axes[0]) == ["measured in spots", "mapped to cells", "uncertainty"]
    spots = axes[0, 2].collections[0]
    np.testing.assert_allclose(spots.get_array(), expected)
    assert spots.get_clim() == (0, 1)
    assert bar_of(axes[0, 2]).get_xlabel() == "variance left / all"
    assert said(axes[1, 2]) == "too rarely seen to score"
    assert said(axes[2, 2]) == "not measured in cells"
    assert said(axes[3, 2]) == ""
    assert [bar_of(axes[row, 2])._colorbar.extend for row in (0, 4)] == ["neither", "max"]
    assert axes[4, 2].collections[0].get_clim() == (0, 1)
    assert draw(aligned, "G0", uncertainty=False).shape == (1, 2)


def test_uncertainty_stands_beside_its_alignment(aligned, with_uncertainty):
    again(aligned, "other")
    with_uncertainty("other")
    axes = draw(aligned, "G0", keys=["scmmgan", "other"])
    heads_ = ["measured in spots", "mapped to cells (scmmgan)", "mapped to cells (other)", "uncertainty"]
    assert heads(axes[0]) == heads_


def test_uncertainty_that_was_not_computed_is_left_out(aligned, caplog):
    with caplog.at_level("INFO", logger="scmmgan"):
        assert draw(aligned, ["G0", "A1"]).shape == (2, 2)
    (line,) = caplog.messages
    assert "scmmgan.tl.uncertainty(mdata, 'spots', 'cells')" in line
    caplog.clear()
    # of another kind: no variance of each cell
    aligned["cells"].var[Keys().uncertainty("noise")] = aligned["cells"].var[Keys().uncertainty()] = 0.5
    assert draw(aligned, "G0").shape == (1, 2)
    caplog.clear()
    with caplog.at_level("INFO", logger="scmmgan"):
        draw(aligned, "G0", uncertainty=False)
    assert caplog.messages == []


# --- compositions ------------------------------------------------------------------------------------------------


def test_compositions_have_a_panel_for_each_label(aligned):
    """Where most cells have no single label; else the labels are drawn."""
    slot, spots = "scmmgan_cells_kind", aligned["spots"]
    shares = np.random.default_rng(0).dirichlet(np.ones(4), 60).astype(np.float32)
    spots.obsm[slot] = shares[:, :3]
    spots.obs[slot] = pd.Categorical([None] * 60, categories=["B", "T", "NK"])
    aligned.uns["scmmgan"]["transfer"] = {"spots": {slot: np.array(["B", "T", "NK"], dtype=object)}}
    axes = draw(aligned, ["G0", slot])
    assert axes.shape == (3, 2)
    assert heads(axes[1:].ravel()) == ["B", "T", "NK", "unassigned"]
    assert axes[1, 0].get_ylabel() == slot
    for ax, values in zip(axes[1:].ravel(), shares.T):
        np.testing.assert_allclose(ax.collections[0].get_array(), values, atol=1e-6)
        np.testing.assert_allclose(ax.collections[0].get_clim(), (0, shares[:, :3].max()))
    spots.obs[slot] = pd.Categorical(np.resize(["B", "T", "NK"], 60))
    assert draw(aligned, [slot]).shape == (1, 2)


# --- over the tissue image ---------------------------------------------------------------------------------------

SCALE = 10.0  # pixels per unit: spots are 20 pixels apart


@pytest.fixture
def with_image(aligned):
    """Spots over a black image, white 14 × 14 pixels around each spot's centre."""
    xy = aligned["spots"].obsm["spatial"][:, :2]
    image = np.zeros((140, 220, 3))
    for x, y in np.rint(xy * SCALE).astype(int):
        image[max(y - 7, 0) : y + 8, max(x - 7, 0) : x + 8] = 1
    entry = {
        "images": {"lowres": image[::2, ::2], "hires": image},
        "scalefactors": {"tissue_hires_scalef": SCALE, "tissue_lowres_scalef": SCALE / 2, "spot_diameter_fullres": 0.8},
    }
    aligned["spots"].uns["spatial"] = {"section": entry}
    return aligned


def rendered(ax):
    """The picture as pixels, rows × columns × RGB."""
    figure = ax.figure
    figure.set_dpi(200)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def around(pixels, ax, xy, offset):
    """Rendered colours at an offset (units of the coordinates) of each spot, (spots, 3), and whether it is in the map."""
    places = xy + offset
    x, y = np.rint(ax.transData.transform(places)).astype(int).T
    inside = ((places > [ax.get_xlim()[0], ax.get_ylim()[1]]) & (places < [ax.get_xlim()[1], ax.get_ylim()[0]])).all(1)
    return pixels[len(pixels) - 1 - y.clip(0, len(pixels) - 1), x.clip(0, pixels.shape[1] - 1)], inside


@pytest.mark.parametrize("kind", ["hires", "lowres"])
def test_image_and_spots_lie_on_each_other(with_image, kind):
    if kind == "lowres":
        del with_image["spots"].uns["spatial"]["section"]["images"]["hires"]
    ax = draw(with_image, "G0")[0, 0]
    xy = with_image["spots"].obsm["spatial"][:, :2]
    spots = ax.collections[0]
    np.testing.assert_array_equal(spots.get_offsets(), xy)
    np.testing.assert_allclose(spots.get_widths(), 0.8)
    assert ax.images[0].get_zorder() < spots.get_zorder()
    # a spot has a radius of .4, its white square half a width of .75, the next spot is 2 away
    half, pixels = 0.55, rendered(ax)
    for offset in ([half, 0], [-half, 0], [0, half], [0, -half], [half, half], [-half, -half]):
        colors, inside = around(pixels, ax, xy, np.array(offset))
        inside &= (xy + offset >= 0).all(1)  # the image begins at 0
        assert inside.sum() >= 40
        assert (colors[inside] > 200).all()
    for offset in ([1.0, 0], [0, 1.0], [1.0, 1.0]):
        colors, inside = around(pixels, ax, xy, np.array(offset))
        inside &= (xy + offset < [21, 13]).all(1)
        assert inside.sum() >= 40
        assert (colors[inside] < 60).all()


def test_image_is_cut_to_the_map(with_image):
    entry = with_image["spots"].uns["spatial"]["section"]
    wide = np.zeros((1400, 2200, 3))
    wide[:140, :220] = entry["images"]["hires"]
    entry["images"]["hires"] = wide
    ax = draw(with_image, "G0")[0, 0]
    shown = ax.images[0].get_array()
    assert shown.shape[:2] <= (140, 220)
    np.testing.assert_allclose(ax.get_xlim(), (-0.8, 18.8))
    left, right, bottom, top = ax.images[0].get_extent()
    np.testing.assert_allclose([left, top], -0.05)
    np.testing.assert_allclose([(right - left) / shown.shape[1], (bottom - top) / shown.shape[0]], 1 / SCALE)


def test_grey_images_and_no_image(with_image):
    entry = with_image["spots"].uns["spatial"]["section"]
    entry["images"]["hires"] = entry["images"]["hires"][..., 0]
    assert len(draw(with_image, "G0")[0, 0].images) == 1
    axes = draw(with_image, "G0", image=False)
    assert not axes[0, 0].images
    np.testing.assert_allclose(axes[0, 0].collections[0].get_widths(), 0.8)
    np.testing.assert_allclose(draw(with_image, "G0", size=1.5)[0, 0].collections[0].get_widths(), 1.5)
    # other coordinates are none of the image's
    flat = draw(with_image, "G0", basis="flat")[0, 0]
    assert not flat.images
    np.testing.assert_allclose(flat.collections[0].get_widths(), 6.0)
    # empty panels and legends stay white
    axes = draw(with_image, ["A-none", "layer"])
    assert [len(ax.images) for ax in axes.flat] == [0, 1, 1, 0]


def test_one_of_several_libraries(with_image):
    stored = with_image["spots"].uns["spatial"]
    stored["second"] = copy.deepcopy(stored["section"])
    stored["second"]["scalefactors"]["spot_diameter_fullres"] = 0.5
    with pytest.raises(ValueError, match=r"several libraries: \['section', 'second'\].*`library_id`"):
        draw(with_image, "G0")
    np.testing.assert_allclose(draw(with_image, "G0", library_id="second")[0, 0].collections[0].get_widths(), 0.5)
    with pytest.raises(KeyError, match=r"No library 'third'.*\['section', 'second'\]"):
        draw(with_image, "G0", library_id="third")
    with_image["spots"].obs["library_id"] = np.repeat(["section", "second"], [45, 15])
    axes = draw(with_image, ["G0", "depth"], library_id="second")
    for ax in (axes[0, 0], axes[0, 1], axes[1, 0]):
        np.testing.assert_array_equal(ax.collections[0].get_offsets(), with_image["spots"].obsm["spatial"][45:, :2])
    mapped = with_image["spots"].obsm["scmmgan_cells"][45:, 3]
    np.testing.assert_allclose(axes[0, 1].collections[0].get_array(), mapped, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(axes[0, 1].collections[0].get_clim(), np.percentile(mapped, [1, 99]), rtol=1e-5)
    with pytest.raises(ValueError, match=r"`library_id` chooses.*'X_flat'"):
        draw(with_image, "G0", basis="flat", library_id="second")


# --- sections ----------------------------------------------------------------------------------------------------


@pytest.fixture
def in_sections(with_image):
    """Section "first" is the fixture's, "second" its last 15 spots, moved and turned, over an image of its own."""
    spots = with_image["spots"]
    spots.obs["slide"] = pd.Categorical(np.repeat(["first", "second"], [45, 15]), ["second", "unused", "first"])
    spots.obsm["spatial"][45:, :2] = spots.obsm["spatial"][45:, 1::-1] + [3, 1]
    first = spots.uns["spatial"].pop("section")
    second = copy.deepcopy(first)
    second["images"] = {"hires": np.ones((260, 220, 3))}
    second["scalefactors"]["spot_diameter_fullres"] = 0.5
    spots.uns["spatial"] |= {"first": first, "second": second}
    return with_image


ROWS = {"second": np.arange(45, 60), "first": np.arange(45)}


def test_one_row_for_each_section(in_sections, with_uncertainty):
    expected = with_uncertainty()
    axes = draw(in_sections, ["G0", "layer"])
    assert axes.shape == (4, 3)
    assert [row[0].get_ylabel() for row in axes] == ["G0\nsecond", "G0\nfirst", "layer\nsecond", "layer\nfirst"]
    xy = in_sections["spots"].obsm["spatial"][:, :2]
    mapped = in_sections["spots"].obsm["scmmgan_cells"][:, 3]
    for row, (name, rows) in zip(axes, ROWS.items()):
        for ax, values in zip(row, (column(in_sections, "G0"), mapped, expected)):
            np.testing.assert_array_equal(ax.collections[0].get_offsets(), xy[rows])
            np.testing.assert_allclose(ax.collections[0].get_array(), values[rows], rtol=1e-4, atol=1e-5)
            assert ax.images[0].get_array().min() == (1 if name == "second" else 0)
        np.testing.assert_allclose(row[0].collections[0].get_widths(), 0.5 if name == "second" else 0.8)
    # one scale of colours for a feature, and of length for all
    for of in axes[:2].T:
        assert of[0].collections[0].get_clim() == of[1].collections[0].get_clim()
    np.testing.assert_allclose(axes[0, 1].collections[0].get_clim(), np.percentile(mapped, [1, 99]), rtol=1e-5)
    assert len({round(float(np.ptp(ax.get_xlim())), 6) for ax in axes[:, 0]}) == 1
    assert len({round(float(np.ptp(ax.get_ylim())), 6) for ax in axes[:, 0]}) == 1
    assert [ax.get_legend() is not None for ax in axes[:, 1]] == [False, False, True, False]
    assert heads(axes[1]) == ["", "", ""]


@pytest.mark.parametrize("name", ["sample", "batch", "region", "fov"])
@pytest.mark.parametrize("chosen", ["second", ["second"]])
def test_a_section_is_drawn_alone(in_sections, name, chosen):
    spots = in_sections["spots"]
    spots.obs[name] = spots.obs.pop("slide").astype(str).to_numpy()
    axes = draw(in_sections, "G0", library_id=chosen)
    np.testing.assert_array_equal(axes[0, 0].collections[0].get_offsets(), spots.obsm["spatial"][45:, :2])
    with pytest.raises(KeyError, match=rf"No cells of 'third' in .*obs\['{name}'\].*Found: \['first', 'second'\]"):
        draw(in_sections, "G0", library_id="third")


def test_two_of_three_sections(in_sections):
    spots = in_sections["spots"]
    spots.obs["slide"] = np.repeat(["first", "second", "third"], 20)
    axes = draw(in_sections, "G0", library_id=["first", "third"])
    assert [row[0].get_ylabel() for row in axes] == ["G0\nfirst", "G0\nthird"]
    assert [len(row[0].images) for row in axes] == [1, 0]
    np.testing.assert_array_equal(axes[1, 0].collections[0].get_offsets(), spots.obsm["spatial"][40:, :2])


def test_columns_that_are_named_or_disagree(in_sections, caplog):
    spots = in_sections["spots"]
    spots.obs["other"] = np.resize(["first", "second"], 60)
    with pytest.raises(ValueError, match=r"\['slide', 'other'\] of 'spots'.*disagree"):
        draw(in_sections, "G0", library_id="first")
    assert (
        len(draw(in_sections, "G0", library_id="first", library_key="slide")[0, 0].collections[0].get_offsets()) == 45
    )
    # the column of the alignment
    in_sections.uns["scmmgan"]["params"]["library_key"] = {"spots": "other"}
    assert len(draw(in_sections, "G0", library_id="first")[0, 0].collections[0].get_offsets()) == 30
    # a column that names no picture
    caplog.clear()
    spots.obs["plate"] = np.resize(["p", "q", "r"], 60)
    axes = draw(in_sections, "G0", library_key="plate")
    assert axes.shape == (3, 2)
    assert not axes[0, 0].images
    assert "No image of `uns['spatial']` (first, second) is named like a section of 'spots' (p, q, r)" in caplog.text
    # on other coordinates, too
    assert draw(in_sections, "G0", library_key="plate", basis="flat", library_id="q").shape == (1, 2)


def test_one_picture_of_two_sections(in_sections):
    """Nothing but `library_id` says that the column is one of sections."""
    del in_sections["spots"].uns["spatial"]["second"]
    axes = draw(in_sections, "G0", library_id="first")
    assert len(axes[0, 0].collections[0].get_offsets()) == 45
    in_sections["spots"].obs["other"] = np.resize(["first", "x"], 60)
    with pytest.raises(ValueError, match=r"\['slide', 'other'\] of 'spots' all hold 'first'.*`library_key`"):
        draw(in_sections, "G0", library_id="first")


def test_nothing_says_which_cells_are_of_which(in_sections, caplog):
    slide = in_sections["spots"].obs.pop("slide")
    with pytest.raises(ValueError, match=r"several libraries.*name the obs column.*`library_key`"):
        draw(in_sections, "G0")
    assert len(draw(in_sections, "G0", library_id="first", image=False)[0, 0].collections[0].get_offsets()) == 60
    assert "No obs column of 'spots' holds 'first': all cells are drawn on its image." in caplog.text
    del in_sections["spots"].uns["spatial"]
    in_sections["spots"].obs["sample"] = slide
    in_sections["spots"].obsm["spatial"][45:, :2] = in_sections["spots"].obsm["spatial"][:15, :2]
    caplog.clear()
    assert draw(in_sections, "G0").shape == (1, 2)
    assert "`library_key='sample'`" in caplog.text or "lie exactly where another one does" in caplog.text


def test_cells_without_a_section_and_too_many_rows(in_sections, caplog):
    spots = in_sections["spots"]
    spots.obs["slide"] = spots.obs["slide"].where(np.arange(60) > 4)
    axes = draw(in_sections, "G0")
    assert [len(row[0].collections[0].get_offsets()) for row in axes] == [15, 40]
    assert "5 cells of 'spots' have no section in obs['slide']: they are not drawn." in caplog.text
    spots.obs["core"] = np.resize([f"c{i}" for i in range(15)], 60)
    with pytest.raises(ValueError, match=r"3 features in 15 sections are too many rows.*`library_id`"):
        draw(in_sections, ["G0", "G1", "G2"], library_key="core")


def test_sections_fit_the_page(in_sections, with_uncertainty):
    with_uncertainty()
    figure = draw(in_sections, ["A-none", "A23", "layer"], return_fig=True)
    assert figure.get_figwidth() * 25.4 < 170.1
    figure.canvas.draw()
    boxes = [ax.get_tightbbox() for ax in figure.axes if ax.collections or ax.texts]
    for i, one in enumerate(boxes):
        assert figure.bbox.padded(0.5).fully_containsx(one.x0)
        for other in boxes[:i]:
            assert not one.padded(-1).overlaps(other.padded(-1))


def test_images_that_do_not_fit(with_image):
    factors = with_image["spots"].uns["spatial"]["section"]["scalefactors"]
    factors["tissue_hires_scalef"] = 1000.0
    del factors["tissue_lowres_scalef"]
    with_image["spots"].obsm["spatial"] = with_image["spots"].obsm["spatial"] + 5
    with pytest.raises(ValueError, match=r"image ends at \[0\.2, 0\.1\].*scale factor 1000.*`image=False`"):
        draw(with_image, "G0")
    del factors["tissue_hires_scalef"]
    with pytest.raises(
        KeyError, match=r"'hires'.*'section'.*'tissue_hires_scalef'.*spot_diameter_fullres.*`image=False`"
    ):
        draw(with_image, "G0")
    assert draw(with_image, "G0", image=False).shape == (1, 2)


def test_other_contents_of_uns_spatial(aligned):
    aligned["spots"].uns["spatial"] = {"metadata": "text"}
    assert not draw(aligned, "G0")[0, 0].images
    aligned["spots"].uns["spatial"] = {"section": {"metadata": {"source": "text"}}}
    np.testing.assert_allclose(draw(aligned, "G0")[0, 0].collections[0].get_widths(), 2.0)


# --- results in other packages' pictures -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")  # scanpy's own
def test_mapped_cells_in_scanpy(with_image):
    """`get.mapped` as it is: coordinates, image and values arrive in scanpy's picture."""
    import scanpy as sc

    mapped = get.mapped(with_image, "spots", "cells")
    ax = sc.pl.embedding(mapped, basis="spatial", color="A23", sort_order=False, show=False)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), with_image["spots"].obsm["spatial"][:, :2])
    np.testing.assert_array_equal(ax.collections[0].get_array(), mapped[:, "A23"].X[:, 0])
    assert mapped.uns["spatial"]["section"]["scalefactors"]["spot_diameter_fullres"] == 0.8


# --- axes, errors ------------------------------------------------------------------------------------------------


def test_given_axes(aligned):
    figure, axes = plt.subplots(2, 2)
    drawn = draw(aligned, ["G0", "A1"], ax=axes)
    assert drawn.tolist() == axes.tolist()
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match=r"shape \(2,\).*needs 4 matplotlib axes.*subplots\(2, 2\)"):
        draw(aligned, ["G0", "A1"], ax=axes[0])


def test_return_values(aligned, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert isinstance(draw(aligned, "G0", return_fig=True), Figure)
    plt.close("all")
    assert draw(aligned, "G0", show=True) is None
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("features", "kwargs", "error", "message"),
    [
        ("g0", {}, KeyError, r"\['g0'\].*'cells' \(4\) and 'spots' \(8\).*Close matches: 'G0'"),
        (["G0", "dpth"], {}, KeyError, r"\['dpth'\].*Close matches: 'depth'"),
        ([], {}, ValueError, "0 features"),
        ("G0", {"keys": []}, ValueError, "0 alignments"),
        ("G0", {"keys": ["scmmgan", "other"]}, KeyError, r"other.*scmmgan\.tl\.align"),
        ("G0", {"library_id": "section"}, KeyError, r"No library 'section'.*Found: \[\]"),
        ("G0", {"source": "spot"}, KeyError, r"No modality 'spot'.*Close matches: 'spots'.*\['spots', 'cells'\]"),
        ("G0", {"target": "rna"}, KeyError, r"No modality 'rna'"),
        ("G0", {"basis": "spatia"}, KeyError, r"No coordinates 'spatia'.*Close matches: 'spatial'"),
        ("G0", {"key": "other"}, KeyError, r"other.*scmmgan\.tl\.align"),
        ("depth", {"key": "other"}, KeyError, r"other.*scmmgan\.tl\.align"),
        ("G7", {"key": "other"}, KeyError, r"other.*scmmgan\.tl\.align"),
    ],
)
def test_errors_come_before_the_figure(aligned, features, kwargs, error, message):
    with pytest.raises(error, match=message):
        draw(aligned, features, **kwargs)
    assert plt.get_fignums() == []


def test_one_coordinate_is_no_map(aligned):
    aligned["spots"].obsm["line"] = np.arange(60.0)[:, None]
    with pytest.raises(ValueError, match=r"shape \(60, 1\).*two columns"):
        draw(aligned, "G0", basis="line")
