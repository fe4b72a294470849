"""Features to model space and back, against dense float64 references."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.defaults import DECODER_RIDGE, DECODER_RIDGES
from scmmgan.model.space import pca
from scmmgan.model.space import transform as tf
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.graphs import graph_scores
from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix
from scmmgan.model.space.transform import Transform, fit_shared, fit_transform, identity_transform

FORMATS = {"dense": np.asarray, "sparse": sp.csr_matrix}


def expression(n: int = 120, g: int = 70, rank: int = 6, seed: int = 0) -> np.ndarray:
    """log1p of counts with `rank` programmes, about a third of them zero."""
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(size=(n, rank)) @ rng.normal(size=(rank, g)) / np.sqrt(rank) + rng.normal(size=g) / 2)
    return np.log1p(rng.poisson(rate)).astype(np.float32)


def dense_smooth(x: np.ndarray, operator: sp.csr_matrix | None, t: int) -> np.ndarray:
    s = x.astype(np.float64)
    for _ in range(t):
        s = operator.toarray().astype(np.float64) @ s
    return s


def low_rank(s: np.ndarray, p: int) -> np.ndarray:
    """Rank-p projection of the z-scored matrix, in the units of the matrix."""
    mean, sd = s.mean(0), s.std(0)
    sd = np.where(sd == 0, 1, sd)
    u, d, v = np.linalg.svd((s - mean) / sd, full_matrices=False)
    return (u[:, :p] * d[:p]) @ v[:p] * sd + mean


# --- inverse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [0, 3])
@pytest.mark.parametrize("p", [1, 10, 50])
def test_inverse_is_the_projection_of_the_smoothed_matrix(kind: str, t: int, p: int):
    x = expression()
    operator = smoothing_operator(x) if t else None
    smoothed = SmoothedMatrix(FORMATS[kind](x), operator, t)
    transform, y = fit_transform(smoothed, n_pcs=p)
    assert y.shape == (120, p)
    assert y.dtype == np.float32
    np.testing.assert_allclose(transform.transform(smoothed), y, atol=1e-5)
    np.testing.assert_allclose(
        transform.inverse(y), np.maximum(low_rank(dense_smooth(x, operator, t), p), 0), atol=1e-4
    )
    # values are below 0 where the layer's are
    shifted, y = fit_transform(SmoothedMatrix(FORMATS[kind](x - 1), operator, t), n_pcs=p)
    expected = low_rank(dense_smooth(x - 1, operator, t), p)
    assert expected.min() < 0
    np.testing.assert_allclose(shifted.inverse(y), expected, atol=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
def test_inverse_is_the_matrix_itself_at_full_rank(kind: str):
    x = expression(g=40)
    transform, y = fit_transform(SmoothedMatrix(FORMATS[kind](x)), n_pcs=50)
    assert y.shape == (120, 40)
    np.testing.assert_allclose(transform.inverse(y), x, atol=1e-4)


def test_more_features_than_cells():
    x = expression(n=40, g=90)
    transform, y = fit_transform(SmoothedMatrix(x))
    # p = min(50, g, n - 1)
    assert y.shape == (40, 39)
    np.testing.assert_allclose(transform.inverse(y), x, atol=1e-4)


def test_sparse_and_dense_agree():
    x = expression()
    operator = smoothing_operator(x)
    (reference, expected), (again, y) = (
        fit_transform(SmoothedMatrix(kind(x), operator, 3), n_pcs=10) for kind in FORMATS.values()
    )
    np.testing.assert_allclose(y, expected, atol=1e-4)
    for name, value in reference.state().items():
        np.testing.assert_allclose(again.state()[name], value, atol=1e-4, err_msg=name)


def test_scale_is_one_number_and_the_geometry_stays():
    x = expression()
    transform, y = fit_transform(SmoothedMatrix(x), n_pcs=10)
    assert transform.scale.shape == ()
    assert y.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    # never whitened: the columns keep their unequal variances, in descending order
    z = (x - x.mean(0)) / x.std(0)
    singular = np.linalg.svd(z, compute_uv=False)[:10]
    np.testing.assert_allclose(y.std(0) / y.std(0)[0], singular / singular[0], rtol=1e-3)
    assert y.std(0)[0] > 2 * y.std(0)[-1]


def test_inverse_of_chosen_features():
    transform, y = fit_transform(SmoothedMatrix(expression()), n_pcs=10)
    at = np.array([60, 3, 3, 11])
    np.testing.assert_allclose(transform.inverse(y, at), transform.inverse(y)[:, at], atol=1e-5)
    assert transform.inverse(y[:1], at).shape == (1, 4)


def test_one_cell_transforms_as_in_a_batch():
    x = expression()
    transform, y = fit_transform(SmoothedMatrix(x), n_pcs=10)
    alone = np.concatenate([transform.transform(SmoothedMatrix(x[i : i + 1])) for i in range(20)])
    np.testing.assert_allclose(alone, y[:20], atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([transform.inverse(row[None]) for row in y[:20]]), transform.inverse(y)[:20], atol=1e-5
    )


def test_same_every_time_and_after_a_file():
    x = expression()
    (first, y), (second, again) = (fit_transform(SmoothedMatrix(x), n_pcs=10) for _ in range(2))
    np.testing.assert_array_equal(y, again)
    largest = np.take_along_axis(first.encoder, np.abs(first.encoder).argmax(1)[:, None], 1)
    assert (largest > 0).all()
    stored = Transform.from_state(first.state())
    for name, value in second.state().items():
        np.testing.assert_array_equal(getattr(stored, name), value)
    np.testing.assert_array_equal(stored.inverse(y), first.inverse(y))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("batches", [False, True])
def test_coordinates_from_chosen_columns_are_those_of_the_whole_matrix(kind: str, batches: bool):
    """Only what entered the PCA is multiplied: (S − μ) / sd of these columns times the loadings, in float64."""
    x = expression()
    rows = [np.arange(0, 120, 2), np.arange(1, 120, 2)]
    one = SmoothedMatrix(FORMATS[kind](x), smoothing_operator(x), 1)
    parts = [SmoothedMatrix(FORMATS[kind](x[r]), smoothing_operator(x[r]), 1) for r in rows]
    matrix = BatchedMatrix(parts, rows) if batches else one
    at = np.sort(np.random.default_rng(0).permutation(70)[:30])
    transform, y = fit_transform(matrix, n_pcs=8, allowed=at)
    s = matrix.columns(np.arange(70)).astype(np.float64)
    z = ((s - s.mean(0)) / s.std(0))[:, at]
    expected = z @ transform.encoder.T / float(transform.scale)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(transform.transform(matrix), expected, atol=1e-4)
    # the axes are those of a matrix that has no other features
    alone, cells = fit_transform(matrix.take(at), n_pcs=8)
    np.testing.assert_array_equal(alone.encoder, transform.encoder)
    np.testing.assert_array_equal(cells, y)
    # what did not enter has no say
    other = x.copy()
    other[:, np.setdiff1d(np.arange(70), at)] = 9
    if not batches:
        moved = SmoothedMatrix(FORMATS[kind](other), one.operator, 1)
        np.testing.assert_array_equal(transform.transform(moved), transform.transform(matrix))


# --- awkward features --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("p", [10, 50])
def test_constant_features_come_back_as_their_constant(kind: str, p: int):
    x = expression(g=40)
    x[:, 3], x[:, 17] = 2.5, 0
    transform, y = fit_transform(SmoothedMatrix(FORMATS[kind](x), smoothing_operator(x), 3), n_pcs=p)
    got = transform.inverse(y)
    np.testing.assert_allclose(got[:, 3], 2.5, atol=1e-5)
    np.testing.assert_allclose(got[:, 17], 0, atol=1e-5)
    assert transform.sd[3] == transform.sd[17] == 1
    assert not transform.decoder[:, [3, 17]].any()


def test_constant_features_stay_constant_for_cells_that_were_not_measured():
    """Mapped cells lie anywhere in model space; a feature without variance must not answer to any of it."""
    x = expression(g=40)
    x[:, 3] = 2.5
    # one that smoothing makes constant but for rounding
    x[:, 5] = 1 + 3.6e-6 * np.random.default_rng(0).normal(size=120)
    smoothed = SmoothedMatrix(x, smoothing_operator(x), 3)
    assert smoothed.moments()[1][5] == 0
    transform, _ = fit_transform(smoothed, n_pcs=50)
    y = np.random.default_rng(0).normal(size=(100, len(transform.encoder)))
    np.testing.assert_allclose(transform.inverse(y)[:, 3], 2.5, atol=1e-4)
    np.testing.assert_allclose(transform.inverse(y)[:, 5], 1, atol=1e-4)


def test_constant_features_stay_constant_in_a_shared_space():
    a, b = expression(g=60, seed=0), expression(g=60, seed=1)
    b[:, 3] = 2.5  # varies in a
    (_, second), (cells, _) = fit_shared([SmoothedMatrix(a), SmoothedMatrix(b)], [np.arange(60)] * 2, n_pcs=20)
    np.testing.assert_allclose(second.inverse(cells)[:, 3], 2.5, atol=1e-4)


def test_features_of_very_different_size():
    x = expression().astype(np.float64)
    x[:, 0] *= 1e4
    x[:, 1] *= 1e-4
    x[:, 2] += 1e3
    transform, y = fit_transform(SmoothedMatrix(x.astype(np.float32)), n_pcs=80)
    error = np.abs(transform.inverse(y) - x).max(0) / x.std(0)
    assert error.max() < 1e-2
    assert np.median(error) < 1e-4


def test_cells_that_are_alike_in_all_allowed_features():
    """As in one batch of several: the others are decoded as their means."""
    x = expression(60, 20)
    x[:, :8] = 2
    transform, y = fit_transform(SmoothedMatrix(x), allowed=np.arange(8))
    np.testing.assert_allclose(transform.inverse(y), np.tile(x.mean(0), (60, 1)), atol=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
def test_inputs_are_left_alone(kind: str):
    x = FORMATS[kind](expression())
    before = x.copy()
    transform, y = fit_transform(SmoothedMatrix(x, smoothing_operator(expression()), 3), n_pcs=10)
    kept = y.copy()
    transform.inverse(y)
    np.testing.assert_array_equal(y, kept)
    assert (before != x).sum() == 0


# --- many features -----------------------------------------------------------------------------------------------


def many(n: int = 120, g: int = 2_600) -> np.ndarray:
    """Rank 4 plus noise; the last 300 features hardly vary."""
    rng = np.random.default_rng(0)
    x = 3 + rng.normal(size=(n, 4)) @ rng.normal(size=(4, g)) + 0.3 * rng.normal(size=(n, g))
    x[:, -300:] = 3 + 0.1 * (x[:, -300:] - 3)
    return x.astype(np.float32)


def test_dispersed_features_and_linked_ones_enter_the_pca():
    x, linked = many(), np.array([2_590, 2_595])
    transform, _ = fit_transform(SmoothedMatrix(x), n_pcs=10, linked=linked)
    score = x.var(0) / x.mean(0)
    expected = np.union1d(np.argsort(-score, kind="stable")[:2_000], linked)
    np.testing.assert_array_equal(np.sort(transform.encoded), expected)
    assert transform.encoder.shape == (10, 2_002)
    assert transform.decoder.shape == (10, 2_600)


def test_features_outside_of_the_pca_are_decoded_by_ridge():
    x = many().astype(np.float64)
    transform, y = fit_transform(SmoothedMatrix(x.astype(np.float32)), n_pcs=6)
    got = transform.inverse(y)
    rest = np.setdiff1d(np.arange(2_600), transform.encoded)
    assert len(rest) == 600
    assert float(transform.penalty) == 1
    # the definition, in float64
    scores = y.astype(np.float64) * float(transform.scale)
    gram = scores.T @ scores
    z = (x[:, rest] - x[:, rest].mean(0)) / x[:, rest].std(0)
    ridge = np.linalg.solve(gram + np.trace(gram) / 6 * np.eye(6), scores.T @ z)
    expected = scores @ ridge * x[:, rest].std(0) + x[:, rest].mean(0)
    np.testing.assert_allclose(got[:, rest], expected, atol=1e-3)
    r = [np.corrcoef(got[:, i], x[:, i])[0, 1] for i in rest]
    assert np.median(r) > 0.95


def test_masked_features_are_decoded_by_ridge():
    x = expression(rank=3)
    smoothed = SmoothedMatrix(x, smoothing_operator(graph_scores(x, n_pcs=10)), 3)
    transform, y = fit_transform(smoothed, n_pcs=6, allowed=np.arange(40), linked=np.array([60]))
    np.testing.assert_array_equal(transform.encoded, np.arange(40))
    got = transform.inverse(y)
    assert np.median([np.corrcoef(got[:, i], smoothed.x[:, i])[0, 1] for i in range(40, 70)]) > 0.9


def test_linked_features_win_against_the_limit_only():
    """Up to 2,000 features all of them enter; a mask wins against links."""
    x = expression()
    assert len(fit_transform(SmoothedMatrix(x), linked=np.array([1]))[0].encoded) == 70
    assert len(fit_transform(SmoothedMatrix(x), linked=np.array([69]), allowed=np.arange(5))[0].encoded) == 5


@pytest.mark.parametrize("kind", FORMATS)
def test_iterative_axes_give_the_same_transform(kind: str, monkeypatch: pytest.MonkeyPatch):
    x = expression(n=300, g=700, rank=8)
    operator = smoothing_operator(graph_scores(x))
    calls = []
    original = pca.svds
    monkeypatch.setattr(pca, "svds", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    smoothed = SmoothedMatrix(FORMATS[kind](x), operator, 3)
    iterative, y = fit_transform(smoothed, n_pcs=20)
    assert calls == [1]
    s = dense_smooth(x, operator, 3)
    z = (s - s.mean(0)) / s.std(0)
    v = np.linalg.svd(z, full_matrices=False)[2][:20]
    np.testing.assert_allclose(np.abs((iterative.encoder * v).sum(1)), 1, atol=1e-4)
    np.testing.assert_allclose(iterative.inverse(y), low_rank(s, 20), atol=1e-4)
    np.testing.assert_array_equal(fit_transform(smoothed, n_pcs=20)[0].encoder, iterative.encoder)


def test_sparse_matrix_is_never_made_dense(monkeypatch: pytest.MonkeyPatch):
    """A matrix of 160 MB dense, 1 MB sparse; 10,000 features."""
    n, g = 2_000, 10_000
    rng = np.random.default_rng(0)
    x = sp.random(n, g, density=0.004, random_state=rng, format="csr", dtype=np.float32)
    x.data += 1
    largest = []
    for cls in (sp.csr_matrix, sp.csc_matrix):
        original = cls.toarray
        monkeypatch.setattr(
            cls,
            "toarray",
            lambda self, *a, _o=original, **k: (largest.append(np.prod(self.shape)), _o(self, *a, **k))[1],
        )
    tracemalloc.start()
    smoothed = SmoothedMatrix(x, smoothing_operator(graph_scores(x, n_pcs=10, tolerance=1e-3)), 1)
    transform, y = fit_transform(smoothed, n_pcs=10)
    assert smoothed.measured(np.arange(50)).shape == (n, 50)
    assert transform.transform(smoothed).shape == y.shape == (n, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # blocks of columns, a fortieth of the matrix each
    assert max(largest) <= n * 256
    assert peak < n * g * 8 / 4


# --- shared space ------------------------------------------------------------------------------------------------


def shared_pair() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The same 200 + 100 cells' programmes on two platforms: shifted, scaled, shuffled, each with features of its own."""
    rng = np.random.default_rng(0)
    loadings, own = rng.normal(size=(5, 60)), rng.normal(size=(5, 20))
    latent = rng.normal(size=(300, 5))
    a = np.hstack([latent[:200] @ loadings, latent[:200] @ own]) + 0.1 * rng.normal(size=(200, 80))
    order = rng.permutation(60)
    b = (latent[200:] @ loadings)[:, order] * rng.uniform(0.5, 2, 60) + 5 + 0.1 * rng.normal(size=(100, 60))
    return a.astype(np.float32), b.astype(np.float32), [np.arange(60), np.argsort(order)]


