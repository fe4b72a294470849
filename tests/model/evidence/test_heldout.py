"""Evidence for a coupling that did not make it: planted links, pairs and labels, refits by hand, negative controls."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan import metrics
from scmmgan.model.coupling import coupling
from scmmgan.model.coupling.landmarks import Landmarks, find_landmarks
from scmmgan.model.defaults import COARSE_ITERATIONS, EPSILON, FOLDS, MAX_TESTED_PAIRS
from scmmgan.model.evidence import heldout

N, N_LINKS = 200, 20


def planted(seed: int = 0, n_links: int = N_LINKS) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Model-space cells and linked features of two sides with common factors, rows of b shuffled; partner of each a."""
    rng = np.random.default_rng(seed)
    factors = 3 * rng.normal(size=(6, 4))[rng.integers(0, 6, N)] + rng.normal(size=(N, 4))
    loadings = rng.normal(size=(4, n_links))
    order = rng.permutation(N)
    x, linked = {}, {}
    for m, rows in (("a", np.arange(N)), ("b", order)):
        x[m] = (factors[rows] @ rng.normal(size=(4, 8)) + 0.3 * rng.normal(size=(N, 8))).astype(np.float32)
        values = factors[rows] @ loadings + rng.normal(size=(N, n_links))
        linked[m] = (values - values.mean(0)) / values.std(0)
    return x, linked, np.argsort(order)


def on_landmarks(x: dict, linked: dict, n: int = 40) -> tuple[dict[str, Landmarks], list[np.ndarray], list[np.ndarray]]:
    landmarks = {m: find_landmarks(v, n_landmarks=n) for m, v in x.items()}
    return landmarks, [landmarks[m].mean(linked[m]) for m in x], [landmarks[m].mass for m in x]


# --- by hand -----------------------------------------------------------------------------------------------------


