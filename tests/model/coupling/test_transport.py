"""The one Sinkhorn iteration against plain loops and other solvers; plans of cells with landmarks, and what they average."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import scipy.sparse as sp

from scmmgan.model.coupling import transport
from scmmgan.model.coupling.landmarks import Landmarks, find_landmarks
from scmmgan.model.coupling.transport import (
    balanced,
    barycentres,
    images,
    label_shares,
    matched_share,
    nearest_landmarks,
    plan_blocks,
    plans_of,
    relaxed_plan,
    shares,
    sinkhorn,
)
from scmmgan.model.coupling.views import correlation_distance, label_cost
from scmmgan.model.space import linear

# --- sinkhorn ----------------------------------------------------------------------------------------------------


def loops(kernel: np.ndarray, p: np.ndarray, q: np.ndarray, power: float, n_iter: int) -> tuple[np.ndarray, np.ndarray]:
    """u = (p / K v)^power, v = (q / Kᵀ u)^power, one entry at a time."""
    n, m = kernel.shape
    u, v = np.ones(n), np.ones(m)
    for _ in range(n_iter):
        for i in range(n):
            u[i] = (p[i] / sum(kernel[i, j] * v[j] for j in range(m))) ** power
        for j in range(m):
            v[j] = (q[j] / sum(kernel[i, j] * u[i] for i in range(n))) ** power
    return u, v


def masses(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.dirichlet(np.full(n, 5)), rng.dirichlet(np.full(m, 5))


@pytest.mark.parametrize("power", [1.0, 0.9, 1 / 1.02])
@pytest.mark.parametrize("stack", [(), (3,), (2, 2)])
def test_sinkhorn_is_the_plain_loop(power: float, stack: tuple[int, ...]):
    """Balanced and relaxed, one kernel and a stack: each as if it were alone."""
    kernel, (p, q) = np.random.default_rng(0).random((*stack, 7, 5)), masses(7, 5)
    u, v = sinkhorn(kernel, p, q, power=power, n_iter=25)
    assert u.shape == (*stack, 7)
    assert v.shape == (*stack, 5)
    for at in np.ndindex(*stack):
        expected = loops(kernel[at], p, q, power, 25)
        np.testing.assert_allclose(u[at], expected[0], rtol=1e-10)
        np.testing.assert_allclose(v[at], expected[1], rtol=1e-10)


def test_large_kernels_are_scaled_in_single_precision(monkeypatch: pytest.MonkeyPatch):
    """To a relative error of 1e-5 of the plan; in double precision where a cell lies far off, as labels put it."""
    rng = np.random.default_rng(0)
    cost = rng.random((60, 40)) * 2
    p, q = rng.dirichlet(np.ones(60)), rng.dirichlet(np.ones(40))
    far = cost.copy()
    far[7] += 10  # labels cost that much: e^-500 underflows even in double precision
    exact = [transport.relaxed_plan(c, p, q, tolerance=1e-6) for c in (cost, far)]
    seen: list[str] = []
    original = np.finfo

    def finfo(dtype: object) -> np.finfo:
        seen.append(np.dtype(dtype).name)
        return original(dtype)

    monkeypatch.setattr(transport, "SINGLE_PRECISION_FROM", 100)
    monkeypatch.setattr(transport.np, "finfo", finfo)
    for c, (plan, *_) in zip((cost, far), exact):
        found = transport.relaxed_plan(c, p, q, tolerance=1e-6)
        assert all(of.dtype == np.float64 for of in found)
        np.testing.assert_allclose(found[0], plan, rtol=1e-4, atol=1e-5 * plan.max())
    assert seen == ["float32", "float64"]


def test_stacked_masses():
    kernel = np.random.default_rng(0).random((3, 7, 5))
    p, q = (np.random.default_rng(2).dirichlet(np.full(k, 5), 3) for k in (7, 5))
    u, v = sinkhorn(kernel, p, q, n_iter=10)
    for i in range(3):
        expected = loops(kernel[i], p[i], q[i], 1.0, 10)
        np.testing.assert_allclose(u[i], expected[0], rtol=1e-10)
        np.testing.assert_allclose(v[i], expected[1], rtol=1e-10)


def test_sinkhorn_ends_where_nothing_moves():
    """At the first step in which no scaling of the whole stack moves by more than the tolerance, in log."""
    kernel, (p, q) = np.random.default_rng(0).random((2, 9, 6)) ** 3 + 1e-3, masses(9, 6)
    u, steps = np.ones((2, 9)), 0
    while True:
        before, steps = u, steps + 1
        v = []
        u = u.copy()
        for i in range(2):
            # a step starts from v of the step before
            start = q / (kernel[i].T @ before[i]) if steps > 1 else np.ones(6)
            u[i] = p / (kernel[i] @ start)
            v.append(q / (kernel[i].T @ u[i]))
        if np.abs(np.log(u / before)).max() < 1e-3:
            break
    got = sinkhorn(kernel, p, q, tolerance=1e-3)
    np.testing.assert_allclose(got[0], u, rtol=1e-10)
    np.testing.assert_allclose(got[1], v, rtol=1e-10)
    assert 3 < steps < 100
    for same in (sinkhorn(kernel, p, q, n_iter=steps), sinkhorn(kernel, p, q, n_iter=steps + 5, tolerance=1e-3)):
        np.testing.assert_array_equal(same[0], got[0])
    one, two = (sinkhorn(kernel, p, q, n_iter=steps - i)[0] for i in (1, 2))
    assert np.abs(np.log(one / two)).max() > 1e-3


def test_rows_without_mass_have_none():
    kernel, (p, q) = np.random.default_rng(0).random((9, 6)), masses(9, 6)
    p = np.where(np.arange(9) < 2, 0, p)
    u, v = sinkhorn(kernel, p / p.sum(), q, n_iter=300)
    plan = u[:, None] * kernel * v
    np.testing.assert_array_equal(plan[:2], 0)
    np.testing.assert_allclose(plan.sum(0), q, atol=1e-9)


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_stack_is_scaled_some_at_a_time(single: bool, stacked: bool, monkeypatch: pytest.MonkeyPatch):
    """To the same bits, whatever is taken at one time, with one pair of marginals or one for each kernel."""
    rng = np.random.default_rng(0)
    kernels, (p, q) = rng.random((7, 9, 6)) + 0.1, masses(9, 6)
    if stacked:
        p, q = (rng.dirichlet(of, 7) for of in (9 * p, 6 * q))
    monkeypatch.setattr(transport, "SINGLE_PRECISION_FROM", 100 if single else 10**6)
    whole = sinkhorn(kernels, p, q, power=0.9, n_iter=20)
    assert whole[0].shape == (7, 9)
    for values in (54, 109, 300):
        monkeypatch.setattr(transport, "STACKED_VALUES", values)
        for found, expected in zip(sinkhorn(kernels, p, q, power=0.9, n_iter=20), whole):
            np.testing.assert_array_equal(found, expected)


def test_balanced_has_the_marginals():
    p, q = masses(9, 6)
    rng = np.random.default_rng(0)
    plans = balanced(rng.random((4, 9, 6)), p, q, n_iter=200)
    np.testing.assert_allclose(plans.sum(2), np.tile(p, (4, 1)), atol=1e-8)
    np.testing.assert_allclose(plans.sum(1), np.tile(q, (4, 1)), atol=1e-8)
    kernel = rng.random((9, 6))
    u, v = loops(kernel, p, q, 1.0, 20)
    np.testing.assert_allclose(balanced(kernel, p, q), u[:, None] * kernel * v, rtol=1e-10)
    # kernels with zeros have plans, too
    holes = balanced(np.eye(6)[None] * 1.0, np.full(6, 1 / 6), np.full(6, 1 / 6))
    np.testing.assert_allclose(holes[0], np.eye(6) / 6, atol=1e-8)


# --- relaxed plans -----------------------------------------------------------------------------------------------


def transport_problem(n: int = 20, m: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A cost whose least entry is 0, and masses of both sides."""
    rng = np.random.default_rng(0)
    cost = rng.random((n, m))
    return cost - cost.min(), rng.dirichlet(np.full(n, 5)), rng.dirichlet(np.full(m, 5))


