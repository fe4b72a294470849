"""What breaks the symmetry: couplings of cells with landmarks of the other modality, and their anchors (METHOD §3)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model import evidence
from scmmgan.model.gromov import LINEAR, gromov_wasserstein
from scmmgan.model.landmarks import GEOMETRY_LANDMARKS, LINKED_LANDMARKS, Landmarks, landmarks_of
from scmmgan.model.regression import straightened

EPSILON = 0.02  # entropic regularisation, METHOD §3
RELAXED = 1.0  # KL weight of the marginals, in units of the mean cost: lower ones flag fewer orphans (benchmarks)
KEPT = 32  # plan entries kept per cell
DISTORTED = 0.03  # Gromov-Wasserstein cost (rms distortion 17 %) above which a plan is right in its outline only
MANY = 10  # dimensions of both sides from which on canonical variates and a line tell more than a distorted plan
SHARPER = 2  # power of a plan's entries before landmarks are averaged: about half of ε (benchmarks/accuracy.md)
ROUNDS = 3  # of re-weighting links by their agreement
N_RIVALS = 5  # next best couplings that are kept

Pair = tuple[str, str]


@dataclass(frozen=True)
class Coupling:
    """Cells of the source coupled with landmarks of the target.

    `plan` (n × m, rows sum to 1, 32 largest each). `anchors` (n × p, target model space): means of the landmarks under
    its squared entries, straightened where shapes gave an outline only. `weight` (n,): matched share of each cell's mass,
    in [0, 1]; `known` (n,): the anchor is the cell's known partner itself.
    """

    plan: sp.csr_matrix
    anchors: np.ndarray
    landmarks: Landmarks
    info: dict[str, Any] = field(default_factory=dict)
    weight: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.float32))  # empty: all 1
    known: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))  # empty: none
    relaxed: bool = False  # whether cells may stay unmatched
    rivals: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0)))  # other minima, between landmarks

    def __post_init__(self) -> None:
        for name, value in (
            ("weight", np.ones(len(self.anchors), np.float32)),
            ("known", np.zeros(len(self.anchors), bool)),
        ):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, value)


@dataclass(frozen=True)
class _Labels:
    """Label shares of cells and of landmarks by modality, and which of them are known, not guessed."""

    cells: dict[str, np.ndarray]
    known: dict[str, np.ndarray]
    landmarks: dict[str, np.ndarray]
    landmark_known: dict[str, np.ndarray]

    def cost(self, source: str, target: str) -> np.ndarray:
        return evidence.label_cost(
            self.cells[source], self.known[source], self.landmarks[target], self.landmark_known[target]
        )


def _label_shares(x: dict[str, np.ndarray], labels: dict[str, np.ndarray], landmarks: dict[str, Landmarks]) -> _Labels:
    n_labels = 1 + max(int(v.max()) for v in labels.values())
    cells = {m: evidence.memberships(x[m], labels[m], n_labels) for m in x}
    known = {m: labels[m] >= 0 for m in x}
    return _Labels(
        cells,
        known,
        {m: landmarks[m].mean(cells[m]) for m in x},
        # landmarks are found inside labels, so one cell speaks for all of its cluster
        {m: landmarks[m].mean(known[m][:, None].astype(float))[:, 0] > 0.5 for m in x},
    )


def couple_known(
    x: dict[str, np.ndarray],
    linked: dict[str, np.ndarray] | None = None,
    *,
    pairs: np.ndarray | None = None,
    labels: dict[str, np.ndarray] | None = None,
    refine: bool = True,
    n_landmarks: int = LINKED_LANDMARKS,
    random_state: int = 0,
) -> dict[Pair, Coupling]:
    """Couplings in both directions of two modalities from what is known about them.

    `linked`: linked features (n × links, same columns, z-scored). `pairs`: row numbers (k × 2) of cells that are the
    same. `labels`: codes of one vocabulary (n,), -1 where unknown; they forbid, the others decide. With `refine` every
    link earns a weight, `info["link_weight"]` (links,): the squared correlation of a feature with its partner as the
    plan carries it over, so that links which disagree with all others fade out; and the last plan adds the correlation
    in the canonical space that cells and their anchors span.
    """
    landmarks = landmarks_of(x, labels, n_landmarks=n_landmarks, random_state=random_state)
    shares = None if labels is None else _label_shares(x, labels, landmarks)
    profiles = [] if pairs is None else [evidence.pair_profiles(x, pairs, random_state=random_state)]
    views = profiles if linked is None else [linked, *profiles]
    # beside links, pairs count by their number
    share = 1.0
    if linked is not None and pairs is not None:
        share = evidence.pair_share(pairs, next(iter(linked.values())).shape[1])
    info: dict[str, Any] = {"kind": "links" if linked is not None else "pairs"}
    plans = _plans(views, landmarks, shares, share)
    if linked is not None:
        weight = np.ones(next(iter(linked.values())).shape[1])
        for _ in range(ROUNDS if refine else 0):
            weight = _agreement(plans, linked, landmarks) ** 2
            views = [{m: values * weight for m, values in linked.items()}, *profiles]
            plans = _plans(views, landmarks, shares, share)
        info["link_weight"] = weight
    if refine:
        anchors = _anchors(plans, landmarks, x)
        plans = _plans([*views, evidence.canonical(x, anchors, pairs)], landmarks, shares, share)
    first = next(iter(x))
    return {
        (a, b): _coupling(plan, landmarks[b], x[a], x[b], info, _partners(pairs, first=a == first))
        for (a, b), plan in plans.items()
    }


def _partners(pairs: np.ndarray | None, *, first: bool) -> np.ndarray | None:
    """Pairs as rows (source, target) of a direction."""
    return pairs if pairs is None or first else pairs[:, ::-1]


def _plans(
    views: list[dict[str, np.ndarray]],
    landmarks: dict[str, Landmarks],
    labels: _Labels | None,
    share: float = 1.0,
) -> dict[Pair, np.ndarray]:
    """Relaxed plans (n × m) of cells with landmarks, both directions; costs of several views count alike.

    The second view, where there is one, counts `share`.

    Rows sum to the share of a cell's mass that finds a partner: about 1, far less where nothing resembles the cell.
    """
    first, second = landmarks
    plans = {}
    for source, target in ((first, second), (second, first)):
        costs = [_correlation_distance(v[source], landmarks[target].mean(v[target])) for v in views]
        cost = np.sum([c / c.mean() * (share if i == 1 else 1.0) for i, c in enumerate(costs)], axis=0)
        cost /= cost.mean()
        if labels is not None:
            cost += labels.cost(source, target)
        n = len(cost)
        plans[source, target] = n * relaxed_sinkhorn(cost, np.full(n, 1 / n), landmarks[target].mass)
    return plans


def _anchors(
    plans: dict[Pair, np.ndarray], landmarks: dict[str, Landmarks], x: dict[str, np.ndarray]
) -> dict[Pair, np.ndarray]:
    """Barycentric images (n × p) of all cells under plans."""
    return {(a, b): _rows(plan)[0] @ landmarks[b].mean(x[b]) for (a, b), plan in plans.items()}


def _rows(plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A plan with rows that sum to 1, and the share of each row's mass that was matched, at most 1."""
    mass = plan.sum(1)
    return plan / np.maximum(mass, 1e-300)[:, None], np.clip(mass, 0, 1)


