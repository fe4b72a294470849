"""What the evidence for an alignment amounts to: verdicts in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from scmmgan.model.defaults import (
    ALPHA,
    CLOSE_COST,
    MAX_NEARER,
    MIN_CONTRADICTION,
    MIN_CORRELATION,
    MIN_LABEL_PURITY,
    MIN_TESTED_LINKS,
    MIN_TESTED_PAIRS,
)
from scmmgan.model.problem import Pair

logger = logging.getLogger("scmmgan")


def verdicts(
    records: Mapping[Pair, Mapping[str, Any]], more: Mapping[Pair, Mapping[str, Any]]
) -> dict[Pair, dict[str, Any]]:
    """Records with further numbers and verdicts; each is logged in a line, a warning where nothing supports it."""
    found = {pair: verdict({**record, **more[pair]}, pair) for pair, record in records.items()}
    for pair, record in found.items():
        logger.log(logging.INFO if record["supported"] else logging.WARNING, "%s", headline(record, pair))
    return found


def headline(record: Mapping[str, Any], pair: Pair) -> str:
    """The verdict in a line: what was found, what it means, where the numbers are."""
    found = f"{pair[0]} and {pair[1]}: {record['verdict']}"
    if not record["supported"]:
        by_shape = "Shapes alone choose between mirror images, and n" if record["kind"] == "geometry" else "N"
        return (
            f"{found}. {by_shape}othing shows that cells were mapped to their like: draw no conclusions from mapped values. "
            "Give links, 100 pairs or labels; what was tested: `scmmgan.get.diagnosis`."
        )
    parts = []
    if "links_mean" in record:
        parts.append(
            f"held-out links correlate {record['links_mean']:.2f}, shuffled ones at most {record['links_null'].max():.2f}"
        )
    if "pairs_mean" in record:
        parts.append(f"{record['pairs_mean']:.0%} of the cells are nearer than held-out partners, chance is 50%")
    numbers = f" ({'; '.join(parts)})" if parts else ""
    return f"{found}{numbers}. All numbers: `scmmgan.get.diagnosis`."


def verdict(record: dict[str, Any], pair: Pair) -> dict[str, Any]:
    """The record with `verdict`, `supported` and `statement`, in front."""
    by = [name for name in ("links", "pairs") if _supports(name, record)]
    against = "pairs_mean" in record and record["pairs_n"] >= MIN_CONTRADICTION and not _pairs_hold(record)
    follows = record.get("quality_follows", 0.0) <= MAX_NEARER
    swaps = _swappable(record)
    labels = record.get("labels_separated", 0.0) >= MIN_LABEL_PURITY and record.get("labels_p", 1.0) <= ALPHA
    if not follows or record.get("restart_share", 1.0) <= 0.5:
        words = "not identifiable"
    elif by and not against:
        words = f"supported by {' and '.join(by)}"
    elif labels and not against:
        words = "supported by labels"
    elif record["kind"] == "geometry" and swaps and not against:
        words = f"ambiguous: populations {swaps[0][0]} and {swaps[0][1]} could be swapped"
    else:
        words = "not identifiable"
    supported = words.startswith("supported")
    text = [f"{pair[0]} and {pair[1]}: {words}.", *_reasons(record, follows=follows, against=against)]
    if supported and swaps:
        listed = "; ".join(" with ".join(names) for names in swaps[:3])
        text.append(f"Hard to distinguish, could be swapped: {listed}.")
    return {"verdict": words, "supported": supported, "statement": " ".join(text), **record}


def _supports(name: str, record: Mapping[str, Any]) -> bool:
    """Significant against shuffled tables, and large."""
    if f"{name}_mean" not in record or record[f"{name}_p"] > ALPHA + 1e-12:
        return False
    if name == "pairs":
        return bool(record["pairs_n"] >= MIN_TESTED_PAIRS and _pairs_hold(record, record["pairs_error"]))
    large = _links_hold(record) and not _overruled(record)
    # one feature's noise is in all of its links: they agree with each other for no better reason
    sides = [of for name, of in record["links"].items() if name != "correlation"]
    features = min(len(np.unique(side.astype(str))) for side in sides)
    return bool(large and (record["kind"] != "links" or features >= MIN_TESTED_LINKS))


def _links_hold(record: Mapping[str, Any]) -> bool:
    """Whether links agree enough, with a margin: few links, or links that disagree, leave the mean uncertain."""
    return bool(record["links_mean"] - record["links_error"] >= MIN_CORRELATION)


def _pairs_hold(record: Mapping[str, Any], margin: float = 0.0) -> bool:
    """Few cells are nearer than the partners, with a margin: few pairs, or pairs that disagree, leave the mean uncertain."""
    near = max(record["pairs_mean"] + margin, record["pairs_in_use"]) <= MAX_NEARER
    return bool(near and record["pairs_p"] <= ALPHA + 1e-12)


def _overruled(record: Mapping[str, Any]) -> bool:
    """Whether the coupling in use carries the links over worse than they say by themselves."""
    in_use = record.get("links_in_use", record["links_mean"])
    return bool(in_use < max(MIN_CORRELATION, record["links_mean"] / 2))


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


def _reasons(record: Mapping[str, Any], *, follows: bool, against: bool) -> list[str]:
    """The numbers that the verdict rests on, in sentences."""
    text = []
    if not follows:
        text.append(f"The trained map does not follow the coupling ({record['quality_follows']:.2f} of the cells are nearer than the anchor).")  # fmt: skip
    if "restart_share" in record:
        text.append(f"{record['restart_share']:.0%} of {len(record['restart_modes'])} restarts give the same map.")
    if "links_mean" in record:
        text.append(_of_links(record))
    if "pairs_mean" in record:
        text.append(
            f"Of all cells, {record['pairs_mean']:.0%} ± {record['pairs_error']:.0%} are nearer than the true partner of "
            f"{len(record['pairs'])} held-out pairs (shuffled pairs {record['pairs_null'].mean():.0%}, at least "
            f"{record['pairs_null'].min():.0%}). Required: at most {MAX_NEARER:.0%}, the standard error added, and less "
            "than every shuffled table."
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
    return text


def _of_links(record: Mapping[str, Any]) -> str:
    null = record["links_null"]
    overruled = record["links_mean"] >= MIN_CORRELATION and _overruled(record)
    text = (
        f"{len(record['links']['correlation'])} held-out links correlate {record['links_mean']:.2f} ± "
        f"{record['links_error']:.2f} on average with their partners carried over (shuffled links {null.mean():.2f}, at "
        f"most {null.max():.2f}). Required: {MIN_CORRELATION:.2f}, the standard error taken off, more than every shuffled "
        f"table, and {MIN_TESTED_LINKS} links of different features."
    )
    if overruled:
        return f"{text} The coupling in use carries them over at {record['links_in_use']:.2f}: labels or pairs contradict them."  # fmt: skip
    weak = record["links_p"] <= ALPHA and not _links_hold(record)
    return f"{text} That is more than chance, and may be no more than other tissues share." if weak else text
