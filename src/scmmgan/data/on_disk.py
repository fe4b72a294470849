"""AnnData whose X is too large to be held, written a block of rows at a time: whole, or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from anndata import AnnData
from anndata.io import write_elem

from scmmgan.data.directory import put_in_place
from scmmgan.model.defaults import STORED_CHUNK

ENDINGS = (".zarr", ".h5ad")
MARK = "scmmgan_mapped"  # attribute of an X that `write` made, which another call may replace


def check_path(out: str | PathLike[str], cells: AnnData) -> Path:
    """Where a file can be written; ValueError, TypeError or FileExistsError before anything is computed.

    What is there already is replaced only if `write` made it: cells that are read lazily, or others' data, may lie there.
    """
    if not isinstance(out, str | PathLike):
        raise TypeError(f"`out` must be a path that ends in .zarr or .h5ad, got {out!r}.")
    path = Path(out).absolute()
    if path.suffix not in ENDINGS:
        raise ValueError(f"`out` must end in .zarr or .h5ad, got {str(out)!r}.")
    if any(path.resolve() in (of, *of.parents) for of in _files_of(cells)):
        raise ValueError(f"`out` {str(out)!r} is the file that the cells are read from. Name another.")
    if (path.exists() or path.is_symlink()) and not _is_own(path):
        raise FileExistsError(
            f"`out` {str(out)!r} is there already, and is no earlier result of `scmmgan.tl.translate`. Name another, or delete it."
        )
    return path


def _files_of(cells: AnnData) -> list[Path]:
    """The h5 files and zarr folders of matrices that are in one and say so: arrays of dask do not."""
    found = [cells.filename if cells.isbacked else None]
    # what a view shows would be read
    for x in () if cells.is_view else (cells.X, *cells.layers.values(), *cells.obsm.values()):
        group = getattr(x, "group", x)
        store = getattr(group, "store", None)
        found += [
            getattr(group, "file", None) and group.file.filename,
            getattr(store, "root", getattr(store, "path", None)),
        ]
    return [Path(of).resolve() for of in found if isinstance(of, str | Path)]


def _is_own(path: Path) -> bool:
    """Whether `write` made what is there."""
    try:
        if path.is_dir():
            return MARK in _zarr(path, "r")["X"].attrs
        import h5py

        with h5py.File(path) as file:
            return MARK in file["X"].attrs
    except Exception:
        # what cannot be read, for whichever reason, is none
        return False


def write(adata: AnnData, blocks: Iterable[np.ndarray], path: Path) -> AnnData:
    """Write an AnnData without X, and as its X blocks of rows (float32), in place of an earlier one.

    Returned with the values still in the file: of zarr as a `zarr.Array`, of h5ad `backed`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # as AnnData does before it writes
    adata.strings_to_categoricals()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as beside:
        new, old = Path(beside, f"new{path.suffix}"), Path(beside, "old")
        if path.suffix == ".zarr":
            _fill(_zarr(new, "w"), adata, blocks)
        else:
            import h5py

            with h5py.File(new, "w") as file:
                _fill(file, adata, blocks)
        put_in_place(new, path, old)
    if path.suffix == ".h5ad":
        return anndata.read_h5ad(path, backed="r")
    found = adata.copy()
    found.X = _zarr(path, "r")["X"]
    return found


def _zarr(path: Path, mode: Any) -> Any:
    import zarr

    if mode == "r":
        return zarr.open_group(path, mode=mode)
    # AnnData's own format; from 0.13 on it is zarr's, and asking is deprecated
    older = tuple(map(int, version("anndata").split(".")[:2])) < (0, 13)
    return zarr.open_group(path, mode=mode, zarr_format=anndata.settings.zarr_write_format if older else None)


def _fill(group: Any, adata: AnnData, blocks: Iterable[np.ndarray]) -> None:
    write_elem(group, "/", adata)
    for name in ("raw", "X"):
        # that there is none is stored, which readers of `backed` files take for one
        if name in group:
            del group[name]
    create = group.create_array if hasattr(group, "create_array") else group.create_dataset
    # some columns of all cells, and some cells of all columns, are quick to read
    chunks = tuple(max(1, min(size, STORED_CHUNK)) for size in adata.shape)
    values = create("X", shape=adata.shape, chunks=chunks, dtype="float32")
    values.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0", MARK: True})
    start = 0
    for block in blocks:
        values[start : start + len(block)] = block
        start += len(block)
