"""What the evidence amounts to: which numbers make which verdict, and the words for it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from scmmgan.model.defaults import MIN_FEATURES, MIN_SHARE
from scmmgan.model.evidence import verdict

PAIR = ("a", "b")
TABLE = {
    "population": np.array(["A", "B"], dtype=object),
    "partner": np.array(["X", "Y"], dtype=object),
    "swap": np.array(["", ""], dtype=object),
    "gap": np.ones(2),
    "share": np.full(2, 0.5),
}


def record_of(**changes: Any) -> dict[str, Any]:
    links = {"links_mean": 0.5, "links_error": 0.05, "links_p": 0.01, "links_null": np.zeros(9)}
    links |= {"links_ceiling": 0.8, "links_ceiling_error": 0.02, "links_share": 0.625, "links_share_error": 0.02}
    return {"kind": "links", "swap_limit": 1 / 3, "populations": TABLE, **links, "links": table_of(12), **changes}


def table_of(evident: int, n: int = 12) -> dict[str, np.ndarray]:
    """Links, the first of them evident."""
    sides = {side: np.array([f"{side}{j}" for j in range(n)], dtype=object) for side in PAIR}
    return {**sides, "correlation": np.linspace(0.9, 0.1, n), "q": np.where(np.arange(n) < evident, 0.01, 0.5)}


def without_links(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in record_of(**changes).items() if "links" not in name}


def pairs_of(**changes: Any) -> dict[str, Any]:
    pairs = {"pairs_mean": 0.1, "pairs_error": 0.02, "pairs_n": 30, "pairs_p": 0.01, "pairs_in_use": 0.1}
    found = {**pairs, "pairs": np.full(30, 0.1), "pairs_null": np.full(99, 0.5), "pairs_q": np.full(30, 0.01)}
    return {**found, **changes}


def said(record: dict[str, Any]) -> str:
    return str(verdict.verdict(record, PAIR)["verdict"])


# --- through a third modality --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "mean", "grade", "words"),
    [
        (0.01, 0.5, "in part", "supported in part through c"),
        (0.01, 0.3, "in part", "supported in part through c"),
        (0.5, 0.5, "not identifiable", "not identifiable through c"),
    ],
)
def test_two_without_evidence_are_graded_as_the_weaker_way(
    p: float, mean: float, grade: str, words: str, caplog: pytest.LogCaptureFixture
):
    def leg(*names: str, **changes: Any) -> dict[str, Any]:
        record = record_of(**changes)
        table = dict(record["links"])
        record["links"] = {name: table.pop(side) for name, side in zip(names, PAIR)} | table
        return record

    records = {
        ("a", "b"): without_links(kind="through", through="c"),
        ("a", "c"): leg("a", "c"),
        ("b", "c"): leg("b", "c", links_p=p, links_mean=mean),
    }
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        got = verdict.verdicts(records)
    found = got["a", "b"]
    assert (found["grade"], found["verdict"], found["supported"]) == (grade, words, False)
    assert "Nothing of the two themselves was tested. a and c are supported by links." in found["statement"]
    assert f"b and c are {got['b', 'c']['verdict']}." in found["statement"]
    assert f"a and b: {words}" in caplog.text
    assert got["a", "c"]["grade"] == "supported"
    # with evidence of their own that counts
    records["a", "b"] = record_of(kind="through", through="c")
    assert verdict.verdicts(records)["a", "b"]["verdict"] == "supported by links"


# --- links -------------------------------------------------------------------------------------------------------


IN_PART = "supported in part by links: 12 of 12 features"
WEAK = "weak: more than chance, "


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "supported by links"),
        ({"links_mean": 0.3}, IN_PART),
        # a mean of a few links may be large by chance
        ({"links_mean": 0.36}, IN_PART),
        ({"links_mean": 0.36, "links_error": 0.02}, "supported by links"),
        ({"links_mean": 0.32, "links_error": 0.0}, IN_PART),
        ({"links_p": 0.02}, "not identifiable"),
        ({"links_mean": 0.3, "links_p": 0.02}, "not identifiable"),
        ({"restart_share": 0.5, "restart_modes": np.array([0, 0, 1, 1])}, WEAK + "but restarts disagree"),
        ({"restart_share": 0.75, "restart_modes": np.array([0, 0, 0, 1])}, "supported by links"),
        ({"quality_follows": 0.29}, "supported by links"),
        ({"quality_follows": 0.31}, WEAK + "but the trained map does not follow the coupling"),
        ({"quality_follows": 0.31, "links_p": 0.02}, "not identifiable"),
        # the coupling in use carries them over worse than they say themselves
        ({"links_in_use": 0.4}, "supported by links"),
        ({"links_in_use": 0.3}, IN_PART),
        ({"links_in_use": 0.2}, WEAK + "but labels or pairs lead the coupling elsewhere"),
        ({"links_mean": 0.9, "links_in_use": 0.46}, "supported by links"),
        ({"links_mean": 0.9, "links_in_use": 0.44}, WEAK + "but labels or pairs lead the coupling elsewhere"),
    ],
)
def test_what_support_takes(changes: dict[str, Any], expected: str):
    record = record_of(**changes)
    found = verdict.verdict(record, PAIR)
    assert found["verdict"] == expected
    assert found["supported"] == (found["grade"] == "supported") == (expected == "supported by links")
    assert list(found)[:4] == ["verdict", "grade", "supported", "statement"]
    # nothing of the record is left out
    assert all(found[name] is value for name, value in record.items())
    assert found["statement"].startswith(f"a and b: {expected}.")
    assert f"correlate {record['links_mean']:.2f} ± {record['links_error']:.2f} on average" in found["statement"]
    large = record["links_mean"] - record["links_error"] >= 1 / 3
    assert ("more than chance, and may be no more" in found["statement"]) == (record["links_p"] <= 0.01 and not large)


@pytest.mark.parametrize(
    ("evident", "share", "grade", "words"),
    [
        (4, 0.5, "in part", "supported in part by links: 4 of 12 features"),
        (MIN_FEATURES, MIN_SHARE, "in part", f"supported in part by links: {MIN_FEATURES} of 12 features"),
        (MIN_FEATURES - 1, 0.9, "weak", f"{WEAK}less than {MIN_FEATURES} features by themselves"),
        (12, MIN_SHARE - 0.01, "weak", f"{WEAK}less than {MIN_SHARE:.0%} of what noise allows"),
        # noise leaves no ceiling to compare with
        (12, float("nan"), "weak", f"{WEAK}less than {MIN_SHARE:.0%} of what noise allows"),
    ],
)
def test_support_in_part_takes_features_and_a_share_of_the_ceiling(evident: int, share: float, grade: str, words: str):
    record = record_of(links_mean=0.2, links_share=share, links=table_of(evident))
    found = verdict.verdict(record, PAIR)
    assert (found["verdict"], found["grade"], found["supported"]) == (words, grade, False)
    assert (found["links_evident"], found["links_features"]) == (evident, 12)
    # which: the strongest by name
    assert f"{evident} of 12 features have q < 0.05 by themselves: b0, b1" in found["statement"]
    assert ("…" in found["statement"]) == (evident > 5)
    assert ("Noise allows 0.80 ± 0.02" in found["statement"]) == np.isfinite(share)
    # without being better than every shuffled table none of it counts
    assert said({**record, "links_p": 0.02}) == "not identifiable"


def test_features_are_counted_once():
    """Ten links of one feature are one; the side with fewer features counts."""
    links = table_of(8)
    links["a"] = np.array(["one"] * 6 + [f"a{j}" for j in range(6)], dtype=object)
    found = verdict.verdict(record_of(links=links), PAIR)
    assert (found["links_features"], found["links_evident"]) == (7, 3)


@pytest.mark.parametrize("side", PAIR)
def test_ten_different_features_on_both_sides(side: str):
    """One feature's noise is in all of its links: they agree with each other for no better reason."""
    for n, expected in ((9, WEAK + "less than 10 linked features"), (10, "supported by links")):
        record = record_of()
        record["links"] = {**record["links"], side: np.array([f"f{j % n}" for j in range(12)], dtype=object)}
        found = verdict.verdict(record, PAIR)
        assert found["verdict"] == expected
        assert "and 10 links of different features" in found["statement"]


