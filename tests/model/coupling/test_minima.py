"""Which distorted minimum is likeliest: shapes, partners and a line; few pairs at several weights."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan.model.coupling import coupling
from scmmgan.model.coupling import minima as candidates
from scmmgan.model.coupling import views as evidence
from scmmgan.model.coupling.landmarks import Landmarks, landmarks_of
from scmmgan.model.coupling.minima import Known, minima, penalties
from scmmgan.model.coupling.transport import correlation_distance, spread

NOTHING = Known(None, [], None, {}, None)
N_GROUPS = 12


def grouped(seed: int, n: int = 360) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
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
    landmarks = landmarks_of(x, group, n_landmarks=48, random_state=0)
    spreads = {m: spread(v, landmarks[m]) for m, v in x.items()}
    rng = np.random.default_rng(100 + seed)
    of = {m: group[m][landmarks[m].nodes] for m in x}
    plans = []
    for turn in [np.arange(N_GROUPS), *(rng.permutation(N_GROUPS) for _ in range(5))]:
        plan = (turn[of["a"]][:, None] == of["b"]) * landmarks["a"].mass[:, None]
        plans.append(plan / plan.sum())
    return x, landmarks, spreads, plans, group


def image_errors(x: dict, landmarks: dict, plan: np.ndarray, group: dict) -> float:
    """Share of landmarks whose largest entry goes to another group."""
    of = {m: group[m][landmarks[m].nodes] for m in x}
    return float((of["b"][plan.argmax(1)] != of["a"]).mean())


@pytest.mark.parametrize("seed", range(5))
def test_exchanged_groups_are_penalized(seed: int):
    """At equal cost the plan that keeps a linear outline wins, and by far."""
    x, landmarks, spreads, plans, _ = problem(seed)
    found = penalties(x, landmarks, spreads, plans, np.ones(6), NOTHING)
    assert found.argmin() == 0
    assert found[0] < 0.5 * found[1:].min()


def test_penalty_is_cost_times_the_root_of_mismatch_and_unexplained():
    """The formula of docs/method.md in float64: two rounds of canonical variates, relaxed plans and squared means."""
    x, landmarks, spreads, plans, _ = problem()
    got = penalties(x, landmarks, spreads, plans[1:2], np.array([0.7]), NOTHING)
    one = {m: v.astype(np.float64) for m, v in x.items()}
    means = {m: landmarks[m].mean(v) for m, v in one.items()}
    ways = {("a", "b"): plans[1], ("b", "a"): plans[1].T}
    anchors = {(s, t): spreads[s] @ (p / p.sum(1, keepdims=True)) @ means[t] for (s, t), p in ways.items()}
    for _ in range(2):
        variates = evidence.canonical(one, anchors)
        distance, shares, weight = {}, {}, {}
        for s, t in ways:
            distance[s, t] = correlation_distance(variates[s], landmarks[t].mean(variates[t]))
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


def test_many_cells_are_sampled(monkeypatch: pytest.MonkeyPatch):
    """The answer from a third of the cells is near that from all of them, and needs no more than these."""
    x, landmarks, spreads, plans, _ = problem()
    every = penalties(x, landmarks, spreads, plans, np.ones(6), NOTHING)
    monkeypatch.setattr(candidates, "N_CELLS", 120)
    plans_of, asked = candidates.plans_of, []

    def spied(*args: object, rows: dict[str, np.ndarray]) -> dict:
        asked.append([len(r) for r in rows.values()])
        return plans_of(*args, rows=rows)

    monkeypatch.setattr(candidates, "plans_of", spied)
    some = penalties(x, landmarks, spreads, plans, np.ones(6), NOTHING)
    assert asked == [[120, 120]] * 12
    np.testing.assert_allclose(some, every, rtol=0.35)
    assert some.argmin() == every.argmin() == 0


def search_for(plans: list[np.ndarray], values: list[float], seen: list):
    """Gromov-Wasserstein that finds given plans, and keeps the linear costs it was asked with."""

    def found(x: dict, landmarks: dict, *, cost: np.ndarray | None, mass: object, random_state: int):
        seen.append(cost)
        linear = [0.0 if cost is None else 7 / 3 * (cost * p).sum() for p in plans]
        return plans, np.array(values) + linear

    return found


def test_a_distorted_minimum_is_chosen_by_its_outline(monkeypatch: pytest.MonkeyPatch):
    x, landmarks, spreads, plans, group = problem()
    seen: list = []
    wrong_first = [plans[1], plans[0], plans[2]]
    monkeypatch.setattr(candidates, "gromov_wasserstein", search_for(wrong_first, [0.05, 0.06, 0.07], seen))
    got = minima(x, landmarks, spreads, NOTHING)
    assert got.outline
    assert seen == [None]
    assert image_errors(x, landmarks, got.plans[0], group) == 0
    assert got.distortion == pytest.approx(0.06)
    # the others by cost, cheaper ones among them: rivals are told by it
    np.testing.assert_allclose(got.costs, [0.06, 0.05, 0.07])
    assert got.plans[1] is plans[1]
    # a sound minimum, or few dimensions: the cost decides
    monkeypatch.setattr(candidates, "gromov_wasserstein", search_for(wrong_first, [0.02, 0.03, 0.04], seen))
    sound = minima(x, landmarks, spreads, NOTHING)
    assert not sound.outline
    assert sound.plans[0] is plans[1]
    np.testing.assert_allclose(sound.costs, [0.02, 0.03, 0.04])
    monkeypatch.setattr(candidates, "gromov_wasserstein", search_for(wrong_first, [0.05, 0.06, 0.07], seen))
    for least, outline in ((11, True), (12, False)):
        monkeypatch.setattr(candidates, "MANY", least)
        assert minima(x, landmarks, spreads, NOTHING).outline is outline


def test_plans_that_say_nothing_are_not_likely():
    x, landmarks, spreads, plans, _ = problem()
    nothing = np.outer(landmarks["a"].mass, landmarks["b"].mass)
    found = penalties(x, landmarks, spreads, [plans[0], plans[1], nothing], np.ones(3), NOTHING)
    assert found.argmin() == 0


def test_what_is_known_reaches_the_search(monkeypatch: pytest.MonkeyPatch):
    """Pairs, profiles over them, labels, their costs and the seed."""
    x, group = grouped(0)
    labels = {m: g % 2 for m, g in group.items()}
    pairs = np.c_[np.arange(10), np.arange(10)]
    seen: list = []

    def kept(*args: object, random_state: int) -> None:
        seen.append((args[3], random_state))
        raise InterruptedError

    monkeypatch.setattr(coupling, "minima", kept)
    with pytest.raises(InterruptedError):
        coupling.couple_geometry(x, pairs=pairs, labels=labels, random_state=3)
    known, seed = seen[0]
    assert seed == 3
    np.testing.assert_array_equal(known.pairs, pairs)
    assert [profile["a"].shape for profile in known.profiles] == [(360, 10)]
    np.testing.assert_array_equal(known.labels.cells["b"].argmax(1), labels["b"])
    assert sorted(known.costs) == ["labels", "pairs"]
    assert known.mass is not None


@pytest.mark.parametrize(
    ("n_pairs", "weights"), [(3, [1, 0.1**0.5, 0.1]), (29, [1, (29 / 30) ** 0.5, 29 / 30]), (30, [1])]
)
def test_few_pairs_are_tried_at_several_weights(n_pairs: int, weights: list[float], monkeypatch: pytest.MonkeyPatch):
    """Labels keep their weight; all minima are judged at the full one."""
    x, landmarks, spreads, plans, _ = problem()
    seen: list = []
    judged: list[np.ndarray] = []
    monkeypatch.setattr(candidates, "gromov_wasserstein", search_for(plans[:1], [0.05], seen))

    def equal(*args: object) -> np.ndarray:
        judged.append(np.asarray(args[4]))
        return np.asarray(args[4])

    monkeypatch.setattr(candidates, "penalties", equal)
    rng = np.random.default_rng(0)
    costs = {k: rng.random(plans[0].shape) for k in ("pairs", "labels")}
    known = Known(np.zeros((n_pairs, 2), dtype=int), [], None, costs, None)
    got = minima(x, landmarks, spreads, known)
    assert len(seen) == len(weights)
    for cost, weight in zip(seen, weights, strict=True):
        np.testing.assert_allclose(cost, weight * costs["pairs"] + costs["labels"])
    full = 0.05 + 7 / 3 * ((costs["pairs"] + costs["labels"]) * plans[0]).sum()
    np.testing.assert_allclose(judged[0], full)
    # the same plan three times is one answer
    assert len(got.plans) == 1
    assert got.distortion == pytest.approx(0.05)


@pytest.mark.parametrize("seed", range(3))
def test_wrong_weights_of_pairs_are_found_out(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Pairs (wrong ones here) that pull Gromov-Wasserstein into another minimum lose to the outline at a lower weight."""
    x, landmarks, spreads, plans, group = problem(seed)
    found = {1.0: plans[1], (10 / 30) ** 0.5: plans[2], 10 / 30: plans[0]}
    mild = {"pairs": np.ones(plans[0].shape)}

    def search(x: dict, landmarks: dict, *, cost: np.ndarray, mass: object, random_state: int):
        plan = found[min(found, key=lambda share: abs(share - cost.mean()))]
        return [plan], np.array([0.05 + 7 / 3 * (cost * plan).sum()])

    monkeypatch.setattr(candidates, "gromov_wasserstein", search)
    pairs = np.c_[np.arange(10), np.arange(10)]
    got = minima(x, landmarks, spreads, Known(pairs, [], None, mild, None))
    assert image_errors(x, landmarks, got.plans[0], group) == 0
