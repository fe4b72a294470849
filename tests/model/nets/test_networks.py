"""Generators start linear, discriminators score every cell alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scmmgan.model.nets import networks
from scmmgan.model.nets.networks import (
    BarycentricMap,
    BatchNorm,
    Discriminator,
    Generator,
    MinibatchFeatures,
    PaperDiscriminator,
    PaperGenerator,
    frozen_statistics,
    mlp,
)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def trained(n_in: int = 6, n_out: int = 4) -> Generator:
    """A generator whose body does something."""
    net = Generator(n_in, n_out)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net.eval()


@pytest.mark.parametrize(("n_in", "n_out"), [(6, 4), (4, 6), (1, 1), (50, 50)])
def test_generator_starts_as_the_linear_map(n_in: int, n_out: int):
    net = Generator(n_in, n_out)
    weight, bias, x = torch.randn(n_out, n_in), torch.randn(n_out), torch.randn(9, n_in)
    net.start_from(weight, bias)
    expected = x.double().numpy() @ weight.double().numpy().T + bias.double().numpy()
    np.testing.assert_allclose(net(x).detach().numpy(), expected, atol=1e-5)


@pytest.mark.slow
def test_generator_can_leave_the_linear_map():
    net, x = Generator(6, 4), torch.randn(32, 6)
    net.start_from(torch.eye(4, 6), torch.zeros(4))
    target = torch.sin(2 * x[:, :4])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        error = ((net(x) - target) ** 2).mean()
        error.backward()
        optimizer.step()
    # all layers learn although the last starts at zero
    assert float(error.detach()) < 0.01
    linear = np.linalg.lstsq(np.column_stack([x, np.ones(32)]), target.numpy(), rcond=None)[1].sum() / target.numel()
    assert float(error.detach()) < linear / 5


@pytest.mark.parametrize("make", [trained, lambda: Discriminator(6).eval()], ids=["generator", "discriminator"])
def test_one_cell_alone_and_in_any_order(make: Callable[[], nn.Module]):
    net, x = make(), torch.randn(64, 6)
    with torch.no_grad():
        batch = net(x)
        alone = torch.cat([net(row[None]) for row in x])
        order = torch.randperm(64)
        np.testing.assert_allclose(alone.numpy(), batch.numpy(), atol=1e-5)
        np.testing.assert_allclose(net(x[order]).numpy(), batch[order].numpy(), atol=1e-5)
        # strange company changes nothing
        company = net(torch.cat([x[:1], 1e3 * torch.randn(63, 6)]))
        np.testing.assert_allclose(company[0].numpy(), batch[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("make", [trained, lambda: Discriminator(6)], ids=["generator", "discriminator"])
def test_training_mode_gives_the_same(make: Callable[[], nn.Module]):
    net, x = make(), torch.randn(16, 6)
    with torch.no_grad():
        training, evaluation = net.train()(x).clone(), net.eval()(x)
    assert torch.equal(training, evaluation)
    assert list(net.buffers()) == []


def test_discriminator_gives_one_logit_per_cell():
    net = Discriminator(5)
    assert net(torch.randn(7, 5)).shape == (7,)
    # a logit, not a probability
    assert float(net(100 * torch.randn(200, 5)).detach().abs().max()) > 1


def test_mlp_layers():
    net = mlp(3, (8, 5), 2, norm=True)
    assert [type(layer) for layer in net] == [nn.Linear, nn.LayerNorm, nn.LeakyReLU] * 2 + [nn.Linear]
    assert [layer.negative_slope for layer in net if isinstance(layer, nn.LeakyReLU)] == [0.2, 0.2]
    assert [type(layer) for layer in mlp(3, (8,), 2, norm=False)] == [nn.Linear, nn.LeakyReLU, nn.Linear]
    shapes = [tuple(layer.weight.shape) for layer in net if isinstance(layer, nn.Linear)]
    assert shapes == [(8, 3), (5, 8), (2, 5)]


def test_sizes_of_the_default_networks():
    # 128-128 and a linear skip; 256-128
    generator = {name: tuple(p.shape) for name, p in Generator(50, 30).named_parameters() if p.ndim == 2}
    assert sorted(generator.values()) == sorted([(30, 50), (128, 50), (128, 128), (30, 128)])
    discriminator = [tuple(p.shape) for p in Discriminator(30).parameters() if p.ndim == 2]
    assert discriminator == [(256, 30), (128, 256), (1, 128)]


# --- the published networks --------------------------------------------------------------------------------------


def test_sizes_of_the_published_networks():
    # 128-256-512 without skip; 1024-512-256, 15 closeness features after the first layer
    generator = [tuple(p.shape) for p in PaperGenerator(50, 30).parameters() if p.ndim == 2]
    assert generator == [(128, 50), (256, 128), (512, 256), (30, 512)]
    kinds = [type(layer) for layer in PaperGenerator(50, 30).body]
    assert kinds == [nn.Linear, BatchNorm, nn.LeakyReLU] * 3 + [nn.Linear]
    critic = PaperDiscriminator(30)
    shapes = [tuple(p.shape) for p in critic.parameters() if p.ndim == 2]
    assert shapes == [(1024, 30), (150, 1024), (512, 1039), (256, 512), (1, 256)]
    kinds = [type(layer) for layer in critic.body]
    middle = [nn.Linear, BatchNorm, nn.LeakyReLU]
    assert kinds == [nn.Linear, nn.LeakyReLU, MinibatchFeatures, *middle, *middle, nn.Linear]
    slopes = [
        layer.negative_slope for layer in [*critic.body, *PaperGenerator(3, 2).body] if hasattr(layer, "negative_slope")
    ]
    assert slopes == [0.2] * 6
    assert critic(torch.randn(7, 30)).shape == (7,)


def test_batch_norm_is_that_of_torch():
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    for _ in range(3):
        x = 2 * torch.randn(20, 5) + 1
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert torch.equal(ours.running_var, theirs.running_var)
    # all that a model has to store is float
    assert {v.dtype for v in ours.state_dict().values()} == {torch.float32}


def test_frozen_statistics_normalise_by_the_batch_and_count_nothing():
    net, plain = BatchNorm(5), nn.BatchNorm1d(5)
    net(torch.randn(20, 5))
    before, x = net.running_mean.clone(), torch.randn(20, 5) + 3
    with frozen_statistics([net]):
        inside = net(x)
    assert torch.equal(inside, plain(x))
    assert torch.equal(net.running_mean, before)
    net(x)
    assert not torch.equal(net.running_mean, before)
    with pytest.raises(RuntimeError, match="inside"), frozen_statistics([net]):
        raise RuntimeError("inside")
    assert net.counts


def test_published_generator_maps_one_cell_alone():
    net, x = PaperGenerator(6, 4), torch.randn(64, 6)
    for _ in range(5):
        net(torch.randn(64, 6) + 1)
    net.eval()
    with torch.no_grad():
        batch = net(x)
        np.testing.assert_allclose(torch.cat([net(row[None]) for row in x]).numpy(), batch.numpy(), atol=1e-5)
        company = net(torch.cat([x[:1], 1e3 * torch.randn(63, 6)]))
        np.testing.assert_allclose(company[0].numpy(), batch[0].numpy(), atol=1e-5)
        # in training the company matters
        assert not torch.allclose(net.train()(x[:8]), batch[:8], atol=1e-2)


def test_minibatch_features_are_the_formula():
    net, x = MinibatchFeatures(8, n_kernels=3, n_dims=4).double(), torch.randn(6, 8, dtype=torch.float64)
    with torch.no_grad():
        got = net(x).numpy()
        t = net.project(x).reshape(6, 3, 4).numpy()
    np.testing.assert_array_equal(got[:, :8], x.numpy())
    for a in range(6):
        for k in range(3):
            closeness = [np.exp(-np.abs(t[a, k] - t[b, k]).mean()) for b in range(6) if b != a]
            assert got[a, 8 + k] == pytest.approx(np.mean(closeness), abs=1e-12)


def test_minibatch_features_see_collapse():
    net = MinibatchFeatures(8)
    with torch.no_grad():
        apart, collapsed = net(10 * torch.randn(32, 8))[:, 8:], net(torch.randn(1, 8).repeat(32, 1))[:, 8:]
    assert float(apart.max()) < 0.9
    np.testing.assert_allclose(collapsed.numpy(), 1, atol=1e-5)


def test_slope_of_many_distances_is_found_in_blocks(monkeypatch: pytest.MonkeyPatch):
    x = torch.randn((3, 11, 4), generator=torch.Generator().manual_seed(0), requires_grad=True)
    slope = torch.randn((3, 11, 11), generator=torch.Generator().manual_seed(1))
    (whole,) = torch.autograd.grad(networks._SelfDistance.apply(x), x, slope)
    backward, sizes = torch.ops.aten._cdist_backward, []

    def spy(grad: torch.Tensor, rows: torch.Tensor, others: torch.Tensor, *args: Any) -> torch.Tensor:
        sizes.append(rows.numel() * others.shape[1])
        return backward(grad, rows, others, *args)

    # 132 numbers for each of 11 rows
    monkeypatch.setattr(networks, "CDIST_BUFFER", 396)
    monkeypatch.setattr(torch.ops.aten, "_cdist_backward", spy)
    (parts,) = torch.autograd.grad(networks._SelfDistance.apply(x), x, slope)
    assert sizes == [264] * 5 + [132]
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


def test_slope_of_minibatch_features():
    net, x = MinibatchFeatures(5, n_kernels=2, n_dims=3).double(), torch.randn(7, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(net, x.requires_grad_())
    kernels = torch.randn(4, 9, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(networks._SelfDistance.apply, kernels)


def test_order_of_the_batch_does_not_matter_to_the_published_discriminator():
    net, x = PaperDiscriminator(6).double(), torch.randn(40, 6, dtype=torch.float64)
    order = torch.randperm(40)
    with torch.no_grad():
        np.testing.assert_allclose(net(x[order]).numpy(), net(x)[order].numpy(), atol=1e-10)
        # but the batch does
        assert not torch.allclose(net(x[:20]), net(x)[:20], atol=1e-4)


# --- the coupling as a map ---------------------------------------------------------------------------------------


def remembering(n: int = 200, seed: int = 0) -> tuple[BarycentricMap, torch.Tensor, torch.Tensor]:
    """Cells in a plane under noise; anchors are a smooth function of them."""
    rng = torch.Generator().manual_seed(seed)
    cells = torch.randn(n, 5, generator=rng) * torch.tensor([3, 2, 0.3, 0.3, 0.3])
    anchors = torch.column_stack([torch.sin(cells[:, 0]), cells[:, 1], cells[:, 0] * cells[:, 1] / 4])
    net = BarycentricMap(5, 3)
    net.remember(cells, anchors, torch.ones(n))
    return net.eval(), cells, anchors


def test_remembered_cells_go_to_their_anchors():
    net, cells, anchors = remembering()
    np.testing.assert_allclose(net(cells).numpy(), anchors.numpy(), atol=1e-5)
    assert net(cells).dtype == torch.float32


def test_other_cells_follow_their_neighbours():
    net, cells, anchors = remembering()
    x = cells[:50] + 0.2 * torch.randn(50, 5)
    plain, weight, bias = net(x), torch.randn(3, 5), torch.randn(3)
    nearest = torch.cdist(x, cells).argsort(1)[:, :16]
    # without a linear part: between their anchors
    for row, at in zip(plain, nearest):
        assert (row >= anchors[at].amin(0) - 1e-5).all()
        assert (row <= anchors[at].amax(0) + 1e-5).all()
    net.start_from(weight, bias)
    net.remember(cells, anchors, torch.ones(200))
    # modified Shepard weights of what the linear part is off by
    d = np.sqrt(((x[:, None] - cells[nearest]).double().numpy() ** 2).sum(2))
    w = (1 / d - 1 / d[:, -1:]) ** 2
    offsets = (anchors - cells @ weight.T - bias)[nearest].numpy()
    expected = (x @ weight.T + bias).numpy() + ((w / w.sum(1, keepdims=True))[:, :, None] * offsets).sum(1)
    np.testing.assert_allclose(net(x).numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(net(cells).numpy(), anchors.numpy(), atol=1e-4)
    # near a smooth function's own values
    truth = torch.column_stack([torch.sin(x[:, 0]), x[:, 1], x[:, 0] * x[:, 1] / 4])
    assert float(((plain - truth) ** 2).mean()) < 0.1 * float(truth.var())


def test_a_linear_coupling_is_mapped_exactly():
    net, cells, _ = remembering()
    weight, bias = torch.randn(3, 5), torch.randn(3)
    net.start_from(weight, bias)
    net.remember(cells, cells @ weight.T + bias, torch.ones(200))
    x = 10 * torch.randn(30, 5)
    np.testing.assert_allclose(net(x).numpy(), (x @ weight.T + bias).numpy(), atol=1e-4)


def test_coupling_maps_one_cell_alone():
    net, cells, _ = remembering()
    x = torch.cat([cells[:20] + 0.3 * torch.randn(20, 5), cells[:20], 50 * torch.randn(20, 5)])
    batch = net(x)
    np.testing.assert_allclose(torch.cat([net(row[None]) for row in x]).numpy(), batch.numpy(), atol=1e-5)
    np.testing.assert_allclose(net(torch.cat([x, 1e3 * torch.randn(2_000, 5)]))[:60].numpy(), batch.numpy(), atol=1e-5)


def test_coupling_is_continuous():
    """Where a neighbour is exchanged for another its weight is 0."""
    net, cells, _ = remembering()
    steps = torch.linspace(0, 1, 4_001)[:, None]
    path = net(cells[:1] * (1 - steps) + cells[1:2] * steps)
    length = float((cells[0] - cells[1]).norm())
    slope = (path[1:] - path[:-1]).norm(dim=1) * 4_000 / length
    assert float(slope.max()) < 50


def test_cells_without_a_partner_are_not_asked():
    net, cells, anchors = remembering()
    share = torch.ones(200)
    share[::2] = 0
    wrong = anchors.clone()
    wrong[::2] = 100
    net.remember(cells, wrong, share)
    alone = net(cells[::2])
    assert float(alone.max()) < 10
    np.testing.assert_allclose(net(cells[1::2]).numpy(), anchors[1::2].numpy(), atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 5, 15, 16, 17])
def test_coupling_of_few_or_equal_cells(n: int):
    net = BarycentricMap(3, 2)
    net.remember(torch.ones(n, 3), torch.arange(2.0 * n).view(n, 2), torch.ones(n))
    got = net(torch.cat([torch.ones(2, 3), torch.zeros(2, 3)]))
    assert torch.isfinite(got).all()
    assert float(got.min()) >= 0
    assert float(got.max()) <= 2 * n
    assert net(torch.zeros(0, 3)).shape == (0, 2)
