"""Modalities in model space: what is smoothed, on which graph, and which features make the space; no MuData anywhere."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.problem import Known, Links, Modality, Problem
from scmmgan.model.space import diffusion, domain, linear, pca
from scmmgan.model.space.domain import Domain, model_space
from scmmgan.model.space.graphs import neighbor_graphs
from scmmgan.model.space.smoothing import BatchedMatrix
from scmmgan.model.space.transform import fit_shared, fit_transform

FORMATS = {"dense": np.asarray, "csr": sp.csr_matrix}
SHAPES = {"a": (90, 30), "b": (80, 20)}


def values(name: str) -> np.ndarray:
    """Signal of rank 4 under noise, other cells in either modality."""
    rng = np.random.default_rng(ord(name))
    n, g = SHAPES[name]
    return (3 + rng.normal(size=(n, 4)) @ rng.normal(size=(4, g)) + rng.normal(size=(n, g))).astype(np.float32)


def links(k: int = 5) -> Links:
    return Links(np.arange(k), np.arange(k)[::-1] + 10, np.ones(k), np.ones(k))


def problem(kind: str = "dense", linked: bool = True, labels: Any = None, **given: dict[str, Any]) -> Problem:
    """Two modalities; `given` are fields of them, by name of the modality."""
    modalities = {}
    for m, (n, g) in SHAPES.items():
        own = {name: of[m] for name, of in given.items() if m in of}
        modalities[m] = Modality(m, FORMATS[kind](values(m)), np.arange(n), np.arange(g), **own)
    return Problem(modalities, {("a", "b"): Known(("a", "b"), links() if linked else None, labels=labels)})


def space(of: Problem) -> dict[str, Domain]:
    return model_space(of, random_state=0)


def zscore(v: np.ndarray) -> np.ndarray:
    return (v - v.mean(0)) / v.std(0)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("linked", "steps"), [(True, 1), (False, 3)])
def test_domain_is_smoothed_and_transformed(kind: str, linked: bool, steps: int):
    """One step on denoised components where links decide, three on plain ones where shapes do."""
    found = space(problem(kind, linked, n_pcs={"a": 10, "b": 10}))
    assert list(found) == ["a", "b"]
    for name, d in found.items():
        x = values(name).astype(np.float64)
        (graph,), _ = neighbor_graphs(d.modality, denoise=linked)
        s = np.linalg.matrix_power(graph.operator.toarray().astype(np.float64), steps) @ x
        z = zscore(s)
        scores = z @ np.linalg.svd(z, full_matrices=False)[2][:10].T
        expected = scores / np.sqrt((scores**2).mean())
        # up to the signs of the axes
        np.testing.assert_allclose(np.abs(d.x), np.abs(expected), atol=2e-3)
        assert d.x.dtype == np.float32
        assert d.x.shape == (len(x), 10)
        at = np.array([4, 1])
        np.testing.assert_allclose(d.zscored(at), z[:, at], atol=1e-4)
        assert d.zscored(at).dtype == np.float32
        assert d.smoothed.steps == steps
        assert d.name == name
        assert d.label_purity is None


def test_every_graph_is_asked_for_once(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def counted(modality: Modality, *args: Any, **how: Any) -> Any:
        asked.append((modality.name, how["denoise"], how["random_state"]))
        return neighbor_graphs(modality, *args, **how)

    monkeypatch.setattr(domain, "neighbor_graphs", counted)
    model_space(problem(), random_state=3)
    assert asked == [("a", True, 3), ("b", True, 3)]
    asked.clear()
    model_space(problem(linked=False, steps={"b": 0}), random_state=3)
    assert asked == [("a", False, 3)]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_half_smoothed_features(kind: str, steps: int):
    """z-scores before and after the smoothing count alike, however much it takes away."""
    at = np.array([4, 1, 7])
    d = space(problem(kind, steps={"a": steps}))["a"]
    x, s = values("a")[:, at].astype(np.float64), d.smoothed.columns(at).astype(np.float64)
    np.testing.assert_array_equal(d.smoothed.measured(at), values("a")[:, at])
    assert (s.std(0) < 0.9 * x.std(0)).all() == (steps > 0)
    found = d.half_smoothed(at)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, zscore(zscore(x) + zscore(s)), atol=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
def test_spaces_of_many_cells_are_the_same_in_blocks(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Model space, linked features and means of landmarks: another order of sums, no other numbers."""
    label = np.arange(90) % 7
    at, before = np.array([4, 1, 7, 4]), space(problem(kind))["a"]
    for name, value in (("BLOCKED_FROM", 50), ("BLOCK_ROWS", 16), ("BLOCK_VALUES", 180)):
        monkeypatch.setattr(linear, name, value)
    found = space(problem(kind))["a"]
    np.testing.assert_allclose(found.x, before.x, atol=1e-5)
    np.testing.assert_allclose(found.half_smoothed(at), before.half_smoothed(at), atol=1e-5)
    np.testing.assert_allclose(found.landmark_means(label, at), before.landmark_means(label, at), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("blocked_from", "wide"), [(20_000, 400), (1_000, 600)], ids=["at once", "in blocks"])
