"""Features that only the target has, predicted from counts: against dense references, and on spots whose truth is known."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from planted import mixed_spots
from scmmgan.model.defaults import BLOCK, IMPUTATION_PCS, IMPUTED_SHARE, MAX_RATE, MIXED_CELLS, N_MIXTURES, START_RIDGE
from scmmgan.model.problem import Known, Links, Modality, Problem
from scmmgan.model.space import imputation
from scmmgan.model.space.domain import Domain, model_space
from scmmgan.model.space.imputation import Imputation, fit_imputations

FORMATS: dict[str, Callable[[np.ndarray], Any]] = {"dense": np.asarray, "sparse": sp.csr_matrix}


def logs(counts: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1))


def modality(name: str, counts: np.ndarray, genes: np.ndarray, kind: str = "sparse", **fields: Any) -> Modality:
    cells = np.array([f"{name}{i}" for i in range(len(counts))], dtype=object)
    given = FORMATS[kind](counts.astype(np.float32))
    return Modality(name, FORMATS[kind](logs(counts).astype(np.float32)), cells, genes, counts=given, **fields)


@dataclass(frozen=True)
class Tissue:
    """Spots and other cells of the same types. `truth`: log shares of hidden genes in the spots before counts were lost."""

    problem: Problem
    domains: dict[str, Domain]
    hidden: np.ndarray
    truth: np.ndarray

    def fitted(self, **fields: Any) -> dict[tuple[str, str], Imputation]:
        """Imputations, the spots' own places in the space that both share as the map."""
        images = {(a, b): self.domains[a].x for a in self.domains for b in self.domains if a != b}
        return fit_imputations(replace(self.problem, **fields), self.domains, images, random_state=0)

    @property
    def fit(self) -> Imputation:
        return self.fitted()["spots", "cells"]


def tissue(kind: str = "sparse", *, seed: int = 0) -> Tissue:
    """Spots of five cells that show 60 genes, and other cells with 90; rows and genes in no order."""
    shown = 60
    spots, whole, _, reference, _ = mixed_spots(seed)
    rng = np.random.default_rng(seed)
    genes = np.array([f"g{i}" for i in range(whole.shape[1])], dtype=object)
    order, places = rng.permutation(len(genes)), rng.permutation(len(spots))
    at = np.argsort(order)
    modalities = {
        "spots": modality("spots", spots[places][:, :shown], genes[:shown], kind),
        "cells": modality("cells", reference[:, order], genes[order], kind),
    }
    links = Links(np.arange(shown), at[:shown], np.ones(shown), np.ones(shown))
    known = {("spots", "cells"): Known(("spots", "cells"), links)}
    problem = Problem(modalities, known, (), [{"spots": np.arange(shown), "cells": at[:shown]}])
    return Tissue(problem, model_space(problem, random_state=0), at[shown:], logs(whole[places])[:, shown:])


@pytest.fixture(scope="module")
def planted() -> Tissue:
    return tissue()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T)]))


