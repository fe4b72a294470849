"""Networks: generators between model spaces and one discriminator per modality."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmmgan.model.defaults import CDIST_BUFFER, MEMORY_NEIGHBORS


def mlp(n_in: int, hidden: tuple[int, ...], n_out: int, *, norm: bool) -> nn.Sequential:
    """Linear layers with LeakyReLU .2 between them, each after a LayerNorm if `norm`."""
    layers: list[nn.Module] = []
    for n_hidden in hidden:
        layers.append(nn.Linear(n_in, n_hidden))
        if norm:
            layers.append(nn.LayerNorm(n_hidden))
        layers.append(nn.LeakyReLU(0.2))
        n_in = n_hidden
    return nn.Sequential(*layers, nn.Linear(n_in, n_out))


class Generator(nn.Module):
    """Linear skip plus MLP 128-128; starts as the linear map alone, so that training refines a sensible map."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.skip = nn.Linear(n_in, n_out)
        self.body = mlp(n_in, (128, 128), n_out, norm=True)
        for parameter in self.body[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map cells (B × n_in) to the target's model space (B × n_out)."""
        return self.skip(x) + self.body(x)

    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Set the linear skip: `weight` (n_out × n_in), `bias` (n_out,)."""
        with torch.no_grad():
            self.skip.weight.copy_(weight)
            self.skip.bias.copy_(bias)


class Discriminator(nn.Module):
    """MLP 256-128 from model space to one logit; no batch norm, so that a cell is scored alone."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.body = mlp(n_in, (256, 128), 1, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,) that are high for measured cells."""
        return self.body(x)[:, 0]


class BatchNorm(nn.Module):
    """Batch normalisation with running statistics for inference, which `frozen_statistics` leaves alone."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))
        self.counts = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalise cells (B × n): by the batch in training, by the running statistics after it."""
        kept = self.counts or not self.training
        mean, var = (self.running_mean, self.running_var) if kept else (None, None)
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, momentum=0.1)


@contextmanager
def frozen_statistics(norms: Iterable[BatchNorm]) -> Iterator[None]:
    """Batch normalisation inside neither counts a batch nor uses what was counted: for input that was generated."""
    norms = list(norms)
    for norm in norms:
        norm.counts = False
    try:
        yield
    finally:
        for norm in norms:
            norm.counts = True


class PaperGenerator(nn.Module):
    """The published generator: 128-256-512, each linear, batch norm, LeakyReLU .2; linear output, no skip."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_hidden in (128, 256, 512):
            layers += [nn.Linear(n_in, n_hidden), BatchNorm(n_hidden), nn.LeakyReLU(0.2)]
            n_in = n_hidden
        self.body = nn.Sequential(*layers, nn.Linear(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map cells (B × n_in) to the target's model space (B × n_out)."""
        return self.body(x)


class _SelfDistance(torch.autograd.Function):
    """`torch.cdist(x, x, p=1)`, whose own backward pass goes through the same symmetric array twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        distance = torch.cdist(x, x, p=1)
        ctx.save_for_backward(x, distance)
        return distance

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        x, distance = ctx.saved_tensors
        # in blocks of rows: with more numbers than it can count PyTorch's function reads beyond its buffer
        rows = max(1, (CDIST_BUFFER - 1) // x.numel())
        parts = [v.split(rows, dim=1) for v in (slopes[0] + slopes[0].mT, x, distance)]
        return torch.cat([torch.ops.aten._cdist_backward(s, y, x, 1.0, d) for s, y, d in zip(*parts)], dim=1)


class MinibatchFeatures(nn.Module):
    """Appends how close a cell is to its batch: mean over other cells of exp(-mean_r |T_akr - T_bkr|), 15 kernels × 10."""

    def __init__(self, n_in: int, n_kernels: int = 15, n_dims: int = 10) -> None:
        super().__init__()
        self.n_kernels, self.n_dims = n_kernels, n_dims
        self.project = nn.Linear(n_in, n_kernels * n_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Cells (B × n_in) with their closeness under every kernel (B × n_in + n_kernels)."""
        # distances know no lower precision
        projected = self.project(x).to(self.project.weight.dtype)
        kernels = projected.view(len(x), self.n_kernels, self.n_dims).transpose(0, 1).contiguous()
        closeness = (_SelfDistance.apply(kernels) / -self.n_dims).exp()
        # every cell is at distance 0 of itself
        others = (closeness.sum(2) - 1) / max(len(x) - 1, 1)
        return torch.cat([x, others.T], dim=1)