def _agreement(
    plans: dict[Pair, np.ndarray], linked: dict[str, np.ndarray], landmarks: dict[str, Landmarks]
) -> np.ndarray:
    """Correlation (links,) of every linked feature with its carried-over partner, mean of both directions, >= 0."""
    total = np.zeros(next(iter(linked.values())).shape[1])
    for (source, target), plan in plans.items():
        carried, own = _rows(plan)[0] @ landmarks[target].mean(linked[target]), linked[source]
        carried, own = carried - carried.mean(0), own - own.mean(0)
        norms = np.sqrt((carried**2).sum(0) * (own**2).sum(0))
        total += (carried * own).sum(0) / np.maximum(norms, 1e-12)
    return np.clip(total / len(plans), 0, 1)


def couple_geometry(
    x: dict[str, np.ndarray],
    *,
    pairs: np.ndarray | None = None,
    labels: dict[str, np.ndarray] | None = None,
    n_landmarks: int = GEOMETRY_LANDMARKS,
    random_state: int = 0,
) -> dict[Pair, Coupling]:
    """Couplings in both directions from landmark Gromov-Wasserstein. Experimental: it may be a mirror image.

    Labels, and pairs too few to be coordinates of their own, are a linear cost beside it.
    """
    landmarks = landmarks_of(x, labels, n_landmarks=n_landmarks, random_state=random_state)
    first, second = x
    cost, mass, shares, matched = None, None, None, {m: np.ones(len(v)) for m, v in x.items()}
    profiles = [] if pairs is None else [evidence.pair_profiles(x, pairs)]
    if profiles:
        cost = _correlation_distance(*(landmarks[m].mean(profiles[0][m]) for m in x))
        cost /= cost.mean()
    if labels is not None:
        shares = _label_shares(x, labels, landmarks)
        of = [v for m in x for v in (shares.landmarks[m], shares.landmark_known[m])]
        cost = evidence.label_cost(*of) + (0 if cost is None else cost)
        # labels say what part of either side the other side has
        gaps = [float((~shares.known[m]).mean()) for m in x]
        own, other = (shares.cells[m].mean(0) for m in x)
        ratio = evidence.share_ratios(own, other, (gaps[0], gaps[1]))
        scaled = [landmarks[m].mass * (shares.landmarks[m] @ np.sqrt(r)) for m, r in zip(x, ratio)]
        mass = scaled[0] / scaled[0].sum(), scaled[1] / scaled[1].sum()
        matched = {m: np.clip(shares.cells[m] @ r, 0, 1) for m, r in zip(x, ratio)}
    plans, costs = gromov_wasserstein(x, landmarks, cost=cost, mass=mass, random_state=random_state)
    # what labels and pairs cost says nothing of the shapes
    distortion = float(costs[0]) - (0.0 if cost is None else LINEAR * float((cost * plans[0]).sum()))
    info: dict[str, Any] = {"kind": "geometry", "cost": float(costs[0]), "distortion": distortion}
    if len(costs) > 1:
        info["gap"] = float((costs[1] - costs[0]) / max(costs[0], 1e-12))
        info["gaps"] = (costs[1 : 1 + N_RIVALS] - costs[0]) / max(costs[0], 1e-12)
    rivals = np.array(plans[1 : 1 + N_RIVALS]).reshape(-1, *plans[0].shape)
    on_cells = {}
    for source, target, t in ((first, second, plans[0]), (second, first, plans[0].T)):
        plan = _spread(x[source], landmarks[source], (labels or {}).get(source)) @ (
            t / np.maximum(t.sum(1, keepdims=True), 1e-300)
        )
        on_cells[source, target] = plan * (matched[source] / np.maximum(plan.sum(1), 1e-300))[:, None]
    outline = distortion > DISTORTED and min(v.shape[1] for v in x.values()) >= MANY
    if outline:
        canonical = evidence.canonical(x, _anchors(on_cells, landmarks, x), pairs)
        on_cells = _plans([canonical, *profiles], landmarks, shares)
    couplings = {}
    for (source, target), plan in on_cells.items():
        partners = _partners(pairs, first=source == first)
        settings = {"relaxed": labels is not None, "straight": outline}
        found = _coupling(plan, landmarks[target], x[source], x[target], info, partners, **settings)
        others = rivals if source == first else rivals.transpose(0, 2, 1)
        couplings[source, target] = replace(found, rivals=others)
    return couplings


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


