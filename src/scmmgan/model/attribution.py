"""Which source features drive a mapped one: integrated gradients through the generator, pulled back to features.

The path runs from the mean cell, the origin of model space. Everything but the generator is linear, so the gradients are
integrated in model space, p numbers a cell, and the encoder carries them back exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

N_STEPS = 64  # Gauss-Legendre nodes of the path
BATCH = 16_384  # points of the path that are mapped at one time


@dataclass(frozen=True)
class PathGradients:
    """Gradients of mapped features, averaged over the path from the mean cell to each cell.

    `gradient` (features × n × p); `mapped` (features × n) and `baseline` (features,): predictions for the cells and for
    the mean cell, without the features' means.
    """

    gradient: np.ndarray
    mapped: np.ndarray
    baseline: np.ndarray

    def gap(self, x: np.ndarray) -> np.ndarray:
        """|Σ attributions − difference of predictions| of each feature, over the mean difference (features,)."""
        explained = np.einsum("fnp,np->fn", self.gradient, x)
        difference = self.mapped - self.baseline[:, None]
        return np.abs(explained - difference).mean(1) / np.maximum(np.abs(difference).mean(1), 1e-12)


def path_gradients(generator: nn.Module, x: np.ndarray, loadings: np.ndarray) -> PathGradients:
    """∫₀¹ ∂y_f(α x) / ∂x dα for cells x (n × p) and mapped features y = G(x) · loadings (p' × features)."""
    from captum.attr import IntegratedGradients

    generator = generator.eval()
    # a copy: torch warns of arrays that it could not write to
    cells, decoder = (torch.from_numpy(np.array(v, dtype=np.float32)) for v in (x, loadings))

    def predict(at: Tensor) -> Tensor:
        return generator(at) @ decoder

    integrated = IntegratedGradients(predict, multiply_by_inputs=False)
    gradient = [
        integrated.attribute(cells, target=f, n_steps=N_STEPS, method="gausslegendre", internal_batch_size=BATCH)
        for f in range(decoder.shape[1])
    ]
    with torch.inference_mode():
        mapped, baseline = predict(cells), predict(torch.zeros_like(cells[:1]))
    return PathGradients(np.stack([g.numpy() for g in gradient]), mapped.T.numpy(), baseline[0].numpy())


def pull_back(
    gradient: np.ndarray, weights: np.ndarray, deviations: Callable[[slice], np.ndarray], *, block: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Mean |attribution| over cells and signed slope of every source feature (both mapped features × source features).

    Attribution of a source feature in a cell: gradient (features × n × p) · its column of `weights` (p × e, model space
    per unit of the feature) times its deviation from the mean (n × e, asked for a block at a time). Slope: least squares
    of the attributions on the deviations, through the origin, times the feature's spread.
    """
    size, slope = (np.zeros((len(gradient), weights.shape[1])) for _ in range(2))
    for start in range(0, weights.shape[1], block):
        at = slice(start, start + block)
        away = deviations(at)
        spread = np.sqrt((away**2).mean(0))
        for f, of in enumerate(gradient):
            found = (of @ weights[:, at]) * away
            size[f, at] = np.abs(found).mean(0)
            slope[f, at] = (found * away).mean(0) / np.maximum(spread, 1e-12)
    return size, slope
