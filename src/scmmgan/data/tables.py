"""What `get` returns, put together from the slots: tables and annotated matrices, all copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmmgan.data import derived as _derived
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.data.modality import listed, missing_key, modality

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.nets.trained import Trained, TrainedLatent


def mapped_cells(
    mdata: MuData,
    source: str,
    target: str,
    features: str | Sequence[str] | None,
    keys: Keys,
    rebuilt: Callable[[], Trained | TrainedLatent],
) -> AnnData:
    """Mapped cells with what is known of them and of the features, see `get.mapped`."""
    values, names = _slots.mapped_values(mdata, source, target, features, keys, rebuilt)
    cells, var = modality(mdata, source), modality(mdata, target).var
    # a representation (`use_rep`) has columns that are no features
    known = set(names) <= set(var.index)
    var = var.loc[names].copy() if known else pd.DataFrame(index=pd.Index(names, dtype=object))
    if len(_slots.config(mdata, keys)["modalities"]) > 2:
        # of several sources only one is here
        parts = [(f, part) for f, parts in _BY_SOURCE.items() for part in parts]
        own = {f(keys, part, None): f(keys, part, source) for f, part in parts} | {
            keys.interval(): keys.interval(source)
        }
        var = var.assign(**{name: var[column] for name, column in own.items() if column in var})
    out = AnnData(values.copy(), obs=cells.obs.copy(), var=var)
    out.obsm[keys.embedding] = np.array(cells.obsm[keys.embedding])
    copy_places(cells, out)
    out.uns |= colors(out.obs, [cells])
    return out


# columns of `var` that name their source where there are several, and their parts
_BY_SOURCE = {
    Keys.uncertainty: (None, "coupling", "noise", "seeds"),
    Keys.evidence: (None, "q", "ceiling"),
}


def colors(obs: pd.DataFrame, modalities: Sequence[AnnData]) -> dict[str, np.ndarray]:
    """`{column}_colors` of the columns whose categories all have a color in `uns` of a modality; the first one counts."""
    found = {}
    for column in obs.select_dtypes("category").columns:
        known: dict[str, str] = {}
        for adata in reversed(modalities):
            stored = adata.uns.get(f"{column}_colors")
            if stored is not None and isinstance(adata.obs.get(column, obs.index).dtype, pd.CategoricalDtype):
                known |= {str(c): str(of) for c, of in zip(adata.obs[column].cat.categories, stored)}
        names = [str(c) for c in obs[column].cat.categories]
        if known and set(names) <= set(known):
            found[f"{column}_colors"] = np.array([known[name] for name in names], dtype=object)
    return found


def joint(mdata: MuData, keys: Keys) -> AnnData:
    """Joint embedding of all aligned cells, see `get.embedding`."""
    names = _slots.config(mdata, keys)["modalities"]
    found = _slots.check_aligned(mdata, names, keys)
    parts, own = [], []
    for name in names:
        obs = mdata[name].obs.rename(columns={"modality": "own_modality"})
        own.append(obs)
        # categories of one name may differ between modalities
        obs = obs.astype({c: object for c in obs if isinstance(obs[c].dtype, pd.CategoricalDtype)})
        obs["modality"] = name
        parts.append(obs.set_axis([f"{name}:{cell}" for cell in mdata[name].obs_names], axis=0))
    # a column without any value in one modality would decide the type of the others'
    obs = pd.concat([part.dropna(axis=1, how="all") for part in parts])
    # text is a type of its own from pandas 3 on
    text = [c for c in obs if obs[c].dtype == object or isinstance(obs[c].dtype, pd.StringDtype)]
    for column in text:
        obs[column] = _as_categories(obs[column], [part[column] for part in own if column in part])
    obs["modality"] = pd.Categorical(obs["modality"], categories=names)
    x = np.vstack([np.asarray(mdata[name].obsm[keys.embedding]) for name in names])
    # methods without a coupling have one space of all
    blocks = found.get("widths", {"joint": x.shape[1]})
    var = pd.DataFrame(
        {"modality": np.repeat(list(blocks), list(blocks.values()))},
        index=[f"{m}_{i}" for m, width in blocks.items() for i in range(width)],
    )
    out = AnnData(x, obs=obs, var=var, obsm={keys.embedding: x.copy()})
    out.uns |= colors(out.obs, [mdata[name] for name in names])
    return out


def _as_categories(values: pd.Series, own: Sequence[pd.Series]) -> pd.Categorical:
    """Text of all modalities as categories, in the modalities' own order where they have one; ordered where all agree."""
    text = values.where(values.isna(), values.astype(str))
    typed = [column.cat for column in own if isinstance(column.dtype, pd.CategoricalDtype)]
    first = dict.fromkeys(str(label) for of in typed for label in of.categories)
    there = sorted(set(text.dropna()) - set(first))
    lists = {tuple(of.categories) for of in typed}
    ordered = len(lists) == 1 and len(typed) == len(own) and all(of.ordered for of in typed)
    used = set(text.dropna())
    return pd.Categorical(text, categories=[*(c for c in first if c in used), *there], ordered=ordered)


