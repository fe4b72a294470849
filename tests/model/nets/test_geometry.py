"""The three geometry losses: references, slopes, and the traps of eigenvectors; more on heat is in test_diffusion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers import noisy, swiss_roll
from scmmgan.model.nets import losses
from scmmgan.model.nets.losses import GEOMETRIES, eigvec_loss, leading_eigenvectors, subspace_loss
from scmmgan.model.space import diffusion

ALL = pytest.mark.parametrize("geometry", GEOMETRIES)


def tensor(x: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(x), dtype=dtype)


def loss(geometry: str, x: np.ndarray, y: np.ndarray, dtype: torch.dtype = torch.float32) -> float:
    return float(GEOMETRIES[geometry](tensor(x, dtype), tensor(y, dtype)))


# --- data --------------------------------------------------------------------------------------------------------


def cells(n: int = 60, p: int = 7, seed: int = 0) -> np.ndarray:
    """Cells of unequal density."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)) * np.exp(rng.normal(size=(n, 1)) / 2)


def grid(jitter: float = 0.15) -> np.ndarray:
    """8 × 18 points, moved a little: on an exact grid eigenvalues coincide, and eigenvectors are anybody's choice."""
    x = np.stack(np.meshgrid(np.arange(8.0), np.arange(18.0)), -1).reshape(-1, 2)
    return x + jitter * np.random.default_rng(5).normal(size=x.shape)


SETS = {"grid": grid(), "swiss_roll": swiss_roll(), "noisy": noisy(), "small": cells(32)}


# --- references --------------------------------------------------------------------------------------------------


def eigenvectors_reference(kernel: np.ndarray, n: int) -> np.ndarray:
    """Leading nontrivial eigenvectors of the SYMMETRIC operator, largest eigenvalues first, no power taken."""
    q = kernel.sum(1)
    values, vectors = np.linalg.eigh(kernel / np.sqrt(np.outer(q, q)))
    order = np.argsort(-values)
    assert values[order[0]] == pytest.approx(1)
    return vectors[:, order[1 : n + 1]]


def paper_kernel_reference(x: np.ndarray) -> np.ndarray:
    n = len(x)
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    k = max(5, round(0.1 * n))
    out = np.zeros((n, n))
    for a in range(n):
        width = sorted(d[a, b] for b in range(n) if b != a)[k - 1]
        for b in range(n):
            out[a, b] = max(0.0, 1 - d[a, b] / width)
    return (out + out.T) / 2


def eigvec_reference(x: np.ndarray, y: np.ndarray) -> float:
    sides = []
    for v in (x, y):
        kernel = paper_kernel_reference(v)
        phi = eigenvectors_reference(kernel, 12) / np.sqrt(kernel.sum(1))[:, None]
        columns = []
        for column in phi.T:
            scaled = 2 * (column - column.min()) / (column.max() - column.min()) - 1
            columns.append(scaled if ((scaled - scaled.mean()) ** 3).sum() >= 0 else -scaled)
        sides.append(columns)
    first, second = sides
    second = [-b if np.corrcoef(a, b)[0, 1] < -0.5 else b for a, b in zip(first, second)]
    terms = []
    for size in (1, 2, 4):
        squares = []
        for at in range(0, 12, size):
            squares.append(((sum(first[at : at + size]) - sum(second[at : at + size])) ** 2).mean())
        terms.append(np.mean(squares) / size)
    return float(np.mean(terms))


def test_subspace_is_the_formula():
    x, y = cells(48, seed=0), cells(48, p=3, seed=1)
    kernels = [diffusion.diffusion_kernel(tensor(v, torch.float64)).numpy() for v in (x, y)]
    u, z = (eigenvectors_reference(kernel, 12) for kernel in kernels)
    expected = 1 - ((u.T @ z) ** 2).sum() / 12
    assert loss("subspace", x, y, torch.float64) == pytest.approx(expected, abs=1e-10)
    assert loss("subspace", x, y) == pytest.approx(expected, abs=1e-3)


