"""What the user knows of the cells: pairs, labels, batches, covariates. All checks; row numbers and codes come out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data.modality import GAPS, as_booleans, in_joint, missing_key, modality
from scmmgan.model.defaults import MIN_CELLS, MIN_PAIRS
from scmmgan.model.problem import Values

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")

PAIR_WEIGHT = "weight"  # column of a table of pairs


def read_pairs(
    mdata: MuData, names: Sequence[str], pairs: str | pd.DataFrame | None
) -> dict[tuple[str, str], np.ndarray]:
    """Row numbers (k × 2) of known pairs for all pairs of modalities that have any."""
    if pairs is None:
        return {}
    if not isinstance(pairs, str | pd.DataFrame):
        raise TypeError(f"`pairs` must be a str, a DataFrame or None, got {type(pairs).__name__}.")
    _check_names(mdata, names, pairs)
    found = {}
    for a, b in combinations(names, 2):
        cells = _named(mdata, a, b, pairs) if isinstance(pairs, str) else _tabled(mdata, a, b, pairs)
        if len(names) > 2 and len(cells) < MIN_PAIRS:
            # of several modalities some may have no cell in common
            if len(cells):
                logger.warning("`pairs` gives %d pairs of %r and %r: too few to be used.", len(cells), a, b)
            continue
        if len(cells) < MIN_PAIRS:
            raise ValueError(
                f"`pairs` gives {len(cells)} pairs of {a!r} and {b!r}; at least {MIN_PAIRS} are needed. Cells are named "
                f"like {list(mdata[a].obs_names[:2])} and {list(mdata[b].obs_names[:2])}."
            )
        logger.info("%d known pairs of %r and %r.", len(cells), a, b)
        found[a, b] = cells
    if not found:
        raise ValueError(
            f"`pairs` gives no {MIN_PAIRS} pairs of any two of the modalities {list(names)}. Check the names of cells."
        )
    return found


def _check_names(mdata: MuData, names: Sequence[str], pairs: str | pd.DataFrame) -> None:
    """Cells have unique names, and two modalities a column of pairs, or one of them for a boolean one."""
    for m in names:
        if not (cells := modality(mdata, m).obs_names).is_unique:
            twice = cells[cells.duplicated()][0]
            raise ValueError(
                f"obs_names of {m!r} are not unique, e.g. {twice!r}: `pairs` names cells. "
                "Run `obs_names_make_unique()` on it."
            )
    if isinstance(pairs, str):
        if pairs != "obs_names" and not any(pairs in mdata[m].obs for m in names):
            columns = [c for m in names for c in mdata[m].obs]
            what = f"obs column in {' or '.join(map(repr, names))}"
            hint = in_joint(mdata, pairs) or "`pairs` also takes 'obs_names' or a table."
            raise missing_key(what, pairs, columns, hint)
        return
    if not pairs.columns.is_unique:
        raise ValueError(f"The table `pairs` has columns of one name: {list(pairs)}. Drop or rename them.")
    there = [m for m in names if m in pairs]
    if len(there) < 2:
        missing = next(m for m in names if m not in there)
        raise missing_key("column in the table `pairs`", missing, [str(c) for c in pairs], "One per modality.")


def _named(mdata: MuData, a: str, b: str, pairs: str) -> np.ndarray:
    """Cells of equal names, all or those that a boolean column marks; a column on one side marks for both."""
    both = mdata[a].obs_names[mdata[a].obs_names.isin(mdata[b].obs_names)]
    having = [m for m in (a, b) if pairs != "obs_names" and pairs in mdata[m].obs]
    for m in having:
        values = mdata[m].obs[pairs]
        if (marked := as_booleans(values)) is None:
            raise ValueError(
                f"obs column {pairs!r} of {m!r} must be boolean (is this cell's partner known?), got {values.dtype}."
            )
        both = both[both.isin(values.index[marked])]
    if pairs != "obs_names" and not having:
        both = both[:0]
    return np.stack([mdata[m].obs_names.get_indexer(both) for m in (a, b)], axis=1)


def _tabled(mdata: MuData, a: str, b: str, pairs: pd.DataFrame) -> np.ndarray:
    """Cells of a table with one column of names per modality; of one with weights every cell's heaviest partner."""
    rows, weight = weighted_partners(mdata, a, b, pairs)
    if weight is not None:
        rows = rows[np.argsort(-weight, kind="stable")]
        return np.asarray(pd.DataFrame(rows).drop_duplicates(0).drop_duplicates(1).sort_index().to_numpy())
    for m, of in zip((a, b), rows.T):
        if (twice := pd.Series(of).duplicated().to_numpy()).any():
            raise ValueError(
                f"`pairs` names {mdata[m].obs_names[of[twice][0]]!r} of {m!r} twice: a cell has one partner."
            )
    return rows


