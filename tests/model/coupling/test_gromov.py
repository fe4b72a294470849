"""Landmark Gromov-Wasserstein: costs against plain loops, plans with the right marginals, the minimum that is known."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan.model.coupling import gromov
from scmmgan.model.coupling.landmarks import find_landmarks


def problem(
    m: int = 20, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Distances of points and of the same points in another order; the order; the masses."""
    rng = np.random.default_rng(seed)
    points, mass = rng.normal(size=(m, 3)) * [3, 2, 1], rng.dirichlet(np.full(m, 20))
    d = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2))
    order = rng.permutation(m)
    metrics = [d / d.std(), np.sqrt(d) / np.sqrt(d).std()]
    return metrics, [v[np.ix_(order, order)] for v in metrics], mass, mass[order], order


def cost_reference(plan: np.ndarray, a: list[np.ndarray], b: list[np.ndarray]) -> float:
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
    plans = gromov.balance(rng.random((3, 7, 7)), p, q, n_iter=500)
    expected = [cost_reference(plan, a, b) for plan in plans]
    np.testing.assert_allclose(gromov.costs(plans, a, b, p, q), expected, rtol=1e-6)


def test_balance_has_the_marginals():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(9, 5)), rng.dirichlet(np.full(6, 5))
    plans = gromov.balance(rng.random((4, 9, 6)), p, q, n_iter=200)
    np.testing.assert_allclose(plans.sum(2), np.tile(p, (4, 1)), atol=1e-8)
    np.testing.assert_allclose(plans.sum(1), np.tile(q, (4, 1)), atol=1e-8)
    # kernels with zeros have plans, too
    holes = gromov.balance(np.eye(6)[None] * 1.0, np.full(6, 1 / 6), np.full(6, 1 / 6))
    np.testing.assert_allclose(holes[0], np.eye(6) / 6, atol=1e-8)


def test_starts_are_plans():
    a, b, p, q, _ = problem()
    plans = gromov.starts(a[0], b[0], p, q)
    assert len(plans) == gromov.N_STARTS
    np.testing.assert_allclose(plans.sum(1), np.tile(q, (len(plans), 1)), atol=1e-6)
    np.testing.assert_allclose(plans[-1], np.outer(p, q), atol=1e-12)
    assert len(np.unique(plans.round(6).reshape(len(plans), -1), axis=0)) > 40


def test_polish_never_costs_more():
    a, b, p, q, _ = problem()
    rng = np.random.default_rng(0)
    for kernel in rng.random((5, 20, 20)):
        plan = gromov.balance(kernel[None], p, q, n_iter=300)
        better = gromov.polish(kernel, a, b, p, q)
        assert gromov.costs(better[None], a, b, p, q)[0] < gromov.costs(plan, a, b, p, q)[0]
        np.testing.assert_allclose(better.sum(1), p, atol=1e-6)
        np.testing.assert_allclose(better.sum(0), q, atol=1e-6)


def test_right_plan_costs_nothing_and_is_kept():
    a, b, p, q, order = problem()
    right = np.zeros((20, 20))
    right[order, np.arange(20)] = q
    assert abs(gromov.costs(right[None], a, b, p, q)[0]) < 1e-12
    np.testing.assert_allclose(gromov.polish(right, a, b, p, q), right, atol=1e-9)


def test_search_finds_the_order_of_the_same_cells():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)) * [4, 2, 1, 0.5]
    x[:40] += [8, 0, 3, 0]
    x[100:] -= [0, 9, 0, 2]
    order = rng.permutation(120)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    both = {"a": x, "b": x[order] @ turn}
    # the same clusters on both sides
    landmarks = {"a": find_landmarks(x)}
    label = landmarks["a"].label[order]
    landmarks["b"] = type(landmarks["a"])(
        label, landmarks["a"].mass, np.argsort(order)[landmarks["a"].nodes], landmarks["a"].centroids @ turn
    )
    plans, costs = gromov.gromov_wasserstein(both, landmarks)
    plan = plans[0]
    np.testing.assert_allclose(plan.sum(1), landmarks["a"].mass, atol=1e-6)
    assert (plan.argmax(1) == np.arange(60)).mean() > 0.95
    assert costs[0] < 1e-3
    assert (np.diff(costs) >= 0).all()
    assert len(costs) == 1 or costs[1] > 5 * costs[0]


