"""Correlations of genes over pools of similar cells of the target, and over the source's cells given their depth.

Means of mapped cells say little of how genes go together in a cell: maps smooth. Pools of about 15 cells (metacells) of the
target itself do: their counts are summed, so that zeros of single cells average out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from scipy import stats

from scmmgan.model.defaults import BLOCK, CORRELATION_ALPHA, MAX_POOLS, N_POOLINGS, POOL_CELLS
from scmmgan.model.problem import Modality, Values
from scmmgan.model.progress import tracked
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.linear import constant


def pooled_correlations(
    domain: Domain, weight: np.ndarray, queries: np.ndarray, features: np.ndarray, *, random_state: int
) -> tuple[np.ndarray, float]:
    """Correlations (queries × features) over pools of cells, mean of five poolings, and the number of pools that count.

    `weight` (n,): how far a cell has counterparts; cells without do not count. Where no cell counts, all is 0.
    """
    if not weight.any():
        return np.zeros((len(queries), len(features))), 0.0
    total, sizes = np.zeros((len(queries), len(features))), []
    for i in tracked(range(N_POOLINGS), "pools"):
        pools = _pools(domain.x, random_state + i)
        share = np.asarray(pools @ weight).ravel()
        keep = share > 1e-9
        pools, share = pools[keep] @ sp.diags_array(weight), share[keep] / share[keep].sum()
        sizes.append(1 / float((share**2).sum()))
        value = _values_of(domain.modality, pools)
        own = _scaled(value(queries), share)
        for start in range(0, len(features), BLOCK):
            block = _scaled(value(features[start : start + BLOCK]), share)
            total[:, start : start + BLOCK] += np.arctanh(np.clip(own.T @ block, -0.999999, 0.999999))
    return np.tanh(total / N_POOLINGS), float(np.mean(sizes))


def _pools(x: np.ndarray, random_state: int) -> sp.csr_matrix:
    """Which cells each pool holds (pools × cells)."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        k = int(np.clip(len(x) // POOL_CELLS, 2, MAX_POOLS))
        rows = np.random.default_rng(random_state).permutation(len(x))[: 20 * k]
        means = KMeans(k, n_init=1, max_iter=20, random_state=random_state).fit(x[rows])
        label = np.unique(means.predict(x), return_inverse=True)[1]
    return sp.csr_matrix((np.ones(len(x)), (label, np.arange(len(x)))))


def _values_of(modality: Modality, pools: sp.csr_matrix) -> Callable[[np.ndarray], np.ndarray]:
    """What gives log values (pools × chosen features): of summed counts, or of the layer where there are none."""
    if modality.counts is not None:
        counts = modality.counts
        per_cell = np.asarray(counts.sum(1), dtype=np.float64).ravel()
        total = np.maximum(pools @ per_cell, 1e-9)[:, None]
        return lambda at: np.log1p(1e4 * _dense(pools @ counts[:, at]) / total)
    values, mass = modality.values, np.maximum(pools @ np.ones(pools.shape[1]), 1e-9)[:, None]
    if _logs(values):
        # the mean of logs is ruled by zeros
        return lambda at: np.log1p(_dense(pools @ _expm1(values[:, at])) / mass)
    return lambda at: _dense(pools @ values[:, at]) / mass


def _logs(values: Values) -> bool:
    """Whether values may be log1p of something: none negative, none so large that its exponential is absurd."""
    data = values.data if sp.issparse(values) else values
    return bool(np.size(data) == 0 or (data.min() >= 0 and data.max() < 20))


def _expm1(values: Values) -> Values:
    return values.expm1() if sp.issparse(values) else np.expm1(values.astype(np.float64))


def _dense(values: Values) -> np.ndarray:
    return np.asarray(values.toarray() if sp.issparse(values) else values, dtype=np.float64)


def _scaled(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Columns whose products are weighted correlations; 0 where a column is constant."""
    mean = share @ values
    centred = values - mean
    sd = np.sqrt(share @ centred**2)
    still = constant(mean, sd)
    return np.sqrt(share)[:, None] * centred * np.where(still, 0, 1 / np.where(still, 1, sd))


def given_depth(domain: Domain, queries: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Correlations (queries × features) over the cells as they were measured, not smoothed; given log depth, if there are counts."""
    counts = domain.modality.counts
    n = len(domain.x)
    design = np.ones((n, 1))
    if counts is not None:
        depth = np.log1p(np.asarray(counts.sum(1), dtype=np.float64).ravel())
        if depth.std() > 0:
            design = np.column_stack([design, (depth - depth.mean()) / depth.std()])
    share = np.full(n, 1 / n)

    def rest(at: np.ndarray) -> np.ndarray:
        values = domain.smoothed.measured(at).astype(np.float64)
        return _scaled(values - design @ np.linalg.lstsq(design, values, rcond=None)[0], share)

    own = rest(queries)
    blocks = [features[start : start + BLOCK] for start in range(0, len(features), BLOCK)]
    return np.hstack([own.T @ rest(block) for block in blocks])


def limits(r: np.ndarray, n: float, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper one-sided 95 % limits of correlations over n rows (Fisher), of magnitudes unless signed."""
    z = np.arctanh(np.clip(r if signed else np.abs(r), -0.999999, 0.999999))
    width = stats.norm.ppf(1 - CORRELATION_ALPHA) / np.sqrt(max(n - 3, 1))
    lower, upper = np.tanh(z - width), np.tanh(z + width)
    return (lower, upper) if signed else (np.maximum(lower, 0), upper)


def significance(r: np.ndarray, n: float, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fisher's z in units of its sd over n rows, and p; one-sided if signed, else two-sided."""
    z = np.arctanh(np.clip(r if signed else np.abs(r), -0.999999, 0.999999)) * np.sqrt(max(n - 3, 1))
    return z, np.asarray(stats.norm.sf(z) if signed else np.minimum(2 * stats.norm.sf(z), 1))
