"""A matrix in whichever storage (memory, an h5 or zarr file, dask) → one that NumPy and SciPy work on, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import AHEAD, CHUNK, CHUNKS_AHEAD
from scmmgan.model.space.scratch import by_row, cuts, stacked


def is_dask(values: Any) -> bool:
    """Whether a matrix is one of dask."""
    return hasattr(values, "dask") and hasattr(values, "blocks")


def streamed(values: Any, *, of_dask: bool = True) -> Any:
    """What is in memory as it is; of a file or of dask as float32, read a part at a time, and mapped where it is large.

    Arrays of dask stay what they are without `of_dask`.
    """
    numbers = (
        len(getattr(values, "shape", ())) == 2
        and 0 not in values.shape
        and getattr(values, "dtype", np.dtype("O")).kind in "biuf"
    )
    if is_dask(values):
        if not of_dask:
            return values
        return stacked(_of_dask(values)) if numbers else values.compute()
    if hasattr(values, "to_memory"):
        return _of_sparse_file(values) if numbers and hasattr(values, "group") else values.to_memory()
    # h5py's and zarr's arrays
    if numbers and hasattr(values, "chunks") and not isinstance(values, np.ndarray):
        return stacked(_of_array(values))
    if isinstance(values, np.ma.MaskedArray):
        # what is masked is not there
        return np.ma.filled(values.astype(np.float32), np.nan) if np.ma.is_masked(values) else values.data
    if (
        isinstance(values, sp.csr_matrix | sp.csc_matrix | sp.csr_array | sp.csc_array)
        and not values.has_canonical_format
    ):
        # entries that are stored in parts are one value each
        values = values.astype(np.float32 if values.dtype == np.float16 else values.dtype, copy=True)
        values.sum_duplicates()
    return values


def _float(block: Any) -> Any:
    """A block as float32: CSR, or an array."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is counted where values are checked
        sparse: bool = sp.issparse(block)
        return sp.csr_matrix(block, dtype=np.float32) if sparse else np.asarray(block, dtype=np.float32)


def _of_dask(values: Any) -> Iterator[Any]:
    """Rows of chunks, a few of them computed at a time: by threads, or by the workers of a cluster."""
    import dask

    n, width = values.numblocks
    ahead = max(1, min(CHUNKS_AHEAD, AHEAD // max(1, max(values.chunks[0]) * values.shape[1])))
    for start in range(0, n, ahead):
        rows = range(start, min(start + ahead, n))
        parts = dask.compute(*(values.blocks[i, j] for i in rows for j in range(width)))
        for i in range(0, len(parts), width):
            row = [_float(part) for part in parts[i : i + width]]
            yield row[0] if width == 1 else sp.hstack(row, format="csr") if sp.issparse(row[0]) else np.hstack(row)


def _of_sparse_file(values: Any) -> Any:
    """A sparse matrix of a file; where it is stored by column, it is turned on the disk."""
    indptr = np.asarray(values.group["indptr"][:])
    if values.format == "csc":
        return by_row(stacked(_float(values[:, at].T) for at in cuts(indptr)).T)
    return stacked(_float(values[at]) for at in cuts(indptr))


def _of_array(values: Any) -> Iterator[np.ndarray]:
    step = max(1, CHUNK // max(values.shape[1], 1))
    for start in range(0, values.shape[0], step):
        yield _float(values[start : start + step])
