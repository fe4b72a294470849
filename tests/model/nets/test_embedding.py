"""The joint embedding's metric: axes count by their round-trip reliability."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from scmmgan.metrics import foscttm
from scmmgan.model.coupling.coupling import Coupling, couple_known
from scmmgan.model.coupling.landmarks import Landmarks, find_landmarks
from scmmgan.model.nets import methods
from scmmgan.model.nets.aligner import Aligner
from scmmgan.model.nets.embedding import round_trip_metrics


def hand_made(plan: np.ndarray, target: np.ndarray, labels: np.ndarray) -> Coupling:
    """A coupling with this plan, on landmarks of these clusters of the target."""
    n, m = len(labels), labels.max() + 1
    centroids = np.array([target[labels == i].mean(0) for i in range(m)])
    marks = Landmarks(labels, np.bincount(labels) / n, np.arange(m), centroids)
    return Coupling(sp.csr_matrix(plan), plan @ centroids, marks)


def shared_and_private(n: int, seed: int = 0) -> tuple[dict, dict, np.ndarray]:
    """Cells whose first three dimensions are common and whose last five are each modality's own; row i is cell i of both."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 3))
    x = {m: np.hstack([common + 0.2 * rng.normal(size=(n, 3)), rng.normal(size=(n, 5))]) for m in "ab"}
    linked = {m: v[:, :3] @ np.random.default_rng(1).normal(size=(3, 12)) for m, v in x.items()}
    linked = {m: (v - v.mean(0)) / v.std(0) for m, v in linked.items()}
    order = rng.permutation(n)
    x = {"a": x["a"].astype(np.float32), "b": x["b"][order].astype(np.float32)}
    return x, {"a": linked["a"], "b": linked["b"][order]}, np.argsort(order)


def coupled(x: dict, linked: dict, n_landmarks: int = 300) -> dict:
    return couple_known(x, {m: find_landmarks(v, n_landmarks=n_landmarks) for m, v in x.items()}, linked)


def as_coupled(x: dict, linked: dict) -> Aligner:
    """The coupling from these links as a map."""
    return methods.fit(
        "coupling", x, coupled(x, linked), {}, shared=(), weights={}, max_steps=1, batch_size=64, lr=1e-3,
        geometry=None, cycle_as_real=False, random_state=0, device="cpu", progress_bar=False,
    )[0]  # fmt: skip


def test_against_the_equation():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(40, 3))
    x = {"a": latent @ rng.normal(size=(3, 3)), "b": np.hstack([latent[:30], rng.normal(size=(30, 1))])}
    labels = {"a": rng.permutation(np.arange(40) % 20), "b": rng.permutation(np.arange(30) % 15)}
    # plans that heed the first dimension of the latent space, the second less, the third not at all
    seen = {"a": latent * [3, 0.7, 0], "b": latent[:30] * [3, 0.7, 0]}
    plans = {}
    for s, t in (("a", "b"), ("b", "a")):
        goals = np.array([seen[t][labels[t] == i].mean(0) for i in range(labels[t].max() + 1)])
        kernel = np.exp(-2 * ((seen[s][:, None] - goals) ** 2).sum(2))
        plans[s, t] = kernel / kernel.sum(1, keepdims=True)
    couplings = {(s, t): hand_made(plan, x[t], labels[t]) for (s, t), plan in plans.items()}

    cells = x["a"] - x["a"].mean(0)
    landmarks = np.array([cells[labels["a"] == i].mean(0) for i in range(20)])
    met = plans["b", "a"] @ landmarks
    back = plans["a", "b"] @ np.array([met[labels["b"] == i].mean(0) for i in range(15)])
    common = cells.T @ back / 40
    assert np.abs(common - common.T).max() > 0.02 * np.abs(common).max()  # or its symmetric part would not matter
    variance = np.cov(cells.T, bias=True)
    variance += 0.1 * np.trace(variance) / 3 * np.eye(3)
    # in whitened coordinates z = x R the map is the root of the clipped share
    values, vectors = np.linalg.eigh(variance)
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    share, axes = np.linalg.eigh(whiten @ (common + common.T) / 2 @ whiten)
    assert share[2] > 0.4
    assert 0.02 < share[1] < 0.3
    root = (axes * np.sqrt(np.clip(share, 0.02, 1))) @ axes.T
    np.testing.assert_allclose(round_trip_metrics(x, couplings)["a"], whiten @ root @ np.linalg.inv(whiten), atol=1e-6)


def test_no_axis_is_made_longer():
    # whoever is on one side comes back as the farthest cells of that side: more than left
    cells = np.r_[np.full(48, -1.0), np.full(48, 1.0), [-10, -10, 10, 10]][:, None]
    labels = np.r_[np.repeat([0, 1], 48), [2, 2, 3, 3]]
    far = np.eye(4)[np.where(cells[:, 0] < 0, 2, 3)]
    couplings = {pair: hand_made(far, cells, labels) for pair in (("a", "b"), ("b", "a"))}
    for metric in round_trip_metrics({"a": cells, "b": cells}, couplings).values():
        np.testing.assert_allclose(metric, 1, atol=1e-6)


