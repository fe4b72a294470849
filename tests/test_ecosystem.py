"""What scanpy and muon do with the results as they are; docs/scverse.md says the same."""

from __future__ import annotations

import gzip
from pathlib import Path

import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.io import mmwrite

import scmmgan as smm
from helpers import extra
from scmmgan.settings import unpulled

# matplotlib announces what scanpy's pictures still use
pytestmark = pytest.mark.filterwarnings("ignore:The set_bad function will be deprecated:PendingDeprecationWarning")


@pytest.fixture(scope="module")
def coloured() -> md.MuData:
    mdata = smm.datasets.toy(n_cells=80, n_features=[20, 15], n_linked=8, spatial=True)
    mdata["rna"].obs["cell_type"] = mdata["rna"].obs["cell_type"].astype("category")
    mdata["rna"].uns["cell_type_colors"] = np.array([f"#0000{i}0" for i in range(5)], dtype=object)
    smm.tl.align(mdata, links="gene", method="coupling", progress_bar=False)
    return mdata


def test_mapped_cells_in_scanpy(coloured: md.MuData):
    import scanpy as sc

    mapped = smm.get.mapped(coloured, "rna", "protein")
    np.testing.assert_array_equal(mapped.obsm["X_scmmgan"], coloured["rna"].obsm["X_scmmgan"])
    assert mapped.uns["cell_type_colors"].tolist() == coloured["rna"].uns["cell_type_colors"].tolist()
    sc.tl.rank_genes_groups(mapped, "cell_type")
    best = mapped.uns["rank_genes_groups"]["names"]["type_A"][0]
    is_a = (mapped.obs["cell_type"] == "type_A").to_numpy()
    assert mapped[is_a, best].X.mean() > mapped[~is_a, best].X.mean()
    # no logarithm of a negative mean
    assert np.isfinite(sc.get.rank_genes_groups_df(mapped, "type_A")["logfoldchanges"]).all()
    for basis in ("X_scmmgan", "spatial"):
        axes = sc.pl.embedding(mapped, basis, color=["cell_type", best], show=False)
        drawn = {tuple(color.round(2)) for color in axes[0].collections[0].get_facecolors()[:, :3]}
        assert drawn == {(0.0, 0.0, round(16 * i / 255, 2)) for i in range(5)}


# its own packages deprecate what it uses of them
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_tables_of_spatialdata(tmp_path: Path):
    """Slow: it imports spatialdata. Region and instance keys are kept, results go back into the object and its file; mapped cells are a table, too."""
    spatialdata = extra("spatial", "spatialdata")
    mdata = smm.datasets.toy(n_cells=80, n_features=[20, 15], n_linked=12, spatial=True)
    spots = mdata["rna"]
    spots.obs["region"] = pd.Categorical(["spots"] * 80)
    # not the order of the shapes
    spots.obs["instance"] = np.arange(80)[::-1]
    keys = {"region": "spots", "region_key": "region", "instance_key": "instance"}
    table = spatialdata.models.TableModel.parse(spots, **keys)
    circles = spatialdata.models.ShapesModel.parse(spots.obsm["spatial"][::-1], geometry=0, radius=1.0)
    sdata = spatialdata.SpatialData(shapes={"spots": circles}, tables={"table": table})

    how = {"links": "gene", "method": "coupling", "progress_bar": False}
    mdata = smm.tl.align({"spatial": sdata.tables["table"], "protein": mdata["protein"]}, **how)
    assert "scmmgan_protein" not in sdata.tables["table"].obsm
    smm.tl.transfer(mdata, "spatial", "protein", obs="cell_type")
    sdata.tables["table"] = mdata["spatial"]
    sdata.tables["mapped"] = smm.get.mapped(mdata, "spatial", "protein")
    sdata.write(tmp_path / "s.zarr")

    again = spatialdata.read_zarr(tmp_path / "s.zarr")
    for name in ("table", "mapped"):
        found = again.tables[name]
        assert found.uns["spatialdata_attrs"] == keys
        np.testing.assert_array_equal(found.obs["instance"], np.arange(80)[::-1])
        np.testing.assert_array_equal(found.obsm["X_scmmgan"], mdata["spatial"].obsm["X_scmmgan"])
        # spatialdata finds the shape of every cell
        shapes, joined = spatialdata.join_spatialelement_table(again, "spots", table_name=name, how="inner")
        where = shapes["spots"].geometry.loc[joined.obs["instance"]]
        np.testing.assert_allclose(np.column_stack([where.x, where.y]), joined.obsm["spatial"], rtol=1e-6)
    np.testing.assert_array_equal(again.tables["mapped"].X, again.tables["table"].obsm["scmmgan_protein"])
    assert set(again.tables["table"].obs["scmmgan_protein_cell_type"].dropna()) <= set(
        mdata["protein"].obs["cell_type"]
    )


