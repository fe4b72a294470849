"""What the evidence for an alignment amounts to: grades in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from scmmgan.model.defaults import (
    ALPHA,
    CLOSE_COST,
    EVIDENT,
    GRADES,
    MAX_DEPTH,
    MAX_NEARER,
    MAX_NEARER_IN_PART,
    MAX_TESTED_LINKS,
    MIN_CONTRADICTION,
    MIN_CORRELATION,
    MIN_FEATURES,
    MIN_LABEL_PURITY,
    MIN_SHARE,
    MIN_TESTED_LINKS,
    MIN_TESTED_PAIRS,
    N_NAMED,
)
from scmmgan.model.problem import Pair, Problem

logger = logging.getLogger("scmmgan")


def verdicts(
    records: Mapping[Pair, Mapping[str, Any]], *more: Mapping[Pair, Mapping[str, Any]]
) -> dict[Pair, dict[str, Any]]:
    """Records with further numbers and verdicts; each is logged in a line, a warning where it is not supported at all."""
    found = {}
    for pair, record in records.items():
        merged = dict(record)
        for of in more:
            merged |= of[pair]
        found[pair] = verdict(merged, pair)
    for pair, record in found.items():
        if "through" in record and record["grade"] == "not identifiable":
            found[pair] = through(record, pair, found)
    for pair, record in found.items():
        level = logging.INFO if record["grade"] in ("supported", "in part") else logging.WARNING
        logger.log(level, "%s", headline(record, pair))
    return found


def without_coupling(problem: Problem, method: str) -> dict[Pair, dict[str, Any]]:
    """Records of a method without a coupling, logged: not identifiable where nothing was given, else not assessed."""
    found = {}
    for pair, known in problem.known.items():
        given = [name for name in ("links", "pairs", "labels") if getattr(known, name) is not None]
        grade = "not assessed" if given else "not identifiable"
        used = f"It used {' and '.join(given)}." if given else "Nothing was given that says which populations correspond: the map may be a mirror image."  # fmt: skip
        text = (
            f"{pair[0]} and {pair[1]}: {grade}. method {method!r} has no coupling that could be made again without a fifth of "
            f"what it knew, so that nothing was tested. {used}"
        )
        found[pair] = {"verdict": grade, "grade": grade, "supported": False, "statement": text, "kind": "none"}
        logger.log(logging.INFO if given else logging.WARNING, "%s", text)
    return found


def through(record: Mapping[str, Any], pair: Pair, all_of: Mapping[Pair, Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict on two modalities that have no evidence of their own: that of the weaker way to the third one.

    It is supported in part at most: nothing tests the composed map itself.
    """
    third = str(record["through"])
    legs = [all_of[leg] if (leg := (name, third)) in all_of else all_of[third, name] for name in pair]
    grade = min((str(leg["grade"]) for leg in legs), key=GRADES.index)
    words = {"weak": f"weak: through {third}, no more", "not identifiable": f"not identifiable through {third}"}
    verdict = words.get(grade, f"supported in part through {third}")
    ways = " ".join(f"{name} and {third} are {leg['verdict']}." for name, leg in zip(pair, legs))
    statement = f"{pair[0]} and {pair[1]}: {verdict}. Nothing of the two themselves was tested. {ways}"
    return {
        **record,
        "verdict": verdict,
        "grade": "in part" if grade == "supported" else grade,
        "supported": False,
        "statement": statement,
    }


def warn_of_depth(records: Mapping[Pair, Mapping[str, Any]]) -> None:
    """Log where depth is the main content of a map."""
    for pair, record in records.items():
        for name in pair:
            if record.get(f"depth_{name}", 0.0) >= MAX_DEPTH:
                logger.warning("%s", _of_depth(record, name))


