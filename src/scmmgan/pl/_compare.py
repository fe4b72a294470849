"""Methods side by side: a dot for each score, its median and its worst seed, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from scmmgan import get
from scmmgan.pl._style import CMAP_SHARES, MM, OKABE_ITO, SMALL, TEXT, WIDTH
from scmmgan.pl._utils import finish, make_axes, suggest

if TYPE_CHECKING:
    from mudata import MuData

# what is drawn by default, of what there is, in this order; by what the score needs
GROUPS = {
    "pairs": "true partners",
    "labels": "labels",
    "held-out features": "held out",
    "shared features": "own values",
    "nothing": "without any truth",
}
SHOWN = {
    "pairs": ("foscttm", "recall_at_", "correlation", "auroc"),
    "labels": ("label_transfer",),
    "held-out features": ("held-out correlation given depth",),
    "shared features": ("correlation with own values",),
    "nothing": ("two_sample_auc", "neighborhood_overlap", "cycle"),
}
NAMES = {
    "foscttm": "FOSCTTM",
    "foscttm by correlation": "FOSCTTM by correlation",
    "auroc": "AUROC",
    "two_sample_auc": "two-sample AUC",
}
COSTS = ("seconds", "memory")
DOT = 130.0  # points², of a perfect score
LEAST = 4.0  # of one that is no better than chance
GAP = 0.5  # between groups of columns
UNIT, ROW = 8.5, 9.5  # mm of a column and of a row
LEAST_ROWS = 2  # else what stands below one row, in units of rows, leaves it no room
LETTER, LEFT = 1.6, 30.0  # mm of a letter of a name, and of all names at least
BESIDE = 9.5  # columns that bars, costs and verdicts take


def compare(
    mdata: MuData,
    source: str,
    target: str,
    *,
    metrics: Sequence[str] | None = None,
    key: str = "scmmgan",
    ax: Any = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Scores of several methods as a table of dots.

    A dot for every method and metric: its area and colour go from chance (small, dark) to a perfect map (large, pale), the
    number below is the median of the seeds, the mean of both directions. The ring is the worst seed (of the worse
    direction): where it lies well inside the dot, a method is not reliable. Metrics without a known chance go from the worst
    of the methods. Rows are sorted by the mean of the dots, drawn as a bar; it weighs all columns alike, which nobody has to.
    Beside it what a run cost (median) and what supports it. A method that failed says why.

    Parameters
    ----------
    mdata
        Data after :func:`scmmgan.tl.compare`.
    source
        Modality that was named first there.
    target
        The other one.
    metrics
        Metrics that are drawn; default: a choice of those that there are.
    key
        `key_added` of the comparison.
    ax
        Axes to draw into; by default those of a new figure.
    show
        Whether to show the picture; by default only in interactive sessions, notebooks included.
    return_fig
        Return the figure, unshown.

    Returns
    -------
    The :class:`~matplotlib.figure.Figure` if `return_fig`, `None` if the picture was shown, else the
    :class:`~matplotlib.axes.Axes`. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        The two were not compared, or a metric is unknown.
    ValueError
        The record is damaged or of another version, or `ax` is not a single axes.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(n_cells=80)
    >>> table = smm.tl.compare(mdata, "rna", "protein", methods=["coupling"], seeds=[0], progress_bar=False)
    >>> ax = smm.pl.compare(mdata, "rna", "protein", show=False)
    >>> ax.get_yticklabels()[0].get_text()
    'coupling'
    """
    table = get.comparison(mdata, source, target, key=key)
    columns = _columns(table, metrics)
    median, scaled, scaled_worst = _scores(table, [name for _, name in columns])
    overall = scaled.mean(axis=1).reindex(table["method"].unique())
    order = overall.sort_values(ascending=False, kind="stable", na_position="last").index
    at = _positions(columns)
    left = max(LEFT, 8 + LETTER * max(len(name) for name in order))
    wide = max(WIDTH / MM - left, UNIT * (at[-1] + BESIDE))
    size = ((left + wide) * MM, (50 + ROW * max(len(order), LEAST_ROWS)) * MM)
    figure, axes = make_axes(ax, 1, shape=(1, 1), size=size)
    panel: Axes = axes[0]
    for row, method in enumerate(order):
        about = table[table["method"] == method].set_index("metric")
        if method in scaled.index:
            _dots(panel, row, at, *(of.loc[method].to_numpy(dtype=float) for of in (median, scaled, scaled_worst)))
            _beside(panel, row, at[-1] + 1, float(overall[method]), about)
        else:
            reason = shorten(f"failed. {about['error'].iloc[0]}", int(wide / LETTER), placeholder=" …")
            panel.text(at[0] - 0.4, row, reason, fontsize=SMALL, color="0.35", va="center")
    _frame(panel, columns, at, list(order), f"{source} and {target}")
    return finish(figure, panel, own=ax is None, show=show, return_fig=return_fig)


