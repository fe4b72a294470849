"""Neighbour graphs on denoised components, inside pure labels and batches; and the values that they smooth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.defaults import MIN_LABEL_PURITY
from scmmgan.model.problem import Modality
from scmmgan.model.space import graphs
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.graphs import graph_scores, graph_space, label_purity, neighbor_graphs, shrinkage, smoothed
from scmmgan.model.space.pca import Projection
from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix

FORMATS = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}


def operators_of(*args: Any, **how: Any) -> tuple[list[sp.csr_matrix], np.ndarray | None]:
    graphs, purity = neighbor_graphs(*args, **how)
    return [graph.operator for graph in graphs], purity


def denoised(scores: np.ndarray, n_features: int) -> np.ndarray:
    return (scores * shrinkage(scores, n_features)).astype(np.float32)


def modality(x: np.ndarray | sp.csr_matrix, **given: object) -> Modality:
    n, g = x.shape
    return Modality("a", x, np.arange(n), np.arange(g), **given)  # type: ignore[arg-type]


def planted(n: int, g: int, strengths: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signal (n × g) of chosen singular values over √n, and the same under noise of variance 1."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(n, len(strengths))))[0] * np.sqrt(n)
    right = np.linalg.qr(rng.normal(size=(g, len(strengths))))[0]
    signal = (left * strengths) @ right.T
    return signal, signal + rng.normal(size=(n, g))


def components(x: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return left[:, :p] * values[:p], right[:p]


def without_signs(scores: np.ndarray) -> np.ndarray:
    """Each component turned so that its largest score is positive."""
    return scores * np.sign(np.take_along_axis(scores, np.abs(scores).argmax(0)[None], 0))


# --- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("allowed", [None, np.arange(3, 33)])
def test_scores_are_principal_components_of_z_scores(kind: str, allowed: np.ndarray | None):
    _, seen = planted(200, 40, [5.0, 4.0, 3.0, 2.0])
    seen = (seen * np.exp(np.random.default_rng(1).normal(size=40))).astype(np.float32)
    got = graph_scores(FORMATS[kind](seen), allowed, n_pcs=4, denoise=False)
    x = seen[:, slice(None) if allowed is None else allowed].astype(np.float64)
    expected = components((x - x.mean(0)) / x.std(0), 4)[0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(without_signs(got), without_signs(expected), atol=1e-3)
    # each shrunk by its share of noise
    fine = graph_scores(FORMATS[kind](seen), allowed, n_pcs=4)
    np.testing.assert_allclose(without_signs(fine), without_signs(denoised(expected, x.shape[1])), atol=1e-3)
    assert np.abs(fine).sum() < np.abs(got).sum()


@pytest.mark.parametrize("kind", FORMATS)
def test_scores_with_a_tolerance_are_close_to_exact_ones(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Signal is there to the third digit, distances between cells with it."""
    _, seen = planted(250, 600, [6.0, 5.0, 4.0, 3.0])
    x = FORMATS[kind](seen.astype(np.float32))
    exact, near = (graph_scores(x, n_pcs=20, tolerance=t) for t in (0.0, 1e-3))
    # of noise nothing is left in either
    assert (exact.std(0) > 0).sum() == (near.std(0) > 0).sum() == 4
    np.testing.assert_allclose(near, exact, atol=2e-2 * exact.std())
    # of noise they hold as much
    held = [(graph_scores(x, n_pcs=20, denoise=False, tolerance=t)[:, 4:] ** 2).sum() for t in (0.0, 1e-3)]
    assert held[1] > 0.99 * held[0]
    asked = []
    monkeypatch.setattr(graphs, "principal_axes", lambda *a, tolerance: asked.append(tolerance) or np.eye(1, 600))
    graph_scores(x, tolerance=1e-3)
    graph_scores(x)
    assert asked == [1e-3, 0.0]


@pytest.mark.parametrize("kind", FORMATS)
def test_features_that_do_not_vary_are_none(kind: str):
    """Neither noise nor signal is in them."""
    _, seen = planted(200, 120, [4.0, 3.0])
    wide = np.hstack([np.full((200, 80), 3.0), seen]).astype(np.float32)
    got, expected = (without_signs(graph_scores(FORMATS[kind](v))) for v in (wide, wide[:, 80:]))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_array_equal(graph_scores(FORMATS[kind](wide), np.arange(80)), np.zeros((200, 1)))


