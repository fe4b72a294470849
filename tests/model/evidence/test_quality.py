"""Scores of a trained map without the truth: on the cells of the test, against definitions written out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.metrics import two_sample_auc
from scmmgan.model.evidence import quality
from scmmgan.model.nets.aligner import split

Cells = dict[str, np.ndarray]


class Linear:
    """A map between any two modalities by matrices; remembers what it was asked."""

    def __init__(self, maps: dict[tuple[str, str], np.ndarray]) -> None:
        self.maps = maps
        self.asked: list[np.ndarray] = []

    def translate(self, x: np.ndarray, source: str, target: str) -> np.ndarray:
        self.asked.append(x)
        return x @ self.maps[source, target]


def setting(sizes: dict[str, int], seed: int = 0) -> tuple[Linear, dict[str, Any], dict[Any, Any]]:
    rng = np.random.default_rng(seed)
    x = {m: rng.normal(size=(n, 3)) for m, n in sizes.items()}
    pairs = [(s, t) for s in sizes for t in sizes if s != t]
    maps = {pair: np.eye(3) + 0.4 * rng.normal(size=(3, 3)) for pair in pairs}
    anchors = {(s, t): x[s] @ maps[s, t] + 0.5 * rng.normal(size=x[s].shape) for s, t in pairs}
    domains = {m: SimpleNamespace(x=v) for m, v in x.items()}
    return Linear(maps), domains, {pair: SimpleNamespace(anchors=v) for pair, v in anchors.items()}


def score(found: tuple, *, auc: Any = lambda mapped, measured: 0.5, seed: int = 0) -> dict[Any, dict[str, Any]]:
    return quality.score_map(*found, two_sample_auc=auc, random_state=seed)


def test_consistency_of_direct_and_round_about_maps():
    found = setting({"a": 40, "b": 45, "c": 50})
    aligner, domains, _ = found
    got = score(found)
    assert set(got) == {("a", "b"), ("a", "c"), ("b", "c")}
    for (a, b), record in got.items():
        (third,) = set("abc") - {a, b}
        ways = []
        for s, t in ((a, b), (b, a)):
            x = domains[s].x
            direct, around = x @ aligner.maps[s, t], x @ aligner.maps[s, third] @ aligner.maps[third, t]
            ways.append(((direct - around) ** 2).mean() / domains[t].x.var(0).mean())
        assert record["quality_consistency"] == pytest.approx(np.mean(ways))
    assert "quality_consistency" not in score(setting({"a": 40, "b": 45}))["a", "b"]
    # through the centre of a star there is no other way
    star = quality.score_map(*found, two_sample_auc=lambda *_: 0.5, random_state=0, centre="c")
    assert "quality_consistency" not in star["a", "b"]
    assert star["a", "c"]["quality_consistency"] == got["a", "c"]["quality_consistency"]


def by_hand(found: tuple, rows: Cells) -> dict[str, float]:
    """Definitions, mean of both directions."""
    aligner, domains, couplings = found
    out: dict[str, list[float]] = {"cycle": [], "overlap": [], "follows": [], "chance": []}
    for s, t in (("a", "b"), ("b", "a")):
        x, y, anchors = domains[s].x[rows[s]], domains[t].x[rows[t]], couplings[s, t].anchors[rows[s]]
        mapped = x @ aligner.maps[s, t]
        back = mapped @ aligner.maps[t, s]
        out["cycle"].append(((back - x) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
        k = min(20, len(x) // 4)
        near = [np.argsort(((v[:, None] - v) ** 2).sum(2) + 1e9 * np.eye(len(v)), axis=1)[:, :k] for v in (x, mapped)]
        out["overlap"].append(np.mean([len(set(i) & set(j)) / k for i, j in zip(*near)]))
        out["chance"].append(k / (len(x) - 1))
        # cells nearer to the mapped cell than its anchor
        limit = ((mapped - anchors) ** 2).sum(1)
        out["follows"].append((((mapped[:, None] - y) ** 2).sum(2) < limit[:, None]).mean())
    return {name: float(np.mean(v)) for name, v in out.items()}


def check(record: dict[str, Any], expected: dict[str, float]) -> None:
    assert record["quality_cycle"] == pytest.approx(expected["cycle"])
    assert record["quality_overlap"] == pytest.approx(expected["overlap"])
    assert record["quality_overlap_chance"] == pytest.approx(expected["chance"])
    assert record["quality_follows"] == pytest.approx(expected["follows"])


@pytest.mark.parametrize("seed", [0, 5])
def test_scored_on_cells_that_took_no_part(seed: int):
    """On those of the test: neither trained on, nor did they choose the weights."""
    sizes = {"a": 1_200, "b": 1_000}
    found = setting(sizes)
    record = score(found, seed=seed)["a", "b"]
    parts = split(sizes, seed)
    rows = {m: of.test for m, of in parts.items()}
    assert {m: len(at) for m, at in rows.items()} == {"a": 60, "b": 50}
    assert record["quality_held_out"] is True
    check(record, by_hand(found, rows))
    for m in "ab":
        unseen = np.concatenate([parts[m].train, parts[m].validation])
        assert not set(rows[m]) & set(unseen)
    first = found[0].asked[0]
    np.testing.assert_array_equal(first, found[1]["a"].x[rows["a"]])


@pytest.mark.parametrize(("n", "held_out"), [(150, False), (990, False), (991, True)])
def test_too_few_held_out_cells_are_not_scored_alone(n: int, held_out: bool):
    """Fewer than 50: all cells are scored, and it is said that they are."""
    sizes = {"a": 1_200, "b": n}
    found = setting(sizes)
    record = score(found)["a", "b"]
    assert record["quality_held_out"] is held_out
    scored = {m: len(split(sizes, 0)[m].test) if held_out else size for m, size in sizes.items()}
    assert [len(x) for x in found[0].asked[::2]] == list(scored.values())
    if n == 150:
        check(record, by_hand(found, {m: np.arange(size) for m, size in sizes.items()}))


def test_chance_of_the_overlap():
    """k / (n − 1): what neighbours drawn at random have in common, of this many cells."""
    found = setting({"a": 300, "b": 40})
    record = score(found)["a", "b"]
    assert record["quality_overlap_chance"] == pytest.approx((20 / 299 + 10 / 39) / 2)


def test_mapped_cells_are_classified_against_measured_ones():
    asked = []

    def auc(mapped: np.ndarray, measured: np.ndarray) -> float:
        asked.append((mapped, measured))
        return [0.9, 0.5][len(asked) - 1]

    sizes = {"a": 1_000, "b": 1_000}
    found = setting(sizes)
    assert score(found, auc=auc)["a", "b"]["quality_auc"] == pytest.approx(0.7)
    rows = {m: of.test for m, of in split(sizes, 0).items()}
    for (mapped, measured), (s, t) in zip(asked, (("a", "b"), ("b", "a"))):
        np.testing.assert_allclose(mapped, found[1][s].x[rows[s]] @ found[0].maps[s, t])
        np.testing.assert_array_equal(measured, found[1][t].x[rows[t]])


def test_a_perfect_map_and_one_that_goes_nowhere():
    rng = np.random.default_rng(0)
    x = {m: rng.normal(size=(200, 3)) for m in "ab"}
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    x["b"] = x["b"] @ turn
    domains = {m: SimpleNamespace(x=v) for m, v in x.items()}
    maps = {("a", "b"): turn, ("b", "a"): turn.T}
    anchors = {(s, t): SimpleNamespace(anchors=x[s] @ maps[s, t]) for s, t in maps}
    record = score((Linear(maps), domains, anchors), auc=two_sample_auc)["a", "b"]
    assert record["quality_cycle"] == pytest.approx(0, abs=1e-12)
    assert record["quality_overlap"] == 1
    assert record["quality_follows"] == 0
    assert abs(record["quality_auc"] - 0.5) < 0.1
    # the mean cell, whatever is asked
    nowhere = Linear(dict.fromkeys(maps, np.zeros((3, 3))))
    record = score((nowhere, domains, anchors), auc=two_sample_auc)["a", "b"]
    assert record["quality_cycle"] == pytest.approx(1, abs=0.05)
    assert record["quality_overlap"] < 2 * record["quality_overlap_chance"]
    assert record["quality_follows"] > 0.3
    assert record["quality_auc"] > 0.99


def test_three_modalities():
    found = score(setting({"a": 60, "b": 50, "c": 40}))
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert len({tuple(record.values()) for record in found.values()}) == 3


# --- depth -------------------------------------------------------------------------------------------------------


def modality(values: Any, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"values": values, "counts": None, "embedded": False, **more})


def test_depth_is_that_of_the_counts_where_there_are_any():
    values = np.array([[1.0, 2], [0, 0], [3, 4]])
    np.testing.assert_allclose(quality.log_depth(modality(values)), np.log1p([3, 0, 7]))
    np.testing.assert_allclose(
        quality.log_depth(modality(-values, counts=sp.csr_matrix(2 * values))), np.log1p([6, 0, 14])
    )
    # values below 0 have no total, nor does a representation
    assert quality.log_depth(modality(-values)) is None
    assert quality.log_depth(modality(values, embedded=True)) is None


def test_mean_correlation_of_mapped_features_with_depth():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(50, 3))
    decoder = rng.normal(size=(3, 7))
    decoder[:, 4] = 0
    values = rng.gamma(2, size=(50, 6))
    depth = np.log1p(values.sum(1))
    domains: Any = {
        "a": SimpleNamespace(modality=modality(values), transform=None),
        "b": SimpleNamespace(modality=modality(-values), transform=SimpleNamespace(decoder=decoder)),
    }
    domains["a"].transform = SimpleNamespace(decoder=decoder)
    found = quality.depth_correlations(domains, {("a", "b"): y, ("b", "a"): y})
    features = np.delete(y @ decoder, 4, axis=1)
    expected = np.mean([abs(np.corrcoef(f, depth)[0, 1]) for f in features.T])
    assert found == {("a", "b"): {"depth_a": pytest.approx(expected)}}
