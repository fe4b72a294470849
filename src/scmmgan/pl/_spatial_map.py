"""Features of spots or cells in space, measured beside mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

from scmmgan import get
from scmmgan.pl._utils import SMALL, TEXT, WIDTH, Paint, colorbar, finish, make_axes, paint, suggest

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.colors import Colormap
    from mudata import MuData


LEGEND: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "handletextpad": 0.2, "borderaxespad": 0.0}


@dataclass(frozen=True)
class Panel:
    """What one pair of axes shows."""

    title: str
    values: pd.Series | np.ndarray | None  # None: nothing to draw, the title says why
    bar: str = ""


def spatial_map(
    mdata: MuData,
    features: str | Sequence[str],
    *,
    source: str,
    target: str,
    key: str = "scmmgan",
    basis: str = "spatial",
    ncols: int = 1,
    cmap: str | Colormap = "viridis",
    size: float | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | np.ndarray | None:
    """Features of the source's cells in space, measured beside mapped.

    Two panels for each feature: left what the source measured (the layer that the alignment read), right what the
    alignment made of the same cells in the target's features. A target feature that the source measures under
    another name (linked features) is drawn under that name; several linked ones as their mean. What one side lacks
    stays an empty panel that says so.

    Measured and mapped values are in different units (each modality's own layer; mapped ones moreover on its
    smoothed scale), so every panel has its own colour bar, from the 1st to the 99th percentile of its cells;
    pointed ends of the bar mean that values lie beyond.

    Parameters
    ----------
    mdata
        Aligned modalities.
    features
        Features of the target or of the source, or `obs` columns of the source (drawn on the left, numbers or
        labels); one name or several. Features are looked up before columns.
    source
        Modality whose cells have coordinates.
    target
        Modality whose features were mapped.
    key
        Name of the alignment (`key_added` of :func:`scmmgan.tl.align`).
    basis
        `mdata[source].obsm` key of the coordinates, or that key without its leading ``"X_"``. Of three coordinates the
        first two are drawn. The second one grows downwards, as in images. Cells without finite coordinates are
        left out.
    ncols
        Features side by side in one row, each with its two panels.
    cmap
        Colour map of numbers.
    size
        Diameter of a spot in units of the coordinates; by default the median distance between nearest neighbours.
    ax
        Axes to draw into, two for each feature (measured, mapped, measured, ...); by default those of a new figure,
        170 mm wide.
    show
        Whether to show the picture; by default only in interactive sessions, notebooks included.
    return_fig
        Return the figure, unshown.

    Returns
    -------
    The :class:`~matplotlib.figure.Figure` if `return_fig`, `None` if the picture was shown, else an array of
    :class:`~matplotlib.axes.Axes`, (features, 2): measured, mapped. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        Unknown modality, alignment, feature or coordinates.
    ValueError
        No features, `ncols` below 1, coordinates with fewer than two columns, or `ax` of another size.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(spatial=True)
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> names = mdata["protein"].var_names[:2]
    >>> axes = smm.pl.spatial_map(mdata, names, source="rna", target="protein", show=False)
    >>> axes.shape
    (2, 2)
    """
    names = [features] if isinstance(features, str) else list(features)
    if not names or ncols < 1:
        raise ValueError(f"Nothing to draw: {len(names)} features, ncols={ncols}. Name a feature; ncols is 1 or more.")
    for name in (source, target):
        if name not in mdata.mod:
            raise KeyError(f"No modality {name!r} in `mdata`.{suggest([name], mdata.mod)} Found: {list(mdata.mod)}.")
    xy = coordinates(mdata[source], source, basis)
    pairs = contents(mdata, names, source, target, key)
    diameter = spacing(xy) if size is None else size
    ncols = min(ncols, len(pairs))
    low, high = limits(xy, diameter)
    shape, inches = layout(len(pairs), ncols, ratio=float((high[1] - low[1]) / (high[0] - low[0])))
    figure, axes = make_axes(ax, 2 * len(pairs), shape=shape, size=inches)
    axes = axes.reshape(-1, 2)
    for (left, right), (measured, mapped) in zip(axes, pairs):
        colors = draw_panel(figure, left, xy, measured, cmap, diameter)
        draw_panel(figure, right, xy, mapped, cmap, diameter)
        if colors is not None and colors.legend:
            # labels have no mapped panel: its place holds their legend
            right.legend(handles=colors.handles(), loc="upper left", ncols=-(-len(colors.legend) // 12), **LEGEND)
    return finish(figure, axes, own=ax is None, show=show, return_fig=return_fig)


def coordinates(adata: AnnData, modality: str, basis: str) -> np.ndarray:
    """First two coordinates of all cells, (cells, 2)."""
    found = next((name for name in (basis, f"X_{basis}") if name in adata.obsm), None)
    if found is None:
        raise KeyError(
            f"No coordinates {basis!r} in `mdata[{modality!r}].obsm`.{suggest([basis], adata.obsm)} Found: "
            f"{list(adata.obsm)}. Pass one of them as `basis`, or another modality as `source`."
        )
    xy = np.asarray(adata.obsm[found])
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise ValueError(f"`mdata[{modality!r}].obsm[{found!r}]` has shape {xy.shape}; a map needs two columns.")
    return xy[:, :2].astype(float)


def contents(mdata: MuData, names: list[str], source: str, target: str, key: str) -> list[tuple[Panel, Panel]]:
    """What the two panels of each name show; all names are looked up before anything is drawn."""
    adata, goal = mdata[source], mdata[target]
    options = [*goal.var_names, *adata.var_names, *adata.obs.columns]
    if unknown := sorted(set(names) - set(options)):
        raise KeyError(
            f"{unknown} found neither among the features of {target!r} ({goal.n_vars}) and {source!r} "
            f"({adata.n_vars}) nor among the `obs` columns of {source!r}.{suggest(unknown, options)} "
            f"See `mdata[{target!r}].var_names`."
        )
    # decoded for these features alone; also checks that there is such an alignment
    wanted = [name for name in dict.fromkeys(names) if name in goal.var_names]
    mapped = get.mapped(mdata, source, target, features=wanted, key=key)
    pairs = []
    for name in names:
        if name not in goal.var_names and name not in adata.var_names:
            pairs.append((Panel(f"{name}\n{source}", adata.obs[name], name), Panel("", None)))
            continue
        left = measured_panel(mdata, name, source, target, key)
        right = Panel(f"{name}\nnot measured in {target}", None)
        if name in goal.var_names:
            right = Panel(f"{name}\nmapped to {target}", dense(mapped[:, name].X).ravel(), f"{target} (layer units)")
        pairs.append((left, right))
    return pairs


def measured_panel(mdata: MuData, name: str, source: str, target: str, key: str) -> Panel:
    """The source's own values of a feature, or the mean of those linked with it, or an empty panel."""
    adata = mdata[source]
    found = [name] if name in adata.var_names else linked(mdata, name, source, target, key)
    if not found:
        return Panel(f"{name}\nnot measured in {source}", None)
    layer = read_layer(mdata, source, key)
    part = adata[:, found]
    values = dense(part.X if layer is None else part.layers[layer]).reshape(adata.n_obs, -1).mean(axis=1)
    title = found[0] if len(found) == 1 else f"mean of {', '.join(found)}"
    return Panel(f"{title}\nmeasured in {source}", values, f"{source} (layer units)")