def test_of_many_links_300_make_the_mean():
    text = verdict.verdict(record_of(links=table_of(400, 500)), PAIR)["statement"]
    assert "300 held-out links correlate" in text
    assert "400 of 500 features" in text


def test_a_map_that_does_not_follow_says_so():
    text = verdict.verdict(record_of(quality_follows=0.42), PAIR)["statement"]
    assert "The trained map does not follow the coupling (0.42 of the cells are nearer than the anchor)." in text
    assert "does not follow" not in verdict.verdict(record_of(quality_follows=0.1), PAIR)["statement"]


def test_restarts_are_counted():
    record = record_of(restart_share=0.75, restart_modes=np.array([0, 0, 0, 1]))
    assert "75% of 4 restarts give the same map." in verdict.verdict(record, PAIR)["statement"]


def test_links_against_the_coupling_in_use_are_named():
    text = verdict.verdict(record_of(links_mean=0.9, links_in_use=0.2), PAIR)["statement"]
    assert "The coupling in use carries them over at 0.20: labels or pairs contradict them." in text


# --- pairs -------------------------------------------------------------------------------------------------------


PAIRS_IN_PART = "supported in part by pairs: 30 of 30 pairs"


@pytest.mark.parametrize(
    ("mean", "error", "n", "p", "alone", "beside_links"),
    [
        (0.24, 0.05, 10, 0.01, "supported by pairs", "supported by links and pairs"),
        # not sure enough to support, nor bad enough to contradict
        (0.24, 0.07, 10, 0.01, PAIRS_IN_PART, "supported by links"),
        # they contradict links that promise more
        (0.31, 0.01, 10, 0.01, PAIRS_IN_PART, PAIRS_IN_PART),
        (0.41, 0.01, 10, 0.01, WEAK + "less than 60% of the cells farther than held-out partners", WEAK + "but known pairs contradict it"),
        (0.2, 0.01, 10, 0.02, "not identifiable", WEAK + "but known pairs contradict it"),
        (0.31, 0.01, 9, 0.01, PAIRS_IN_PART, "supported by links"),
        (0.1, 0.01, 4, 0.01, WEAK + "less than 5 pairs", "supported by links"),
        (0.1, 0.01, 5, 0.01, "supported by pairs", "supported by links and pairs"),
    ],
)  # fmt: skip
def test_the_standard_error_of_few_pairs_counts(
    mean: float, error: float, n: int, p: float, alone: str, beside_links: str
):
    pairs = pairs_of(pairs_mean=mean, pairs_error=error, pairs_n=n, pairs_p=p, pairs_in_use=mean)
    found = verdict.verdict(record_of(**pairs), PAIR)
    assert found["verdict"] == beside_links
    # links hold, and ten or more pairs do not
    assert ("The pairs contradict the rest." in found["statement"]) == (not found["supported"])
    found = verdict.verdict(without_links(**pairs), PAIR)
    assert found["verdict"] == alone
    assert f"{mean:.0%} ± {error:.0%} are nearer" in found["statement"]


