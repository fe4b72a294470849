"""Which of several distorted minima of Gromov-Wasserstein is likeliest: what shapes, partners and a line say (METHOD §3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scmmgan.model.coupling import views as evidence
from scmmgan.model.coupling.gromov import LINEAR, distinct, gromov_wasserstein
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.coupling.transport import LabelShares, barycentres, correlation_distance, normalized, plans_of
from scmmgan.model.space.linear import unexplained

DISTORTED = 0.03  # Gromov-Wasserstein cost (rms distortion 17 %) above which a plan is right in its outline only
MANY = 10  # dimensions of both sides from which on canonical variates and a line tell more than a distorted plan
ENOUGH = 30  # known pairs that may outweigh the shapes; fewer are also tried at √(k / 30) and k / 30 of their weight
N_CANDIDATES = 12  # of the cheapest: more do not help (benchmarks/accuracy.md)
N_CELLS = 1_000  # of each side that are asked
LEAST = 0.01  # mismatch that counts: over a single variate every cell has perfect partners, whatever the plan
ROUNDS = 2  # of canonical variates and plans from them


@dataclass(frozen=True)
class Known:
    """What is known beside the shapes.

    `pairs` (row numbers) and profiles over them, label shares; `costs` of matching landmarks by name ("pairs", "labels"),
    and the landmarks' masses where labels change them.
    """

    pairs: np.ndarray | None
    profiles: list[dict[str, np.ndarray]]
    labels: LabelShares | None
    costs: dict[str, np.ndarray]
    mass: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class Minima:
    """Distinct plans between landmarks, likeliest first and the others by cost, their `costs`, the distortion of the first.

    `outline`: shapes gave an outline only, and the first has the least penalty; others may cost less.
    """

    plans: list[np.ndarray]
    costs: np.ndarray
    distortion: float
    outline: bool


def minima(
    x: dict[str, np.ndarray],
    landmarks: dict[str, Landmarks],
    spreads: dict[str, np.ndarray],
    known: Known,
    *,
    random_state: int = 0,
) -> Minima:
    """Minima of (fused) Gromov-Wasserstein: by their cost, or by their `penalties` where the best is distorted.

    Few pairs can mislead where they outweigh the shapes: a distorted problem is also solved at lower weights of them, and
    all its minima are judged at the full weight. `spreads` (n × m): weights of cells on their landmarks.
    """

    def search(share: float) -> tuple[list[np.ndarray], list[float]]:
        cost = _total(known.costs, share)
        plans, values = gromov_wasserstein(x, landmarks, cost=cost, mass=known.mass, random_state=random_state)
        return plans, [float(v) - _linear(cost, plan) for plan, v in zip(plans, values)]

    plans, distortions = search(1.0)
    outline = distortions[0] > DISTORTED and min(v.shape[1] for v in x.values()) >= MANY
    if outline and known.pairs is not None and len(known.pairs) < ENOUGH:
        for share in ((len(known.pairs) / ENOUGH) ** 0.5, len(known.pairs) / ENOUGH):
            more = search(share)
            plans, distortions = plans + more[0], distortions + more[1]
    full = _total(known.costs, 1.0)
    values = np.array([d + _linear(full, plan) for d, plan in zip(distortions, plans)])
    order = np.argsort(values, kind="stable")
    if outline:
        asked = order[:N_CANDIDATES]
        found = penalties(x, landmarks, spreads, [plans[i] for i in asked], values[asked], known, random_state)
        order = np.r_[order[found.argmin()], np.delete(order, found.argmin())]
    order = order[distinct([plans[i] for i in order])]
    return Minima([plans[i] for i in order], values[order], distortions[order[0]], outline)


def _total(costs: dict[str, np.ndarray], share: float) -> np.ndarray | None:
    """Sum of linear costs, that of the pairs at a share of its weight."""
    weighted = [share * cost if name == "pairs" else cost for name, cost in costs.items()]
    return np.sum(weighted, axis=0) if weighted else None


def _linear(cost: np.ndarray | None, plan: np.ndarray) -> float:
    """The part of a plan's value that has nothing to do with shapes."""
    return 0.0 if cost is None else LINEAR * float((cost * plan).sum())


def penalties(
    x: dict[str, np.ndarray],
    landmarks: dict[str, Landmarks],
    spreads: dict[str, np.ndarray],
    plans: list[np.ndarray],
    costs: np.ndarray,
    known: Known,
    random_state: int = 0,
) -> np.ndarray:
    """Cost times √(mismatch · unexplained) of plans between landmarks, (k,).

    A distorted minimum is right in its outline, and where several are about as cheap, the outline tells them apart. Each
    is turned twice into canonical variates and plans of cells with landmarks over these. Mismatch: mean correlation
    distance of a cell to its partners over the variates. Unexplained: share of the anchors' variance that no line from
    the cells explains.
    """
    rng = np.random.default_rng(random_state)
    rows = {m: np.sort(rng.permutation(len(v))[:N_CELLS]) for m, v in x.items()}
    first, second = x
    means = {m: landmarks[m].mean(v) for m, v in x.items()}
    asked = {m: spreads[m][rows[m]] for m in x}
    found = []
    for plan, cost in zip(plans, costs):
        anchors = {
            (a, b): asked[a] @ normalized(p)[0] @ means[b]
            for a, b, p in ((first, second, plan), (second, first, plan.T))
        }
        for _ in range(ROUNDS):
            variates = evidence.canonical(x, anchors, known.pairs, rows=rows)
            over = plans_of([variates, *known.profiles], landmarks, known.labels, rows=rows)
            matched = {k: normalized(p) for k, p in over.items()}
            anchors = {(a, b): barycentres(shares, means[b]) for (a, b), (shares, _) in matched.items()}
        mismatch, rest = 0.0, 0.0
        for (a, b), (shares, weight) in matched.items():
            distance = correlation_distance(variates[a][rows[a]], landmarks[b].mean(variates[b]))
            mismatch += float(np.average((shares * distance).sum(1), weights=weight)) / 2
            rest += unexplained(anchors[a, b], x[a][rows[a]], weight) / 2
        found.append(cost * np.sqrt(max(mismatch, LEAST) * rest))
    return np.array(found)
