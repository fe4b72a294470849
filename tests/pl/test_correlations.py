"""`pl.correlations`: points, shaded regions, names that do not overlap; correlations written by hand."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import mudata as md
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

import scmmgan as smm
from scmmgan.pl._correlations import COLORS

N = 400


@pytest.fixture
def drawn(aligned: md.MuData) -> md.MuData:
    """The aligned modalities with tables of two genes: 30 spurious and 12 novel ones, close to each other."""
    rng = np.random.default_rng(0)
    tables = []
    for gene in ("G1", "G2"):
        a = rng.uniform(-0.9, 0.9, N)
        b = np.clip(a + rng.normal(0, 0.05, N), -1, 1)
        verdict = np.full(N, "", dtype=object)
        a[:30], b[:30], verdict[:30] = rng.uniform(0.6, 0.7, 30), rng.uniform(-0.1, 0.0, 30), "spurious"
        a[30:42], b[30:42], verdict[30:42] = rng.uniform(-0.2, 0.0, 12), rng.uniform(0.7, 0.8, 12), "novel"
        table = pd.DataFrame({"query": gene, "feature": [f"FEATURE{i}" for i in range(N)]}, dtype=object)
        table["r_measured"], table["r_mapped"], table["change"] = a, b, np.arctanh(b) - np.arctanh(a)
        for side in ("measured", "mapped"):
            table[f"rank_{side}"] = table[f"r_{side}"].rank(ascending=False).astype(int)
        tables.append(table.assign(candidate=verdict, verdict=verdict))
    record = {"table": pd.concat(tables, ignore_index=True), "n_top": 150, "threshold": 0.1, "signed": True}
    aligned.uns["scmmgan"]["correlations"] = {
        "spots": {"cells": {**record, "reference": "source", "method": "cells", "supported": True}}
    }
    return aligned


def regions(ax: plt.Axes) -> dict[str, list[Rectangle]]:
    found: dict[str, list[Rectangle]] = {name: [] for name in COLORS}
    for patch in ax.patches:
        for name, color in COLORS.items():
            if isinstance(patch, Rectangle) and to_hex(patch.get_facecolor()) == color.lower():
                found[name].append(patch)
    return found


def test_points_regions_and_labels(drawn: md.MuData):
    axes = smm.pl.correlations(drawn, "spots", "cells", show=False)
    assert [ax.get_title() for ax in axes] == ["G1", "G2"]
    table = smm.get.correlations(drawn, "spots", "cells", gene="G1")
    ax = axes[0]
    assert ax.get_xlabel() == "correlation measured in spots"
    assert ax.get_ylabel() == "correlation over pools of cells in cells"
    for points, verdict in zip(ax.collections, ("", "spurious", "novel")):
        own = table[table["verdict"] == verdict]
        np.testing.assert_allclose(points.get_offsets(), own[["r_measured", "r_mapped"]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["30 spurious", "12 novel"]
    # shaded is what the paper's lists hold
    for verdict, x, y in (("spurious", "measured", "mapped"), ("novel", "mapped", "measured")):
        (box,) = regions(ax)[verdict]
        inside = box.get_path().transformed(box.get_patch_transform())
        listed = (table[f"rank_{x}"] <= 150) & (table[f"r_{y}"] < 0.1) & (table[f"r_{x}"] >= 0.1)
        held = inside.contains_points(table[["r_measured", "r_mapped"]].to_numpy(), radius=1e-9)
        held |= inside.contains_points(table[["r_measured", "r_mapped"]].to_numpy(), radius=-1e-9)
        np.testing.assert_array_equal(held, listed)
        assert listed.sum() >= (table["verdict"] == verdict).sum()


@pytest.mark.parametrize("size", [(3.35, 3.4), (2.2, 2.4)])
def test_names_do_not_overlap(drawn: md.MuData, size: tuple[float, float]):
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    smm.pl.correlations(drawn, "spots", "cells", gene="G1", ax=ax, show=False)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) >= 4
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    inside = ax.get_window_extent()
    assert all(inside.x0 <= b.x0 and b.x1 <= inside.x1 and inside.y0 <= b.y0 and b.y1 <= inside.y1 for b in boxes)
    points = ax.transData.transform(np.vstack([c.get_offsets() for c in ax.collections[1:3]]))
    assert not any(box.contains(*point) for box in boxes for point in points)
    # the largest changes are named first
    table = smm.get.correlations(drawn, "spots", "cells", gene="G1")
    table = table[table["verdict"] != ""]
    order = table["change"].abs().sort_values(ascending=False).index
    first = [table.loc[order][table.loc[order, "verdict"] == v]["feature"].iloc[0] for v in COLORS]
    assert set(first) <= {text.get_text() for text in ax.texts}


def test_how_many_names(drawn: md.MuData):
    for n in (0, 2):
        (ax,) = smm.pl.correlations(drawn, "spots", "cells", gene="G2", n_names=n, show=False)
        assert len(ax.texts) <= 2 * n
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="`n_names`"):
            smm.pl.correlations(drawn, "spots", "cells", n_names=wrong, show=False)


def test_unsigned_and_target_as_reference(drawn: md.MuData):
    drawn.uns["scmmgan"]["correlations"]["spots"]["cells"] |= {
        "signed": False,
        "reference": "target",
        "method": "generator",
    }
    (ax,) = smm.pl.correlations(drawn, "spots", "cells", gene="G1", show=False)
    assert ax.get_xlabel() == "correlation measured in cells"
    assert ax.get_ylabel() == "correlation in spots mapped to cells"
    found = regions(ax)
    assert {name: len(boxes) for name, boxes in found.items()} == {"spurious": 2, "novel": 2}
    for box in found["spurious"]:
        assert (box.get_y(), box.get_y() + box.get_height()) == pytest.approx((-0.1, 0.1))
    assert sorted(box.get_x() for box in found["spurious"])[0] == pytest.approx(-1)


def test_candidates_without_a_verdict_are_open_circles(drawn: md.MuData):
    stored = drawn.uns["scmmgan"]["correlations"]["spots"]["cells"]
    stored["table"]["verdict"] = ""
    (ax,) = smm.pl.correlations(drawn, "spots", "cells", gene="G1", show=False)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["30 spurious?", "12 novel?"]
    for points, verdict in zip(ax.collections[1:3], ("spurious", "novel")):
        assert not len(points.get_facecolors())
        assert to_hex(points.get_edgecolors()[0]) == COLORS[verdict].lower()


def test_some_candidates_have_a_verdict(drawn: md.MuData):
    """Filled are those of genes that have evidence; they are named first."""
    table = drawn.uns["scmmgan"]["correlations"]["spots"]["cells"]["table"]
    own = table.index[(table["query"] == "G1") & (table["candidate"] == "spurious")]
    table.loc[own[5:], "verdict"] = ""
    (ax,) = smm.pl.correlations(drawn, "spots", "cells", gene="G1", n_names=3, show=False)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["5 spurious", "25 spurious?", "12 novel"]
    sure, doubted = ax.collections[1:3]
    assert (len(sure.get_offsets()), len(doubted.get_offsets())) == (5, 25)
    assert len(sure.get_facecolors())
    assert not len(doubted.get_facecolors())
    spurious = {text.get_text() for text in ax.texts} & set(table.loc[own, "feature"])
    assert spurious <= set(table.loc[own[:5], "feature"])


def test_nothing_found_is_drawn_as_well(drawn: md.MuData):
    drawn.uns["scmmgan"]["correlations"]["spots"]["cells"]["table"][["candidate", "verdict"]] = ""
    (ax,) = smm.pl.correlations(drawn, "spots", "cells", gene="G1", show=False)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0 spurious", "0 novel"]
    assert not ax.texts


def test_returns_and_files(drawn: md.MuData, tmp_path: Path):
    figure = smm.pl.correlations(drawn, "spots", "cells", gene="G1", return_fig=True)
    for suffix in ("pdf", "svg", "png"):
        figure.savefig(tmp_path / f"a.{suffix}")
        # points are rasterised
        assert (tmp_path / f"a.{suffix}").stat().st_size < 400_000
    with pytest.raises(ValueError, match="`ax`"):
        smm.pl.correlations(drawn, "spots", "cells", ax=plt.subplots()[1], show=False)
    with pytest.raises(KeyError, match="No correlations of"):
        smm.pl.correlations(drawn, "spots", "cells", gene="G7", show=False)
    with pytest.raises(KeyError, match=r"scmmgan\.tl\.correlations"):
        smm.pl.correlations(drawn, "cells", "spots", show=False)
