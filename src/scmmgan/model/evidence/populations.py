"""The cheap diagnosis of a coupling: held-out evidence, populations and their rivals (METHOD §8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.model.coupling import couple as _prior
from scmmgan.model.evidence import verdict as _verdict

if TYPE_CHECKING:
    from scmmgan.data.modality import Domain
    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.coupling.landmarks import Landmarks
    from scmmgan.model.evidence.heldout import HeldOut

Pair = tuple[str, str]


@dataclass(frozen=True)
class Given:
    """What is known of one pair of modalities, and the landmarks that it is tested on."""

    a: Domain
    b: Domain
    table: pd.DataFrame | None
    linked: dict[str, np.ndarray]
    pairs: np.ndarray | None
    labels: dict[str, np.ndarray] | None
    label_names: Sequence[str]
    landmarks: dict[str, Landmarks]
    mean: dict[str, np.ndarray]

    @property
    def names(self) -> Pair:
        """The two modalities."""
        return self.a.name, self.b.name

    @property
    def x(self) -> dict[str, np.ndarray]:
        """Model-space cells."""
        return {d.name: d.x for d in (self.a, self.b)}


def diagnose_couplings(
    domains: Sequence[Domain],
    couplings: Mapping[Pair, Coupling],
    tables: Mapping[Pair, pd.DataFrame],
    pairs: Mapping[Pair, np.ndarray],
    labels: Mapping[str, np.ndarray] | None,
    label_names: Sequence[str],
    *,
    shared: bool,
    random_state: int,
) -> tuple[dict[Pair, dict[str, Any]], dict[Pair, np.ndarray]]:
    """Records of all unordered pairs of modalities, and the ambiguous cells (n,) of all ordered ones."""
    from threadpoolctl import threadpool_limits

    records: dict[Pair, dict[str, Any]] = {}
    ambiguous: dict[Pair, np.ndarray] = {}
    # many small products, and the order in which threads add up decides the last bit
    with threadpool_limits(1):
        for a, b in combinations(domains, 2):
            given: dict[str, Any] = {
                "table": tables.get((a.name, b.name)), "pairs": pairs.get((a.name, b.name)), "labels": labels,
                "label_names": label_names, "shared": shared, "random_state": random_state,
            }  # fmt: skip
            records[a.name, b.name], flags = _diagnose(a, b, couplings, **given)
            ambiguous |= flags
    return records, ambiguous


def _diagnose(
    a: Domain,
    b: Domain,
    couplings: Mapping[Pair, Coupling],
    *,
    table: pd.DataFrame | None,
    pairs: np.ndarray | None,
    labels: Mapping[str, np.ndarray] | None,
    label_names: Sequence[str],
    shared: bool,
    random_state: int,
) -> tuple[dict[str, Any], dict[Pair, np.ndarray]]:
    """Record of two modalities, and the ambiguous cells of both."""
    from scmmgan.model.evidence import heldout as diagnosis

    pair = (a.name, b.name)
    sides = {s: diagnosis.coarsen(couplings[t, s].landmarks, random_state=random_state) for s, t in (pair, pair[::-1])}
    linked = {}
    if table is not None:
        rows = np.random.default_rng(random_state).permutation(len(table))[: diagnosis.MAX_LINKS]
        table = table.iloc[np.sort(rows)].reset_index(drop=True)
        linked = _prior.linked_values(a, b, table, shared=False)
    landmarks = {m: s[0] for m, s in sides.items()}
    mean = {m: landmarks[m].mean(v) for m, v in linked.items()}
    own = None if labels is None else {m: labels[m] for m in pair}
    given = Given(a, b, table, linked, pairs, own, label_names, landmarks, mean)
    plan = diagnosis.coarse_plan(couplings, pair, sides)
    record, held, rivals = _evidence(given, couplings[pair], plan, sides, shared, random_state)
    record["populations"], flags = _populations(given, couplings, plan, held, rivals, record)
    for s, t in (pair, pair[::-1]):
        record[f"ambiguous_{s}"] = float(flags[s].mean())
        if couplings[s, t].relaxed:
            record[f"unmatched_{s}"] = float(1 - couplings[s, t].weight.mean())
    return record, {(a.name, b.name): flags[a.name], (b.name, a.name): flags[b.name]}


def _evidence(
    given: Given,
    coupling: Coupling,
    plan: np.ndarray,
    sides: Mapping[str, tuple[Landmarks, np.ndarray]],
    shared: bool,
    random_state: int,
) -> tuple[dict[str, Any], HeldOut | None, np.ndarray]:
    """Numbers of the verdict; the links or pairs that tell populations apart; rival plans (r × m × m')."""
    from scmmgan.model.evidence import heldout as diagnosis

    (a, b), kind = given.names, str(coupling.info["kind"])
    p, q = given.landmarks[a].mass, given.landmarks[b].mass
    record: dict[str, Any] = {"kind": kind, "swap_limit": _verdict.CLOSE if kind == "geometry" else _verdict.SWAPPABLE}
    held, by_links = None, given.table is not None and kind == "links"
    if given.table is not None:
        u, v = given.mean[a], given.mean[b]
        if by_links:
            groups = diagnosis.link_groups(*(given.table[m].to_numpy(dtype=str) for m in (a, b)))
            held = diagnosis.held_out_links(u, v, p, q, groups, refine=not shared, random_state=random_state)
            # labels or pairs may have led the coupling in use away from what the links say
            record["links_in_use"] = float(diagnosis.carried(plan, u, v, p, q).mean())
        else:
            held = diagnosis.carried_links(plan, u, v, p, q, random_state=random_state)
        record |= _numbers("links", held)
        record["links"] = given.table[[a, b]].astype(str).astype(object).assign(correlation=held.score)
    if given.pairs is not None:
        linked = given.linked if by_links else None
        tested = diagnosis.held_out_pairs(given.x, given.landmarks, given.pairs, linked, random_state=random_state)
        record |= _numbers("pairs", tested)
        record |= {"pairs": tested.score, "pairs_n": len(given.pairs)}
        record["pairs_in_use"] = _in_use(given, coupling)
        held = held if by_links else tested
    if given.labels is not None:
        borne_out = {d.name: d.borne_out for d in (given.a, given.b)}
        evidence = diagnosis.label_evidence(given.x, given.labels, borne_out)
        record |= {f"labels_{k}": v for k, v in evidence.items()}
    if kind == "geometry" and len(coupling.rivals):
        record["gaps"] = np.asarray(coupling.info["gaps"], dtype=float)
        rows, columns = (np.eye(len(given.landmarks[m].mass))[sides[m][1]] for m in (a, b))
        return record, held, np.stack([rows.T @ rival @ columns for rival in coupling.rivals])
    rivals = held.plans if held is not None and kind != "geometry" else np.empty((0, *plan.shape))
    return record, held, rivals


def _numbers(name: str, held: HeldOut) -> dict[str, Any]:
    return {
        f"{name}_mean": held.mean, f"{name}_error": held.error, f"{name}_p": held.p, f"{name}_null": held.null
    }  # fmt: skip


def _in_use(given: Given, coupling: Coupling) -> float:
    """Share of cells nearer than the known partner to where the coupling in use puts a cell by itself."""
    from scmmgan.model.evidence import heldout as diagnosis

    b = given.b.name
    pairs = np.asarray(given.pairs)[: diagnosis.MAX_CELLS]
    places = np.asarray(coupling.plan[pairs[:, 0]] @ coupling.landmarks.mean(given.x[b]))
    cells = given.x[b][:: max(1, len(given.x[b]) // diagnosis.MAX_CELLS)]
    return float(diagnosis.nearer(cells, places, given.x[b][pairs[:, 1]]).mean())


# --- populations -------------------------------------------------------------------------------------------------


def _populations(
    given: Given,
    couplings: Mapping[Pair, Coupling],
    plan: np.ndarray,
    held: HeldOut | None,
    rivals: np.ndarray,
    record: Mapping[str, Any],
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """One row per population of either side: partner, next best partner and swap gap, shares; cells that are ambiguous."""
    from scmmgan.model.evidence import heldout as diagnosis

    a, b = given.names
    of = {m: diagnosis.populations(given.landmarks[m], (given.labels or {}).get(m)) for m in (a, b)}
    names = {d.name: _names(d, given, of[d.name]) for d in (given.a, given.b)}
    gaps = np.asarray(record.get("gaps", np.zeros(len(rivals))))
    tables, flags = [], {}
    for way, (s, t) in enumerate(((a, b), (b, a))):
        own, others = (plan, rivals) if way == 0 else (plan.T, rivals.transpose(0, 2, 1))
        mass = given.landmarks[s].mass
        # rivals that cost far more are no answer
        close = others[gaps <= _verdict.CLOSE]
        apart = diagnosis.disagreement(own, close, of[t])
        flagged = np.any(apart > diagnosis.DIFFERENT, axis=0, keepdims=True)[0]
        flags[s] = flagged[given.landmarks[s].label]
        flow = diagnosis.by_population(own, of[s]) @ np.eye(of[t].max() + 1)[of[t]]
        share = diagnosis.by_population(mass, of[s])
        if str(record["kind"]) == "geometry":
            swap, gap = _rival_answers(flow, others, gaps, of[s], of[t])
            swapped = [names[t][i] if i >= 0 else "" for i in swap]
        else:
            swap, gap = _least_gap(held, mass, of[s], way)
            swapped = [names[s][i] if i >= 0 else "" for i in swap]
        lost = 1 - couplings[s, t].weight if couplings[s, t].relaxed else np.zeros(len(flags[s]))
        at = of[s][given.landmarks[s].label]
        tables.append(
            pd.DataFrame(
                {
                    "modality": s,
                    "population": names[s],
                    "share": share,
                    "partner": [names[t][i] for i in flow.argmax(1)],
                    "swap": swapped,
                    "gap": gap,
                    "ambiguous": np.bincount(at, flags[s]) / np.bincount(at),
                    "unmatched": np.bincount(at, lost) / np.bincount(at),
                }
            ).astype(dict.fromkeys(("modality", "population", "partner", "swap"), object))
        )
    return pd.concat(tables, ignore_index=True), flags


def _least_gap(
    held: HeldOut | None, mass: np.ndarray, population: np.ndarray, way: int
) -> tuple[np.ndarray, np.ndarray]:
    """For every population the one it could best be swapped with, by what the plans did not know; (-1, 1) if none."""
    from scmmgan.model.evidence import heldout as diagnosis

    k = population.max() + 1
    if held is None or k < 2:
        return np.full(k, -1), np.ones(k)
    found = diagnosis.swap_gaps(held, mass, population, way=way)
    np.fill_diagonal(found, np.inf)
    return found.argmin(1), found.min(1)


def _rival_answers(
    flow: np.ndarray, rivals: np.ndarray, gaps: np.ndarray, of_s: np.ndarray, of_t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For every population the cheapest rival's other partner, and that rival's cost gap; (-1, 1) where all agree."""
    from scmmgan.model.evidence import heldout as diagnosis

    k = len(flow)
    swap, gap = np.full(k, -1), np.ones(k)
    member = np.eye(of_t.max() + 1)[of_t]
    for rival, cost in sorted(zip(rivals, gaps), key=lambda item: float(item[1]), reverse=True):
        other = diagnosis.by_population(rival, of_s) @ member
        moved = 0.5 * np.abs(diagnosis.shares(other) - diagnosis.shares(flow)).sum(1) > diagnosis.DIFFERENT
        swap[moved], gap[moved] = other[moved].argmax(1), min(float(cost), 1.0)
    return swap, gap


def _names(domain: Domain, given: Given, population: np.ndarray) -> list[str]:
    """Names of populations: their labels, or the two features that stand out most, linked ones where there are any."""
    landmarks = given.landmarks[domain.name]
    if given.labels is not None:
        votes = np.zeros((population.max() + 1, len(given.label_names)))
        known = given.labels[domain.name] >= 0
        np.add.at(votes, (population[landmarks.label[known]], given.labels[domain.name][known]), 1)
        if votes.any(1).all() and len(set(votes.argmax(1))) == len(votes):
            return [str(given.label_names[i]) for i in votes.argmax(1)]
    if given.table is not None and len(given.table) >= _prior.MIN_HELD_OUT:
        positions = np.unique(domain.var_names.get_indexer(pd.Index(given.table[domain.name])))
    else:
        positions = np.asarray(domain.transform.encoded)[:200]
    values = landmarks.mean(domain.zscored(positions))
    mean = np.zeros((population.max() + 1, len(positions)))
    np.add.at(mean, population, landmarks.mass[:, None] * values)
    mean /= np.bincount(population, landmarks.mass)[:, None]
    top = np.argsort(-mean, axis=1, kind="stable")[:, :2]
    return [
        f"{domain.name} {i + 1} ({', '.join(str(domain.var_names[positions[j]]) for j in row)})"
        for i, row in enumerate(top)
    ]