def test_number_of_components():
    _, seen = planted(60, 80, [3.0, 2.0])
    assert graph_scores(seen, n_pcs=7).shape == (60, 7)
    assert graph_scores(seen).shape == (60, 50)
    # one less than the cells, no more than the features
    assert graph_scores(seen[:30]).shape == (30, 29)
    assert graph_scores(seen[:, :20]).shape == (60, 20)


def test_of_many_features_the_most_dispersed_enter():
    rng = np.random.default_rng(0)
    x = 3 + rng.normal(size=(80, 4)) @ rng.normal(size=(4, 2_300)) + 0.3 * rng.normal(size=(80, 2_300))
    x = x.astype(np.float32)
    top = np.sort(np.argsort(-x.var(0) / np.abs(x.mean(0)), kind="stable")[:2_000])
    np.testing.assert_allclose(graph_scores(x, n_pcs=5), graph_scores(x[:, top], n_pcs=5), atol=1e-3)


def test_the_projection_gives_the_same_scores():
    _, seen = planted(200, 300, [5.0, 4.0, 3.0])
    for kind in FORMATS.values():
        projection, scores = graph_space(kind(seen), np.arange(3, 280), n_pcs=20)
        np.testing.assert_allclose(projection.scores(kind(seen)), scores, atol=1e-4)
        # other cells, and the features in another order
        weight, offset = projection.onto(np.arange(300)[::-1])
        np.testing.assert_allclose(kind(seen[:5, ::-1]) @ weight + offset, scores[:5], atol=1e-4)
        again = Projection.from_state(projection.state())
        np.testing.assert_array_equal(again.scores(seen), projection.scores(seen))


# --- denoised ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "g"), [(600, 200), (200, 600)])
def test_denoised_components_are_nearest_to_the_signal(n: int, g: int):
    """Each component keeps the share of itself that is signal, as projecting the truth on it would find it."""
    strengths = [6.0, 4.0, 3.0]
    signal, seen = planted(n, g, strengths)
    scores, axes = components(seen, 20)
    # in units in which the mean feature varies by 1
    unit = np.sqrt(g / float((seen - seen.mean(0)).var(0).sum()))
    got = denoised((scores * unit).astype(np.float32), g) / unit
    kept = (got * scores).sum(0) / (scores**2).sum(0)
    truth = ((signal @ axes.T) * scores).sum(0) / (scores**2).sum(0)
    np.testing.assert_allclose(kept[:3], truth[:3], atol=0.03)
    assert kept[3:].max() < 0.1
    error = [np.linalg.norm(s @ axes - signal) for s in (got, scores)]
    assert error[0] < 0.6 * error[1]


def test_denoised_is_the_formula():
    """The optimal shrinkage of singular values for the Frobenius norm (Gavish and Donoho 2017), in plain loops."""
    n, g = 300, 120
    rng = np.random.default_rng(0)
    variances = np.array([20.0, 8.0, 4.0, 1.5, 1.2, 0.9])
    scores = rng.normal(size=(n, 6))
    scores *= np.sqrt(variances / (scores**2).mean(0))
    # components that rise above the noise, which is what all others vary by
    above = 6
    for _ in range(10):
        noise = (g - variances[:above].sum()) / (g - above)
        above = sum(v > noise * (1 + np.sqrt(g / n)) ** 2 for v in variances)
    assert above == 3
    got, beta = denoised(scores, g), g / n
    for i, v in enumerate(variances):
        y = np.sqrt(v / noise)
        expected = np.sqrt((y**2 - beta - 1) ** 2 - 4 * beta) / y if i < above else 0.0
        np.testing.assert_allclose(got[:, i], scores[:, i] * expected / y, atol=1e-5)


def test_denoised_needs_noise_and_signal_to_know_them_apart():
    _, seen = planted(300, 100, [])
    scores = components(seen, 20)[0].astype(np.float32)
    np.testing.assert_array_equal(denoised(scores, 100), scores)
    # no features beside the components: nothing says what the noise is
    _, seen = planted(300, 20, [5.0, 4.0])
    scores = components(seen, 20)[0].astype(np.float32)
    np.testing.assert_array_equal(denoised(scores, 20), scores)


