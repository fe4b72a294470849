"""Plans of cells with landmarks of the other modality, and what they average (METHOD §3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from scmmgan.model.coupling import views as evidence
from scmmgan.model.coupling.landmarks import Landmarks

EPSILON = 0.02  # entropic regularisation, METHOD §3
RELAXED = 1.0  # KL weight of the marginals, in units of the mean cost: lower ones flag fewer orphans (benchmarks)
CORRELATED = 2  # weight of correlations beside distances over linked features (benchmarks/accuracy.md)
FAR = 2.0  # largest squared distance, over the mean one: farther cells would overrule labels
SHARPER = 2  # power of a plan's entries before landmarks are averaged: about half of ε (benchmarks/accuracy.md)

Pair = tuple[str, str]


@dataclass(frozen=True)
class LabelShares:
    """Label shares of cells and of landmarks by modality, and which of them are known, not guessed."""

    cells: dict[str, np.ndarray]
    known: dict[str, np.ndarray]
    landmarks: dict[str, np.ndarray]
    landmark_known: dict[str, np.ndarray]

    def cost(self, source: str, target: str, rows: np.ndarray) -> np.ndarray:
        """What labels cost between some cells (k,) of the source and the landmarks of the target (k × m)."""
        return evidence.label_cost(
            self.cells[source][rows], self.known[source][rows], self.landmarks[target], self.landmark_known[target]
        )


def label_shares(
    x: dict[str, np.ndarray], labels: dict[str, np.ndarray], landmarks: dict[str, Landmarks]
) -> LabelShares:
    """Label shares from codes (n,) of one vocabulary, -1 where a label is not known."""
    n_labels = 1 + max(int(v.max()) for v in labels.values())
    cells = {m: evidence.memberships(x[m], labels[m], n_labels) for m in x}
    known = {m: labels[m] >= 0 for m in x}
    return LabelShares(
        cells,
        known,
        {m: landmarks[m].mean(cells[m]) for m in x},
        # landmarks are found inside labels, so one cell speaks for all of its cluster
        {m: landmarks[m].mean(known[m][:, None].astype(float))[:, 0] > 0.5 for m in x},
    )


def plans_of(
    views: list[dict[str, np.ndarray]],
    landmarks: dict[str, Landmarks],
    labels: LabelShares | None,
    share: float = 1.0,
    *,
    linked: dict[str, np.ndarray] | None = None,
    rows: dict[str, np.ndarray] | None = None,
) -> dict[Pair, np.ndarray]:
    """Relaxed plans (n × m) of cells with landmarks, both directions; costs of several views count alike.

    Cells are compared by correlation over `views`, of which the first counts `share`, and by `linked_distance` over
    linked features. `rows`: of the cells that are asked, all by default.

    Rows sum to the share of a cell's mass that finds a partner: about 1, far less where nothing resembles the cell.
    """
    first, second = landmarks
    rows = rows or {m: np.arange(len(marks.label)) for m, marks in landmarks.items()}
    comparisons = [(v, correlation_distance, share if i == 0 else 1.0) for i, v in enumerate(views)]
    if linked is not None:
        comparisons = [(linked, linked_distance, 1.0), *comparisons]
    plans = {}
    for source, target in ((first, second), (second, first)):
        cost = np.zeros((len(rows[source]), len(landmarks[target].mass)))
        for values, distance, weight in comparisons:
            one = distance(values[source][rows[source]], landmarks[target].mean(values[target]))
            cost += _over_mean(one) * weight
        cost = _over_mean(cost)
        if labels is not None:
            cost += labels.cost(source, target, rows[source])
        n = len(cost)
        plans[source, target] = n * relaxed_sinkhorn(cost, np.full(n, 1 / n), landmarks[target].mass)
    return plans


def images(
    plans: dict[Pair, np.ndarray], landmarks: dict[str, Landmarks], x: dict[str, np.ndarray]
) -> dict[Pair, np.ndarray]:
    """Barycentric images (n × p) of all cells under plans."""
    return {(a, b): normalized(plan)[0] @ landmarks[b].mean(x[b]) for (a, b), plan in plans.items()}


def normalized(plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A plan with rows that sum to 1, and the share of each row's mass that was matched, at most 1."""
    mass = plan.sum(1)
    return plan / np.maximum(mass, 1e-300)[:, None], np.clip(mass, 0, 1)


def relaxed_sinkhorn(
    cost: np.ndarray, p: np.ndarray, q: np.ndarray, *, epsilon: float = EPSILON, relaxed: float = RELAXED
) -> np.ndarray:
    """Entropic transport plan whose marginals may leave p and q, at KL weight `relaxed`."""
    kernel = np.exp(-(cost - cost.min()) / epsilon)
    u, v = np.ones(len(p)), np.ones(len(q))
    power = relaxed / (relaxed + epsilon)
    for _ in range(500):
        before = u
        u = (p / np.maximum(kernel @ v, 1e-300)) ** power
        v = (q / np.maximum(kernel.T @ u, 1e-300)) ** power
        if np.abs(np.log(u / before)).max() < 1e-4:
            break
    return u[:, None] * kernel * v


def correlation_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation between the rows of a and of b; a constant row is at distance 1 of everything."""

    def unit(v: np.ndarray) -> np.ndarray:
        v = v - v.mean(1, keepdims=True)
        return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)

    return 1 - unit(a) @ unit(b).T


def linked_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation distance, twofold, and squared distance between the rows of z-scored a and b, each over its mean.

    A correlation does not see what all features of a cell share, which of few features is much of what they tell. A
    distance sees it, but over-rates far cells: it is capped, and counts half (benchmarks/accuracy.md).
    """
    far = np.minimum(_over_mean(evidence.squared_distances(a, b)), FAR)
    return CORRELATED * _over_mean(correlation_distance(a, b)) + far


def _over_mean(cost: np.ndarray) -> np.ndarray:
    # links may all have lost their weights
    return cost / max(cost.mean(), 1e-12)


def barycentres(plan: sp.csr_matrix | np.ndarray, points: np.ndarray) -> np.ndarray:
    """Means (n × p) of points (m × p) under the squared entries of a plan (n × m): its own are too near to the middle."""
    sharp = sp.csr_matrix(plan, dtype=np.float64).power(SHARPER)
    return np.asarray(sharp @ points) / np.maximum(np.asarray(sharp.sum(1)), 1e-300)


def spread(x: np.ndarray, landmarks: Landmarks, labels: np.ndarray | None = None, k: int = 5) -> np.ndarray:
    """Row-stochastic weights (n × m) of each cell on its k nearest landmarks, so that anchors do not jump.

    A cell with a label (n,), not -1, stays with the landmarks of that label.
    """
    from sklearn.neighbors import NearestNeighbors

    m = len(landmarks.mass)
    groups = np.full(len(x), -1) if labels is None else labels
    # landmarks are found inside labels: any of its cells speaks for one
    own = np.empty(m, dtype=int)
    own[landmarks.label] = groups
    out = np.zeros((len(x), m))
    for group in np.unique(groups):
        rows, near = np.flatnonzero(groups == group), np.flatnonzero((own == group) | (group < 0))
        search = NearestNeighbors(n_neighbors=min(k, len(near))).fit(landmarks.centroids[near])
        distances, nearest = search.kneighbors(x[rows])
        weights = np.exp(-((distances / np.maximum(distances.mean(1, keepdims=True), 1e-12)) ** 2) * 2)
        out[rows[:, None], near[nearest]] = weights / weights.sum(1, keepdims=True)
    return out
