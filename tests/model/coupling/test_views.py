"""What is known, as coordinates and costs: each against a plain float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh

from scmmgan.model.coupling import views
from scmmgan.model.space import linear


def two_views(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same cells in two spaces that share three of their directions, and those directions."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 3)) * [2, 1, 0.7]
    a = np.hstack([common, rng.normal(size=(n, 4))]) @ np.linalg.qr(rng.normal(size=(7, 7)))[0]
    b = np.hstack([common + 0.3 * rng.normal(size=(n, 3)), 2 * rng.normal(size=(n, 2))])
    return a - a.mean(0), b @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + 3, common


# --- distances ---------------------------------------------------------------------------------------------------


def test_correlation_distance():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
    expected = 1 - np.corrcoef(np.vstack([a, b]))[:7, 7:]
    np.testing.assert_allclose(views.correlation_distance(a, b), expected, atol=1e-10)
    np.testing.assert_allclose(
        views.correlation_distance(a.astype(np.float32), b.astype(np.float32)), expected, atol=1e-5
    )
    a[2] = 3
    got = views.correlation_distance(a, b)
    np.testing.assert_allclose(got[2], 1)
    np.testing.assert_allclose(np.delete(got, 2, 0), np.delete(expected, 2, 0), atol=1e-10)


def test_distances_of_stacks():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 7, 5)), rng.normal(size=(3, 4, 5))
    distance = views.correlation_distance(a, b)
    cost = views.over_mean(distance)
    for i in range(3):
        np.testing.assert_allclose(distance[i], views.correlation_distance(a[i], b[i]), atol=1e-12)
        # each in units of its own mean
        np.testing.assert_allclose(cost[i], distance[i] / distance[i].mean(), atol=1e-12)
    # links that are all down-weighted to nothing say nothing
    nothing = views.over_mean(views.correlation_distance(np.zeros((7, 5)), np.zeros((4, 5))))
    np.testing.assert_array_equal(nothing, np.ones((7, 4)))
    np.testing.assert_array_equal(views.over_mean(np.zeros((7, 4))), 0)


# --- profiles ----------------------------------------------------------------------------------------------------


def test_profiles_are_z_scored_log_distances():
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(30, 4)), "b": rng.normal(size=(25, 6))}
    points = {"a": rng.normal(size=(5, 4)), "b": rng.normal(size=(5, 6))}
    found = views.profiles(x, points)
    for m, cells in x.items():
        d = np.sqrt(((cells[:, None] - points[m][None]) ** 2).sum(2))
        logs = np.log(d + 0.1 * np.median(d))
        np.testing.assert_allclose(found[m], (logs - logs.mean(0)) / logs.std(0), atol=1e-8)


def test_profiles_do_not_see_rotation_nor_scale():
    rng = np.random.default_rng(0)
    x, points = rng.normal(size=(50, 4)), rng.normal(size=(6, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    found = views.profiles({"a": x, "b": 3 * x @ turn + 1}, {"a": points, "b": 3 * points @ turn + 1})
    np.testing.assert_allclose(found["a"], found["b"], atol=1e-6)


def test_profiles_of_copies():
    """Cells at the very place of a point, and nothing else: no infinite logarithm, no division by 0."""
    found = views.profiles({"a": np.ones((10, 3))}, {"a": np.ones((4, 3))})
    np.testing.assert_array_equal(found["a"], 0)


def test_profiles_over_pairs():
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(40, 3)), "b": rng.normal(size=(30, 2))}
    pairs = np.array([[7, 3], [1, 9], [30, 0], [12, 12]])
    found = views.pair_profiles(x, pairs)
    expected = views.profiles(x, {"a": x["a"][[7, 1, 30, 12]], "b": x["b"][[3, 9, 0, 12]]})
    for m in x:
        assert found[m].shape == (len(x[m]), 4)
        np.testing.assert_array_equal(found[m], expected[m])
        # a cell is nearest to itself
        at = pairs[:, 0 if m == "a" else 1]
        np.testing.assert_array_equal(found[m].argmin(0), at)


def test_profiles_over_many_pairs_are_few(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views, "MAX_PROFILES", 6)
    a, b, _ = two_views(50)
    order = np.random.default_rng(3).permutation(50)
    x = {"a": a, "b": b[order]}
    pairs = np.stack([order, np.arange(50)], axis=1)
    found, again, other = (views.pair_profiles(x, pairs, random_state=s) for s in (0, 0, 1))
    assert found["a"].shape == (50, 6)
    np.testing.assert_array_equal(found["b"], again["b"])
    assert not np.array_equal(found["b"], other["b"])
    # the same six pairs on both sides
    nearest = [found[m].argmin(0) for m in ("a", "b")]
    np.testing.assert_array_equal(order[nearest[1]], nearest[0])


@pytest.mark.parametrize(("n", "share"), [(3, 0.03), (30, 0.3), (99, 0.99), (100, 1.0), (5_000, 1.0)])
def test_pairs_beside_links_count_by_their_number(n: int, share: float):
    """As much as the links from the number on that places cells alone."""
    assert views.pair_share(n) == pytest.approx(share)


# --- labels ------------------------------------------------------------------------------------------------------


def test_memberships(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views, "SMOOTHING_NEIGHBORS", 5)
    x = np.r_[np.arange(10.0), np.arange(100.0, 110)][:, None]
    labels = np.repeat([0, 2], 10)
    labels[[3, 15]] = -1
    got = views.memberships(x, labels, 4)
    expected = np.zeros((20, 4))
    expected[:10, 0] = expected[10:, 2] = 1
    np.testing.assert_array_equal(got, expected)
    # between two populations: shares of the nearest labelled cells, by hand
    x[3], x[15] = 55, 54.5
    labels[[2, 4]] = -1
    monkeypatch.setattr(views, "SMOOTHING_NEIGHBORS", 10)
    got = views.memberships(x, labels, 4)
    for cell in (3, 15, 2, 4):
        known = np.flatnonzero(labels >= 0)
        nearest = known[np.argsort(np.abs(x[known, 0] - x[cell, 0]))[:10]]
        np.testing.assert_allclose(got[cell], np.bincount(labels[nearest], minlength=4) / 10)
    assert 0 < got[15, 0] < 1
    np.testing.assert_allclose(got.sum(1), 1)


def test_fifteen_neighbours_vote():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(60, 2)), rng.integers(0, 2, 60)
    labels[:10] = -1
    got = views.memberships(x, labels, 2)
    for i in range(10):
        near = 10 + ((x[10:] - x[i]) ** 2).sum(1).argsort()[:15]
        np.testing.assert_allclose(got[i], np.bincount(labels[near], minlength=2) / 15)


def test_memberships_at_the_edges():
    x = np.arange(6.0)[:, None]
    np.testing.assert_array_equal(views.memberships(x, np.full(6, -1), 3), 0)
    np.testing.assert_array_equal(views.memberships(x, np.array([0, 1, 2, 0, 1, 2]), 3), np.tile(np.eye(3), (2, 1)))
    # fewer labelled cells than neighbours
    got = views.memberships(x, np.array([0, -1, -1, -1, -1, 1]), 2)
    np.testing.assert_array_equal(got[1:5], 0.5)


def test_label_cost():
    a, b = np.array([[1.0, 0], [0, 1], [0.5, 0.5]]), np.array([[1.0, 0], [0.2, 0.8]])
    cost = views.label_cost(a, np.array([True, True, False]), b, np.array([True, False]))
    # different and both known: 10; a guess on either side: at most 1
    np.testing.assert_allclose(cost, [[0, 0.8], [10, 0.2], [0.5, 0.5]])


def test_share_ratios():
    a, b = np.array([0.5, 0.25, 0.25, 0]), np.array([0.25, 0.25, 0, 0.5])
    of_a, of_b = views.share_ratios(a, b)
    # among the two labels that both sides have: 2/3 and 1/3 here, halves there
    np.testing.assert_allclose(of_a[:3], [0.75, 1.5, 0], atol=1e-7)
    np.testing.assert_allclose(of_b[[0, 1, 3]], [4 / 3, 2 / 3, 0], atol=1e-7)
    # what is missing here is plenty there; clipped at 1 by whoever uses it
    assert of_a[3] > 1e6
    assert of_b[2] > 1e6
    assert views.share_ratios(np.zeros(1), np.zeros(1)) == (1, 1)


def test_share_ratios_of_what_one_side_lacks():
    """Half of a has no partner; what is left is the same on both sides, and all of it is matched."""
    of_a, of_b = views.share_ratios(np.array([0.5, 0.3, 0.2]), np.array([0, 0.6, 0.4]))
    np.testing.assert_allclose(of_a, [0, 1, 1], atol=1e-7)
    np.testing.assert_allclose(of_b[1:], 1)


def test_a_label_may_hide_among_cells_without_one():
    """Where more than 5 % of the cells of the other side have no label, a label that it lacks may be among these."""
    a, b = np.array([0.5, 0.3, 0.2]), np.array([0, 0.6, 0.4])
    for gaps in ((0.0, 0.06), (0.5, 0.06)):
        for of in views.share_ratios(a, b, gaps):
            np.testing.assert_array_equal(of, 1)
    # gaps of the side that has all labels, or few of the other, hide nothing
    for gaps in ((0.5, 0.0), (0.0, 0.05)):
        np.testing.assert_allclose(views.share_ratios(a, b, gaps)[0], [0, 1, 1], atol=1e-7)


# --- canonical variates ------------------------------------------------------------------------------------------


def ridge_cca(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plain regularised CCA as a generalised eigenvalue problem: correlations and directions of both sides."""
    weight = weight / weight.sum()
    a, b = a - weight @ a, b - weight @ b
    caa, cbb, cab = (a.T * weight) @ a, (b.T * weight) @ b, (a.T * weight) @ b
    caa = caa + 0.05 * np.trace(caa) / len(caa) * np.eye(len(caa))
    cbb = cbb + 0.05 * np.trace(cbb) / len(cbb) * np.eye(len(cbb))
    squared, u = eigh(cab @ np.linalg.solve(cbb, cab.T), caa)
    rho, u = np.sqrt(np.maximum(squared[::-1], 0)), u[:, ::-1]
    k = min(len(caa), len(cbb))
    return rho[:k], u[:, :k], np.linalg.solve(cbb, cab.T @ u[:, :k]) / np.maximum(rho[:k], 1e-12)


