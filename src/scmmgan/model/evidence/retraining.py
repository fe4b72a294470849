"""Uncertainty from trainings: over the generators' noise, and over restarts that end in the same map."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from scmmgan.model.coupling.couple import Domains, Loadings, couple
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.defaults import IGNORED_NOISE, PROBED_CELLS, SHORT_TRAINING
from scmmgan.model.evidence import restarts, uncertainty
from scmmgan.model.nets import methods
from scmmgan.model.nets.aligner import Aligner
from scmmgan.model.problem import Pair, Problem
from scmmgan.model.progress import tracked

logger = logging.getLogger("scmmgan")

Couplings = tuple[Mapping[Pair, Coupling], Mapping[Pair, Loadings]]
Scores = tuple[np.ndarray, np.ndarray]  # of features (g,), of cells (n,)


def images(aligner: Aligner, domains: Domains, rows: Mapping[str, np.ndarray], pair: Pair) -> np.ndarray:
    """Mapped cells of both directions as one vector, every target in units of its sd."""
    parts = []
    for s, t in (pair, pair[::-1]):
        mapped = aligner.translate(domains[s].x[rows[s]], s, t)
        parts.append((mapped - mapped.mean(0)).ravel() / domains[t].x.std())
    return np.concatenate(parts)


def probed(domains: Domains, random_state: int) -> dict[str, np.ndarray]:
    """Row numbers of at most 1,000 cells of each modality, whose images are compared between restarts."""
    return {
        m: np.sort(np.random.default_rng(random_state).permutation(len(d.x))[:PROBED_CELLS]) for m, d in domains.items()
    }


def over_noise(
    domains: Domains,
    aligner: Aligner,
    pair: Pair,
    coupled: Couplings,
    settings: Mapping[str, Any],
    kept: np.ndarray,
    *,
    n_draws: int,
) -> Scores:
    """Variance over the noise of `aligner`, or of one that is trained here where that one takes none.

    `settings`: of `methods.fit`.
    """
    source, target = pair
    x = {m: d.x for m, d in domains.items()}
    if source not in aligner.noise:
        logger.info("Training generators that take noise, half as wide as model space.")
        widths = {m: max(1, v.shape[1] // 2) for m, v in x.items()}
        aligner, _ = methods.fit(x=x, couplings=coupled[0], loadings=coupled[1], **{**settings, "noise_dim": widths})
    rng = np.random.default_rng(settings["random_state"])
    draws = tracked(range(n_draws), "draws")
    sampled = (aligner.sample(x[source], source, target, rng) for _ in draws)
    scores = _variance(domains, sampled, target, kept)
    if (median := float(np.nanmedian(scores[0][kept]))) < IGNORED_NOISE:
        logger.warning(
            "The generators from %r to %r ignore their noise: the median score is %.1g. The order of features may still "
            "mean something, the scores do not. Use `method='coupling'`.", source, target, median,
        )  # fmt: skip
    return scores


def over_restarts(
    problem: Problem,
    domains: Domains,
    pair: Pair,
    coupled: Couplings,
    settings: Mapping[str, Any],
    kept: np.ndarray,
    *,
    n_restarts: int,
) -> tuple[Scores, int]:
    """Variance over short trainings with other seeds and couplings, those of the largest mode; and their number."""
    source, target = pair
    x, seed = {m: d.x for m, d in domains.items()}, int(settings["random_state"])
    settings = {**settings, "max_steps": min(SHORT_TRAINING, int(settings["max_steps"]))}
    rows = probed(domains, seed)
    mapped, found = [], []
    for i in tracked(range(n_restarts), "restarts"):
        logger.info("Restart %d of %d.", i + 1, n_restarts)
        # where shapes decide, other couplings are other modes; else they are made again on other landmarks
        couplings, loadings = coupled if problem.by_shape or not i else couple(problem, domains, random_state=seed + i)
        aligner, _ = methods.fit(x=x, couplings=couplings, loadings=loadings, **{**settings, "random_state": seed + i})
        mapped.append(aligner.translate(x[source], source, target))
        found.append(images(aligner, domains, rows, pair))
    mode = restarts.modes(restarts.map_similarity(found)) == 0
    if mode.sum() < 2:
        raise ValueError(
            f"No two of {n_restarts} restarts give the same map, so no mode has a variance. "
            "`tl.diagnose(mdata, full=True)` shows how they differ; use `method='coupling'`."
        )
    return _variance(domains, (y for y, inside in zip(mapped, mode) if inside), target, kept), int(mode.sum())


def _variance(domains: Domains, maps: Iterator[np.ndarray], target: str, kept: np.ndarray) -> Scores:
    transform = domains[target].transform
    loadings = float(transform.scale) * transform.decoder * transform.sd
    return uncertainty.spread(maps, loadings, transform.sd**2, kept)
