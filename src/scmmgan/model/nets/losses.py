"""Objectives of the training, one pure function per equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scmmgan.model.defaults import EIGVEC_WIDTH, N_EIGENVECTORS, SUBSPACE_WIDTH
from scmmgan.model.nets.pinned import products
from scmmgan.model.space.diffusion import diffusion_kernel, heat_operator, paper_kernel, spectrum, symmetric_operator


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


def identity_loss(x: Tensor, mapped: Tensor) -> Tensor:
    """Mean squared error between cells and their images in a shared space, over cells and dimensions."""
    return F.mse_loss(mapped, x)


def consistency_loss(mapped: Tensor, around: list[Tensor]) -> Tensor:
    """Mean squared error between cells mapped directly and through third modalities, over these, cells and dimensions."""
    return torch.stack([F.mse_loss(other, mapped) for other in around]).mean()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of matching columns over the rows of a batch."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / ((a * a).sum(0) * (b * b).sum(0) + 1e-12).sqrt()


def link_loss(source: Tensor, mapped: Tensor, sign: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over links of 1 - sign · correlation over the batch; columns are linked features."""
    return (weight * (1 - sign * correlation(source, mapped))).sum() / weight.sum().clamp(min=1e-9)


def heat_loss(x: Tensor, mapped: Tensor) -> Tensor:
    """1 - cosine between the heat operators of a batch and of its images."""
    a, b = heat_operator(x), heat_operator(mapped)
    return 1 - (a * b).sum() / (a.norm() * b.norm())


class _Leading(torch.autograd.Function):
    """Leading eigenvectors of a symmetric operator whose slope stays finite where eigenvalues meet.

    dv_j = Σ_i v_i (v_iᵀ dS v_j) / (λ_j - λ_i), with g / (g² + width²) for 1 / g. What is invariant to rotations among the
    kept ones leaves the differences between them out (`among` false): there they cancel, and are small.
    """

    @staticmethod
    def forward(
        ctx: Any, operator: Tensor, values: Tensor, vectors: Tensor, n: int, width: float, among: bool
    ) -> Tensor:
        ctx.save_for_backward(values, vectors)
        ctx.n, ctx.width, ctx.among = n, width, among
        return vectors[:, :n].clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        values, vectors = ctx.saved_tensors
        gap = values[None, : ctx.n] - values[:, None]
        inverse = gap / (gap**2 + ctx.width**2)
        if not ctx.among:
            inverse[: ctx.n] = 0
        slope = vectors @ (inverse * (vectors.T @ slopes[0])) @ vectors[:, : ctx.n].T
        return (slope + slope.T) / 2, None, None, None, None, None


def leading_eigenvectors(kernel: Tensor, n: int, *, width: float, among: bool) -> Tensor:
    """The n leading nontrivial eigenvectors (B × n) of S = K / sqrt(q_a q_b), differentiable in the kernel K."""
    operator = symmetric_operator(kernel)
    # the solver would raise at NaN, and the training's guard knows what to do with it: the slope is NaN either way
    finite = torch.isfinite(operator).all()
    found = _Leading.apply(operator, *spectrum(torch.where(finite, kernel, 1.0)), n, width, among)
    return found * torch.where(finite, 1.0, torch.nan)


def subspace_loss(x: Tensor, mapped: Tensor, *, n: int = N_EIGENVECTORS, width: float = SUBSPACE_WIDTH) -> Tensor:
    """1 - |UᵀZ|² / n of the leading eigenvectors of a batch and of its images."""
    u, z = (leading_eigenvectors(diffusion_kernel(v), n, width=width, among=False) for v in (x.detach(), mapped))
    return 1 - (u.T @ z).square().sum() / n


def eigvec_loss(x: Tensor, mapped: Tensor, *, n: int = N_EIGENVECTORS, width: float = EIGVEC_WIDTH) -> Tensor:
    """Mean squared differences of rescaled eigenvectors, and of sums of 2 and 4 neighbours."""
    x_vectors, y_vectors = (_rescaled_eigenvectors(v, n, width) for v in (x.detach(), mapped))
    flip = torch.where(correlation(x_vectors, y_vectors) < -0.5, -1.0, 1.0)
    difference = x_vectors - flip.detach() * y_vectors
    sums = (difference.unflatten(1, (-1, size)).sum(2) for size in (1, 2, 4))
    return torch.stack([d.square().mean() / size for d, size in zip(sums, (1, 2, 4))]).mean()


def _rescaled_eigenvectors(x: Tensor, n: int, width: float) -> Tensor:
    """φ = u / sqrt(q) from the published kernel, each between -1 and 1, the longer tail upwards."""
    kernel = paper_kernel(x)
    phi = leading_eigenvectors(kernel, n, width=width, among=True) / kernel.sum(1).sqrt()[:, None]
    low, high = phi.amin(0), phi.amax(0)
    # a constant column has no range
    phi = 2 * (phi - low) / (high - low).clamp(min=1e-9) - 1
    # a solver's signs depend on the order of the batch
    return phi * torch.where((phi - phi.mean(0)).pow(3).sum(0) < 0, -1.0, 1.0).detach()


GEOMETRIES = {"heat": heat_loss, "subspace": subspace_loss, "eigvec": eigvec_loss}


class _InFull(torch.autograd.Function):
    """A geometry term that finds its slope on the way there, where the precision of products can be set."""

    @staticmethod
    def forward(ctx: Any, term: Callable[[Tensor, Tensor], Tensor], x: Tensor, mapped: Tensor) -> Tensor:
        with products("float32"), torch.enable_grad():
            at = mapped.detach().requires_grad_(True)
            value = term(x, at)
            (slope,) = torch.autograd.grad(value, at)
        ctx.save_for_backward(slope)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, slopes[0] * ctx.saved_tensors[0]


def geometry_loss(name: str, x: Tensor, mapped: Tensor) -> Tensor:
    """The geometry term of that name, always in full single precision: with less, eigenvectors and kernels are wrong."""
    term = globals()[f"{name}_loss"]
    return term(x, mapped) if torch.get_float32_matmul_precision() == "highest" else _InFull.apply(term, x, mapped)
