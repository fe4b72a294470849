"""Matrices in files and of dask: the values that they would have in memory, a part at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset, write_elem

from scmmgan.data import streamed as _streamed
from scmmgan.data.streamed import streamed
from scmmgan.model.space import scratch

FORMS: list[Callable] = [np.asarray, sp.csr_matrix, sp.csc_matrix]


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch):
    for module in (scratch, _streamed):
        monkeypatch.setattr(module, "CHUNK", 50)


def values(dtype: Any = np.float32) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (10 * rng.random((40, 12)) * (rng.random((40, 12)) < 0.6)).astype(dtype)


def check(got: Any, x: np.ndarray, form: Callable, *, mapped: bool = True) -> None:
    assert scratch.is_mapped(got) == mapped
    assert got.dtype == np.float32
    assert (got.format if sp.issparse(got) else "") == ("" if form is np.asarray else "csr")
    np.testing.assert_array_equal(got.toarray() if sp.issparse(got) else got, x.astype(np.float32))


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("form", FORMS, ids=["dense", "csr", "csc"])
@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_of_a_file(kind: str, form: Callable, dtype: Any, tmp_path: Path):
    x = values(dtype)
    group = (
        h5py.File(tmp_path / "x.h5", "w")
        if kind == "h5"
        else zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=2)
    )
    write_elem(group, "X", form(x))
    check(streamed(group["X"] if form is np.asarray else sparse_dataset(group["X"])), x, form)
    if kind == "h5":
        group.close()


@pytest.mark.parametrize("form", FORMS, ids=["dense", "csr", "csc"])
def test_what_is_small_is_read(form: Callable, tmp_path: Path):
    ad.AnnData(form(values())).write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    check(streamed(backed.X), values(), np.asarray if form is np.asarray else sp.csr_matrix, mapped=False)
    backed.file.close()


def test_what_is_in_memory_is_not_touched():
    for form in FORMS:
        x = form(values())
        assert streamed(x) is x


def test_what_is_no_matrix_of_numbers_is_left_to_the_checks(tmp_path: Path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["words"] = np.array([[b"a", b"b"]])
        file["nothing"] = np.empty((0, 3))
        for name in ("words", "nothing"):
            assert streamed(file[name]) is file[name] or isinstance(streamed(file[name]), h5py.Dataset)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("width", [12, 5])
@pytest.mark.parametrize("form", FORMS[:2], ids=["dense", "csr"])
def test_of_dask(form: Callable, width: int, monkeypatch: pytest.MonkeyPatch):
    x, held = values(), []

    def part(block: Any) -> Any:
        held.append(block.shape)
        return form(block)

    # one chunk is small, and says nothing of the others
    lazy = da.from_array(x, chunks=((4,) * 9 + (1, 3), width)).map_blocks(
        part, dtype=np.float32, meta=form(np.empty((0, 0), np.float32))
    )
    check(streamed(lazy), x, form)
    # every chunk once, none larger; a few are there at one time, of large ones one row
    per_row, read = -(-12 // width), []
    for ahead, rows in ((_streamed.AHEAD, 4), (100, 2), (1, 1)):
        monkeypatch.setattr(_streamed, "AHEAD", ahead)
        held.clear()
        for i, _ in enumerate(_streamed._of_dask(lazy)):
            read.append(len(held) - per_row * i <= rows * per_row)
        assert len(held) == 11 * per_row
    assert len(read) == 33
    assert all(read)
    held.clear()
    streamed(lazy)
    assert sum(n * g for n, g in held) == x.size
    assert streamed(lazy, of_dask=False) is lazy
