"""Mean and standard deviation of the columns of a matrix, in whichever storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import CHUNKS_SENT
from scmmgan.model.problem import Values
from scmmgan.model.space.linear import column_blocks, constant, row_blocks
from scmmgan.model.space.scratch import chunks, is_mapped
from scmmgan.model.space.workers import each


def column_moments(x: Values | sp.csc_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of every column in float64; rounding is no variance."""
    if not is_mapped(x):
        return _but_rounding(*_at_once(x))
    if sp.issparse(x) and x.format == "csc":
        found = [_at_once(x[:, of]) for of in chunks(x)]
        return _but_rounding(np.concatenate([mean for mean, _ in found]), np.concatenate([sd for _, sd in found]))
    return pooled((x[rows] for rows in chunks(x)), spread=True, together=CHUNKS_SENT)


def _but_rounding(mean: np.ndarray, sd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return mean, np.where(constant(mean, sd), 0.0, sd)


def _at_once(x: Values | sp.csc_matrix) -> tuple[np.ndarray, np.ndarray]:
    if sp.issparse(x):
        mean, square = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        for _, part in row_blocks(x):
            # a sparse matrix sums in its own precision, whatever is asked for
            values, share = part.astype(np.float64), part.shape[0] / x.shape[0]
            mean += share * np.asarray(values.mean(0)).ravel()
            square += share * np.asarray(values.power(2).mean(0)).ravel()
        sd = np.sqrt(np.maximum(square - mean**2, 0))
    else:
        mean, sd = np.empty(x.shape[1]), np.empty(x.shape[1])
        for of in column_blocks(*x.shape):
            mean[of], sd[of] = x[:, of].mean(0, dtype=np.float64), x[:, of].std(0, dtype=np.float64)
    return mean, sd


def pooled(blocks: Iterable[Any], *, spread: bool, together: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The same of all rows of several blocks, each taken by itself; `spread` and `together`: by workers, see `each`."""
    n, mean, squares = 0, np.zeros(1), np.zeros(1)
    for size, own, sd in each(_of_block, ((block,) for block in blocks), spread=spread, together=together):
        away, before = own - mean, n
        n += size
        mean = mean + away * (size / n)
        squares = squares + size * sd**2 + away**2 * (before * size / n)
    return _but_rounding(mean, np.sqrt(squares / n))


def _of_block(block: Any) -> tuple[int, np.ndarray, np.ndarray]:
    return block.shape[0], *_at_once(block)
