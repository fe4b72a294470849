"""Smoothing graph, kernel and heat operator, against float64 references in plain loops."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from helpers import noisy, swiss_roll
from scmmgan.model.nets.losses import heat_loss
from scmmgan.model.space import diffusion

# --- references --------------------------------------------------------------------------------------------------


def kernel_reference(x: np.ndarray, width: np.ndarray | None = None) -> np.ndarray:
    """Plain loops; `width` replaces s, which carries no gradient."""
    n = len(x)
    k = max(5, round(0.1 * n))
    d = np.zeros((n, n))
    for a in range(n):
        for b in range(n):
            d[a, b] = 0.0 if a == b else np.sqrt(sum((x[a, i] - x[b, i]) ** 2 for i in range(x.shape[1])) + 1e-12)
    s = np.array([sorted(d[a, b] for b in range(n) if b != a)[k - 1] for a in range(n)]) if width is None else width
    kernel = np.zeros((n, n))
    for a in range(n):
        for b in range(n):
            kernel[a, b] = max(0.0, 1 - d[a, b] / np.sqrt(s[a] * s[b])) + 1e-3 * np.exp(-d[a, b] / d.mean())
    return kernel


def widths_reference(x: np.ndarray) -> np.ndarray:
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2) + 1e-12)
    np.fill_diagonal(d, np.inf)
    return np.sort(d, axis=1)[:, max(5, round(0.1 * len(x))) - 1]


def operator_reference(kernel: np.ndarray) -> np.ndarray:
    q = kernel.sum(1)
    return np.array([[kernel[a, b] / np.sqrt(q[a] * q[b]) for b in range(len(q))] for a in range(len(q))])


def heat_reference(x: np.ndarray, width: np.ndarray | None = None) -> np.ndarray:
    s = operator_reference(kernel_reference(x, width))
    return np.linalg.matrix_power((s + np.eye(len(s))) / 2, 8)


def loss_reference(x: np.ndarray, y: np.ndarray, width_y: np.ndarray | None = None) -> float:
    a, b = heat_reference(x), heat_reference(y, width_y)
    return 1 - (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


def cells(n: int = 60, p: int = 7, seed: int = 0) -> np.ndarray:
    """Cells of unequal density."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)) * np.exp(rng.normal(size=(n, 1)) / 2)


def tensor(x: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(x), dtype=dtype)


# --- kernel and operator of a batch ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [32, 60, 128])  # k = 5, 6, 13
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_kernel_is_the_formula(n: int, dtype: torch.dtype, tolerance: float):
    x = cells(n)
    got = diffusion.diffusion_kernel(tensor(x, dtype)).double().numpy()
    np.testing.assert_allclose(got, kernel_reference(x), atol=tolerance, rtol=0)


def test_kernel_has_a_floor_and_a_triangle():
    kernel = diffusion.diffusion_kernel(tensor(cells(100))).numpy()
    assert kernel.min() > 0
    np.testing.assert_allclose(np.diag(kernel), 1.001, atol=1e-6)
    # beyond both cells' widths the floor alone is left
    assert (kernel < 1.01e-3).mean() > 0.5


def test_widths_count_other_cells():
    # on a line with unit steps the 5th nearest other cell of an end is 5 steps away, and 3 for the middle
    x = np.arange(32.0)[:, None]
    got = diffusion.diffusion_kernel(tensor(x, torch.float64)).numpy()
    floor = 1e-3 * np.exp(-1 / np.abs(x - x.T).mean())
    assert got[0, 1] - floor == pytest.approx(1 - 1 / np.sqrt(5 * 4), abs=1e-9)
    assert got[15, 16] - floor == pytest.approx(1 - 1 / 3, abs=1e-9)


def test_distances_far_from_the_origin():
    x = cells(80)
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    got = diffusion.pairwise_distances(tensor(x + 1e3)).numpy()
    np.testing.assert_allclose(got, d, atol=2e-3)
    assert (np.diag(got) == 0).all()


