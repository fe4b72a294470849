"""Mapped values where nothing supports the map: told by the links alone, if these tell more (docs/method.md)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import known as _known
from scmmgan.data import modality as _domain
from scmmgan.model.coupling import couple as _prior

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.data.read import Problem

logger = logging.getLogger("scmmgan")

Pair = tuple[str, str]
FEWEST, MOST = 8, 100  # links without a feature in common: of fewer one that is held out is missed; more are costly
ERRORS = 2  # standard errors that what is told lies above nothing
WORDS = {"coupling": "the map", "links": "the links alone", "tissue": "the links alone, neighbours' in the tissue too"}


def by_links(
    mdata: MuData,
    problem: Problem,
    records: Mapping[Pair, Mapping[str, Any]],
    arguments: Mapping[str, Any],
) -> tuple[dict[Pair, np.ndarray], dict[str, dict[str, dict[str, Any]]]]:
    """Images (n × p) of cells whose values links tell better than the map, and by source and target what tells how much.

    Asked where links alone decided, outside of shared spaces, and `records` say that nothing supports what they decided.
    `arguments`: of `tl.align`; other methods than the default one map all values.
    """
    from scmmgan.model.evidence import readout
    from scmmgan.model.evidence.heldout import link_chains

    images: dict[Pair, np.ndarray] = {}
    choice: dict[str, dict[str, dict[str, Any]]] = {}
    domains = {d.name: d for d in problem.domains}
    random_state = arguments["random_state"]
    for pair, table in problem.tables.items() if arguments["method"] == "scmmgan" else ():
        alone = pair not in problem.pairs and problem.labels is None and not problem.shared
        chains = link_chains(*(table[m].to_numpy(dtype=str) for m in pair))
        if records[pair]["supported"] or not alone or chains.max() + 1 < FEWEST or len(table) > MOST:
            continue
        a, b = (domains[m] for m in pair)
        scores = {
            d.name: readout.normal_scores(d.smoothed.measured(d.var_names.get_indexer(pd.Index(table[d.name]))))
            for d in (a, b)
        }
        scores[a.name] *= table["sign"].to_numpy()
        batch = _domain.per_modality(arguments["batch"], list(domains), "batch")
        neighbors = _neighbors(mdata, pair, batch, arguments["spatial"])
        linked = _prior.links_to_couple(a, b, table, shared=False, random_state=random_state)
        told = readout.told(
            {m: domains[m].x for m in pair}, linked, scores, chains, neighbors, random_state=random_state
        )
        for (source, target), by in told.items():
            mean = {name: float(r.mean()) for name, r in by.items()}
            best = _best(by)
            choice.setdefault(source, {})[target] = {"by": best, **mean}
            asked = scores[source]
            if best == "tissue":
                asked = readout.over_tissue(asked, neighbors[source])
            if best != "coupling":
                images[source, target] = readout.image(asked, scores[target], domains[target].x)
            logger.info(
                "Values of %r mapped to %r are told by %s (mean correlation of held-out links: %s).",
                source, target, WORDS[best], ", ".join(f"{WORDS[name]} {r:.2f}" for name, r in mean.items()),
            )  # fmt: skip
    return images, choice


def _best(by: Mapping[str, np.ndarray]) -> str:
    """What tells held-out links best, of correlations (l,): the map, unless another is better and tells them at all."""
    best = max(by, key=lambda name: by[name].mean())
    error = by[best].std(ddof=1) / np.sqrt(len(by[best]))
    return best if by[best].mean() > ERRORS * error else "coupling"


def _neighbors(
    mdata: MuData, pair: Pair, batch: Mapping[str, str | None], spatial: str | Mapping[str, str | None] | None
) -> dict[str, np.ndarray]:
    """Nearest cells in the tissue of the modalities that have coordinates: those named, or `obsm["spatial"]`."""
    from scmmgan.model.evidence import readout

    codes = _known.read_batches(mdata, pair, batch)
    found = {}
    for m in pair:
        named = spatial.get(m, "spatial") if isinstance(spatial, Mapping) else spatial or "spatial"
        if named is None:
            continue
        key = named if named in mdata[m].obsm else "spatial"
        if key not in mdata[m].obsm:
            continue
        try:
            places = _domain.coordinates(mdata, m, key)
        except ValueError as error:
            # nobody asked for them
            logger.info("No neighbours in the tissue: %s", error)
            continue
        code = codes[m]
        rows = None if code is None else [np.flatnonzero(code == c) for c in range(code.max() + 1)]
        found[m] = readout.tissue_neighbors(places, rows)
    return found
