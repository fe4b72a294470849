"""Where new cells lie in model space: written out as one more row of the smoothing operator."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from scmmgan.model.problem import Known, Links, Modality, Problem
from scmmgan.model.space import reference
from scmmgan.model.space.domain import Domain, model_space
from scmmgan.model.space.reference import Located, Reference, located, references

G = 30


def values(n: int, seed: int, *, kinds: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """Cells of some of four populations, with a gradient inside."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(7)
    centres, slope = 2 * fixed.normal(size=(4, G)), fixed.normal(size=G)
    x = centres[rng.choice(kinds, n)] + rng.random(n)[:, None] * slope
    return np.maximum(x + 0.5 * rng.normal(size=(n, G)), 0).astype(np.float32)


def domain_of(x: np.ndarray | sp.csr_matrix, **given: object) -> Domain:
    n, g = x.shape
    a = Modality("a", x, np.arange(n), np.arange(g), **{"steps": 1, "n_pcs": 10} | given)  # type: ignore[arg-type]
    b = Modality("b", values(50, 9), np.arange(50), np.arange(G), steps=0)
    links = Links(np.arange(5), np.arange(5), np.ones(5), np.ones(5))
    return model_space(Problem({"a": a, "b": b}, {("a", "b"): Known(("a", "b"), links)}), random_state=0)["a"]


