"""Baselines: what little it takes to score as high as a method, in one space of all modalities. No networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scmmgan.model.coupling.views import unit_rows
from scmmgan.model.defaults import BASELINE_WIDTH, CCA_RIDGE, MIN_LINKS, N_CANONICAL, N_PCS
from scmmgan.model.nets.latent import Fitted
from scmmgan.model.problem import Known, Links, Problem
from scmmgan.model.space.linear import canonical_axes, constant
from scmmgan.model.space.reading import Reading, fit_reading
from scmmgan.model.space.smoothing import Matrix

Cells = dict[str, np.ndarray]  # by modality, one row for each cell


@dataclass(frozen=True)
class Read:
    """What a baseline starts from: principal components (n × p) of all modalities, their values and all that is known."""

    problem: Problem
    x: Cells
    matrices: Mapping[str, Matrix]
    readings: Mapping[str, Reading]
    random_state: int

    @classmethod
    def of(cls, problem: Problem, random_state: int) -> Read:
        """At most 50 components of each modality, not smoothed."""
        nothing = np.empty(0, dtype=int)
        found = {m: fit_reading(of, nothing, n_pcs=N_PCS) for m, of in problem.modalities.items()}
        x = {m: reading.of_matrix(matrix).astype(np.float64) for m, (reading, matrix) in found.items()}
        matrices = {m: matrix for m, (_, matrix) in found.items()}
        readings = {m: reading for m, (reading, _) in found.items()}
        return cls(problem, x, matrices, readings, random_state)

    @property
    def known(self) -> Known:
        """What is known of the two modalities of a baseline for two."""
        return next(iter(self.problem.known.values()))

    def linked(self, links: Links) -> Cells:
        """z-scores (n × links) of linked features of the two modalities, times sign and root of the weight."""
        root, found = np.sqrt(links.weight), {}
        for m, at, sign in zip(self.known.names, (links.first, links.second), (links.sign, np.ones(len(links)))):
            found[m] = zscores(self.matrices[m].columns(at).astype(np.float64)) * (root * sign)
        return found


class Regressed:
    """Values of all features by ridge regression on the cells' place in the joint space."""

    def __init__(self, readings: Mapping[str, Reading]) -> None:
        self.readings = dict(readings)

    def decode(self, z: np.ndarray, target: str, features: np.ndarray) -> np.ndarray:
        """Values (n × f, float32) of the target's features, of cells (n × q)."""
        of = self.readings[target]
        out = (z - of.middle) @ of.loadings[:, features] * of.sd[features] + of.mean[features]
        return np.maximum(out, of.lowest).astype(np.float32)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Nothing: a baseline maps no new cells."""
        return {}, {}


def fit(name: str, problem: Problem, settings: Mapping[str, Any]) -> Fitted:
    """The joint space of a baseline, and regressions of all features on it."""
    baseline = BASELINES[name]
    _check(name, baseline, problem)
    read = Read.of(problem, settings["random_state"])
    z = {m: of.astype(np.float32) for m, of in baseline.embed(read).items()}
    model = Regressed({m: of.learnt(read.matrices[m], z[m]) for m, of in read.readings.items()})
    return Fitted(z, model)


def _check(name: str, baseline: Baseline, problem: Problem) -> None:
    """ValueError where what a baseline needs is not there."""
    for needs in baseline.needs:
        for (a, b), known in problem.known.items():
            if getattr(known, needs) is None:
                how = (
                    ""
                    if needs == "links"
                    else f" (`scmmgan.tl.compare`: by `arguments={{{needs!r}: ...}}`, others only score)"
                )
                raise ValueError(
                    f"`method={name!r}` needs `{needs}`, and there are none of {a!r} and {b!r}. Give them{how}, or use "
                    "another baseline."
                )


def zscores(values: np.ndarray) -> np.ndarray:
    """z-scores of columns; 0 where they differ by rounding only."""
    mean, sd = values.mean(0), values.std(0)
    still = constant(mean, sd)
    return np.where(still, 0, (values - mean) / np.where(still, 1, sd))


# --- baselines ---------------------------------------------------------------------------------------------------


def random(read: Read) -> Cells:
    """Every cell at a random place: chance."""
    rng = np.random.default_rng(read.random_state)
    return {m: rng.normal(size=(len(x), BASELINE_WIDTH)) for m, x in read.x.items()}


def depth(read: Read) -> Cells:
    """Rank of the total of a cell's counts, or else of its values: what sequencing depth alone explains."""
    found = {}
    for m, of in read.problem.modalities.items():
        values = of.values if of.counts is None else of.counts
        total = np.asarray(values.sum(1), dtype=np.float64).ravel()
        found[m] = ((np.argsort(np.argsort(total, kind="stable")) + 0.5) / len(total))[:, None]
    return found


def label_only(read: Read) -> Cells:
    """The label of each cell, and nothing else; cells without one are at the shares of all labels."""
    return {m: _one_hot(codes, len(read.problem.label_names)) for m, codes in (read.problem.labels or {}).items()}


