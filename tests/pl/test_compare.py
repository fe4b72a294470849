"""The table of dots, read back from the artists; the comparison is made by hand."""

from __future__ import annotations

from typing import Any

import mudata as md
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import scmmgan as smm
from scmmgan import pl
from scmmgan.data import comparison
from scmmgan.data.keys import Keys

# metric, direction, chance, best, needs
METRICS = (
    ("foscttm", "both", 0.5, 0.0, "pairs"),
    ("recall_at_10", "a → b", 0.1, 1.0, "pairs"),
    ("recall_at_10", "b → a", 0.1, 1.0, "pairs"),
    ("two_sample_auc", "both", 1.0, 0.5, "nothing"),
    ("mmd", "both", np.nan, 0.0, "nothing"),
    ("foscttm by correlation", "both", 0.5, 0.0, "pairs"),
)
VALUES: dict[str, list[list[float]]] = {
    # each seed: one value for every metric
    "poor": [[0.4, 0.2, 0.3, 0.95, 0.4], [0.5, 0.1, 0.1, 1.0, 0.2]],
    "good": [[0.1, 0.9, 0.7, 0.55, 0.1], [0.05, 0.9, 0.7, 0.45, 0.1], [0.0, 0.9, 0.7, 0.6, 0.1]],
    "broken": [],
}


def compared(values: dict[str, list[list[float]]] = VALUES, reason: str = "of a reason") -> md.MuData:
    mdata = smm.datasets.toy(n_cells=50)
    runs, scores = [], []
    for method, seeds in values.items():
        for seed, each in enumerate(seeds or [[]]):
            error = "" if each else f"ValueError: {reason}"
            about: dict[str, Any] = {"method": method, "seed": seed}
            verdict = "supported in part by links: 3 of 9 features"
            runs.append(
                {
                    **about,
                    "fingerprint": "x",
                    "seconds": 12.0 + seed,
                    "memory": 3.25,
                    "uses": "links",
                    "mapped": "values",
                }
                | {"verdict": verdict, "error": error}
            )
            scores += [
                {**about, "metric": m, "direction": d, "value": v, "error": 0.1, "chance": c, "best": b, "n": 9}
                | {"needs": needs, "p": np.nan}
                for v, (m, d, c, b, needs) in zip(each, METRICS)
            ]
    comparison.write(mdata, ("rna", "protein"), "x", runs, scores, Keys())
    return mdata


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_rows_columns_and_numbers():
    ax = pl.compare(compared(), "rna", "protein", show=False)
    # the best first, those that failed last
    assert [label.get_text() for label in ax.get_yticklabels()] == ["good", "poor", "broken"]
    named = [label.get_text() for label in ax.get_xticklabels()]
    assert named == ["FOSCTTM", "recall at 10", "two-sample AUC", "mean", "time", "memory", "verdict"]
    said = texts(ax)
    # medians; of two directions their mean
    assert {".05", ".80", ".55"} <= set(said)
    assert {"13 s", "3.2 MB", "supported in part by links"} <= set(said)
    assert "failed. ValueError: of a reason" in said
    assert {"true partners", "without\nany truth"} <= set(said)


def test_dots_are_medians_and_rings_the_worst_seeds():
    ax = pl.compare(compared(), "rna", "protein", show=False)
    dots, rings = ax.collections[0], ax.collections[1]
    area = (np.asarray(dots.get_sizes()) - pl._compare.LEAST) / (pl._compare.DOT - pl._compare.LEAST)
    # FOSCTTM .05 of .5; recall .9 and .7 from .1 to 1; AUC .55 of .5 to 1
    np.testing.assert_allclose(area, [0.9, (0.8 / 0.9 + 0.6 / 0.9) / 2, 0.9])
    worst = (np.asarray(rings.get_sizes()) - pl._compare.LEAST) / (pl._compare.DOT - pl._compare.LEAST)
    np.testing.assert_allclose(worst, [0.8, 0.6 / 0.9, 0.8])
    assert (worst < area).all()
    assert rings.get_facecolors().size == 0
    light = dots.get_facecolors()[:, :3].sum(1)
    assert light[0] > ax.collections[2].get_facecolors()[:, :3].sum(1)[0] + 0.5
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_height() == 0.6]
    np.testing.assert_allclose(bars[0].get_width() / 1.5, area.mean())


