"""Cells placed in a tissue, over its real positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from scmmgan import get
from scmmgan.data.modality import in_joint
from scmmgan.data.sections import read_column
from scmmgan.pl._below import not_validated
from scmmgan.pl._style import CMAP, MISSING, OKABE_ITO, SMALL, TEXT, WIDTH
from scmmgan.pl._utils import Paint, colorbar, finish, make_axes, paint, suggest

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

NAMES = "xyz"
HEIGHT = 3.2  # of a panel at most, inches
MOST = 40  # panels: more make a picture of two metres


def coordinates(
    mdata: MuData,
    source: str,
    target: str,
    *,
    color: str | Sequence[str] | None = None,
    layer: str | None = None,
    dims: tuple[int, int] = (0, 1),
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    ncols: int = 2,
    cmap: str | Colormap = CMAP,
    key: str = "scmmgan",
    ax: Any = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | np.ndarray | None:
    """Cells of `source` where :func:`scmmgan.tl.place` put them, over the real positions of `target` in grey.

    Of cells that were placed in sections there is a panel for each section, on one scale, with its own cells and positions.

    Parameters
    ----------
    mdata
        Aligned modalities, with cells placed.
    source
        Modality whose cells were placed.
    target
        Modality with the tissue.
    color
        Feature or `obs` column of the source, or `"spread"` (how far apart the places are that fit a cell); or several,
        a panel each. Features are looked up before columns. Default: one colour. Numbers are cut at their 1st and 99th
        percentile, and cells with higher ones lie on top.
    layer
        Layer of the source with a feature's values; default `X`.
    dims
        Axes of the coordinates to draw, counted from 0; of three coordinates the first two by default. The other one is
        not seen: places one behind the other coincide.
    library_key
        `obs` column of the target with the sections; default: the one that cells were placed by.
    library_id
        Section or sections to draw, by name; default: all.
    ncols
        Panels side by side.
    cmap
        Colour map of numbers.
    key
        Name of the alignment (`key_added` of :func:`scmmgan.tl.align`).
    ax
        One axes per panel; by default those of a new figure, 85 mm (one panel) or 170 mm wide. Of two
        coordinates the second one grows downwards, as in images.
    show
        Whether to show the picture; by default only in interactive sessions, notebooks included.
    return_fig
        Return the figure, unshown.

    Returns
    -------
    The :class:`~matplotlib.figure.Figure` if `return_fig`, `None` if the picture was shown, else the
    :class:`~matplotlib.axes.Axes`, or an array of them where `color` is a list or there are several sections (all sections
    of a colour, then those of the next). Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If cells were not placed, the target's coordinates or sections are gone, or nothing is called `color`, `layer` or
        `library_id`.
    ValueError
        If the record is damaged or of another version; if cells were added, renamed or come from another alignment;
        if `dims` are not two different axes of the coordinates, `color` is empty, `ncols` is below 1, there are
        more than 40 panels, sections are named of cells that were placed without, or `ax` has another size.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(spatial=True)
    >>> smm.tl.align(mdata, links="gene", spatial="spatial", max_steps=50, progress_bar=False)
    >>> smm.tl.place(mdata, "protein", "rna")
    >>> ax = smm.pl.coordinates(mdata, "protein", "rna", color="spread", show=False)
    >>> ax.get_title(loc="left")
    'spread'
    """
    table = get.coordinates(mdata, source, target, key=key)
    real = _tissue(mdata, target, table.attrs["spatial"])
    shown = _axes_to_draw(dims, real.shape[1])
    names: list[str | None] = [color] if color is None or isinstance(color, str) else list(color)
    if not names or ncols < 1:
        raise ValueError(f"Nothing to draw: {len(names)} panels, ncols={ncols}. Name a `color`; ncols is 1 or more.")
    values = [_values(mdata, str(n), layer, table, source) if n is not None else None for n in names]
    parts = _parts(mdata, target, table, np.isfinite(real).all(axis=1), library_key, library_id)
    if (n := len(names) * len(parts)) > MOST:
        raise ValueError(f"{n} panels are too many for one picture ({MOST}). Choose some sections as `library_id`.")
    # two coordinates are those of an image
    flat = real.shape[1] == 2
    xy, real = table[list(NAMES[: real.shape[1]])].to_numpy()[:, shown], real[:, shown]
    ncols = min(ncols, n)
    shape = (-(-n // ncols), ncols)
    middle, half = _extents([np.vstack([xy[cells], real[spots]]) for _, cells, spots in parts])
    width = WIDTH / max(ncols, 2)
    # a legend or colour bar takes a quarter of the width
    height = float(np.clip(0.75 * width * half[1] / max(half[0], 1e-12), 0.8, HEIGHT)) + 0.7
    figure, axes = make_axes(ax, n, shape=shape, size=(width * ncols, height * shape[0]))
    panels = [(name, found, at, part) for name, found in zip(names, values) for at, part in zip(middle, parts)]
    for panel, (name, found, at, (section, cells, spots)) in zip(axes, panels):
        panel.set_xlabel(NAMES[shown[0]], fontsize=SMALL, labelpad=1)
        panel.set_ylabel(NAMES[shown[1]], fontsize=SMALL, labelpad=1)
        title = (str(name) if name is not None else f"{source} placed in {target}") + (
            f", {section}" if section else ""
        )
        panel.set_title(fill(title, 34), fontsize=TEXT, loc="left")
        colors = None if found is None else paint(found, cmap)
        if colors is not None:
            colors = replace(colors, values=colors.values[cells])
        _draw(panel, xy[cells], real[spots], colors, name, source)
        # the margin keeps dots whole
        (left, right), (low, high) = zip(at - 1.08 * half, at + 1.08 * half)
        panel.set(aspect="equal", xlim=(left, right), ylim=(high, low) if flat else (low, high))
    note = not_validated(mdata, key, source, target)
    several = n > 1 or (color is not None and not isinstance(color, str))
    return finish(figure, axes if several else axes[0], own=ax is None, show=show, return_fig=return_fig, below=note)


def _parts(
    mdata: MuData, target: str, table: pd.DataFrame, there: np.ndarray, library_key: str | None,
    library_id: str | Sequence[str] | None,
) -> list[tuple[str, np.ndarray, np.ndarray]]:  # fmt: skip
    """Name of each section, and which cells and real positions (bool; of those that are `there`) are of it."""
    column = library_key or table.attrs.get("library_key")
    chosen = [library_id] if isinstance(library_id, str) else list(library_id or ())
    if "section" not in table:
        if chosen or library_key is not None:
            raise ValueError(
                f"Cells were placed in {target!r} without sections. Run `scmmgan.tl.place(mdata, ..., library_key=...)` first."
            )
        return [("", np.ones(len(table), dtype=bool), there)]
    sections = read_column(mdata, target, column, gaps=True)
    placed = table["section"].astype(str).to_numpy()
    if gone := sorted(set(placed) - set(sections.names)):
        raise KeyError(
            f"Cells were placed in sections {gone[:3]} that obs[{column!r}] of {target!r} does not have: {list(sections.names)}. "
            "Name another column as `library_key`, or place them again."
        )
    if unknown := [name for name in chosen if name not in sections.names]:
        raise KeyError(
            f"No section {unknown[0]!r}.{suggest(unknown[:1], sections.names)} Found: {list(sections.names)}."
        )
    return [
        (name, placed == name, there & (sections.codes == code))
        for code, name in enumerate(sections.names)
        if name in (chosen or sections.names)
    ]


def _extents(points: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Middle of each set of points, and half of the sides that hold any of them: panels are on one scale."""
    corners = [(p.min(0), p.max(0)) if len(p) else (np.zeros(2), np.zeros(2)) for p in points]
    half = np.max([(high - low) / 2 for low, high in corners], axis=0)
    return [(low + high) / 2 for low, high in corners], np.maximum(half, max(half.max(), 1e-12) / 100)


