"""Which distorted minimum is likeliest: shapes, partners and a line."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan.model.coupling import minima as module
from scmmgan.model.coupling import views
from scmmgan.model.coupling.landmarks import Landmarks, find_landmarks
from scmmgan.model.coupling.minima import Beside, minima, penalties
from scmmgan.model.coupling.transport import label_shares, nearest_landmarks

NOTHING = Beside(None, [], None, None, None)
N_GROUPS = 12


def grouped(seed: int, n: int = 240) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two modalities, linear maps of one space in which 12 groups lie, different cells and widths; group of each cell."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(N_GROUPS, 4))
    x, group = {}, {}
    for m, width in (("a", 14), ("b", 11)):
        group[m] = rng.integers(0, N_GROUPS, n)
        latent = centres[group[m]] + 0.4 * rng.normal(size=(n, 4))
        x[m] = (latent @ rng.normal(size=(4, width)) + 0.1 * rng.normal(size=(n, width))).astype(np.float32)
    return x, group


def problem(seed: int = 0) -> tuple[dict, dict[str, Landmarks], dict, list[np.ndarray], dict]:
    """Landmarks inside the groups, weights of cells on them, and plans: the right one and five with groups exchanged."""
    x, group = grouped(seed)
    landmarks = {m: find_landmarks(v, n_landmarks=36, labels=group[m]) for m, v in x.items()}
    on_landmarks = {m: nearest_landmarks(v, landmarks[m]) for m, v in x.items()}
    rng = np.random.default_rng(100 + seed)
    of = {m: group[m][landmarks[m].nodes] for m in x}
    plans = []
    for turn in [np.arange(N_GROUPS), *(rng.permutation(N_GROUPS) for _ in range(5))]:
        plan = (turn[of["a"]][:, None] == of["b"]) * landmarks["a"].mass[:, None]
        plans.append(plan / plan.sum())
    return x, landmarks, on_landmarks, plans, group


@pytest.fixture(scope="module")
def first() -> tuple[dict, dict[str, Landmarks], dict, list[np.ndarray], dict]:
    return problem()


def image_errors(x: dict, landmarks: dict, plan: np.ndarray, group: dict) -> float:
    """Share of landmarks whose largest entry goes to another group."""
    of = {m: group[m][landmarks[m].nodes] for m in x}
    return float((of["b"][plan.argmax(1)] != of["a"]).mean())


# --- penalties ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_exchanged_groups_are_penalized(seed: int):
    """At equal cost the plan wins that is nearly linear, and by far."""
    x, landmarks, on_landmarks, plans, _ = problem(seed)
    found = penalties(x, landmarks, on_landmarks, plans, np.ones(6), NOTHING)
    assert found.argmin() == 0
    assert found[0] < 0.5 * found[1:].min()


def test_penalty_is_cost_times_the_root_of_mismatch_and_unexplained(first: tuple, monkeypatch: pytest.MonkeyPatch):
    """The formula of docs/method.md in float64: two rounds of canonical variates, relaxed plans and squared means."""
    x, landmarks, on_landmarks, plans, _ = first
    original = views.canonical

    def with_signs(x: dict, *args: object, **how: object) -> dict[str, np.ndarray]:
        # that do not hang on rounding: the largest entry of each variate is positive
        out = original(x, *args, **how)  # type: ignore[arg-type]
        sign = np.sign(np.take_along_axis(out["a"], np.abs(out["a"]).argmax(0)[None], 0))
        return {m: v * sign for m, v in out.items()}

    monkeypatch.setattr(views, "canonical", with_signs)
    got = penalties(x, landmarks, on_landmarks, plans[1:2], np.array([0.7]), NOTHING)
    one = {m: v.astype(np.float64) for m, v in x.items()}
    means = {m: landmarks[m].mean(v) for m, v in one.items()}
    ways = {("a", "b"): plans[1], ("b", "a"): plans[1].T}
    anchors = {(s, t): on_landmarks[s] @ (p / p.sum(1, keepdims=True)) @ means[t] for (s, t), p in ways.items()}
    for _ in range(2):
        variates = views.canonical(one, anchors)
        distance, shares, weight = {}, {}, {}
        for s, t in ways:
            others = landmarks[t].mean(variates[t])
            distance[s, t] = 1 - np.corrcoef(variates[s], others)[: len(one[s]), len(one[s]) :]
            cost = distance[s, t] / distance[s, t].mean()
            kernel = np.exp(-(cost - cost.min()) / 0.02)
            u, v, n, power = np.ones(len(cost)), np.ones(cost.shape[1]), len(cost), 1 / 1.02
            for _ in range(3000):
                u = (1 / n / (kernel @ v)) ** power
                v = (landmarks[t].mass / (kernel.T @ u)) ** power
            plan = u[:, None] * kernel * v
            weight[s, t] = np.minimum(n * plan.sum(1), 1)
            shares[s, t] = plan / plan.sum(1, keepdims=True)
            sharp = shares[s, t] ** 2
            anchors[s, t] = sharp @ means[t] / sharp.sum(1, keepdims=True)
    mismatch = np.mean([np.average((shares[k] * distance[k]).sum(1), weights=weight[k]) for k in ways])
    left = []
    for s, t in ways:
        w = weight[s, t] / weight[s, t].sum()
        centred, image = one[s] - w @ one[s], anchors[s, t] - w @ anchors[s, t]
        gram = (centred.T * w) @ centred
        slope = np.linalg.solve(gram + 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram)), (centred.T * w) @ image)
        left.append((w @ (image - centred @ slope) ** 2).sum() / (w @ image**2).sum())
    np.testing.assert_allclose(got, 0.7 * np.sqrt(mismatch * np.mean(left)), rtol=2e-3)


def test_pairs_and_labels_have_a_say(first: tuple):
    """Known pairs weigh in the variates, profiles over them are coordinates, labels forbid partners."""
    x, landmarks, on_landmarks, plans, group = first
    rng = np.random.default_rng(0)
    rows = np.array([[i, np.flatnonzero(group["b"] == g)[0]] for i, g in enumerate(group["a"][:30])])
    wrong = np.column_stack([np.arange(30), rng.permutation(rows[:, 1])])
    plain = penalties(x, landmarks, on_landmarks, plans[:1], np.ones(1), NOTHING)[0]
    for pairs, better in ((rows, True), (wrong, False)):
        beside = Beside(pairs, [(views.pair_profiles(x, pairs), 1.0)], None, None, None)
        alone = Beside(pairs, [], None, None, None)
        found = [penalties(x, landmarks, on_landmarks, plans[:1], np.ones(1), b)[0] for b in (beside, alone)]
        assert all((v < 1.2 * plain) == better for v in found), (found, plain)
    labels = label_shares(x, {m: g % 2 for m, g in group.items()}, landmarks)
    of = penalties(x, landmarks, on_landmarks, plans, np.ones(6), Beside(None, [], labels, None, None))
    assert of.argmin() == 0
    assert not np.allclose(of, penalties(x, landmarks, on_landmarks, plans, np.ones(6), NOTHING), rtol=1e-3)


def test_many_cells_are_sampled(first: tuple, monkeypatch: pytest.MonkeyPatch):
    """The answer from half of the cells is near that from all of them, and needs no more than these."""
    x, landmarks, on_landmarks, plans, _ = first
    every = penalties(x, landmarks, on_landmarks, plans, np.ones(6), NOTHING)
    monkeypatch.setattr(module, "MINIMA_CELLS", 120)
    plans_of, asked = module.plans_of, []

    def spied(*args: object, rows: dict[str, np.ndarray]) -> dict:
        asked.append([len(r) for r in rows.values()])
        return plans_of(*args, rows=rows)

    monkeypatch.setattr(module, "plans_of", spied)
    some = penalties(x, landmarks, on_landmarks, plans, np.ones(6), NOTHING)
    assert asked == [[120, 120]] * 12
    np.testing.assert_allclose(some, every, rtol=0.35)
    assert some.argmin() == every.argmin() == 0


def test_plans_that_say_nothing_are_not_likely(first: tuple):
    x, landmarks, on_landmarks, plans, _ = first
    nothing = np.outer(landmarks["a"].mass, landmarks["b"].mass)
    found = penalties(x, landmarks, on_landmarks, [plans[0], plans[1], nothing], np.ones(3), NOTHING)
    assert found.argmin() == 0


def test_a_perfect_match_counts_as_one_in_a_hundred(first: tuple, monkeypatch: pytest.MonkeyPatch):
    """Over a single variate every cell has perfect partners, whatever the plan: what is left unexplained decides."""
    x, landmarks, on_landmarks, plans, _ = first
    monkeypatch.setattr(views, "correlation_distance", lambda a, b: np.zeros((len(a), len(b))))
    monkeypatch.setattr(module, "unexplained", lambda *_: 0.25)
    found = penalties(x, landmarks, on_landmarks, plans[:1], np.array([0.7]), NOTHING)
    np.testing.assert_allclose(found, 0.7 * np.sqrt(0.01 * 0.25))


# --- minima ------------------------------------------------------------------------------------------------------


def search_for(plans: list[np.ndarray], values: list[float], seen: list):
    """Gromov-Wasserstein that finds given plans, and keeps what it was asked with."""

    def found(x: dict, landmarks: dict, *, cost: np.ndarray | None, mass: object, random_state: int):
        seen.append((cost, mass, random_state))
        linear = [0.0 if cost is None else 7 / 3 * (cost * p).sum() for p in plans]
        return plans, np.array(values) + linear

    return found


def test_a_distorted_minimum_is_chosen_by_its_penalty(first: tuple, monkeypatch: pytest.MonkeyPatch):
    x, landmarks, on_landmarks, plans, group = first
    seen: list = []
    wrong_first = [plans[1], plans[0], plans[2]]
    monkeypatch.setattr(module, "gromov_wasserstein", search_for(wrong_first, [0.05, 0.06, 0.07], seen))
    got = minima(x, landmarks, on_landmarks, NOTHING, random_state=5)
    assert got.distorted
    assert seen == [(None, None, 5)]
    assert image_errors(x, landmarks, got.plans[0], group) == 0
    assert got.distortion == pytest.approx(0.06)
    # the others by cost, cheaper ones among them
    np.testing.assert_allclose(got.costs, [0.06, 0.05, 0.07])
    assert got.plans[1] is plans[1]
    # a sound minimum, or few dimensions: the cost decides
    monkeypatch.setattr(module, "gromov_wasserstein", search_for(wrong_first, [0.02, 0.03, 0.04], seen))
    sound = minima(x, landmarks, on_landmarks, NOTHING)
    assert not sound.distorted
    assert sound.plans[0] is plans[1]
    np.testing.assert_allclose(sound.costs, [0.02, 0.03, 0.04])
    monkeypatch.setattr(module, "gromov_wasserstein", search_for(wrong_first, [0.05, 0.06, 0.07], seen))
    for least, distorted in ((11, True), (12, False)):
        monkeypatch.setattr(module, "MANY_DIMENSIONS", least)
        assert minima(x, landmarks, on_landmarks, NOTHING).distorted is distorted


def test_what_is_known_beside_the_shapes_is_searched_with(first: tuple, monkeypatch: pytest.MonkeyPatch):
    """Once, at its full weight; only the part of the cost that has to do with shapes is a distortion."""
    x, landmarks, on_landmarks, plans, _ = first
    seen: list = []
    scored: list = []
    monkeypatch.setattr(module, "gromov_wasserstein", search_for([plans[0], plans[1]], [0.05, 0.04], seen))

    def kept(*args: object) -> np.ndarray:
        scored.append(args[3:])
        return np.array([2.0, 1.0])

    monkeypatch.setattr(module, "penalties", kept)
    cost, mass = np.random.default_rng(0).random(plans[0].shape), (landmarks["a"].mass, landmarks["b"].mass)
    known = Beside(np.zeros((3, 2), dtype=int), [], None, cost, mass)
    got = minima(x, landmarks, on_landmarks, known, random_state=7)
    assert len(seen) == 1
    assert seen[0][0] is cost
    assert seen[0][1:] == (mass, 7)
    full = [0.05 + 7 / 3 * (cost * plans[0]).sum(), 0.04 + 7 / 3 * (cost * plans[1]).sum()]
    # both are compared at the cost that the search gave them
    ((of, values, beside, seed),) = scored
    assert beside is known
    assert seed == 7
    np.testing.assert_allclose(values, full)
    assert [p is q for p, q in zip(of, plans)] == [True, True]
    np.testing.assert_allclose(got.costs, full[::-1])
    assert got.distortion == pytest.approx(0.04)
    # a cost that comes from the labels or pairs alone distorts nothing
    monkeypatch.setattr(module, "gromov_wasserstein", search_for([plans[0], plans[1]], [0.01, 0.02], seen))
    assert not minima(x, landmarks, on_landmarks, known).distorted


def test_only_so_many_minima_are_compared(first: tuple, monkeypatch: pytest.MonkeyPatch):
    x, landmarks, on_landmarks, plans, _ = first
    compared = []
    monkeypatch.setattr(module, "penalties", lambda *a: compared.append(len(a[3])) or np.arange(len(a[3]), 0, -1.0))
    monkeypatch.setattr(module, "gromov_wasserstein", search_for(plans, [0.05] * 6, []))
    assert minima(x, landmarks, on_landmarks, NOTHING).plans[0] is plans[5]
    monkeypatch.setattr(module, "N_CANDIDATES", 3)
    got = minima(x, landmarks, on_landmarks, NOTHING)
    assert compared == [6, 3]
    assert [next(i for i, q in enumerate(plans) if p is q) for p in got.plans] == [2, 0, 1, 3, 4, 5]


def test_nearly_the_same_plan_is_no_rival(first: tuple, monkeypatch: pytest.MonkeyPatch):
    """Of answers that hardly differ from the chosen one, none is left; of two alike, the cheaper one."""
    x, landmarks, on_landmarks, plans, _ = first
    near = 0.7 * plans[0] + 0.3 * plans[1]
    assert 0.3 < np.abs(near - plans[0]).sum() < 0.8
    monkeypatch.setattr(module, "gromov_wasserstein", search_for([near, plans[2], plans[0]], [0.04, 0.05, 0.06], []))
    monkeypatch.setattr(module, "penalties", lambda *_: np.array([2.0, 3.0, 1.0]))
    got = minima(x, landmarks, on_landmarks, NOTHING)
    assert len(got.plans) == 2
    assert got.plans[0] is plans[0]
    assert got.plans[1] is plans[2]
    np.testing.assert_allclose(got.costs, [0.06, 0.05])
