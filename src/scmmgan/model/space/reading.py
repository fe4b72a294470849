"""Features as autoencoders read them, z-scored and not smoothed, and the way back from a latent space to all features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from scmmgan.model.defaults import DECODER_RIDGE, MAX_ZSCORE
from scmmgan.model.problem import Modality, Values
from scmmgan.model.space.graphs import smoothed
from scmmgan.model.space.pca import Standardized, dispersed, principal_axes
from scmmgan.model.space.smoothing import Matrix
from scmmgan.model.space.transform import regressed


@dataclass(frozen=True)
class Reading:
    """What a method reads of a modality; every field is a plain array.

    `mean`, `sd` (g): of the training cells. `read` (e): positions of the features that are read. `axes` (p × e): principal
    axes of their z-scores, over `scale`; 0 × e where the z-scores themselves are read, which are clipped. `loadings` (q × g):
    ridge regression of the z-scores of all features on latent cells, whose mean is `middle` (q,). `lowest`: no decoded
    value is lower (0 where the layer has no negative values).
    """

    mean: np.ndarray
    sd: np.ndarray
    read: np.ndarray
    axes: np.ndarray
    scale: np.ndarray
    lowest: np.ndarray
    loadings: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    middle: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def width(self) -> int:
        """Of what is read of a cell."""
        return len(self.axes) or len(self.read)

    def of_matrix(self, matrix: Matrix) -> np.ndarray:
        """What is read (n × p, float32) of the cells of a matrix."""
        if len(self.axes):
            z = Standardized(matrix.take(self.read), self.mean[self.read], self.sd[self.read])
            return (z.dot(self.axes.T) / self.scale).astype(np.float32)
        return self._zscores(matrix.columns(self.read), np.arange(len(self.read)))

    def of_values(self, values: Values, columns: np.ndarray) -> np.ndarray:
        """The same of new cells, from their values (n × g') of the features `columns`; those not there count as their mean."""
        _, own, at = np.intersect1d(self.read, columns, return_indices=True)
        block = values[:, at]
        x = np.zeros((values.shape[0], len(self.read)), dtype=np.float32)
        x[:, own] = self._zscores(block if isinstance(block, np.ndarray) else block.toarray(), own)
        return (x @ self.axes.T / self.scale).astype(np.float32) if len(self.axes) else x

    def _zscores(self, values: np.ndarray, own: np.ndarray) -> np.ndarray:
        at = self.read[own]
        z = (values - self.mean[at].astype(np.float32)) / self.sd[at].astype(np.float32)
        return z if len(self.axes) else np.clip(z, -MAX_ZSCORE, MAX_ZSCORE)

    def inverse(self, decoded: np.ndarray, z: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Values (n × f, float32) of features (f,) from what a decoder gave (n × p) for latent cells z (n × q).

        Features that are not read are predicted from z.
        """
        out = ((z - self.middle) @ self.loadings[:, features]).astype(np.float32)
        place = np.full(len(self.mean), -1)
        place[self.read] = np.arange(len(self.read))
        at = place[features]
        if len(self.axes):
            out[:, at >= 0] = decoded @ (self.axes[:, at[at >= 0]] * self.scale).astype(np.float32)
        else:
            out[:, at >= 0] = decoded[:, at[at >= 0]]
        out *= self.sd[features].astype(np.float32)
        out += self.mean[features].astype(np.float32)
        return np.maximum(out, np.float32(self.lowest), out=out)

    def learnt(self, matrix: Matrix, z: np.ndarray) -> Reading:
        """With the regression of all features on the latent cells (n × q) of a matrix."""
        loadings = regressed(matrix, self.sd, z, DECODER_RIDGE).astype(np.float32)
        return replace(self, loadings=loadings, middle=z.mean(0, dtype=np.float64).astype(np.float32))

    def state(self) -> dict[str, np.ndarray]:
        """All fields as arrays."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Reading:
        """The reading that `state` came from."""
        return cls(**{name: np.asarray(value) for name, value in state.items()})


def fit_reading(modality: Modality, linked: np.ndarray, *, n_pcs: int = 0) -> tuple[Reading, Matrix]:
    """How a modality is read, and its matrix: the 2,000 most dispersed features and the linked ones; or their `n_pcs` scores."""
    matrix = smoothed(modality, [], 0)
    mean, sd = matrix.moments()
    allowed = np.arange(len(mean)) if modality.allowed is None or modality.embedded else modality.allowed
    chosen = dispersed(mean, sd, allowed, linked)
    # what never varies says nothing, and has no sd
    read = chosen[sd[chosen] > 0]
    sd = np.where(sd == 0, 1.0, sd)
    axes, scale = np.empty((0, len(read))), 1.0
    if n_pcs:
        z = Standardized(matrix.take(read), mean[read], sd[read])
        axes = principal_axes([z], min(n_pcs, matrix.shape[0] - 1))
        # one number keeps the geometry
        scale = max(float(np.sqrt((z.dot(axes.T) ** 2).mean())), 1e-12)
    lowest = 0.0 if matrix.non_negative else -np.inf
    return Reading(mean, sd, read, axes, np.asarray(scale), np.asarray(lowest)), matrix
