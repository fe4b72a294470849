"""Scores of several methods in `mdata.uns`: one row for each run, so that only what is missing is computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data.keys import FORMAT, Keys
from scmmgan.data.modality import check_mudata
from scmmgan.data.record import digest, sealed
from scmmgan.data.undo import all_or_nothing

if TYPE_CHECKING:
    from mudata import MuData

# columns of a run, and of a score
RUN = ("method", "seed", "fingerprint", "seconds", "memory", "uses", "mapped", "verdict", "error")
SCORE = ("method", "seed", "metric", "direction", "value", "error", "chance", "best", "n", "needs", "p")
_NUMBERS = {"seed": np.int64, "n": np.int64} | dict.fromkeys(
    ("seconds", "memory", "value", "chance", "best", "p"), np.float64
)
# what a run costs, beside its scores
_COSTS = ("seconds", "memory")


def write(
    mdata: MuData,
    pair: tuple[str, str],
    scoring: str,
    runs: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    keys: Keys,
) -> None:
    """Store all runs of a source and a target; `scoring`: fingerprint of the data and of the truth that they share."""
    entry = sealed({"format": FORMAT, "scoring": scoring, "runs": _table(runs, RUN), "scores": _table(scores, SCORE)})
    source, target = pair
    before = mdata.uns.get(keys.comparison, {})
    with all_or_nothing(mdata, []):
        mdata.uns[keys.comparison] = {**before, source: {**before.get(source, {}), target: entry}}


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a table of numbers and text: files take nothing else."""
    text_error = columns is RUN
    out = {}
    for column in columns:
        kind: Any = _NUMBERS.get(column) or (np.float64 if column == "error" and not text_error else object)
        out[column] = np.array([row[column] for row in rows], dtype=kind)
    return pd.DataFrame(out)


def found(mdata: MuData, pair: tuple[str, str], keys: Keys) -> tuple[str, pd.DataFrame, pd.DataFrame] | None:
    """Fingerprint, runs and scores of a source and a target; None where nothing was compared, ValueError if damaged."""
    check_mudata(mdata)
    source, target = pair
    stored = mdata.uns.get(keys.comparison, {})
    entry = stored.get(source, {}).get(target) if isinstance(stored, Mapping) else None
    if entry is None:
        return None
    names = ("format", "scoring", "runs", "scores")
    digests = entry.get("digest") if isinstance(entry, Mapping) else None
    if not isinstance(digests, Mapping) or any(digest(entry.get(name)) != digests.get(name) for name in names):
        raise ValueError(
            f"The comparison of {source!r} and {target!r} in `mdata.uns[{keys.comparison!r}]` is damaged: delete it, and run "
            "`scmmgan.tl.compare` again."
        )
    if int(entry["format"]) != FORMAT:
        raise ValueError(
            f"The comparison of {source!r} and {target!r} was written by another version of scmmgan (format "
            f"{int(entry['format'])}; this one reads {FORMAT}): delete `mdata.uns[{keys.comparison!r}]`, and run "
            "`scmmgan.tl.compare` again."
        )
    runs, scores = (pd.DataFrame(entry[name]).reset_index(drop=True) for name in ("runs", "scores"))
    return str(entry["scoring"]), runs, scores


def table(mdata: MuData, pair: tuple[str, str], keys: Keys, *, every_seed: bool) -> pd.DataFrame:
    """Rows of every seed, or their summary; KeyError where nothing was compared."""
    stored = found(mdata, pair, keys)
    if stored is None:
        raise KeyError(
            f"No comparison of {pair[0]!r} and {pair[1]!r} named {keys.key!r}. Run `scmmgan.tl.compare` first."
        )
    return stored[2] if every_seed else summary(*stored[1:])


def summary(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Median and worst seed of every metric and direction of every method; what it cost, and what failed, beside it."""
    rows = []
    for method, of in runs.groupby("method", sort=False):
        failed = of[of["error"] != ""]
        about = {
            "failed": len(failed),
            **{name: "; ".join(dict.fromkeys(v for v in of[name].astype(str) if v)) for name in RUN[5:]},
        }
        done = of[of["error"] == ""]
        for cost in _COSTS:
            values = done[cost].to_numpy(dtype=float)
            rows.append(_row(str(method), (cost, "both"), values, (np.nan, 0.0), 1, "nothing", about))
        own = scores[scores["method"] == method]
        for (metric, direction), each in own.groupby(["metric", "direction"], sort=False):
            first = each.iloc[0]
            # chance depends on numbers of cells alone
            limits = (float(first["chance"]), float(first["best"]))
            values = each["value"].to_numpy(dtype=float)
            name = (str(metric), str(direction))
            rows.append(_row(str(method), name, values, limits, int(first["n"]), str(first["needs"]), about))
    return pd.DataFrame(rows, columns=SUMMARY)


SUMMARY = [
    *("method", "metric", "direction", "median", "worst", "chance", "best", "n", "needs", "seeds", "failed"),
    *("uses", "mapped", "verdict", "error"),
]


def _row(
    method: str,
    name: tuple[str, str],
    values: np.ndarray,
    limits: tuple[float, float],
    n: int,
    needs: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    values, (chance, best) = values[np.isfinite(values)], limits
    middle = float(np.median(values)) if len(values) else np.nan
    worst = float(values[np.abs(values - best).argmax()]) if len(values) else np.nan
    return {
        "method": method, "metric": name[0], "direction": name[1], "median": middle, "worst": worst, "chance": chance,
        "best": best, "n": n, "needs": needs, "seeds": len(values), **about,
    }  # fmt: skip
