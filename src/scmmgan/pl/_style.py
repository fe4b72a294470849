"""The one style sheet of all pictures: colours, sizes, and text that stays text in vector files."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

# Okabe and Ito's colours, which all common kinds of colour blindness distinguish; the palest last
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MISSING = "#d9d9d9"  # no value; what stands in the background
WARNING = "#a50f15"  # the sentence below maps that are not fully supported
CMAP = "viridis"  # measured and mapped numbers
CMAP_SHARES = "cividis"  # shares between 0 and 1: uncertainty, scores
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))  # beside colours, where curves cross
TEXT, SMALL = 8.0, 7.0  # points
MM = 1 / 25.4  # inches
WIDTH = 170 * MM  # two columns of a journal

# matplotlib draws letters as outlines in SVG and as Type 3 fonts in PDF, which other programs cannot edit
VECTOR: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "ps.fonttype": 42}


class Picture(Figure):
    """A figure whose text is text in SVG and PDF, whatever matplotlib's settings are when it is saved."""

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """As matplotlib's."""
        with mpl.rc_context(VECTOR):
            super().savefig(*args, **kwargs)


def palette(n: int) -> list[str]:
    """`n` colours: Okabe-Ito, then the same darker and paler, beyond 24 a colour map."""
    if n <= len(OKABE_ITO):
        return list(OKABE_ITO[:n])
    if n > 3 * len(OKABE_ITO):
        return [to_hex(color) for color in mpl.colormaps["turbo"](np.linspace(0.03, 0.97, n))]
    base = np.array([to_rgb(color) for color in OKABE_ITO])
    grey = np.array([0.35, 0.35, 0.35])
    dark, pale = base * 0.55, base + (1 - base) * 0.55
    dark[6], pale[6] = grey, grey + 0.25  # black has no darker self
    return [to_hex(color) for color in np.vstack([base, dark, pale])[:n]]
