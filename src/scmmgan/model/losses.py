"""The objectives of METHOD §5 and §6, one pure function per equation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from scmmgan.model.diffusion import heat_operator


def adversarial_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating generator loss E softplus(-D_j(x_ij)): the target's discriminator sees the mapped cell."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: list[Tensor]) -> Tensor:
    """½ [E softplus(-D(real)) + mean over generators of E softplus(D(fake))]."""
    fake = torch.stack([F.softplus(logits).mean() for logits in fake_logits]).mean()
    return (F.softplus(-real_logits).mean() + fake) / 2


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Mean squared gradient norm of the discriminator at real cells: mean |∇_x D(x)|²."""
    real = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return (gradient**2).sum(1).mean()


def cycle_loss(x: Tensor, x_cycle: Tensor) -> Tensor:
    """Mean squared error between cells and their round trip, over cells and dimensions."""
    return F.mse_loss(x_cycle, x)


def anchor_loss(mapped: Tensor, anchors: Tensor, weight: Tensor) -> Tensor:
    """Squared error between mapped cells and their anchors: mean over dimensions, weighted mean over cells."""
    error = ((mapped - anchors) ** 2).mean(1)
    # cells without any partner may fill a batch
    return (weight * error).sum() / weight.sum().clamp(min=1e-9)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of matching columns over the rows of a batch."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / ((a * a).sum(0) * (b * b).sum(0) + 1e-12).sqrt()


def link_loss(source: Tensor, mapped: Tensor, sign: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over links of 1 - sign · correlation over the batch; columns are linked features."""
    return (weight * (1 - sign * correlation(source, mapped))).sum() / weight.sum()


def heat_loss(x: Tensor, mapped: Tensor) -> Tensor:
    """1 - cosine between the heat operators of a batch and of its images (METHOD §6, heat)."""
    a, b = heat_operator(x), heat_operator(mapped)
    return 1 - (a * b).sum() / (a.norm() * b.norm())
