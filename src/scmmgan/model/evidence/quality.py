"""How good a trained map is, without knowing the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import scipy.sparse as sp

from scmmgan.model.coupling.couple import Domains
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.defaults import MIN_SCORED
from scmmgan.model.evidence.correlations import decoded_sd
from scmmgan.model.evidence.heldout import nearer
from scmmgan.model.evidence.neighborhoods import overlaps
from scmmgan.model.nets.aligner import Aligner, split
from scmmgan.model.problem import Modality, Pair

Auc = Callable[[np.ndarray, np.ndarray], float]


def score_map(
    aligner: Aligner,
    domains: Domains,
    couplings: Mapping[Pair, Coupling],
    *,
    two_sample_auc: Auc,
    random_state: int,
    centre: str | None = None,
) -> dict[Pair, dict[str, float | bool]]:
    """Scores of the trained map, mean of both directions, on cells that took no part in the training.

    `quality_cycle`: squared error of the round trip over the variance; `quality_overlap`: share of a cell's 20
    neighbours that stay, and `quality_overlap_chance`; `quality_auc`: of classifying mapped against measured cells;
    `quality_follows`: share of cells nearer to a mapped cell than its anchor, 0 where the map follows the coupling, .5
    where it does not. `quality_consistency`, of three modalities or more: squared difference between the direct map and
    those round about a third one, over the variance of the target's cells; through the `centre` of a star no way leads round. `quality_held_out` is False where fewer than 50 cells were held out, and all cells are scored.
    """
    held_out = {m: of.test for m, of in split({m: len(d.x) for m, d in domains.items()}, random_state).items()}
    found: dict[Pair, dict[str, float | bool]] = {}
    for a, b in combinations(domains, 2):
        around = []
        enough = min(len(held_out[m]) for m in (a, b)) >= MIN_SCORED
        scores = []
        for s, t in ((a, b), (b, a)):
            rows, others = (held_out[m] if enough else slice(None) for m in (s, t))
            cells, measured = domains[s].x[rows], domains[t].x[others]
            mapped = aligner.translate(cells, s, t)
            for third in (m for m in domains if m not in (s, t, centre)):
                other = aligner.translate(aligner.translate(cells, s, third), third, t)
                around.append(((other - mapped) ** 2).mean() / measured.var(0).mean())
            back = aligner.translate(mapped, t, s)
            kept, chance = overlaps(cells, mapped)
            scores.append(
                {
                    "quality_cycle": float(((back - cells) ** 2).sum() / ((cells - cells.mean(0)) ** 2).sum()),
                    "quality_overlap": float(kept.mean()),
                    "quality_overlap_chance": chance,
                    "quality_auc": float(two_sample_auc(mapped, measured)),
                    "quality_follows": float(nearer(measured, mapped, couplings[s, t].anchors[rows]).mean()),
                }
            )
        mean = {k: (scores[0][k] + scores[1][k]) / 2 for k in scores[0]}
        found[a, b] = {**mean, "quality_held_out": enough}
        if around:
            found[a, b]["quality_consistency"] = float(np.mean(around))
    return found


def depth_correlations(domains: Domains, images: Mapping[Pair, np.ndarray]) -> dict[Pair, dict[str, float]]:
    """`depth_{source}` of each two modalities: mean |correlation| of the source's mapped cells (n × p) with their log depth.

    Over all features of the target that vary. Left out where values below 0 say nothing of the depth.
    """
    found: dict[Pair, dict[str, float]] = {(a, b): {} for a, b in combinations(domains, 2)}
    for (s, t), y in images.items():
        depth = log_depth(domains[s].modality)
        if depth is None or not depth.std():
            continue
        decoder = domains[t].transform.decoder
        z = (depth - depth.mean()) / depth.std()
        sd = decoded_sd(y, decoder)
        covariance = (z @ (y - y.mean(0, dtype=np.float64)) / len(z)) @ decoder
        if (moves := sd > 0).any():
            pair = (s, t) if (s, t) in found else (t, s)
            found[pair][f"depth_{s}"] = float(np.abs(covariance[moves] / sd[moves]).mean())
    return found


def log_depth(modality: Modality) -> np.ndarray | None:
    """Log total (n,) of every cell's counts, or else of its values; None where these can be negative."""
    values = modality.values if modality.counts is None else modality.counts
    if modality.embedded or (values.data if sp.issparse(values) else values).min(initial=0) < 0:
        return None
    return np.log1p(np.asarray(values.sum(1), dtype=np.float64).ravel())