def relaxed(
    cost: np.ndarray, p: np.ndarray, q: np.ndarray, monkeypatch: pytest.MonkeyPatch, *, epsilon: float, weight: float
) -> np.ndarray:
    """A relaxed plan under other constants, iterated to the end."""
    monkeypatch.setattr(transport, "EPSILON", epsilon)
    monkeypatch.setattr(transport, "MARGINAL_WEIGHT", weight)
    return relaxed_plan(cost, p, q, n_iter=5_000, tolerance=1e-8)[0]


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_relaxed_plan_is_the_optimum(weight: float, monkeypatch: pytest.MonkeyPatch):
    """Where the gradient of ⟨M, T⟩ + ε Σ T (log T − 1) + λ KL(T1 | p) + λ KL(Tᵀ1 | q) vanishes; the problem is convex."""
    cost, p, q = transport_problem()
    plan = relaxed(cost, p, q, monkeypatch, epsilon=0.05, weight=weight)
    rows, columns = np.log(plan.sum(1) / p), np.log(plan.sum(0) / q)
    gradient = cost + 0.05 * np.log(plan) + weight * (rows[:, None] + columns)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    # the marginals do leave p and q, and the plan is no outer product
    assert np.abs(rows).max() > 0.05 / weight
    assert plan.std() > 0.5 * plan.mean()


