"""One modality of a MuData: its matrix, names and coordinates; checks of user input."""

from __future__ import annotations

import difflib
import logging
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan.model.defaults import MIN_CELLS

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = logging.getLogger("scmmgan")


def check_modalities(mdata: MuData, modalities: Sequence[str]) -> list[str]:
    """Names of the modalities to align, all of them by default."""
    check_mudata(mdata)
    names = list(modalities) or list(mdata.mod)
    for name in names:
        modality(mdata, name)
        if not storable(name):
            raise ValueError(
                f"Modality name {name!r} cannot be stored: HDF5 and zarr read '/', '.' and an empty name as folders. "
                "Rename it: `mudata.MuData({'new_name': mdata[...]})`."
            )
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"Need at least two different modalities, got {names}. Modalities found: {list(mdata.mod)}.")
    return names


def check_writable(mdata: MuData, names: Sequence[str]) -> None:
    """ValueError where results could not be written, before anything is computed."""
    if mdata.is_view or any(mdata[name].is_view for name in names):
        raise ValueError("`mdata` is a view and cannot be written to. Use `mdata = mdata.copy()`, or `copy=True`.")


def storable(name: str) -> bool:
    """Whether HDF5 and zarr take the name for one key and not for a path."""
    return not ("/" in name or "\\" in name or name in ("", ".", ".."))


def check_mudata(mdata: MuData) -> None:
    """TypeError unless it is a MuData."""
    from mudata import MuData

    if not isinstance(mdata, MuData):
        raise TypeError(f"`mdata` must be a MuData with one modality per technology, got {type(mdata).__name__}.")


def modality(mdata: MuData, name: str) -> AnnData:
    """The modality, or a KeyError that lists those found."""
    check_mudata(mdata)
    if not isinstance(name, str):
        raise TypeError(f"Name modalities one by one, as str, e.g. `(mdata, 'rna', 'protein')`; got {name!r}.")
    if name not in mdata.mod:
        raise KeyError(f"No modality {name!r} in `mdata`. Modalities found: {list(mdata.mod)}.")
    return mdata.mod[name]


def whole_number(value: Any, argument: str, *, low: int, high: int | None = None) -> int:
    """The value as int; TypeError unless it is a whole number, ValueError outside of low..high."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{argument}` must be a whole number, got {value!r}.") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"`{argument}` must be at least {low}{f' and at most {high}' if high else ''}, got {number}.")
    return number


def per_modality(value: Any, names: Sequence[str], argument: str, default: Any = None) -> dict[str, Any]:
    """An argument that is one value or a dict by modality, as a dict; modalities left out get the default."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    if unknown := sorted(set(value) - set(names)):
        raise KeyError(f"`{argument}` names modalities {unknown} that are not aligned. Aligned: {list(names)}.")
    return {name: value.get(name, default) for name in names}


def missing_key(what: str, key: str, found: Sequence[str], hint: str = "") -> KeyError:
    """A KeyError that lists what there is, closest names first."""
    close = difflib.get_close_matches(str(key), [str(f) for f in found], n=3)
    listed = close or [str(f) for f in list(found)[:10]]
    return KeyError(f"No {what} {key!r}. {'Closest' if close else 'Found'}: {listed}. {hint}".strip())


def read_matrix(
    mdata: MuData, name: str, *, layer: str | None = None, use_rep: str | None = None
) -> tuple[np.ndarray | sp.csr_matrix, pd.Index]:
    """Checked float32 matrix (CSR or dense) of a modality and the names of its columns."""
    adata = modality(mdata, name)
    for axis, names in (("obs_names", adata.obs_names), ("var_names", adata.var_names)):
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            raise ValueError(f"{axis} of {name!r} are not unique, e.g. {twice!r}. Run `{axis}_make_unique()` on it.")
    if use_rep is not None:
        if layer is not None:
            raise ValueError(f"{name!r}: give `layer` or `use_rep`, not both; got {layer!r} and {use_rep!r}.")
        if use_rep not in adata.obsm:
            raise missing_key(f"obsm key in {name!r}", use_rep, list(adata.obsm))
        values, slot = adata.obsm[use_rep], f"obsm {use_rep!r}"
    else:
        if layer is not None and layer not in adata.layers:
            raise missing_key(f"layer in {name!r}", layer, list(adata.layers), "`layer=None` reads X.")
        values, slot = (adata.X, "X") if layer is None else (adata.layers[layer], f"layer {layer!r}")
        if values is None:
            raise ValueError(f"{name!r} has no X. Name a `layer`; layers found: {list(adata.layers)}.")
    values = _as_float(values, name, slot)
    if use_rep is None:
        return values, adata.var_names
    return values, pd.Index([f"{use_rep}_{i}" for i in range(values.shape[1])])


