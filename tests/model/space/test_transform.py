"""Features to model space and back, against dense float64 references of METHOD §2."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from scmmgan.model.space import transform as tf
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.smoothing import BatchedMatrix, SmoothedMatrix
from scmmgan.model.space.transform import (
    decoding_to,
    fit_operator,
    fit_shared,
    fit_smoothed,
    fit_transform,
    identity_transform,
)

FORMATS = {"dense": np.asarray, "sparse": sp.csr_matrix}


def expression(n: int = 150, g: int = 80, rank: int = 6, seed: int = 0) -> np.ndarray:
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
    operator = fit_operator(x) if t else None
    smoothed = SmoothedMatrix(FORMATS[kind](x), operator, t)
    transform = fit_transform(smoothed, n_pcs=p)
    y = transform.transform(smoothed)
    assert y.shape == (150, p)
    assert y.dtype == np.float32
    np.testing.assert_allclose(transform.inverse(y), low_rank(dense_smooth(x, operator, t), p), atol=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
def test_inverse_is_the_matrix_itself_at_full_rank(kind: str):
    x = expression(g=40)
    smoothed = SmoothedMatrix(FORMATS[kind](x))
    transform = fit_transform(smoothed, n_pcs=50)
    y = transform.transform(smoothed)
    assert y.shape == (150, 40)
    np.testing.assert_allclose(transform.inverse(y), x, atol=1e-4)


def test_more_features_than_cells():
    x = expression(n=40, g=90)
    smoothed = SmoothedMatrix(x)
    transform = fit_transform(smoothed)
    y = transform.transform(smoothed)
    # p = min(50, g, n - 1)
    assert y.shape == (40, 39)
    np.testing.assert_allclose(transform.inverse(y), x, atol=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
def test_sparse_and_dense_agree(kind: str):
    x = expression()
    operator = fit_operator(x)
    reference = fit_transform(SmoothedMatrix(x, operator, 3), n_pcs=10)
    again = fit_transform(SmoothedMatrix(FORMATS[kind](x), fit_operator(FORMATS[kind](x)), 3), n_pcs=10)
    for name, value in reference.state().items():
        np.testing.assert_allclose(again.state()[name], value, atol=1e-4, err_msg=name)


def test_scale_is_one_number_and_the_geometry_stays():
    x = expression()
    smoothed = SmoothedMatrix(x)
    transform = fit_transform(smoothed, n_pcs=10)
    y = transform.transform(smoothed)
    assert transform.scale.shape == ()
    assert y.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    # never whitened: the columns keep their unequal variances, in descending order
    z = (x - x.mean(0)) / x.std(0)
    singular = np.linalg.svd(z, compute_uv=False)[:10]
    np.testing.assert_allclose(y.std(0) / y.std(0)[0], singular / singular[0], rtol=1e-3)
    assert y.std(0)[0] > 2 * y.std(0)[-1]


def test_inverse_of_chosen_features():
    smoothed = SmoothedMatrix(expression())
    transform = fit_transform(smoothed, n_pcs=10)
    y = transform.transform(smoothed)
    at = np.array([70, 3, 3, 11])
    np.testing.assert_allclose(transform.inverse(y, at), transform.inverse(y)[:, at], atol=1e-5)
    assert transform.inverse(y[:1], at).shape == (1, 4)


def test_one_cell_transforms_as_in_a_batch():
    x = expression()
    smoothed = SmoothedMatrix(x)
    transform = fit_transform(smoothed, n_pcs=10)
    y = transform.transform(smoothed)
    alone = np.concatenate([transform.transform(SmoothedMatrix(x[i : i + 1])) for i in range(20)])
    np.testing.assert_allclose(alone, y[:20], atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([transform.inverse(row[None]) for row in y[:20]]), transform.inverse(y)[:20], atol=1e-5
    )


def test_same_signs_every_time():
    x = expression()
    first, second = (fit_transform(SmoothedMatrix(x), n_pcs=10).encoder for _ in range(2))
    np.testing.assert_array_equal(first, second)
    largest = np.take_along_axis(first, np.abs(first).argmax(1)[:, None], 1)
    assert (largest > 0).all()


# --- awkward features --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("p", [10, 50])
def test_constant_features_come_back_as_their_constant(kind: str, p: int):
    x = expression(g=40)
    x[:, 3], x[:, 17] = 2.5, 0
    operator = fit_operator(FORMATS[kind](x))
    smoothed = SmoothedMatrix(FORMATS[kind](x), operator, 3)
    transform = fit_transform(smoothed, n_pcs=p)
    got = transform.inverse(transform.transform(smoothed))
    np.testing.assert_allclose(got[:, 3], 2.5, atol=1e-5)
    np.testing.assert_allclose(got[:, 17], 0, atol=1e-5)
    assert transform.sd[3] == transform.sd[17] == 1


def test_constant_features_stay_constant_for_cells_that_were_not_measured():
    """Mapped cells lie anywhere in model space; a feature without variance must not answer to any of it."""
    x = expression(g=40)
    x[:, 3] = 2.5
    transform = fit_transform(SmoothedMatrix(x), n_pcs=50)
    y = np.random.default_rng(0).normal(size=(100, len(transform.encoder)))
    np.testing.assert_allclose(transform.inverse(y)[:, 3], 2.5, atol=1e-4)


def test_constant_features_stay_constant_in_a_shared_space():
    a, b = expression(g=60, seed=0), expression(g=60, seed=1)
    b[:, 3] = 2.5  # varies in a
    smoothed = [SmoothedMatrix(a), SmoothedMatrix(b)]
    first, second = fit_shared(smoothed, [np.arange(60)] * 2, n_pcs=20)
    mapped = second.inverse(first.transform(smoothed[0]))
    np.testing.assert_allclose(mapped[:, 3], 2.5, atol=1e-4)


def test_features_of_very_different_size():
    x = expression().astype(np.float64)
    x[:, 0] *= 1e4
    x[:, 1] *= 1e-4
    x[:, 2] += 1e3
    smoothed = SmoothedMatrix(x.astype(np.float32))
    transform = fit_transform(smoothed, n_pcs=80)
    error = np.abs(transform.inverse(transform.transform(smoothed)) - x).max(0) / x.std(0)
    assert error.max() < 1e-2
    assert np.median(error) < 1e-4


def test_moments():
    x = expression(g=600)
    operator = fit_operator(x)
    s = dense_smooth(x, operator, 3)
    for kind in FORMATS.values():
        mean, sd = SmoothedMatrix(kind(x), operator, 3).moments()
        np.testing.assert_allclose(mean, s.mean(0), atol=1e-5)
        np.testing.assert_allclose(sd, s.std(0), atol=1e-5)


def test_smoothed_products():
    x, rng = expression(), np.random.default_rng(0)
    operator = fit_operator(x)
    s = dense_smooth(x, operator, 2)
    v, u = rng.normal(size=(80, 3)), rng.normal(size=(150, 3))
    for kind in FORMATS.values():
        smoothed = SmoothedMatrix(kind(x), operator, 2)
        np.testing.assert_allclose(smoothed.dot(v), s @ v, atol=1e-4)
        np.testing.assert_allclose(smoothed.tdot(u), s.T @ u, atol=1e-4)
        np.testing.assert_allclose(smoothed.columns(np.array([5, 0])), s[:, [5, 0]], atol=1e-5)
        np.testing.assert_array_equal(smoothed.measured(np.array([5, 0])), x[:, [5, 0]])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [1, 3])
def test_values_of_cells_are_averaged_over_neighbours(kind: str, t: int):
    x, values = expression(), np.random.default_rng(0).random(150).astype(np.float32)
    operator = fit_operator(x)
    # two steps, however many the features take
    expected = dense_smooth(values, operator, 2)
    np.testing.assert_allclose(SmoothedMatrix(FORMATS[kind](x), operator, t).averaged(values), expected, atol=1e-6)
    assert expected.std() < 0.7 * values.std()
    np.testing.assert_array_equal(SmoothedMatrix(FORMATS[kind](x)).averaged(values), values)


def test_smoothing_restores_dropouts():
    rng = np.random.default_rng(0)
    rate = np.exp(2 * np.sin(np.outer(rng.random(400) * 4, np.ones(60)) + rng.random(60) * 6))
    truth, x = np.log1p(rate), np.log1p(rng.poisson(rate) * (rng.random(rate.shape) < 0.5)).astype(np.float32)
    s = SmoothedMatrix(x, fit_operator(x), 3).x
    raw = np.mean([np.corrcoef(truth[:, i], x[:, i])[0, 1] for i in range(60)])
    smooth = np.mean([np.corrcoef(truth[:, i], s[:, i])[0, 1] for i in range(60)])
    assert raw < 0.7
    assert smooth > 0.85


@pytest.mark.parametrize("kind", FORMATS)
def test_inputs_are_left_alone(kind: str):
    x = FORMATS[kind](expression())
    before = x.copy()
    smoothed = SmoothedMatrix(x, fit_operator(x), 3)
    transform = fit_transform(smoothed, n_pcs=10)
    y = transform.transform(smoothed)
    kept = y.copy()
    transform.inverse(y)
    np.testing.assert_array_equal(y, kept)
    assert (before != x).sum() == 0


def test_operator_of_the_masked_features_only():
    x = expression()
    x[:, 40:] = np.random.default_rng(0).normal(scale=100, size=(150, 40))
    masked = fit_operator(x, allowed=np.arange(40))
    np.testing.assert_allclose(masked.toarray(), fit_operator(x[:, :40]).toarray(), atol=1e-4)
    reference = smoothing_operator(fit_transform(SmoothedMatrix(x[:, :40])).transform(SmoothedMatrix(x[:, :40])))
    np.testing.assert_allclose(masked.toarray(), reference.toarray(), atol=1e-4)


# --- many features -----------------------------------------------------------------------------------------------


def many(n: int = 120, g: int = 2_600) -> np.ndarray:
    """Rank 4 plus noise; the last 300 features hardly vary."""
    rng = np.random.default_rng(0)
    x = 3 + rng.normal(size=(n, 4)) @ rng.normal(size=(4, g)) + 0.3 * rng.normal(size=(n, g))
    x[:, -300:] = 3 + 0.1 * (x[:, -300:] - 3)
    return x.astype(np.float32)


def test_dispersed_features_and_linked_ones_enter_the_pca():
    x, linked = many(), np.array([2_590, 2_595])
    transform = fit_transform(SmoothedMatrix(x), n_pcs=10, linked=linked)
    score = x.var(0) / x.mean(0)
    expected = np.union1d(np.argsort(-score, kind="stable")[:2_000], linked)
    np.testing.assert_array_equal(np.sort(transform.encoded), expected)
    assert transform.encoder.shape == (10, 2_002)
    assert transform.decoder.shape == (10, 2_600)


def test_features_outside_of_the_pca_are_decoded_by_ridge():
    x = many().astype(np.float64)
    smoothed = SmoothedMatrix(x.astype(np.float32))
    transform = fit_transform(smoothed, n_pcs=6)
    y = transform.transform(smoothed)
    got = transform.inverse(y)
    rest = np.setdiff1d(np.arange(2_600), transform.encoded)
    assert len(rest) == 600
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
    smoothed = SmoothedMatrix(x, fit_operator(x), 3)
    transform = fit_transform(smoothed, n_pcs=6, allowed=np.arange(40), linked=np.array([60]))
    np.testing.assert_array_equal(transform.encoded, np.arange(40))
    got = transform.inverse(transform.transform(smoothed))
    assert np.median([np.corrcoef(got[:, i], smoothed.x[:, i])[0, 1] for i in range(40, 80)]) > 0.9


def test_linked_features_win_against_the_limit_only():
    """Up to 2,000 features all of them enter; a mask wins against links."""
    x = expression()
    assert len(fit_transform(SmoothedMatrix(x), linked=np.array([1])).encoded) == 80
    assert len(fit_transform(SmoothedMatrix(x), linked=np.array([79]), allowed=np.arange(5)).encoded) == 5


@pytest.mark.parametrize("kind", FORMATS)
def test_iterative_and_direct_axes_agree(kind: str, monkeypatch: pytest.MonkeyPatch):
    x = expression(n=700, g=900, rank=8)
    operator = fit_operator(x)
    calls = []
    original = tf.svds
    monkeypatch.setattr(tf, "svds", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    smoothed = SmoothedMatrix(FORMATS[kind](x), operator, 3)
    iterative = fit_transform(smoothed, n_pcs=20)
    assert calls == [1]
    s = dense_smooth(x, operator, 3)
    z = (s - s.mean(0)) / s.std(0)
    v = np.linalg.svd(z, full_matrices=False)[2][:20]
    overlap = np.abs((iterative.encoder * v).sum(1))
    np.testing.assert_allclose(overlap, 1, atol=1e-4)
    np.testing.assert_allclose(iterative.inverse(iterative.transform(smoothed)), low_rank(s, 20), atol=1e-4)
    again = fit_transform(smoothed, n_pcs=20)
    np.testing.assert_array_equal(iterative.encoder, again.encoder)


def test_sparse_matrix_is_never_made_dense(monkeypatch: pytest.MonkeyPatch):
    """A matrix of 480 MB dense, 2 MB sparse; 20,000 features."""
    n, g = 3_000, 20_000
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
    smoothed = SmoothedMatrix(x, fit_operator(x, n_pcs=10), 3)
    transform = fit_transform(smoothed, n_pcs=10)
    y = transform.transform(smoothed)
    assert smoothed.measured(np.arange(50)).shape == (n, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert y.shape == (n, 10)
    # blocks of columns, an eightieth of the matrix each
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
    first, second = fit_shared(smoothed, at, n_pcs=5)
    np.testing.assert_array_equal(first.encoder, second.encoder)
    assert first.scale == second.scale
    # the identity maps a to b: same feature, b's units
    mapped = second.inverse(first.transform(smoothed[0]))[:, at[1]]
    z = (a[:, :60] - a[:, :60].mean(0)) / a[:, :60].std(0)
    expected = z * b[:, at[1]].std(0) + b[:, at[1]].mean(0)
    r = [np.corrcoef(mapped[:, i], expected[:, i])[0, 1] for i in range(60)]
    assert np.median(r) > 0.98
    np.testing.assert_allclose(mapped.mean(0), b[:, at[1]].mean(0), atol=1e-3)


def test_shared_space_is_the_joint_pca():
    a, b, at = shared_pair()
    first, _ = fit_shared([SmoothedMatrix(a), SmoothedMatrix(b)], at, n_pcs=5)
    za, zb = ((v - v.mean(0)) / v.std(0) for v in (a[:, at[0]].astype(float), b[:, at[1]].astype(float)))
    # modalities count the same, whatever their sizes
    vectors = np.linalg.eigh(za.T @ za / 200 + zb.T @ zb / 100)[1][:, ::-1][:, :5]
    np.testing.assert_allclose(np.abs((first.encoder * vectors.T).sum(1)), 1, atol=1e-5)


def test_features_of_one_side_are_decoded_from_the_shared_space():
    a, b, at = shared_pair()
    smoothed = [SmoothedMatrix(a), SmoothedMatrix(b)]
    first, second = fit_shared(smoothed, at, n_pcs=5)
    assert first.decoder.shape == (5, 80)
    # hidden features of b's cells: their truth is the latent programme
    rng = np.random.default_rng(0)
    _, own = rng.normal(size=(5, 60)), rng.normal(size=(5, 20))
    latent = rng.normal(size=(300, 5))[200:]
    got = first.inverse(second.transform(smoothed[1]))[:, 60:]
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
@pytest.mark.parametrize(("n", "noise", "light"), [(300, 0.5, True), (40, 5.0, False)])
def test_ridge_is_the_one_that_leaves_cells_out_best(kind: str, n: int, noise: float, light: bool):
    """Features that minor components tell want a light one, few noisy cells a heavy one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 8)) * np.linspace(3, 0.5, 8)
    rest = x @ rng.normal(size=(8, 30)) * (1 if light else 0.2) + noise * rng.normal(size=(n, 30))
    # what entered the PCA is told in any case, and a constant is told by nothing
    values = np.hstack([rest, 100 * rng.normal(size=(n, 5)), np.ones((n, 2))]).astype(np.float32)
    matrix = SmoothedMatrix(FORMATS[kind](values), smoothing_operator(x), 3)
    found = tf.chosen_ridge(matrix, np.arange(30, 35), x)
    y = (rest - rest.mean(0)) / rest.std(0)
    errors = [left_out(x - x.mean(0), y, ridge) for ridge in tf.RIDGES]
    assert found == pytest.approx(tf.RIDGES[int(np.argmin(errors))])
    assert found <= 0.1 if light else found >= 3


