"""Correlations in measured and in mapped cells, their null and their limits.

Nothing cells × features is made from a sparse matrix or from mapped cells: blocks of columns, and covariances of model space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy import stats

from scmmgan.model.defaults import BLOCK, CORRELATION_ALPHA, NOISE_TOLERANCE, PERMUTATIONS, RESAMPLES
from scmmgan.model.problem import Modality, Values
from scmmgan.model.progress import tracked
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.graphs import graph_scores
from scmmgan.model.space.linear import constant
from scmmgan.model.space.smoothing import BatchedMatrix, Matrix, SmoothedMatrix
from scmmgan.model.space.transform import decoder_of

# --- correlations ------------------------------------------------------------------------------------------------


def correlate(matrix: Matrix, queries: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Pearson correlation (queries × features) over the rows; 0 where a column is constant."""
    own = unit(matrix.columns(queries))
    return np.hstack([own.T @ unit(matrix.columns(features[at])) for at in _blocks(len(features))])


def correlate_decoded(
    y: np.ndarray, decoder: np.ndarray, queries: np.ndarray, features: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """The same for cells y (n × p) decoded by V (p × g), from V' C V; one more axis in front for weights (n × s)."""
    covariance = _covariance(y, weights)
    own, own_sd = _half(covariance, decoder[:, queries])
    out = np.empty((len(covariance), len(queries), len(features)))
    for at in _blocks(len(features)):
        v = decoder[:, features[at]]
        sd = _half(covariance, v)[1]
        out[:, :, at] = _ratio(own.transpose(0, 2, 1) @ v, own_sd[:, :, None] * sd[:, None, :])
    return out[0] if len(out) == 1 else out


def covary_decoded(
    y: np.ndarray, own: np.ndarray, others: np.ndarray, own_sd: np.ndarray, sd: np.ndarray
) -> np.ndarray:
    """Covariances of features decoded by `own` (p × q) with those by `others` (p × f), over given sds."""
    return _over(own.T @ _covariance(y)[0] @ others, np.outer(own_sd, sd))


def _covariance(y: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Covariance of the columns under each of the weights (n × s, equal ones by default), s × p × p in float64."""
    y = y.astype(np.float64)
    weights = np.full((len(y), 1), 1 / len(y)) if weights is None else weights
    out = np.empty((weights.shape[1], y.shape[1], y.shape[1]))
    for c, w in zip(out, weights.T):
        centred = y - w @ y
        c[:] = (centred.T * w) @ centred
    return out


def decoded_sd(y: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """Sd of every decoded feature over the cells y."""
    return _half(_covariance(y), decoder)[1][0]


def _half(covariance: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C V (s × p × g) and the sd of every decoded feature (s × g), 0 where it is rounding."""
    half = covariance @ v
    variance = np.einsum("pg,spg->sg", v, half)
    limit = 1e-12 * np.trace(covariance, axis1=1, axis2=2)[:, None] * (v**2).sum(0)
    return half, np.sqrt(np.where(variance > limit, variance, 0))


def column_sd(matrix: Matrix, features: np.ndarray) -> np.ndarray:
    """Sd of chosen columns."""
    return np.concatenate([matrix.columns(features[at]).std(0, dtype=np.float64) for at in _blocks(len(features))])


def unit(columns: np.ndarray) -> np.ndarray:
    """Centred columns of length 1, or 0 where nothing but rounding is left."""
    mean = columns.mean(0, dtype=np.float64)
    centred = columns - mean.astype(columns.dtype)
    length = np.sqrt(np.einsum("ij,ij->j", centred, centred, dtype=np.float64))
    still = constant(mean, length / np.sqrt(len(columns)))
    return centred * np.where(still, 0, 1 / np.where(still, 1, length)).astype(columns.dtype)


def scaled(columns: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Centred columns over sqrt(n) times sds that are not their own; 0 where these are."""
    centred = columns - columns.mean(0, dtype=np.float64)
    return _over(centred, np.broadcast_to(np.sqrt(len(columns)) * sd, centred.shape))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Correlations from covariances and products of sds."""
    return np.clip(_over(top, bottom), -1, 1)


def _over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Quotients, 0 where nothing varies."""
    out = np.zeros(np.broadcast_shapes(top.shape, bottom.shape))
    return np.divide(top, bottom, out=out, where=bottom > 0)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


# --- limits ------------------------------------------------------------------------------------------------------


def resampled(n: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of n cells drawn with replacement, n × resamples."""
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).T / n


def limits(matrix: Matrix, queries: np.ndarray, features: np.ndarray, weights: np.ndarray, signed: bool) -> np.ndarray:
    """Upper one-sided 95 % bootstrap limit (queries × features) of the correlations over the rows."""
    weights = weights.astype(np.float32)
    own = unit(matrix.columns(queries))
    out = np.empty((len(queries), len(features)))
    own_mean, own_square = weights.T @ own, weights.T @ own**2
    for at in _blocks(len(features)):
        block = unit(matrix.columns(features[at]))
        mean = weights.T @ block
        variance = weights.T @ block**2 - mean**2
        for i in range(len(queries)):
            cross = (weights * own[:, i, None]).T @ block - own_mean[:, i, None] * mean
            spread = np.maximum((own_square - own_mean**2)[:, i, None] * variance, 0)
            out[i, at] = upper(_ratio(cross, np.sqrt(spread)), signed)
    return out


def limits_decoded(
    y: np.ndarray, decoder: np.ndarray, queries: np.ndarray, features: np.ndarray, weights: np.ndarray, signed: bool
) -> np.ndarray:
    """The same for decoded cells."""
    blocks = [features[at] for at in _blocks(len(features))]
    return np.hstack([upper(correlate_decoded(y, decoder, queries, block, weights), signed) for block in blocks])


def upper(r: np.ndarray, signed: bool) -> np.ndarray:
    """95 % quantile over the first axis, of magnitudes unless signed."""
    return np.quantile(r if signed else np.abs(r), 1 - CORRELATION_ALPHA, axis=0)


# --- null --------------------------------------------------------------------------------------------------------


def unrelated(rng: np.random.Generator, domain: Domain) -> Matrix:
    """Features that have nothing to do with the cells: each permuted on its own, smoothed on the graph that is there."""
    matrix = domain.smoothed
    if isinstance(matrix, BatchedMatrix):
        # the batches' shifts and scales are those of the features as they are
        return matrix.of_parts([_unrelated(rng, part) for part in matrix.parts])
    return _unrelated(rng, matrix)


def _unrelated(rng: np.random.Generator, matrix: SmoothedMatrix) -> SmoothedMatrix:
    return SmoothedMatrix(permuted(matrix.unsmoothed, rng), matrix.operator if matrix.steps else None, matrix.steps)


def covary(own: np.ndarray, matrix: Matrix, features: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Covariances (queries × features) of columns of unit length with features of a matrix, over given sds."""
    return _over(matrix.tdot(own.astype(np.float64)).T[:, features], np.sqrt(len(own)) * sd)


def null(once: Callable[[np.random.Generator], Sequence[np.ndarray]], random_state: int) -> list[np.ndarray]:
    """What `once` gives (queries × features each) of permuted data, stacked: queries × permutations × features."""
    found = [once(np.random.default_rng([random_state, i])) for i in tracked(range(PERMUTATIONS), "permutations")]
    return [np.stack(part, axis=1) for part in zip(*found)]


def permuted_smoothed(
    rng: np.random.Generator, modality: Modality, t: int, *, denoise: bool = True, random_state: int = 0
) -> Matrix:
    """Every feature permuted over the cells (of each batch) on its own, then smoothed on a graph of its own."""

    def part(values: Values) -> SmoothedMatrix:
        shuffled = permuted(values, rng)
        if not t:
            return SmoothedMatrix(shuffled)
        scores = graph_scores(shuffled, modality.allowed, denoise=denoise, tolerance=NOISE_TOLERANCE)
        return SmoothedMatrix(shuffled, smoothing_operator(scores, random_state=random_state), t)

    if modality.batches is None:
        return part(modality.values)
    return BatchedMatrix([part(modality.values[rows]) for rows in modality.batches], modality.batches)


def permuted(x: Values | sp.csc_matrix, rng: np.random.Generator) -> np.ndarray | sp.csc_matrix:
    """Every column in an order of its own."""
    if isinstance(x, np.ndarray):
        return rng.permuted(x, axis=0)
    out = x.tocsc(copy=True)
    for start, stop in zip(out.indptr[:-1].tolist(), out.indptr[1:].tolist()):
        out.indices[start:stop] = rng.choice(out.shape[0], stop - start, replace=False)
    out.has_sorted_indices = False
    return out


def with_nulls(
    domains: Mapping[str, Domain],
    source: str,
    target: str,
    measured_in: str,
    rows: Mapping[str, np.ndarray],
    queries: Mapping[str, np.ndarray],
    translate: Callable[[np.ndarray], np.ndarray] | None,
    *,
    steps: Mapping[str, int],
    denoise: bool,
    signed: bool,
    seed: int,
    graph_seed: int,
) -> dict[str, dict[str, Any]]:
    """r, its nulls and its limit (queries first) of both sides.

    `rows`, `queries`: positions of features, where "measured" and where "mapped". `translate` maps model-space cells; None:
    the measured side alone, without a limit.
    """
    at = {side: (queries[side], rows[side]) for side in ("measured", "mapped")}
    goal = domains[target]
    y = np.zeros((2, goal.x.shape[1])) if translate is None else translate(domains[source].x)
    decoder = goal.transform.decoder
    asked, others = (decoder[:, of] for of in at["mapped"])
    mapped_sd = (decoded_sd(y, asked), decoded_sd(y, others))
    own = domains[measured_in].smoothed.by_column()
    lines = unit(own.columns(at["measured"][0]))
    line_sd, own_sd = (column_sd(own, of) for of in at["measured"])

    def noise_of(name: str, rng: np.random.Generator) -> Matrix:
        return permuted_smoothed(rng, domains[name].modality, steps[name], denoise=denoise, random_state=graph_seed)

    def once(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        noise = noise_of(source, rng)
        drawn = noise if measured_in == source else noise_of(target, rng)
        apart = {m: unrelated(rng, domains[m]) for m in dict.fromkeys((target, measured_in))}
        strays = scaled(apart[measured_in].columns(at["measured"][0]), line_sd)
        measured = (
            correlate(drawn, *at["measured"]),
            covary(lines, apart[measured_in], at["measured"][1], own_sd),
            covary(strays, own, at["measured"][1], own_sd),
        )
        if translate is None:
            return measured
        loadings = decoder_of(apart[target], goal.x * float(goal.transform.scale), goal.transform)
        image = translate(domains[source].transform.transform(noise))
        return (
            *measured,
            covary_decoded(image, asked, others, *mapped_sd),
            covary_decoded(y, asked, loadings[:, at["mapped"][1]], *mapped_sd),
            covary_decoded(y, loadings[:, at["mapped"][0]], others, *mapped_sd),
        )

    nulls = null(once, seed)
    measured: dict[str, Any] = {"r": correlate(own, *at["measured"]), "correlated": nulls[0], "covaried": nulls[1:3]}
    if translate is None:
        return {"measured": measured}
    # the same cells are drawn on both sides where they are the same
    names = dict.fromkeys((source, measured_in))
    shares = {m: resampled(len(domains[m].x), np.random.default_rng([seed, i, 1])) for i, m in enumerate(names)}
    measured["limit"] = limits(own, *at["measured"], shares[measured_in], signed)
    limit = limits_decoded(y, decoder, *at["mapped"], shares[source], signed)
    mapped = {"r": correlate_decoded(y, decoder, *at["mapped"]), "covaried": nulls[3:], "limit": limit}
    return {"measured": measured, "mapped": mapped}


# --- tests -------------------------------------------------------------------------------------------------------


def strength(r: np.ndarray, signed: bool) -> np.ndarray:
    """Fisher's z, of magnitudes unless signed."""
    return np.arctanh(np.clip(r if signed else np.abs(r), -1 + 1e-12, 1 - 1e-12))


def against_null(z: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many sds of its null (permutations × features) every feature's z lies above the null's mean; p, one-sided.

    Standardised nulls are pooled over features. Each is standardised by the other permutations only: the observed
    value is no part of its own mean and sd either.
    """
    k = len(null)
    mean, var = null.mean(0), null.var(0, ddof=1)
    floor = max(1e-12, 1e-6 * float(var.mean()))
    others = (k * mean - null) / (k - 1)
    rest = np.maximum(((k - 1) * var - (null - mean) * (null - others)) / (k - 2), floor)
    pooled = np.sort(((null - others) / np.sqrt(rest)).ravel())
    effect = (z - mean) / np.sqrt(np.maximum(var, floor))
    above = len(pooled) - np.searchsorted(pooled, effect - 1e-12)
    return effect, (1 + above) / (1 + len(pooled))


def against_nulls(
    r: np.ndarray, *, correlated: np.ndarray | None = None, covaried: Sequence[np.ndarray] = (), signed: bool
) -> dict[str, np.ndarray]:
    """Rank, z above the null, p and q of one query's correlations.

    Nulls are permutations × features: correlations, compared as Fisher's z, or covariances over the observed sds, compared
    as they are, since they may pass 1. The one that explains most counts.
    """
    strong = strength(r, signed)
    tests = [] if correlated is None else [against_null(strong, strength(correlated, signed))]
    tests += [against_null(r, c) if signed else against_null(np.abs(r), np.abs(c)) for c in covaried]
    p = np.max([p for _, p in tests], axis=0)
    return {"rank": ranks(strong), "z": np.min([z for z, _ in tests], axis=0), "p": p, "q": adjusted(p)}


def ranks(strong: np.ndarray) -> np.ndarray:
    """1 for the strongest."""
    rank = np.empty(len(strong), dtype=int)
    rank[np.argsort(-strong, kind="stable")] = np.arange(1, len(strong) + 1)
    return rank


def adjusted(p: np.ndarray) -> np.ndarray:
    """Q of Benjamini and Hochberg."""
    return np.asarray(stats.false_discovery_control(p))


def called(spurious: np.ndarray, novel: np.ndarray) -> np.ndarray:
    """For every feature "spurious", "novel" or nothing."""
    return np.where(spurious, "spurious", np.where(novel, "novel", "")).astype(object)


def listed(
    a: np.ndarray, b: np.ndarray, rank_a: np.ndarray, rank_b: np.ndarray, *, n_top: int, threshold: float, signed: bool
) -> np.ndarray:
    """The paper's lists: strong by rank on one side, below the threshold on the other; on both: neither."""
    weak = [(r if signed else np.abs(r)) < threshold for r in (a, b)]
    spurious, novel = (rank_a <= n_top) & weak[1], (rank_b <= n_top) & weak[0]
    return called(spurious & ~novel, novel & ~spurious)
