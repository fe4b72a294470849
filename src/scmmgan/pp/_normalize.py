"""`pp.normalize`: raw counts to normalised values."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scmmgan.data import modality as _modality
from scmmgan.data import streamed as _streamed
from scmmgan.model.space.scratch import blocks, blockwise

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")


def normalize(
    mdata: MuData,
    modality: str,
    *,
    kind: Literal["log1p", "clr", "tfidf"],
    layer: str | None = None,
    key_added: str | None = None,
    corrected: bool = False,
) -> None:
    """Normalise raw counts of one modality into a layer.

    What the functions of the field do by default: ``log1p`` is scanpy's `normalize_total` (to 10,000 counts per cell) and
    `log1p`; ``clr`` gives the values of `muon.prot.pp.clr` (centred log ratio of each feature over the cells, for antibody
    counts); ``tfidf`` those of `muon.atac.pp.tfidf` (log TF times log IDF, for accessibility counts).
    `X`, the layer that is read, and `uns` stay as they are.

    Parameters
    ----------
    mdata
        Holds `modality`; not a view.
    modality
        Name of the modality, of n cells × g features.
    kind
        ``"log1p"``, ``"clr"`` or ``"tfidf"``.
    layer
        Layer with raw counts (whole numbers ≥ 0 of any dtype, dense, CSR or CSC; n × g), in memory, in a file or of dask.
        Default: ``layers["counts"]`` where there is one, else `X`.
    key_added
        Name of the layer written. Default: `kind`. A layer of this name is replaced, unless it is the one that is read.
    corrected
        The counts were corrected for ambient molecules (SoupX, CellBender, decontX) and need not be whole numbers.

    Returns
    -------
    `None`. Sets:

    `mdata[modality].layers[key_added]` : :class:`numpy.ndarray` or :class:`scipy.sparse.csr_matrix` (float32)
        Normalised values, n × g; sparse (CSR) when the counts are sparse. Counts in a file (`backed`) are read a part at a
        time; the values are then mapped from a file of their own in `TMPDIR`, which goes with them. Of dask: an array of dask,
        which computes them when they are asked for.

    Raises
    ------
    KeyError
        There is no such modality or layer.
    TypeError
        The counts are no NumPy array or SciPy sparse matrix of real numbers.
    ValueError
        `kind` is unknown; `key_added` is the layer read or no name without slashes; the modality is a view; it has no cells or
        features; or the values are not raw counts: NaN, infinite, negative or (unless `corrected`) fractional values, or
        cells without a single count, for which no kind of normalisation is defined.

    Examples
    --------
    >>> import anndata as ad, mudata as md, numpy as np, scmmgan as smm
    >>> counts = np.random.default_rng(0).poisson(2.0, (50, 20)).astype("float32")
    >>> mdata = md.MuData({"prot": ad.AnnData(counts)})
    >>> smm.pp.normalize(mdata, "prot", kind="clr")
    >>> mdata["prot"].layers["clr"].shape
    (50, 20)
    """
    if not isinstance(kind, str) or kind not in _RECIPES:
        raise ValueError(f"Unknown kind {kind!r}. Choose one of {list(_RECIPES)}.")
    adata = _writable(mdata, modality)
    if layer is None and "counts" in adata.layers:
        layer = "counts"
    key_added = kind if key_added is None else key_added
    if key_added == layer:
        raise ValueError(f"`key_added` {key_added!r} is the layer that is read. Choose another name: inputs are kept.")
    _modality.check_key_added(key_added)
    values, where = _stored(adata, modality, layer)
    if _streamed.is_dask(values):
        adata.layers[key_added] = _of_dask(values, adata, where, kind, whole=not corrected)
    else:
        adata.layers[key_added] = _of_matrix(values, adata, where, kind, whole=not corrected)
    logger.info("Wrote %s values of %r from %s to layers[%r].", kind, modality, _where(layer), key_added)


def _where(layer: str | None) -> str:
    return "X" if layer is None else f"layers[{layer!r}]"


def _writable(mdata: MuData, modality: str) -> AnnData:
    """Return the modality as an AnnData that can be written to."""
    adata = _modality.modality(mdata, modality)
    if mdata.is_view or adata.is_view:
        raise ValueError(
            f"Modality {modality!r} is a view, so nothing can be written. Run `mdata = mdata.copy()` first."
        )
    return adata


def _stored(adata: AnnData, modality: str, layer: str | None) -> tuple[Any, str]:
    """The counts as they are stored, of numbers and not empty; and what errors call them."""
    if layer is not None and layer not in adata.layers:
        raise _modality.missing_key(f"layer in {modality!r}", layer, _modality.layers_of(adata))
    values = _streamed.streamed(adata.X if layer is None else adata.layers[layer], of_dask=False)
    where = f"{_where(layer)} of modality {modality!r}"
    if not (_streamed.is_dask(values) or sp.issparse(values) or isinstance(values, np.ndarray)):
        raise TypeError(f"{where} is {type(values).__name__}. Store it as a NumPy array or SciPy sparse matrix first.")
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{where} has dtype {values.dtype}. Store real numbers first.")
    if 0 in values.shape:
        raise ValueError(f"{where} is empty: {values.shape[0]} cells × {values.shape[1]} features. Add data first.")
    return values, where


def _of_matrix(values: Any, adata: AnnData, where: str, kind: str, *, whole: bool) -> Any:
    """Normalised values of a matrix; of one that may be larger than memory some rows at a time."""
    seen = 0

    def checked(block: Any) -> Any:
        nonlocal seen
        cells = adata.obs_names[seen : seen + block.shape[0]]
        seen += block.shape[0]
        return _checked(block, cells, adata.var_names, where, whole=whole)

    add, normalised = _RECIPES[kind]
    counts = blockwise(values, checked)
    found = sum(add(block, len(adata)) for block in blocks(counts))
    return blockwise(counts, lambda block: normalised(block, found, len(adata)))


def _of_dask(values: Any, adata: AnnData, where: str, kind: str, *, whole: bool) -> Any:
    """Normalised values as an array of dask; one pass over the chunks, wherever these are computed, checks them."""
    import dask

    values = values.rechunk({1: -1})
    stops = np.cumsum(values.chunks[0])
    features = dask.delayed(adata.var_names)
    found = dask.compute(
        *(
            dask.delayed(_added)(block, adata.obs_names[stop - size : stop], features, where, kind, len(adata), whole)
            for block, stop, size in zip(values.to_delayed().ravel(), stops, values.chunks[0])
        )
    )
    sparse: bool = sp.issparse(values._meta)
    empty = np.empty((0, 0), dtype=np.float32)
    return values.map_blocks(
        _normalised, sum(found), kind, len(adata), dtype=np.float32, meta=sp.csr_matrix(empty) if sparse else empty
    )


def _added(
    block: Any, cells: pd.Index, features: pd.Index, where: str, kind: str, n: int, whole: bool
) -> np.ndarray | float:
    """What a chunk adds to that which all cells are normalised by."""
    return _RECIPES[kind][0](_checked(block, cells, features, where, whole=whole), n)


def _normalised(block: Any, found: np.ndarray | float, kind: str, n: int) -> Any:
    return _RECIPES[kind][1](_counts(block), found, n)


def _counts(values: Any) -> Any:
    """An own copy as float32: a dense array, or CSR without stored zeros."""
    # of the csr_matrix class: inputs are kept
    is_sparse = sp.issparse(values)
    with np.errstate(over="ignore"):
        counts: Any = sp.csr_matrix(values, dtype=np.float32, copy=True) if is_sparse else values.astype(np.float32)
    if is_sparse:
        counts.sum_duplicates()
        counts.eliminate_zeros()
    return counts


def _checked(values: Any, cells: pd.Index, features: pd.Index, where: str, *, whole: bool) -> Any:
    """The counts of some cells, or a ValueError that says what they are instead."""
    counts = _counts(values)
    is_sparse = sp.issparse(counts)
    finite = np.isfinite(counts.data if is_sparse else counts)
    if not finite.all():
        found = _modality.where_not_finite(counts, cells, features)
        raise ValueError(
            f"{where} has {(~finite).sum()} NaN or infinite values (or above 3e38), in {found}. Set or remove them first."
        )
    _check_counts(values.data if is_sparse else values, where, whole=whole)
    n_empty = int((np.asarray(counts.sum(axis=1)).ravel() == 0).sum())
    if n_empty:
        slot, _, modality = where.partition(" of modality ")
        raise ValueError(
            f"{n_empty} of {len(cells)} cells have no counts in {where}. Remove them first: `mdata.mod[{modality}] = "
            f"mdata[{modality}][numpy.ravel(mdata[{modality}].{slot}.sum(1)) > 0].copy(); mdata.update()`."
        )
    return counts


def _check_counts(values: np.ndarray, where: str, *, whole: bool) -> None:
    """Raise a ValueError, naming what was found, unless all values are ≥ 0 and, if asked for, `whole` numbers."""
    if (values < 0).any():
        raise ValueError(f"{where} has negative values (minimum {values.min():.4g}): these are no counts. {_NEXT}")
    fractional = values != np.floor(values)
    if whole and fractional.any():
        raise ValueError(
            f"{where} has values that are not whole numbers (for instance {values[fractional].flat[0]:.4g}): "
            f"these are no raw counts. {_CORRECTED} {_NEXT}"
        )


def _nothing(counts: Any, n: int) -> float:
    return 0.0


def _log1p(counts: Any, _: float, n: int) -> Any:
    import scanpy as sc

    tmp = AnnData(counts)
    sc.pp.normalize_total(tmp, target_sum=1e4)
    sc.pp.log1p(tmp)
    return tmp.X


def _log_mean(counts: Any, n: int) -> np.ndarray:
    """Share of these cells in the mean of log1p over n cells, of every feature."""
    mean = np.asarray(np.log1p(counts).mean(axis=0, dtype=np.float64)).ravel()
    return np.asarray(mean * (counts.shape[0] / n))


def _clr(counts: Any, mean: np.ndarray, n: int) -> Any:
    # muon.prot.pp.clr, whose import warns
    mean = np.exp(mean)
    if isinstance(counts, np.ndarray):
        return np.log1p(counts / mean).astype(np.float32)
    out = counts.tocsr(copy=True)
    out.data = np.log1p(out.data / mean[out.indices]).astype(np.float32)
    return out


def _totals(counts: Any, _: int) -> np.ndarray:
    """Counts of every feature."""
    return np.asarray(sp.csr_matrix(counts, dtype=np.float64).sum(axis=0)).ravel()


def _tfidf(counts: Any, total: np.ndarray, n: int) -> Any:
    # muon.atac.pp.tfidf, whose import warns
    values = sp.csr_matrix(counts, dtype=np.float64)
    # a feature without counts has an empty column
    idf = np.log1p(n / np.where(total > 0, total, 1))
    share = 1e4 / np.asarray(values.sum(axis=1)).ravel()
    values.data = np.log1p(values.data * np.repeat(share, np.diff(values.indptr))) * idf[values.indices]
    values = values.astype(np.float32)
    return values if sp.issparse(counts) else values.toarray()


_CORRECTED = "Counts that were corrected for ambient RNA (SoupX, CellBender, decontX) are taken with `corrected=True`."
_NEXT = "Pass the layer with raw counts as `layer=`; values that are normalised already need no `pp.normalize`."
# what some cells of n add to that by which all are normalised, and how they are by the sum of it
_RECIPES: dict[str, tuple[Callable[[Any, int], Any], Callable[[Any, Any, int], Any]]] = {
    "log1p": (_nothing, _log1p),
    "clr": (_log_mean, _clr),
    "tfidf": (_totals, _tfidf),
}