def test_twice_the_cells_take_about_twice_the_time(blocked_from: int, wide: int, monkeypatch: pytest.MonkeyPatch):
    """CPU time of both model spaces, the least of three: what others do on the machine does not count.

    In blocks, as from 20,000 cells on, axes of more than 512 features come from one pass. Without the search for neighbours, which is a library's, and not linear below 20,000 cells.
    """

    def around(x: np.ndarray, k: int, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        distances = np.tile(np.arange(1.0, k + 1), (len(x), 1))
        return (np.arange(len(x))[:, None] + np.arange(1, k + 1)) % len(x), distances

    def seconds(n: int) -> float:
        found = []
        for seed in range(3):
            x = [sp.random(n, g, density=0.1, format="csr", random_state=seed, dtype=np.float32) for g in (wide, 100)]
            of = {m: Modality(m, v, np.arange(n), np.arange(v.shape[1])) for m, v in zip("ab", x)}
            start = time.process_time()
            model_space(Problem(of, {("a", "b"): Known(("a", "b"), links())}), random_state=0)
            found.append(time.process_time() - start)
        return min(found)

    monkeypatch.setattr(diffusion, "nearest_neighbors", around)
    monkeypatch.setattr(linear, "BLOCKED_FROM", blocked_from)
    seconds(1_000)
    assert seconds(4_000) <= 2.3 * seconds(2_000)


@pytest.mark.parametrize("constant", [0.1, 3.0, 1e6])
@pytest.mark.parametrize("steps", [0, 3])
def test_what_differs_by_rounding_only_is_no_feature(constant: float, steps: int):
    """Smoothing leaves 1e-7 of a constant, which z-scores would take for a feature."""
    x = values("a")
    x[:, :4] = constant
    of = problem(steps={"a": steps})
    of = replace(of, modalities={**of.modalities, "a": replace(of.modalities["a"], values=x)})
    d = space(of)["a"]
    assert not d.half_smoothed(np.arange(4)).any()
    # a unit of rounding at most
    assert np.abs(d.zscored(np.arange(4))).max() < 4e-7 * max(constant, 1)
    assert d.half_smoothed(np.arange(4, 8)).std() == pytest.approx(1, abs=1e-3)


def test_fields_reach_their_modality():
    of = problem(
        embedded={"b": True},
        steps={"a": 2, "b": 0},
        n_pcs={"a": 7},
        allowed={"a": np.arange(12)},
    )
    found = space(of)
    assert found["a"].x.shape == (90, 7)
    np.testing.assert_array_equal(found["a"].transform.encoded, np.arange(12))
    assert found["a"].smoothed.steps == 2
    # a representation is taken as it is: not smoothed, no PCA, centred and one scale
    x = values("b")
    np.testing.assert_array_equal(found["b"].smoothed.x, x)
    np.testing.assert_allclose(found["b"].x, (x - x.mean(0)) / np.sqrt(x.var(0).mean()), atol=1e-5)


def test_default_number_of_components():
    # min(50, g, n - 1)
    assert {m: d.x.shape[1] for m, d in space(problem()).items()} == {"a": 30, "b": 20}
    wide = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    parts = {m: Modality(m, wide[:n], np.arange(n), np.arange(60)) for m, n in (("a", 40), ("b", 35))}
    found = space(Problem(parts, {("a", "b"): Known(("a", "b"), links())}))
    assert {m: d.x.shape[1] for m, d in found.items()} == {"a": 39, "b": 34}


def test_linked_features_enter_the_space(monkeypatch: pytest.MonkeyPatch):
    """With few places the flattest features stay outside, unless they are linked, with any modality."""
    monkeypatch.setattr(pca, "N_DISPERSED", 5)
    of = problem()
    third = replace(of.modalities["b"], name="c")
    other = Known(("a", "c"), Links(np.array([20, 21, 22]), np.array([0, 1, 2]), np.ones(3), np.ones(3)))
    of = Problem({**of.modalities, "c": third}, {**of.known, ("a", "c"): other, ("b", "c"): Known(("b", "c"))})
    found = space(of)
    for m, linked in (("a", [0, 1, 2, 3, 4, 20, 21, 22]), ("b", range(10, 15)), ("c", range(3))):
        assert set(linked) <= set(found[m].transform.encoded)
        assert len(linked) <= len(found[m].transform.encoded) <= len(linked) + 5


def test_labels_choose_neighbours_where_they_are_pure():
    codes = {m: np.arange(n) % 2 for m, (n, _) in SHAPES.items()}
    x = {m: values(m) + 8 * codes[m][:, None] for m in SHAPES}
    of = problem(labels=codes)
    of = replace(of, modalities={m: replace(v, values=x[m]) for m, v in of.modalities.items()})
    for m, d in space(of).items():
        np.testing.assert_allclose(d.label_purity, 1)
        links = d.smoothed.operator.toarray() > 0
        assert not links[np.ix_(codes[m] == 0, codes[m] == 1)].any()
    # nothing is smoothed: nobody asks
    unsmoothed = replace(of, modalities={m: replace(v, steps=0) for m, v in of.modalities.items()})
    assert space(unsmoothed)["a"].label_purity is None


def test_batches_are_smoothed_and_moved_on_their_own():
    rows = (np.arange(0, 90, 2), np.arange(1, 90, 2))
    of = problem(batches={"a": rows}, steps={"a": 2})
    shifted = values("a")
    shifted[rows[1]] += 5
    of = replace(of, modalities={**of.modalities, "a": replace(of.modalities["a"], values=shifted)})
    d = space(of)["a"]
    assert isinstance(d.smoothed, BatchedMatrix)
    assert [part.steps for part in d.smoothed.parts] == [2, 2]
    both = d.smoothed.columns(np.arange(30))
    np.testing.assert_allclose(both[rows[0]].mean(0), both[rows[1]].mean(0), atol=1e-3)
    z = zscore(both.astype(np.float64))
    scores = z @ np.linalg.svd(z, full_matrices=False)[2][:30].T
    np.testing.assert_allclose(np.abs(d.x), np.abs(scores) / np.sqrt((scores**2).mean()), atol=5e-3)
    np.testing.assert_allclose(d.zscored(np.array([3])), z[:, [3]], atol=1e-3)


def test_one_space_where_the_problem_says_so():
    at = {"a": np.arange(10, 25), "b": np.arange(15)[::-1] + 2}
    of = replace(problem(n_pcs={"a": 9, "b": 6}), spaces=[at])
    found = space(of)
    # the fewer components of the two
    transforms, cells = fit_shared([d.smoothed for d in found.values()], list(at.values()), n_pcs=6)
    for (m, d), transform, x in zip(found.items(), transforms, cells, strict=True):
        np.testing.assert_array_equal(d.transform.encoded, at[m])
        np.testing.assert_array_equal(d.x, x)
        np.testing.assert_array_equal(d.transform.decoder, transform.decoder)
    np.testing.assert_array_equal(found["a"].transform.encoder, found["b"].transform.encoder)
    # without it each has its own
    alone = space(replace(of, spaces=()))
    expected = fit_transform(alone["a"].smoothed, n_pcs=9, linked=np.arange(5))[1]
    np.testing.assert_array_equal(alone["a"].x, expected)


def test_the_same_every_time():
    """The seed decides in approximate searches only."""
    first, second = (model_space(problem(), random_state=seed) for seed in (0, 1))
    for m in SHAPES:
        np.testing.assert_array_equal(first[m].x, second[m].x)
