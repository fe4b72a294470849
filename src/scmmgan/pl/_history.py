"""Loss terms against training step."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scmmgan import get
from scmmgan.pl._below import not_validated
from scmmgan.pl._style import LINES, OKABE_ITO, SMALL, TEXT, WIDTH
from scmmgan.pl._utils import finish, make_axes

if TYPE_CHECKING:
    from mudata import MuData

MANY = 60  # recorded steps from which a running mean reads better than the raw curve


def history(
    mdata: MuData,
    *,
    key: str = "scmmgan",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Loss terms against training step.

    One line for each term, as recorded by :func:`scmmgan.tl.align` before the terms are weighted; gradient norms are
    left to :func:`scmmgan.get.history`. With more than 60 recorded steps the line is a centred running mean over a
    twentieth of them, and the recorded values lie behind it in a faint shade. The loss axis is logarithmic when all
    values are positive and span more than a factor of 30. Terms that are zero throughout are named so in the legend.

    Parameters
    ----------
    mdata
        Aligned modalities.
    key
        Name of the alignment (`key_added` of :func:`scmmgan.tl.align`).
    ax
        Axes to draw into; by default those of a new figure, 120 mm wide.
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
        `mdata.uns[key]` holds no alignment.
    ValueError
        The record is damaged or of another version, or `ax` is not a single axes.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> ax = smm.pl.history(mdata, show=False)
    >>> ax.get_xlabel()
    'training step'
    """
    table = get.history(mdata, key=key)
    losses = table.loc[:, [name for name in table if "gradient" not in str(name)]].astype(float)
    figure, axes = make_axes(ax, 1, shape=(1, 1), size=(WIDTH * 120 / 170, 2.5))
    panel: Axes = axes[0]
    draw_terms(panel, losses)
    note = not_validated(mdata, key)
    return finish(figure, panel, own=ax is None, show=show, return_fig=return_fig, below=note)


def draw_terms(ax: Axes, terms: pd.DataFrame) -> None:
    """One labelled line for each column, against the index."""
    steps = terms.index.to_numpy()
    window = max(len(terms) // 20, 1) if len(terms) > MANY else 1
    for (name, raw), color, line in zip(terms.items(), cycle(OKABE_ITO[:7]), cycle(LINES)):
        label = f"{name} (0)" if (raw == 0).all() else str(name)
        if window > 1:
            ax.plot(steps, raw, color=color, alpha=0.2, linewidth=0.6, label="_raw")
        mean = raw.rolling(window, center=True, min_periods=1).mean()
        ax.plot(steps, mean, color=color, linestyle=line, linewidth=1.3, label=label)
    if use_log(terms):
        ax.set_yscale("log")
        # a single tiny record, as of a loss that starts at zero, would extend the axis over empty decades
        drawn = np.concatenate([np.asarray(line.get_ydata()) for line in ax.lines if line.get_label() != "_raw"])
        ax.set_ylim(bottom=0.7 * drawn[drawn > 0].min())
    ax.set_xlabel("training step", fontsize=TEXT)
    ax.set_ylabel("loss, before weighting", fontsize=TEXT)
    ax.tick_params(which="both", labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.01)
    # beside the axes, where it hides no curve
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=SMALL, frameon=False, handlelength=2.6)


def use_log(terms: pd.DataFrame) -> bool:
    """Whether all terms in use are positive and of very different sizes."""
    values = terms.loc[:, (terms != 0).any()].to_numpy()
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() / values.min() > 30)