@pytest.mark.parametrize("with_pairs", [False, True])
def test_canonical_is_the_cca_of_cells_and_anchors(with_pairs: bool):
    a, b, _ = two_views(200)
    order = np.random.default_rng(1).permutation(200)
    x = {"a": a[:150], "b": b[order[:120]]}
    rng = np.random.default_rng(2)
    anchors = {("a", "b"): b[:150] + rng.normal(size=(150, 5)), ("b", "a"): a[order[:120]] + rng.normal(size=(120, 7))}
    pairs = np.stack([order[:120], np.arange(120)], axis=1)[order[:120] < 150][:20] if with_pairs else None
    found = views.canonical(x, anchors, pairs)
    rows = [x["a"], anchors["b", "a"]], [anchors["a", "b"], x["b"]]
    weight = np.ones(270)
    if pairs is not None:
        rows[0].append(x["a"][pairs[:, 0]])
        rows[1].append(x["b"][pairs[:, 1]])
        weight = np.r_[weight, np.full(20, 20.0)]
    first, second = np.vstack(rows[0]), np.vstack(rows[1])
    rho, u, v = ridge_cca(first, second, weight)
    share = weight / weight.sum()
    # variates times their correlations, up to the sign of each
    expected_a, expected_b = (x["a"] - share @ first) @ u * rho, (x["b"] - share @ second) @ v * rho
    assert found["a"].shape == (150, 5)
    assert found["b"].shape == (120, 5)
    sign = np.sign((found["a"] * expected_a).sum(0))
    np.testing.assert_allclose(found["a"] * sign, expected_a, atol=1e-6)
    np.testing.assert_allclose(found["b"] * sign, expected_b, atol=1e-6)
    assert 0.3 < rho[0] < 1


