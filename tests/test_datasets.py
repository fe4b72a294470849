from __future__ import annotations

import re
import warnings
from pathlib import Path

import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scmmgan import datasets, metrics
from scmmgan.data.modality import layers_of

# mudata's own notices: it has them for every MuData whose modalities share names, and when it reads a file
pytestmark = [
    pytest.mark.filterwarnings("ignore:var_names are not unique:UserWarning:mudata"),
    pytest.mark.filterwarnings("ignore:Cannot join columns with the same name:UserWarning:mudata"),
    pytest.mark.filterwarnings("ignore:From 0.4 .update.. will not pull:FutureWarning:mudata"),
]

TOYS = {
    "default": {},
    "three": {"n_modalities": 3},
    "shared genes": {"shared_genes": True},
    "spatial": {"spatial": True},
    "overlap": {"overlap": 0.8},
    "all": {"n_modalities": 3, "shared_genes": True, "spatial": True, "overlap": 0.6, "n_cells": 150},
}


def dense(x: object) -> np.ndarray:
    return np.asarray(x.toarray() if sp.issparse(x) else x)


def true_rows(mdata: md.MuData, a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the same cells in both modalities."""
    cells = [mdata.uns["truth"][m]["cell"] for m in (a, b)]
    _, rows_a, rows_b = np.intersect1d(*cells, assume_unique=True, return_indices=True)
    return rows_a, rows_b


def linked(mdata: md.MuData, a: str, b: str, column: str | None = "gene") -> tuple[np.ndarray, np.ndarray]:
    """Columns of the same genes in both modalities."""
    names = [mdata[m].var[column] if column else mdata[m].var_names for m in (a, b)]
    _, columns_a, columns_b = np.intersect1d(*names, assume_unique=True, return_indices=True)
    return columns_a, columns_b


def assert_equal(a: md.MuData, b: md.MuData) -> None:
    assert list(a.mod) == list(b.mod)
    for name in a.mod:
        np.testing.assert_array_equal(dense(a[name].X), dense(b[name].X))
        pd.testing.assert_frame_equal(a[name].obs, b[name].obs)
        pd.testing.assert_frame_equal(a[name].var, b[name].var)
        assert list(a[name].obsm) == list(b[name].obsm)
        assert sorted(layers_of(a[name])) == sorted(layers_of(b[name]))
        for key in layers_of(a[name]):
            np.testing.assert_array_equal(dense(a[name].layers[key]), dense(b[name].layers[key]))
        for key, value in a.uns["truth"][name].items():
            np.testing.assert_array_equal(value, b.uns["truth"][name][key])


def assert_round_trip(mdata: md.MuData, folder: Path, form: str) -> None:
    file = folder / f"data.{form}"
    if form == "h5mu":
        mdata.write(file)
        assert_equal(mdata, md.read_h5mu(file))
    else:
        mdata.write_zarr(file)
        assert_equal(mdata, md.read_zarr(file))


@pytest.fixture(scope="module")
def panels() -> md.MuData:
    return datasets.pbmc68k_panels()


@pytest.fixture(scope="module")
def spots() -> md.MuData:
    return datasets.pbmc68k_spots()


class TestToy:
    @pytest.mark.parametrize("kwargs", TOYS.values(), ids=TOYS)
    def test_values_and_names(self, kwargs):
        mdata = datasets.toy(**kwargs)
        assert list(mdata.mod) == ["rna", "protein", "atac"][: kwargs.get("n_modalities", 2)]
        for name, adata in mdata.mod.items():
            assert adata.X.dtype == np.float32
            assert np.isfinite(adata.X).all()
            assert adata.X.min() == 0
            assert 3 < adata.X.max() < 10  # log scale
            assert (adata.X.std(0) > 0).all()
            assert adata.obs_names.tolist() == [f"{name}_{i}" for i in range(adata.n_obs)]
            assert adata.var_names.is_unique
            assert adata.var["gene"].is_unique

    @pytest.mark.parametrize("kwargs", TOYS.values(), ids=TOYS)
    def test_truth_and_shuffling(self, kwargs):
        mdata = datasets.toy(**kwargs)
        cells = {name: mdata.uns["truth"][name]["cell"] for name in mdata.mod}
        for name, cell in cells.items():
            assert len(cell) == mdata[name].n_obs == len(set(cell))
            # far from any order: neither sorted, nor the order of another modality
            assert abs(np.corrcoef(cell, np.arange(len(cell)))[0, 1]) < 0.25
        rows_a, rows_b = true_rows(mdata, "rna", "protein")
        assert (rows_a == rows_b).mean() < 0.05
        for column in ("cell_type", "gradient"):
            a, b = mdata["rna"].obs[column].to_numpy(), mdata["protein"].obs[column].to_numpy()
            np.testing.assert_array_equal(a[rows_a], b[rows_b])

    def test_populations_are_unequal(self):
        counts = datasets.toy(n_cells=1000)["rna"].obs["cell_type"].value_counts(sort=False)
        assert counts.to_dict() == {"type_A": 320, "type_B": 260, "type_C": 100, "type_D": 140, "type_E": 180}

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_linked_features_correlate_across_modalities_for_true_pairs_only(self, seed):
        mdata = datasets.toy(n_modalities=3, random_state=seed)
        rng = np.random.default_rng(seed)
        for a, b in (("rna", "protein"), ("rna", "atac"), ("protein", "atac")):
            columns_a, columns_b = linked(mdata, a, b)
            assert len(columns_a) == 15
            rows_a, rows_b = true_rows(mdata, a, b)
            x, y = mdata[a].X[rows_a][:, columns_a], mdata[b].X[rows_b][:, columns_b]
            true = metrics.column_correlation(x, y)
            shuffled = np.abs(metrics.column_correlation(x, rng.permutation(y)))
            assert true.mean() > 0.4
            assert true.mean() > 5 * shuffled.mean()
            assert (true > 0.1).mean() > 0.9

    def test_links_find_types_and_gradients_but_not_all(self):
        mdata = datasets.toy()
        (rows_a, rows_b), (columns_a, columns_b) = true_rows(mdata, "rna", "protein"), linked(mdata, "rna", "protein")
        profiles = []
        for name, rows, columns in (("rna", rows_a, columns_a), ("protein", rows_b, columns_b)):
            z = mdata[name].X[rows][:, columns]
            z = (z - z.mean(0)) / z.std(0)
            z -= z.mean(1, keepdims=True)
            profiles.append(z / np.linalg.norm(z, axis=1, keepdims=True))
        labels = mdata["rna"].obs["cell_type"].to_numpy()[rows_a]
        # a credible toy: links alone are informative, and leave room for the method
        assert 0.05 < metrics.foscttm(*profiles) < 0.2
        assert 0.7 < metrics.label_transfer(profiles[0], labels, profiles[1], labels) < 0.97

    @pytest.mark.parametrize("name", ["rna", "protein"])
    def test_each_modality_knows_type_and_gradient(self, name):
        adata = datasets.toy()[name]
        fit, rest = np.arange(200), np.arange(200, 400)
        labels, gradient = adata.obs["cell_type"].to_numpy(), adata.obs["gradient"].to_numpy()
        assert metrics.label_transfer(adata.X[rest], labels[rest], adata.X[fit], labels[fit]) > 0.95
        distance = ((adata.X[rest, None] - adata.X[None, fit]) ** 2).sum(2)
        predicted = gradient[fit][np.argsort(distance, axis=1)[:, :5]].mean(1)
        assert np.corrcoef(predicted, gradient[rest])[0, 1] > 0.6

    def test_modalities_are_different_functions(self):
        mdata = datasets.toy()
        rows_a, rows_b = true_rows(mdata, "rna", "protein")
        own = [np.setdiff1d(np.arange(mdata[m].n_vars), c) for m, c in zip(mdata.mod, linked(mdata, "rna", "protein"))]
        x, y = mdata["rna"].X[rows_a][:, own[0]][:, :25], mdata["protein"].X[rows_b][:, own[1]][:, :25]
        assert abs(metrics.column_correlation(x, y).mean()) < 0.2
        assert not set(mdata["rna"].var_names) & set(mdata["protein"].var_names)

    def test_linked_features_are_anywhere(self):
        columns = linked(datasets.toy(), "rna", "protein")
        assert not np.array_equal(np.sort(columns[0]), np.arange(15))
        assert not np.array_equal(columns[0], columns[1])

    def test_shared_genes(self):
        mdata = datasets.toy(shared_genes=True)
        assert mdata["rna"].var_names.equals(mdata["protein"].var_names)
        assert mdata["rna"].n_vars >= 60
        rows_a, rows_b = true_rows(mdata, "rna", "protein")
        x, y = mdata["rna"].X[rows_a], mdata["protein"].X[rows_b]
        assert metrics.column_correlation(x, y).mean() > 0.4
        # the platforms differ, gene by gene
        assert (y.mean(0) - x.mean(0)).std() > 0.2
        assert (y.std(0) / x.std(0)).std() > 0.1

    def test_spatial(self):
        mdata = datasets.toy(spatial=True)
        assert "spatial" not in mdata["protein"].obsm
        x, y = mdata["rna"].obsm["spatial"].T
        obs = mdata["rna"].obs.assign(x=x, y=y)
        spans = obs.groupby("cell_type", observed=True)["y"].agg(["min", "max"])
        assert (spans["min"].to_numpy()[1:] >= spans["max"].to_numpy()[:-1]).all()
        for _, group in obs.groupby("cell_type", observed=True):
            assert group[["x", "gradient"]].corr(method="spearman").iloc[0, 1] > 0.95
            assert abs(group[["y", "gradient"]].corr(method="spearman").iloc[0, 1]) < 0.4

    @pytest.mark.parametrize(
        ("overlap", "missing"), [(1.0, []), (0.8, ["type_E"]), (0.5, ["type_C", "type_D", "type_E"])]
    )
    def test_overlap(self, overlap, missing):
        mdata = datasets.toy(overlap=overlap, n_modalities=3)
        kinds = {m: set(mdata[m].obs["cell_type"]) for m in mdata.mod}
        assert kinds["rna"] - kinds["protein"] == set(missing)
        assert kinds["rna"] == kinds["atac"]
        assert mdata.uns["truth"]["protein"]["missing"].tolist() == missing
        assert mdata.uns["truth"]["rna"]["missing"].tolist() == []
        assert len(true_rows(mdata, "rna", "protein")[0]) == mdata["protein"].n_obs

    def test_sizes(self):
        mdata = datasets.toy(n_cells=60, n_features=(20, 7), n_linked=3)
        assert (mdata["rna"].shape, mdata["protein"].shape) == ((60, 20), (60, 7))
        assert len(linked(mdata, "rna", "protein")[0]) == 3
        assert datasets.toy(shared_genes=True, n_features=(10, 10))["protein"].n_vars == 10

    def test_seed(self):
        assert_equal(datasets.toy(random_state=3), datasets.toy(random_state=3))
        a, b = datasets.toy(random_state=3), datasets.toy(random_state=4)
        assert not np.array_equal(a["rna"].X, b["rna"].X)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"n_cells": 49}, "at least 50"),
            ({"n_modalities": 6}, "2 to 5"),
            ({"n_features": (60,)}, "one number for each"),
            ({"n_features": (60, 61), "shared_genes": True}, "equal with"),
            ({"n_features": (60, 10)}, "`n_linked` is 15"),
            ({"n_linked": -1}, "`n_linked` is -1"),
            ({"overlap": 0.2}, "`overlap` is 0.2"),
            ({"overlap": 1.1}, "`overlap` is 1.1"),
        ],
    )
    def test_refused(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            datasets.toy(**kwargs)

    @pytest.mark.parametrize("form", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
    def test_round_trip(self, form, tmp_path):
        assert_round_trip(datasets.toy(**TOYS["all"]), tmp_path, form)


class TestPanels:
    def test_recovered_counts_are_whole_multiples(self):
        raw = sc.datasets.pbmc68k_reduced().raw.X
        counts = datasets._recover_counts(raw).toarray()
        assert np.array_equal(counts, np.rint(counts))
        assert counts.min() == 0
        assert (np.where(counts > 0, counts, np.inf).min(1) == 1).all()
        # normalising them again gives back what was stored, but for the rounding of a count
        scale = np.expm1(raw.toarray().astype(float)).sum(1, keepdims=True) / counts.sum(1, keepdims=True)
        np.testing.assert_allclose(np.expm1(raw.toarray()) / scale, counts, atol=0.5)

    def test_split_is_binomial(self):
        counts = sp.random(300, 200, density=0.5, random_state=0, format="csr")
        counts.data = np.random.default_rng(0).integers(1, 30, counts.nnz).astype(float)
        first, second = datasets._split(counts, np.random.default_rng(1))
        np.testing.assert_array_equal((first + second).toarray(), counts.toarray())
        total, half = counts.toarray()[counts.toarray() > 0], first.toarray()[counts.toarray() > 0]
        deviation = (half - total / 2) / np.sqrt(total / 4)
        assert abs(deviation.mean()) < 0.02
        assert deviation.var() == pytest.approx(1, abs=0.03)
        assert second.min() >= 0

    def test_panels_share_the_linked_genes_only(self, panels):
        a, b = panels["panel_a"], panels["panel_b"]
        assert len(a.var_names.intersection(b.var_names)) == 12
        assert abs(a.n_vars - b.n_vars) < 15
        assert 700 < len(a.var_names.union(b.var_names)) <= 765
        for adata in (a, b):
            assert adata.var_names.is_unique
            assert adata.n_obs == 700
            assert (dense(adata.layers["counts"]).sum(0) > 0).all()

    def test_linked_genes_are_the_most_dispersed(self, panels):
        raw = sc.datasets.pbmc68k_reduced().raw
        scaled = np.expm1(raw.X.toarray().astype(float))
        top = np.argsort(-scaled.var(0) / scaled.mean(0))[:12]
        shared = panels["panel_a"].var_names.intersection(panels["panel_b"].var_names)
        assert set(shared) == set(raw.var_names[top])

    def test_halves_of_linked_genes_sum_to_the_counts(self, panels):
        original = sc.datasets.pbmc68k_reduced()
        counts = pd.DataFrame(datasets._recover_counts(original.raw.X).toarray(), columns=original.raw.var_names)
        a, b = panels["panel_a"], panels["panel_b"]
        shared = a.var_names.intersection(b.var_names)
        rows = true_rows(panels, "panel_a", "panel_b")
        halves = [dense(x[:, shared].layers["counts"])[r] for x, r in zip((a, b), rows)]
        np.testing.assert_array_equal(sum(halves), counts[shared])
        # independent noise: given the total, the difference of the halves has the variance of fair coins
        totals = counts[shared].to_numpy()
        assert ((halves[0] - halves[1]) ** 2).sum() / totals.sum() == pytest.approx(1, abs=0.1)

    def test_values_are_normalised_counts(self, panels):
        for adata in panels.mod.values():
            counts = dense(adata.layers["counts"])
            totals = counts.sum(1, keepdims=True)
            expected = np.log1p(counts / totals * np.median(totals))
            np.testing.assert_allclose(dense(adata.X), expected, rtol=1e-4, atol=1e-6)
            assert adata.X.dtype == np.float32

    def test_truth_and_shuffling(self, panels):
        original = sc.datasets.pbmc68k_reduced()
        for name, adata in panels.mod.items():
            cell = panels.uns["truth"][name]["cell"]
            assert sorted(cell) == list(range(700))
            assert abs(np.corrcoef(cell, np.arange(700))[0, 1]) < 0.15
            assert (adata.obs["cell_type"].to_numpy() == original.obs["bulk_labels"].to_numpy()[cell]).all()
            assert adata.obs_names.tolist() == [f"{name}_{i}" for i in range(700)]
        a, b = panels.uns["truth"]["panel_a"]["cell"], panels.uns["truth"]["panel_b"]["cell"]
        assert (a == b).mean() < 0.05

    def test_links_carry_the_truth(self, panels):
        rows_a, rows_b = true_rows(panels, "panel_a", "panel_b")
        columns_a, columns_b = linked(panels, "panel_a", "panel_b", column=None)
        x = dense(panels["panel_a"].X)[rows_a][:, columns_a]
        y = dense(panels["panel_b"].X)[rows_b][:, columns_b]
        assert metrics.column_correlation(x, y).mean() > 0.7
        assert abs(metrics.column_correlation(x, np.random.default_rng(0).permutation(y)).mean()) < 0.1

    def test_seed_and_number_of_links(self):
        first = datasets.pbmc68k_panels(n_linked=3, random_state=1)
        assert_equal(first, datasets.pbmc68k_panels(n_linked=3, random_state=1))
        assert len(first["panel_a"].var_names.intersection(first["panel_b"].var_names)) == 3
        other = datasets.pbmc68k_panels(n_linked=3, random_state=2)
        assert not first["panel_a"].var_names.equals(other["panel_a"].var_names)
        with pytest.raises(ValueError, match="`n_linked` is 766"):
            datasets.pbmc68k_panels(n_linked=766)

    @pytest.mark.parametrize("form", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
    def test_round_trip(self, form, tmp_path, panels):
        assert_round_trip(panels, tmp_path, form)


class TestSpots:
    def test_spots_are_sums_of_other_cells(self, spots):
        original = sc.datasets.pbmc68k_reduced()
        spatial, cells = spots["spatial"], spots["rna"]
        assert (spatial.n_obs, cells.n_obs) == (400, 350)
        assert spatial.var_names.equals(cells.var_names)
        # the reference has half of each type
        total = original.obs["bulk_labels"].value_counts()
        half = cells.obs["cell_type"].value_counts()[total.index]
        assert ((half - total / 2).abs() <= 0.5).all()
        counts, expected = dense(spatial.layers["counts"]), dense(spatial.layers["expected"])
        assert np.array_equal(expected, np.rint(expected))
        assert (counts <= expected).all()
        assert spatial.obs["n_cells"].between(4, 12).all()
        np.testing.assert_allclose(spatial.obsm["composition"].sum(1), 1, rtol=1e-6)
        share = spatial.obsm["composition"] * spatial.obs["n_cells"].to_numpy()[:, None]
        np.testing.assert_allclose(share, np.rint(share), atol=1e-5)

    def test_genes_have_rates_and_depth_means_nothing(self, spots):
        spatial = spots["spatial"]
        counts, expected = (dense(spatial.layers[name]) for name in ("counts", "expected"))
        caught = counts.sum(1) / expected.sum(1)
        assert np.corrcoef(caught, spatial.obs["rate"])[0, 1] > 0.95
        of_gene = counts.sum(0) / expected.sum(0)
        assert 0.3 < np.log(of_gene[expected.sum(0) > 1000]).std() < 0.7
        means = spatial.obs.groupby("niche", observed=True)["rate"].mean()
        assert means.max() - means.min() < 0.1 * means.mean()

    def test_niches_differ(self, spots):
        spatial = spots["spatial"]
        niche = spatial.obs["niche"].to_numpy()
        assert sorted(set(niche)) == ["0", "1", "2", "3"]
        means = np.array([spatial.obsm["composition"][niche == name].mean(0) for name in sorted(set(niche))])
        gaps = np.abs(means[:, None] - means[None]).sum(2)
        assert gaps[np.triu_indices(4, 1)].min() > 0.3
        places = spatial.obsm["spatial"]
        distance = np.linalg.norm(places[:, None] - places[None], axis=2) + np.eye(400) * 99
        assert distance.min(1).max() == pytest.approx(1, abs=1e-5)
        # neighbours are of one niche
        assert (niche[distance.argmin(1)] == niche).mean() > 0.8

    def test_values_seed_and_refusal(self, spots):
        for adata in spots.mod.values():
            totals = dense(adata.layers["counts"]).sum(1, keepdims=True)
            expected = np.log1p(dense(adata.layers["counts"]) / totals * np.median(totals))
            np.testing.assert_allclose(dense(adata.X), expected, rtol=1e-4, atol=1e-6)
        small = datasets.pbmc68k_spots(n_spots=100, random_state=1)
        again, other = (datasets.pbmc68k_spots(n_spots=100, random_state=seed) for seed in (1, 2))
        np.testing.assert_array_equal(dense(small["spatial"].X), dense(again["spatial"].X))
        assert small["spatial"].X.shape != other["spatial"].X.shape or (small["spatial"].X != other["spatial"].X).nnz
        with pytest.raises(ValueError, match="at least 100"):
            datasets.pbmc68k_spots(n_spots=99)

    def test_round_trip(self, spots, tmp_path):
        spots.write(tmp_path / "spots.h5mu")
        again = md.read_h5mu(tmp_path / "spots.h5mu")
        np.testing.assert_array_equal(again["spatial"].obsm["composition"], spots["spatial"].obsm["composition"])
        np.testing.assert_array_equal(
            dense(again["spatial"].layers["expected"]), dense(spots["spatial"].layers["expected"])
        )


def write_10x(file: Path, genes: list[str], antibodies: list[str], n_cells: int = 40) -> np.ndarray:
    """Write a file as Cell Ranger 3 does; return its counts (cells x features, genes first)."""
    names = genes + antibodies
    counts = np.random.default_rng(0).poisson(2, (n_cells, len(names)))
    counts[0] = 1
    counts[:, names.index("SILENT")] = 0
    matrix = sp.csr_matrix(counts)
    with h5py.File(file, "w") as handle:
        group = handle.create_group("matrix")
        group["barcodes"] = np.array([f"CELL{i}-1" for i in range(n_cells)], dtype="S")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(matrix, key)
        group["shape"] = np.array(counts.shape[::-1])
        table = group.create_group("features")
        table["id"] = np.array([f"ENSG{i}" for i in range(len(names))], dtype="S")
        table["name"] = np.array(names, dtype="S")
        kinds = ["Gene Expression"] * len(genes) + ["Antibody Capture"] * len(antibodies)
        table["feature_type"] = np.array(kinds, dtype="S")
        table["genome"] = np.array(["GRCh38"] * len(names), dtype="S")
    return counts


class TestCiteseq:
    rna = ["CD3E", "SILENT", "CD4", "LYZ"]
    antibodies = ["CD3_TotalSeqB", "CD4_TotalSeqB", "PD-1_TotalSeqB", "HLA-DR_TotalSeqB", "IgG1_control_TotalSeqB"]

    @pytest.fixture
    def file(self, tmp_path) -> Path:
        self.counts = write_10x(tmp_path / "cells.h5", self.rna, self.antibodies)
        return tmp_path / "cells.h5"

    @pytest.mark.parametrize("load", [datasets.pbmc5k_citeseq, datasets.pbmc10k_citeseq])
    def test_local_10x_file(self, file, load):
        mdata = load(path=str(file))
        rna, prot = mdata["rna"], mdata["prot"]
        assert rna.var_names.tolist() == ["CD3E", "CD4", "LYZ"]
        assert rna.var["gene_ids"].tolist() == ["ENSG0", "ENSG2", "ENSG3"]
        assert prot.var["genes"].to_dict() == {
            "CD3": "CD3D;CD3E;CD3G",
            "CD4": "CD4",
            "PD-1": "PDCD1",
            "HLA-DR": "HLA-DRA;HLA-DRB1",
        }
        assert rna.obs_names.equals(prot.obs_names)
        assert rna.obs_names[0] == "CELL0-1"
        expressed, bound = self.counts[:, [0, 2, 3]], self.counts[:, 4:8]
        np.testing.assert_array_equal(dense(rna.layers["counts"]), expressed)
        np.testing.assert_array_equal(prot.layers["counts"], bound)
        totals = expressed.sum(1, keepdims=True)
        median = np.median(totals[totals > 0])
        np.testing.assert_allclose(dense(rna.X), np.log1p(expressed / np.maximum(totals, 1) * median), rtol=1e-5)
        # all counts are 1 in the first cell: log1p(1 / exp(log 2))
        np.testing.assert_allclose(prot.X[0], np.log(1.5), rtol=1e-6)
        expected = np.log1p(bound / np.exp(np.log1p(bound).mean(1, keepdims=True)))
        np.testing.assert_allclose(prot.X, expected, rtol=1e-5)
        assert prot.X.dtype == rna.X.dtype == np.float32

    def test_genes_of_equal_name(self, tmp_path):
        write_10x(tmp_path / "twice.h5", ["CD3E", "SILENT", "MATR3", "MATR3"], self.antibodies)
        # anndata's notice, while scanpy reads
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            mdata = datasets.pbmc5k_citeseq(path=tmp_path / "twice.h5")
        assert [w for w in said if "Variable names are not unique" in str(w.message)]
        assert mdata["rna"].var_names.tolist() == ["CD3E", "MATR3", "MATR3-1"]

    @pytest.mark.parametrize("form", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
    def test_round_trip(self, file, form, tmp_path):
        mdata = datasets.pbmc5k_citeseq(path=file)
        mdata.uns["truth"] = {name: {} for name in mdata.mod}
        assert_round_trip(mdata, tmp_path, form)

    def test_h5mu_is_read_as_it_is(self, tmp_path):
        mdata = datasets.toy(n_cells=60)
        mdata.write(tmp_path / "own.h5mu")
        assert_equal(datasets.pbmc5k_citeseq(path=tmp_path / "own.h5mu"), mdata)

    def test_every_antibody_of_the_panels_has_its_genes(self):
        genes = dict(entry.split("=") for entry in datasets._ANTIBODY_GENES.split())
        assert genes["CD8a"] == "CD8A"
        assert genes["CD11b"] == "ITGAM"
        assert genes["CD45RA"] == genes["CD45RO"] == "PTPRC"
        assert all(name == name.upper() for entry in genes.values() for name in entry.split(";"))

    def test_not_the_right_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"missing\.h5.*10xgenomics\.com.*path="):
            datasets.pbmc5k_citeseq(path=tmp_path / "missing.h5")
        (tmp_path / "table.csv").write_text("a,b")
        with pytest.raises(ValueError, match=r"table\.csv.*\.h5mu"):
            datasets.pbmc5k_citeseq(path=tmp_path / "table.csv")
        write_10x(tmp_path / "rna.h5", self.rna, [])
        with pytest.raises(ValueError, match=r"holds \['Gene Expression'\]; expected"):
            datasets.pbmc5k_citeseq(path=tmp_path / "rna.h5")

    @pytest.mark.parametrize(
        ("load", "name"),
        [
            (datasets.pbmc5k_citeseq, "3.0.2/5k_pbmc_protein_v3/5k_pbmc_protein_v3"),
            (datasets.pbmc10k_citeseq, "3.0.0/pbmc_10k_protein_v3/pbmc_10k_protein_v3"),
        ],
    )
    def test_nothing_is_downloaded(self, load, name, monkeypatch, tmp_path):
        """A path is needed; docstring and error say where the file can be had."""

        def refuse(*_, **__):
            pytest.fail("a connection was opened")

        monkeypatch.setattr("socket.socket.connect", refuse)
        url = f"https://cf.10xgenomics.com/samples/cell-exp/{name}_filtered_feature_bc_matrix.h5"
        with pytest.raises(TypeError, match="path"):
            load()
        with pytest.raises(FileNotFoundError, match=re.escape(f"Download {url} and hand it in as `path=`")):
            load(path=tmp_path / "nowhere.h5")
        assert url in load.__doc__


@pytest.mark.parametrize("make", [datasets.toy, datasets.pbmc68k_panels])
def test_global_states_untouched(make):
    # until mudata 0.3
    options = md.set_options().__enter__() if hasattr(md, "set_options") else {}
    state, before = np.random.get_state()[1].copy(), dict(options)
    make()
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert options == before


def test_toy_warns_of_nothing(recwarn):
    datasets.toy(n_modalities=3, spatial=True, overlap=0.8)
    # what other packages announce of their own is not ours
    assert [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)] == []
