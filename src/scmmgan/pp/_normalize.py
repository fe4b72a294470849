"""`pp.normalize`: raw counts to normalised values."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scmmgan.data import modality as _modality

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
) -> None:
    """Normalise raw counts of one modality into a layer.

    The functions are those of the field, with their defaults: ``log1p`` is scanpy's `normalize_total` (to 10,000 counts
    per cell) and `log1p`; ``clr`` is `muon.prot.pp.clr` (centred log ratio of each feature over the cells, for
    antibody counts); ``tfidf`` is `muon.atac.pp.tfidf` (log TF times log IDF, for accessibility counts).
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
        Layer with raw counts (whole numbers ≥ 0 of any dtype, dense, CSR or CSC; n × g).
        Default: ``layers["counts"]`` where there is one, else `X`.
    key_added
        Name of the layer written. Default: `kind`. A layer of this name is replaced, unless it is the one that is read.

    Returns
    -------
    `None`. Sets:

    `mdata[modality].layers[key_added]` : :class:`numpy.ndarray` or :class:`scipy.sparse.csr_matrix` (float32)
        Normalised values, n × g; sparse (CSR) when the counts are sparse.

    Raises
    ------
    KeyError
        There is no such modality or layer.
    TypeError
        The counts are no NumPy array or SciPy sparse matrix of real numbers.
    ValueError
        `kind` is unknown; `key_added` is the layer read or holds a "/"; the modality is a view; it has no cells or
        features; or the values are not raw counts: NaN, infinite, negative or fractional values, or cells without a
        single count, for which no kind of normalisation is defined.

    Examples
    --------
    >>> import anndata as ad, mudata as md, numpy as np, scmmgan as smm
    >>> counts = np.random.default_rng(0).poisson(2.0, (50, 20)).astype("float32")
    >>> mdata = md.MuData({"prot": ad.AnnData(counts)})
    >>> smm.pp.normalize(mdata, "prot", kind="clr")
    >>> mdata["prot"].layers["clr"].shape
    (50, 20)
    """
    if kind not in _RECIPES:
        raise ValueError(f"Unknown kind {kind!r}. Choose one of {list(_RECIPES)}.")
    adata = _writable(mdata, modality)
    if layer is None and "counts" in adata.layers:
        layer = "counts"
    key_added = kind if key_added is None else key_added
    if key_added == layer:
        raise ValueError(f"`key_added` {key_added!r} is the layer that is read. Choose another name: inputs are kept.")
    if "/" in key_added:
        raise ValueError(f"`key_added` {key_added!r} holds a '/', which h5mu files cannot store. Choose another name.")
    counts = _read_counts(adata, modality, layer)
    adata.layers[key_added] = _RECIPES[kind](counts)
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


def _read_counts(adata: AnnData, modality: str, layer: str | None) -> Any:
    """Copy the counts as float32: a dense array, or CSR without stored zeros."""
    if layer is not None and layer not in adata.layers:
        raise _modality.missing_key(f"layer in {modality!r}", layer, list(adata.layers))
    values = adata.X if layer is None else adata.layers[layer]
    where = f"{_where(layer)} of modality {modality!r}"
    if adata.isbacked and layer is None:
        values = adata.to_memory().X
    is_sparse = sp.issparse(values)
    if not (is_sparse or isinstance(values, np.ndarray)):
        raise TypeError(f"{where} is {type(values).__name__}. Store it as a NumPy array or SciPy sparse matrix first.")
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{where} has dtype {values.dtype}. Store real numbers first.")
    if 0 in values.shape:
        raise ValueError(f"{where} is empty: {values.shape[0]} cells × {values.shape[1]} features. Add data first.")
    # own copy: muon writes in place; the csr_matrix class, because muon multiplies sparse arrays element by element
    counts = sp.csr_matrix(values, dtype=np.float32, copy=True) if is_sparse else values.astype(np.float32)
    _check_counts(values.data if is_sparse else values, where)
    if is_sparse:
        counts.sum_duplicates()
        counts.eliminate_zeros()
    n_empty = int((np.asarray(counts.sum(axis=1)).ravel() == 0).sum())
    if n_empty:
        raise ValueError(
            f"{n_empty} of {counts.shape[0]} cells have no counts in {where}. Remove them first: "
            f"`mdata.mod[{modality!r}] = mdata[{modality!r}][totals > 0].copy(); mdata.update()`."
        )
    return counts


def _check_counts(values: np.ndarray, where: str) -> None:
    """Raise a ValueError, naming what was found, unless all values are whole numbers ≥ 0."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"{where} has {int((~np.isfinite(values)).sum())} NaN or infinite values. Set or remove them first."
        )
    if (values < 0).any():
        raise ValueError(f"{where} has negative values (minimum {values.min():.4g}): these are no counts. {_NEXT}")
    fractional = values != np.floor(values)
    if fractional.any():
        raise ValueError(
            f"{where} has values that are not whole numbers (for instance {values[fractional].flat[0]:.4g}): "
            f"these are no raw counts. {_NEXT}"
        )


def _log1p(counts: Any) -> Any:
    import scanpy as sc

    tmp = AnnData(counts)
    sc.pp.normalize_total(tmp, target_sum=1e4)
    sc.pp.log1p(tmp)
    return tmp.X


def _clr(counts: Any) -> Any:
    import muon

    is_sparse = sp.issparse(counts)
    tmp = AnnData(counts.tocsc() if is_sparse else counts)  # CSC: what muon asks for
    muon.prot.pp.clr(tmp)
    return tmp.X.tocsr() if is_sparse else tmp.X


def _tfidf(counts: Any) -> Any:
    import muon

    tmp = AnnData(sp.csr_matrix(counts))  # muon's dense path builds a features × features matrix
    with np.errstate(divide="ignore"):  # a feature without counts: IDF is infinite, its column stays empty
        muon.atac.pp.tfidf(tmp)
    values = tmp.X.astype(np.float32)
    return values if sp.issparse(counts) else values.toarray()


_NEXT = "Pass the layer with raw counts as `layer=`; values that are normalised already need no `pp.normalize`."
_RECIPES = {"log1p": _log1p, "clr": _clr, "tfidf": _tfidf}
