"""Uncertainty on arrays: against sums over all cells in float64, planted features; generators that take noise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scmmgan.model.coupling import coupling
from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.evidence import uncertainty
from scmmgan.model.nets import methods
from scmmgan.model.nets.aligner import Aligner
from scmmgan.model.nets.networks import Generator, NoisyGenerator
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.graphs import graph_scores
from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix


def operator(x: np.ndarray | sp.csr_matrix) -> sp.csr_matrix:
    return smoothing_operator(graph_scores(x))


def problem(n: int = 90, m: int = 12, g: int = 40, seed: int = 0):
    """A sparse plan, matched shares, landmark labels and target values far from zero."""
    rng = np.random.default_rng(seed)
    label = np.r_[np.arange(m), rng.integers(m, size=100 - m)]
    y = 100 + rng.normal(size=(m, g))[label] + rng.normal(size=(100, g)) * rng.random(g)
    plan = rng.random((n, m)) * (rng.random((n, m)) < 0.4) + 1e-3 * np.eye(n, m)
    plan[:, 0] += 1e-2
    plan /= plan.sum(1, keepdims=True)
    return sp.csr_matrix(plan), rng.random(n), label, y


def by_hand(plan: sp.csr_matrix, label: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Conditional variance, source cells × features: over target cells, each with its landmark's share."""
    size = np.bincount(label)
    cells = plan.toarray()[:, label] / size[label]
    mean = cells @ y
    return np.stack([cells[a] @ (y - mean[a]) ** 2 for a in range(len(cells))])


# --- the coupling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "sparse", "batched"])
def test_moments_of_landmarks(kind: str):
    rng = np.random.default_rng(0)
    raw = rng.poisson(1.0, (120, 300)).astype(np.float32)
    label = np.r_[np.arange(9), rng.integers(9, size=111)]
    x = raw if kind == "dense" else sp.csr_matrix(raw)
    if kind == "batched":
        rows = [np.arange(0, 120, 2), np.arange(1, 120, 2)]
        smoothed = BatchedMatrix([SmoothedMatrix(x[r], operator(x[r]), 2) for r in rows], rows)
    else:
        smoothed = SmoothedMatrix(x, operator(x), 2)
    mean, variance = uncertainty.landmark_moments(smoothed, label)
    y = smoothed.columns(np.arange(300)).astype(np.float64)
    for b in range(9):
        np.testing.assert_allclose(mean[b], y[label == b].mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance[b], y[label == b].var(0), rtol=1e-4, atol=1e-6)


def test_scores_against_all_cells():
    plan, weight, label, y = problem()
    mean, variance = uncertainty.landmark_moments(SmoothedMatrix(y.astype(np.float32)), label)
    score, total = uncertainty.explained(plan, weight, mean, variance)
    conditional = by_hand(plan, label, y.astype(np.float32).astype(np.float64))
    share = weight / weight.sum()
    population = (share @ plan.toarray())[label] / np.bincount(label)[label]
    expected_total = population @ (y - population @ y) ** 2
    np.testing.assert_allclose(total, expected_total, rtol=1e-4)
    np.testing.assert_allclose(score, share @ conditional / expected_total, rtol=1e-4)
    assert 0 < score.min() < score.max() < 1
    kept = np.arange(40) % 3 > 0
    cells = uncertainty.cells(plan, mean, variance, total, kept)
    np.testing.assert_allclose(cells, (conditional / expected_total)[:, kept].mean(1), rtol=1e-3)
    few = uncertainty.conditional_variance(plan, mean[:, 3:7], variance[:, 3:7])
    np.testing.assert_allclose(few, conditional[:, 3:7], rtol=1e-3)
    mass = uncertainty.landmark_mass(plan, weight)
    np.testing.assert_allclose(uncertainty.total_variance(mass, mean, variance), total, rtol=1e-5)
    np.testing.assert_allclose(mass.sum(), 1)


def test_cells_without_a_partner():
    """1 − w²: cells that keep four fifths of their mass count as a third unmatched, not as a fifth."""
    np.testing.assert_allclose(uncertainty.without_partner([1, 0.8, 0.5, 0]), [0, 0.36, 0.75, 1])
    assert uncertainty.without_partner(np.float32([0.9])).dtype == np.float64


def test_no_feature_to_score_is_no_certainty():
    plan, weight, label, y = problem()
    mean, variance = uncertainty.landmark_moments(SmoothedMatrix(y.astype(np.float32)), label)
    total = uncertainty.explained(plan, weight, mean, variance)[1]
    for kept, of in ((np.zeros(40, bool), total), (np.ones(40, bool), 0 * total)):
        assert np.isnan(uncertainty.cells(plan, mean, variance, of, kept)).all()


def test_extremes():
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(4), 25)
    y = np.column_stack([label, rng.permutation(label), np.full(100, 3.0)]).astype(np.float32)
    mean, variance = uncertainty.landmark_moments(SmoothedMatrix(y), label)
    score, total = uncertainty.explained(sp.identity(4, format="csr"), np.ones(4), mean, variance)
    # known from the landmark; independent of it; without any variance
    assert score[0] == 0
    assert score[1] > 0.9
    assert np.isnan(score[2])
    assert total[2] == 0
    nothing, _ = uncertainty.explained(sp.csr_matrix(np.full((4, 4), 0.25)), np.ones(4), mean, variance)
    np.testing.assert_allclose(nothing[:2], 1)
    # no mass matched at all: every cell counts alike
    unmatched, _ = uncertainty.explained(sp.identity(4, format="csr"), np.zeros(4), mean, variance)
    np.testing.assert_array_equal(unmatched, score)


