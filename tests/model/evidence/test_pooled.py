"""Correlations over pools of cells, and given depth, against numpy on given pools; limits against scipy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from scmmgan.model.defaults import MAX_POOLS, N_POOLINGS, POOL_CELLS
from scmmgan.model.evidence import pooled
from scmmgan.model.problem import Modality
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.graphs import graph_scores
from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix
from scmmgan.model.space.transform import fit_transform

AT = np.array([0, 3]), np.arange(1, 30)


def counts_of(n: int = 150, g: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(size=(n, 2)) @ rng.normal(size=(2, g)) * 0.7)
    return rng.poisson(rate * rng.lognormal(0, 0.5, (n, 1))).astype(np.float32)


def domain(
    values: Any, counts: Any = None, batches: list[np.ndarray] | None = None, smooth: bool = False, n_pcs: int = 50
) -> Domain:
    cells, features = (np.array([f"{kind}{i}" for i in range(n)], dtype=object) for kind, n in zip("cf", values.shape))

    def matrix(part: Any) -> SmoothedMatrix:
        return SmoothedMatrix(part, smoothing_operator(graph_scores(part)) if smooth else None, 2 if smooth else 0)

    whole = matrix(values) if batches is None else BatchedMatrix([matrix(values[rows]) for rows in batches], batches)
    transform, x = fit_transform(whole, n_pcs=n_pcs)
    return Domain(Modality("b", values, cells, features, batches=batches, counts=counts), whole, transform, x)


def given_pools(monkeypatch: pytest.MonkeyPatch, n: int, k: int = 12) -> list[np.ndarray]:
    """Pools at random, others in every pooling."""
    labels = [np.random.default_rng(i).permutation(np.arange(n) % k) for i in range(N_POOLINGS)]

    def of(x: np.ndarray, random_state: int) -> np.ndarray:
        assert len(x) == n
        return labels[random_state - 7]

    monkeypatch.setattr(pooled, "_pools", of)
    return labels


def by_hand(labels: list[np.ndarray], weight: np.ndarray, values: Any) -> np.ndarray:
    """Fisher's z (poolings × …) of weighted correlations; `values`: of the rows of a pool with their weights."""
    z = []
    for label in labels:
        groups = [np.flatnonzero((label == i) & (weight > 0)) for i in np.unique(label[weight > 0])]
        table = np.array([values(rows, weight[rows]) for rows in groups])
        share = np.array([weight[rows].sum() for rows in groups])
        cov = np.cov(table.T, aweights=share, ddof=0)
        sd = np.sqrt(np.diag(cov))
        z.append(np.arctanh(np.clip((cov / np.outer(sd, sd))[np.ix_(*AT)], -0.999999, 0.999999)))
    return np.array(z)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("kind", ["counts", "logs", "signed"])
def test_correlations_over_given_pools(kind: str, sparse: bool, monkeypatch: pytest.MonkeyPatch):
    """Summed counts; means of what was logged; plain means of what has negative values."""
    counts = counts_of()
    weight = np.random.default_rng(1).uniform(0.2, 1, len(counts))
    logs = np.log1p(counts)
    table = logs - 0.5 if kind == "signed" else logs
    form = sp.csr_matrix if sparse else np.asarray
    found = domain(form(table), form(counts) if kind == "counts" else None)
    labels = given_pools(monkeypatch, len(counts))

    def values(rows: np.ndarray, w: np.ndarray) -> np.ndarray:
        if kind == "counts":
            return np.log1p(1e4 * (w @ counts[rows]) / (w @ counts[rows]).sum())
        if kind == "logs":
            return np.log1p(w @ np.expm1(logs[rows].astype(np.float64)) / w.sum())
        return w @ table[rows] / w.sum()

    r, error = pooled.pooled_correlations(found, weight, *AT, random_state=7)
    z = by_hand(labels, weight, values)
    np.testing.assert_allclose(r, np.tanh(z.mean(0)), atol=1e-4)
    # six parts of the cells are left out alone and by twos, other parts in every pooling; and poolings differ
    rng, first, second = np.random.default_rng(7), 0.0, 0.0
    for label, whole in zip(labels, z, strict=True):
        part = rng.permutation(len(counts)) % 6
        sets = [{i} for i in range(6)] + [{i, j} for i in range(6) for j in range(i)]
        without = {frozenset(of): by_hand([label], weight * ~np.isin(part, [*of]), values)[0] for of in sets}
        one = np.array([without[frozenset({i})] for i in range(6)])
        both = [6 * whole - 5 * (one[i] + one[j]) + 4 * without[frozenset({i, j})] for i in range(6) for j in range(i)]
        first = first + 5 / 6 * ((one - one.mean(0)) ** 2).sum(0) / len(labels)
        second = second + ((both - np.mean(both, 0)) ** 2).sum(0) / 30 / len(labels)
    expected = np.sqrt(np.maximum(first - second, first / 2) + z.var(0, ddof=1) / len(labels))
    sizes = [np.bincount(label, weight) for label in labels]
    fisher = 1 / np.sqrt(np.mean([m.sum() ** 2 / (m**2).sum() for m in sizes]) - 3)
    assert (expected < fisher).any()
    np.testing.assert_allclose(error, np.maximum(expected, fisher), rtol=2e-2)
    monkeypatch.setattr(pooled, "FEW_POOLS", 10)
    np.testing.assert_allclose(pooled.pooled_correlations(found, weight, *AT, random_state=7)[1], expected, rtol=2e-2)


