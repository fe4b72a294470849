"""Which cells a spot holds: its counts as a Poisson mixture of the mean counts of labelled cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import MAP_CHUNK, MIXTURE_RATE, MIXTURE_ROUNDS, MIXTURE_STEPS
from scmmgan.model.problem import Values


def compositions(counts: Values, reference: Values, codes: np.ndarray, n_labels: int) -> np.ndarray:
    """Shares of cells (n × labels) by label, from counts of the same features (n × g, and reference cells × g); rows sum to 1.

    `codes` (reference cells,): labels, -1 unknown. Counts are Poisson with mean Σ w_t P_t r: the mean profile P of each label,
    and a rate r at which the source catches each feature. Shares of molecules and rates are found in turn by expectation
    maximisation; over the mean total of a label's cells they are shares of cells. Rows without counts are 0.
    """
    known = codes >= 0
    member = sp.csr_matrix((np.ones(known.sum()), (codes[known], np.flatnonzero(known))), (n_labels, len(codes)))
    sums = member @ reference
    profile = np.asarray(sums.toarray() if sp.issparse(sums) else sums, dtype=np.float64)
    total = profile.sum(1)
    per_cell = total / np.maximum(np.asarray(member.sum(1)).ravel(), 1)
    profile /= np.maximum(total, 1e-12)[:, None]
    molecules = np.ones((counts.shape[0], n_labels)) * (total > 0)
    caught, rate = np.asarray(np.ones(counts.shape[0]) @ counts), np.ones(profile.shape[1])
    for turn in range(MIXTURE_ROUNDS):
        if turn:
            rate = _rates(caught, molecules.sum(0) @ profile)
        for rows, block in _blocks(counts):
            molecules[rows] = _shares(block, profile * rate, molecules[rows])
    cells = np.where(per_cell > 0, molecules / np.maximum(per_cell, 1e-12), 0.0)
    return cells / np.maximum(cells.sum(1, keepdims=True), 1e-12)


def _rates(caught: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Rate of every feature, 1 in the geometric mean over molecules; what no label has says nothing."""
    seen = (expected > 0) & (caught > 0)
    logs = np.log(np.where(seen, caught, 1) / np.where(seen, expected, 1))
    logs -= logs[seen] @ caught[seen] / max(caught[seen].sum(), 1e-12)
    # what is never caught has the lowest rate
    logs = np.where(seen, logs, np.where(expected > 0, -np.inf, 0.0))
    return np.exp(np.clip(logs, -np.log(MIXTURE_RATE), np.log(MIXTURE_RATE)))


def _blocks(counts: Values) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, counts.shape[0], MAP_CHUNK):
        rows = slice(start, start + MAP_CHUNK)
        block = counts[rows]
        yield rows, np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float64)


def _shares(counts: np.ndarray, profile: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Molecules (n × labels) by label after some steps of expectation maximisation."""
    found, size = start, np.maximum(profile.sum(1), 1e-12)
    for _ in range(MIXTURE_STEPS):
        found = found * ((counts / np.maximum(found @ profile, 1e-12)) @ profile.T) / size
    return found
