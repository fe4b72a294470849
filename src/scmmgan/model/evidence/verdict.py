"""What the evidence for an alignment amounts to: verdicts in words (METHOD §8)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from scmmgan.model.coupling import couple as _prior

logger = logging.getLogger("scmmgan")

Pair = tuple[str, str]

# What support means (benchmarks/diagnosis.md): better than every one of 99 shuffled tables, and an effect of size.
ALPHA = 0.01
MIN_CORRELATION = 1 / 3  # mean over held-out links less its standard error; tissues that share housekeeping reach .25
MAX_NEARER = 0.3  # mean share of cells nearer than the held-out partner; chance is .5
MIN_TESTED_PAIRS = 5  # fewer can be shuffled in too few ways
MIN_CONTRADICTION = 10  # pairs that outweigh links
SWAPPABLE = 1 / 3  # evidence against a swap twice as large as that for it
CLOSE = 0.05  # relative cost gap of rivals that count


def judge_all(
    records: Mapping[Pair, Mapping[str, Any]], more: Mapping[Pair, Mapping[str, Any]]
) -> dict[Pair, dict[str, Any]]:
    """Records with further numbers and verdicts; every statement is logged, a warning where nothing supports it."""
    judged = {pair: judge({**record, **more[pair]}, pair) for pair, record in records.items()}
    for record in judged.values():
        logger.log(logging.INFO if record["supported"] else logging.WARNING, "%s", record["statement"])
    return judged


def judge(record: dict[str, Any], pair: Pair) -> dict[str, Any]:
    """The record with `verdict`, `supported` and `statement`, in front."""
    from scmmgan.model.coupling import views as evidence

    by = [name for name in ("links", "pairs") if _supports(name, record)]
    against = "pairs_mean" in record and record["pairs_n"] >= MIN_CONTRADICTION and not _pairs_hold(record)
    follows = record.get("quality_follows", 0.0) <= MAX_NEARER
    swaps = _swappable(record)
    labels = record.get("labels_separated", 0.0) >= evidence.MIN_BORNE_OUT and record.get("labels_p", 1.0) <= ALPHA
    if not follows or record.get("restart_share", 1.0) <= 0.5:
        verdict = "not identifiable"
    elif by and not against:
        verdict = f"supported by {' and '.join(by)}"
    elif labels and not against:
        verdict = "supported by labels"
    elif record["kind"] == "geometry" and swaps and not against:
        verdict = f"ambiguous: populations {swaps[0][0]} and {swaps[0][1]} could be swapped"
    else:
        verdict = "not identifiable"
    supported = verdict.startswith("supported")
    text = [f"{pair[0]} and {pair[1]}: {verdict}.", *_reasons(record, follows=follows, against=against)]
    if supported and swaps:
        listed = "; ".join(" with ".join(names) for names in swaps[:3])
        text.append(f"Hard to tell apart, could be swapped: {listed}.")
    return {"verdict": verdict, "supported": supported, "statement": " ".join(text), **record}


def _supports(name: str, record: Mapping[str, Any]) -> bool:
    """Significant against shuffled tables, and large."""
    if f"{name}_mean" not in record or record[f"{name}_p"] > ALPHA + 1e-12:
        return False
    if name == "pairs":
        return bool(record["pairs_n"] >= MIN_TESTED_PAIRS and _pairs_hold(record, record["pairs_error"]))
    large = _links_hold(record) and not _overruled(record)
    # one feature's noise is in all of its links: they bear each other out
    features = min(record["links"].iloc[:, side].nunique() for side in (0, 1))
    return bool(large and (record["kind"] != "links" or features >= _prior.MIN_HELD_OUT))


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
    found = table[(table["swap"] != "") & (table["gap"] < record["swap_limit"])].sort_values(
        ["gap", "share"], ascending=[True, False]
    )
    names = "partner" if record["kind"] == "geometry" else "population"
    seen: dict[frozenset[str], Pair] = {}
    for first, second in zip(found[names], found["swap"]):
        if first != second:
            seen.setdefault(frozenset((first, second)), (str(first), str(second)))
    return list(seen.values())


def _reasons(record: Mapping[str, Any], *, follows: bool, against: bool) -> list[str]:
    """The numbers that the verdict rests on, in sentences."""
    text = []
    if not follows:
        text.append(f"The trained map does not follow the coupling ({record['quality_follows']:.2f} of the cells are nearer than the anchor).")  # fmt: skip
    if "restart_share" in record:
        text.append(f"{record['restart_share']:.0%} of {len(record['restart_modes'])} restarts give the same map.")
    if "links_mean" in record:
        null = record["links_null"]
        weak = record["links_p"] <= ALPHA and not _links_hold(record)
        overruled = record["links_mean"] >= MIN_CORRELATION and _overruled(record)
        text.append(
            f"{len(record['links'])} held-out links correlate {record['links_mean']:.2f} ± {record['links_error']:.2f} on average "
            f"with their partners carried over (shuffled links {null.mean():.2f}, at most {null.max():.2f}; support takes "
            f"{MIN_CORRELATION:.2f}, the standard error taken off, more than every shuffled table, and "
            f"{_prior.MIN_HELD_OUT} links of different features)."
            + (
                " That is more than chance, and may be no more than other tissues share."
                if weak and not overruled
                else ""
            )
        )
        if overruled:
            text[-1] += f" The coupling in use carries them over at {record['links_in_use']:.2f}: labels or pairs contradict them."  # fmt: skip
    if "pairs_mean" in record:
        text.append(
            f"Of all cells, {record['pairs_mean']:.0%} ± {record['pairs_error']:.0%} are nearer than the true partner of "
            f"{len(record['pairs'])} held-out pairs (shuffled pairs {record['pairs_null'].mean():.0%}, at least "
            f"{record['pairs_null'].min():.0%}; support takes at most {MAX_NEARER:.0%}, the standard error added, and less "
            "than every shuffled table)."
            + (" The pairs contradict the rest." if against and _supports("links", record) else "")
        )
    if "labels_separated" in record:
        text.append(
            f"Labels are {record['labels_separated']:.0%} of the way from chance to perfectly separated, and their distances "
            f"agree between the modalities (r = {record['labels_order']:.2f}, p = {record['labels_p']:.3f}); inside a label "
            "they say nothing."
        )
    if record["kind"] == "geometry":
        gaps = record.get("gaps", np.empty(0))
        near = int((gaps <= CLOSE).sum())
        text.append(f"Shapes alone choose between mirror images, and no cost certifies the choice: {near} other couplings cost at most {CLOSE:.0%} more.")  # fmt: skip
    return text
