"""Uncertainty from the coupling, and its calibration on links that were held out: planted features, refits by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from scmmgan.model.coupling.couple import couple, landmark_count
from scmmgan.model.evidence import calibration, uncertainty

PAIR, BACK = ("a", "b"), ("b", "a")


def of(found: Any, pair: tuple[str, str] = PAIR) -> calibration.CouplingUncertainty:
    kept = np.ones(len(found.problem.modalities[pair[1]].features), dtype=bool)
    return calibration.from_coupling(found.problem, found.domains, pair, found.couplings[pair], kept, 0)


@pytest.fixture(scope="module")
def linked(make_planted: Callable) -> Any:
    """15 links, and ten features of b that a does not know."""
    return make_planted(n_links=15, own=10)


# --- scores ------------------------------------------------------------------------------------------------------


def test_features_of_the_target_alone_are_uncertain(linked: Any):
    found = of(linked)
    assert found.kind == "links"
    own = np.arange(len(found.score)) >= 15 + 8
    assert own.sum() == 10
    assert found.score[own].min() > 0.7 > 0.3 > found.score[~own].max()
    # as far off as their values are: the mean of the plan against the true partner
    y = linked.domains["b"].smoothed.columns(np.arange(len(own)))
    error = ((found.plan @ found.mean - y[linked.partner]) ** 2).mean(0) / y.var(0)
    assert spearmanr(found.score, error)[0] > 0.8


@pytest.mark.parametrize("pair", [PAIR, BACK])
def test_scores_are_those_of_the_widened_plan(linked: Any, pair: tuple[str, str]):
    source, target = (linked.domains[m] for m in pair)
    coupling = linked.couplings[pair]
    weight = np.random.default_rng(0).random(120).astype(np.float32)
    kept = np.arange(len(target.modality.features)) % 2 == 0
    found = calibration.from_coupling(
        linked.problem, linked.domains, pair, replace(coupling, weight=weight), kept, random_state=0
    )
    plan = uncertainty.widened(coupling.plan, source.x)
    mean, variance = uncertainty.landmark_moments(target.smoothed, coupling.landmarks.label)
    score, total = uncertainty.explained(plan, weight, mean, variance)
    np.testing.assert_allclose(found.score, score)
    np.testing.assert_allclose(found.mass, plan.T @ (weight / weight.sum()), rtol=1e-5)
    assert (found.plan != plan).nnz == 0
    # a cell without a partner is as uncertain as the population: of its share 1 − w²
    inside = uncertainty.cells(plan, mean, variance, total, kept)
    w = weight.astype(np.float64)
    np.testing.assert_allclose(found.cells, inside * w**2 + (1 - w**2), rtol=1e-6)
    assert np.abs(inside * w + (1 - w) - found.cells).max() > 0.1
    np.testing.assert_array_equal(found.weight, weight)


def test_shapes_alone_leave_no_cell_without_a_partner(linked: Any):
    coupling = replace(linked.couplings[PAIR], weight=np.full(120, 0.5, np.float32), relaxed=False)
    kept = np.ones(len(linked.problem.modalities["b"].features), dtype=bool)
    found = calibration.from_coupling(linked.problem, linked.domains, PAIR, coupling, kept, 0)
    assert set(found.weight) == {1}
    target = linked.domains["b"].smoothed
    mean, variance = uncertainty.landmark_moments(target, coupling.landmarks.label)
    total = uncertainty.explained(found.plan, np.ones(120), mean, variance)[1]
    np.testing.assert_allclose(found.cells, uncertainty.cells(found.plan, mean, variance, total, kept), rtol=1e-6)


# --- known pairs -------------------------------------------------------------------------------------------------


def test_cells_of_known_pairs_do_not_know_their_pair(make_planted: Callable):
    """Rows of known cells come from couplings of the other folds; those of all others are left alone."""
    found = make_planted(140, n_pairs=130, coupled_by=0)
    coupling = found.couplings[PAIR]
    assert coupling.kind == "pairs"
    plan = calibration._without_own_pair(found.problem, found.domains, PAIR, coupling, 0)
    rest = np.setdiff1d(np.arange(140), found.known.pairs[:, 0])
    assert (plan[rest] != coupling.plan[rest]).nnz == 0
    changed = np.unique((plan != coupling.plan).nonzero()[0])
    assert set(changed) <= set(found.known.pairs[:, 0])
    assert len(changed) > 120
    np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-5)
    # another partner for one cell: its row hardly moves (by the scale of distances), while the coupling in use follows
    pairs = found.known.pairs.copy()
    i = 60
    far = ((found.x["b"] - found.x["b"][pairs[i, 1]]) ** 2).sum(1)
    pairs[i, 1] = far.argmax()
    problem = found.problem.only(*PAIR, pairs=pairs)
    again = couple(problem, found.domains, random_state=0)[0][PAIR]
    second = calibration._without_own_pair(problem, found.domains, PAIR, again, 0)
    row = pairs[i, 0]
    moved = np.abs((second[row] - plan[row]).toarray()).sum()
    assert moved < 0.05
    assert moved < 0.2 * np.abs((again.plan[row] - coupling.plan[row]).toarray()).sum()


def test_rows_are_those_of_refits(make_planted: Callable):
    """By links and pairs, in the other direction."""
    found = make_planted(n_pairs=30)
    plan = calibration._without_own_pair(found.problem, found.domains, BACK, found.couplings[BACK], 3)
    fold = np.random.default_rng(3).permutation(np.arange(30) % 5)
    n = landmark_count(found.problem)
    for f in (0, 4):
        rest = found.problem.only(*PAIR, pairs=found.known.pairs[fold != f])
        held = couple(rest, found.domains, random_state=3, n_landmarks=n)[0][BACK]
        rows = found.known.pairs[fold == f, 1]
        np.testing.assert_array_equal(plan[rows].toarray(), held.plan[rows].toarray())


def test_pairs_too_few_to_place_cells_without_one_of_them_stay(make_planted: Callable):
    for arguments, kind in (({"n_pairs": 110, "coupled_by": 0}, "pairs"), ({"n_pairs": 30}, "geometry"), ({}, "links")):
        found = make_planted(**arguments)
        coupling = replace(found.couplings[PAIR], info={"kind": kind})
        plan = calibration._without_own_pair(found.problem, found.domains, PAIR, coupling, 0)
        assert plan is coupling.plan


# --- linked and other features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [PAIR, BACK])
def test_counterparts(linked: Any, pair: tuple[str, str]):
    n = len(linked.problem.modalities[pair[1]].features)
    score = np.random.default_rng(0).random(n)
    score[:15] /= 2
    score[3] = np.nan
    kept = np.arange(n) != 5
    found = calibration.counterparts(linked.problem, pair, score, kept)
    has = np.setdiff1d(np.arange(15), [3, 5])
    rest = np.arange(15, n)
    assert found["linked"].tolist() == [f"{pair[1]}_{j}" for j in has]
    assert (found["n_with"], found["n_without"]) == (13, n - 15)
    assert found["with_counterpart"] == pytest.approx(score[has].mean())
    assert found["without_counterpart"] == pytest.approx(score[rest].mean())
    assert found["p"] == pytest.approx(mannwhitneyu(score[has], score[rest], alternative="less").pvalue)


def test_counterparts_where_one_kind_is_missing(linked: Any, make_planted: Callable):
    n = len(linked.problem.modalities["b"].features)
    only = calibration.counterparts(linked.problem, PAIR, np.ones(n), np.arange(n) < 15)
    assert (only["n_with"], only["n_without"]) == (15, 0)
    assert not {"p", "without_counterpart"} & set(only)
    unlinked = make_planted(n_pairs=110, coupled_by=0)
    assert calibration.counterparts(unlinked.problem, PAIR, np.ones(n), np.ones(n, dtype=bool)) == {}


# --- calibration -------------------------------------------------------------------------------------------------


def held_out(found: Any, pair: tuple[str, str] = PAIR, seed: int = 0) -> list:
    return list(calibration._held_out(found.problem, found.domains, pair, of(found, pair), seed))


@pytest.mark.parametrize(("n_links", "folds"), [(15, 3), (13, 5), (12, 0)])
def test_folds_leave_ten_links(make_planted: Callable, n_links: int, folds: int):
    """Three of them, five where fewer than ten would be left, none where even so they are too few."""
    found = make_planted(n_links=n_links, own=10)
    parts = held_out(found)
    assert len(parts) == folds
    out = [part[2].first for part in parts]
    if folds:
        assert sorted(np.concatenate(out)) == list(range(n_links))
        assert max(len(at) for at in out) <= n_links - 10


def test_plans_of_the_calibration_do_not_know_the_links(linked: Any):
    """Each is the coupling from the other links, widened like the one in use."""
    parts = held_out(linked)
    n = landmark_count(linked.problem)
    for plan, weight, links in parts:
        rest = linked.known.links.take(~np.isin(linked.known.links.first, links.first))
        assert len(rest) == 10
        held = couple(linked.problem.only(*PAIR, links=rest), linked.domains, random_state=0, n_landmarks=n)[0][PAIR]
        np.testing.assert_array_equal(weight, held.weight)
        expected = uncertainty.widened(held.plan, linked.x["a"])
        np.testing.assert_allclose(plan.toarray(), expected.toarray(), atol=1e-6)


def test_links_of_one_feature_are_held_out_together(linked: Any):
    links = replace(linked.known.links, second=np.r_[0, 0, 0, np.arange(3, 15)])
    problem = linked.problem.only(*PAIR, links=links)
    parts = list(calibration._held_out(problem, linked.domains, PAIR, of(linked), 0))
    with_first = [set(part[2].first) & {0, 1, 2} for part in parts]
    assert sorted(len(at) for at in with_first)[-1] == 3


@pytest.mark.parametrize("pair", [PAIR, BACK])
def test_predicted_and_observed(linked: Any, pair: tuple[str, str]):
    """Predicted: the score of the feature under the plan that did not know it; observed: 1 − r² with its partner."""
    scores = of(linked, pair)
    kept = np.arange(len(scores.score)) != 4
    found = calibration.calibration(linked.problem, linked.domains, pair, scores, kept, 0)
    table = found["calibration"]
    assert found["calibration_source"] == "held-out links"
    assert sorted(table["feature"]) == sorted(f"{pair[1]}_{j}" for j in range(15) if j != 4)
    assert found["calibration_spearman"] == pytest.approx(spearmanr(table["predicted"], table["observed"])[0])
    source = linked.domains[pair[0]].smoothed.columns(np.arange(15)).astype(np.float64)
    parts = held_out(linked, pair)
    for plan, weight, links in parts:
        predicted, _ = uncertainty.explained(plan, weight, scores.mean, scores.variance)
        # the links are those of equal numbers, every third of them inverted
        for j, sign in zip(links.first, links.sign):
            if j == 4:
                continue
            row = table["feature"].tolist().index(f"{pair[1]}_{j}")
            assert table["predicted"][row] == pytest.approx(predicted[j], rel=1e-6)
            r = np.corrcoef(plan @ scores.mean[:, j].astype(np.float64), source[:, j])[0, 1]
            assert sign * r > 0.5
            assert table["observed"][row] == pytest.approx(1 - r**2, abs=1e-5)


def test_a_link_that_does_not_hold_is_observed(linked: Any):
    """Its partner of noise correlates with nothing, or the other way round: that explains nothing either."""
    links, kept = linked.known.links, np.ones(len(linked.problem.modalities["b"].features), dtype=bool)
    wrong = replace(links, second=np.r_[links.second[:14], 30], sign=np.r_[-links.sign[:1], links.sign[1:]])
    problem = linked.problem.only(*PAIR, links=wrong)
    found = calibration.calibration(problem, linked.domains, PAIR, of(linked), kept, random_state=0)["calibration"]
    observed = dict(zip(found["feature"], found["observed"]))
    assert observed["b_0"] == 1
    assert observed["b_30"] > 0.9
    assert np.median(found["observed"]) < 0.2


def test_few_links_are_not_calibrated_and_it_is_said(make_planted: Callable, caplog: pytest.LogCaptureFixture):
    found = make_planted(n_links=12, own=10)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        kept = np.ones(len(found.problem.modalities["b"].features), dtype=bool)
        assert calibration.calibration(found.problem, found.domains, PAIR, of(found), kept, 0) == {}
    assert "12 links are too few to hold some of them out: no calibration." in caplog.text
    unlinked = make_planted(n_pairs=110, coupled_by=0)
    assert calibration.calibration(unlinked.problem, unlinked.domains, PAIR, of(unlinked), kept, 0) == {}


def test_at_most_so_many_links(linked: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "MAX_CALIBRATED", 9)
    assert [len(part[2]) for part in held_out(linked)] == [3, 3, 3]


def test_rank_correlation_needs_three_that_differ():
    def table(predicted: list[float], observed: list[float]) -> dict[str, np.ndarray]:
        return {"predicted": np.array(predicted), "observed": np.array(observed)}

    assert calibration.calibrated(table([1, 2, 3], [1, 3, 2]), "known pairs")["calibration_spearman"] == pytest.approx(
        0.5
    )
    for few in (table([1, 2], [1, 2]), table([1, 1, 1], [1, 2, 3])):
        assert set(calibration.calibrated(few, "known pairs")) == {"calibration", "calibration_source"}
