"""What `get` puts together from the slots of an alignment."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.data.modality import missing_key

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def joint(mdata: MuData, keys: Keys) -> AnnData:
    """Joint embedding of all aligned cells, see `get.embedding`."""
    from anndata import AnnData

    names = _slots.config(mdata, keys)["modalities"]
    found = _slots.check_aligned(mdata, names, keys)
    parts = []
    for name in names:
        obs = mdata[name].obs.copy()
        # categories of one name may differ between modalities
        obs = obs.astype({c: object for c in obs if isinstance(obs[c].dtype, pd.CategoricalDtype)})
        obs["modality"] = name
        parts.append(obs.set_axis([f"{name}:{cell}" for cell in mdata[name].obs_names], axis=0))
    # a column without any value in one modality would decide the type of the others'
    obs = pd.concat([part.dropna(axis=1, how="all") for part in parts])
    for column in obs.select_dtypes(object).columns:
        obs[column] = pd.Categorical(obs[column].where(obs[column].isna(), obs[column].astype(str)))
    obs["modality"] = pd.Categorical(obs["modality"], categories=names)
    var = pd.DataFrame(
        {"modality": np.repeat(names, [found["widths"][m] for m in names])},
        index=[f"{m}_{i}" for m in names for i in range(found["widths"][m])],
    )
    x = np.vstack([np.asarray(mdata[name].obsm[keys.embedding]) for name in names])
    return AnnData(x, obs=obs, var=var)


def copy_places(cells: AnnData, out: AnnData) -> None:
    """Coordinates and pictures of the source's cells."""
    if "spatial" in cells.obsm:
        out.obsm["spatial"] = np.array(cells.obsm["spatial"])
    if "spatial" in cells.uns:
        out.uns["spatial"] = deepcopy(cells.uns["spatial"])


def record(mdata: MuData, source: str, target: str, keys: Keys) -> dict[str, Any]:
    """What `tl.uncertainty` wrote to `uns` for two modalities; KeyError where it was not run."""
    found = _slots.record(mdata, keys).get("uncertainty", {}).get(source, {}).get(target)
    if found is None:
        raise KeyError(
            f"No uncertainty from {source!r} to {target!r} in the alignment {keys.key!r}. "
            f"Run `scmmgan.tl.uncertainty(mdata, {source!r}, {target!r})`."
        )
    return dict(found)


def of_coupling(
    mdata: MuData, source: str, target: str, features: str | Sequence[str], keys: Keys
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Conditional variance (cells × features), variance in the population (features,), names."""
    from scmmgan.model.evidence import uncertainty as model

    several = len(_slots.check_aligned(mdata, (source, target), keys)["modalities"]) > 2
    cells, other, plan = mdata[source], mdata[target], keys.cell_plan(target)
    table = record(mdata, source, target, keys)
    if "landmark_mass" not in table or plan not in cells.obsm or keys.landmark_moments()[0] not in other.varm:
        raise KeyError(
            f"The uncertainty from {source!r} to {target!r} is not that of the coupling. "
            f"Run `scmmgan.tl.uncertainty(mdata, {source!r}, {target!r})`."
        )
    names = [features] if isinstance(features, str) else [str(name) for name in features]
    at = other.var_names.get_indexer(pd.Index(names, dtype=object))
    if (at < 0).any():
        raise missing_key(f"feature in {target!r}", names[int((at < 0).argmax())], list(other.var_names))
    mean, variance = (np.asarray(other.varm[name])[at].T for name in keys.landmark_moments())
    total = model.total_variance(np.asarray(table["landmark_mass"]), mean, variance)
    found = model.conditional_variance(cells.obsm[plan], mean, variance)
    column = keys.unmatched(target if several else None)
    if column in cells.obs:
        lost = model.lost(1 - cells.obs[column].to_numpy(dtype=np.float32))[:, None]
        found += (lost * (total - found)).astype(np.float32)
    return found, total, names


def summary(mdata: MuData, source: str, target: str, keys: Keys) -> dict[str, Any]:
    """Uncertainty of all mapped features, see `get.uncertainty_summary`."""
    several = len(_slots.check_aligned(mdata, (source, target), keys)["modalities"]) > 2
    found, var = record(mdata, source, target, keys), mdata[target].var
    suffix = source if several else None
    columns = {"uncertainty": keys.uncertainty(None, suffix)}
    columns |= {part: keys.uncertainty(part, suffix) for part in ("coupling", "noise", "seeds")}
    columns |= {"interval": keys.interval(suffix), "detection": keys.detection()}
    table = pd.DataFrame({name: var[column] for name, column in columns.items() if column in var}, index=var.index)
    return {"features": table, **found}


def places(mdata: MuData, source: str, target: str, keys: Keys) -> pd.DataFrame:
    """Where cells were placed, see `get.coordinates`."""
    found = _slots.check_aligned(mdata, (source, target), keys)
    used = _slots.record(mdata, keys).get("coordinates", {}).get(source, {}).get(target)
    slot = keys.coordinates(target)
    if used is None or slot not in mdata[source].obsm:
        raise KeyError(f"Cells of {source!r} have no place in {target!r}. Run `scmmgan.tl.place(mdata, ...)` first.")
    where = np.asarray(mdata[source].obsm[slot])
    out = pd.DataFrame(where, index=mdata[source].obs_names, columns=list("xyz")[: where.shape[1]])
    spread = keys.spread(target if len(found["modalities"]) > 2 else None)
    out["spread"] = mdata[source].obs[spread].to_numpy(dtype=float)
    out.attrs = {name: str(value) for name, value in used.items()}
    return out
