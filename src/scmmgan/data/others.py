"""What other tools wrote: names of slots, joint embeddings in obsm, mapped values in layers or obsm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data.modality import part, read_values

if TYPE_CHECKING:
    from mudata import MuData


def keys_by_seed(given: Mapping[str, str | Sequence[str]] | None, argument: str) -> dict[str, tuple[str, ...]]:
    """Keys under each name, one for each seed; TypeError where they are none."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"`{argument}` must be a dict from names to keys, e.g. {{'other': 'X_other'}}, got {given!r}.")
    found = {}
    for name, keys in (given or {}).items():
        listed = pd.api.types.is_list_like(keys) and not isinstance(keys, Mapping)
        several = [keys] if isinstance(keys, str) else list(keys) if listed else []
        if not several or not all(isinstance(key, str) for key in several):
            raise TypeError(f"`{argument}[{name!r}]` must be a key, or a list of one for each seed, got {keys!r}.")
        found[str(name)] = tuple(several)
    return found


def embedding(mdata: MuData, name: str, key: str) -> np.ndarray:
    """Joint embedding (n × d) of another tool, of one modality."""
    if key not in mdata[name].obsm and key in mdata.obsm:
        raise KeyError(
            f"No obsm key in {name!r} {key!r}. `mdata.obsm` has it, for the cells of all modalities: store the rows of each in its "
            "own obsm."
        )
    found = read_values(mdata[name], name, use_rep=key)
    if not found.shape[1]:
        raise ValueError(f"obsm {key!r} of {name!r} has no columns: there is nothing to score.")
    return np.asarray(found.toarray() if hasattr(found, "toarray") else found)


def mapped(mdata: MuData, source: str, target: str, key: str) -> tuple[np.ndarray, pd.Index] | None:
    """Mapped values (cells × features) of another tool, and the features' names; None where the source has none."""
    adata, features = mdata[source], mdata[target].var_names
    if key in adata.layers:
        where, columns = f"layers[{key!r}]", adata.var_names
        values: Any = part(adata, slice(None), columns.isin(features), key)
        there = columns[columns.isin(features)]
    elif key not in adata.obsm:
        return None
    elif isinstance(values := adata.obsm[key], pd.DataFrame):
        where, columns = f"obsm[{key!r}]", values.columns
        if not columns.is_unique:
            raise ValueError(f"{where} of {source!r} has columns of one name: drop or rename them.")
        there = features[features.isin(columns)]
        values = values[there].to_numpy(dtype=np.float32)
    else:
        where, columns, there = f"obsm[{key!r}]", features, features
        values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
        if values.shape[1] != len(features):
            raise ValueError(
                f"{where} of {source!r} has {values.shape[1]} columns and {target!r} {len(features)} features: store a "
                "DataFrame with the features' names."
            )
    if not len(there):
        raise ValueError(
            f"{where} of {source!r} has none of the features of {target!r}: columns are named like {list(columns[:3])}, features "
            f"like {list(features[:3])}. Store a DataFrame with the features' names in obsm."
        )
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(
            f"{where} of {source!r} holds {bad} NaN or infinite values. Leave those features out, or impute them."
        )
    return np.asarray(values), there