def _correlation_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation between the rows of a and of b; a constant row is at distance 1 of everything."""

    def unit(v: np.ndarray) -> np.ndarray:
        v = v - v.mean(1, keepdims=True)
        return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)

    return 1 - unit(a) @ unit(b).T


def _coupling(
    plan: np.ndarray,
    landmarks: Landmarks,
    x: np.ndarray,
    target: np.ndarray,
    info: dict[str, Any],
    pairs: np.ndarray | None,
    *,
    relaxed: bool = True,
    straight: bool = False,
) -> Coupling:
    """Keep the largest entries of each row and average the landmarks' cells with them; known partners are anchors."""
    n, m = plan.shape
    plan, matched = _rows(plan)
    # a stable sort: which of equal entries are kept must not depend on the machine
    columns = np.sort(np.argsort(-plan, axis=1, kind="stable")[:, :KEPT], axis=1)
    values = np.take_along_axis(plan, columns, axis=1)
    values /= np.maximum(values.sum(1, keepdims=True), 1e-300)
    indptr = np.arange(0, columns.size + 1, columns.shape[1])
    sparse = sp.csr_matrix((values.ravel().astype(np.float32), columns.ravel(), indptr), shape=(n, m))
    sparse.eliminate_zeros()
    anchors = barycentres(sparse, landmarks.mean(target))
    anchors = (straightened(anchors, x, matched) if straight else anchors).astype(np.float32)
    known = np.zeros(n, dtype=bool)
    if pairs is not None:
        anchors[pairs[:, 0]] = target[pairs[:, 1]]
        known[pairs[:, 0]] = True
        matched = np.where(known, 1.0, matched)
    return Coupling(sparse, anchors, landmarks, info, matched.astype(np.float32), known, relaxed)


def barycentres(plan: sp.csr_matrix | np.ndarray, points: np.ndarray) -> np.ndarray:
    """Means (n × p) of points (m × p) under the squared entries of a plan (n × m): its own are too near to the middle."""
    sharp = sp.csr_matrix(plan, dtype=np.float64).power(SHARPER)
    return np.asarray(sharp @ points) / np.maximum(np.asarray(sharp.sum(1)), 1e-300)


def _spread(x: np.ndarray, landmarks: Landmarks, labels: np.ndarray | None = None, k: int = 5) -> np.ndarray:
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