def where(found: list[Reference], x: np.ndarray | sp.csr_matrix, **how: object) -> Located:
    how = {"columns": np.arange(G), "batch": np.zeros(x.shape[0], dtype=int), "batch_size": 1_000} | how
    return located(found, x, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_training_cells_are_where_they_were(form, steps: int):
    x = form(values(150, 0))
    domain = domain_of(x, steps=steps)
    found = where(references(domain, {}), x)
    np.testing.assert_allclose(found.x, domain.x, atol=1e-5)
    assert found.x.dtype == np.float32


@pytest.mark.parametrize("steps", [1, 3])
def test_a_new_cell_is_one_more_row_of_the_operator(steps: int):
    """The rows of training cells stay as they are: powers of the enlarged operator, with the kernel in plain loops."""
    x, new = values(80, 0), values(3, 1)
    domain = domain_of(x, steps=steps)
    graph, transform = domain.graphs[0], domain.transform
    scores = graph.scores.astype(np.float64)
    far = np.sort(np.linalg.norm(scores[:, None] - scores[None], axis=2), axis=1)
    got = where(references(domain, {}), new)
    for cell, x_new, width in zip(new, got.x, got.ood):
        z = graph.projection.scores(cell[None])[0]
        d = np.linalg.norm(scores - z, axis=1)
        own = np.sort(d)
        kernel = np.where(d <= own[14], np.exp(-((d / own[4]) ** 2)), 0)
        kernel += np.where(d <= far[:, 15], np.exp(-((d / far[:, 5]) ** 2)), 0)
        row = np.r_[kernel, 2] / (kernel.sum() + 2)
        operator = np.vstack([np.c_[graph.operator.toarray(), np.zeros(80)], row]).astype(np.float64)
        smoothed = (np.linalg.matrix_power(operator, steps) @ np.vstack([x, cell]))[-1]
        expected = ((smoothed - transform.mean) / transform.sd)[transform.encoded] @ transform.encoder.T
        np.testing.assert_allclose(x_new, expected / float(transform.scale), atol=1e-4)
        assert width == pytest.approx((far[:, 5] < own[4]).mean())


def test_a_cell_is_located_alone():
    x, new = values(150, 0), values(40, 1)
    found = references(domain_of(x), {"b": np.linspace(0, 1, 150, dtype=np.float32)})
    together = where(found, new)
    for i in (0, 39):
        alone = where(found, new[i : i + 1])
        np.testing.assert_allclose(alone.x[0], together.x[i], atol=1e-5)
        np.testing.assert_allclose(alone.unmatched["b"][0], together.unmatched["b"][i], atol=1e-5)
        assert alone.ood[0] == together.ood[i]
    np.testing.assert_allclose(where(found, new, batch_size=7).x, together.x, atol=1e-5)


def test_features_that_are_not_there_count_as_the_mean():
    x, new = values(150, 0), values(20, 1)
    domain = domain_of(x)
    found, there = references(domain, {}), np.r_[20:30, 3:20]  # in another order, too
    got = where(found, new[:, there], columns=there)
    for name in ("own", "search"):
        projection = getattr(found[0], name)
        filled = new.copy().astype(np.float64)
        filled[:, :3] = projection.center[:3]
        weight, offset = projection.onto(there)
        np.testing.assert_allclose(new[:, there] @ weight + offset, projection.scores(filled), atol=1e-5)
    assert not np.allclose(got.x, where(found, new).x, atol=0.01)
    assert np.abs(got.x - where(found, new).x).mean() < 0.5


def test_unmatched_is_that_of_the_neighbours():
    rng = np.random.default_rng(0)
    kinds = rng.integers(2, size=200)
    x = np.vstack([values(1, 10 + i, kinds=(int(k),)) for i, k in enumerate(kinds)])
    found = references(domain_of(x), {"b": (kinds == 1).astype(np.float32)})
    for kind in (0, 1):
        got = where(found, values(20, 1, kinds=(kind,))).unmatched["b"]
        np.testing.assert_allclose(got, kind, atol=0.05)


def test_ood_is_calibrated_and_knows_a_population_that_was_not_there():
    found = references(domain_of(values(600, 0)), {})
    known, unknown = (where(found, values(300, 1, kinds=kinds)).ood for kinds in ((0, 1, 2), (3,)))
    # spread evenly, or nearly so
    assert kstest(known, "uniform").statistic < 0.12
    assert (known > 0.95).mean() < 0.12
    assert roc_auc_score(np.repeat([0, 1], 300), np.r_[known, unknown]) > 0.99


def test_batches():
    x = values(200, 0)
    rows = (np.arange(0, 200, 2), np.arange(1, 200, 2))
    x[rows[1]] += 1
    domain = domain_of(x, batches=rows, batch_names=("x", "y"))
    found, batch = references(domain, {}), np.resize([0, 1], 200)
    np.testing.assert_allclose(where(found, x, batch=batch).x, domain.x, atol=1e-4)
    new = values(40, 1)
    first, second = (where(found, new + shift, batch=np.full(40, i)) for i, shift in ((0, 0), (1, 1)))
    # what differs between the batches is taken away
    assert np.abs(first.x - second.x).mean() < 0.25 * np.abs(first.x).mean()
    # in no batch: the mean over both, and no farther out than in the nearer one
    each = [where(found, new, batch=np.full(40, i)) for i in (0, 1)]
    pooled = where(found, new, batch=np.full(40, -1))
    np.testing.assert_allclose(pooled.x, (each[0].x + each[1].x) / 2, atol=1e-5)
    np.testing.assert_array_equal(pooled.ood, np.minimum(each[0].ood, each[1].ood))
    # in their own order
    mixed = where(found, new, batch=np.resize([1, -1, 0], 40))
    np.testing.assert_allclose(mixed.x[0], each[1].x[0], atol=1e-5)
    np.testing.assert_allclose(mixed.x[1], pooled.x[1], atol=1e-5)


def test_of_many_cells_some_are_kept(monkeypatch: pytest.MonkeyPatch):
    x = values(400, 0)
    domain = domain_of(x)
    monkeypatch.setattr(reference, "MAX_REFERENCE", 200)
    (found,) = references(domain, {"b": np.zeros(400, np.float32)})
    assert len(found.scores) == len(found.unmatched["b"]) == found.smoothed.shape[1] == 200
    new = values(100, 1)
    monkeypatch.undo()
    few, all_of = where([found], new), where(references(domain, {}), new)
    assert np.corrcoef(few.x.ravel(), all_of.x.ravel())[0, 1] > 0.98
    assert kstest(few.ood, "uniform").statistic < 0.2


def test_state():
    found = references(domain_of(values(60, 0)), {"b": np.zeros(60, np.float32)})[0]
    again = Reference.from_state(found.state())
    new = values(5, 1)
    np.testing.assert_array_equal(where([again], new).x, where([found], new).x)
    for name in ("scores", "width", "smoothed", "variance"):
        state = found.state()
        state[name] = state[name][..., :-1]
        with pytest.raises(ValueError, match="of the training cells has shape"):
            Reference.from_state(state)
    state = found.state() | {"unmatched": {"b": np.zeros(3)}}
    with pytest.raises(ValueError, match="unmatched shares"):
        Reference.from_state(state)


def test_copies_of_one_cell():
    x = values(100, 0)
    x[:40] = x[0]
    found = where(references(domain_of(x), {}), np.vstack([x[:1], values(5, 1)]))
    assert np.isfinite(found.x).all()
    assert np.isfinite(found.ood).all()
