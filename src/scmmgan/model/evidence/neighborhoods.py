"""What becomes of cells' neighbours under an embedding, without knowing the truth."""

from __future__ import annotations

import numpy as np

from scmmgan.model.defaults import CYCLE_NEIGHBORS, OVERLAP_NEIGHBORS
from scmmgan.model.space.diffusion import nearest


def overlaps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Share (n,) of each cell's 20 nearest neighbours in x that are among those in y, and the share that chance gives."""
    from sklearn.neighbors import NearestNeighbors

    k = min(OVERLAP_NEIGHBORS, len(x) // 4)
    near = [NearestNeighbors(n_neighbors=k).fit(v).kneighbors(return_distance=False) for v in (x, y)]
    return np.array([len(np.intersect1d(i, j)) for i, j in zip(*near)]) / k, k / (len(x) - 1)


def round_trips(cells: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distance (n,) of cells (n × p) to where an embedding brings them back, over their variance.

    In the embedding `x` (n × d) a cell goes to its 5 nearest cells of `y` (m × d), and from each to its 5 nearest of `x`,
    itself left out, whose mean counts. 0: back at itself; 1: at the mean of all.
    """
    there, back = nearest(x, y, CYCLE_NEIGHBORS)[0], nearest(y, x, CYCLE_NEIGHBORS + 1)[0]
    ends = back[there]
    left_out = ends == np.arange(len(x))[:, None, None]
    # where the cell itself is not among them, the farthest is left out
    left_out[..., -1] |= ~left_out.any(-1)
    ends = ends[~left_out].reshape(len(x), -1)
    moved = ((cells[ends].mean(1, dtype=np.float64) - cells) ** 2).sum(1)
    return np.asarray(moved / max(float(cells.var(0, dtype=np.float64).sum()), 1e-12))