def test_ridge_where_there_is_nothing_to_choose_by():
    x = np.random.default_rng(0).normal(size=(50, 3))
    matrix = SmoothedMatrix(np.hstack([x, np.ones((50, 2))]).astype(np.float32))
    assert tf.chosen_ridge(matrix, np.arange(5), x) == tf.RIDGE
    assert tf.chosen_ridge(matrix, np.arange(3), x) == tf.RIDGE
    assert tf.chosen_ridge(matrix, np.arange(2), np.zeros((50, 3))) == tf.RIDGE


def test_hidden_features_are_decoded_with_the_chosen_ridge(monkeypatch: pytest.MonkeyPatch):
    a, b, at = shared_pair()
    smoothed = [SmoothedMatrix(a), SmoothedMatrix(b)]
    plain = fit_shared(smoothed, at, n_pcs=5)
    # twenty features on the side of a, none on that of b
    assert float(plain[0].penalty) == pytest.approx(min(tf.RIDGES))
    assert float(plain[1].penalty) == tf.RIDGE
    monkeypatch.setattr(tf, "RIDGES", (10.0,))
    heavy = fit_shared(smoothed, at, n_pcs=5)[0]
    rest = np.setdiff1d(np.arange(80), heavy.encoded)
    np.testing.assert_array_equal(heavy.decoder[:, heavy.encoded], plain[0].decoder[:, heavy.encoded])
    assert np.abs(heavy.decoder[:, rest]).sum() < 0.5 * np.abs(plain[0].decoder[:, rest]).sum()
    # the same regression as that of the null of correlations
    x = heavy.transform(smoothed[0]) * float(heavy.scale)
    again = tf.decoder_of(smoothed[0], x, heavy)
    np.testing.assert_allclose(again[:, rest], heavy.decoder[:, rest], rtol=1e-3, atol=1e-5)