def test_pairs_by_themselves_are_counted():
    few = np.where(np.arange(30) < 2, 0.01, 0.5)
    pairs = pairs_of(pairs_mean=0.35, pairs_in_use=0.35, pairs_q=few)
    assert said(without_links(**pairs)) == WEAK + "less than 3 pairs by themselves"
    few[2] = 0.01
    assert said(without_links(**pairs)) == "supported in part by pairs: 3 of 30 pairs"


@pytest.mark.parametrize(("in_use", "expected"), [(0.29, "supported by links and pairs"), (0.31, PAIRS_IN_PART)])
def test_the_coupling_in_use_must_put_the_pairs_near(in_use: float, expected: str):
    assert said(record_of(**pairs_of(pairs_in_use=in_use))) == expected


# --- labels and shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separated", "p", "expected"),
    [(0.6, 0.01, True), (0.4, 0.01, False), (0.6, 0.02, False), (0.5, 0.005, True)],
)
def test_labels(separated: float, p: float, expected: bool):
    labels = {"labels_separated": separated, "labels_p": p, "labels_order": 0.8, "labels_n": 6.0}
    found = verdict.verdict(without_links(kind="geometry", **labels), PAIR)
    # never more than in part: inside a label they say nothing
    weak = WEAK + "less than 50% label purity" if p <= 0.01 else "not identifiable"
    assert found["verdict"] == ("supported in part by labels: 6 labels" if expected else weak)
    assert not found["supported"]
    assert f"a purity of {separated:.2f} among neighbours" in found["statement"]
    assert "inside a label they say nothing" in found["statement"]
    # pairs that do not hold outweigh them
    against = pairs_of(pairs_mean=0.45, pairs_in_use=0.45, pairs_p=0.3)
    contradicted = said(without_links(kind="geometry", **labels, **against))
    assert contradicted == (WEAK + "but known pairs contradict it" if p <= 0.01 else "not identifiable")


def swaps(**columns: Any) -> dict[str, np.ndarray]:
    table = {
        "population": np.array(["A", "B", "C"], dtype=object),
        "partner": np.array(["X", "Y", "Z"], dtype=object),
        "swap": np.array(["B", "A", ""], dtype=object),
        "gap": np.array([0.1, 0.1, 1.0]),
        "share": np.array([0.2, 0.5, 0.3]),
    }
    return {**table, **columns}


