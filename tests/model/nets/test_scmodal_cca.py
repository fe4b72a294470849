"""Links found without labels: planted ones, shuffled data, signs, seeds; then scMODAL is trained with them."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from scmmgan.model.nets import methods, scmodal_cca
from scmmgan.model.problem import Known, Links, Modality, Problem

N, PLANTED = 400, 20


def made(*, shuffled: bool = False, n_pairs: int = 100) -> Problem:
    """200 and 50 features of 400 cells in another order on each side; 20 of them are the same, a fourth with the other sign.

    `n_pairs` of them are known; 0: nothing is. `shuffled`: values of the second change places among its cells, each feature by itself.
    """
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 10)) * 1.5
    latent = centres[rng.integers(12, size=N)] + 0.5 * rng.normal(size=(N, 10))
    axes, order = rng.normal(size=(10, PLANTED)), rng.permutation(N)
    sign = np.where(np.arange(PLANTED) % 4 == 0, -1.0, 1.0)
    values = {m: rng.normal(size=(N, g)) for m, g in (("a", 200), ("b", 50))}
    common = latent @ axes / np.sqrt(10)
    values["a"][:, :PLANTED] += 2 * common
    values["b"][:, :PLANTED] += 2 * common * sign
    # the rest varies between cells, too, by directions of its own
    values["a"][:, PLANTED:100] += latent @ rng.normal(size=(10, 80)) / np.sqrt(10)
    values["b"][order] = values["b"].copy()
    if shuffled:
        values["b"] = rng.permuted(values["b"], axis=0)
    modalities = {
        m: Modality(
            m,
            (v + 20).astype(np.float32),
            np.array([f"{m}{i}" for i in range(N)], dtype=object),
            np.array([f"{m}_{i}" for i in range(v.shape[1])], dtype=object),
        )
        for m, v in values.items()
    }
    pairs = np.stack([np.arange(N), order], axis=1)[:n_pairs]
    return Problem(modalities, {("a", "b"): Known(("a", "b"), pairs=pairs if n_pairs else None)})


def right(table: dict) -> np.ndarray:
    return np.array([a[2:] == b[2:] and int(a[2:]) < PLANTED for a, b in zip(table["a"], table["b"])], dtype=bool)


@pytest.fixture(scope="module")
def planted() -> tuple[Links, dict]:
    return scmodal_cca.find(made(), random_state=0)


def test_planted_links_are_found(planted: tuple[Links, dict]):
    links, table = planted
    assert len(links) == len(table["score"]) >= 12
    assert right(table).mean() > 0.8
    assert (table["q"] < 0.05).all()
    assert (np.abs(table["score"]) >= 0.5).all()
    # each feature once
    assert len(set(table["a"])) == len(set(table["b"])) == len(links)
    expected = [-1 if int(a[2:]) % 4 == 0 else 1 for a in table["a"][right(table)]]
    np.testing.assert_array_equal(table["sign"][right(table)], expected)
    np.testing.assert_array_equal(links.sign, table["sign"])
    assert links.weight.max() == 1


def test_shuffled_data_yield_next_to_nothing(planted: tuple[Links, dict]):
    links, table = scmodal_cca.find(made(shuffled=True), random_state=0)
    assert len(table["score"]) <= 0.05 * len(planted[1]["score"])
    assert len(links) == len(table["score"])


def test_links_that_are_given_stay():
    problem = made()
    given = Links(np.arange(4), np.arange(4), np.full(4, 0.5), np.array([-1.0, 1, 1, 1]))
    known = replace(problem.known["a", "b"], links=given)
    links, table = scmodal_cca.find(replace(problem, known={("a", "b"): known}), random_state=0)
    np.testing.assert_array_equal(links.first[:4], np.arange(4))
    np.testing.assert_allclose(links.weight[:4], 1)
    # nothing found weighs more, and no feature is linked again
    assert (links.weight[4:] <= 1).all()
    assert not set(table["a"]) & {f"a_{i}" for i in range(4)}
    assert right(table).mean() > 0.8


# --- what keeps links of chance out ------------------------------------------------------------------------------


def pooled() -> scmodal_cca.Pooled:
    """20 rows of six components, one nearly the same on both sides and two alike, and 30 features of them."""
    rng, k, sides = np.random.default_rng(2), 20, []
    x, noise = rng.normal(size=(k, 6)), np.array([0.2, 0.8, 0.8, 9, 9, 9])
    for common in (x, (x + noise * rng.normal(size=x.shape)) / np.sqrt(1 + noise**2)):
        mixed = np.hstack([np.eye(6), rng.normal(size=(6, 24)) / np.sqrt(6)])
        sides += [common, common @ mixed + 0.3 * rng.normal(size=(k, 30))]
    x, u, y, v = sides
    return scmodal_cca.Pooled(x, y, u, v, np.ones(k), np.arange(30), np.arange(30))


@pytest.fixture
def every_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a score nor its q keeps a link out."""
    monkeypatch.setattr(scmodal_cca, "FOUND_SCORE", 0)
    monkeypatch.setattr(scmodal_cca, "EVIDENT", 2)


@pytest.mark.usefixtures("every_score")
@pytest.mark.parametrize("seed", range(3))
def test_shuffled_rows_have_no_variates(seed: int):
    """Whatever scores are asked for: rows in another order leave no variate to score by."""
    rows = pooled()
    assert len(scmodal_cca.search(rows, None, 0).first)
    assert not len(scmodal_cca.search(rows.shuffled(np.random.default_rng(seed).permutation(20)), None, 0).first)