def test_components_below_the_noise_are_nothing():
    """Also one of hardly any variance, for which the formula alone would give a number."""
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(500, 4)) * np.array([8.0, 5.0, 1.0, 0.05])).astype(np.float32)
    got = denoised(scores, 400)
    assert np.all(got[:, 2:] == 0)
    assert np.abs(got[:, :2]).max() > 1


# --- graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_graphs_are_those_of_denoised_components(kind: str):
    _, seen = planted(200, 100, [4.0, 3.0, 2.0])
    x = seen.astype(np.float32)
    (got,), purity = operators_of(modality(FORMATS[kind](x), allowed=np.arange(60)))
    assert purity is None
    expected = smoothing_operator(graph_scores(x[:, :60])).toarray()
    np.testing.assert_allclose(got.toarray(), expected, atol=1e-4)
    (plain,), _ = operators_of(modality(FORMATS[kind](x), allowed=np.arange(60)), denoise=False)
    blunt = smoothing_operator(graph_scores(x[:, :60], denoise=False)).toarray()
    np.testing.assert_allclose(plain.toarray(), blunt, atol=1e-4)
    assert np.abs(expected - blunt).max() > 0.05


def test_features_that_may_not_enter_do_not_choose_neighbours():
    _, seen = planted(150, 80, [4.0, 3.0, 2.0])
    x = seen.astype(np.float32)
    (expected,), _ = operators_of(modality(x[:, :40]))
    x[:, 40:] = np.random.default_rng(0).normal(scale=100, size=(150, 40))
    (masked,), _ = operators_of(modality(x, allowed=np.arange(40)))
    (every,), _ = operators_of(modality(x))
    np.testing.assert_allclose(masked.toarray(), expected.toarray(), atol=1e-4)
    assert np.abs(every - expected).max() > 0.05


def test_denoised_graphs_find_the_nearer_neighbours():
    signal, seen = planted(400, 300, [3.0, 2.5, 2.0, 2.0])
    x = seen.astype(np.float32)
    (fine,), _ = operators_of(modality(x))
    (plain,), _ = operators_of(modality(x), denoise=False)
    error = [np.linalg.norm(operator @ seen - signal) for operator in (plain, fine)]
    assert error[1] < 0.92 * error[0]


def test_smoothing_restores_dropouts():
    rng = np.random.default_rng(0)
    rate = np.exp(2 * np.sin(np.outer(rng.random(400) * 4, np.ones(60)) + rng.random(60) * 6))
    truth, x = np.log1p(rate), np.log1p(rng.poisson(rate) * (rng.random(rate.shape) < 0.5)).astype(np.float32)
    of = modality(x)
    operators, _ = operators_of(of)
    r = {}
    for steps in (0, 1, 3):
        s = smoothed(of, operators, steps).columns(np.arange(60))
        r[steps] = np.mean([np.corrcoef(truth[:, i], s[:, i])[0, 1] for i in range(60)])
    assert r[0] < 0.7
    assert r[1] > 0.8
    assert r[3] > 0.85


