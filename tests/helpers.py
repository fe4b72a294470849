"""What several test files read from the slots of an alignment."""

from __future__ import annotations

import mudata as md
import numpy as np

import scmmgan as smm
from scmmgan.model.transform import Transform


def transform_of(mdata: md.MuData, name: str) -> Transform:
    stored = mdata.uns["scmmgan"]["model"]["transforms"][name]
    return Transform(**{key: np.asarray(value) for key, value in stored.items()})


def own_space(mdata: md.MuData, name: str) -> np.ndarray:
    """Model-space cells of a modality, from its own block of the embedding."""
    model = smm.get.model(mdata)
    start = sum(model.widths[m] for m in model.modalities[: model.modalities.index(name)])
    return mdata[name].obsm["X_scmmgan"][:, start : start + model.widths[name]] * model.block_sd[name]
