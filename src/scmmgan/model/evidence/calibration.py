"""Uncertainty from the coupling, and its calibration on linked features that were held out (METHOD §7)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan.model.coupling import couple as _prior

if TYPE_CHECKING:
    from scmmgan.data.modality import Domain
    from scmmgan.data.read import Problem
    from scmmgan.model.coupling.coupling import Coupling

logger = logging.getLogger("scmmgan")

Pair = tuple[str, str]
FOLDS = 5
LINK_FOLDS = 3  # every one costs a coupling; 5 where fewer than 10 links would be left
MAX_TESTED = 500  # links that are held out and scored


@dataclass(frozen=True)
class Determined:
    """The coupling as used (cells × landmarks, rows sum to 1), matched shares, and the target's moments at landmarks.

    `mass` (m,): of the landmarks under the plan; `score` (g,): uncertainty of features; `cells` (n,): of cells.
    """

    plan: sp.csr_matrix
    weight: np.ndarray
    mass: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    score: np.ndarray
    cells: np.ndarray
    info: dict[str, Any]


def from_coupling(problem: Problem, pair: Pair, coupling: Coupling, kept: np.ndarray, random_state: int) -> Determined:
    """Scores of features and cells from the coupling of the alignment; cells of known pairs without their own pair."""
    from scmmgan.model.evidence import uncertainty

    source, target = (_domain(problem, m) for m in pair)
    plan = _without_own_pair(problem, pair, coupling, random_state)
    plan = uncertainty.widened(plan, source.x, random_state=random_state)
    mean, variance = uncertainty.landmark_moments(target.smoothed, coupling.landmarks.label)
    # shapes alone say of no cell that it has no partner
    weight = coupling.weight.astype(np.float64) if coupling.relaxed else np.ones(len(coupling.weight))
    score, total = uncertainty.explained(plan, weight, mean, variance)
    # what found no partner is as uncertain as the population
    cells = uncertainty.cells(plan, mean, variance, total, kept)
    cells += uncertainty.lost(weight) * (1 - cells)
    mass = uncertainty.landmark_mass(plan, weight)
    return Determined(plan, weight, mass, mean, variance, score, cells, coupling.info)


def _domain(problem: Problem, name: str) -> Domain:
    return next(d for d in problem.domains if d.name == name)


def _alone(problem: Problem, pair: Pair) -> tuple[Problem, Pair]:
    """The problem of two modalities only, and the pair in the order of its tables."""
    domains = [d for d in problem.domains if d.name in pair]
    order = (domains[0].name, domains[1].name)
    tables = {p: t for p, t in problem.tables.items() if p == order}
    pairs = {p: rows for p, rows in problem.pairs.items() if p == order}
    return replace(problem, domains=domains, tables=tables, pairs=pairs), order


def _folds(n: int, random_state: int, folds: int = FOLDS) -> np.ndarray:
    return np.random.default_rng(random_state).permutation(np.arange(n) % folds)


def _without_own_pair(problem: Problem, pair: Pair, coupling: Coupling, random_state: int) -> sp.csr_matrix:
    """The plan, rows of known cells from couplings that did not know their pair.

    Where the others are too few to place cells (shapes decide then) a pair is one of many coordinates, and stays.
    """
    from scmmgan.model.coupling.views import MIN_PROFILES

    alone, order = _alone(problem, pair)
    if order not in alone.pairs or coupling.info["kind"] == "geometry":
        return coupling.plan
    pairs, table = alone.pairs[order], alone.tables.get(order, ())
    n = _prior.landmarks(problem.domains, problem.tables, problem.pairs)
    fold = _folds(len(pairs), random_state)
    if len(table) < _prior.MIN_HELD_OUT and (fold != 0).sum() < MIN_PROFILES:
        return coupling.plan
    plan = coupling.plan.tolil(copy=True)
    column = order.index(pair[0])
    for f in range(FOLDS):
        held = replace(alone, pairs={order: pairs[fold != f]}).couple(random_state, n)[0][pair]
        rows = pairs[fold == f, column]
        plan[rows] = held.plan[rows]
    return plan.tocsr()


def counterparts(problem: Problem, pair: Pair, score: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """Mean scores of features with a linked feature in the source and without, and a rank test that the former are lower."""
    from scipy.stats import mannwhitneyu

    alone, order = _alone(problem, pair)
    if order not in alone.tables:
        return {}
    names = _domain(problem, pair[1]).var_names
    linked = names.isin(alone.tables[order][pair[1]]) & kept & np.isfinite(score)
    rest = ~linked & kept & np.isfinite(score)
    found: dict[str, Any] = {"linked": names[linked].to_numpy(dtype=object)}
    found |= {"n_with": int(linked.sum()), "n_without": int(rest.sum())}
    if linked.any():
        found["with_counterpart"] = float(score[linked].mean())
    if rest.any():
        found["without_counterpart"] = float(score[rest].mean())
    if linked.any() and rest.any():
        found["p"] = float(mannwhitneyu(score[linked], score[rest], alternative="less").pvalue)
    return found


def calibration(problem: Problem, pair: Pair, found: Determined, kept: np.ndarray, random_state: int) -> dict[str, Any]:
    """Predicted scores of linked features that the coupling did not know, and 1 − r² with their partners, carried over."""
    alone, order = _alone(problem, pair)
    if order not in alone.tables:
        return {}
    source, target = (_domain(problem, m) for m in pair)
    parts = []
    for plan, weight, table in _held_out(problem, pair, found, random_state):
        at = target.var_names.get_indexer(pd.Index(table[pair[1]]))
        own = source.zscored(source.var_names.get_indexer(pd.Index(table[pair[0]]))).astype(np.float64)
        values = _predicted(plan, weight, found, at, own * table["sign"].to_numpy())
        parts.append(values.assign(feature=table[pair[1]].to_numpy(dtype=object)))
    if not parts:
        logger.info("%d links are too few to hold some of them out: no calibration.", len(alone.tables[order]))
        return {}
    result = pd.concat(parts, ignore_index=True)
    result = result[kept[target.var_names.get_indexer(pd.Index(result["feature"]))]]
    result = result[["feature", "predicted", "observed"]].reset_index(drop=True)
    return calibrated(result, "held-out links")


def calibrated(table: pd.DataFrame, source: str) -> dict[str, Any]:
    """A calibration table with its origin and rank correlation."""
    from scipy.stats import spearmanr

    found: dict[str, Any] = {"calibration": table, "calibration_source": source}
    if len(table) > 2 and table["predicted"].nunique() > 1 and table["observed"].nunique() > 1:
        found["calibration_spearman"] = float(spearmanr(table["predicted"], table["observed"])[0])
    return found


def _held_out(
    problem: Problem, pair: Pair, found: Determined, random_state: int
) -> Iterator[tuple[sp.csr_matrix, np.ndarray, pd.DataFrame]]:
    """Plans and matched shares without the links of a table, fold by fold; at most 500 links in all."""
    from scmmgan.model.evidence import heldout as diagnosis
    from scmmgan.model.evidence import uncertainty

    alone, order = _alone(problem, pair)
    table, x = alone.tables[order], _domain(alone, pair[0]).x
    n = _prior.landmarks(problem.domains, problem.tables, problem.pairs)
    # links that share a feature are held out together
    groups = diagnosis.link_groups(*(table[m].to_numpy(dtype=str) for m in order))
    fold = _folds(groups.max() + 1, random_state, LINK_FOLDS)[groups]
    if _fewest(fold) < _prior.MIN_HELD_OUT:
        fold = _folds(groups.max() + 1, random_state)[groups]
    if found.info["kind"] != "links":
        # all of them are held out
        yield found.plan, found.weight, table.iloc[:MAX_TESTED]
        return
    if _fewest(fold) < _prior.MIN_HELD_OUT:
        return
    for f in range(fold.max() + 1):
        rest = {order: table[fold != f].reset_index(drop=True)}
        held = replace(alone, tables=rest).couple(random_state, n)[0][pair]
        plan = uncertainty.widened(held.plan, x, random_state=random_state)
        yield plan, held.weight, table[fold == f].iloc[: MAX_TESTED // LINK_FOLDS]


def _fewest(fold: np.ndarray) -> int:
    """How many are left at least when one fold is held out."""
    return len(fold) - int(np.bincount(fold).max())


def _predicted(
    plan: sp.csr_matrix, weight: np.ndarray, found: Determined, at: np.ndarray, own: np.ndarray
) -> pd.DataFrame:
    """Scores of features under a plan, and 1 − r² of their carried-over means with the source's features (n × k)."""
    from scmmgan.model.evidence import uncertainty

    predicted, _ = uncertainty.explained(plan, weight, found.mean[:, at], found.variance[:, at])
    carried = np.asarray(plan @ found.mean[:, at].astype(np.float64))
    carried, own = carried - carried.mean(0), own - own.mean(0)
    r = (carried * own).sum(0) / np.maximum(np.sqrt((carried**2).sum(0) * (own**2).sum(0)), 1e-12)
    return pd.DataFrame({"predicted": predicted, "observed": 1 - np.clip(r, 0, 1) ** 2})
