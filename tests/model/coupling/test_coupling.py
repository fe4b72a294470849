"""Couplings of cells with landmarks: plans, anchors, and which populations they join."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial import cKDTree

from scmmgan.model.coupling import coupling
from scmmgan.model.coupling import minima as candidates
from scmmgan.model.coupling.coupling import Coupling, couple_geometry, couple_known
from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.coupling.transport import correlation_distance, linked_distance, plans_of, relaxed_sinkhorn, spread
from scmmgan.model.space.linear import straightened


def linked_pair(n: int = 300, m: int = 200, seed: int = 0) -> tuple[dict, dict, dict]:
    """Two modalities of one three-dimensional population, 12 linked features; different cells on each side."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(3, 12))
    latent = {"a": rng.normal(size=(n, 3)), "b": rng.normal(size=(m, 3))}
    x = {k: (v @ rng.normal(size=(3, p)) / 2).astype(np.float32) for (k, v), p in zip(latent.items(), (6, 4))}
    linked = {k: v @ loadings + 0.3 * rng.normal(size=(len(v), 12)) for k, v in latent.items()}
    linked = {k: (v - v.mean(0)) / v.std(0) for k, v in linked.items()}
    return x, linked, latent


def check_plan(c: Coupling, n: int, n_target: int, n_labels: int = 0) -> None:
    m = len(c.landmarks.mass)
    assert sp.isspmatrix_csr(c.plan)
    assert c.plan.shape == (n, m)
    assert m <= n_target // 2 + n_labels  # every label has a share of its own, rounded
    np.testing.assert_allclose(np.asarray(c.plan.sum(1)).ravel(), 1, atol=1e-5)
    assert np.diff(c.plan.indptr).max() <= 32
    assert c.plan.data.min() > 0
    assert c.anchors.dtype == np.float32
    assert np.isfinite(c.anchors).all()


# --- landmarks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1_000, 300), (101, 50), (32, 16)])
def test_landmarks(n: int, m: int):
    x = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    found = find_landmarks(x)
    assert len(found.mass) == m  # min(300, n // 2)
    assert found.mass.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.mass, np.bincount(found.label) / n)
    # cells lie in the cluster with the nearest centroid, nodes nearest to it
    d = ((x[:, None] - found.centroids[None]) ** 2).sum(2)
    assert (found.label == d.argmin(1)).mean() > 0.99
    np.testing.assert_allclose(d[found.nodes, np.arange(m)], d.min(0), atol=1e-5)


def test_landmark_means():
    x = np.random.default_rng(0).normal(size=(90, 3))
    found = find_landmarks(x)
    expected = [x[found.label == i].mean(0) for i in range(len(found.mass))]
    np.testing.assert_allclose(found.mean(x), expected, atol=1e-10)


