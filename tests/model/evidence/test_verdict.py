"""What the evidence amounts to: which numbers make which verdict, and the words for it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

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
    sides = {side: np.array([f"{side}{j}" for j in range(12)], dtype=object) for side in PAIR}
    links["links"] = {**sides, "correlation": np.full(12, 0.5)}
    return {"kind": "links", "swap_limit": 1 / 3, "populations": TABLE, **links, **changes}


def without_links(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in record_of(**changes).items() if "links" not in name}


def pairs_of(**changes: Any) -> dict[str, Any]:
    pairs = {"pairs_mean": 0.1, "pairs_error": 0.02, "pairs_n": 30, "pairs_p": 0.01, "pairs_in_use": 0.1}
    return {**pairs, "pairs": np.full(30, 0.1), "pairs_null": np.full(99, 0.5), **changes}


def said(record: dict[str, Any]) -> str:
    return str(verdict.verdict(record, PAIR)["verdict"])


# --- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "supported by links"),
        ({"links_mean": 0.3}, "not identifiable"),
        # a mean of a few links may be large by chance
        ({"links_mean": 0.36}, "not identifiable"),
        ({"links_mean": 0.36, "links_error": 0.02}, "supported by links"),
        ({"links_mean": 0.32, "links_error": 0.0}, "not identifiable"),
        ({"links_p": 0.02}, "not identifiable"),
        ({"restart_share": 0.5, "restart_modes": np.array([0, 0, 1, 1])}, "not identifiable"),
        ({"restart_share": 0.75, "restart_modes": np.array([0, 0, 0, 1])}, "supported by links"),
        ({"quality_follows": 0.29}, "supported by links"),
        ({"quality_follows": 0.31}, "not identifiable"),
        # the coupling in use carries them over worse than they say themselves
        ({"links_in_use": 0.4}, "supported by links"),
        ({"links_in_use": 0.3}, "not identifiable"),
        ({"links_mean": 0.9, "links_in_use": 0.46}, "supported by links"),
        ({"links_mean": 0.9, "links_in_use": 0.44}, "not identifiable"),
    ],
)
def test_what_support_takes(changes: dict[str, Any], expected: str):
    record = record_of(**changes)
    found = verdict.verdict(record, PAIR)
    assert found["verdict"] == expected
    assert found["supported"] == expected.startswith("supported")
    assert list(found)[:3] == ["verdict", "supported", "statement"]
    # nothing of the record is left out
    assert all(found[name] is value for name, value in record.items())
    assert found["statement"].startswith(f"a and b: {expected}.")
    assert f"correlate {record['links_mean']:.2f} ± {record['links_error']:.2f} on average" in found["statement"]
    large = record["links_mean"] - record["links_error"] >= 1 / 3
    assert ("more than chance, and may be no more" in found["statement"]) == (record["links_p"] <= 0.01 and not large)


@pytest.mark.parametrize("side", PAIR)
def test_ten_different_features_on_both_sides(side: str):
    """One feature's noise is in all of its links: they agree with each other for no better reason."""
    for n, expected in ((9, "not identifiable"), (10, "supported by links")):
        record = record_of()
        record["links"] = {**record["links"], side: np.array([f"f{j % n}" for j in range(12)], dtype=object)}
        found = verdict.verdict(record, PAIR)
        assert found["verdict"] == expected
        assert "and 10 links of different features" in found["statement"]


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


@pytest.mark.parametrize(
    ("mean", "error", "n", "p", "alone", "beside_links"),
    [
        (0.24, 0.05, 10, 0.01, "supported by pairs", "supported by links and pairs"),
        # not sure enough to support, nor bad enough to contradict
        (0.24, 0.07, 10, 0.01, "not identifiable", "supported by links"),
        (0.31, 0.01, 10, 0.01, "not identifiable", "not identifiable"),
        (0.2, 0.01, 10, 0.02, "not identifiable", "not identifiable"),
        (0.31, 0.01, 9, 0.01, "not identifiable", "supported by links"),
        (0.1, 0.01, 4, 0.01, "not identifiable", "supported by links"),
        (0.1, 0.01, 5, 0.01, "supported by pairs", "supported by links and pairs"),
    ],
)
def test_the_standard_error_of_few_pairs_counts(
    mean: float, error: float, n: int, p: float, alone: str, beside_links: str
):
    pairs = pairs_of(pairs_mean=mean, pairs_error=error, pairs_n=n, pairs_p=p, pairs_in_use=mean)
    found = verdict.verdict(record_of(**pairs), PAIR)
    assert found["verdict"] == beside_links
    # links hold, and ten or more pairs do not
    assert ("The pairs contradict the rest." in found["statement"]) == (beside_links == "not identifiable")
    found = verdict.verdict(without_links(**pairs), PAIR)
    assert found["verdict"] == alone
    assert f"{mean:.0%} ± {error:.0%} are nearer" in found["statement"]


@pytest.mark.parametrize(("in_use", "expected"), [(0.29, "supported by links and pairs"), (0.31, "not identifiable")])
def test_the_coupling_in_use_must_put_the_pairs_near(in_use: float, expected: str):
    assert said(record_of(**pairs_of(pairs_in_use=in_use))) == expected


# --- labels and shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separated", "p", "expected"),
    [(0.6, 0.01, True), (0.4, 0.01, False), (0.6, 0.02, False), (0.5, 0.005, True)],
)
def test_labels(separated: float, p: float, expected: bool):
    labels = {"labels_separated": separated, "labels_p": p, "labels_order": 0.8}
    found = verdict.verdict(without_links(kind="geometry", **labels), PAIR)
    assert found["verdict"] == ("supported by labels" if expected else "not identifiable")
    assert f"a purity of {separated:.2f} among neighbours" in found["statement"]
    assert "inside a label they say nothing" in found["statement"]
    # pairs that do not hold outweigh them
    against = pairs_of(pairs_mean=0.45, pairs_in_use=0.45, pairs_p=0.3)
    assert said(without_links(kind="geometry", **labels, **against)) == "not identifiable"


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
    assert record["verdict"] == "supported by links"
    # of two rows for the same swap the larger population speaks, once
    assert record["statement"].endswith("could be swapped: B with A.")
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
    assert found["verdict"] == "ambiguous: populations X and Y could be swapped"
    assert not found["supported"]
    assert "no cost certifies the choice: 1 other couplings cost at most 5% more." in found["statement"]
    apart = {**shapes, "populations": swaps(swap=np.array(["", "", ""], dtype=object))}
    assert said(apart) == "not identifiable"


# --- all pairs of modalities -------------------------------------------------------------------------------------


def test_every_statement_is_logged(caplog: pytest.LogCaptureFixture):
    records = {("a", "b"): record_of(), ("a", "c"): record_of(links_mean=0.1)}
    more = {("a", "b"): {"quality_follows": 0.1}, ("a", "c"): {"quality_follows": 0.2}}
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        found = verdict.verdicts(records, more)
    assert [record["verdict"] for record in found.values()] == ["supported by links", "not identifiable"]
    assert [record["quality_follows"] for record in found.values()] == [0.1, 0.2]
    assert [r.levelno for r in caplog.records] == [logging.INFO, logging.WARNING]
    # one line each; the numbers stay in the record
    first, second = (r.getMessage() for r in caplog.records)
    assert first.startswith("a and b: supported by links (held-out links correlate 0.50, shuffled ones at most 0.00).")
    assert second.startswith("a and c: not identifiable.")
    assert "12 held-out links correlate 0.50" in found["a", "b"]["statement"]
    assert found["a", "c"]["statement"].startswith("a and c: not identifiable.")
