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

from scmmgan.model.defaults import BLOCK, PATH_BATCH, PATH_NODES
from scmmgan.model.nets.pinned import pinned


def check_captum() -> None:
    """ImportError that says what to install."""
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "`tl.importance` needs captum. Install it with `pip install 'scmmgan[interpret]'`."
        ) from error


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


@pinned()
def path_gradients(generator: nn.Module, x: np.ndarray, loadings: np.ndarray) -> PathGradients:
    """∫₀¹ ∂y_f(α x) / ∂x dα for cells x (n × p) and mapped features y = G(x) · loadings (p' × features)."""
    from captum.attr import IntegratedGradients

    generator = generator.eval()
    # a copy: torch warns of arrays that it could not write to
    cells, decoder = (torch.from_numpy(np.array(v, dtype=np.float32)) for v in (x, loadings))

    def predict(at: Tensor) -> Tensor:
        # a generator into a tissue emits coordinates after the features
        return generator(at)[:, : len(decoder)] @ decoder

    integrated = IntegratedGradients(predict, multiply_by_inputs=False)
    gradient = [
        integrated.attribute(
            cells, target=f, n_steps=PATH_NODES, method="gausslegendre", internal_batch_size=PATH_BATCH
        )
        for f in range(decoder.shape[1])
    ]
    with torch.inference_mode():
        mapped, baseline = predict(cells), predict(torch.zeros_like(cells[:1]))
    return PathGradients(np.stack([g.numpy() for g in gradient]), mapped.T.numpy(), baseline[0].numpy())


@dataclass(frozen=True)
class Attributions:
    """Over cells, mapped features × source features: mean |attribution|, share of the prediction's variation, slope."""

    size: np.ndarray
    share: np.ndarray
    slope: np.ndarray


def pull_back(
    gradient: np.ndarray,
    x: np.ndarray,
    weights: np.ndarray,
    deviations: Callable[[slice], np.ndarray],
    *,
    block: int = BLOCK,
) -> Attributions:
    """Carry path gradients (features × n × p) of cells x (n × p) back to source features, a block of them at a time.

    Attribution A_f of a source feature in a cell: its column of `weights` (p × e, model space per unit of the feature)
    · gradient, times its deviation from the mean (`deviations`, n × block). Share: Σ_cells A_f Δ / Σ_cells Δ² with Δ the
    sum of all attributions, so that shares add up to 1 and the k largest are the k features that together make up most of
    Δ. Slope: least squares of A_f on the deviations, through the origin, per spread of the feature.
    """
    size, share, slope = (np.zeros((len(gradient), weights.shape[1])) for _ in range(3))
    total = np.einsum("fnp,np->fn", gradient.astype(np.float64), x)
    for start in range(0, weights.shape[1], block):
        at = slice(start, start + block)
        away = deviations(at)
        spread = np.sqrt((away**2).mean(0))
        for f, of in enumerate(gradient):
            found = (of @ weights[:, at]) * away
            size[f, at] = np.abs(found).mean(0)
            share[f, at] = total[f] @ found / max(float(total[f] @ total[f]), 1e-300)
            slope[f, at] = (found * away).mean(0) / np.maximum(spread, 1e-12)
    return Attributions(size, share, slope)