class PaperDiscriminator(nn.Module):
    """The published discriminator: 1024-512-256, minibatch discrimination after the first layer, then batch norm."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Linear(n_in, 1024), nn.LeakyReLU(0.2), MinibatchFeatures(1024)),
            *(nn.Linear(1024 + 15, 512), BatchNorm(512), nn.LeakyReLU(0.2)),
            *(nn.Linear(512, 256), BatchNorm(256), nn.LeakyReLU(0.2)),
            nn.Linear(256, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,) of one batch, all measured or all mapped."""
        return self.body(x)[:, 0]


class BarycentricMap(nn.Module):
    """The coupling as a map: a linear map, and how far off it is at the 15 nearest of the cells that are remembered.

    Weights of the neighbours (modified Shepard): (1 / d - 1 / d_16)², continuous, and infinite at a remembered cell,
    which therefore goes to its anchor.
    """

    cells: Tensor
    offsets: Tensor
    share: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.start_from(torch.zeros(n_out, n_in), torch.zeros(n_out))
        self.remember(torch.zeros(1, n_in), torch.zeros(1, n_out), torch.ones(1))

    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Set the linear part: `weight` (n_out × n_in), `bias` (n_out,)."""
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def remember(self, cells: Tensor, anchors: Tensor, share: Tensor) -> None:
        """Set the cells (n × n_in), their anchors (n × n_out) and how much each is to be trusted (n,)."""
        self.register_buffer("cells", cells)
        self.register_buffer("offsets", anchors - F.linear(cells, self.weight, self.bias))
        self.register_buffer("share", share)

    def forward(self, x: Tensor) -> Tensor:
        """Map cells (B × n_in) to the target's model space (B × n_out)."""
        # distances to ten thousand cells: a thousand rows at a time
        return torch.cat([F.linear(part, self.weight, self.bias) + self._offset(part) for part in x.split(1_000)])

    def _offset(self, x: Tensor) -> Tensor:
        k = min(MEMORY_NEIGHBORS, len(self.cells) - 1)
        nearest = torch.cdist(x, self.cells).topk(k + 1, largest=False).indices
        # of the differences: what cdist finds in a batch is off by the rounding of squares
        distance = ((x[:, None] - self.cells[nearest]) ** 2).sum(2).sqrt().clamp(min=1e-6)
        farthest = distance.max(1, keepdim=True).values
        weight = (1 / distance - 1 / farthest) ** 2 * self.share[nearest] + 1e-20
        return ((weight / weight.sum(1, keepdim=True))[:, :, None] * self.offsets[nearest]).sum(1)


class NoisyGenerator(nn.Module):
    """A generator of [x; z]: z ~ N(0, I) fresh at every call in training, 0 after it, so that a cell has one image."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.width = inner, width
        self.rng = torch.Generator()
        self.share = (0, 1)  # which of so many processes this is: all draw alike, and each takes its own

    def forward(self, x: Tensor) -> Tensor:
        """Map cells (B × n_in) to the target's model space (B × n_out)."""
        if not self.training:
            return self.sample(x, x.new_zeros(len(x), self.width))
        own, size = self.share
        z = torch.randn((len(x) * size, self.width), generator=self.rng)[own::size]
        return self.sample(x, z.to(x))

    def sample(self, x: Tensor, z: Tensor) -> Tensor:
        """Map cells with given noise (B × width)."""
        return self.inner(torch.cat([x, z], dim=1))


class Features(nn.Module):
    """Mapped cells without their coordinates, as the next generator reads them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """The first columns (B × width) of cells."""
        return x[:, : self.width]


GENERATORS: dict[str, type[nn.Module]] = {"default": Generator, "paper": PaperGenerator, "coupling": BarycentricMap}
DISCRIMINATORS: dict[str, type[nn.Module]] = {"default": Discriminator, "paper": PaperDiscriminator}
