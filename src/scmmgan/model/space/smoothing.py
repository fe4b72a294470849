"""S = P^t X, the smoothed matrix of a modality, as products: never formed from a sparse one (METHOD §2)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import scipy.sparse as sp

BLOCK = 256  # columns that are dense at one time
MAX_SCALE = 5.0  # a feature that hardly varies in one batch is not blown up beyond


class SmoothedMatrix:
    """S = own X + (1 - own) P^t X without forming it: products, blocks of columns, moments."""

    def __init__(
        self,
        x: np.ndarray | sp.csr_matrix | sp.csc_matrix,
        operator: sp.csr_matrix | None = None,
        t: int = 0,
        own: float = 0.0,
    ) -> None:
        self.unsmoothed, self.x, self.t, self.own = x, x, t if operator is not None else 0, own
        self.operator = sp.csr_matrix((0, 0)) if operator is None else operator
        self.shape = x.shape
        if not sp.issparse(x):
            self.x, self.t = self._smooth(x), 0  # once, not in every product

    def keeping(self, own: float) -> SmoothedMatrix:
        """The matrix whose cells keep a share of what they were before the smoothing."""
        if not own:
            return self
        out = copy(self)
        if sp.issparse(self.x):
            out.own = own
        else:
            out.x = own * self.unsmoothed + (1 - own) * self.x
        return out

    def _smooth(self, v: np.ndarray) -> np.ndarray:
        return self._mixed(v, self.operator)

    def _mixed(self, v: np.ndarray, operator: sp.csr_matrix | sp.csc_matrix) -> np.ndarray:
        smoothed = v
        for _ in range(self.t):
            smoothed = operator @ smoothed
        return self.own * v + (1 - self.own) * smoothed if self.t and self.own else smoothed

    def dot(self, v: np.ndarray) -> np.ndarray:
        """S v for a dense v."""
        return self._smooth(np.asarray(self.x @ v))

    def tdot(self, u: np.ndarray) -> np.ndarray:
        """Sᵀ u for a dense u."""
        return np.asarray(self.x.T @ self._mixed(u, self.operator.T))

    def columns(self, index: np.ndarray) -> np.ndarray:
        """The chosen columns of S, dense."""
        block = self.x[:, index]
        return self._smooth(block.toarray() if sp.issparse(block) else np.asarray(block))

    def measured(self, index: np.ndarray) -> np.ndarray:
        """The chosen columns of X, dense."""
        block = self.unsmoothed[:, index]
        return block.toarray() if sp.issparse(block) else np.asarray(block)

    def averaged(self, values: np.ndarray) -> np.ndarray:
        """Values of cells (n,), averaged over their neighbours by two steps; as they are without neighbours."""
        return self.operator @ (self.operator @ values) if self.operator.shape[0] else values

    def by_column(self) -> SmoothedMatrix:
        """The same matrix, stored so that blocks of columns are quick to take."""
        return SmoothedMatrix(self.x.tocsc(), self.operator, self.t, self.own) if sp.issparse(self.x) else self

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd of every column of S in float64, a block of columns at a time; rounding is no variance."""
        mean, sd = np.empty(self.shape[1]), np.empty(self.shape[1])
        by_column = self.by_column()
        for start in range(0, self.shape[1], BLOCK):
            at = np.arange(start, min(start + BLOCK, self.shape[1]))
            block = by_column.columns(at).astype(np.float64)
            mean[at], sd[at] = block.mean(0), block.std(0)
        return mean, np.where(sd <= 1e-6 * np.maximum(np.abs(mean), 1e-6), 0.0, sd)


class BatchedMatrix:
    """Rows of several `SmoothedMatrix`, every feature shifted and scaled per batch to the pooled mean and sd.

    The same products as `SmoothedMatrix`; `rows[i]` are the row numbers of the i-th batch.
    """

    def __init__(self, parts: Sequence[SmoothedMatrix], rows: Sequence[np.ndarray]) -> None:
        self.parts, self.rows = list(parts), list(rows)
        self.shape = (sum(len(r) for r in rows), parts[0].shape[1])
        share = np.array([len(r) for r in rows]) / self.shape[0]
        means, sds = (np.stack(v) for v in zip(*(part.moments() for part in parts)))
        self.mean = share @ means
        pooled = np.sqrt(share @ sds**2)
        still = (sds == 0) | (pooled == 0)
        self.scale = np.where(still, 1.0, np.clip(pooled / np.where(still, 1.0, sds), 1 / MAX_SCALE, MAX_SCALE))
        self.shift = self.mean - means * self.scale
        self.sd = np.sqrt(share @ (sds * self.scale) ** 2)

    def dot(self, v: np.ndarray) -> np.ndarray:
        """S v for a dense v."""
        out = np.empty((self.shape[0], v.shape[1]))
        for part, rows, scale, shift in zip(self.parts, self.rows, self.scale, self.shift):
            out[rows] = part.dot(v * scale[:, None]) + shift @ v
        return out

    def tdot(self, u: np.ndarray) -> np.ndarray:
        """Sᵀ u for a dense u."""
        return np.sum(
            [
                scale[:, None] * part.tdot(u[rows]) + np.outer(shift, u[rows].sum(0))
                for part, rows, scale, shift in zip(self.parts, self.rows, self.scale, self.shift)
            ],
            axis=0,
        )

    def columns(self, index: np.ndarray) -> np.ndarray:
        """The chosen columns of S, dense."""
        return self._moved(index, [part.columns(index) for part in self.parts])

    def measured(self, index: np.ndarray) -> np.ndarray:
        """The chosen columns of X, dense, moved per batch as those of S are."""
        return self._moved(index, [part.measured(index) for part in self.parts])

    def averaged(self, values: np.ndarray) -> np.ndarray:
        """Values of cells (n,), averaged over their neighbours, in each batch."""
        out = np.empty_like(values)
        for part, rows in zip(self.parts, self.rows):
            out[rows] = part.averaged(values[rows])
        return out

    def _moved(self, index: np.ndarray, blocks: Sequence[np.ndarray]) -> np.ndarray:
        out = np.empty((self.shape[0], len(index)), dtype=np.float32)
        for block, rows, scale, shift in zip(blocks, self.rows, self.scale, self.shift):
            out[rows] = block * scale[index].astype(np.float32) + shift[index].astype(np.float32)
        return out

    def keeping(self, own: float) -> BatchedMatrix:
        """The matrix whose cells keep a share of what they were before the smoothing, moved anew."""
        return BatchedMatrix([part.keeping(own) for part in self.parts], self.rows) if own else self

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd of every column of S in float64."""
        return self.mean, self.sd


Matrix = SmoothedMatrix | BatchedMatrix
