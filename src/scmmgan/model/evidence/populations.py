"""What supports a coupling: held-out evidence, populations and what they could be swapped with. Arrays only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from scmmgan.model.coupling.couple import Domains, landmark_links, smoothed_links
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.coupling.transport import shares
from scmmgan.model.defaults import (
    CLOSE_COST,
    DIFFERENT_ANSWER,
    MAX_TESTED_CELLS,
    MAX_TESTED_LINKS,
    MIN_TESTED_LINKS,
    N_POPULATIONS,
    SWAPPABLE,
)
from scmmgan.model.evidence import heldout
from scmmgan.model.evidence.ceiling import ceiling
from scmmgan.model.evidence.heldout import HeldOut
from scmmgan.model.problem import Known, Links, Pair, Problem
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.linear import column_blocks

Table = dict[str, np.ndarray]  # columns of one length


@dataclass(frozen=True)
class Tested:
    """One pair of modalities, what is known of it, and the landmarks that it is tested on.

    `chosen`: positions of the links of which couplings are made, at most 300. `mean` (m × links) by modality: smoothed
    linked features of landmarks.
    """

    known: Known
    domains: Domains
    label_names: Sequence[str]
    landmarks: dict[str, Landmarks]
    chosen: np.ndarray
    mean: dict[str, np.ndarray]

    @property
    def x(self) -> dict[str, np.ndarray]:
        """Model-space cells."""
        return {m: d.x for m, d in self.domains.items()}


def diagnose(
    problem: Problem, domains: Domains, couplings: Mapping[Pair, Coupling], *, random_state: int
) -> tuple[dict[Pair, dict[str, Any]], dict[Pair, np.ndarray]]:
    """Records of all unordered pairs of modalities, and the ambiguous cells (n,) of all ordered ones."""
    records: dict[Pair, dict[str, Any]] = {}
    ambiguous: dict[Pair, np.ndarray] = {}
    for pair, known in problem.known.items():
        own = {m: domains[m] for m in pair}
        records[pair], flags = _diagnose(problem, known, own, couplings, random_state)
        ambiguous |= flags
    return records, ambiguous


def _diagnose(
    problem: Problem, known: Known, domains: Domains, couplings: Mapping[Pair, Coupling], random_state: int
) -> tuple[dict[str, Any], dict[Pair, np.ndarray]]:
    """Record of two modalities, and the ambiguous cells of both."""
    a, b = known.names
    sides = {s: heldout.coarsen(couplings[t, s].landmarks, random_state=random_state) for s, t in ((a, b), (b, a))}
    landmarks = {m: s[0] for m, s in sides.items()}
    mean = landmark_links(known, domains, {m: of.label for m, of in landmarks.items()})
    chosen = np.sort(np.random.default_rng(random_state).permutation(known.n_links)[:MAX_TESTED_LINKS])
    tested = Tested(known, domains, problem.label_names, landmarks, chosen, mean)
    plan = heldout.coarse_plan(couplings, (a, b), sides)
    record, held, rivals = _evidence(tested, couplings[a, b], plan, sides, (a, b) in problem.shared, random_state)
    record["populations"], flags = _populations(tested, couplings, plan, held, rivals, record)
    for s, t in ((a, b), (b, a)):
        record[f"ambiguous_{s}"] = float(flags[s].mean())
        if couplings[s, t].relaxed:
            record[f"unmatched_{s}"] = float(1 - couplings[s, t].weight.mean())
    return record, {(a, b): flags[a], (b, a): flags[b]}


def _evidence(
    tested: Tested,
    coupling: Coupling,
    plan: np.ndarray,
    sides: Mapping[str, tuple[Landmarks, np.ndarray]],
    shared: bool,
    random_state: int,
) -> tuple[dict[str, Any], HeldOut | None, np.ndarray]:
    """Numbers of the verdict; the links or pairs that separate populations; rival plans (r × m × m')."""
    known, kind = tested.known, coupling.kind
    a, b = known.names
    record: dict[str, Any] = {"kind": kind, "swap_limit": CLOSE_COST if kind == "geometry" else SWAPPABLE}
    if kind == "through":
        record["through"] = str(coupling.info["through"])
    held = None
    if known.links is not None:
        held = _links(tested, known.links, plan, record, refine=not shared, random_state=random_state)
    if known.pairs is not None:
        linked = None
        if known.links is not None:
            linked = smoothed_links(replace(known, links=known.links.take(tested.chosen)), tested.domains)
        by_pairs = heldout.held_out_pairs(tested.x, tested.landmarks, known.pairs, linked, random_state=random_state)
        record |= _numbers("pairs", by_pairs)
        record |= {"pairs": by_pairs.score, "pairs_n": known.n_pairs, "pairs_q": adjusted(by_pairs.each_p, by_pairs.p)}
        record["pairs_in_use"] = _in_use(tested, coupling)
        held = held or by_pairs
    if known.labels is not None:
        purity = {m: d.label_purity for m, d in tested.domains.items()}
        evidence = heldout.label_evidence(tested.x, dict(known.labels), purity)
        record |= {f"labels_{k}": v for k, v in evidence.items()}
    if kind == "geometry" and len(coupling.rivals):
        record["gaps"] = np.asarray(coupling.info["gaps"], dtype=float)
        rows, columns = (np.eye(len(tested.landmarks[m].mass))[sides[m][1]] for m in (a, b))
        return record, held, np.stack([rows.T @ rival @ columns for rival in coupling.rivals])
    rivals = held.plans if held is not None and kind != "geometry" else np.empty((0, *plan.shape))
    return record, held, rivals


def _links(
    tested: Tested, links: Links, plan: np.ndarray, record: dict[str, Any], *, refine: bool, random_state: int
) -> HeldOut:
    """Held-out links of which couplings were made; the numbers of all links go into the record."""
    names = tested.known.names
    (u, v), (p, q) = ([of[m] for m in names] for of in (tested.mean, {m: tested.landmarks[m].mass for m in names}))
    how: dict[str, Any] = {"refine": refine, "random_state": random_state}
    groups = heldout.link_groups(links.first, links.second)
    held = heldout.held_out_links(u, v, p, q, groups, tested=tested.chosen, **how)
    record |= _numbers("links", held)
    # labels or pairs may have led the coupling in use away from what the links say
    record["links_in_use"] = float(heldout.carried(plan, u[:, tested.chosen], v[:, tested.chosen], p, q).mean())
    score, each_p = np.empty(len(links)), np.empty(len(links))
    rest = np.setdiff1d(np.arange(len(links)), tested.chosen)
    for at, of in ((tested.chosen, held), (rest, held.rest)):
        if of is not None:
            score[at], each_p[at] = of.score, of.each_p
    limit = ceiling(tested.known, tested.domains, **how)
    record |= {"links_ceiling": limit.mean, "links_ceiling_error": limit.error}
    record |= dict(zip(("links_share", "links_share_error"), limit.share(held.mean, held.error)))
    features = {m: tested.domains[m].modality.features[tested.known.positions(m)] for m in names}
    record["links"] = {
        **features,
        "correlation": score,
        "p": each_p,
        "q": adjusted(each_p, held.p),
        "ceiling": limit.of_links,
        "share": limit.shares(score),
    }
    return held


def adjusted(p: np.ndarray, of_all: float) -> np.ndarray:
    """Benjamini-Hochberg q (k,) of p-values, at least the p of all together: none stands out of a mean that is chance."""
    return np.maximum(stats.false_discovery_control(p), of_all)


def _numbers(name: str, held: HeldOut) -> dict[str, Any]:
    return {f"{name}_mean": held.mean, f"{name}_error": held.error, f"{name}_p": held.p, f"{name}_null": held.null}


def _in_use(tested: Tested, coupling: Coupling) -> float:
    """Share of cells nearer than the known partner to where the coupling in use puts a cell by itself."""
    x = tested.x[tested.known.names[1]]
    pairs = np.asarray(tested.known.pairs)[:MAX_TESTED_CELLS]
    places = np.asarray(coupling.plan[pairs[:, 0]] @ coupling.landmarks.mean(x))
    cells = x[:: max(1, len(x) // MAX_TESTED_CELLS)]
    return float(heldout.nearer(cells, places, x[pairs[:, 1]]).mean())


# --- populations -------------------------------------------------------------------------------------------------


def _populations(
    tested: Tested,
    couplings: Mapping[Pair, Coupling],
    plan: np.ndarray,
    held: HeldOut | None,
    rivals: np.ndarray,
    record: Mapping[str, Any],
) -> tuple[Table, dict[str, np.ndarray]]:
    """One row per population of either side: partner, next best partner and swap gap, shares; cells that are ambiguous."""
    a, b = tested.known.names
    labels = tested.known.labels or {}
    of = {m: populations(tested.landmarks[m], labels.get(m)) for m in (a, b)}
    names = {m: np.array(_names(tested.domains[m], tested, of[m]), dtype=object) for m in (a, b)}
    gaps = np.asarray(record.get("gaps", np.zeros(len(rivals))))
    tables, flags = [], {}
    for way, (s, t) in enumerate(((a, b), (b, a))):
        own, others = (plan, rivals) if way == 0 else (plan.T, rivals.transpose(0, 2, 1))
        mass = tested.landmarks[s].mass
        # rivals that cost far more are no answer
        apart = disagreement(own, others[gaps <= CLOSE_COST], of[t])
        flagged = np.any(apart > DIFFERENT_ANSWER, axis=0, keepdims=True)[0]
        flags[s] = flagged[tested.landmarks[s].label]
        flow = by_population(own, of[s]) @ np.eye(of[t].max() + 1)[of[t]]
        if str(record["kind"]) == "geometry":
            (swap, gap), named = _rival_answers(flow, others, gaps, of[s], of[t]), names[t]
        else:
            (swap, gap), named = _least_gap(held, mass, of[s], way), names[s]
        unmatched = 1 - couplings[s, t].weight if couplings[s, t].relaxed else np.zeros(len(flags[s]))
        at = of[s][tested.landmarks[s].label]
        tables.append(
            {
                "modality": np.full(len(names[s]), s, dtype=object),
                "population": names[s],
                "share": by_population(mass, of[s]),
                "partner": names[t][flow.argmax(1)],
                "swap": np.where(swap >= 0, named[swap], ""),
                "gap": gap,
                "ambiguous": np.bincount(at, flags[s]) / np.bincount(at),
                "unmatched": np.bincount(at, unmatched) / np.bincount(at),
            }
        )
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}, flags


def _least_gap(
    held: HeldOut | None, mass: np.ndarray, population: np.ndarray, way: int
) -> tuple[np.ndarray, np.ndarray]:
    """For every population the one it could best be swapped with, by what the plans did not know; (-1, 1) if none."""
    k = population.max() + 1
    if held is None or k < 2:
        return np.full(k, -1), np.ones(k)
    found = swap_gaps(held, mass, population, way=way)
    np.fill_diagonal(found, np.inf)
    return found.argmin(1), found.min(1)


def _rival_answers(
    flow: np.ndarray, rivals: np.ndarray, gaps: np.ndarray, of_s: np.ndarray, of_t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For every population the cheapest rival's other partner, and that rival's cost gap; (-1, 1) where all agree."""
    k = len(flow)
    swap, gap = np.full(k, -1), np.ones(k)
    member = np.eye(of_t.max() + 1)[of_t]
    for rival, cost in sorted(zip(rivals, gaps), key=lambda item: float(item[1]), reverse=True):
        other = by_population(rival, of_s) @ member
        moved = 0.5 * np.abs(shares(other) - shares(flow)).sum(1) > DIFFERENT_ANSWER
        swap[moved], gap[moved] = other[moved].argmax(1), min(float(cost), 1.0)
    return swap, gap


def _names(domain: Domain, tested: Tested, population: np.ndarray) -> list[str]:
    """Names of populations: their labels, else the two features that stand out most, linked ones where there are any.

    Several populations of one label are numbered.
    """
    landmarks, known = tested.landmarks[domain.name], tested.known
    if known.labels is not None:
        codes = known.labels[domain.name]
        votes = np.zeros((population.max() + 1, len(tested.label_names)))
        labelled = codes >= 0
        np.add.at(votes, (population[landmarks.label[labelled]], codes[labelled]), 1)
        if votes.any(1).all():
            own, count = votes.argmax(1), Counter(votes.argmax(1).tolist())
            turn = [int((own[:i] == label).sum()) + 1 for i, label in enumerate(own)]
            names = [str(tested.label_names[i]) for i in own]
            return [f"{name} {k}" if count[i] > 1 else name for name, i, k in zip(names, own.tolist(), turn)]
    if known.n_links >= MIN_TESTED_LINKS:
        positions = np.unique(known.positions(domain.name))
    else:
        positions = np.asarray(domain.transform.encoded)[:200]
    blocks = column_blocks(len(domain.x), len(positions))
    values = np.hstack([landmarks.mean(domain.zscored(positions[of])) for of in blocks])
    mean = by_population(landmarks.mass[:, None] * values, population)
    mean /= np.bincount(population, landmarks.mass)[:, None]
    top = np.argsort(-mean, axis=1, kind="stable")[:, :2]
    features = domain.modality.features[positions]
    return [f"{domain.name} {i + 1} ({', '.join(str(features[j]) for j in row)})" for i, row in enumerate(top)]


def populations(landmarks: Landmarks, labels: np.ndarray | None = None) -> np.ndarray:
    """Population (m,) of each landmark: its label (codes of cells) where all have one, else at most 10 Ward clusters."""
    from sklearn.cluster import AgglomerativeClustering

    m = len(landmarks.mass)
    if labels is not None:
        votes = np.zeros((m, labels.max() + 1))
        np.add.at(votes, (landmarks.label[labels >= 0], labels[labels >= 0]), 1)
        if votes.any(1).all():
            return np.unique(votes.argmax(1), return_inverse=True)[1]
    if m < 8:
        return np.arange(m)
    return AgglomerativeClustering(min(N_POPULATIONS, m // 4)).fit_predict(landmarks.centroids)


def by_population(values: np.ndarray, population: np.ndarray) -> np.ndarray:
    """Sums of rows (m × …) by population."""
    out = np.zeros((population.max() + 1, *values.shape[1:]))
    np.add.at(out, population, values)
    return out


def disagreement(plan: np.ndarray, rivals: np.ndarray, population: np.ndarray) -> np.ndarray:
    """Total variation (rivals × m) between where a plan and each rival send a landmark, in populations of the target."""
    member = np.eye(population.max() + 1)[population]
    there = shares(plan) @ member
    return 0.5 * np.abs(shares(rivals) @ member - there).sum(-1)


def swap_gaps(held: HeldOut, p: np.ndarray, population: np.ndarray, *, way: int) -> np.ndarray:
    """Evidence (k × k) of what a plan did not know against a swap of two populations, -1 to 1, of side `way` (0, 1).

    Column f speaks for the order of populations P and Q as (A_Pf - A_Qf)(C_Pf - C_Qf), A: measured, C: carried over;
    the sum over columns, over the sum of absolute values. 1: all agree, 0: the swap would change nothing.
    """
    a, b = held.columns if way == 0 else held.columns[::-1]
    carried_over = np.empty(a.shape)
    for k, plan in enumerate(held.plans):
        carried_over[:, held.fold == k] = shares(plan if way == 0 else plan.T) @ b[:, held.fold == k]
    mass = by_population(p, population)[:, None]
    own = by_population(p[:, None] * a, population) / mass
    other = by_population(p[:, None] * carried_over, population) / mass
    gain = (own[:, None] - own[None]) * (other[:, None] - other[None])
    gap = gain.sum(2) / np.maximum(np.abs(gain).sum(2), 1e-12)
    np.fill_diagonal(gap, 1.0)
    return gap