def test_embedding_keeps_colours_that_the_modalities_agree_on(coloured: md.MuData):
    joint = smm.get.embedding(coloured)
    np.testing.assert_array_equal(joint.obsm["X_scmmgan"], joint.X)
    assert joint.uns["cell_type_colors"].tolist() == coloured["rna"].uns["cell_type_colors"].tolist()
    assert "modality_colors" not in joint.uns


@pytest.mark.slow
def test_neighbours_and_umap(coloured: md.MuData):
    """Slow: umap compiles itself."""
    import scanpy as sc

    for adata in (smm.get.mapped(coloured, "rna", "protein"), smm.get.embedding(coloured)):
        sc.pp.neighbors(adata, use_rep="X_scmmgan")
        sc.tl.umap(adata)
        assert adata.obsm["X_umap"].shape == (adata.n_obs, 2)
        sc.pl.umap(adata, color="cell_type", show=False)


# muon sets colors on a slice of its own
@pytest.mark.filterwarnings("ignore::pandas.errors.SettingWithCopyWarning")
@pytest.mark.slow
def test_the_recipe_for_muon(coloured: md.MuData):
    import muon as mu
    import scanpy as sc

    mdata = coloured.copy()
    sc.pp.neighbors(mdata, use_rep="X_scmmgan")
    sc.tl.umap(mdata)
    assert mdata.obsm["X_umap"].shape == (160, 2)
    mdata.obs["cell_type"] = pd.concat([adata.obs["cell_type"] for adata in mdata.mod.values()]).astype(str)
    mu.pl.embedding(mdata, basis="X_umap", color=["cell_type", mdata["rna"].var_names[0]], show=False)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of muon, inside
@pytest.mark.slow
def test_from_muons_reader_to_an_alignment(tmp_path: Path):
    """Cell Ranger's folder, muon's filters, our normalisation; slow: muon imports much."""
    import muon as mu

    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 90)
    rates = rng.gamma(1.0, 2.0, (3, 20))
    counts = rng.poisson(np.hstack([rates[kinds] + 0.5, 10 * rates[kinds][:, :12] + 1]))
    names = [f"G{i}" for i in range(20)] + [f"P{i}" for i in range(12)]
    types = ["Gene Expression"] * 20 + ["Antibody Capture"] * 12
    rows = [f"{name}\t{name}\t{of}" for name, of in zip(names, types)]
    for file, lines in (("features", rows), ("barcodes", [f"cell{i}" for i in range(90)])):
        with gzip.open(tmp_path / f"{file}.tsv.gz", "wt") as out:
            out.write("\n".join(lines) + "\n")
    with gzip.open(tmp_path / "matrix.mtx.gz", "wb") as out:
        mmwrite(out, sp.coo_matrix(counts.T))

    mdata = mu.read_10x_mtx(tmp_path)
    mdata["rna"].obs["n_counts"] = mdata["rna"].X.sum(axis=1)
    mu.pp.filter_obs(mdata["rna"], "n_counts", lambda n: n >= np.quantile(n, 0.05))
    mu.pp.intersect_obs(mdata)
    with unpulled():
        mdata = md.MuData({"rna": mdata["rna"][rng.permutation(mdata.n_obs)].copy(), "prot": mdata["prot"].copy()})
    for name, kind in (("rna", "log1p"), ("prot", "clr")):
        smm.pp.normalize(mdata, name, kind=kind)
    links = pd.DataFrame({"rna": names[:12], "prot": names[20:]})
    smm.tl.align(mdata, "rna", "prot", links=links, layer={"rna": "log1p", "prot": "clr"}, method="coupling")
    table = smm.tl.evaluate(mdata, "rna", "prot", pairs="obs_names").set_index("metric")
    assert table.loc["foscttm", "value"] < 0.3