def test_relaxed_plan_against_another_solver(monkeypatch: pytest.MonkeyPatch):
    cost, p, q = transport_problem()
    expected = ot.unbalanced.sinkhorn_unbalanced(
        p, q, cost, 0.05, 0.5, reg_type="kl", c=np.ones(cost.shape), stopThr=1e-12, numItermax=20_000
    )
    np.testing.assert_allclose(relaxed(cost, p, q, monkeypatch, epsilon=0.05, weight=0.5), expected, rtol=1e-4)
    assert abs(expected.sum() - 1) > 0.01


def test_hardly_relaxed_plan_has_the_marginals(monkeypatch: pytest.MonkeyPatch):
    cost, p, q = transport_problem(40, 30)
    plan = relaxed(cost, p, q, monkeypatch, epsilon=0.02, weight=1e4)
    np.testing.assert_allclose(plan.sum(1), p, atol=1e-4)
    np.testing.assert_allclose(plan.sum(0), q, atol=1e-4)
    # close to the optimum without entropy
    assert (plan * cost).sum() < (ot.emd(p, q, cost) * cost).sum() + 0.03
    # the less the marginals weigh, the farther the plan is from them
    away = [
        np.abs(relaxed(cost, p, q, monkeypatch, epsilon=0.02, weight=w).sum(1) - p).sum() for w in (0.1, 1, 10, 1e4)
    ]
    assert (np.diff(away) < 0).all()
    assert away[0] > 0.1


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_stack_of_relaxed_plans_is_the_plain_loop(shift: float):
    """ε = .02 and marginals of KL weight 1, in units of the cost; the least cost of each of a stack is taken off."""
    _, p, q = transport_problem(9, 6)
    cost = np.random.default_rng(0).random((3, 9, 6)) + shift
    plans, u, v = relaxed_plan(cost, p, q, n_iter=40)
    for i in range(3):
        kernel = np.exp(-(cost[i] - cost[i].min()) / 0.02)
        expected = loops(kernel, p, q, 1 / 1.02, 40)
        np.testing.assert_allclose(u[i], expected[0], rtol=1e-8)
        np.testing.assert_allclose(v[i], expected[1], rtol=1e-8)
        np.testing.assert_allclose(plans[i], expected[0][:, None] * kernel * expected[1], rtol=1e-8)
    np.testing.assert_allclose(relaxed_plan(cost[1], p, q, n_iter=40)[0], plans[1], rtol=1e-10)


def test_relaxed_plan_leaves_far_cells_out():
    """Two rows with partners, one without: only the third stays behind, and nothing overflows."""
    cost = np.array([[0.0, 5.0], [5.0, 0.0], [12.0, 12.0]])
    plan = relaxed_plan(cost, np.full(3, 1 / 3), np.full(2, 1 / 2))[0]
    assert np.isfinite(plan).all()
    matched = 3 * plan.sum(1)
    assert matched[:2].min() > 0.9
    assert matched[2] < 0.01
    np.testing.assert_allclose(plan[:2] / plan[:2].sum(1, keepdims=True), np.eye(2), atol=1e-6)


# --- plans of cells with landmarks -------------------------------------------------------------------------------


def two_modalities(n: int = 60, m: int = 70) -> tuple[dict[str, np.ndarray], dict[str, Landmarks]]:
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(n, 3)), "b": rng.normal(size=(m, 3))}
    return x, {k: find_landmarks(v, n_landmarks=20) for k, v in x.items()}


def over_mean(cost: np.ndarray) -> np.ndarray:
    return cost / cost.mean()