@pytest.mark.parametrize("with_pairs", [False, True])
def test_canonical_of_many_cells_is_the_same_in_blocks(with_pairs: bool, monkeypatch: pytest.MonkeyPatch):
    a, b, _ = two_views(200)
    rng = np.random.default_rng(2)
    x, anchors = {"a": a[:150], "b": b[:120]}, {("a", "b"): rng.normal(size=(150, 5)), ("b", "a"): a[:120]}
    pairs = np.c_[np.arange(9), np.arange(9)] if with_pairs else None
    whole = views.canonical(x, anchors, pairs)
    monkeypatch.setattr(linear, "BLOCKED_FROM", 100)
    monkeypatch.setattr(linear, "BLOCK_ROWS", 32)
    for m, found in views.canonical(x, anchors, pairs).items():
        sign = np.sign((found * whole[m]).sum(0))
        np.testing.assert_allclose(found * sign, whole[m], atol=1e-9)


def test_canonical_from_some_of_the_cells():
    """Anchors of chosen cells only; variates of all."""
    a, b, _ = two_views(120)
    x = {"a": a, "b": b}
    rng = np.random.default_rng(2)
    rows = {"a": np.arange(0, 120, 3), "b": np.arange(7, 50)}
    anchors = {("a", "b"): rng.normal(size=(40, 5)), ("b", "a"): rng.normal(size=(43, 7))}
    found = views.canonical(x, anchors, rows=rows)
    alone = views.canonical({m: x[m][rows[m]] for m in x}, anchors)
    for m in x:
        assert len(found[m]) == 120
        np.testing.assert_allclose(found[m][rows[m]], alone[m], atol=1e-10)


