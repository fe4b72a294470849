"""Features in space, read back from the artists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from scmmgan import pl


def draw(mdata, features, **kwargs):
    return pl.spatial_map(mdata, features, **{"source": "spots", "target": "cells", "show": False} | kwargs)


def bar_of(ax):
    (bar,) = ax.child_axes
    return bar


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
    assert [ax.get_title(loc="left") for ax in axes[0]] == ["G0\nmeasured in spots", "G0\nmapped to cells"]
    assert [bar_of(ax).get_xlabel() for ax in axes[0]] == ["spots (layer units)", "cells (layer units)"]


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
    assert axes[0, 0].get_title(loc="left") == "G1\nmeasured in spots"
    np.testing.assert_allclose(axes[1, 0].collections[0].get_array(), column(aligned, "G2", "G3"))
    assert axes[1, 0].get_title(loc="left") == "mean of G2, G3\nmeasured in spots"
    assert axes[1, 1].get_title(loc="left") == "A23\nmapped to cells"


def test_table_of_links(aligned):
    links = pd.DataFrame({"cells": ["A-none", "A1"], "spots": ["G5", "G6"], "weight": [1.0, 1.0]})
    aligned.uns["scmmgan"]["params"]["links"] = links
    axes = draw(aligned, ["A-none", "A23"])
    np.testing.assert_allclose(axes[0, 0].collections[0].get_array(), column(aligned, "G5"))
    assert axes[1, 0].get_title(loc="left") == "A23\nnot measured in spots"


@pytest.mark.parametrize("links", ["None", "auto", "var_names"])
def test_without_a_column_of_links_equal_names_count(aligned, links):
    aligned.uns["scmmgan"]["params"]["links"] = links
    axes = draw(aligned, ["G0", "A1"])
    np.testing.assert_allclose(axes[0, 0].collections[0].get_array(), column(aligned, "G0"))
    assert axes[1, 0].get_title(loc="left") == "A1\nnot measured in spots"


def test_panels_of_what_one_side_lacks_stay_empty(aligned):
    axes = draw(aligned, ["A-none", "G7"])
    assert axes[0, 0].get_title(loc="left") == "A-none\nnot measured in spots"
    assert axes[1, 1].get_title(loc="left") == "G7\nnot measured in cells"
    for empty in (axes[0, 0], axes[1, 1]):
        assert not empty.axison
        assert len(empty.collections) == len(empty.child_axes) == 0
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
    assert not right.axison
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
    assert not right.axison


def test_cells_without_coordinates_are_left_out(aligned):
    aligned["spots"].obsm["spatial"][:5, 0] = np.nan
    for ax in draw(aligned, "G0")[0]:
        np.testing.assert_array_equal(ax.collections[0].get_offsets(), aligned["spots"].obsm["spatial"][5:, :2])
        assert len(ax.collections[0].get_array()) == 55
        assert np.isfinite(ax.get_xlim()).all()


@pytest.mark.parametrize("ncols", [1, 2, 3, 9])
def test_grid_fits_the_page(aligned, ncols):
    figure = draw(aligned, ["G0", "A1", "A23"], ncols=ncols, return_fig=True)
    assert figure.get_figwidth() * 25.4 < 170.1
    figure.canvas.draw()
    panels = [ax for ax in figure.axes if ax.collections]
    boxes = [ax.get_tightbbox() for ax in panels]
    for i, one in enumerate(boxes):
        assert one.x0 >= 0
        assert one.x1 <= figure.bbox.x1
        assert one.y0 >= 0
        assert one.y1 <= figure.bbox.y1
        for other in boxes[:i]:
            # titles, panels, bars and their names keep clear of each other
            assert not one.padded(-1).overlaps(other.padded(-1))


def test_order_of_panels(aligned):
    titles = [ax.get_title(loc="left").split("\n")[0] for ax in draw(aligned, ["G0", "A1", "G5"], ncols=2).flat]
    assert titles == ["G0", "G0", "G1", "A1", "G5", "G5"]


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
        ("G0", {"ncols": 0}, ValueError, "ncols=0"),
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
