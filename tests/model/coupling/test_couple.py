"""Which knowledge makes the coupling: links, pairs or labels, many or few; and what they become in model space."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mudata as md
import numpy as np
import pytest

import scmmgan as smm
from scmmgan.data.read import PER_MODALITY
from scmmgan.data.read import read as read_data
from scmmgan.model.coupling import couple as module
from scmmgan.model.coupling import gromov
from scmmgan.model.coupling.couple import couple, landmark_count, linked_values, smoothed_links
from scmmgan.model.coupling.coupling import Coupling, couple_geometry, couple_known
from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.problem import Known, Links, Modality, Problem
from scmmgan.model.space import transform
from scmmgan.model.space.domain import Domain, model_space

PAIR, BACK = ("rna", "protein"), ("protein", "rna")
Started = tuple[Problem, dict[str, Domain]]


@pytest.fixture(scope="module", autouse=True)
def _short_search() -> Iterator[None]:
    """Few minima are polished: which one is found does not matter here."""
    before = gromov.N_POLISHED
    gromov.N_POLISHED = 3
    yield
    gromov.N_POLISHED = before


def read(mdata: md.MuData, links: Any = None, **given: Any) -> Started:
    """The problem as `tl.align` reads it, and its model space."""
    arguments = {**PER_MODALITY, "links": links, "pairs": None, **given}
    problem = read_data(mdata, list(mdata.mod), arguments)
    return problem, model_space(problem, random_state=0)


def knowing(of: Started, **known: Any) -> Started:
    """The same model space, with other knowledge of rna and protein."""
    return of[0].only(*PAIR, **known), of[1]


def with_domain(of: Started, name: str, domain: Domain) -> dict[str, Domain]:
    return {**of[1], name: domain}


def true_pairs(mdata: md.MuData, k: int) -> np.ndarray:
    """Row numbers of k cells that are the same."""
    rows = [np.argsort(mdata.uns["truth"][m]["cell"]) for m in PAIR]
    return np.stack(rows, axis=1)[np.random.default_rng(0).permutation(mdata["rna"].n_obs)[:k]]


def codes_of(mdata: md.MuData) -> dict[str, np.ndarray]:
    names = sorted(set().union(*(mdata[m].obs["cell_type"] for m in mdata.mod)))
    return {m: np.array([names.index(v) for v in mdata[m].obs["cell_type"]]) for m in mdata.mod}


@pytest.fixture(scope="module")
def tiny() -> md.MuData:
    return smm.datasets.toy(n_cells=120, n_features=[30, 20])


@pytest.fixture(scope="module")
def linked(tiny: md.MuData) -> Started:
    """120 cells, 15 links."""
    return read(tiny, "gene", smooth=2)


@pytest.fixture(scope="module")
def shared() -> Started:
    """A space of equal names."""
    found = read(smm.datasets.toy(n_cells=100, n_features=[60, 60], shared_genes=True), "auto")
    assert found[0].shared
    return found


# --- what decides ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "pairs", "labels", "kind", "relaxed"),
    [
        (True, 0, False, "links", True),
        (True, 5, True, "links", True),
        # nine links or fewer, a hundred pairs or more: all that is known serves
        (9, 110, False, "links", True),
        (3, 0, False, "links", True),
        (False, 100, False, "pairs", True),
        (False, 100, True, "pairs", True),
        (False, 99, False, "geometry", False),
        (False, 0, True, "geometry", True),
        (False, 0, False, "geometry", False),
    ],
)
def test_what_makes_the_coupling(
    tiny: md.MuData, linked: Started, links: bool | int, pairs: int, labels: bool, kind: str, relaxed: bool
):
    table = linked[0].of(*PAIR).links
    if links is not True:
        table = table.take(np.arange(links)) if links else None
    rows = true_pairs(tiny, pairs) if pairs else None
    problem, domains = knowing(linked, links=table, pairs=rows, labels=codes_of(tiny) if labels else None)
    found, loadings = couple(problem, domains, random_state=0, n_landmarks=20)
    assert set(found) == {PAIR, BACK}
    for c in found.values():
        assert c.kind == kind
        assert c.relaxed == relaxed
        assert c.known.sum() == pairs
        assert ("link_weight" in c.info) == bool(links)
    assert set(loadings) == (set(found) if links else set())
    for source, target, sign, weight in loadings.values():
        assert source.shape[1] == target.shape[1] == len(sign) == len(weight) == len(table)


def test_couplings_are_those_of_what_is_known(tiny: md.MuData, linked: Started, monkeypatch: pytest.MonkeyPatch):
    """Links in model space, pairs, labels and seed reach the coupling of the two, landmarks inside labels."""
    pairs, labels = true_pairs(tiny, 6), codes_of(tiny)
    for links in (linked[0].of(*PAIR).links, None):
        problem, domains = knowing(linked, links=links, pairs=pairs, labels=labels)
        found, _ = couple(problem, domains, random_state=3, n_landmarks=20)
        x = {m: d.x for m, d in domains.items()}
        landmarks = {m: find_landmarks(v, n_landmarks=20, labels=labels[m], random_state=3) for m, v in x.items()}
        how: dict[str, Any] = {"pairs": pairs, "labels": labels, "random_state": 3}
        if links is None:
            expected = couple_geometry(x, landmarks, **how)
        else:
            values = linked_values(problem.of(*PAIR), domains, shared=False)
            expected = couple_known(x, landmarks, values, refine=True, **how)
        # the seed, too: it is asked for, and mostly of no consequence
        name = "couple_geometry" if links is None else "couple_known"
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, random_state, **__: pytest.fail(f"seed {random_state}"))
            with pytest.raises(pytest.fail.Exception, match="seed 3"):
                couple(problem, domains, random_state=3, n_landmarks=20)
        for pair, c in expected.items():
            np.testing.assert_array_equal(found[pair].landmarks.label, c.landmarks.label)
            np.testing.assert_array_equal(found[pair].anchors, c.anchors)
            np.testing.assert_array_equal(found[pair].weight, c.weight)
            assert (found[pair].plan != c.plan).nnz == 0


def test_agreement_of_links_counts_outside_of_shared_spaces_only(shared: Started):
    """There hundreds of names vote alike: nothing is refined, and every link keeps the weight of its table."""
    problem, domains = shared
    weights = np.linspace(0.2, 1, problem.of(*PAIR).n_links)
    links = replace(problem.of(*PAIR).links, weight=weights)
    problem, domains = knowing(shared, links=links)
    x = {m: d.x for m, d in domains.items()}
    landmarks = {m: find_landmarks(v, n_landmarks=20) for m, v in x.items()}
    for of, refine in ((problem, False), (replace(problem, spaces=()), True)):
        found, loadings = couple(of, domains, random_state=0, n_landmarks=20)
        values = linked_values(of.of(*PAIR), domains, shared=not refine)
        expected = couple_known(x, landmarks, values, refine=refine)
        agreement = expected[PAIR].info["link_weight"]
        assert (agreement < 1).any() == refine
        for pair, c in expected.items():
            np.testing.assert_allclose(found[pair].anchors, c.anchors, atol=1e-6)
            assert (found[pair].plan != c.plan).nnz == 0
            np.testing.assert_array_equal(found[pair].info["link_weight"], agreement)
            np.testing.assert_allclose(loadings[pair][3], weights * agreement if refine else weights)


def test_loadings_weigh_as_links_agree(tiny: md.MuData, linked: Started):
    """The weights of the table times those by agreement; wrong links have next to none."""
    known = linked[0].of(*PAIR)
    right = known.links
    free = {m: np.setdiff1d(np.arange(n), known.positions(m))[:3] for m, n in (("rna", 30), ("protein", 20))}
    sign = np.ones(18)
    sign[4] = -1
    links = Links(np.r_[right.first, free["rna"]], np.r_[right.second, free["protein"]], np.r_[np.ones(17), 0.5], sign)
    problem, domains = knowing(linked, links=links)
    found, loadings = couple(problem, domains, random_state=0)
    agreement = found[PAIR].info["link_weight"]
    assert agreement.shape == (18,)
    for (a, b), (source, target, signs, weight) in loadings.items():
        np.testing.assert_allclose(weight, agreement * links.weight)
        np.testing.assert_array_equal(signs, sign)
        for m, loading in ((a, source), (b, target)):
            np.testing.assert_array_equal(loading, domains[m].transform.decoder[:, problem.of(a, b).positions(m)])
    # the one whose sign is wrong is among the wrong ones
    wrong = np.isin(np.arange(18), [4, 15, 16, 17])
    assert agreement[~wrong].mean() > 2 * agreement[wrong].mean()


# --- links in model space ----------------------------------------------------------------------------------------


def test_linked_values_carry_signs_and_weights(linked: Started):
    """Half as measured, half smoothed: the mean of both z-scores; signs on the first side."""
    known, domains = linked[0].of(*PAIR), linked[1]
    sign, weight = np.where(np.arange(15) == 3, -1.0, 1.0), np.linspace(0.25, 1, 15)
    signed = replace(known, links=replace(known.links, sign=sign, weight=weight))
    for function, of in ((linked_values, Domain.half_smoothed), (smoothed_links, Domain.zscored)):
        how = {"shared": False} if function is linked_values else {}
        plain, found = (function(k, domains, **how) for k in (known, signed))
        for i, m in enumerate(PAIR):
            expected = of(domains[m], known.positions(m))
            np.testing.assert_array_equal(plain[m], expected)
            assert found[m].dtype == np.float32
            np.testing.assert_allclose(found[m], expected * np.sqrt(weight) * (sign if i == 0 else 1), atol=1e-5)
            np.testing.assert_allclose(plain[m].std(0), 1, atol=1e-3)
        assert function(replace(known, links=None), domains, **how) == {}
    half, smooth = linked_values(known, domains, shared=False), smoothed_links(known, domains)
    assert np.abs(half["rna"] - smooth["rna"]).max() > 0.1


def test_links_of_a_shared_space_are_those_in_its_pca(shared: Started, monkeypatch: pytest.MonkeyPatch):
    """They are read by half as elsewhere; of thousands of equal names those in the PCA are enough."""
    monkeypatch.setattr(transform, "N_DISPERSED", 40)
    problem = shared[0]
    domains = model_space(problem, random_state=0)
    known = problem.of(*PAIR)
    assert len(domains["rna"].transform.encoded) == 40 < known.n_links
    inside = np.isin(known.links.first, domains["rna"].transform.encoded)
    found = linked_values(known, domains, shared=True)
    for m in PAIR:
        at = known.positions(m)[inside]
        assert set(at) == set(domains[m].transform.encoded)
        np.testing.assert_array_equal(found[m], domains[m].half_smoothed(at))
        assert linked_values(known, domains, shared=False)[m].shape[1] == known.n_links
    # all of them are in the loss
    _, loadings = couple(problem, domains, random_state=0, n_landmarks=20)
    assert loadings[PAIR][0].shape == (len(domains["rna"].transform.encoder), known.n_links)


def test_links_compare_cells_by_what_they_are_themselves(monkeypatch: pytest.MonkeyPatch):
    """Where neighbours are alike in other features, smoothing blurs the linked ones: half of each is as it was measured."""
    n, rng, modalities, truth = 300, np.random.default_rng(0), {}, {}
    for m in ("a", "b"):
        own, common = rng.normal(size=(n, 4)), rng.normal(size=(n, 3))
        slopes = np.random.default_rng(1).normal(size=(3, 12))
        values = common @ slopes + 0.5 * rng.normal(size=(n, 12))
        # many features of its own decide who is a neighbour
        rest = own @ rng.normal(size=(4, 60)) + 0.3 * rng.normal(size=(n, 60))
        x = np.hstack([values, rest]).astype(np.float32)
        modalities[m], truth[m] = Modality(m, x, np.arange(n), np.arange(72), steps=3), common
    links = Links(np.arange(12), np.arange(12), np.ones(12), np.ones(12))
    problem = Problem(modalities, {("a", "b"): Known(("a", "b"), links)})
    domains = model_space(problem, random_state=0)

    def carried() -> float:
        found, _ = couple(problem, domains, random_state=0, n_landmarks=150)
        there = found["a", "b"].plan @ found["a", "b"].landmarks.mean(truth["b"])
        return float(np.mean([np.corrcoef(v, w)[0, 1] for v, w in zip(there.T, truth["a"].T)]))

    both = carried()
    monkeypatch.setattr(Domain, "half_smoothed", Domain.zscored)
    smoothed_only = carried()
    assert both > 0.6
    assert both > smoothed_only + 0.1


# --- how far cells are matched -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lacking() -> md.MuData:
    """A toy whose protein side lacks the type of the first cell of rna."""
    mdata = smm.datasets.toy(n_cells=200, n_features=[60, 60])
    kept = mdata["protein"].obs["cell_type"] != mdata["rna"].obs["cell_type"].iloc[0]
    mdata.mod["protein"] = mdata["protein"][kept].copy()
    return mdata


def alone_and_found(monkeypatch: pytest.MonkeyPatch, problem: Problem, domains: dict) -> tuple[dict, dict]:
    """Couplings as they are made of two modalities, and as `couple` hands them out."""
    alone: dict = {}

    def recorded(make: Any) -> Any:
        def wrapped(*args: Any, **settings: Any) -> dict:
            one = make(*args, **settings)
            alone.update(one)
            return one

        return wrapped

    for name, make in (("couple_known", couple_known), ("couple_geometry", couple_geometry)):
        monkeypatch.setattr(module, name, recorded(make))
    return alone, couple(problem, domains, random_state=0, n_landmarks=40)[0]


def averaged(weight: np.ndarray, domain: Domain) -> np.ndarray:
    """By two steps, however many the features took."""
    step = domain.smoothed.operator.toarray().astype(np.float64)
    return step @ step @ weight.astype(np.float64)


@pytest.mark.parametrize("smooth", [None, 1, 3])
def test_cells_are_matched_as_far_as_their_neighbours_are(
    monkeypatch: pytest.MonkeyPatch, lacking: md.MuData, smooth: int | None
):
    by_links = read(lacking, "gene", smooth=smooth)
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(len(d.x))[:100] for d in by_links[1].values()], axis=1)
    for known in ({}, {"pairs": rows[:30]}, {"links": None, "pairs": rows}):
        problem, domains = knowing(by_links, **known)
        alone, found = alone_and_found(monkeypatch, problem, domains)
        for i, m in enumerate(PAIR):
            pair, d = (m, PAIR[1 - i]), domains[m]
            expected = averaged(alone[pair].weight, d) if smooth else alone[pair].weight.copy()
            if smooth:
                assert np.abs(expected - alone[pair].weight).max() > 0.01
            if "pairs" in known:
                expected[known["pairs"][:, i]] = 1
            weight = found[pair].weight
            assert weight.dtype == np.float32
            assert weight.min() >= 0
            assert weight.max() <= 1
            np.testing.assert_allclose(weight, expected, atol=1e-5)
            # nothing else is touched
            np.testing.assert_array_equal(found[pair].anchors, alone[pair].anchors)
            assert (found[pair].plan != alone[pair].plan).nnz == 0
            # from 0 to 1
            of = lacking[m].obs["cell_type"]
            whole = replace(alone[pair], weight=(of != of.iloc[0]).to_numpy(dtype=np.float32))
            got = module._averaged(whole, d).weight[~whole.known]
            assert got.min() < 0.2
            assert got.max() > 0.9
            expected = averaged(whole.weight, d) if smooth else whole.weight
            np.testing.assert_allclose(got, expected[~whole.known], atol=1e-5)


def test_cells_are_matched_as_their_neighbours_in_shared_spaces_and_between_all_modalities(
    monkeypatch: pytest.MonkeyPatch, shared: Started
):
    mdata = smm.datasets.toy(n_cells=100, n_features=[60, 60], shared_genes=True)
    three = md.MuData(dict(mdata.mod.items()) | {"third": mdata["protein"][20:].copy()})
    for problem, domains in (shared, read(three, "auto")):
        assert problem.shared
        alone, found = alone_and_found(monkeypatch, problem, domains)
        assert len(found) == len(domains) * (len(domains) - 1)
        for (a, b), coupling in found.items():
            np.testing.assert_allclose(coupling.weight, averaged(alone[a, b].weight, domains[a]), atol=1e-5)


def test_two_of_one_space_are_coupled_beside_a_third_as_alone(shared: Started):
    """What a third modality shares with neither: its few links change nothing between the other two."""
    genes = smm.datasets.toy(n_cells=100, n_features=[60, 60], shared_genes=True)
    third = genes["protein"][20:, :12].copy()
    third.var_names = [*third.var_names[:8], *(f"own{i}" for i in range(4))]
    problem, domains = read(md.MuData({"third": third, **dict(genes.mod.items())}), "auto")
    found, loadings = couple(problem, domains, random_state=0)
    alone, own = couple(*shared, random_state=0)
    for pair in (PAIR, PAIR[::-1]):
        np.testing.assert_allclose(found[pair].plan.toarray(), alone[pair].plan.toarray(), atol=1e-4)
        np.testing.assert_allclose(found[pair].anchors, alone[pair].anchors, atol=1e-3)
        assert (found[pair].info["link_weight"] == 1).all()
        assert np.array_equal(loadings[pair][3], own[pair][3])
    # the third has its own space, and links that are weighed
    assert problem.shared == [PAIR, PAIR[::-1]]
    assert found["third", "rna"].info["link_weight"].min() < 0.9


@pytest.mark.parametrize("swapped", [0.0, 0.4])
def test_neighbours_do_not_match_cells_of_a_label_that_the_other_side_lacks(
    monkeypatch: pytest.MonkeyPatch, lacking: md.MuData, swapped: float
):
    codes = codes_of(lacking)
    missing = codes["rna"][0]
    # of labels that are not pure: the smoothing crosses them
    rng = np.random.default_rng(0)
    out = rng.random(len(codes["rna"])) < swapped
    codes["rna"] = np.where(out, rng.permutation(codes["rna"]), codes["rna"])
    problem, domains = knowing(read(lacking, "gene", smooth=2), labels=codes)
    alone, found = alone_and_found(monkeypatch, problem, domains)
    for pair, coupling in found.items():
        np.testing.assert_array_equal(coupling.weight, alone[pair].weight)
    weight = found[PAIR].weight
    assert weight[codes["rna"] == missing].max() < 0.05
    assert np.median(weight[codes["rna"] != missing]) > 0.95


def test_couplings_by_shapes_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch, linked: Started):
    alone, found = alone_and_found(monkeypatch, *knowing(linked, links=None))
    assert {c.kind for c in found.values()} == {"geometry"}
    for pair, coupling in found.items():
        np.testing.assert_array_equal(coupling.weight, alone[pair].weight)


# --- landmarks ---------------------------------------------------------------------------------------------------


def test_number_of_landmarks(linked: Started):
    assert landmark_count(linked[0]) == 300
    assert landmark_count(knowing(linked, links=None)[0]) == 150
    assert landmark_count(knowing(linked, links=None, pairs=np.zeros((100, 2), dtype=int))[0]) == 300
    found, _ = couple(*linked, random_state=0)
    # at most half of the cells
    assert {len(c.landmarks.mass) for c in found.values()} == {60}


def test_one_set_of_landmarks_per_modality(monkeypatch: pytest.MonkeyPatch):
    """Pairs place the cells of two of three modalities, shapes the others: landmarks of a modality are the same for all."""
    asked: list[int] = []

    def counted(x: np.ndarray, **how: Any) -> Any:
        asked.append(len(x))
        return find_landmarks(x, **how)

    monkeypatch.setattr(module, "SHAPE_LANDMARKS", 20)
    monkeypatch.setattr(module, "find_landmarks", counted)
    mdata = smm.datasets.toy(n_cells=110, n_modalities=3, n_features=[30, 20, 25])
    mdata.mod["atac"] = mdata["atac"][:100].copy()
    problem, domains = read(mdata)
    pairs = np.tile(np.arange(100)[:, None], (1, 2))
    problem = replace(problem, known={**problem.known, PAIR: replace(problem.known[PAIR], pairs=pairs)})
    found, _ = couple(problem, domains, random_state=0)
    # found once for each modality
    assert asked == [110, 110, 100]
    for m in mdata.mod:
        first, second = (c.landmarks for (_, b), c in found.items() if b == m)
        assert first is second
        assert len(first.mass) == 20
    assert found[PAIR].kind == "pairs"
    assert found["atac", "protein"].kind == "geometry"


# --- what is said ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "labels", "level", "message"),
    [
        (0, False, logging.INFO, "No links say which populations of 'rna' and 'protein' correspond"),
        (4, False, logging.INFO, "coupled by their shapes with the help of 4 known pairs."),
        (4, True, logging.INFO, "coupled by their shapes with the help of 4 known pairs and labels."),
        (0, True, logging.INFO, "coupled by their shapes with the help of labels."),
    ],
)
def test_what_is_said_of_shapes(caplog: pytest.LogCaptureFixture, pairs: int, labels: bool, level: int, message: str):
    known = Known(PAIR, None, np.zeros((pairs, 2), int) if pairs else None, {} if labels else None)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        module._warn_of_shapes(known)
    (record,) = caplog.records
    assert record.levelno == level
    assert message in record.getMessage()
    # the one warning is that of the verdict
    assert ("mirror image" in record.getMessage()) == (not pairs and not labels)


def test_where_it_is_said(linked: Started, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Of shapes that decide, and of how many links agree; once for the two, not for each direction."""
    with caplog.at_level(logging.DEBUG, logger="scmmgan"):
        found, _ = couple(*linked, random_state=0, n_landmarks=20)
    agree = int((found[PAIR].info["link_weight"] > 0.1).sum())
    assert [r.getMessage() for r in caplog.records] == [f"{agree} of 15 links agree with the others."]
    caplog.clear()
    monkeypatch.setattr(module, "couple_geometry", lambda *_, **__: dict.fromkeys((PAIR, BACK), Coupling))
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        couple(*knowing(linked, links=None), random_state=0, n_landmarks=20)
    assert len(caplog.records) == 1
    assert "No links say" in caplog.text