def test_populations_that_could_be_swapped_are_named():
    record = verdict.verdict(record_of(populations=swaps()), PAIR)
    # of two rows for the same swap the larger population speaks, once
    assert record["verdict"] == "supported by links"
    assert record["statement"].endswith("Hard to distinguish, could be swapped: B with A.")
    for changes, grade in (({"links_mean": 0.2}, IN_PART), ({"links_p": 0.5}, "not identifiable")):
        assert said(record_of(populations=swaps(), **changes)) == grade
    # only what is below the limit
    far = swaps(gap=np.array([0.4, 0.4, 1.0]))
    assert "could be swapped" not in verdict.verdict(record_of(populations=far), PAIR)["statement"]
    # at most three, the least certain first
    letters = list("ABCDEFGH")
    many = {
        "population": np.array(letters, dtype=object),
        "partner": np.array(letters, dtype=object),
        "swap": np.array(["B", "A", "D", "C", "F", "E", "H", "G"], dtype=object),
        "gap": np.repeat([0.3, 0.1, 0.25, 0.2], 2),
        "share": np.full(8, 1 / 8),
    }
    text = verdict.verdict(record_of(populations=many), PAIR)["statement"]
    assert text.endswith("could be swapped: C with D; G with H; E with F.")


def test_shapes_alone_are_never_support():
    table = swaps(swap=np.array(["Y", "X", ""], dtype=object), gap=np.array([0.02, 0.03, 1.0]))
    shapes = without_links(kind="geometry", swap_limit=0.05, populations=table, gaps=np.array([0.02, 0.2]))
    found = verdict.verdict(shapes, PAIR)
    assert found["verdict"] == "not identifiable; ambiguous: X and Y could be swapped"
    assert found["grade"] == "not identifiable"
    assert not found["supported"]
    assert "no cost certifies the choice: 1 other couplings cost at most 5% more." in found["statement"]
    apart = {**shapes, "populations": swaps(swap=np.array(["", "", ""], dtype=object))}
    assert said(apart) == "not identifiable"


# --- all pairs of modalities -------------------------------------------------------------------------------------


def test_every_statement_is_logged(caplog: pytest.LogCaptureFixture):
    changes = {"b": {}, "c": {"links_mean": 0.2}, "d": {"links_mean": 0.1, "links_share": 0.1}, "e": {"links_p": 0.3}}
    records = {}
    for m, of in changes.items():
        links = table_of(12)
        links[m] = links.pop("b")
        records["a", m] = record_of(**of, links=links)
    more = {pair: {"quality_follows": 0.1} for pair in records}
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        found = verdict.verdicts(records, more, {pair: {"depth_a": 0.3} for pair in records})
    assert [record["grade"] for record in found.values()] == ["supported", "in part", "weak", "not identifiable"]
    assert all((of["quality_follows"], of["depth_a"]) == (0.1, 0.3) for of in found.values())
    assert [r.levelno for r in caplog.records] == [logging.INFO] * 2 + [logging.WARNING] * 2
    # one line each; the numbers stay in the record
    first, second, third, fourth = (r.getMessage() for r in caplog.records)
    assert first.startswith(
        "a and b: supported by links (held-out links correlate 0.50, shuffled ones at most 0.00, noise allows 0.80)."
    )
    assert second.startswith("a and c: supported in part by links: 12 of 12 features (held-out links correlate 0.20")
    assert "Which ones: table `links`" in second
    assert third.startswith(f"a and d: {WEAK}less than {MIN_SHARE:.0%} of what noise allows. Draw no conclusions from")
    assert fourth.startswith("a and e: not identifiable. Nothing shows")
    assert not any("\n" in line for line in (first, second, third, fourth))
    assert "12 held-out links correlate 0.50" in found["a", "b"]["statement"]


@pytest.mark.parametrize(("depth", "says"), [(0.6, True), (0.4, False)])
def test_depth_as_the_main_content_is_said(depth: float, says: bool, caplog: pytest.LogCaptureFixture):
    found = verdict.verdicts({PAIR: record_of()}, {PAIR: {"depth_a": depth, "depth_b": 0.1}})
    assert ("Features mapped from a correlate 0.60" in found[PAIR]["statement"]) == says
    assert "mapped from b" not in found[PAIR]["statement"]
    caplog.clear()
    verdict.warn_of_depth(found)
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * says
    assert ("depth is the main content" in caplog.text) == says
