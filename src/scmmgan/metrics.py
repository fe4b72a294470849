"""Scores of an alignment. Every score takes plain matrices; rows of `mapped` and `measured` are the same cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial.distance import cdist, jensenshannon
from scipy.stats import binomtest, rankdata
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

__all__ = [
    *("foscttm", "recall_at_k", "label_transfer", "matched_label_accuracy", "mmd", "two_sample_auc"),
    *("column_correlation", "column_auroc", "column_js_distance", "binomial_test"),
]

_BLOCK = 2**22  # entries of one block of distances: 32 MB, whatever the number of cells
_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels of `mmd`, in median squared distances
_VOTES, _FOLDS = 15, 5  # nearest neighbours and folds of the classifier of `two_sample_auc`


def foscttm(mapped: Any, measured: Any) -> float:
    """Fraction of samples closer than the true match, mean of both directions.

    For each mapped cell the share of other measured cells that are nearer than its own measurement, and for each
    measured cell the share of other mapped cells that are nearer than its own image. Ties count one half, so that a
    collapsed embedding scores as chance. Distances are Euclidean and computed in blocks of rows.

    Parameters
    ----------
    mapped
        Mapped cells, `(n_cells, n_dimensions)`, dense or sparse.
    measured
        The same cells measured, in the same row order, `(n_cells, n_dimensions)`.

    Returns
    -------
    Score in [0, 1]: 0 best, 0.5 chance. Writes nothing.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, or there are fewer than two cells.

    Examples
    --------
    >>> from scmmgan import metrics
    >>> metrics.foscttm([[0.0], [1.0], [3.0]], [[0.0], [1.0], [3.0]])
    0.0
    """
    a, b = _paired(mapped, measured)
    n = len(a)
    own = _own_distances(a, b)
    nearer_measured = nearer_mapped = 0.0
    for rows, distance in _blocks(a, b):
        nearer_measured += _nearer(distance, own[rows, None])
        nearer_mapped += _nearer(distance, own[None, :])
    # every cell tied with itself once, in both directions
    return float((nearer_measured + nearer_mapped - n) / (2 * n * (n - 1)))


def recall_at_k(mapped: Any, measured: Any, *, k: int = 10) -> float:
    """Share of mapped cells whose own measurement is among the k nearest measured cells.

    Ties count one half. Computed in blocks of rows, as :func:`foscttm`.

    Parameters
    ----------
    mapped
        Mapped cells, `(n_cells, n_dimensions)`, dense or sparse.
    measured
        The same cells measured, in the same row order, `(n_cells, n_dimensions)`.
    k
        Number of nearest measured cells, from 1 to `n_cells`; default 10.

    Returns
    -------
    Score in [0, 1]: 1 best, `k / n_cells` chance. Writes nothing.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, there are fewer than two cells, or `k` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from scmmgan import metrics
    >>> cells = np.array([[0.0], [1.0], [3.0]])
    >>> metrics.recall_at_k(cells, cells, k=1)
    1.0
    """
    a, b = _paired(mapped, measured)
    if not 1 <= k <= len(a):
        raise ValueError(f"`k` is {k}, but must lie between 1 and the number of cells, {len(a)}.")
    own = _own_distances(a, b)
    found = 0
    for rows, distance in _blocks(a, b):
        threshold = own[rows, None]
        rank = (distance < threshold).sum(1) + 0.5 * ((distance == threshold).sum(1) - 1)
        found += int((rank < k).sum())
    return found / len(a)


def label_transfer(query: Any, query_labels: Any, reference: Any, reference_labels: Any, *, k: int = 5) -> float:
    """Accuracy of the labels that query cells get from their k nearest reference cells.

    Parameters
    ----------
    query
        Cells to label, `(n_query, n_dimensions)`, dense or sparse.
    query_labels
        Their true labels, `(n_query,)`.
    reference
        Labelled cells, `(n_reference, n_dimensions)`.
    reference_labels
        Their labels, `(n_reference,)`.
    k
        Number of neighbours that vote, at least 1; default 5. All reference cells vote where there are fewer.

    Returns
    -------
    Share of query cells whose majority vote is their true label, in [0, 1]. Writes nothing.

    Raises
    ------
    ValueError
        If the numbers of columns differ, a value is not finite, a label is missing, the numbers of labels and rows
        differ, or `k` is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from scmmgan import metrics
    >>> cells = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> metrics.label_transfer(cells + 0.1, ["T", "T", "B", "B"], cells, ["T", "T", "B", "B"], k=1)
    1.0
    """
    x, y = _matrix(query, "query", 1), _matrix(reference, "reference", 1)
    _same_columns(x, y, "query", "reference")
    truth, known = _labels(query_labels, "query", len(x)), _labels(reference_labels, "reference", len(y))
    if k < 1:
        raise ValueError(f"`k` is {k}, but at least one neighbour must vote.")
    model = KNeighborsClassifier(min(k, len(y))).fit(y, known)
    return float((model.predict(x) == truth).mean())


def column_correlation(
    mapped: Any, measured: Any, *, method: Literal["pearson", "spearman"] = "pearson", given: Any = None
) -> np.ndarray:
    """Correlation of each mapped feature with the measured one, over cells; of what covariates do not explain, if given.

    Sparse matrices are made dense a few columns at a time.

    Parameters
    ----------
    mapped
        Mapped expression, `(n_cells, n_features)`, dense or sparse.
    measured
        Measured expression of the same cells and features in the same order, `(n_cells, n_features)`.
    method
        `"pearson"` (default), or `"spearman"`: Pearson correlation of ranks, ties averaged.
    given
        Covariates of the cells, such as their log depth: `(n_cells,)` or `(n_cells, n_covariates)`. Partial correlation:
        a linear fit of the covariates (of their ranks, with `"spearman"`) is taken out of both sides. Default: none.

    Returns
    -------
    Array `(n_features,)` in [-1, 1]; 0 where the mapped feature is constant (below a millionth of the measured
    spread) or follows from the covariates, nan where the measured one is or does. Writes nothing.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, there are fewer than two cells, or `method` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from scmmgan import metrics
    >>> measured = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> metrics.column_correlation(2 * measured, measured)
    array([ 1., nan])
    >>> depth = np.array([0.0, 1.0, 5.0])
    >>> metrics.column_correlation(depth[:, None], measured[:, :1], given=depth)
    array([0.])
    """
    if method not in ("pearson", "spearman"):
        raise ValueError(f"Unknown `method` {method!r}. Use 'pearson' or 'spearman'.")
    design = None
    if given is not None:
        covariates = np.asarray(given, dtype=np.float64)
        covariates = _dense(_checked(covariates[:, None] if covariates.ndim == 1 else covariates, "given", 2))
        if len(covariates) != np.shape(mapped)[0]:
            raise ValueError(
                f"`given` has {len(covariates)} rows, the cells are {np.shape(mapped)[0]}. One row per cell."
            )
        design = _orthonormal(rankdata(covariates, axis=0) if method == "spearman" else covariates)

    def correlations(*both: np.ndarray) -> np.ndarray:
        x, y = (rankdata(of, axis=0) for of in both) if method == "spearman" else both
        return _pearson(x, y) if design is None else _pearson(_unexplained(x, design), _unexplained(y, design))

    return _by_column(mapped, measured, correlations)


def mmd(mapped: Any, measured: Any, *, n: int = 1000, random_state: int = 0) -> float:
    """Squared maximum mean discrepancy between mapped and measured cells.

    Mean of five Gaussian kernels, exp(-d² / (s m)) with m the median squared distance between measured cells and
    s = 1/4, 1/2, 1, 2, 4. The two sets need no common order or size.

    Parameters
    ----------
    mapped
        Mapped cells, `(n_mapped, n_dimensions)`, dense or sparse.
    measured
        Measured cells, `(n_measured, n_dimensions)`.
    n
        At most so many cells of either set are drawn; default 1000.
    random_state
        Seed of the draw; default 0.

    Returns
    -------
    Squared discrepancy, 0 for equal samples, at most 2. Writes nothing.

    Raises
    ------
    ValueError
        If the numbers of columns differ, a value is not finite, a set has fewer than two cells, or `n` is below 2.

    Examples
    --------
    >>> import numpy as np
    >>> from scmmgan import metrics
    >>> cells = np.random.default_rng(0).normal(size=(200, 3))
    >>> metrics.mmd(cells, cells) < 1e-12 < metrics.mmd(cells, cells + 1)
    True
    """
    a, b = _drawn(mapped, measured, n, np.random.default_rng(random_state), rows=2)
    median = max(float(np.median(cdist(b, b, "sqeuclidean"))), 1e-12)

    def similarity(x: np.ndarray, y: np.ndarray) -> float:
        distance = cdist(x, y, "sqeuclidean") / median
        return float(np.mean([np.exp(-distance / s).mean() for s in _BANDWIDTHS]))

    return similarity(a, a) + similarity(b, b) - 2 * similarity(a, b)


def two_sample_auc(mapped: Any, measured: Any, *, n: int = 1000, random_state: int = 0) -> float:
    """How well 15-nearest-neighbour votes separate mapped from measured cells, cross-validated.

    Hand in disjoint cells: with the true partner in the other set a good alignment scores below 0.5.

    Parameters
    ----------
    mapped
        Mapped cells, `(n_mapped, n_dimensions)`, dense or sparse.
    measured
        Measured cells, other ones than the mapped, `(n_measured, n_dimensions)`.
    n
        At most so many cells of either set are drawn, the same number of both; default 1000.
    random_state
        Seed of the draw and of the five folds; default 0.

    Returns
    -------
    Area under the ROC curve: 0.5 where the sets are alike, 1 where they are separate. Writes nothing.

    Raises
    ------
    ValueError
        If the numbers of columns differ, a value is not finite, a set has fewer than ten cells, or `n` is below 10.

    Examples
    --------
    >>> import numpy as np
    >>> from scmmgan import metrics
    >>> cells = np.random.default_rng(0).normal(size=(400, 3))
    >>> metrics.two_sample_auc(cells[:200] + 10, cells[200:])
    1.0
    """
    rng = np.random.default_rng(random_state)
    # four of five folds of two times ten cells still hold more than 15 neighbours
    a, b = _drawn(mapped, measured, n, rng, rows=10)
    size = min(len(a), len(b))
    x, y = np.vstack([a[:size], b[:size]]), np.repeat([0, 1], size)
    order = rng.permutation(2 * size)
    votes = cross_val_predict(KNeighborsClassifier(_VOTES), x[order], y[order], cv=_FOLDS, method="predict_proba")
    return float(roc_auc_score(y[order], votes[:, 1]))


def matched_label_accuracy(
    query: Any, query_labels: Any, reference: Any, reference_labels: Any, *, one_to_one: bool = True
) -> float:
    """Share of query cells whose matched reference cell has their label.

    One to one, each query cell in turn takes the nearest reference cell that is left, as the batch-label accuracy (ACC) of
    Con-AAE does; what comes later gets worse partners, so that the order of rows counts. Else each takes its nearest.

    Parameters
    ----------
    query
        Cells to match, `(n_query, n_dimensions)`, dense or sparse.
    query_labels
        Their labels, `(n_query,)`.
    reference
        Cells that they are matched to, `(n_reference, n_dimensions)`.
    reference_labels
        Their labels, `(n_reference,)`.
    one_to_one
        Whether a reference cell is taken once at most (default); query cells that find none left are not counted.

    Returns
    -------
    Score in [0, 1], 1 best. Writes nothing.

    Raises
    ------
    ValueError
        If the numbers of columns differ, a value is not finite, a label is missing, or the numbers of labels and rows
        differ.

    Examples
    --------
    >>> import numpy as np
    >>> from scmmgan import metrics
    >>> cells = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> metrics.matched_label_accuracy(cells + 0.1, ["T", "T", "B", "B"], cells, ["T", "T", "B", "B"])
    1.0
    """
    x, y = _matrix(query, "query", 1), _matrix(reference, "reference", 1)
    _same_columns(x, y, "query", "reference")
    truth, known = _labels(query_labels, "query", len(x)), _labels(reference_labels, "reference", len(y))
    taken, right, count = np.zeros(len(y), dtype=bool), 0, 0
    for rows, distance in _blocks(x, y):
        for label, row in zip(truth[rows], distance):
            if taken.all():
                return right / count
            nearest = int(np.where(taken, np.inf, row).argmin())
            taken[nearest] = one_to_one
            right, count = right + int(known[nearest] == label), count + 1
    return right / count


def column_auroc(mapped: Any, measured: Any) -> np.ndarray:
    """Area under the ROC curve of each mapped feature, for cells above the measured feature's own median.

    Parameters
    ----------
    mapped
        Mapped expression, `(n_cells, n_features)`, dense or sparse.
    measured
        Measured expression of the same cells and features in the same order, `(n_cells, n_features)`.

    Returns
    -------
    Array `(n_features,)` in [0, 1], 0.5 by chance; nan where no measured value is above the median. Writes nothing.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, or there are fewer than two cells.

    Examples
    --------
    >>> import numpy as np
    >>> from scmmgan import metrics
    >>> measured = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> metrics.column_auroc(measured, measured)
    array([ 1., nan])
    """

    def areas(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        high = y > np.median(y, axis=0)
        n, ranks = high.sum(0), rankdata(x, axis=0)
        pairs = n * (len(y) - n)
        return np.where(pairs > 0, ((ranks * high).sum(0) - n * (n + 1) / 2) / np.maximum(pairs, 1), np.nan)

    return _by_column(mapped, measured, areas)


def column_js_distance(mapped: Any, measured: Any, *, n_bins: int = 50) -> np.ndarray:
    """Jensen-Shannon distance between the values of each mapped feature and the measured ones.

    The cells need not be the same. Both get one histogram of equal bins over their common range; base 2.

    Parameters
    ----------
    mapped
        Mapped expression, `(n_mapped, n_features)`, dense or sparse.
    measured
        Measured expression of the same features in the same order, `(n_measured, n_features)`.
    n_bins
        Bins of a histogram, at least 2; default 50.

    Returns
    -------
    Array `(n_features,)` in [0, 1]: 0 where the distributions are alike, 1 where they do not overlap. Writes nothing.

    Raises
    ------
    ValueError
        If the numbers of columns differ, a value is not finite, or `n_bins` is below 2.

    Examples
    --------
    >>> import numpy as np
    >>> from scmmgan import metrics
    >>> cells = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> metrics.column_js_distance(cells, cells + np.array([0.0, 5.0]))
    array([0., 1.])
    """
    if n_bins < 2:
        raise ValueError(f"`n_bins` is {n_bins}, but a histogram needs at least 2 bins.")
    a, b = _checked(mapped, "mapped", 1), _checked(measured, "measured", 1)
    _same_columns(a, b, "mapped", "measured")
    found = np.zeros(a.shape[1])
    for j in range(a.shape[1]):
        x, y = (_dense(of[:, [j]])[:, 0] for of in (a, b))
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        if high > low:
            shares = [np.histogram(of, bins=n_bins, range=(low, high))[0] / len(of) for of in (x, y)]
            found[j] = np.nan_to_num(jensenshannon(shares[0], shares[1], base=2))
    return found


def binomial_test(scores: Any, baseline: Any) -> dict[str, float]:
    """Sign test of whether scores of features are better than those of a baseline as often as not.

    Features depend on each other, so that the p-value is not calibrated: read the share of wins.

    Parameters
    ----------
    scores
        A score of each feature, higher is better, `(n_features,)`.
    baseline
        The baseline's score of the same features. Features that are nan in one of both are left out.

    Returns
    -------
    A dict: `wins`, `losses` (ties are neither), `share` of wins among both (nan without any), and `p`, two-sided. Writes
    nothing.

    Raises
    ------
    ValueError
        If the lengths differ.

    Examples
    --------
    >>> from scmmgan import metrics
    >>> metrics.binomial_test([0.5, 0.6, 0.7, 0.8], [0.4, 0.5, 0.7, 0.9])
    {'wins': 2.0, 'losses': 1.0, 'share': 0.6666666666666666, 'p': 1.0}
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (scores, baseline))
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"`scores` has shape {a.shape}, `baseline` {b.shape}. Both must hold one number per feature.")
    wins, losses = int((a > b).sum()), int((a < b).sum())
    n = wins + losses
    p = float(binomtest(wins, n).pvalue) if n else 1.0
    return {"wins": float(wins), "losses": float(losses), "share": wins / n if n else float("nan"), "p": p}


