"""Features ⇄ model space: smooth, z-score, PCA, one scale; and back, by the inverse or a regression (METHOD §2).

Smoothing is linear, so it is applied inside matrix products: nothing cells × features is made from a sparse matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds
from sklearn.utils.extmath import svd_flip

from scmmgan.model.coupling import views as evidence
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.smoothing import BLOCK, BatchedMatrix, Matrix, SmoothedMatrix

N_DISPERSED = 2_000  # features that enter the PCA, next to the linked ones
MINOR = 1e-3  # ridge of features in the PCA that are regressed: no component is so small that its errors are blown up
RIDGE = 1.0  # of the mean variance: minor components of a mapped cell tell little of features outside the PCA
# in a shared space these features are what one side alone measured, and the penalty is chosen (benchmarks/accuracy.md)
RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1)
LEFT_OUT = 5_000  # cells that are left out in turn to choose


@dataclass(frozen=True)
class Transform:
    """Maps features to model space and back; every field is a plain array.

    `mean`, `sd` (g): statistics of the smoothed training cells. `encoder` (p × e): loadings of the `encoded` features.
    `decoder` (p × g): the same loadings, and ridge regression for features outside the PCA. `scale`: one number.
    Of cells that keep a share of their own values (`decoding_to`) `encoder` are the loadings in units of `sd`, `offset`
    (p) what these cells have for a mean beyond the smoothed ones, and all of the decoder is regressed. `penalty`: of features
    outside the PCA, of the mean variance.
    """

    mean: np.ndarray
    sd: np.ndarray
    encoded: np.ndarray
    encoder: np.ndarray
    decoder: np.ndarray
    scale: np.ndarray
    offset: np.ndarray = field(default_factory=lambda: np.asarray(0.0))
    penalty: np.ndarray = field(default_factory=lambda: np.asarray(RIDGE))

    def transform(self, smoothed: Matrix) -> np.ndarray:
        """Model-space coordinates (n × p, float32) of cells as those that it was fitted on (`Domain.cells`)."""
        weights = np.zeros((smoothed.shape[1], len(self.encoder)))
        weights[self.encoded] = self.encoder.T / self.sd[self.encoded, None]
        return ((smoothed.dot(weights) - self.mean @ weights - self.offset) / self.scale).astype(np.float32)

    def inverse(self, y: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
        """Expression (n × g, float32) in the units of the smoothed layer, of all or of chosen feature positions."""
        at = slice(None) if features is None else features
        # the scale goes into the small matrix, so that only one cells × features array is made
        loadings = (float(self.scale) * self.decoder[:, at] * self.sd[at]).astype(np.float32)
        out = np.asarray(y, dtype=np.float32) @ loadings
        out += self.mean[at].astype(np.float32)
        return out

    def state(self) -> dict[str, np.ndarray]:
        """All fields as arrays."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}


def dispersed(mean: np.ndarray, sd: np.ndarray, allowed: np.ndarray, linked: np.ndarray) -> np.ndarray:
    """Positions of the features that enter the PCA: all allowed up to 2,000, else the most dispersed and the linked."""
    if len(allowed) <= N_DISPERSED:
        return allowed
    magnitude = np.abs(mean[allowed])
    score = sd[allowed] ** 2 / np.maximum(magnitude, 1e-3 * magnitude.mean() + 1e-12)
    top = allowed[np.argsort(-score, kind="stable")[:N_DISPERSED]]
    return np.union1d(top, np.intersect1d(linked, allowed))


def fit_operator(
    x: np.ndarray | sp.csr_matrix,
    *,
    allowed: np.ndarray | None = None,
    n_pcs: int = 50,
    n_neighbors: int = 15,
    random_state: int = 0,
) -> sp.csr_matrix:
    """Smoothing operator of the cells' kNN graph on the leading PCs of the z-scored matrix."""
    scores = _graph_scores(x, allowed, n_pcs)
    return smoothing_operator(scores, n_neighbors=n_neighbors, random_state=random_state)


