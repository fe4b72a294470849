"""Features ⇄ model space: z-score, PCA, one scale; and back, by the inverse or a regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from scmmgan.model.defaults import BLOCK, DECODER_RIDGE, DECODER_RIDGES, LEFT_OUT_CELLS, N_DISPERSED
from scmmgan.model.space.linear import column_blocks, constant, solve_ridge
from scmmgan.model.space.pca import Standardized, dispersed, dispersion, principal_axes
from scmmgan.model.space.smoothing import Matrix


@dataclass(frozen=True)
class Transform:
    """Maps features to model space and back; every field is a plain array.

    `mean`, `sd` (g): statistics of the smoothed training cells. `encoder` (p × e): loadings of the `encoded` features.
    `decoder` (p × g): the same loadings, and ridge regression for features outside the PCA. `scale`: one number.
    `penalty`: of that regression, of the mean variance. `lowest`: no decoded value is lower (0 where the layer has no
    negative values).
    """

    mean: np.ndarray
    sd: np.ndarray
    encoded: np.ndarray
    encoder: np.ndarray
    decoder: np.ndarray
    scale: np.ndarray
    penalty: np.ndarray = field(default_factory=lambda: np.asarray(DECODER_RIDGE))
    lowest: np.ndarray = field(default_factory=lambda: np.asarray(-np.inf))

    def transform(self, smoothed: Matrix) -> np.ndarray:
        """Model-space coordinates (n × p, float32) of smoothed cells."""
        at = self.encoded
        z = Standardized(smoothed.take(at), self.mean[at], self.sd[at])
        return (z.dot(self.encoder.T) / self.scale).astype(np.float32)

    def inverse(self, y: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
        """Expression (n × g, float32) in the units of the smoothed layer, of all or of chosen feature positions."""
        at = slice(None) if features is None else features
        # the scale goes into the small matrix, so that only one cells × features array is made
        loadings = (float(self.scale) * self.decoder[:, at] * self.sd[at]).astype(np.float32)
        out = np.asarray(y, dtype=np.float32) @ loadings
        out += self.mean[at].astype(np.float32)
        return np.maximum(out, np.float32(self.lowest), out=out)

    def state(self) -> dict[str, np.ndarray]:
        """All fields as arrays."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Transform:
        """The transform that `state` came from."""
        return cls(**{name: np.asarray(value) for name, value in state.items()})


def fit_transform(
    smoothed: Matrix,
    *,
    n_pcs: int = 50,
    linked: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
) -> tuple[Transform, np.ndarray]:
    """Transform of one modality and its cells (n × p); the `linked` among the `allowed` features enter the PCA."""
    mean, sd = smoothed.moments()
    allowed = np.arange(len(mean)) if allowed is None else allowed
    chosen = dispersed(mean, sd, allowed, np.array([], dtype=int) if linked is None else linked)
    transforms, cells = _fit([smoothed], [mean], [sd], [chosen], n_pcs)
    return transforms[0], cells[0]


def fit_shared(
    smoothed: Sequence[Matrix], shared: Sequence[np.ndarray], *, n_pcs: int = 50
) -> tuple[list[Transform], list[np.ndarray]]:
    """Transforms into one space, and the cells: z-scores per modality, joint PCA on the shared features (in one order)."""
    moments = [s.moments() for s in smoothed]
    top = np.arange(len(shared[0]))
    if len(top) > N_DISPERSED:
        # dispersed in every modality: the sum of ranks
        scores = [dispersion(mean[at], sd[at]) for (mean, sd), at in zip(moments, shared)]
        ranks = np.sum([np.argsort(np.argsort(-score, kind="stable")) for score in scores], axis=0)
        top = np.sort(np.argsort(ranks, kind="stable")[:N_DISPERSED])
    return _fit(smoothed, [m for m, _ in moments], [s for _, s in moments], [at[top] for at in shared], n_pcs)


def identity_transform(smoothed: Matrix) -> tuple[Transform, np.ndarray]:
    """Transform of a representation that is model space already, and its cells: centred, one scale, nothing else."""
    mean, sd = smoothed.moments()
    p = len(mean)
    found = Transform(mean, np.ones(p), np.arange(p), np.eye(p), np.eye(p), np.asarray(np.sqrt((sd**2).mean())))
    return found, found.transform(smoothed)


