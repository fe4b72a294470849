"""Split-conformal intervals for measured values, from known pairs that the alignment was not given (METHOD §7)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan.data import known as _known
from scmmgan.data import modality as _domain
from scmmgan.data import read as _problem
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.evidence import calibration as _determined
from scmmgan.model.space.smoothing import BatchedMatrix

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.data.read import Problem

logger = logging.getLogger("scmmgan")

Pair = tuple[str, str]
BLOCK = 1_024  # features whose mapped values exist at one time


def least_pairs(coverage: float) -> int:
    """The fewest pairs whose intervals are finite: k with ⌈(k + 1) coverage⌉ ≤ k."""
    return int(np.ceil(coverage / (1 - coverage) - 1e-9))


def calibration_pairs(
    mdata: MuData, pair: Pair, pairs: str | pd.DataFrame | None, coverage: float, problem: Problem
) -> np.ndarray | None:
    """Row numbers (k × 2) of known pairs of which no cell belongs to a pair that the alignment was given."""
    if pairs is None:
        return None
    known = _known.read_pairs(mdata, pair, pairs)[pair]
    used = problem.pairs.get(pair)
    if used is None and pair[::-1] in problem.pairs:
        used = problem.pairs[pair[::-1]][:, ::-1]
    total = len(known)
    if used is not None:
        known = known[~np.isin(known[:, 0], used[:, 0]) & ~np.isin(known[:, 1], used[:, 1])]
    if len(known) < (least := least_pairs(coverage)):
        raise ValueError(
            f"{len(known)} of {total} `pairs` hold no cell that the alignment was given as a pair; intervals of coverage "
            f"{coverage:g} need at least {least} such. Keep some pairs out of `tl.align(pairs=...)`."
        )
    if len(known) < total:
        logger.warning(
            "%d of %d pairs hold cells of the alignment's own pairs and are left out.", total - len(known), total
        )
    return known


def conformal(
    mdata: MuData,
    problem: Problem,
    params: Mapping[str, Any],
    pair: Pair,
    rows: np.ndarray,
    coverage: float,
    score: np.ndarray,
    kept: np.ndarray,
    random_state: int,
    keys: Keys,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Half-widths (g,); coverage that cross-fitting reached, and `score` against the error in the smoothed layer."""
    from scmmgan.model.evidence import uncertainty

    source, target = pair
    domain = next(d for d in problem.domains if d.name == target)
    measured = measured_rows(mdata, problem, params, target, rows[:, 1])
    g = measured.shape[1]
    half, reached, error = np.empty(g), np.empty(g), np.empty(g)
    for start in range(0, g, BLOCK):
        at = np.arange(start, min(start + BLOCK, g))
        mapped = _slots.mapped_values(mdata, source, target, domain.var_names[at].tolist(), keys)[0][rows[:, 0]]
        block = measured[:, at]
        dense = np.asarray(block.todense()) if sp.issparse(block) else block
        residuals = np.abs(dense.astype(np.float64) - mapped)
        half[at] = uncertainty.half_widths(residuals, coverage)
        # the same folds for all features
        reached[at] = uncertainty.reached_coverage(residuals, coverage, np.random.default_rng(random_state))
        smoothed = domain.smoothed.columns(at)[rows[:, 1]]
        with np.errstate(invalid="ignore", divide="ignore"):
            error[at] = ((smoothed - mapped) ** 2).mean(0) / np.maximum(domain.transform.sd[at] ** 2, 1e-300)
    features = domain.var_names.to_numpy(dtype=object)[kept]
    table = pd.DataFrame({"feature": features, "reached": reached[kept]})
    points = pd.DataFrame({"feature": features, "predicted": score[kept], "observed": error[kept]})
    return half, {
        "coverage": coverage,
        "coverage_reached": float(reached[kept].mean()),
        "coverage_table": table,
        "n_pairs": len(rows),
        **_determined.calibrated(points, "known pairs"),
    }


def measured_rows(
    mdata: MuData, problem: Problem, params: Mapping[str, Any], name: str, rows: np.ndarray
) -> np.ndarray | sp.csr_matrix:
    """Cells of the layer that was read, not smoothed; batches shifted and scaled as the alignment did."""
    values = read_layer(mdata, name, params)[rows]
    domain = next(d for d in problem.domains if d.name == name)
    if not isinstance(domain.smoothed, BatchedMatrix):
        return values
    values = values.copy() if isinstance(values, np.ndarray) else values.toarray()
    for members, scale, shift in zip(domain.smoothed.rows, domain.smoothed.scale, domain.smoothed.shift):
        inside = np.isin(rows, members)
        values[inside] = values[inside] * scale + shift
    return values


def read_layer(mdata: MuData, name: str, params: Mapping[str, Any]) -> np.ndarray | sp.csr_matrix:
    """The layer of a modality that the alignment read."""
    return _domain.read_matrix(mdata, name, layer=_problem.argument(params, "layer", name))[0]
