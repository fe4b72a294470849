"""Every objective against a float64 reference, written out; the heat loss is in test_diffusion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scmmgan.model.nets import losses
from scmmgan.model.nets.pinned import products


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def tensors(*values: np.ndarray) -> list[torch.Tensor]:
    return [torch.as_tensor(v, dtype=torch.float32) for v in values]


def softplus(v: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, v)


def test_adversarial():
    (logits,) = arrays((50,))
    assert float(losses.adversarial_loss(*tensors(3 * logits))) == pytest.approx(softplus(-3 * logits).mean(), rel=1e-5)


def test_adversarial_falls_as_the_discriminator_is_fooled():
    values = [float(losses.adversarial_loss(torch.full((4,), v))) for v in (-200.0, -1.0, 0.0, 1.0, 200.0)]
    assert values == sorted(values, reverse=True)
    # non-saturating: a confident discriminator leaves a slope of 1
    assert values[0] == pytest.approx(200)
    assert values[2] == pytest.approx(np.log(2))
    logit = torch.tensor([-50.0], requires_grad=True)
    losses.adversarial_loss(logit).backward()
    assert float(logit.grad) == pytest.approx(-1, abs=1e-5)


def test_discriminator():
    real, first, second = arrays((30,), (30,), (20,))
    expected = (softplus(-real).mean() + (softplus(first).mean() + softplus(second).mean()) / 2) / 2
    got = losses.discriminator_loss(*tensors(real), tensors(first, second))
    assert float(got) == pytest.approx(expected, rel=1e-5)
    assert float(losses.discriminator_loss(torch.zeros(5), [torch.zeros(5)])) == pytest.approx(np.log(2))
    # right and sure, and wrong and sure
    assert float(losses.discriminator_loss(torch.full((5,), 90.0), [torch.full((5,), -90.0)])) < 1e-6
    assert float(losses.discriminator_loss(torch.full((5,), -90.0), [torch.full((5,), 90.0)])) == pytest.approx(90)


def test_gradient_penalty_is_the_mean_squared_slope():
    """Against central differences of a small network in float64."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    (x,) = arrays((6, 4))

    def discriminator(v: torch.Tensor) -> torch.Tensor:
        return net(v)[:, 0]

    slopes = np.zeros_like(x)
    with torch.no_grad():
        for i in range(4):
            step = np.zeros(4)
            step[i] = 1e-5
            up, down = (discriminator(torch.as_tensor(x + s)).numpy() for s in (step, -step))
            slopes[:, i] = (up - down) / 2e-5
    penalty = losses.gradient_penalty(discriminator, torch.as_tensor(x))
    assert float(penalty.detach()) == pytest.approx((slopes**2).sum(1).mean(), rel=1e-6)
    # the penalty trains the discriminator, and leaves its input alone
    penalty.backward()
    assert all(torch.isfinite(p.grad).all() for p in net[0].parameters())
    assert float(net[0].weight.grad.norm()) > 0


def test_gradient_penalty_of_a_linear_discriminator():
    weight = torch.tensor([3.0, -4.0])
    assert float(losses.gradient_penalty(lambda v: v @ weight, torch.randn(10, 2))) == pytest.approx(25)


def test_gradient_penalty_leaves_no_gradient_on_the_cells():
    x = torch.randn(5, 2, requires_grad=True)
    weight = torch.ones(2, requires_grad=True)
    losses.gradient_penalty(lambda v: (v * weight).sum(1) ** 2, x).backward()
    assert x.grad is None
    assert weight.grad is not None


def plain_anchor_loss(mapped: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    return losses.anchor_loss(mapped, anchors, mapped.new_ones(len(mapped)))


@pytest.mark.parametrize("loss", [losses.cycle_loss, plain_anchor_loss])
def test_squared_errors_are_means_over_cells_and_dimensions(loss):
    x, y = arrays((20, 7), (20, 7))
    assert float(loss(*tensors(x, y))) == pytest.approx(((x - y) ** 2).mean(), rel=1e-5)
    assert float(loss(*tensors(x, x))) == 0
    # twice as many cells and dimensions: the same
    doubled = [np.tile(v, (2, 2)) for v in (x, y)]
    assert float(loss(*tensors(*doubled))) == pytest.approx(((x - y) ** 2).mean(), rel=1e-5)


def test_anchors_are_weighted_by_cell():
    x, y, weight = arrays((20, 7), (20, 7), (20,))
    weight = np.abs(weight)
    expected = (weight * ((x - y) ** 2).mean(1)).sum() / weight.sum()
    assert float(losses.anchor_loss(*tensors(x, y, weight))) == pytest.approx(expected, rel=1e-5)
    # a cell of no weight says nothing, shares of all cells alike cancel
    y[0] += 1e3
    weight[0] = 0
    expected = (weight * ((x - y) ** 2).mean(1))[1:].sum() / weight.sum()
    for scale in (1, 0.01):
        assert float(losses.anchor_loss(*tensors(x, y, scale * weight))) == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_any_matched_cell_has_no_anchor_loss():
    x, y = tensors(*arrays((20, 7), (20, 7)))
    x.requires_grad_()
    value = losses.anchor_loss(x, y, torch.zeros(20))
    value.backward()
    assert float(value.detach()) == 0
    assert not x.grad.any()


def test_correlation():
    a, b = arrays((40, 5), (40, 5))
    b = b + a
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(5)]
    np.testing.assert_allclose(losses.correlation(*tensors(a, b)).numpy(), expected, atol=1e-5)
    # units do not matter
    np.testing.assert_allclose(
        losses.correlation(*tensors(100 + 5 * a, -3 * b)).numpy(), -np.array(expected), atol=1e-3
    )


