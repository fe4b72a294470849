"""Correlations of genes over pools of similar cells of the target, and over the source's cells given their depth.

Means of mapped cells say little of how genes go together in a cell: maps smooth. Pools of about 15 cells (metacells) of the
target itself do: their counts are summed, so that zeros of single cells average out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import scipy.sparse as sp
from scipy import stats

from scmmgan.model.defaults import (
    BLOCK,
    CORRELATION_ALPHA,
    FEW_POOLS,
    JACKKNIFED,
    MAX_POOLS,
    N_POOLINGS,
    POOL_CELLS,
)
from scmmgan.model.problem import Modality, Values
from scmmgan.model.progress import tracked
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.linear import constant


def pooled_correlations(
    domain: Domain, weight: np.ndarray, queries: np.ndarray, features: np.ndarray, *, random_state: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations (queries × features) over pools of cells, mean of five poolings, and the standard errors of their Fisher's z.

    `weight` (n,): how far a cell has counterparts; cells without do not count. Where no cell counts, all is 0.
    Errors are those of a jackknife over six parts of the cells, as pools are no independent draws, and of the difference
    between poolings; where there are few pools they are Fisher's at least.
    """
    shape = (len(queries), len(features))
    if not weight.any():
        return np.zeros(shape), np.ones(shape)
    z, first, second, sizes = np.empty((N_POOLINGS, *shape)), np.zeros(shape), np.zeros(shape), []
    rng = np.random.default_rng(random_state)
    for i in tracked(range(N_POOLINGS), "pools"):
        pool = _pools(domain.x, random_state + i)
        k = pool.max() + 1
        # sums of every pool's cells in each part: whatever is left out, the values are looked at once
        at = k * (rng.permutation(len(pool)) % JACKKNIFED) + pool
        parts = sp.csr_matrix((weight, (at, np.arange(len(pool)))), shape=(JACKKNIFED * k, len(pool)))
        share = _kept(parts @ np.ones(len(pool)))
        there = share[0] > 1e-9
        sizes.append(1 / float(((share[0] / share[0].sum()) ** 2).sum()))
        share = share[:, there] / share[:, there].sum(1, keepdims=True)
        value = _values_of(domain.modality, parts)
        own = [_scaled(v[there], w) for v, w in zip(value(queries), share)]
        for start in range(0, len(features), BLOCK):
            block = slice(start, start + BLOCK)
            others = (_scaled(v[there], w) for v, w in zip(value(features[block]), share))
            found = np.stack([np.arctanh(_clipped(a.T @ b)) for a, b in zip(own, others)])
            z[i, :, block] = found[0]
            for total, of in zip((first, second), _jackknife(found)):
                total[:, block] += of / N_POOLINGS
    # noise of two genes together is of second order, which a jackknife counts twice (Efron and Stein 1981)
    error = np.sqrt(np.maximum(first - second, first / 2) + z.var(0, ddof=1) / N_POOLINGS)
    n = float(np.mean(sizes))
    return np.tanh(z.mean(0)), np.maximum(error, fisher_error(n)) if n < FEW_POOLS else error


def fisher_error(n: float) -> float:
    """Standard error of Fisher's z over n independent rows."""
    return float(1 / np.sqrt(max(n - 3, 1)))


def _clipped(r: np.ndarray) -> np.ndarray:
    return np.clip(r, -0.999999, 0.999999)


def _kept(sums: np.ndarray) -> np.ndarray:
    """Sums of the parts (parts · pools × …) over all, over all but each, and over all but each two (… × pools × …)."""
    g = JACKKNIFED
    out = [(), *((i,) for i in range(g)), *combinations(range(g), 2)]
    stay = np.array([[float(i not in of) for i in range(g)] for of in out])
    return np.tensordot(stay, sums.reshape(g, -1, *sums.shape[1:]), 1)


def _jackknife(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance by what each part changes, and the part of it by what two change together; `z` as `_kept` has it."""
    g = JACKKNIFED
    one, a, b = z[1 : 1 + g], *np.array(list(combinations(range(g), 2))).T
    together = g * z[0] - (g - 1) * (one[a] + one[b]) + (g - 2) * z[1 + g :]
    return (g - 1) * one.var(0), together.var(0) / 2


def _pools(x: np.ndarray, random_state: int) -> np.ndarray:
    """Number (n,) of every cell's pool."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        k = int(np.clip(len(x) // POOL_CELLS, 2, MAX_POOLS))
        rows = np.random.default_rng(random_state).permutation(len(x))[: 20 * k]
        means = KMeans(k, n_init=1, max_iter=20, random_state=random_state).fit(x[rows])
        return np.unique(means.predict(x), return_inverse=True)[1]


def _values_of(modality: Modality, parts: sp.csr_matrix) -> Callable[[np.ndarray], np.ndarray]:
    """What gives log values (… × pools × chosen features), as `_kept` has it: of summed counts, or of the layer where there are none."""
    counts, values = modality.counts, modality.values
    per_cell = np.ones(parts.shape[1]) if counts is None else np.asarray(counts.sum(1), dtype=np.float64).ravel()
    total = np.maximum(_kept(parts @ per_cell), 1e-9)[:, :, None]

    def mean(columns: Values) -> np.ndarray:
        return _kept(_dense(parts @ columns)) / total

    if counts is not None:
        return lambda at: np.log1p(1e4 * mean(counts[:, at]))
    if _logs(values):
        # the mean of logs is ruled by zeros
        return lambda at: np.log1p(mean(_expm1(values[:, at])))
    return lambda at: mean(values[:, at])


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


def limits(
    r: np.ndarray, error: np.ndarray | float, *, signed: bool, alpha: float = CORRELATION_ALPHA
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper one-sided limits of correlations by the errors of their Fisher's z, of magnitudes unless signed."""
    z = np.arctanh(_clipped(r if signed else np.abs(r)))
    width = stats.norm.ppf(1 - alpha) * error
    lower, upper = np.tanh(z - width), np.tanh(z + width)
    return (lower, upper) if signed else (np.maximum(lower, 0), upper)


def significance(r: np.ndarray, error: np.ndarray | float, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fisher's z in units of its error, and p; one-sided if signed, else two-sided."""
    z = np.arctanh(_clipped(r if signed else np.abs(r))) / error
    return z, np.asarray(stats.norm.sf(z) if signed else np.minimum(2 * stats.norm.sf(z), 1))
