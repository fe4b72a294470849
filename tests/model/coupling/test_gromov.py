"""Landmark Gromov-Wasserstein: costs against plain loops, plans with the right marginals, the minimum that is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import ot
import pytest

from scmmgan.model.coupling import gromov
from scmmgan.model.coupling.landmarks import Landmarks, find_landmarks
from scmmgan.model.coupling.transport import balanced

Metrics = list[np.ndarray]


def problem(m: int = 20, seed: int = 0) -> tuple[Metrics, Metrics, np.ndarray, np.ndarray, np.ndarray]:
    """Distances of points and of the same points in another order; the order; the masses."""
    rng = np.random.default_rng(seed)
    points, mass = rng.normal(size=(m, 3)) * [3, 2, 1], rng.dirichlet(np.full(m, 20))
    d = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2))
    order = rng.permutation(m)
    metrics = [d / d.std(), np.sqrt(d) / np.sqrt(d).std()]
    return metrics, [v[np.ix_(order, order)] for v in metrics], mass, mass[order], order


def cost_reference(plan: np.ndarray, a: Metrics, b: Metrics) -> float:
    total = 0.0
    m, n = plan.shape
    for u, v in zip(a, b):
        for i in range(m):
            for j in range(n):
                for k in range(m):
                    total += ((u[i, k] - v[j]) ** 2 * plan[k]).sum() * plan[i, j]
    return total / len(a)


def test_costs_are_the_double_sum():
    a, b, p, q, _ = problem(7)
    rng = np.random.default_rng(0)
    plans = balanced(rng.random((3, 7, 7)), p, q, n_iter=500)
    expected = [cost_reference(plan, a, b) for plan in plans]
    np.testing.assert_allclose(gromov.costs(plans, a, b, p, q), expected, rtol=1e-6)


def test_starts_are_plans():
    a, b, p, q, _ = problem()
    plans = gromov.starts(a[0], b[0], p, q)
    assert len(plans) == 100
    np.testing.assert_allclose(plans.sum(1), np.tile(q, (len(plans), 1)), atol=1e-6)
    np.testing.assert_allclose(plans[-1], np.outer(p, q), atol=1e-12)
    assert len(np.unique(plans.round(6).reshape(len(plans), -1), axis=0)) > 40


def test_proximal_steps_bring_every_start_down():
    a, b, p, q, _ = problem()
    plans = gromov.starts(a[0], b[0], p, q)
    found = gromov.proximal(plans, a, b, p, q)
    before, after = (gromov.costs(of, a, b, p, q) for of in (plans, found))
    assert (after < before + 1e-6).all()
    assert after.min() < 0.6 * before.min()
    np.testing.assert_allclose(found.sum(1), np.tile(q, (100, 1)), atol=1e-6)


# --- polishing ---------------------------------------------------------------------------------------------------


def test_polish_never_costs_more():
    a, b, p, q, _ = problem()
    rng = np.random.default_rng(0)
    for kernel in rng.random((3, 20, 20)):
        plan = balanced(kernel[None], p, q, n_iter=300)
        better = gromov.polish(kernel, a, b, p, q)
        assert gromov.costs(better[None], a, b, p, q)[0] < gromov.costs(plan, a, b, p, q)[0]
        np.testing.assert_allclose(better.sum(1), p, atol=1e-6)
        np.testing.assert_allclose(better.sum(0), q, atol=1e-6)


def frank_wolfe(plan: np.ndarray, cost: Callable, p: np.ndarray, q: np.ndarray, n_steps: int) -> np.ndarray:
    """Steps to the best vertex, each as long as brings the cost down most; slopes by differences of the cost itself."""
    for _ in range(n_steps):
        gradient = np.empty(plan.shape)
        for at in np.ndindex(*plan.shape):
            step = np.zeros(plan.shape)
            step[at] = 1e-5
            gradient[at] = (cost(plan + step) - cost(plan - step)) / 2e-5
        direction = ot.emd(p, q, gradient - gradient.min()) - plan
        # the cost along the way is a parabola: from three of its values
        none, half, full = (cost(plan + t * direction) for t in (0, 0.5, 1))
        bend = 2 * (none + full) - 4 * half
        best = np.clip((bend - full + none) / (2 * bend), 0, 1) if bend > 0 else float(full < none)
        plan = plan + best * direction
    return plan


@pytest.mark.parametrize("n_steps", [1, 3, 10])
def test_steps_are_as_long_as_they_should(n_steps: int):
    """Where the cost bends upwards the best step ends before the vertex; of distances it bends down, mostly."""
    rng = np.random.default_rng(0)
    a, b, p, q, _ = problem(6)
    # similarities on one side: all directions bend upwards
    b = [v.max() - v for v in b]
    kernel = rng.random((6, 6))
    linear = 3 * rng.random((6, 6))

    def cost(plan: np.ndarray) -> float:
        squares = sum((u**2 @ plan.sum(1) @ plan.sum(1)) + (v**2 @ plan.sum(0) @ plan.sum(0)) for u, v in zip(a, b))
        crossed = sum((u @ plan @ v * plan).sum() for u, v in zip(a, b))
        return float((squares - 2 * crossed) / 2 + (linear * plan).sum())

    start = balanced(kernel, p, q, n_iter=200)
    assert cost(start) == pytest.approx(cost_reference(start, a, b) + (linear * start).sum())
    got = gromov.polish(kernel, a, b, p, q, linear, n_steps=n_steps)
    expected = frank_wolfe(start, cost, p, q, n_steps)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # between the vertices, and below what full steps come to
    assert (got > 1e-6).sum() > 11
    assert cost(got) < cost(start)


def test_right_plan_costs_nothing_and_is_kept():
    a, b, p, q, order = problem()
    right = np.zeros((20, 20))
    right[order, np.arange(20)] = q
    assert abs(gromov.costs(right[None], a, b, p, q)[0]) < 1e-12
    np.testing.assert_allclose(gromov.polish(right, a, b, p, q), right, atol=1e-9)


def test_plans_that_differ_by_less_are_one_answer():
    """|T − T'|₁ up to .8 of at most 2, against all that were kept before."""

    def turned(by: float) -> np.ndarray:
        return np.array([[0.5 - by / 4, by / 4], [by / 4, 0.5 - by / 4]])

    assert np.abs(turned(0) - turned(0.7)).sum() == pytest.approx(0.7)
    assert gromov.distinct([turned(0), turned(0.2), turned(0.79)]) == [0]
    assert gromov.distinct([turned(0), turned(0.81)]) == [0, 1]
    # each is far enough from the last one, not from the first
    assert gromov.distinct([turned(0), turned(0.81), turned(0.1), turned(1.62), turned(1.5)]) == [0, 1, 3]


