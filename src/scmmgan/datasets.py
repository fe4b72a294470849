"""Data to try things on: made in memory, shipped with scanpy, or read from a file. True cell identities are in `uns`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scmmgan.settings import unpulled

__all__ = ["pbmc5k_citeseq", "pbmc10k_citeseq", "pbmc68k_panels", "pbmc68k_spots", "toy"]

# toy: modality -> (default number of features, median expected count)
_MODALITIES = {
    "rna": (60, 2.0), "protein": (40, 8.0), "atac": (50, 0.7), "methylation": (45, 3.0), "histone": (45, 1.5),
}  # fmt: skip
# toy: populations of unequal size; centres at unequal distances, so that geometry alone can tell them apart
_SHARES = {"type_A": 0.32, "type_B": 0.26, "type_C": 0.10, "type_D": 0.14, "type_E": 0.18}
_CENTRES = np.array([[0, 0, 0, 0], [2.2, 0, 0, 0], [0.8, 2.8, 0, 0], [-1.5, 1.2, 2.6, 0], [-2.2, -1.6, 0.4, 2.4]])
# toy: the gradient's step along an axis common to all populations, and along one of their own; its skewness
_COMMON_SLOPE, _OWN_SLOPES, _SKEW = 4.0, np.array([1.5, -1.5, 0.8, -0.8, 0.0]), 1.5

# spots: cells in one, Dirichlet weight of the niches' compositions, sd of the log rate of genes, mean rate and its span
_SPOT_CELLS, _NICHE_WEIGHT, _RATE_SD, _DEPTH = (4, 12), 0.5, 0.5, (0.1, 0.4)

_TENX_URL = "https://cf.10xgenomics.com/samples/cell-exp/{0}/{1}/{1}_filtered_feature_bc_matrix.h5"
# antibody=genes that code for its antigen; an antibody that is not listed has the name of its gene, as CD4
_ANTIBODY_GENES = (
    "CD3=CD3D;CD3E;CD3G CD8a=CD8A CD11b=ITGAM CD15=FUT4 CD16=FCGR3A CD20=MS4A1 CD25=IL2RA CD45RA=PTPRC CD45RO=PTPRC "
    "CD56=NCAM1 CD62L=SELL CD127=IL7R CD137=TNFRSF9 CD197=CCR7 CD278=ICOS CD335=NCR1 PD-1=PDCD1 HLA-DR=HLA-DRA;HLA-DRB1"
)


def toy(
    *,
    n_cells: int = 400,
    n_features: Sequence[int] | None = None,
    n_linked: int = 15,
    n_modalities: int = 2,
    shared_genes: bool = False,
    spatial: bool = False,
    overlap: float = 1.0,
    random_state: int = 0,
) -> md.MuData:
    """Make a small unpaired data set with known truth, seconds to align.

    Five populations of unequal size, each with a continuous gradient, live in six latent dimensions. The log expected
    count of a feature is a random direction of this space, the same one in all modalities for linked features; values
    are log1p of Poisson counts. All modalities measure the same cells, but rows are shuffled and cells renamed in each.

    Parameters
    ----------
    n_cells
        Number of cells, at least 50; default 400.
    n_features
        Number of features of each modality; default 60, 40, 50, 45 and 45, with `shared_genes` 60 each.
    n_linked
        Number of features that measure the same gene in all modalities, unless all do; default 15.
    n_modalities
        2 (default): "rna" and "protein"; up to 5: "atac", "methylation" and "histone" as well.
    shared_genes
        Give all modalities the same `var_names`, with a shift and a scale per gene and platform; default `False`.
    spatial
        Give "rna" coordinates: populations lie in layers, the gradient runs across them; default `False`.
    overlap
        Share of the five populations that "protein" holds, 0.4 to 1 (default): at 0.8 it lacks "type_E".
    random_state
        Seed; default 0.

    Returns
    -------
    :class:`mudata.MuData`, cells named `{modality}_{i}`, with

    `mdata[m].X` : :class:`numpy.ndarray` (float32)
        log1p of counts, cells × features.
    `mdata[m].obs["cell_type"]`, `.obs["gradient"]`
        Population, and position in [0, 1] along its gradient.
    `mdata[m].var["gene"]` : :class:`str`
        Gene that the feature measures; equal names are the links.
    `mdata["rna"].obsm["spatial"]` : :class:`numpy.ndarray` (float32)
        Coordinates in [0, 2] × [0, 1], cells × 2, if `spatial`.
    `mdata.uns["truth"][m]` : :class:`dict`
        `"cell"`: identity of each row, equal numbers are the same cell. `"missing"`: populations that `m` lacks.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> mdata["rna"].shape, mdata["protein"].shape
    ((400, 60), (400, 40))
    """
    if n_modalities not in range(2, len(_MODALITIES) + 1):
        raise ValueError(f"`n_modalities` is {n_modalities}; the toy has 2 to {len(_MODALITIES)} modalities.")
    names = list(_MODALITIES)[:n_modalities]
    sizes = dict(zip(names, _toy_sizes(names, n_features, n_linked, shared_genes)))
    if n_cells < 50:
        raise ValueError(f"`n_cells` is {n_cells}; the smallest of the five populations needs at least 50 in all.")
    if not 0.4 <= overlap <= 1:
        raise ValueError(f"`overlap` is {overlap}; give a share from 0.4 (two of five populations) to 1 (all).")
    n_missing = len(_SHARES) - int(overlap * len(_SHARES) + 1e-9)
    rng = np.random.default_rng(random_state)
    population, gradient, latent = _toy_cells(n_cells, rng)
    layout = _toy_layout(population, gradient, rng)
    values, genes = _toy_values(latent, sizes, n_linked, shared_genes, rng)
    modalities, truth = {}, {}
    for name in names:
        n_present = len(_SHARES) - (n_missing if name == "protein" else 0)
        cell = rng.permutation(np.flatnonzero(population < n_present))
        cell_type = pd.Categorical.from_codes(population[cell], categories=pd.Index(list(_SHARES)))
        features = genes[name] if shared_genes else [f"{name}_{gene}" for gene in genes[name]]
        var = pd.DataFrame({"gene": genes[name]}, index=features)
        modalities[name] = _renamed(name, values[name][cell], cell_type, var)
        modalities[name].obs["gradient"] = gradient[cell]
        truth[name] = {"cell": cell, "missing": np.array(list(_SHARES)[n_present:], dtype=str)}
        if spatial and name == "rna":
            modalities[name].obsm["spatial"] = layout[cell]
    return _mudata(modalities, truth=truth)


def pbmc68k_panels(*, n_linked: int = 12, random_state: int = 0) -> md.MuData:
    """Split 700 real blood cells into two modalities with independent noise and different genes; needs no network.

    The cells are scanpy's `pbmc68k_reduced`. Every count is split binomially (probability 1/2) into two halves. The
    `n_linked` genes with the largest dispersion (variance over mean) are kept in both, the others in one half at
    random; genes without a count in their half are dropped. Rows are shuffled and cells renamed.

    Parameters
    ----------
    n_linked
        Number of genes on both panels, 0 to 765; default 12.
    random_state
        Seed of the split, the panels and the order of cells; default 0.

    Returns
    -------
    :class:`mudata.MuData` with modalities "panel_a" and "panel_b", cells named `{modality}_{i}`, with

    `mdata[m].X` : :class:`scipy.sparse.csr_matrix` (float32)
        log1p of counts scaled to the median total of the panel, cells × genes.
    `mdata[m].layers["counts"]` : :class:`scipy.sparse.csr_matrix` (float32)
        Counts.
    `mdata[m].obs["cell_type"]`
        Label of the cell (`bulk_labels` of the original).
    `mdata.uns["truth"][m]["cell"]` : :class:`numpy.ndarray`
        Row of each cell in `pbmc68k_reduced`; equal numbers are the same cell.
    `mdata.uns["provenance"]["source"]` : :class:`str`
        Where the cells are from.

    Raises
    ------
    ValueError
        If `n_linked` is out of range.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.pbmc68k_panels()
    >>> len(mdata["panel_a"].var_names.intersection(mdata["panel_b"].var_names))
    12
    """
    import scanpy as sc

    original = sc.datasets.pbmc68k_reduced()
    expression, genes = original.raw.X.tocsr(), original.raw.var_names
    if not 0 <= n_linked <= len(genes):
        raise ValueError(f"`n_linked` is {n_linked}, but must lie between 0 and the number of genes, {len(genes)}.")
    rng = np.random.default_rng(random_state)
    halves = _split(_recover_counts(expression), rng)
    scaled = np.expm1(expression.toarray().astype(np.float64))
    by_dispersion = np.argsort(-scaled.var(0) / scaled.mean(0), kind="stable")
    linked, others = by_dispersion[:n_linked], rng.permutation(by_dispersion[n_linked:])
    modalities, truth = {}, {}
    for name, counts, own in zip(("panel_a", "panel_b"), halves, np.array_split(others, 2)):
        panel = np.intersect1d(np.concatenate([linked, own]), np.flatnonzero(_seen(counts)))
        cell = rng.permutation(original.n_obs)
        cell_type = pd.Categorical(original.obs["bulk_labels"].iloc[cell])
        var = pd.DataFrame(index=genes[panel])
        modalities[name] = _log_normalized(_renamed(name, counts[cell][:, panel], cell_type, var))
        truth[name] = {"cell": cell}
    source = "scanpy.datasets.pbmc68k_reduced: 10x Genomics, Fresh 68k PBMCs (Donor A); .raw, counts split in halves"
    return _mudata(modalities, truth=truth, provenance={"source": source})


def pbmc68k_spots(*, n_spots: int = 400, random_state: int = 0) -> md.MuData:
    """Make spots of a tissue of real blood cells, beside single cells of the same sample; needs no network.

    The cells are scanpy's `pbmc68k_reduced`. Half of them, drawn within each type, are the reference. The others make the
    spots: 4 to 12 cells each, drawn as the composition of the spot's niche says; four niches lie side by side. The counts
    of a spot are thinned: every gene is caught at a rate of its own, and depth changes along the tissue, across all niches
    and for no biological reason. So what a spot holds is known, and no cell is in both modalities.

    Parameters
    ----------
    n_spots
        Number of spots, at least 100; default 400. They lie on a hexagonal grid.
    random_state
        Seed of everything random; default 0.

    Returns
    -------
    :class:`mudata.MuData` with modalities "spatial" and "rna" of the same genes, cells named `{modality}_{i}`, with

    `mdata[m].X` : :class:`scipy.sparse.csr_matrix` (float32)
        log1p of counts scaled to the median total, cells × genes.
    `mdata[m].layers["counts"]` : :class:`scipy.sparse.csr_matrix` (float32)
        Counts.
    `mdata["rna"].obs["cell_type"]`
        Label of the cell (`bulk_labels` of the original).
    `mdata["spatial"].obsm["spatial"]` : :class:`numpy.ndarray` (float32)
        Coordinates, spots × 2; neighbours are 1 apart.
    `mdata["spatial"].layers["expected"]` : :class:`scipy.sparse.csr_matrix` (float32)
        Truth: counts of a spot's cells before they were thinned, spots × genes.
    `mdata["spatial"].obsm["composition"]` : :class:`numpy.ndarray` (float32)
        Truth: share of each type among the spot's cells, spots × types, in the order of the categories of
        `mdata["rna"].obs["cell_type"]`.
    `mdata["spatial"].obs["niche"]`, `.obs["n_cells"]`, `.obs["rate"]`
        Truth: niche ("0" to "3"), number of cells, and mean share of the counts that was caught.
    `mdata.uns["provenance"]["source"]` : :class:`str`
        Where the cells are from.

    Raises
    ------
    ValueError
        If `n_spots` is below 100.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.pbmc68k_spots()
    >>> mdata["spatial"].n_obs, mdata["rna"].n_obs
    (400, 350)
    """
    import scanpy as sc

    if n_spots < 100:
        raise ValueError(f"`n_spots` is {n_spots}; four niches need at least 100.")
    original = sc.datasets.pbmc68k_reduced()
    counts, genes = _recover_counts(original.raw.X.tocsr()), original.raw.var_names
    labels = pd.Categorical(original.obs["bulk_labels"])
    rng = np.random.default_rng(random_state)
    # every second cell of each type, in random order
    order = rng.permutation(original.n_obs)
    order = order[np.argsort(labels.codes[order], kind="stable")]
    reference, pool = rng.permutation(order[::2]), order[1::2]
    places, niche = _tissue(n_spots)
    members = _spot_members(niche, labels.codes[pool], len(labels.categories), rng)
    expected = sp.csr_matrix(members @ counts[pool])
    across = places[:, 0] / places[:, 0].max()
    rate = _DEPTH[0] + (_DEPTH[1] - _DEPTH[0]) * across
    caught = np.clip(rate[:, None] * rng.lognormal(sigma=_RATE_SD, size=len(genes)), 0, 1)
    seen = sp.csr_matrix(rng.binomial(expected.toarray().astype(np.int64), caught).astype(np.float64))
    kept = np.flatnonzero(_seen(seen) & _seen(counts[reference]))
    var, n_cells = pd.DataFrame(index=genes[kept]), np.asarray(members.sum(axis=1)).ravel()
    cells = _renamed("rna", counts[reference][:, kept], labels[reference], var)
    truth = {"niche": pd.Categorical([str(i) for i in niche]), "n_cells": n_cells.astype(np.int32), "rate": rate}
    obs = pd.DataFrame(truth, index=[f"spatial_{i}" for i in range(n_spots)])
    spots = AnnData(seen[:, kept], obs=obs, var=var.copy())
    spots.layers["expected"] = expected[:, kept].astype(np.float32)
    spots.obsm["spatial"] = places.astype(np.float32)
    of_type = sp.csr_matrix(np.eye(len(labels.categories))[labels.codes[pool]])
    spots.obsm["composition"] = ((members @ of_type).toarray() / n_cells[:, None]).astype(np.float32)
    source = "scanpy.datasets.pbmc68k_reduced: 10x Genomics, Fresh 68k PBMCs (Donor A); .raw, spots are sums of cells"
    modalities = {"spatial": _log_normalized(spots), "rna": _log_normalized(cells)}
    return _mudata(modalities, provenance={"source": source})


def pbmc5k_citeseq(*, path: str | Path) -> md.MuData:
    """5k PBMCs of a healthy donor, RNA and 29 surface proteins of the same cells (10x Genomics, CC BY 4.0).

    Nothing is downloaded. The file is at
    https://cf.10xgenomics.com/samples/cell-exp/3.0.2/5k_pbmc_protein_v3/5k_pbmc_protein_v3_filtered_feature_bc_matrix.h5
    (17 MB).

    Parameters
    ----------
    path
        Local file: 10x's `filtered_feature_bc_matrix.h5`, or an `.h5mu` file, which is read as it is.

    Returns
    -------
    :class:`mudata.MuData` with modalities "rna" and "prot"; equal cell names are the same cell. From a 10x file:

    `mdata["rna"].X` : :class:`scipy.sparse.csr_matrix` (float32)
        log1p of counts scaled to the median total, cells × genes seen at least once.
    `mdata["prot"].X` : :class:`numpy.ndarray` (float32)
        Centred log ratio within each cell, cells × proteins without isotype controls.
    `mdata[m].layers["counts"]`
        Raw counts.
    `mdata["prot"].var["genes"]` : :class:`str`
        Genes that code for the protein, several joined by ";": for `links="genes"`.
    `mdata.uns["provenance"]` : :class:`dict`
        `"source"` and `"licence"`.

    Raises
    ------
    FileNotFoundError, ValueError
        If `path` does not exist, or the file is not of these kinds.

    Examples
    --------
    >>> mdata = smm.datasets.pbmc5k_citeseq(path="5k_pbmc_protein_v3_filtered_feature_bc_matrix.h5")  # doctest: +SKIP
    """
    return _citeseq(_TENX_URL.format("3.0.2", "5k_pbmc_protein_v3"), path)


def pbmc10k_citeseq(*, path: str | Path) -> md.MuData:
    """10k PBMCs of another healthy donor, RNA and 14 surface proteins of the same cells (10x Genomics, CC BY 4.0).

    Nothing is downloaded. The file is at
    https://cf.10xgenomics.com/samples/cell-exp/3.0.0/pbmc_10k_protein_v3/pbmc_10k_protein_v3_filtered_feature_bc_matrix.h5

    Parameters
    ----------
    path
        Local file: 10x's `filtered_feature_bc_matrix.h5`, or an `.h5mu` file, which is read as it is.

    Returns
    -------
    :class:`mudata.MuData` with modalities "rna" and "prot"; the fields are those of :func:`pbmc5k_citeseq`.

    Raises
    ------
    FileNotFoundError, ValueError
        If `path` does not exist, or the file is not of these kinds.

    Examples
    --------
    >>> mdata = smm.datasets.pbmc10k_citeseq(path="pbmc_10k_protein_v3_filtered_feature_bc_matrix.h5")  # doctest: +SKIP
    """
    return _citeseq(_TENX_URL.format("3.0.0", "pbmc_10k_protein_v3"), path)


def _renamed(modality: str, values: Any, cell_type: Any, var: pd.DataFrame) -> AnnData:
    index = [f"{modality}_{i}" for i in range(len(cell_type))]
    return AnnData(values, obs=pd.DataFrame({"cell_type": cell_type}, index=index), var=var)


def _seen(counts: sp.csr_matrix) -> np.ndarray:
    """Columns with at least one count."""
    return np.asarray(counts.sum(axis=0)).ravel() > 0


def _mudata(modalities: dict[str, AnnData], **uns: Any) -> md.MuData:
    with unpulled():
        mdata = md.MuData(modalities)
    mdata.uns.update(uns)
    return mdata


def _toy_sizes(names: list[str], n_features: Sequence[int] | None, n_linked: int, shared_genes: bool) -> list[int]:
    """Number of features of each modality."""
    default = [60 if shared_genes else _MODALITIES[name][0] for name in names]
    sizes = default if n_features is None else [int(n) for n in n_features]
    if len(sizes) != len(names) or (shared_genes and len(set(sizes)) > 1):
        raise ValueError(f"`n_features` is {sizes}; give one number for each of {names}, equal with `shared_genes`.")
    if min(sizes) < 1 or not (shared_genes or 0 <= n_linked <= min(sizes)):
        raise ValueError(f"`n_linked` is {n_linked}, but must lie between 0 and the smallest number of {sizes}.")
    return sizes


def _toy_cells(n_cells: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Population (0-4), gradient in [0, 1], and latent profile (cells x 6) of each cell."""
    borders = np.round(np.cumsum(list(_SHARES.values())) * n_cells).astype(int)
    population = np.repeat(np.arange(len(_SHARES)), np.diff(borders, prepend=0))
    # denser at one end: a gradient that is its own mirror image has no known direction
    gradient = rng.uniform(size=n_cells) ** _SKEW
    latent = np.column_stack([_CENTRES[population], _COMMON_SLOPE * gradient, _OWN_SLOPES[population] * gradient])
    latent = latent + 0.25 * rng.normal(size=latent.shape)
    return population, gradient, latent - latent.mean(0)