def copy_places(cells: AnnData, out: AnnData) -> None:
    """Coordinates and pictures of the source's cells, and what SpatialData calls the columns that say where they lie."""
    if "spatial" in cells.obsm:
        out.obsm["spatial"] = np.array(cells.obsm["spatial"])
    out.uns |= {name: deepcopy(cells.uns[name]) for name in ("spatial", "spatialdata_attrs") if name in cells.uns}


def uncertainty_record(mdata: MuData, source: str, target: str, keys: Keys) -> dict[str, Any]:
    """What `tl.uncertainty` wrote to `uns` for two modalities; KeyError where it was not run."""
    found = _slots.added(mdata, keys, "uncertainty").get(source, {}).get(target)
    if found is None:
        raise KeyError(
            f"No uncertainty from {source!r} to {target!r} in the alignment {keys.key!r}. "
            f"Run `scmmgan.tl.uncertainty(mdata, {source!r}, {target!r})`."
        )
    return dict(found)


def summary(mdata: MuData, source: str, target: str, keys: Keys) -> dict[str, Any]:
    """Uncertainty of all mapped features, see `get.uncertainty_summary`."""
    several = len(_slots.check_aligned(mdata, (source, target), keys)["modalities"]) > 2
    found, var = uncertainty_record(mdata, source, target, keys), mdata[target].var
    suffix = source if several else None
    columns = {"uncertainty": keys.uncertainty(None, suffix)}
    columns |= {part: keys.uncertainty(part, suffix) for part in ("coupling", "noise", "seeds")}
    columns |= {"interval": keys.interval(suffix), "detection": keys.detection()}
    written = {slot for name, container, slot in _derived.recorded(_slots.record(mdata, keys)) if name == target}
    for column in columns.values():
        if column in written:
            _slots.needed(mdata, target, "var", column, "uncertainty")
    if columns["interval"] in var:
        # the one column that has units
        _slots.check_values(mdata, target, keys)
    table = pd.DataFrame({name: var[column] for name, column in columns.items() if column in var}, index=var.index)
    return {"features": table, **found}


def matches(mdata: MuData, source: str, target: str, keys: Keys) -> pd.DataFrame:
    """Best partners and how far they are to be trusted, see `get.match`."""
    _slots.check_aligned(mdata, (source, target), keys)
    slots = {"match": keys.match(target), "confidence": keys.match_confidence(target)}
    obs = mdata[source].obs
    if source == target or not set(slots.values()) <= set(obs):
        raise KeyError(
            f"No partners of {source!r} in {target!r} for the alignment {keys.key!r}. "
            f"Run `scmmgan.tl.match(mdata, {source!r}, {target!r})`."
        )
    # who else reads the file may have made categories of the names
    name = obs[slots["match"]].astype(object)
    return pd.DataFrame({"match": name, "confidence": obs[slots["confidence"]].astype(np.float32)})


def transferred(mdata: MuData, source: str, target: str, column: str, keys: Keys) -> pd.DataFrame:
    """What cells got of a column of the target, see `get.transfer`."""
    _slots.check_aligned(mdata, (source, target), keys)
    slot, cells = keys.transferred(target, column), mdata[source]
    written = {key for name, container, key in _derived.recorded(_slots.record(mdata, keys)) if name == source}
    if slot not in written:
        start, end = f"{keys.transferred(target, '')}_", "_unassigned"
        there = [key[len(start) : -len(end)] for key in sorted(written) if key.startswith(start) and key.endswith(end)]
        raise missing_key(
            f"column of {target!r} that {source!r} got", column, there,
            f"Run `scmmgan.tl.transfer(mdata, {source!r}, {target!r}, obs={column!r})`.",
        )  # fmt: skip
    labels = _slots.added(mdata, keys, "transfer").get(source, {}).get(slot)
    parts = ("unassigned", "spread" if labels is None else "probability")
    found = {"value": _slots.needed(mdata, source, "obs", slot, "transfer").copy()}
    found |= {
        part: _slots.needed(mdata, source, "obs", keys.transferred(target, column, part), "transfer") for part in parts
    }
    if labels is not None:
        shares = np.asarray(_slots.needed(mdata, source, "obsm", slot, "transfer"))
        found |= {f"share_{label}": shares[:, i].copy() for i, label in enumerate(labels)}
    return pd.DataFrame(found, index=cells.obs_names)