def test_shared_space_of_many_features():
    order = np.random.default_rng(0).permutation(2_600)
    smoothed = [SmoothedMatrix(many(100)), SmoothedMatrix(many(80)[:, order])]
    first, second = fit_shared(smoothed, [np.arange(2_600), np.argsort(order)], n_pcs=5)
    assert len(first.encoded) == 2_000
    # the same features on both sides, the flat ones among those left out
    np.testing.assert_array_equal(first.encoded, order[second.encoded])
    assert (first.encoded < 2_300).mean() > 0.99


# --- representations ---------------------------------------------------------------------------------------------


def test_identity_transform_centres_and_scales_only():
    x = (5 + np.random.default_rng(0).normal(size=(60, 4)) * np.array([3, 1, 1, 0])).astype(np.float32)
    smoothed = SmoothedMatrix(x)
    transform = identity_transform(smoothed)
    y = transform.transform(smoothed)
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0).mean()), atol=1e-5)
    np.testing.assert_allclose(transform.inverse(y), x, atol=1e-5)


# --- batches -----------------------------------------------------------------------------------------------------


def batched(kind: str = "dense", t: int = 3) -> tuple[BatchedMatrix, np.ndarray]:
    """Three batches of unequal size with shifts and scales of their own, and the same in dense float64."""
    x = expression(150, 40)
    rng = np.random.default_rng(1)
    batch = rng.permutation(np.repeat([0, 1, 2], [70, 45, 35]))
    x = (x * rng.uniform(0.5, 2, (3, 40))[batch] + rng.uniform(0, 3, (3, 40))[batch]).astype(np.float32)
    x[:, 5] = 2.5  # constant
    x[batch == 1, 6] = 1.5  # constant in one batch
    x[:, 7] = np.array([1, 4, 2], np.float32)[batch]  # constant in each
    x[batch == 2, 8] = x[batch == 2, 8].mean() + 0.01 * (x[batch == 2, 8] - x[batch == 2, 8].mean())  # hardly varies
    rows = [np.flatnonzero(batch == i) for i in range(3)]
    operators = [fit_operator(x[r]) if t else None for r in rows]
    parts = [SmoothedMatrix(FORMATS[kind](x[r]), op, t) for r, op in zip(rows, operators)]
    smoothed = np.empty((150, 40))
    for r, op in zip(rows, operators):
        smoothed[r] = dense_smooth(x[r], op, t)
    # every feature to the pooled mean and the pooled within-batch sd, at most fivefold
    pooled_mean, pooled_sd = smoothed.mean(0), np.sqrt(sum(len(r) * smoothed[r].var(0) for r in rows) / 150)
    expected = np.empty((150, 40))
    for r in rows:
        mean, sd = smoothed[r].mean(0), smoothed[r].std(0)
        sd[sd < 1e-5] = 0
        ratio = np.divide(pooled_sd, sd, out=np.ones(40), where=(sd > 0) & (pooled_sd > 1e-5))
        expected[r] = (smoothed[r] - mean) * np.clip(ratio, 1 / 5, 5) + pooled_mean
    return BatchedMatrix(parts, rows), expected


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("t", [0, 3])
def test_batched_products(kind: str, t: int):
    matrix, expected = batched(kind, t)
    assert matrix.shape == (150, 40)
    rng = np.random.default_rng(0)
    v, u = rng.normal(size=(40, 6)), rng.normal(size=(150, 4))
    np.testing.assert_allclose(matrix.dot(v), expected @ v, atol=1e-3)
    np.testing.assert_allclose(matrix.tdot(u), expected.T @ u, atol=1e-3)
    at = np.array([30, 5, 6, 7, 8, 5])
    got = matrix.columns(at)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected[:, at], atol=1e-4)
    mean, sd = matrix.moments()
    np.testing.assert_allclose(mean, expected.mean(0), atol=1e-4)
    np.testing.assert_allclose(sd, expected.std(0), atol=1e-4)
    # before the smoothing every batch is moved alike
    measured = matrix.measured(at)
    assert measured.dtype == np.float32
    for part, r in zip(matrix.parts, matrix.rows):
        smoothed = part.columns(at).astype(float)
        line = np.stack([np.polyfit(v, w, 1) if np.ptp(v) > 1e-4 else (1, np.mean(w - v))
                         for v, w in zip(smoothed.T, expected[np.ix_(r, at)].T)])  # fmt: skip
        np.testing.assert_allclose(measured[r], part.measured(at) * line[:, 0] + line[:, 1], atol=2e-3)