def _tissue(mdata: MuData, target: str, spatial: str) -> np.ndarray:
    """Real positions (n × d)."""
    if spatial not in mdata[target].obsm:
        raise KeyError(
            f"`mdata[{target!r}].obsm` has no {spatial!r} any more, which cells were placed by. "
            f"Found: {list(mdata[target].obsm)}."
        )
    return np.asarray(mdata[target].obsm[spatial], dtype=float)


def _axes_to_draw(dims: Sequence[int], d: int) -> list[int]:
    """Two different axes of d."""
    found = [int(i) for i in dims]
    if len(found) != 2 or found[0] == found[1] or not all(0 <= i < d for i in found):
        raise ValueError(f"`dims` must be two different numbers from 0 to {d - 1}, got {dims!r}.")
    return found


def _values(mdata: MuData, name: str, layer: str | None, table: pd.DataFrame, source: str) -> pd.Series | np.ndarray:
    """What cells are coloured by: a feature, an `obs` column, or the spread."""
    adata: AnnData = mdata[source]
    if name in adata.var_names:
        if layer is not None and layer not in adata.layers:
            raise KeyError(f"No layer {layer!r} in {source!r}. Found: {list(adata.layers)}. `layer=None` reads X.")
        part = adata[:, [name]]
        found = part.X if layer is None else part.layers[layer]
        return np.asarray(found.toarray() if hasattr(found, "toarray") else found, dtype=float).ravel()
    if name in adata.obs:
        return adata.obs[name]
    if name == "spread":
        return table["spread"]
    options = [*adata.var_names, *adata.obs.columns, "spread"]
    raise KeyError(
        f"{name!r} is neither a feature of {source!r} ({adata.n_vars}) nor an `obs` column of it."
        f"{suggest([name], options)} Columns found: {list(adata.obs.columns)}; `'spread'` is known, too. {in_joint(mdata, name)}"
    )


