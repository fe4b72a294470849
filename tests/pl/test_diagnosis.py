"""The four panels of a diagnosis, read back from the artists."""

from __future__ import annotations

import mudata as md
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scmmgan import pl


@pytest.fixture
def diagnosed(aligned: md.MuData) -> md.MuData:
    """Four populations of spots and of cells; five links, one of them bad; A and B hard to distinguish."""
    populations = pd.DataFrame(
        {
            "modality": ["spots"] * 4 + ["cells"] * 4,
            "population": [*"ABCD", *"WXYZ"],
            "share": 0.25,
            "partner": [*"WXYZ", *"ABCD"],
            "swap": ["B", "A", "D", "C", "X", "W", "Z", ""],
            "gap": [0.1, 0.1, 0.9, 0.9, 0.8, 0.8, 0.7, 1.0],
            "ambiguous": [0.5, 0.4, 0, 0, 0, 0, 0, 0],
            "unmatched": [0, 0, 0, 0.8, 0, 0, 0, 0],
        }
    )
    aligned.uns["scmmgan"]["diagnosis"] = {
        "spots": {
            "cells": {
                "verdict": "supported by links",
                "kind": "links",
                "swap_limit": 1 / 3,
                "links_mean": 0.5,
                "links_p": 0.01,
                "links_null": np.linspace(-0.2, 0.2, 99),
                "links": pd.DataFrame(
                    {
                        "spots": [*"abcde"],
                        "cells": ["a", "b", "c", "d", "E"],
                        "correlation": [0.9, 0.8, 0.7, 0.6, -0.5],
                        "q": [0.01, 0.01, 0.02, 0.2, 1.0],
                        "ceiling": [0.95, 0.9, 0.6, 0.7, 0.3],
                    }
                ),
                "populations": populations,
            }
        }
    }
    return aligned


def record(mdata: md.MuData) -> dict:
    return mdata.uns["scmmgan"]["diagnosis"]["spots"]["cells"]


def test_links_and_their_null(diagnosed):
    axes = pl.diagnosis(diagnosed, "spots", "cells", show=False)
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["a", "b", "c", "d", "e – E"]
    np.testing.assert_allclose([bar.get_width() for bar in axes[0].containers[0]], [0.9, 0.8, 0.7, 0.6, -0.5])
    # against what noise allows; those with evidence of their own in colour
    assert axes[0].lines[1].get_label() == "noise ceiling"
    np.testing.assert_allclose(axes[0].lines[1].get_xdata(), [0.95, 0.9, 0.6, 0.7, 0.3])
    colors = [bar.get_facecolor() for bar in axes[0].containers[0]]
    assert colors[0] == colors[1] == colors[2] != colors[3] == colors[4]
    band = next(p for p in axes[0].patches if p.get_label() == "means of shuffled tables")
    np.testing.assert_allclose([band.get_x(), band.get_width()], [-0.2, 0.4])
    assert axes[0].lines[0].get_xdata()[0] == 0.5
    assert axes[1].lines[0].get_xdata()[0] == 0.5
    assert sum(bar.get_height() for bar in axes[1].containers[0]) == 99
    assert axes[0].figure.get_suptitle() == "spots and cells: supported by links"


def test_many_links_are_points_with_the_best_named(diagnosed):
    links = pd.DataFrame({"spots": [f"g{i}" for i in range(50)], "cells": [f"g{i}" for i in range(50)]})
    correlation = np.linspace(-0.5, 0.9, 50)
    links = links.assign(correlation=correlation, q=np.where(np.arange(50) > 42, 0.01, 0.3), ceiling=0.8)
    record(diagnosed)["links"] = links
    axes = pl.diagnosis(diagnosed, "spots", "cells", show=False)
    points = axes[0].collections[-1].get_offsets()
    np.testing.assert_allclose(points, np.column_stack([correlation[::-1], np.full(50, 0.8)]))
    assert axes[0].texts[0].get_text() == "q < 0.05: 7 of 50\ng49\ng48\ng47\ng46\ng45"
    assert axes[0].get_ylabel() == "noise ceiling"


def test_pairs(diagnosed):
    found = record(diagnosed)
    for name in ("links", "links_mean", "links_p", "links_null"):
        del found[name]
    found |= {"pairs": np.linspace(0, 0.3, 30), "pairs_mean": 0.15, "pairs_p": 0.01, "pairs_null": np.full(99, 0.5)}
    axes = pl.diagnosis(diagnosed, "cells", "spots", show=False)
    assert sum(bar.get_height() for bar in axes[0].containers[0]) == 30
    assert "held-out partner" in axes[0].get_xlabel()
    assert "p = 0.01" in axes[1].get_xlabel()


def test_swaps_and_shares(diagnosed):
    axes = pl.diagnosis(diagnosed, "spots", "cells", show=False)
    widths = [bar.get_width() for bar in axes[2].containers[0]]
    np.testing.assert_allclose(widths[:7], [0.1, 0.1, 0.9, 0.9, 0.8, 0.8, 0.7])
    assert [text.get_text() for text in axes[2].texts] == ["↔ B", "↔ A"]
    colors = {bar.get_facecolor() for bar in axes[2].containers[0][:2]}
    assert colors.isdisjoint({bar.get_facecolor() for bar in axes[2].containers[0][2:]})
    shares = {c.get_label(): [bar.get_width() for bar in c] for c in axes[3].containers}
    assert shares["unmatched"][3] == 0.8
    assert shares["ambiguous"][:2] == [0.5, 0.4]
    assert [tick.get_text() for tick in axes[2].get_yticklabels()] == [*"ABCDWXYZ"]


def test_shapes_alone(diagnosed):
    found = record(diagnosed)
    for name in ("links", "links_mean", "links_p", "links_null"):
        del found[name]
    found |= {"kind": "geometry", "swap_limit": 0.05, "gaps": np.array([0.02, 0.3])}
    axes = pl.diagnosis(diagnosed, "spots", "cells", show=False)
    assert "nothing can be" in axes[0].texts[0].get_text()
    np.testing.assert_allclose([bar.get_height() for bar in axes[1].containers[0]], [2, 30])
    found["gaps"], found["populations"]["swap"] = np.empty(0), ""
    axes = pl.diagnosis(diagnosed, "spots", "cells", show=False)
    assert "certifies" in axes[1].texts[0].get_text()
    assert axes[2].texts[0].get_text() == "no rival answer"


def test_axes_and_show(diagnosed, monkeypatch):
    _, axes = plt.subplots(2, 2)
    assert list(pl.diagnosis(diagnosed, "spots", "cells", ax=axes, show=False)) == list(axes.ravel())
    assert axes[0, 0].get_title() == "spots and cells: supported by links"
    with pytest.raises(ValueError, match="needs 4 matplotlib axes"):
        pl.diagnosis(diagnosed, "spots", "cells", ax=axes[0, 0])
    assert isinstance(pl.diagnosis(diagnosed, "spots", "cells", return_fig=True), Figure)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert pl.diagnosis(diagnosed, "spots", "cells", show=True) is None
    assert shown == [1]
    assert all(isinstance(panel, Axes) for panel in axes.ravel())


def test_nothing_diagnosed(aligned):
    with pytest.raises(KeyError, match=r"scmmgan\.tl\.diagnose"):
        pl.diagnosis(aligned, "spots", "cells")
    with pytest.raises(KeyError, match="other"):
        pl.diagnosis(aligned, "spots", "cells", key="other")
    assert plt.get_fignums() == []
