"""Scores of several methods in `mdata.uns`: one row for each run, so that only what is missing is computed again."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data.keys import FORMAT, Keys
from scmmgan.data.modality import check_mudata
from scmmgan.data.record import digest, sealed
from scmmgan.data.undo import all_or_nothing

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")

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


# --- runs of earlier calls ---------------------------------------------------------------------------------------


def folder(path: str | os.PathLike[str]) -> Path:
    """A folder for runs, made where it is not there; OSError where nothing can be written to it."""
    found = Path(path)
    try:
        found.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=found):
            pass
    except OSError as error:
        reason = "a file of that name is there" if found.is_file() else error.strerror
        raise type(error)(
            error.errno, f"Runs cannot be kept, `keep` must be a folder to write to: {reason}", str(found)
        ) from error
    return found


def _seal(path: Path, stored: Mapping[str, Any]) -> str:
    """Digest of what a file holds, and of its name, which says what it is of."""
    return digest({"of": path.stem, "run": stored["run"], "scores": dict(enumerate(stored["scores"]))})


def _kept(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run of a file and its scores; ValueError unless they are what was written under that name."""
    try:
        if path.is_dir():
            raise ValueError("a folder")
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["digest"] != _seal(path, stored):
            raise ValueError("not what was written under that name")
        run = {column: stored["run"][column] for column in RUN}
        return run, [{column: of[column] for column in SCORE} for of in stored["scores"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = error if isinstance(error, ValueError) else "no run with all its columns and a digest"
        raise ValueError(
            f"{str(path)!r} is damaged, or of an earlier version: delete it, and compare again. Found: {reason}."
        ) from error


@dataclass
class Runs:
    """Runs and scores of earlier calls on the same data and truth, and those of this one; `kept`: folder with more."""

    scoring: str
    runs: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    kept: Path | None = None

    @classmethod
    def of(cls, mdata: MuData, pair: tuple[str, str], scoring: str, keys: Keys, kept: Path | None = None) -> Runs:
        """What is stored; nothing where the data or the truth are others."""
        before = found(mdata, pair, keys)
        if before is not None and before[0] != scoring:
            logger.info("The data or what they are scored by have changed since: all methods are compared again.")
            before = None
        if before is None:
            return cls(scoring, [], [], kept)
        runs, scores = ([{str(k): v for k, v in row.items()} for row in of.to_dict("records")] for of in before[1:])
        return cls(scoring, runs, scores, kept)

    def take(self, name: str, seed: int, fingerprint: str) -> bool:
        """Whether that run is there and did not fail; one that is only in the folder is there from now on."""
        same = [run for run in self.runs if (run["method"], run["seed"]) == (name, seed) and not run["error"]]
        if any(run["fingerprint"] == fingerprint for run in same):
            return True
        path = self._file(name, seed, fingerprint)
        if path is None or not path.exists():
            return False
        run, scores = _kept(path)
        if not run["error"]:
            self._insert(run, scores)
        return not run["error"]

    def add(
        self, name: str, seed: int, fingerprint: str, run: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a run, and write it to the folder; earlier ones of that name with other arguments go."""
        about = {"method": name, "seed": seed}
        self._insert({**about, "fingerprint": fingerprint, **run}, [{**about, **score} for score in scores])
        if (path := self._file(name, seed, fingerprint)) is not None:
            beside = path.with_name(f".{path.stem}.{os.getpid()}")
            own = [of for of in self.scores if (of["method"], of["seed"]) == (name, seed)]
            # sealed as it will be read
            stored = json.loads(json.dumps({"run": self.runs[-1], "scores": own}, default=float))
            beside.write_text(json.dumps({**stored, "digest": _seal(path, stored)}, indent=1), encoding="utf-8")
            os.replace(beside, path)

    def _insert(self, run: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> None:
        name, seed = run["method"], run["seed"]
        same = [r for r in self.runs if r["method"] == name]
        stale = [r for r in same if r["fingerprint"] != run["fingerprint"] or r["seed"] == seed]
        gone = {(r["method"], r["seed"]) for r in stale}
        self.runs = [r for r in self.runs if (r["method"], r["seed"]) not in gone] + [dict(run)]
        self.scores = [s for s in self.scores if (s["method"], s["seed"]) not in gone] + [dict(of) for of in scores]

    def _file(self, name: str, seed: int, fingerprint: str) -> Path | None:
        if self.kept is None:
            return None
        # file names have 255 bytes at most
        plain = "".join(c if c.isalnum() else "-" for c in name)[:40]
        what = digest({"scoring": self.scoring, "name": name, "seed": seed, "given": fingerprint})
        return self.kept / f"{plain}-{seed}-{what}.json"

    def write(self, mdata: MuData, pair: tuple[str, str], keys: Keys) -> None:
        """Store all of them in `mdata`."""
        write(mdata, pair, self.scoring, self.runs, self.scores, keys)
