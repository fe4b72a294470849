"""What breaks the symmetry: couplings of cells with landmarks of the other modality, and their anchors (METHOD §3)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.coupling import views as evidence
from scmmgan.model.coupling.landmarks import GEOMETRY_LANDMARKS, LINKED_LANDMARKS, Landmarks, landmarks_of
from scmmgan.model.coupling.minima import Known, minima
from scmmgan.model.coupling.transport import (
    Pair,
    barycentres,
    correlation_distance,
    images,
    label_shares,
    normalized,
    plans_of,
    spread,
)
from scmmgan.model.space.linear import straightened

KEPT = 32  # plan entries kept per cell
ROUNDS = 3  # of re-weighting links by their agreement
N_RIVALS = 5  # next best couplings that are kept


@dataclass(frozen=True)
class Coupling:
    """Cells of the source coupled with landmarks of the target.

    `plan` (n × m, rows sum to 1, 32 largest each). `anchors` (n × p, target model space): means of the landmarks under
    its squared entries, straightened where shapes gave an outline only. `weight` (n,): matched share of each cell's mass,
    in [0, 1], or of its neighbourhood's (`tl._prior.couplings`); `known` (n,): the anchor is the cell's known partner itself.
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
    shares = None if labels is None else label_shares(x, labels, landmarks)
    profiles = [] if pairs is None else [evidence.pair_profiles(x, pairs, random_state=random_state)]
    n_links = 0 if linked is None else next(iter(linked.values())).shape[1]
    # beside links, pairs count by their number
    share = 1.0 if linked is None or pairs is None else evidence.pair_share(pairs, n_links)
    info: dict[str, Any] = {"kind": "links" if linked is not None else "pairs"}
    plans = plans_of(profiles, landmarks, shares, share, linked=linked)
    if linked is not None:
        weight, own = np.ones(n_links), linked
        for _ in range(ROUNDS if refine else 0):
            weight = agreement(plans, own, landmarks) ** 2
            linked = {m: values * weight for m, values in own.items()}
            plans = plans_of(profiles, landmarks, shares, share, linked=linked)
        info["link_weight"] = weight
    if refine:
        anchors = images(plans, landmarks, x)
        views = [*profiles, evidence.canonical(x, anchors, pairs)]
        plans = plans_of(views, landmarks, shares, share, linked=linked)
    first = next(iter(x))
    return {
        (a, b): _coupling(plan, landmarks[b], x[a], x[b], info, _partners(pairs, first=a == first))
        for (a, b), plan in plans.items()
    }


def _partners(pairs: np.ndarray | None, *, first: bool) -> np.ndarray | None:
    """Pairs as rows (source, target) of a direction."""
    return pairs if pairs is None or first else pairs[:, ::-1]


def agreement(
    plans: dict[Pair, np.ndarray],
    linked: dict[str, np.ndarray],
    landmarks: dict[str, Landmarks],
    rows: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Correlation (links,) of every linked feature with its carried-over partner, mean of both directions, >= 0.

    `rows`: of the cells that the plans are of, all by default.
    """
    total = np.zeros(next(iter(linked.values())).shape[1])
    for (source, target), plan in plans.items():
        carried, own = normalized(plan)[0] @ landmarks[target].mean(linked[target]), linked[source]
        own = own if rows is None else own[rows[source]]
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
    linear, mass, shares, matched = {}, None, None, {m: np.ones(len(v)) for m, v in x.items()}
    profiles = [] if pairs is None else [evidence.pair_profiles(x, pairs)]
    if profiles:
        distance = correlation_distance(*(landmarks[m].mean(profiles[0][m]) for m in x))
        linear["pairs"] = distance / distance.mean()
    if labels is not None:
        shares = label_shares(x, labels, landmarks)
        of = [v for m in x for v in (shares.landmarks[m], shares.landmark_known[m])]
        linear["labels"] = evidence.label_cost(*of)
        # labels say what part of either side the other side has
        gaps = [float((~shares.known[m]).mean()) for m in x]
        own, other = (shares.cells[m].mean(0) for m in x)
        ratio = evidence.share_ratios(own, other, (gaps[0], gaps[1]))
        scaled = [landmarks[m].mass * (shares.landmarks[m] @ np.sqrt(r)) for m, r in zip(x, ratio)]
        mass = scaled[0] / scaled[0].sum(), scaled[1] / scaled[1].sum()
        matched = {m: np.clip(shares.cells[m] @ r, 0, 1) for m, r in zip(x, ratio)}
    spreads = {m: spread(v, landmarks[m], (labels or {}).get(m)) for m, v in x.items()}
    known = Known(pairs, profiles, shares, linear, mass)
    found = minima(x, landmarks, spreads, known, random_state=random_state)
    plan, costs = found.plans[0], found.costs
    info: dict[str, Any] = {"kind": "geometry", "cost": float(costs[0]), "distortion": found.distortion}
    if len(costs) > 1:
        # where the outline decided, a rival may cost less
        info["gaps"] = np.maximum(costs[1 : 1 + N_RIVALS] - costs[0], 0) / max(costs[0], 1e-12)
        info["gap"] = float(info["gaps"][0])
    rivals = np.array(found.plans[1 : 1 + N_RIVALS]).reshape(-1, *plan.shape)
    on_cells = {}
    for source, target, t in ((first, second, plan), (second, first, plan.T)):
        on_cells[source, target] = spreads[source] @ normalized(t)[0] * matched[source][:, None]
    if found.outline:
        canonical = evidence.canonical(x, images(on_cells, landmarks, x), pairs)
        on_cells = plans_of([canonical, *profiles], landmarks, shares)
    couplings = {}
    for (source, target), plan in on_cells.items():
        partners = _partners(pairs, first=source == first)
        settings = {"relaxed": labels is not None, "straight": found.outline}
        coupling = _coupling(plan, landmarks[target], x[source], x[target], info, partners, **settings)
        others = rivals if source == first else rivals.transpose(0, 2, 1)
        couplings[source, target] = replace(coupling, rivals=others)
    return couplings


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
    plan, matched = normalized(plan)
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