def test_shared_space_takes_platform_shifts_out():
    a, b, at = shared_pair()
    smoothed = [SmoothedMatrix(a), SmoothedMatrix(b)]
    (first, second), (cells, others) = fit_shared(smoothed, at, n_pcs=5)
    np.testing.assert_array_equal(first.encoder, second.encoder)
    assert first.scale == second.scale
    np.testing.assert_allclose(first.transform(smoothed[0]), cells, atol=1e-5)
    np.testing.assert_allclose(second.transform(smoothed[1]), others, atol=1e-5)
    # the identity maps a to b: same feature, b's units
    mapped = second.inverse(cells)[:, at[1]]
    z = (a[:, :60] - a[:, :60].mean(0)) / a[:, :60].std(0)
    expected = z * b[:, at[1]].std(0) + b[:, at[1]].mean(0)
    r = [np.corrcoef(mapped[:, i], expected[:, i])[0, 1] for i in range(60)]
    assert np.median(r) > 0.98
    np.testing.assert_allclose(mapped.mean(0), b[:, at[1]].mean(0), atol=1e-3)


def test_shared_space_is_the_joint_pca():
    a, b, at = shared_pair()
    (first, _), cells = fit_shared([SmoothedMatrix(a), SmoothedMatrix(b)], at, n_pcs=5)
    za, zb = ((v - v.mean(0)) / v.std(0) for v in (a[:, at[0]].astype(float), b[:, at[1]].astype(float)))
    # modalities count the same, whatever their sizes
    vectors = np.linalg.eigh(za.T @ za / 200 + zb.T @ zb / 100)[1][:, ::-1][:, :5]
    np.testing.assert_allclose(np.abs((first.encoder * vectors.T).sum(1)), 1, atol=1e-5)
    # one scale of both: the root mean square of the two
    scores = [z @ first.encoder.T for z in (za, zb)]
    assert float(first.scale) == pytest.approx(np.sqrt(np.mean([(s**2).mean() for s in scores])), rel=1e-4)
    for s, x in zip(scores, cells, strict=True):
        np.testing.assert_allclose(x, s / float(first.scale), atol=1e-4)