def test_landmarks_are_repeatable():
    x = np.random.default_rng(0).normal(size=(500, 4))
    first, second, other = (find_landmarks(x, random_state=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.label, second.label)
    np.testing.assert_array_equal(first.centroids, second.centroids)
    assert not np.array_equal(first.centroids, other.centroids)


def test_landmarks_of_many_copies():
    """Fewer distinct cells than clusters: fewer landmarks, none empty, nothing said."""
    x = np.repeat(np.random.default_rng(0).normal(size=(10, 3)), 20, axis=0)
    found = find_landmarks(x)
    assert len(found.mass) == 10
    np.testing.assert_allclose(found.mass, 0.1)


# --- optimal transport -------------------------------------------------------------------------------------------


def transport_problem(n: int = 20, m: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A cost whose least entry is 0, and masses of both sides."""
    rng = np.random.default_rng(0)
    cost = rng.random((n, m))
    return cost - cost.min(), rng.dirichlet(np.full(n, 5)), rng.dirichlet(np.full(m, 5))


@pytest.mark.parametrize("relaxed", [0.1, 1.0, 10.0])
def test_relaxed_plan_is_the_optimum(relaxed: float):
    """Where the gradient of ⟨M, T⟩ + ε Σ T (log T − 1) + λ KL(T1 | p) + λ KL(Tᵀ1 | q) vanishes; the problem is convex."""
    cost, p, q = transport_problem()
    plan = relaxed_sinkhorn(cost, p, q, epsilon=0.05, relaxed=relaxed)
    rows, columns = np.log(plan.sum(1) / p), np.log(plan.sum(0) / q)
    gradient = cost + 0.05 * np.log(plan) + relaxed * (rows[:, None] + columns)
    # the iterations stop where log u moves by less than 1e-4
    np.testing.assert_allclose(gradient, 0, atol=1e-3 * max(1, relaxed))
    # the marginals do leave p and q, and the plan is no outer product
    assert np.abs(rows).max() > 0.05 / relaxed
    assert plan.std() > 0.5 * plan.mean()


def test_relaxed_plan_against_another_solver():
    import ot

    cost, p, q = transport_problem()
    expected = ot.unbalanced.sinkhorn_unbalanced(
        p, q, cost, 0.05, 0.5, reg_type="kl", c=np.ones(cost.shape), stopThr=1e-12, numItermax=20_000
    )
    np.testing.assert_allclose(relaxed_sinkhorn(cost, p, q, epsilon=0.05, relaxed=0.5), expected, rtol=1e-3)
    assert abs(expected.sum() - 1) > 0.01


def test_hardly_relaxed_plan_has_the_marginals():
    cost, p, q = transport_problem(40, 30)
    plan = relaxed_sinkhorn(cost, p, q, relaxed=1e4)
    np.testing.assert_allclose(plan.sum(1), p, atol=1e-4)
    np.testing.assert_allclose(plan.sum(0), q, atol=1e-4)
    # close to the optimum without entropy
    import ot

    assert (plan * cost).sum() < (ot.emd(p, q, cost) * cost).sum() + 0.03
    # the less the marginals weigh, the farther the plan is from them
    away = [np.abs(relaxed_sinkhorn(cost, p, q, relaxed=r).sum(1) - p).sum() for r in (0.1, 1, 10, 1e4)]
    assert (np.diff(away) < 0).all()
    assert away[0] > 0.1


def test_relaxed_plan_leaves_far_cells_out():
    """Two rows with partners, one without: only the third stays behind, and nothing overflows."""
    cost = np.array([[0.0, 5.0], [5.0, 0.0], [12.0, 12.0]])
    plan = relaxed_sinkhorn(cost, np.full(3, 1 / 3), np.full(2, 1 / 2))
    assert np.isfinite(plan).all()
    matched = 3 * plan.sum(1)
    assert matched[:2].min() > 0.9
    assert matched[2] < 0.01
    np.testing.assert_allclose(plan[:2] / plan[:2].sum(1, keepdims=True), np.eye(2), atol=1e-6)


def test_correlation_distance():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
    expected = 1 - np.corrcoef(np.vstack([a, b]))[:7, 7:]
    np.testing.assert_allclose(correlation_distance(a, b), expected, atol=1e-10)
    a[2] = 3
    got = correlation_distance(a, b)
    np.testing.assert_allclose(got[2], 1)
    np.testing.assert_allclose(np.delete(got, 2, 0), np.delete(expected, 2, 0), atol=1e-10)


def test_linked_distance():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 4)), rng.normal(size=(20, 4))
    b[0] *= 40  # one far row: capped at twice the mean
    correlation = 1 - np.corrcoef(a, b)[:30, 30:]
    squared = ((a[:, None] - b) ** 2).sum(2)
    expected = 2 * correlation / correlation.mean() + np.minimum(squared / squared.mean(), 2)
    np.testing.assert_allclose(linked_distance(a, b), expected, atol=1e-10)
    np.testing.assert_allclose(linked_distance(a.astype(np.float32), b.astype(np.float32)), expected, atol=1e-4)
    # links that have all lost their weights say nothing, nor do cells that are all alike
    for v in (0.0, 1.0):
        same = linked_distance(np.full((30, 4), v), np.full((20, 4), v))
        assert np.ptp(same) == 0
        assert np.isfinite(same).all()
    ramp = np.arange(4.0)
    assert np.isfinite(linked_distance(np.tile(ramp, (30, 1)), np.tile(ramp, (20, 1)))).all()


def test_what_all_links_share_is_seen():
    """Two populations that differ in the same direction in all of four links: nothing that a correlation sees."""
    rng = np.random.default_rng(0)
    true = {"a": rng.integers(0, 2, 200), "b": rng.integers(0, 2, 220)}
    x = {m: np.c_[5.0 * v, rng.normal(size=len(v))] for m, v in true.items()}
    linked = {m: np.outer(2 * v - 1, np.ones(4)) + 0.4 * rng.normal(size=(len(v), 4)) for m, v in true.items()}
    # weights of links can find it out, too
    found = couple_known(x, linked, refine=False)
    for source, target in found:
        carried = found[source, target].plan @ found[source, target].landmarks.mean(true[target][:, None].astype(float))
        assert ((carried[:, 0] > 0.5) == true[source]).mean() > 0.98


def test_plans_compare_each_view_by_its_own_distance():
    """Linked features count like one view, the first of the other views `share`."""
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(60, 3)), "b": rng.normal(size=(70, 3))}
    linked, view, last = ({m: rng.normal(size=(len(v), 5)) for m, v in x.items()} for _ in range(3))
    landmarks = {m: find_landmarks(v, n_landmarks=32) for m, v in x.items()}
    found = plans_of([view, last], landmarks, None, 0.3, linked=linked)["a", "b"]

    def over_mean(distance, of):
        cost = distance(of["a"], landmarks["b"].mean(of["b"]))
        return cost / cost.mean()

    cost = over_mean(linked_distance, linked) + 0.3 * over_mean(correlation_distance, view)
    cost += over_mean(correlation_distance, last)
    expected = 60 * relaxed_sinkhorn(cost / cost.mean(), np.full(60, 1 / 60), landmarks["b"].mass)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("n_pairs", [None, 6])
def test_all_plans_of_links_use_their_weights(n_pairs: int | None, monkeypatch: pytest.MonkeyPatch):
    """Also the last one, beside canonical variates; few pairs beside links count by their number."""
    rng = np.random.default_rng(0)
    x = {m: rng.normal(size=(n, 4)).astype(np.float32) for m, n in (("a", 90), ("b", 80))}
    linked = {m: v[:, [0, 1, 1]] + rng.normal(size=(len(v), 3)) for m, v in x.items()}
    pairs = None if n_pairs is None else np.c_[:n_pairs, :n_pairs]
    calls = []

    def spied(views, landmarks, labels, share, *, linked):
        calls.append((len(views), share, linked["a"] / own))
        return plans_of(views, landmarks, labels, share, linked=linked)

    own = linked["a"].copy()
    monkeypatch.setattr(coupling, "plans_of", spied)
    weight = couple_known(x, linked, pairs=pairs)["a", "b"].info["link_weight"]
    n_views = 0 if pairs is None else 1
    assert [views for views, *_ in calls] == [n_views] * 4 + [n_views + 1]
    assert {share for _, share, _ in calls} == {1.0 if pairs is None else 6 / 30}
    np.testing.assert_allclose(calls[0][2], 1)
    for _, _, used in calls[3:]:
        # of the features as they came, not of weighted ones
        np.testing.assert_allclose(used, np.broadcast_to(weight, used.shape), rtol=1e-6)


# --- linked features ---------------------------------------------------------------------------------------------


def test_links_give_plans_and_anchors_in_target_space():
    x, linked, _ = linked_pair()
    found = couple_known(x, linked)
    assert set(found) == {("a", "b"), ("b", "a")}
    check_plan(found["a", "b"], 300, 200)
    check_plan(found["b", "a"], 200, 300)
    for (source, target), c in found.items():
        assert c.anchors.shape == (len(x[source]), x[target].shape[1])
        # a(x_a) = Σ_b T²_ab c_b / Σ_b T²_ab, by hand
        means = np.array([x[target][c.landmarks.label == i].mean(0) for i in range(len(c.landmarks.mass))])
        squares = c.plan.toarray().astype(float) ** 2
        np.testing.assert_allclose(c.anchors, squares / squares.sum(1, keepdims=True) @ means, atol=1e-5)
        assert c.anchors.min() >= x[target].min()
        assert c.anchors.max() <= x[target].max()


def test_anchors_lie_nearer_to_measured_cells_than_the_means_of_the_plan():
    x, linked, _ = linked_pair()
    for (_, target), c in couple_known(x, linked).items():
        cells = cKDTree(x[target])
        means = c.plan @ c.landmarks.mean(x[target])
        assert cells.query(c.anchors)[0].mean() < 0.9 * cells.query(means)[0].mean()


def test_links_join_the_right_cells():
    x, linked, latent = linked_pair()
    for (source, target), c in couple_known(x, linked).items():
        # both spaces are linear in the latent one: the anchor of a cell against where its own latent profile maps
        to_target = np.linalg.lstsq(latent[target], x[target], rcond=None)[0]
        expected = latent[source] @ to_target
        r = [np.corrcoef(c.anchors[:, i], expected[:, i])[0, 1] for i in range(expected.shape[1])]
        assert np.mean(r) > 0.8


def test_links_do_not_care_about_the_order_of_cells():
    x, linked, _ = linked_pair()
    order = np.random.default_rng(1).permutation(300)
    for refine in (False, True):
        first, second = (
            couple_known({"a": x["a"][at], "b": x["b"]}, {"a": linked["a"][at], "b": linked["b"]}, refine=refine)
            for at in (np.arange(300), order)
        )
        moved = second["a", "b"].anchors - first["a", "b"].anchors[order]
        if not refine:
            # the landmarks of b are the same; so is what each cell of a is coupled with
            assert np.abs(moved).max() < 1e-4
        # with refinement those of a count, too, and k-means starts from other cells
        assert (moved**2).mean() < 0.05 * x["b"].var()


def test_links_with_a_constant_cell():
    x, linked, _ = linked_pair()
    linked["a"][5] = 0
    check_plan(couple_known(x, linked)["a", "b"], 300, 200)


def test_links_are_repeatable():
    x, linked, _ = linked_pair()
    first, second = (couple_known(x, linked, random_state=3)["a", "b"] for _ in range(2))
    np.testing.assert_array_equal(first.anchors, second.anchors)
    np.testing.assert_array_equal(first.plan.toarray(), second.plan.toarray())


def test_few_cells():
    x, linked, _ = linked_pair(32, 33)
    found = couple_known(x, linked)
    check_plan(found["a", "b"], 32, 33)
    check_plan(found["b", "a"], 33, 32)


def test_links_that_disagree_with_all_others_fade_out():
    x, linked, latent = linked_pair()
    rng = np.random.default_rng(5)
    for i in (3, 7):  # the partner is another feature
        linked["b"][:, i] = rng.permutation(linked["b"][:, i])
    linked["b"][:, 9] *= -1  # the partner is right, its sign is not
    found = couple_known(x, linked)
    weight = found["a", "b"].info["link_weight"]
    assert weight.shape == (12,)
    assert ((weight >= 0) & (weight <= 1)).all()
    wrong = np.isin(np.arange(12), [3, 7, 9])
    assert weight[wrong].max() < 0.15
    assert np.median(weight[~wrong]) > 0.4
    plain = couple_known(x, linked, refine=False)
    np.testing.assert_array_equal(plain["a", "b"].info["link_weight"], 1)

    def error(c: Coupling) -> float:
        expected = latent["a"] @ np.linalg.lstsq(latent["b"], x["b"], rcond=None)[0]
        return float(((c.anchors - expected) ** 2).mean() / expected.var())

    assert error(found["a", "b"]) < error(plain["a", "b"])


def test_links_that_say_nothing():
    """Features that are constant on one side carry nothing over."""
    x, linked, _ = linked_pair()
    linked["b"][:] = 0
    found = couple_known(x, linked)
    check_plan(found["a", "b"], 300, 200)
    np.testing.assert_array_equal(found["a", "b"].info["link_weight"], 0)


def test_largest_entries_are_kept():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    landmarks = find_landmarks(x)
    plan = rng.random((7, 100)) ** 4
    got = coupling._coupling(plan, landmarks, x, x, {}, None).plan.toarray()
    for row, kept in zip(plan, got):
        top = np.sort(np.argsort(-row, kind="stable")[:32])
        np.testing.assert_array_equal(np.flatnonzero(kept), top)
        np.testing.assert_allclose(kept[top], row[top] / row[top].sum(), rtol=1e-5)


# --- known pairs -------------------------------------------------------------------------------------------------


def same_cells(n: int = 300, m: int = 240, seed: int = 0, noise: float = 0.2) -> tuple[dict, np.ndarray]:
    """Two spaces of one population, the second with some of the cells, shuffled; which cell of `a` each row of `b` is."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 4)) * [1.5, 1, 1, 0.7]
    order = rng.permutation(n)[:m]
    a = latent @ rng.normal(size=(4, 8)) + noise * rng.normal(size=(n, 8))
    b = np.tanh(latent[order] @ rng.normal(size=(4, 6)) / 2) + noise / 4 * rng.normal(size=(m, 6))
    return {k: ((v - v.mean(0)) / v.std()).astype(np.float32) for k, v in (("a", a), ("b", b))}, order


def closer(found: dict, x: dict, order: np.ndarray, without: np.ndarray | None = None) -> float:
    """Share of cells of b that are closer to the anchor of a cell of a than its partner is: FOSCTTM of the coupling."""
    rows = np.arange(len(order)) if without is None else np.setdiff1d(np.arange(len(order)), without)
    d = ((found["a", "b"].anchors[order[rows]][:, None] - x["b"][None]) ** 2).sum(2)
    return float((d < d[np.arange(len(rows)), rows][:, None]).mean())


def some_pairs(order: np.ndarray, k: int, seed: int = 1) -> np.ndarray:
    rows = np.random.default_rng(seed).permutation(len(order))[:k]
    return np.stack([order[rows], rows], axis=1)


def check_known(found: dict, x: dict, pairs: np.ndarray) -> None:
    """Anchors of known cells are their partners themselves, in both directions, and count in full."""
    for (source, target), c in found.items():
        own, other = pairs.T if source == "a" else pairs.T[::-1]
        np.testing.assert_array_equal(c.anchors[own], x[target][other])
        np.testing.assert_array_equal(np.flatnonzero(c.known), np.sort(own))
        np.testing.assert_array_equal(c.weight[own], 1)
        assert c.weight.dtype == np.float32
        assert c.weight.min() >= 0
        assert c.weight.max() <= 1
        check_plan(c, len(x[source]), len(x[target]))


def test_pairs_place_all_other_cells():
    x, order = same_cells()
    errors = []
    for k in (30, 120):
        pairs = some_pairs(order, k)
        found = couple_known(x, pairs=pairs)
        check_known(found, x, pairs)
        assert found["a", "b"].info == {"kind": "pairs"}
        assert found["a", "b"].relaxed
        errors.append(closer(found, x, order, without=pairs[:, 1]))
    assert max(errors) < 0.03
    # the shapes alone do not know
    assert closer(couple_geometry(x, n_landmarks=40), x, order) > 0.15
    # neither do pairs that are none
    wrong = some_pairs(order, 30)
    wrong[:, 0] = np.random.default_rng(2).permutation(wrong[:, 0])
    assert closer(couple_known(x, pairs=wrong), x, order, without=wrong[:, 1]) > 0.25


def test_pairs_help_links():
    x, order = same_cells()
    rng = np.random.default_rng(0)
    # two of the four directions are linked
    linked = {m: v[:, :2] @ rng.normal(size=(2, 12)) for m, v in (("a", x["a"]), ("b", x["a"][order]))}
    linked = {m: v + 1.0 * rng.normal(size=v.shape) for m, v in linked.items()}
    linked = {m: (v - v.mean(0)) / v.std(0) for m, v in linked.items()}
    pairs = some_pairs(order, 40)
    without, both = couple_known(x, linked), couple_known(x, linked, pairs=pairs)
    check_known(both, x, pairs)
    assert both["a", "b"].info["kind"] == "links"
    assert both["a", "b"].info["link_weight"].shape == (12,)
    assert not without["a", "b"].known.any()
    assert closer(both, x, order, without=pairs[:, 1]) < closer(without, x, order, without=pairs[:, 1]) - 0.02


def test_few_pairs_help_the_shapes():
    x, order = same_cells()
    pairs = some_pairs(order, 6)
    found = couple_geometry(x, pairs=pairs, n_landmarks=40)
    check_known(found, x, pairs)
    assert found["a", "b"].info["kind"] == "geometry"
    # nothing says that anything is missing on a side
    assert not found["a", "b"].relaxed
    assert closer(found, x, order, without=pairs[:, 1]) < closer(couple_geometry(x, n_landmarks=40), x, order) - 0.05


def test_without_pairs_nothing_is_known():
    plain = Coupling(sp.csr_matrix((3, 2)), np.zeros((3, 4), np.float32), find_landmarks(np.eye(4)))
    np.testing.assert_array_equal(plain.weight, np.ones(3))
    np.testing.assert_array_equal(plain.known, np.zeros(3, bool))
    assert not plain.relaxed


# --- labels ------------------------------------------------------------------------------------------------------


def label_of_landmarks(c: Coupling, labels: np.ndarray) -> np.ndarray:
    """The one label of all cells of each landmark."""
    found = [np.unique(labels[c.landmarks.label == i]) for i in range(len(c.landmarks.mass))]
    assert {len(v) for v in found} == {1}
    return np.concatenate(found)


def forbidden_mass(c: Coupling, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of each cell's plan on landmarks of another label, where both are known."""
    of = label_of_landmarks(c, other)
    different = (own[:, None] >= 0) & (of >= 0) & (own[:, None] != of)
    return (c.plan.toarray() * different).sum(1)


def with_gaps(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(len(labels)) < share, -1, labels)


@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_landmarks_stay_inside_labels(gaps: float):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))  # one cloud: nothing but the labels keeps them apart
    labels = with_gaps(rng.choice(4, 300, p=[0.6, 0.3, 0.09, 0.01]), gaps)
    found = find_landmarks(x, n_landmarks=60, labels=labels)
    for i in range(len(found.mass)):
        assert len(np.unique(labels[found.label == i])) == 1
        assert found.label[found.nodes[i]] == i
        np.testing.assert_allclose(found.centroids[i], x[found.label == i].mean(0), atol=0.2)
    assert found.mass.sum() == pytest.approx(1)
    # places go by shares, one at least
    of = labels[found.nodes]
    for label in np.unique(labels):
        assert (of == label).sum() == pytest.approx(60 * (labels == label).mean(), abs=1)
        assert (of == label).any()


@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_different_labels_are_not_coupled(gaps: float):
    """Links say that label 0 is label 1; the labels know better."""
    rng = np.random.default_rng(0)
    true = {"a": rng.integers(0, 2, 240), "b": rng.integers(0, 2, 200)}
    centre = {"a": true["a"], "b": 1 - true["b"]}
    x = {m: np.c_[4 * v, np.zeros(len(v))] + rng.normal(size=(len(v), 2)) for m, v in true.items()}
    x = {m: v.astype(np.float32) for m, v in x.items()}
    linked = {m: rng.normal(size=(len(v), 6)) + 2 * np.outer(v, [1, -1, 1, -1, 1, -1]) for m, v in centre.items()}
    labels = {m: with_gaps(v, gaps) for m, v in true.items()}
    misled, found = couple_known(x, linked), couple_known(x, linked, labels=labels)
    for source, target in found:
        c = found[source, target]
        check_plan(c, len(x[source]), len(x[target]), 3)
        assert forbidden_mass(c, labels[source], labels[target]).max() < 1e-6
        known = labels[source] >= 0
        right = np.isclose(c.anchors[:, 0], 4 * true[source], atol=2)
        assert right[known].mean() > 0.95
        # what has no label follows its neighbours that have
        assert right.mean() > 0.9
        assert np.isclose(misled[source, target].anchors[:, 0], 4 * true[source], atol=2).mean() < 0.1


@pytest.mark.parametrize("gaps", [0.0, 0.5])
def test_labels_help_the_shapes(gaps: float):
    """Two mirrored halves: shapes cannot tell them apart, labels can."""
    shares = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        true = {m: np.repeat([0, 1], n) for m, n in (("a", 80), ("b", 70))}
        x = {m: (rng.normal(size=(len(v), 2)) * [1, 0.5] + np.c_[6 * v, np.zeros(len(v))]) for m, v in true.items()}
        x = {m: v.astype(np.float32) for m, v in x.items()}
        labels = {m: with_gaps(v, gaps) for m, v in true.items()}
        found = couple_geometry(x, labels=labels, random_state=seed)
        shares.append(agreement(found, x, true))
        for source, target in found:
            c = found[source, target]
            check_plan(c, len(x[source]), len(x[target]), 3)
            assert forbidden_mass(c, labels[source], labels[target]).max() < 1e-6
            assert c.relaxed
            assert c.info["kind"] == "geometry"
    assert min(shares) > 0.97


def labelled_clusters(missing: int) -> tuple[dict, dict, dict]:
    """`clusters` on both sides with linked features; side b lacks a population."""
    (a, label_a), (b, label_b) = clusters(260, 0), clusters(260, 1)
    b, label_b = b[label_b != missing], label_b[label_b != missing]
    rng = np.random.default_rng(5)
    loadings = rng.normal(size=(3, 12))
    linked = {m: v @ loadings + 0.3 * rng.normal(size=(len(v), 12)) for m, v in (("a", a), ("b", b))}
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return {"a": a.astype(np.float32), "b": (b @ turn).astype(np.float32)}, linked, {"a": label_a, "b": label_b}


@pytest.mark.parametrize("missing", [0, 3])
@pytest.mark.parametrize("how", ["links", "shapes"])
def test_a_label_that_one_side_lacks_is_unmatched(missing: int, how: str):
    x, linked, labels = labelled_clusters(missing)
    found = couple_known(x, linked, labels=labels) if how == "links" else couple_geometry(x, labels=labels)
    weight, orphan = found["a", "b"].weight, labels["a"] == missing
    assert weight[orphan].max() < 0.05
    assert weight[~orphan].min() > 0.6
    assert weight[~orphan].mean() > 0.9
    # the other side has partners for all of its cells
    assert found["b", "a"].weight.mean() > (0.7 if how == "links" else 0.9)
    assert found["b", "a"].weight.min() > 0.4
    for c, own, other in ((found["a", "b"], "a", "b"), (found["b", "a"], "b", "a")):
        check_plan(c, len(x[own]), len(x[other]), 4)
        matched = np.isin(labels[own], labels[other])
        # orphaned landmarks draw a little from everywhere
        assert forbidden_mass(c, labels[own], labels[other])[matched].max() < 0.01


@pytest.mark.parametrize("missing", [1, 3])
def test_an_orphaned_population_is_unmatched(missing: int):
    """Links alone, no labels: cells whose like is missing stay behind, the others do not."""
    from sklearn.metrics import roc_auc_score

    x, linked, labels = labelled_clusters(missing)
    found = couple_known(x, {m: (v - v.mean(0)) / v.std(0) for m, v in linked.items()})
    unmatched = 1 - found["a", "b"].weight
    assert roc_auc_score(labels["a"] == missing, unmatched) > 0.9
    assert np.median(unmatched[labels["a"] != missing]) < 0.05


# --- distorted plans ---------------------------------------------------------------------------------------------


def wide_pair(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`rotated_pair` in 12 and 14 dimensions, with noise in all of them."""
    x, label = rotated_pair(seed)
    rng = np.random.default_rng(200 + seed)
    wide = {}
    for (m, v), width in zip(x.items(), (12, 14)):
        turn = np.linalg.qr(rng.normal(size=(width, width)))[0][: v.shape[1]]
        wide[m] = (v @ turn + 0.1 * rng.normal(size=(len(v), width))).astype(np.float32)
    return wide, label


def test_distorted_plans_are_smoothed_out(monkeypatch: pytest.MonkeyPatch):
    """Above the threshold plans come from the canonical space: right still, and spread over more landmarks."""
    x, label = wide_pair(0)
    monkeypatch.setattr(candidates, "DISTORTED", np.inf)
    sharp = couple_geometry(x)
    monkeypatch.setattr(candidates, "DISTORTED", -1)
    smooth = couple_geometry(x)
    for pair in sharp:
        check_plan(smooth[pair], len(x[pair[0]]), len(x[pair[1]]))
        assert smooth[pair].plan.nnz > 1.5 * sharp[pair].plan.nnz
        assert smooth[pair].info["distortion"] == pytest.approx(sharp[pair].info["distortion"], rel=0.01)
    assert agreement(sharp, x, label) > 0.95
    assert agreement(smooth, x, label) > 0.95


@pytest.mark.parametrize("n_pairs", [0, 10])
def test_anchors_of_distorted_plans_are_straightened(n_pairs: int, monkeypatch: pytest.MonkeyPatch):
    x, _ = wide_pair(0)
    pairs = np.c_[np.arange(n_pairs), np.arange(n_pairs)[::-1]] if n_pairs else None
    seen: list[tuple[np.ndarray, ...]] = []
    views: list[int] = []
    plans_of = coupling.plans_of

    def spied(anchors: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        seen.append((anchors, x, weight, straightened(anchors, x, weight)))
        return seen[-1][-1]

    monkeypatch.setattr(candidates, "DISTORTED", -1)
    monkeypatch.setattr(coupling, "straightened", spied)
    monkeypatch.setattr(coupling, "plans_of", lambda of, *rest: views.append(len(of)) or plans_of(of, *rest))
    found = couple_geometry(x, pairs=pairs)
    # known pairs are a view beside the canonical one
    assert views == [2 if n_pairs else 1]
    for (source, target), (before, cells, weight, after) in zip(found, seen, strict=True):
        got = found[source, target]
        np.testing.assert_array_equal(cells, x[source])
        squares = got.plan.toarray().astype(float) ** 2
        means = squares / squares.sum(1, keepdims=True) @ got.landmarks.mean(x[target])
        np.testing.assert_allclose(before, means, atol=1e-6)
        others = np.arange(len(x[source])) >= n_pairs
        np.testing.assert_allclose(got.anchors[others], after[others], atol=1e-5)
        np.testing.assert_allclose(got.weight[others], weight[others], atol=1e-6)
        assert np.abs(after - before).max() > 0.05
        if n_pairs:
            rows = pairs[:, ::-1] if source == "b" else pairs
            np.testing.assert_array_equal(got.anchors[rows[:, 0]], x[target][rows[:, 1]])


@pytest.mark.parametrize(("data", "distorted"), [("rotated_pair", -1), ("wide_pair", np.inf)])
def test_few_dimensions_and_sound_plans_are_left_alone(data: str, distorted: float, monkeypatch: pytest.MonkeyPatch):
    x, _ = globals()[data](0)
    monkeypatch.setattr(candidates, "DISTORTED", distorted)
    monkeypatch.setattr(coupling, "straightened", lambda *_: pytest.fail("straightened"))
    monkeypatch.setattr(coupling, "plans_of", lambda *_: pytest.fail("made again"))
    for (_, target), c in couple_geometry(x).items():
        squares = c.plan.toarray().astype(float) ** 2
        means = squares / squares.sum(1, keepdims=True) @ c.landmarks.mean(x[target])
        np.testing.assert_allclose(c.anchors, means, atol=1e-5)


# --- geometry alone ----------------------------------------------------------------------------------------------


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four populations of unequal size and shape at unequal distances."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(4), np.round(np.array([0.44, 0.29, 0.17, 0.1]) * n).astype(int))
    centres = np.array([[0, 0, 0], [6, 0, 0], [9, 5, 0], [2, 9, 4.0]])
    spread = np.array([[1.5, 0.6, 0.3], [0.5, 1.2, 0.4], [0.4, 0.4, 0.9], [0.7, 0.3, 0.5]])
    x = centres[label] + rng.normal(size=(len(label), 3)) * spread[label]
    order = rng.permutation(len(label))
    return ((x - x.mean(0)) / x.std())[order], label[order]


def rotated_pair(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Other cells on the second side, in another space: turned, in more dimensions, noisy."""
    rng = np.random.default_rng(100 + seed)
    (a, label_a), (b, label_b) = clusters(140, seed), clusters(110, 1_000 + seed)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0][:3]
    b = b @ turn + 0.03 * rng.normal(size=(len(b), 6))
    return {"a": a.astype(np.float32), "b": b.astype(np.float32)}, {"a": label_a, "b": label_b}


def agreement(found: dict, x: dict, label: dict) -> float:
    """Share of cells whose anchor lies nearest to a cell of their own population, the worse direction."""
    shares = []
    for (source, target), c in found.items():
        nearest = ((c.anchors[:, None] - x[target][None]) ** 2).sum(2).argmin(1)
        shares.append((label[target][nearest] == label[source]).mean())
    return min(shares)


def test_geometry_finds_a_rotation():
    shares = []
    for seed in range(10):
        x, label = rotated_pair(seed)
        found = couple_geometry(x, random_state=seed)
        shares.append(agreement(found, x, label))
        check_plan(found["a", "b"], len(x["a"]), len(x["b"]))
        check_plan(found["b", "a"], len(x["b"]), len(x["a"]))
        assert found["a", "b"].info["kind"] == "geometry"
        assert 0 < found["a", "b"].info["cost"] < 0.2
    assert np.sum(np.array(shares) > 0.95) >= 9


def test_geometry_is_repeatable_and_blind_to_the_order_of_cells():
    x, label = rotated_pair(1)
    first, second = couple_geometry(x), couple_geometry(x)
    np.testing.assert_array_equal(first["a", "b"].anchors, second["a", "b"].anchors)
    order = np.random.default_rng(0).permutation(len(x["b"]))
    shuffled = couple_geometry({"a": x["a"], "b": x["b"][order]})
    assert agreement(shuffled, {"a": x["a"], "b": x["b"][order]}, {"a": label["a"], "b": label["b"][order]}) > 0.9


def test_geometry_does_not_know_a_mirror_image():
    """Two look-alike populations may be swapped: the runner-up costs about the same, and the gap says so."""
    rng = np.random.default_rng(0)
    x = {k: np.vstack([rng.normal(size=(60, 2)), rng.normal((8, 0), size=(60, 2))]) for k in "ab"}
    found = couple_geometry({k: v.astype(np.float32) for k, v in x.items()})
    assert found["a", "b"].info["gap"] < 0.5
    clear, _ = rotated_pair(0)
    assert couple_geometry(clear)["a", "b"].info["gap"] > 5 * found["a", "b"].info["gap"]


def test_spread_is_smooth_and_row_stochastic():
    x = np.random.default_rng(0).normal(size=(200, 3))
    landmarks = find_landmarks(x)
    weights = spread(x, landmarks)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (np.count_nonzero(weights, axis=1) <= 5).all()
    # the nearest landmark weighs most
    nearest = ((x[:, None] - landmarks.centroids[None]) ** 2).sum(2).argmin(1)
    np.testing.assert_array_equal(weights.argmax(1), nearest)
