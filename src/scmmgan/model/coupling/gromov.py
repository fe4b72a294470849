"""Landmark Gromov-Wasserstein: a coupling from intra-modality distances alone."""

from __future__ import annotations

from itertools import permutations, product
from typing import TYPE_CHECKING

import numpy as np

from scmmgan.model.coupling.transport import balanced
from scmmgan.model.defaults import DISTINCT_PLANS, FUSED_WEIGHT, N_POLISHED, N_STARTS, PROXIMAL_STEP
from scmmgan.model.progress import tracked
from scmmgan.model.space.diffusion import geodesics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scmmgan.model.coupling.landmarks import Landmarks


def gromov_wasserstein(
    x: dict[str, np.ndarray],
    landmarks: dict[str, Landmarks],
    *,
    cost: np.ndarray | None = None,
    mass: tuple[np.ndarray, np.ndarray] | None = None,
    random_state: int = 0,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Distinct minima (plans m × m') of mean_r Σ (A_r,ik − B_r,jl)² T_ij T_kl + 7/3 ⟨cost, T⟩, least first; values.

    Candidates come from proximal steps under path lengths and under hop counts, each from 100 starts; the best are
    polished by conditional gradient under path lengths and root Euclidean distances together, where the least wins.
    """
    first, second = x
    p, q = mass or (landmarks[first].mass, landmarks[second].mass)
    linear = 0.0 if cost is None else FUSED_WEIGHT * cost
    metrics = {m: landmark_metrics(x[m], landmarks[m], random_state=random_state) for m in x}
    final = [metrics[m]["lengths"] + metrics[m]["euclidean"] for m in x]
    plans: list[np.ndarray] = []
    for family in ("lengths", "hops"):
        a, b = metrics[first][family], metrics[second][family]
        begin = starts(np.mean(a, 0), np.mean(b, 0), p, q, random_state=random_state)
        if cost is not None:
            # where something is known it is the best start
            known = balanced(np.exp(-(cost - cost.min()) / max(0.1 * cost.mean(), 1e-12))[None], p, q)
            begin = np.concatenate([known, begin[: len(begin) // 4]])
        candidates = proximal(begin, a, b, p, q, linear)
        order = np.argsort(costs(candidates, a, b, p, q, linear), kind="stable")
        plans += [polish(candidates[i], final[0], final[1], p, q, linear) for i in order[:N_POLISHED]]
    values = costs(np.stack(plans), final[0], final[1], p, q, linear)
    order = np.argsort(values, kind="stable")
    kept = order[distinct([plans[i] for i in order])]
    return [plans[i] for i in kept], values[kept]


def distinct(plans: list[np.ndarray]) -> list[int]:
    """Positions of the plans that differ from all kept before them."""
    kept: list[int] = []
    for i, plan in enumerate(plans):
        if all(np.abs(plan - plans[j]).sum() > DISTINCT_PLANS for j in kept):
            kept.append(i)
    return kept


def landmark_metrics(x: np.ndarray, landmarks: Landmarks, *, random_state: int = 0) -> dict[str, list[np.ndarray]]:
    """Distances between landmarks (m × m), each at unit rms: path lengths (k = 15, 50), hops (also 10 %), Euclid."""
    rng = np.random.default_rng(random_state)
    m = len(landmarks.nodes)
    others = np.setdiff1d(np.arange(len(x)), landmarks.nodes)
    rows = np.r_[landmarks.nodes, rng.permutation(others)[: max(0, 5_000 - m)]]
    weight = np.outer(landmarks.mass, landmarks.mass)

    def unit(distances: np.ndarray) -> np.ndarray:
        return distances / max(np.sqrt((weight * distances**2).sum()), 1e-12)

    found = [
        geodesics(x[rows], np.arange(m), n_neighbors=min(k, 200, len(rows) - 1), random_state=random_state)
        for k in (15, 50, max(15, len(rows) // 10))
    ]
    squared = ((landmarks.centroids[:, None] - landmarks.centroids[None]) ** 2).sum(2)
    return {
        "lengths": [unit(lengths) for lengths, _ in found[:2]],
        "hops": [unit(hops) for _, hops in found],
        "euclidean": [unit(squared**0.25)],
    }


def costs(
    plans: np.ndarray,
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    p: np.ndarray,
    q: np.ndarray,
    linear: np.ndarray | float = 0.0,
) -> np.ndarray:
    """(Fused) Gromov-Wasserstein cost of each plan of a stack with marginals p and q."""
    constant = sum(p @ u**2 @ p + q @ v**2 @ q for u, v in zip(a, b)) / len(a)
    return constant + ((linear - 2 * _cross(plans, a, b)) * plans).sum((-2, -1))


def _cross(plans: np.ndarray, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """mean_r A_r T B_r for one plan or a stack of plans."""
    return np.mean([np.matmul(np.matmul(u, plans), v) for u, v in zip(a, b)], axis=0)


def proximal(
    plans: np.ndarray,
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    p: np.ndarray,
    q: np.ndarray,
    linear: np.ndarray | float = 0.0,
    *,
    n_steps: int = 10,
) -> np.ndarray:
    """T ← Sinkhorn(T ∘ exp(−∇/ε)); terms of the gradient that depend on the marginals alone cancel."""
    for _ in range(n_steps):
        gain = PROXIMAL_STEP * (4 * _cross(plans, a, b) - linear)
        gain -= gain.max(2, keepdims=True)
        plans = balanced(plans * np.exp(gain - gain.max(1, keepdims=True)), p, q)
    return plans


def polish(
    plan: np.ndarray,
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    p: np.ndarray,
    q: np.ndarray,
    linear: np.ndarray | float = 0.0,
    *,
    n_steps: int = 30,
) -> np.ndarray:
    """Conditional gradient (Frank-Wolfe) with exact line search from a plan to the nearest local minimum."""
    import ot

    plan = balanced(plan[None], p, q, n_iter=200)[0]
    for _ in range(n_steps):
        # up to terms of the marginals; the solver wants costs from 0 up
        gradient = linear - 4 * _cross(plan, a, b)
        direction = ot.emd(p, q, gradient - gradient.min()) - plan
        slope = (gradient * direction).sum()
        if slope > -1e-7:
            break
        curvature = -2 * (_cross(direction, a, b) * direction).sum()
        plan = plan + (min(1.0, -slope / (2 * curvature)) if curvature > 0 else 1.0) * direction
    return plan


def starts(a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray, *, random_state: int = 0) -> np.ndarray:
    """Plans that match three MDS axes under sign flips, permutations and random rotations, and the uniform one."""
    axes_a, axes_b = _mds(a, p), _mds(b, q)
    d = min(axes_a.shape[1], axes_b.shape[1])
    turns = [
        np.diag(signs)[list(order)] for order in permutations(range(d)) for signs in product((1.0, -1.0), repeat=d)
    ]
    rng = np.random.default_rng(random_state)
    turns += [np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(N_STARTS - 1 - len(turns))]
    kernels = []
    for turn in tracked(turns, "coupling"):
        cost = ((axes_a[:, None, :d] @ turn - axes_b[None, :, :d]) ** 2).sum(2)
        cost -= cost.min(1, keepdims=True)
        kernels.append(np.exp(-cost / max(0.1 * cost.mean(), 1e-12)))
    return np.concatenate([balanced(np.stack(kernels), p, q), np.outer(p, q)[None]])


def _mds(distances: np.ndarray, mass: np.ndarray, d: int = 3) -> np.ndarray:
    """Classical MDS weighted by mass: leading axes, each with unit variance."""
    centre = np.eye(len(mass)) - np.outer(np.ones(len(mass)), mass)
    gram = -centre @ distances**2 @ centre.T / 2
    root = np.sqrt(mass)
    values, vectors = np.linalg.eigh(root[:, None] * gram * root[None, :])
    order = np.argsort(-values, kind="stable")[: min(d, len(mass))]
    return vectors[:, order] / np.maximum(root[:, None], 1e-12)