def fit_smoothed(
    x: np.ndarray | sp.csr_matrix,
    t: int,
    *,
    rows: Sequence[np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    denoise: bool = False,
    random_state: int = 0,
) -> tuple[Matrix, np.ndarray | None]:
    """The matrix smoothed by t steps, inside batches (`rows` of each); and how well neighbours bear out each label.

    Inside labels (codes, -1: none), too, those that are borne out: others would be written into the data. `denoise`:
    neighbours are looked for on denoised components.
    """
    parts = [x] if rows is None else [x[r] for r in rows]
    operators: list[sp.csr_matrix | None] = [None] * len(parts)
    found = None
    if t:
        spaces = [_graph_scores(part, allowed, denoise=denoise) for part in parts]
        own: list[np.ndarray | None] = [None] * len(parts)
        if labels is not None:
            of = [labels] if rows is None else [labels[r] for r in rows]
            found = evidence.borne_out(spaces, of)
            believed = np.flatnonzero(found >= evidence.MIN_BORNE_OUT)
            own = [np.where(np.isin(codes, believed), codes, -1) for codes in of]
        operators = [smoothing_operator(z, labels=c, random_state=random_state) for z, c in zip(spaces, own)]
    matrices = [SmoothedMatrix(part, operator, t) for part, operator in zip(parts, operators)]
    return matrices[0] if rows is None else BatchedMatrix(matrices, rows), found


def _graph_scores(
    x: np.ndarray | sp.csr_matrix, allowed: np.ndarray | None, n_pcs: int = 50, *, denoise: bool = False
) -> np.ndarray:
    raw = SmoothedMatrix(x)
    transform = fit_transform(raw, n_pcs=n_pcs, allowed=allowed)
    scores = transform.transform(raw)
    if not denoise:
        return scores
    # features that never vary have no decoder
    return denoised(scores, float(transform.scale), int(transform.decoder[:, transform.encoded].any(0).sum()))


def denoised(scores: np.ndarray, unit: float, n_features: int) -> np.ndarray:
    """Scores (n × p) of z-scored features, each component shrunk by its share of noise (Gavish and Donoho 2017).

    `unit`: of the scores, in sds of a feature. Noise is what the `n_features` vary by beside the components that rise
    above it: an estimate from below unless components are few beside cells and features, so that too little is taken away.
    As they were where there are no features beside the components, or fewer than two that rise.
    """
    n, p = scores.shape
    variance = np.square(scores, dtype=np.float64).mean(0) * unit**2
    largest, ratio, above = np.sort(variance)[::-1], n_features / n, p
    if n_features <= p:
        return scores
    while True:
        noise = max((n_features - largest[:above].sum()) / (n_features - above), 1e-12)
        least = noise * (1 + np.sqrt(ratio)) ** 2
        # fewer components leave more to the noise, so this comes to an end
        if (found := int((largest[:above] > least).sum())) == above:
            break
        above = found
    if above < 2:
        return scores
    value = variance / noise
    shrunk = np.sqrt(np.maximum((value - ratio - 1) ** 2 - 4 * ratio, 0)) / np.maximum(value, 1e-12)
    return (scores * np.where(variance > least, shrunk, 0)).astype(np.float32)


def fit_transform(
    smoothed: Matrix,
    *,
    n_pcs: int = 50,
    linked: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
) -> Transform:
    """Fit the transform of one modality; `allowed` features may enter the PCA, the `linked` among them always do."""
    mean, sd = smoothed.moments()
    allowed = np.arange(len(mean)) if allowed is None else allowed
    chosen = dispersed(mean, sd, allowed, np.array([], dtype=int) if linked is None else linked)
    return _fit([smoothed], [mean], [sd], [chosen], n_pcs)[0]


def decoding_to(smoothed: Matrix, transform: Transform, x: np.ndarray) -> Transform:
    """The transform (of cells x that keep a share of their own values) that decodes to the smoothed layer, in its units.

    By regressions on these cells: what is only a cell's own tells nothing of the layer.
    """
    mean, sd = smoothed.moments()
    # nothing that is mapped moves a feature that never moved
    still = (sd == 0) | ~transform.decoder.any(0)
    sd = np.where(sd == 0, 1.0, sd)
    at = transform.encoded
    units = sd[at] / transform.sd[at]
    offset = (transform.mean - mean)[at] @ (transform.encoder / transform.sd[at]).T
    found = replace(transform, mean=mean, sd=sd, encoder=transform.encoder * units, offset=offset)
    decoder = decoder_of(smoothed, x * float(transform.scale), found)
    return replace(found, decoder=np.where(still, 0, decoder))


def decoder_of(matrix: Matrix, scores: np.ndarray, transform: Transform) -> np.ndarray:
    """Loadings (p × g) of features of the same cells: regressions on the scores, ridge ones where the transform's are."""
    centred = scores.astype(np.float64) - scores.mean(0, dtype=np.float64)
    gram = centred.T @ centred
    cross = matrix.tdot(centred).T / transform.sd
    mean = np.trace(gram) / len(gram)
    # scores of no variance at all carry nothing
    out = np.linalg.solve(gram + max(float(transform.penalty) * mean, 1e-12) * np.eye(len(gram)), cross)
    at = transform.encoded
    # loadings of a PCA are regressions without a penalty
    penalty = MINOR if transform.offset.ndim else 1e-9
    out[:, at] = np.linalg.solve(gram + max(penalty * mean, 1e-12) * np.eye(len(gram)), cross[:, at])
    return out


def identity_transform(smoothed: Matrix) -> Transform:
    """Transform of a representation that is model space already: centred, one scale, nothing else."""
    mean, sd = smoothed.moments()
    p = len(mean)
    return Transform(mean, np.ones(p), np.arange(p), np.eye(p), np.eye(p), np.asarray(np.sqrt((sd**2).mean())))


def fit_shared(smoothed: Sequence[Matrix], shared: Sequence[np.ndarray], *, n_pcs: int = 50) -> list[Transform]:
    """Fit transforms into one space: z-scores per modality, joint PCA on the shared features (same order in each)."""
    moments = [s.moments() for s in smoothed]
    top = np.arange(len(shared[0]))
    if len(top) > N_DISPERSED:
        # dispersed in every modality: the sum of ranks
        scores = [sd[at] ** 2 / np.maximum(np.abs(mean[at]), 1e-6) for (mean, sd), at in zip(moments, shared)]
        ranks = np.sum([np.argsort(np.argsort(-score, kind="stable")) for score in scores], axis=0)
        top = np.sort(np.argsort(ranks, kind="stable")[:N_DISPERSED])
    return _fit(smoothed, [m for m, _ in moments], [s for _, s in moments], [at[top] for at in shared], n_pcs)


def _fit(
    smoothed: Sequence[Matrix],
    means: Sequence[np.ndarray],
    sds: Sequence[np.ndarray],
    encoded: Sequence[np.ndarray],
    n_pcs: int,
) -> list[Transform]:
    """Joint PCA of z-scored matrices, every modality with the same total weight; ridge decoders for the rest."""
    constant = [sd == 0 for sd in sds]
    # a constant feature keeps its zeros: sd 0 becomes 1
    sds = [np.where(sd == 0, 1.0, sd) for sd in sds]
    scaled = [_Standardized(s, mean, sd, at) for s, mean, sd, at in zip(smoothed, means, sds, encoded)]
    p = max(1, min(n_pcs, len(encoded[0]), sum(s.shape[0] for s in smoothed) - 1))
    encoder = _principal_axes(scaled, p)
    scores = [z.dot(encoder.T) for z in scaled]
    shared = len(scaled) > 1
    # one number per modality keeps the geometry; whitening would not
    scales = [max(float(np.sqrt((s**2).mean())), 1e-12) for s in scores]
    if shared:
        scales = [float(np.sqrt(np.mean(np.square(scales))))] * len(scaled)
    penalties = [chosen_ridge(*of) if shared else RIDGE for of in zip(smoothed, encoded, scores)]
    decoders = [_decoder(*of) for of in zip(smoothed, means, sds, encoded, [encoder] * len(scores), scores, penalties)]
    for decoder, at in zip(decoders, constant):
        # nothing that is mapped moves a feature that never moved
        decoder[:, at] = 0
    of_each = zip(means, sds, encoded, decoders, scales, penalties)
    return [
        Transform(mean, sd, at, encoder, decoder, np.asarray(scale), penalty=np.asarray(penalty))
        for mean, sd, at, decoder, scale, penalty in of_each
    ]


class _Standardized:
    """Z = (S - 1 μᵀ) / sd on chosen columns, as products only."""

    def __init__(self, smoothed: Matrix, mean: np.ndarray, sd: np.ndarray, at: np.ndarray) -> None:
        self.smoothed, self.at, self.shape = smoothed, at, (smoothed.shape[0], len(at))
        self.mean, self.sd = mean[at], sd[at]

    def dot(self, v: np.ndarray) -> np.ndarray:
        v = v / self.sd[:, None]
        full = np.zeros((self.smoothed.shape[1], v.shape[1]))
        full[self.at] = v
        return self.smoothed.dot(full) - self.mean @ v

    def tdot(self, u: np.ndarray) -> np.ndarray:
        return (self.smoothed.tdot(u)[self.at] - np.outer(self.mean, u.sum(0))) / self.sd[:, None]


def _principal_axes(scaled: Sequence[_Standardized], p: int) -> np.ndarray:
    """Leading eigenvectors (p × e) of the mean covariance over modalities."""
    e, rows = scaled[0].shape[1], [z.shape[0] for z in scaled]
    if e <= 512 or p > e // 4:
        gram = np.zeros((e, e))
        for z in scaled:
            for start in range(0, e, BLOCK):
                unit = np.eye(e)[:, start : start + BLOCK]
                gram[:, start : start + BLOCK] += z.tdot(z.dot(unit)) / z.shape[0]
        values, vectors = np.linalg.eigh((gram + gram.T) / 2)
        axes = vectors[:, np.argsort(-values, kind="stable")[:p]].T
    else:
        splits = np.cumsum(rows)[:-1]

        def matmat(v: np.ndarray) -> np.ndarray:
            return np.vstack([z.dot(v.reshape(e, -1)) / np.sqrt(n) for z, n in zip(scaled, rows)])

        def rmatmat(u: np.ndarray) -> np.ndarray:
            parts = np.split(u.reshape(sum(rows), -1), splits)
            return np.sum([z.tdot(part) / np.sqrt(n) for z, part, n in zip(scaled, parts, rows)], axis=0)

        operator = LinearOperator(
            (sum(rows), e), matvec=matmat, rmatvec=rmatmat, matmat=matmat, rmatmat=rmatmat, dtype=np.float64
        )
        # a fixed start vector: ARPACK's own is random
        v0 = np.random.default_rng(0).normal(size=min(operator.shape))
        _, values, axes = svds(operator, k=p, v0=v0)
        axes = axes[np.argsort(-values, kind="stable")]
    return svd_flip(None, axes, u_based_decision=False)[1]


def chosen_ridge(smoothed: Matrix, encoded: np.ndarray, x: np.ndarray) -> float:
    """Penalty under which scores (n × p) of cells tell best what others measured of features outside the PCA.

    Leave-one-out errors over at most 256 features; of measured values, as smoothed ones are known from the neighbours.
    """
    from sklearn.linear_model import RidgeCV

    rng = np.random.default_rng(0)
    rest = np.setdiff1d(np.arange(smoothed.shape[1]), encoded)
    values = smoothed.measured(np.sort(rng.permutation(rest)[:BLOCK]))
    rows = np.sort(rng.permutation(len(x))[:LEFT_OUT])
    y, x = values[rows].astype(np.float64), x[rows] - x[rows].mean(0)
    y = y[:, y.std(0) > 1e-6]
    variance = float((x**2).sum(0).mean())
    if not y.shape[1] or variance < 1e-12:
        return RIDGE
    search = RidgeCV(variance * np.array(RIDGES)).fit(x, (y - y.mean(0)) / y.std(0))
    return float(search.alpha_ / variance)


def _decoder(
    smoothed: Matrix,
    mean: np.ndarray,
    sd: np.ndarray,
    encoded: np.ndarray,
    encoder: np.ndarray,
    x: np.ndarray,
    ridge: float,
) -> np.ndarray:
    """Loadings of all features: the PCA's own, and ridge regression on the scores for those outside of it."""
    decoder = np.zeros((len(encoder), len(mean)))
    rest = np.setdiff1d(np.arange(len(mean)), encoded)
    if len(rest):
        gram = x.T @ x
        # cells that are all alike have no scores at all
        penalty = max(ridge * np.trace(gram) / len(gram), 1e-12) * np.eye(len(gram))
        # Zᵀx without Z: x is centred up to rounding, so the mean drops out
        cross = smoothed.tdot(x - x.mean(0))[rest] / sd[rest, None]
        decoder[:, rest] = np.linalg.solve(gram + penalty, cross.T)
    decoder[:, encoded] = encoder
    return decoder
