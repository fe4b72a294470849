"""What breaks the symmetry: couplings of cells with landmarks of the other modality, and their anchors (METHOD §3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.gromov import gromov_wasserstein

EPSILON = 0.02  # entropic regularisation, METHOD §3
KEPT = 32  # plan entries kept per cell
LINKED_LANDMARKS = 300
GEOMETRY_LANDMARKS = 150  # a Gromov-Wasserstein step is cubic in them
ROUNDS = 3  # of re-weighting links by their agreement
N_CANONICAL = 20

Pair = tuple[str, str]


@dataclass(frozen=True)
class Landmarks:
    """k-means clusters of one modality: `label` (n,), `mass` (m,), `nodes` (m,) cell nearest each centroid."""

    label: np.ndarray
    mass: np.ndarray
    nodes: np.ndarray
    centroids: np.ndarray

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Cluster means (m × d) of cell values (n × d)."""
        n, m = len(self.label), len(self.mass)
        member = sp.csr_matrix((np.ones(n), (self.label, np.arange(n))), shape=(m, n))
        return np.asarray(member @ values) / (self.mass * n)[:, None]


@dataclass(frozen=True)
class Coupling:
    """Cells of the source coupled with landmarks of the target.

    `plan` (n × m, rows sum to 1, 32 largest each), `anchors` (n × p, target model space). `weight` (n,): matched share
    of each cell's mass, in [0, 1]; `known` (n,): the anchor is the cell's known partner itself.
    """

    plan: sp.csr_matrix
    anchors: np.ndarray
    landmarks: Landmarks
    info: dict[str, Any] = field(default_factory=dict)
    weight: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.float32))  # empty: all 1
    known: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))  # empty: none

    def __post_init__(self) -> None:
        for name, value in (
            ("weight", np.ones(len(self.anchors), np.float32)),
            ("known", np.zeros(len(self.anchors), bool)),
        ):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, value)


