"""Evidence for a coupling that did not make it: planted links, pairs, labels and swaps, and their negative controls."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan import metrics
from scmmgan.model.coupling import coupling
from scmmgan.model.coupling.landmarks import Landmarks, find_landmarks
from scmmgan.model.coupling.transport import relaxed_sinkhorn
from scmmgan.model.evidence import heldout as diagnosis

N, N_LINKS = 300, 20


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


def on_landmarks(x: dict, linked: dict) -> tuple[dict[str, Landmarks], list[np.ndarray], list[np.ndarray]]:
    landmarks = {m: find_landmarks(v, n_landmarks=60) for m, v in x.items()}
    return landmarks, [landmarks[m].mean(linked[m]) for m in x], [landmarks[m].mass for m in x]


# --- plans -------------------------------------------------------------------------------------------------------


def test_transport_is_the_relaxed_plan_of_the_coupling():
    rng = np.random.default_rng(0)
    costs = rng.random((3, 12, 9))
    p, q = np.full(12, 1 / 12), np.full(9, 1 / 9)
    plans, _, _ = diagnosis.transport(costs, p, q, n_iter=500)
    for cost, plan in zip(costs, plans):
        np.testing.assert_allclose(plan, relaxed_sinkhorn(cost, p, q), atol=1e-4)


def test_coarse_landmarks_hold_the_same_cells():
    x, _, _ = planted()
    fine = find_landmarks(x["a"], n_landmarks=120)
    coarse, into = diagnosis.coarsen(fine, n=40)
    assert len(coarse.mass) <= 40
    np.testing.assert_allclose(coarse.mass, np.bincount(coarse.label) / N)
    np.testing.assert_array_equal(coarse.label, into[fine.label])
    # a node is a cell of its own landmark
    np.testing.assert_array_equal(coarse.label[coarse.nodes], np.arange(len(coarse.mass)))
    same, _ = diagnosis.coarsen(fine, n=150)
    assert same is fine


def test_coarse_plan_keeps_matched_mass():
    x, linked, _ = planted()
    couplings = coupling.couple_known(x, linked, n_landmarks=120)
    sides = {s: diagnosis.coarsen(couplings[t, s].landmarks, n=30) for s, t in (("a", "b"), ("b", "a"))}
    plan = diagnosis.coarse_plan(couplings, ("a", "b"), sides)
    assert plan.shape == (len(sides["a"][0].mass), len(sides["b"][0].mass))
    weights = [couplings["a", "b"].weight.mean(), couplings["b", "a"].weight.mean()]
    np.testing.assert_allclose(plan.sum(), np.mean(weights), rtol=1e-4)


# --- links -------------------------------------------------------------------------------------------------------


def test_true_links_hold_and_the_wrong_one_does_not():
    x, linked, _ = planted()
    linked["a"][:, 7] = np.random.default_rng(1).normal(size=N)
    _, (a, b), (p, q) = on_landmarks(x, linked)
    held = diagnosis.held_out_links(a, b, p, q, np.arange(N_LINKS))
    assert held.mean > 0.6
    assert held.p == 0.01
    assert held.score.argmin() == 7
    assert held.score[7] < 0.3
    assert held.null.max() < held.mean
    assert held.plans.shape == (5, len(p), len(q))


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_links_do_not_hold(seed: int):
    x, linked, _ = planted(seed)
    linked["b"] = linked["b"][:, np.random.default_rng(seed).permutation(N_LINKS)]
    _, (a, b), (p, q) = on_landmarks(x, linked)
    held = diagnosis.held_out_links(a, b, p, q, np.arange(N_LINKS), random_state=seed)
    assert held.p > 0.01
    assert held.mean < 1 / 3


def test_links_that_the_plan_does_not_know():
    """The plan itself is judged: right side up it carries links over, mirrored it does not."""
    x, linked, _ = planted()
    _, (a, b), (p, q) = on_landmarks(x, linked)
    plan = diagnosis.transport(diagnosis.distance(a, b), p, q)[0]
    right = diagnosis.carried_links(plan, a, b, p, q)
    assert right.p == 0.01
    mirrored = diagnosis.carried_links(diagnosis.transport(2 - diagnosis.distance(a, b), p, q)[0], a, b, p, q)
    assert mirrored.p == 1
    assert mirrored.mean < -0.5 < 0.5 < right.mean
    assert diagnosis.carried_links(plan, a[:, :3], b[:, :3], p, q).p > 0.05  # 3 links: 6 tables


def test_carried_is_the_correlation_with_the_partner():
    plan = np.diag([0.5, 0.3, 0.2])
    a = np.array([[0.0, 1], [1, 1], [2, 5]])
    w = plan.sum(0)
    np.testing.assert_allclose(diagnosis.carried(plan, a, a, w, w), [1, 1])
    np.testing.assert_allclose(diagnosis.carried(plan, a, -a, w, w), [-1, -1])


def test_links_with_a_feature_in_common_are_one_group():
    first = np.array(["g1", "g2", "g3", "g4", "g5", "g6"])
    second = np.array(["p1", "p1", "p2", "p3", "p4", "p5"])
    groups = diagnosis.link_groups(first, second)
    assert groups[0] == groups[1]
    assert len(set(groups)) == 5
    # one long chain: the first side's features decide, or the second's, or nothing
    np.testing.assert_array_equal(diagnosis.link_groups(first, np.repeat("p", 6)), np.arange(6))
    np.testing.assert_array_equal(diagnosis.link_groups(np.repeat("g", 6), first), np.arange(6))
    np.testing.assert_array_equal(diagnosis.link_groups(first[[0, 0, 1, 1]], first[[0, 1, 0, 1]]), np.arange(4))


# --- pairs -------------------------------------------------------------------------------------------------------


def test_nearer_is_one_direction_of_foscttm():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50, 3))
    forward, back = diagnosis.nearer(y, x, y).mean(), diagnosis.nearer(x, y, x).mean()
    # there the partner itself is left out of the count of cells
    np.testing.assert_allclose((forward + back) / 2 * 50 / 49, metrics.foscttm(x, y))
    np.testing.assert_allclose(diagnosis.nearer(np.zeros((5, 2)), np.zeros((2, 2)), np.zeros((2, 2))), 0.4)


def test_held_out_pairs():
    x, linked, partner = planted()
    landmarks, _, _ = on_landmarks(x, linked)
    rows = np.random.default_rng(1).permutation(N)[:30]
    pairs = np.stack([rows, partner[rows]], axis=1)
    held = diagnosis.held_out_pairs(x, landmarks, pairs)
    assert held.mean < 0.15
    assert held.p == 0.01
    wrong = np.stack([rows, np.random.default_rng(2).permutation(partner[rows])], axis=1)
    shuffled = diagnosis.held_out_pairs(x, landmarks, wrong)
    assert shuffled.mean > 0.3
    assert shuffled.p > 0.01
    # links place the partners of few pairs, and give wrong pairs away
    few = diagnosis.held_out_pairs(x, landmarks, pairs[:4], linked)
    assert few.mean < 0.15
    assert few.p > 0.01
    assert diagnosis.held_out_pairs(x, landmarks, wrong, linked).mean > 0.3


def test_many_pairs_are_drawn_from():
    x, linked, partner = planted()
    landmarks, _, _ = on_landmarks(x, linked)
    held = diagnosis.held_out_pairs(x, landmarks, np.stack([np.arange(N), partner], axis=1), n_null=1)
    assert len(held.score) == diagnosis.MAX_PAIRS


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
    found = diagnosis.label_evidence(x, labels)
    assert found["separated"] > 0.95
    assert found["order"] > 0.9
    assert found["p"] <= 0.01
    gaps = {m: np.where(np.arange(200) % 2, v, -1) for m, v in labels.items()}
    assert diagnosis.label_evidence(x, gaps)["separated"] > 0.95


def test_labels_that_mean_nothing():
    x, labels = labelled()
    renamed = {**labels, "b": (labels["b"] + 1) % 7}
    assert diagnosis.label_evidence(x, renamed)["p"] > 0.01
    scattered = {**labels, "b": np.random.default_rng(0).permutation(labels["b"])}
    assert abs(diagnosis.label_evidence(x, scattered)["separated"]) < 0.15
    two = {m: np.where(v < 2, v, -1) for m, v in labels.items()}
    assert diagnosis.label_evidence(x, two)["p"] == 1


# --- populations, swaps, rivals ----------------------------------------------------------------------------------


def test_populations():
    x, labels = labelled()
    landmarks = find_landmarks(x["a"], n_landmarks=60, labels=labels["a"])
    by_label = diagnosis.populations(landmarks, labels["a"])
    np.testing.assert_array_equal(by_label[landmarks.label], labels["a"])
    clusters = diagnosis.populations(landmarks)
    assert len(set(clusters)) == 10
    assert len(diagnosis.populations(find_landmarks(x["a"][:8], n_landmarks=4))) == 4


def test_two_populations_that_no_link_tells_apart():
    """Populations 0 and 1 differ in nothing that is linked; 2 differs from both."""
    rng = np.random.default_rng(0)
    population = np.repeat([0, 1, 2], 10)
    truth = np.array([[1.0], [1.0], [-1.0]])[population]
    a = truth + 0.01 * rng.normal(size=(30, 40))
    b = truth + 0.01 * rng.normal(size=(30, 40))
    p = np.full(30, 1 / 30)
    held = diagnosis.HeldOut(np.ones(40), np.zeros(9), np.eye(30)[None] / 30, np.zeros(40, dtype=int), (a, b))
    for way in (0, 1):
        gaps = diagnosis.swap_gaps(held, p, population, way=way)
        assert gaps[0, 1] < 0.7
        assert gaps[0, 2] == pytest.approx(1)
        np.testing.assert_allclose(gaps, gaps.T)


def test_disagreement_is_the_mass_sent_elsewhere():
    plan = np.eye(4) / 4
    swapped = plan[[1, 0, 2, 3]]
    half = (plan + swapped) / 2
    found = diagnosis.disagreement(plan, np.stack([plan, swapped, half]), np.array([0, 1, 2, 2]))
    np.testing.assert_allclose(found, [[0, 0, 0, 0], [1, 1, 0, 0], [0.5, 0.5, 0, 0]])
    # inside one population of the target nothing is another answer
    assert (diagnosis.disagreement(plan, plan[None, [0, 1, 3, 2]], np.array([0, 1, 2, 2])) == 0).all()


def test_overlap_of_neighbourhoods():
    x = np.random.default_rng(0).normal(size=(100, 3))
    assert diagnosis.overlap(x, 2 * x + 1) == 1
    assert diagnosis.overlap(x, x[::-1]) < 0.4


def test_chains_are_reached_over_common_features():
    first = np.array(["g1", "g1", "g2", "g3", "g4", "g5"])
    second = np.array(["p1", "p2", "p2", "p3", "p4", "p3"])
    chain = diagnosis.link_chains(first, second)
    assert len(set(chain)) == 3
    assert len(set(chain[:3])) == 1
    assert chain[3] == chain[5] != chain[4]
    # fewer than five: no test without a fold for each, so links of one feature are the groups
    assert len(set(diagnosis.link_groups(first, second))) == 5