@pytest.mark.parametrize("with_labels", [False, True])
def test_plans_compare_cells_over_each_of_the_coordinates(with_labels: bool):
    """Correlation distances with the landmarks' means, each over its mean and times its weight; labels on top."""
    x, landmarks = two_modalities()
    rng = np.random.default_rng(1)
    one, two = ({m: rng.normal(size=(len(v), 5)) for m, v in x.items()} for _ in range(2))
    labels = None
    if with_labels:
        codes = {m: (v[:, 0] > 0).astype(int) for m, v in x.items()}
        landmarks = {m: find_landmarks(v, n_landmarks=20, labels=codes[m]) for m, v in x.items()}
        labels = label_shares(x, codes, landmarks)
    found = plans_of([(one, 0.3), (two, 1.0)], landmarks, labels)
    assert list(found) == [("a", "b"), ("b", "a")]
    for (s, t), plan in found.items():
        cost = np.zeros(plan.shape)
        for values, weight in ((one, 0.3), (two, 1.0)):
            means = np.array([values[t][landmarks[t].label == i].mean(0) for i in range(20)])
            cost += weight * over_mean(1 - np.corrcoef(values[s], means)[: len(x[s]), len(x[s]) :])
        cost = over_mean(cost)
        if with_labels:
            cost = cost + 10 * (codes[s][:, None] != codes[t][landmarks[t].nodes])
        n = len(x[s])
        expected = n * relaxed_plan(cost, np.full(n, 1 / n), landmarks[t].mass, tolerance=1e-4)[0]
        np.testing.assert_allclose(plan, expected, rtol=1e-6, atol=1e-12)


