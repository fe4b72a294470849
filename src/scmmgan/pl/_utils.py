"""What the pictures share: panels, colours of values, limits, messages."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.collections import Collection
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from scmmgan.pl._below import only_known_glyphs, write_below
from scmmgan.pl._style import MISSING, SMALL, Picture, palette

logger = logging.getLogger("scmmgan")

_SHOWING_NOTHING = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)


@dataclass(frozen=True)
class Paint:
    """Numbers to draw (labels as codes) and how they become colours."""

    values: np.ndarray  # (cells,) float, NaN without a value
    cmap: Colormap
    norm: Normalize
    extend: Literal["neither", "both", "min", "max"] = "neither"
    legend: dict[str, str] = field(default_factory=dict)  # label: colour; empty for numbers

    @property
    def known(self) -> np.ndarray:
        """Which cells have a value, (cells,) bool."""
        return np.isfinite(self.values)

    def handles(self) -> list[Line2D]:
        """Legend entries: one dot for each label, a grey one for cells without."""
        shown = self.legend if self.known.all() else {**self.legend, "no value": MISSING}
        style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4, "markeredgewidth": 0}
        return [Line2D([], [], color=color, label=label, **style) for label, color in shown.items()]


def make_axes(ax: Any, n: int, *, shape: tuple[int, int], size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """`n` panels of a new figure (rows × columns, width × height in inches), or the user's own `n`; flat."""
    if ax is None:
        layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06)
        try:
            figure = plt.figure(figsize=size, layout=layout, FigureClass=Picture)
        except ImportError as error:
            # MPLBACKEND may name windows that this machine does not have
            logger.warning("%s. The figure can be saved, not shown.", str(error).rstrip("."))
            figure = Picture(figsize=size, layout=layout)
        axes = np.asarray(figure.subplots(*shape, squeeze=False), dtype=object).ravel()
        for spare in axes[n:]:
            spare.remove()
        return figure, axes[:n]
    given = np.asarray(ax, dtype=object)
    if given.size != n or not all(isinstance(one, Axes) for one in given.flat):
        raise ValueError(
            f"`ax` has shape {given.shape} ({given.size} elements); this picture needs {n} matplotlib axes. "
            f"Make them with `plt.subplots({shape[0]}, {shape[1]})`, or leave `ax` out."
        )
    return cast("Figure", given.flat[0].figure), given.ravel()


def finish(figure: Figure, result: Any, *, own: bool, show: bool | None, return_fig: bool, below: str = "") -> Any:
    """Write `below` the panels; show, close and return as scanpy does."""
    write_below(figure, below, own=own)
    only_known_glyphs([figure] if own else list(np.ravel(np.asarray(result, dtype=object))))
    if return_fig:
        return figure
    if show is None:
        # an interactive session may still have a backend that shows nothing, and warns when it is asked to
        show = bool(mpl.is_interactive()) and mpl.get_backend().lower() not in _SHOWING_NOTHING
    if not show:
        return result
    plt.show()
    # an interactive window lives on; anywhere else a shown figure would only fill pyplot's list
    if own and not mpl.is_interactive():
        plt.close(figure)
    return None


def suggest(names: Sequence[str], options: Iterable[Hashable]) -> str:
    """Close matches of unknown names among the options, as a sentence; empty if there are none."""
    known = [str(option) for option in options]
    lower = {option.lower(): option for option in reversed(known)}
    close = [lower[hit] for name in names for hit in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    return f" Close matches: {', '.join(map(repr, dict.fromkeys(close)))}." if close else ""


def paint(values: pd.Series | np.ndarray, cmap: str | Colormap) -> Paint:
    """Colours for numbers (limits from the 1st to the 99th percentile) or for labels (categories, text, yes/no)."""
    column = pd.Series(values)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        numbers = column.to_numpy(dtype=float, na_value=np.nan)
        low, high, extend = robust_limits(numbers)
        return Paint(numbers, mpl.colormaps.get_cmap(cmap).with_extremes(bad=MISSING), Normalize(low, high), extend)
    if isinstance(column.dtype, pd.CategoricalDtype):
        labels = column.cat.remove_unused_categories()
    else:
        text = column.astype(object).map(str, na_action="ignore")
        found = text.dropna().unique().tolist()
        # numbers of clusters in the order of numbers
        key = (lambda label: (int(label), label)) if all(map(str.isdecimal, found)) else str.casefold
        labels = text.astype(pd.CategoricalDtype(sorted(found, key=key)))
    names = [str(name) for name in labels.cat.categories]
    codes = labels.cat.codes.to_numpy().astype(float)
    codes[codes < 0] = np.nan
    colors = palette(len(names))
    listed = ListedColormap(colors or [MISSING]).with_extremes(bad=MISSING)
    return Paint(codes, listed, Normalize(-0.5, listed.N - 0.5), legend=dict(zip(names, colors)))


def robust_limits(values: np.ndarray) -> tuple[float, float, Literal["neither", "both", "min", "max"]]:
    """1st and 99th percentile, and on which side values lie beyond them."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0, "neither"
    lowest, highest = float(finite.min()), float(finite.max())
    low, high = (float(q) for q in np.percentile(finite, [1, 99]))
    if not low < high:  # nearly all cells alike, as for a rarely detected gene
        low, high = lowest, highest
    if not low < high:
        half = 0.5 * max(abs(low), 1.0)
        return low - half, high + half, "neither"
    below, above = lowest < low, highest > high
    return low, high, "both" if below and above else "min" if below else "max" if above else "neither"


def colorbar(figure: Figure, drawn: Collection, label: str, extend: str, **place: Any) -> None:
    """A thin colour bar that says what it shows; `place` is matplotlib's `cax`, or `ax` and sizes."""
    bar = figure.colorbar(drawn, extend=extend, **place)
    bar.set_label(label, fontsize=SMALL)
    bar.locator = MaxNLocator(4, steps=[1, 2, 5, 10])
    bar.update_ticks()
    bar.ax.tick_params(labelsize=SMALL, width=0.6, length=2)
    bar.outline.set_linewidth(0.4)