def test_only_q_keeps_some_features_out(monkeypatch: pytest.MonkeyPatch):
    """Scores of .5 and more that shuffled rows reach as well."""
    rows = pooled()
    found = scmodal_cca.search(rows, None, 0)
    monkeypatch.setattr(scmodal_cca, "EVIDENT", 2)
    everything = scmodal_cca.search(rows, None, 0)
    assert 0 < len(found.first) < len(everything.first)
    assert (np.abs(everything.score) >= 0.5).all()
    two = [set(zip(of.first, of.second, of.q)) for of in (found, everything)]
    assert two[0] == {link for link in two[1] if link[2] < 0.05}


# --- rounds, seeds, the order of rows ----------------------------------------------------------------------------


def test_more_rounds_find_more(monkeypatch: pytest.MonkeyPatch):
    """From few pairs: links that were found make a better coupling, and that finds others."""
    problem = made(n_pairs=5)
    table = scmodal_cca.find(problem, random_state=0)[1]
    assert set(table["round"]) == {1, 2, 3}
    monkeypatch.setattr(scmodal_cca, "FOUND_ROUNDS", 1)
    once = scmodal_cca.find(problem, random_state=0)[1]
    assert set(once["round"]) == {1}
    assert right(table).sum() > right(once).sum() + 3


def test_links_without_anything_known():
    """Shapes alone couple the clusters; twice the same bits."""
    problem = made(n_pairs=0)
    links, table = scmodal_cca.find(problem, random_state=0)
    assert len(links) == len(table["score"])
    assert right(table).mean() > 0.5
    again, other = scmodal_cca.find(problem, random_state=0)
    for name in ("first", "second", "weight", "sign"):
        np.testing.assert_array_equal(getattr(again, name), getattr(links, name))
    for name, of in table.items():
        np.testing.assert_array_equal(other[name], of)


@pytest.mark.parametrize("n_pairs", [0, 100])
def test_order_of_rows_says_nothing(n_pairs: int):
    """Row i the same cell in both, or b shuffled: nearly the same links of the planted ones."""
    problem, found = made(n_pairs=n_pairs), []
    b, truth = problem.modalities["b"], made(n_pairs=N).known["a", "b"].pairs[:, 1]
    for order in (truth, np.random.default_rng(1).permutation(N)):
        pairs = np.stack([np.arange(N), np.argsort(order)[truth]], axis=1)[:n_pairs] if n_pairs else None
        moved = replace(
            problem,
            modalities={**problem.modalities, "b": replace(b, values=b.values[order])},
            known={("a", "b"): Known(("a", "b"), pairs=pairs)},
        )
        table = scmodal_cca.find(moved, random_state=0)[1]
        found.append(set(table["a"][right(table)]))
    assert found[0]
    assert len(found[0] & found[1]) >= 0.8 * len(found[0] | found[1])


SETTINGS = {
    "weights": methods.METHODS["scmodal-cca"].weights, "max_steps": 2, "batch_size": 64, "lr": 1e-3, "geometry": "kernel",
    "hidden": 16, "options": None, "random_state": 0, "device": "cpu", "progress_bar": False,
}  # fmt: skip


def test_fit_trains_with_what_was_found(planted: tuple[Links, dict], monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(scmodal_cca, "find", lambda *_, **__: planted)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        fitted = methods.fit_latent("scmodal-cca", made(), SETTINGS)
    assert f"{len(planted[0])} links between 'a' and 'b'" in caplog.text
    assert fitted.info["links_used"] == len(planted[0])
    assert fitted.info["links"] is planted[1]
    assert fitted.embeddings["a"].shape == (N, 20)
    assert set(fitted.history) >= {"step", "links", "adversarial"}


def test_same_seed_same_bits():
    first, second = (methods.fit_latent("scmodal-cca", made(), SETTINGS) for _ in range(2))
    for m in "ab":
        np.testing.assert_array_equal(first.embeddings[m], second.embeddings[m])
    assert first.history == second.history
    for name, of in first.info["links"].items():
        np.testing.assert_array_equal(second.info["links"][name], of)


def test_nothing_found_is_an_error(monkeypatch: pytest.MonkeyPatch):
    empty = Links(*(np.empty(0, dtype=int),) * 2, *(np.empty(0),) * 2)
    monkeypatch.setattr(scmodal_cca, "find", lambda *_, **__: (empty, {"score": np.empty(0)}))
    with pytest.raises(ValueError, match="found no features that vary alike beyond chance"):
        methods.fit_latent("scmodal-cca", made(), SETTINGS)


def test_weighted_correlations():
    rng = np.random.default_rng(0)
    u, p, w = rng.normal(size=(30, 4)), rng.normal(size=(30, 2)), rng.random(30)
    found = scmodal_cca._correlations(u, p, w)
    for f in range(4):
        for k in range(2):
            c = np.cov(u[:, f], p[:, k], aweights=w)
            assert found[f, k] == pytest.approx(c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]))


@pytest.mark.parametrize(("argument", "value"), [("labels", "x"), ("smooth", 2)])
def test_what_it_refuses(argument: str, value: object):
    plain = {name: without[0] for name, without in methods.OPTIONAL.items()}
    methods.check_arguments("scmodal-cca", plain | {"links": "gene", "pairs": "x", "hidden": 64}, ["a", "b"])
    with pytest.raises(ValueError, match=f"cannot use `{argument}`"):
        methods.check_arguments("scmodal-cca", plain | {argument: value}, ["a", "b"])
    with pytest.raises(ValueError, match="maps between 2 modalities"):
        methods.check_arguments("scmodal-cca", plain, ["a", "b", "c"])