def test_operator_has_the_spectrum_of_the_random_walk():
    kernel = diffusion.diffusion_kernel(tensor(cells(70), torch.float64))
    s = diffusion.symmetric_operator(kernel).numpy()
    walk = kernel.numpy() / kernel.numpy().sum(1, keepdims=True)
    np.testing.assert_allclose(s, s.T, atol=1e-15)
    expected = np.sort(np.linalg.eigvals(walk).real)
    values, vectors = np.linalg.eigh(s)
    np.testing.assert_allclose(values, expected, atol=1e-10)
    assert values[-1] == pytest.approx(1, abs=1e-12)
    # a symmetric solver on the random walk itself reads one triangle only: another spectrum
    assert np.abs(np.linalg.eigvalsh(walk) - expected).max() > 1e-2
    # φ = u / sqrt(q): eigenvectors of the walk, the leading one constant, which is the last and not the first
    phi = vectors / np.sqrt(kernel.numpy().sum(1))[:, None]
    np.testing.assert_allclose(walk @ phi, phi * values, atol=1e-10)
    assert phi[:, -1].std() / abs(phi[:, -1].mean()) < 1e-9
    assert phi[:, 0].std() / abs(phi[:, 0].mean()) > 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_heat_operator_is_the_eighth_power(dtype: torch.dtype, tolerance: float):
    x = cells(50)
    np.testing.assert_allclose(diffusion.heat_operator(tensor(x, dtype)).numpy(), heat_reference(x), atol=tolerance)


def test_heat_operator_is_not_rank_one():
    values = np.linalg.eigvalsh(diffusion.heat_operator(tensor(cells(100), torch.float64)).numpy())[::-1]
    assert values[0] == pytest.approx(1, abs=1e-10)
    assert values[12] > 1e-2
    assert values[-1] >= 0


# --- heat loss: traps --------------------------------------------------------------------------------------------


def grid(side: int = 12) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(float)


SETS = {"grid": grid(), "swiss_roll": swiss_roll(), "noisy": noisy(), "small": cells(32)}


def loss(x: np.ndarray, y: np.ndarray, dtype: torch.dtype = torch.float32) -> float:
    return float(heat_loss(tensor(x, dtype), tensor(y, dtype)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_loss_is_zero_for_isometries(name: str):
    x = SETS[name]
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.normal(size=(x.shape[1],) * 2))[0]
    # moved and turned, mirrored and scaled, with more dimensions
    for y in (x, x @ q + 3 * rng.normal(size=x.shape[1]), -2.5 * x, np.hstack([x, np.zeros((len(x), 3))])):
        assert abs(loss(x, y, torch.float64)) < 1e-12
        assert abs(loss(x, y)) < 3e-5


@pytest.mark.parametrize(("name", "at_least"), [("grid", 0.5), ("swiss_roll", 0.5), ("noisy", 0.35), ("small", 0.25)])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_loss_sees_shuffled_pairs(name: str, at_least: float, seed: int):
    x, rng = SETS[name], np.random.default_rng(seed)
    shuffled = loss(x, x[rng.permutation(len(x))])
    jittered = loss(x, x + 0.01 * x.std() * rng.normal(size=x.shape))
    assert shuffled > at_least
    assert 0 <= jittered < shuffled / 10


@pytest.mark.slow
def test_loss_grows_with_noise():
    x, rng = swiss_roll(), np.random.default_rng(0)
    noise = x.std() * rng.normal(size=x.shape)
    levels = [loss(x, x + level * noise) for level in (0.0, 0.01, 0.05, 0.2, 1.0)]
    assert levels == sorted(levels)
    assert levels[-1] > 0.3


def test_loss_ignores_the_order_of_the_batch():
    x, y = cells(80, seed=0), cells(80, p=4, seed=1)
    order = np.random.default_rng(2).permutation(80)
    assert loss(x[order], y[order]) == pytest.approx(loss(x, y), abs=1e-6)
    # re-ordering one side alone is another pairing
    assert loss(x, x[order]) > 0.1


def test_loss_is_the_reference():
    x, y = cells(40, seed=0), cells(40, p=3, seed=1)
    assert loss(x, y, torch.float64) == pytest.approx(loss_reference(x, y), abs=1e-10)
    assert loss(x, y) == pytest.approx(loss_reference(x, y), abs=1e-5)


def broken_batches() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5))
    pairs, many, far = x.copy(), x.copy(), x.copy()
    pairs[1] = pairs[0]
    many[:40] = many[0]  # more copies than k = 6: the width is 0
    far[32:] += 1e3
    single = x.copy()
    single[0] += 1e4
    return {"pair": pairs, "copies": many, "all_equal": np.ones((64, 5)), "two_clusters": far, "outlier": single}


@pytest.mark.parametrize("name", broken_batches())
def test_degenerate_batches_are_finite(name: str):
    x = broken_batches()[name]
    for first, second in ((cells(64, 5), x), (x, cells(64, 5)), (x, x + 0.1)):
        y = tensor(second).requires_grad_()
        value = heat_loss(tensor(first), y)
        value.backward()
        assert -1e-5 < float(value.detach()) < 1
        assert torch.isfinite(y.grad).all()