def headline(record: Mapping[str, Any], pair: Pair) -> str:
    """The verdict in a line: what was found, what it means, where the numbers are."""
    found = f"{pair[0]} and {pair[1]}: {record['verdict']}"
    if record["grade"] == "not identifiable":
        by_shape = "Shapes alone choose between mirror images, and n" if record["kind"] == "geometry" else "N"
        return (
            f"{found}. {by_shape}othing shows that cells were mapped to their like: draw no conclusions from mapped values. "
            "Give links, 100 pairs or labels; what was tested: `scmmgan.get.diagnosis`."
        )
    if record["grade"] == "weak":
        return f"{found}. Draw no conclusions from single mapped values; what was tested: `scmmgan.get.diagnosis`."
    parts = []
    if "links_mean" in record:
        share = record.get("links_share", np.nan)
        parts.append(
            f"held-out links correlate {record['links_mean']:.2f}, shuffled ones at most {record['links_null'].max():.2f}"
            + (f", noise allows {record['links_ceiling']:.2f}" if np.isfinite(share) else "")
        )
    if "pairs_mean" in record:
        parts.append(f"{record['pairs_mean']:.0%} of the cells are nearer than held-out partners, chance is 50%")
    numbers = f" ({'; '.join(parts)})" if parts else ""
    which = " Which ones: table `links`." if record["grade"] == "in part" and "links" in record else ""
    return f"{found}{numbers}.{which} All numbers: `scmmgan.get.diagnosis`."


def verdict(record: dict[str, Any], pair: Pair) -> dict[str, Any]:
    """The record with `verdict`, `grade`, `supported` and `statement`, in front."""
    record = {**record, **_counts(record, pair)}
    by = [name for name in ("links", "pairs") if _supports(name, record)]
    against = "pairs_mean" in record and record["pairs_n"] >= MIN_CONTRADICTION and not _pairs_hold(record)
    follows = record.get("quality_follows", 0.0) <= MAX_NEARER
    agree = record.get("restart_share", 1.0) > 0.5
    if follows and agree and by and not against:
        grade, words = "supported", f"supported by {' and '.join(by)}"
    elif follows and agree and (part := _in_part(record, against=against)):
        grade, words = "in part", f"supported in part by {part}"
    elif _significant(record):
        grade, words = (
            "weak",
            f"weak: more than chance, {_lacks(record, follows=follows, agree=agree, against=against)}",
        )
    else:
        grade = words = "not identifiable"
    swaps = _swappable(record)
    # rivals of nearly the same cost: where links or pairs decide, populations are merely hard to distinguish
    rivals = record["kind"] == "geometry"
    if swaps and rivals:
        words += f"; ambiguous: {swaps[0][0]} and {swaps[0][1]} could be swapped"
    text = [f"{pair[0]} and {pair[1]}: {words}.", *_reasons(record, pair, follows=follows, against=against)]
    if len(swaps) > rivals:
        text.append(f"Hard to distinguish, could be swapped: {'; '.join(' with '.join(names) for names in swaps[:3])}.")
    return {"verdict": words, "grade": grade, "supported": grade == "supported", "statement": " ".join(text), **record}


def _counts(record: Mapping[str, Any], pair: Pair) -> dict[str, int]:
    """How many different features the links have, on the side with fewer, and how many have evidence of their own."""
    if "links" not in record:
        return {}
    sides = [record["links"][name].astype(str) for name in pair]
    evident = record["links"]["q"] < EVIDENT
    return {
        "links_features": min(len(np.unique(side)) for side in sides),
        "links_evident": min(len(np.unique(side[evident])) for side in sides),
    }


def _significant(record: Mapping[str, Any]) -> bool:
    """Whether any evidence is better than every shuffled table."""
    return any(record.get(f"{name}_p", 1.0) <= ALPHA + 1e-12 for name in ("links", "pairs", "labels"))


def _beats(name: str, record: Mapping[str, Any]) -> bool:
    """Whether this evidence is there and better than every shuffled table."""
    return f"{name}_p" in record and record[f"{name}_p"] <= ALPHA + 1e-12


def _supports(name: str, record: Mapping[str, Any]) -> bool:
    """Significant against shuffled tables, and large."""
    if not _beats(name, record):
        return False
    if name == "pairs":
        return bool(record["pairs_n"] >= MIN_TESTED_PAIRS and _pairs_hold(record, record["pairs_error"]))
    # one feature's noise is in all of its links: they agree with each other for no better reason
    return bool(
        _links_hold(record) and not _overruled(record, MIN_CORRELATION) and record["links_features"] >= MIN_TESTED_LINKS
    )