def test_errors_are_those_of_other_cells(monkeypatch: pytest.MonkeyPatch):
    """Of two populations, whose pools are no independent draws: Fisher's error over 40 pools is too large."""
    monkeypatch.setattr(pooled, "N_POOLINGS", 2)
    z, errors = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        kind = np.arange(400) % 2
        rate = np.where(np.arange(12) < 6, 1 + 4 * kind[:, None], 2.0)
        counts = rng.poisson(rate).astype(np.float32)
        # pools of ten cells of one population
        label = 2 * rng.permutation(np.arange(200) % 20).repeat(2) + kind
        monkeypatch.setattr(pooled, "_pools", lambda x, random_state, label=label: label)
        r, error = pooled.pooled_correlations(
            domain(counts, counts), np.ones(400), np.array([0]), np.arange(1, 6), random_state=seed
        )
        z.append(np.arctanh(r[0]))
        errors.append(error[0])
    assert np.mean(z) > 0.8
    assert np.mean(errors) == pytest.approx(np.std(z, axis=0).mean(), rel=0.15)
    assert np.mean(errors) < 0.95 / np.sqrt(37)


def test_cells_without_counterparts_do_not_count(monkeypatch: pytest.MonkeyPatch):
    counts = counts_of()
    weight = np.ones(len(counts))
    weight[::3] = 0
    given_pools(monkeypatch, len(counts))
    found = domain(np.log1p(counts), counts)
    r, error = pooled.pooled_correlations(found, weight, *AT, random_state=7)
    other = counts.copy()
    other[::3] = np.random.default_rng(0).poisson(30, other[::3].shape)
    # the same places, other values of cells that do not count
    changed = replace(found, modality=replace(found.modality, counts=other))
    np.testing.assert_allclose(pooled.pooled_correlations(changed, weight, *AT, random_state=7)[0], r, atol=1e-9)
    assert np.abs(pooled.pooled_correlations(changed, np.ones(len(counts)), *AT, random_state=7)[0] - r).max() > 0.1
    nothing, unknown = pooled.pooled_correlations(found, np.zeros(len(counts)), *AT, random_state=7)
    assert not nothing.any()
    assert (unknown == 1).all()
    # twelve pools at most
    assert error.min() >= 1 / 3 - 0.001


