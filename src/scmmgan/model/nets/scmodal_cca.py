"""scMODAL with links that are found, without labels: features that vary alike over coupled clusters of cells."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from scmmgan.model.coupling.couple import couple
from scmmgan.model.defaults import (
    CCA_RIDGE,
    EVIDENT,
    FOUND_CLUSTERS,
    FOUND_COMPONENTS,
    FOUND_PAIRS,
    FOUND_ROUNDS,
    FOUND_SCORE,
    FOUND_SHUFFLED,
    FOUND_VARIATES,
    MAX_FOUND,
    MIN_LINKS,
)
from scmmgan.model.nets import autoencoder
from scmmgan.model.nets.latent import Fitted
from scmmgan.model.nets.scmodal import ScMODAL
from scmmgan.model.problem import Links, Problem
from scmmgan.model.space.domain import Domain, model_space
from scmmgan.model.space.linear import canonical_axes
from scmmgan.model.space.pca import dispersed

logger = logging.getLogger("scmmgan")


def fit(problem: Problem, settings: Mapping[str, Any]) -> Fitted:
    """Find links beside those that are given, and train scMODAL with all of them."""
    (names, known), seed = next(iter(problem.known.items())), settings["random_state"]
    links, table = find(problem, random_state=seed)
    if not len(links):
        raise ValueError(
            "`method='scmodal-cca'` found no features that vary alike beyond chance, and no links were given. Give `links` or "
            "`pairs`, or use a method that needs none."
        )
    logger.info("%d links between %r and %r, %d of them found.", len(links), *names, len(table["score"]))
    fitted = autoencoder.fit(ScMODAL, replace(problem, known={names: replace(known, links=links)}), settings)
    return replace(fitted, info={**fitted.info, "links_used": len(links), "links": table})


@dataclass(frozen=True)
class Pooled:
    """Rows of both sides that belong together: clusters with those that they are coupled with, and known pairs.

    `x`, `y` (k × p): components; `u`, `v` (k × g): features at `first`, `second`; `weight` (k,): cells of each.
    """

    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    weight: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def shuffled(self, order: np.ndarray) -> Pooled:
        """With the rows of the second side in another order."""
        return replace(self, y=self.y[order], v=self.v[order])


@dataclass(frozen=True)
class Found:
    """Links (positions among the pooled features), their scores and q."""

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray
    q: np.ndarray


def find(problem: Problem, *, random_state: int) -> tuple[Links, dict[str, np.ndarray]]:
    """All links, those given first, and a table of those found: features, `score`, `q`, `sign` and the `round` of each."""
    (a, b), known = next(iter(problem.known.items()))
    domains = model_space(problem, random_state=random_state)
    links, turn, seen = known.links, 0, set[tuple[int, int]]()
    rounds: dict[tuple[int, int], int] = {}
    while True:
        turn += 1
        current = replace(problem, known={(a, b): replace(known, links=links)})
        pooled = pool(current, domains, random_state)
        found = search(pooled, known.links, random_state)
        links = _with(known.links, pooled, found)
        first, second = pooled.first[found.first], pooled.second[found.second]
        now = set(zip(first.tolist(), second.tolist()))
        rounds = {**dict.fromkeys(now, turn), **rounds}
        repeated = len(now & seen) >= 0.95 * len(now)
        # fewer than three links make no coupling
        if turn == FOUND_ROUNDS or repeated or links is None or len(links) < MIN_LINKS:
            break
        seen = now
    features = {m: problem.modalities[m].features for m in (a, b)}
    table = {
        a: features[a][first].astype(str), b: features[b][second].astype(str), "score": found.score, "q": found.q,
        "sign": np.sign(found.score), "round": np.array([rounds[link] for link in zip(first.tolist(), second.tolist())]),
    }  # fmt: skip
    return links or Links(first, second, found.score, found.score), table


def _with(given: Links | None, pooled: Pooled, found: Found) -> Links | None:
    """Links that were given, and those found, which weigh at most as much as the least of these."""
    if not len(found.first):
        return given
    least = 1.0 if given is None else float(given.weight.min())
    new = Links(
        pooled.first[found.first], pooled.second[found.second], least * np.abs(found.score), np.sign(found.score)
    )
    sides = [new] if given is None else [given, new]
    first, second, weight, sign = (
        np.concatenate([getattr(of, name) for of in sides]) for name in ("first", "second", "weight", "sign")
    )
    return Links(first, second, weight / weight.max(), sign)


def pool(problem: Problem, domains: Mapping[str, Domain], random_state: int) -> Pooled:
    """Means of the clusters of the first, and of what they are coupled with; known pairs as rows of one cell."""
    (a, b), known = next(iter(problem.known.items()))
    n_clusters = min(FOUND_CLUSTERS, min(len(domains[m].x) for m in (a, b)) // 20)
    couplings, _ = couple(problem, domains, random_state=random_state, n_landmarks=max(n_clusters, MIN_LINKS))
    there, back = couplings[a, b], couplings[b, a]
    own, other = back.landmarks, there.landmarks
    plan = own.mean(there.plan.toarray()) * own.mass[:, None]
    plan = plan + (other.mean(back.plan.toarray()) * other.mass[:, None]).T
    plan = plan / np.maximum(plan.sum(1, keepdims=True), 1e-12)
    columns = {m: _varying(domains[m]) for m in (a, b)}
    parts = {
        "x": [own.mean(domains[a].x)], "y": [plan @ other.mean(domains[b].x)],
        "u": [domains[a].landmark_means(own.label, columns[a])],
        "v": [plan @ domains[b].landmark_means(other.label, columns[b])],
    }  # fmt: skip
    weight = [own.mass * len(own.label)]
    if known.pairs is not None:
        rng = np.random.default_rng(random_state)
        pairs = known.pairs[np.sort(rng.permutation(len(known.pairs))[:FOUND_PAIRS])]
        for m, rows, x, u in ((a, pairs[:, 0], "x", "u"), (b, pairs[:, 1], "y", "v")):
            parts[x].append(domains[m].x[rows])
            parts[u].append(_cells(domains[m], rows, columns[m]))
        weight.append(np.ones(len(pairs)))
    found = {name: np.concatenate(of).astype(np.float64) for name, of in parts.items()}
    width = min(FOUND_COMPONENTS, max(2, len(found["x"]) // 3))
    found |= {name: found[name][:, :width] for name in ("x", "y")}
    return Pooled(**found, weight=np.concatenate(weight), first=columns[a], second=columns[b])


def _varying(domain: Domain) -> np.ndarray:
    """Positions of the 2,000 most dispersed features that vary."""
    mean, sd = domain.smoothed.moments()
    chosen = dispersed(mean, sd, np.arange(len(mean)), np.empty(0, dtype=int))
    return chosen[sd[chosen] > 0]


def _cells(domain: Domain, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """z-scores (k × g) of some cells: each a cluster of its own, and all others one more."""
    label = np.full(len(domain.x), len(rows))
    label[rows] = np.arange(len(rows))
    return domain.landmark_means(label, columns)[: len(rows)]


def search(pooled: Pooled, given: Links | None, random_state: int) -> Found:
    """Pairs of features that are each other's best over significant canonical variates, q < .05 against shuffled rows."""
    rng = np.random.default_rng(random_state)
    n = max(1, min(FOUND_VARIATES, len(pooled.x) // 5))
    orders = [rng.permutation(len(pooled.y)) for _ in range(FOUND_SHUFFLED)]
    strength = _variates(pooled, n)[2]
    null = np.array([_variates(pooled.shuffled(order), n)[2] for order in orders])
    beyond = strength > np.quantile(null, 0.95, axis=0)
    kept = len(beyond) if beyond.all() else int(beyond.argmin())
    nothing = Found(*(np.empty(0, dtype=int),) * 2, *(np.empty(0),) * 2)
    if not kept:
        return nothing
    linked = (np.empty(0, dtype=int),) * 2 if given is None else (given.first, given.second)
    free = [~np.isin(at, of) for at, of in zip((pooled.first, pooled.second), linked)]
    first, second, score = _mutual(pooled, n, kept, free)
    by_chance = np.concatenate([np.abs(_mutual(pooled.shuffled(order), n, kept, free)[2]) for order in orders])
    p = (1 + (by_chance[:, None] >= np.abs(score)).sum(0)) / (1 + len(by_chance))
    q = false_discovery_control(p) if len(p) else p
    chosen = np.flatnonzero((np.abs(score) >= FOUND_SCORE) & (q < EVIDENT))
    chosen = chosen[np.argsort(-np.abs(score[chosen]), kind="stable")[:MAX_FOUND]]
    return Found(first[chosen], second[chosen], score[chosen], q[chosen])


def _variates(pooled: Pooled, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Canonical variates (k × n) of both sides and their correlations."""
    axes = canonical_axes(pooled.x, pooled.y, n=n, penalty=CCA_RIDGE, weight=pooled.weight)
    return axes.first(pooled.x), axes.second(pooled.y), axes.strength


def _mutual(pooled: Pooled, n: int, kept: int, free: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that are each other's best, of those that are `free`, and their scores: Σ ρ r(feature, variate) r(variate, feature)."""
    first, second, strength = _variates(pooled, n)
    loadings = _correlations(pooled.u, first[:, :kept], pooled.weight) * strength[:kept]
    score = loadings @ _correlations(pooled.v, second[:, :kept], pooled.weight).T
    size = np.abs(score)
    size[~free[0]], size[:, ~free[1]] = -1, -1
    best, back = size.argmax(1), size.argmax(0)
    rows = np.flatnonzero((back[best] == np.arange(len(best))) & (size.max(1) > 0))
    return rows, best[rows], score[rows, best[rows]]


def _correlations(values: np.ndarray, variates: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted correlation (g × r) of all columns with all variates; 0 of constant ones."""
    share = weight / weight.sum()
    parts = []
    for of in (values, variates):
        centred = of - share @ of
        parts.append(centred / np.maximum(np.sqrt(share @ centred**2), 1e-12))
    return np.asarray((parts[0].T * share) @ parts[1])
