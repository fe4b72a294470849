"""Modalities before and after, read back from the artists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from scmmgan import pl
from scmmgan.pl import _predicted

GREY = "#d9d9d9"


def points(ax) -> dict[tuple[float, ...], tuple[float, ...]]:
    """Colour of every point drawn in a panel, by its place."""
    found = {}
    for drawn in ax.collections:
        drawn.update_scalarmappable()
        faces = np.resize(drawn.get_facecolors(), (len(drawn.get_offsets()), 4))
        found.update({tuple(place): tuple(face) for place, face in zip(drawn.get_offsets().tolist(), faces)})
    return found


def components(x: np.ndarray) -> np.ndarray:
    """First two principal components by singular values, signs aside."""
    centred = x - x.mean(axis=0)
    return np.abs(centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T)


def legend_texts(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def in_order(values: np.ndarray) -> np.ndarray:
    return values[np.lexsort(values.T.round(4))]


def test_panels_are_components_of_the_right_blocks(aligned):
    axes = pl.alignment(aligned, show=False)
    assert axes.shape == (3,)
    spots, cells = (aligned[name].obsm["X_scmmgan"] for name in ("spots", "cells"))
    for ax, block in zip(axes, (spots[:, :3], cells[:, 3:], np.vstack([spots, cells]))):
        (drawn,) = ax.collections
        offsets = np.abs(np.asarray(drawn.get_offsets()))
        assert np.isfinite(offsets).all()
        np.testing.assert_allclose(in_order(offsets), in_order(components(block)), atol=1e-3)
        variance = np.sort(np.linalg.eigvalsh(np.cov(block.T)))[::-1]
        assert ax.get_xlabel() == f"PC 1 ({variance[0] / variance.sum():.0%})"
        assert ax.get_ylabel() == f"PC 2 ({variance[1] / variance.sum():.0%})"
    titles = [ax.get_title() for ax in axes]
    assert titles == ["before: spots\n60 cells", "before: cells\n45 cells", "after: joint embedding\n105 cells"]


def test_shared_space_has_one_panel_before(aligned):
    aligned.uns["scmmgan"]["params"]["shared_space"] = True
    config = aligned.uns["scmmgan"]["model"]["config"]
    aligned.uns["scmmgan"]["model"]["config"] = config.replace('"cells": 2', '"cells": 3')
    rng = np.random.default_rng(1)
    for name, n in (("spots", 60), ("cells", 45)):
        aligned[name].obsm["X_scmmgan"] = rng.normal(size=(n, 6)) + (name == "cells") * np.repeat([0, 3], 3)
    axes = pl.alignment(aligned, show=False)
    assert [ax.get_title() for ax in axes] == [
        "before: spots and cells\n105 cells",
        "after: joint embedding\n105 cells",
    ]
    assert axes[0].get_xlabel().startswith("joint PC 1 (")
    # each modality's own block: all axes of one space
    own = np.vstack([aligned["spots"].obsm["X_scmmgan"][:, :3], aligned["cells"].obsm["X_scmmgan"][:, 3:]])
    offsets = np.abs(np.asarray(axes[0].collections[0].get_offsets()))
    np.testing.assert_allclose(in_order(offsets), in_order(components(own)), atol=1e-6)
    assert len(set(points(axes[0]).values())) == 2


def test_after_in_the_components_of_the_target(aligned):
    """Mapped spots among measured cells, on axes that the cells alone decide."""
    axes = pl.alignment(aligned, "spots", "cells", show=False)
    assert axes.shape == (3,)
    assert axes[2].get_title() == "after: spots mapped to cells\n105 cells"
    mapped, own = (aligned[name].obsm["X_scmmgan"][:, 3:] for name in ("spots", "cells"))
    _, s, vt = np.linalg.svd(own - own.mean(0), full_matrices=False)
    expected = np.abs((np.vstack([mapped, own]) - own.mean(0)) @ vt[:2].T)
    drawn = axes[2].collections[0]
    np.testing.assert_allclose(in_order(np.abs(np.asarray(drawn.get_offsets()))), in_order(expected), atol=1e-4)
    assert axes[2].get_xlabel() == f"cells PC 1 ({s[0] ** 2 / (s**2).sum():.0%})"
    assert [int((drawn.get_array() == code).sum()) for code in (0, 1)] == [60, 45]
    # the other way round: other axes, the same panels before
    back = pl.alignment(aligned, "cells", "spots", show=False)
    assert back[2].get_title() == "after: cells mapped to spots\n105 cells"
    assert [ax.get_title() for ax in back[:2]] == [ax.get_title() for ax in axes[:2]]


# --- predicted against measured ----------------------------------------------------------------------------------


@pytest.fixture
def paired(aligned):
    """40 spots whose partners are cells, in another order."""
    return pd.DataFrame({"spots": [f"spot{i}" for i in range(40)], "cells": [f"cell{44 - i}" for i in range(40)]})


def test_predicted_against_measured(aligned, paired):
    axes = pl.alignment(aligned, "spots", "cells", pairs=paired, features=["A1", "G0"], show=False)
    assert axes.shape == (5,)
    for ax, name, column in zip(axes[3:], ("A1", "G0"), (0, 3)):
        x = aligned["cells"].X[44 - np.arange(40), column]
        y = aligned["spots"].obsm["scmmgan_cells"][:40, column]
        np.testing.assert_allclose(ax.collections[0].get_offsets(), np.column_stack([x, y]), rtol=1e-4, atol=1e-4)
        assert ax.get_title() == f"{name}\nr = {np.corrcoef(x, y)[0, 1]:.2f}, 40 pairs"
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("measured (cells: X)", "predicted (cells: X)")
    figure = axes[0].figure
    figure.canvas.draw()
    boxes = [ax.get_tightbbox() for ax in axes]
    assert not any(a.padded(-1).overlaps(b.padded(-1)) for i, a in enumerate(boxes) for b in boxes[:i])


def test_measured_values_are_of_the_layer_that_was_read(aligned, paired):
    aligned["cells"].layers["clr"] = aligned["cells"].X * 2
    aligned.uns["scmmgan"]["params"] |= {"layer": {"spots": "None", "cells": "clr"}, "smooth": 3}
    ax = pl.alignment(aligned, "spots", "cells", pairs=paired, features="A1", show=False)[3]
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 0], 2 * aligned["cells"].X[44 - np.arange(40), 0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("measured (cells: clr)", "predicted (cells: clr, smoothed)")


def test_pairs_that_the_alignment_was_given_are_left_out(aligned, paired):
    params = aligned.uns["scmmgan"]["params"]
    params |= {"pairs": paired[["cells", "spots"]].iloc[:15], "modalities": np.array(["cells", "spots"], dtype=object)}
    ax = pl.alignment(aligned, "spots", "cells", pairs=paired, features="A1", show=False)[3]
    assert ax.get_title().endswith(", 25 pairs")
    y = aligned["spots"].obsm["scmmgan_cells"][15:40, 0]
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 1], y, rtol=1e-4, atol=1e-4)
    params["pairs"] = paired
    with pytest.raises(ValueError, match=r"'scmmgan' was given all of these pairs"):
        pl.alignment(aligned, "spots", "cells", pairs=paired, features="A1")


def test_constant_features_have_no_r(aligned, paired):
    aligned["cells"].X[:, 0] = 1
    ax = pl.alignment(aligned, "spots", "cells", pairs=paired, features="A1", show=False)[3]
    assert ax.get_title() == "A1\nr: constant, 40 pairs"


def test_many_pairs_are_binned_on_one_scale(aligned, paired, monkeypatch):
    monkeypatch.setattr(_predicted, "BINNED", 39)
    axes = pl.alignment(aligned, "spots", "cells", pairs=paired, features=["A1", "G0"], show=False)
    counts = [ax.collections[0].get_array() for ax in axes[3:]]
    assert [count.sum() for count in counts] == [40, 40]
    assert min(count.min() for count in counts) == 1
    assert axes[3].collections[0].get_clim() == axes[4].collections[0].get_clim()
    (bar,) = [ax for ax in axes[0].figure.axes if ax not in list(axes)]
    assert bar.get_ylabel() == "pairs"


# --- the rest ----------------------------------------------------------------------------------------------------


def test_modalities_have_two_colours_in_mixed_order(aligned):
    axes = pl.alignment(aligned, show=False)
    first, second = (set(points(ax).values()) for ax in axes[:2])
    assert len(first) == len(second) == 1
    assert first != second
    joint = axes[2].collections[0].get_array()
    assert [int((joint == code).sum()) for code in (0, 1)] == [60, 45]
    # of 105 cells in random order about every second neighbour is of the other modality
    changes = int((np.diff(joint) != 0).sum())
    assert 35 < changes < 70
    assert legend_texts(axes[0].figure) == ["spots", "cells"]
    handles = axes[0].figure.legends[0].legend_handles
    assert [to_rgba(handle.get_color()) for handle in handles] == [*first, *second]


def test_labels_with_gaps(aligned):
    axes = pl.alignment(aligned, color="layer", show=False)
    assert legend_texts(axes[0].figure)[-1] == "no value"
    assert set(legend_texts(axes[0].figure)) == {"outer", "inner", "no value"}
    title = axes[0].figure.legends[0].get_title().get_text()
    assert title.startswith("Not validated. spots and cells: no diagnosis.")
    assert title.endswith("\nlayer")
    grey = [sum(to_hex(color) == GREY for color in points(ax).values()) for ax in axes]
    assert grey == [0, 15, 15]
    below, above = axes[1].collections
    assert below.get_zorder() < above.get_zorder()
    assert (len(below.get_offsets()), len(above.get_offsets())) == (15, 30)
    # the same label has the same colour in every panel
    by_label = dict(
        zip(legend_texts(axes[0].figure), (h.get_color() for h in axes[0].figure.legends[0].legend_handles))
    )
    assert {to_hex(color) for color in points(axes[0]).values()} == {
        by_label["outer"].lower(),
        by_label["inner"].lower(),
    }


def test_numbers(aligned):
    axes = pl.alignment(aligned, color="depth", show=False)
    depth = aligned["spots"].obs["depth"].to_numpy()
    (drawn,) = axes[0].collections
    np.testing.assert_allclose(np.sort(drawn.get_array()), np.sort(depth))
    np.testing.assert_allclose(drawn.get_clim(), np.percentile(depth, [1, 99]))
    assert {to_hex(color) for color in points(axes[1]).values()} == {GREY}
    assert axes[2].collections[1].get_clim() == drawn.get_clim()
    bars = [ax for ax in axes[0].figure.axes if ax not in list(axes)]
    assert [bar.get_ylabel() for bar in bars] == ["depth"]
    assert bars[0]._colorbar.extend == "both"
    assert not axes[0].figure.legends


def test_a_column_of_one_value_and_a_modality_of_one_dimension(aligned):
    aligned["spots"].obs["same"] = 2.0
    model = aligned.uns["scmmgan"]["model"]
    model["config"] = model["config"].replace('{"spots": 3, "cells": 2}', '{"spots": 4, "cells": 1}')
    axes = pl.alignment(aligned, color="same", show=False)
    low, high = axes[0].collections[0].get_clim()
    assert low < 2 < high
    np.testing.assert_array_equal(axes[1].collections[0].get_offsets()[:, 1], 0)
    assert axes[1].get_ylabel() == "PC 2 (0%)"


@pytest.mark.parametrize("n", [8, 12, 20, 30])
def test_many_labels_differ_and_fit(aligned, n):
    names = [f"cell population number {i}" for i in range(n)]
    aligned["spots"].obs["many"] = np.resize(names, 60)
    aligned["cells"].obs["many"] = "cell population number 0"
    figure = pl.alignment(aligned, color="many", return_fig=True)
    assert sorted(legend_texts(figure)) == sorted(names)
    assert len({handle.get_color() for handle in figure.legends[0].legend_handles}) == n
    figure.canvas.draw()
    legend, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1
    assert legend.y0 >= 0
    assert legend.y1 <= panel.y0
    # panels keep a readable size however long the legend
    assert figure.axes[0].get_window_extent().height / figure.dpi > 1.2


def test_text_of_numbers_is_sorted_as_numbers(aligned):
    for name in ("spots", "cells"):
        aligned[name].obs["cluster"] = np.resize(["10", "2", "1"], aligned[name].n_obs)
    assert legend_texts(pl.alignment(aligned, color="cluster", return_fig=True)) == ["1", "2", "10"]


def test_categories_keep_their_order(aligned):
    stages = ["zygote", "embryo", "adult"]
    for name in ("spots", "cells"):
        labels = np.resize(stages, aligned[name].n_obs)
        aligned[name].obs["stage"] = pd.Categorical(labels, categories=[*stages, "unused"])
    assert legend_texts(pl.alignment(aligned, color="stage", return_fig=True)) == stages


def test_points_are_rasterised(aligned):
    axes = pl.alignment(aligned, color="layer", size=3, show=False)
    drawn = [one for ax in axes for one in ax.collections]
    assert all(one.get_rasterized() for one in drawn)
    assert {float(one.get_sizes()[0]) for one in drawn} == {3.0}


def test_same_picture_twice(aligned):
    first, second = (pl.alignment(aligned, show=False)[2].collections[0] for _ in range(2))
    np.testing.assert_array_equal(first.get_offsets(), second.get_offsets())


def test_given_axes(aligned):
    figure, axes = plt.subplots(1, 3)
    drawn = pl.alignment(aligned, color="layer", ax=axes, show=False)
    assert list(drawn) == list(axes)
    assert plt.get_fignums() == [figure.number]
    assert not figure.legends
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()][-1] == "no value"
    with pytest.raises(ValueError, match=r"shape \(2,\).*needs 3 matplotlib axes.*subplots\(1, 3\)"):
        pl.alignment(aligned, ax=axes[:2])


def test_return_values(aligned, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    figure = pl.alignment(aligned, return_fig=True)
    assert isinstance(figure, Figure)
    np.testing.assert_allclose(figure.get_figwidth() * 25.4, 170)
    plt.close(figure)
    assert pl.alignment(aligned, show=True) is None
    assert plt.get_fignums() == []


def test_unknown_names(aligned):
    with pytest.raises(KeyError, match=r"No `obs` column 'dept'.*Close matches: 'depth'.*'layer'"):
        pl.alignment(aligned, color="dept")
    with pytest.raises(KeyError, match=r"other.*scmmgan\.tl\.align"):
        pl.alignment(aligned, key="other")
    with pytest.raises(KeyError, match=r"No modality 'rna'.*'spots'"):
        pl.alignment(aligned, "rna", "cells")
    with pytest.raises(KeyError, match=r"No feature in 'cells' 'A2'.*'A23'"):
        pl.alignment(aligned, "spots", "cells", pairs="obs_names", features="A2")
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("names", "kwargs"),
    [
        (["spots"], {}),
        ([], {"target": "cells"}),
        (["spots", "cells"], {"pairs": "obs_names"}),
        (["spots", "cells"], {"features": ["A1"]}),
        (["spots", "cells"], {"features": [], "pairs": "obs_names"}),
        ([], {"features": ["A1"], "pairs": "obs_names"}),
    ],
)
def test_arguments_that_go_together(aligned, names, kwargs):
    with pytest.raises(ValueError, match=r"`source` and `target` go together, and so do `pairs` and `features`"):
        pl.alignment(aligned, *names, **kwargs)
    assert plt.get_fignums() == []


def test_pairs_that_are_none(aligned):
    with pytest.raises(ValueError, match=r"`pairs` gives 0 pairs of 'spots' and 'cells'"):
        pl.alignment(aligned, "spots", "cells", pairs="obs_names", features="A1")
    with pytest.raises(ValueError, match="both 'spots'"):
        pl.alignment(aligned, "spots", "spots")
    assert plt.get_fignums() == []
