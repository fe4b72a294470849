"""What `tl.uncertainty` wrote, read back: the table of two modalities, and variances of chosen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan import _slots
from scmmgan._domain import missing_key
from scmmgan._keys import Keys
from scmmgan.model import uncertainty as model

if TYPE_CHECKING:
    from mudata import MuData


def uncertainty_record(mdata: MuData, source: str, target: str, keys: Keys) -> dict[str, Any]:
    """What `tl.uncertainty` wrote to `uns` for two modalities; KeyError where it was not run."""
    found = _slots.record(mdata, keys).get("uncertainty", {}).get(source, {}).get(target)
    if found is None:
        raise KeyError(
            f"No uncertainty from {source!r} to {target!r} in the alignment {keys.key!r}. "
            f"Run `scmmgan.tl.uncertainty(mdata, {source!r}, {target!r})`."
        )
    return dict(found)


def coupling_variance(
    mdata: MuData, source: str, target: str, features: str | Sequence[str], keys: Keys
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Conditional variance (cells × features), variance in the population (features,), names."""
    several = len(_slots.check_aligned(mdata, (source, target), keys)["modalities"]) > 2
    cells, other, plan = mdata[source], mdata[target], keys.cell_plan(target)
    table = uncertainty_record(mdata, source, target, keys)
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
