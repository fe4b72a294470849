"""Couplings of all pairs of modalities of a problem, each by what is known of the two."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from scmmgan.model.coupling.coupling import Coupling, composed, couple_geometry, couple_known
from scmmgan.model.coupling.landmarks import Landmarks, find_landmarks
from scmmgan.model.defaults import LANDMARKS, SHAPE_LANDMARKS
from scmmgan.model.problem import Known, Links, Pair, Problem
from scmmgan.model.space.domain import Domain

logger = logging.getLogger("scmmgan")

Loadings = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # source (p × l), target (p' × l), sign, weight (l,)
Domains = Mapping[str, Domain]


def couple(
    problem: Problem, domains: Domains, *, random_state: int, n_landmarks: int | None = None
) -> tuple[dict[Pair, Coupling], dict[Pair, Loadings]]:
    """Couplings of all ordered pairs, and the linked features' loadings in model space, of pairs that are coupled by them.

    One set of landmarks for each modality, whatever its pairs are coupled by: 300, or 150 where shapes decide.
    """
    n_landmarks = n_landmarks or landmark_count(problem)
    labels = problem.labels or {}
    landmarks = {
        m: find_landmarks(domains[m].x, n_landmarks=n_landmarks, labels=labels.get(m), random_state=random_state)
        for m in problem.names
    }
    couplings: dict[Pair, Coupling] = {}
    loadings: dict[Pair, Loadings] = {}
    for (a, b), known in problem.direct.items():
        own = {m: domains[m] for m in (a, b)}
        shared = (a, b) in problem.shared
        couplings |= _of_pair(known, own, landmarks, shared=shared, random_state=random_state)
        if known.links is not None:
            weight = known.links.weight
            agreement = couplings[a, b].info.get("link_weight")
            # in a shared space hundreds of names vote alike: agreement there measures depth, not whether a link is right
            if agreement is not None and not shared:
                weight = weight * agreement
                logger.debug("%d of %d links agree with the others.", (agreement > 0.1).sum(), len(agreement))
            decoders = {m: own[m].transform.decoder[:, known.positions(m)] for m in (a, b)}
            for s, t in ((a, b), (b, a)):
                loadings[s, t] = (decoders[s], decoders[t], known.links.sign, weight)
    for (a, b), c in problem.through.items():
        logger.info("%r and %r are coupled through %r.", a, b, c)
        for s, t in ((a, b), (b, a)):
            couplings[s, t] = composed(couplings[s, c], couplings[c, t], domains[t].x, c)
    return couplings, loadings


def landmark_count(problem: Problem) -> int:
    """Number of landmarks asked for: fewer where the shapes of any two modalities decide."""
    return SHAPE_LANDMARKS if problem.by_shape else LANDMARKS


def _of_pair(
    known: Known, domains: Domains, landmarks: Mapping[str, Landmarks], *, shared: bool, random_state: int
) -> dict[Pair, Coupling]:
    """Couplings of two modalities in both directions."""
    x, own = {m: d.x for m, d in domains.items()}, {m: landmarks[m] for m in domains}
    if known.by_shape:
        _warn_of_shapes(known)
        return couple_geometry(x, own, pairs=known.pairs, labels=known.labels, random_state=random_state)
    linked = linked_values(known, domains, shared=shared) or None
    found = couple_known(
        x, own, linked, pairs=known.pairs, labels=known.labels, refine=not shared, random_state=random_state
    )
    if known.labels is not None:
        # labels say themselves which cells have no partner, and their neighbours may have one
        return found
    return {(s, t): _averaged(coupling, domains[s]) for (s, t), coupling in found.items()}


def _averaged(coupling: Coupling, domain: Domain) -> Coupling:
    """A coupling whose cells are matched as far as their neighbours are: the share of one cell alone is noisy."""
    weight = np.where(coupling.known, coupling.weight, domain.smoothed.averaged(coupling.weight))
    return replace(coupling, weight=np.clip(weight, 0, 1).astype(np.float32))


def linked_values(known: Known, domains: Domains, *, shared: bool) -> dict[str, np.ndarray]:
    """Linked features (n × links) that cells are compared by: the mean of the measured and the smoothed z-score."""
    links, (a, b) = known.links, known.names
    if links is not None and shared:
        # of many thousand equal names those in the PCA are enough, and fit in memory
        links = links.take(np.isin(links.first, domains[a].transform.encoded))
    return _signed({m: domains[m].half_smoothed(at) for m, at in _sides((a, b), links)}, links)


def smoothed_links(known: Known, domains: Domains) -> dict[str, np.ndarray]:
    """Smoothed, z-scored linked features (n × links) of both sides."""
    return _signed({m: domains[m].zscored(at) for m, at in _sides(known.names, known.links)}, known.links)


def landmark_links(known: Known, domains: Domains, label: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their means (m × links) over the cells of each landmark `label` (n,): what held-out links are tested on."""
    means = {m: domains[m].landmark_means(label[m], at) for m, at in _sides(known.names, known.links)}
    return _signed(means, known.links)


def _sides(names: Pair, links: Links | None) -> list[tuple[str, np.ndarray]]:
    return [] if links is None else [(names[0], links.first), (names[1], links.second)]


def _signed(values: dict[str, np.ndarray], links: Links | None) -> dict[str, np.ndarray]:
    """Values times the root of the links' weights, and on the first side times their signs."""
    if links is None:
        return {}
    root = np.sqrt(links.weight).astype(np.float32)
    sign = links.sign.astype(np.float32)
    return {m: v * (root * sign if i == 0 else root) for i, (m, v) in enumerate(values.items())}


def _warn_of_shapes(known: Known) -> None:
    """Shapes decide: say so, and what else was used."""
    (a, b), helped = known.names, []
    if known.pairs is not None:
        helped.append(f"{known.n_pairs} known pairs")
    if known.labels is not None:
        helped.append("labels")
    if helped:
        logger.info("%r and %r are coupled by their shapes with the help of %s.", a, b, " and ".join(helped))
        return
    # what follows from it is said once, by the verdict
    logger.info(
        "No links say which populations of %r and %r correspond: the coupling comes from their shapes alone "
        "(Gromov-Wasserstein, experimental) and may be a mirror image. Check known markers.",
        a, b,
    )  # fmt: skip
