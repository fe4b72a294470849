"""What breaks the symmetry of an alignment: links, pairs and labels as couplings and loadings (METHOD §3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import links as _links

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.data.modality import Domain
    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.nets.aligner import Loadings
    from scmmgan.model.space.smoothing import Matrix

logger = logging.getLogger("scmmgan")

Pair = tuple[str, str]
MIN_HELD_OUT = 10  # links from which on the rest can stand for all of them when some are held out
MAX_LINKED = 5_000  # links that serve; more cost memory (50 bytes a cell and link) and were no more accurate


def tables(
    mdata: MuData, names: list[str], links: str | pd.DataFrame | None, use_rep: Mapping[str, str | None]
) -> dict[Pair, pd.DataFrame]:
    """Link tables of all pairs of modalities that have links."""
    found = {}
    of = list(combinations(names, 2))
    named = not isinstance(links, str) or links in ("auto", "var_names") or any(links in mdata[m].var for m in names)
    for source, target in of:
        if rep := use_rep[source] or use_rep[target]:
            # a representation has no features that links could name
            if links is not None and not (isinstance(links, str) and links == "auto"):
                raise ValueError(
                    f"`links` names features, but {source!r} or {target!r} is read from obsm {rep!r}, which has none. "
                    "Give `links=None`, or leave `use_rep` out."
                )
            continue
        # of several modalities some may share nothing
        table = _links.link_table(mdata, source, target, links, required=len(of) == 1 or not named)
        if table is not None:
            # only ratios of weights count
            found[source, target] = table.assign(weight=table["weight"] / table["weight"].max())
    if not found and len(of) > 1 and links is not None and not (isinstance(links, str) and links == "auto"):
        # says what was asked for and what there is
        _links.link_table(mdata, *of[0], links)
    return found


def telling(
    tables: Mapping[Pair, pd.DataFrame], domains: Mapping[str, Domain], *, explicit: bool
) -> dict[Pair, pd.DataFrame]:
    """The links whose features vary in both modalities; too few of them are an error where links were asked for."""
    kept = {}
    for pair, table in tables.items():
        at = {m: domains[m].var_names.get_indexer(pd.Index(table[m])) for m in pair}
        varies = np.logical_and.reduce([domains[m].varies(at[m]) for m in pair])
        if not varies.all():
            logger.warning("%d of %d links name a constant feature and are left out.", (~varies).sum(), len(varies))
        if varies.sum() >= _links.MIN_LINKS:
            kept[pair] = _fewer(table[varies], domains)
        elif explicit:
            raise ValueError(
                f"Of {len(varies)} links between {pair[0]!r} and {pair[1]!r} {varies.sum()} have features that vary in "
                f"both; at least {_links.MIN_LINKS} are needed. Check the `layer`, or use `links=None`."
            )
    return kept


def _fewer(table: pd.DataFrame, domains: Mapping[str, Domain]) -> pd.DataFrame:
    """At most 5,000 links between different features: the heaviest of each, then those that vary most for their mean."""
    shared = (table.iloc[:, 0] == table.iloc[:, 1]).all()
    if len(table) <= MAX_LINKED or shared:
        return table.reset_index(drop=True)
    side = min(table.columns[:2], key=lambda m: table[m].nunique())
    one = table.sort_values("weight", ascending=False, kind="stable").drop_duplicates(side)
    transform = domains[side].transform
    at = domains[side].var_names.get_indexer(pd.Index(one[side]))
    dispersion = transform.sd[at] ** 2 / np.maximum(np.abs(transform.mean[at]), 1e-6)
    kept = one.iloc[np.sort(np.argsort(-dispersion, kind="stable")[:MAX_LINKED])]
    logger.info("%d of %d links serve: one for each feature of %r, those that vary most.", len(kept), len(table), side)
    return kept.sort_index().reset_index(drop=True)


def couplings(
    domains: list[Domain],
    tables: Mapping[Pair, pd.DataFrame],
    pairs: Mapping[Pair, np.ndarray],
    labels: Mapping[str, np.ndarray] | None,
    *,
    shared: bool,
    random_state: int,
    n_landmarks: int | None = None,
) -> tuple[dict[Pair, Coupling], dict[Pair, Loadings]]:
    """Couplings of all ordered pairs, and the linked features' loadings in model space."""
    from scmmgan.model.coupling.coupling import couple_geometry, couple_known

    found: dict[Pair, Coupling] = {}
    loadings: dict[Pair, Loadings] = {}
    of = list(combinations(domains, 2))
    known = {(a.name, b.name): _is_known(a.name, b.name, tables, pairs) for a, b in of}
    # one set of landmarks per modality, whatever its pairs are coupled by
    settings: dict[str, Any] = {
        "n_landmarks": n_landmarks or landmarks(domains, tables, pairs),
        "random_state": random_state,
    }
    for a, b in of:
        x = {d.name: d.x for d in (a, b)}
        table = tables.get((a.name, b.name))
        given: dict[str, Any] = {
            "pairs": pairs.get((a.name, b.name)),
            "labels": None if labels is None else {m: labels[m] for m in x},
        }
        if known[a.name, b.name]:
            linked = None
            if links_decide(a.name, b.name, tables, pairs):
                linked = links_to_couple(a, b, tables[a.name, b.name], shared=shared, random_state=random_state)
            # in a shared space hundreds of names vote alike: agreement there measures depth, not whether a link is right
            own = couple_known(x, linked, refine=not shared, **given, **settings)
            if labels is None:
                # labels say themselves which cells have no partner, and their neighbours may have one
                matrices = {d.name: d.smoothed for d in (a, b)}
                own = {(s, t): _with_neighbors(coupling, matrices[s]) for (s, t), coupling in own.items()}
            found |= own
        else:
            _warn_of_geometry(a.name, b.name, given)
            found |= couple_geometry(x, **given, **settings)
        if table is not None:
            at = {d.name: d.var_names.get_indexer(pd.Index(table[d.name])) for d in (a, b)}
            sign, weight = table["sign"].to_numpy(), table["weight"].to_numpy()
            earned = found[a.name, b.name].info.get("link_weight")
            if earned is not None and not shared:
                weight = weight * earned
                logger.info("%d of %d links agree with the others.", (earned > 0.1).sum(), len(earned))
            for s, t in ((a, b), (b, a)):
                source, target = (d.transform.decoder[:, at[d.name]] for d in (s, t))
                loadings[s.name, t.name] = (source, target, sign, weight)
    return found, loadings


