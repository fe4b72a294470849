"""What linked features tell by regression alone, and how much of held-out links they and a coupling tell (docs/method.md)."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm, rankdata

from scmmgan.model.coupling.landmarks import LINKED_LANDMARKS, landmarks_of
from scmmgan.model.coupling.transport import normalized, plans_of
from scmmgan.model.space.linear import OUTLINE, ridge

CELLS = 2_000  # of each source, whose links are told
FOLDS = 20  # few links are held out one by one
NEIGHBORS = 15  # in the tissue, as many as in expression (METHOD §2)
SHARE = 0.5  # of a cell's links that its neighbours in the tissue are asked for; half, not tuned

Pair = tuple[str, str]


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Ranks of every column (n × l) as quantiles of the normal distribution (float64), ties alike."""
    return norm.ppf((rankdata(values, axis=0) - 0.5) / len(values))


def tissue_neighbors(coordinates: np.ndarray, rows: list[np.ndarray] | None = None) -> np.ndarray:
    """The 15 nearest other cells (n × 15) by coordinates (n × d), of the cell's own sample (`rows` of each)."""
    from sklearn.neighbors import NearestNeighbors

    rows = [np.arange(len(coordinates))] if rows is None else rows
    out = np.empty((len(coordinates), NEIGHBORS), dtype=int)
    for own in rows:
        # without a query the cell itself is left out, duplicates included
        search = NearestNeighbors(n_neighbors=NEIGHBORS).fit(coordinates[own])
        out[own] = own[search.kneighbors(return_distance=False)]
    return out


def over_tissue(values: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Values (n × l) of cells, half their own and half the mean of their neighbours' in the tissue (n × k)."""
    out = (1 - SHARE) * values
    # one after the other: all at once are n × k × l
    for nearest in neighbors.T:
        out += SHARE / neighbors.shape[1] * values[nearest]
    return out


def image(source: np.ndarray, target: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Images (n × p, float32) of cells with links `source` (n × l), by a regression of cells x (n' × p) on their links `target`."""
    slope, intercept = ridge(target, x, np.ones(len(x)), penalty=OUTLINE)
    return (source @ slope.T + intercept).astype(np.float32)


def told(
    x: dict[str, np.ndarray],
    linked: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    chains: np.ndarray,
    neighbors: dict[str, np.ndarray],
    *,
    random_state: int = 0,
) -> dict[Pair, dict[str, np.ndarray]]:
    """How well links that were held out (in turn, at most 20 times) are told: correlations (l,) with what the source measured.

    Of both directions: by plans of the other links ("coupling"), by a regression on these inside the target ("links"), and
    by it with the neighbours' links ("tissue", where the source has `neighbors`). `linked` (n × l): as cells are compared by;
    `scores`: ranks of measured values. `chains` (l,): links with a feature in common are held out together, as they share
    its noise.
    """
    first, second = x
    landmarks = landmarks_of(x, None, n_landmarks=LINKED_LANDMARKS, random_state=random_state)
    rng = np.random.default_rng(random_state)
    rows = {m: np.sort(rng.permutation(len(v))[:CELLS]) for m, v in x.items()}
    fold = rng.permutation(chains.max() + 1)[chains] % FOLDS
    asked = {m: {"links": v[rows[m]]} for m, v in scores.items()}
    for m, of in neighbors.items():
        asked[m]["tissue"] = over_tissue(scores[m], of)[rows[m]]
    found: dict[Pair, dict[str, np.ndarray]] = {
        pair: {name: np.zeros(len(chains)) for name in ("coupling", *asked[pair[0]])}
        for pair in ((first, second), (second, first))
    }
    for out in (fold == f for f in np.unique(fold)):
        plans = plans_of([], landmarks, None, linked={m: v[:, ~out] for m, v in linked.items()}, rows=rows)
        for (a, b), plan in plans.items():
            by = {"coupling": normalized(plan)[0] @ landmarks[b].mean(linked[b][:, out])}
            by |= {name: image(of[:, ~out], scores[b][:, ~out], scores[b][:, out]) for name, of in asked[a].items()}
            for name, carried in by.items():
                found[a, b][name][out] = _correlation(carried, asked[a]["links"][:, out])
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of every column of a with that of b; 0 where one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.maximum(np.sqrt((a**2).sum(0) * (b**2).sum(0)), 1e-12)