def _fit(
    smoothed: Sequence[Matrix],
    means: Sequence[np.ndarray],
    sds: Sequence[np.ndarray],
    encoded: Sequence[np.ndarray],
    n_pcs: int,
) -> tuple[list[Transform], list[np.ndarray]]:
    """Joint PCA of z-scored matrices, every modality with the same total weight; ridge decoders for the rest."""
    constant = [sd == 0 for sd in sds]
    # a constant feature keeps its zeros: sd 0 becomes 1
    sds = [np.where(sd == 0, 1.0, sd) for sd in sds]
    parts = [Standardized(s.take(at), m[at], sd[at]) for s, m, sd, at in zip(smoothed, means, sds, encoded)]
    encoder = principal_axes(parts, min(n_pcs, sum(s.shape[0] for s in smoothed) - 1))
    scores = [z.dot(encoder.T) for z in parts]
    # one number per modality keeps the geometry; whitening would not
    scales = [max(float(np.sqrt((s**2).mean())), 1e-12) for s in scores]
    shared = len(parts) > 1
    if shared:
        scales = [float(np.sqrt(np.mean(np.square(scales))))] * len(parts)
    transforms, cells = [], []
    for s, mean, sd, at, still, x, scale in zip(smoothed, means, sds, encoded, constant, scores, scales):
        penalty = chosen_ridge(s, at, x) if shared else DECODER_RIDGE
        decoder = regressed(s, sd, x, penalty) if len(at) < len(mean) else np.zeros((len(encoder), len(mean)))
        decoder[:, at] = encoder
        # nothing that is mapped moves a feature that never moved
        decoder[:, still] = 0
        lowest = 0.0 if s.non_negative else -np.inf
        transforms.append(Transform(mean, sd, at, encoder, decoder, *map(np.asarray, (scale, penalty, lowest))))
        cells.append((x / scale).astype(np.float32))
    return transforms, cells


def regressed(matrix: Matrix, sd: np.ndarray, scores: np.ndarray, penalty: float) -> np.ndarray:
    """Loadings (p × g) of the z-scored features of a matrix: ridge regression on scores (n × p) of the same cells."""
    centred = scores.astype(np.float64) - scores.mean(0, dtype=np.float64)
    # Zᵀx without Z: x is centred, so the mean drops out
    return solve_ridge(centred.T @ centred, matrix.tdot(centred).T / sd, penalty)


def decoder_of(matrix: Matrix, scores: np.ndarray, transform: Transform) -> np.ndarray:
    """Decoder of other features of the same cells, as the transform's was learnt: a PCA's loadings are regressions, too."""
    at = transform.encoded
    out = regressed(matrix, transform.sd, scores, float(transform.penalty))
    out[:, at] = regressed(matrix.take(at), transform.sd[at], scores, 1e-9)
    return out


def chosen_ridge(smoothed: Matrix, encoded: np.ndarray, x: np.ndarray) -> float:
    """Penalty under which scores (n × p) of cells predict best what others measured of features outside the PCA.

    Leave-one-out errors over at most 256 features; of measured values, as smoothed ones are known from the neighbours.
    """
    from sklearn.linear_model import RidgeCV

    rng = np.random.default_rng(0)
    rest = np.setdiff1d(np.arange(smoothed.shape[1]), encoded)
    columns = np.sort(rng.permutation(rest)[:BLOCK])
    rows = np.sort(rng.permutation(len(x))[:LEFT_OUT_CELLS])
    values = np.hstack([smoothed.measured(columns[of])[rows] for of in column_blocks(len(x), len(columns))])
    y, x = values.astype(np.float64), x[rows] - x[rows].mean(0)
    y = y[:, ~constant(y.mean(0), y.std(0))]
    variance = float((x**2).sum(0).mean())
    if not y.shape[1] or variance < 1e-12:
        return DECODER_RIDGE
    search = RidgeCV(variance * np.array(DECODER_RIDGES)).fit(x, (y - y.mean(0)) / y.std(0))
    return float(search.alpha_ / variance)