@pytest.mark.parametrize("t", [0, 3])
def test_values_of_cells_are_averaged_in_their_batch(t: int):
    matrix, values = batched("sparse", t)[0], np.random.default_rng(0).random(150).astype(np.float32)
    expected = values.astype(np.float64)
    for part, r in zip(matrix.parts, matrix.rows):
        expected[r] = dense_smooth(values[r], part.operator, 2 if t else 0)
    np.testing.assert_allclose(matrix.averaged(values), expected, atol=1e-6)


def test_batches_have_equal_moments():
    matrix, _ = batched()
    columns = matrix.columns(np.arange(40))
    usual = np.flatnonzero((matrix.scale > 0.21).all(0) & (matrix.scale < 4.9).all(0))
    usual = np.setdiff1d(usual, [5, 6, 7, 8])
    assert len(usual) > 30
    first = columns[matrix.rows[0]]
    for rows in matrix.rows[1:]:
        np.testing.assert_allclose(columns[rows].mean(0), first.mean(0), atol=1e-3)
        np.testing.assert_allclose(columns[rows][:, usual].std(0), first[:, usual].std(0), rtol=1e-3)
    # constant features: constant still, and what was constant in each batch differs no more
    assert np.ptp(columns[:, [5, 7]], axis=0).max() < 1e-4
    assert np.ptp(columns[matrix.rows[1]][:, 6]) < 1e-4
    assert matrix.moments()[1][[5, 7]].max() < 1e-6
    # a feature that hardly varies in one batch is blown up fivefold and no more
    ratio = columns[matrix.rows[2]][:, 8].std() / matrix.parts[2].columns(np.array([8])).std()
    assert ratio == pytest.approx(5, rel=1e-3)
    # cells keep their places inside their batch
    for rows, part in zip(matrix.rows, matrix.parts):
        for j in (0, 20):
            assert np.corrcoef(columns[rows, j], part.columns(np.array([j]))[:, 0])[0, 1] > 0.9999


