"""What stands below a picture of a map that is not fully supported; and text that its font can draw."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from scmmgan.pl._style import SMALL, WARNING

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")


def not_validated(
    mdata: MuData, keys: str | Sequence[str], source: str | None = None, target: str | None = None
) -> str:
    """A sentence on the alignments of two modalities (default: of all) that are not fully supported; empty where all are."""
    keys = [keys] if isinstance(keys, str) else list(keys)
    found, grades = [], []
    for key in keys:
        record = mdata.uns[key]
        names = [str(m) for m in record["params"]["modalities"]]
        verdicts = {(a, b): of for a, row in record.get("diagnosis", {}).items() for b, of in row.items()}
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                if source is not None and {a, b} != {source, target}:
                    continue
                of = verdicts.get((a, b), verdicts.get((b, a), {"supported": False, "verdict": "no diagnosis"}))
                if not of["supported"]:
                    grades.append(of.get("grade"))
                    found.append(f"{a} and {b}{f' ({key})' if len(keys) > 1 else ''}: {of['verdict']}")
    head = "Not fully supported" if all(grade in ("weak", "in part") for grade in grades) else "Not validated"
    return f"{head}. {'; '.join(found)}. See scmmgan.get.diagnosis." if found else ""


def write_below(figure: Figure, text: str, *, own: bool) -> None:
    """The sentence below the panels of a figure; in a user's own one at its lower edge, once."""
    if not text:
        return
    text = fill(text, max(int(figure.get_figwidth() * 72 / (0.52 * SMALL)), 20))
    if own and figure.legends:
        # a legend below the panels takes the place
        title = figure.legends[0].get_title()
        title.set_text(f"{text}\n{title.get_text()}")
        title.set_multialignment("center")
    elif own:
        figure.supxlabel(text, fontsize=SMALL, color=WARNING)
    elif text not in [there.get_text() for there in figure.texts]:
        figure.text(0.5, 0.0, text, fontsize=SMALL, color=WARNING, ha="center", va="bottom")


def only_known_glyphs(artists: Sequence[Figure | Axes]) -> None:
    """Characters that no font in use has are drawn as `?`, and logged, once a picture."""
    missing: dict[str, None] = {}
    for artist in artists:
        for text in artist.findobj(Text):
            if isinstance(text, Text) and (new := _drawable(text.get_text(), text.get_fontproperties(), missing)):
                text.set_text(new)
        axes = artist.axes if isinstance(artist, Figure) else [artist]
        for axis in (axis for ax in axes for axis in (ax.xaxis, ax.yaxis)):
            labels = [(label.get_text(), label.get_fontproperties()) for label in axis.get_ticklabels()]
            changed = [_drawable(text, fonts, missing) for text, fonts in labels]
            if any(changed):
                axis.set_ticks(axis.get_majorticklocs(), [new or text for new, (text, _) in zip(changed, labels)])
    if missing:
        logger.warning(
            "The font has no glyph for %s: drawn as '?'. Name one that has, `matplotlib.rcParams['font.family'] = [...]`.",
            ", ".join(map(repr, list(missing)[:10])),
        )


def _drawable(text: str, fonts: FontProperties, missing: dict[str, None]) -> str:
    """The text with `?` for what no font has, noted in `missing`; empty where nothing needs to change."""
    if text.isascii():
        return ""
    files = []
    for family in fonts.get_family():
        one = fonts.copy()
        one.set_family(family)
        files.append(get_font(findfont(one)))
    lacking = {
        c for c in text if not c.isascii() and not c.isspace() and not any(f.get_char_index(ord(c)) for f in files)
    }
    missing.update(dict.fromkeys(sorted(lacking)))
    return "".join("?" if c in lacking else c for c in text) if lacking else ""


def colors_in_range(image: Any) -> np.ndarray:
    """An image as matplotlib draws it without clipping: colours as whole numbers to 255, or as fractions to 1."""
    values = np.asarray(image)
    if values.ndim < 3 or values.dtype == np.uint8 or not values.size:
        return values
    values = np.nan_to_num(values.astype(np.float32), nan=1.0).clip(0)
    highest = float(values.max())
    # fractions, bytes, or 16 bits; what lies beyond is scaled by its own highest
    top = next((top for top in (1.0, 255.0, 65535.0) if highest <= top), highest)
    return values / np.float32(top)