def _columns(table: pd.DataFrame, metrics: Sequence[str] | None) -> list[tuple[str, str]]:
    """What each column needs, and its metric."""
    there = table.drop_duplicates("metric").set_index("metric")["needs"]
    there = there[~there.index.isin(COSTS)]
    if metrics is None:
        found = [
            (needs, str(name))
            for needs, shown in SHOWN.items()
            for of in shown
            for name in there.index
            if name == of or (of.endswith("_") and str(name).startswith(of))
        ]
    else:
        wanted = [metrics] if isinstance(metrics, str) else list(metrics)
        if unknown := [name for name in wanted if name not in there.index]:
            raise KeyError(f"No metric {unknown[0]!r}.{suggest(unknown, there.index)} Found: {list(there.index)}.")
        found = sorted([(str(there[name]), name) for name in wanted], key=lambda of: list(GROUPS).index(of[0]))
    return found or [("nothing", "no score")]


def _scores(table: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Medians (methods × metrics), and medians and worst seeds between chance (0) and best (1); of methods that have any."""
    own = table[table["metric"].isin(names)]
    far = {name: (own[name] - own["best"]).abs() for name in ("median", "worst")}
    # without a known chance the worst of the methods is 0
    span = (own["chance"] - own["best"]).abs()
    span = span.fillna(far["worst"].groupby([own["metric"], own["direction"]]).transform("max"))
    span = span.where(span > 0, 1)
    own = own.assign(scaled=(1 - far["median"] / span).clip(0, 1), scaled_worst=(1 - far["worst"] / span).clip(0, 1))
    how = {"median": "mean", "scaled": "mean", "scaled_worst": "min"}
    found = own.groupby(["method", "metric"], sort=False).agg(how)
    wide = [found[name].unstack("metric").reindex(columns=list(names)) for name in how]
    return wide[0], wide[1], wide[2]


def _positions(columns: Sequence[tuple[str, str]]) -> np.ndarray:
    """Where columns stand, groups a little apart."""
    new = [0.0, *(GAP * (a[0] != b[0]) for a, b in pairwise(columns))]
    return np.arange(len(columns)) + np.cumsum(new)


def _dots(ax: Axes, row: int, at: np.ndarray, median: np.ndarray, scaled: np.ndarray, scaled_worst: np.ndarray) -> None:
    """One row: dots for medians, rings for the worst seeds, numbers."""
    there = np.isfinite(scaled)

    def area(of: np.ndarray) -> np.ndarray:
        return LEAST + (DOT - LEAST) * of[there]

    y = np.full(there.sum(), row - 0.16)
    colors = colormaps[CMAP_SHARES](Normalize(0, 1)(scaled[there]))
    ax.scatter(at[there], y, s=area(scaled), c=colors, linewidths=0, zorder=2)
    ring = ["white" if of < 0.55 else "black" for of in scaled[there]]
    ax.scatter(
        at[there], y, s=area(scaled_worst), facecolors="none", edgecolors=ring or "none", linewidths=0.7, zorder=3
    )
    for x, value, known in zip(at, median, there):
        text = _number(value) if known else "–"
        ax.text(x, row + 0.32 if known else row, text, fontsize=SMALL - 1.5, ha="center", va="center")


def _number(value: float) -> str:
    """Two digits, without the zero before the point."""
    small = f"{round(value, 2) + 0.0:.2f}"  # no -0
    return small.replace("0.", ".", 1) if small.lstrip("-").startswith("0.") else f"{value:.1f}"


def _beside(ax: Axes, row: int, x: float, overall: float, about: pd.DataFrame) -> None:
    """The mean as a bar, what a run cost, and what supports it."""
    ax.add_patch(Rectangle((x - 0.3, row - 0.3), 1.5 * overall, 0.6, color=OKABE_ITO[5], linewidth=0, zorder=2))
    ax.text(x - 0.2, row, _number(overall), fontsize=SMALL, va="center", zorder=3)
    for i, (name, unit) in enumerate(zip(COSTS, ("s", "MB"))):
        cost = float(np.asarray(about.loc[name, "median"]))
        text = "" if not np.isfinite(cost) else f"{cost:,.0f} {unit}" if cost >= 10 else f"{cost:.1f} {unit}"
        text = text if not text.startswith("0.0") else f"< 0.1 {unit}"
        ax.text(x + 2.5 + 1.5 * i, row, text, fontsize=SMALL - 0.5, va="center", ha="right")
    first = about.iloc[0]
    notes = [str(first["verdict"]).partition(":")[0].partition(";")[0]]
    notes += [f"{int(first['failed'])} failed"] if first["failed"] else []
    text = shorten(", ".join(note for note in notes if note), 30, placeholder=" …")
    ax.text(x + 4.2, row, text, fontsize=SMALL - 0.5, va="center")


def _frame(ax: Axes, columns: Sequence[tuple[str, str]], at: np.ndarray, methods: Sequence[str], title: str) -> None:
    """Names of rows and columns, groups above them, the legend."""
    ax.set_xlim(-0.7, at[-1] + BESIDE)
    ax.set_ylim(max(len(methods), LEAST_ROWS) - 0.4, -0.6)
    ax.set_yticks(np.arange(len(methods)), methods, fontsize=TEXT)
    names = [NAMES.get(name, name.replace("_", " ").replace("correlation", "r")) for _, name in columns]
    ends = (at[-1] + 1.2, at[-1] + 3.1, at[-1] + 4.6, at[-1] + 5.4)
    heads = [*names, "mean", "time", "memory", "verdict"]
    ax.set_xticks([*at, *ends], heads, rotation=40, ha="left", rotation_mode="anchor", fontsize=SMALL)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for row in range(len(methods)):
        if row % 2 == 0:
            ax.axhspan(row - 0.5, row + 0.5, color="0.95", linewidth=0, zorder=0)
    for needs in dict.fromkeys(needs for needs, _ in columns):
        own = [x for x, (of, _) in zip(at, columns) if of == needs]
        y = len(methods) - 0.4
        ax.plot([own[0] - 0.4, own[-1] + 0.4], [y, y], color="0.4", linewidth=0.8, clip_on=False)
        ax.text(np.mean(own), y + 0.12, GROUPS[needs].replace(" ", "\n", len(own) < 2), fontsize=SMALL, ha="center", va="top", clip_on=False)  # fmt: skip
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgewidth": 0}
    shown = (("chance, or worse", 0.0), ("half-way", 0.5), ("a perfect map", 1.0))
    handles = [
        Line2D(
            [], [], **dot, markersize=np.sqrt(LEAST + (DOT - LEAST) * of), color=colormaps[CMAP_SHARES](of), label=label
        )
        for label, of in shown
    ]
    ring = {**dot, "markeredgewidth": 0.7, "markeredgecolor": "black"}
    handles.append(Line2D([], [], **ring, markersize=6, color="none", label="worst seed"))
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(-0.7, len(methods) + 0.5),
        bbox_transform=ax.transData, ncols=4, fontsize=SMALL, frameon=False,
    )  # fmt: skip
    ax.set_title(title, fontsize=TEXT + 1, fontweight="bold", loc="left")
