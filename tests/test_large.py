"""Data larger than memory, in files and of dask: the same results, and never the whole matrix in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import dask
import dask.array as da
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset, write_elem

import scmmgan as smm
from scmmgan.data import read as _read
from scmmgan.data import streamed as _streamed
from scmmgan.model.problem import Problem
from scmmgan.model.space import linear, pca, scratch, smoothing
from scmmgan.model.space.domain import model_space

ARGUMENTS: dict[str, Any] = {"links": "gene", "pairs": None, **_read.PER_MODALITY}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    for module in (scratch, _streamed):
        monkeypatch.setattr(module, "CHUNK", 2**10)
    monkeypatch.setattr(smoothing, "DENSE", 2**10)


def counted(n_cells: int = 100) -> md.MuData:
    mdata = smm.datasets.toy(n_cells=n_cells, n_features=[30, 20])
    rng = np.random.default_rng(0)
    for adata in mdata.mod.values():
        adata.X = sp.csr_matrix(rng.poisson(np.expm1(adata.X.clip(0, 4)) + 0.2), dtype=np.float32)
    return mdata


def in_files(mdata: md.MuData, folder: Path) -> md.MuData:
    """The same with its matrices in a zarr file, of which nothing is read."""
    parts = {}
    for name, adata in mdata.mod.items():
        group = zarr.open_group(folder / f"{name}.zarr", mode="w", zarr_format=2)
        write_elem(group, "X", adata.X)
        parts[name] = ad.AnnData(sparse_dataset(group["X"]), obs=adata.obs.copy(), var=adata.var.copy())
    return md.MuData(parts)


def of_dask(mdata: md.MuData, rows: int = 17) -> md.MuData:
    parts = {}
    for name, adata in mdata.mod.items():
        x = da.from_array(adata.X.toarray(), chunks=(rows, -1)).map_blocks(sp.csr_matrix)
        parts[name] = ad.AnnData(x, obs=adata.obs.copy(), var=adata.var.copy())
    return md.MuData(parts)


def aligned(mdata: md.MuData) -> md.MuData:
    for name in mdata.mod:
        smm.pp.normalize(mdata, name, kind="log1p")
    smm.tl.align(mdata, links="gene", layer="log1p", max_steps=3, progress_bar=False)
    return mdata


@pytest.mark.usefixtures("small_chunks", "few_tables")
@pytest.mark.parametrize("form", ["files", "dask"])
def test_same_results_as_in_memory(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scmmgan.model.evidence.correlations.PERMUTATIONS", 4)
    mdata = counted()
    lazy = aligned(in_files(mdata, tmp_path) if form == "files" else of_dask(mdata))
    aligned(mdata)
    for name in mdata.mod:
        for slot in ("X_scmmgan", f"scmmgan_{'protein' if name == 'rna' else 'rna'}"):
            np.testing.assert_allclose(lazy[name].obsm[slot], mdata[name].obsm[slot], atol=1e-4)
    # what follows reads it once more
    smm.tl.correlations(lazy, "rna", "protein", gene="protein_gene_0", progress_bar=False)
    smm.tl.uncertainty(lazy, "rna", "protein", method="coupling", progress_bar=False)
    smm.tl.uncertainty(mdata, "rna", "protein", method="coupling", progress_bar=False)
    pd.testing.assert_series_equal(
        lazy["protein"].var["scmmgan_uncertainty"], mdata["protein"].var["scmmgan_uncertainty"], atol=1e-4
    )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", ["log1p", "clr", "tfidf"])
@pytest.mark.parametrize("form", ["files", "dask"])
def test_normalised_values(form: str, kind: Any, tmp_path: Path):
    mdata = counted()
    lazy = in_files(mdata, tmp_path) if form == "files" else of_dask(mdata)
    for data in (mdata, lazy):
        smm.pp.normalize(data, "rna", kind=kind)
    expected, got = mdata["rna"].layers[kind], lazy["rna"].layers[kind]
    if form == "dask":
        # computed when it is asked for
        assert got.dtype == np.float32
        got = got.compute()
    else:
        assert scratch.is_mapped(got)
    assert got.format == "csr"
    np.testing.assert_allclose(got.toarray(), expected.toarray(), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["files", "dask"])
def test_what_are_no_counts_is_said_before_anything_is_written(form: str, tmp_path: Path):
    cases: list[tuple[Callable[[np.ndarray], Any], str]] = [
        (lambda x: x.__setitem__((99, 3), 0.5), "not whole numbers"),
        (lambda x: x.__setitem__((99, 3), -1), "negative values"),
        (lambda x: x.__setitem__((99, 3), np.nan), "NaN or infinite"),
        (lambda x: x.__setitem__(99, 0), "have no counts"),
    ]
    for i, (change, message) in enumerate(cases):
        mdata = counted()
        x = mdata["rna"].X.toarray()
        change(x)
        mdata["rna"].X = sp.csr_matrix(x)
        lazy = in_files(mdata, tmp_path / str(i)) if form == "files" else of_dask(mdata)
        with pytest.raises(ValueError, match=message):
            smm.pp.normalize(lazy, "rna", kind="log1p")
        assert not lazy["rna"].layers


@pytest.mark.slow
def test_the_peak_is_under_a_third_of_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Normalisation, statistics, neighbours, PCA, smoothing, and all mapped values of as many cells."""
    for module in (scratch, _streamed):
        monkeypatch.setattr(module, "CHUNK", 2**15)
    monkeypatch.setattr(smoothing, "DENSE", 2**17)
    monkeypatch.setattr(pca, "BLOCK_ROWS", 2**8)
    n, g, rng = 12_000, 1_000, np.random.default_rng(0)
    weights, types = rng.gamma(3.0, size=(6, g)), rng.dirichlet(np.full(6, 0.5), n)
    linked = []
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        for start in range(0, n, 500):
            block = sp.csr_matrix(rng.poisson(types[start : start + 500] @ weights), dtype=np.float32)
            linked.append(block[:, :30].toarray())
            if start:
                sparse_dataset(file["X"]).append(block)
            else:
                write_elem(file, "X", block)
        size = 8 * len(file["X/data"])
        assert size > 30e6
        var = pd.DataFrame(index=[f"gene_{i}" for i in range(g)])
        var["gene"] = var.index
        panel = ad.AnnData(np.log1p(np.vstack(linked)[rng.permutation(n)[:300]]), var=var[:30].copy())
        panel.obs_names = [f"spot_{i}" for i in range(300)]
        mdata = md.MuData({"rna": ad.AnnData(sparse_dataset(file["X"]), var=var.copy()), "panel": panel})
        # imports are no part of it
        aligned(counted(60))

        def peak(function: Callable[[], Any]) -> Any:
            tracemalloc.reset_peak()
            found = function()
            assert tracemalloc.get_traced_memory()[1] < size / 3, function
            return found

        tracemalloc.start()
        try:
            peak(lambda: smm.pp.normalize(mdata, "rna", kind="log1p"))
            problem = peak(
                lambda: _read.read(mdata, ["rna", "panel"], ARGUMENTS | {"layer": {"rna": "log1p", "panel": None}})
            )
            domains = peak(lambda: model_space(problem, random_state=0))
            peak(lambda: smm.pp.smooth(mdata, "rna", layer="log1p", t=1))
        finally:
            tracemalloc.stop()
        assert domains["rna"].x.shape == (n, 50)
        assert scratch.is_mapped(mdata["rna"].layers["smoothed"])
    few = smm.datasets.toy(n_cells=200, n_features=[2_400, 30])
    smm.tl.align(few, links="gene", method="coupling", features=[], progress_bar=False)
    protein = few["protein"]
    cells = ad.AnnData(protein.X[rng.integers(0, 200, 12_000)], var=protein.var.copy())
    # what is compiled in the first call is no part of it
    smm.tl.translate(cells[:20].copy(), "protein", "rna", model=few, out=tmp_path / "first.zarr", progress_bar=False)
    tracemalloc.start()
    try:
        got = smm.tl.translate(cells, "protein", "rna", model=few, out=tmp_path / "mapped.zarr", progress_bar=False)
        assert tracemalloc.get_traced_memory()[1] < got.X.nbytes / 3
    finally:
        tracemalloc.stop()
    assert got.shape == (12_000, 2_400)
    assert np.isfinite(got[-5:].X).all()


