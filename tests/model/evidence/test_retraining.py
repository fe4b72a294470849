"""Uncertainty over noise and over restarts: what is trained, which restarts count, against variances written out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scmmgan.model.evidence import retraining
from scmmgan.model.nets import methods

PAIR = ("a", "b")


def settings(**changes: Any) -> dict[str, Any]:
    found = methods.lookup("scmmgan")
    return {
        "method": "scmmgan", "weights": found.weights, "max_steps": 2, "batch_size": 32, "lr": 1e-3, "geometry": "heat",
        "cycle_as_real": False, "random_state": 5, "device": "cpu", "progress_bar": False, "shared": (), **changes,
    }  # fmt: skip


class Fixed:
    """An aligner that sends every cell to itself, moved by its own number; `turned` is its mirror image."""

    def __init__(self, shift: float, width: int, turned: bool = False) -> None:
        self.shift, self.width, self.turned = shift, width, turned
        self.noise = {"a": 3}

    def translate(self, x: np.ndarray, source: str, target: str) -> np.ndarray:
        y = np.zeros((len(x), self.width), np.float32)
        y[:, 0] = (-1 if self.turned else 1) * x[:, 0] * (1 + self.shift)
        return y

    def sample(self, x: np.ndarray, source: str, target: str, rng: np.random.Generator) -> np.ndarray:
        return (self.translate(x, source, target) + rng.normal(size=(len(x), self.width))).astype(np.float32)


def by_hand(found: Any, maps: list[np.ndarray], kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance over maps of every decoded value, over the variance in the data; mean over cells, and over features."""
    transform = found.domains["b"].transform
    decoded = np.stack([transform.inverse(y) for y in maps]).astype(np.float64)
    relative = decoded.var(0, ddof=1) / transform.sd**2
    return relative.mean(0), relative[:, kept].mean(1)


# --- what is compared --------------------------------------------------------------------------------------------


def test_images_are_centred_and_in_units_of_the_target():
    rng = np.random.default_rng(0)
    domains = {m: SimpleNamespace(x=rng.normal(size=(30, 4)) * i) for i, m in enumerate("ab", 1)}
    aligner = SimpleNamespace(translate=lambda x, s, t: 3 * x + 7)
    rows = {"a": np.array([2, 5, 9]), "b": np.array([0, 1])}
    found = retraining.images(aligner, domains, rows, PAIR)
    parts = []
    for s, t in (PAIR, PAIR[::-1]):
        y = 3 * domains[s].x[rows[s]]
        parts.append(((y - y.mean(0)) / domains[t].x.std()).ravel())
    np.testing.assert_allclose(found, np.concatenate(parts))
    assert found.shape == (20,)


def test_probed_cells(monkeypatch: pytest.MonkeyPatch):
    domains = {m: SimpleNamespace(x=np.zeros((n, 2))) for m, n in (("a", 70), ("b", 30))}
    np.testing.assert_array_equal(retraining.probed(domains, 0)["a"], np.arange(70))
    monkeypatch.setattr(retraining, "PROBED_CELLS", 40)
    first, again, other = (retraining.probed(domains, seed) for seed in (0, 0, 1))
    assert {m: len(rows) for m, rows in first.items()} == {"a": 40, "b": 30}
    assert (np.diff(first["a"]) > 0).all()
    np.testing.assert_array_equal(first["a"], again["a"])
    assert not np.array_equal(first["a"], other["a"])


# --- noise -------------------------------------------------------------------------------------------------------


def test_variance_over_the_noise_of_the_aligner(make_planted: Callable):
    found = make_planted()
    n = len(found.problem.modalities["b"].features)
    kept, width = np.arange(n) > 3, found.x["b"].shape[1]
    aligner = Fixed(0, width)
    coupled = (found.couplings, found.loadings)
    score, cells = retraining.over_noise(found.domains, aligner, PAIR, coupled, settings(), kept, n_draws=6)
    rng = np.random.default_rng(5)
    expected = by_hand(found, [aligner.sample(found.x["a"], *PAIR, rng) for _ in range(6)], kept)
    np.testing.assert_allclose(score, expected[0], rtol=1e-3)
    np.testing.assert_allclose(cells, expected[1], rtol=1e-3)


