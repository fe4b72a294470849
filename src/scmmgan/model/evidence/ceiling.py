"""What noise allows: how well held-out features of one half of a modality are predicted from its other half."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scmmgan.model.coupling.couple import Domains
from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.defaults import CEILING_CELLS, COARSE_LANDMARKS, LEAST_CEILING, MAX_TESTED_LINKS, NOISE_TOLERANCE
from scmmgan.model.evidence.heldout import HeldOut, held_out_links
from scmmgan.model.problem import Known
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.graphs import graph_scores


@dataclass(frozen=True)
class Ceiling:
    """Noise ceilings (l,) of links, and of their mean with its standard error; 0 where a feature cannot be predicted."""

    of_links: np.ndarray
    mean: float
    error: float

    def share(self, mean: float, error: float) -> tuple[float, float]:
        """Share of the ceiling that a mean with this standard error reaches, and its error; NaN where there is no ceiling."""
        if not self.mean:
            return float("nan"), float("nan")
        share = mean / self.mean
        return share, float(np.hypot(error, share * self.error) / self.mean)

    def shares(self, score: np.ndarray) -> np.ndarray:
        """Share (l,) of its ceiling that each link reaches, 0 to 1; NaN where noise leaves next to nothing."""
        low = self.of_links < LEAST_CEILING
        return np.where(low, np.nan, np.clip(score / np.where(low, 1, self.of_links), 0, 1))


def ceiling(known: Known, domains: Domains, *, refine: bool, random_state: int) -> Ceiling:
    """Ceilings of the links of two modalities: the geometric means of what either reaches with itself."""
    parts, means, errors = [], [], []
    for name in known.names:
        features, at = np.unique(known.positions(name), return_inverse=True)
        held, tested = self_alignment(domains[name], features, refine=refine, random_state=random_state)
        score = np.empty(len(features))
        score[tested] = held.score
        if held.rest is not None:
            score[np.setdiff1d(np.arange(len(features)), tested)] = held.rest.score
        parts.append(np.maximum(score, 0)[at])
        means.append(max(held.mean, 0.0))
        errors.append(held.error if len(tested) > 1 else 1.0)
    whole = float(np.sqrt(means[0] * means[1]))
    # relative errors of a root of a product are half of those of the factors
    error = whole / 2 * np.sqrt(sum((e / m) ** 2 for e, m in zip(errors, means))) if whole else 0.0
    return Ceiling(np.sqrt(parts[0] * parts[1]), whole, float(error))


def self_alignment(
    domain: Domain, features: np.ndarray, *, refine: bool, random_state: int
) -> tuple[HeldOut, np.ndarray]:
    """Held-out scores of features (positions) between two random halves of a modality, and which made the couplings.

    Each half, of at most 2,000 cells, has components, neighbours and landmarks of its own.
    """
    rng = np.random.default_rng(random_state)
    tested = np.sort(rng.permutation(len(features))[:MAX_TESTED_LINKS])
    order, modality, steps = rng.permutation(len(domain.x)), domain.modality, domain.smoothed.steps
    size = min(len(order) // 2, CEILING_CELLS)
    batch = np.zeros(len(order), dtype=int)
    for i, rows in enumerate(modality.batches or ()):
        batch[rows] = i
    sides = []
    for rows in (np.sort(order[:size]), np.sort(order[size : 2 * size])):
        x = graph_scores(modality.values[rows], modality.allowed, tolerance=NOISE_TOLERANCE)
        operator = smoothing_operator(x, labels=batch[rows], random_state=random_state)
        for _ in range(steps):
            x = operator @ x
        marks = find_landmarks(x, n_landmarks=COARSE_LANDMARKS, random_state=random_state)
        means = domain.landmark_means(marks.label, features, domain.smoothed.sampled(rows, operator))
        sides.append((means, marks.mass))
    (a, p), (b, q) = sides
    held = held_out_links(
        a, b, p, q, np.arange(len(features)), tested=tested, refine=refine, n_null=0, random_state=random_state
    )
    return held, tested
