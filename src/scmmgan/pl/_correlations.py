"""Correlations of a gene as they were measured against those in cells of the other modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from scmmgan import get
from scmmgan.pl._below import not_validated, only_known_glyphs, write_below
from scmmgan.pl._style import MM, OKABE_ITO, SMALL, TEXT, WIDTH
from scmmgan.pl._utils import finish, make_axes

if TYPE_CHECKING:
    from mudata import MuData

COLORS = {"spurious": OKABE_ITO[1], "novel": OKABE_ITO[0]}
ANGLES = np.deg2rad([0, 180, 90, 270, 45, 135, 225, 315])  # where a name may stand beside its point
STEPS = (4.0, 8.0, 14.0, 22.0, 32.0)  # and how far off, in points


def correlations(
    mdata: MuData,
    source: str,
    target: str,
    *,
    gene: str | Sequence[str] | None = None,
    n_names: int = 10,
    key: str = "scmmgan",
    ax: Any = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | np.ndarray | None:
    """Correlations with a gene, as measured in `source` against those in cells of `target`, one panel for each gene.

    Shaded are the paper's lists: among the `n_top` strongest on one side (and at least `threshold`), below `threshold` on
    the other. Coloured are the features that :func:`scmmgan.tl.correlations` called spurious or novel; the others are grey.
    Candidates without a verdict (a gene without evidence of its own, or mapped cells) are open circles, with a question mark
    in the legend. Names stand beside their points, verdicts first, then those of the largest change, and none where it would
    cover another one. Points are rasterised in vector output.

    Parameters
    ----------
    mdata
        Data after :func:`scmmgan.tl.correlations`.
    source
        Modality whose cells were mapped.
    target
        Modality whose features they were mapped to.
    gene
        Genes to draw, as they were named there; default: all.
    n_names
        How many spurious and how many novel features are named (default 10 each).
    key
        Name of the alignment (`key_added` of :func:`scmmgan.tl.align`).
    ax
        One axes per gene to draw into; by default those of a new figure, 85 mm wide for one gene, else 170 mm.
    show
        Whether to show the picture; by default only in interactive sessions, notebooks included.
    return_fig
        Return the figure, unshown.

    Returns
    -------
    The :class:`~matplotlib.figure.Figure` if `return_fig`, `None` if the picture was shown, else the
    :class:`~matplotlib.axes.Axes` of all genes in an array. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        There are no correlations of the two modalities, or of a gene.
    ValueError
        The record is damaged or of another version, cells were added, renamed or come from another alignment,
        `n_names` is negative, or `ax` is not one axes for each gene.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(shared_genes=True)
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.tl.correlations(mdata, "rna", "protein", gene="gene_0")
    >>> axes = smm.pl.correlations(mdata, "rna", "protein", show=False)
    >>> axes.shape
    (1,)
    """
    table = get.correlations(mdata, source, target, gene=gene, key=key)
    if not (isinstance(n_names, int | np.integer) and n_names >= 0):
        raise ValueError(f"`n_names` must be a whole number, 0 or more, got {n_names!r}.")
    rule = mdata.uns[key]["correlations"][source][target]
    where = source if rule["reference"] == "source" else target
    # the cells themselves, or what the map makes of others
    against = f"over pools of cells in {target}" if rule["method"] == "cells" else f"in {source} mapped to {target}"
    queries = table["query"].unique().tolist()
    columns = min(len(queries), 2)
    rows = -(-len(queries) // columns)
    figure, axes = make_axes(ax, len(queries), shape=(rows, columns), size=(columns * WIDTH / 2, rows * 88 * MM))
    drawn = []
    for panel, name in zip(axes, queries):
        part = table[table["query"] == name]
        _regions(panel, part, rule)
        _points(panel, part)
        panel.set_title(name, fontsize=TEXT + 1, fontweight="bold", pad=15)
        panel.set_xlabel(f"correlation measured in {where}", fontsize=TEXT)
        panel.set_ylabel(f"correlation {against}", fontsize=TEXT)
        drawn.append((panel, part))
    # names need the final places of the panels
    write_below(figure, not_validated(mdata, key, source, target), own=ax is None)
    only_known_glyphs([figure] if ax is None else list(axes))
    figure.figure.draw_without_rendering()
    for panel, part in drawn:
        _names(panel, part, n_names)
    return finish(figure, axes, own=ax is None, show=show, return_fig=return_fig)


def _cut(part: pd.DataFrame, side: str, rule: Mapping[str, Any]) -> float:
    """The weakest correlation that still counts as present by rank."""
    strongest = part[part[f"rank_{side}"] <= int(rule["n_top"])][f"r_{side}"]
    return max(float((strongest if rule["signed"] else strongest.abs()).min()), float(rule["threshold"]))


def _regions(ax: Axes, part: pd.DataFrame, rule: Mapping[str, Any]) -> None:
    """Shade where one side is strong and the other is not; both signs of each unless signed."""
    threshold, signed = float(rule["threshold"]), bool(rule["signed"])
    low = -1.0 if signed else -threshold
    ends = (1.0,) if signed else (1.0, -1.0)
    for verdict, side in (("spurious", "measured"), ("novel", "mapped")):
        cut = _cut(part, side, rule)
        for end in ends:
            strong, weak = (min(end, end * cut), 1 - cut), (low, threshold - low)
            (x, width), (y, height) = (strong, weak) if verdict == "spurious" else (weak, strong)
            color = COLORS[verdict]
            ax.add_patch(Rectangle((x, y), width, height, facecolor=color, alpha=0.13, edgecolor="none", zorder=0))
    ax.axhline(threshold, color="0.6", linewidth=0.5, linestyle=":", zorder=1)
    ax.axvline(threshold, color="0.6", linewidth=0.5, linestyle=":", zorder=1)
    ax.plot([-1, 1], [-1, 1], color="0.6", linewidth=0.5, zorder=1)
    ax.set(xlim=(-1.04, 1.04), ylim=(-1.04, 1.04), aspect="equal")
    ax.set_xticks([-1, -0.5, 0, 0.5, 1])
    ax.set_yticks([-1, -0.5, 0, 0.5, 1])
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)


def _points(ax: Axes, part: pd.DataFrame) -> None:
    """All features, those that were called above the others, and how many there are."""
    size = float(np.clip(6000 / len(part), 2, 9))
    none = (part["candidate"] == "").to_numpy()
    ax.scatter(
        part.loc[none, "r_measured"], part.loc[none, "r_mapped"], s=size, facecolors="0.55", linewidths=0, alpha=0.6,
        rasterized=True, zorder=2,
    )  # fmt: skip
    for kind, color in COLORS.items():
        called = (part["candidate"] == kind).to_numpy()
        sure = called & (part["verdict"] == kind).to_numpy()
        for chosen, doubt in ((sure, ""), (called & ~sure, "?")):
            # a count of 0 is said once
            if not chosen.any() and (doubt or called.any()):
                continue
            ax.scatter(
                part.loc[chosen, "r_measured"], part.loc[chosen, "r_mapped"], s=size + 3, edgecolors=color,
                facecolors="none" if doubt else color, linewidths=0.8 if doubt else 0, rasterized=True,
                label=f"{chosen.sum()} {kind}{doubt}", zorder=3,
            )  # fmt: skip
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles, labels, fontsize=SMALL, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 0.995),
        borderaxespad=0, handletextpad=0.1, columnspacing=1,
    )  # fmt: skip


def _names(ax: Axes, part: pd.DataFrame, n_names: int) -> None:
    """Names beside their points, with a thin line where they had to move; none that would cover another or a called point."""
    figure = ax.figure
    scale = figure.dpi / 72
    found = part[part["candidate"] != ""]
    order = np.lexsort((-found["change"].abs(), found["verdict"] == ""))
    ranked = found.iloc[order]
    chosen = pd.concat([ranked[ranked["candidate"] == kind].head(n_names) for kind in COLORS])
    points = ax.transData.transform(found[["r_measured", "r_mapped"]].to_numpy())
    inside = ax.get_window_extent()
    taken: list[Bbox] = []
    for _, row in chosen.iterrows():
        x, y = ax.transData.transform((row["r_measured"], row["r_mapped"]))
        text = ax.text(0, 0, str(row["feature"]), fontsize=SMALL - 1, color="0.1", ha="center", va="center", zorder=5)
        box = text.get_window_extent()
        place = _free((x, y), (box.width, box.height), points, taken, inside, scale)
        if place is None:
            text.remove()
            continue
        cx, cy, box = place
        text.set_position(tuple(ax.transData.inverted().transform((cx, cy)).tolist()))
        taken.append(box.padded(2 * scale))
        ends = ax.transData.inverted().transform([(x, y), (np.clip(x, box.x0, box.x1), np.clip(y, box.y0, box.y1))])
        ax.plot(*ends.T, color=COLORS[str(row["candidate"])], linewidth=0.4, zorder=2.5)


def _free(
    point: tuple[float, float],
    size: tuple[float, float],
    points: np.ndarray,
    taken: Sequence[Bbox],
    inside: Bbox,
    scale: float,
) -> tuple[float, float, Bbox] | None:
    """Centre and box of the nearest place beside a point that covers neither names nor points; None if there is none."""
    width, height = size
    for step in STEPS:
        for angle in ANGLES:
            cx = point[0] + np.cos(angle) * (step * scale + width / 2)
            cy = point[1] + np.sin(angle) * (step * scale + height / 2)
            box = Bbox.from_bounds(cx - width / 2, cy - height / 2, width, height)
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if not within or any(box.overlaps(other) for other in taken):
                continue
            pad = 1.5 * scale
            hit = (
                (points[:, 0] > box.x0 - pad) & (points[:, 0] < box.x1 + pad)
                & (points[:, 1] > box.y0 - pad) & (points[:, 1] < box.y1 + pad)
            )  # fmt: skip
            if not hit.any():
                return cx, cy, box
    return None
