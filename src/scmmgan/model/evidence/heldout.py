"""Evidence for a coupling that did not make it: links and pairs held out, nulls, swaps, rivals (METHOD §8). Arrays only.

Everything here works on at most 100 landmarks a side, so that hundreds of couplings can be made again in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from scmmgan.model.coupling import views as evidence
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.coupling.transport import EPSILON, RELAXED, Pair

N_COARSE = 100
N_NULL = 99  # shuffled tables: none of them may be better where p is to be .01
FOLDS = 5
MAX_LINKS, MAX_PAIRS, MAX_CELLS = 300, 100, 2_000  # tested; more change the verdict nowhere
N_POPULATIONS = 10
DIFFERENT = 0.5  # total variation between two answers for one landmark
BATCH = 4_000_000  # plan entries held at a time


@dataclass(frozen=True)
class HeldOut:
    """Scores of links or pairs (k,) in couplings made without them, and the mean score of each shuffled table.

    `score`: links: correlation with the carried-over partner; pairs: share of cells nearer than the known partner.
    `plans` (folds × m × m') are the couplings; `fold` (k,) says which one did not see which link or pair. `columns` (m × k
    and m' × k) are linked features, or distances to the paired cells, of the landmarks of both sides.
    """

    score: np.ndarray
    null: np.ndarray
    plans: np.ndarray
    fold: np.ndarray
    columns: tuple[np.ndarray, np.ndarray]
    higher_is_better: bool = True

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


def coarsen(landmarks: Landmarks, *, n: int = N_COARSE, random_state: int = 0) -> tuple[Landmarks, np.ndarray]:
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


def transport(cost: np.ndarray, p: np.ndarray, q: np.ndarray, *, n_iter: int = 100) -> tuple[np.ndarray, ...]:
    """Relaxed entropic plans of a stack of costs (… × m × m'), and both sides' potentials."""
    kernel = np.maximum(np.exp(-(cost - cost.min((-2, -1), keepdims=True)) / EPSILON), 1e-200)
    back = np.ascontiguousarray(np.swapaxes(kernel, -1, -2))
    u, v = np.ones(cost.shape[:-1]), np.ones((*cost.shape[:-2], cost.shape[-1]))
    power = RELAXED / (RELAXED + EPSILON)
    for _ in range(n_iter):
        u = (p / np.maximum((kernel @ v[..., None])[..., 0], 1e-300)) ** power
        v = (q / np.maximum((back @ u[..., None])[..., 0], 1e-300)) ** power
    return u[..., None] * kernel * v[..., None, :], u, v


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - correlation between the rows of a (… × m × l) and b (… × m' × l).

    The coupling's links are compared by distance, too: what all links share, as depth, carries shuffled ones as well.
    """
    return 1 - _unit(a) @ np.swapaxes(_unit(b), -1, -2)


def _unit(v: np.ndarray) -> np.ndarray:
    v = v - v.mean(-1, keepdims=True)
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def shares(plan: np.ndarray) -> np.ndarray:
    """A plan with rows that sum to 1."""
    return plan / np.maximum(plan.sum(-1, keepdims=True), 1e-300)


def carried(plan: np.ndarray, a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Correlation (… × l) over landmarks of every column of a with that of b as the plan carries it, mean of both ways."""
    there = _weighted(a, shares(plan) @ b, p)
    return (there + _weighted(b, shares(np.swapaxes(plan, -1, -2)) @ a, q)) / 2


def _weighted(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    x, y = x - (w @ x)[..., None, :], y - (w @ y)[..., None, :]
    norm = np.sqrt((w[:, None] * x**2).sum(-2) * (w[:, None] * y**2).sum(-2))
    return (w[:, None] * x * y).sum(-2) / np.maximum(norm, 1e-12)


def _linked_plans(a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray, *, refine: bool) -> np.ndarray:
    """Plans from linked columns alone; with `refine` links that disagree lose weight, once."""
    cost = distance(a, b)
    plans = transport(cost / cost.mean((-2, -1), keepdims=True), p, q)[0]
    if not refine:
        return plans
    weight = (np.clip(carried(plans, a, b, p, q), 0, 1) ** 2)[..., None, :]
    cost = distance(a * weight, b * weight)
    return transport(cost / np.maximum(cost.mean((-2, -1), keepdims=True), 1e-12), p, q)[0]


def held_out_links(
    a: np.ndarray,
    b: np.ndarray,
    p: np.ndarray,
    q: np.ndarray,
    groups: np.ndarray,
    *,
    refine: bool = True,
    n_null: int = N_NULL,
    random_state: int = 0,
) -> HeldOut:
    """Correlation of every link in a coupling made without it; null: the same with the links' partners shuffled.

    `a` (m × l), `b` (m' × l): landmark means of the linked features. `groups` (l,): links with a feature in common are
    held out together.
    """
    rng = np.random.default_rng(random_state)
    n = a.shape[1]
    fold = folds(groups, rng)
    order = np.stack([np.arange(n), *(rng.permutation(n) for _ in range(n_null))])
    score = np.zeros((len(order), n))
    plans = []
    step = max(1, BATCH // (len(p) * max(len(q), n)))
    for k in range(fold.max() + 1):
        out = fold == k
        for i in range(0, len(order), step):
            partner = b[:, order[i : i + step]].transpose(1, 0, 2)
            own = np.broadcast_to(a, (len(partner), *a.shape))
            found = _linked_plans(own[..., ~out], partner[..., ~out], p, q, refine=refine)
            score[i : i + step, out] = carried(found, own[..., out], partner[..., out], p, q)
            if i == 0:
                plans.append(found[0])
    return HeldOut(score[0], score[1:].mean(1), np.stack(plans), fold, (a, b))


def carried_links(
    plan: np.ndarray, a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray, *, random_state: int = 0
) -> HeldOut:
    """The same for links that took no part in the coupling at all: there is nothing to make again."""
    rng = np.random.default_rng(random_state)
    n = a.shape[1]
    null = [carried(plan, a, b[:, rng.permutation(n)], p, q).mean() for _ in range(N_NULL)]
    return HeldOut(carried(plan, a, b, p, q), np.array(null), plan[None], np.zeros(n, dtype=int), (a, b))


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
    n_null: int = N_NULL,
    random_state: int = 0,
) -> HeldOut:
    """Share of cells nearer to where a coupling puts a cell than its known partner, which that coupling did not know.

    Couplings come from distances to the other pairs, and from `linked` features (n × l) where they decide too. The mean
    of both directions is FOSCTTM on held-out pairs. Null: partners shuffled among the pairs.
    """
    first, second = x
    rng = np.random.default_rng(random_state)
    pairs = pairs[np.sort(rng.permutation(len(pairs))[:MAX_PAIRS])]
    profiles = evidence.pair_profiles(x, pairs)
    fold = folds(np.arange(len(pairs)), rng)
    order = np.stack([np.arange(len(pairs)), *(rng.permutation(len(pairs)) for _ in range(n_null))])
    rows = dict(zip(x, pairs.T))
    mean = {m: landmarks[m].mean(v) for m, v in profiles.items()}
    places = {m: landmarks[m].mean(v) for m, v in x.items()}
    links = None if linked is None else _link_costs(linked, landmarks, rows)
    share = 1.0 if linked is None else evidence.pair_share(pairs, next(iter(linked.values())).shape[1])
    cells = {m: v[np.sort(rng.permutation(len(v))[:MAX_CELLS])] for m, v in x.items()}
    score, plans = np.zeros((len(order), 2, len(pairs))), []
    for i, shuffled in enumerate(order):
        for k in range(fold.max() + 1):
            out, seen = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            # columns are pairs: a shuffled table is a shuffled order of one side's columns
            use = {first: (out, seen), second: (shuffled[out], shuffled[seen])}
            cost = distance(mean[first][:, seen], mean[second][:, shuffled[seen]])
            scale = cost.mean()
            cost = share * cost / scale + (0 if links is None else links[0])
            total = cost.mean()
            plan, u, v = transport(cost / total, landmarks[first].mass, landmarks[second].mass)
            if i == 0:
                plans.append(plan)
            for way, (s, t, potential) in enumerate(((first, second, v), (second, first, u))):
                held, columns = use[s]
                own = profiles[s][rows[s][held]][:, columns]
                cost = share * distance(own, mean[t][:, use[t][1]]) / scale
                cost += 0 if links is None else links[1 + way][held]
                weight = np.exp(-(cost - cost.min(1, keepdims=True)) / total / EPSILON) * potential
                score[i, way, out] = nearer(cells[t], shares(weight) @ places[t], x[t][rows[t][use[t][0]]])
    columns = (mean[first], mean[second])
    return HeldOut(score[0].mean(0), score[1:].mean((1, 2)), np.stack(plans), fold, columns, higher_is_better=False)


def _link_costs(
    linked: dict[str, np.ndarray], landmarks: dict[str, Landmarks], rows: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Link costs between landmarks, of the first side's paired cells and of the second's, in units of the mean."""
    first, second = linked
    mean = {m: landmarks[m].mean(v) for m, v in linked.items()}
    cost = distance(mean[first], mean[second])
    cells = [distance(linked[s][rows[s]], mean[t]) / cost.mean() for s, t in ((first, second), (second, first))]
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
    x: dict[str, np.ndarray], labels: dict[str, np.ndarray], borne_out: Mapping[str, np.ndarray | None] | None = None
) -> dict[str, float]:
    """What can be tested about labels (codes, -1: none) when they are all there is.

    `separated`: how well a cell's nearest labelled neighbours bear out the common labels (0: chance, 1: at best), their
    mean, the worse side; as handed in where cells were smoothed inside labels. `order`: correlation of the labels'
    distances on both sides; `p`: share of renamings of one side's labels that do as well.
    """
    common = sorted(set.intersection(*({int(c) for c in np.unique(v) if c >= 0} for v in labels.values())))
    separated, distances = [], []
    for m, cells in x.items():
        found = (borne_out or {}).get(m)
        found = (evidence.borne_out([cells], [labels[m]]) if found is None else found)[common]
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
        first, second = a[above] - a[above].mean(), b[np.ix_(order, order)][above]
        second = second - second.mean()
        return float((first * second).sum() / max(np.sqrt((first**2).sum() * (second**2).sum()), 1e-12))

    found = agreement(np.arange(n))
    null = np.array([agreement(o) for o in orders])
    return found, float((1 + (null >= found - 1e-9).sum()) / (1 + len(null)))


# --- rivals, populations, swaps ----------------------------------------------------------------------------------


def populations(landmarks: Landmarks, labels: np.ndarray | None = None) -> np.ndarray:
    """Population (m,) of each landmark: its label (codes of cells) where all have one, else at most 10 Ward clusters."""
    from sklearn.cluster import AgglomerativeClustering

    m = len(landmarks.mass)
    if labels is not None:
        votes = np.zeros((m, labels.max() + 1))
        np.add.at(votes, (landmarks.label[labels >= 0], labels[labels >= 0]), 1)
        if votes.any(1).all():
            return np.unique(votes.argmax(1), return_inverse=True)[1]
    if m < 8:
        return np.arange(m)
    return AgglomerativeClustering(min(N_POPULATIONS, m // 4)).fit_predict(landmarks.centroids)


def by_population(values: np.ndarray, population: np.ndarray) -> np.ndarray:
    """Sums of rows (m × …) by population."""
    out = np.zeros((population.max() + 1, *values.shape[1:]))
    np.add.at(out, population, values)
    return out


def disagreement(plan: np.ndarray, rivals: np.ndarray, population: np.ndarray) -> np.ndarray:
    """Total variation (rivals × m) between where a plan and each rival send a landmark, in populations of the target."""
    member = np.eye(population.max() + 1)[population]
    there = shares(plan) @ member
    return 0.5 * np.abs(shares(rivals) @ member - there).sum(-1)


def swap_gaps(held: HeldOut, p: np.ndarray, population: np.ndarray, *, way: int) -> np.ndarray:
    """Evidence (k × k) of what a plan did not know against a swap of two populations, -1 to 1, of side `way` (0, 1).

    Column f speaks for the order of populations P and Q as (A_Pf - A_Qf)(C_Pf - C_Qf), A: measured, C: carried over;
    the sum over columns, over the sum of absolute values. 1: all agree, 0: nothing would be lost by the swap.
    """
    a, b = held.columns if way == 0 else held.columns[::-1]
    carried_over = np.empty(a.shape)
    for k, plan in enumerate(held.plans):
        carried_over[:, held.fold == k] = shares(plan if way == 0 else plan.T) @ b[:, held.fold == k]
    mass = by_population(p, population)[:, None]
    own = by_population(p[:, None] * a, population) / mass
    other = by_population(p[:, None] * carried_over, population) / mass
    gain = (own[:, None] - own[None]) * (other[:, None] - other[None])
    gap = gain.sum(2) / np.maximum(np.abs(gain).sum(2), 1e-12)
    np.fill_diagonal(gap, 1.0)
    return gap


def overlap(x: np.ndarray, y: np.ndarray) -> float:
    """Share of a cell's 20 nearest neighbours in x that are among those in y."""
    from sklearn.neighbors import NearestNeighbors

    k = min(20, len(x) // 4)
    near = [NearestNeighbors(n_neighbors=k).fit(v).kneighbors(return_distance=False) for v in (x, y)]
    return float(np.mean([len(np.intersect1d(i, j)) for i, j in zip(*near)]) / k)
