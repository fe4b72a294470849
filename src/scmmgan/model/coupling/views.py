"""What is known about two modalities, as coordinates that both share or as costs (METHOD §3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.neighbors import NearestNeighbors

Pair = tuple[str, str]
N_CANONICAL = 20
PAIR_WEIGHT = 20.0  # of a known pair, where cells with their anchors count 1
FORBIDDEN = 10.0  # cost of two different labels, in units of the mean cost of everything else
HIDING = 0.05  # share of cells without a label in which a label may hide
MIN_PROFILES = 100  # known pairs from which on they place cells without the shapes (benchmarks/accuracy.md)
MIN_BORNE_OUT = 0.5  # labels: half-way from chance to perfect
MAX_PROFILES = 300  # known pairs that serve as coordinates


def pair_profiles(x: dict[str, np.ndarray], pairs: np.ndarray, *, random_state: int = 0) -> dict[str, np.ndarray]:
    """Profiles (n × at most 300) over the paired cells (k × 2 row numbers)."""
    if len(pairs) > MAX_PROFILES:
        pairs = pairs[np.sort(np.random.default_rng(random_state).permutation(len(pairs))[:MAX_PROFILES])]
    return profiles(x, {m: cells[rows] for (m, cells), rows in zip(x.items(), pairs.T)})


def pair_share(pairs: np.ndarray, n_links: int) -> float:
    """Weight of profiles over pairs beside linked features: few pairs tell little, more than few links do."""
    return min(1.0, len(pairs) / min(MIN_PROFILES, 10 * n_links))


def profiles(x: dict[str, np.ndarray], points: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Log distances (n × k) of all cells to points (k × p) that correspond across modalities, z-scored.

    The logarithm resolves the neighbourhood of every point; plain distances are ruled by the far cells.
    """
    found = {}
    for m, cells in x.items():
        cells, nodes = cells.astype(np.float64), points[m].astype(np.float64)
        distances = np.sqrt(squared_distances(cells, nodes))
        logs = np.log(distances + max(0.1 * float(np.median(distances)), 1e-12))
        found[m] = (logs - logs.mean(0)) / np.maximum(logs.std(0), 1e-9)
    return found


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n × m) between the rows of a and of b."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def memberships(x: np.ndarray, labels: np.ndarray, n_labels: int, *, k: int = 15) -> np.ndarray:
    """Label shares (n × labels): a cell's own label, or those of its k nearest labelled cells where it has none (-1)."""
    shares = np.zeros((len(x), n_labels))
    known = labels >= 0
    shares[known, labels[known]] = 1
    if known.all() or not known.any():
        return shares
    search = NearestNeighbors(n_neighbors=min(k, int(known.sum()))).fit(x[known])
    nearest = search.kneighbors(x[~known], return_distance=False)
    shares[~known] = shares[known][nearest].mean(1)
    return shares


def borne_out(
    spaces: Sequence[np.ndarray], labels: Sequence[np.ndarray], *, k: int = 15, n_cells: int = 5_000
) -> np.ndarray:
    """How well the cells' neighbours bear out each label (codes, -1: none), (labels,): 0 at chance, 1 at best.

    The share of a label's own cells among the k nearest labelled ones (fewer of a small label), rescaled by the share
    that chance gives: a population split at random keeps its shares. Mean over the cells of all spaces (batches), of at
    most `n_cells` each, drawn at random. NaN of a label that never has two cells and another label beside it.
    """
    total, count = (np.zeros(1 + max(int(of.max()) for of in labels)) for _ in range(2))
    for x, of in zip(spaces, labels):
        rows = np.flatnonzero(of >= 0)
        if len(rows) > n_cells:
            rows = np.sort(np.random.default_rng(0).permutation(rows)[:n_cells])
        codes, code, sizes = np.unique(of[rows], return_inverse=True, return_counts=True)
        if len(codes) < 2:
            continue
        near = NearestNeighbors(n_neighbors=min(k, len(rows) - 1)).fit(x[rows]).kneighbors(return_distance=False)
        for c, size in enumerate(sizes):
            if size > 1:
                share = (code[near[code == c, : min(k, size - 1)]] == c).mean()
                chance = (size - 1) / (len(rows) - 1)
                total[codes[c]] += size * (share - chance) / (1 - chance)
                count[codes[c]] += size
    return total / np.where(count > 0, count, np.nan)


def label_cost(shares_a: np.ndarray, known_a: np.ndarray, shares_b: np.ndarray, known_b: np.ndarray) -> np.ndarray:
    """Cost of matching rows of a with rows of b: 10 between different labels, 1 where either label is a guess."""
    severity = np.where(known_a[:, None] & known_b, FORBIDDEN, 1.0)
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
    hidden = [np.logical_not(there > 0) & (gap > HIDING) for there, gap in ((b, gaps[1]), (a, gaps[0]))]
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
    a = np.vstack([own[first], anchors[second, first]]).astype(np.float64)
    b = np.vstack([anchors[first, second], own[second]]).astype(np.float64)
    weight = np.ones(len(a))
    if pairs is not None:
        a = np.vstack([a, x[first][pairs[:, 0]]])
        b = np.vstack([b, x[second][pairs[:, 1]]])
        weight = np.r_[weight, np.full(len(pairs), PAIR_WEIGHT)]
    weight /= weight.sum()
    mean_a, mean_b = weight @ a, weight @ b
    a, b = a - mean_a, b - mean_b
    white_a, white_b = _whitening(a, weight), _whitening(b, weight)
    cross = (white_a.T @ a.T * weight) @ b @ white_b
    left, strength, right = np.linalg.svd(cross, full_matrices=False)
    left, right = (left * strength)[:, :N_CANONICAL], (right.T * strength)[:, :N_CANONICAL]
    return {
        first: (x[first] - mean_a) @ white_a @ left,
        second: (x[second] - mean_b) @ white_b @ right,
    }


def _whitening(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Matrix (p × p) that whitens centred x under the weights, shrunk by 5 % of the mean variance."""
    values, vectors = np.linalg.eigh((x.T * weight) @ x)
    return vectors / np.sqrt(np.maximum(values, 0) + 0.05 * max(values.mean(), 1e-12))
