"""Sections of a tissue that share no frame of coordinates: which obs column names them, and which cells are of which."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from scmmgan.data import derived as _derived
from scmmgan.data import record as _record
from scmmgan.data.known import as_text
from scmmgan.data.modality import in_joint, missing_key, modality, per_modality
from scmmgan.model.defaults import COMPARED_PLACES, FRAME_GAP, SAME_PLACES, SECTION_CELLS
from scmmgan.model.problem import Sections

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = logging.getLogger("scmmgan")

# squidpy's name of the column, and of the argument that names another
LIBRARY = "library_id"
# columns by which other tools, and people, name sections
_NAMED = {
    LIBRARY, "library", "section", "section_id", "slice", "slice_id", "slide", "slide_id", "sample", "sample_id", "sampleid",
    "samples", "puck", "core", "core_id", "tma_core", "tissue", "tissue_id", "region", "region_id", "fov", "batch", "roi",
    "capture_area", "orig.ident", "dataset", "donor", "mouse", "animal", "animal_id", "specimen", "block", "array_id",
}  # fmt: skip


def read_sections(
    mdata: MuData, names: Sequence[str], library_key: Any, places: Mapping[str, np.ndarray]
) -> dict[str, Sections]:
    """Sections by modality: of the columns asked for (one for all that have it, or a dict), else of those that are found.

    They are looked for where there are `places` (n × d by modality); what looks like several frames in one is warned of.
    """
    if isinstance(library_key, Mapping):
        asked = {m: c for m, c in per_modality(library_key, names, "library_key").items() if c is not None}
    elif library_key is None:
        asked = {}
    else:
        # another modality may have a column of that name for its own reasons
        needed = list(places) or list(names)
        if not any(isinstance(library_key, str) and library_key in modality(mdata, m).obs for m in needed):
            read_column(mdata, needed[0], library_key)
        asked = {m: library_key for m in names if library_key in mdata[m].obs}
    found = {m: read_column(mdata, m, column) for m, column in asked.items()}
    for m in places:
        if m not in found and (sections := find_sections(mdata, m, places[m])) is not None:
            found[m] = sections
    return found


def find_sections(mdata: MuData, name: str, places: np.ndarray) -> Sections | None:
    """Sections of a modality with coordinates (n × d) that nobody named; None, and a warning where there may be several."""
    column = find_column(mdata, name)
    if column is None:
        warn_of_frames(mdata, name, places)
        return None
    found = read_column(mdata, name, column)
    if len(found.names) < 2:
        return None
    logger.info("obs[%r] of %r names %d sections: places stay inside one.", column, name, len(found.names))
    return found


def read_column(mdata: MuData, name: str, column: Any, *, gaps: bool = False) -> Sections:
    """The sections that an obs column names, in the order of its categories; -1 for a gap, an error unless `gaps`."""
    obs = modality(mdata, name).obs
    if not isinstance(column, str):
        raise TypeError(f"`library_key` must name an obs column of {name!r}, got {column!r}.")
    if column not in obs:
        raise missing_key(
            f"obs column in {name!r} for `library_key`", column, list(obs.columns), in_joint(mdata, column)
        )
    text = as_text(obs[column])
    if text.isna().any() and not gaps:
        raise ValueError(
            f"obs column {column!r} of {name!r} has gaps, in {text.isna().sum()} of {len(text)} cells: every cell lies in a "
            "section. Fill them, drop those cells, or name another column as `library_key`."
        )
    there = text.dropna().unique().tolist()
    if len(there) > 1 and SECTION_CELLS * len(there) > len(text):
        raise ValueError(
            f"obs column {column!r} of {name!r} has {len(there)} values for {len(text)} cells: these are no sections. Name "
            "another column as `library_key`."
        )
    order = as_text(pd.Series(obs[column].cat.categories)).tolist() if hasattr(obs[column], "cat") else _sorted(there)
    labels = pd.Categorical(text, categories=[section for section in dict.fromkeys(order) if section in set(there)])
    return Sections(column, tuple(labels.categories), labels.codes.astype(int))


def _sorted(names: Sequence[str]) -> list[str]:
    """Numbers in the order of numbers."""
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names)


def column_aligned(mdata: MuData, name: str, key: str) -> str | None:
    """The column with the sections of a modality that the alignment `key` was given, or found."""
    found = mdata.uns.get(key)
    params = found.get("params") if isinstance(found, Mapping) else None
    columns = params.get("library_key") if isinstance(params, Mapping) else None
    return str(columns[name]) if isinstance(columns, Mapping) and name in columns else None


def libraries(adata: AnnData) -> dict[str, Mapping[str, Any]]:
    """Entries of `uns["spatial"]` by name, as scanpy and squidpy keep them."""
    stored = adata.uns.get("spatial", {})
    return {str(k): v for k, v in stored.items() if isinstance(v, Mapping)} if isinstance(stored, Mapping) else {}


def find_column(mdata: MuData, name: str) -> str | None:
    """The obs column whose values are the keys of `uns["spatial"]`, or "library_id" of several values; None without one.

    ValueError where several columns are possible and disagree.
    """
    adata = modality(mdata, name)
    keys, texts = set(libraries(adata)), _text_columns(mdata, name)
    ranked: dict[int, list[str]] = {}
    for column, values in texts.items():
        # some sections may have no picture, and some pictures no cells left
        fits = (values == keys, values <= keys, len(keys) > 1 and values >= keys)
        if values and any(fits):
            ranked.setdefault(fits.index(True), []).append(column)
    best = ranked[min(ranked)] if ranked else []
    if not best:
        return LIBRARY if len(texts.get(LIBRARY, ())) > 1 else None
    if LIBRARY in best:
        return LIBRARY
    first = as_text(adata.obs[best[0]])
    if other := [column for column in best[1:] if not first.equals(as_text(adata.obs[column]))]:
        raise ValueError(
            f"obs columns {[best[0], *other]} of {name!r} hold the keys of `uns['spatial']` ({sorted(keys)}) and disagree: name "
            "the one with the sections as `library_key`."
        )
    return best[0]


def drawn_sections(mdata: MuData, name: str, column: str | None, chosen: Sequence[str]) -> Sections | None:
    """Sections of a column that is named or found, or that alone holds the first of those that are `chosen`; -1 for gaps."""
    column = column or find_column(mdata, name)
    if column is None and chosen:
        columns = [c for c, values in _text_columns(mdata, name).items() if chosen[0] in values]
        if len(columns) > 1:
            raise ValueError(
                f"obs columns {columns} of {name!r} all hold {chosen[0]!r}: name the one with the sections as `library_key`."
            )
        column = columns[0] if columns else None
    return None if column is None else read_column(mdata, name, column, gaps=True)


def _text_columns(mdata: MuData, name: str) -> dict[str, set[str]]:
    """Values of the obs columns that may name sections: labels and whole numbers, not written by this package."""
    obs = modality(mdata, name).obs
    records = [found for found in mdata.uns.values() if _record.is_alignment(found)]
    ours = {key for found in records for m, _, key in _derived.recorded(found) if m == name}
    columns = [
        c for c in obs if c not in ours and not pd.api.types.is_bool_dtype(obs[c]) and obs[c].dtype.kind not in "fcmM"
    ]
    return {c: set(as_text(pd.Series(obs[c].unique())).dropna()) for c in columns}


def warn_of_frames(mdata: MuData, name: str, places: np.ndarray) -> None:
    """Log a warning where coordinates (n × d) seem to have several frames, and no column says which."""
    adata = modality(mdata, name)
    keys = list(libraries(adata))
    do = "Name their obs column as `library_key`: places, spread and pictures then stay inside a section."
    if len(keys) > 1:
        joint = [c for c in mdata.obs if set(as_text(pd.Series(mdata.obs[c].unique())).dropna()) & set(keys)]
        hint = next((text for c in joint if (text := in_joint(mdata, c)) and ":" not in str(c)), "")
        logger.warning(
            "`uns['spatial']` of %r holds %d sections (%s), and no obs column says which cells are of which: all count as one. "
            "%s %s", name, len(keys), ", ".join(keys[:3]), do, hint,
        )  # fmt: skip
        return
    for column, values in _text_columns(mdata, name).items():
        if column.lower() not in _NAMED or not 1 < len(values) <= len(places) / SECTION_CELLS:
            continue
        if how := _frames(places, read_column(mdata, name, column, gaps=True).codes):
            logger.warning(
                "Cells of %r that differ in obs[%r] %s (%d values): sections that share no frame? Then give `library_key=%r`: "
                "places, spread and pictures stay inside a section.", name, column, how, len(values), column,
            )  # fmt: skip
            return
    again = len(places) - len(np.unique(places, axis=0))
    if again > SAME_PLACES * len(places):
        logger.warning(
            "%d of %d cells of %r lie exactly where another one does: sections drawn over one another? %s",
            again, len(places), name, do,
        )  # fmt: skip


def _frames(places: np.ndarray, codes: np.ndarray) -> str:
    """Whether groups of cells lie over one another, or far from each other; "" where they touch, as parts of one frame do."""
    known = np.flatnonzero((codes >= 0) & np.isfinite(places).all(axis=1))
    rows = np.sort(np.random.default_rng(0).permutation(known)[:COMPARED_PLACES])
    at, of = places[rows], codes[rows]
    shares = np.unique(of, return_counts=True)[1] / len(of)
    if len(shares) < 2:
        return ""
    distance, near = (np.asarray(found) for found in cKDTree(at).query(at, k=2))
    # of cells at one place either may come first
    other = np.where(near[:, 0] == np.arange(len(at)), near[:, 1], near[:, 0])
    if (of[other] != of).mean() > (1 - (shares**2).sum()) / 2:
        return "lie over one another"
    gaps = [np.min(cKDTree(at[of != code]).query(at[of == code])[0]) for code in np.unique(of)]
    return "lie far apart" if min(gaps) > FRAME_GAP * np.median(distance[:, 1]) else ""