def linked(mdata: MuData, name: str, source: str, target: str, key: str) -> list[str]:
    """Features of the source that stand for the same gene as a feature of the target."""
    links = mdata.uns[key]["params"]["links"]
    if isinstance(links, pd.DataFrame):
        return list(dict.fromkeys(links.loc[links[target] == name, source])) if {source, target} <= set(links) else []
    genes = gene_names(mdata[target].var.loc[[name]], links)[0]
    return [own for own, names in zip(mdata[source].var_names, gene_names(mdata[source].var, links)) if names & genes]


def gene_names(var: pd.DataFrame, column: str) -> list[set[str]]:
    """Genes of each feature: a `var` column ("CD3D;CD3E" names two), or the feature's own name."""
    values = var[column] if column in var else var.index.to_series()
    return [{gene.strip() for gene in text.split(";")} - {""} for text in values.astype(object).fillna("").map(str)]


def read_layer(mdata: MuData, modality: str, key: str) -> str | None:
    """Layer that the alignment read for a modality; `None` is `X`."""
    stored = mdata.uns[key]["params"]["layer"]
    layer = stored.get(modality) if isinstance(stored, Mapping) else stored
    if layer is None or layer == "None":  # how `params` keeps a None
        return None
    if layer not in mdata[modality].layers:
        raise KeyError(
            f"The alignment {key!r} read layer {layer!r} of {modality!r}, which is gone. Layers found: "
            f"{list(mdata[modality].layers)}. Put it back, or align again."
        )
    return str(layer)


