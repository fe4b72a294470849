"""The joint embedding's metric: directions count by what of them comes back from the other modalities."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from scmmgan.metrics import foscttm
from scmmgan.model import methods
from scmmgan.model.coupling import Coupling, couple_known
from scmmgan.model.embedding import stretches
from scmmgan.model.landmarks import Landmarks, find_landmarks


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


def test_against_the_equation():
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(40, 3)) * [3, 2, 1], "b": rng.normal(size=(30, 4))}
    labels = {"a": rng.permutation(np.arange(40) % 8), "b": rng.permutation(np.arange(30) % 6)}
    plans = {("a", "b"): rng.dirichlet(np.ones(6), 40), ("b", "a"): rng.dirichlet(np.ones(8), 30)}
    couplings = {(s, t): hand_made(plan, x[t], labels[t]) for (s, t), plan in plans.items()}

    cells = x["a"] - x["a"].mean(0)
    landmarks = np.array([cells[labels["a"] == i].mean(0) for i in range(8)])
    met = plans["b", "a"] @ landmarks
    back = plans["a", "b"] @ np.array([met[labels["b"] == i].mean(0) for i in range(6)])
    common = cells.T @ back / 40
    variance = np.cov(cells.T, bias=True)
    variance += 0.1 * np.trace(variance) / 3 * np.eye(3)
    # in whitened coordinates z = x R the stretch is the root of the clipped share
    values, vectors = np.linalg.eigh(variance)
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    share, axes = np.linalg.eigh(whiten @ (common + common.T) / 2 @ whiten)
    root = (axes * np.sqrt(np.clip(share, 0.02, 1))) @ axes.T
    np.testing.assert_allclose(stretches(x, couplings)["a"], whiten @ root @ np.linalg.inv(whiten), atol=1e-6)


def test_own_directions_count_less_than_common_ones():
    x, linked, _ = shared_and_private(600)
    found = stretches(x, couple_known(x, linked))
    for m in "ab":
        kept = (x[m] @ found[m]).std(0) / x[m].std(0)
        assert kept[:3].min() > 0.8
        assert kept[3:].max() < 0.35


def test_partners_are_found_among_private_variation():
    x, linked, partner = shared_and_private(400)
    couplings = couple_known(x, linked)
    settings = {"max_steps": 1, "batch_size": 64, "lr": 1e-3, "geometry": None, "cycle_as_real": False}
    aligner, _ = methods.fit(
        "coupling", x, couplings, {}, shared=False, weights={}, random_state=0, device="cpu", progress_bar=False,
        **settings,
    )  # fmt: skip
    z = {m: aligner.embed(x[m], m) for m in "ab"}
    plain = {m: np.hstack([aligner.translate(x[m], m, o) for o in "ab"]) for m in "ab"}
    assert foscttm(z["a"], z["b"][partner]) < 0.75 * foscttm(plain["a"], plain["b"][partner])


def test_what_comes_back_whole_loses_the_ridge_alone():
    cells = np.random.default_rng(0).normal(size=(50, 3)) * [3, 2, 1]
    couplings = {pair: hand_made(np.eye(50), cells, np.arange(50)) for pair in (("a", "b"), ("b", "a"))}
    variance, axes = np.linalg.eigh(np.cov(cells.T, bias=True))
    expected = (axes * np.sqrt(variance / (variance + 0.1 * variance.mean()))) @ axes.T
    np.testing.assert_allclose(stretches({"a": cells, "b": cells}, couplings)["a"], expected, atol=1e-6)


def test_chance_returns_nothing_and_stays_invertible():
    rng = np.random.default_rng(0)
    x = {m: rng.normal(size=(300, 6)) for m in "ab"}
    marks = {m: find_landmarks(v) for m, v in x.items()}
    plan = {m: np.full((300, len(marks[m].mass)), 1 / len(marks[m].mass)) for m in "ab"}
    couplings = {(s, t): Coupling(sp.csr_matrix(plan[t]), x[t], marks[t]) for s, t in (("a", "b"), ("b", "a"))}
    for m, stretch in stretches(x, couplings).items():
        # all directions alike, none lost
        np.testing.assert_allclose(np.linalg.svd(stretch)[1], np.sqrt(0.02), rtol=0.1)
        np.testing.assert_allclose(x[m] @ stretch @ np.linalg.inv(stretch), x[m], atol=1e-5)


def test_constant_dimensions():
    x, linked, _ = shared_and_private(200)
    x = {m: np.hstack([v, np.zeros((200, 1), np.float32)]) for m, v in x.items()}
    found = stretches(x, couple_known(x, linked))
    assert all(np.isfinite(v).all() and np.linalg.cond(v) < 1e3 for v in found.values())


def test_several_partners_count_alike():
    x, linked, _ = shared_and_private(300)
    three = {**x, "c": x["b"].copy()}
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    also = {**linked, "c": linked["b"]}
    couplings = {}
    for s, t in pairs:
        couplings |= couple_known({s: three[s], t: three[t]}, {s: also[s], t: also[t]})
    one = {p: c for p, c in couplings.items() if set(p) == {"a", "b"}}
    # b and c are the same cells: what returns from both is what returns from one
    np.testing.assert_allclose(stretches(three, couplings)["a"], stretches(x, one)["a"], atol=1e-6)