def landmarks(domains: list[Domain], tables: Mapping[Pair, pd.DataFrame], pairs: Mapping[Pair, np.ndarray]) -> int:
    """Number of landmarks asked for: fewer where the shapes of any two modalities decide."""
    from scmmgan.model.coupling.landmarks import GEOMETRY_LANDMARKS, LINKED_LANDMARKS

    return LINKED_LANDMARKS if all_known([d.name for d in domains], tables, pairs) else GEOMETRY_LANDMARKS


def all_known(names: list[str], tables: Mapping[Pair, pd.DataFrame], pairs: Mapping[Pair, np.ndarray]) -> bool:
    """Whether links or pairs decide between any two modalities."""
    return all(_is_known(a, b, tables, pairs) for a, b in combinations(names, 2))


def links_decide(a: str, b: str, tables: Mapping[Pair, pd.DataFrame], pairs: Mapping[Pair, np.ndarray]) -> bool:
    """Whether there are links that couple: beside many pairs few of them serve the loss only."""
    from scmmgan.model.coupling.views import MIN_PROFILES

    table = tables.get((a, b))
    return table is not None and (len(table) >= MIN_HELD_OUT or len(pairs.get((a, b), ())) < MIN_PROFILES)


def _is_known(a: str, b: str, tables: Mapping[Pair, pd.DataFrame], pairs: Mapping[Pair, np.ndarray]) -> bool:
    """Whether links or pairs are many enough to decide without the modalities' shapes."""
    from scmmgan.model.coupling.views import MIN_PROFILES

    return (a, b) in tables or len(pairs.get((a, b), ())) >= MIN_PROFILES


def links_to_couple(
    a: Domain, b: Domain, table: pd.DataFrame, *, shared: bool, random_state: int
) -> dict[str, np.ndarray]:
    """Linked features (n × links) of both sides that cells are compared by: their own values, too, where these are no noise."""
    from scmmgan.model.evidence.heldout import link_groups
    from scmmgan.model.evidence.linked import least_noisy

    smoothed = linked_values(a, b, table, shared=shared)
    # in a shared space smoothed links are the better ones (benchmarks/accuracy.md)
    if shared:
        return smoothed
    own = linked_values(a, b, table, shared=shared, half=True)
    groups = link_groups(*(table[d.name].to_numpy(dtype=str) for d in (a, b)))
    linked = least_noisy({d.name: d.x for d in (a, b)}, own, smoothed, groups, random_state=random_state)
    if linked is smoothed:
        logger.info("Links of %r and %r are read smoothed: cells' own values are mostly noise.", a.name, b.name)
    return linked


def _with_neighbors(coupling: Coupling, smoothed: Matrix) -> Coupling:
    """A coupling whose cells are matched as far as their neighbours are: the share of one cell alone is noisy."""
    weight = np.where(coupling.known, coupling.weight, smoothed.averaged(coupling.weight))
    return replace(coupling, weight=np.clip(weight, 0, 1).astype(np.float32))


def linked_values(
    a: Domain, b: Domain, table: pd.DataFrame, *, shared: bool, half: bool = False
) -> dict[str, np.ndarray]:
    """Smoothed, z-scored linked features (n × links) of both sides, with the table's signs and weights.

    `half`: with the cells' own values beside the smoothed ones (`Domain.half_smoothed`).
    """
    at = {d.name: d.var_names.get_indexer(pd.Index(table[d.name])) for d in (a, b)}
    sign, root = table["sign"].to_numpy(), np.sqrt(table["weight"].to_numpy())
    # of many thousand equal names those in the PCA are enough, and fit in memory
    used = np.isin(at[a.name], a.transform.encoded) if shared else np.ones(len(table), dtype=bool)
    linked = {d.name: (d.half_smoothed if half else d.zscored)(at[d.name][used]) for d in (a, b)}
    linked[a.name] *= (sign * root)[used].astype(np.float32)
    linked[b.name] *= root[used].astype(np.float32)
    return linked


def _warn_of_geometry(a: str, b: str, given: Mapping[str, Any]) -> None:
    """Shapes decide: say so, and what else was used."""
    helped = [f"{len(given['pairs'])} known pairs"] if given["pairs"] is not None else []
    helped += ["labels"] if given["labels"] is not None else []
    if helped:
        logger.info("%r and %r are coupled by their shapes with the help of %s.", a, b, " and ".join(helped))
        return
    logger.warning(
        "No links say which populations of %r and %r correspond: the coupling comes from their shapes alone "
        "(Gromov-Wasserstein, experimental) and may be a mirror image. Check known markers.",
        a, b,
    )  # fmt: skip
