"""Linear algebra that everything uses: one ridge regression, one correlation of columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import BLOCK_ROWS, BLOCK_VALUES, BLOCKED_FROM, CONSTANT_SD, STRAIGHT_RIDGE
from scmmgan.model.space.scratch import chunks, is_mapped


def constant(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Which columns of this mean and sd differ by rounding only, in whichever units."""
    return np.asarray(sd <= CONSTANT_SD * np.abs(mean))


@contextmanager
def one_thread() -> Iterator[None]:
    """Small products: threads cost more than they give, and the order in which they add up decides the last bit."""
    # libraries that are loaded later would keep all their threads, the first time only
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def in_blocks(n: int) -> bool:
    """Whether cells are so many that nothing dense is made of all of them that need not be."""
    return n >= BLOCKED_FROM


def row_blocks(x: Any) -> Iterator[tuple[slice, Any]]:
    """Consecutive rows of a matrix, dense or CSR, and where they are; all at once where they are few and in memory."""
    n, sparse = x.shape[0], bool(sp.issparse(x))
    if is_mapped(x) and not (sparse and x.format == "csc"):
        yield from ((at, x[at]) for at in chunks(x))
        return
    if not in_blocks(n) or (sparse and x.format != "csr"):
        yield slice(0, n), x
        return
    for start in range(0, n, BLOCK_ROWS):
        at = slice(start, min(start + BLOCK_ROWS, n))
        if not sparse:
            yield at, x[at]
            continue
        # shares memory, as a slice of a sparse matrix does not, and one that is made of views neither
        part = sp.csr_matrix((at.stop - start, x.shape[1]), dtype=x.dtype)
        pointers = x.indptr[start : at.stop + 1]
        part.data, part.indices = (of[pointers[0] : pointers[-1]] for of in (x.data, x.indices))
        part.indptr = pointers - pointers[0]
        yield at, part


