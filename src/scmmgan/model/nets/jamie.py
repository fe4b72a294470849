"""JAMIE: joint variational autoencoders whose latent cells are averaged with those of their known partners."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmmgan.model.coupling.couple import couple
from scmmgan.model.defaults import (
    JAMIE_EPOCHS,
    JAMIE_PATIENCE,
    MAX_COVERED,
    PAIRED_SHARE,
)
from scmmgan.model.nets.autoencoder import Batch, Cells, Nets, System, at_most, draw, squared_error
from scmmgan.model.nets.networks import BatchNorm
from scmmgan.model.space.domain import model_space


class JAMIE(System):
    """Partners are known pairs; beside them a correspondence is inferred, from shapes alone or with the pairs' help.

    Averages are by `ratio` times the known and 1 - `ratio` times the inferred correspondence. `dropout`: share of hidden units that
    are left out in training.
    """

    latent = 32
    weights = {"kl": 0.032, "combination": 32.0, "reconstruction": 1.0, "alignment": 1.0}
    max_steps, batch_size, lr = 10_000, 512, 1e-3
    takes = ("pairs", "pair_weights", "hidden")
    options = {"dropout": 0.0, "ratio": 1.0}
    n_pcs = 512
    clip = 1.0

    @staticmethod
    def networks(widths: Mapping[str, int], hidden: int | str | None) -> tuple[Nets, Nets]:
        """p-2p-p and two heads of 32; 32-p-2p-p; batch norm, LeakyReLU .01."""
        encoders: Nets = {}
        decoders: Nets = {}
        for m, p in widths.items():
            one, two = at_most(p, hidden), at_most(2 * p, hidden)
            encoders[m], decoders[m] = _layers(p, two, one, 64), _layers(32, one, two, p)
        return encoders, decoders

    @staticmethod
    def widest(widths: Mapping[str, int]) -> int:
        """Twice what is read."""
        return 2 * max(widths.values())

    def build(self) -> None:
        """Weights of both sides in the average, weights of partners, and the inferred correspondence."""
        self.ratio, dropout = (float(self.task.options[name]) for name in ("ratio", "dropout"))
        if dropout == 1:
            raise ValueError("`dropout` must be below 1: 1 leaves no unit.")
        for net in (*self.encoders.values(), *self.decoders.values()):
            for layer in net.modules():
                if isinstance(layer, _Activation):
                    layer.dropout = dropout
        (a, b), x, known = self.task.first_two, self.task.x, self.task.problem.of(*self.task.first_two)
        self.others["share"] = _Shares()
        rows, weight = np.empty((0, 2), dtype=int), np.empty(0)
        if known.pairs is not None:
            rows, weight = known.partners or (known.pairs, np.ones(len(known.pairs)))
        self.partners = sp.csr_matrix((weight, tuple(rows.T)), shape=(len(x[a]), len(x[b])), dtype=np.float32)
        covered = min(len(np.unique(of)) / len(x[m]) for m, of in zip((a, b), rows.T))
        self.plan: tuple[Tensor, Tensor] | None = None
        if covered <= MAX_COVERED or self.ratio < 1:
            # shapes are compared on smoothed cells, as everywhere
            smooth = {m: replace(of, steps=None) for m, of in self.task.problem.modalities.items()}
            problem = replace(self.task.problem, modalities=smooth)
            seed = self.task.random_state
            coupling = couple(problem, model_space(problem, random_state=seed), random_state=seed)[0][a, b]
            label = np.asarray(coupling.landmarks.label, dtype=np.int64)
            # a landmark's mass is that of its cells
            share = coupling.plan.toarray() / np.maximum(np.bincount(label, minlength=coupling.plan.shape[1]), 1)
            device = x[a].device
            self.plan = (
                torch.as_tensor(share, dtype=torch.float32, device=device),
                torch.as_tensor(label, device=device),
            )
        self.per_epoch = max(1, max(len(v) for v in x.values()) // 512)
        self.best, self.better_at, self.lowest = math.inf, 0, math.inf

    def batches(self) -> Iterator[Cells]:
        """Known pairs together, up to 80 % of a batch, the rest independently; all pairs known: the same cells on both sides."""
        (a, b), task = self.task.first_two, self.task
        if not self.partners.nnz:
            yield from super().batches()
            return
        pairs = torch.as_tensor(np.stack(self.partners.nonzero(), axis=1), device=task.x[a].device)
        complete = all(len(pairs[:, i].unique()) == len(pairs) == len(task.x[m]) for i, m in enumerate((a, b)))
        size = task.batch_size if complete else max(1, round(PAIRED_SHARE * task.batch_size))
        joint = draw(torch.arange(len(pairs), device=pairs.device), size, task.random_state + len(task.x))
        rest = super().batches()
        while True:
            found = pairs[next(joint)]
            rows = {m: found[:, i] for i, m in enumerate((a, b))}
            if not complete:
                free = {m: of[~torch.isin(of, rows[m])] for m, of in next(rest).items()}
                rows = {m: torch.cat([rows[m], free[m][: task.batch_size - len(found)]]) for m in (a, b)}
            yield rows

    def encode(self, x: Cells) -> Cells:
        """Drawn around the means in training; `terms` takes the variances from here."""
        self.heads = {m: self.encoders[m](v).chunk(2, dim=1) for m, v in x.items()}
        return {
            m: mean + ((log / 2).exp() + 1e-7) * torch.randn(mean.shape).to(mean)
            for m, (mean, log) in self.heads.items()
        }

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """All losses; decoders read the averaged cells."""
        (a, b), z = self.task.first_two, batch.z
        rows, others = (batch.rows[m].cpu().numpy() for m in (a, b))
        known = torch.as_tensor(self.partners[rows][:, others].toarray()).to(z[a])
        if self.plan is not None:
            inferred = self.plan[0][batch.rows[a]][:, self.plan[1][batch.rows[b]]]
            known = self.ratio * known + (1 - self.ratio) * inferred
        averaged = dict(zip((a, b), aggregate(z[a], z[b], known, self.others["share"]())))
        found = {
            "kl": kl_weight(batch.step / self.per_epoch) * torch.stack([kl_loss(*self.heads[m]) for m in z]).sum(),
            "combination": torch.stack([squared_error(z[m], averaged[m]) for m in z]).sum(),
            "reconstruction": self.reconstruction(Batch(batch.step, batch.rows, batch.x, averaged)),
        }
        if self.plan is not None:
            found["alignment"] = squared_error(averaged[a], rows_to_one(inferred) @ averaged[b])
        return found

    def done(self, step: int, loss: float) -> bool:
        """No better batch for 500 epochs, after 2,500."""
        self.lowest = min(self.lowest, loss)
        epoch, end = divmod(step + 1, self.per_epoch)
        if end:
            return False
        lowest, self.lowest = self.lowest, math.inf
        if epoch >= JAMIE_EPOCHS and lowest < self.best - 1e-8:
            self.best, self.better_at = lowest, epoch
        return epoch >= JAMIE_EPOCHS and epoch - self.better_at >= JAMIE_PATIENCE


class _Shares(nn.Module):
    """Two learnt weights, always positive; they start uniformly in (0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.rand(2).clamp(min=1e-3).expm1().log())

    def forward(self) -> Tensor:
        """The weights (2,)."""
        return F.softplus(self.raw)