@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_values_are_smoothed_by_the_operators_of_their_batch(kind: str, steps: int):
    _, seen = planted(90, 30, [4.0, 3.0])
    x = seen.astype(np.float32)
    batches = (np.arange(0, 90, 2), np.arange(1, 90, 2))
    of = modality(FORMATS[kind](x), batches=batches)
    operators, _ = operators_of(of)
    assert [op.shape for op in operators] == [(45, 45)] * 2
    for rows, op in zip(batches, operators):
        np.testing.assert_allclose(op.toarray(), smoothing_operator(graph_scores(x[rows])).toarray(), atol=1e-4)
    found = smoothed(of, operators, steps)
    assert isinstance(found, BatchedMatrix)
    assert [part.steps for part in found.parts] == [steps] * 2
    for rows, op, part in zip(batches, operators, found.parts):
        expected = np.linalg.matrix_power(op.toarray().astype(np.float64), steps) @ x[rows]
        np.testing.assert_allclose(part.columns(np.arange(30)), expected, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(found.rows), np.concatenate(batches))
    one = replace(of, batches=None)
    operators, _ = operators_of(one)
    whole = smoothed(one, operators, steps)
    assert isinstance(whole, SmoothedMatrix)
    expected = np.linalg.matrix_power(operators[0].toarray().astype(np.float64), steps) @ x
    np.testing.assert_allclose(whole.columns(np.arange(30)), expected, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("batches", [False, True])
def test_neighbours_are_looked_for_inside_pure_labels(sparse: bool, batches: bool):
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1, 2], 60)
    x = (rng.normal(size=(180, 30)) + 3 * np.eye(3)[labels][:, np.arange(30) // 10]).astype(np.float32)
    halves = np.arange(180) % 2
    rows = tuple(np.flatnonzero(halves == i) for i in range(2)) if batches else None
    of = modality(sp.csr_matrix(x) if sparse else x, batches=rows)
    # six cells of 0 look like the label 1; 3, 4 and 5 share the cells of 2 at random
    given = np.where(labels == 2, rng.integers(3, 6, 180), labels)
    given[np.flatnonzero(labels == 0)[:6]] = 1
    operators, purity = operators_of(of, given)
    assert purity is not None
    assert (purity[:2] > 0.7).all()
    assert (purity[3:] < 0.5).all()
    for operator, at in zip(operators, rows or [np.arange(180)], strict=True):
        links = operator.toarray() > 0
        assert not links[np.ix_(given[at] == 0, given[at] == 1)].any()
        assert links[np.ix_(given[at] == 3, given[at] == 4)].any()
    # labels at random change nothing
    blind, none = operators_of(of)
    assert none is None
    foreign, purity = operators_of(of, rng.permutation(labels))
    assert (purity < 0.2).all()
    for first, second in zip(blind, foreign, strict=True):
        np.testing.assert_array_equal(first.toarray(), second.toarray())


# --- purity of labels --------------------------------------------------------------------------------------------


def test_purity_is_the_share_of_own_neighbours_above_chance():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 4], [200, 60, 20, 1])
    x = rng.normal(size=(281, 4)) + 20 * np.eye(5, 4)[labels]
    found = label_purity([x], [labels])
    np.testing.assert_allclose(found, [1, 1, 1, np.nan, np.nan])
    assert np.abs(label_purity([x], [rng.permutation(labels)])[:3]).max() < 0.15
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    np.fill_diagonal(d, np.inf)
    strays = labels.copy()
    strays[:30] = 1
    shares = [(strays[d[i].argsort()[:15]] == 1).mean() for i in np.flatnonzero(strays == 1)]
    expected = (np.mean(shares) - 89 / 280) / (1 - 89 / 280)
    assert label_purity([x], [strays])[1] == pytest.approx(expected)


@pytest.mark.parametrize(("labels", "cells"), [(2, 6), (3, 5), (10, 3), (30, 2), (3, 7)])
def test_purity_is_one_for_few_cells_that_are_apart(labels: int, cells: int):
    codes = np.repeat(np.arange(labels), cells)
    x = 100 * np.eye(labels)[codes] + np.random.default_rng(0).normal(size=(len(codes), labels))
    np.testing.assert_allclose(label_purity([x], [codes]), np.ones(labels))


def test_a_population_split_at_random_is_not_pure():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        kind = np.repeat(np.arange(10), 40)
        x = rng.normal(size=(400, 5)) + 20 * rng.normal(size=(10, 5))[kind]
        labels = np.where(kind == 0, 10 + rng.integers(0, 3, 400), kind)
        found = label_purity([x], [labels])
        assert (found[10:] < MIN_LABEL_PURITY).all()
        assert (found[1:10] > MIN_LABEL_PURITY).all()


def test_purity_over_batches_and_gaps(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 50)
    x = rng.normal(size=(150, 3)) + 20 * np.eye(3)[labels]
    # one batch has one label, one has none: neither says anything
    spaces, of = [x[:100], x[100:], x], [labels[:100], labels[100:], np.full(150, -1)]
    np.testing.assert_allclose(label_purity(spaces, of), [1, 1, np.nan])
    gaps = np.where(rng.random(150) < 0.5, labels, -1)
    np.testing.assert_allclose(label_purity([x], [gaps]), 1)
    # of many cells some are enough
    monkeypatch.setattr(graphs, "LABEL_PURITY_CELLS", 40)
    np.testing.assert_allclose(label_purity([x], [labels]), 1)
