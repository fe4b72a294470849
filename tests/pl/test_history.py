"""Loss terms against training step, read back from the artists."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scmmgan import pl


def named_lines(ax: Axes) -> dict[str, object]:
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_lines_are_the_recorded_terms(aligned):
    ax = pl.history(aligned, show=False)
    history = aligned.uns["scmmgan"]["history"]
    lines = named_lines(ax)
    assert list(lines) == ["cycle", "geometry", "links (0)"]
    raw = [line for line in ax.lines if line.get_label() == "_raw"]
    for line, faint, name in zip(lines.values(), raw, ["cycle", "geometry", "links"]):
        np.testing.assert_array_equal(line.get_xdata(), history["step"])
        np.testing.assert_array_equal(faint.get_ydata(), history[name])
        assert faint.get_alpha() < 0.5
    # the running mean over 10 steps is centred and calmer than what it smooths
    smooth = np.asarray(lines["geometry"].get_ydata())
    np.testing.assert_allclose(smooth[100], history["geometry"][95:105].mean(), rtol=1e-12)
    assert smooth.std() < 0.5 * history["geometry"].std()


def test_terms_differ_in_colour_and_line(aligned):
    names = ["adversarial", "cycle", "anchors", "links", "geometry", "discriminator", "identity", "more"]
    steps = np.arange(5)
    aligned.uns["scmmgan"]["history"] = {"step": steps} | dict.fromkeys(names, steps + 1.0)
    ax = pl.history(aligned, show=False)
    lines = named_lines(ax)
    assert list(lines) == names
    assert len({(line.get_color(), str(line.get_linestyle())) for line in lines.values()}) == len(names)
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == names
    ax.figure.canvas.draw()
    box, inside = legend.get_window_extent(), ax.get_window_extent()
    assert box.x0 >= inside.x1
    assert box.x1 <= ax.figure.bbox.x1


def test_short_histories_are_drawn_as_recorded(aligned):
    history = aligned.uns["scmmgan"]["history"]
    aligned.uns["scmmgan"]["history"] = {name: values[:30] for name, values in history.items()}
    ax = pl.history(aligned, show=False)
    assert len(ax.lines) == 3
    np.testing.assert_array_equal(named_lines(ax)["geometry"].get_ydata(), history["geometry"][:30])


@pytest.mark.parametrize(
    ("low", "high", "scale"), [(0.001, 1, "log"), (0.1, 1, "linear"), (-1, 100, "linear"), (0, 100, "linear")]
)
def test_scale(aligned, low, high, scale):
    aligned.uns["scmmgan"]["history"] = {"step": np.arange(3), "a": np.array([low, high, high]), "off": np.zeros(3)}
    assert pl.history(aligned, show=False).get_yscale() == scale


def test_one_tiny_record_does_not_extend_the_axis(aligned):
    values = np.ones(200)
    values[0] = 1e-9
    aligned.uns["scmmgan"]["history"] = {"step": np.arange(200), "a": values}
    ax = pl.history(aligned, show=False)
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(ax.get_ylim()[0], 0.7 * 4 / 5, rtol=0.1)


def test_axis_names(aligned):
    ax = pl.history(aligned, show=False)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training step", "loss, before weighting")


def test_given_axes(aligned):
    figure, axes = plt.subplots(1, 2)
    assert pl.history(aligned, ax=axes[1], show=False) is axes[1]
    assert len(axes[0].lines) == 0
    assert pl.history(aligned, ax=axes[0], return_fig=True) is figure
    assert plt.get_fignums() == [figure.number]


def test_wrong_axes(aligned):
    _, axes = plt.subplots(1, 2)
    with pytest.raises(ValueError, match=r"shape \(2,\).*needs 1 matplotlib axes.*subplots\(1, 1\)"):
        pl.history(aligned, ax=axes)
    with pytest.raises(ValueError, match="needs 1 matplotlib axes"):
        pl.history(aligned, ax="left")


def test_show(aligned, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    assert isinstance(pl.history(aligned, show=False), Axes)
    assert isinstance(pl.history(aligned, return_fig=True), Figure)
    assert isinstance(pl.history(aligned), Axes)
    plt.close("all")
    assert shown == []
    assert pl.history(aligned, show=True) is None
    assert shown == [1]
    assert plt.get_fignums() == []
    # the user's own figure is the user's to close
    figure, ax = plt.subplots()
    assert pl.history(aligned, ax=ax, show=True) is None
    assert plt.get_fignums() == [figure.number]
    plt.close("all")
    # an interactive session whose backend shows nothing
    with plt.ion():
        assert isinstance(pl.history(aligned), Axes)
    assert len(shown) == 2


def test_unknown_key(aligned):
    with pytest.raises(KeyError, match=r"other.*scmmgan\.tl\.align"):
        pl.history(aligned, key="other")
    assert plt.get_fignums() == []
