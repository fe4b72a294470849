"""Evidence for a coupling that did not make it: links, pairs and labels held out, and their nulls.

Everything here works on at most 100 landmarks a side, so that hundreds of couplings can be made again in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.coupling.transport import relaxed_plan, shares
from scmmgan.model.coupling.views import correlation_distance, over_mean, pair_profiles, pair_share
from scmmgan.model.defaults import (
    COARSE_ITERATIONS,
    COARSE_LANDMARKS,
    EPSILON,
    FOLDS,
    MAX_TESTED_CELLS,
    MAX_TESTED_PAIRS,
    N_SHUFFLED,
    N_SHUFFLED_REST,
    PLAN_BATCH,
)
from scmmgan.model.evidence.correlations import against_null, strength
from scmmgan.model.problem import Pair
from scmmgan.model.progress import tracked
from scmmgan.model.space.graphs import label_purity
from scmmgan.model.space.linear import column_correlation


@dataclass(frozen=True)
class HeldOut:
    """Scores of links or pairs (k,) in couplings made without them, and those of shuffled tables (tables × k).

    `score`: links: correlation with the carried-over partner; pairs: share of cells nearer than the known partner.
    `plans` (folds × m × m') are the couplings; `fold` (k,) says which one did not see which link or pair. `columns` (m × k
    and m' × k) are linked features, or distances to the paired cells, of the landmarks of both sides.
    """

    score: np.ndarray
    null_scores: np.ndarray
    plans: np.ndarray
    fold: np.ndarray
    columns: tuple[np.ndarray, np.ndarray]
    higher_is_better: bool = True
    rest: HeldOut | None = None  # links of which no coupling was made

    @property
    def null(self) -> np.ndarray:
        """Mean score of each shuffled table."""
        return self.null_scores.mean(1)

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(self.score.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean score."""
        return float(self.score.std(ddof=1) / np.sqrt(len(self.score)))

    @property
    def p(self) -> float:
        """Share of tables, the true one among them, that do as well as the true one."""
        better = self.null >= self.mean - 1e-12 if self.higher_is_better else self.null <= self.mean + 1e-12
        return float((1 + better.sum()) / (1 + len(self.null)))

    @property
    def each_p(self) -> np.ndarray:
        """One-sided p (k,) of each by itself: Fisher z over the mean and sd of its own null; standardised nulls are pooled."""
        sign, offset = (1, 0) if self.higher_is_better else (-2, 1)
        z, null = (strength(offset + sign * of, signed=True) for of in (self.score, self.null_scores))
        return against_null(z, null)[1]


def coarsen(landmarks: Landmarks, *, n: int = COARSE_LANDMARKS, random_state: int = 0) -> tuple[Landmarks, np.ndarray]:
    """Landmarks merged to at most n, and the merged one (m,) that each belongs to."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if len(landmarks.mass) <= n:
        return landmarks, np.arange(len(landmarks.mass))
    centroids, mass = landmarks.centroids, landmarks.mass
    with threadpool_limits(1, user_api="openmp"):
        into = KMeans(n, n_init=1, random_state=random_state).fit(centroids, sample_weight=mass).labels_
    into = np.unique(into, return_inverse=True)[1]
    total = np.bincount(into, mass)
    member = sp.csr_matrix((mass, (into, np.arange(len(mass)))))
    centres = np.asarray(member @ centroids) / total[:, None]
    distances = ((centroids - centres[into]) ** 2).sum(1)
    order = np.lexsort((distances, into))
    first = order[np.unique(into[order], return_index=True)[1]]
    return Landmarks(into[landmarks.label], total, landmarks.nodes[first], centres), into


def coarse_plan(
    couplings: Mapping[Pair, Coupling], pair: Pair, sides: Mapping[str, tuple[Landmarks, np.ndarray]]
) -> np.ndarray:
    """The couplings of both directions as one plan (m × m') between coarse landmarks."""
    a, b = pair
    plans = []
    for source, target in (pair, (b, a)):
        found = couplings[source, target]
        (own, _), (_, into) = sides[source], sides[target]
        n = len(own.label)
        rows = sp.csr_matrix((found.weight / n, (own.label, np.arange(n))), shape=(len(own.mass), n))
        columns = sp.csr_matrix((np.ones(len(into)), (np.arange(len(into)), into)))
        plans.append((rows @ found.plan @ columns).toarray())
    return (plans[0] + plans[1].T) / 2


def carried(plan: np.ndarray, a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Correlation (… × l) over landmarks of every column of a with that of b as the plan carries it, mean of both ways."""
    there = column_correlation(a, shares(plan) @ b, p)
    return (there + column_correlation(b, shares(np.swapaxes(plan, -1, -2)) @ a, q)) / 2


def _linked_plans(a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray, *, refine: bool) -> np.ndarray:
    """Plans from linked columns alone; with `refine` links that disagree lose weight, once."""
    plans = relaxed_plan(over_mean(correlation_distance(a, b)), p, q, n_iter=COARSE_ITERATIONS)[0]
    if not refine:
        return plans
    weight = (np.clip(carried(plans, a, b, p, q), 0, 1) ** 2)[..., None, :]
    return relaxed_plan(over_mean(correlation_distance(a * weight, b * weight)), p, q, n_iter=COARSE_ITERATIONS)[0]


def held_out_links(
    a: np.ndarray,
    b: np.ndarray,
    p: np.ndarray,
    q: np.ndarray,
    groups: np.ndarray,
    *,
    tested: np.ndarray | None = None,
    refine: bool = True,
    n_null: int = N_SHUFFLED,
    random_state: int = 0,
) -> HeldOut:
    """Correlation of every link in a coupling made without it; null: the same with the links' partners shuffled.

    `a` (m × l), `b` (m' × l): landmark means of the linked features. `groups` (l,): links with a feature in common are
    held out together. Couplings are made of the `tested` links (positions, sorted; all by default), whose scores these
    are; those of the other links, carried over by the couplings that did not see their fold, are the `rest`.
    """
    rng = np.random.default_rng(random_state)
    fold = folds(groups, rng)
    at = np.arange(a.shape[1]) if tested is None else tested
    rest = np.setdiff1d(np.arange(a.shape[1]), at)
    n, n_rest = len(at), min(n_null, N_SHUFFLED_REST)
    order = np.stack([np.arange(n), *(rng.permutation(n) for _ in range(n_null))])
    order_rest = np.stack([np.arange(len(rest)), *(rng.permutation(len(rest)) for _ in range(n_rest))])
    score, score_rest = np.zeros((len(order), n)), np.zeros((len(order_rest), len(rest)))
    u, v, others = a[:, at], b[:, at], fold[rest]
    plans = []
    step = max(1, PLAN_BATCH // (len(p) * max(len(q), n)))
    for k in tracked(range(fold.max() + 1), "held-out links"):
        out = fold[at] == k
        for i in range(0, len(order), step):
            partner = v[:, order[i : i + step]].transpose(1, 0, 2)
            own = np.broadcast_to(u, (len(partner), *u.shape))
            found = _linked_plans(own[..., ~out], partner[..., ~out], p, q, refine=refine)
            score[i : i + step, out] = carried(found, own[..., out], partner[..., out], p, q)
            if i == 0:
                plans.append(found[0])
            for j, shuffled in enumerate(order_rest[i : i + step]):
                partners = b[:, rest[shuffled[others == k]]]
                score_rest[i + j, others == k] = carried(found[j], a[:, rest[others == k]], partners, p, q)
    kept = np.stack(plans)
    beyond = HeldOut(score_rest[0], score_rest[1:], kept, others, (a[:, rest], b[:, rest])) if len(rest) else None
    return HeldOut(score[0], score[1:], kept, fold[at], (u, v), rest=beyond)


def link_groups(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Group (l,) of each link, given the features (l,) it names: those reached over common features are one group.

    Where chains make less than five groups of it, links that share the first feature are, or else the second.
    """
    for group in (link_chains(first, second), first, second):
        if len(np.unique(group)) >= FOLDS:
            return np.unique(group, return_inverse=True)[1]
    return np.arange(len(first))


def link_chains(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Chain (l,) of each link, given the features (l,) it names: all that are reached over common features."""
    from scipy.sparse.csgraph import connected_components

    a, b = (np.unique(side, return_inverse=True)[1] for side in (first, second))
    n = a.max() + b.max() + 2
    graph = sp.coo_matrix((np.ones(len(a)), (a, b + a.max() + 1)), shape=(n, n))
    return np.unique(connected_components(graph, directed=False)[1][a], return_inverse=True)[1]


def folds(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fold (l,) of every link, at most five; those of a group are in one."""
    n = groups.max() + 1
    return (rng.permutation(n) % min(FOLDS, n))[groups]


def held_out_pairs(
    x: dict[str, np.ndarray],
    landmarks: dict[str, Landmarks],
    pairs: np.ndarray,
    linked: dict[str, np.ndarray] | None = None,
    *,
    n_null: int = N_SHUFFLED,
    random_state: int = 0,
) -> HeldOut:
    """Share of cells nearer to where a coupling puts a cell than its known partner, which that coupling did not know.

    Couplings come from distances to the other pairs, and from `linked` features (n × l) where they decide too. The mean
    of both directions is FOSCTTM on held-out pairs. Null: partners shuffled among the pairs.
    """
    first, second = x
    rng = np.random.default_rng(random_state)
    pairs = pairs[np.sort(rng.permutation(len(pairs))[:MAX_TESTED_PAIRS])]
    profiles = pair_profiles(x, pairs)
    fold = folds(np.arange(len(pairs)), rng)
    order = np.stack([np.arange(len(pairs)), *(rng.permutation(len(pairs)) for _ in range(n_null))])
    rows = dict(zip(x, pairs.T))
    mean = {m: landmarks[m].mean(v) for m, v in profiles.items()}
    places = {m: landmarks[m].mean(v) for m, v in x.items()}
    links = None if linked is None else _link_costs(linked, landmarks, rows)
    share = 1.0 if linked is None else pair_share(len(pairs))
    cells = {m: v[np.sort(rng.permutation(len(v))[:MAX_TESTED_CELLS])] for m, v in x.items()}
    score, plans = np.zeros((len(order), 2, len(pairs))), []
    for i, shuffled in enumerate(tracked(order, "held-out pairs")):
        for k in range(fold.max() + 1):
            out, seen = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            # columns are pairs: a shuffled table is a shuffled order of one side's columns
            use = {first: (out, seen), second: (shuffled[out], shuffled[seen])}
            cost = correlation_distance(mean[first][:, seen], mean[second][:, shuffled[seen]])
            scale = cost.mean()
            cost = share * cost / scale + (0 if links is None else links[0])
            total = cost.mean()
            plan, u, v = relaxed_plan(
                cost / total, landmarks[first].mass, landmarks[second].mass, n_iter=COARSE_ITERATIONS
            )
            if i == 0:
                plans.append(plan)
            for way, (s, t, potential) in enumerate(((first, second, v), (second, first, u))):
                held, columns = use[s]
                own = profiles[s][rows[s][held]][:, columns]
                cost = share * correlation_distance(own, mean[t][:, use[t][1]]) / scale
                cost += 0 if links is None else links[1 + way][held]
                weight = np.exp(-(cost - cost.min(1, keepdims=True)) / total / EPSILON) * potential
                score[i, way, out] = nearer(cells[t], shares(weight) @ places[t], x[t][rows[t][use[t][0]]])
    columns = (mean[first], mean[second])
    return HeldOut(score[0].mean(0), score[1:].mean(1), np.stack(plans), fold, columns, higher_is_better=False)


def _link_costs(
    linked: dict[str, np.ndarray], landmarks: dict[str, Landmarks], rows: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Link costs between landmarks, of the first side's paired cells and of the second's, in units of the mean."""
    first, second = linked
    mean = {m: landmarks[m].mean(v) for m, v in linked.items()}
    cost = correlation_distance(mean[first], mean[second])
    cells = [
        correlation_distance(linked[s][rows[s]], mean[t]) / cost.mean() for s, t in ((first, second), (second, first))
    ]
    return cost / cost.mean(), cells[0], cells[1]


def nearer(cells: np.ndarray, places: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """Share (k,) of cells (n × p) that are nearer to places (k × p) than their partners (k × p); equal ones ½."""
    cells, partners = cells.astype(np.float64), partners.astype(np.float64)
    squared = (cells**2).sum(1) - 2 * places @ cells.T
    own = ((partners**2).sum(1) - 2 * (places * partners).sum(1))[:, None]
    equal = np.abs(squared - own) < 1e-9 * (1 + np.abs(own))  # the partner itself among them
    return ((squared < own) & ~equal).mean(1) + 0.5 * np.maximum(equal.sum(1) - 1, 0) / len(cells)


# --- labels ------------------------------------------------------------------------------------------------------


def label_evidence(
    x: dict[str, np.ndarray], labels: dict[str, np.ndarray], purity: Mapping[str, np.ndarray | None] | None = None
) -> dict[str, float]:
    """What can be tested about labels (codes, -1: none) when they are all there is.

    `separated`: chance-corrected purity of the common labels among a cell's neighbours (0: chance, 1: at best), their
    mean, the worse side; as handed in where cells were smoothed inside labels. `order`: correlation of the labels'
    distances on both sides; `p`: share of renamings of one side's labels that do as well.
    """
    common = sorted(set.intersection(*({int(c) for c in np.unique(v) if c >= 0} for v in labels.values())))
    separated, distances = [], []
    for m, cells in x.items():
        found = (purity or {}).get(m)
        found = (label_purity([cells], [labels[m]]) if found is None else found)[common]
        separated.append(float(np.mean(found[np.isfinite(found)])) if np.isfinite(found).any() else 0.0)
        centre = np.stack([cells[labels[m] == c].mean(0) for c in common])
        distances.append(np.sqrt(((centre[:, None] - centre[None]) ** 2).sum(2)))
    order, p = _order_of_labels(*distances)
    return {"separated": min(separated), "order": order, "p": p, "n": float(len(common))}


def _order_of_labels(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Correlation of two distance matrices over their labels, and its p under renaming; (0, 1) below three labels."""
    from itertools import permutations
    from math import factorial

    n = len(a)
    if n < 3:
        return 0.0, 1.0
    rng = np.random.default_rng(0)
    above = np.triu_indices(n, 1)
    if factorial(n) <= 1_000:
        orders = [np.array(o) for o in permutations(range(n))][1:]
    else:
        orders = [rng.permutation(n) for _ in range(999)]

    def agreement(order: np.ndarray) -> float:
        return float(column_correlation(a[above][:, None], b[np.ix_(order, order)][above][:, None])[0])

    found = agreement(np.arange(n))
    null = np.array([agreement(o) for o in orders])
    return found, float((1 + (null >= found - 1e-9).sum()) / (1 + len(null)))
