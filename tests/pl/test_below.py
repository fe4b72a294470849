"""What stands below a picture of a map that nothing supports, and what matplotlib would warn of."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mudata as md
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

import scmmgan as smm
from scmmgan.data import record as _record
from scmmgan.pl import _below


def note_of(mdata: md.MuData) -> str:
    verdict = smm.get.diagnosis(mdata, "rna", "protein")["verdict"]
    return f"Not validated. rna and protein: {verdict}. See scmmgan.get.diagnosis."


@pytest.fixture(scope="module")
def by_shape() -> md.MuData:
    mdata = smm.datasets.toy(n_cells=64, n_features=[30, 20], spatial=True)
    smm.tl.align(mdata, links=None, method="coupling", progress_bar=False)
    smm.tl.place(mdata, "protein", "rna")
    smm.tl.uncertainty(mdata, "rna", "protein")
    return mdata


@pytest.fixture(scope="module")
def by_links() -> md.MuData:
    mdata = smm.datasets.toy(n_cells=64, n_features=[30, 20], spatial=True)
    smm.tl.align(mdata, links="gene", method="coupling", progress_bar=False)
    smm.tl.place(mdata, "protein", "rna")
    smm.tl.uncertainty(mdata, "rna", "protein")
    return mdata


PICTURES: dict[str, Callable[..., Any]] = {
    "alignment": lambda m, **how: smm.pl.alignment(m, **how),
    "mapped cells": lambda m, **how: smm.pl.alignment(m, "protein", "rna", **how),
    "history": lambda m, **how: smm.pl.history(m, **how),
    "uncertainty": lambda m, **how: smm.pl.uncertainty(m, "rna", "protein", **how),
    "coordinates": lambda m, **how: smm.pl.coordinates(m, "protein", "rna", **how),
    "spatial map": lambda m, **how: smm.pl.spatial_map(
        m, m["protein"].var_names[0], source="rna", target="protein", uncertainty=False, **how
    ),
}
PANELS = {"alignment": 3, "mapped cells": 3, "history": 1, "uncertainty": 3, "coordinates": 1, "spatial map": 2}


def texts(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text) if isinstance(text, Text))


@pytest.mark.parametrize("name", PICTURES)
def test_maps_without_support_say_so(name: str, by_shape: md.MuData, by_links: md.MuData):
    figure = PICTURES[name](by_shape, return_fig=True)
    assert texts(figure).count(note_of(by_shape)) == 1
    figure.draw_without_rendering()
    (note,) = (t for t in figure.findobj(Text) if isinstance(t, Text) and "Not validated" in t.get_text())
    box, page = note.get_window_extent(), figure.bbox
    assert page.x0 - 1 <= box.x0 < box.x1 <= page.x1 + 1
    assert page.y0 - 1 <= box.y0 < box.y1 <= page.y1 + 1
    assert "Not validated" not in texts(PICTURES[name](by_links, return_fig=True))


@pytest.mark.parametrize("name", PICTURES)
def test_in_axes_of_the_user(name: str, by_shape: md.MuData):
    figure, axes = plt.subplots(1, PANELS[name])
    for _ in range(2):
        PICTURES[name](by_shape, ax=axes, show=False)
    assert texts(figure).count(note_of(by_shape)) == 1


def test_several_alignments(by_shape: md.MuData):
    mdata = by_shape.copy()
    smm.tl.align(mdata, links="gene", method="coupling", key_added="other", progress_bar=False)
    expected = note_of(by_shape).replace("protein:", "protein (scmmgan):")
    assert _below.not_validated(mdata, ["scmmgan", "other"]) == expected
    del mdata.uns["other"]["diagnosis"]
    assert "rna and protein: no diagnosis" in _below.not_validated(mdata, "other")


@pytest.mark.parametrize(
    ("grade", "head"), [("in part", "Not fully supported"), ("weak", "Not fully supported"), ("supported", "")]
)
def test_the_grade_is_said(grade: str, head: str, by_links: md.MuData):
    mdata = by_links.copy()
    record = mdata.uns["scmmgan"]["diagnosis"]["rna"]["protein"]
    record |= {"grade": grade, "supported": grade == "supported", "verdict": f"{grade}: few"}
    expected = f"{head}. rna and protein: {grade}: few. See scmmgan.get.diagnosis." if head else ""
    assert _below.not_validated(mdata, "scmmgan") == expected


def test_the_evidence_for_each_feature_stands_above_its_map(by_links: md.MuData):
    """Only where the map as a whole is not supported."""
    mdata = by_links.copy()
    linked = mdata["protein"].var["scmmgan_evidence"].dropna().index[0]
    other = mdata["protein"].var_names[mdata["protein"].var["scmmgan_evidence"].isna()][0]

    def heads() -> list[str]:
        axes = smm.pl.spatial_map(mdata, [linked, other], source="rna", target="protein", uncertainty=False, show=False)
        return [" ".join(ax.get_title(loc="left").split()) for ax in axes[:, 1]]

    assert heads() == ["mapped to protein", ""]
    record = mdata.uns["scmmgan"]["diagnosis"]["rna"]["protein"]
    record |= {"grade": "in part", "supported": False, "verdict": "supported in part by links: 3 of 15 features"}
    mdata.uns["scmmgan"] = _record.sealed({"diagnosis": mdata.uns["scmmgan"]["diagnosis"]}, mdata.uns["scmmgan"])
    r, q = (mdata["protein"].var.at[linked, f"scmmgan_evidence{part}"] for part in ("", "_q"))
    assert heads() == [f"mapped to protein held-out r = {r:.2f}, q = {q:.2g}", "not tested"]


def test_glyphs_that_no_font_has(by_links: md.MuData, caplog: pytest.LogCaptureFixture):
    """As warnings are errors in tests, matplotlib's would fail."""
    mdata = by_links.copy()
    mdata["protein"].obs["cell_type"] = mdata["protein"].obs["cell_type"].cat.rename_categories(lambda c: f"蛋白 é {c}")
    for draw in (
        lambda: smm.pl.alignment(mdata, color="cell_type", return_fig=True),
        lambda: smm.pl.coordinates(mdata, "protein", "rna", color="cell_type", return_fig=True),
    ):
        caplog.clear()
        figure = draw()
        figure.draw_without_rendering()
        assert "?? é type_A" in texts(figure)
        assert [text for text in caplog.messages if "'白', '蛋'" in text and "font.family" in text]


