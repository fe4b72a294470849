"""Couplings of cells with landmarks of the other modality, and their anchors: what breaks the symmetry of a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.coupling import views
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.coupling.minima import Beside, minima
from scmmgan.model.coupling.transport import (
    Plan,
    barycentres,
    image,
    images,
    label_shares,
    matched_share,
    nearest_landmarks,
    plan_blocks,
    plans_of,
    shares,
)
from scmmgan.model.defaults import N_RIVALS, PLAN_ENTRIES, REWEIGHTING_ROUNDS
from scmmgan.model.problem import Pair
from scmmgan.model.progress import tracked
from scmmgan.model.space.linear import column_correlation, in_blocks, straightened


@dataclass(frozen=True)
class Coupling:
    """Cells of the source coupled with landmarks of the target.

    `plan` (n × m, rows sum to 1, 32 largest each). `anchors` (n × p, target model space): means of the landmarks under
    its squared entries, straightened where the minimum of Gromov-Wasserstein is distorted. `weight` (n,): matched share
    of each cell's mass, in [0, 1]; `known` (n,): the anchor is the cell's known partner itself.
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

    @property
    def kind(self) -> str:
        """What decided: "links", "pairs", "geometry", or "through": couplings with a third modality."""
        return str(self.info["kind"])


def couple_known(
    x: dict[str, np.ndarray],
    landmarks: dict[str, Landmarks],
    linked: dict[str, np.ndarray] | None = None,
    *,
    pairs: np.ndarray | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
    refine: bool = True,
    random_state: int = 0,
) -> dict[Pair, Coupling]:
    """Couplings in both directions of two modalities from what is known about them.

    `linked`: linked features (n × links, same columns, z-scored). `pairs`: row numbers (k × 2) of cells that are the
    same. `labels`: codes of one vocabulary (n,), -1 where unknown; they forbid, the others decide. With `refine` links are
    weighted by cross-modal agreement, `info["link_weight"]` (links,): the squared correlation of a feature with its
    partner as the plan carries it over, so that links which disagree with all others are down-weighted; and the last
    plan adds the correlation in the canonical space that cells and their anchors span.
    """
    known_labels = None if labels is None else label_shares(x, dict(labels), landmarks)
    coordinates: list[tuple[dict[str, np.ndarray], float]] = []
    if pairs is not None:
        # beside links, pairs count by their number
        share = 1.0 if linked is None else views.pair_share(len(pairs))
        coordinates = [(views.pair_profiles(x, pairs, random_state=random_state), share)]
    info: dict[str, Any] = {"kind": "links" if linked is not None else "pairs"}
    if linked is not None:
        weight = np.ones(next(iter(linked.values())).shape[1])
        for _ in tracked(range(REWEIGHTING_ROUNDS if refine else 0), "coupling"):
            of = [_weighted(linked, weight), *coordinates]
            found = plans_of(
                of, landmarks, known_labels, take=partial(link_agreement, linked=linked, landmarks=landmarks)
            )
            weight = np.clip(sum(found.values()) / len(found), 0, 1) ** 2
        info["link_weight"] = weight
        coordinates = [_weighted(linked, weight), *coordinates]
    if refine:
        means = {m: landmarks[m].mean(v) for m, v in x.items()}
        anchors = plans_of(coordinates, landmarks, known_labels, take=lambda pair, plan: image(plan, means[pair[1]]))
        coordinates = [*coordinates, (views.canonical(x, anchors, pairs), 1.0)]
        del anchors
    first = next(iter(x))

    def coupled(pair: Pair, plan: Plan) -> Coupling:
        a, b = pair
        return _coupling(plan, landmarks[b], x[a], x[b], info, _partners(pairs, first=a == first))

    return plans_of(coordinates, landmarks, known_labels, take=coupled)


