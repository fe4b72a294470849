"""How good a trained map is on cells that it did not see, without knowing the truth (METHOD §8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from scmmgan import metrics

if TYPE_CHECKING:
    from scmmgan.data.modality import Domain
    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.nets.aligner import Aligner

Pair = tuple[str, str]
MIN_HELD_OUT = 50  # fewer cells score too coarsely


def score_map(
    aligner: Aligner, domains: Sequence[Domain], couplings: Mapping[Pair, Coupling], *, random_state: int
) -> dict[Pair, dict[str, float]]:
    """Scores of the trained map on cells that training held out, mean of both directions.

    `quality_cycle`: squared error of the way there and back over the variance; `quality_overlap`: share of a cell's 20
    neighbours that stay; `quality_auc`: of telling mapped from measured cells; `quality_follows`: share of cells nearer
    to a mapped cell than its anchor, 0 where the map follows the coupling, .5 where it does not.
    """
    from scmmgan.model.evidence import heldout as diagnosis

    rows = held_out_rows({d.name: len(d.x) for d in domains}, random_state)
    found = {}
    for a, b in combinations(domains, 2):
        scores = []
        for s, t in ((a, b), (b, a)):
            cells, other = s.x[rows[s.name]], t.x[rows[t.name]]
            mapped = aligner.translate(cells, s.name, t.name)
            back = aligner.translate(mapped, t.name, s.name)
            anchors = couplings[s.name, t.name].anchors[rows[s.name]]
            scores.append(
                {
                    "quality_cycle": float(((back - cells) ** 2).sum() / ((cells - cells.mean(0)) ** 2).sum()),
                    "quality_overlap": diagnosis.overlap(cells, mapped),
                    "quality_auc": float(metrics.two_sample_auc(mapped, other)),
                    "quality_follows": float(diagnosis.nearer(other, mapped, anchors).mean()),
                }
            )
        found[a.name, b.name] = {k: (scores[0][k] + scores[1][k]) / 2 for k in scores[0]}
    return found


def held_out_rows(sizes: Mapping[str, int], random_state: int) -> dict[str, np.ndarray]:
    """Rows that training holds out; all where that leaves fewer than 50."""
    from scmmgan.model.nets.aligner import split

    drawn = split(sizes, random_state)
    return {m: rows if len(rows) >= MIN_HELD_OUT else np.arange(sizes[m]) for m, (_, rows) in drawn.items()}