def _as_float(values: Any, name: str, slot: str) -> np.ndarray | sp.csr_matrix:
    """The values in memory as float32, or an error on types, shapes and values that nothing can be learnt from."""
    if hasattr(values, "to_memory"):  # backed sparse
        values = values.to_memory()
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    if len(values.shape) != 2 or values.dtype.kind not in "biuf":
        raise TypeError(
            f"{slot} of {name!r} has shape {values.shape} and dtype {values.dtype}. "
            "Store a cells × features matrix of real numbers."
        )
    sparse = sp.issparse(values)
    with np.errstate(over="ignore"):  # what float32 cannot hold is counted below
        out = sp.csr_matrix(values, dtype=np.float32) if sparse else np.asarray(values[...], dtype=np.float32)
    n, g = out.shape
    if n < MIN_CELLS or g == 0:
        raise ValueError(f"{name!r} has {n} cells and {g} features; {MIN_CELLS} cells and 1 feature are the minimum.")
    data = np.asarray(out.data if sp.issparse(out) else out)
    if bad := int((~np.isfinite(data)).sum()):
        raise ValueError(
            f"{slot} of {name!r} holds {bad} NaN or infinite values (beyond ±3e38 counts as infinite). "
            "Impute or drop them first."
        )
    if not varies(out):
        raise ValueError(f"{slot} of {name!r} is constant in every feature: there is nothing to align. {_OTHER_LAYER}")
    if data.max() > 50 and data.min() >= 0 and np.array_equal(data, np.round(data)):
        logger.warning(
            "%s of %r looks like raw counts (whole numbers up to %d). Run `scmmgan.pp.normalize` and name its layer.",
            slot, name, int(data.max()),
        )  # fmt: skip
    return out


_OTHER_LAYER = "Check the values, or name another `layer`."


def varies(values: np.ndarray | sp.csr_matrix, columns: np.ndarray | slice = slice(None)) -> bool:
    """Whether any cell differs from the first one; few rows are dense at one time."""
    first = None
    for start in range(0, values.shape[0], 256):
        block = values[start : start + 256]
        block = (block.toarray() if sp.issparse(block) else block)[:, columns]
        first = block[:1] if first is None else first
        if (block != first).any():
            return True
    return False


def read_coordinates(mdata: MuData, names: Sequence[str], spatial: Any) -> dict[str, np.ndarray]:
    """Checked coordinates (n × 2 or 3, float64) by modality, of those that `spatial` (obsm key, or a dict) names."""
    if isinstance(spatial, Mapping):
        chosen = {name: key for name, key in per_modality(spatial, names, "spatial").items() if key is not None}
    else:
        chosen = {} if spatial is None else {name: spatial for name in names if spatial in mdata[name].obsm}
        if spatial is not None and not chosen:
            found = {name: list(mdata[name].obsm) for name in names}
            raise KeyError(f"No modality has obsm[{spatial!r}] that `spatial` names. Found: {found}.")
    return {name: coordinates(mdata, name, key) for name, key in chosen.items()}


def coordinates(mdata: MuData, name: str, key: str) -> np.ndarray:
    """Checked coordinates (n × 2 or 3, float64) of a modality's cells."""
    adata = modality(mdata, name)
    if key not in adata.obsm:
        raise missing_key(f"obsm key in {name!r}", key, list(adata.obsm))
    values = np.asarray(adata.obsm[key])
    if values.ndim != 2 or values.shape[1] not in (2, 3) or values.dtype.kind not in "biuf":
        raise ValueError(
            f"obsm[{key!r}] of {name!r} has shape {values.shape} and dtype {values.dtype}; coordinates are 2 or 3 "
            "columns of numbers. Name another key."
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"obsm[{key!r}] of {name!r} holds NaN or infinite coordinates. Drop those cells first.")
    if not np.ptp(values, axis=0).any():
        raise ValueError(f"obsm[{key!r}] of {name!r} puts all cells at one place. Name another key.")
    return values


def read_mask(mdata: MuData, name: str, mask: Any, use_rep: str | None) -> np.ndarray | None:
    """Positions of the features that may enter the PCA."""
    if mask is None or use_rep:
        return None
    if isinstance(mask, str):
        if mask not in mdata[name].var:
            raise missing_key(f"var column in {name!r}", mask, list(mdata[name].var))
        mask = mdata[name].var[mask]
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != (mdata[name].n_vars,):
        raise ValueError(
            f"`mask_var` of {name!r} must be {mdata[name].n_vars} booleans, got {mask.shape} of {mask.dtype}. "
            "Name a boolean `var` column or hand in a boolean array."
        )
    if not mask.any():
        raise ValueError(f"`mask_var` of {name!r} chooses no feature.")
    return np.flatnonzero(mask)