def test_subspace_takes_the_leading_eigenvectors_of_the_right_operator():
    """Three traps: the random walk in a symmetric solver, the smallest eigenvectors, the trivial one among them."""
    kernel = diffusion.diffusion_kernel(tensor(swiss_roll(), torch.float64))
    values, vectors = (v.numpy() for v in diffusion.spectrum(kernel))
    walk = kernel.numpy() / kernel.numpy().sum(1, keepdims=True)
    phi = vectors / np.sqrt(kernel.numpy().sum(1))[:, None]
    np.testing.assert_allclose(walk @ phi, phi * values, atol=1e-9)
    assert (np.diff(values[:-1]) <= 1e-12).all()
    assert values[-1] == 1
    np.testing.assert_allclose(phi[:, -1], phi[0, -1], rtol=1e-6)
    assert 0.9 < values[0] < 1 - 1e-6
    assert values[11] > 0.3  # a power taken before would leave nothing of it
    # the leading one follows the longer side of the grid
    phi = diffusion.spectrum(diffusion.diffusion_kernel(tensor(grid(), torch.float64)))[1].numpy()[:, 0]
    along = [abs(np.corrcoef(phi, grid()[:, i])[0, 1]) for i in (0, 1)]
    assert along[1] > 0.9
    assert along[0] < 0.2


@pytest.mark.parametrize("seed", [0, 1])
def test_eigvec_is_the_formula(seed: int):
    x = swiss_roll(120, seed)
    y = x + 0.5 * np.random.default_rng(seed).normal(size=x.shape)
    assert loss("eigvec", x, y, torch.float64) == pytest.approx(eigvec_reference(x, y), abs=1e-8)


def test_paper_kernel_is_the_formula():
    x = cells(60)
    got = diffusion.paper_kernel(tensor(x, torch.float64)).numpy()
    np.testing.assert_allclose(got, paper_kernel_reference(x), atol=1e-9)
    assert (got == 0).mean() > 0.5  # no floor


# --- invariance --------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("name", SETS)
def test_zero_for_isometries(geometry: str, name: str):
    x = SETS[name]
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.normal(size=(x.shape[1],) * 2))[0]
    for y in (x, x @ q + 3 * rng.normal(size=x.shape[1]), -2.5 * x, np.hstack([x, np.zeros((len(x), 3))])):
        assert abs(loss(geometry, x, y, torch.float64)) < 1e-10
        assert abs(loss(geometry, x, y)) < 1e-4


@ALL
def test_zero_far_from_the_origin(geometry: str):
    x = swiss_roll()
    assert abs(loss(geometry, x, x + 1e3)) < 2e-2


@ALL
@pytest.mark.parametrize("name", SETS)
def test_order_of_the_batch_does_not_matter(geometry: str, name: str):
    x = SETS[name]
    rng = np.random.default_rng(2)
    for level in (0.02, 0.5):
        y = x + level * x.std() * rng.normal(size=x.shape)
        order = rng.permutation(len(x))
        expected = loss(geometry, x, y, torch.float64)
        assert loss(geometry, x[order], y[order], torch.float64) == pytest.approx(expected, abs=1e-8)
        # re-ordering one side alone is another pairing
        assert loss(geometry, x, x[order]) > 0.1


def test_subspace_is_blind_to_rotations_inside_of_it(monkeypatch: pytest.MonkeyPatch):
    """On an exact square grid eigenvalues come in pairs: subspace and heat do not care, eigvec is arbitrary."""
    x = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), -1).reshape(-1, 2)
    turned = x @ np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))[0]
    assert abs(loss("heat", x, turned, torch.float64)) < 1e-10
    original = losses.leading_eigenvectors

    def rotated(kernel: torch.Tensor, n: int, **settings: object) -> torch.Tensor:
        q = np.linalg.qr(np.random.default_rng(len(calls)).normal(size=(n, n)))[0]
        calls.append(n)
        return original(kernel, n, **settings) @ torch.as_tensor(q, dtype=kernel.dtype)

    calls: list[int] = []
    expected = loss("subspace", swiss_roll(), cells(256, 3), torch.float64)
    monkeypatch.setattr(losses, "leading_eigenvectors", rotated)
    assert loss("subspace", swiss_roll(), cells(256, 3), torch.float64) == pytest.approx(expected, abs=1e-10)
    assert len(calls) == 2


