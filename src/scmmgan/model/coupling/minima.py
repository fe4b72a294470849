"""Which of several distorted minima of Gromov-Wasserstein is likeliest: what costs, partners and linearity say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scmmgan.model.coupling import views
from scmmgan.model.coupling.gromov import distinct, gromov_wasserstein
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.coupling.transport import LabelShares, barycentres, matched_share, plans_of, shares
from scmmgan.model.defaults import (
    DISTORTED,
    FUSED_WEIGHT,
    LEAST_MISMATCH,
    MANY_DIMENSIONS,
    MINIMA_CELLS,
    MINIMA_ROUNDS,
    N_CANDIDATES,
)
from scmmgan.model.space.linear import unexplained


@dataclass(frozen=True)
class Beside:
    """What is known beside the shapes: pairs (row numbers), profiles over them, label shares; `cost` of matching landmarks.

    `mass` of the landmarks where labels change it.
    """

    pairs: np.ndarray | None
    profiles: list[tuple[dict[str, np.ndarray], float]]
    labels: LabelShares | None
    cost: np.ndarray | None
    mass: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class Minima:
    """Distinct plans between landmarks, likeliest first and the others by cost, their `costs`, the distortion of the first.

    `distorted`: the best plan does not fit well, and the first has the least penalty; others may cost less.
    """

    plans: list[np.ndarray]
    costs: np.ndarray
    distortion: float
    distorted: bool


def minima(
    x: dict[str, np.ndarray],
    landmarks: dict[str, Landmarks],
    on_landmarks: dict[str, np.ndarray],
    known: Beside,
    *,
    random_state: int = 0,
) -> Minima:
    """Minima of (fused) Gromov-Wasserstein: by their cost, or by their `penalties` where the best is distorted.

    `on_landmarks` (n × m): weights of cells on their landmarks.
    """
    plans, costs = gromov_wasserstein(x, landmarks, cost=known.cost, mass=known.mass, random_state=random_state)
    # the part of a plan's cost that has to do with shapes
    linear = 0.0 if known.cost is None else known.cost
    distortion = costs - FUSED_WEIGHT * np.array([float((linear * plan).sum()) for plan in plans])
    order = np.arange(len(plans))
    distorted = bool(distortion[0] > DISTORTED and min(v.shape[1] for v in x.values()) >= MANY_DIMENSIONS)
    if distorted:
        found = penalties(x, landmarks, on_landmarks, plans[:N_CANDIDATES], costs[:N_CANDIDATES], known, random_state)
        order = np.r_[found.argmin(), np.delete(order, found.argmin())]
    order = order[distinct([plans[i] for i in order])]
    return Minima([plans[i] for i in order], costs[order], float(distortion[order[0]]), distorted)


def penalties(
    x: dict[str, np.ndarray],
    landmarks: dict[str, Landmarks],
    on_landmarks: dict[str, np.ndarray],
    plans: list[np.ndarray],
    costs: np.ndarray,
    known: Beside,
    random_state: int = 0,
) -> np.ndarray:
    """Cost times √(mismatch · unexplained) of plans between landmarks, (k,).

    Each plan is turned twice into canonical variates and plans of cells with landmarks over these. Mismatch: mean
    correlation distance of a cell to its partners over the variates. Unexplained: share of the anchors' variance that
    no linear map from the cells explains.
    """
    rng = np.random.default_rng(random_state)
    rows = {m: np.sort(rng.permutation(len(v))[:MINIMA_CELLS]) for m, v in x.items()}
    first, second = x
    means = {m: landmarks[m].mean(v) for m, v in x.items()}
    asked = {m: on_landmarks[m][rows[m]] for m in x}
    found = []
    for plan, cost in zip(plans, costs):
        anchors = {
            (a, b): asked[a] @ shares(p) @ means[b] for a, b, p in ((first, second, plan), (second, first, plan.T))
        }
        for _ in range(MINIMA_ROUNDS):
            variates = views.canonical(x, anchors, known.pairs, rows=rows)
            over = plans_of([(variates, 1.0), *known.profiles], landmarks, known.labels, rows=rows)
            anchors = {(a, b): barycentres(shares(p), means[b]) for (a, b), p in over.items()}
        mismatch, rest = 0.0, 0.0
        for (a, b), p in over.items():
            weight = matched_share(p)
            distance = views.correlation_distance(variates[a][rows[a]], landmarks[b].mean(variates[b]))
            mismatch += float(np.average((shares(p) * distance).sum(1), weights=weight)) / 2
            rest += unexplained(anchors[a, b], x[a][rows[a]], weight) / 2
        found.append(cost * np.sqrt(max(mismatch, LEAST_MISMATCH) * rest))
    return np.array(found)