def test_features_of_one_side_are_decoded_from_the_shared_space():
    a, b, at = shared_pair()
    (first, _), (_, cells) = fit_shared([SmoothedMatrix(a), SmoothedMatrix(b)], at, n_pcs=5)
    assert first.decoder.shape == (5, 80)
    # hidden features of b's cells: their truth is the latent programme
    rng = np.random.default_rng(0)
    _, own = rng.normal(size=(5, 60)), rng.normal(size=(5, 20))
    latent = rng.normal(size=(300, 5))[200:]
    got = first.inverse(cells)[:, 60:]
    r = [np.corrcoef(got[:, i], (latent @ own)[:, i])[0, 1] for i in range(20)]
    assert np.median(r) > 0.95


def left_out(x: np.ndarray, y: np.ndarray, ridge: float) -> float:
    """Mean squared error of leaving every cell out, one regression each, features and scores centred beforehand."""
    penalty, wrong = ridge * (x**2).sum(0).mean(), []
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        mean_x, mean_y = x[rest].mean(0), y[rest].mean(0)
        c = x[rest] - mean_x
        slope = np.linalg.solve(c.T @ c + penalty * np.eye(x.shape[1]), c.T @ (y[rest] - mean_y))
        wrong.append(((y[i] - mean_y - (x[i] - mean_x) @ slope) ** 2).mean())
    return float(np.mean(wrong))


