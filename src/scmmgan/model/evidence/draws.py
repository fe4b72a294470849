"""Uncertainty from trainings: over draws of the generators' noise, and over restarts of one mode (METHOD §7)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scmmgan.data import read as _problem

if TYPE_CHECKING:
    from scmmgan.data.read import Problem
    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.nets.aligner import Aligner, Loadings

logger = logging.getLogger("scmmgan")

Prior = tuple[dict[tuple[str, str], "Coupling"], dict[tuple[str, str], "Loadings"]]
Scores = tuple[np.ndarray, np.ndarray]  # of features (g,), of cells (n,)
SHORT = 300  # steps of a restart, as in `tl.diagnose`
IGNORED = 0.01  # median score below which generators ignore their noise


def noise(
    problem: Problem,
    aligner: Aligner,
    params: Mapping[str, Any],
    pair: tuple[str, str],
    prior: Prior,
    kept: np.ndarray,
    *,
    n_draws: int,
    random_state: int,
    progress_bar: bool,
) -> Scores:
    """Variance over draws of the noise of `aligner`, or of one that is trained here where that one takes none."""
    from scmmgan.model.nets import methods

    source, target = pair
    x = problem.x
    if source not in aligner.noise:
        logger.info("Training generators that take noise, half as wide as model space.")
        couplings, loadings = prior
        settings = _problem.training_settings(params, problem) | {
            "random_state": random_state,
            "progress_bar": progress_bar,
        }
        widths = {m: max(1, v.shape[1] // 2) for m, v in x.items()}
        aligner, _ = methods.fit(x=x, couplings=couplings, loadings=loadings, **settings | {"noise_dim": widths})
    rng = np.random.default_rng(random_state)
    scores = _spread(problem, (aligner.sample(x[source], source, target, rng) for _ in range(n_draws)), target, kept)
    if (median := float(np.nanmedian(scores[0][kept]))) < IGNORED:
        logger.warning(
            "The generators from %r to %r ignore their noise: the median score is %.1g. The order of features may still "
            "mean something, the scores do not. Use `method='coupling'`.", source, target, median,
        )  # fmt: skip
    return scores


def seeds(
    problem: Problem,
    params: Mapping[str, Any],
    pair: tuple[str, str],
    prior: Prior,
    kept: np.ndarray,
    *,
    n_restarts: int,
    random_state: int,
    progress_bar: bool,
) -> tuple[Scores, int]:
    """Variance over short trainings with other seeds and couplings, those of the largest mode; and their number."""
    from scmmgan.model.evidence import restarts
    from scmmgan.model.nets import methods

    source, target = pair
    x = problem.x
    settings = _problem.training_settings(params, problem) | {"progress_bar": progress_bar}
    settings["max_steps"] = min(SHORT, int(params["max_steps"]))
    by_shape = any(c.info["kind"] == "geometry" for c in prior[0].values())
    probed = {m: np.sort(np.random.default_rng(random_state).permutation(len(v))[:1_000]) for m, v in x.items()}
    mapped, images = [], []
    for i in range(n_restarts):
        logger.info("Restart %d of %d.", i + 1, n_restarts)
        # where shapes decide, other couplings are other modes; else they are made again on other landmarks
        used, loads = problem.couple(random_state + i) if i and not by_shape else prior
        aligner, _ = methods.fit(x=x, couplings=used, loadings=loads, **settings | {"random_state": random_state + i})
        mapped.append(aligner.translate(x[source], source, target))
        images.append(_problem.images(aligner, x, probed, pair))
    mode = restarts.modes(restarts.agreement(images)) == 0
    if mode.sum() < 2:
        raise ValueError(
            f"No two of {n_restarts} restarts give the same map, so no mode has a variance. "
            "`tl.diagnose(mdata, full=True)` shows how they differ; use `method='coupling'`."
        )
    draws = (y for y, inside in zip(mapped, mode) if inside)
    return _spread(problem, draws, target, kept), int(mode.sum())


def _spread(problem: Problem, draws: Iterator[np.ndarray], target: str, kept: np.ndarray) -> Scores:
    from scmmgan.model.evidence import uncertainty

    transform = next(d.transform for d in problem.domains if d.name == target)
    loadings = float(transform.scale) * transform.decoder * transform.sd
    return uncertainty.spread(draws, loadings, transform.sd**2, kept)