def importance(
    mdata: MuData, source: str, target: str, features: str | Sequence[str] | None, keys: Keys
) -> pd.DataFrame:
    """Which features of the source drive mapped features, see `get.importance`."""
    _slots.check_aligned(mdata, (source, target), keys)
    found = _slots.added(mdata, keys, "importance").get(source, {}).get(target)
    if found is None:
        raise KeyError(
            f"No importance of features of {source!r} for {target!r} in the alignment {keys.key!r}. "
            f"Run `scmmgan.tl.importance(mdata, {source!r}, {target!r}, features=...)`."
        )
    return chosen_rows(pd.DataFrame(found), "feature", features, "importance")


def chosen_rows(table: pd.DataFrame, column: str, wanted: str | Sequence[str] | None, tool: str) -> pd.DataFrame:
    """A copy of the rows of a table whose `column` is wanted, in that order; all by default."""
    if wanted is None:
        return table.reset_index(drop=True)
    names, there = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted)), list(table[column].unique())
    if unknown := [name for name in names if name not in there]:
        raise KeyError(f"No {tool} of {unknown}. Found: {there}. Run `scmmgan.tl.{tool}` for them.")
    return pd.concat([table[table[column] == name] for name in names], ignore_index=True)


def places(mdata: MuData, source: str, target: str, keys: Keys) -> pd.DataFrame:
    """Where cells were placed, see `get.coordinates`."""
    found = _slots.check_aligned(mdata, (source, target), keys)
    used = _slots.added(mdata, keys, "coordinates").get(source, {}).get(target)
    slot = keys.coordinates(target)
    if used is None or slot not in mdata[source].obsm:
        raise KeyError(f"Cells of {source!r} have no place in {target!r}. Run `scmmgan.tl.place(mdata, ...)` first.")
    where = np.asarray(mdata[source].obsm[slot])
    out = pd.DataFrame(where, index=mdata[source].obs_names, columns=list("xyz")[: where.shape[1]])
    spread = keys.spread(target if len(found["modalities"]) > 2 else None)
    out["spread"] = np.asarray(_slots.needed(mdata, source, "obs", spread, "place"), dtype=float)
    if "library_key" in used:
        out["section"] = pd.Categorical(_slots.needed(mdata, source, "obs", keys.section(target), "place"))
    out.attrs = {name: str(value) for name, value in used.items()}
    return out


# --- uncertainty that the coupling leaves --------------------------------------------------------------------------


def has_moments(mdata: MuData, source: str, target: str, keys: Keys, names: Sequence[str] = ()) -> bool:
    """Whether there is the uncertainty that the coupling leaves, with all that it is computed from, and of these features."""
    found = _slots.added(mdata, keys, "uncertainty").get(source, {}).get(target, {})
    there = keys.cell_plan(target) in mdata[source].obsm and keys.landmark_moments()[0] in mdata[target].varm
    return "landmark_mass" in found and there and set(names) <= set(mdata[target].var_names)


def moments(
    mdata: MuData, source: str, target: str, features: str | Sequence[str], keys: Keys
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, list[str]]:
    """The plan of the cells, mass of the landmarks, mean and variance of chosen features in them, matched shares, names."""
    features_then = _slots.check_aligned(mdata, (source, target), keys)["var_names"][target]
    other, table = mdata[target], uncertainty_record(mdata, source, target, keys)
    if not has_moments(mdata, source, target, keys):
        raise KeyError(
            f"The uncertainty from {source!r} to {target!r} is not that of the coupling. "
            f"Run `scmmgan.tl.uncertainty(mdata, {source!r}, {target!r})`."
        )
    names = listed(features)
    at = other.var_names.get_indexer(pd.Index(names, dtype=object))
    if unknown := [name for name, i in zip(names, at) if i < 0 or name not in features_then]:
        raise missing_key(f"feature in {target!r}", unknown[0], [f for f in other.var_names if f in set(features_then)])
    _slots.check_values(mdata, target, keys)
    mean, variance = (np.asarray(other.varm[name])[at].T for name in keys.landmark_moments())
    unmatched = _slots.unmatched(mdata, source, target, keys)
    matched = None if unmatched is None else 1 - unmatched.astype(np.float32)
    return (
        mdata[source].obsm[keys.cell_plan(target)],
        np.asarray(table["landmark_mass"]),
        mean,
        variance,
        matched,
        names,
    )


def relative(variance: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Variance (n × g) over that in the population (g,), NaN for features that do not vary there."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, variance / total, np.nan).astype(np.float32)
