"""Matching of cells over linked features, improved by canonical variates of the matches (the MaxFuse algorithm, from its paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.coupling.views import unit_rows
from scmmgan.model.defaults import (
    ASSIGNED_CELLS,
    CCA_RIDGE,
    MATCHING_CLUSTERS,
    MATCHING_DROPPED,
    MATCHING_OWN,
    MATCHING_RANK,
    MATCHING_ROUNDS,
    MATCHING_VARIATES,
    MATCHING_WIDTH,
    MATCHING_WIDTHS,
    PANEL_FEATURES,
)
from scmmgan.model.nets.baselines import Cells, Read
from scmmgan.model.nets.latent import Fitted
from scmmgan.model.problem import Pair, Problem
from scmmgan.model.space.diffusion import nearest
from scmmgan.model.space.linear import canonical_axes
from scmmgan.model.space.smoothing import Matrix

Parts = list[tuple[np.ndarray, np.ndarray]]


class Matches:
    """Values of the best match of each cell, by the correlation of canonical variates."""

    def __init__(self, z: Cells, matrices: Mapping[str, Matrix]) -> None:
        self.z, self.matrices = z, dict(matrices)

    def decode(self, z: np.ndarray, target: str, features: np.ndarray) -> np.ndarray:
        """Values (n × f, float32) that the target's nearest cell of each of z (n × q) measured."""
        near = nearest(z, self.z[target], 1)[0][:, 0]
        return self.matrices[target].columns(features)[near].astype(np.float32)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Nothing: new cells are matched with all of the others."""
        return {}, {}


def fit(problem: Problem, settings: Mapping[str, Any]) -> Fitted:
    """Match, refine, filter and propagate; canonical variates are the joint space."""
    known = next(iter(problem.known.values()))
    if known.links is None:
        raise ValueError("`method='links-matching'` needs links, and none were found. Give `links`.")
    (a, b), seed = known.names, settings["random_state"]
    read = Read.of(problem, seed)
    weak = bool(settings["options"]["weak_links"])
    own, rounds, dropped = MATCHING_OWN[weak], MATCHING_ROUNDS[weak], MATCHING_DROPPED[weak]
    x = {m: of[:, : MATCHING_WIDTHS[len(problem.modalities[m].features) <= PANEL_FEATURES]] for m, of in read.x.items()}
    cluster = {m: _clusters(of, (known.labels or {}).get(m), seed) for m, of in x.items()}
    pivots = first_pivots(read.linked(known.links), cluster, parts(len(x[a]), len(x[b]), seed), own)
    for i in range(rounds):
        smooth = _smooth(_variates(x, (a, b), pivots), cluster, own)
        pivots = assigned(smooth, parts(len(x[a]), len(x[b]), seed + 1 + i))
    score = _scores(_smooth(_variates(x, (a, b), pivots), cluster, own), pivots)
    kept = pivots[:, np.sort(np.argsort(-score, kind="stable")[: len(score) - int(dropped * len(score))])]
    z = {m: unit_rows(of[:, :MATCHING_WIDTH]) for m, of in zip((a, b), _variates(x, (a, b), kept))}
    found = {m: propagated(smoothed(x[m], cluster[m], own), *order) for m, order in ((a, kept), (b, kept[::-1]))}
    info: dict[str, Any] = {"pivots": pivots.shape[1], "kept": kept.shape[1]}
    for m, other, rows in ((a, b, kept[0]), (b, a, kept[1])):
        cells = {of: problem.modalities[of].cells for of in (m, other)}
        info[f"matches_{m}"] = {
            m: cells[m].astype(str), other: cells[other][found[m]].astype(str),
            "score": (z[m] * z[other][found[m]]).sum(1), "pivot": np.isin(np.arange(len(z[m])), rows),
        }  # fmt: skip
    z = {m: of.astype(np.float32) for m, of in z.items()}
    return Fitted(z, Matches(z, read.matrices), info=info)


def _clusters(x: np.ndarray, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """Cluster (n,) inside which cells are smoothed: their label, or k-means where they have none."""
    found = find_landmarks(x, n_landmarks=MATCHING_CLUSTERS, random_state=seed).label
    if labels is not None:
        found = np.where(labels >= 0, labels, found + labels.max() + 1)
    return np.unique(found, return_inverse=True)[1]


def smoothed(values: np.ndarray, cluster: np.ndarray, own: float) -> np.ndarray:
    """A share `own` of each row, and the rest of the mean of its cluster."""
    sums = np.zeros((cluster.max() + 1, values.shape[1]))
    np.add.at(sums, cluster, values)
    means = sums / np.bincount(cluster)[:, None]
    return np.asarray(own * values + (1 - own) * means[cluster])


def parts(n: int, other: int, seed: int) -> Parts:
    """Cells of both sides in as many random parts, none of them too large for an assignment."""
    rng = np.random.default_rng(seed)
    count = max(-(-n // ASSIGNED_CELLS), -(-other // ASSIGNED_CELLS))
    # neither side may run out
    count = min(count, n, other)
    sides = [[np.sort(part) for part in np.array_split(rng.permutation(of), count)] for of in (n, other)]
    return list(zip(*sides))


def first_pivots(linked: Cells, cluster: Cells, among: Parts, own: float) -> np.ndarray:
    """Matches over linked features (n × l), which are smoothed and of low rank; what is constant on one side is left out."""
    varies = np.logical_and.reduce([of.std(0) > 0 for of in linked.values()])
    if varies.sum() < 2:
        raise ValueError("`method='links-matching'` needs two links that vary in both modalities.")
    return assigned([_low_rank(smoothed(of[:, varies], cluster[m], own)) for m, of in linked.items()], among)


def _low_rank(values: np.ndarray) -> np.ndarray:
    """Values without their minor components, where there are many."""
    if values.shape[1] <= MATCHING_RANK:
        return values
    axes = np.linalg.eigh(values.T @ values)[1][:, ::-1][:, :MATCHING_RANK]
    return np.asarray(values @ axes @ axes.T)


def assigned(values: list[np.ndarray], among: Parts) -> np.ndarray:
    """Row numbers (2 × k) that are matched one to one, at the least sum of 1 - correlation inside each part."""
    from scipy.optimize import linear_sum_assignment

    x, y = (unit_rows(of) for of in values)
    found = []
    for rows, others in among:
        i, j = linear_sum_assignment(-x[rows] @ y[others].T)
        found.append(np.stack([rows[i], others[j]]))
    return np.concatenate(found, axis=1)


def _variates(x: Cells, names: Pair, pivots: np.ndarray) -> list[np.ndarray]:
    """Canonical variates of the pivots, of all cells, each times its correlation: z-scores, as published, count noise in full."""
    a, b = names
    n = min(MATCHING_VARIATES, max(2, pivots.shape[1] // 5))
    axes = canonical_axes(x[a][pivots[0]], x[b][pivots[1]], n=n, penalty=CCA_RIDGE)
    return [axes.first(x[a]) * axes.strength, axes.second(x[b]) * axes.strength]


def _smooth(values: list[np.ndarray], cluster: Cells, own: float) -> list[np.ndarray]:
    return [smoothed(of, c, own) for of, c in zip(values, cluster.values())]


def _scores(values: list[np.ndarray], pivots: np.ndarray) -> np.ndarray:
    """Correlation (k,) of the rows that are matched."""
    return (unit_rows(values[0])[pivots[0]] * unit_rows(values[1])[pivots[1]]).sum(1)


def propagated(x: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Match (n,) of every cell: that of its nearest pivot (rows `own`, matched with `other`) among its own modality."""
    found = other[nearest(x, x[own], 1)[0][:, 0]]
    found[own] = other
    return found