def test_an_aligner_without_noise_is_trained_again_with_it(
    make_planted: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Noise half as wide as model space; hardly trained, generators ignore it, and that is warned of."""
    found = make_planted()
    asked: list[Any] = []
    original = methods.fit
    monkeypatch.setattr(methods, "fit", lambda **how: (asked.append(how), original(**how))[1])
    plain = SimpleNamespace(noise={"b": 2})
    kept = np.ones(len(found.problem.modalities["b"].features), dtype=bool)
    coupled = (found.couplings, found.loadings)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        score, cells = retraining.over_noise(found.domains, plain, PAIR, coupled, settings(), kept, n_draws=3)
    assert len(asked) == 1
    assert asked[0]["noise_dim"] == {m: max(1, v.shape[1] // 2) for m, v in found.x.items()}
    assert asked[0]["couplings"] is found.couplings
    assert asked[0]["loadings"] is found.loadings
    assert (score >= 0).all()
    assert (cells >= 0).all()
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "The generators from 'a' to 'b' ignore their noise" in warned[0]


# --- restarts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is asked of every training; each gives a `Fixed` map moved by its number, the third and later ones turned."""
    asked: list[dict[str, Any]] = []

    def fit(**how: Any) -> tuple[Fixed, dict]:
        asked.append(how)
        i = len(asked) - 1
        return Fixed(0.1 * i, how["x"]["b"].shape[1], turned=i >= 3), {}

    monkeypatch.setattr(methods, "fit", fit)
    return asked


def restarted(found: Any, n: int, **changes: Any) -> Any:
    kept = np.arange(len(found.problem.modalities["b"].features)) % 2 == 0
    coupled = (found.couplings, found.loadings)
    return retraining.over_restarts(
        found.problem, found.domains, PAIR, coupled, settings(**changes), kept, n_restarts=n
    )


def test_variance_over_the_largest_mode(make_planted: Callable, trainings: list):
    """Three maps are alike, the fourth is a mirror image: it is no part of the variance."""
    found = make_planted()
    (score, cells), n = restarted(found, 4)
    assert n == 3
    x, width = found.x["a"], found.x["b"].shape[1]
    kept = np.arange(len(score)) % 2 == 0
    expected = by_hand(found, [Fixed(0.1 * i, width).translate(x, *PAIR) for i in range(3)], kept)
    np.testing.assert_allclose(score, expected[0], rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(cells, expected[1], rtol=1e-3, atol=1e-9)
    assert score.max() > 1e-3


def test_restarts_have_other_seeds_and_landmarks(make_planted: Callable, trainings: list):
    found = make_planted()
    restarted(found, 4, max_steps=1_000)
    assert [how["random_state"] for how in trainings] == [5, 6, 7, 8]
    assert [how["max_steps"] for how in trainings] == [300] * 4
    assert trainings[0]["couplings"] is found.couplings
    assert trainings[0]["loadings"] is found.loadings
    plans = [how["couplings"][PAIR].anchors for how in trainings]
    assert not any(np.array_equal(a, b) for i, a in enumerate(plans) for b in plans[:i])
    # not longer than the alignment was trained
    trainings.clear()
    restarted(found, 2, max_steps=50)
    assert [how["max_steps"] for how in trainings] == [50] * 2


def test_other_couplings_by_shapes_would_be_other_modes(make_planted: Callable, trainings: list):
    found = make_planted()
    found = replace(found, problem=found.problem.only(*PAIR, links=None))
    assert found.problem.by_shape
    restarted(found, 3)
    assert all(how["couplings"] is found.couplings for how in trainings)


def test_no_two_restarts_alike(make_planted: Callable, monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []

    def fit(**how: Any) -> tuple[Any, dict]:
        made.append(len(made))
        return Fixed(0, how["x"]["b"].shape[1], turned=bool(made[-1])), {}

    monkeypatch.setattr(methods, "fit", fit)
    with pytest.raises(ValueError, match="No two of 2 restarts give the same map"):
        restarted(make_planted(), 2)