def test_widened_plans():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    plan = sp.random(200, 15, density=0.3, random_state=0, format="csr") + sp.csr_matrix(np.full((200, 15), 1e-3))
    plan = sp.csr_matrix(plan / plan.sum(1))
    found = uncertainty.widened(plan, x).toarray()
    near = np.argsort(((x[:, None] - x) ** 2).sum(2), axis=1)[:, :20]  # a tenth of the cells
    np.testing.assert_allclose(found, plan.toarray()[near].mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_planted_features_are_found():
    """Half of the target's features follow a latent of its own: they are uncertain, the others are not."""
    rng = np.random.default_rng(0)
    z, own = rng.normal(size=(1_200, 3)), rng.normal(size=(600, 3))
    a = z[:600] @ rng.normal(size=(3, 20)) + 0.1 * rng.normal(size=(600, 20))
    shared = z[600:] @ rng.normal(size=(3, 30)) + 0.1 * rng.normal(size=(600, 30))
    b = np.hstack([shared, own @ rng.normal(size=(3, 30)) + 0.1 * rng.normal(size=(600, 30))])
    a[:, :12] = z[:600] @ (loadings := rng.normal(size=(3, 12)))
    b[:, :12] = z[600:] @ loadings
    x = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
    linked = {m: (v[:, :12] - v[:, :12].mean(0)) / v[:, :12].std(0) for m, v in x.items()}
    found = coupling.couple_known(x, {m: find_landmarks(v) for m, v in x.items()}, linked)["a", "b"]
    mean, variance = uncertainty.landmark_moments(SmoothedMatrix(x["b"]), found.landmarks.label)
    score, _ = uncertainty.explained(uncertainty.widened(found.plan, x["a"]), found.weight, mean, variance)
    assert score[:30].max() < 0.45
    assert score[30:].min() > 0.8
    # with the landmarks' means alone features of the target's own would look certain
    without, _ = uncertainty.explained(found.plan, found.weight, mean, np.zeros_like(variance))
    assert (score - without)[30:].mean() > 0.1


# --- trainings ---------------------------------------------------------------------------------------------------


def test_spread_is_the_variance_over_samples():
    rng = np.random.default_rng(0)
    samples = 50 + rng.normal(size=(7, 40, 5)) * np.linspace(0.1, 2, 5)
    loadings, total = rng.normal(size=(5, 30)), 1 + rng.random(30)
    total[4] = 0
    kept = np.arange(30) > 2
    score, cells = uncertainty.spread(iter(samples.astype(np.float32)), loadings, total, kept)
    relative = (samples.astype(np.float32).astype(np.float64) @ loadings).var(0, ddof=1) / np.where(
        total, total, np.nan
    )
    np.testing.assert_allclose(score, relative.mean(0), rtol=1e-4)
    np.testing.assert_allclose(cells, np.nanmean(relative[:, kept], axis=1), rtol=1e-4)
    with pytest.raises(ValueError, match="two"):
        uncertainty.spread([samples[0]], loadings, total, kept)


def noisy_aligner(**noise: int) -> tuple[Aligner, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(80, 6)).astype(np.float32), "b": rng.normal(size=(70, 4)).astype(np.float32)}
    linked = {m: v[:, :3].astype(np.float64) for m, v in x.items()}
    marks = {m: find_landmarks(v) for m, v in x.items()}
    settings = {"max_steps": 3, "batch_size": 32, "lr": 1e-3, "geometry": "heat", "cycle_as_real": False}
    weights = methods.lookup("scmmgan").weights
    aligner, _ = methods.fit(
        "scmmgan", x, coupling.couple_known(x, marks, linked), {}, shared=(), weights=weights, random_state=0,
        device="cpu", progress_bar=False, noise_dim=noise, **settings,
    )  # fmt: skip
    return aligner, x


def test_generators_that_take_noise():
    before = torch.get_rng_state()
    aligner, x = noisy_aligner(a=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert aligner.noise == {"a": 3}
    assert isinstance(aligner.generators["a", "b"], NoisyGenerator)
    assert isinstance(aligner.generators["b", "a"], Generator)
    once = aligner.translate(x["a"], "a", "b")
    np.testing.assert_array_equal(once, aligner.translate(x["a"], "a", "b"))
    samples = [aligner.sample(x["a"], "a", "b", np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert np.abs(samples[0] - samples[2]).max() > 1e-6
    # the noise of training is seeded, too
    again, _ = noisy_aligner(a=3)
    np.testing.assert_array_equal(once, again.translate(x["a"], "a", "b"))
    with pytest.raises(ValueError, match="without noise"):
        aligner.sample(x["b"], "b", "a", np.random.default_rng(0))


def test_noise_is_fresh_at_every_use_in_training():
    net = NoisyGenerator(Generator(5 + 2, 3), 2)
    torch.nn.init.normal_(net.inner.body[-1].weight)
    x = torch.ones(8, 5)
    assert not torch.equal(net(x), net(x))
    assert len(torch.unique(net(x), dim=0)) == 8
    net.eval()
    assert torch.equal(net(x), net.sample(x, torch.zeros(8, 2)))


def test_noise_travels_with_the_state():
    aligner, x = noisy_aligner(a=3, b=2)
    config, weights = aligner.state()
    again = Aligner.from_state(config, weights)
    for pair in (("a", "b"), ("b", "a")):
        drawn = [v.sample(x[pair[0]], *pair, np.random.default_rng(0)) for v in (aligner, again)]
        np.testing.assert_array_equal(*drawn)
    plain, _ = noisy_aligner()
    assert "noise" not in plain.state()[0]
    assert plain.noise == {}
