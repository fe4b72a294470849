"""S = P^t X, the smoothed matrix of a modality, as products: never formed from a sparse one.

Smoothing is linear, so it is applied inside matrix products: nothing cells × features is made from a sparse matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import BLOCK, DENSE, MAX_BATCH_SCALE
from scmmgan.model.problem import Values
from scmmgan.model.progress import tracked
from scmmgan.model.space.linear import column_blocks, constant, in_blocks, product, row_blocks, transposed_product
from scmmgan.model.space.moments import pooled
from scmmgan.model.space.scratch import by_column, columns_of, is_mapped, rows_of, rowwise


class SmoothedMatrix:
    """S = P^t (X - C B) without forming it: products, blocks of columns, moments.

    B is the regression of X on `covariates` C (n × c, centred); without them S = P^t X.
    """

    def __init__(
        self,
        x: Values | sp.csc_matrix,
        operator: sp.csr_matrix | None = None,
        t: int = 0,
        covariates: np.ndarray | None = None,
    ) -> None:
        data = x.data if sp.issparse(x) else x
        self.non_negative = bool(np.size(data) == 0 or data.min() >= 0)
        self.basis = np.linalg.qr(np.zeros((x.shape[0], 0)) if covariates is None else covariates)[0]
        self.effect = transposed_product(x, self.basis).T if self.basis.size else np.zeros((0, x.shape[1]))
        if len(self.effect) and not sp.issparse(x):
            x, self.effect = self._without_effect(x), self.effect[:0]
            self.basis = self.basis[:, :0]
        self.steps = t if operator is not None else 0
        self.unsmoothed, self.x, self.t = x, x, self.steps
        self.operator = sp.csr_matrix((0, 0)) if operator is None else operator
        self.shape = x.shape
        if not sp.issparse(x):
            self.x, self.t = self._smoothed(x), 0  # once, not in every product

    def _without_effect(self, x: Values) -> np.ndarray:
        """Dense values without what covariates explain."""
        return np.asarray(rowwise(x, lambda rows: (x[rows] - self.basis[rows] @ self.effect).astype(x.dtype)))

    def _smoothed(self, x: np.ndarray) -> np.ndarray:
        """Smoothed dense values."""
        for _ in range(self.t):
            x = rowwise(x, partial(self._step, x))
        return x

    def _step(self, x: np.ndarray, rows: slice) -> np.ndarray:
        return np.asarray(self.operator[rows] @ x)

    def _smooth(self, v: np.ndarray) -> np.ndarray:
        for _ in range(self.t):
            v = self.operator @ v
        return v

    @property
    def in_file(self) -> bool:
        """Whether the values are in a file, and may be larger than memory."""
        return is_mapped(self.unsmoothed)

    def dot(self, v: np.ndarray) -> np.ndarray:
        """S v for a dense v."""
        found = product(self.x, v)
        return self._smooth(found - self.basis @ (self.effect @ v) if len(self.effect) else found)

    def tdot(self, u: np.ndarray) -> np.ndarray:
        """Sᵀ u for a dense u."""
        for _ in range(self.t):
            u = self.operator.T @ u
        found = transposed_product(self.x, u)
        return found - self.effect.T @ (self.basis.T @ u) if len(self.effect) else found

    def columns(self, index: np.ndarray) -> np.ndarray:
        """The chosen columns of S, dense."""
        return self._smooth(self._without_covariates(self.x[:, index], index))

    def measured(self, index: np.ndarray) -> np.ndarray:
        """The chosen columns of X, dense."""
        return self._without_covariates(self.unsmoothed[:, index], index)

    def _without_covariates(self, block: Values | sp.csc_matrix, index: np.ndarray) -> np.ndarray:
        dense = block.toarray() if sp.issparse(block) else np.asarray(block)
        return (dense - self.basis @ self.effect[:, index]).astype(dense.dtype) if len(self.effect) else dense

    def of_cells(self, at: np.ndarray) -> np.ndarray:
        """The chosen rows of S, dense."""
        found, basis = self.x[at], self.basis[at]
        if self.t:
            weights = self.operator[at]
            for _ in range(self.t - 1):
                weights = weights @ self.operator
            found, basis = weights @ self.x, weights @ self.basis
        dense = found if isinstance(found, np.ndarray) else found.toarray()
        return dense - (basis @ self.effect).astype(dense.dtype) if len(self.effect) else dense

    def sampled(self, rows: np.ndarray, operator: sp.csr_matrix) -> SmoothedMatrix:
        """Chosen cells, smoothed as often over neighbours among themselves (operator: rows × rows)."""
        return SmoothedMatrix(rows_of(self.unsmoothed, rows), operator if self.steps else None, self.steps)

    def averaged(self, values: np.ndarray) -> np.ndarray:
        """Values of cells (n,), averaged over their neighbours by two steps; as they are without neighbours."""
        return self.operator @ (self.operator @ values) if self.operator.shape[0] else values

    def take(self, index: np.ndarray) -> SmoothedMatrix:
        """The matrix of the chosen columns: products with it cost no more than they must."""
        out = copy(self)
        if np.array_equal(index, np.arange(self.shape[1])):
            return out
        # of dense values the smoothed ones are there already
        out.unsmoothed = columns_of(self.unsmoothed, index)
        out.x = out.unsmoothed if sp.issparse(self.x) else columns_of(self.x, index)
        out.effect = self.effect[:, index]
        out.shape = out.x.shape
        return out

    def by_column(self) -> SmoothedMatrix:
        """The same matrix, stored so that blocks of columns are quick to take."""
        if not sp.issparse(self.x):
            return self
        out = copy(self)
        out.x = out.unsmoothed = by_column(self.x)
        return out

    def _width(self) -> int:
        """Columns that are dense at one time: fewer where the matrix may be larger than memory, but never one alone."""
        return max(2, min(BLOCK, DENSE // self.shape[0])) if self.in_file else BLOCK

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd of every column of S in float64, a block of columns at a time; rounding is no variance."""
        if self.t == 1 and in_blocks(self.shape[0]):
            # few columns at a time would go through the graph too often
            rows = (rows for _, rows in row_blocks(np.arange(self.shape[0])))
            return pooled((self.of_cells(at) for at in rows), spread=self.in_file)
        mean, sd = np.empty(self.shape[1]), np.empty(self.shape[1])
        by_column = self.by_column()
        width = self._width()
        for start in tracked(range(0, self.shape[1], width), "statistics"):
            for of in column_blocks(self.shape[0], min(width, self.shape[1] - start)):
                at = np.arange(start + of.start, start + of.stop)
                block = by_column.columns(at).astype(np.float64)
                mean[at], sd[at] = block.mean(0), block.std(0)
        return mean, np.where(constant(mean, sd), 0.0, sd)


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
        ratio = pooled / np.where(still, 1.0, sds)
        self.scale = np.where(still, 1.0, np.clip(ratio, 1 / MAX_BATCH_SCALE, MAX_BATCH_SCALE))
        self.shift = self.mean - means * self.scale
        self.sd = np.sqrt(share @ (sds * self.scale) ** 2)

    @property
    def steps(self) -> int:
        """Of smoothing, in every batch."""
        return self.parts[0].steps

    @property
    def in_file(self) -> bool:
        """Whether the values of a batch are in a file."""
        return any(part.in_file for part in self.parts)

    @property
    def non_negative(self) -> bool:
        """Whether no value was below 0 before the batches were moved."""
        return all(part.non_negative for part in self.parts)

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

    def of_cells(self, at: np.ndarray) -> np.ndarray:
        """The chosen rows (sorted) of S, dense."""
        out = np.empty((len(at), self.shape[1]), dtype=np.float32)
        for part, rows, scale, shift in zip(self.parts, self.rows, self.scale, self.shift):
            own = np.isin(at, rows)
            block = part.of_cells(np.searchsorted(rows, at[own]))
            out[own] = block * scale.astype(np.float32) + shift.astype(np.float32)
        return out

    def sampled(self, rows: np.ndarray, operator: sp.csr_matrix) -> BatchedMatrix:
        """Chosen cells (sorted), smoothed over neighbours among those of their batch, moved as their batches are."""
        out = copy(self)
        at = [np.flatnonzero(np.isin(rows, own)) for own in self.rows]
        out.parts = [
            part.sampled(np.searchsorted(own, rows[i]), operator[i][:, i])
            for part, own, i in zip(self.parts, self.rows, at)
        ]
        out.rows, out.shape = at, (len(rows), self.shape[1])
        return out

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

    def take(self, index: np.ndarray) -> BatchedMatrix:
        """The matrix of the chosen columns, moved as they were."""
        out = copy(self)
        out.parts = [part.take(index) for part in self.parts]
        out.shape = (self.shape[0], len(index))
        for name in ("mean", "sd"):
            setattr(out, name, getattr(self, name)[index])
        out.scale, out.shift = self.scale[:, index], self.shift[:, index]
        return out

    def by_column(self) -> BatchedMatrix:
        """The same matrix, stored so that blocks of columns are quick to take."""
        return self.of_parts([part.by_column() for part in self.parts])

    def of_parts(self, parts: Sequence[SmoothedMatrix]) -> BatchedMatrix:
        """Other values of the same cells and features, moved as these are."""
        out = copy(self)
        out.parts = list(parts)
        return out

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd of every column of S in float64."""
        return self.mean, self.sd


Matrix = SmoothedMatrix | BatchedMatrix
