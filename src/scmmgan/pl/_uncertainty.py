"""Uncertainty of mapped features: the extremes by name, the score against the detection rate, its calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scmmgan import get
from scmmgan.pl._below import not_validated
from scmmgan.pl._style import MISSING, MM, OKABE_ITO, SMALL, TEXT, WIDTH
from scmmgan.pl._utils import finish, make_axes

if TYPE_CHECKING:
    from mudata import MuData

BINS = 10  # of the calibration curve, of equal numbers of features
LONGEST = 18  # letters of a name
SPARSE = 0.05  # detection rates below which the axis is logarithmic


def uncertainty(
    mdata: MuData,
    source: str,
    target: str,
    *,
    n_features: int = 10,
    key: str = "scmmgan",
    ax: Any = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | np.ndarray | None:
    """Uncertainty of the features of `target` in mapped cells of `source`.

    Three panels. The most and the least uncertain features by name. The score of every feature against the share of cells
    it is seen in, those with a linked feature in another colour: a feature that is rarely seen need not be uncertain.
    Calibration: the score against what was observed (with known pairs: the error over the variance; else 1 - r² of linked
    features that were held out), with medians over tenths of the features; on the dashed line both are equal.

    Parameters
    ----------
    mdata
        Aligned modalities, after :func:`scmmgan.tl.uncertainty`.
    source
        Modality whose cells were mapped.
    target
        Modality whose features they were mapped to.
    n_features
        Features named at either end (default 10).
    key
        Name of the alignment (`key_added` of :func:`scmmgan.tl.align`).
    ax
        Three axes to draw into; by default those of a new figure, 170 mm wide.
    show
        Whether to show the picture; by default only in interactive sessions, notebooks included.
    return_fig
        Return the figure, unshown.

    Returns
    -------
    The :class:`~matplotlib.figure.Figure` if `return_fig`, `None` if the picture was shown, else the three
    :class:`~matplotlib.axes.Axes` in an array. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        `mdata.uns[key]` holds no alignment or no uncertainty of the two.
    ValueError
        The record is damaged or of another version, cells were added, renamed or come from another alignment,
        `ax` does not have three axes, `n_features` is below 1, or no feature has a score.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.uncertainty(mdata, "rna", "protein")
    >>> axes = smm.pl.uncertainty(mdata, "rna", "protein", show=False)
    >>> len(axes)
    3
    """
    if n_features < 1:
        raise ValueError(f"`n_features` must be at least 1, got {n_features}.")
    record = get.uncertainty_summary(mdata, source, target, key=key)
    table = record["features"].dropna(subset="uncertainty").sort_values("uncertainty", kind="stable")
    if table.empty:
        raise ValueError(f"No feature of {target!r} has a score: all are seen in too few cells.")
    shown = min(len(table), 2 * n_features)
    figure, axes = make_axes(ax, 3, shape=(1, 3), size=(WIDTH, max(65.0, 22 + 3.4 * (shown + 1)) * MM))
    linked = table.index.isin([str(name) for name in record.get("linked", ())])
    _extremes(axes[0], table["uncertainty"], n_features)
    _against_detection(axes[1], table, linked, len(record["features"]))
    _calibration(axes[2], record)
    for panel in axes:
        panel.tick_params(labelsize=SMALL)
        panel.spines[["top", "right"]].set_visible(False)
    title = f"{source} → {target}: uncertainty of {len(table):,} features ({record['method']})"
    if ax is None:
        figure.suptitle(title, fontsize=TEXT + 1, fontweight="bold")
    else:
        axes[0].set_title(title, fontsize=TEXT, fontweight="bold")
    note = not_validated(mdata, key, source, target)
    return finish(figure, axes, own=ax is None, show=show, return_fig=return_fig, below=note)


def _extremes(ax: Axes, score: pd.Series, n: int) -> None:
    """Bars of the lowest and the highest scores, highest on top, a gap between the two."""
    if (between := len(score) - 2 * n) > 0:
        score = pd.concat([score.iloc[:n], score.iloc[-n:]])
        at = np.r_[np.arange(n), np.arange(n) + n + 1]
        colors = [OKABE_ITO[0]] * n + [OKABE_ITO[1]] * n
        ax.text(0.03, n, f"… {between:,} between …", va="center", fontsize=SMALL - 1, color="0.3")
    else:
        at, colors = np.arange(len(score)), [OKABE_ITO[0]] * len(score)
    ax.barh(at, score, color=colors, height=0.7)
    names = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in map(str, score.index)]
    ax.set_yticks(at, names)
    ax.set_ylim(-0.6, at[-1] + 0.6)
    ax.set_xlim(0, 1)
    ax.set_xlabel("uncertainty", fontsize=TEXT)


def _against_detection(ax: Axes, table: pd.DataFrame, linked: np.ndarray, n_all: int) -> None:
    """Scores over the share of cells a feature is seen in; linked features on top."""
    size = float(np.clip(2_000 / len(table), 2, 16))
    for inside, color, label in ((~linked, "0.55", "without"), (linked, OKABE_ITO[2], "with")):
        if inside.any():
            of = table[inside]
            # many points in one picture stay small in a file of vectors
            ax.scatter(of["detection"], of["uncertainty"], s=size if label == "without" else max(size, 9), color=color, linewidths=0, rasterized=len(of) > 2_000, label=f"{label} linked feature ({len(of):,})")  # fmt: skip
    if table["detection"].quantile(0.05) < SPARSE:
        ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    ax.set_ylim(0, 1)
    missing = n_all - len(table)
    ax.set_xlabel("cells in which it is seen" + f"\n({missing:,} rarely seen: no score)" * (missing > 0), fontsize=TEXT)
    ax.set_ylabel("uncertainty", fontsize=TEXT)
    ax.legend(fontsize=SMALL, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), handletextpad=0.1)


def _calibration(ax: Axes, record: Mapping[str, Any]) -> None:
    """Observed over predicted: every feature, medians of tenths, the line of equality."""
    table = pd.DataFrame(record.get("calibration", {"predicted": [], "observed": []})).dropna()
    if table.empty:
        why = "Too few links to hold some out" if record.get("n_with") else "No pairs and no links"
        ax.text(0.5, 0.5, f"{why}:\nnothing to calibrate on.", ha="center", va="center", fontsize=TEXT, transform=ax.transAxes)  # fmt: skip
        ax.set_axis_off()
        return
    pairs = record["calibration_source"] == "known pairs"
    predicted, observed = table["predicted"].to_numpy(dtype=float), table["observed"].to_numpy(dtype=float)
    top = max(1.0, float(np.quantile(observed, 0.99)) * 1.05)
    color = MISSING if len(table) > 3 * BINS else OKABE_ITO[0]
    ax.scatter(predicted, np.minimum(observed, top), s=float(np.clip(2_000 / len(table), 2, 16)), color=color, linewidths=0, rasterized=len(table) > 2_000)  # fmt: skip
    ax.plot([0, 1], [0, 1], color="0.3", linestyle="--", linewidth=0.8)
    if len(table) > 3 * BINS:
        parts = np.array_split(np.argsort(predicted, kind="stable"), BINS)
        medians = np.array([[np.median(predicted[p]), np.median(observed[p])] for p in parts])
        ax.plot(*medians.T, color=OKABE_ITO[0], marker="o", markersize=3, linewidth=1.2, label="median of a tenth")
        ax.legend(fontsize=SMALL, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.01 * top, 1.02 * top)
    label = f"uncertainty of {len(table):,} {'features' if pairs else 'linked features'}"
    if "coverage" in record:
        label += f"\n({record['coverage']:.0%} intervals cover {record['coverage_reached']:.1%})"
    ax.set_xlabel(label, fontsize=TEXT)
    ax.set_ylabel("error / variance, known pairs" if pairs else "1 − r², held-out linked features", fontsize=TEXT)