def _in_part(record: Mapping[str, Any], *, against: bool) -> str:
    """What supports an alignment in part, with its number; empty where nothing does. Pairs may speak `against` the rest."""
    if _beats("links", record) and not against and not _lacking_links(record):
        return f"links: {record['links_evident']} of {record['links_features']} features"
    if _beats("pairs", record) and not _lacking_pairs(record):
        return f"pairs: {_evident_pairs(record)} of {len(record['pairs'])} pairs"
    if _beats("labels", record) and not against and record["labels_separated"] >= MIN_LABEL_PURITY:
        return f"labels: {int(record['labels_n'])} labels"
    return ""


def _lacking_links(record: Mapping[str, Any]) -> str:
    """What links that beat every shuffled table lack to support in part; empty where nothing."""
    if _overruled(record):
        return "but labels or pairs lead the coupling elsewhere"
    if record["links_features"] < MIN_TESTED_LINKS:
        return f"less than {MIN_TESTED_LINKS} linked features"
    if record["links_evident"] < MIN_FEATURES:
        return f"less than {MIN_FEATURES} features by themselves"
    if not record["links_share"] >= MIN_SHARE:
        return f"less than {MIN_SHARE:.0%} of what noise allows"
    return ""


def _lacking_pairs(record: Mapping[str, Any]) -> str:
    """What pairs that beat every shuffled table lack to support in part; empty where nothing."""
    if record["pairs_n"] < MIN_TESTED_PAIRS:
        return f"less than {MIN_TESTED_PAIRS} pairs"
    if _evident_pairs(record) < MIN_FEATURES:
        return f"less than {MIN_FEATURES} pairs by themselves"
    if max(record["pairs_mean"] + record["pairs_error"], record["pairs_in_use"]) > MAX_NEARER_IN_PART:
        return f"less than {1 - MAX_NEARER_IN_PART:.0%} of the cells farther than held-out partners"
    return ""


def _evident_pairs(record: Mapping[str, Any]) -> int:
    return int((record["pairs_q"] < EVIDENT).sum())


def _lacks(record: Mapping[str, Any], *, follows: bool, agree: bool, against: bool) -> str:
    """What evidence that is better than chance lacks to support in part."""
    if not follows:
        return "but the trained map does not follow the coupling"
    if not agree:
        return "but restarts disagree"
    if _beats("links", record) and (lacking := _lacking_links(record)):
        return lacking
    if against and (_beats("links", record) or _beats("labels", record)):
        return "but known pairs contradict it"
    if _beats("pairs", record):
        return _lacking_pairs(record)
    return f"less than {MIN_LABEL_PURITY:.0%} label purity"


def _links_hold(record: Mapping[str, Any]) -> bool:
    """Whether links agree enough, with a margin: few links, or links that disagree, leave the mean uncertain."""
    return bool(record["links_mean"] - record["links_error"] >= MIN_CORRELATION)


def _pairs_hold(record: Mapping[str, Any], margin: float = 0.0) -> bool:
    """Few cells are nearer than the partners, with a margin: few pairs, or pairs that disagree, leave the mean uncertain."""
    near = max(record["pairs_mean"] + margin, record["pairs_in_use"]) <= MAX_NEARER
    return bool(near and record["pairs_p"] <= ALPHA + 1e-12)


def _overruled(record: Mapping[str, Any], least: float = 0.0) -> bool:
    """Whether the coupling in use carries the links over worse than they say by themselves."""
    in_use = record.get("links_in_use", record["links_mean"])
    return bool(in_use < max(least, record["links_mean"] / 2))


def _swappable(record: Mapping[str, Any]) -> list[Pair]:
    """Names of populations that could be swapped, the least certain first."""
    table = record["populations"]
    names = table["partner" if record["kind"] == "geometry" else "population"]
    found = np.flatnonzero((table["swap"] != "") & (table["gap"] < record["swap_limit"]))
    seen: dict[frozenset[str], Pair] = {}
    for i in found[np.lexsort((-table["share"][found], table["gap"][found]))]:
        first, second = str(names[i]), str(table["swap"][i])
        if first != second:
            seen.setdefault(frozenset((first, second)), (first, second))
    return list(seen.values())


