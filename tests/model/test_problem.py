"""What an alignment starts from: records of arrays, and what follows from them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from scmmgan.model.problem import Known, Links, Modality, Problem

LINKS = Links(np.array([4, 0, 2]), np.array([1, 3, 0]), np.array([1.0, 0.5, 0.25]), np.array([1.0, -1.0, 1.0]))


def modality(name: str, n: int = 6, **given: object) -> Modality:
    return Modality(name, np.ones((n, 5), np.float32), np.arange(n), np.arange(5), **given)  # type: ignore[arg-type]


def problem(*known: Known, **given: object) -> Problem:
    modalities = {m: modality(m, n) for m, n in (("a", 6), ("b", 7), ("c", 8))}
    return Problem(modalities, {k.names: k for k in known}, **given)  # type: ignore[arg-type]


def test_pairs_of_which_nothing_is_known_go_through_a_third_modality():
    few, many = Links(*(np.arange(3),) * 2, np.ones(3), np.ones(3)), np.zeros((4, 2), dtype=int)
    ab, bc = Known(("a", "b"), few), Known(("b", "c"), few)
    chain = problem(ab, Known(("a", "c")), bc)
    assert chain.through == {("a", "c"): "b"}
    assert list(chain.direct) == [("a", "b"), ("b", "c")]
    assert not chain.by_shape
    assert chain.only("c", "a").through == {}
    # few pairs, or labels that the ways lack, are used themselves
    codes = {"a": np.zeros(6, dtype=int), "c": np.zeros(8, dtype=int)}
    for own in (Known(("a", "c"), pairs=many), Known(("a", "c"), labels=codes)):
        assert problem(ab, own, bc).through == {}
        assert problem(ab, own, bc).by_shape
    # nothing leads there and on
    assert problem(ab, Known(("a", "c")), Known(("b", "c"))).through == {}
    # of several the one with most links and pairs
    more = replace(problem(ab, Known(("a", "c")), bc), modalities={m: modality(m) for m in "abcd"})
    known = {**more.known, **{k.names: k for k in (Known(("a", "d"), LINKS, many), Known(("c", "d"), LINKS, many))}}
    known["b", "d"] = Known(("b", "d"))
    assert replace(more, known=known).through == {("a", "c"): "d", ("b", "d"): "a"}


def test_a_star_goes_through_its_centre():
    star = problem(Known(("a", "b"), LINKS), Known(("a", "c"), LINKS), Known(("b", "c"), LINKS), centre="a")
    assert star.through == {("b", "c"): "a"}
    # by itself a pair is one of two modalities
    assert star.only("b", "c").through == {}
    assert star.only("b", "c").centre is None


def test_modality():
    plain = modality("a", 9)
    assert len(plain) == 9
    assert (plain.n_pcs, plain.steps, plain.embedded) == (50, None, False)
    assert plain.allowed is plain.batches is plain.coordinates is None
    for record in (plain, LINKS, Known(("a", "b")), problem()):
        with pytest.raises(FrozenInstanceError):
            record.name = "other"  # type: ignore[misc, union-attr]


@pytest.mark.parametrize("chosen", [np.array([2, 0]), np.array([True, False, True])])
def test_chosen_links(chosen: np.ndarray):
    got = LINKS.take(chosen)
    assert len(LINKS) == 3
    assert len(got) == 2
    for name in ("first", "second", "weight", "sign"):
        np.testing.assert_array_equal(getattr(got, name), getattr(LINKS, name)[chosen])


def test_known():
    nothing, linked = Known(("a", "b")), Known(("a", "b"), LINKS, np.zeros((4, 2), dtype=int))
    assert (nothing.n_links, nothing.n_pairs, linked.n_links, linked.n_pairs) == (0, 0, 3, 4)
    np.testing.assert_array_equal(linked.positions("a"), LINKS.first)
    np.testing.assert_array_equal(linked.positions("b"), LINKS.second)
    assert nothing.positions("a").dtype == nothing.positions("b").dtype == int
    assert len(nothing.positions("a")) == 0


@pytest.mark.parametrize(
    ("links", "n_pairs", "labels", "by_shape"),
    [
        (None, 0, False, True),
        (None, 99, False, True),
        (None, 99, True, True),
        (None, 100, False, False),
        (LINKS, 0, False, False),
        (LINKS, 99, True, False),
    ],
)
def test_shapes_decide_without_links_and_with_fewer_than_100_pairs(
    links: Links | None, n_pairs: int, labels: bool, by_shape: bool
):
    codes = {m: np.zeros(200, dtype=int) for m in "ab"} if labels else None
    known = Known(("a", "b"), links, np.zeros((n_pairs, 2), dtype=int) if n_pairs else None, codes)
    assert known.by_shape is by_shape
    # one step of smoothing where links or pairs decide, three where shapes do
    found = problem(known)
    assert found.by_shape is by_shape
    assert found.steps == dict.fromkeys("abc", 3 if by_shape else 1)
    # shapes of any two
    few = Known(("b", "c"), pairs=np.zeros((5, 2), dtype=int))
    assert problem(known, Known(("a", "c"), LINKS), few).by_shape


def test_steps_that_were_asked_for_stay():
    found = problem(Known(("a", "b"), LINKS))
    found = replace(found, modalities={**found.modalities, "a": modality("a", steps=0), "b": modality("b", steps=5)})
    assert found.steps == {"a": 0, "b": 5, "c": 1}


def test_what_is_known_of_two_in_any_order():
    known = Known(("a", "b"), LINKS)
    found = problem(known, Known(("a", "c")), Known(("b", "c")))
    assert found.names == ["a", "b", "c"]
    assert found.of("a", "b") is known
    assert found.of("b", "a") is known
    assert found.of("c", "a") is found.known["a", "c"]
    with pytest.raises(KeyError):
        found.of("a", "d")


def test_labels_of_all_modalities():
    codes = {m: np.arange(n) for m, n in (("a", 6), ("b", 7), ("c", 8))}
    known = [Known(pair, labels={m: codes[m] for m in pair}) for pair in (("a", "b"), ("a", "c"), ("b", "c"))]
    found = problem(*known).labels
    assert found is not None
    assert set(found) == set("abc")
    for m, of in codes.items():
        assert found[m] is of
    assert problem(Known(("a", "b"))).labels is None


def test_problem_of_two_with_other_knowledge():
    """For couplings without some links or pairs: all else stays, the problem itself too."""
    pairs = np.zeros((4, 2), dtype=int)
    spaces = [{"c": np.arange(2), "b": np.arange(2)}, {m: np.arange(3) for m in "ba"}]
    whole = problem(
        Known(("a", "b"), LINKS, pairs), Known(("a", "c")), label_names=["x"], spaces=spaces, fingerprint="f"
    )
    got = whole.only("b", "a", links=LINKS.take(np.array([0])))
    assert got.names == ["a", "b"]
    assert list(got.known) == [("a", "b")]
    known = got.of("a", "b")
    assert known.n_links == 1
    assert known.pairs is pairs
    assert (got.label_names, got.shared) == (["x"], [("a", "b"), ("b", "a")])
    assert got.modalities["a"] is whole.modalities["a"]
    assert whole.of("a", "b").n_links == 3
    assert whole.only("a", "b").of("a", "b").links is LINKS
    without = whole.only("a", "b", links=None, pairs=None).of("a", "b")
    assert (without.n_links, without.n_pairs) == (0, 0)
    assert without.by_shape