@pytest.mark.parametrize("kind", FORMATS)
def test_batched_transform_is_that_of_the_corrected_matrix(kind: str):
    matrix, expected = batched(kind)
    found = fit_transform(matrix, n_pcs=10)
    y = found.transform(matrix)
    assert y.shape == (150, 10)
    moving = np.setdiff1d(np.arange(40), [5, 7])
    np.testing.assert_allclose(found.inverse(y)[:, moving], low_rank(expected[:, moving], 10), atol=1e-3)
    np.testing.assert_allclose(found.inverse(y)[:, [5, 7]], np.tile(expected[0, [5, 7]], (150, 1)), atol=1e-4)


def test_one_batch_is_the_matrix_itself():
    x = expression(60, 20)
    single = BatchedMatrix([SmoothedMatrix(x)], [np.arange(60)])
    np.testing.assert_allclose(single.columns(np.arange(20)), x, atol=1e-5)
    np.testing.assert_allclose(single.moments()[1], x.std(0), atol=1e-5)


def test_sparse_batches_stay_sparse():
    n, g = 600, 3_000
    rng = np.random.default_rng(0)
    x = sp.random(n, g, 0.02, format="csr", dtype=np.float32, random_state=0)
    rows = np.array_split(rng.permutation(n), 2)
    parts = [SmoothedMatrix(x[r]) for r in rows]
    tracemalloc.start()
    matrix = BatchedMatrix(parts, rows)
    matrix.dot(rng.normal(size=(g, 5)))
    matrix.tdot(rng.normal(size=(n, 5)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * g * 4 * 0.6


def test_cells_that_are_alike_in_all_allowed_features():
    """As in one batch of several: the others are decoded as their means."""
    x = expression(60, 20)
    x[:, :8] = 2
    found = fit_transform(SmoothedMatrix(x), allowed=np.arange(8))
    y = found.transform(SmoothedMatrix(x))
    np.testing.assert_allclose(found.inverse(y), np.tile(x.mean(0), (60, 1)), atol=1e-4)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("batches", [False, True])
def test_smoothing_inside_those_labels_that_the_data_bear_out(sparse: bool, batches: bool):
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1, 2], 60)
    x = (rng.normal(size=(180, 30)) + 3 * np.eye(3)[labels][:, np.arange(30) // 10]).astype(np.float32)
    x = sp.csr_matrix(x) if sparse else x
    halves = np.arange(180) % 2
    rows = [np.flatnonzero(halves == i) for i in range(2)] if batches else None
    # six cells of 0 look like the label 1; 3, 4 and 5 share the cells of 2 at random
    given = np.where(labels == 2, rng.integers(3, 6, 180), labels)
    given[np.flatnonzero(labels == 0)[:6]] = 1
    found, borne_out = fit_smoothed(x, 3, rows=rows, labels=given)
    assert borne_out is not None
    assert (borne_out[:2] > 0.7).all()
    assert (borne_out[3:] < 0.5).all()
    parts = found.parts if isinstance(found, BatchedMatrix) else [found]
    for part, at in zip(parts, rows or [np.arange(180)]):
        links = part.operator.toarray() > 0
        assert not links[np.ix_(given[at] == 0, given[at] == 1)].any()
        assert links[np.ix_(given[at] == 3, given[at] == 4)].any()
    blind = fit_smoothed(x, 3, rows=rows)
    assert blind[1] is None
    foreign = fit_smoothed(x, 3, rows=rows, labels=rng.permutation(labels))
    np.testing.assert_array_equal(foreign[0].columns(np.arange(30)), blind[0].columns(np.arange(30)))
    expected = SmoothedMatrix(x, fit_operator(x), 3).columns(np.arange(30))
    if not batches:
        np.testing.assert_array_equal(blind[0].columns(np.arange(30)), expected)
    assert fit_smoothed(x, 0, labels=labels)[1] is None


# --- a share of own values ---------------------------------------------------------------------------------------


def keeping(kind: str, t: int = 3) -> tuple[SmoothedMatrix, np.ndarray, tf.Transform, np.ndarray]:
    """A smoothed matrix, the same in float64, and the transform and coordinates of cells that keep .3 of their own."""
    x = expression()
    x[:, 5] = 2.5
    operator = fit_operator(x)
    smoothed = SmoothedMatrix(FORMATS[kind](x), operator, t)
    cells = smoothed.keeping(0.3)
    fitted = fit_transform(cells, n_pcs=10, allowed=np.arange(60))
    y = fitted.transform(cells)
    return smoothed, dense_smooth(x, operator, t), decoding_to(smoothed, fitted, y), y


@pytest.mark.parametrize("kind", FORMATS)
def test_cells_that_keep_their_own_are_decoded_to_the_smoothed_layer(kind: str):
    """Features of the PCA by least squares, the others by ridge regression; nothing is fitted to the cells' own noise."""
    _, s, transform, y = keeping(kind)
    got = transform.inverse(y)
    line = np.column_stack([np.ones(150), y]).astype(np.float64)
    best = line @ np.linalg.lstsq(line, s, rcond=None)[0]
    np.testing.assert_allclose(got[:, :60], best[:, :60], atol=1e-3)
    np.testing.assert_allclose(got.mean(0), s.mean(0), atol=1e-4)
    # a ridge of the mean variance leaves less of the others
    assert (got[:, 60:].std(0) < best[:, 60:].std(0)).all()
    np.testing.assert_allclose(got[:, 5], 2.5, atol=1e-6)
    assert not transform.decoder[:, 5].any()
    np.testing.assert_allclose(transform.sd, np.where(s.std(0) < 1e-6, 1, s.std(0)), atol=1e-5)


def test_errors_along_minor_components_are_not_blown_up():
    """Nearly the same feature twice: a component of hardly any variance, which a map gets wrong like any other."""
    x = expression(g=30)
    x[:, 29] = x[:, 28] + 1e-4 * np.random.default_rng(0).normal(size=150)
    smoothed = SmoothedMatrix(x, fit_operator(x), 1)
    cells = smoothed.keeping(0.3)
    fitted = fit_transform(cells)
    transform = decoding_to(smoothed, fitted, fitted.transform(cells))
    assert np.abs(transform.decoder).max() < 2


def test_features_that_smoothing_makes_constant_are_not_moved():
    x = expression()
    x[:, 5] = 1 + 3.6e-6 * np.random.default_rng(0).normal(size=150)
    smoothed = SmoothedMatrix(x, fit_operator(x), 3)
    assert smoothed.moments()[1][5] == 0
    cells = smoothed.keeping(0.3)
    fitted = fit_transform(cells)
    assert fitted.decoder[:, 5].any()
    assert not decoding_to(smoothed, fitted, fitted.transform(cells)).decoder[:, 5].any()


@pytest.mark.parametrize("kind", FORMATS)
def test_coordinates_of_cells_that_keep_their_own(kind: str):
    """They are centred and of one unit, and had again from the cells after the decoder has changed."""
    smoothed, _, transform, y = keeping(kind)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    assert np.sqrt((y**2).mean()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(transform.transform(smoothed.keeping(0.3)), y, atol=1e-4)
    # what is a cell's own is there
    assert np.corrcoef(y.ravel(), transform.transform(smoothed).ravel())[0, 1] < 0.99


# --- denoised neighbours -----------------------------------------------------------------------------------------


def planted(n: int, g: int, strengths: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signal (n × g) of chosen singular values over √n, and the same under noise of variance 1."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(n, len(strengths))))[0] * np.sqrt(n)
    right = np.linalg.qr(rng.normal(size=(g, len(strengths))))[0]
    signal = (left * strengths) @ right.T
    return signal, signal + rng.normal(size=(n, g))


def components(x: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return left[:, :p] * values[:p], right[:p]


@pytest.mark.parametrize(("n", "g"), [(600, 200), (200, 600)])
def test_denoised_components_are_nearest_to_the_signal(n: int, g: int):
    """Each component keeps the share of itself that is signal, as projecting the truth on it would find it."""
    strengths = [6.0, 4.0, 3.0]
    signal, seen = planted(n, g, strengths)
    scores, axes = components(seen, 20)
    total = float((seen - seen.mean(0)).var(0).sum())
    # in units in which the mean feature varies by 1
    unit = np.sqrt(g / total)
    got = tf.denoised(scores.astype(np.float32), unit, g)
    kept = (got * scores).sum(0) / (scores**2).sum(0)
    truth = ((signal @ axes.T) * scores).sum(0) / (scores**2).sum(0)
    np.testing.assert_allclose(kept[:3], truth[:3], atol=0.03)
    assert kept[3:].max() < 0.1
    error = [np.linalg.norm(s @ axes - signal) for s in (got, scores)]
    assert error[0] < 0.6 * error[1]


def test_denoised_needs_noise_and_signal_to_tell_them_apart():
    _, seen = planted(300, 100, [])
    scores = components(seen, 20)[0].astype(np.float32)
    np.testing.assert_array_equal(tf.denoised(scores, 1.0, 100), scores)
    # no features beside the components: nothing says what the noise is
    _, seen = planted(300, 20, [5.0, 4.0])
    scores = components(seen, 20)[0].astype(np.float32)
    np.testing.assert_array_equal(tf.denoised(scores, 1.0, 20), scores)


def test_denoised_graphs_find_the_nearer_neighbours():
    signal, seen = planted(400, 300, [3.0, 2.5, 2.0, 2.0])
    plain, fine = (fit_smoothed(seen.astype(np.float32), 1, denoise=d)[0] for d in (False, True))
    error = [np.linalg.norm(m.columns(np.arange(300)) - signal) for m in (plain, fine)]
    assert error[1] < 0.92 * error[0]


def test_denoised_graph_of_features_that_do_not_vary():
    """They are no features: neither noise nor signal is told by them."""
    _, seen = planted(400, 300, [4.0, 3.0])
    wide = np.hstack([seen, np.full((400, 200), 3.0)]).astype(np.float32)
    narrow, other = (fit_smoothed(v, 1, denoise=True)[0] for v in (wide[:, :300], wide))
    np.testing.assert_allclose(other.columns(np.arange(300)), narrow.columns(np.arange(300)), atol=1e-4)


def test_components_below_the_noise_are_nothing():
    """Also one of hardly any variance, for which the formula alone would give a number."""
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(500, 4)) * np.array([8.0, 5.0, 1.0, 0.05])).astype(np.float32)
    got = tf.denoised(scores, 1.0, 400)
    assert np.all(got[:, 2:] == 0)
    assert np.abs(got[:, :2]).max() > 1
