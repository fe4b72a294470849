"""What noise allows: halves of a modality predict each other as well as their noise lets them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from scmmgan.model.evidence import ceiling
from scmmgan.model.problem import Known, Links, Modality, Problem
from scmmgan.model.space.domain import Domain, model_space


def noisy(noise: tuple[float, float], n: int = 160, *, batches: bool = False) -> tuple[Known, dict[str, Domain]]:
    """Two modalities of one latent space with so much noise each, 24 linked features; the last is noise on both sides."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(3, 24))
    loadings[:, -1] = 0
    modalities = {}
    for m, sd in zip("ab", noise):
        latent = (2 * rng.normal(size=(4, 3)))[rng.integers(0, 4, n)] + rng.normal(size=(n, 3))
        values = (latent @ loadings + sd * rng.normal(size=(n, 24))).astype(np.float32)
        names = [np.array([f"{m}{kind}{i}" for i in range(k)], dtype=object) for kind, k in (("c", n), ("f", 24))]
        rows = (np.arange(0, n, 2), np.arange(1, n, 2)) if batches else None
        modalities[m] = Modality(m, values, *names, batches=rows)
    at = np.arange(24)
    known = Known(("a", "b"), Links(at, at, np.ones(24), np.ones(24)))
    return known, model_space(Problem(modalities, {("a", "b"): known}), random_state=0)


@pytest.mark.parametrize("batches", [False, True])
def test_more_noise_is_a_lower_ceiling(batches: bool):
    clean = ceiling.ceiling(*noisy((0.5, 0.5), batches=batches), refine=True, random_state=0)
    half = ceiling.ceiling(*noisy((0.5, 6.0), batches=batches), refine=True, random_state=0)
    assert clean.mean > 0.8
    assert half.mean < clean.mean - 0.15
    assert 0 < clean.error < 0.1
    assert clean.of_links.shape == (24,)
    # a feature that is nothing but noise has no ceiling to speak of
    assert clean.of_links[-1] < 0.5 < np.median(clean.of_links)


def test_geometric_mean_of_both_sides(monkeypatch: pytest.MonkeyPatch):
    known, domains = noisy((0.5, 2.0))
    sides = {}
    for m in "ab":
        held, tested = ceiling.self_alignment(domains[m], np.arange(24), refine=False, random_state=3)
        np.testing.assert_array_equal(tested, np.arange(24))
        sides[m] = held
    found = ceiling.ceiling(known, domains, refine=False, random_state=3)
    a, b = (sides[m].score for m in "ab")
    assert found.mean == pytest.approx(np.sqrt(a.mean() * b.mean()))
    np.testing.assert_allclose(found.of_links, np.sqrt(np.maximum(a, 0) * np.maximum(b, 0)))
    relative = [s.std(ddof=1) / np.sqrt(24) / s.mean() for s in (a, b)]
    assert found.error == pytest.approx(found.mean / 2 * np.hypot(*relative))
    # features that make no coupling have ceilings, too
    monkeypatch.setattr(ceiling, "MAX_TESTED_LINKS", 12)
    few = ceiling.ceiling(known, domains, refine=False, random_state=3)
    assert np.corrcoef(few.of_links, found.of_links)[0, 1] > 0.5


def test_a_feature_of_several_links_is_aligned_once():
    known, domains = noisy((0.5, 0.5))
    links = known.links
    assert links is not None
    twice = Known(known.names, links.take(np.r_[np.arange(24), 3]))
    found = ceiling.ceiling(twice, domains, refine=True, random_state=0)
    once = ceiling.ceiling(known, domains, refine=True, random_state=0)
    assert found.mean == once.mean
    assert found.of_links[-1] == found.of_links[3]


def test_shares():
    of_links = np.array([0.5, 0.4, 0.01, 0.0, 0.8])
    found = ceiling.Ceiling(of_links, 0.4, 0.04)
    share = found.shares(np.array([0.25, 0.9, 0.2, 0.3, -0.2]))
    np.testing.assert_allclose(share, [0.5, 1, np.nan, np.nan, 0])
    assert found.share(0.2, 0.02) == pytest.approx((0.5, np.hypot(0.05, 0.05)))
    assert np.isnan(ceiling.Ceiling(of_links, 0.0, 0.0).share(0.2, 0.02)).all()


def test_halves_share_no_cell(monkeypatch: pytest.MonkeyPatch):
    """And have at most 2,000 cells each."""
    _, domains = noisy((0.5, 0.5))
    seen: list[np.ndarray] = []
    original: Callable = ceiling.graph_scores
    domain = domains["a"]
    domain.modality.values[:, 0] = np.arange(160)

    def spy(x: np.ndarray, *args: object, **how: object) -> np.ndarray:
        seen.append(x[:, 0].astype(int))
        return original(x, *args, **how)

    monkeypatch.setattr(ceiling, "graph_scores", spy)
    monkeypatch.setattr(ceiling, "CEILING_CELLS", 70)
    ceiling.self_alignment(domain, np.arange(24), refine=True, random_state=0)
    assert [len(np.unique(rows)) for rows in seen] == [70, 70]
    assert not np.intersect1d(*seen).size
