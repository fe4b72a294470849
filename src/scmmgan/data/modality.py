"""One modality of a MuData: its matrix, names and coordinates; checks of user input."""

from __future__ import annotations

import difflib
import logging
import operator
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan.data.streamed import streamed
from scmmgan.model.defaults import MIN_CELLS, MIN_LINKS
from scmmgan.model.space.linear import row_blocks
from scmmgan.model.space.scratch import columns_of, flat_chunks
from scmmgan.settings import unpulled

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = logging.getLogger("scmmgan")

# what str() makes of a gap, and what files have in its place, in any case
_GAPS = ("", "-", "--", ".", "?", "NaN", "None", "NA", "N/A", "N.A.", "#N/A", "<NA>", "NaT", "null")
GAPS = tuple(dict.fromkeys(of for gap in _GAPS for of in (gap, gap.lower(), gap.upper(), gap.capitalize())))
# columns by which other tools name coordinates
_PLACES = (
    ("x", "y", "z"), ("x", "y"), ("X", "Y"), ("x_centroid", "y_centroid"), ("center_x", "center_y"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("imagecol", "imagerow"), ("x_coord", "y_coord"), ("xcoord", "ycoord"),
    ("CenterX_global_px", "CenterY_global_px"), ("spatial_x", "spatial_y"), ("array_col", "array_row"),
)  # fmt: skip
_OF_FEATURES = {"gene_ids", "feature_types", "gene_symbols", "highly_variable", "n_cells", "n_cells_by_counts"}
_OF_CELLS = {"cell_type", "leiden", "louvain", "n_genes", "n_genes_by_counts", "total_counts", "barcode", "donor"}
_BARCODE = re.compile(r"^(.*[_:#])?[ACGT]{12,}([-_.].*)?$")


def check_modalities(mdata: MuData, modalities: Sequence[str]) -> list[str]:
    """Names of the modalities to align, all of them by default."""
    check_mudata(mdata)
    names = list(modalities) or list(mdata.mod)
    for name in names:
        check_not_lazy(modality(mdata, name), name)
        if not storable(name):
            raise ValueError(
                f"Modality name {name!r} cannot be stored: HDF5 and zarr read '/', '.' and an empty name as folders. "
                "Rename it: `mudata.MuData({'new_name': mdata[...]})`."
            )
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"Need at least two different modalities, got {names}. Modalities found: {list(mdata.mod)}.")
    for name in names:
        _check_orientation(mdata, name, names)
    return names


def _check_orientation(mdata: MuData, name: str, names: Sequence[str]) -> None:
    """ValueError where rows are features and columns cells, by their names or by the columns that describe them."""
    adata = mdata[name]
    # a thousand names say it; numbers are names that anything may have
    rows, columns = (i[:1_000].astype(str) for i in (adata.obs_names, adata.var_names))
    rows, columns = rows[~rows.str.isdecimal()], columns[~columns.str.isdecimal()]
    foreign = columns[~columns.isin(adata.obs_names)]
    others = [mdata[m] for m in names if m != name]
    reasons = []
    if any(2 * (rows.isin(o.var_names) & ~rows.isin(o.obs_names)).sum() > len(rows) > MIN_LINKS for o in others):
        reasons.append("its cells are named like features of another modality")
    if any(2 * foreign.isin(o.obs_names).sum() > len(columns) > MIN_LINKS for o in others):
        reasons.append("its features are named like cells of another modality")
    if 2 * sum(bool(_BARCODE.match(c)) for c in foreign) > len(columns) > MIN_LINKS:
        reasons.append("its features are named like barcodes")
    both = [(set(adata.obs) & _OF_FEATURES, "obs"), (set(adata.var) & _OF_CELLS, "var")]
    if all(found for found, _ in both):
        reasons.append(" and ".join(f"its `{axis}` has {sorted(found)}" for found, axis in both))
    if reasons:
        raise ValueError(
            f"{name!r} ({adata.n_obs} cells × {adata.n_vars} features) looks transposed: {'; '.join(reasons)}. Cells are rows: "
            f"`mdata = mudata.MuData({{**mdata.mod, {name!r}: mdata[{name!r}].T.copy()}})`. Rename them if they are right."
        )


def check_writable(mdata: MuData, names: Sequence[str]) -> None:
    """ValueError where results could not be written, before anything is computed."""
    if mdata.is_view or any(mdata[name].is_view for name in names):
        raise ValueError("`mdata` is a view and cannot be written to. Use `mdata = mdata.copy()`, or `copy=True`.")


def copied(mdata: MuData) -> MuData:
    """A copy; columns of the modalities are not pulled."""
    with unpulled():
        return mdata.copy()