def find_landmarks(x: np.ndarray, *, n_landmarks: int = LINKED_LANDMARKS, random_state: int = 0) -> Landmarks:
    """At most n // 2 k-means clusters of a modality's cells."""
    from sklearn.cluster import KMeans
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    m = max(1, min(n_landmarks, len(x) // 2))
    # one thread: the order in which threads add up decides the last bit
    with threadpool_limits(1, user_api="openmp"):
        rows = np.random.default_rng(random_state).permutation(len(x))[: max(100 * m, 5_000)]
        cells = np.asarray(x[rows], dtype=np.float64)
        # k-means warns when copies of cells leave fewer places than clusters
        m = min(m, len(np.unique(cells, axis=0)))
        means = KMeans(m, n_init=1, random_state=random_state).fit(cells)
        label = means.predict(np.asarray(x, dtype=np.float64))
    used, label = np.unique(label, return_inverse=True)
    counts = np.bincount(label)
    centroids = means.cluster_centers_[used]
    nodes = NearestNeighbors(n_neighbors=1).fit(x).kneighbors(centroids, return_distance=False)[:, 0]
    return Landmarks(label, counts / len(x), nodes, centroids)


def couple_links(
    x: dict[str, np.ndarray],
    linked: dict[str, np.ndarray],
    *,
    refine: bool = True,
    n_landmarks: int = LINKED_LANDMARKS,
    random_state: int = 0,
) -> dict[Pair, Coupling]:
    """Couplings in both directions of two modalities from linked features (n × links, same columns, z-scored).

    With `refine` every link earns a weight, `info["link_weight"]` (links,): the squared correlation of a feature with
    its partner as the plan carries it over, so that links which disagree with all others fade out; and the last plan
    adds the correlation in the canonical space that cells and their anchors span.
    """
    landmarks = {m: find_landmarks(x[m], n_landmarks=n_landmarks, random_state=random_state) for m in x}
    weight = np.ones(next(iter(linked.values())).shape[1])
    plans = _plans([linked], landmarks)
    if refine:
        for _ in range(ROUNDS):
            weight = _agreement(plans, linked, landmarks) ** 2
            weighted = {m: values * weight for m, values in linked.items()}
            plans = _plans([weighted], landmarks)
        plans = _plans([weighted, _canonical(x, plans, landmarks)], landmarks)
    return {
        (source, target): _coupling(plan, landmarks[target], x[target], {"kind": "links", "link_weight": weight})
        for (source, target), plan in plans.items()
    }


def _plans(views: list[dict[str, np.ndarray]], landmarks: dict[str, Landmarks]) -> dict[Pair, np.ndarray]:
    """Plans of cells with landmarks, both directions, rows sum to 1; costs of several views count alike."""
    first, second = landmarks
    plans = {}
    for source, target in ((first, second), (second, first)):
        costs = [_correlation_distance(v[source], landmarks[target].mean(v[target])) for v in views]
        cost = np.sum([c / c.mean() for c in costs], axis=0)
        n = len(cost)
        plans[source, target] = n * sinkhorn(cost / cost.mean(), np.full(n, 1 / n), landmarks[target].mass)
    return plans


def _agreement(
    plans: dict[Pair, np.ndarray], linked: dict[str, np.ndarray], landmarks: dict[str, Landmarks]
) -> np.ndarray:
    """Correlation (links,) of every linked feature with its carried-over partner, mean of both directions, >= 0."""
    total = np.zeros(next(iter(linked.values())).shape[1])
    for (source, target), plan in plans.items():
        carried, own = plan @ landmarks[target].mean(linked[target]), linked[source]
        carried, own = carried - carried.mean(0), own - own.mean(0)
        norms = np.sqrt((carried**2).sum(0) * (own**2).sum(0))
        total += (carried * own).sum(0) / np.maximum(norms, 1e-12)
    return np.clip(total / len(plans), 0, 1)


def _canonical(
    x: dict[str, np.ndarray], plans: dict[Pair, np.ndarray], landmarks: dict[str, Landmarks]
) -> dict[str, np.ndarray]:
    """Canonical variates (n × at most 20) of both modalities, from every cell and its anchor as a pair."""
    first, second = x
    anchors = {pair: plan @ landmarks[pair[1]].mean(x[pair[1]]) for pair, plan in plans.items()}
    a = np.vstack([x[first], anchors[second, first]]).astype(np.float64)
    b = np.vstack([anchors[first, second], x[second]]).astype(np.float64)
    white_a, white_b = _whitening(a), _whitening(b)
    a, b = (a - a.mean(0)) @ white_a, (b - b.mean(0)) @ white_b
    left, strength, right = np.linalg.svd(a.T @ b / len(a), full_matrices=False)
    left, right = (left * strength)[:, :N_CANONICAL], (right.T * strength)[:, :N_CANONICAL]
    n = len(x[first])
    return {first: a[:n] @ left, second: b[n:] @ right}


def _whitening(x: np.ndarray) -> np.ndarray:
    """Matrix (p × p) that whitens x, shrunk by 5 % of the mean variance."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True).reshape(x.shape[1], x.shape[1]))
    return vectors / np.sqrt(np.maximum(values, 0) + 0.05 * max(values.mean(), 1e-12))


def couple_geometry(
    x: dict[str, np.ndarray], *, n_landmarks: int = GEOMETRY_LANDMARKS, random_state: int = 0
) -> dict[Pair, Coupling]:
    """Couplings in both directions from landmark Gromov-Wasserstein alone. Experimental: it may be a mirror image."""
    landmarks = {m: find_landmarks(x[m], n_landmarks=n_landmarks, random_state=random_state) for m in x}
    plan, costs = gromov_wasserstein(x, landmarks, random_state=random_state)
    info: dict[str, Any] = {"kind": "geometry", "cost": float(costs[0])}
    if len(costs) > 1:
        info["gap"] = float((costs[1] - costs[0]) / max(costs[0], 1e-12))
    first, second = x
    couplings = {}
    for source, target, t in ((first, second, plan), (second, first, plan.T)):
        plan_cells = _spread(x[source], landmarks[source]) @ (t / t.sum(1, keepdims=True))
        couplings[source, target] = _coupling(plan_cells, landmarks[target], x[target], info)
    return couplings


def sinkhorn(cost: np.ndarray, p: np.ndarray, q: np.ndarray, *, epsilon: float = EPSILON) -> np.ndarray:
    """Entropic optimal transport plan with marginals p and q."""
    import ot

    # rows and columns may be shifted freely; the smallest cost 0 in each row keeps the kernel in range
    cost = cost - cost.min(1, keepdims=True)
    return ot.sinkhorn(p, q, cost, epsilon, numItermax=500, stopThr=1e-7, warn=False)


def _correlation_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation between the rows of a and of b; a constant row is at distance 1 of everything."""

    def unit(v: np.ndarray) -> np.ndarray:
        v = v - v.mean(1, keepdims=True)
        return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)

    return 1 - unit(a) @ unit(b).T


def _coupling(plan: np.ndarray, landmarks: Landmarks, x: np.ndarray, info: dict[str, Any]) -> Coupling:
    """Keep the largest entries of each row and average the landmarks' cells with them."""
    n, m = plan.shape
    # a stable sort: which of equal entries are kept must not depend on the machine
    columns = np.sort(np.argsort(-plan, axis=1, kind="stable")[:, :KEPT], axis=1)
    values = np.take_along_axis(plan, columns, axis=1)
    values /= np.maximum(values.sum(1, keepdims=True), 1e-300)
    indptr = np.arange(0, columns.size + 1, columns.shape[1])
    sparse = sp.csr_matrix((values.ravel().astype(np.float32), columns.ravel(), indptr), shape=(n, m))
    sparse.eliminate_zeros()
    anchors = np.asarray(sparse @ landmarks.mean(x))
    return Coupling(sparse, anchors.astype(np.float32), landmarks, info)


def _spread(x: np.ndarray, landmarks: Landmarks, k: int = 5) -> np.ndarray:
    """Row-stochastic weights (n × m) of each cell on its k nearest landmarks, so that anchors do not jump."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(landmarks.mass))
    distances, nearest = NearestNeighbors(n_neighbors=k).fit(landmarks.centroids).kneighbors(x)
    weights = np.exp(-((distances / np.maximum(distances.mean(1, keepdims=True), 1e-12)) ** 2) * 2)
    out = np.zeros((len(x), len(landmarks.mass)))
    np.put_along_axis(out, nearest, weights / weights.sum(1, keepdims=True), axis=1)
    return out
