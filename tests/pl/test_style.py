"""Colours that people with colour blindness tell apart, and text that is text in vector files."""

from __future__ import annotations

import inspect
import io
import itertools

import matplotlib as mpl
import mudata as md
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from scmmgan import pl
from scmmgan.pl._style import CMAP, CMAP_SHARES, MISSING, OKABE_ITO, palette

# full deficiency in linear RGB: Machado, Oliveira and Fernandes (2009), table 1
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colors: object, blindness: object = BLINDNESS["none"]) -> np.ndarray:
    """CIELAB of sRGB colours as they are seen, (colours, 3)."""
    rgb = np.array([to_rgb(color) for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(blindness), 0, 1) @ TO_XYZ.T
    x, y, z = np.cbrt(seen / TO_XYZ.sum(1)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def least_difference(colors: list[str], kind: str) -> float:
    """Euclidean distance (delta E) of the two colours that are hardest to tell apart."""
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab(colors, BLINDNESS[kind]), 2))


@pytest.mark.parametrize("kind", BLINDNESS)
def test_labels_are_told_apart(kind: str):
    """About 2 is just noticed. Red and green of equal lightness are the counterexample."""
    assert least_difference([*OKABE_ITO, MISSING], kind) > 15
    assert least_difference(palette(24), kind) > 3
    assert least_difference(["#c0504d", "#7f8c3b"], "deutan") < least_difference(["#c0504d", "#7f8c3b"], "none") / 2


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("name", [CMAP, CMAP_SHARES])
def test_numbers_grow_lighter(name: str, kind: str):
    lightness = lab(mpl.colormaps[name](np.linspace(0, 1, 20))[:, :3], BLINDNESS[kind])[:, 0]
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize(("kind", "text"), [("svg", b">training step</text>"), ("pdf", b"/CIDFontType2")])
def test_text_is_text(kind: str, text: bytes, aligned: md.MuData):
    """Without a setting of the user's, and none is changed."""
    assert mpl.rcParams["svg.fonttype"] == "path"
    file = io.BytesIO()
    with mpl.rc_context({"pdf.compression": 0}):
        before = mpl.rcParams.copy()
        pl.history(aligned, return_fig=True).savefig(file, format=kind)
        assert mpl.rcParams == before
    assert text in file.getvalue()


def test_no_picture_saves_itself():
    """`return_fig=True` and matplotlib's savefig do."""
    for name in pl.__all__:
        assert not [p for p in inspect.signature(getattr(pl, name)).parameters if "save" in p]