def _one_hot(codes: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((len(codes), n))
    known = codes >= 0
    out[known, codes[known]] = 1
    out[~known] = out[known].mean(0) if known.any() else 1 / n
    return out


def label_probability(read: Read) -> Cells:
    """Probabilities of the labels by one logistic regression of each modality on its components."""
    from sklearn.linear_model import LogisticRegression

    found = {}
    for m, codes in (read.problem.labels or {}).items():
        known = codes >= 0
        found[m] = np.zeros((len(codes), len(read.problem.label_names)))
        if len(np.unique(codes[known])) < 2:
            raise ValueError(f"`method='label-probability'` needs two labels of {m!r}, found fewer.")
        model = LogisticRegression(max_iter=2_000).fit(zscores(read.x[m])[known], codes[known])
        found[m][:, model.classes_] = model.predict_proba(zscores(read.x[m]))
    return found


def links_correlation(read: Read) -> Cells:
    """Linked features as they are: near are cells whose profiles over the links correlate."""
    return {m: unit_rows(of) for m, of in read.linked(_links(read)).items()}


def links_cca(read: Read) -> Cells:
    """Canonical variates of cells over linked features: singular vectors of the products of all cells of both sides."""
    from sklearn.preprocessing import normalize

    a, b = read.linked(_links(read)).items()
    # n × n products are never made: they have the rank of the links
    (q, r), (p, s) = (np.linalg.qr(of) for _, of in (a, b))
    left, _, right = np.linalg.svd(r @ s.T, full_matrices=False)
    k = min(N_CANONICAL, left.shape[1])
    return {a[0]: normalize(q @ left[:, :k]), b[0]: normalize(p @ right[:k].T)}


def procrustes(read: Read) -> Cells:
    """Components of the first turned, mirrored and scaled onto those of the second so that known pairs are near."""
    (a, b), pairs = read.known.names, _pairs(read)
    width = min(read.x[m].shape[1] for m in (a, b))
    x, y = read.x[a][:, :width], read.x[b][:, :width]
    mean, other = x[pairs[:, 0]].mean(0), y[pairs[:, 1]].mean(0)
    of, onto = x[pairs[:, 0]] - mean, y[pairs[:, 1]] - other
    left, strength, right = np.linalg.svd(of.T @ onto)
    scale = strength.sum() / max(float((of**2).sum()), 1e-12)
    return {a: scale * (x - mean) @ left @ right, b: y - other}


def paired_cca(read: Read) -> Cells:
    """Canonical variates of the known pairs, over the components of both, each times its correlation."""
    (a, b), pairs = read.known.names, _pairs(read)
    width = min(N_PCS, max(2, len(pairs) // 5))
    x, y = read.x[a][:, :width], read.x[b][:, :width]
    found = canonical_axes(x[pairs[:, 0]], y[pairs[:, 1]], n=BASELINE_WIDTH, penalty=CCA_RIDGE)
    return {a: found.first(x) * found.strength, b: found.second(y) * found.strength}


def moment_matching(read: Read) -> Cells:
    """Features of one name, each with mean 0 and sd 1 in every modality, and joint components of all cells."""
    modalities = read.problem.modalities
    common = sorted(set.intersection(*({str(f) for f in of.features} for of in modalities.values())))
    if len(common) < MIN_LINKS:
        raise ValueError(
            f"`method='moment-matching'` needs features of one name in all modalities; there are {len(common)}. Rename them, or "
            "use a baseline that reads links."
        )
    parts = {}
    for m, of in modalities.items():
        place = {str(f): i for i, f in enumerate(of.features)}
        parts[m] = zscores(read.matrices[m].columns(np.array([place[f] for f in common])).astype(np.float64))
    gram = np.sum([v.T @ v / len(v) for v in parts.values()], axis=0)
    axes = np.linalg.eigh(gram)[1][:, ::-1][:, :N_PCS]
    return {m: v @ axes for m, v in parts.items()}


def _links(read: Read) -> Links:
    return read.known.links or Links(*(np.empty(0, dtype=int),) * 2, *(np.empty(0),) * 2)


def _pairs(read: Read) -> np.ndarray:
    return np.empty((0, 2), dtype=int) if read.known.pairs is None else read.known.pairs


@dataclass(frozen=True)
class Baseline:
    """How cells are embedded, the arguments without which it cannot, and between how many modalities it maps at most."""

    embed: Callable[[Read], Cells]
    needs: Collection[str] = ()
    most: int | None = 2


BASELINES = {
    "random": Baseline(random, most=None),
    "depth": Baseline(depth, most=None),
    "label-only": Baseline(label_only, ("labels",), most=None),
    "label-probability": Baseline(label_probability, ("labels",), most=None),
    "links-correlation": Baseline(links_correlation, ("links",)),
    "links-cca": Baseline(links_cca, ("links",)),
    "procrustes": Baseline(procrustes, ("pairs",)),
    "paired-cca": Baseline(paired_cca, ("pairs",)),
    "moment-matching": Baseline(moment_matching, most=None),
}