def _weighted(linked: Mapping[str, np.ndarray], weight: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Linked features times their weights, as coordinates; of many cells in the precision that they have."""
    return {m: v * (weight.astype(v.dtype) if in_blocks(len(v)) else weight) for m, v in linked.items()}, 1.0


def _partners(pairs: np.ndarray | None, *, first: bool) -> np.ndarray | None:
    """Pairs as rows (source, target) of a direction."""
    return pairs if pairs is None or first else pairs[:, ::-1]


def link_agreement(
    pair: Pair, plan: Plan, linked: Mapping[str, np.ndarray], landmarks: Mapping[str, Landmarks]
) -> np.ndarray:
    """Correlation (links,) of every linked feature of the source with its partner as the plan carries it over."""
    source, target = pair
    own = linked[source]
    points = landmarks[target].mean(linked[target])
    if not in_blocks(len(own)):
        return column_correlation(image(plan, points), own.astype(np.float64))
    sums = np.zeros((5, len(points.T)))
    for at, block in plan_blocks(plan):
        a, b = shares(block) @ points, own[at].astype(np.float64)
        sums += [a.sum(0), b.sum(0), (a * a).sum(0), (b * b).sum(0), (a * b).sum(0)]
    a, b, aa, bb, ab = sums / len(own)
    return (ab - a * b) / np.maximum(np.sqrt(np.maximum(aa - a * a, 0) * np.maximum(bb - b * b, 0)), 1e-12)


def couple_geometry(
    x: dict[str, np.ndarray],
    landmarks: dict[str, Landmarks],
    *,
    pairs: np.ndarray | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
    random_state: int = 0,
) -> dict[Pair, Coupling]:
    """Couplings in both directions from landmark Gromov-Wasserstein. Experimental: it may be a mirror image.

    Labels, and pairs too few to be coordinates of their own, are a linear cost beside it.
    """
    first, second = x
    linear, mass, known_labels, matched = [], None, None, {m: np.ones(len(v)) for m, v in x.items()}
    profiles = [] if pairs is None else [(views.pair_profiles(x, pairs), 1.0)]
    for values, _ in profiles:
        linear.append(views.over_mean(views.correlation_distance(*(landmarks[m].mean(values[m]) for m in x))))
    if labels is not None:
        known_labels = label_shares(x, dict(labels), landmarks)
        of = [v for m in x for v in (known_labels.landmarks[m], known_labels.landmark_known[m])]
        linear.append(views.label_cost(*of))
        # labels say what part of either side the other side has
        gaps = [float((~known_labels.known[m]).mean()) for m in x]
        own, other = (known_labels.cells[m].mean(0) for m in x)
        ratio = views.share_ratios(own, other, (gaps[0], gaps[1]))
        scaled = [landmarks[m].mass * (known_labels.landmarks[m] @ np.sqrt(r)) for m, r in zip(x, ratio)]
        mass = scaled[0] / scaled[0].sum(), scaled[1] / scaled[1].sum()
        matched = {m: np.clip(known_labels.cells[m] @ r, 0, 1) for m, r in zip(x, ratio)}
    on_landmarks = {m: nearest_landmarks(v, landmarks[m], (labels or {}).get(m)) for m, v in x.items()}
    beside = Beside(pairs, profiles, known_labels, np.sum(linear, axis=0) if linear else None, mass)
    found = minima(x, landmarks, on_landmarks, beside, random_state=random_state)
    plan, costs = found.plans[0], found.costs
    info: dict[str, Any] = {"kind": "geometry", "cost": float(costs[0]), "distortion": found.distortion}
    if len(costs) > 1:
        # where penalties decided, a rival may cost less
        info["gaps"] = np.maximum(costs[1 : 1 + N_RIVALS] - costs[0], 0) / max(costs[0], 1e-12)
        info["gap"] = float(info["gaps"][0])
    rivals = np.array(found.plans[1 : 1 + N_RIVALS]).reshape(-1, *plan.shape)
    on_cells = {
        (s, t): on_landmarks[s] @ shares(p) * matched[s][:, None]
        for s, t, p in ((first, second, plan), (second, first, plan.T))
    }
    if found.distorted:
        canonical = views.canonical(x, images(on_cells, landmarks, x), pairs)
        on_cells = plans_of([(canonical, 1.0), *profiles], landmarks, known_labels)
    couplings = {}
    for (source, target), p in on_cells.items():
        partners = _partners(pairs, first=source == first)
        how = {"relaxed": labels is not None, "straight": found.distorted}
        coupling = _coupling(p, landmarks[target], x[source], x[target], info, partners, **how)
        others = rivals if source == first else rivals.transpose(0, 2, 1)
        couplings[source, target] = replace(coupling, rivals=others)
    return couplings


def composed(first: Coupling, second: Coupling, target: np.ndarray, name: str) -> Coupling:
    """The coupling over a third modality (`name`): cells to its landmarks, and their cells on to those of the `target` (n × p).

    A cell is matched as far as it is there and what it meets is further on.
    """
    label, n = first.landmarks.label, len(first.landmarks.label)
    rows = sp.csr_matrix((second.weight / np.bincount(label)[label], (label, np.arange(n))))
    plan = first.plan @ (rows @ second.plan).toarray()
    info = {"kind": "through", "through": name}
    relaxed = first.relaxed or second.relaxed
    found = _coupling(np.asarray(plan), second.landmarks, np.empty(0), target, info, None, relaxed=relaxed)
    return replace(found, weight=(found.weight * first.weight).astype(np.float32))


def _coupling(
    plan: Plan,
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
    parts = [(_largest(shares(block)), matched_share(block)) for _, block in plan_blocks(plan)]
    matched = np.concatenate([share for _, share in parts])
    sparse = parts[0][0] if len(parts) == 1 else sp.vstack([part for part, _ in parts], format="csr")
    n = sparse.shape[0]
    anchors = barycentres(sparse, landmarks.mean(target))
    anchors = (straightened(anchors, x, matched) if straight else anchors).astype(np.float32)
    known = np.zeros(n, dtype=bool)
    if pairs is not None:
        anchors[pairs[:, 0]] = target[pairs[:, 1]]
        known[pairs[:, 0]] = True
        matched = np.where(known, 1.0, matched)
    return Coupling(sparse, anchors, landmarks, info, matched.astype(np.float32), known, relaxed)


def _largest(plan: np.ndarray) -> sp.csr_matrix:
    """The largest entries of each row (n × m), rows summing to 1."""
    # a stable sort: which of equal entries are kept must not depend on the machine
    columns = np.sort(np.argsort(-plan, axis=1, kind="stable")[:, :PLAN_ENTRIES], axis=1)
    values = shares(np.take_along_axis(plan, columns, axis=1))
    indptr = np.arange(0, columns.size + 1, columns.shape[1])
    sparse = sp.csr_matrix((values.ravel().astype(np.float32), columns.ravel(), indptr), shape=plan.shape)
    sparse.eliminate_zeros()
    return sparse
