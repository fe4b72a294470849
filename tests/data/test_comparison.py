"""Runs and scores as tables: what is stored, and what the summary says of seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pytest

import scmmgan as smm
from scmmgan.data import comparison
from scmmgan.data.keys import FORMAT, Keys
from scmmgan.settings import unpulled

PAIR, KEYS = ("rna", "protein"), Keys()


def run(method: str, seed: int, **other: Any) -> dict[str, Any]:
    plain = {
        "fingerprint": "x",
        "seconds": 1.0,
        "memory": np.nan,
        "uses": "",
        "mapped": "values",
        "verdict": "",
        "error": "",
    }
    return {"method": method, "seed": seed, **plain, **other}


def score(method: str, seed: int, value: float, *, best: float = 1.0) -> dict[str, Any]:
    about = {"metric": "m", "direction": "both", "error": np.nan, "chance": 0.5, "best": best, "n": 7}
    return {"method": method, "seed": seed, "value": value, **about, "needs": "pairs", "p": np.nan}


def test_summary():
    mdata = smm.datasets.toy(n_cells=50)
    runs = [run("a", 0, verdict="x"), run("a", 1, verdict="y", seconds=3.0), run("a", 2, error="no"), run("b", 0)]
    scores = [score("a", 0, 0.9), score("a", 1, 0.2), score("b", 0, 0.3, best=0.5)]
    comparison.write(mdata, PAIR, "s", runs, scores, KEYS)
    table = comparison.table(mdata, PAIR, KEYS, every_seed=False).set_index(["method", "metric"])
    assert list(comparison.table(mdata, PAIR, KEYS, every_seed=False)) == comparison.SUMMARY
    row = table.loc[("a", "m")]
    assert row[["median", "worst", "seeds", "failed"]].tolist() == [0.55, 0.2, 2, 1]
    assert row[["verdict", "error", "n", "needs"]].tolist() == ["x; y", "no", 7, "pairs"]
    assert table.loc[("a", "seconds"), ["median", "worst"]].tolist() == [2, 3]
    assert table.loc[("b", "memory"), "seeds"] == 0
    assert len(comparison.table(mdata, PAIR, KEYS, every_seed=True)) == 3


@pytest.mark.parametrize("runs", [[], [run("a", 0, error="of a reason")]])
def test_tables_without_rows_survive_a_file(runs: list, tmp_path: Path):
    mdata = smm.datasets.toy(n_cells=50)
    comparison.write(mdata, PAIR, "s", runs, [], KEYS)
    with unpulled():
        mdata.write(tmp_path / "a.h5mu")
        found = md.read(tmp_path / "a.h5mu")
    scoring, stored, scores = comparison.found(found, PAIR, KEYS)
    assert scoring == "s"
    assert stored["error"].tolist() == [of["error"] for of in runs]
    assert not len(scores)


def test_another_format_is_refused():
    mdata = smm.datasets.toy(n_cells=50)
    comparison.write(mdata, PAIR, "s", [run("a", 0)], [], KEYS)
    entry = mdata.uns["scmmgan_comparison"]["rna"]["protein"]
    entry |= {"format": FORMAT + 1, "digest": {**entry["digest"], "format": comparison.digest(FORMAT + 1)}}
    with pytest.raises(ValueError, match="by another version of scmmgan"):
        comparison.found(mdata, PAIR, KEYS)
    for damaged in ({}, 3, {"runs": 1}):
        mdata.uns["scmmgan_comparison"]["rna"]["protein"] = damaged
        with pytest.raises(ValueError, match="is damaged"):
            comparison.found(mdata, PAIR, KEYS)
    mdata.uns["scmmgan_comparison"] = "else"
    assert comparison.found(mdata, PAIR, KEYS) is None


def test_a_kept_run_is_taken_as_it_was(tmp_path: Path):
    """Numbers of any kind and missing ones, and text of any kind, through a file."""
    about = {
        name: of
        for name, of in run("é/\\", 0, verdict="é\ud800", seconds=np.float32(0.1)).items()
        if name in comparison.RUN[3:]
    }
    scores = [
        {name: of for name, of in score("", 0, 1 / 3).items() if name in comparison.SCORE[2:]} | {"n": np.int64(7)}
    ]
    first, second = (comparison.Runs("s", [], [], tmp_path) for _ in range(2))
    first.add("é/\\", np.int64(0), "x", about, scores)
    assert second.take("é/\\", 0, "x")
    for kind in ("runs", "scores"):
        (was,), (now,) = getattr(first, kind), getattr(second, kind)
        assert set(was) == set(now)
        assert [now[name] for name in was] == pytest.approx(list(was.values()), nan_ok=True)
    # of another truth, seed or fingerprint there is none
    for other, seed, fingerprint in (("t", 0, "x"), ("s", 1, "x"), ("s", 0, "y")):
        assert not comparison.Runs(other, [], [], tmp_path).take("é/\\", seed, fingerprint)
