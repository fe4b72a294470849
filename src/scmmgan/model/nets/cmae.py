"""Cross-modal autoencoders (Yang et al. 2021), the variant for RNA and ATAC: shared middle layers and one adversary."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmmgan.model.defaults import LABEL_COPIES
from scmmgan.model.nets.autoencoder import (
    Batch,
    Nets,
    System,
    absolute_error,
    adam,
    at_most,
    cross_entropy,
    least_squares,
)


class CMAE(System):
    """Least-squares adversary between the latent cells of both modalities, whose middle layers are the same.

    Labels orient it by a shared classifier, known pairs by their latent distance; without either, nothing does. With a
    `conditional_adversary`, that of the published variant for images, the critic reads labels, too, of cells that have one.
    """

    latent = 50
    # that of labels is the adversary's in the released program
    weights = {"reconstruction": 10.0, "adversarial": 10.0, "labels": 10.0, "anchors": 0.1}
    max_steps, batch_size, lr = 192_000, 32, 1e-4
    takes = ("pairs", "labels", "hidden")
    options = {"conditional_adversary": False}

    @staticmethod
    def networks(widths: Mapping[str, int], hidden: int | str | None) -> tuple[Nets, Nets]:
        """d-d-d-d-100 of each modality and 100-50 of both; 50-100 of both and 100-d-d-d-d of each; LeakyReLU .2."""
        into, out = kaiming(_layers(100, 50, last=True)), kaiming(_layers(50, 100))
        encoders, decoders = {}, {}
        for m, d in widths.items():
            w = at_most(d, hidden)
            encoders[m] = nn.Sequential(kaiming(_layers(d, w, w, w, 100)), into)
            decoders[m] = nn.Sequential(out, kaiming(_layers(100, w, w, w, d, last=True)))
        return dict(encoders), dict(decoders)

    @staticmethod
    def widest(widths: Mapping[str, int]) -> int:
        """As wide as the widest modality."""
        return max(widths.values())

    def build(self) -> None:
        """A critic 50-50-100-1, and a classifier where there are labels."""
        self.kinds = 0
        if self.task.options["conditional_adversary"]:
            if not self.task.labels:
                raise ValueError("`conditional_adversary` needs labels, and there are none. Give `labels`.")
            self.kinds = len(self.task.problem.label_names)
        self.critics["z"] = _layers(50 + LABEL_COPIES * self.kinds, 50, 100, 1, last=True)
        for name, parameter in self.critics["z"].named_parameters():
            nn.init.normal_(parameter, 0.0, 0.02) if name.endswith("weight") else nn.init.zeros_(parameter)
        if self.task.labels:
            self.others["labels"] = kaiming(nn.Sequential(nn.Linear(50, len(self.task.problem.label_names))))

    def optimizers(self, lr: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
        """Adam for both sides."""
        how: dict[str, Any] = {"lr": lr, "betas": (0.5, 0.999), "weight_decay": 1e-4}
        return adam(self.parameters(), **how), adam(self.critics["z"].parameters(), **how)

    def schedule(self, step: int) -> float:
        """Halved every 100,000 steps."""
        return float(0.5 ** (step // 100_000))

    def critic_loss(self, batch: Batch) -> Tensor:
        """The first modality is 0, the second 1; its weight counts against the decay of the critic's own weights."""
        a, b = self.task.first_two
        return self.task.weights["adversarial"] * self._adversary(batch, a, b)

    def _adversary(self, batch: Batch, first: str, second: str) -> Tensor:
        """Least squares of the critic's output, 0 for cells of the first and 1 for those of the second modality."""
        outputs = []
        for m in (first, second):
            z = batch.z[m]
            if self.kinds:
                labels = self.task.labels[m][batch.rows[m]]
                # gaps, of which one side may have more, would tell the sides apart
                known = labels >= 0
                z = torch.cat([z[known], F.one_hot(labels[known], self.kinds).repeat(1, LABEL_COPIES).to(z)], dim=1)
            outputs.append(self.critics["z"](z))
        if not all(len(of) for of in outputs):
            return torch.cat(outputs).sum() * 0
        return least_squares(*outputs)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Absolute errors of reconstruction and pairs, both encoders towards the other's target, labels."""
        a, b = self.task.first_two
        found = {
            "reconstruction": self.reconstruction(batch, absolute_error),
            "adversarial": self._adversary(batch, b, a),
        }
        if self.task.labels:
            of = [cross_entropy(self.others["labels"](batch.z[m]), self.task.labels[m][batch.rows[m]]) for m in (a, b)]
            found["labels"] = of[0] + of[1]
        if self.task.pairs is not None:
            found["anchors"] = absolute_error(*self.anchored(self.task.pairs))
        return found


def _layers(*widths: int, last: bool = False) -> nn.Sequential:
    """Linear layers with LeakyReLU .2 behind each, but for a `last` one that stays linear."""
    found: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        found += [nn.Linear(n_in, n_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*(found[:-1] if last else found))


def kaiming(net: nn.Sequential) -> nn.Sequential:
    """Kaiming-normal weights and zero biases of all linear layers."""
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, a=0.2, nonlinearity="leaky_relu")
            nn.init.zeros_(layer.bias)
    return net