def values_of(found: Tissue, fit: Imputation, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of the spots without and with the imputation."""
    spots, cells = found.domains["spots"], found.domains["cells"]
    mapped = cells.transform.inverse(spots.x, features)
    counts = found.problem.modalities["spots"].counts
    return mapped, fit.added(mapped.copy(), fit.scores(counts), features)


# --- what it is good for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_hidden_genes_of_spots_are_predicted_better(seed: int):
    found = tissue(seed=seed)
    without, imputed = values_of(found, found.fit, found.hidden)
    assert correlation(imputed, found.truth) > correlation(without, found.truth) + 0.1
    assert correlation(imputed, found.truth) > 0.7


def test_nothing_is_predicted_of_spots_that_are_noise():
    """Every gene of the spots permuted: predictions correlate with nothing."""
    found = tissue()
    spots = found.problem.modalities["spots"]
    noise = sp.csr_matrix(np.random.default_rng(0).permuted(spots.counts.toarray(), axis=0))
    problem = replace(found.problem, modalities={**found.problem.modalities, "spots": replace(spots, counts=noise)})
    fit = replace(found, problem=problem).fit
    predicted = fit.scores(noise) @ fit.loadings + fit.bias
    assert abs(correlation(predicted, found.truth)) < 0.05


# --- its parts against references --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_log_shares_and_rates(kind: str):
    rng = np.random.default_rng(0)
    a, b = rng.poisson(1.0, (40, 12)), rng.poisson(rng.uniform(0.1, 4, 12), (30, 12))
    a[3], b[:, 2], a[:, 5] = 0, 0, 0
    np.testing.assert_allclose(imputation._log_shares(FORMATS[kind](a.astype(np.float32))), logs(a), rtol=1e-6)
    found = imputation._rates(*(FORMATS[kind](v.astype(np.float32)) for v in (a, b)))
    expected = (a.sum(0) / a.sum() + 1e-6) / (b.sum(0) / b.sum() + 1e-6)
    np.testing.assert_allclose(found, np.clip(expected, 1 / MAX_RATE, MAX_RATE), rtol=1e-6)
    assert (found[2], found[5]) == (MAX_RATE, 1 / MAX_RATE)


@pytest.mark.parametrize("k", MIXED_CELLS)
def test_mixtures_hold_k_cells_of_few_clusters(k: int):
    sizes = np.array([200, 50, 10, 40])
    cluster = np.random.default_rng(0).permutation(np.repeat(np.arange(4), sizes))
    mixing = imputation._mixtures(cluster, k, np.random.default_rng(1))
    assert mixing.shape == (N_MIXTURES, 300)
    np.testing.assert_array_equal(mixing.sum(1), k)
    assert mixing.data.min() >= 1
    # large clusters are drawn more often, and all of their cells alike
    per_cluster = np.asarray(mixing.sum(0)).ravel() @ np.eye(4)[cluster] / (k * N_MIXTURES)
    np.testing.assert_allclose(per_cluster, sizes / 300, atol=0.03)
    drawn = np.asarray(mixing.sum(0)).ravel()[cluster == 0]
    assert drawn.std() < 2 * np.sqrt(drawn.mean())
    share = mixing @ np.eye(4)[cluster] / k
    # cells drawn without regard to clusters would have 1 / k + (1 - 1 / k) of the sum of squares
    by_chance = 1 / k + (1 - 1 / k) * ((sizes / 300) ** 2).sum()
    assert (share**2).sum(1).mean() >= by_chance + 0.15 * (k > 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_mixed_counts_are_sums(kind: str):
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (20, 9))
    mixing = imputation._mixtures(np.arange(20) % 3, 4, rng)
    mixed = imputation._mixed(mixing, FORMATS[kind](counts.astype(np.float32)))
    np.testing.assert_array_equal(imputation._dense(mixed), mixing.toarray() @ counts)


def test_thinned_mixtures_have_the_depth_and_rates_of_the_source(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    mixed, rates = rng.poisson(rng.uniform(5, 50, 20), (N_MIXTURES, 20)).astype(float), rng.uniform(0.5, 2, 20)
    totals, thinned = np.array([100.0, 1_000.0]), []
    shares = imputation._log_shares
    monkeypatch.setattr(imputation, "_log_shares", lambda v: (thinned.append(v), shares(v))[1])
    axes, scores = imputation._thinned_scores(mixed, rates, totals, np.random.default_rng(1))
    depth = thinned[0].sum(1)
    assert np.mean(depth > 500) == pytest.approx(0.5, abs=0.05)
    for total in totals:
        near = depth[np.abs(depth - total) < total / 2]
        assert near.mean() == pytest.approx(total, rel=0.02)
        # as a Poisson variable
        assert near.std() == pytest.approx(np.sqrt(total), rel=0.1)
    expected = mixed * rates
    expected = (expected / expected.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(thinned[0].sum(0) / thinned[0].sum(), expected, rtol=0.05)
    # principal axes of what was made
    z = shares(thinned[0])
    z = np.clip((z - z.mean(0)) / z.std(0), -10, 10)
    np.testing.assert_allclose(axes @ axes.T, np.eye(20), atol=1e-9)
    values = np.linalg.svd(z, compute_uv=False)
    np.testing.assert_allclose(np.sqrt((scores**2).sum(0)), values, rtol=1e-3)


@pytest.mark.parametrize("kind", FORMATS)
def test_regressions_are_ridge_regressions(kind: str):
    rng = np.random.default_rng(0)
    mixed, scores = rng.poisson(2.0, (80, 300)), rng.normal(size=(80, 5)) + 3
    totals = mixed.sum(1) + 100.0
    hidden = np.array([299, 4, *range(20, 290)])
    stored = sp.csc_matrix(mixed) if kind == "sparse" else mixed
    found = imputation._regressed(stored, totals, hidden, scores)
    y = np.log1p(1e4 * mixed / totals[:, None])[:, hidden]
    x = scores - scores.mean(0)
    penalty = START_RIDGE * (x**2).sum() / 5
    expected = np.linalg.lstsq(
        np.vstack([x, np.sqrt(penalty) * np.eye(5)]), np.vstack([y - y.mean(0), np.zeros((5, 272))]), rcond=None
    )[0]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_predictions_over_their_sd():
    rng = np.random.default_rng(0)
    scores, loadings = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(4, 6))
    loadings[:, 2] = 0
    predicted = scores @ imputation._over_sd(scores, loadings)
    np.testing.assert_allclose(predicted.std(0), [1, 1, 0, 1, 1, 1], atol=1e-9)
    np.testing.assert_allclose(np.corrcoef(predicted[:, 0], scores @ loadings[:, 0])[0, 1], 1)
    assert imputation._over_sd(scores[:, :1], loadings[:1]).shape == (1, 6)


# --- the whole ---------------------------------------------------------------------------------------------------


def test_imputed_is_the_mean_of_z_scores(planted: Tissue):
    """In the units of the map: its mean and sd; the regressions' share is that of `IMPUTED_SHARE`."""
    fit = planted.fit
    mapped, imputed = values_of(planted, fit, planted.hidden)
    u = fit.scores(planted.problem.modalities["spots"].counts).astype(np.float64)
    at = np.argsort(fit.hidden)[np.searchsorted(np.sort(fit.hidden), planted.hidden)]
    z = u @ fit.loadings[:, at]
    z = (z - z.mean(0)) / z.std(0)
    own = (mapped - mapped.mean(0)) / mapped.std(0)
    expected = ((1 - IMPUTED_SHARE) * own + IMPUTED_SHARE * z) * mapped.std(0) + mapped.mean(0)
    np.testing.assert_allclose(imputed, expected, atol=1e-4)


def test_every_number_of_cells_counts_alike(planted: Tissue):
    fit = planted.fit
    u = fit.scores(planted.problem.modalities["spots"].counts).astype(np.float64)
    assert u.shape[1] == len(MIXED_CELLS) * IMPUTATION_PCS
    blocks = [slice(i * IMPUTATION_PCS, (i + 1) * IMPUTATION_PCS) for i in range(len(MIXED_CELLS))]
    sds = np.array([(u[:, at] @ fit.loadings[at]).std(0) for at in blocks])
    assert sds.min() > 0
    np.testing.assert_allclose(sds, np.tile(sds[0], (len(blocks), 1)), rtol=1e-4)


def test_scores_are_projected_log_shares(planted: Tissue, monkeypatch: pytest.MonkeyPatch):
    fit = planted.fit
    counts = planted.problem.modalities["spots"].counts
    z = (logs(counts.toarray().astype(np.float64)[:, fit.shown]) - fit.mean) / fit.sd
    expected = np.clip(z, -10, 10) @ fit.projection
    np.testing.assert_allclose(fit.scores(counts), expected, atol=1e-4)
    # whole or some of the cells at a time
    monkeypatch.setattr(imputation, "MAP_CHUNK", 7)
    np.testing.assert_allclose(fit.scores(counts), expected, atol=1e-4)
    np.testing.assert_allclose(fit.scores(counts[10:20]), expected[10:20], atol=1e-4)


def test_what_is_not_hidden_stays(planted: Tissue):
    fit = planted.fit
    both = np.setdiff1d(np.arange(90), planted.hidden)
    asked = np.array([planted.hidden[3], both[0], both[5], planted.hidden[0]])
    mapped, imputed = values_of(planted, fit, asked)
    np.testing.assert_array_equal(imputed[:, [1, 2]], mapped[:, [1, 2]])
    assert np.abs(imputed - mapped)[:, [0, 3]].mean() > 0.05
    whole = values_of(planted, fit, np.arange(90))[1]
    np.testing.assert_allclose(imputed, whole[:, asked], atol=1e-5)
    assert fit.added(np.empty((5, 0), np.float32), fit.scores(planted.problem.modalities["spots"].counts)[:5], np.array([], int)).shape == (5, 0)  # fmt: skip


def test_sparse_and_dense_agree(planted: Tissue):
    dense = tissue("dense").fit
    for name, value in planted.fit.state().items():
        np.testing.assert_allclose(value, dense.state()[name], atol=1e-4, err_msg=name)


def test_state_and_seeds(planted: Tissue):
    fit = planted.fit
    again = Imputation.from_state(fit.state())
    for mine, other in zip(values_of(planted, fit, planted.hidden), values_of(planted, again, planted.hidden)):
        np.testing.assert_array_equal(mine, other)
    state = np.random.get_state()[1].copy()
    np.testing.assert_array_equal(planted.fit.loadings, fit.loadings)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_batches_change_values_not_counts():
    """Counts are read as they are; the map's mean and sd are those of the moved values."""
    found = tissue()
    rows = [np.arange(0, 150, 2), np.arange(1, 150, 2)]
    spots = replace(found.problem.modalities["spots"], batches=rows)
    problem = replace(found.problem, modalities={**found.problem.modalities, "spots": spots})
    batched = replace(found, problem=problem, domains=model_space(problem, random_state=0))
    without, imputed = values_of(batched, batched.fit, found.hidden)
    np.testing.assert_allclose(imputed.mean(0), without.mean(0), atol=1e-3)
    assert correlation(imputed, found.truth) > correlation(without, found.truth) + 0.05


def test_a_feature_that_never_varies_is_not_read():
    found = tissue()
    spots = found.problem.modalities["spots"]
    counts = spots.counts.toarray()
    counts[:, 7] = 0
    problem = replace(found.problem, modalities={**found.problem.modalities, "spots": replace(spots, counts=counts)})
    fit = replace(found, problem=problem).fit
    assert 7 not in fit.shown
    assert np.isfinite(fit.loadings).all()
    # one cell, again and again: nothing to learn from
    still = replace(spots, counts=np.tile(counts[:1], (len(counts), 1)))
    assert replace(found, problem=replace(problem, modalities={**problem.modalities, "spots": still})).fitted() == {}


def test_many_cells_are_learnt_from_some(planted: Tissue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imputation, "IMPUTATION_CELLS", 100)
    imputed = values_of(planted, planted.fit, planted.hidden)[1]
    assert correlation(imputed, planted.truth) > 0.6


def test_only_where_there_is_something_to_learn_from(planted: Tissue, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="scmmgan")
    # the cells' features are all there is: nothing is hidden from them
    assert list(planted.fitted()) == [("spots", "cells")]
    assert planted.fitted(spaces=()) == {}
    assert not caplog.text
    for lacking in (["spots"], ["cells"], ["spots", "cells"]):
        caplog.clear()
        without = {m: replace(of, counts=None) if m in lacking else of for m, of in planted.problem.modalities.items()}
        assert planted.fitted(modalities=without) == {}
        assert "30 features that only 'cells' has" in caplog.text
        assert " and ".join(map(repr, lacking)) + " without counts" in caplog.text


def test_no_table_of_all_cells_and_genes(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    n, shown, g = 300, 50, 1_000
    values = sp.random(n, g, 0.05, format="csr", random_state=rng, data_rvs=lambda k: rng.integers(1, 5, k))
    values = values.astype(np.float32)
    genes = np.array([f"g{i}" for i in range(g)], dtype=object)
    names = {m: np.array([f"{m}{i}" for i in range(n)], dtype=object) for m in "ab"}
    modalities = {
        "a": Modality("a", values[:, :shown], names["a"], genes[:shown], counts=values[:, :shown]),
        "b": Modality("b", values, names["b"], genes, counts=values),
    }
    at = np.arange(shown)
    links = Links(at, at, np.ones(shown), np.ones(shown))
    problem = Problem(modalities, {("a", "b"): Known(("a", "b"), links)}, (), [{"a": at, "b": at}])
    domains = model_space(problem, random_state=0)
    dense, shapes = imputation._dense, []
    monkeypatch.setattr(imputation, "_dense", lambda v: (shapes.append(v.shape), dense(v))[1])
    monkeypatch.setattr(imputation, "MAP_CHUNK", 64)
    fit = fit_imputations(problem, domains, {("a", "b"): domains["a"].x}, random_state=0)["a", "b"]
    assert max(width for _, width in shapes) == BLOCK
    del shapes[:]
    fit.scores(values[:, :shown])
    assert max(rows for rows, _ in shapes) == 64