def collected(mdata: MuData | Mapping[str, AnnData]) -> MuData:
    """A new MuData of copies where there is a dict of AnnData, in memory; a MuData as it is."""
    from anndata import AnnData
    from mudata import MuData

    if not isinstance(mdata, Mapping):
        check_mudata(mdata)
        return mdata
    if unnamed := [name for name in mdata if not isinstance(name, str)]:
        raise TypeError(f"Names of the dict must be text, got {unnamed[0]!r}.")
    if wrong := [name for name, of in mdata.items() if not isinstance(of, AnnData)]:
        raise TypeError(f"{wrong[0]!r} of the dict must be an AnnData, got {type(mdata[wrong[0]]).__name__}.")
    with unpulled():
        return MuData({name: of.to_memory() if of.isbacked or is_lazy(of) else of.copy() for name, of in mdata.items()})


def layers_of(adata: AnnData) -> list[str]:
    """Names of the layers; anndata 0.13 lists `X` among them, as None."""
    return [name for name in adata.layers if name is not None]


def is_lazy(adata: AnnData) -> bool:
    """Whether annotations are still in a file (`anndata.experimental.read_lazy`)."""
    return not isinstance(adata.obs, pd.DataFrame)


def check_not_lazy(adata: AnnData, name: str) -> None:
    """TypeError where annotations are still in a file, with what to type."""
    if is_lazy(adata):
        raise TypeError(
            f"{name!r} was read lazily: its `obs` is a {type(adata.obs).__name__}. Use `.to_memory()`, or keep the matrix in its "
            "file: `anndata.AnnData(lazy.X, obs=lazy.obs.to_memory(), var=lazy.var.to_memory())`."
        )


def storable(name: str) -> bool:
    """Whether HDF5 and zarr take the name for one key and not for a path."""
    return not ("/" in name or "\\" in name or name in ("", ".", ".."))


def check_key_added(name: object) -> None:
    """ValueError unless files can store it."""
    if not isinstance(name, str) or not storable(name):
        raise ValueError(f"`key_added` must be a name without slashes, not empty and not '.', got {name!r}.")


def check_mudata(
    mdata: MuData,
    must: str = "`mdata` must be a MuData with one modality per technology (or, to align, a dict of AnnData)",
) -> None:
    """TypeError unless it is a MuData."""
    from mudata import MuData

    if not isinstance(mdata, MuData):
        raise TypeError(f"{must}, got {type(mdata).__name__}.")


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
        if isinstance(value, bool):
            raise TypeError
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


def in_joint(mdata: MuData, column: str, axis: str = "obs") -> str:
    """What to type where a column that the modalities lack is one of the MuData's own; empty where it is not."""
    if column not in getattr(mdata, axis):
        return ""
    return f"`mdata.{axis}` has {column!r}: run `mdata.push_{axis}([{column!r}])`, which copies it to the modalities."


def as_booleans(values: Any) -> np.ndarray | None:
    """Yes and no as bool (n,), gaps as no: of bool, object, text, categories, 0 and 1; None where it is anything else."""
    words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    series = pd.Series(values).astype(object)
    known = series.notna() & ~series.astype(str).isin(GAPS)
    found = series[known].astype(str).str.lower().map(words)
    if found.isna().any():
        return None
    out = np.zeros(len(series), dtype=bool)
    out[known.to_numpy()] = found.to_numpy(dtype=bool)
    return out


def listed(names: Any, argument: str = "features") -> list[str]:
    """One name, or several, as a list; TypeError for what holds no names."""
    if isinstance(names, str):
        return [names]
    if not pd.api.types.is_list_like(names):
        raise TypeError(f"`{argument}` must be names of features, one or a list of them; got {names!r}.")
    return [str(name) for name in names]


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
    found = read_values(adata, name, layer=layer, use_rep=use_rep)
    n, g = found.shape
    if n < MIN_CELLS or g == 0:
        raise ValueError(f"{name!r} has {n} cells and {g} features; {MIN_CELLS} cells and 1 feature are the minimum.")
    if not varies(found):
        slot = _slot(layer, use_rep)
        raise ValueError(f"{slot} of {name!r} is constant in every feature: there is nothing to align. {_OTHER_LAYER}")
    if empty := sum(_empty(rows) for _, rows in row_blocks(found)):
        logger.warning(
            "%d of %d cells of %r have no value but 0 in %s: nothing says where they belong. Remove them first.",
            empty, n, name, _slot(layer, use_rep),
        )  # fmt: skip
    return found, adata.var_names if use_rep is None else pd.Index([f"{use_rep}_{i}" for i in range(g)])


