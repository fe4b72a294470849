"""Baselines: each against a formula of its own, or what it cannot know; what they need and refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.metrics import foscttm
from scmmgan.model.nets import baselines, methods
from scmmgan.model.nets.baselines import BASELINES
from scmmgan.model.problem import Known, Links, Modality, Problem

N, LINKED = 120, 8


def made(*, equal_names: bool = True) -> tuple[Problem, np.ndarray]:
    """The same cells twice, the second in another order (`order`: where each cell of the first is): 8 linked features."""
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=N)
    latent = 2 * np.eye(4)[kind] + rng.normal(size=(N, 4)) * 0.7
    order = rng.permutation(N)
    values = {}
    common = rng.normal(size=(4, LINKED))
    for m, g in (("a", 20), ("b", 14)):
        axes = np.hstack([common, rng.normal(size=(4, g - LINKED))])
        values[m] = (latent @ axes + 0.3 * rng.normal(size=(N, g)) + 8).astype(np.float32)
    values["b"][order] = values["b"].copy()
    names = {
        m: [f"g{i}" if i < LINKED and equal_names else f"{m}{i}" for i in range(v.shape[1])] for m, v in values.items()
    }
    modalities = {
        m: Modality(m, v, np.array([f"{m}_{i}" for i in range(N)]), np.array(names[m], dtype=object))
        for m, v in values.items()
    }
    codes = {"a": kind.copy(), "b": np.empty(N, dtype=int)}
    codes["b"][order] = kind
    links = Links(np.arange(LINKED), np.arange(LINKED), np.ones(LINKED), np.ones(LINKED))
    pairs = np.stack([np.arange(N), order], axis=1)[:60]
    known = Known(("a", "b"), links, pairs, codes)
    return Problem(modalities, {("a", "b"): known}, ["x", "y", "z"]), order


def fit(name: str, problem: Problem, seed: int = 0) -> Any:
    return baselines.fit(name, problem, {"random_state": seed})


def test_what_each_reaches():
    """FOSCTTM of the cells whose partners none was given."""
    problem, order = made()
    score = {
        name: foscttm(z["a"][60:], z["b"][order[60:]]) for name in BASELINES for z in [fit(name, problem).embeddings]
    }
    assert score["random"] == pytest.approx(0.5, abs=0.08)
    # one of three labels leaves a third of the cells
    assert score["label-only"] == pytest.approx(1 / 6, abs=0.03)
    assert score["label-probability"] < score["label-only"]
    for name in ("links-correlation", "links-cca", "moment-matching"):
        assert score[name] < 0.2
    for name in ("procrustes", "paired-cca"):
        assert score[name] < 0.06


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "random"])
def test_order_of_rows_says_nothing(name: str):
    problem, _ = made()
    rng = np.random.default_rng(1)
    turn = rng.permutation(N)
    b, known = problem.modalities["b"], problem.known["a", "b"]
    at = np.argsort(turn)
    moved = replace(
        problem,
        modalities={"a": problem.modalities["a"], "b": replace(b, values=b.values[turn])},
        known={
            ("a", "b"): replace(
                known,
                pairs=np.stack([known.pairs[:, 0], at[known.pairs[:, 1]]], axis=1),
                labels={"a": known.labels["a"], "b": known.labels["b"][turn]},
            )
        },
    )
    first, second = fit(name, problem), fit(name, moved)
    np.testing.assert_allclose(second.embeddings["a"], first.embeddings["a"], atol=2e-3)
    np.testing.assert_allclose(second.embeddings["b"], first.embeddings["b"][turn], atol=2e-3)


@pytest.mark.parametrize("name", BASELINES)
def test_same_seed_same_bits(name: str):
    """In whatever state the global generators are, which stay as they are; another seed moves random places alone."""
    problem, _ = made()
    first, columns = fit(name, problem), np.arange(14)
    state = np.random.get_state()[1].copy()
    second = fit(name, problem)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.random.seed(5)
    third, other = fit(name, problem), fit(name, problem, seed=1)
    for m in "ab":
        z = first.embeddings[m]
        for again in (second, third):
            np.testing.assert_array_equal(again.embeddings[m], z)
            np.testing.assert_array_equal(again.model.decode(z, "b", columns), first.model.decode(z, "b", columns))
        assert np.allclose(other.embeddings[m], z, atol=2e-3) == (name != "random")


def test_mapped_values_are_those_of_the_regression():
    problem, order = made()
    fitted = fit("paired-cca", problem)
    mapped = fitted.model.decode(fitted.embeddings["a"], "b", np.array([9, 3]))
    assert mapped.dtype == np.float32
    measured = problem.modalities["b"].values[order][:, [9, 3]]
    for i in range(2):
        assert np.corrcoef(mapped[:, i], measured[:, i])[0, 1] > 0.85
    # units of the layer, slightly shrunk
    np.testing.assert_allclose(mapped.mean(0), measured.mean(0), atol=0.2)
    nothing = fit("random", problem)
    mapped = nothing.model.decode(nothing.embeddings["a"], "b", np.array([9, 3]))
    assert abs(np.corrcoef(mapped[:, 0], measured[:, 0])[0, 1]) < 0.3


def test_links_cca_is_the_svd_of_all_products():
    problem, _ = made()
    read = baselines.Read.of(problem, 0)
    linked = read.linked(problem.known["a", "b"].links)
    left, _, right = np.linalg.svd(linked["a"] @ linked["b"].T)
    expected = {"a": left[:, :LINKED], "b": right[:LINKED].T}
    found = baselines.links_cca(read)
    for m, z in expected.items():
        # the sign of a variate is free, but one for both
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        sign = np.sign((unit * found[m]).sum(0))
        np.testing.assert_allclose(found[m] * sign, unit, atol=1e-8)
        expected[m] = sign
    np.testing.assert_array_equal(expected["a"], expected["b"])


def test_signs_and_weights_of_links():
    problem, _ = made()
    known = problem.known["a", "b"]
    links = replace(known.links, sign=np.r_[-1.0, np.ones(LINKED - 1)], weight=np.r_[1.0, np.full(LINKED - 1, 0.25)])
    read = baselines.Read.of(problem, 0)
    plain, found = read.linked(known.links), read.linked(links)
    np.testing.assert_allclose(found["a"][:, 0], -plain["a"][:, 0])
    np.testing.assert_allclose(found["b"][:, 0], plain["b"][:, 0])
    np.testing.assert_allclose(found["a"][:, 1:], plain["a"][:, 1:] / 2)


def test_procrustes_finds_a_turn_and_a_scale():
    problem, _ = made()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 5)) * np.arange(1, 6)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    read = replace(baselines.Read.of(problem, 0), x={"a": x + 3, "b": 2.5 * x @ turn - 1})
    known = replace(problem.known["a", "b"], pairs=np.stack([np.arange(10)] * 2, axis=1))
    z = baselines.procrustes(replace(read, problem=replace(problem, known={("a", "b"): known})))
    np.testing.assert_allclose(z["a"], z["b"], atol=1e-9)


def test_moments_of_either_side_do_not_matter():
    problem, _ = made()
    b = problem.modalities["b"]
    scaled = replace(problem, modalities={**problem.modalities, "b": replace(b, values=(b.values * 7 + 100))})
    first, second = (fit("moment-matching", of).embeddings["b"] for of in (problem, scaled))
    np.testing.assert_allclose(np.abs(first), np.abs(second), atol=1e-2)
    with pytest.raises(ValueError, match="features of one name in all modalities; there are 0"):
        fit("moment-matching", made(equal_names=False)[0])


def test_labels_with_gaps():
    problem, _ = made()
    known = problem.known["a", "b"]
    labels = {m: np.where(np.arange(N) < 40, codes, -1) for m, codes in known.labels.items()}
    gaps = replace(problem, known={("a", "b"): replace(known, labels=labels)})
    z = fit("label-only", gaps).embeddings["a"]
    np.testing.assert_allclose(z[50], np.bincount(labels["a"][:40], minlength=3) / 40, atol=1e-6)
    z = fit("label-probability", gaps).embeddings["a"]
    np.testing.assert_allclose(z.sum(1), 1, atol=1e-5)
    assert (z.argmax(1) == known.labels["a"])[40:].mean() > 0.75


def test_depth_is_the_rank_of_the_counts():
    problem, _ = made()
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(3.0, (N, 20)).astype(np.float32))
    a = replace(problem.modalities["a"], counts=counts)
    z = fit("depth", replace(problem, modalities={**problem.modalities, "a": a})).embeddings["a"][:, 0]
    total = np.asarray(counts.sum(1)).ravel()
    assert (np.diff(z[np.argsort(total, kind="stable")]) > 0).all()
    assert z.min() == pytest.approx(0.5 / N)


@pytest.mark.parametrize("name", [name for name, of in BASELINES.items() if of.needs])
def test_what_they_need_is_said(name: str):
    problem, _ = made()
    (needs,) = BASELINES[name].needs
    known = replace(problem.known["a", "b"], **{needs: None})
    with pytest.raises(ValueError, match=f"`method='{name}'` needs `{needs}`"):
        fit(name, replace(problem, known={("a", "b"): known}))


@pytest.mark.parametrize("name", BASELINES)
def test_what_they_cannot_use_is_refused(name: str):
    plain = {argument: without[0] for argument, without in methods.OPTIONAL.items()}
    given = {"links": "gene", "pairs": "obs_names", "labels": "cell_type", "hidden": 64, "smooth": 2}
    for argument, value in given.items():
        if methods.can_use(name, argument):
            methods.check_arguments(name, plain | {argument: value}, ["a", "b"])
        else:
            with pytest.raises(ValueError, match=f"`method='{name}'` cannot use `{argument}`"):
                methods.check_arguments(name, plain | {argument: value}, ["a", "b"])
    if BASELINES[name].most == 2:
        with pytest.raises(ValueError, match="maps between 2 modalities"):
            methods.check_arguments(name, plain, ["a", "b", "c"])


def test_compared_by_default():
    given = methods.compared({"links": "auto", "pairs": None}, common_names=0)
    assert {"scmmgan", "coupling", "gw", "random", "depth", "links-correlation", "links-cca"} == set(given)
    assert given["gw"] == {"method": "coupling", "links": None, "pairs": None, "labels": None}
    everything = methods.compared({"links": "auto", "pairs": "obs_names", "labels": "x"}, common_names=9)
    assert set(BASELINES) < set(everything)