@pytest.mark.slow
def test_the_peak_of_dask_is_that_of_some_chunks(monkeypatch: pytest.MonkeyPatch):
    """Normalising and reading large chunks, of which only one is there at a time, and its copies."""
    for module in (scratch, _streamed):
        monkeypatch.setattr(module, "CHUNK", 2**15)
    n, g, rows, stored = 32_000, 601, 1_000, 200
    monkeypatch.setattr(_streamed, "AHEAD", rows * g)

    def made(numbers: np.ndarray) -> sp.csr_matrix:
        columns = np.sort((7 * numbers + 3 * np.arange(stored)) % g, axis=1).astype(np.int32)
        counts = 1 + (columns + numbers) % 5
        start = np.arange(0, stored * len(numbers) + 1, stored, dtype=np.int32)
        return sp.csr_matrix((counts.ravel().astype(np.float32), columns.ravel(), start), shape=(len(numbers), g))

    def counts(n: int) -> md.MuData:
        x = da.arange(n, chunks=rows)[:, None].map_blocks(
            made, dtype=np.float32, chunks=((rows,) * (n // rows), (g,)), meta=sp.csr_matrix((0, 0), dtype=np.float32)
        )
        obs, var = (pd.DataFrame(index=[f"{of}_{i}" for i in range(size)]) for of, size in (("cell", n), ("gene", g)))
        return md.MuData({"rna": ad.AnnData(x, obs=obs, var=var), "few": smm.datasets.toy(n_cells=60)["rna"]})

    def read(mdata: md.MuData) -> Problem:
        smm.pp.normalize(mdata, "rna", kind="log1p")
        return _read.read(mdata, ["rna", "few"], ARGUMENTS | {"links": None, "layer": {"rna": "log1p", "few": None}})

    with dask.config.set(scheduler="single-threaded"):
        # imports are no part of it
        read(counts(2 * rows))
        mdata = counts(n)
        tracemalloc.start()
        try:
            problem = read(mdata)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert problem.modalities["rna"].values.nnz == n * stored
    assert peak < 8 * n * stored / 3


@pytest.mark.slow
def test_on_a_dask_cluster_the_workers_do_what_is_done_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Checking, normalising and reading; statistics, principal axes and decoding: with the results of one process."""
    import distributed

    for module in (scratch, _streamed):
        monkeypatch.setattr(module, "CHUNK", 2**12)
    monkeypatch.setattr(pca, "BLOCK_ROWS", 64)
    monkeypatch.setattr(linear, "BLOCKED_FROM", 200)
    monkeypatch.setattr(linear, "BLOCK_ROWS", 64)
    rng = np.random.default_rng(0)
    mdata = smm.datasets.toy(n_cells=200, n_features=[1_200, 20])
    for adata in mdata.mod.values():
        adata.X = sp.csr_matrix(rng.poisson(np.expm1(adata.X.clip(0, 4)) + 0.2), dtype=np.float32)
    new, names = mdata["protein"][:50].copy(), []
    original = distributed.Client.submit

    def submit(self: Any, call: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(function.__name__)
        return original(self, call, function, *args, **kwargs)

    monkeypatch.setattr(distributed.Client, "submit", submit)

    def all_of_it(data: md.MuData, out: Path) -> np.ndarray:
        smm.pp.normalize(new_of := md.MuData({"protein": new.copy()}), "protein", kind="log1p")
        aligned(data)
        found = smm.tl.translate(new_of, "protein", "rna", model=data, out=out, batch_size=16, progress_bar=False)
        return np.asarray(found.X[:])

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        lazy = of_dask(mdata)
        there = all_of_it(lazy, tmp_path / "there.zarr")
        done = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert len(done) == 2
    assert min(done.values()) > 20
    assert {"_of_block", "_squares", "_decoded"} <= set(names)
    submitted = len(names)
    # 12 chunks of each modality, once checked and once read
    assert sum(done.values()) >= submitted + 48
    alone = of_dask(mdata)
    here = all_of_it(alone, tmp_path / "here.zarr")
    assert len(names) == submitted
    np.testing.assert_array_equal(lazy["rna"].obsm["X_scmmgan"], alone["rna"].obsm["X_scmmgan"])
    np.testing.assert_array_equal(there, here)