def test_metrics_have_unit_rms():
    x = np.random.default_rng(0).normal(size=(150, 3)).astype(np.float32)
    landmarks = find_landmarks(x)
    weight = np.outer(landmarks.mass, landmarks.mass)
    found = gromov.landmark_metrics(x, landmarks)
    for metrics in found.values():
        for d in metrics:
            assert np.sqrt((weight * d**2).sum()) == pytest.approx(1)
            np.testing.assert_allclose(d, d.T, atol=1e-10)
            assert (np.diag(d) == 0).all()


def test_different_sizes():
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(80, 3)), "b": rng.normal(size=(60, 5))}
    landmarks = {k: find_landmarks(v) for k, v in x.items()}
    plans, costs = gromov.gromov_wasserstein(x, landmarks)
    assert len(plans) == len(costs)
    plan = plans[0]
    assert plan.shape == (40, 30)
    np.testing.assert_allclose(plan.sum(0), landmarks["b"].mass, atol=1e-6)
    assert np.isfinite(costs).all()
    assert costs[0] > 0


# --- fused -------------------------------------------------------------------------------------------------------


def test_fused_costs_are_the_double_sum_and_the_linear_part():
    a, b, p, q, _ = problem(7)
    rng = np.random.default_rng(0)
    linear = rng.random((7, 7))
    plans = gromov.balance(rng.random((3, 7, 7)), p, q, n_iter=500)
    expected = [cost_reference(plan, a, b) + (linear * plan).sum() for plan in plans]
    np.testing.assert_allclose(gromov.costs(plans, a, b, p, q, linear), expected, rtol=1e-6)


def test_fused_polish_never_costs_more():
    a, b, p, q, order = problem()
    rng = np.random.default_rng(0)
    right = np.zeros((20, 20))
    right[order, np.arange(20)] = q
    for kernel in rng.random((4, 20, 20)):
        linear = rng.random((20, 20))
        plan = gromov.balance(kernel[None], p, q, n_iter=300)
        better = gromov.polish(kernel, a, b, p, q, linear)
        assert gromov.costs(better[None], a, b, p, q, linear)[0] < gromov.costs(plan, a, b, p, q, linear)[0]
        np.testing.assert_allclose(better.sum(1), p, atol=1e-6)
    # a linear cost that outweighs all distances decides alone: an assignment problem
    import ot

    heavy = 100 * rng.random((20, 20))
    plan = gromov.polish(rng.random((20, 20)), a, b, p, q, heavy)
    assert (plan * heavy).sum() < 1.02 * (ot.emd(p, q, heavy) * heavy).sum() + 0.1


def mirror(n: int = 120) -> tuple[dict, dict, np.ndarray]:
    """Points on a V with equal arms, the same landmarks in two spaces; and the arm of every landmark."""
    rng = np.random.default_rng(0)
    half = np.sort(rng.random(n // 2))
    x = np.c_[np.r_[half, -half], np.r_[half, half] * 0.4]
    order = rng.permutation(n)
    both = {"a": x, "b": x[order]}
    landmarks = {"a": find_landmarks(x, n_landmarks=30)}
    first = landmarks["a"]
    landmarks["b"] = type(first)(first.label[order], first.mass, np.argsort(order)[first.nodes], first.centroids)
    return both, landmarks, first.centroids[:, 0] > 0


def test_linear_cost_resolves_a_mirror_image():
    x, landmarks, arm = mirror()
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


def test_plans_have_the_masses_asked_for():
    x, landmarks, _ = mirror()
    rng = np.random.default_rng(0)
    m = len(landmarks["a"].mass)
    mass = rng.dirichlet(np.full(m, 5)), rng.dirichlet(np.full(m, 5))
    plans, values = gromov.gromov_wasserstein(x, landmarks, mass=mass)
    assert len(plans) == len(values)
    for plan in plans:
        np.testing.assert_allclose(plan.sum(1), mass[0], atol=1e-6)
        np.testing.assert_allclose(plan.sum(0), mass[1], atol=1e-6)
    for i, plan in enumerate(plans):
        assert all(np.abs(plan - other).sum() > gromov.DISTINCT for other in plans[:i])
    # landmarks without mass have no partner
    empty = mass[0] * (np.arange(m) > 3)
    plans, _ = gromov.gromov_wasserstein(x, landmarks, mass=(empty / empty.sum(), mass[1]))
    assert np.isfinite(plans[0]).all()
    np.testing.assert_allclose(plans[0][:4], 0, atol=1e-12)
