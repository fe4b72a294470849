"""Matrices larger than memory: results are those of the same matrix in memory."""

from __future__ import annotations

import errno
import tracemalloc
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.space import pca, scratch
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.graphs import graph_space
from scmmgan.model.space.linear import product, transposed_product
from scmmgan.model.space.moments import column_moments
from scmmgan.model.space.smoothing import SmoothedMatrix

FORMS = pytest.mark.parametrize("sparse", [True, False], ids=["csr", "dense"])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scratch, "CHUNK", 100)


def matrix(sparse: bool, n: int = 90, g: int = 40, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    x = (rng.gamma(2.0, size=(n, g)) * (rng.random((n, g)) < 0.4)).astype(np.float32)
    x[:, 3] = 1.5
    x[11, 4:] = 0
    return sp.csr_matrix(x) if sparse else x


def mapped(x: Any, step: int = 7) -> Any:
    found = scratch.stacked(x[start : start + step] for start in range(0, x.shape[0], step))
    assert scratch.is_mapped(found)
    assert not scratch.is_mapped(x)
    return found


def same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    assert a.dtype == b.dtype
    if sp.issparse(a):
        assert a.indices.dtype == b.indices.dtype == b.indptr.dtype
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    else:
        np.testing.assert_array_equal(a, b)


@FORMS
def test_blocks_become_one_matrix(sparse: bool):
    x = matrix(sparse)
    same(mapped(x), x)
    # what is small stays in memory
    few = scratch.stacked([x[:1], x[1:2]])
    assert not scratch.is_mapped(few)
    same(few, x[:2])
    # every part is there once
    parts = [mapped(x)[at] for at in scratch.chunks(mapped(x))]
    assert len(parts) > 10
    same(sp.vstack(parts, format="csr") if sparse else np.vstack(parts), x)
    assert list(scratch.chunks(x)) == [slice(0, len(x.toarray()) if sparse else len(x))]


@FORMS
def test_rows_and_columns(sparse: bool):
    x, rng = matrix(sparse), np.random.default_rng(1)
    y = mapped(x)
    for at in (rng.permutation(90)[:60], np.arange(90) % 3 > 0, np.arange(2)):
        same(scratch.rows_of(y, at), scratch.rows_of(x, at))
    for at in (rng.permutation(40)[:30], np.arange(40), np.array([5]), np.array([], dtype=int)):
        same(scratch.columns_of(y, at), scratch.columns_of(x, at))
    # a part that is small is copied: nothing holds the file
    assert not scratch.is_mapped(scratch.rows_of(y, np.arange(2)))
    assert scratch.is_mapped(scratch.rows_of(y, rng.permutation(90)))
    assert scratch.is_mapped(scratch.columns_of(y, rng.permutation(40)))


def test_by_column_and_back():
    x = matrix(True)
    y = scratch.by_column(mapped(x))
    assert scratch.is_mapped(y)
    same(y, x.tocsc())
    same(scratch.by_row(y), x)
    v, u = np.random.default_rng(0).normal(size=(40, 2)), np.random.default_rng(0).normal(size=90)
    np.testing.assert_allclose(product(y, v), x @ v)
    np.testing.assert_allclose(transposed_product(y, u), x.T @ u)
    assert scratch.is_mapped(scratch.by_row(y))
    at = np.random.default_rng(0).permutation(40)[:30]
    found = scratch.columns_of(y, at)
    same(found.tocsc(), x.tocsc()[:, at])
    assert scratch.is_mapped(found)


@FORMS
def test_statistics_and_products(sparse: bool):
    x = matrix(sparse)
    y = mapped(x)
    # sums over parts round otherwise
    for of in (y, *((scratch.by_column(y),) if sparse else ())):
        for a, b in zip(column_moments(x), column_moments(of)):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
        assert column_moments(of)[1][3] == 0
    operator = smoothing_operator(np.random.default_rng(0).normal(size=(90, 3)))
    for t in (0, 2):
        a, b = (SmoothedMatrix(v, operator if t else None, t) for v in (x, y))
        v, u = np.random.default_rng(2).normal(size=(40, 3)), np.random.default_rng(3).normal(size=(90, 3))
        # products of dense matrices, too, on some processors
        np.testing.assert_allclose(a.dot(v), b.dot(v), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(a.tdot(u), b.tdot(u), rtol=1e-12, atol=1e-12)
        same(a.columns(np.array([7, 1])), b.columns(np.array([7, 1])))
        for one, other in zip(a.moments(), b.moments()):
            np.testing.assert_array_equal(one, other)
        some = np.arange(0, 40, 2)
        np.testing.assert_allclose(a.take(some).dot(v[:20]), b.take(some).dot(v[:20]), rtol=1e-12, atol=1e-12)
    for a, b in zip(graph_space(x, covariates=u), graph_space(y, covariates=u)):
        for one, other in zip(*(of.state().values() if hasattr(of, "state") else [of] for of in (a, b))):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_nothing_is_held_as_a_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scratch, "CHUNK", 2**14)
    x = sp.random(20_000, 400, 0.25, "csr", np.float32, rng=np.random.default_rng(0))
    size = x.data.nbytes + x.indices.nbytes
    y = mapped(x, 200)
    del x
    tracemalloc.start()
    try:
        column_moments(y)
        scratch.by_column(y)
        scratch.columns_of(y, np.arange(0, 400, 2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 10


def test_writing_to_it_changes_no_other(tmp_path):
    x = mapped(matrix(False))
    x[0, 0] = 7
    assert x[0, 0] == 7


def test_a_full_disk_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    class Full:
        def write(self, data: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            return None

        def fileno(self) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *of: object) -> None:
            return None

    x = mapped(matrix(True))
    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", lambda **how: Full())
    with pytest.raises(
        OSError, match=r"cannot take more \(No space left on device\). Set the environment variable TMPDIR"
    ):
        scratch.columns_of(x, np.arange(0, 40, 2))
    with pytest.raises(OSError, match="TMPDIR"):
        scratch.by_column(x)


@FORMS
@pytest.mark.parametrize("t", [0, 1])
def test_principal_axes_read_every_cell_once(sparse: bool, t: int, monkeypatch: pytest.MonkeyPatch):
    """Of many features; those of the same matrix in memory are found by iterations."""
    x = matrix(sparse, 150, 600)
    operator = smoothing_operator(graph_space(x)[1]) if t else None
    mean, sd = SmoothedMatrix(x, operator, t).moments()
    at = np.flatnonzero(sd > 0)
    monkeypatch.setattr(pca, "BLOCK_ROWS", 40)
    seen: list[int] = []
    original = SmoothedMatrix.of_cells
    monkeypatch.setattr(SmoothedMatrix, "of_cells", lambda self, rows: (seen.extend(rows), original(self, rows))[1])
    expected, got = (
        pca.principal_axes([pca.Standardized(SmoothedMatrix(of, operator, t).take(at), mean[at], sd[at])], 8)
        for of in (x, mapped(x))
    )
    assert seen == list(range(150))
    np.testing.assert_allclose(got, expected, atol=1e-4)