# --- right and wrong images -------------------------------------------------------------------------------------

# shuffled pairs: > .5 on a grid and a swiss roll. eigvec, as published, reaches that on the grid only
SHUFFLED = {
    "heat": {"grid": 0.5, "swiss_roll": 0.5, "noisy": 0.35, "small": 0.25},
    "subspace": {"grid": 0.5, "swiss_roll": 0.5, "noisy": 0.5, "small": 0.5},
    "eigvec": {"grid": 0.5, "swiss_roll": 0.4, "noisy": 0.15, "small": 0.2},
}


@ALL
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_pairs_are_seen(geometry: str, name: str, seed: int):
    x, rng = SETS[name], np.random.default_rng(seed)
    shuffled = loss(geometry, x, x[rng.permutation(len(x))])
    assert shuffled > SHUFFLED[geometry][name]
    jittered = loss(geometry, x, x + 0.01 * x.std() * rng.normal(size=x.shape))
    # eigenvectors of noise change places at the slightest push: what the published loss cannot see
    factor = 10 if geometry != "eigvec" or name == "swiss_roll" else 1
    assert 0 <= jittered < shuffled / factor


@ALL
def test_grows_with_noise(geometry: str):
    x, rng = swiss_roll(), np.random.default_rng(0)
    noise = x.std() * rng.normal(size=x.shape)
    levels = [loss(geometry, x, x + level * noise) for level in (0.0, 0.01, 0.1, 1.0)]
    assert levels == sorted(levels)
    assert levels[-1] > 0.3


def test_an_image_is_compared_with_its_own_source():
    """The images of one batch against another batch's cells: as far off as shuffled pairs."""
    x, other = swiss_roll(256, 0), swiss_roll(256, 1)
    for geometry in GEOMETRIES:
        assert loss(geometry, x, other) > 5 * loss(
            geometry, x, x + 0.01 * np.random.default_rng(0).normal(size=x.shape)
        )


# --- degenerate batches ------------------------------------------------------------------------------------------


