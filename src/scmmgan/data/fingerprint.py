"""Which cells, which features and which units every modality was aligned with: recorded, and compared by all readers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan.data.keys import Keys
from scmmgan.data.modality import part
from scmmgan.model.defaults import SAMPLED, UNITS_TOLERANCE
from scmmgan.model.problem import Modality

if TYPE_CHECKING:
    from anndata import AnnData

HALF = np.uint64(32)  # bits of the name, then as many of the embedding


def of(modality: Modality, embedding: np.ndarray, mean: np.ndarray) -> dict[str, np.ndarray]:
    """What is recorded of a modality: a hash of every cell, and a sample of its values as they were read.

    `rows` and `columns` say where the sample is; half of its features have the largest `mean`, whatever is rare.
    """
    n, g = modality.values.shape
    rows = _spread(n, SAMPLED)
    columns = np.unique(np.r_[_spread(g, SAMPLED // 2), np.argsort(-np.abs(mean), kind="stable")[: SAMPLED // 2]])
    values = modality.values[rows][:, columns]
    return {
        "cells": cell_hashes(modality.cells, embedding),
        "rows": rows,
        "columns": columns,
        "values": sp.csr_matrix(values).toarray().astype(np.float32),
    }


def _spread(n: int, k: int) -> np.ndarray:
    """At most k of n positions, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, k)).astype(np.int64))


def cell_hashes(names: np.ndarray | pd.Index, embedding: np.ndarray) -> np.ndarray:
    """Hashes (n,) of 8 bytes: the upper half of the cell's name, the lower half of its row of the embedding (n × p)."""
    rows = np.ascontiguousarray(embedding, dtype="<f4")
    view, width = memoryview(rows.tobytes()), 4 * rows.shape[1]
    name = (zlib.crc32(str(name).encode("utf-8", "surrogatepass")) for name in names)
    row = (zlib.crc32(view[i * width : (i + 1) * width]) for i in range(len(rows)))
    return (np.fromiter(name, np.uint64, len(rows)) << HALF) | np.fromiter(row, np.uint64, len(rows))


def recorded_rows(adata: AnnData, name: str, stored: Mapping[str, Any], keys: Keys) -> np.ndarray:
    """Row number (n,) that every cell had when it was aligned; ValueError on cells that were not aligned as they are."""
    embedding = np.asarray(adata.obsm[keys.embedding])
    if embedding.ndim != 2 or embedding.dtype.kind not in "iuf":
        raise ValueError(f"obsm[{keys.embedding!r}] of {name!r} is no array of numbers: align again.")
    known = np.asarray(stored["cells"])
    found = cell_hashes(adata.obs_names, embedding)
    order = np.argsort(known)
    at = order[np.searchsorted(known, found, sorter=order).clip(max=len(known) - 1)]
    wrong = known[at] != found
    if wrong.any():
        raise _unknown(adata, name, wrong, known, found[wrong], ~np.isfinite(embedding[wrong]).all(axis=1), keys)
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()]
        raise ValueError(
            f"{len(twice)} cells of {name!r} are there more than once, e.g. {twice[0]!r}. Drop the copies."
        )
    return at


def _unknown(
    adata: AnnData, name: str, wrong: np.ndarray, known: np.ndarray, found: np.ndarray, empty: np.ndarray, keys: Keys
) -> ValueError:
    """What became of cells that the record does not know as they are."""
    names, low = adata.obs_names[wrong], np.uint64(2**32 - 1)
    count = f"{len(names)} of {len(wrong)} cells of {name!r}"
    if empty.any():
        count = f"{empty.sum()} of {len(wrong)} cells of {name!r}"
        return ValueError(
            f"{count} were added after the alignment {keys.key!r}, e.g. {names[empty][0]!r}: they have no embedding. "
            "Align again, or leave them out."
        )
    # halves of a hash may agree by chance
    if np.isin(found >> HALF, known >> HALF).mean() > 0.5:
        return ValueError(
            f"{count}, e.g. {names[0]!r}, have another embedding than in the alignment {keys.key!r} that `mdata.uns` "
            f"records: {name!r} or `uns` comes from another alignment. Take both from one object, or align again."
        )
    if np.isin(found & low, known & low).mean() > 0.5:
        return ValueError(
            f"{count} were renamed after the alignment {keys.key!r}, e.g. to {names[0]!r}. Give them their names back, or "
            "align again."
        )
    return ValueError(
        f"{count} were not part of the alignment {keys.key!r} that `mdata.uns` records, e.g. {names[0]!r}. Leave them out, "
        "take each object with its own `uns`, or align all of them together."
    )


def changed_values(
    adata: AnnData, stored: Mapping[str, Any], slot: tuple[str, str | None], rows: np.ndarray, columns: np.ndarray
) -> str:
    """How the sampled values that are still there differ from those that were aligned; "" where they do not.

    `slot`: X, layers or obsm, and the key. `rows`, `columns`: where every cell and feature was then, -1 for new ones.
    """
    (own, then), (at, of_them) = (
        _common(found, stored[name]) for found, name in ((rows, "rows"), (columns, "columns"))
    )
    container, key = slot
    held = {} if container == "X" else getattr(adata, container)
    if not len(own) or not len(at) or (adata.X is None if container == "X" else key not in held):
        return ""
    now = np.asarray(held[key])[own][:, at] if container == "obsm" else part(adata, own, at, key)
    now = now.astype(np.float32)
    before = np.asarray(stored["values"])[then][:, of_them]
    with np.errstate(invalid="ignore"):
        same = np.abs(now - before) <= UNITS_TOLERANCE * (np.abs(before) + np.abs(before).mean())
    if same.all():
        return ""
    i, j = (int(position[0]) for position in np.nonzero(~same))
    feature = f"column {at[j]}" if container == "obsm" else repr(str(adata.var_names[at[j]]))
    return (
        f"{(~same).sum()} of {same.size} values that were compared differ, e.g. {feature} of cell "
        f"{str(adata.obs_names[own[i]])!r} was {before[i, j]:.4g} and is {now[i, j]:.4g}"
    )


def _common(found: np.ndarray, sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where sampled positions are among those found, and which of the sampled ones they are."""
    own = np.flatnonzero(np.isin(found, sampled))
    return own, np.searchsorted(sampled, found[own])