def dense(values: Any) -> np.ndarray:
    """Any matrix as a dense array of floats."""
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=float)


def layout(n: int, ncols: int, *, ratio: float) -> tuple[tuple[int, int], tuple[float, float]]:
    """Rows × columns of panels, and width × height of the figure in inches."""
    shape = (-(-n // ncols), 2 * ncols)
    # the gap between panels takes 0.2 inches, title and colour bar 0.95; no panel is higher than 3
    width = min(WIDTH / shape[1] - 0.2, 3 / ratio)
    return shape, ((width + 0.2) * shape[1], (width * ratio + 0.95) * shape[0])


def limits(xy: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner of the map, never more than four times as long as wide."""
    here = xy[np.isfinite(xy).all(axis=1)]
    low, high = (here.min(axis=0), here.max(axis=0)) if len(here) else (np.zeros(2), np.ones(2))
    half = (high - low) / 2 + margin
    half = np.maximum(half, half.max() / 4)
    return (low + high) / 2 - half, (low + high) / 2 + half


def spacing(xy: np.ndarray) -> float:
    """Median distance to the nearest neighbour, but at least 1/400 of the extent, so that a spot can be seen."""
    places = np.unique(xy[np.isfinite(xy).all(axis=1)], axis=0)
    extent = float(np.ptp(places, axis=0).max()) if len(places) else 0.0
    if len(places) < 2:
        return 1.0
    # a hundred places tell the spacing; all against all would be quadratic
    chosen = np.random.default_rng(0).choice(len(places), min(len(places), 100), replace=False)
    nearest = [np.partition(((places - places[i]) ** 2).sum(axis=1), 1)[1] ** 0.5 for i in chosen]
    return max(float(np.median(nearest)), extent / 400)


def draw_panel(
    figure: Figure, ax: Axes, xy: np.ndarray, panel: Panel, cmap: str | Colormap, diameter: float
) -> Paint | None:
    """Spots of true size in the colour of their values, above a colour bar."""
    here = np.isfinite(xy).all(axis=1)
    low, high = limits(xy, diameter)
    # upside down, as images are stored
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
    ax.set_title(panel.title, fontsize=TEXT, loc="left")
    if panel.values is None:
        ax.set_axis_off()
        return None
    colors = paint(panel.values, cmap)
    one = ([diameter], [diameter], [0.0])
    spots = EllipseCollection(*one, units="xy", offsets=xy[here], offset_transform=ax.transData)
    spots.set_array(np.ma.masked_invalid(colors.values[here]))
    spots.set(cmap=colors.cmap, norm=colors.norm, linewidth=0, rasterized=True)
    ax.add_collection(spots, autolim=False)
    ax.spines[:].set_linewidth(0.4)
    if not colors.legend:
        flat = (high[0] - low[0]) / (high[1] - low[1])
        bar = ax.inset_axes((0.0, -0.06 * flat, 1.0, 0.028 * flat))
        colorbar(figure, spots, panel.bar, colors.extend, cax=bar, orientation="horizontal")
    return colors