def test_chosen_metrics_and_those_without_chance():
    ax = pl.compare(compared(), "rna", "protein", metrics=["mmd", "foscttm"], show=False)
    assert [label.get_text() for label in ax.get_xticklabels()][:2] == ["FOSCTTM", "mmd"]
    area = (np.asarray(ax.collections[0].get_sizes()) - pl._compare.LEAST) / (pl._compare.DOT - pl._compare.LEAST)
    # from the worst seed of all methods, .4
    np.testing.assert_allclose(area, [0.9, 1 - 0.1 / 0.4])
    with pytest.raises(KeyError, match="Close matches: 'foscttm'"):
        pl.compare(compared(), "rna", "protein", metrics=["fosctm"])


def test_names_of_columns_and_what_they_are_in_full():
    mdata = compared({"good": [[*VALUES["good"][0], 0.2]]})
    ax = pl.compare(mdata, "rna", "protein", metrics=["foscttm by correlation", "foscttm"], show=False)
    shown = {label.get_text().replace("\n", " ") for label in ax.get_xticklabels()}
    assert shown >= {"FOSCTTM", "FOSCTTM by correlation"}


def test_nothing_but_failures():
    ax = pl.compare(compared({"broken": []}), "rna", "protein", show=False)
    assert "failed. ValueError: of a reason" in texts(ax)


ONE = {"good": VALUES["good"]}
MANY = {f"a method with a name {i}": VALUES["good"] for i in range(12)} | {"broken": []}


@pytest.mark.parametrize("values", [ONE, MANY])
def test_texts_lie_inside_the_figure(values: dict[str, list[list[float]]]):
    figure = pl.compare(compared(values), "rna", "protein", return_fig=True)
    figure.canvas.draw()
    box = figure.bbox
    for text in [*figure.axes[0].texts, *figure.axes[0].get_yticklabels(), *figure.axes[0].get_xticklabels()]:
        inside = text.get_window_extent()
        assert inside.x0 >= box.x0 - 1
        assert inside.x1 <= box.x1 + 1
        assert inside.y0 >= box.y0 - 1
        assert inside.y1 <= box.y1 + 1


def test_long_names_leave_room():
    """Columns keep their width, so that what is written in a row does not run together."""
    name = "a method with a name that is long, 200 steps and labels"
    mdata = compared({name: VALUES["good"], "broken": []}, reason="reason " * 30)
    figure = pl.compare(mdata, "rna", "protein", metrics=["mmd", "foscttm"], return_fig=True)
    figure.canvas.draw()
    ax = figure.axes[0]
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert boxes["13 s"].x1 < boxes["3.2 MB"].x0
    assert boxes["3.2 MB"].x1 < boxes["supported in part by links"].x0
    assert boxes["true\npartners"].x1 < boxes["without\nany truth"].x0
    (reason,) = [box for text, box in boxes.items() if text.startswith("failed. ValueError: reason")]
    assert reason.x1 <= ax.get_window_extent().x1


def test_own_axes_and_figure():
    mdata = compared()
    _, ax = plt.subplots()
    assert pl.compare(mdata, "rna", "protein", ax=ax, show=False) is ax
    assert isinstance(pl.compare(mdata, "rna", "protein", return_fig=True), Figure)
    with pytest.raises(ValueError, match="needs 1 matplotlib axes"):
        pl.compare(mdata, "rna", "protein", ax=plt.subplots(2)[1])
    with pytest.raises(KeyError, match="No comparison"):
        pl.compare(mdata, "protein", "rna")