@pytest.mark.parametrize("name", ["pair", "copies", "two_clusters"])
def test_degenerate_batches_get_a_gradient_of_ordinary_size(name: str):
    norms = []
    for dtype in (torch.float32, torch.float64):
        y = tensor(broken_batches()[name], dtype).requires_grad_()
        heat_loss(tensor(cells(64, 5), dtype), y).backward()
        norms.append(float(y.grad.norm()))
    # a slope of 1 / 0 would be clipped in training, and drown all other terms of that step
    assert 0.01 < norms[1] < 1
    assert norms[0] == pytest.approx(norms[1], rel=2)


def test_two_far_clusters_are_one_component():
    kernel = diffusion.diffusion_kernel(tensor(broken_batches()["two_clusters"], torch.float64))
    values = np.linalg.eigvalsh(diffusion.symmetric_operator(kernel).numpy())
    assert kernel.min() > 1e-5
    # connected: 1 is a simple eigenvalue
    assert values[-2] < 1 - 1e-5
    assert values[-1] == pytest.approx(1, abs=1e-10)


def test_gradient_is_that_of_the_formula_with_fixed_widths():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(32, 3)), rng.normal(size=(32, 3))
    width = widths_reference(y)
    leaf = tensor(y, torch.float64).requires_grad_()
    heat_loss(tensor(x, torch.float64), leaf).backward()
    # two cells that are each other's k-th neighbour sit where the triangle has a corner
    edge = np.abs(np.sqrt(((y[:, None] - y[None]) ** 2).sum(2)) / np.sqrt(np.outer(width, width)) - 1) < 1e-4
    smooth = np.flatnonzero(~edge.any(1))
    assert len(smooth) > 20
    for a, i in [(smooth[0], 0), (smooth[5], 2), (smooth[17], 1), (smooth[-1], 2)]:
        step = np.zeros_like(y)
        step[a, i] = 1e-6
        slope = (loss_reference(x, y + step, width) - loss_reference(x, y - step, width)) / 2e-6
        assert float(leaf.grad[a, i]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_gradcheck_of_distances_and_operator():
    x = tensor(np.random.default_rng(0).normal(size=(12, 3)), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: diffusion.pairwise_distances(v).sum(1), x)
    kernel = (torch.rand(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(diffusion.symmetric_operator, kernel)


@pytest.mark.slow
def test_gradient_leads_back():
    """Descending the loss from noisy images restores the neighbourhoods."""
    x = swiss_roll(64)
    y = tensor(x + 1.0 * np.random.default_rng(0).normal(size=x.shape)).requires_grad_()
    optimizer = torch.optim.Adam([y], lr=0.05)
    first = loss(x, y.detach().numpy())
    for _ in range(100):
        optimizer.zero_grad()
        value = heat_loss(tensor(x), y)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < first / 5


# --- graphs ------------------------------------------------------------------------------------------------------


def test_nearest_neighbors_are_other_cells():
    x = cells(50, 3)
    x[10:20] = x[10]
    indices, distances = diffusion.nearest_neighbors(x, 8)
    assert indices.shape == distances.shape == (50, 8)
    assert (indices != np.arange(50)[:, None]).all()
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    np.fill_diagonal(d, np.inf)
    np.testing.assert_allclose(distances, np.sort(d, axis=1)[:, :8], atol=1e-10)
    np.testing.assert_allclose(distances[10:20], 0, atol=1e-10)


def test_nearest_neighbors_of_few_cells():
    indices, distances = diffusion.nearest_neighbors(cells(4, 3), 15)
    assert indices.shape == distances.shape == (4, 3)


def test_nearest_cells_of_another_set():
    x, y = cells(30, 3), cells(50, 3, seed=1)
    y[10:20] = x[4]
    indices, distances = diffusion.nearest(x, y, 8)
    d = np.sqrt(((x[:, None] - y[None]) ** 2).sum(2))
    np.testing.assert_allclose(distances, np.sort(d, axis=1)[:, :8], atol=1e-10)
    np.testing.assert_allclose(np.take_along_axis(d, indices, 1), distances, atol=1e-10)
    # a copy counts, and there are no more than there are
    np.testing.assert_array_equal(distances[4], 0)
    assert diffusion.nearest(x, y[:3], 8)[0].shape == (30, 3)


class Search:
    """Approximate search of pynndescent by brute force, the cell itself among its neighbours, or missed among its copies."""

    asked: list[tuple[int, int]] = []

    def __init__(self, data: np.ndarray, n_neighbors: int, random_state: int) -> None:
        self.data = data
        self.asked.append((n_neighbors, random_state))
        indices, distances = self.query(data, n_neighbors + 1)
        at = np.arange(len(data))[:, None]
        others = indices != at
        # copies: some cells are not among their own neighbours
        missed = (distances[:, -1] == 0) & (np.arange(len(data)) % 2 == 0)
        indices = np.array(
            [i[o][:n_neighbors] if gone else i[:n_neighbors] for i, o, gone in zip(indices, others, missed)]
        )
        self.neighbor_graph = indices, np.sqrt(((data[:, None] - data[indices]) ** 2).sum(2)).astype(np.float32)

    def query(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        d = np.sqrt(((x[:, None] - self.data[None]) ** 2).sum(2))
        indices = np.argsort(d, axis=1, kind="stable")[:, :k]
        return indices, np.take_along_axis(d, indices, 1).astype(np.float32)


def test_neighbours_of_many_cells_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    """What the approximate search finds is handled as exact neighbours are: its result without the cells themselves."""
    x, other = cells(150, 4), cells(20, 4, seed=1)
    x[:40] = x[0]  # more copies than neighbours
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    np.fill_diagonal(d, np.inf)
    near = diffusion.nearest(other, x[39:], 5)
    monkeypatch.setattr(Search, "asked", [])
    monkeypatch.setitem(sys.modules, "pynndescent", SimpleNamespace(NNDescent=Search))
    monkeypatch.setattr(diffusion, "EXACT_NEIGHBORS_BELOW", 110)
    found, distances = diffusion.nearest_neighbors(x, 15, random_state=3)
    assert found.shape == distances.shape == (150, 15)
    assert distances.dtype == np.float64
    assert (found != np.arange(150)[:, None]).all()
    np.testing.assert_allclose(distances, np.sort(d, axis=1)[:, :15], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(np.where(np.isinf(d), 0, d), found, 1), distances, atol=1e-6)
    got, away = diffusion.nearest(other, x[39:], 5, random_state=4)
    np.testing.assert_array_equal(got, near[0])
    np.testing.assert_allclose(away, near[1], atol=1e-6)
    assert away.dtype == np.float64
    # one neighbour more than is asked for, the cell itself; and never so few that the search misses them
    assert Search.asked[0] == (16, 3)
    assert Search.asked[1][0] >= 15
    assert Search.asked[1][1] == 4
    # up to the limit search is exact
    monkeypatch.setattr(diffusion, "EXACT_NEIGHBORS_BELOW", 150)
    diffusion.nearest_neighbors(x, 15)
    diffusion.nearest(other, x[39:], 5)
    assert len(Search.asked) == 2


@pytest.mark.slow  # every index compiles its search anew
def test_approximate_neighbours(monkeypatch: pytest.MonkeyPatch):
    """Of many cells: nearly the same neighbours, the same ones every time; graphs and questions of other cells as well.

    That the seed reaches the search of other cells: test_neighbours_of_many_cells_are_asked_for.
    """
    x = cells(1_500, 10)
    x[:30] = x[0]  # more copies than neighbours
    other = cells(200, 10, seed=1)
    exact, distance = diffusion.nearest_neighbors(x, 15)
    near, _ = diffusion.nearest(other, x[30:], 15)
    operator = diffusion.smoothing_operator(x[30:]).toarray()
    monkeypatch.setattr(diffusion, "EXACT_NEIGHBORS_BELOW", 100)
    found, approximate = diffusion.nearest_neighbors(x, 15, random_state=0)
    again, _ = diffusion.nearest_neighbors(x, 15, random_state=0)
    np.testing.assert_array_equal(found, again)
    assert found.shape == exact.shape
    assert (found != np.arange(len(x))[:, None]).all()
    recall = np.mean([len(set(a) & set(b)) / 15 for a, b in zip(exact[30:], found[30:])])
    assert recall > 0.95
    np.testing.assert_allclose(approximate[:30], 0, atol=1e-6)
    assert np.abs(approximate[:, -1] / np.maximum(distance[:, -1], 1e-9))[30:].max() < 1.5
    got = diffusion.smoothing_operator(x[30:]).toarray()
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
    assert np.abs(got - operator).sum(1).mean() < 0.02
    rows, to = diffusion.nearest(other, x[30:], 15, random_state=0)
    assert np.mean([len(set(a) & set(b)) / 15 for a, b in zip(near, rows)]) > 0.9
    np.testing.assert_allclose(to, np.sqrt(((other[:, None] - x[30:][rows]) ** 2).sum(2)), rtol=1e-4)


def smoothing_reference(x: np.ndarray, k: int) -> np.ndarray:
    n = len(x)
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    kernel = np.zeros((n, n))
    for a in range(n):
        others = sorted((b for b in range(n) if b != a), key=lambda b: d[a, b])
        width = d[a, others[4]]
        for b in others[:k]:
            kernel[a, b] = np.exp(-((d[a, b] / width) ** 2))
    kernel = (kernel + kernel.T) / 2 + np.eye(n)
    return kernel / kernel.sum(1, keepdims=True)


def test_smoothing_operator_is_the_formula():
    x = cells(40, 5)
    got = diffusion.smoothing_operator(x, n_neighbors=7)
    np.testing.assert_allclose(got.toarray(), smoothing_reference(x, 7), atol=1e-6)


@pytest.mark.parametrize("duplicates", [0, 30, 200])
def test_smoothing_operator_is_row_stochastic_and_sparse(duplicates: int):
    x = cells(200, 5)
    x[:duplicates] = x[0]
    operator = diffusion.smoothing_operator(x)
    assert sp.issparse(operator)
    np.testing.assert_allclose(np.asarray(operator.sum(1)).ravel(), 1, atol=1e-5)
    assert np.isfinite(operator.data).all()
    assert operator.data.min() >= 0
    assert operator.nnz <= 200 * (2 * 15 + 1)


def test_smoothing_operator_inside_labels():
    """Each label is smoothed as if it were alone; cells without one choose among all, and are chosen back."""
    x = cells(90, 5)
    labels = np.random.default_rng(0).integers(0, 3, 90)
    got = diffusion.smoothing_operator(x, n_neighbors=7, labels=labels).toarray()
    for code in range(3):
        own = labels == code
        np.testing.assert_allclose(got[np.ix_(own, own)], smoothing_reference(x[own], 7), atol=1e-6)
        assert not got[np.ix_(own, ~own)].any()
    one_label = diffusion.smoothing_operator(x, n_neighbors=7, labels=np.zeros(90, dtype=int))
    np.testing.assert_array_equal(one_label.toarray(), diffusion.smoothing_operator(x, n_neighbors=7).toarray())
    labels[::3] = -1
    gaps = diffusion.smoothing_operator(x, n_neighbors=7, labels=labels).toarray()
    np.testing.assert_allclose(gaps.sum(1), 1, atol=1e-5)
    assert not gaps[np.ix_(labels == 0, labels == 1)].any()
    assert gaps[np.ix_(labels == 0, labels == -1)].any()
    # a label of one cell, and one of two
    labels = np.r_[0, 1, 1, np.full(87, 2)]
    few = diffusion.smoothing_operator(x, n_neighbors=7, labels=labels).toarray()
    assert few[0, 0] == 1
    np.testing.assert_allclose(few[1:3, 1:3].sum(1), 1, atol=1e-6)


def test_geodesics_follow_the_graph():
    # a half circle: the graph's way between the ends is the arc, not the chord
    angle = np.linspace(0, np.pi, 200)
    x = np.column_stack([np.cos(angle), np.sin(angle)])
    lengths, hops = diffusion.geodesics(x, np.array([0, 100, 199]), n_neighbors=4)
    assert lengths[0, 2] == pytest.approx(np.pi, rel=0.02)
    assert lengths[0, 1] + lengths[1, 2] == pytest.approx(lengths[0, 2], rel=0.02)
    np.testing.assert_allclose(lengths, lengths.T)
    # two neighbours on each side
    assert hops[0, 2] == pytest.approx(199 / 2, rel=0.05)
    assert (np.diag(hops) == 0).all()


def test_geodesics_join_components():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(40, 2)) + shift for shift in ([0, 0], [50, 0], [100, 0])])
    x[:30] = x[0]  # copies, too
    lengths, hops = diffusion.geodesics(x, np.array([0, 60, 100]), n_neighbors=5)
    assert np.isfinite(lengths).all()
    assert np.isfinite(hops).all()
    # the far pair goes through the middle one
    assert lengths[0, 2] == pytest.approx(100, rel=0.1)
    assert lengths[0, 1] + lengths[1, 2] == pytest.approx(lengths[0, 2], rel=0.1)