# --- search ------------------------------------------------------------------------------------------------------


def test_search_finds_the_order_of_the_same_cells():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4)) * [4, 2, 1, 0.5]
    x[:30] += [8, 0, 3, 0]
    x[70:] -= [0, 9, 0, 2]
    order = rng.permutation(80)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    both = {"a": x, "b": x[order] @ turn}
    # the same clusters on both sides
    first = find_landmarks(x)
    second = Landmarks(first.label[order], first.mass, np.argsort(order)[first.nodes], first.centroids @ turn)
    plans, costs = gromov.gromov_wasserstein(both, {"a": first, "b": second})
    plan = plans[0]
    np.testing.assert_allclose(plan.sum(1), first.mass, atol=1e-6)
    assert (plan.argmax(1) == np.arange(40)).mean() > 0.95
    assert costs[0] < 1e-3
    assert (np.diff(costs) >= 0).all()
    assert len(costs) == 1 or costs[1] > 5 * costs[0]


def test_metrics_have_unit_rms():
    x = np.random.default_rng(0).normal(size=(150, 3)).astype(np.float32)
    landmarks = find_landmarks(x)
    weight = np.outer(landmarks.mass, landmarks.mass)
    found = gromov.landmark_metrics(x, landmarks)
    assert {family: len(metrics) for family, metrics in found.items()} == {"lengths": 2, "hops": 3, "euclidean": 1}
    for metrics in found.values():
        for d in metrics:
            assert np.sqrt((weight * d**2).sum()) == pytest.approx(1)
            np.testing.assert_allclose(d, d.T, atol=1e-10)
            assert (np.diag(d) == 0).all()


def test_different_sizes_and_what_a_search_returns():
    """Values are the mean over path lengths and root Euclidean distances of the double sum, and 7/3 of the linear cost."""
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(60, 3)), "b": rng.normal(size=(50, 5))}
    landmarks = {"a": find_landmarks(x["a"], n_landmarks=9), "b": find_landmarks(x["b"], n_landmarks=7)}
    metrics = {m: gromov.landmark_metrics(v, landmarks[m]) for m, v in x.items()}
    final = [metrics[m]["lengths"] + metrics[m]["euclidean"] for m in x]
    cost = rng.random((9, 7))
    for linear in (None, cost):
        plans, values = gromov.gromov_wasserstein(x, landmarks, cost=linear)
        assert len(plans) == len(values)
        assert (np.diff(values) >= 0).all()
        for plan, value in zip(plans, values):
            assert plan.shape == (9, 7)
            np.testing.assert_allclose(plan.sum(1), landmarks["a"].mass, atol=1e-6)
            np.testing.assert_allclose(plan.sum(0), landmarks["b"].mass, atol=1e-6)
            expected = cost_reference(plan, *final) + (0 if linear is None else 7 / 3 * (linear * plan).sum())
            assert value == pytest.approx(expected, abs=1e-6)
        for i, plan in enumerate(plans):
            assert all(np.abs(plan - other).sum() > 0.8 for other in plans[:i])
    again, _ = gromov.gromov_wasserstein(x, landmarks, cost=cost)
    np.testing.assert_array_equal(again[0], plans[0])