def _toy_layout(population: np.ndarray, gradient: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place populations in layers as thick as they are large, and their gradients from left to right."""
    shares = np.array(list(_SHARES.values()))
    y = (np.cumsum(shares) - shares)[population] + shares[population] * rng.uniform(size=len(population))
    x = np.clip(2 * gradient ** (1 / _SKEW) + 0.05 * rng.normal(size=len(population)), 0, 2)
    return np.column_stack([x, y]).astype(np.float32)


def _toy_values(
    latent: np.ndarray, sizes: dict[str, int], n_linked: int, shared_genes: bool, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Log counts (cells x features) and gene names of each modality."""

    def directions(n: int) -> np.ndarray:
        return 0.8 * rng.normal(size=(latent.shape[1], n)) / np.sqrt(latent.shape[1])

    n_common = next(iter(sizes.values())) if shared_genes else n_linked
    common, level = directions(n_common), 0.5 * rng.normal(size=n_common)
    values, genes, n_named = {}, {}, n_common
    for name, size in sizes.items():
        n_own = size - n_common
        # each platform shifts and scales the genes in its own way
        scale, shift = rng.uniform(0.8, 1.2, size=n_common), 0.3 * rng.normal(size=n_common)
        weights = np.column_stack([scale * common, directions(n_own)])
        log_rate = np.concatenate([level + shift, 0.5 * rng.normal(size=n_own)]) + latent @ weights
        order = np.arange(size) if shared_genes else rng.permutation(size)
        counts = rng.poisson(np.exp(np.log(_MODALITIES[name][1]) + log_rate[:, order]))
        values[name] = np.log1p(counts).astype(np.float32)
        numbers = np.concatenate([np.arange(n_common), n_named + np.arange(n_own)])
        genes[name] = [f"gene_{i}" for i in numbers[order]]
        n_named += n_own
    return values, genes


def _tissue(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of `n` spots on a hexagonal grid (n × 2), and the niche of each: four stripes with wavy borders."""
    width = int(np.ceil(np.sqrt(n)))
    row, column = np.divmod(np.arange(n), width)
    places = np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2])
    # stripes lie along the gradient of depth, so that every niche has all depths
    height = places[:, 1].max()
    level = 4 * places[:, 1] / height + 0.4 * np.cos(2 * np.pi * places[:, 0] / places[:, 0].max())
    return places, np.clip(level.astype(int), 0, 3)


def _spot_members(niche: np.ndarray, code: np.ndarray, n_types: int, rng: np.random.Generator) -> sp.csr_matrix:
    """How often each cell of the pool (with a type's code) is in each spot (spots × cells)."""
    size = np.bincount(code, minlength=n_types)
    shares = rng.dirichlet(np.full(n_types, _NICHE_WEIGHT), size=4) * (size > 0)
    chance = shares[:, code] / size[code]
    chance /= chance.sum(axis=1, keepdims=True)
    n = rng.integers(_SPOT_CELLS[0], _SPOT_CELLS[1] + 1, size=len(niche))
    return sp.csr_matrix(np.array([rng.multinomial(k, chance[i]) for i, k in zip(niche, n)], dtype=np.float64))


def _recover_counts(expression: sp.csr_matrix) -> sp.csr_matrix:
    """Counts from log1p of counts per cell total: whole multiples of a cell's smallest value, taken as one count."""
    counts = expression.astype(np.float64).expm1()
    smallest = np.minimum.reduceat(counts.data, counts.indptr[:-1])
    counts.data = np.rint(counts.data / np.repeat(smallest, np.diff(counts.indptr)))
    return counts


def _split(counts: sp.csr_matrix, rng: np.random.Generator) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Give each single count to one of two halves by a fair coin."""
    first = counts.copy()
    first.data = rng.binomial(counts.data.astype(np.int64), 0.5).astype(np.float64)
    return first, counts - first


def _log_normalized(adata: AnnData) -> AnnData:
    """Keep counts as a layer; X becomes log1p of counts scaled to the median total."""
    import scanpy as sc

    adata.X = adata.X.astype(np.float32)
    adata.X.eliminate_zeros()
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    adata.uns.pop("log1p", None)  # scanpy leaves a None there
    return adata


def _citeseq(url: str, path: str | Path) -> md.MuData:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"No file {str(file)!r}. Download {url} and hand it in as `path=`.")
    if file.suffix == ".h5mu":
        with unpulled():
            return md.read_h5mu(file)
    if file.suffix != ".h5":
        raise ValueError(f"`path` is {str(file)!r}; give the .h5 file of 10x Genomics ({url}) or an .h5mu file.")
    return _read_10x(file, url)


def _read_10x(file: Path, url: str) -> md.MuData:
    """Split a 10x file with antibodies into modalities "rna" and "prot", and normalise both."""
    import scanpy as sc

    both = sc.read_10x_h5(file, gex_only=False)
    kinds = both.var["feature_types"].to_numpy(dtype=str)
    found = sorted(set(kinds.tolist()))
    if not {"Gene Expression", "Antibody Capture"} <= set(found):
        raise ValueError(f"{str(file)!r} holds {found}; expected 'Gene Expression' and 'Antibody Capture'.")
    both.var_names_make_unique()
    rna = both[:, (kinds == "Gene Expression") & _seen(both.X)].copy()
    rna.var = rna.var[["gene_ids"]]
    prot = both[:, (kinds == "Antibody Capture") & ~both.var_names.str.contains("control", case=False)].copy()
    names = prot.var_names.str.replace(r"_TotalSeq[ABC]$", "", regex=True)
    genes = dict(entry.split("=") for entry in _ANTIBODY_GENES.split())
    prot.var = pd.DataFrame({"genes": [genes.get(name, name) for name in names]}, index=names)
    prot.X = prot.X.toarray().astype(np.float32)
    prot.layers["counts"] = prot.X.copy()
    prot.X = np.log1p(prot.X / np.exp(np.log1p(prot.X).mean(axis=1, keepdims=True)))
    return _mudata({"rna": _log_normalized(rna), "prot": prot}, provenance={"source": url, "licence": "CC BY 4.0"})
