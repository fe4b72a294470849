"""The joint embedding's metric: axes count by their round-trip reliability."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.linalg

from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.defaults import LEAST_RELIABILITY, METRIC_RIDGE
from scmmgan.model.problem import Pair


def round_trip_metrics(x: Mapping[str, np.ndarray], couplings: Mapping[Pair, Coupling]) -> dict[str, np.ndarray]:
    """Linear maps (p × p, float32, by modality) of cells, as rows, to where axes count by their round-trip reliability.

    The round trip of a cell (n × p) is its mean under the plans there and back. Over the axes u of C u = λ V u, with V
    the covariance of the cells and C theirs with their round trips, a map multiplies by √λ, λ in [0.02, 1]. The axes
    are uncorrelated over the cells, not orthogonal. Modalities that no plan leaves and enters again have none.
    """
    found = {}
    for m, cells in x.items():
        others = [a for a, b in couplings if b == m and (m, a) in couplings]
        if not others:
            continue
        centred = cells - cells.mean(0, dtype=np.float64)
        back = sum(_there_and_back(centred, couplings[m, o], couplings[o, m]) for o in others) / len(others)
        common = centred.T @ back / len(centred)
        variance = centred.T @ centred / len(centred)
        # modalities may have no variance at all
        variance += max(METRIC_RIDGE * float(np.trace(variance)) / len(variance), 1e-12) * np.eye(len(variance))
        share, axes = scipy.linalg.eigh((common + common.T) / 2, variance)
        found[m] = ((axes * np.sqrt(np.clip(share, LEAST_RELIABILITY, 1))) @ axes.T @ variance).astype(np.float32)
    return found


def _there_and_back(cells: np.ndarray, there: Coupling, back: Coupling) -> np.ndarray:
    """Means (n × p) of cells over the plan to the other modality's landmarks and, of their cells, over the plan back."""
    met = back.plan @ back.landmarks.mean(cells)
    return np.asarray(there.plan @ there.landmarks.mean(met))
