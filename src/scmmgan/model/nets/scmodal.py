"""scMODAL: latent cells that fool a critic, agree with mutual nearest neighbours over linked features, and keep geometry."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmmgan.model.defaults import MIN_TESTED_LINKS
from scmmgan.model.nets.autoencoder import Batch, Cells, Nets, System, adam, at_most
from scmmgan.model.problem import Known, Pair

logger = logging.getLogger("scmmgan")


class ScMODAL(System):
    """Several modalities are a chain in their order: one critic, one latent cycle and one set of links for each two."""

    latent = 20
    weights = {"adversarial": 1.0, "reconstruction": 10.0, "cycle": 10.0, "links": 1.0, "geometry": 10.0}
    max_steps, batch_size, lr = 10_000, 500, 1e-3
    geometry, geometries = "kernel", ("kernel", "centred")
    takes = ("links", "hidden")
    most = None
    critic_steps = 5
    clip = 5.0

    @staticmethod
    def networks(widths: Mapping[str, int], hidden: int | str | None) -> tuple[Nets, Nets]:
        """d-512-20 and 20-512-d of each modality; ReLU."""
        w = at_most(512, hidden)
        return {m: _layers(d, w, 20) for m, d in widths.items()}, {m: _layers(20, w, d) for m, d in widths.items()}

    @staticmethod
    def widest(widths: Mapping[str, int]) -> int:
        """The same for all data."""
        return 512

    def build(self) -> None:
        """A critic 20-512-512-1 for each two modalities in a row, and the columns of their links."""
        names, w = list(self.task.x), at_most(512, self.hidden)
        self.chain: list[Pair] = list(itertools.pairwise(names))
        self.linked: dict[Pair, tuple[Cells, Tensor]] = {}
        for pair in self.chain:
            known = self.task.problem.of(*pair)
            if known.links is None:
                raise ValueError(
                    f"`method='scmodal'` needs links of {pair[0]!r} and {pair[1]!r}, and none were found. Give `links`, or use "
                    "`method='scmodal-cca'`, which looks for them."
                )
            if known.n_links < MIN_TESTED_LINKS:
                logger.warning("%r and %r have %d links: mutual nearest neighbours over so few say little.", *pair, known.n_links)  # fmt: skip
            self.linked[pair] = self._columns(pair, known)
            self.critics[f"{pair[0]}, {pair[1]}"] = _layers(20, w, w, 1)

    def _columns(self, pair: Pair, known: Known) -> tuple[Cells, Tensor]:
        """Columns (l,) of what is read of both, and what those of the first are multiplied with before they are compared."""
        columns = {}
        kept = torch.ones(known.n_links, dtype=torch.bool)
        for m in pair:
            place = {int(feature): i for i, feature in enumerate(self.task.readings[m].read)}
            at = torch.tensor([place.get(int(feature), -1) for feature in known.positions(m)])
            kept &= at >= 0
            columns[m] = at
        if not bool(kept.any()) or known.links is None:
            raise ValueError(f"No link of {pair[0]!r} and {pair[1]!r} names features that are read. See `mask_var`.")
        device = self.task.x[pair[0]].device
        # both sides of a product, so that a link of weight w counts w times
        factor = torch.as_tensor(known.links.sign * known.links.weight, dtype=torch.float32)[kept].to(device)
        return {m: at[kept].to(device) for m, at in columns.items()}, factor

    def optimizers(self, lr: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
        """Adam for both sides."""
        critic = [p for net in self.critics.values() for p in net.parameters()]
        return adam(self.parameters(), lr=lr, weight_decay=1e-3), adam(critic, lr=lr, weight_decay=1e-3)

    def critic_loss(self, batch: Batch) -> Tensor:
        """Each first modality is real."""
        z = batch.z
        return torch.stack(
            [critic_loss(self._logits((a, b), z[a]), self._logits((a, b), z[b])) for a, b in self.chain]
        ).sum()

    def _logits(self, pair: Pair, z: Tensor) -> Tensor:
        return self.critics[f"{pair[0]}, {pair[1]}"](z).clamp(-50, 50)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """All losses; the adversary is a minimax game: encoders maximise what the critic minimises."""
        found = {
            "adversarial": -self.critic_loss(batch),
            "reconstruction": self.reconstruction(batch),
            "cycle": self.latent_cycle(batch.z, self.chain),
            "links": torch.stack([self._neighbors(pair, batch) for pair in self.chain]).sum(),
        }
        if self.task.geometry is not None:
            loss = kernel_loss if self.task.geometry == "kernel" else centred_loss
            found["geometry"] = torch.stack([loss(batch.x[m], z) for m, z in batch.z.items()]).sum()
        return found

    def _neighbors(self, pair: Pair, batch: Batch) -> Tensor:
        (a, b), (columns, factor) = pair, self.linked[pair]
        root = factor.abs().sqrt()
        mutual = mutual_neighbors(batch.x[a][:, columns[a]] * root * factor.sign(), batch.x[b][:, columns[b]] * root)
        return neighbor_loss(batch.z[a], batch.z[b], mutual)


def critic_loss(real: Tensor, other: Tensor) -> Tensor:
    """Mean softplus(-D(real)) + mean softplus(D(other)) of logits."""
    return F.softplus(-real).mean() + F.softplus(other).mean()


def mutual_neighbors(a: Tensor, b: Tensor, k: int = 30) -> Tensor:
    """Which cells (n × n') are among each other's k nearest by angle; `a` (n × l), `b` (n' × l)."""
    cosine = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    near = []
    for of in (cosine, cosine.T):
        chosen = torch.zeros_like(of, dtype=torch.bool)
        near.append(chosen.scatter_(1, of.topk(min(k, of.shape[1]), dim=1).indices, True))
    return near[0] & near[1].T


def neighbor_loss(a: Tensor, b: Tensor, mutual: Tensor) -> Tensor:
    """Mean over mutual neighbours (n × n') of the mean squared difference of latent cells; 0 without any."""
    distance = ((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T) / a.shape[1]
    return (mutual * distance).sum() / mutual.sum().clamp(min=1)


def _kernel(u: Tensor) -> Tensor:
    """exp(-½ mean squared difference) of all rows of a batch."""
    squares = (u**2).sum(1)
    return (-(squares[:, None] + squares - 2 * u @ u.T).clamp(min=0) / (2 * u.shape[1])).exp()


def kernel_loss(x: Tensor, z: Tensor) -> Tensor:
    """- mean over cells of the cosine between their rows of the kernels of x and z, at most .975, as published.

    On many features the kernel of x is nearly the same everywhere, and so a collapsed z is rewarded.
    """
    return -F.cosine_similarity(_kernel(x), _kernel(z), dim=1).clamp(max=0.975).mean()


def centred_loss(x: Tensor, z: Tensor) -> Tensor:
    """The same without the diagonal and with the mean of each row taken off: a collapsed z has 0."""
    cosine = F.cosine_similarity(_centred(_kernel(x)), _centred(_kernel(z)), dim=1, eps=1e-12)
    return -cosine.mean()


def _centred(kernel: Tensor) -> Tensor:
    """Rows without their own entry, around their mean."""
    off = 1 - torch.eye(len(kernel), device=kernel.device, dtype=kernel.dtype)
    return (kernel - (kernel * off).sum(1, keepdim=True) / (len(kernel) - 1)) * off


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them; weights and biases N(0, .1)."""
    found: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layer = nn.Linear(n_in, n_out)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, 0.0, 0.1)
        found += [layer, nn.ReLU()]
    return nn.Sequential(*found[:-1])
