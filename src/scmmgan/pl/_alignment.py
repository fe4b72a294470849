"""Both modalities before and after alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scmmgan import get
from scmmgan.pl._utils import MISSING, SMALL, TEXT, WIDTH, Paint, colorbar, finish, make_axes, paint, suggest

if TYPE_CHECKING:
    from matplotlib.collections import Collection
    from matplotlib.colors import Colormap
    from mudata import MuData


def alignment(
    mdata: MuData,
    *,
    color: str = "modality",
    key: str = "scmmgan",
    cmap: str | Colormap = "viridis",
    size: float | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | np.ndarray | None:
    """Both modalities before and after alignment.

    One panel for each modality before (its measured cells in its own model space, on that space's first two
    principal components) and a last panel after (all cells in the joint embedding, on its first two principal
    components). Cells are drawn in random order, so that no modality hides another; cells without a value in
    `color` lie below, light grey. Points are rasterised in vector output.

    Two components show a small part of the distances: mixed colours are necessary for a good alignment, not a
    proof of one.

    Parameters
    ----------
    mdata
        Aligned modalities.
    color
        "modality", or an `obs` column of one or several modalities. Numbers get a colour bar from their 1st to
        their 99th percentile, anything else a legend.
    key
        Name of the alignment (`key_added` of :func:`scmmgan.tl.align`).
    cmap
        Colour map of a numeric `color`.
    size
        Area of a point in square points; by default from the number of cells.
    ax
        Axes to draw into, one for each modality and one for the joint embedding; by default those of a new
        figure, 170 mm wide.
    show
        Whether to show the picture; by default only in interactive sessions, notebooks included.
    return_fig
        Return the figure, unshown.

    Returns
    -------
    The :class:`~matplotlib.figure.Figure` if `return_fig`, `None` if the picture was shown, else an array of
    :class:`~matplotlib.axes.Axes`, (modalities + 1,): before in the order of the modalities, then after. Nothing
    is written to `mdata`.

    Raises
    ------
    KeyError
        No alignment `key`, or no `obs` column `color` in any modality.
    ValueError
        `ax` is not one axes for each panel.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> axes = smm.pl.alignment(mdata, show=False)
    >>> axes.shape
    (3,)
    """
    joint = get.embedding(mdata, key=key)
    if color not in joint.obs:
        raise KeyError(
            f"No `obs` column {color!r} in any aligned modality.{suggest([color], joint.obs.columns)} "
            f"Columns found: {list(joint.obs.columns)}. Pass one of them as `color`."
        )
    modality = joint.obs["modality"].to_numpy().astype(str)
    names = list(dict.fromkeys(modality))
    values = joint.obs[color] if color == "modality" else in_own_order(joint.obs[color], [mdata[m].obs for m in names])
    colors = paint(values, cmap)
    # three panels fill the width; more wrap
    n = len(names) + 1
    n_rows = -(-n // 3)
    columns = legend_columns(list(colors.legend)) if colors.legend else 1
    below = 0.25 + 0.16 * -(-(len(colors.legend) + 1) // columns) if colors.legend else 0.0
    figure, axes = make_axes(ax, n, shape=(n_rows, -(-n // n_rows)), size=(WIDTH, 2.2 * n_rows + below))
    order = np.random.default_rng(0).permutation(joint.n_obs)
    area = float(np.clip(9000 / joint.n_obs, 0.3, 9)) if size is None else size
    for panel, name in zip(axes, [*names, None]):
        cells = order if name is None else order[modality[order] == name]
        space = slice(None) if name is None else (joint.var["modality"] == name).to_numpy()
        coordinates, share = principal_components(np.asarray(joint.X)[cells][:, space])
        drawn = draw_cells(panel, coordinates, colors, cells, area)
        label_panel(panel, "after: joint embedding" if name is None else f"before: {name}", len(cells), share)
    if colors.legend:
        draw_legend(figure, axes, colors, color, columns if ax is None else 0)
    else:
        colorbar(figure, drawn, color, colors.extend, ax=list(axes), fraction=0.05, pad=0.02, aspect=25)
    return finish(figure, axes, own=ax is None, show=show, return_fig=return_fig)


def in_own_order(values: pd.Series, tables: Sequence[pd.DataFrame]) -> pd.Series:
    """Labels of all modalities with categories in the modalities' own order, where these give one."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return values
    columns = [table[values.name] for table in tables if values.name in table]
    own = [column.cat.categories for column in columns if isinstance(column.dtype, pd.CategoricalDtype)]
    order = list(dict.fromkeys(str(label) for categories in own for label in categories))
    complete = set(values.cat.categories) <= set(order)
    return values.cat.set_categories(order) if complete else values.astype(object)


def principal_components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components, (cells, 2), and their shares of the variance, (2,)."""
    centred = x - x.mean(axis=0)
    # dims × dims is at most a few hundred squared, however many the cells
    variance, axes = np.linalg.eigh((centred.T @ centred).astype(float))
    variance, axes = variance[::-1][:2].clip(0), axes[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1, 1)
    missing = 2 - axes.shape[1]  # one-dimensional spaces lie on a line
    scores = np.pad(centred @ axes, ((0, 0), (0, missing)))
    return scores, np.pad(variance, (0, missing)) / max(float((centred**2).sum()), np.finfo(float).tiny)


def draw_cells(ax: Axes, xy: np.ndarray, colors: Paint, cells: np.ndarray, size: float) -> Collection:
    """Cells in the order given, those without a value below the others."""
    known = colors.known[cells]
    x, y = xy.T
    if not known.all():
        ax.scatter(x[~known], y[~known], s=size, color=MISSING, linewidths=0, rasterized=True, zorder=1)
    values = colors.values[cells][known]
    drawn = ax.scatter(x[known], y[known], s=size, c=values, cmap=colors.cmap, norm=colors.norm)
    drawn.set(linewidth=0, rasterized=True, zorder=2)
    return drawn


def label_panel(ax: Axes, title: str, n_cells: int, share: np.ndarray) -> None:
    """Title and axis names; components have no scale worth reading."""
    ax.set_title(f"{title}\n{n_cells:,} cells", fontsize=TEXT)
    ax.set_xlabel(f"PC 1 ({share[0]:.0%})", fontsize=SMALL)
    ax.set_ylabel(f"PC 2 ({share[1]:.0%})", fontsize=SMALL)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[["top", "right"]].set_visible(False)


def legend_columns(labels: list[str]) -> int:
    """Columns of a legend with the fewest rows that fits side by side; about 110 small characters fill the width."""
    widths = np.array([len(label) + 6 for label in [*labels, "no value"]])
    for rows in range(1, len(widths)):
        columns = -(-len(widths) // rows)
        if sum(part.max() for part in np.array_split(widths, columns)) <= 110:
            return columns
    return 1


def draw_legend(figure: Figure, axes: np.ndarray, colors: Paint, title: str, columns: int) -> None:
    """Legend below the panels, or (`columns` 0) beside the last of the user's own."""
    style: dict[str, Any] = {"title": title, "fontsize": SMALL, "title_fontsize": SMALL, "frameon": False}
    style |= {"handles": colors.handles(), "handletextpad": 0.2, "columnspacing": 1.0, "handlelength": 1.2}
    if columns:
        figure.legend(loc="outside lower center", ncols=columns, **style)
    else:
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), **style)
