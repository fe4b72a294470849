"""Generators start linear, discriminators judge every cell alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from scmmgan.model.networks import Discriminator, Generator, mlp


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
    # METHOD §4: 128-128 and a linear skip; 256-128
    generator = {name: tuple(p.shape) for name, p in Generator(50, 30).named_parameters() if p.ndim == 2}
    assert sorted(generator.values()) == sorted([(30, 50), (128, 50), (128, 128), (30, 128)])
    discriminator = [tuple(p.shape) for p in Discriminator(30).parameters() if p.ndim == 2]
    assert discriminator == [(256, 30), (128, 256), (1, 128)]