def test_links():
    a, b = arrays((40, 5), (40, 5))
    b = b + a
    sign, weight = np.array([1, -1, 1, 1, -1.0]), np.array([1, 2, 0.5, 0, 3.0])
    corr = np.array([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(5)])
    expected = (weight * (1 - sign * corr)).sum() / weight.sum()
    assert float(losses.link_loss(*tensors(a, b, sign, weight))) == pytest.approx(expected, rel=1e-5)


def test_links_signs():
    (a,) = arrays((40, 3))
    one = np.ones(3)
    for sign, mapped, expected in [(1, a, 0), (1, -a, 2), (-1, -a, 0), (-1, a, 2)]:
        got = float(losses.link_loss(*tensors(a, mapped, sign * one, one)))
        assert got == pytest.approx(expected, abs=1e-5)


def test_links_weights():
    (a,) = arrays((40, 2))
    mapped = np.column_stack([a[:, 0], -a[:, 1]])  # first link right, second wrong
    for weight, expected in [((1, 1), 1), ((1, 0), 0), ((0, 1), 2), ((3, 1), 0.5), ((300, 100), 0.5)]:
        got = float(losses.link_loss(*tensors(a, mapped, np.ones(2), np.array(weight, float))))
        assert got == pytest.approx(expected, abs=1e-5)


def test_links_of_a_constant_feature_are_finite():
    a, b = arrays((40, 2), (40, 2))
    a[:, 0] = 3
    mapped = torch.as_tensor(b, dtype=torch.float32).requires_grad_()
    value = losses.link_loss(*tensors(a), mapped, torch.ones(2), torch.ones(2))
    value.backward()
    expected = (1 + 1 - np.corrcoef(a[:, 1], b[:, 1])[0, 1]) / 2
    assert float(value.detach()) == pytest.approx(expected, abs=1e-4)
    assert torch.isfinite(mapped.grad).all()


@pytest.mark.parametrize("name", ["cycle_loss", "anchor_loss", "heat_loss"])
def test_gradients_reach_the_mapped_cells_only_through_them(name: str):
    x, y = tensors(*arrays((32, 4), (32, 4)))
    y.requires_grad_()
    loss = getattr(losses, name)
    (loss(y, x, torch.ones(32)) if name == "anchor_loss" else loss(x, y)).backward()
    assert float(y.grad.norm()) > 1e-4
    assert x.grad is None


def test_gradients_by_finite_differences():
    a, b = (torch.as_tensor(v).requires_grad_() for v in arrays((8, 3), (8, 3)))
    sign, weight = torch.tensor([1.0, -1, 1], dtype=torch.float64), torch.tensor([1.0, 2, 3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda u, v: losses.link_loss(u, v, sign, weight), (a, b))
    assert torch.autograd.gradcheck(losses.cycle_loss, (a, b))
    assert torch.autograd.gradcheck(lambda u, v: losses.consistency_loss(u, [v, 2 * v]), (a, b))
    assert torch.autograd.gradcheck(lambda u, v: losses.anchor_loss(u, v, weight[[0, 1, 2, 0, 1, 2, 0, 1]]), (a, b))
    assert torch.autograd.gradcheck(lambda v: losses.adversarial_loss(v[:, 0]), b)
    assert torch.autograd.gradcheck(lambda u, v: losses.discriminator_loss(u[:, 0], [v[:, 0], v[:, 1]]), (a, b))


def test_consistency_is_the_mean_over_ways_round():
    x, first, second = arrays((20, 7), (20, 7), (20, 7))
    expected = (((first - x) ** 2).mean() + ((second - x) ** 2).mean()) / 2
    assert float(losses.consistency_loss(tensors(x)[0], tensors(first, second))) == pytest.approx(expected, rel=1e-5)
    assert float(losses.consistency_loss(tensors(x)[0], tensors(x, x))) == 0


def test_identity_is_the_mean_squared_distance():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert float(losses.identity_loss(x, x)) == 0
    # (1 + 0 + 4 + 9) / 4
    assert float(losses.identity_loss(x, x + torch.tensor([[1.0, 0.0], [2.0, -3.0]]))) == pytest.approx(3.5)


@pytest.mark.parametrize("name", losses.GEOMETRIES)
def test_geometry_is_found_with_full_products_whatever_is_set(name: str, monkeypatch: pytest.MonkeyPatch):
    """Its value and slope, under the lower precision of the products around it; on a GPU: test_graphs.py."""
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn((40, 5), generator=rng) for _ in range(2))
    seen: list[str] = []
    term = getattr(losses, f"{name}_loss")

    def spy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        y.register_hook(lambda _: seen.append(torch.get_float32_matmul_precision()))
        seen.append(torch.get_float32_matmul_precision())
        return term(x, y)

    monkeypatch.setattr(losses, f"{name}_loss", spy)
    found = []
    for precision in ("float32", "tf32"):
        at = y.clone().requires_grad_(True)
        with products(precision):
            value = losses.geometry_loss(name, x, at)
            (3 * value).backward()
            assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
        found.append((value.detach(), at.grad))
    assert seen == ["highest"] * 4
    assert torch.get_float32_matmul_precision() == "highest"
    for own, expected in zip(*found):
        torch.testing.assert_close(own, expected)
