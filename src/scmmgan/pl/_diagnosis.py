"""Diagnosis of an alignment: held-out evidence against its null, rivals, swaps, shares without a partner."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scmmgan import get
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.pl._style import MISSING, MM, OKABE_ITO, SMALL, TEXT, WIDTH
from scmmgan.pl._utils import finish, make_axes

if TYPE_CHECKING:
    from mudata import MuData

MANY = 30  # links up to which each is a bar with its name
EVIDENT = 0.05  # q of links in colour
BEST = 5  # links named beyond


def diagnosis(
    mdata: MuData,
    source: str,
    target: str,
    *,
    key: str = "scmmgan",
    ax: Any = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | np.ndarray | None:
    """What supports the alignment of two modalities, under its verdict.

    Four panels. Held-out evidence: the correlation of every link with its partner, predicted by a coupling made without
    it, against what noise allows (its ceiling), links with q < .05 in colour; or, without links, the share of cells nearer
    than the partner, of every known pair. With it the mean, and the range of means that shuffled tables reach. Rivals: relative costs of other couplings where shapes decided, else the mean
    beside those of shuffled tables. Swap gaps: for every population, how much of the evidence speaks against a swap with
    the one it could best be swapped with (1: all of it; below the dashed line the two are hard to distinguish). Shares of
    each population without a partner, and that rival couplings send elsewhere.

    Parameters
    ----------
    mdata
        Aligned modalities.
    source
        One of the two modalities.
    target
        The other.
    key
        Name of the alignment (`key_added` of :func:`scmmgan.tl.align`).
    ax
        Four axes to draw into; by default those of a new figure, 170 mm wide.
    show
        Whether to show the picture; by default only in interactive sessions, notebooks included.
    return_fig
        Return the figure, unshown.

    Returns
    -------
    The :class:`~matplotlib.figure.Figure` if `return_fig`, `None` if the picture was shown, else the four
    :class:`~matplotlib.axes.Axes` in an array. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        `mdata.uns[key]` holds no alignment or no diagnosis of the two.
    ValueError
        The record is damaged or of another version, cells were added, renamed or come from another alignment,
        the method has no coupling, `ax` does not have four axes.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> axes = smm.pl.diagnosis(mdata, "rna", "protein", show=False)
    >>> len(axes)
    4
    """
    record = get.diagnosis(mdata, source, target, key=key)
    _slots.check_coupled(mdata, Keys(key))
    table = pd.DataFrame(record["populations"]).reset_index(drop=True)
    rows = max(len(table), min(len(record.get("links", ())), MANY), 12)
    height = (40 + 3.6 * rows + 38) * MM
    figure, axes = make_axes(ax, 4, shape=(2, 2), size=(WIDTH, height + 40 * MM))
    _evidence(axes[0], record)
    _rivals(axes[1], record)
    _swaps(axes[2], table, float(record["swap_limit"]), geometry=record["kind"] == "geometry")
    _shares(axes[3], table)
    for panel in axes:
        panel.tick_params(labelsize=SMALL)
        panel.spines[["top", "right"]].set_visible(False)
    title = fill(f"{source} and {target}: {record['verdict']}", 90)
    if ax is None:
        figure.suptitle(title, fontsize=TEXT + 1, fontweight="bold")
    else:
        axes[0].set_title(title, fontsize=TEXT, fontweight="bold")
    return finish(figure, axes, own=ax is None, show=show, return_fig=return_fig)


def _nothing(ax: Axes, text: str) -> None:
    """A panel without anything to draw says why."""
    ax.text(0.5, 0.5, fill(text, 26), ha="center", va="center", fontsize=TEXT, transform=ax.transAxes)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _name(record: Mapping[str, Any]) -> str:
    return "links" if "links_mean" in record else "pairs" if "pairs_mean" in record else ""


def _evidence(ax: Axes, record: Mapping[str, Any]) -> None:
    """Held-out links against their ceilings (bars with names where they are few), or pairs, with the null's range of means."""
    name = _name(record)
    if not name:
        _nothing(ax, "No links and no pairs: nothing can be held out.")
        return
    null = np.asarray(record[f"{name}_null"])
    ax.axvspan(null.min(), null.max(), color=MISSING, label="means of shuffled tables", zorder=0)
    ax.axvline(record[f"{name}_mean"], color=OKABE_ITO[1], linewidth=1.3, label="mean")
    if name == "pairs":
        ax.hist(np.asarray(record["pairs"]), bins=np.linspace(0, 1, 21).tolist(), color=OKABE_ITO[0])
        ax.set_xlabel("share of cells nearer than the held-out partner", fontsize=TEXT)
        ax.set_ylabel("known pairs", fontsize=TEXT)
    else:
        links = pd.DataFrame(record["links"]).sort_values("correlation", ascending=False, ignore_index=True)
        labels = [f"{a} – {b}" if a != b else str(a) for a, b in zip(links.iloc[:, 0], links.iloc[:, 1])]
        evident = (links["q"] < EVIDENT).to_numpy()
        colors = np.where(evident, OKABE_ITO[0], "0.6").tolist()
        if len(links) <= MANY:
            at = np.arange(len(links))
            ax.barh(at, links["correlation"], color=colors, height=0.7)
            ax.plot(links["ceiling"], at, "|", color="black", markersize=7, label="noise ceiling")
            ax.set_yticks(at, labels)
            ax.margins(y=0.01)
        else:
            ax.scatter(links["correlation"], links["ceiling"], s=3, c=colors, linewidth=0, rasterized=True)
            ax.plot([0, 1], [0, 1], color="0.3", linestyle="--", linewidth=0.8, label="all that noise allows")
            ax.set_ylabel("noise ceiling", fontsize=TEXT)
            best = [label for label, there in zip(labels, evident) if there][:BEST]
            named = "\n".join([f"q < {EVIDENT:.2f}: {evident.sum()} of {len(links)}", *best])
            ax.text(0.02, 0.97, named, fontsize=SMALL, va="top", transform=ax.transAxes)
        # more of them would touch
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel("correlation of held-out links", fontsize=TEXT)
    ax.legend(fontsize=SMALL, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _rivals(ax: Axes, record: Mapping[str, Any]) -> None:
    """Relative costs of rival couplings, or the mean of the evidence among those of shuffled tables."""
    gaps = np.asarray(record.get("gaps", np.empty(0)), dtype=float)
    name = _name(record)
    if record["kind"] == "geometry" and len(gaps):
        ax.bar(np.arange(len(gaps)) + 2, 100 * gaps, color=OKABE_ITO[0], width=0.6)
        ax.axhline(
            100 * record["swap_limit"], color="0.3", linestyle="--", linewidth=0.8, label="counted as a rival below"
        )
        ax.set_xticks(np.arange(len(gaps)) + 2)
        ax.set_xlabel("competing coupling, best = 1", fontsize=TEXT)
        ax.set_ylabel("cost above the best, %", fontsize=TEXT)
    elif name:
        ax.hist(np.asarray(record[f"{name}_null"]), bins=20, color="0.7", label="shuffled tables")
        ax.axvline(record[f"{name}_mean"], color=OKABE_ITO[1], linewidth=1.3, label=f"these {name}")
        # more of them would touch
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel(f"mean over held-out {name}, p = {record[f'{name}_p']:.2f}", fontsize=TEXT)
        ax.set_ylabel("shuffled tables", fontsize=TEXT)
    else:
        _nothing(ax, "The search found no other coupling. That certifies nothing.")
        return
    ax.legend(fontsize=SMALL, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _rows(ax: Axes, table: pd.DataFrame, *, named: bool) -> None:
    """One row per population, first on top."""
    ax.set_yticks(np.arange(len(table)), table["population"] if named else [""] * len(table))
    ax.set_ylim(len(table) - 0.4, -0.6)


def _swaps(ax: Axes, table: pd.DataFrame, limit: float, *, geometry: bool) -> None:
    """Swap gap of every population and the name of what it could be swapped with, where that is likely."""
    none = (table["swap"] == "").to_numpy()
    gap = np.where(none, np.nan, table["gap"].to_numpy(dtype=float))
    close = gap < limit
    ax.barh(np.arange(len(table)), gap, color=np.where(close, OKABE_ITO[1], OKABE_ITO[0]).tolist(), height=0.7)
    ax.axvline(limit, color="0.3", linestyle="--", linewidth=0.8)
    ax.axvline(0, color="0.3", linewidth=0.6)
    _rows(ax, table, named=True)
    ax.set_xlabel(
        "swap gap: relative cost" if geometry else "swap gap: held-out evidence against a swap", fontsize=TEXT
    )
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4}
    for i in np.flatnonzero(close).tolist():
        at = max(gap[i], 0) + 0.01 * np.ptp(ax.get_xlim())
        ax.text(at, i, f"↔ {table['swap'][i]}", va="center", fontsize=SMALL - 1, bbox=paper)
    if none.all():
        ax.text(
            0.5, 0.5, "no rival answer", ha="center", va="center", fontsize=TEXT, transform=ax.transAxes, bbox=paper
        )


def _shares(ax: Axes, table: pd.DataFrame) -> None:
    """Unmatched and ambiguous share of every population."""
    at = np.arange(len(table))
    ax.barh(at - 0.2, table["unmatched"], height=0.38, color=OKABE_ITO[2], label="unmatched")
    ax.barh(at + 0.2, table["ambiguous"], height=0.38, color=OKABE_ITO[4], label="ambiguous")
    ax.set_xlim(0, 1)
    _rows(ax, table, named=False)
    ax.set_xlabel("share of the population's cells", fontsize=TEXT)
    ax.legend(fontsize=SMALL, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
