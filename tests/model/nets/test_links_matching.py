"""Matches of cells over links: a permuted copy is found again, what is filtered, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scmmgan.metrics import foscttm
from scmmgan.model.nets import links_matching as lm
from scmmgan.model.nets import methods
from scmmgan.model.problem import Known, Links, Modality, Problem

N = 150


def made(*, shuffled: bool = False) -> tuple[Problem, np.ndarray]:
    """150 cells twice, in another order; 6 linked features of 25 and 18. `shuffled`: links that say nothing."""
    rng = np.random.default_rng(0)
    latent = 2 * np.eye(5)[rng.integers(5, size=N)] + rng.normal(size=(N, 5)) * 0.6
    common, order = rng.normal(size=(5, 6)), rng.permutation(N)
    values = {m: latent @ np.hstack([common, rng.normal(size=(5, g))]) for m, g in (("a", 19), ("b", 12))}
    values = {m: (v + 0.2 * rng.normal(size=v.shape) + 9).astype(np.float32) for m, v in values.items()}
    values["b"][order] = values["b"].copy()
    if shuffled:
        values["b"][:, :6] = rng.permuted(values["b"][:, :6], axis=0)
    modalities = {
        m: Modality(m, v, np.array([f"{m}{i}" for i in range(N)], dtype=object), np.arange(v.shape[1]).astype(str))
        for m, v in values.items()
    }
    links = Links(np.arange(6), np.arange(6), np.ones(6), np.ones(6))
    return Problem(modalities, {("a", "b"): Known(("a", "b"), links)}), order


def fit(problem: Problem, seed: int = 0, *, weak: bool = False):
    return lm.fit(problem, {"random_state": seed, "options": {"weak_links": weak}})


def test_cells_find_their_partners():
    problem, order = made()
    fitted = fit(problem)
    z = fitted.embeddings
    assert foscttm(z["a"], z["b"][order]) < 0.05
    matches = fitted.info["matches_a"]
    right = matches["b"] == np.array([f"b{i}" for i in order])
    assert right[matches["pivot"]].mean() > 0.5
    # what is propagated is less sure
    assert right[matches["pivot"]].mean() > right[~matches["pivot"]].mean()
    assert matches["score"][matches["pivot"]].mean() > matches["score"][~matches["pivot"]].mean()
    assert fitted.info["pivots"] == N
    assert fitted.info["kept"] == matches["pivot"].sum() == 105  # less 30 %
    # mapped values are those of one measured cell
    mapped = fitted.model.decode(z["a"], "b", np.array([8, 2]))
    measured = problem.modalities["b"].values[:, [8, 2]]
    assert {tuple(row) for row in mapped} <= {tuple(row) for row in measured}
    assert np.corrcoef(mapped[:, 0], measured[order, 0])[0, 1] > 0.8


def test_rounds_make_the_matches_better(monkeypatch: pytest.MonkeyPatch):
    """Of all cells, and of the pivots: more are matched with themselves after three rounds than over links alone."""
    problem, order = made()
    rounds, right, pivots = [], [], []
    assigned = lm.assigned
    monkeypatch.setattr(lm, "assigned", lambda *of: rounds.append(len(of[0][0])) or assigned(*of))
    for n in (3, 0):
        monkeypatch.setattr(lm, "MATCHING_ROUNDS", (n, 1))
        found = fit(problem).info["matches_a"]
        same = found["b"] == np.array([f"b{i}" for i in order])
        right.append(same.mean())
        pivots.append(same[found["pivot"]].mean())
    assert rounds == [N] * (1 + 3 + 1)
    assert right[0] > right[1] + 0.05
    assert pivots[0] > 0.99 > 0.95 > pivots[1]


def test_weak_links(monkeypatch: pytest.MonkeyPatch):
    """Cells count less beside their cluster, matches are made again once, and half of them are left out."""
    problem, order = made()
    shares, rounds, smoothed, assigned = set(), [], lm.smoothed, lm.assigned
    monkeypatch.setattr(lm, "smoothed", lambda *of: shares.add(of[2]) or smoothed(*of))
    monkeypatch.setattr(lm, "assigned", lambda *of: rounds.append(1) or assigned(*of))
    fitted = fit(problem, weak=True)
    assert shares == {0.3}
    assert len(rounds) == 1 + 1
    assert fitted.info["kept"] == N // 2
    assert foscttm(fitted.embeddings["a"], fitted.embeddings["b"][order]) < 0.2


def test_links_that_say_nothing():
    problem, order = made(shuffled=True)
    z = fit(problem).embeddings
    assert foscttm(z["a"], z["b"][order]) > 0.25


def test_assignment_recovers_a_permutation():
    rng = np.random.default_rng(0)
    x, order = rng.normal(size=(60, 8)), rng.permutation(60)
    found = lm.assigned([x, 3 * x[order] + 2], [(np.arange(60), np.arange(60))])
    np.testing.assert_array_equal(order[found[1]], found[0])
    # of unequal sides each cell of the smaller one is matched, once
    found = lm.assigned([x[:20], x], [(np.arange(20), np.arange(60))])
    np.testing.assert_array_equal(*found)


def test_parts_hold_every_cell_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lm, "ASSIGNED_CELLS", 50)
    found = lm.parts(60, 170, 0)
    assert len(found) == 4
    assert max(len(of) for part in found for of in part) <= 50
    for side, n in enumerate((60, 170)):
        np.testing.assert_array_equal(np.sort(np.concatenate([part[side] for part in found])), np.arange(n))


def test_constant_links_are_left_out_on_both_sides():
    rng = np.random.default_rng(0)
    a, order = rng.normal(size=(40, 5)), rng.permutation(40)
    b = a[order].copy()
    cluster = {"a": np.arange(40), "b": np.arange(40)}
    linked = {"a": np.c_[a, 9 * rng.normal(size=40)], "b": np.c_[b, np.zeros(40)]}
    pivots = lm.first_pivots(linked, cluster, [(np.arange(40), np.arange(40))], 0.7)
    np.testing.assert_array_equal(order[pivots[1]], pivots[0])
    with pytest.raises(ValueError, match="two links that vary"):
        lm.first_pivots({"a": a * 0, "b": b}, cluster, [(np.arange(40), np.arange(40))], 0.7)


def test_smoothing_and_propagation_by_hand():
    x = np.array([[0.0], [2.0], [10.0]])
    np.testing.assert_allclose(lm.smoothed(x, np.array([0, 0, 1]), 0.7).ravel(), [0.3, 1.7, 10])
    np.testing.assert_allclose(lm.smoothed(x, np.array([0, 0, 1]), 0.3).ravel(), [0.7, 1.3, 10])
    np.testing.assert_array_equal(lm.propagated(x, np.array([2, 0]), np.array([7, 5])), [5, 5, 7])


def test_labels_are_the_clusters():
    labels = np.array([0, 0, 1, -1, -1] * 8)
    found = lm._clusters(np.random.default_rng(0).normal(size=(40, 3)), labels, 0)
    assert len(set(found[labels == 0])) == 1
    assert not set(found[labels == 0]) & set(found[labels != 0])
    problem, order = made()
    kinds = {m: np.zeros(N, dtype=int) for m in "ab"}
    known = replace(problem.known["a", "b"], labels=kinds)
    z = fit(replace(problem, known={("a", "b"): known}, label_names=["x"])).embeddings
    assert foscttm(z["a"], z["b"][order]) < 0.1


def test_same_bits_and_no_use_of_the_order_of_rows():
    problem, order = made()
    first, second = fit(problem), fit(problem)
    np.testing.assert_array_equal(first.embeddings["a"], second.embeddings["a"])
    b = problem.modalities["b"]
    in_order = replace(problem, modalities={**problem.modalities, "b": replace(b, values=b.values[order])})
    z = fit(in_order).embeddings
    assert foscttm(z["a"], z["b"]) == pytest.approx(
        foscttm(first.embeddings["a"], first.embeddings["b"][order]), abs=0.02
    )


def test_what_it_needs_and_refuses():
    problem, _ = made()
    with pytest.raises(ValueError, match="`method='links-matching'` needs links"):
        fit(replace(problem, known={("a", "b"): Known(("a", "b"))}))
    plain = {argument: without[0] for argument, without in methods.OPTIONAL.items()}
    methods.check_arguments("links-matching", plain | {"links": "gene", "labels": "x"}, ["a", "b"])
    for argument, value in (("pairs", "obs_names"), ("hidden", 64)):
        with pytest.raises(ValueError, match=f"cannot use `{argument}`"):
            methods.check_arguments("links-matching", plain | {argument: value}, ["a", "b"])
