"""What other tools wrote: mapped values in layers or obsm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data.modality import part

if TYPE_CHECKING:
    from mudata import MuData


def mapped(mdata: MuData, source: str, target: str, key: str) -> tuple[np.ndarray, pd.Index] | None:
    """Mapped values (cells × features) of another tool, and the features' names; None where the source has none."""
    adata, features = mdata[source], mdata[target].var_names
    if key in adata.layers:
        there = adata.var_names[adata.var_names.isin(features)]
        return np.asarray(part(adata, slice(None), adata.var_names.isin(features), key)), there
    if key not in adata.obsm:
        return None
    values: Any = adata.obsm[key]
    if isinstance(values, pd.DataFrame):
        there = features[features.isin(values.columns)]
        return values[there].to_numpy(dtype=np.float32), there
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if values.shape[1] != len(features):
        raise ValueError(
            f"obsm[{key!r}] of {source!r} has {values.shape[1]} columns and {target!r} {len(features)} features: store a "
            "DataFrame with the features' names."
        )
    return values, features
