"""Records of a diagnosis on arrays: populations, swaps, rivals, and the numbers that a verdict rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scmmgan.model.coupling.couple import smoothed_links
from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.evidence import heldout, populations
from scmmgan.model.evidence.heldout import HeldOut

COLUMNS = ["modality", "population", "share", "partner", "swap", "gap", "ambiguous", "unmatched"]


def table_of(record: dict[str, Any], modality: str) -> dict[str, np.ndarray]:
    """Rows of one modality."""
    rows = record["populations"]["modality"] == modality
    return {name: column[rows] for name, column in record["populations"].items()}


# --- populations -------------------------------------------------------------------------------------------------


def test_populations():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 200)
    x = (6 * rng.normal(size=(7, 5)))[labels] + rng.normal(size=(200, 5))
    landmarks = find_landmarks(x, n_landmarks=60, labels=labels)
    by_label = populations.populations(landmarks, labels)
    np.testing.assert_array_equal(by_label[landmarks.label], labels)
    clusters = populations.populations(landmarks)
    assert len(set(clusters)) == 10
    # one landmark without any label: clusters decide
    gaps = np.where(landmarks.label == 3, -1, labels)
    np.testing.assert_array_equal(populations.populations(landmarks, gaps), clusters)
    assert len(populations.populations(find_landmarks(x[:8], n_landmarks=4))) == 4


def test_sums_by_population():
    values = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(
        populations.by_population(values, np.array([1, 0, 1, 1])), [values[1], values[[0, 2, 3]].sum(0)]
    )


# --- swaps -------------------------------------------------------------------------------------------------------


def test_two_populations_that_no_link_keeps_apart():
    """Populations 0 and 1 differ in nothing that is linked; 2 differs from both."""
    rng = np.random.default_rng(0)
    population = np.repeat([0, 1, 2], 10)
    truth = np.array([[1.0], [1.0], [-1.0]])[population]
    a = truth + 0.01 * rng.normal(size=(30, 40))
    b = truth + 0.01 * rng.normal(size=(30, 40))
    p = np.full(30, 1 / 30)
    held = HeldOut(np.ones(40), np.zeros((9, 40)), np.eye(30)[None] / 30, np.zeros(40, dtype=int), (a, b))
    for way in (0, 1):
        gaps = populations.swap_gaps(held, p, population, way=way)
        assert gaps[0, 1] < 0.7
        assert gaps[0, 2] == pytest.approx(1)
        np.testing.assert_allclose(gaps, gaps.T)


@pytest.mark.parametrize("way", [0, 1])
def test_every_column_is_carried_over_by_the_plan_that_did_not_know_it(way: int):
    """Against sums written out; the plans of the folds have little in common."""
    rng = np.random.default_rng(0)
    sizes, l = (9, 7), 12
    a, b = (rng.normal(size=(m, l)) for m in sizes)
    fold = rng.permutation(np.arange(l) % 3)
    plans = np.stack([rng.random(sizes) ** 6 for _ in range(3)])
    held = HeldOut(np.zeros(l), np.zeros((1, l)), plans, fold, (a, b))
    own, other = (a, b) if way == 0 else (b, a)
    mass, population = rng.dirichlet(np.ones(sizes[way])), rng.permutation(np.arange(sizes[way]) % 3)
    expected, first_only = np.ones((3, 3)), np.ones((3, 3))
    for found, of in ((expected, fold), (first_only, np.zeros(l, dtype=int))):
        for i in range(3):
            for j in range(3):
                total = size = 0.0
                for f in range(l):
                    plan = plans[of[f]] if way == 0 else plans[of[f]].T
                    carried = plan @ other[:, f] / plan.sum(1)
                    means = [
                        [np.average(v[population == k], weights=mass[population == k]) for v in (own[:, f], carried)]
                        for k in (i, j)
                    ]
                    gain = (means[0][0] - means[1][0]) * (means[0][1] - means[1][1])
                    total, size = total + gain, size + abs(gain)
                if i != j:
                    found[i, j] = total / size
    np.testing.assert_allclose(populations.swap_gaps(held, mass, population, way=way), expected, atol=1e-12)
    # or the folds would not matter
    assert np.abs(expected - first_only).max() > 0.2


def test_disagreement_is_the_mass_sent_elsewhere():
    plan = np.eye(4) / 4
    swapped = plan[[1, 0, 2, 3]]
    half = (plan + swapped) / 2
    found = populations.disagreement(plan, np.stack([plan, swapped, half]), np.array([0, 1, 2, 2]))
    np.testing.assert_allclose(found, [[0, 0, 0, 0], [1, 1, 0, 0], [0.5, 0.5, 0, 0]])
    # inside one population of the target nothing is another answer
    assert (populations.disagreement(plan, plan[None, [0, 1, 3, 2]], np.array([0, 1, 2, 2])) == 0).all()


def test_the_cheapest_rival_with_another_answer_is_named():
    flow = np.eye(3) / 3
    swapped, turned = flow[[1, 0, 2]], flow[[1, 2, 0]]
    same = np.arange(3)
    swap, gap = populations._rival_answers(flow, np.stack([swapped, turned]), np.array([0.02, 0.04]), same, same)
    np.testing.assert_array_equal(swap, [1, 0, 0])
    np.testing.assert_allclose(gap, [0.02, 0.02, 0.04])
    swap, gap = populations._rival_answers(flow, np.stack([turned, flow]), np.array([0.01, 7.0]), same, same)
    np.testing.assert_array_equal(swap, [1, 2, 0])
    np.testing.assert_allclose(gap, 0.01)
    swap, gap = populations._rival_answers(flow, flow[None], np.array([0.5]), same, same)
    assert (set(swap), set(gap)) == ({-1}, {1})


def test_no_feature_stands_out_of_a_mean_that_is_chance():
    p = np.array([0.001, 0.2, 0.03, 0.9])
    np.testing.assert_allclose(populations.adjusted(p, 0.01), [0.01, 0.8 / 3, 0.06, 0.9])
    np.testing.assert_allclose(populations.adjusted(p, 0.4), [0.4, 0.4, 0.4, 0.9])


# --- records -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_links(make_planted: Callable) -> tuple:
    """Links, 30 pairs and labels, and the record of them."""
    found = make_planted(n_pairs=30, labels=True)
    return found, *populations.diagnose(found.problem, found.domains, found.couplings, random_state=0)


def test_numbers_of_links(by_links: tuple):
    found, records, _ = by_links
    record = records["a", "b"]
    assert record["kind"] == "links"
    assert record["swap_limit"] == pytest.approx(1 / 3)
    # what was tested: smoothed linked features on landmarks, every table with all of its folds
    marks = {s: found.couplings[t, s].landmarks for s, t in (("a", "b"), ("b", "a"))}
    values = smoothed_links(found.known, found.domains)
    a, b = (marks[m].mean(values[m]) for m in "ab")
    p, q = (marks[m].mass for m in "ab")
    held = heldout.held_out_links(a, b, p, q, np.arange(12), refine=True, random_state=0)
    np.testing.assert_allclose(record["links"]["correlation"], held.score, atol=1e-5)
    np.testing.assert_allclose(record["links_null"], held.null, atol=1e-5)
    assert record["links_mean"] == pytest.approx(held.mean, abs=1e-5)
    assert record["links_error"] == pytest.approx(held.error, abs=1e-5)
    assert record["links_p"] == held.p == 0.01
    assert record["links"]["a"].tolist() == [f"a_{j}" for j in range(12)]
    assert record["links"]["b"].tolist() == [f"b_{j}" for j in range(12)]
    np.testing.assert_allclose(record["links"]["p"], held.each_p, atol=1e-3)
    ranked = np.sort(record["links"]["p"])
    stepped = np.minimum.accumulate((ranked * 12 / np.arange(1, 13))[::-1])[::-1]
    np.testing.assert_allclose(np.sort(record["links"]["q"]), np.maximum(stepped, 0.01))
    assert record["links"]["q"].max() < 0.05
    # every third runs the other way, and is known to do so
    assert record["links"]["correlation"].min() > 0.9
    # and the coupling in use, on the same landmarks
    plan = heldout.coarse_plan(
        found.couplings, ("a", "b"), {m: (marks[m], np.arange(len(marks[m].mass))) for m in "ab"}
    )
    assert record["links_in_use"] == pytest.approx(heldout.carried(plan, a, b, p, q).mean(), abs=1e-5)


def test_numbers_of_pairs(by_links: tuple):
    found, records, _ = by_links
    record = records["a", "b"]
    assert record["pairs_n"] == len(record["pairs"]) == 30
    assert record["pairs_mean"] == pytest.approx(record["pairs"].mean())
    assert record["pairs_error"] == pytest.approx(record["pairs"].std(ddof=1) / 30**0.5)
    assert record["pairs_mean"] < 0.1
    assert record["pairs_p"] == 0.01
    # where the coupling in use puts these cells, by their plan: their anchors are the partners themselves
    c, x = found.couplings["a", "b"], found.x["b"]
    places = c.plan.toarray() @ c.landmarks.mean(x)
    near = []
    for i, j in found.known.pairs:
        distances = ((x - places[i]) ** 2).sum(1)
        near.append((distances < distances[j]).mean())
    assert record["pairs_in_use"] == pytest.approx(np.mean(near), abs=1e-6)


def test_numbers_of_labels(by_links: tuple):
    found, records, _ = by_links
    purity = {m: d.label_purity for m, d in found.domains.items()}
    expected = heldout.label_evidence(found.x, dict(found.known.labels), purity)
    assert {k: records["a", "b"][f"labels_{k}"] for k in expected} == expected
    assert expected["separated"] > 0.9


def test_populations_are_labels_with_their_names(by_links: tuple):
    found, records, _ = by_links
    table = records["a", "b"]["populations"]
    assert list(table) == COLUMNS
    assert len({len(column) for column in table.values()}) == 1
    for m in "ab":
        own = table_of(records["a", "b"], m)
        assert own["population"].tolist() == ["one", "two", "three", "four"]
        np.testing.assert_allclose(own["share"], np.bincount(found.population[m]) / 120)
        # the right partner
        assert own["partner"].tolist() == own["population"].tolist()
        assert (own["gap"] > 1 / 3).all()
        assert (own["swap"] != own["population"]).all()
        assert (own["unmatched"] < 0.1).all()


@pytest.mark.usefixtures("few_tables")
def test_ambiguous_cells_are_those_that_folds_send_elsewhere(make_planted: Callable):
    """Without labels: ten clusters on either side, and plans of five folds."""
    found = make_planted()
    records, flags = populations.diagnose(found.problem, found.domains, found.couplings, random_state=0)
    marks = {s: found.couplings[t, s].landmarks for s, t in (("a", "b"), ("b", "a"))}
    a, b = (marks[m].mean(v) for m, v in smoothed_links(found.known, found.domains).items())
    held = heldout.held_out_links(a, b, marks["a"].mass, marks["b"].mass, np.arange(12), random_state=0, n_null=0)
    sides = {m: (marks[m], np.arange(len(marks[m].mass))) for m in "ab"}
    plan = heldout.coarse_plan(found.couplings, ("a", "b"), sides)
    for s, t, own, others in (("a", "b", plan, held.plans), ("b", "a", plan.T, held.plans.transpose(0, 2, 1))):
        of = populations.populations(marks[t])
        expected = (populations.disagreement(own, others, of) > 0.5).any(0)[marks[s].label]
        np.testing.assert_array_equal(flags[s, t], expected)
        assert records["a", "b"][f"ambiguous_{s}"] == expected.mean()
        cells = populations.populations(marks[s])[marks[s].label]
        table = table_of(records["a", "b"], s)
        np.testing.assert_allclose(table["ambiguous"], [expected[cells == k].mean() for k in range(cells.max() + 1)])
        unmatched = 1 - found.couplings[s, t].weight
        np.testing.assert_allclose(
            table["unmatched"], [unmatched[cells == k].mean() for k in range(cells.max() + 1)], atol=1e-6
        )
        assert records["a", "b"][f"unmatched_{s}"] == pytest.approx(unmatched.mean(), abs=1e-6)
    assert flags["a", "b"].any() or flags["b", "a"].any()


@pytest.mark.usefixtures("few_tables")
def test_clusters_are_named_by_their_linked_features(make_planted: Callable):
    found = make_planted()
    records, _ = populations.diagnose(found.problem, found.domains, found.couplings, random_state=0)
    for m in "ab":
        names = table_of(records["a", "b"], m)["population"]
        marks = found.couplings["b" if m == "a" else "a", m].landmarks
        cells = populations.populations(marks)[marks.label]
        z = found.domains[m].zscored(np.arange(12))
        for k, name in enumerate(names):
            # the two whose mean over its cells is highest
            top = np.argsort(-z[cells == k].mean(0))[:2]
            assert name == f"{m} {k + 1} ({m}_{top[0]}, {m}_{top[1]})"


@pytest.mark.usefixtures("few_tables")
def test_the_seed_draws_folds_and_leaves_the_coupling_in_use(by_links: tuple):
    found, records, _ = by_links
    other, _ = populations.diagnose(found.problem, found.domains, found.couplings, random_state=7)
    first, second = records["a", "b"], other["a", "b"]
    for name in ("links_in_use", "pairs_in_use", "unmatched_a", "unmatched_b", "labels_order"):
        assert first[name] == second[name]
    assert not np.array_equal(first["links"]["correlation"], second["links"]["correlation"])
    assert first["links_mean"] == pytest.approx(second["links_mean"], abs=0.05)


@pytest.mark.usefixtures("few_tables")
def test_a_coupling_that_goes_against_its_links_is_seen(by_links: tuple):
    """It is the coupling handed in that is diagnosed: here with its plan turned upside down."""
    found, records, _ = by_links
    wrong = {pair: replace(c, plan=c.plan[::-1]) for pair, c in found.couplings.items()}
    record = populations.diagnose(found.problem, found.domains, wrong, random_state=0)[0]["a", "b"]
    assert record["links_mean"] == records["a", "b"]["links_mean"] > 0.9
    assert record["links_in_use"] < 0.5
    assert record["pairs_in_use"] > 0.25


@pytest.mark.usefixtures("few_tables")
def test_pairs_alone(make_planted: Callable):
    found = make_planted(n_pairs=105, coupled_by=0)
    records, flags = populations.diagnose(found.problem, found.domains, found.couplings, random_state=0)
    record = records["a", "b"]
    assert record["kind"] == "pairs"
    assert not {name for name in record if name.startswith("links")}
    assert record["pairs_n"] == 105
    assert len(record["pairs"]) == 100
    assert record["pairs_mean"] < 0.1
    # swaps by distances to pairs that were held out
    assert (record["populations"]["gap"] < 1).any()
    assert set(flags) == {("a", "b"), ("b", "a")}


@pytest.mark.parametrize("limit", [0.05, None])
def test_shapes_alone(limit: float | None, make_planted: Callable, monkeypatch: pytest.MonkeyPatch):
    found = make_planted(coupled_by=0)
    if limit is None:
        # between the costs of the first two rivals
        limit = float(np.mean(found.couplings["a", "b"].info["gaps"][:2]))
        monkeypatch.setattr(populations, "CLOSE_COST", limit)
    records, flags = populations.diagnose(found.problem, found.domains, found.couplings, random_state=0)
    record = records["a", "b"]
    assert record["kind"] == "geometry"
    assert record["swap_limit"] == limit
    assert not {name for name in record if name.split("_")[0] in ("links", "pairs", "labels", "unmatched")}
    c = found.couplings["a", "b"]
    np.testing.assert_array_equal(record["gaps"], c.info["gaps"])
    assert len(c.rivals) == len(record["gaps"]) >= 1
    # rivals that cost at most so much more, in populations of the target
    marks = {s: found.couplings[t, s].landmarks for s, t in (("a", "b"), ("b", "a"))}
    sides = {m: (marks[m], np.arange(len(marks[m].mass))) for m in "ab"}
    plan = heldout.coarse_plan(found.couplings, ("a", "b"), sides)
    near = c.rivals[record["gaps"] <= limit]
    assert len(near) == (1 if limit < 0.05 else 5)
    apart = populations.disagreement(plan, near, populations.populations(marks["b"]))
    np.testing.assert_array_equal(flags["a", "b"], (apart > 0.5).any(0)[marks["a"].label])
    assert record["ambiguous_a"] == flags["a", "b"].mean() > 0
    # names in `swap` are partners: populations of the other side
    table = table_of(record, "a")
    of_b = set(table_of(record, "b")["population"])
    assert set(table["partner"]) <= of_b
    assert set(table["swap"]) - {""} <= of_b
    assert (table["gap"][table["swap"] == ""] == 1).all()


@pytest.mark.usefixtures("few_tables")
def test_a_shared_space_does_not_reweigh_its_links(make_planted: Callable, monkeypatch: pytest.MonkeyPatch):
    found = make_planted(shared=True, n_links=40)
    how, original = [], heldout.held_out_links

    def spy(*args: Any, **arguments: Any) -> HeldOut:
        how.append(arguments["refine"])
        return original(*args, **arguments)

    monkeypatch.setattr(heldout, "held_out_links", spy)
    record = populations.diagnose(found.problem, found.domains, found.couplings, random_state=0)[0]["a", "b"]
    assert how == [False]
    assert record["links_mean"] > 0.8
    # couplings are made of at most 300 links, drawn at random; the others are scored, too
    monkeypatch.setattr(populations, "MAX_TESTED_LINKS", 15)
    tested = []
    monkeypatch.setattr(heldout, "held_out_links", lambda *a, **k: tested.append(k["tested"]) or spy(*a, **k))
    few = populations.diagnose(found.problem, found.domains, found.couplings, random_state=0)[0]["a", "b"]
    assert len(tested[0]) == 15
    assert tested[0].tolist() != list(range(15))
    assert few["links"]["a"].tolist() == [f"a_{j}" for j in range(40)]
    rest = np.setdiff1d(np.arange(40), tested[0])
    assert few["links"]["correlation"][rest].mean() == pytest.approx(few["links_mean"], abs=0.1)
    assert few["links"]["correlation"][tested[0]].mean() == pytest.approx(few["links_mean"])
    # as low as three tables allow
    assert few["links"]["p"][rest].mean() < 0.2


@pytest.mark.usefixtures("few_tables")
def test_many_landmarks_are_merged_for_all_of_it(make_planted: Callable, monkeypatch: pytest.MonkeyPatch):
    """The flags of cells come back through the merged landmarks."""
    found = make_planted()
    original = heldout.coarsen
    monkeypatch.setattr(heldout, "coarsen", lambda marks, **how: original(marks, n=25, **how))
    records, flags = populations.diagnose(found.problem, found.domains, found.couplings, random_state=0)
    assert records["a", "b"]["links_mean"] > 0.8
    assert flags["a", "b"].shape == (120,)
    assert table_of(records["a", "b"], "a")["share"].sum() == pytest.approx(1)


@pytest.mark.usefixtures("few_tables")
def test_a_population_without_a_partner_is_unmatched(make_planted: Callable):
    """Cells of a whose population b lacks."""
    found = make_planted(labels=True)
    couplings = {
        (s, t): replace(c, weight=np.where(found.population[s] == 2, 0.25, 1).astype(np.float32))
        for (s, t), c in found.couplings.items()
    }
    record = populations.diagnose(found.problem, found.domains, couplings, random_state=0)[0]["a", "b"]
    for m in "ab":
        np.testing.assert_allclose(table_of(record, m)["unmatched"], [0, 0, 0.75, 0])
        assert record[f"unmatched_{m}"] == pytest.approx(0.75 * (found.population[m] == 2).mean())