def _draw(ax: Axes, xy: np.ndarray, real: np.ndarray, colors: Paint | None, name: str | None, source: str) -> None:
    """The tissue in grey, and cells on top of it."""
    n = max(len(xy), len(real))
    size = float(np.clip(6_000 / n, 0.6, 9))
    dots: dict[str, Any] = {"linewidths": 0, "rasterized": n > 20_000}
    ax.scatter(real[:, 0], real[:, 1], s=size, color=MISSING, zorder=1, **dots)
    ax.tick_params(labelsize=SMALL, width=0.6, length=2)
    ax.locator_params(nbins=4)
    ax.spines[:].set_linewidth(0.4)
    figure = ax.figure.figure
    if colors is None:
        ax.scatter(xy[:, 0], xy[:, 1], s=size, color=OKABE_ITO[0], zorder=2, **dots)
        return
    # high values are rare and would be hidden; of labels the order is random, but always the same
    rank = np.where(colors.known, colors.values, -np.inf)
    mixed = np.random.default_rng(0).permutation(len(xy))
    order = mixed if colors.legend else np.argsort(rank, kind="stable")
    values = colors.values[order]
    drawn = ax.scatter(
        xy[order, 0], xy[order, 1], c=values, cmap=colors.cmap, norm=colors.norm, s=size, zorder=2, plotnonfinite=True,
        **dots,
    )  # fmt: skip
    if colors.legend:
        style: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "handletextpad": 0.1, "columnspacing": 0.8}
        columns = -(-len(colors.legend) // 16)
        ax.legend(handles=colors.handles(), loc="upper left", bbox_to_anchor=(1.0, 1.03), ncols=columns, **style)
        return
    # as high as the panel is drawn, whose sides have the proportions of the tissue
    label = "units of the coordinates" if name == "spread" else source
    colorbar(figure, drawn, fill(label, 14), colors.extend, cax=ax.inset_axes((1.03, 0.0, 0.035, 1.0)))