def plan_by_hand(a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Relaxed plan of correlation distances over the mean; loops and `np.corrcoef` only."""
    cost = np.array([[1 - np.corrcoef(u, v)[0, 1] for v in b] for u in a])
    cost /= cost.mean()
    kernel = np.exp(-(cost - cost.min()) / EPSILON)
    u, v = np.ones(len(p)), np.ones(len(q))
    for _ in range(COARSE_ITERATIONS):
        u = (p / (kernel @ v)) ** (1 / (1 + EPSILON))
        v = (q / (kernel.T @ u)) ** (1 / (1 + EPSILON))
    return u[:, None] * kernel * v


def carried_by_hand(plan: np.ndarray, a: np.ndarray, b: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    def r(u: np.ndarray, v: np.ndarray, mass: np.ndarray) -> float:
        c = np.cov(u, v, aweights=mass, ddof=0)
        return float(c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]))

    there, back = plan / plan.sum(1, keepdims=True) @ b, (plan / plan.sum(0)).T @ a
    return np.array([(r(a[:, i], there[:, i], p) + r(b[:, i], back[:, i], q)) / 2 for i in range(a.shape[1])])


# --- plans -------------------------------------------------------------------------------------------------------


def test_coarse_landmarks_hold_the_same_cells():
    x, _, _ = planted()
    fine = find_landmarks(x["a"], n_landmarks=90)
    coarse, into = heldout.coarsen(fine, n=40)
    assert len(coarse.mass) <= 40
    np.testing.assert_allclose(coarse.mass, np.bincount(coarse.label) / N)
    np.testing.assert_array_equal(coarse.label, into[fine.label])
    # a node is a cell of its own landmark
    np.testing.assert_array_equal(coarse.label[coarse.nodes], np.arange(len(coarse.mass)))
    centres = [np.average(fine.centroids[into == i], weights=fine.mass[into == i], axis=0) for i in range(40)]
    np.testing.assert_allclose(coarse.centroids, centres, rtol=1e-6)
    same, whole = heldout.coarsen(fine, n=150)
    assert same is fine
    np.testing.assert_array_equal(whole, np.arange(len(fine.mass)))


def test_coarse_plan_is_the_mean_of_both_directions():
    x, linked, _ = planted()
    couplings = coupling.couple_known(x, {m: find_landmarks(v, n_landmarks=90) for m, v in x.items()}, linked)
    sides = {s: heldout.coarsen(couplings[t, s].landmarks, n=30) for s, t in (("a", "b"), ("b", "a"))}
    plan = heldout.coarse_plan(couplings, ("a", "b"), sides)
    assert plan.shape == (len(sides["a"][0].mass), len(sides["b"][0].mass))
    expected = np.zeros(plan.shape)
    for s, t in (("a", "b"), ("b", "a")):
        found = couplings[s, t]
        for cell, row in enumerate(found.plan.toarray()):
            mass = found.weight[cell] / N * row
            at = sides[s][0].label[cell]
            moved = np.bincount(sides[t][1], mass, minlength=len(sides[t][0].mass)) / 2
            if s == "a":
                expected[at] += moved
            else:
                expected[:, at] += moved
    np.testing.assert_allclose(plan, expected, atol=1e-8)
    weights = [couplings["a", "b"].weight.mean(), couplings["b", "a"].weight.mean()]
    np.testing.assert_allclose(plan.sum(), np.mean(weights), rtol=1e-4)


def test_carried_is_the_correlation_with_the_partner():
    plan = np.diag([0.5, 0.3, 0.2])
    a = np.array([[0.0, 1], [1, 1], [2, 5]])
    w = plan.sum(0)
    np.testing.assert_allclose(heldout.carried(plan, a, a, w, w), [1, 1])
    np.testing.assert_allclose(heldout.carried(plan, a, -a, w, w), [-1, -1])
    rng = np.random.default_rng(0)
    plan, a, b = rng.random((12, 9)), rng.normal(size=(12, 5)), rng.normal(size=(9, 5))
    p, q = rng.dirichlet(np.ones(12)), rng.dirichlet(np.ones(9))
    np.testing.assert_allclose(heldout.carried(plan, a, b, p, q), carried_by_hand(plan, a, b, p, q))
    # a stack of plans, each with its columns
    stack = np.stack([plan, rng.random((12, 9))])
    both = heldout.carried(stack, np.stack([a, a]), np.stack([b, b]), p, q)
    np.testing.assert_allclose(both[0], carried_by_hand(plan, a, b, p, q))


# --- links -------------------------------------------------------------------------------------------------------


def test_true_links_hold_and_the_wrong_one_does_not():
    x, linked, _ = planted()
    linked["a"][:, 7] = np.random.default_rng(1).normal(size=N)
    _, (a, b), (p, q) = on_landmarks(x, linked)
    held = heldout.held_out_links(a, b, p, q, np.arange(N_LINKS))
    assert held.mean > 0.6
    assert held.p == 0.01
    assert held.score.argmin() == 7
    assert held.score[7] < 0.3
    assert held.null.max() < held.mean
    assert held.plans.shape == (5, len(p), len(q))


@pytest.mark.parametrize("refine", [True, False])
def test_held_out_links_against_a_refit_for_every_fold(refine: bool):
    """The coupling of a fold is made of the other folds' links alone, for the true table."""
    x, linked, _ = planted(1, 14)
    linked["b"][:, :4] = np.random.default_rng(2).normal(size=(N, 4))
    _, (a, b), (p, q) = on_landmarks(x, linked, 15)
    groups = np.r_[0, 0, 0, np.arange(1, 12)]
    held = heldout.held_out_links(a, b, p, q, groups, refine=refine, n_null=1, random_state=3)
    assert sorted(np.unique(held.fold)) == list(range(FOLDS))
    assert len(set(held.fold[:3])) == 1
    expected = np.empty(14)
    for k in range(FOLDS):
        out = held.fold == k
        u, v = a[:, ~out], b[:, ~out]
        plan = plan_by_hand(u, v, p, q)
        if refine:
            weight = np.clip(carried_by_hand(plan, u, v, p, q), 0, 1) ** 2
            assert weight.min() < 0.3 < weight.max()
            plan = plan_by_hand(u * weight, v * weight, p, q)
        np.testing.assert_allclose(held.plans[k], plan, atol=1e-8)
        expected[out] = carried_by_hand(plan, a[:, out], b[:, out], p, q)
    np.testing.assert_allclose(held.score, expected, atol=1e-6)


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_noise_does_not_carry_itself_over(seed: int, refine: bool):
    """Links that have nothing to do with each other: a coupling that saw them would carry them over all the same."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 60, 40))
    p = np.full(60, 1 / 60)
    held = heldout.held_out_links(a, b, p, p, np.arange(40), refine=refine, n_null=9, random_state=seed)
    assert abs(held.mean) < 0.1
    assert np.abs(held.null).max() < 0.1
    plan = plan_by_hand(a, b, p, p)
    assert heldout.carried(plan, a, b, p, p).mean() > 0.3


def test_tables_in_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    x, linked, _ = planted()
    _, (a, b), (p, q) = on_landmarks(x, linked, 15)
    whole = heldout.held_out_links(a, b, p, q, np.arange(N_LINKS), n_null=7)
    monkeypatch.setattr(heldout, "PLAN_BATCH", 3 * len(p) * max(len(q), N_LINKS))
    parts = heldout.held_out_links(a, b, p, q, np.arange(N_LINKS), n_null=7)
    np.testing.assert_allclose(parts.score, whole.score, atol=1e-12)
    np.testing.assert_allclose(parts.null, whole.null, atol=1e-12)
    np.testing.assert_allclose(parts.plans, whole.plans, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_links_do_not_hold(seed: int):
    x, linked, _ = planted(seed)
    linked["b"] = linked["b"][:, np.random.default_rng(seed).permutation(N_LINKS)]
    _, (a, b), (p, q) = on_landmarks(x, linked)
    held = heldout.held_out_links(a, b, p, q, np.arange(N_LINKS), random_state=seed)
    assert held.p > 0.01
    assert held.mean < 1 / 3


def test_links_beyond_those_tested_are_carried_by_couplings_that_did_not_see_them():
    """Scores of the rest, each by the plan of its fold; links that share a feature are in one fold, tested or not."""
    x, linked, _ = planted(2, 26)
    _, (a, b), (p, q) = on_landmarks(x, linked, 15)
    groups = np.r_[0, 0, np.arange(1, 25)]
    tested = np.setdiff1d(np.arange(26), [1, 5, 9, 21])
    held = heldout.held_out_links(a, b, p, q, groups, tested=tested, n_null=4, random_state=1)
    assert held.score.shape == held.fold.shape == (22,)
    assert held.rest.score.shape == held.rest.fold.shape == (4,)
    # the first two are one group, and only the first is tested
    assert held.fold[0] == held.rest.fold[0]
    for i, at in enumerate([1, 5, 9, 21]):
        plan = held.plans[held.rest.fold[i]]
        expected = carried_by_hand(plan, a[:, [at]], b[:, [at]], p, q)
        np.testing.assert_allclose(held.rest.score[i], expected, atol=1e-9)
    assert held.rest.score.mean() > 0.6
    # fewer tables than the others have, their partners shuffled as well
    assert held.rest.null_scores.shape == (4, 4)
    assert held.rest.null_scores.std() > 0.05
    assert heldout.held_out_links(a, b, p, q, groups, n_null=0).rest is None


def test_every_link_has_its_own_p():
    x, linked, _ = planted()
    linked["a"][:, 7] = np.random.default_rng(1).normal(size=N)
    _, (a, b), (p, q) = on_landmarks(x, linked)
    held = heldout.held_out_links(a, b, p, q, np.arange(N_LINKS))
    found = held.each_p
    assert found[7] > 0.2
    assert (np.delete(found, 7) < 0.05).mean() > 0.9
    # by hand: standardised by its own null, pooled over links
    z, null = np.arctanh(held.score), np.arctanh(held.null_scores)
    effect = (z[3] - null[:, 3].mean()) / null[:, 3].std(ddof=1)
    rough = (null - null.mean(0)) / null.std(0, ddof=1)
    assert found[3] == pytest.approx((1 + (rough >= effect).sum()) / (1 + rough.size), abs=2e-3)


def test_p_of_noise_is_uniform():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 60))
    p = np.full(40, 1 / 40)
    found = heldout.held_out_links(a, b, p, p, np.arange(60), n_null=19).each_p
    assert 0.3 < found.mean() < 0.7
    assert (found < 0.05).mean() < 0.15


def test_mean_error_and_p():
    score, null = np.array([0.1, 0.4, 0.7, 0.2]), np.array([0.35, 0.36, 0.1, -0.2])
    held = heldout.HeldOut(score, np.repeat(null[:, None], 4, 1), np.empty(0), np.empty(0), (score, score))
    assert held.mean == pytest.approx(0.35)
    np.testing.assert_allclose(held.null, null)
    # the unbiased variance: of few links the other one is far too small
    assert held.error == pytest.approx(np.sqrt(np.sum((score - 0.35) ** 2) / 3 / 4))
    assert held.p == 3 / 5
    lower = heldout.HeldOut(
        score, np.repeat(null[:, None], 4, 1), np.empty(0), np.empty(0), (score, score), higher_is_better=False
    )
    assert lower.p == 4 / 5


def test_folds_keep_groups_together():
    groups = np.random.default_rng(0).integers(0, 23, 200)
    fold = heldout.folds(groups, np.random.default_rng(1))
    assert set(fold) == set(range(FOLDS))
    assert all(len(set(fold[groups == g])) == 1 for g in range(23))
    sizes = [len(set(groups[fold == k])) for k in range(FOLDS)]
    assert max(sizes) - min(sizes) <= 1
    assert set(heldout.folds(np.arange(3), np.random.default_rng(1))) == {0, 1, 2}


def test_links_with_a_feature_in_common_are_one_group():
    first = np.array(["g1", "g2", "g3", "g4", "g5", "g6"])
    second = np.array(["p1", "p1", "p2", "p3", "p4", "p5"])
    groups = heldout.link_groups(first, second)
    assert groups[0] == groups[1]
    assert len(set(groups)) == 5
    # one long chain: the first side's features decide, or the second's, or nothing
    np.testing.assert_array_equal(heldout.link_groups(first, np.repeat("p", 6)), np.arange(6))
    np.testing.assert_array_equal(heldout.link_groups(np.repeat("g", 6), first), np.arange(6))
    np.testing.assert_array_equal(heldout.link_groups(first[[0, 0, 1, 1]], first[[0, 1, 0, 1]]), np.arange(4))


def test_chains_are_reached_over_common_features():
    first = np.array(["g1", "g1", "g2", "g3", "g4", "g5"])
    second = np.array(["p1", "p2", "p2", "p3", "p4", "p3"])
    chain = heldout.link_chains(first, second)
    assert len(set(chain)) == 3
    assert len(set(chain[:3])) == 1
    assert chain[3] == chain[5] != chain[4]
    # fewer than five: no test without a fold for each, so links of one feature are the groups
    assert len(set(heldout.link_groups(first, second))) == 5
    # positions do as well as names
    at = [np.unique(side, return_inverse=True)[1] for side in (first, second)]
    np.testing.assert_array_equal(heldout.link_chains(*at), chain)


# --- pairs -------------------------------------------------------------------------------------------------------


def test_nearer_is_one_direction_of_foscttm():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50, 3))
    forward, back = heldout.nearer(y, x, y).mean(), heldout.nearer(x, y, x).mean()
    # there the partner itself is left out of the count of cells
    np.testing.assert_allclose((forward + back) / 2 * 50 / 49, metrics.foscttm(x, y))
    np.testing.assert_allclose(heldout.nearer(np.zeros((5, 2)), np.zeros((2, 2)), np.zeros((2, 2))), 0.4)


@pytest.fixture(scope="module")
def paired() -> tuple[dict, dict, dict, np.ndarray]:
    """Cells, their links, landmarks, and 30 true pairs."""
    x, linked, partner = planted()
    rows = np.random.default_rng(1).permutation(N)[:30]
    return x, linked, on_landmarks(x, linked, 30)[0], np.stack([rows, partner[rows]], axis=1)


def test_held_out_pairs(paired: tuple):
    x, linked, landmarks, pairs = paired
    held = heldout.held_out_pairs(x, landmarks, pairs, n_null=39)
    assert held.mean < 0.15
    assert held.p == 1 / 40
    # links place the partners of few pairs, and three or four pairs prove nothing
    few = heldout.held_out_pairs(x, landmarks, pairs[:4], linked)
    assert few.mean < 0.15
    assert few.p > 0.01


def test_wrong_pairs_do_not_hold(paired: tuple):
    x, linked, landmarks, pairs = paired
    wrong = np.stack([pairs[:, 0], np.random.default_rng(2).permutation(pairs[:, 1])], axis=1)
    shuffled = heldout.held_out_pairs(x, landmarks, wrong, n_null=39)
    assert shuffled.mean > 0.3
    assert shuffled.p > 1 / 40
    # links give them away
    assert heldout.held_out_pairs(x, landmarks, wrong, linked, n_null=1).mean > 0.3


def test_pairs_of_unrelated_cells_are_not_found():
    """A coupling that knew the pair would put the cell at its side."""
    rng = np.random.default_rng(0)
    x = {m: rng.normal(size=(N, 4)).astype(np.float32) for m in "ab"}
    landmarks = {m: find_landmarks(v, n_landmarks=30) for m, v in x.items()}
    rows = rng.permutation(N)[:60]
    held = heldout.held_out_pairs(x, landmarks, np.stack([rows, rows], axis=1), n_null=3)
    assert abs(held.mean - 0.5) < 0.1
    assert np.abs(held.null - 0.5).max() < 0.1


def test_no_pair_is_known_to_the_coupling_that_scores_it(paired: tuple):
    """Its partner can be anybody: the plan of its fold, and the scores of the other pairs of it, stay as they are."""
    x, _, landmarks, pairs = paired
    first = heldout.held_out_pairs(x, landmarks, pairs, n_null=0)
    for i in (3, 17):
        changed = pairs.copy()
        changed[i, 1] = np.setdiff1d(np.arange(N), pairs[:, 1])[i]
        second = heldout.held_out_pairs(x, landmarks, changed, n_null=0)
        k = first.fold[i]
        # but for the median distance to all pairs, by which those of every pair are scaled
        apart = np.abs(second.plans - first.plans).sum((1, 2))
        assert apart[k] < 0.01 < 0.05 < np.delete(apart, k).min()
        same = (first.fold == k) & (np.arange(30) != i)
        assert same.sum() == 5
        np.testing.assert_allclose(second.score[same], first.score[same], atol=0.01)


def test_many_pairs_are_drawn_from(paired: tuple):
    x, _, landmarks, _ = paired
    partner = planted()[2]
    held = heldout.held_out_pairs(x, landmarks, np.stack([np.arange(N), partner], axis=1), n_null=1)
    assert len(held.score) == MAX_TESTED_PAIRS


# --- labels ------------------------------------------------------------------------------------------------------


def labelled(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seven populations whose distances agree between the sides."""
    rng = np.random.default_rng(seed)
    centres = 6 * rng.normal(size=(7, 5))
    labels = {m: rng.integers(0, 7, 200) for m in "ab"}
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    x = {m: centres[v] @ (turn if m == "b" else np.eye(5)) + rng.normal(size=(200, 5)) for m, v in labels.items()}
    return x, labels


def test_labels_that_both_sides_keep_apart_and_in_order():
    x, labels = labelled()
    found = heldout.label_evidence(x, labels)
    assert found["separated"] > 0.95
    assert found["order"] > 0.9
    assert found["p"] <= 0.01
    assert found["n"] == 7
    gaps = {m: np.where(np.arange(200) % 2, v, -1) for m, v in labels.items()}
    assert heldout.label_evidence(x, gaps)["separated"] > 0.95


def test_labels_that_mean_nothing():
    x, labels = labelled()
    renamed = {**labels, "b": (labels["b"] + 1) % 7}
    assert heldout.label_evidence(x, renamed)["p"] > 0.01
    scattered = {**labels, "b": np.random.default_rng(0).permutation(labels["b"])}
    assert abs(heldout.label_evidence(x, scattered)["separated"]) < 0.15
    two = {m: np.where(v < 2, v, -1) for m, v in labels.items()}
    assert heldout.label_evidence(x, two)["p"] == 1


def test_order_of_labels_against_all_renamings():
    """Of four labels there are 24, the true one among them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 3))
    labels = {m: np.repeat(np.arange(4), 5) for m in "ab"}
    x = {m: centres[v] + 0.1 * rng.normal(size=(20, 3)) for m, v in labels.items()}
    found = heldout.label_evidence(x, labels)
    means = {m: np.array([v[labels[m] == c].mean(0) for c in range(4)]) for m, v in x.items()}
    apart = {m: np.linalg.norm(v[:, None] - v[None], axis=2)[np.triu_indices(4, 1)] for m, v in means.items()}
    assert found["order"] == pytest.approx(np.corrcoef(*apart.values())[0, 1])
    assert found["p"] == pytest.approx(1 / 24)


def test_purity_of_smoothed_cells_is_taken_as_it_was_before():
    """Cells smoothed inside labels would be pure for no better reason; labels of one side alone do not count."""
    x, labels = labelled()
    labels["a"] = np.where(labels["a"] == 6, 5, labels["a"])
    purity = {"a": np.array([0.1, 0.2, 0.3, 0.1, np.nan, 0.3, 1.0]), "b": np.full(7, 0.9)}
    assert heldout.label_evidence(x, labels, purity)["separated"] == pytest.approx(0.2)
    assert heldout.label_evidence(x, labels, {"a": np.full(7, np.nan), "b": None})["separated"] == 0