class _Activation(nn.LeakyReLU):
    """LeakyReLU whose units are left out at random in training."""

    dropout = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """Activations (n × p)."""
        out = super().forward(input)
        if not (self.dropout and self.training):
            return out
        # drawn on the CPU, as all else: generators of other devices are not seeded
        return out * (torch.rand(out.shape) >= self.dropout).to(out) / (1 - self.dropout)


def rows_to_one(c: Tensor) -> Tensor:
    """Rows over their sums; those without any entry stay 0."""
    total = c.sum(1, keepdim=True)
    return c / total.where(total > 0, torch.ones_like(total))


def aggregate(a: Tensor, b: Tensor, known: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Latent cells of both sides averaged with those of their partners (`known`, B × B'), by the sides' weights (2,)."""
    to_b, to_a = rows_to_one(known), rows_to_one(known.T)
    first = (weight[0] * a + weight[1] * to_b @ b) / (weight[0] + weight[1] * to_b.sum(1, keepdim=True))
    second = (weight[1] * b + weight[0] * to_a @ a) / (weight[1] + weight[0] * to_a.sum(1, keepdim=True))
    return first, second


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """-½ mean (1 + log σ² - μ² - σ²) over cells and dimensions: divergence from N(0, I)."""
    return -(1 + log_variance - mean**2 - log_variance.exp()).mean() / 2


def kl_weight(epoch: float) -> float:
    """Rises from .007 at the start to .5 at half of the least number of epochs, and on to 1."""
    half = JAMIE_EPOCHS / 2
    return 1 / (1 + math.exp(-5 * (epoch - half) / half))


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers with batch norm and LeakyReLU .01 between them."""
    found: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        found += [nn.Linear(n_in, n_out), BatchNorm(n_out), _Activation(0.01)]
    return nn.Sequential(*found[:-2])