def test_plans_of_chosen_cells():
    """As if there were no other cells of the source; landmarks are those of all."""
    x, landmarks = two_modalities()
    values = {m: np.random.default_rng(1).normal(size=(len(v), 5)) for m, v in x.items()}
    rows = {"a": np.arange(5, 45), "b": np.array([3, 50, 8])}
    codes = {m: (v[:, 0] > 0).astype(int) for m, v in x.items()}
    landmarks = {m: find_landmarks(v, n_landmarks=20, labels=codes[m]) for m, v in x.items()}
    labels = label_shares(x, codes, landmarks)
    found = plans_of([(values, 1.0)], landmarks, labels, rows=rows)
    for s, t in (("a", "b"), ("b", "a")):
        own, k = values[s][rows[s]], len(rows[s])
        cost = over_mean(correlation_distance(own, landmarks[t].mean(values[t])))
        cost = cost + 10 * (codes[s][rows[s]][:, None] != codes[t][landmarks[t].nodes])
        expected = k * relaxed_plan(cost, np.full(k, 1 / k), landmarks[t].mass, tolerance=1e-4)[0]
        np.testing.assert_allclose(found[s, t], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_plans_of_many_cells_are_the_same(with_labels: bool, scale: float, monkeypatch: pytest.MonkeyPatch):
    """Of kernels in single precision, whose rows are divided by their largest entry; far cells are left out alike."""
    x, landmarks = two_modalities()
    rng = np.random.default_rng(1)
    one, two = ({m: rng.normal(size=(len(v), 5)) * scale for m, v in x.items()} for _ in range(2))
    labels = None
    if with_labels:
        codes = {m: (v[:, 0] > 0).astype(int) for m, v in x.items()}
        # a label of which the other side has nothing
        codes["a"][:10] = 2
        landmarks = {m: find_landmarks(v, n_landmarks=20, labels=codes[m]) for m, v in x.items()}
        labels = label_shares(x, codes, landmarks)
    whole = plans_of([(one, 0.3), (two, 1.0)], landmarks, labels)
    monkeypatch.setattr(linear, "BLOCKED_FROM", 50)
    monkeypatch.setattr(linear, "BLOCK_ROWS", 16)
    found = plans_of([(one, 0.3), (two, 1.0)], landmarks, labels)
    for pair, plan in found.items():
        assert plan.kernel.dtype == np.float32
        blocks = list(plan_blocks(plan))
        assert [at.start for at, _ in blocks] == list(range(0, len(whole[pair]), 16))
        rows = np.concatenate([block for _, block in blocks])
        np.testing.assert_allclose(rows.sum(1), whole[pair].sum(1), atol=2e-3)
        # what labels forbid gets nothing in single precision, in place of a thousandth
        np.testing.assert_allclose(rows, whole[pair], atol=(5e-3 if with_labels else 1e-4) * whole[pair].max())


def test_coordinates_without_information_give_equal_plans():
    """Links may all be down-weighted to nothing."""
    x, landmarks = two_modalities()
    zeros = {m: np.zeros((len(v), 4)) for m, v in x.items()}
    plan = plans_of([(zeros, 1.0)], landmarks, None)["a", "b"]
    expected = landmarks["b"].mass ** (1 / 1.02)
    np.testing.assert_allclose(shares(plan), np.tile(expected / expected.sum(), (60, 1)), rtol=1e-3)


def test_label_shares_of_cells_and_landmarks():
    x, landmarks = two_modalities()
    codes = {m: (v[:, 0] > 0).astype(int) for m, v in x.items()}
    codes["b"][:30] = -1
    landmarks = {m: find_landmarks(v, n_landmarks=20, labels=codes[m]) for m, v in x.items()}
    found = label_shares(x, codes, landmarks)
    np.testing.assert_array_equal(found.cells["a"], np.eye(2)[codes["a"]])
    np.testing.assert_array_equal(found.known["b"], codes["b"] >= 0)
    for m, marks in landmarks.items():
        np.testing.assert_array_equal(found.landmark_known[m], codes[m][marks.nodes] >= 0)
        expected = [found.cells[m][marks.label == i].mean(0) for i in range(len(marks.mass))]
        np.testing.assert_allclose(found.landmarks[m], expected)
    np.testing.assert_allclose(found.cells["b"].sum(1), 1)
    rows = np.array([4, 0, 31])
    expected = label_cost(
        found.cells["b"][rows], found.known["b"][rows], found.landmarks["a"], found.landmark_known["a"]
    )
    np.testing.assert_array_equal(found.cost("b", "a", rows), expected)


# --- what plans average ------------------------------------------------------------------------------------------


def test_shares_and_matched_shares():
    plan = np.array([[0.2, 0.6], [0.9, 0.3], [0.0, 0.0]])
    np.testing.assert_allclose(shares(plan), [[0.25, 0.75], [0.75, 0.25], [0, 0]])
    np.testing.assert_allclose(matched_share(plan), [0.8, 1, 0])
    np.testing.assert_allclose(shares(np.stack([plan, 2 * plan])), [shares(plan)] * 2)


def test_images_are_means_of_landmarks_under_the_plan():
    x, landmarks = two_modalities()
    rng = np.random.default_rng(0)
    plans = {("a", "b"): rng.random((60, 20)), ("b", "a"): rng.random((70, 20))}
    found = images(plans, landmarks, x)
    for (s, t), plan in plans.items():
        means = np.array([x[t][landmarks[t].label == j].mean(0) for j in range(20)])
        expected = [np.average(means, axis=0, weights=row) for row in plan]
        np.testing.assert_allclose(found[s, t], expected, atol=1e-10)


def test_barycentres_are_means_under_the_squared_entries():
    rng = np.random.default_rng(0)
    plan, points = rng.random((8, 5)), rng.normal(size=(5, 3))
    plan[3] = 0
    expected = [np.average(points, axis=0, weights=row**2) if row.any() else np.zeros(3) for row in plan]
    for of in (plan, sp.csr_matrix(plan)):
        np.testing.assert_allclose(barycentres(of, points), expected, atol=1e-12)


def test_weights_on_the_nearest_landmarks():
    x = np.random.default_rng(0).normal(size=(120, 3))
    landmarks = find_landmarks(x, n_landmarks=30)
    weights = nearest_landmarks(x, landmarks)
    np.testing.assert_allclose(weights.sum(1), 1)
    d = np.sqrt(((x[:, None] - landmarks.centroids[None]) ** 2).sum(2))
    expected = np.zeros(d.shape)
    for i, row in enumerate(d):
        near = np.argsort(row)[:5]
        expected[i, near] = np.exp(-2 * (row[near] / row[near].mean()) ** 2)
    np.testing.assert_allclose(weights, expected / expected.sum(1, keepdims=True), atol=1e-8)
    # the nearest one weighs most
    np.testing.assert_array_equal(weights.argmax(1), d.argmin(1))


def test_labelled_cells_stay_with_landmarks_of_their_label():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(120, 3)), rng.choice(3, 120, p=[0.6, 0.38, 0.02])
    labels[::5] = -1
    landmarks = find_landmarks(x, n_landmarks=30, labels=labels)
    weights = nearest_landmarks(x, landmarks, labels)
    of = labels[landmarks.nodes]
    np.testing.assert_allclose(weights.sum(1), 1)
    for i, label in enumerate(labels):
        to = np.flatnonzero(weights[i])
        if label >= 0:
            assert set(of[to]) == {label}
            assert len(to) == min(5, (of == label).sum())
        else:
            near = ((landmarks.centroids - x[i]) ** 2).sum(1).argsort()[:5]
            np.testing.assert_array_equal(to, np.sort(near))
