"""Views: what two modalities share, as coordinates that cells are compared by, or as costs between labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scmmgan.model.defaults import (
    FORBIDDEN_COST,
    HIDING_SHARE,
    MAX_PROFILES,
    N_CANONICAL,
    PAIR_WEIGHT,
    PAIRS_DECIDE,
    SMOOTHING_NEIGHBORS,
)
from scmmgan.model.problem import Pair
from scmmgan.model.space.diffusion import nearest
from scmmgan.model.space.linear import in_blocks, row_blocks


def correlation_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation between the rows of a (… × n × l) and b (… × m × l); 1 from a constant row to everything."""
    return 1 - unit_rows(a) @ np.swapaxes(unit_rows(b), -1, -2)


def unit_rows(v: np.ndarray) -> np.ndarray:
    """Rows (… × n × l) of mean 0 and length 1, whose products are correlations; 0 where a row is constant."""
    v = v - v.mean(-1, keepdims=True)
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def over_mean(cost: np.ndarray) -> np.ndarray:
    """Costs (… × n × m) in units of their mean, each of a stack by itself."""
    # links may all be down-weighted to nothing
    return cost / np.maximum(cost.mean((-2, -1), keepdims=True), 1e-12)


def pair_profiles(x: dict[str, np.ndarray], pairs: np.ndarray, *, random_state: int = 0) -> dict[str, np.ndarray]:
    """Profiles (n × at most 300) over the paired cells (k × 2 row numbers)."""
    if len(pairs) > MAX_PROFILES:
        pairs = pairs[np.sort(np.random.default_rng(random_state).permutation(len(pairs))[:MAX_PROFILES])]
    return profiles(x, {m: cells[rows] for (m, cells), rows in zip(x.items(), pairs.T)})


def pair_share(n_pairs: int) -> float:
    """Weight of profiles over pairs beside linked features: 1 from the number on that places cells alone."""
    return min(1.0, n_pairs / PAIRS_DECIDE)


def profiles(x: dict[str, np.ndarray], points: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Log distances (n × k) of all cells to points (k × p) that correspond across modalities, z-scored.

    The logarithm resolves the neighbourhood of every point; plain distances are ruled by the far cells.
    """
    found = {}
    for m, cells in x.items():
        cells, nodes = cells.astype(np.float64), points[m].astype(np.float64)
        squared = np.maximum((cells**2).sum(1)[:, None] + (nodes**2).sum(1) - 2 * cells @ nodes.T, 0)
        distances = np.sqrt(squared)
        logs = np.log(distances + max(0.1 * float(np.median(distances)), 1e-12))
        found[m] = (logs - logs.mean(0)) / np.maximum(logs.std(0), 1e-9)
    return found


def memberships(x: np.ndarray, labels: np.ndarray, n_labels: int) -> np.ndarray:
    """Label shares (n × labels): a cell's own label, or those of its 15 nearest labelled cells where it has none (-1)."""
    shares = np.zeros((len(x), n_labels))
    known = labels >= 0
    shares[known, labels[known]] = 1
    if known.all() or not known.any():
        return shares
    shares[~known] = shares[known][nearest(x[~known], x[known], SMOOTHING_NEIGHBORS)[0]].mean(1)
    return shares


def label_cost(shares_a: np.ndarray, known_a: np.ndarray, shares_b: np.ndarray, known_b: np.ndarray) -> np.ndarray:
    """Cost of matching rows of a with rows of b: 10 between different labels, 1 where either label is a guess."""
    severity = np.where(known_a[:, None] & known_b, FORBIDDEN_COST, 1.0)
    return severity * (1 - shares_a @ shares_b.T)


def share_ratios(a: np.ndarray, b: np.ndarray, gaps: tuple[float, float] = (0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """Share of each label on the other side over its own share, both directions; next to 0 where it is missing.

    Shares are those among the labels of both sides: what one side lacks is no reason to doubt the rest. A label that
    may hide in the other side's `gaps` (shares of cells without a label) counts as there.
    """
    floor, both = 1e-9, (a > 0) & (b > 0)
    if both.any():
        a, b = a / a[both].sum(), b / b[both].sum()
    ratios = np.maximum(b, floor) / np.maximum(a, floor), np.maximum(a, floor) / np.maximum(b, floor)
    hidden = [np.logical_not(there > 0) & (gap > HIDING_SHARE) for there, gap in ((b, gaps[1]), (a, gaps[0]))]
    if any(h.any() for h in hidden):
        # the guesses of that side know only its own names: no share of it can be trusted
        return np.ones_like(a), np.ones_like(b)
    return ratios


def canonical(
    x: dict[str, np.ndarray],
    anchors: dict[Pair, np.ndarray],
    pairs: np.ndarray | None = None,
    *,
    rows: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Canonical variates (n × at most 20) of both modalities, from every cell and its anchor as a pair.

    Known pairs count 20 fold. Variates are scaled by their canonical correlations. `rows`: of the cells that have the
    anchors, all by default.
    """
    first, second = x
    own = {m: v if rows is None else v[rows[m]] for m, v in x.items()}
    parts = [[own[first], anchors[first, second]], [anchors[second, first], own[second]]]
    if pairs is not None:
        parts.append([x[first][pairs[:, 0]], x[second][pairs[:, 1]]])
    # as if anchored cells and pairs were rows of one matrix, of which a block is there at one time
    total = sum(len(a) for a, _ in parts[:2]) + PAIR_WEIGHT * (0 if pairs is None else len(pairs))

    def rows_of_both() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        weights = [np.full(len(a), w / total) for (a, _), w in zip(parts, (1.0, 1.0, PAIR_WEIGHT))]
        if not in_blocks(max(map(len, weights))):
            a, b = (np.vstack(side).astype(np.float64) for side in zip(*parts))
            yield a, b, np.concatenate(weights)
            return
        for (a, b), weight in zip(parts, weights):
            for at, block in row_blocks(a):
                yield block.astype(np.float64), b[at].astype(np.float64), weight[at]

    mean_a, mean_b = (sum(of) for of in zip(*((w @ a, w @ b) for a, b, w in rows_of_both())))
    white_a, white_b = (
        _whitening(sum((of.T * w) @ of for of, w in sides))
        for sides in (
            ((a - mean_a, w) for a, _, w in rows_of_both()),
            ((b - mean_b, w) for _, b, w in rows_of_both()),
        )
    )
    cross = sum((white_a.T @ (a - mean_a).T * w) @ (b - mean_b) for a, b, w in rows_of_both()) @ white_b
    left, strength, right = np.linalg.svd(cross, full_matrices=False)
    left, right = (left * strength)[:, :N_CANONICAL], (right.T * strength)[:, :N_CANONICAL]
    return {
        m: np.concatenate([(part - mean) @ white @ axes for _, part in row_blocks(x[m])])
        for m, mean, white, axes in ((first, mean_a, white_a, left), (second, mean_b, white_b, right))
    }


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """Matrix (p × p) that whitens rows of this covariance, shrunk by 5 % of the mean variance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(np.maximum(values, 0) + 0.05 * max(values.mean(), 1e-12))
