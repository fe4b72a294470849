"""Linked features as they were measured or smoothed: which of the two lets links find each other (docs/method.md)."""

from __future__ import annotations

import numpy as np

from scmmgan.model.coupling.coupling import agreement
from scmmgan.model.coupling.landmarks import LINKED_LANDMARKS, landmarks_of
from scmmgan.model.coupling.transport import plans_of
from scmmgan.model.evidence.heldout import folds

KEPT = 0.9  # share of the agreement that a cell's own values may not fall below (benchmarks/accuracy.md)
CELLS = 1_000  # of each modality, that are carried over


def least_noisy(
    x: dict[str, np.ndarray],
    own: dict[str, np.ndarray],
    smoothed: dict[str, np.ndarray],
    groups: np.ndarray,
    *,
    random_state: int = 0,
) -> dict[str, np.ndarray]:
    """Linked features (n × l) with cells' `own` values, or `smoothed` ones where the own are mostly noise.

    Plans are made without a fifth of the links at a time, from either, and carry these over. Noise of a cell misleads the
    plans, so that less comes back; a tenth may be lost, since held-out links prefer smooth plans. `groups` (l,): links with
    a feature in common are held out together, as they share its noise.
    """
    rng = np.random.default_rng(random_state)
    landmarks = landmarks_of(x, None, n_landmarks=LINKED_LANDMARKS, random_state=random_state)
    rows = {m: np.sort(rng.permutation(len(v))[:CELLS]) for m, v in x.items()}
    fold = folds(groups, rng)
    told = []
    for linked in (own, smoothed):
        total = 0.0
        for out in (fold == f for f in np.unique(fold)):
            plans = plans_of([], landmarks, None, linked={m: v[:, ~out] for m, v in linked.items()}, rows=rows)
            total += agreement(plans, {m: v[:, out] for m, v in own.items()}, landmarks, rows).sum()
        told.append(total)
    return own if told[0] >= KEPT * told[1] else smoothed