def column_blocks(n: int, width: int) -> Iterator[slice]:
    """Columns of a matrix (n × width) that are dense at one time; all of them where there are not many rows."""
    step = max(BLOCK_VALUES // n, 2) if in_blocks(n) else width
    for start in range(0, max(width, 1), max(step, 1)):
        yield slice(start, min(start + step, width))


def product(x: Any, v: np.ndarray) -> np.ndarray:
    """The product of a matrix x with a dense v, (n × k) or (n,), in blocks of rows; it has the precision of both."""
    if _by_column(x):
        return transposed_product(x.T, v)
    out = np.empty((x.shape[0], *v.shape[1:]), dtype=np.result_type(x.dtype, v.dtype))
    for at, part in row_blocks(x):
        out[at] = part @ v
    return out


def transposed_product(x: Any, u: np.ndarray) -> np.ndarray:
    """The product of its transpose with u, (g × k) or (g,), likewise; sums over many blocks are in double precision."""
    if _by_column(x):
        return product(x.T, u)
    out = np.zeros((x.shape[1], *u.shape[1:]))
    for at, part in row_blocks(x):
        out += part.T @ u[at]
    return out.astype(np.result_type(x.dtype, u.dtype), copy=False)


def _by_column(x: Any) -> bool:
    """Whether a matrix is in a file, stored by column."""
    return bool(sp.issparse(x)) and x.format == "csc" and is_mapped(x)


def solve_ridge(gram: np.ndarray, cross: np.ndarray, penalty: float) -> np.ndarray:
    """Coefficients (p × q) from XᵀX (p × p) and XᵀY (p × q); `penalty` in units of the mean variance of X."""
    # cells that are all alike have no variance at all
    shrink = max(penalty * float(np.trace(gram)) / len(gram), 1e-12)
    return np.linalg.solve(gram + shrink * np.eye(len(gram)), cross)


def ridge(x: np.ndarray, y: np.ndarray, share: np.ndarray, *, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Linear map (weight p' × p, bias) of least squares from rows of x to those of y, weighted by `share` (n,)."""
    share = _shares(share.astype(np.float64))
    mean_x = sum(share[at] @ part.astype(np.float64) for at, part in row_blocks(x))
    mean_y = sum(share[at] @ part.astype(np.float64) for at, part in row_blocks(y))
    gram, cross = np.zeros((x.shape[1], x.shape[1])), np.zeros((x.shape[1], y.shape[1]))
    for at, part in row_blocks(x):
        centred = part.astype(np.float64) - mean_x
        weighted = centred.T * share[at]
        gram += weighted @ centred
        cross += weighted @ (y[at].astype(np.float64) - mean_y)
    weight = solve_ridge(gram, cross, penalty).T
    return weight, mean_y - weight @ mean_x


def straightened(anchors: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Anchors (n × p') moved to their regression on the cells (n × p), in each dimension by the share R² it explains.

    R² is adjusted for the p features, and weighted by `weight` (n,).
    """
    rest, left, variance = _residuals(anchors, x, weight)
    n, p = x.shape
    left = left * (n - 1) / max(n - p - 1, 1e-12)
    # where nothing varies there is nothing to explain
    share = np.where(variance > 1e-12, left / np.maximum(variance, 1e-12), 1)
    return anchors - (1 - np.minimum(share, 1)) * rest


def unexplained(anchors: np.ndarray, x: np.ndarray, weight: np.ndarray) -> float:
    """Share of the variance of anchors (n × p') that their regression on the cells (n × p) leaves, in all dimensions."""
    _, left, variance = _residuals(anchors, x, weight)
    return float(left.sum() / variance.sum()) if variance.sum() > 1e-12 else 1.0


def _residuals(anchors: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the regression of anchors on cells leaves (n × p'), its mean square and the anchors' variance (p',)."""
    slope, intercept = ridge(x, anchors, weight, penalty=STRAIGHT_RIDGE)
    rest, share = anchors - (x @ slope.T + intercept), _shares(weight)
    return rest, share @ rest**2, share @ (anchors - share @ anchors) ** 2


def _shares(weight: np.ndarray) -> np.ndarray:
    """Weights that sum to 1; alike where all are 0: no cell matched, and the anchors are still the best guess."""
    return weight / weight.sum() if weight.any() else np.full(len(weight), 1 / len(weight))


def column_correlation(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Pearson correlation (… × l) of the columns of a with those of b (… × n × l); 0 where a column is constant.

    `weight` (n,): shares of the rows, summing to 1; alike by default.
    """
    weight = np.full(a.shape[-2], 1 / a.shape[-2]) if weight is None else weight
    a, b = a - (weight @ a)[..., None, :], b - (weight @ b)[..., None, :]
    w = weight[:, None]
    norm = np.sqrt((w * a**2).sum(-2) * (w * b**2).sum(-2))
    return (w * a * b).sum(-2) / np.maximum(norm, 1e-12)


@dataclass(frozen=True)
class CanonicalAxes:
    """Canonical variates of two spaces: a mean and axes (p × k) of each, and their correlations (k,)."""

    means: tuple[np.ndarray, np.ndarray]
    axes: tuple[np.ndarray, np.ndarray]
    strength: np.ndarray

    def first(self, x: np.ndarray) -> np.ndarray:
        """Variates (n × k) of cells (n × p) of the first space."""
        return np.asarray((x - self.means[0]) @ self.axes[0])

    def second(self, y: np.ndarray) -> np.ndarray:
        """Variates (n × k) of cells (n × p') of the second."""
        return np.asarray((y - self.means[1]) @ self.axes[1])


def canonical_axes(
    x: np.ndarray, y: np.ndarray, *, n: int, penalty: float, weight: np.ndarray | None = None
) -> CanonicalAxes:
    """At most n canonical variates of rows that belong together (k × p and k × p'); `penalty` of the mean variance.

    `weight` (k,): shares of the rows; alike by default.
    """
    share = _shares(np.ones(len(x)) if weight is None else weight.astype(np.float64))
    means = share @ x, share @ y
    a, b = x - means[0], y - means[1]
    whitenings = []
    for of in (a, b):
        values, vectors = np.linalg.eigh((of.T * share) @ of)
        shrunk = np.maximum(values, 0) + max(penalty * float(values.mean()), 1e-12)
        whitenings.append(vectors / np.sqrt(shrunk))
    left, strength, right = np.linalg.svd(whitenings[0].T @ (a.T * share) @ b @ whitenings[1], full_matrices=False)
    axes = whitenings[0] @ left[:, :n], whitenings[1] @ right[:n].T
    return CanonicalAxes(means, axes, strength[:n])
