"""Features that only the target has, predicted from the source's counts: ridge regressions learnt on mixtures of target cells.

A spot holds several cells, was sequenced less deeply, and loses some genes more than others. So the target's own cells are
made to look like that: counts of 1, 4 or 16 of them are summed, and thinned to the source's depth and rates of genes. What
these mixtures teach of hidden features is read from the source's counts. Nothing here knows which cell goes where.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import (
    BLOCK,
    IMPUTATION_CELLS,
    IMPUTATION_PCS,
    IMPUTED_SHARE,
    MAP_CHUNK,
    MAX_RATE,
    MAX_SD,
    MIXED_CELLS,
    MIXTURE_CLUSTERS,
    MIXTURE_SPREAD,
    N_MIXTURES,
    START_RIDGE,
)
from scmmgan.model.problem import Pair, Problem, Values
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.linear import constant, product, solve_ridge, transposed_product
from scmmgan.model.space.moments import column_moments
from scmmgan.model.space.pca import Standardized, principal_axes
from scmmgan.model.space.scratch import columns_of
from scmmgan.model.space.smoothing import SmoothedMatrix
from scmmgan.model.space.transform import Transform

logger = logging.getLogger("scmmgan")


@dataclass(frozen=True)
class Imputation:
    """What predicts `hidden` features (h positions in the target) from counts of `shown` ones (l positions in the source).

    `mean`, `sd` (l): of the log shares of the source's counts. `projection` (l × q): to scores. `loadings` (q × h), `bias`
    (h): the predicted half of the mapped values; the other half is the map's.
    """

    shown: np.ndarray
    hidden: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    projection: np.ndarray
    loadings: np.ndarray
    bias: np.ndarray

    def scores(self, counts: Values, columns: np.ndarray | None = None) -> np.ndarray:
        """Scores (n × q, float32) of cells, from their counts of all features of the source or of those at `columns`.

        Shown features that are not there count as their mean.
        """
        found = self.shown if columns is None else _positions(self.shown, columns)
        there = np.flatnonzero(found >= 0)
        out = np.empty((counts.shape[0], self.projection.shape[1]), dtype=np.float32)
        # few cells are dense at one time
        for start in range(0, len(out), MAP_CHUNK):
            read = _log_shares(counts[start : start + MAP_CHUNK][:, found[there]])
            z = _standardized(read, self.mean[there], self.sd[there])
            out[start : start + MAP_CHUNK] = z @ self.projection[there]
        return out

    def added(self, mapped: np.ndarray, scores: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Mapped values (n × len(features)) of cells with these scores; those that are not hidden stay as they are."""
        found = _positions(features, self.hidden)
        own = np.flatnonzero(found >= 0)
        chosen = found[own]
        predicted = scores @ self.loadings[:, chosen] + self.bias[chosen]
        mapped[:, own] = (1 - IMPUTED_SHARE) * mapped[:, own] + predicted
        return mapped

    def decoded(self, transform: Transform, image: np.ndarray, scores: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Values (n × len(features), float32) of mapped cells (n × p): decoded, and imputed where only the target has them."""
        mapped = self.added(transform.inverse(image, features), scores, features)
        return np.maximum(mapped, np.float32(transform.lowest))

    def state(self) -> dict[str, np.ndarray]:
        """All fields as arrays."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Imputation:
        """The imputation that `state` came from."""
        return cls(**{name: np.asarray(value) for name, value in state.items()})


def fit_imputations(
    problem: Problem, domains: Mapping[str, Domain], images: Mapping[Pair, np.ndarray], *, random_state: int
) -> dict[Pair, Imputation]:
    """Imputations of all ordered pairs that have counts, equal names and features that only the target has.

    `images` (n × p): the source's cells in the target's model space, whose decoded mean and sd the predictions get.
    """
    found = {}
    for (a, b), image in images.items():
        source, target = problem.modalities[a], problem.modalities[b]
        space = next((of for of in problem.spaces if a in of and b in of), None)
        if space is None:
            continue
        shown, also = space[a], space[b]
        hidden = np.setdiff1d(np.flatnonzero(domains[b].transform.decoder.any(axis=0)), also)
        if len(hidden) == 0:
            continue
        if source.counts is None or target.counts is None:
            lacking = [m.name for m in (source, target) if m.counts is None]
            logger.info(
                "%d features that only %r has are predicted from mapped cells alone: %s without counts (`counts=`) to learn "
                "from.", len(hidden), b, " and ".join(map(repr, lacking)),
            )  # fmt: skip
            continue
        # of many features those that enter the PCA
        enters = np.isin(shown, domains[a].transform.encoded)
        positions = (shown[enters], also[enters], hidden)
        fitted = _fit(source.counts, target.counts, domains[b], positions, image, np.random.default_rng(random_state))
        if fitted is not None:
            found[a, b] = fitted
    return found


def _fit(
    own: Values,
    other: Values,
    target: Domain,
    positions: tuple[np.ndarray, np.ndarray, np.ndarray],
    image: np.ndarray,
    rng: np.random.Generator,
) -> Imputation | None:
    """None where the source's counts of all shown features are the same in every cell."""
    shown, also, hidden = positions
    if own.shape[0] > IMPUTATION_CELLS:
        # more learn nothing more
        rows = np.sort(rng.permutation(own.shape[0])[:IMPUTATION_CELLS])
        own, image = own[rows], image[rows]
    own = own[:, shown]
    own_total, all_totals = _row_sums(own), _row_sums(other)
    rates = _rates(own, columns_of(other, also))
    read = _log_shares(own)
    mean, sd = column_moments(read)
    seen = np.flatnonzero(sd > 0)
    if not len(seen):
        return None
    shown, also, rates, read, mean, sd = shown[seen], also[seen], rates[seen], read[:, seen], mean[seen], sd[seen]
    read = _standardized(read, mean, sd)
    projections, loadings = [], []
    cluster = _clusters(target.x)
    for k in MIXED_CELLS:
        mixing = _mixtures(cluster, k, rng)
        mixed = _mixed(mixing, other)
        axes, scores = _thinned_scores(mixed[:, also], rates, own_total, rng)
        outcome = _regressed(mixed, mixing @ all_totals, hidden, scores)
        # every regression counts alike: predictions of variance 1 over the source's cells
        projections.append(axes.T)
        loadings.append(_over_sd(read @ axes.T, outcome))
    projection = np.hstack(projections)
    u = read @ projection
    loading = _over_sd(u, np.vstack(loadings))
    mapped_mean, mapped_sd = _decoded_moments(image, target, hidden)
    loading = IMPUTED_SHARE * loading * mapped_sd
    bias = IMPUTED_SHARE * mapped_mean - u.mean(0) @ loading
    return Imputation(shown, hidden, mean, sd, *(v.astype(np.float32) for v in (projection, loading, bias)))


def _positions(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each wanted number is among others, -1 where it is not."""
    at = np.full(1 + max(wanted.max(initial=0), among.max(initial=0)), -1)
    at[among] = np.arange(len(among))
    return at[wanted]


def _row_sums(counts: Values) -> np.ndarray:
    return product(counts, np.ones(counts.shape[1]))


def _rates(own: Values, other: Values) -> np.ndarray:
    """How much more of each feature (l,) the source catches than the target, among the features of both."""
    # float64: a sparse matrix sums in its own precision
    shares = [transposed_product(v, one) for v in (own, other) for one in [np.ones(v.shape[0])]]
    a, b = (v / max(v.sum(), 1.0) + 1e-6 for v in shares)
    return np.clip(a / b, 1 / MAX_RATE, MAX_RATE)


def _dense(values: Any) -> np.ndarray:
    sparse: bool = sp.issparse(values)
    return np.asarray(values.toarray() if sparse else values, dtype=np.float64)


def _log_shares(counts: Values) -> np.ndarray:
    """log1p of counts per 10,000 (dense)."""
    dense = _dense(counts)
    return np.log1p(1e4 * dense / np.maximum(dense.sum(1, keepdims=True), 1.0))


def _standardized(values: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return np.clip((values - mean) / sd, -MAX_SD, MAX_SD)


def _clusters(x: np.ndarray) -> np.ndarray:
    """Cluster (n,) of every cell, 30 at most: populations that mixtures are made of."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        labels = KMeans(max(1, min(MIXTURE_CLUSTERS, len(x) // 10)), n_init=1, random_state=0).fit(x).labels_
    return np.unique(labels, return_inverse=True)[1]


def _mixtures(cluster: np.ndarray, k: int, rng: np.random.Generator) -> sp.csr_matrix:
    """Which k cells every mixture holds (mixtures × cells): few clusters in each, as a niche has."""
    sizes = np.bincount(cluster)
    order, start = np.argsort(cluster, kind="stable"), np.cumsum(sizes) - sizes
    share = rng.dirichlet(MIXTURE_SPREAD * len(sizes) * sizes / sizes.sum(), N_MIXTURES)
    drawn = (rng.random((N_MIXTURES, k, 1)) > share.cumsum(1)[:, None, :]).sum(2).clip(max=len(sizes) - 1)
    cells = order[start[drawn] + (rng.random((N_MIXTURES, k)) * sizes[drawn]).astype(int)]
    rows = np.repeat(np.arange(N_MIXTURES), k)
    # whole numbers: sums in float32 are exact
    ones = np.ones(rows.size, dtype=np.float32)
    return sp.csr_matrix((ones, (rows, cells.ravel())), shape=(N_MIXTURES, len(cluster)))


def _mixed(mixing: sp.csr_matrix, counts: Values) -> Any:
    """Counts of all features in the mixtures, stored so that blocks of columns are quick to take."""
    mixed = mixing @ counts
    return mixed.tocsc() if sp.issparse(mixed) else mixed


def _thinned_scores(
    mixed: Any, rates: np.ndarray, totals: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes (p × l) of mixtures thinned to the source's rates and depth, and their scores."""
    dense = _dense(mixed) * rates
    expected = dense / np.maximum(dense.sum(1, keepdims=True), 1e-9)
    thinned = _log_shares(rng.poisson(expected * rng.choice(totals, len(expected))[:, None]))
    mean, sd = column_moments(thinned)
    z = _standardized(thinned, mean, np.where(sd > 0, sd, 1.0))
    matrix = Standardized(SmoothedMatrix(z), np.zeros(z.shape[1]), np.ones(z.shape[1]))
    axes = principal_axes([matrix], min(IMPUTATION_PCS, *z.shape))
    return axes, z @ axes.T


def _regressed(mixed: Any, totals: np.ndarray, hidden: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Loadings (p × h) of the hidden features' log shares in the mixtures, before they were thinned."""
    centred = scores - scores.mean(0)
    total = np.maximum(totals, 1.0)[:, None]
    gram, out = centred.T @ centred, np.empty((scores.shape[1], len(hidden)))
    for start in range(0, len(hidden), BLOCK):
        y = np.log1p(1e4 * _dense(mixed[:, hidden[start : start + BLOCK]]) / total)
        out[:, start : start + BLOCK] = solve_ridge(gram, centred.T @ y, START_RIDGE)
    return out


def _over_sd(scores: np.ndarray, loadings: np.ndarray) -> np.ndarray:
    """Loadings whose predictions have variance 1 over cells with these scores; 0 where they have none."""
    sd = np.sqrt(
        np.maximum(np.einsum("pg,pg->g", loadings, np.cov(scores.T, ddof=0).reshape(len(loadings), -1) @ loadings), 0)
    )
    return np.where(sd > 1e-12, loadings / np.maximum(sd, 1e-12), 0.0)


def _decoded_moments(image: np.ndarray, target: Domain, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of decoded features over mapped cells."""
    mean, sd = np.empty(len(features)), np.empty(len(features))
    for start in range(0, len(features), BLOCK):
        block = target.transform.inverse(image, features[start : start + BLOCK]).astype(np.float64)
        mean[start : start + BLOCK], sd[start : start + BLOCK] = block.mean(0), block.std(0)
    return mean, np.where(constant(mean, sd), 0.0, sd)
