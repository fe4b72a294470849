"""Networks (METHOD §4): generators between model spaces and one discriminator per modality."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
    """MLP 256-128 from model space to one logit; no batch norm, so that a cell is judged alone."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.body = mlp(n_in, (256, 128), 1, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,) that are high for measured cells."""
        return self.body(x)[:, 0]
