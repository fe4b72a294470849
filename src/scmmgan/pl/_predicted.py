"""Predicted against measured values of cells whose partners are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scmmgan import get
from scmmgan.data import known as _known
from scmmgan.pl._measured import measured_values, units
from scmmgan.pl._style import OKABE_ITO, SMALL, TEXT

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from mudata import MuData

BINNED = 1_000  # pairs from which points would hide each other


@dataclass(frozen=True)
class Prediction:
    """One feature of the target in cells of the source (y) and in their partners (x)."""

    name: str
    x: np.ndarray
    y: np.ndarray
    units: tuple[str, str]

    @property
    def r(self) -> float:
        """Pearson's correlation, NaN where either is constant."""
        x, y = self.x - self.x.mean(), self.y - self.y.mean()
        norm = float(np.sqrt((x**2).sum() * (y**2).sum()))
        return float((x * y).sum()) / norm if norm > 0 else float("nan")


def predict(
    mdata: MuData, source: str, target: str, names: list[str], pairs: str | pd.DataFrame | None, key: str
) -> list[Prediction]:
    """Features of the target, for the pairs that the alignment was not given."""
    # also checks the modalities, and that measured values are in the units of the mapped ones
    mapped = get.mapped(mdata, source, target, features=names, key=key)
    if pairs is None:
        return []
    rows = held_out(mdata, source, target, pairs, key)
    y = np.asarray(mapped.X, dtype=float)[rows[:, 0]]
    x = measured_values(mdata, target, names, key)[rows[:, 1]]
    labels = units(mdata, target, key), units(mdata, target, key, mapped=True)
    return [Prediction(name, x[:, i], y[:, i], labels) for i, name in enumerate(names)]


def held_out(mdata: MuData, source: str, target: str, pairs: str | pd.DataFrame, key: str) -> np.ndarray:
    """Row numbers (k × 2) of the pairs that the alignment was not given."""
    rows = _known.read_pairs(mdata, [source, target], pairs)[source, target]
    params = mdata.uns[key]["params"]
    given = params.get("pairs", "None")
    if isinstance(given, str) and given == "None":  # how `params` keeps a None
        return rows
    if isinstance(given, pd.DataFrame):
        # cells that were taken out since are at -1
        table = given.reindex(columns=[source, target]).astype(str)
        used = set(zip(*(mdata[m].obs_names.get_indexer(pd.Index(table[m])).tolist() for m in (source, target))))
    else:
        found = _known.read_pairs(mdata, [str(m) for m in params["modalities"]], given)
        used = {*map(tuple, found.get((source, target), rows[:0]).tolist())}
        used |= {(b, a) for a, b in found.get((target, source), rows[:0]).tolist()}
    rows = np.array([row for row in rows.tolist() if tuple(row) not in used], dtype=int).reshape(-1, 2)
    if not len(rows):
        raise ValueError(
            f"The alignment {key!r} was given all of these pairs: none is left to compare with. Align with a part of them "
            "(`pairs=` a boolean `obs` column or a table)."
        )
    return rows


def draw_predictions(
    figure: Figure, axes: Sequence[Axes] | np.ndarray, predictions: list[Prediction], cmap: str | Colormap
) -> None:
    """One panel for each feature: points, or hexagons on one scale where points are too many."""
    binned = []
    for ax, one in zip(axes, predictions):
        if len(one.x) > BINNED:
            bins = ax.hexbin(one.x, one.y, gridsize=35, mincnt=1, cmap=cmap, linewidths=0.1, rasterized=True)
            binned.append(bins)
        else:
            ax.scatter(one.x, one.y, s=5, color=OKABE_ITO[0], alpha=0.5, linewidths=0, rasterized=True)
        r = f"r = {one.r:.2f}" if np.isfinite(one.r) else "r: constant"
        ax.set_title(f"{one.name}\n{r}, {len(one.x):,} pairs", fontsize=TEXT)
        ax.set_xlabel(f"measured ({one.units[0]})", fontsize=SMALL)
        ax.set_ylabel(f"predicted ({one.units[1]})", fontsize=SMALL)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.tick_params(labelsize=SMALL)
        ax.spines[["top", "right"]].set_visible(False)
    if binned:
        most = max(float(np.max(bins.get_array())) for bins in binned)
        for bins in binned:
            bins.set_norm(LogNorm(1, max(most, 2)))
        bar = figure.colorbar(binned[-1], ax=list(axes), fraction=0.05, pad=0.02, aspect=25)
        bar.set_label("pairs", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL, width=0.6, length=2)
        bar.outline.set_linewidth(0.4)
