"""New cells → values of the features that a trained model knows, by name, and their batches."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgan.data import modality as _modality
from scmmgan.data.known import as_text
from scmmgan.model.defaults import MAX_MISSING, UNITS_FACTOR
from scmmgan.model.problem import Values
from scmmgan.model.space.scratch import columns_of

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scmmgan.model.nets.trained import Input, Trained, TrainedLatent

logger = logging.getLogger("scmmgan")


@dataclass(frozen=True)
class Query:
    """New cells: `values` (n × g', float32) of the model's features at `columns`; `batch` (n,): codes, -1 unknown.

    `counts` (n × g'', of the features at `counted`), where there are some.
    """

    values: Values
    columns: np.ndarray
    batch: np.ndarray
    counts: Values | None = None
    counted: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))


def modality_of(cells: AnnData | MuData, source: str) -> AnnData:
    """The new cells; TypeError, KeyError or ValueError where there are none."""
    from anndata import AnnData
    from mudata import MuData

    if not isinstance(cells, AnnData | MuData):
        raise TypeError(f"`cells` must be an AnnData, or a MuData with {source!r}, got {type(cells).__name__}.")
    found = _modality.modality(cells, source) if isinstance(cells, MuData) else cells
    _modality.check_not_lazy(found, source)
    if not found.n_obs:
        raise ValueError("`cells` has no cells.")
    return found


def read_query(cells: AnnData, source: str, model: Trained | TrainedLatent) -> Query:
    """Values and batches of new cells of `source`, read as its training cells were."""
    of, features = model.inputs[source], pd.Index(model.features[source])
    if of.covariates:
        raise ValueError(
            f"{source!r} was aligned with `covariates`, whose effect in new cells the model does not know. Align without, or "
            "take their effect out of the values first."
        )
    if of.use_rep is not None:
        values = _modality.read_values(cells, source, use_rep=of.use_rep)
        if values.shape[1] != len(features):
            raise ValueError(
                f"obsm[{of.use_rep!r}] of the new cells has {values.shape[1]} columns, that of the training cells had "
                f"{len(features)}. Compute both in one space."
            )
        return Query(values, np.arange(len(features)), _batches(cells, source, of))
    if not cells.var_names.is_unique:
        twice = cells.var_names[cells.var_names.duplicated()][0]
        raise ValueError(f"var_names of the new cells are not unique, e.g. {twice!r}. Run `var_names_make_unique()`.")
    needed = model.needed(source)
    own = cells.var_names.astype(object).get_indexer(features[needed])
    _check_missing(features[needed[own < 0]], model.weights(source)[needed[own < 0]], len(needed), source)
    values = _modality.read_values(cells, source, layer=of.layer, columns=own[own >= 0])
    _warn_of_units(model.scale(values, needed[own >= 0], source), source)
    batch = _batches(cells, source, of)
    if of.counts is None or not model.imputations.get(source):
        return Query(values, needed[own >= 0], batch)
    counts = _modality.counts_of(cells, of.counts) if of.counts in cells.layers else None
    if counts is None:
        logger.warning(
            "The new cells of %r have no counts (layers[%r]): features that only the other modality has are predicted from mapped "
            "cells alone, otherwise than those of the training cells.", source, of.counts,
        )  # fmt: skip
        return Query(values, needed[own >= 0], batch)
    at = features.get_indexer(cells.var_names.astype(object))
    return Query(values, needed[own >= 0], batch, columns_of(counts, np.flatnonzero(at >= 0)), at[at >= 0])


def _check_missing(names: pd.Index, weights: np.ndarray, total: int, source: str) -> None:
    """ValueError where features that carry half of the model space's variance are not there; fewer are named in a warning."""
    if not len(names):
        return
    # the heaviest first
    listed = ", ".join(repr(str(name)) for name in names[np.argsort(-weights, kind="stable")][:5])
    listed += ", ..." if len(names) > 5 else ""
    said = f"{len(names)} of {total} features that {source!r} is mapped by are missing in the new cells ({listed})"
    if weights.sum() > MAX_MISSING:
        raise ValueError(
            f"{said}: they carry {weights.sum():.0%} of the variance of the model, and {MAX_MISSING:.0%} is the most that may "
            "be missing. Check that `var_names` are spelt as in the training cells."
        )
    logger.warning(
        "%s, %.0f %% of the variance of the model: they count as the training mean.", said, 100 * weights.sum()
    )


def _warn_of_units(scale: float, source: str) -> None:
    """Log a warning where values of new cells are many times those of training cells, or a small part of them."""
    if np.isfinite(scale) and not 1 / UNITS_FACTOR < scale < UNITS_FACTOR:
        logger.warning(
            "Values of the new cells are %.2g times those that %r was aligned with, on average: in other units (scaled, normalised "
            "otherwise)? What is mapped is right in the units of then only.", scale, source,
        )  # fmt: skip


def _batches(cells: AnnData, source: str, of: Input) -> np.ndarray:
    """Codes (n,) of the cells' batches, -1 where nothing says which; ValueError on one that was not trained on."""
    if not of.batches:
        return np.zeros(cells.n_obs, dtype=int)
    if of.batch not in cells.obs:
        logger.info(
            "The new cells of %r have no obs column %r that names their batch: each is what it would be in all batches, on "
            "average.", source, of.batch,
        )  # fmt: skip
        return np.full(cells.n_obs, -1)
    names = as_text(cells.obs[of.batch])
    if unknown := sorted(set(names.dropna()) - set(of.batches)):
        raise ValueError(
            f"The model was not trained on batches {unknown[:5]} of {source!r}; it knows {list(of.batches)[:10]}. Set "
            f"obs[{of.batch!r}] to None where a batch is new: pooled statistics serve then."
        )
    return pd.Categorical(names, categories=list(of.batches)).codes.astype(int)