def broken_batches(n: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 5))
    pairs, many, far, single = x.copy(), x.copy(), x.copy(), x.copy()
    pairs[1] = pairs[0]
    many[:40] = many[0]  # more copies than k = 6: the width is 0
    far[n // 2 :] += 1e3
    single[0] += 1e4
    return {"pair": pairs, "copies": many, "all_equal": np.ones((n, 5)), "two_clusters": far, "outlier": single}


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", broken_batches())
def test_degenerate_batches_are_finite(geometry: str, name: str, dtype: torch.dtype):
    x = broken_batches()[name]
    for first, second in ((cells(64, 5), x), (x, cells(64, 5)), (x, x + 0.1)):
        y = tensor(second, dtype).requires_grad_()
        value = GEOMETRIES[geometry](tensor(first, dtype), y)
        value.backward()
        assert -1e-4 < float(value.detach()) < (4 if geometry == "eigvec" else 1 + 1e-4)
        assert torch.isfinite(y.grad).all()


@ALL
@pytest.mark.parametrize("n", [32, 33, 50])
def test_smallest_batches(geometry: str, n: int):
    x = cells(n, 5)
    y = tensor(cells(n, 3, seed=1)).requires_grad_()
    GEOMETRIES[geometry](tensor(x), y).backward()
    assert torch.isfinite(y.grad).all()
    assert 1e-4 < float(y.grad.norm()) < 100
    assert abs(loss(geometry, x, 2 * x + 1)) < 1e-3


@ALL
def test_two_far_clusters_keep_their_trivial_eigenvector_apart(geometry: str):
    """Eigenvalue 1 twice (without a floor) or nearly so: which of the two is trivial must not be left to rounding."""
    x = broken_batches()["two_clusters"]
    x[:32] *= 2
    order = np.random.default_rng(0).permutation(64)
    assert loss(geometry, x, x + 1, torch.float64) < 1e-6
    assert loss(geometry, x[order], x[order] @ np.eye(5), torch.float64) < 1e-6
    kernel = diffusion.paper_kernel(tensor(x, torch.float64))
    values, vectors = diffusion.spectrum(kernel)
    assert float(values[0]) == pytest.approx(1, abs=1e-10)
    # the second one keeps the clusters apart: one sign each
    phi = (vectors[:, 0] / kernel.sum(1).sqrt()).numpy()
    assert phi[:32].std() < 1e-6
    assert phi[:32].mean() * phi[32:].mean() < 0


def test_constant_eigenvector_has_a_range(monkeypatch: pytest.MonkeyPatch):
    original = losses.leading_eigenvectors

    def constant(kernel: torch.Tensor, n: int, **settings: object) -> torch.Tensor:
        vectors = original(kernel, n, **settings)
        root = kernel.sum(1).sqrt()
        return torch.cat([(root / root.norm())[:, None], vectors[:, 1:]], dim=1)

    monkeypatch.setattr(losses, "leading_eigenvectors", constant)
    y = tensor(cells(40)).requires_grad_()
    value = eigvec_loss(tensor(cells(40, seed=1)), y)
    value.backward()
    assert 0 < float(value.detach()) < 4
    assert torch.isfinite(y.grad).all()
    # rounding is not blown up to a full range
    assert float(y.grad.norm()) < 1e3


@ALL
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_no_exception(geometry: str, value: float):
    x, broken = cells(40), cells(40)
    broken[3, 2] = value
    y = tensor(broken).requires_grad_()
    out = GEOMETRIES[geometry](tensor(x), y)
    assert torch.isnan(out)
    out.backward()


# --- slopes ------------------------------------------------------------------------------------------------------


def kernel_of(a: torch.Tensor) -> torch.Tensor:
    return (a + a.T) / 2 + torch.eye(len(a), dtype=a.dtype)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_slope_of_eigenvectors_by_finite_differences(n: int):
    a = torch.rand(14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = diffusion.spectrum(kernel_of(a))[0]
    assert float(-np.diff(values[:-1].detach().numpy()).max()) > 1e-3
    weight = torch.rand(14, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def among(v: torch.Tensor) -> torch.Tensor:
        # squares: the solver's signs do not matter
        return (leading_eigenvectors(kernel_of(v), n, width=1e-9, among=True) ** 2 * weight).sum()

    def subspace(v: torch.Tensor) -> torch.Tensor:
        z = leading_eigenvectors(kernel_of(v), n, width=1e-9, among=False)
        return (weight.T @ z).square().sum()

    # entry by entry once; along directions through all entries otherwise
    assert torch.autograd.gradcheck(among, a, fast_mode=n != 3)
    assert torch.autograd.gradcheck(subspace, a, fast_mode=n != 3)


def test_slope_of_a_subspace_does_not_see_the_eigenvalues_inside_of_it():
    """Two equal eigenvalues among the kept ones: the plain slope is 0 / 0, the subspace's is that of a near kernel."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64, generator=generator))[0]
    weight = torch.rand(10, 3, dtype=torch.float64, generator=generator)
    values = torch.tensor([0.9, 0.7, 0.7, 0.2, 0.1, 0.05, 0, 0, 0, 1.0], dtype=torch.float64)
    slopes = []
    for shift in (0.0, 1e-7):
        found = values + torch.tensor([0, shift, 0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
        operator = (basis * found @ basis.T).requires_grad_()
        z = losses._Leading.apply(operator, found, basis, 3, 1e-3, False)
        (weight.T @ z).square().sum().backward()
        slopes.append(operator.grad.numpy())
    assert np.isfinite(slopes[0]).all()
    np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-6)
    assert np.abs(slopes[0]).max() > 0.1
    # kept or dropped by a hair: bounded by 1 / (2 width)
    found = torch.tensor([0.9, 0.7, 0.5, 0.5, 0.1, 0.05, 0, 0, 0, 1.0], dtype=torch.float64)
    operator = (basis * found @ basis.T).requires_grad_()
    (weight.T @ losses._Leading.apply(operator, found, basis, 3, 1e-3, False)).square().sum().backward()
    assert float(operator.grad.abs().max()) < 1e3


def test_slopes_are_damped_by_the_width():
    """g / (g² + width²) for 1 / g: at a gap of `width` half of the plain slope."""
    basis = torch.eye(4, dtype=torch.float64)
    for gap, width in ((0.1, 1e-9), (1e-2, 1e-2), (1e-3, 1e-2), (0.0, 1e-2)):
        values = torch.tensor([0.5 + gap, 0.5, 0.1, 1.0], dtype=torch.float64)
        operator = torch.diag(values).requires_grad_()
        z = losses._Leading.apply(operator, values, basis, 1, width, True)
        z[1, 0].backward()
        # both triangles share the slope
        expected = gap / (gap**2 + width**2) / 2
        assert float(operator.grad[0, 1]) == pytest.approx(expected)
        assert float(operator.grad[1, 0]) == pytest.approx(expected)


def widths_of(x: np.ndarray) -> torch.Tensor:
    return diffusion.kernel_widths(diffusion.pairwise_distances(tensor(x, torch.float64))) * 1.001  # off the corners


@pytest.mark.parametrize("geometry", ["subspace", "eigvec"])
def test_slope_of_the_loss_by_finite_differences(geometry: str, monkeypatch: pytest.MonkeyPatch):
    """With widths that stay, which carry no slope, and eigenvalues that are apart."""
    x = swiss_roll(80, 3)
    y = x + 1.0 * np.random.default_rng(0).normal(size=x.shape)
    both = [widths_of(x), widths_of(y)]
    calls: list[int] = []

    def fixed(_: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return both[(len(calls) - 1) % 2]

    monkeypatch.setattr(diffusion, "kernel_widths", fixed)
    n, settings = (4, {}) if geometry == "subspace" else (4, {"width": 1e-9})
    function = {"subspace": subspace_loss, "eigvec": eigvec_loss}[geometry]

    def value(v: np.ndarray) -> float:
        return float(function(tensor(x, torch.float64), tensor(v, torch.float64), n=n, **settings))

    leaf = tensor(y, torch.float64).requires_grad_()
    function(tensor(x, torch.float64), leaf, n=n, **settings).backward()
    scale = float(leaf.grad.abs().max())
    for a, i in [(0, 0), (11, 2), (37, 1), (79, 2)]:
        step = np.zeros_like(y)
        step[a, i] = 1e-6
        slope = (value(y + step) - value(y - step)) / 2e-6
        assert float(leaf.grad[a, i]) == pytest.approx(slope, rel=5e-3, abs=2e-3 * scale)


@ALL
def test_slope_leads_back(geometry: str):
    """Descending the loss from noisy images restores the neighbourhoods."""
    x = swiss_roll(96)
    y = tensor(x + 1.0 * np.random.default_rng(0).normal(size=x.shape)).requires_grad_()
    optimizer = torch.optim.Adam([y], lr=0.1)
    first = loss(geometry, x, y.detach().numpy())
    best = first
    for _ in range(60):
        optimizer.zero_grad()
        value = GEOMETRIES[geometry](tensor(x), y)
        value.backward()
        optimizer.step()
        best = min(best, float(value.detach()))
    assert best < first / (5 if geometry == "heat" else 2)


@ALL
def test_cells_of_the_source_get_no_slope(geometry: str):
    x, y = tensor(cells(40)), tensor(cells(40, 3, 1)).requires_grad_()
    GEOMETRIES[geometry](x, y).backward()
    assert x.grad is None
    assert float(y.grad.norm()) > 1e-4


@ALL
def test_same_bits(geometry: str):
    grads = []
    for _ in range(2):
        y = tensor(cells(64, 5, 1)).requires_grad_()
        GEOMETRIES[geometry](tensor(cells(64, 5)), y).backward()
        grads.append(y.grad)
    assert torch.equal(*grads)