def read_values(
    adata: AnnData,
    name: str,
    *,
    layer: str | None = None,
    use_rep: str | None = None,
    columns: np.ndarray | None = None,
) -> np.ndarray | sp.csr_matrix:
    """Checked float32 matrix (CSR or dense) of any cells of a modality, of all features or of those at `columns`."""
    if use_rep is not None:
        if layer is not None:
            raise ValueError(f"{name!r}: give `layer` or `use_rep`, not both; got {layer!r} and {use_rep!r}.")
        if use_rep not in adata.obsm:
            raise missing_key(f"obsm key in {name!r}", use_rep, list(adata.obsm))
        values = streamed(adata.obsm[use_rep])
        width = values.shape[1] if len(values.shape) > 1 else 0
        names = pd.Index([f"{use_rep}_{i}" for i in range(width)])
        return _as_float(values, name, _slot(layer, use_rep), adata.obs_names, names)
    if layer is not None and layer not in adata.layers:
        raise missing_key(f"layer in {name!r}", layer, layers_of(adata), "`layer=None` reads X.")
    values = adata.X if layer is None else adata.layers[layer]
    if values is None:
        raise ValueError(f"{name!r} has no X. Name a `layer`; layers found: {layers_of(adata)}.")
    names = adata.var_names if columns is None else adata.var_names[columns]
    values = streamed(values)
    values = values if columns is None else columns_of(values, columns)
    found = _as_float(values, name, _slot(layer, use_rep), adata.obs_names, names)
    if _like_counts(found):
        logger.warning(
            "%s of %r looks like raw counts (whole numbers up to %d). Run `scmmgan.pp.normalize` and name its layer.",
            _slot(layer, use_rep), name, int(found.max()),
        )  # fmt: skip
    return found


def _empty(rows: np.ndarray | sp.csr_matrix) -> int:
    """How many of some rows hold zeros only."""
    counted = rows.count_nonzero(axis=1) if sp.issparse(rows) else np.count_nonzero(rows, axis=1)
    return int((counted == 0).sum())


def _slot(layer: str | None, use_rep: str | None) -> str:
    return f"obsm {use_rep!r}" if use_rep is not None else "X" if layer is None else f"layer {layer!r}"


def read_counts(mdata: MuData, name: str, counts: str | None) -> np.ndarray | sp.csr_matrix | None:
    """Counts of a modality (n × g, float32): of a layer, or with "auto" of `layers["counts"]` where it holds whole numbers."""
    adata = modality(mdata, name)
    if counts is None or (counts == "auto" and "counts" not in adata.layers):
        return None
    if not isinstance(counts, str):
        raise TypeError(f"`counts` must be 'auto', a layer or None, got {counts!r}.")
    layer = "counts" if counts == "auto" else counts
    if layer not in adata.layers:
        raise missing_key(f"layer in {name!r}", layer, layers_of(adata), "`counts=None` uses none.")
    found = counts_of(adata, layer)
    if found is not None:
        return found
    if counts != "auto":
        raise ValueError(
            f"layers[{layer!r}] of {name!r} holds no counts: whole numbers, none negative. Name another layer."
        )
    logger.info("layers['counts'] of %r holds no whole numbers and is not read as counts.", name)
    return None


def counts_of(adata: AnnData, layer: str) -> np.ndarray | sp.csr_matrix | None:
    """A layer (n × g, float32) of any cells, None where it holds anything but whole numbers."""
    stored: Any = streamed(adata.layers[layer])
    sparse = sp.issparse(stored)
    values: Any = sp.csr_matrix(stored, dtype=np.float32) if sparse else np.asarray(stored, dtype=np.float32)
    parts = [
        (part.any(), np.isfinite(part).all() and part.min() >= 0 and np.array_equal(part, np.round(part)))
        for part in flat_chunks(values)
    ]
    return values if any(some for some, _ in parts) and all(whole for _, whole in parts) else None


def _like_counts(values: np.ndarray | sp.csr_matrix) -> bool:
    """Whole numbers of more than two kinds, none negative: 0 and 1 may be what a peak is."""
    data = np.asarray(values.data if sp.issparse(values) else values)
    if not data.size or data.min() < 0 or data.max() < 2:
        return False
    # most matrices are ruled out by a few of their values
    return all(np.array_equal(part, np.round(part)) for part in (data.reshape(-1)[:10_000], *flat_chunks(values)))


def _as_float(values: Any, name: str, slot: str, cells: pd.Index, features: pd.Index) -> np.ndarray | sp.csr_matrix:
    """The values in memory as float32, or an error on types, shapes and values that are not finite."""
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
    if bad := sum(int((~np.isfinite(part)).sum()) for part in flat_chunks(out)):
        raise ValueError(
            f"{slot} of {name!r} holds {bad} NaN or infinite values (beyond ±3e38 counts as infinite), in "
            f"{where_not_finite(out, cells, features)}. Impute or drop them first."
        )
    return out


