"""Uncertainty of mapped features from the coupling, and its calibration on linked features that were held out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.stats import mannwhitneyu, spearmanr

from scmmgan.model.coupling.couple import Domains, couple, landmark_count
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.defaults import CALIBRATION_FOLDS, FOLDS, MAX_CALIBRATED, MIN_TESTED_LINKS, PAIRS_DECIDE
from scmmgan.model.evidence import uncertainty
from scmmgan.model.evidence.heldout import link_groups
from scmmgan.model.evidence.populations import Table
from scmmgan.model.problem import Links, Pair, Problem
from scmmgan.model.progress import tracked
from scmmgan.model.space.linear import column_correlation

logger = logging.getLogger("scmmgan")


@dataclass(frozen=True)
class CouplingUncertainty:
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
    kind: str


def from_coupling(
    problem: Problem, domains: Domains, pair: Pair, coupling: Coupling, kept: np.ndarray, random_state: int
) -> CouplingUncertainty:
    """Scores of features and cells from the coupling of the alignment; cells of known pairs without their own pair."""
    source, target = (domains[m] for m in pair)
    plan = _without_own_pair(problem, domains, pair, coupling, random_state)
    plan = uncertainty.widened(plan, source.x, random_state=random_state)
    mean, variance = uncertainty.landmark_moments(target.smoothed, coupling.landmarks.label)
    # shapes alone say of no cell that it has no partner
    weight = coupling.weight.astype(np.float64) if coupling.relaxed else np.ones(len(coupling.weight))
    score, total = uncertainty.explained(plan, weight, mean, variance)
    # what found no partner is as uncertain as the population
    cells = uncertainty.cells(plan, mean, variance, total, kept)
    cells += uncertainty.without_partner(weight) * (1 - cells)
    mass = uncertainty.landmark_mass(plan, weight)
    return CouplingUncertainty(plan, weight, mass, mean, variance, score, cells, coupling.kind)


def _folds(n: int, random_state: int, folds: int) -> np.ndarray:
    return np.random.default_rng(random_state).permutation(np.arange(n) % folds)


def _without_own_pair(
    problem: Problem, domains: Domains, pair: Pair, coupling: Coupling, random_state: int
) -> sp.csr_matrix:
    """The plan, rows of known cells from couplings that did not know their pair.

    Where the others are too few to place cells (shapes decide then) a pair is one of many coordinates, and stays; couplings
    through a third modality knew none.
    """
    known = problem.of(*pair)
    if known.pairs is None or coupling.kind in ("geometry", "through"):
        return coupling.plan
    n = landmark_count(problem)
    fold = _folds(len(known.pairs), random_state, FOLDS)
    if known.n_links < MIN_TESTED_LINKS and (fold != 0).sum() < PAIRS_DECIDE:
        return coupling.plan
    plan = coupling.plan.tolil(copy=True)
    column = known.names.index(pair[0])
    for f in tracked(range(FOLDS), "known cells"):
        part = problem.only(*pair, pairs=known.pairs[fold != f])
        held = couple(part, domains, random_state=random_state, n_landmarks=n)[0][pair]
        rows = known.pairs[fold == f, column]
        plan[rows] = held.plan[rows]
    return plan.tocsr()


def counterparts(problem: Problem, pair: Pair, score: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """Mean scores of features with a linked feature in the source and without, and a rank test that the former are lower."""
    known = problem.of(*pair)
    if known.links is None:
        return {}
    names = problem.modalities[pair[1]].features
    has = np.zeros(len(names), dtype=bool)
    has[known.positions(pair[1])] = True
    linked, rest = (of & kept & np.isfinite(score) for of in (has, ~has))
    found: dict[str, Any] = {"linked": names[linked], "n_with": int(linked.sum()), "n_without": int(rest.sum())}
    if linked.any():
        found["with_counterpart"] = float(score[linked].mean())
    if rest.any():
        found["without_counterpart"] = float(score[rest].mean())
    if linked.any() and rest.any():
        found["p"] = float(mannwhitneyu(score[linked], score[rest], alternative="less").pvalue)
    return found


def calibration(
    problem: Problem, domains: Domains, pair: Pair, found: CouplingUncertainty, kept: np.ndarray, random_state: int
) -> dict[str, Any]:
    """Predicted scores of linked features that the coupling did not know, and 1 − r² with their partners, carried over."""
    known = problem.of(*pair)
    if known.links is None:
        return {}
    parts, forward = [], known.names == pair
    for plan, weight, links in _held_out(problem, domains, pair, found, random_state):
        own_at, at = (links.first, links.second) if forward else (links.second, links.first)
        own = domains[pair[0]].zscored(own_at).astype(np.float64) * links.sign
        predicted, _ = uncertainty.explained(plan, weight, found.mean[:, at], found.variance[:, at])
        unit = found.mean[:, at] / domains[pair[1]].transform.sd[at]
        r = column_correlation(np.asarray(plan @ unit.astype(np.float64)), own)
        parts.append((at, predicted, 1 - np.clip(r, 0, 1) ** 2))
    if not parts:
        logger.info("%d links are too few to hold some of them out: no calibration.", known.n_links)
        return {}
    at, predicted, observed = (np.concatenate(of) for of in zip(*parts))
    used = kept[at]
    features = problem.modalities[pair[1]].features
    return calibrated({"feature": features[at[used]], "predicted": predicted[used], "observed": observed[used]}, "held-out links")  # fmt: skip


def calibrated(table: Table, source: str) -> dict[str, Any]:
    """A calibration table with its origin and rank correlation."""
    found: dict[str, Any] = {"calibration": table, "calibration_source": source}
    predicted, observed = table["predicted"], table["observed"]
    if len(predicted) > 2 and min(len(np.unique(column)) for column in (predicted, observed)) > 1:
        found["calibration_spearman"] = float(spearmanr(predicted, observed)[0])
    return found


def _held_out(
    problem: Problem, domains: Domains, pair: Pair, found: CouplingUncertainty, random_state: int
) -> Iterator[tuple[sp.csr_matrix, np.ndarray, Links]]:
    """Plans and matched shares without some of the links, fold by fold, and these; at most 500 links in all."""
    links, x = problem.of(*pair).links, domains[pair[0]].x
    if links is None:
        return
    n = landmark_count(problem)
    # links that share a feature are held out together
    groups = link_groups(links.first, links.second)
    fold = _folds(groups.max() + 1, random_state, CALIBRATION_FOLDS)[groups]
    if _fewest(fold) < MIN_TESTED_LINKS:
        fold = _folds(groups.max() + 1, random_state, FOLDS)[groups]
    if found.kind != "links":
        # all of them are held out
        yield found.plan, found.weight, links.take(np.arange(min(len(links), MAX_CALIBRATED)))
        return
    if _fewest(fold) < MIN_TESTED_LINKS:
        return
    for f in tracked(range(fold.max() + 1), "held-out links"):
        part = problem.only(*pair, links=links.take(fold != f))
        held = couple(part, domains, random_state=random_state, n_landmarks=n)[0][pair]
        plan = uncertainty.widened(held.plan, x, random_state=random_state)
        yield plan, held.weight, links.take(np.flatnonzero(fold == f)[: MAX_CALIBRATED // CALIBRATION_FOLDS])


def _fewest(fold: np.ndarray) -> int:
    """How many are left at least when one fold is held out."""
    return len(fold) - int(np.bincount(fold).max())
