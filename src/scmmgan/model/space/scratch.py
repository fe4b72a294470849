"""Matrices that may be larger than memory: mapped from files without a name, which the system reads and drops as it must.

A mapped matrix is an array or a CSR matrix as any other. What would copy it as a whole (its columns, its rows, another order of
storage) is made here, a part at a time, and mapped again. What was in memory stays there, and is made as ever.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import CHUNK
from scmmgan.model.problem import Values


def is_mapped(x: Values | sp.csc_matrix) -> bool:
    """Whether the values of a matrix are mapped from a file."""
    found: Any = x.data if sp.issparse(x) else x
    while isinstance(found, np.ndarray) and not isinstance(found, np.memmap):
        found = found.base
    return isinstance(found, np.memmap)


def chunks(x: Values | sp.csc_matrix, entries: int | None = None) -> Iterator[slice]:
    """Rows (columns of CSC) of a mapped matrix that hold about so many values at a time; all at once of any other."""
    if not is_mapped(x):
        yield slice(0, x.shape[1] if sp.issparse(x) and x.format == "csc" else x.shape[0])
    elif sp.issparse(x):
        yield from cuts(x.indptr, entries)
    else:
        step = max(1, (entries or CHUNK) // max(x.shape[1], 1))
        yield from (slice(start, min(start + step, len(x))) for start in range(0, len(x), step))


def cuts(indptr: np.ndarray, entries: int | None = None) -> Iterator[slice]:
    """Rows of about so many stored values; a row is not cut."""
    step = entries or CHUNK
    wanted = np.arange(step, max(int(indptr[-1]), 1), step)
    stops = np.unique(np.r_[np.searchsorted(indptr, wanted, side="right") - 1, len(indptr) - 1])
    start = 0
    for stop in stops[stops > 0].tolist():
        yield slice(start, stop)
        start = stop


def flat_chunks(x: Values | sp.csc_matrix) -> Iterator[np.ndarray]:
    """The stored values, some at a time."""
    flat = np.asarray(x.data if sp.issparse(x) else x).reshape(-1)
    return (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))


def stacked(blocks: Iterable[Any]) -> Any:
    """Blocks of rows (arrays, or CSR matrices) one below the other: mapped where they are more than a few megabytes."""
    held: list[Any] = []
    rest = iter(blocks)
    size = 0
    for block in rest:
        held.append(block)
        size += _size(block)
        if size > CHUNK:
            break
    else:
        if len(held) == 1:
            return held[0]
        return sp.vstack(held, format="csr") if sp.issparse(held[0]) else np.vstack(held)

    def all_blocks() -> Iterator[Any]:
        while held:
            yield held.pop(0)
        yield from rest

    return _mapped_csr(all_blocks()) if sp.issparse(held[0]) else _mapped_array(all_blocks())


def _size(x: Any) -> int:
    sparse: bool = sp.issparse(x)
    return int(x.nnz if sparse else x.size)


def _mapped_array(parts: Iterator[np.ndarray]) -> np.ndarray:
    first = next(parts)
    with _Growing(first.dtype) as file:
        file.append(first)
        for part in parts:
            file.append(part)
        return file.mapped().reshape(-1, first.shape[1])


def _mapped_csr(parts: Iterator[sp.csr_matrix]) -> sp.csr_matrix:
    first = next(parts)
    lengths = []
    with _Growing(first.dtype) as data, _Growing(np.dtype(np.int32)) as indices:
        for part in chain([first], parts):
            data.append(part.data)
            indices.append(part.indices)
            lengths.append(np.diff(part.indptr))
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
        return _csr(data.mapped(), indices.mapped(), indptr, (len(indptr) - 1, first.shape[1]))


def _csr(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """A CSR matrix of mapped arrays, which are not copied: both kinds of numbers are as wide as SciPy wants them."""
    kind = np.dtype(sp.get_index_dtype(maxval=max(int(indptr[-1]), *shape)))
    if indices.dtype != kind:
        with _Growing(kind) as wider:
            for start in range(0, len(indices), CHUNK):
                wider.append(indices[start : start + CHUNK])
            indices = wider.mapped()
    return sp.csr_matrix((data, indices, indptr.astype(kind)), shape=shape, copy=False)


def blocks(x: Any) -> Iterator[Any]:
    """The rows of a matrix: all at once, or, of a mapped one, some at a time."""
    return (x[rows] for rows in chunks(x)) if is_mapped(x) else iter([x])


def blockwise(x: Any, make: Callable[[Any], Any]) -> Any:
    """What is made of rows, each for itself: of all at once, or, of a mapped matrix, of some at a time."""
    return stacked(make(block) for block in blocks(x)) if is_mapped(x) else make(x)


def rowwise(x: Any, make: Callable[[slice], Any], entries: int | None = None) -> Any:
    """The same, of the numbers of the rows."""
    return stacked(make(rows) for rows in chunks(x, entries)) if is_mapped(x) else make(slice(None))


def rows_of(x: Values | sp.csc_matrix, rows: np.ndarray | slice) -> Any:
    """Chosen rows."""
    if isinstance(rows, slice):
        # SciPy would copy all of them
        return x if rows == slice(None) else x[rows]
    if not is_mapped(x):
        return x[rows]
    # by number: the blocks follow in the order that is asked for
    at = np.flatnonzero(rows) if rows.dtype == bool else rows
    share = max(1, len(at) * CHUNK // max(_size(x), 1))
    return stacked(x[at[start : start + share]] for start in range(0, len(at), share))


def columns_of(x: Values | sp.csc_matrix, columns: np.ndarray) -> Any:
    """Chosen columns."""
    if not is_mapped(x):
        return x[:, columns]
    if np.array_equal(columns, np.arange(x.shape[1])):
        return x
    if sp.issparse(x) and x.format == "csc":
        return stacked(x[:, columns[at]].T for at in _groups(x, columns)).T
    return blockwise(x, lambda block: block[:, columns])


def _groups(x: sp.csc_matrix, columns: np.ndarray) -> Iterator[slice]:
    """Columns of about as many values as a chunk holds."""
    sizes = np.diff(x.indptr)[columns]
    return cuts(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))


def by_column(x: sp.csr_matrix | sp.csc_matrix) -> sp.csc_matrix:
    """The same matrix as CSC."""
    if not is_mapped(x) or x.format == "csc":
        return x.tocsc()
    count = np.zeros(x.shape[1], dtype=np.int64)
    for rows in chunks(x):
        count += np.bincount(x.indices[x.indptr[rows.start] : x.indptr[rows.stop]], minlength=x.shape[1])
    indptr = np.concatenate([[0], np.cumsum(count)])
    kind = sp.get_index_dtype(maxval=max(int(indptr[-1]), *x.shape))
    data, indices = _room(int(indptr[-1]), x.dtype), _room(int(indptr[-1]), np.dtype(kind))
    free = indptr[:-1].copy()
    for rows in chunks(x):
        block = x[rows].tocsc()
        lengths = np.diff(block.indptr)
        # every column of the block goes on where the last one ended
        at = np.repeat(free - block.indptr[:-1], lengths) + np.arange(block.nnz)
        data[at], indices[at] = block.data, block.indices + rows.start
        free += lengths
    return sp.csc_matrix((data, indices, indptr.astype(kind)), shape=x.shape, copy=False)


def by_row(x: sp.csr_matrix | sp.csc_matrix) -> sp.csr_matrix:
    """The same matrix as CSR."""
    return by_column(x.T).T if is_mapped(x) and x.format == "csc" else x.tocsr()


class _Growing:
    """An array in a file without a name, which goes when nothing needs it any more."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype, self.size = dtype, 0
        self.file = tempfile.TemporaryFile(prefix="scmmgan")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of: object) -> None:
        # what is mapped stays
        with suppress(OSError):
            self.file.close()

    def append(self, values: np.ndarray) -> None:
        """More values."""
        flat = np.ascontiguousarray(values, dtype=self.dtype).reshape(-1)
        try:
            self.file.write(flat.view(np.uint8).data)
        except OSError as error:
            raise _no_room(error) from error
        self.size += len(flat)

    def mapped(self) -> np.ndarray:
        """All of them; who writes to it changes a copy of their own."""
        self.file.flush()
        if not self.size:
            return np.empty(0, self.dtype)
        # a plain array: of a `memmap` copies are such, too
        return np.asarray(np.memmap(self.file, self.dtype, "c", shape=(self.size,)))


def _room(size: int, dtype: np.dtype) -> np.ndarray:
    """An array of so many values in such a file, to be written to."""
    if not size:
        return np.empty(0, dtype)
    with tempfile.TemporaryFile(prefix="scmmgan") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # else a full disk would show when it is too late to say so
                os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
            file.truncate(size * dtype.itemsize)
        except OSError as error:
            raise _no_room(error) from error
        return np.asarray(np.memmap(file, dtype, "r+", shape=(size,)))


def _no_room(error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"Matrices larger than memory are kept in files in {tempfile.gettempdir()!r}, which cannot take more "
        f"({error.strerror}). Set the environment variable TMPDIR to a folder on a disk with room",
    )