def test_own_axes_count_less_than_common_ones():
    x, linked, _ = shared_and_private(600)
    found = round_trip_metrics(x, coupled(x, linked))
    for m in "ab":
        kept = (x[m] @ found[m]).std(0) / x[m].std(0)
        assert kept[:3].min() > 0.8
        assert kept[3:].max() < 0.35


def test_partners_are_found_among_private_variation():
    x, linked, partner = shared_and_private(400)
    aligner = as_coupled(x, linked)
    z = {m: aligner.embed(x[m], m) for m in "ab"}
    plain = {m: np.hstack([aligner.translate(x[m], m, o) / x[o].std() for o in "ab"]) for m in "ab"}
    assert foscttm(z["a"], z["b"][partner]) < 0.75 * foscttm(plain["a"], plain["b"][partner])


def test_what_returns_whole_is_shrunk_by_the_ridge_alone():
    cells = np.random.default_rng(0).normal(size=(50, 3)) * [3, 2, 1]
    couplings = {pair: hand_made(np.eye(50), cells, np.arange(50)) for pair in (("a", "b"), ("b", "a"))}
    variance, axes = np.linalg.eigh(np.cov(cells.T, bias=True))
    expected = (axes * np.sqrt(variance / (variance + 0.1 * variance.mean()))) @ axes.T
    np.testing.assert_allclose(round_trip_metrics({"a": cells, "b": cells}, couplings)["a"], expected, atol=1e-6)


def test_chance_returns_nothing_and_stays_invertible():
    rng = np.random.default_rng(0)
    x = {m: rng.normal(size=(300, 6)) for m in "ab"}
    marks = {m: find_landmarks(v) for m, v in x.items()}
    plan = {m: np.full((300, len(marks[m].mass)), 1 / len(marks[m].mass)) for m in "ab"}
    couplings = {(s, t): Coupling(sp.csr_matrix(plan[t]), x[t], marks[t]) for s, t in (("a", "b"), ("b", "a"))}
    for m, metric in round_trip_metrics(x, couplings).items():
        # all axes alike, none left out
        np.testing.assert_allclose(np.linalg.svd(metric)[1], np.sqrt(0.02), rtol=0.1)
        np.testing.assert_allclose(x[m] @ metric @ np.linalg.inv(metric), x[m], atol=1e-5)


def test_constant_dimensions():
    x, linked, _ = shared_and_private(200)
    x = {m: np.hstack([v, np.zeros((200, 1), np.float32)]) for m, v in x.items()}
    found = round_trip_metrics(x, coupled(x, linked))
    assert all(np.isfinite(v).all() and np.linalg.cond(v) < 1e3 for v in found.values())


def test_several_partners_count_alike():
    x, linked, _ = shared_and_private(600)
    # the third modality shares the private dimensions of the first, and nothing else
    c = x["a"][:, 3:] @ np.random.default_rng(2).normal(size=(5, 6)).astype(np.float32)
    three = {**x, "c": c}
    private = x["a"][:, 3:] @ np.random.default_rng(3).normal(size=(5, 12))
    private = dict.fromkeys("ac", (private - private.mean(0)) / private.std(0))
    # landmarks of five cells: of two, a good part of what returns of a cell is the cell itself
    couplings = coupled({m: three[m] for m in "ab"}, linked, 120) | coupled({m: three[m] for m in "ac"}, private, 120)
    kept = {}
    for others in ("b", "c", "bc"):
        among = {p: found for p, found in couplings.items() if set(p) <= {"a", *others}}
        found = round_trip_metrics({m: three[m] for m in ("a", *others)}, among)["a"]
        kept[others] = (x["a"] @ found).std(0) / x["a"].std(0)
    for other, known, rest in (("b", slice(3), slice(3, 8)), ("c", slice(3, 8), slice(3))):
        # correlations do not see how far out a cell lies: not all of an axis returns
        assert kept[other][known].min() > 0.65
        assert kept[other][rest].max() < 0.35
    np.testing.assert_allclose(kept["bc"] ** 2, (kept["b"] ** 2 + kept["c"] ** 2) / 2, atol=0.08)


def test_no_variance_at_all():
    cells = np.ones((40, 2))
    couplings = {pair: hand_made(np.eye(40), cells, np.arange(40)) for pair in (("a", "b"), ("b", "a"))}
    assert all(np.isfinite(v).all() for v in round_trip_metrics({"a": cells, "b": cells}, couplings).values())


def test_one_way_alone_weighs_nothing():
    x, linked, _ = shared_and_private(200)
    couplings = coupled(x, linked)
    assert round_trip_metrics(x, {("a", "b"): couplings["a", "b"]}) == {}


def test_a_collapsed_map_is_seen():
    x, linked, partner = shared_and_private(300)
    aligner = as_coupled(x, linked)
    sound = {m: aligner.embed(x[m], m) for m in "ab"}
    translate = aligner.translate
    aligner.translate = lambda v, s, t: translate(v, s, t) if s == t else np.zeros((len(v), 8), np.float32)
    z = {m: aligner.embed(x[m], m) for m in "ab"}
    assert z["a"][:, 8:].std(0).max() == 0
    assert foscttm(sound["a"], sound["b"][partner]) < 0.1
    assert foscttm(z["a"], z["b"][partner]) > 0.35
