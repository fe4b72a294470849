"""Features of spots or cells in space: measured, mapped by one or several alignments, and the uncertainty of that."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from scmmgan import get
from scmmgan.data.keys import Keys
from scmmgan.data.modality import in_joint, listed
from scmmgan.data.sections import column_aligned
from scmmgan.pl._below import not_validated
from scmmgan.pl._measured import linked, measured_values, units
from scmmgan.pl._style import CMAP, CMAP_SHARES, MISSING, SMALL, TEXT, WIDTH
from scmmgan.pl._tissue import Tissue, draw_image, draw_spots, read_tissues
from scmmgan.pl._utils import Paint, colorbar, finish, make_axes, paint, suggest

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from mudata import MuData

logger = logging.getLogger("scmmgan")

LEGEND: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "handletextpad": 0.2, "borderaxespad": 0.0}
DOUBT = "uncertainty"
RARE = "too rarely seen to score"
TALLEST = 2.3  # inches; four rows fit a page
MOST_ROWS = 40  # features × sections: more make a picture of two metres


@dataclass(frozen=True)
class Panel:
    """What one pair of axes shows: colours of the cells, or the reason why there are none."""

    colors: Paint | None = None
    bar: str = ""
    head: str = ""
    note: str = ""


def spatial_map(
    mdata: MuData,
    features: str | Sequence[str],
    *,
    source: str,
    target: str,
    key: str = "scmmgan",
    keys: Sequence[str] | None = None,
    uncertainty: bool = True,
    basis: str = "spatial",
    image: bool = True,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    cmap: str | Colormap = CMAP,
    size: float | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | np.ndarray | None:
    """Features of the source's cells in space: measured, mapped, and the uncertainty of the mapped values.

    One row for each feature, and for each of several sections below each other, on one scale. Columns: what the source measured (the layer that the alignment read); the same cells mapped
    to the target's features; where :func:`scmmgan.tl.uncertainty` was run, the uncertainty of the mapped feature; then
    the same for further alignments. A target feature that the source measures under another name (linked features) is
    shown under that name; several linked ones as their mean. A panel without values says why.

    Measured and mapped values are in different units (each modality's own layer; mapped ones on its smoothed scale). So
    each of the two has a colour bar of its own, from the 1st to the 99th percentile of the cells shown; pointed ends of
    the bar mean that values lie beyond. One feature mapped by several alignments that read the same layer has one scale
    in all of them. Uncertainty is that of the coupling, cell by cell (:func:`scmmgan.get.uncertainty`, relative). It
    always runs from 0 (predicted exactly by what the source measured) to 1 (as variable as in the whole population; a
    pointed end means that some cells lie beyond).

    Where the alignment is not fully supported, its verdict stands below the picture, and above each map the evidence for
    that feature alone: its held-out correlation and q, or that it was not tested (:func:`scmmgan.tl.diagnose`).

    Parameters
    ----------
    mdata
        Aligned modalities.
    features
        Features of the target or of the source, or `obs` columns of the source (drawn on the left, numbers or
        labels); one name or several. Features are looked up before columns. Labels that :func:`scmmgan.tl.transfer` carried
        over are drawn as compositions where most cells have no single label: one panel for the share of each label, on one
        scale, and one for what is unassigned.
    source
        Modality whose cells have coordinates.
    target
        Modality whose features were mapped.
    key
        Name of the alignment (`key_added` of :func:`scmmgan.tl.align`).
    keys
        Names of several alignments to draw side by side, instead of `key`. The first one says which layer and which
        linked features of the source count as measured.
    uncertainty
        Draw the uncertainty right of the mapped values of each alignment for which :func:`scmmgan.tl.uncertainty` was
        run (default `True`).
    basis
        `mdata[source].obsm` key of the coordinates, or that key without its leading ``"X_"``. Of three coordinates the
        first two are drawn. The second one grows downwards, as in images. Cells without finite coordinates are
        left out.
    image
        Draw over the tissue image of `mdata[source].uns["spatial"]` (squidpy's and scanpy's layout, "hires" before
        "lowres"), if it has one (default `True`).
    library_key
        `obs` column of the source with sections that share no frame of coordinates, which is then drawn one by one. Default:
        the column that was aligned, else the one whose values are the keys of `uns["spatial"]`, else `"library_id"`; a
        warning where there seem to be several frames and no column.
    library_id
        Section or sections to draw, by name; default: all. Sections have the images of `uns["spatial"]` of their names.
    cmap
        Colour map of measured and mapped numbers; uncertainty is drawn in "cividis".
    size
        Diameter of a spot in units of the coordinates; default: `spot_diameter_fullres` of the library's scale factors,
        else the median distance between nearest neighbours.
    ax
        Axes to draw into, row by row; by default those of a new figure, at most 170 mm wide.
    show
        Whether to show the picture; by default only in interactive sessions, notebooks included.
    return_fig
        Return the figure, unshown.

    Returns
    -------
    The :class:`~matplotlib.figure.Figure` if `return_fig`, `None` if the picture was shown, else an array of
    :class:`~matplotlib.axes.Axes`, (features × sections, columns): measured, then mapped (and uncertainty) of each alignment.
    Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        Unknown modality, alignment, feature, coordinates, column, section or library; an image without scale factor.
    ValueError
        If the record is damaged or of another version; if cells were added, renamed or come from another alignment;
        for no features or alignments, coordinates with fewer than two columns, several libraries and neither
        `library_id` nor a column that says which cells are of which, several such columns that disagree, too many
        rows, cells outside of the image, or `ax` of another size.

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
    names = listed(features)
    chosen = list(dict.fromkeys([key] if keys is None else [keys] if isinstance(keys, str) else keys))
    if not names or not chosen:
        raise ValueError(f"Nothing to draw: {len(names)} features, {len(chosen)} alignments. Name one of each.")
    for name in (source, target):
        if name not in mdata.mod:
            raise KeyError(f"No modality {name!r} in `mdata`.{suggest([name], mdata.mod)} Found: {list(mdata.mod)}.")
    aligned = column_aligned(mdata, source, chosen[0])
    tissues = read_tissues(
        mdata, source, basis, library_key=library_key, aligned=aligned, library_id=library_id, image=image, size=size
    )
    if len(names) * len(tissues) > MOST_ROWS:
        raise ValueError(
            f"{len(names)} features in {len(tissues)} sections are too many rows for one picture ({MOST_ROWS}). Choose some "
            "sections as `library_id`, or fewer features."
        )
    cells = np.concatenate([tissue.cells for tissue in tissues])
    names, panels = contents(mdata, names, source, target, chosen, cells, cmap, uncertainty=uncertainty)
    rows = [(name, tissue, row) for name, of in zip(names, panels) for tissue, row in zip(tissues, split(of, tissues))]
    low, high = tissues[0].limits
    shape = (len(rows), len(panels[0]))
    ratio = float((high[1] - low[1]) / (high[0] - low[0]))
    note = not_validated(mdata, chosen, source, target)
    width, inches = layout([row for _, _, row in rows], ratio=ratio, note=note)
    letters = max(int((width * ratio + 0.1) * 72 / (0.7 * TEXT)), 6)  # of a name along a row, bold
    figure, axes = make_axes(ax, shape[0] * shape[1], shape=shape, size=inches)
    axes = axes.reshape(shape)
    headed: set[int] = set()
    for (name, tissue, row), places in zip(rows, axes):
        for column, (panel, place) in enumerate(zip(row, places)):
            head = "" if column in headed else panel.head
            headed |= {column} if head else set()
            draw_panel(figure, place, tissue, panel, head, width)
        label = [fill(text.replace("_", "_ "), letters).replace("_ ", "_") for text in (name, tissue.section) if text]
        places[0].set_ylabel("\n".join(label), fontsize=TEXT, fontweight="bold")
    for of, places in zip(panels, axes[:: len(tissues)]):
        if of[0].colors is not None and of[0].colors.legend:
            # labels have no mapped panel: its place holds their legend
            labels = of[0].colors.legend
            places[1].legend(handles=of[0].colors.handles(), loc="upper left", ncols=-(-len(labels) // 12), **LEGEND)
    return finish(figure, axes, own=ax is None, show=show, return_fig=return_fig, below=note)


def split(row: list[Panel], tissues: list[Tissue]) -> list[list[Panel]]:
    """One row of panels for each section, in the colours of all of them."""
    ends = np.cumsum([len(tissue.cells) for tissue in tissues])
    return [
        [
            panel
            if panel.colors is None
            else replace(panel, colors=replace(panel.colors, values=panel.colors.values[end - len(tissue.cells) : end]))
            for panel in row
        ]
        for tissue, end in zip(tissues, ends)
    ]


def contents(
    mdata: MuData, names: list[str], source: str, target: str, keys: list[str], cells: np.ndarray,
    cmap: str | Colormap, *, uncertainty: bool,
) -> tuple[list[str], list[list[Panel]]]:  # fmt: skip
    """Name and panels of each row; all names are looked up before anything is drawn."""
    adata, goal = mdata[source], mdata[target]
    options = [*goal.var_names, *adata.var_names, *adata.obs.columns]
    if unknown := sorted(set(names) - set(options)):
        raise KeyError(
            f"{unknown} found neither among the features of {target!r} ({goal.n_vars}) and {source!r} "
            f"({adata.n_vars}) nor among the `obs` columns of {source!r}.{suggest(unknown, options)} "
            f"{' '.join(filter(None, (in_joint(mdata, name) for name in unknown))) or f'See `mdata[{target!r}].var_names`.'}"
        )
    # decoded for these features alone; also checks that there are such alignments
    wanted = [name for name in dict.fromkeys(names) if name in goal.var_names]
    values = {}
    for key in keys:
        mapped = np.asarray(get.mapped(mdata, source, target, features=wanted, key=key).X)[cells]
        values[key] = dict(zip(wanted, mapped.T.astype(float)))
    doubts = {key: doubt_panels(mdata, wanted, source, target, key, cells) for key in keys if uncertainty}
    rows, heads = [], []
    for name in names:
        heads.append(name)
        if name not in goal.var_names and name not in adata.var_names:
            blank = [Panel() for key in keys for _ in range(1 + bool(doubts.get(key)))]
            if shares := composition_panels(mdata, name, source, keys, cells, cmap):
                shares += [Panel()] * (-len(shares) % (1 + len(blank)))
                rows += [shares[i : i + 1 + len(blank)] for i in range(0, len(shares), 1 + len(blank))]
                heads += [""] * (len(rows) - len(heads))
                continue
            colors = paint(adata.obs[name].iloc[cells], cmap)
            rows.append([Panel(colors, "" if colors.legend else name), *blank])
            continue
        row = [measured_panel(mdata, name, source, target, keys[0], cells, cmap)]
        missing = Panel(head=DOUBT, note=f"not measured in {target}")
        for key, panel in mapped_panels(mdata, name, target, values, cmap).items():
            if panel.colors is not None:
                panel = replace(panel, note=evidence(mdata, name, source, target, key))
            row += [panel, doubts[key].get(name, missing)] if doubts.get(key) else [panel]
        rows.append(row)
    return heads, rows


def composition_panels(
    mdata: MuData, name: str, source: str, keys: list[str], cells: np.ndarray, cmap: str | Colormap
) -> list[Panel]:
    """A panel for the share of each label carried over as `name`; none if it was not, or if most cells have one label."""
    for key in keys:
        labels = mdata.uns[key].get("transfer", {}).get(source, {}).get(name)
        if labels is None or name not in mdata[source].obsm or mdata[source].obs[name].isna().mean() <= 0.5:
            continue
        shares = np.asarray(mdata[source].obsm[name], dtype=float)[cells]
        shares = np.column_stack([shares, 1 - shares.sum(1)])
        names = [*map(str, labels), "unassigned"]
        together = paint(shares[:, :-1].ravel(), cmap)
        scale = replace(together, norm=Normalize(0, max(float(shares[:, :-1].max()), 1e-9)), extend="neither")
        return [
            Panel(replace(scale, values=column.clip(0)), "share", note=label) for label, column in zip(names, shares.T)
        ]
    return []


def measured_panel(
    mdata: MuData, name: str, source: str, target: str, key: str, cells: np.ndarray, cmap: str | Colormap
) -> Panel:
    """The source's own values of a feature, or the mean of those linked with it, or an empty panel."""
    head = f"measured in {source}"
    found = [name] if name in mdata[source].var_names else linked(mdata, name, source, target, key)
    if not found:
        return Panel(head=head, note=f"not measured in {source}")
    values = measured_values(mdata, source, found, key).mean(axis=1)[cells]
    note = "" if found == [name] else f"as {found[0]}" if len(found) == 1 else f"as the mean of {', '.join(found)}"
    return Panel(paint(values, cmap), units(mdata, source, key), head, note)


def mapped_panels(
    mdata: MuData, name: str, target: str, values: dict[str, dict[str, np.ndarray]], cmap: str | Colormap
) -> dict[str, Panel]:
    """One feature mapped by each alignment; those in the same units share their limits."""
    heads = {key: f"mapped to {target}" + (f" ({key})" if len(values) > 1 else "") for key in values}
    if name not in mdata[target].var_names:
        return {key: Panel(head=head, note=f"not measured in {target}") for key, head in heads.items()}
    bars = {key: units(mdata, target, key, mapped=True) for key in values}
    panels: dict[str, Panel] = {}
    for bar in dict.fromkeys(bars.values()):
        alike = {key: values[key][name] for key in values if bars[key] == bar}
        together = paint(np.concatenate(list(alike.values())), cmap)
        panels |= {key: Panel(replace(together, values=v), bar, heads[key]) for key, v in alike.items()}
    return panels


def evidence(mdata: MuData, name: str, source: str, target: str, key: str) -> str:
    """Evidence for one mapped feature, where its alignment is not fully supported and that was diagnosed."""
    if not not_validated(mdata, key, source, target):
        return ""
    for of in (None, source):
        slots = Keys(key).evidence(None, of), Keys(key).evidence("q", of)
        if all(slot in mdata[target].var for slot in slots):
            r, q = (float(mdata[target].var.at[name, slot]) for slot in slots)
            return "not tested" if np.isnan(r) else f"held-out r = {r:.2f}, q = {q:.2g}"
    return ""


def doubt_panels(
    mdata: MuData, wanted: list[str], source: str, target: str, key: str, cells: np.ndarray
) -> dict[str, Panel]:
    """Uncertainty of mapped features; none where that of the coupling was not computed for this alignment."""
    if not wanted:
        return {}
    slots = Keys(key).uncertainty("coupling"), Keys(key).uncertainty("coupling", source)
    scores = next((mdata[target].var[slot] for slot in slots if slot in mdata[target].var), None)
    if scores is None:
        logger.info("No uncertainty of %r: run `scmmgan.tl.uncertainty(mdata, %r, %r)` to see it.", key, source, target)
        return {}
    found = get.uncertainty(mdata, source, target, features=wanted, key=key)
    values = np.asarray(found.layers["relative"], dtype=float)[cells]
    panels = {}
    for name, column in zip(wanted, values.T):
        if np.isnan(scores[name]) or np.isnan(column).all():
            panels[name] = Panel(head=DOUBT, note=RARE)
            continue
        extend: Literal["max", "neither"] = "max" if (column > 1).any() else "neither"
        colors = Paint(column, colormaps[CMAP_SHARES].with_extremes(bad=MISSING), Normalize(0, 1), extend)
        panels[name] = Panel(colors, "variance left / all", DOUBT)
    return panels


def layout(panels: list[list[Panel]], *, ratio: float, note: str) -> tuple[float, tuple[float, float]]:
    """Width of a panel, and width × height of the figure in inches."""
    # the gap between panels takes 0.15 inches, the names of rows 0.32, a colour bar 0.4, the heads 0.4, a line above a
    # panel 0.15, what stands below 0.35
    width = min((WIDTH - 0.32) / len(panels[0]) - 0.15, TALLEST / ratio)
    heights = [
        width * ratio
        + 0.1
        + 0.4 * any(of.bar for of in row)
        + 0.15 * any(of.note for of in row if of.colors is not None)
        for row in panels
    ]
    heads = 0.4 * any(panel.head for row in panels for panel in row)
    return width, ((width + 0.15) * len(panels[0]) + 0.32, sum(heights) + heads + 0.05 + 0.35 * bool(note))


def draw_panel(figure: Figure, ax: Axes, tissue: Tissue, panel: Panel, head: str, width: float) -> None:
    """Spots above a colour bar, or the reason why there are none."""
    low, high = tissue.limits
    letters = max(int(width * 72 / (0.55 * TEXT)), 10)
    lines = [fill(text, letters) for text in (head, panel.note if panel.colors else "") if text]
    ax.set_title("\n".join(lines), fontsize=TEXT, loc="left")
    if panel.colors is not None:
        draw_image(ax, tissue)
    # upside down, as images are stored
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
    if panel.colors is None:
        # the axes stay on: the first of a row has its name
        ax.spines[:].set_visible(False)
        ax.patch.set_visible(False)
        ax.text(0.5, 0.5, fill(panel.note, letters), ha="center", va="center", fontsize=SMALL, transform=ax.transAxes)
        return
    spots = draw_spots(ax, tissue, panel.colors)
    ax.spines[:].set_linewidth(0.4)
    if not panel.colors.legend:
        flat = (high[0] - low[0]) / (high[1] - low[1])
        bar = ax.inset_axes((0.0, -0.06 * flat, 1.0, 0.028 * flat))
        colorbar(figure, spots, panel.bar, panel.colors.extend, cax=bar, orientation="horizontal")