# --- fused -------------------------------------------------------------------------------------------------------


def test_fused_costs_are_the_double_sum_and_the_linear_part():
    a, b, p, q, _ = problem(7)
    rng = np.random.default_rng(0)
    linear = rng.random((7, 7))
    plans = balanced(rng.random((3, 7, 7)), p, q, n_iter=500)
    expected = [cost_reference(plan, a, b) + (linear * plan).sum() for plan in plans]
    np.testing.assert_allclose(gromov.costs(plans, a, b, p, q, linear), expected, rtol=1e-6)


def test_fused_polish_never_costs_more():
    a, b, p, q, _ = problem()
    rng = np.random.default_rng(0)
    for kernel in rng.random((3, 20, 20)):
        linear = rng.random((20, 20))
        plan = balanced(kernel[None], p, q, n_iter=300)
        better = gromov.polish(kernel, a, b, p, q, linear)
        assert gromov.costs(better[None], a, b, p, q, linear)[0] < gromov.costs(plan, a, b, p, q, linear)[0]
        np.testing.assert_allclose(better.sum(1), p, atol=1e-6)
    # a linear cost that outweighs all distances decides alone: an assignment problem
    heavy = 100 * rng.random((20, 20))
    plan = gromov.polish(rng.random((20, 20)), a, b, p, q, heavy)
    assert (plan * heavy).sum() < 1.02 * (ot.emd(p, q, heavy) * heavy).sum() + 0.1


@pytest.fixture(scope="module")
def mirror() -> tuple[dict[str, np.ndarray], dict[str, Landmarks], np.ndarray]:
    """Points on a V with equal arms, the same landmarks in two spaces; and the arm of every landmark."""
    n, rng = 80, np.random.default_rng(2)
    half = np.sort(rng.random(n // 2))
    x = np.c_[np.r_[half, -half], np.r_[half, half] * 0.4]
    order = rng.permutation(n)
    first = find_landmarks(x, n_landmarks=20)
    second = Landmarks(first.label[order], first.mass, np.argsort(order)[first.nodes], first.centroids)
    return {"a": x, "b": x[order]}, {"a": first, "b": second}, first.centroids[:, 0] > 0


def test_linear_cost_resolves_a_mirror_image(mirror: tuple):
    x, landmarks, arm = mirror
    wrong = (arm[:, None] != arm).astype(float)
    plans, costs = gromov.gromov_wasserstein(x, landmarks)
    # alone both answers are there, at the same cost up to where the landmarks lie
    crossed = [(plan * wrong).sum() for plan in plans[:2]]
    assert min(crossed) < 0.1
    assert max(crossed) > 0.9
    assert costs[1] - costs[0] < 0.01
    for direction in (1, -1):
        fused, _ = gromov.gromov_wasserstein(x, landmarks, cost=wrong if direction > 0 else 1 - wrong)
        crossed = (fused[0] * wrong).sum()
        assert (crossed < 0.1) if direction > 0 else (crossed > 0.9)


def test_plans_have_the_masses_asked_for(mirror: tuple):
    x, landmarks, _ = mirror
    rng = np.random.default_rng(0)
    m = len(landmarks["a"].mass)
    mass = rng.dirichlet(np.full(m, 5)), rng.dirichlet(np.full(m, 5))
    # landmarks without mass have no partner
    empty = mass[0] * (np.arange(m) > 3)
    mass = empty / empty.sum(), mass[1]
    plans, values = gromov.gromov_wasserstein(x, landmarks, mass=mass)
    assert len(plans) == len(values)
    for plan in plans:
        assert np.isfinite(plan).all()
        np.testing.assert_allclose(plan.sum(1), mass[0], atol=1e-6)
        np.testing.assert_allclose(plan.sum(0), mass[1], atol=1e-6)
        np.testing.assert_allclose(plan[:4], 0, atol=1e-12)