def _reasons(record: Mapping[str, Any], pair: Pair, *, follows: bool, against: bool) -> list[str]:
    """The numbers that the verdict rests on, in sentences."""
    text = []
    if not follows:
        text.append(f"The trained map does not follow the coupling ({record['quality_follows']:.2f} of the cells are nearer than the anchor).")  # fmt: skip
    if "restart_share" in record:
        text.append(f"{record['restart_share']:.0%} of {len(record['restart_modes'])} restarts give the same map.")
    if "links_mean" in record:
        text.append(_of_links(record, pair))
    if "pairs_mean" in record:
        text.append(
            f"Of all cells, {record['pairs_mean']:.0%} ± {record['pairs_error']:.0%} are nearer than the true partner of "
            f"{len(record['pairs'])} held-out pairs (shuffled pairs {record['pairs_null'].mean():.0%}, at least "
            f"{record['pairs_null'].min():.0%}); {_evident_pairs(record)} pairs have q < {EVIDENT:.2f} by themselves. "
            f"Required: less than every shuffled table, and at most {MAX_NEARER:.0%}, the standard error added; in part: "
            f"{MAX_NEARER_IN_PART:.0%}, and {MIN_FEATURES} such pairs."
            + (" The pairs contradict the rest." if against and _supports("links", record) else "")
        )
    if "labels_separated" in record:
        text.append(
            f"Labels have a purity of {record['labels_separated']:.2f} among neighbours (0: chance, 1: perfect), and their "
            f"distances agree between the modalities (r = {record['labels_order']:.2f}, p = {record['labels_p']:.3f}); "
            "inside a label they say nothing."
        )
    if record["kind"] == "geometry":
        gaps = record.get("gaps", np.empty(0))
        near = int((gaps <= CLOSE_COST).sum())
        text.append(f"Shapes alone choose between mirror images, and no cost certifies the choice: {near} other couplings cost at most {CLOSE_COST:.0%} more.")  # fmt: skip
    text += [_of_depth(record, name) for name in pair if record.get(f"depth_{name}", 0.0) >= MAX_DEPTH]
    return text


def _of_links(record: Mapping[str, Any], pair: Pair) -> str:
    null, links, n = record["links_null"], record["links"], len(record["links"]["correlation"])
    text = [
        f"{min(n, MAX_TESTED_LINKS)} held-out links correlate {record['links_mean']:.2f} ± {record['links_error']:.2f} on "
        f"average with their partners carried over (shuffled links {null.mean():.2f}, at most {null.max():.2f})."
    ]
    if np.isfinite(record["links_share"]):
        text.append(
            f"Noise allows {record['links_ceiling']:.2f} ± {record['links_ceiling_error']:.2f}, as far as halves of each "
            f"modality predict each other: {min(record['links_share'], 1):.0%} of it is reached."
        )
    best = np.argsort(-links["correlation"], kind="stable")
    names = dict.fromkeys(str(links[pair[1]][i]) for i in best if links["q"][i] < EVIDENT)
    named = f": {', '.join(list(names)[:N_NAMED])}{', …' if len(names) > N_NAMED else ''}" if names else ""
    text.append(
        f"{record['links_evident']} of {record['links_features']} features have q < {EVIDENT:.2f} by themselves{named}."
    )
    text.append(
        f"Required: {MIN_CORRELATION:.2f}, the standard error taken off, more than every shuffled table, and "
        f"{MIN_TESTED_LINKS} links of different features; in part: more than every shuffled table, {MIN_FEATURES} features "
        f"by themselves, and {MIN_SHARE:.0%} of what noise allows."
    )
    if record["links_mean"] >= MIN_CORRELATION and _overruled(record, MIN_CORRELATION):
        text.append(f"The coupling in use carries them over at {record['links_in_use']:.2f}: labels or pairs contradict them.")  # fmt: skip
    elif _beats("links", record) and not _links_hold(record):
        text.append("That is more than chance, and may be no more than other tissues share.")
    return " ".join(text)


def _of_depth(record: Mapping[str, Any], name: str) -> str:
    return (
        f"Features mapped from {name} correlate {record[f'depth_{name}']:.2f} on average (absolute values) with the log "
        f"depth of its cells: depth is the main content of this map. Score it by `scmmgan.metrics.column_correlation(given=)`."
    )