def test_canonical_finds_what_is_common():
    """With the right anchors the leading variates are the shared directions, on both sides alike."""
    a, b, common = two_views()
    order = np.random.default_rng(1).permutation(400)
    x = {"a": a, "b": b[order]}
    found = views.canonical(x, {("a", "b"): b, ("b", "a"): a[order]})
    back = np.argsort(order)
    r = [np.corrcoef(found["a"][:, i], found["b"][back, i])[0, 1] for i in range(5)]
    assert min(r[:3]) > 0.85
    # what is not shared hardly shows: variates are scaled by their correlation
    assert found["a"][:, 3:].std() < 0.25 * found["a"][:, :3].std()
    design = np.c_[found["a"][:, :3], np.ones(400)]
    residual = common - design @ np.linalg.lstsq(design, common, rcond=None)[0]
    assert (residual.var(0) / common.var(0)).max() < 0.05


def test_known_pairs_outweigh_wrong_anchors():
    a, b, _ = two_views()
    rng = np.random.default_rng(1)
    order = rng.permutation(400)
    x = {"a": a, "b": b[order]}
    wrong = {("a", "b"): b[rng.permutation(400)], ("b", "a"): a[rng.permutation(400)]}
    back, test = np.argsort(order), np.arange(300, 400)

    def agreement(pairs: np.ndarray | None) -> float:
        found = views.canonical(x, wrong, pairs)
        return float(np.corrcoef(found["a"][test, 0], found["b"][back[test], 0])[0, 1])

    assert agreement(np.stack([np.arange(100), back[:100]], axis=1)) > 0.8
    assert agreement(np.stack([np.arange(100), back[:100]], axis=1)) > agreement(None) + 0.2


def test_canonical_is_narrow(monkeypatch: pytest.MonkeyPatch):
    a, b, _ = two_views()
    monkeypatch.setattr(views, "N_CANONICAL", 2)
    found = views.canonical({"a": a, "b": b}, {("a", "b"): b, ("b", "a"): a})
    assert {m: v.shape for m, v in found.items()} == {"a": (400, 2), "b": (400, 2)}


def test_canonical_of_a_flat_direction():
    """Axes without variance are not blown up."""
    a, b, _ = two_views()
    a = np.hstack([a, np.zeros((400, 2))])
    found = views.canonical({"a": a, "b": b}, {("a", "b"): b, ("b", "a"): a})
    assert np.isfinite(found["a"]).all()
    assert np.abs(found["a"]).max() < 10