def _checked(values: Any, name: str, rows: int) -> Any:
    """Validate a matrix without making it dense; columns can be sliced."""
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    sparse: bool = sp.issparse(values)
    matrix = values.tocsc() if sparse else np.asarray(values)
    if matrix.ndim != 2:
        raise ValueError(
            f"`{name}` must be a matrix (cells x columns), but has shape {matrix.shape}. "
            "One column is `values[:, None]`, one cell `values[None, :]`."
        )
    if matrix.shape[0] < rows or matrix.shape[1] < 1:
        raise ValueError(f"`{name}` has shape {matrix.shape}; this score needs at least {rows} rows and 1 column.")
    if matrix.dtype.kind not in "fiub":
        raise ValueError(f"`{name}` must hold real numbers, but has dtype {matrix.dtype}.")
    finite = np.isfinite(matrix.data if sparse else matrix)
    if not finite.all():
        raise ValueError(
            f"`{name}` has {int((~finite).sum())} values that are NaN or infinite. Drop those cells first."
        )
    return matrix


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float64)


def _matrix(values: Any, name: str, rows: int) -> np.ndarray:
    return np.ascontiguousarray(_dense(_checked(values, name, rows)))


def _by_column(mapped: Any, measured: Any, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Scores (n_features,) of the same cells and features; a few columns are dense at one time."""
    a, b = _checked(mapped, "mapped", 2), _checked(measured, "measured", 2)
    _same_shape(a, b)
    width = max(1, _BLOCK // a.shape[0])
    result = np.empty(a.shape[1])
    for start in range(0, a.shape[1], width):
        columns = slice(start, start + width)
        result[columns] = score(_dense(a[:, columns]), _dense(b[:, columns]))
    return result


def _same_shape(a: Any, b: Any) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"`mapped` has shape {a.shape}, `measured` {b.shape}. "
            "Both must hold the same cells and columns, in the same order."
        )


def _same_columns(a: np.ndarray, b: np.ndarray, first: str, second: str) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"`{first}` has {a.shape[1]} columns, `{second}` {b.shape[1]}. "
            "Both must live in the same space: hand in the mapped cells, or both blocks of the joint embedding."
        )


def _paired(mapped: Any, measured: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = _matrix(mapped, "mapped", 2), _matrix(measured, "measured", 2)
    _same_shape(a, b)
    return a, b


def _drawn(mapped: Any, measured: Any, n: int, rng: np.random.Generator, *, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `n` random cells of each set."""
    a, b = _matrix(mapped, "mapped", rows), _matrix(measured, "measured", rows)
    _same_columns(a, b, "mapped", "measured")
    if n < rows:
        raise ValueError(f"`n` is {n}, but this score needs at least {rows} cells of each set.")
    first = rng.permutation(len(a))[:n]
    return a[first], b[rng.permutation(len(b))[:n]]


def _labels(labels: Any, name: str, rows: int) -> np.ndarray:
    series = pd.Series(np.asarray(labels, dtype=object))
    if len(series) != rows:
        raise ValueError(f"`{name}_labels` has {len(series)} entries, but `{name}` has {rows} rows.")
    if series.isna().any():
        raise ValueError(f"`{name}_labels` has {int(series.isna().sum())} missing labels. Drop those cells first.")
    return series.astype(str).to_numpy(dtype=str)


def _block_rows(n: int) -> int:
    return max(1, _BLOCK // n)


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield row slices of `a` and their distances to all rows of `b`."""
    step = _block_rows(len(b))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        yield rows, cdist(a[rows], b)


def _own_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of each row to its partner, by `cdist` itself: ties with the blocks must be exact."""
    step = min(_block_rows(len(b)), 256)
    return np.concatenate([np.diag(cdist(a[i : i + step], b[i : i + step])) for i in range(0, len(a), step)])


def _nearer(distance: np.ndarray, threshold: np.ndarray) -> float:
    return float((distance < threshold).sum() + 0.5 * (distance == threshold).sum())


def _orthonormal(covariates: np.ndarray) -> np.ndarray:
    """Orthonormal columns (n × rank) that span the covariates and a constant; copies and constants add none."""
    centred = covariates - covariates.mean(0)
    centred /= np.maximum(np.sqrt((centred**2).sum(0)), 1e-300)
    directions, size, _ = np.linalg.svd(centred, full_matrices=False)
    return np.column_stack([np.full(len(centred), len(centred) ** -0.5), directions[:, size > 1e-9]])


def _unexplained(values: np.ndarray, design: np.ndarray) -> np.ndarray:
    """What orthonormal covariates leave of columns; 0 where that is rounding."""
    rest = values - design @ (design.T @ values)
    spread = np.sqrt(((values - values.mean(0)) ** 2).sum(0))
    return np.where(np.sqrt((rest**2).sum(0)) <= 1e-9 * spread, 0.0, rest)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson r by column; 0 where `a` is constant, nan where `b` is."""
    constant_a, constant_b = np.ptp(a, axis=0) == 0, np.ptp(b, axis=0) == 0
    a, b = a - a.mean(0), b - b.mean(0)
    norm_a, norm_b = np.sqrt((a**2).sum(0)), np.sqrt((b**2).sum(0))
    constant_a |= norm_a <= 1e-6 * norm_b
    scale = np.where(constant_a | constant_b, 1.0, norm_a * norm_b)
    r = np.where(constant_a, 0.0, np.clip((a * b).sum(0) / scale, -1.0, 1.0))
    return np.where(constant_b, np.nan, r)