def test_pools_are_parts_of_similar_cells():
    rng = np.random.default_rng(0)
    x = np.repeat(8 * rng.normal(size=(6, 5)), 50, axis=0) + rng.normal(size=(300, 5))
    pool = pooled._pools(x, 0)
    assert np.array_equal(np.unique(pool), np.arange(300 // POOL_CELLS))
    centres = np.array([x[pool == i].mean(0) for i in range(300 // POOL_CELLS)])
    assert np.sqrt(np.mean((x - centres[pool]) ** 2)) < 1.1
    np.testing.assert_array_equal(pooled._pools(x, 0), pool)
    assert (pooled._pools(x, 1) != pool).any()


def test_many_cells_make_500_pools(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pooled, "MAX_POOLS", 20)
    x = np.random.default_rng(0).normal(size=(1_000, 3))
    assert pooled._pools(x, 0).max() == 19
    assert MAX_POOLS == 500
    assert set(pooled._pools(x[:10], 0)) == {0, 1}


def test_pools_show_what_zeros_of_cells_hide():
    """Two genes that go together, rarely caught: cells hardly show it, pools do."""
    rng = np.random.default_rng(0)
    on = rng.integers(2, size=900)[:, None]
    rate = np.where(np.arange(40) % 2, 1 + 3 * on, 4 - 3 * on).astype(float)
    rate[:, :2] = np.where(on, 0.5, 0.05)
    counts = rng.poisson(rate).astype(np.float32)
    # one component: pools of a small panel are else those of its noise, these two genes' own among it
    found = domain(np.log1p(counts), counts, n_pcs=1)
    r, error = pooled.pooled_correlations(found, np.ones(900), np.array([0]), np.array([1, 2]), random_state=0)
    assert np.corrcoef(np.log1p(counts[:, :2]).T)[0, 1] < 0.2
    assert r[0, 0] > 0.5
    assert r[0, 1] < -0.5
    assert error.max() < 0.2


def test_constant_features_correlate_with_nothing():
    counts = counts_of()
    values = np.log1p(counts)
    values[:, 4] = 2.0
    r, error = pooled.pooled_correlations(domain(values), np.ones(len(values)), np.array([0, 4]), AT[1], random_state=0)
    assert not r[:, 3].any()
    assert not r[1].any()
    assert np.isfinite(r).all()
    assert np.isfinite(error).all()


# --- given depth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "batched", "without counts"])
def test_given_depth_are_partial_correlations(kind: str):
    counts = counts_of()
    values = np.log1p(counts)
    batches = [np.arange(0, 150, 2), np.arange(1, 150, 2)] if kind == "batched" else None
    found = domain(values, None if kind == "without counts" else sp.csr_matrix(counts), batches, smooth=True)
    measured = found.smoothed.measured(np.arange(30)).astype(np.float64)
    design = np.ones((150, 1))
    if kind != "without counts":
        design = np.column_stack([design, np.log1p(counts.sum(1))])
    rest = measured - design @ np.linalg.lstsq(design, measured, rcond=None)[0]
    expected = np.corrcoef(rest.T)[np.ix_(*AT)]
    np.testing.assert_allclose(pooled.given_depth(found, *AT), expected, atol=1e-5)
    if kind == "plain":
        # as measured, not smoothed
        np.testing.assert_allclose(measured, values, atol=1e-6)


def test_given_depth_takes_away_what_depth_makes():
    """Genes that have nothing to do with each other, and two that do."""
    rng = np.random.default_rng(0)
    depth = rng.lognormal(0, 1, (800, 1))
    rate = 3 * depth * np.ones((800, 20))
    rate[:, :2] *= rng.lognormal(0, 0.8, (800, 1))
    counts = rng.poisson(rate).astype(np.float32)
    found = domain(np.log1p(counts), counts)
    at = np.array([0]), np.arange(1, 20)
    raw = np.corrcoef(np.log1p(counts).T)[np.ix_(*at)]
    r = pooled.given_depth(found, *at)
    assert raw[0, 1:].min() > 0.3
    assert np.abs(r[0, 1:]).mean() < 0.1
    assert r[0, 0] > 0.4
    # one depth for all cells takes nothing away
    even = replace(found, modality=replace(found.modality, counts=np.full_like(counts, 3)))
    np.testing.assert_allclose(pooled.given_depth(even, *at), raw, atol=1e-6)


# --- limits ------------------------------------------------------------------------------------------------------


def test_limits_and_p_are_fishers():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40))
    y += 0.3 * x
    known = stats.pearsonr(x, y)
    both = known.confidence_interval(confidence_level=0.9)
    r = np.array([[known.statistic, -known.statistic]])
    error = pooled.fisher_error(40)
    lower, upper = pooled.limits(r, error, signed=True)
    np.testing.assert_allclose([lower[0, 0], upper[0, 0]], [both.low, both.high], atol=1e-9)
    np.testing.assert_allclose([lower[0, 1], upper[0, 1]], [-both.high, -both.low], atol=1e-9)
    # magnitudes have no sign, and no limit below 0
    lower, upper = pooled.limits(r, error, signed=False)
    np.testing.assert_allclose(upper, both.high)
    assert lower[0, 0] == lower[0, 1] == max(both.low, 0)
    z, p = pooled.significance(r, error, signed=True)
    np.testing.assert_allclose(z[0], np.arctanh(r[0]) * np.sqrt(37))
    assert p[0, 0] == pytest.approx(stats.pearsonr(x, y, alternative="greater").pvalue, rel=0.2)
    np.testing.assert_allclose(p[0].sum(), 1)
    assert pooled.significance(r, error, signed=False)[1][0, 1] == pytest.approx(known.pvalue, rel=0.2)


def test_p_of_nothing_is_uniform():
    r = np.array([np.corrcoef(*v)[0, 1] for v in np.random.default_rng(0).normal(size=(500, 2, 30))])
    for signed in (True, False):
        assert stats.kstest(pooled.significance(r, pooled.fisher_error(30), signed=signed)[1], "uniform").pvalue > 0.01
    # what is not there says nothing, in either direction
    assert pooled.significance(np.zeros(1), pooled.fisher_error(0), signed=True)[1] == 0.5
    lower, upper = pooled.limits(np.zeros(1), pooled.fisher_error(0), signed=True)
    assert lower < -0.9
    assert upper > 0.9
