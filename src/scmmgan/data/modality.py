"""MuData → Domain (matrix, names, transform, model-space cells) and results → MuData; all checks of user input."""

from __future__ import annotations

import difflib
import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan.model.space.transform import (
    Matrix,
    Transform,
    decoding_to,
    fit_shared,
    fit_smoothed,
    fit_transform,
    identity_transform,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = logging.getLogger("scmmgan")

MIN_CELLS = 32
MAX_SEED = 2**32 - 1  # what scikit-learn takes
PANEL = 50  # features; a smaller modality is a chosen panel, without loss in the PCA (METHOD §2)
MIN_SHARED = 50  # equal names that make a shared space (METHOD §2)


@dataclass(frozen=True)
class Domain:
    """One modality as the models see it. `x`: cells × p, float32, unit global sd.

    `borne_out`: how well neighbours before the smoothing bear out each label, 0 (chance) to 1; None without either.
    `own_share`: of their values before the smoothing in `x`.
    """

    name: str
    smoothed: Matrix
    obs_names: pd.Index
    var_names: pd.Index
    transform: Transform
    x: np.ndarray
    borne_out: np.ndarray | None = None
    own_share: float = 0.0

    @property
    def cells(self) -> Matrix:
        """What `x` are the coordinates of: the smoothed matrix, with the share of own values."""
        return self.smoothed.keeping(self.own_share)

    def zscored(self, positions: np.ndarray) -> np.ndarray:
        """Chosen columns of the smoothed matrix, z-scored with the transform's statistics (float32)."""
        values = self.smoothed.columns(positions)
        values = values - self.transform.mean[positions].astype(np.float32)
        return values / self.transform.sd[positions].astype(np.float32)

    def half_smoothed(self, positions: np.ndarray) -> np.ndarray:
        """Chosen columns, z-scored before and after the smoothing, added and z-scored again (float32)."""
        measured, smoothed = self.smoothed.measured(positions), self.smoothed.columns(positions)
        return _zscored(_zscored(measured) + _zscored(smoothed))

    def varies(self, positions: np.ndarray) -> np.ndarray:
        """Which of the chosen features are not constant, a block of columns at a time."""
        blocks = [_zscored(self.smoothed.columns(positions[i : i + 256])) for i in range(0, len(positions), 256)]
        return np.concatenate([block.any(0) for block in blocks])


def _zscored(values: np.ndarray) -> np.ndarray:
    """z-scores of columns (float32); 0 where they differ by rounding only."""
    mean, sd = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    still = sd <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    scaled = (values - mean.astype(np.float32)) / np.where(still, 1, sd).astype(np.float32)
    return np.where(still, np.float32(0), scaled)


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
        out = sp.csr_matrix(values, dtype=np.float32) if sparse else np.array(values[...], dtype=np.float32)
    n, g = out.shape
    if n < MIN_CELLS or g == 0:
        raise ValueError(f"{name!r} has {n} cells and {g} features; {MIN_CELLS} cells and 1 feature are the minimum.")
    data = np.asarray(out.data if sp.issparse(out) else out)
    if bad := int((~np.isfinite(data)).sum()):
        raise ValueError(
            f"{slot} of {name!r} holds {bad} NaN or infinite values (beyond ±3e38 counts as infinite). "
            "Impute or drop them first."
        )
    if not _varies(out):
        raise ValueError(f"{slot} of {name!r} is constant in every feature: there is nothing to align. {_OTHER_LAYER}")
    if data.max() > 50 and data.min() >= 0 and np.array_equal(data, np.round(data)):
        logger.warning(
            "%s of %r looks like raw counts (whole numbers up to %d). Run `scmmgan.pp.normalize` and name its layer.",
            slot, name, int(data.max()),
        )  # fmt: skip
    return out


_OTHER_LAYER = "Check the values, or name another `layer`."


def _varies(values: np.ndarray | sp.csr_matrix, columns: np.ndarray | slice = slice(None)) -> bool:
    """Whether any cell differs from the first one; few rows are dense at one time."""
    first = None
    for start in range(0, values.shape[0], 256):
        block = values[start : start + 256]
        block = (block.toarray() if sp.issparse(block) else block)[:, columns]
        first = block[:1] if first is None else first
        if (block != first).any():
            return True
    return False


def read_domains(
    mdata: MuData,
    names: Sequence[str],
    *,
    layer: dict[str, str | None],
    use_rep: dict[str, str | None],
    mask_var: dict[str, Any],
    smooth: dict[str, int | None],
    n_pcs: dict[str, int | None],
    links: Mapping[tuple[str, str], pd.DataFrame],
    batches: Mapping[str, np.ndarray | None],
    labels: Mapping[str, np.ndarray] | None,
    denoise: bool,
    own_share: float,
    random_state: int,
) -> tuple[list[Domain], bool]:
    """Read, smooth and transform the modalities; True when they lie in one shared space.

    `own_share`: of cells' values before the smoothing in model space, which is not for shared ones.
    """
    matrices, columns, smoothed, borne_out = {}, {}, {}, {}
    for name in names:
        matrices[name], columns[name] = read_matrix(mdata, name, layer=layer[name], use_rep=use_rep[name])
    masks = {name: _mask(mdata, name, mask_var[name], columns[name], use_rep[name]) for name in names}
    for name in names:
        if (mask := masks[name]) is not None and not _varies(matrices[name], mask):
            raise ValueError(f"All features of {name!r} that `mask_var` chooses are constant. Choose others.")
        t = 0 if use_rep[name] else smooth[name] or 0
        batch = batches[name]
        smoothed[name], borne_out[name] = fit_smoothed(
            matrices[name],
            t,
            rows=None if batch is None else [np.flatnonzero(batch == code) for code in range(batch.max() + 1)],
            labels=None if labels is None else labels[name],
            allowed=masks[name],
            denoise=denoise,
            random_state=random_state,
        )
    common = _shared_names(names, columns, links, use_rep, masks)
    shared = common is not None
    # in a shared space smoothed cells are the better ones (benchmarks/accuracy.md)
    kept = {name: own_share if smooth[name] and not (shared or use_rep[name]) else 0.0 for name in names}
    cells = {name: smoothed[name].keeping(kept[name]) for name in names}
    if common is not None:
        positions = [columns[name].get_indexer(common) for name in names]
        p = min(n_pcs[name] or 50 for name in names)
        fitted = dict(zip(names, fit_shared([smoothed[name] for name in names], positions, n_pcs=p)))
    else:
        fitted = {}
        for name in names:
            if use_rep[name]:
                fitted[name] = identity_transform(smoothed[name])
                continue
            linked = [columns[name].get_indexer(pd.Index(t[name])) for pair, t in links.items() if name in pair]
            fitted[name] = fit_transform(
                cells[name],
                n_pcs=n_pcs[name] or 50,
                linked=np.unique(np.concatenate(linked)) if linked else None,
                allowed=masks[name],
            )
    x = {name: fitted[name].transform(cells[name]) for name in names}
    fitted |= {n: decoding_to(smoothed[n], fitted[n], x[n]) for n in names if kept[n]}
    parts = [(n, smoothed[n], mdata[n].obs_names, columns[n], fitted[n], x[n], borne_out[n], kept[n]) for n in names]
    return [Domain(*part) for part in parts], shared


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


def _mask(mdata: MuData, name: str, mask: Any, columns: pd.Index, use_rep: str | None) -> np.ndarray | None:
    """Positions of the features that may enter the PCA."""
    if mask is None or use_rep:
        return None
    if isinstance(mask, str):
        if mask not in mdata[name].var:
            raise missing_key(f"var column in {name!r}", mask, list(mdata[name].var))
        mask = mdata[name].var[mask]
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != (len(columns),):
        raise ValueError(
            f"`mask_var` of {name!r} must be {len(columns)} booleans, got {mask.shape} of {mask.dtype}. "
            "Name a boolean `var` column or hand in a boolean array."
        )
    if not mask.any():
        raise ValueError(f"`mask_var` of {name!r} chooses no feature.")
    return np.flatnonzero(mask)


def shared_names(
    mdata: MuData,
    names: Sequence[str],
    *,
    links: Mapping[tuple[str, str], pd.DataFrame],
    use_rep: Mapping[str, str | None],
    mask_var: Mapping[str, Any],
) -> pd.Index | None:
    """Equal names of all modalities where they are many enough to make one space, else None."""
    columns = {name: mdata[name].var_names for name in names}
    masks = {name: _mask(mdata, name, mask_var[name], columns[name], use_rep[name]) for name in names}
    return _shared_names(names, columns, links, use_rep, masks)


def _shared_names(
    names: Sequence[str],
    columns: Mapping[str, pd.Index],
    links: Mapping[tuple[str, str], pd.DataFrame],
    use_rep: Mapping[str, str | None],
    masks: Mapping[str, np.ndarray | None],
) -> pd.Index | None:
    """Equal names of all modalities where they are many enough to make one space, else None."""
    if not links or any(use_rep.values()):
        return None
    common = columns[names[0]]
    for name in names[1:]:
        common = common[common.isin(columns[name])]
    for name in names:
        if (mask := masks[name]) is not None:
            common = common[common.isin(columns[name][mask])]
    smallest = min(len(columns[name]) for name in names)
    # the links must say so too: equal names may mean nothing when the user links other features
    linked = all((table.iloc[:, 0] == table.iloc[:, 1]).mean() > 0.5 for table in links.values())
    return common if linked and len(common) >= MIN_SHARED and 2 * len(common) >= smallest else None
