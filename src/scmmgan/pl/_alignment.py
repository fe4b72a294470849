"""Modalities before and after alignment, and predicted against measured values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scmmgan import get
from scmmgan.data.modality import in_joint, listed
from scmmgan.pl._below import not_validated
from scmmgan.pl._predicted import draw_predictions, predict
from scmmgan.pl._style import CMAP, MISSING, SMALL, TEXT, WIDTH
from scmmgan.pl._utils import Paint, colorbar, finish, make_axes, paint, suggest

if TYPE_CHECKING:
    from matplotlib.collections import Collection
    from matplotlib.colors import Colormap
    from mudata import MuData


def alignment(
    mdata: MuData,
    source: str | None = None,
    target: str | None = None,
    *,
    color: str = "modality",
    features: str | Sequence[str] | None = None,
    pairs: str | pd.DataFrame | None = None,
    key: str = "scmmgan",
    cmap: str | Colormap = CMAP,
    size: float | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | np.ndarray | None:
    """Modalities before and after alignment, and predicted against measured values.

    Before: one panel for each modality, its measured cells in its own model space, on the first two principal components
    there. Modalities in a shared space (most features have equal names) are in one panel, on joint components. Shifts
    between platforms do not show there, as every feature is z-scored in each modality. After: all cells in the joint
    embedding, on its first two components; with `source` and `target` the mapped cells of the source among the measured
    ones of the target, on the first two components of the latter. Cells are plotted in random order, so that no modality
    hides another; cells without a value in `color` lie below, light grey. Points are rasterised in vector output.

    Two components show a small part of the distances: mixed colours are necessary for a good alignment, not a proof of
    one. Where pairs are known, `pairs` and `features` test it: for each feature the values predicted for cells of the
    source against those measured in their partners, with Pearson's r. Pairs that the alignment was given are left out.

    Parameters
    ----------
    mdata
        Aligned modalities.
    source
        Modality whose mapped cells are drawn; default: all modalities in the joint embedding.
    target
        Modality that they are mapped to; given with `source`.
    color
        "modality", or an `obs` column of one or several modalities. Numbers get a colour bar from their 1st to
        their 99th percentile, anything else a legend.
    features
        Features of the target for predicted against measured values (the layer that the alignment read, unsmoothed);
        given with `pairs`.
    pairs
        Cells known to be the same, as for :func:`scmmgan.tl.align`: `"obs_names"`, a boolean `obs` column, or a table
        with one column of cell names per modality.
    key
        Name of the alignment (`key_added` of :func:`scmmgan.tl.align`).
    cmap
        Colour map of a numeric `color`, and of the number of cells where predictions are binned (above 1,000 pairs).
    size
        Area of a point in square points; by default from the number of cells.
    ax
        Axes to draw into, one for each panel; by default those of a new figure, 170 mm wide.
    show
        Whether to show the picture; by default only in interactive sessions, notebooks included.
    return_fig
        Return the figure, unshown.

    Returns
    -------
    The :class:`~matplotlib.figure.Figure` if `return_fig`, `None` if the picture was shown, else an array of
    :class:`~matplotlib.axes.Axes`: before in the order of the modalities (one in a shared space), after, then one for
    each of `features`. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        No alignment `key`, no such modality, feature or cell, or no `obs` column `color` in any modality.
    ValueError
        The record is damaged or of another version, cells were added, renamed or come from another alignment,
        measured values have changed since, `source` without `target`, `features` without `pairs` or the other way round, no pair that the alignment was not
        given, or `ax` that is not one axes for each panel.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> axes = smm.pl.alignment(mdata, show=False)
    >>> axes.shape
    (3,)
    """
    names = listed(() if features is None else features)
    if (source is None) != (target is None) or (pairs is None) != (not names) or (names and source is None):
        raise ValueError(
            "`source` and `target` go together, and so do `pairs` and `features`, which need both; got "
            f"source={source!r}, target={target!r}, features={features!r}, pairs {'given' if pairs is not None else None}."
        )
    joint = get.embedding(mdata, key=key)
    predictions = [] if source is None or target is None else predict(mdata, source, target, names, pairs, key)
    if source is not None:
        joint = joint[joint.obs["modality"].isin([source, target]).to_numpy()]
    if color not in joint.obs:
        raise KeyError(
            f"No `obs` column {color!r} in any aligned modality.{suggest([color], joint.obs.columns)} "
            f"Columns found: {list(joint.obs.columns)}. {in_joint(mdata, color) or 'Pass one of them as `color`.'}"
        )
    modality = joint.obs["modality"].to_numpy().astype(str)
    own = [mdata[m].obs for m in dict.fromkeys(modality)]
    colors = paint(joint.obs[color] if color == "modality" else in_own_order(joint.obs[color], own), cmap)
    params = mdata.uns[key]["params"]
    shared = bool(params.get("shared_space", False))
    if source is not None and target is not None:
        # of three modalities two may share a space
        shared = bool(params.get("coupling", {}).get(source, {}).get(target, {}).get("shared_space", shared))
    views = clouds(np.asarray(joint.X), modality, joint.var["modality"].to_numpy().astype(str), target, shared=shared)
    # three panels fill the width; more wrap
    n = len(views) + len(predictions)
    n_rows = -(-n // 3)
    columns = legend_columns(list(colors.legend)) if colors.legend else 1
    below = 0.25 + 0.16 * -(-(len(colors.legend) + 1) // columns) if colors.legend else 0.0
    figure, axes = make_axes(ax, n, shape=(n_rows, -(-n // n_rows)), size=(WIDTH, 2.2 * n_rows + below))
    area = float(np.clip(9000 / joint.n_obs, 0.3, 9)) if size is None else size
    for panel, view in zip(axes, views):
        order = np.random.default_rng(0).permutation(len(view.cells))
        drawn = draw_cells(panel, view.xy[order], colors, view.cells[order], area)
        label_panel(panel, view)
    draw_predictions(figure, axes[len(views) :], predictions, cmap)
    if colors.legend:
        draw_legend(figure, axes, colors, color, columns if ax is None else 0)
    else:
        colorbar(figure, drawn, color, colors.extend, ax=list(axes), fraction=0.05, pad=0.02, aspect=25)
    note = not_validated(mdata, key, source, target)
    return finish(figure, axes, own=ax is None, show=show, return_fig=return_fig, below=note)


@dataclass(frozen=True)
class Cloud:
    """Cells on two components: row numbers, places, shares of the variance, what they are."""

    title: str
    cells: np.ndarray
    xy: np.ndarray
    share: np.ndarray
    axis: str = "PC"


def clouds(x: np.ndarray, modality: np.ndarray, block: np.ndarray, target: str | None, *, shared: bool) -> list[Cloud]:
    """Panels before and after: `x` cells × dimensions, the modality of each cell and of each dimension."""
    names = list(dict.fromkeys(modality))
    if not set(names) & set(block):
        # a method with one latent space has no spaces before
        return [Cloud("joint embedding", np.arange(len(x)), *principal_components(x))]
    rows = {name: np.flatnonzero(modality == name) for name in names}
    own = {name: x[modality == name][:, block == name] for name in names}
    found = []
    if shared:
        cells, joined = np.concatenate(list(rows.values())), np.vstack(list(own.values()))
        found.append(Cloud(f"before: {' and '.join(names)}", cells, *principal_components(joined), axis="joint PC"))
    else:
        found += [Cloud(f"before: {name}", rows[name], *principal_components(own[name])) for name in names]
    every = np.arange(len(x))
    if target is None:
        return [*found, Cloud("after: joint embedding", every, *principal_components(x))]
    source = next(name for name in names if name != target)
    places = principal_components(x[:, block == target], own[target])
    return [*found, Cloud(f"after: {source} mapped to {target}", every, *places, axis=f"{target} PC")]


def in_own_order(values: pd.Series, tables: Sequence[pd.DataFrame]) -> pd.Series:
    """Labels of all modalities with categories in the modalities' own order, where these give one."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return values
    columns = [table[values.name] for table in tables if values.name in table]
    own = [column.cat.categories for column in columns if isinstance(column.dtype, pd.CategoricalDtype)]
    order = list(dict.fromkeys(str(label) for categories in own for label in categories))
    complete = set(values.cat.categories) <= set(order)
    return values.cat.set_categories(order) if complete else values.astype(object)


def principal_components(x: np.ndarray, measured: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cells on the first two principal components of `measured` (default: of `x`), and their shares of its variance."""
    measured = x if measured is None else measured
    centre = measured.mean(axis=0)
    centred = measured - centre
    # dims × dims is at most a few hundred squared, however many the cells
    variance, axes = np.linalg.eigh((centred.T @ centred).astype(float))
    variance, axes = variance[::-1][:2].clip(0), axes[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1, 1)
    missing = 2 - axes.shape[1]  # one-dimensional spaces lie on a line
    scores = np.pad((x - centre) @ axes, ((0, 0), (0, missing)))
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


def label_panel(ax: Axes, cloud: Cloud) -> None:
    """Title and axis names; components have no scale worth reading."""
    ax.set_title(f"{fill(cloud.title, 32)}\n{len(cloud.cells):,} cells", fontsize=TEXT)
    ax.set_xlabel(f"{cloud.axis} 1 ({cloud.share[0]:.0%})", fontsize=SMALL)
    ax.set_ylabel(f"{cloud.axis} 2 ({cloud.share[1]:.0%})", fontsize=SMALL)
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