def test_names_of_ticks(caplog: pytest.LogCaptureFixture):
    figure, ax = plt.subplots()
    ax.barh([0, 1], [1, 2])
    ax.set_yticks([0, 1], ["é", "蛋"])
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        _below.only_known_glyphs([ax])
    figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["é", "?"]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((2, 2, 3), 200, np.uint8), 200),
        (np.full((2, 2, 3), 0.5), 0.5),
        (np.full((2, 2, 3), 51.0), 0.2),
        (np.full((2, 2, 3), 13107, np.uint16), 0.2),
        (np.full((2, 2, 3), 1e6), 1.0),
        (np.full((2, 2, 3), -1.0), 0.0),
        (np.full((2, 2, 3), np.nan), 1.0),
        (np.full((2, 2), 4000.0), 4000.0),
    ],
)
def test_colours_are_in_range(image: np.ndarray, expected: float):
    found = _below.colors_in_range(image)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    figure, ax = plt.subplots()
    ax.imshow(found)
    figure.draw_without_rendering()


@pytest.mark.parametrize("images", [None, {}, {"hires": None}])
def test_libraries_without_images(images: Any, by_links: md.MuData):
    mdata = by_links.copy()
    mdata["rna"].uns["spatial"] = {"lib": {"images": images, "scalefactors": None}}
    figure = PICTURES["spatial map"](mdata, return_fig=True)
    assert not any(ax.images for ax in figure.axes)


def test_columns_of_the_whole_are_named(by_links: md.MuData):
    mdata = by_links.copy()
    mdata.obs["mine"] = 1.0
    for draw in (
        lambda: smm.pl.alignment(mdata, color="mine"),
        lambda: smm.pl.coordinates(mdata, "protein", "rna", color="mine"),
        lambda: smm.pl.spatial_map(mdata, "mine", source="rna", target="protein"),
    ):
        with pytest.raises(KeyError, match=r"run `mdata.push_obs\(\['mine'\]\)`"):
            draw()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["TkAgg", "agg", "module://matplotlib_inline.backend_inline"])
def test_backends_that_the_environment_names(backend: str):
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import matplotlib; matplotlib.interactive(True)\n"
        "from scmmgan.pl._utils import finish, make_axes\n"
        "figure, axes = make_axes(None, 1, shape=(1, 1), size=(2, 2))\n"
        "assert finish(figure, axes, own=True, show=None, return_fig=False) is not False\n"
        "import io; figure.savefig(io.BytesIO())\n"
    )
    environment = {"PATH": "", "MPLBACKEND": backend, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