@pytest.mark.parametrize("kind", list(FORMATS))
@pytest.mark.parametrize(("n", "noise", "light"), [(200, 0.5, True), (40, 5.0, False)])
def test_ridge_is_the_one_that_leaves_cells_out_best(kind: str, n: int, noise: float, light: bool):
    """Features that minor components predict want a light one, few noisy cells a heavy one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 8)) * np.linspace(3, 0.5, 8)
    rest = x @ rng.normal(size=(8, 30)) * (1 if light else 0.2) + noise * rng.normal(size=(n, 30))
    # what entered the PCA is known in any case, and nothing predicts a constant
    values = np.hstack([rest, 100 * rng.normal(size=(n, 5)), np.ones((n, 2))]).astype(np.float32)
    matrix = SmoothedMatrix(FORMATS[kind](values), smoothing_operator(x), 3)
    found = tf.chosen_ridge(matrix, np.arange(30, 35), x)
    y = (rest - rest.mean(0)) / rest.std(0)
    errors = [left_out(x - x.mean(0), y, ridge) for ridge in DECODER_RIDGES]
    assert found == pytest.approx(DECODER_RIDGES[int(np.argmin(errors))])
    assert found <= 0.1 if light else found >= 3


def test_ridge_where_there_is_nothing_to_choose_by():
    x = np.random.default_rng(0).normal(size=(50, 3))
    matrix = SmoothedMatrix(np.hstack([x, np.ones((50, 2))]).astype(np.float32))
    assert tf.chosen_ridge(matrix, np.arange(5), x) == DECODER_RIDGE
    assert tf.chosen_ridge(matrix, np.arange(3), x) == DECODER_RIDGE
    assert tf.chosen_ridge(matrix, np.arange(2), np.zeros((50, 3))) == DECODER_RIDGE


def test_hidden_features_are_decoded_with_the_chosen_ridge(monkeypatch: pytest.MonkeyPatch):
    a, b, at = shared_pair()
    smoothed = [SmoothedMatrix(a), SmoothedMatrix(b)]
    plain, _ = fit_shared(smoothed, at, n_pcs=5)
    # twenty features on the side of a, none on that of b
    assert float(plain[0].penalty) == pytest.approx(min(DECODER_RIDGES))
    assert float(plain[1].penalty) == DECODER_RIDGE
    monkeypatch.setattr(tf, "DECODER_RIDGES", (10.0,))
    (heavy, _), _ = fit_shared(smoothed, at, n_pcs=5)
    rest = np.setdiff1d(np.arange(80), heavy.encoded)
    np.testing.assert_array_equal(heavy.decoder[:, heavy.encoded], plain[0].decoder[:, heavy.encoded])
    assert np.abs(heavy.decoder[:, rest]).sum() < 0.5 * np.abs(plain[0].decoder[:, rest]).sum()


def test_decoder_of_other_values_of_the_same_cells():
    """For the null of correlations: regressed on the same scores under the same penalty, loadings of the PCA under none."""
    a, b, at = shared_pair()
    smoothed = [SmoothedMatrix(a), SmoothedMatrix(b)]
    (found, _), (y, _) = fit_shared(smoothed, at, n_pcs=5)
    x = y.astype(np.float64) * float(found.scale)
    rest = np.setdiff1d(np.arange(80), found.encoded)
    # of the values that it was learnt from it is the decoder itself, of a joint PCA outside of it
    again = tf.decoder_of(smoothed[0], x, found)
    np.testing.assert_allclose(again[:, rest], found.decoder[:, rest], rtol=1e-3, atol=1e-5)
    alone, cells = fit_transform(smoothed[0], n_pcs=5, allowed=np.arange(60))
    again = tf.decoder_of(smoothed[0], cells.astype(np.float64) * float(alone.scale), alone)
    np.testing.assert_allclose(again, alone.decoder, rtol=1e-3, atol=1e-5)
    other = np.random.default_rng(1).permuted(a, axis=0)
    got = tf.decoder_of(SmoothedMatrix(other), x, found)
    z = (other - other.mean(0)) / found.sd
    centred = x - x.mean(0)
    gram = centred.T @ centred
    strength = float(found.penalty) * np.trace(gram) / 5
    ridge = np.linalg.solve(gram + strength * np.eye(5), centred.T @ z[:, rest])
    np.testing.assert_allclose(got[:, rest], ridge, atol=1e-4)
    plain = np.linalg.lstsq(centred, z[:, found.encoded], rcond=None)[0]
    np.testing.assert_allclose(got[:, found.encoded], plain, atol=1e-4)


def test_shared_space_of_many_features():
    order = np.random.default_rng(0).permutation(2_600)
    smoothed = [SmoothedMatrix(many(100)), SmoothedMatrix(many(80)[:, order])]
    (first, second), _ = fit_shared(smoothed, [np.arange(2_600), np.argsort(order)], n_pcs=5)
    assert len(first.encoded) == 2_000
    # the same features on both sides, the flat ones among those left out
    np.testing.assert_array_equal(first.encoded, order[second.encoded])
    assert (first.encoded < 2_300).mean() > 0.99


# --- representations ---------------------------------------------------------------------------------------------


def test_identity_transform_centres_and_scales_only():
    x = (5 + np.random.default_rng(0).normal(size=(60, 4)) * np.array([3, 1, 1, 0])).astype(np.float32)
    transform, y = identity_transform(SmoothedMatrix(x))
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0).mean()), atol=1e-5)
    np.testing.assert_array_equal(transform.transform(SmoothedMatrix(x)), y)
    np.testing.assert_allclose(transform.inverse(y), x, atol=1e-5)


# --- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_batched_transform_is_that_of_the_corrected_matrix(kind: str):
    x, rng = expression(120, 40), np.random.default_rng(1)
    batch = rng.permutation(np.repeat([0, 1], [70, 50]))
    x = (x * rng.uniform(0.7, 1.5, (2, 40))[batch] + rng.uniform(0, 3, (2, 40))[batch]).astype(np.float32)
    x[:, 5] = 2.5
    x[:, 7] = np.array([1, 4], np.float32)[batch]  # constant in each
    rows = [np.flatnonzero(batch == i) for i in range(2)]
    matrix = BatchedMatrix([SmoothedMatrix(FORMATS[kind](x[r]), smoothing_operator(x[r]), 1) for r in rows], rows)
    expected = matrix.columns(np.arange(40)).astype(np.float64)
    transform, y = fit_transform(matrix, n_pcs=10)
    assert y.shape == (120, 10)
    np.testing.assert_allclose(transform.transform(matrix), y, atol=1e-5)
    moving = np.setdiff1d(np.arange(40), [5, 7])
    np.testing.assert_allclose(transform.inverse(y)[:, moving], low_rank(expected[:, moving], 10), atol=1e-3)
    np.testing.assert_allclose(transform.inverse(y)[:, [5, 7]], np.tile(expected[0, [5, 7]], (120, 1)), atol=1e-4)
