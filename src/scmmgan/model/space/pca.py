"""Principal component analysis of z-scored features, as matrix products: nothing is centred or scaled in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds
from sklearn.utils.extmath import svd_flip

from scmmgan.model.defaults import BLOCK, BLOCK_ROWS, N_DISPERSED, PCA_CELLS
from scmmgan.model.problem import Values
from scmmgan.model.space.linear import column_blocks, in_blocks, product
from scmmgan.model.space.smoothing import Matrix
from scmmgan.model.space.workers import each


def dispersion(mean: np.ndarray, sd: np.ndarray, *, floor: float = 1e-6) -> np.ndarray:
    """Variance over mean of features; means count at least `floor` of their average, in whichever units."""
    magnitude = np.abs(mean)
    return sd**2 / np.maximum(magnitude, floor * magnitude.mean() + np.finfo(float).tiny)


def dispersed(mean: np.ndarray, sd: np.ndarray, allowed: np.ndarray, linked: np.ndarray) -> np.ndarray:
    """Positions of the features that enter the PCA: all allowed up to 2,000, else the most dispersed and the linked."""
    if len(allowed) <= N_DISPERSED:
        return allowed
    score = dispersion(mean[allowed], sd[allowed], floor=1e-3)
    top = allowed[np.argsort(-score, kind="stable")[:N_DISPERSED]]
    return np.union1d(top, np.intersect1d(linked, allowed))


class Standardized:
    """Z = (S - 1 μᵀ) / sd of the columns of a matrix, as products only."""

    def __init__(self, matrix: Matrix, mean: np.ndarray, sd: np.ndarray) -> None:
        self.matrix, self.mean, self.sd, self.shape = matrix, mean, sd, matrix.shape

    def dot(self, v: np.ndarray) -> np.ndarray:
        """Z v for a dense v."""
        v = v / self.sd[:, None]
        found = self.matrix.dot(v)
        found -= self.mean @ v
        return found

    def tdot(self, u: np.ndarray) -> np.ndarray:
        """Zᵀ u for a dense u."""
        return (self.matrix.tdot(u) - np.outer(self.mean, u.sum(0))) / self.sd[:, None]


@dataclass(frozen=True)
class Projection:
    """Scores of z-scored features: ((values - center) / sd) loadingsᵀ; every field is a plain array.

    `features` (e): positions of the features that enter; `center`, `sd` (e); `loadings` (p × e).
    """

    features: np.ndarray
    center: np.ndarray
    sd: np.ndarray
    loadings: np.ndarray

    def scores(self, values: Values | sp.csc_matrix) -> np.ndarray:
        """Scores (n × p, float64) of values (n × g) of all features."""
        weight, offset = self.onto(np.arange(values.shape[1]))
        return product(values, weight) + offset

    def onto(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same as a linear map, weight (g' × p) and offset (p,), of values that have the features `columns` only.

        Features that are not among them count as their mean.
        """
        _, own, at = np.intersect1d(self.features, columns, return_indices=True)
        loadings = (self.loadings[:, own] / self.sd[own]).T.astype(np.float64)
        weight = np.zeros((len(columns), len(self.loadings)))
        weight[at] = loadings
        return weight, -(self.center[own] @ loadings)

    def state(self) -> dict[str, np.ndarray]:
        """All fields as arrays."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Projection:
        """The projection that `state` came from."""
        return cls(**{f.name: np.asarray(state[f.name]) for f in fields(cls)})


def principal_axes(parts: Sequence[Standardized], p: int, *, tolerance: float = 0.0) -> np.ndarray:
    """Leading eigenvectors (p × e) of the mean covariance of z-scored matrices over the same features.

    Of many features, over at most 50,000 cells of each matrix.
    """
    e, rows = parts[0].shape[1], [z.shape[0] for z in parts]
    p = max(1, min(p, e))
    if e <= 512 or p > e // 4:
        gram = np.zeros((e, e))
        for z in parts:
            for start in range(0, e, BLOCK):
                for of in column_blocks(z.shape[0], min(BLOCK, e - start)):
                    at = slice(start + of.start, start + of.stop)
                    gram[:, at] += z.tdot(z.dot(np.eye(e)[:, at])) / z.shape[0]
        values, vectors = np.linalg.eigh((gram + gram.T) / 2)
        axes = vectors[:, np.argsort(-values, kind="stable")[:p]].T
    elif in_blocks(max(rows)) or any(z.matrix.in_file for z in parts):
        # one pass over the cells; iterations would take hundreds
        gram = np.zeros((e, e))
        for z in parts:
            _add_covariance(gram, z)
        # transposed, the symmetric matrix is worked on in place
        axes = scipy.linalg.eigh(gram.T, subset_by_index=(e - p, e - 1), overwrite_a=True)[1][:, ::-1].T
    else:
        splits = np.cumsum(rows)[:-1]

        def matmat(v: np.ndarray) -> np.ndarray:
            return np.vstack([z.dot(v.reshape(e, -1)) / np.sqrt(n) for z, n in zip(parts, rows)])

        def rmatmat(u: np.ndarray) -> np.ndarray:
            pieces = np.split(u.reshape(sum(rows), -1), splits)
            return np.sum([z.tdot(piece) / np.sqrt(n) for z, piece, n in zip(parts, pieces, rows)], axis=0)

        operator = LinearOperator(
            (sum(rows), e), matvec=matmat, rmatvec=rmatmat, matmat=matmat, rmatmat=rmatmat, dtype=np.float64
        )
        # a fixed start vector: ARPACK's own is random; many basis vectors where eigenvalues lie close
        start_vector = np.random.default_rng(0).normal(size=min(operator.shape))
        # ARPACK wants more of them than axes, and fewer than rows
        most = min(operator.shape) - 1
        ncv = min(3 * p, most) if tolerance and p < most else None
        _, values, axes = svds(operator, k=p, ncv=ncv, v0=start_vector, tol=tolerance)
        axes = axes[np.argsort(-values, kind="stable")]
    return svd_flip(None, axes, u_based_decision=False)[1]


def _add_covariance(gram: np.ndarray, z: Standardized) -> None:
    """Add the second moments of a z-scored matrix over at most 50,000 random cells; products are single, sums double."""
    chosen = np.sort(np.random.default_rng(0).permutation(z.shape[0])[:PCA_CELLS])
    mean, sd = (of.astype(np.float32) for of in (z.mean, z.sd))
    cells = (chosen[start : start + BLOCK_ROWS] for start in range(0, len(chosen), BLOCK_ROWS))
    for squares in each(
        _squares, ((z.matrix.of_cells(at),) for at in cells), mean, sd, len(chosen), spread=z.matrix.in_file
    ):
        gram += squares
        del squares  # not held while the next ones are made


def _squares(block: np.ndarray, mean: np.ndarray, sd: np.ndarray, n: int) -> np.ndarray:
    block = (block - mean) / sd
    squares = block.T @ block
    squares /= n
    return squares
