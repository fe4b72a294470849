"""Neighbour graphs of a modality's cells, on denoised principal components, and the values that they smooth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import LABEL_PURITY_CELLS, MIN_LABEL_PURITY, N_PCS, SMOOTHING_NEIGHBORS
from scmmgan.model.problem import Modality, Values
from scmmgan.model.space.diffusion import nearest_neighbors, smoothing_operator
from scmmgan.model.space.moments import column_moments
from scmmgan.model.space.pca import Projection, Standardized, dispersed, principal_axes
from scmmgan.model.space.scratch import by_row, columns_of, rows_of
from scmmgan.model.space.smoothing import BatchedMatrix, Matrix, SmoothedMatrix


@dataclass(frozen=True)
class Graph:
    """Neighbours of the cells of one batch: where they were looked for, and the operator that smooths.

    `scores` (n × p): the cells in the space of `projection`.
    """

    operator: sp.csr_matrix
    projection: Projection
    scores: np.ndarray


def neighbor_graphs(
    modality: Modality, labels: np.ndarray | None = None, *, denoise: bool = True, random_state: int = 0
) -> tuple[list[Graph], np.ndarray | None]:
    """Neighbour graphs of a modality's cells, one for each batch; and the purity of each label, None without labels.

    Neighbours are looked for on principal components, denoised by default, inside labels (codes, -1: none) that are
    pure: others would be written into the data.
    """
    rows = modality.batches or (np.arange(len(modality)),)
    parts = [modality.values if modality.batches is None else rows_of(modality.values, r) for r in rows]
    spaces = [
        graph_space(part, modality.allowed, denoise=denoise, covariates=modality.covariates_of(r))
        for part, r in zip(parts, rows)
    ]
    own: list[np.ndarray | None] = [None] * len(parts)
    purity = None
    if labels is not None:
        of = [labels[r] for r in rows]
        purity = label_purity([scores for _, scores in spaces], of)
        pure = np.flatnonzero(purity >= MIN_LABEL_PURITY)
        own = [np.where(np.isin(codes, pure), codes, -1) for codes in of]
    graphs = [
        Graph(smoothing_operator(scores, labels=codes, random_state=random_state), projection, scores)
        for (projection, scores), codes in zip(spaces, own)
    ]
    return graphs, purity


def smoothed(modality: Modality, operators: Sequence[sp.csr_matrix], t: int) -> Matrix:
    """The modality's values after t steps of smoothing by the operators of its batches."""
    if modality.batches is None:
        return SmoothedMatrix(modality.values, operators[0] if t else None, t, modality.covariates)
    each = operators if t else [None] * len(modality.batches)
    parts = [
        SmoothedMatrix(rows_of(modality.values, rows), operator, t, modality.covariates_of(rows))
        for rows, operator in zip(modality.batches, each)
    ]
    return BatchedMatrix(parts, modality.batches)


def label_purity(spaces: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """Chance-corrected purity (labels,) of every label (codes, -1: none) among cells' nearest ones: 0 chance, 1 at best.

    The share of a label's own cells among the 15 nearest labelled ones (fewer of a small label), rescaled by the share
    that chance gives: a population split at random keeps its shares. Mean over the cells of all spaces (batches), of at
    most 5,000 each, drawn at random. NaN of a label that never has two cells and another label beside it.
    """
    total, count = (np.zeros(1 + max(int(of.max()) for of in labels)) for _ in range(2))
    for x, of in zip(spaces, labels):
        rows = np.flatnonzero(of >= 0)
        if len(rows) > LABEL_PURITY_CELLS:
            rows = np.sort(np.random.default_rng(0).permutation(rows)[:LABEL_PURITY_CELLS])
        codes, code, sizes = np.unique(of[rows], return_inverse=True, return_counts=True)
        if len(codes) < 2:
            continue
        near = nearest_neighbors(x[rows], SMOOTHING_NEIGHBORS)[0]
        for c, size in enumerate(sizes):
            if size > 1:
                share = (code[near[code == c, : min(SMOOTHING_NEIGHBORS, size - 1)]] == c).mean()
                chance = (size - 1) / (len(rows) - 1)
                total[codes[c]] += size * (share - chance) / (1 - chance)
                count[codes[c]] += size
    return total / np.where(count > 0, count, np.nan)


def graph_scores(
    x: Values | sp.csc_matrix,
    allowed: np.ndarray | None = None,
    *,
    n_pcs: int = N_PCS,
    denoise: bool = True,
    tolerance: float = 0.0,
) -> np.ndarray:
    """Leading principal components (n × p, float32) of the z-scored columns, each shrunk by its share of noise."""
    return graph_space(x, allowed, n_pcs=n_pcs, denoise=denoise, tolerance=tolerance)[1]


def graph_space(
    x: Values | sp.csc_matrix,
    allowed: np.ndarray | None = None,
    *,
    n_pcs: int = N_PCS,
    denoise: bool = True,
    tolerance: float = 0.0,
    covariates: np.ndarray | None = None,
) -> tuple[Projection, np.ndarray]:
    """The same components, and the projection that gives those of other cells.

    `tolerance` of the singular vectors: those of noise lie close, and exact ones would take ten times as long.
    """
    mean, sd = column_moments(x)
    at = dispersed(mean, sd, np.arange(len(mean)) if allowed is None else allowed, np.array([], dtype=int))
    at = at[sd[at] > 0]
    if not len(at):
        return Projection(at, mean[at], sd[at], np.zeros((1, 0))), np.zeros((x.shape[0], 1), dtype=np.float32)
    taken: Any = columns_of(x, at) if len(at) < len(mean) else x
    sparse: bool = sp.issparse(taken)
    matrix = SmoothedMatrix(by_row(taken) if sparse else taken, covariates=covariates)
    z = Standardized(matrix, mean[at], sd[at])
    axes = principal_axes([z], min(n_pcs, len(at), x.shape[0] - 1), tolerance=tolerance)
    scores = z.dot(axes.T).astype(np.float32)
    shrunk = shrinkage(scores, len(at)) if denoise else np.ones(len(axes))
    return Projection(at, mean[at], sd[at], axes * shrunk[:, None]), (scores * shrunk).astype(np.float32)


def shrinkage(scores: np.ndarray, n_features: int) -> np.ndarray:
    """Factors (p,) that shrink scores (n × p) of z-scored features by their share of noise (Gavish and Donoho 2017).

    Noise is what the `n_features` vary by beside the components that rise above it: an estimate from below where the
    features' noise is unequal, so that too little is taken away. Nothing is shrunk where there are no features beside
    the components, or fewer than two components that rise.
    """
    n, p = scores.shape
    variance = np.square(scores, dtype=np.float64).mean(0)
    largest, ratio, above = np.sort(variance)[::-1], n_features / n, p
    if n_features <= p:
        return np.ones(p)
    while True:
        noise = max((n_features - largest[:above].sum()) / (n_features - above), 1e-12)
        least = noise * (1 + np.sqrt(ratio)) ** 2
        # fewer components leave more to the noise, so this comes to an end
        if (found := int((largest[:above] > least).sum())) == above:
            break
        above = found
    if above < 2:
        return np.ones(p)
    value = variance / noise
    shrunk = np.sqrt(np.maximum((value - ratio - 1) ** 2 - 4 * ratio, 0)) / np.maximum(value, 1e-12)
    return np.where(variance > least, shrunk, 0)