def part(adata: AnnData, rows: Any, columns: Any, layer: str | None = None) -> np.ndarray:
    """Values of some cells and features, dense: of X or of a layer, in any storage."""
    values: Any = None if adata.is_view else adata.X if layer is None else adata.layers[layer]
    sparse: bool = sp.issparse(values)
    if sparse and values.dtype == np.float16:
        # SciPy cannot take rows of these
        found = values.astype(np.float32).tocsr()[rows][:, columns]
    else:
        cut = adata[rows, columns]
        found = streamed(cut.X if layer is None else cut.layers[layer])
    return np.asarray(found.toarray() if hasattr(found, "toarray") else found)


def where_not_finite(values: np.ndarray | sp.csr_matrix, cells: pd.Index, features: pd.Index) -> str:
    """How many features and cells have values that are not finite, and the names of the first of each."""
    if sp.issparse(values):
        entries = values.tocoo()
        at = ~np.isfinite(entries.data)
        rows, columns = entries.row[at], entries.col[at]
    else:
        rows, columns = np.nonzero(~np.isfinite(values))
    parts = []
    for what, found, names in (("features", columns, features), ("cells", rows, cells)):
        first = np.unique(found)
        listed = ", ".join(repr(str(names[i])) for i in first[:3]) + (", ..." if len(first) > 3 else "")
        parts.append(f"{len(first)} of {len(names)} {what} ({listed})")
    return " and ".join(parts)


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
            hints = [hint for name in names if (hint := places_in_obs(mdata[name], name, spatial))]
            raise KeyError(
                " ".join([f"No modality has obsm[{spatial!r}] that `spatial` names. Found: {found}.", *hints])
            )
    return {name: coordinates(mdata, name, key) for name, key in chosen.items()}


def places_in_obs(adata: AnnData, name: str, key: str) -> str:
    """What to type where coordinates are columns of obs."""
    columns = next((list(c) for c in _PLACES if set(c) <= set(adata.obs)), None)
    if columns is None:
        return ""
    return (
        f"{name!r} has obs columns {columns}: "
        f"`mdata[{name!r}].obsm[{key!r}] = mdata[{name!r}].obs[{columns}].to_numpy(float)` makes coordinates of them."
    )


def _numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Numbers that are stored as text or objects, as numbers; anything else as it is."""
    if values.dtype.kind not in "OUST":
        return values
    try:
        found = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} holds text that is no number ({error}). Correct it, and store numbers: `.astype(float)`."
        ) from None
    logger.info("%s holds text: it is read as numbers.", where)
    return found


def coordinates(mdata: MuData, name: str, key: str) -> np.ndarray:
    """Checked coordinates (n × 2 or 3, float64) of a modality's cells."""
    adata = modality(mdata, name)
    if key not in adata.obsm:
        raise missing_key(f"obsm key in {name!r}", key, list(adata.obsm), places_in_obs(adata, name, key))
    stored: Any = streamed(adata.obsm[key])
    sparse: bool = sp.issparse(stored)
    stored = stored.toarray() if sparse else np.asarray(stored)
    values = _numbers(stored, f"obsm[{key!r}] of {name!r}")
    if values.ndim != 2 or values.shape[1] not in (2, 3) or values.dtype.kind not in "biuf":
        raise ValueError(
            f"obsm[{key!r}] of {name!r} has shape {values.shape} and dtype {values.dtype}; coordinates are 2 or 3 "
            "columns of numbers. Name another key."
        )
    values = values.astype(np.float64)
    if (bad := ~np.isfinite(values).all(1)).any():
        raise ValueError(
            f"obsm[{key!r}] of {name!r} holds NaN or infinite coordinates, of {bad.sum()} of {len(bad)} cells, e.g. "
            f"{str(adata.obs_names[bad][0])!r}. Drop those cells first."
        )
    if len(values) and not np.ptp(values, axis=0).any():
        raise ValueError(f"obsm[{key!r}] of {name!r} puts all cells at one place. Name another key.")
    return values


def read_mask(mdata: MuData, name: str, mask: Any, use_rep: str | None) -> np.ndarray | None:
    """Positions of the features that may enter the PCA."""
    if mask is None or use_rep:
        return None
    if isinstance(mask, str):
        if mask not in mdata[name].var:
            raise missing_key(f"var column in {name!r}", mask, list(mdata[name].var), in_joint(mdata, mask, "var"))
        mask = mdata[name].var[mask]
    mask = np.asarray(mask)
    if mask.shape == (mdata[name].n_vars,) and (found := as_booleans(mask)) is not None:
        mask = found
    if mask.dtype != bool or mask.shape != (mdata[name].n_vars,):
        raise ValueError(
            f"`mask_var` of {name!r} must be {mdata[name].n_vars} booleans, got {mask.shape} of {mask.dtype}. "
            "Name a boolean `var` column or hand in a boolean array."
        )
    if not mask.any():
        raise ValueError(f"`mask_var` of {name!r} chooses no feature.")
    return np.flatnonzero(mask)
