"""Con-AAE: contrastive cycle adversarial autoencoders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scmmgan.model.nets.autoencoder import (
    Batch,
    Nets,
    System,
    adam,
    at_most,
    cross_entropy,
    draw,
    least_squares,
    squared_error,
)
from scmmgan.model.nets.networks import BatchNorm


class ConAAE(System):
    """Adversary, latent cycle, and where there are labels a margin between them and a classifier.

    Without labels the adversary and the cycle are left, and nothing orients them but known pairs. The ablation of the paper has a
    weight of `mmd`, and of `adversarial` 0.
    """

    latent = 50
    weights = {
        "reconstruction": 10.0,
        "adversarial": 10.0,
        "mmd": 0.0,
        "cycle": 10.0,
        "contrast": 10.0,
        "labels": 1.0,
        "anchors": 0.1,
    }
    max_steps, batch_size, lr = 180_000, 32, 1e-4
    takes = ("pairs", "labels", "hidden")
    critic_first = False

    @staticmethod
    def networks(widths: Mapping[str, int], hidden: int | str | None) -> tuple[Nets, Nets]:
        """d-d-d-d-100-50 and 50-100-d-d-d-d of each modality; batch norm; LeakyReLU .01, before it in the first layer."""
        encoders: Nets = {}
        decoders: Nets = {}
        for m, d in widths.items():
            w = at_most(d, hidden)
            encoders[m], decoders[m] = _layers(d, w, w, w, 100, 50), _layers(50, 100, w, w, w, d)
        return encoders, decoders

    @staticmethod
    def widest(widths: Mapping[str, int]) -> int:
        """As wide as the widest modality."""
        return max(widths.values())

    def build(self) -> None:
        """A critic 50-50-100-1 with a sigmoid, a classifier where there are labels, batches of pairs where there are any."""
        hidden = [nn.Linear(50, 50), nn.LeakyReLU(0.01), nn.Linear(50, 100), nn.LeakyReLU(0.01)]
        self.critics["z"] = nn.Sequential(*hidden, nn.Linear(100, 1), nn.Sigmoid())
        if self.task.labels:
            self.others["labels"] = nn.Linear(50, len(self.task.problem.label_names))
        if (pairs := self.task.pairs) is not None:
            order = torch.arange(len(pairs), device=pairs.device)
            self.drawn = draw(order, self.task.batch_size, self.task.random_state + len(self.task.x))

    def optimizers(self, lr: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
        """Adam; the classifier and the critic with torch's own settings."""
        others = [p for net in self.others.values() for p in net.parameters()]
        known = set(others)
        rest = [p for p in self.parameters() if p not in known]
        groups: list[dict[str, Any]] = [{"params": rest, "betas": (0.5, 0.999), "weight_decay": 1e-4}]
        main = adam([*groups, *([{"params": others}] if others else [])], lr=lr)
        return main, adam(self.critics["z"].parameters(), lr=lr)

    def critic_loss(self, batch: Batch) -> Tensor:
        """The first modality is 0, the second 1."""
        a, b = self.task.first_two
        return least_squares(self.critics["z"](batch.z[a]), self.critics["z"](batch.z[b])) / 2

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """All losses that what is known allows."""
        (a, b), critic, z = self.task.first_two, self.critics["z"], batch.z
        found = {
            "reconstruction": self.reconstruction(batch),
            "adversarial": least_squares(critic(z[b]), critic(z[a])) / 2,
            "cycle": self.latent_cycle(z, [(a, b)]),
        }
        if self.task.weights["mmd"]:
            found["mmd"] = mmd_loss(z[a], z[b])
        if self.task.labels:
            labels = {m: self.task.labels[m][batch.rows[m]] for m in (a, b)}
            found["contrast"] = contrastive_loss(torch.cat([z[a], z[b]]), torch.cat([labels[a], labels[b]]))
            of = [cross_entropy(self.others["labels"](z[m]), labels[m]) for m in (a, b)]
            found["labels"] = (of[0] + of[1]) / 2
        if self.task.pairs is not None:
            found["anchors"] = squared_error(*self.anchored(self.task.pairs[next(self.drawn)]))
        return found


def contrastive_loss(z: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Mean over labelled cells (n × q) of max(0, distance to the farthest of the label - to the nearest of another + margin).

    `labels` (n,): codes, -1: none; such cells count nowhere. 0 where all labels are the same.
    """
    z, labels = z[labels >= 0], labels[labels >= 0]
    same = labels[:, None] == labels
    if not len(z) or bool(same.all()):
        return z.sum() * 0
    # the root has no slope at 0, where every cell is from itself
    distance = ((z[:, None] - z) ** 2).sum(2).clamp(min=1e-12).sqrt()
    farthest = distance.where(same, torch.zeros_like(distance)).amax(1)
    nearest = distance.where(~same, torch.full_like(distance, torch.inf)).amin(1)
    return (farthest - nearest + margin).clamp(min=0).mean()


def mmd_loss(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of the means (n × q, n' × q) in five Gaussian kernels, of widths ¼ to 4 times the mean squared distance."""
    z = torch.cat([a, b])
    distance = ((z[:, None] - z) ** 2).sum(2)
    # a width is no way to become alike
    mean = (distance.detach().sum() / (len(z) * (len(z) - 1))).clamp(min=1e-12)
    kernel = torch.stack([(-distance / (mean * 2.0**i)).exp() for i in range(-2, 3)]).sum(0)
    n = len(a)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers; behind each but the last LeakyReLU .01 and batch norm, in this order behind the first alone."""
    found: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        two = [nn.LeakyReLU(0.01), BatchNorm(n_out)]
        found += [nn.Linear(n_in, n_out), *(two if i == 0 else two[::-1])]
    return nn.Sequential(*found[:-2])
