"""Entropic transport: the one Sinkhorn iteration, plans of cells with landmarks, and what they average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.coupling import views
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.defaults import (
    EPSILON,
    MARGINAL_WEIGHT,
    SHARPENING,
    SINGLE_PRECISION_ABOVE,
    SINGLE_PRECISION_FROM,
    STACKED_VALUES,
)
from scmmgan.model.problem import Pair
from scmmgan.model.space.linear import in_blocks, row_blocks


def sinkhorn(
    kernel: np.ndarray,
    p: np.ndarray,
    q: np.ndarray,
    *,
    power: float = 1.0,
    n_iter: int = 500,
    tolerance: float = 0.0,
    overrelaxed: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Scalings u (… × n), v (… × m) that bring u K v to the marginals p and q, of one kernel (n × m) or a stack.

    `power` < 1 lets the marginals leave p and q: w / (w + ε) at KL weight w. Ends when no scaling moves by more than
    `tolerance` in log. `overrelaxed`: after ten steps each goes further, by the factor that is best where populations
    hardly exchange mass (Thibault et al. 2021): a tenth of the steps to the same plan, at `power` below 1.
    """
    # half the memory to go through; not where a row or column is so far from all others that it would underflow
    single = kernel.size > SINGLE_PRECISION_FROM
    single = single and min(kernel.max(-1).min(), kernel.max(-2).min()) > SINGLE_PRECISION_ABOVE
    kernel = kernel.astype(np.float32 if single else np.float64, copy=False)
    step = max(1, STACKED_VALUES // max(kernel.shape[-2] * kernel.shape[-1], 1))
    if kernel.ndim != 3 or tolerance or len(kernel) <= step:
        return _scalings(kernel, p, q, power, n_iter, tolerance, overrelaxed)
    # some of a stack at a time: they stay in the cache through all steps
    p, q = np.broadcast_to(p, kernel.shape[:-1]), np.broadcast_to(q, (*kernel.shape[:-2], kernel.shape[-1]))
    parts = [slice(start, start + step) for start in range(0, len(kernel), step)]
    found = [_scalings(kernel[at], p[at], q[at], power, n_iter, tolerance, overrelaxed) for at in parts]
    return np.concatenate([u for u, _ in found]), np.concatenate([v for _, v in found])


def _scalings(
    kernel: np.ndarray, p: np.ndarray, q: np.ndarray, power: float, n_iter: int, tolerance: float, overrelaxed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The steps of `sinkhorn`, in the kernel's precision."""
    back = np.ascontiguousarray(np.swapaxes(kernel, -1, -2)) if kernel.ndim > 2 else kernel.T
    tiny = np.finfo(kernel.dtype).tiny
    u, v = (np.ones(shape, kernel.dtype) for shape in (kernel.shape[:-1], (*kernel.shape[:-2], kernel.shape[-1])))
    factor = float(2 / (1 + np.sqrt(1 - power**2)))  # a scalar of numpy would make all double
    for step in range(n_iter):
        before, last = u, v
        u = ((p / np.maximum((kernel @ v[..., None])[..., 0], tiny)) ** power).astype(kernel.dtype, copy=False)
        if further := overrelaxed and step >= 10:
            u = before * (u / before) ** factor
        v = ((q / np.maximum((back @ u[..., None])[..., 0], tiny)) ** power).astype(kernel.dtype, copy=False)
        if further:
            v = last * (v / last) ** factor
        if tolerance and np.abs(np.log(u / before)).max() < tolerance:
            break
    return u.astype(np.float64), v.astype(np.float64)


def relaxed_plan(cost: np.ndarray, p: np.ndarray, q: np.ndarray, **how: float) -> tuple[np.ndarray, ...]:
    """Entropic plans (… × n × m) whose marginals may leave p and q, of one cost or a stack; and both scalings."""
    kernel = np.maximum(np.exp(-(cost - cost.min((-2, -1), keepdims=True)) / EPSILON), 1e-200)
    u, v = sinkhorn(kernel, p, q, power=MARGINAL_WEIGHT / (MARGINAL_WEIGHT + EPSILON), **how)  # type: ignore[arg-type]
    return u[..., None] * kernel * v[..., None, :], u, v


def balanced(kernels: np.ndarray, p: np.ndarray, q: np.ndarray, *, n_iter: int = 20) -> np.ndarray:
    """Non-negative kernels (… × n × m) scaled to the marginals p and q."""
    kernels = np.maximum(kernels, 1e-200)
    u, v = sinkhorn(kernels, p, q, n_iter=n_iter)
    return u[..., None] * kernels * v[..., None, :]


# --- cells and landmarks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelShares:
    """Label shares of cells and of landmarks by modality, and which of them are known, not guessed."""

    cells: dict[str, np.ndarray]
    known: dict[str, np.ndarray]
    landmarks: dict[str, np.ndarray]
    landmark_known: dict[str, np.ndarray]

    def cost(self, source: str, target: str, rows: np.ndarray) -> np.ndarray:
        """What labels cost between some cells (k,) of the source and the landmarks of the target (k × m)."""
        return views.label_cost(
            self.cells[source][rows], self.known[source][rows], self.landmarks[target], self.landmark_known[target]
        )


def label_shares(
    x: dict[str, np.ndarray], labels: dict[str, np.ndarray], landmarks: dict[str, Landmarks]
) -> LabelShares:
    """Label shares from codes (n,) of one vocabulary, -1 where a label is not known."""
    n_labels = 1 + max(int(v.max()) for v in labels.values())
    cells = {m: views.memberships(x[m], labels[m], n_labels) for m in x}
    known = {m: labels[m] >= 0 for m in x}
    return LabelShares(
        cells,
        known,
        {m: landmarks[m].mean(cells[m]) for m in x},
        # landmarks are found inside labels, so one cell speaks for all of its cluster
        {m: landmarks[m].mean(known[m][:, None].astype(float))[:, 0] > 0.5 for m in x},
    )


Coordinates = Sequence[tuple[dict[str, np.ndarray], float]]


@dataclass(frozen=True)
class ScaledKernel:
    """A plan (n × m) of many cells as it is kept: the kernel, mostly in single precision, and scalings u (n,) and v (m,)."""

    kernel: np.ndarray
    u: np.ndarray
    v: np.ndarray


Plan = ScaledKernel | np.ndarray


def plan_blocks(plan: Plan) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of a plan, dense, as many as there should be at one time, and where they are."""
    if isinstance(plan, np.ndarray):
        yield from row_blocks(plan)
        return
    for at, kernel in row_blocks(plan.kernel):
        yield at, plan.u[at, None] * kernel * plan.v


def plans_of(
    coordinates: Coordinates,
    landmarks: dict[str, Landmarks],
    labels: LabelShares | None,
    *,
    rows: dict[str, np.ndarray] | None = None,
    take: Callable[[Pair, Any], Any] | None = None,
) -> dict[Pair, Any]:
    """Relaxed plans (n × m) of cells with landmarks, both directions; or what `take` makes of each, of one at a time.

    Cells are compared by correlation distance over each of the `coordinates` (n × l by modality, and its weight), every
    one in units of its mean. `rows`: of the cells that are asked, all by default. Rows of a plan sum to the share of a
    cell's mass that finds a partner: about 1, far less where nothing resembles the cell.
    """
    first, second = landmarks
    rows = rows or {m: np.arange(len(marks.label)) for m, marks in landmarks.items()}
    plans = {}
    for source, target in ((first, second), (second, first)):
        found = _scaled_kernel if in_blocks(len(rows[source])) else _plan
        of = (coordinates, landmarks[target], labels, rows[source], (source, target))
        # nothing here may keep a plan while the next one is made
        plans[source, target] = found(*of) if take is None else take((source, target), found(*of))
    return plans


def _plan(
    coordinates: Coordinates, marks: Landmarks, labels: LabelShares | None, rows: np.ndarray, pair: Pair
) -> np.ndarray:
    """The plan of chosen cells of the source with landmarks of the target."""
    (source, target), n = pair, len(rows)
    cost = np.zeros((n, len(marks.mass)))
    for values, weight in coordinates:
        own, others = values[source][rows], marks.mean(values[target])
        cost += weight * views.over_mean(views.correlation_distance(own, others))
    cost = views.over_mean(cost)
    if labels is not None:
        cost += labels.cost(source, target, rows)
    return n * relaxed_plan(cost, np.full(n, 1 / n), marks.mass, tolerance=1e-4)[0]


def _scaled_kernel(
    coordinates: Coordinates, marks: Landmarks, labels: LabelShares | None, rows: np.ndarray, pair: Pair
) -> ScaledKernel:
    """The same of many cells, of which only the kernel is kept.

    Its rows are divided by their largest entry, so that single precision holds them. With c the least cost of a row, and C
    of all, scalings are those of the whole kernel under masses p exp((C - c) / w) of the rows, w the KL weight.
    """
    (source, target), n = pair, len(rows)
    sides = []
    for values, weight in coordinates:
        own, others = values[source], views.unit_rows(marks.mean(values[target]))
        total = sum(views.unit_rows(own[of].astype(np.float64)).sum(0) for _, of in row_blocks(rows))
        # the mean of 1 - u v over all pairs is 1 less the product of the means
        mean = max(1 - float(total / n @ others.mean(0)), 1e-12)
        sides.append((own, others, weight / mean))
    whole = sum(weight for _, weight in coordinates)
    kernel, least = np.empty((n, len(marks.mass)), dtype=np.float32), np.empty(n)
    for at, of in row_blocks(rows):
        cost = sum(w * (1 - views.unit_rows(own[of].astype(np.float64)) @ others.T) for own, others, w in sides) / whole
        if labels is not None:
            cost += labels.cost(source, target, of)
        least[at] = cost.min(1)
        kernel[at] = np.exp((least[at, None] - cost) / EPSILON)
    power = MARGINAL_WEIGHT / (MARGINAL_WEIGHT + EPSILON)
    p = np.exp((least.min() - least) / MARGINAL_WEIGHT) / n
    u, v = sinkhorn(kernel, p, marks.mass, power=power, tolerance=1e-4, overrelaxed=True)
    return ScaledKernel(kernel, n * u, v)


def image(plan: Plan, points: np.ndarray) -> np.ndarray:
    """Means (n × p) of points (m × p) under a plan."""
    return np.concatenate([shares(block) @ points for _, block in plan_blocks(plan)])


def images(
    plans: dict[Pair, np.ndarray], landmarks: dict[str, Landmarks], x: dict[str, np.ndarray]
) -> dict[Pair, np.ndarray]:
    """Barycentric images (n × p) of all cells under plans."""
    return {(a, b): image(plan, landmarks[b].mean(x[b])) for (a, b), plan in plans.items()}


def shares(plan: np.ndarray) -> np.ndarray:
    """A plan (… × n × m) with rows that sum to 1."""
    return plan / np.maximum(plan.sum(-1, keepdims=True), 1e-300)


def matched_share(plan: np.ndarray) -> np.ndarray:
    """Share (n,) of each cell's mass that was matched, at most 1."""
    return np.clip(plan.sum(1), 0, 1)


def barycentres(plan: sp.csr_matrix | np.ndarray, points: np.ndarray) -> np.ndarray:
    """Means (n × p) of points (m × p) under the squared entries of a plan (n × m): its own are too near to the middle."""
    found = []
    for _, part in row_blocks(plan):
        sharp = sp.csr_matrix(part, dtype=np.float64).power(SHARPENING)
        found.append(np.asarray(sharp @ points) / np.maximum(np.asarray(sharp.sum(1)), 1e-300))
    return np.concatenate(found)


def nearest_landmarks(x: np.ndarray, landmarks: Landmarks, labels: np.ndarray | None = None, k: int = 5) -> np.ndarray:
    """Row-stochastic weights (n × m) of each cell on its k nearest landmarks, so that anchors do not jump.

    A cell with a label (n,), not -1, stays with the landmarks of that label.
    """
    from sklearn.neighbors import NearestNeighbors

    m = len(landmarks.mass)
    groups = np.full(len(x), -1) if labels is None else labels
    # landmarks are found inside labels: any of its cells speaks for one
    own = np.empty(m, dtype=int)
    own[landmarks.label] = groups
    out = np.zeros((len(x), m))
    for group in np.unique(groups):
        rows, near = np.flatnonzero(groups == group), np.flatnonzero((own == group) | (group < 0))
        search = NearestNeighbors(n_neighbors=min(k, len(near))).fit(landmarks.centroids[near])
        distances, nearest = search.kneighbors(x[rows])
        weights = np.exp(-((distances / np.maximum(distances.mean(1, keepdims=True), 1e-12)) ** 2) * 2)
        out[rows[:, None], near[nearest]] = weights / weights.sum(1, keepdims=True)
    return out