def has_weights(pairs: object, names: Sequence[str]) -> bool:
    """Whether `pairs` is a table in which a cell may have several partners, with weights."""
    return isinstance(pairs, pd.DataFrame) and PAIR_WEIGHT in pairs and PAIR_WEIGHT not in names


def read_partners(
    mdata: MuData, a: str, b: str, pairs: str | pd.DataFrame | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Row numbers (k × 2) and weights (k,) of partners of which a cell may have several; None without weights."""
    if not isinstance(pairs, pd.DataFrame):
        return None
    rows, weight = weighted_partners(mdata, a, b, pairs)
    return None if weight is None else (rows, weight)


def weighted_partners(mdata: MuData, a: str, b: str, pairs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None]:
    """Row numbers (k × 2) of a table, and weights (k,) in (0, 1] where it has any; rows with a gap are no pair of the two."""
    if a not in pairs or b not in pairs:
        return np.empty((0, 2), dtype=int), None
    table = pd.DataFrame({m: as_text(pairs[m]) for m in (a, b)})
    there = table.notna().all(axis=1).to_numpy()
    found = []
    for m in (a, b):
        cells = table[m].to_numpy(dtype=object)[there]
        found.append(mdata[m].obs_names.get_indexer(pd.Index(cells, dtype=object)))
        if (unknown := found[-1] < 0).any():
            raise KeyError(
                f"`pairs` names {int(unknown.sum())} cells that are not in {m!r}, e.g. {cells[unknown][0]!r}; its cells are named "
                f"like {list(mdata[m].obs_names[:2])}."
            )
    rows = np.stack(found, axis=1)
    if not has_weights(pairs, (a, b)):
        return rows, None
    weight = pd.to_numeric(pairs[PAIR_WEIGHT], errors="coerce").to_numpy(dtype=np.float64)[there]
    if bad := int((~((weight > 0) & (weight <= 1))).sum()):
        raise ValueError(f"{bad} values of the column {PAIR_WEIGHT!r} of `pairs` are not above 0 and at most 1.")
    if pd.DataFrame(rows).duplicated().any():
        raise ValueError("`pairs` names the same two cells twice. Keep one row of each two.")
    return rows, weight


def read_labels(
    mdata: MuData, names: Sequence[str], labels: Mapping[str, str | None]
) -> tuple[dict[str, np.ndarray], list[str], set[tuple[str, str]]]:
    """Codes (n,) of one vocabulary per modality, -1 where there is a gap; the vocabulary; pairs that share labels.

    Of several modalities some may have none, or those of another vocabulary.
    """
    if len(names) > 2:
        having = [m for m in names if isinstance(labels[m], str) and labels[m] in modality(mdata, m).obs]
        if len(having) >= 2 and (without := [m for m in names if m not in having]):
            logger.warning("%s have no column that `labels` names: they go by what else is known of them.", without)
            names = having
    values = _columns(mdata, names, labels, "labels")
    if values is None:
        return {}, [], set()
    labelled = set(combinations(names, 2))
    found = {m: set(v.dropna()) for m, v in values.items()}
    for m, of in found.items():
        if len(of) > MIN_CELLS and 2 * len(of) > (there := int(values[m].notna().sum())):
            raise ValueError(
                f"obs column {labels[m]!r} of {m!r} names {len(of)} kinds of {there} cells: these are no labels of cell types. "
                "Name another column as `labels`; cells that are known to be the same are `pairs`."
            )
    for a, b in combinations(names, 2):
        common = found[a] & found[b]
        smaller = min(len(found[a]), len(found[b]))
        if len(common) < 2 or 2 * len(common) < smaller:
            if len(names) > 2:
                logger.warning("`labels` of %r and %r share %d names: none are used for this pair.", a, b, len(common))
                labelled.discard((a, b))
                continue
            raise ValueError(
                f"`labels` of {a!r} and {b!r} share {len(common)} names, too few for one vocabulary. {a!r} has "
                f"{sorted(found[a])[:30]}, {b!r} has {sorted(found[b])[:30]}. Rename them alike, or leave `labels` out."
            )
        for m, other in ((a, b), (b, a)):
            if alone := sorted(found[m] - found[other]):
                gaps = values[other].isna().any()
                end = "they may be among its cells without a label." if gaps else "those cells count as unmatched."
                logger.warning("Labels %s of %r are missing in %r: %s", alone, m, other, end)
    vocabulary = sorted(set.union(*found.values()))
    if not labelled:
        raise ValueError(
            f"`labels` of no two of the modalities {list(names)} share a vocabulary: "
            f"{ {m: sorted(of)[:10] for m, of in found.items()} }. Rename them alike, or leave `labels` out."
        )
    codes = {m: pd.Categorical(v, categories=vocabulary).codes.astype(int) for m, v in values.items()}
    return codes, vocabulary, labelled


def read_batches(
    mdata: MuData, names: Sequence[str], batch: Mapping[str, str | None]
) -> dict[str, dict[str, np.ndarray] | None]:
    """Row numbers of each batch, by name, per modality; None where a modality has one batch. Every batch has at least 32 cells."""
    found: dict[str, dict[str, np.ndarray] | None] = dict.fromkeys(names)
    for m in [m for m in names if batch[m] is not None]:
        values = _columns(mdata, [m], batch, "batch")
        column = values[m] if values else None
        if column is None or column.isna().any():
            raise ValueError(f"obs column {batch[m]!r} of {m!r} has gaps: every cell needs a batch.")
        counts = column.value_counts()
        if counts.min() < MIN_CELLS:
            raise ValueError(
                f"Batch {counts.idxmin()!r} of {m!r} has {counts.min()} cells; {MIN_CELLS} are the minimum. Merge or drop it."
            )
        if len(counts) > 1:
            codes = pd.Categorical(column)
            found[m] = {str(name): np.flatnonzero(codes == name) for name in codes.categories}
    return found


def listed(columns: str | Sequence[str]) -> list[str]:
    """Names of columns, of which one may be given by itself."""
    names = [columns] if isinstance(columns, str) else list(columns)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`covariates` must be obs columns or 'depth', got {columns!r}.")
    return [str(name) for name in names]


def read_covariates(mdata: MuData, name: str, columns: Sequence[str], counts: Values | None) -> np.ndarray:
    """Standardised covariates (n × c) of a modality: numbers, one column for each label but the first, or log depth."""
    adata, parts = mdata[name], []
    for column in columns:
        if column == "depth" and column not in adata.obs:
            if counts is None:
                raise ValueError(
                    f"`covariates='depth'` needs counts, and {name!r} has none: store them in `layers['counts']`, name their "
                    f"layer as `counts`, or give an obs column with the depth. Layers found: {list(adata.layers)}."
                )
            parts.append(np.log1p(np.asarray(counts.sum(1), dtype=np.float64).reshape(-1, 1)))
            continue
        if column not in adata.obs:
            raise missing_key(f"obs column in {name!r}", column, list(adata.obs), in_joint(mdata, column))
        values = adata.obs[column]
        if (gaps := int(values.isna().sum())) > 0:
            raise ValueError(f"Covariate {column!r} of {name!r} has {gaps} gaps: fill them, or leave those cells out.")
        numbers = pd.api.types.is_numeric_dtype(values)
        table = values.to_frame() if numbers else pd.get_dummies(values.astype(str), drop_first=True)
        parts.append(table.to_numpy(dtype=np.float64))
    found = np.hstack(parts)
    if not np.isfinite(found).all():
        raise ValueError(f"`covariates` {list(columns)} of {name!r} hold infinite values.")
    sd = found.std(0)
    if not (sd > 0).any() or len(found) <= 2 * found.shape[1]:
        raise ValueError(
            f"`covariates` {list(columns)} of {name!r} are {found.shape[1]} columns over {len(found)} cells, {int((sd > 0).sum())} "
            "of which vary: name columns that vary and have few labels."
        )
    return np.asarray((found - found.mean(0))[:, sd > 0] / sd[sd > 0])


def _columns(
    mdata: MuData, names: Sequence[str], columns: Mapping[str, Any], argument: str
) -> dict[str, pd.Series] | None:
    """The obs columns as str with gaps; None when no modality names one."""
    if all(columns[m] is None for m in names):
        return None
    values = {}
    for m in names:
        obs, column = modality(mdata, m).obs, columns[m]
        if column is None:
            raise KeyError(f"`{argument}` names no obs column of {m!r}. Name one for every modality, or none at all.")
        if not isinstance(column, str):
            raise TypeError(f"`{argument}` must name an obs column, or be a dict of such names, got {column!r}.")
        if column not in obs:
            having = [other for other in mdata.mod if column in mdata[other].obs]
            hint = f"{having} have it: a dict by modality says whose it is." if having else in_joint(mdata, column)
            raise missing_key(f"obs column in {m!r} for `{argument}`", column, list(obs.columns), hint)
        values[m] = as_text(obs[column])
    return values


def as_text(series: pd.Series) -> pd.Series:
    """Values as str, gaps left; whole numbers without the decimals that gaps beside them bring."""
    values = series.astype(object).convert_dtypes().astype(object)
    text = values.astype(str).astype(object)
    return text.where(~(values.isna() | text.str.strip().isin(GAPS)), None)
