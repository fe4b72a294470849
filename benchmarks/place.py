#!/usr/bin/env python
"""Placing dissociated cells in the fly embryo: error against the truth, and hidden genes read at the placed positions.

    python benchmarks/place.py --seeds 0 1 2 --out place.jsonl           # 9 trainings, half a minute each
    python benchmarks/place.py --out place.jsonl --table                 # the tables of place.md, nothing is run
    python benchmarks/place.py --seeds 0 --max-steps 250 --out short.jsonl

The embryo is one half, left of its mirror plane (99.7 % of the positions have y > 0). Rows are shuffled and cells renamed.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

import scmmgan as smm

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
METHODS = ("nearest", "generator", "plan")
LINKED, HIDDEN, DETECTED = 12, 20, 0.1


def load(name: str, modality: str) -> anndata.AnnData:
    return mudata.read(DATA / f"{name}.h5mu")[modality]


def dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=float)


def rate(levels: np.ndarray) -> float:
    """Molecules per unit of level at which a tenth of all values is detected (at most 100 molecules each)."""
    low, high = 0.0, 100.0
    for _ in range(60):
        mid = (low + high) / 2
        seen = 1 - (1 - np.clip(levels * mid / 100, 0, 1)) ** 100
        low, high = (mid, high) if seen.mean() < DETECTED else (low, mid)
    return low


def thin(levels: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    """`thinned`: binomial counts of 100 molecules in proportion to the level, a tenth of all values above 0, log1p.

    `caught`: a tenth of the 100 molecules that a level of 1 has, log1p. `masked`: a tenth of values is left.
    """
    if how == "masked":
        return np.where(rng.random(levels.shape) < DETECTED, levels, 0)
    if how == "caught":
        return np.log1p(rng.binomial(100, np.clip(levels, 0, 1) * DETECTED))
    return np.log1p(rng.binomial(100, np.clip(levels * rate(levels) / 100, 0, 1)))


def zscored(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-9)


def nearest(a: np.ndarray, b: np.ndarray, *, correlation: bool) -> np.ndarray:
    """Row of b that is nearest to each row of a, both z-scored."""
    a, b = zscored(a), zscored(b)
    if not correlation:
        return cKDTree(b).query(a)[1]
    a, b = (v - v.mean(1, keepdims=True) for v in (a, b))
    a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9) for v in (a, b))
    return (a @ b.T).argmax(1)


def knows_all(values: np.ndarray, levels: np.ndarray, spots: np.ndarray, places: np.ndarray, how: str) -> np.ndarray:
    """Best guess of who knows which gene is which, all levels of the even rows, and how values were thinned."""
    if how == "masked":
        seen, weight = values > 0, 1 / spots.var(0)
        cost = seen @ (spots**2 * weight).T - 2 * (values * weight) @ spots.T
        return places[cost.argmin(1)]
    per_level = DETECTED if how == "caught" else rate(levels) / 100
    p = np.clip(np.maximum(spots, 1e-3) * per_level, 1e-9, 1 - 1e-9)
    counts = np.round(np.expm1(values))
    score = counts @ np.log(p / (1 - p)).T + 100 * np.log(1 - p).sum(1)
    return places[score.argmax(1)]


def align(cells: np.ndarray, names: list[str], spots: np.ndarray, genes: list[str], places: np.ndarray, links: Any,
          settings: dict[str, Any]) -> mudata.MuData:  # fmt: skip
    rna = anndata.AnnData(cells.astype(np.float32), var=pd.DataFrame(index=names))
    spatial = anndata.AnnData(spots.astype(np.float32), var=pd.DataFrame(index=genes), obsm={"spatial": places})
    rna.obs_names, spatial.obs_names = [f"c{i}" for i in range(len(cells))], [f"s{i}" for i in range(len(spots))]
    with mudata.set_options(pull_on_update=False):
        mdata = mudata.MuData({"rna": rna, "spatial": spatial})
    smm.tl.align(mdata, links=links, spatial="spatial", progress_bar=False, **settings)
    return mdata


def placed(mdata: mudata.MuData, method: str) -> np.ndarray:
    smm.tl.place(mdata, "rna", "spatial", method=method)
    return smm.get.coordinates(mdata, "rna", "spatial")[["x", "y", "z"]].to_numpy()


def embryo(how: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Odd rows, thinned, against even rows: median distance from the true place, µm."""
    rng = np.random.default_rng(seed)
    rna, spatial = load("drosophila_bdtnp", "rna"), load("drosophila_embryo", "spatial")
    odd, even = rng.permutation(np.arange(1, rna.n_obs, 2)), rng.permutation(np.arange(0, spatial.n_obs, 2))
    levels, spots = np.maximum(dense(rna.X), 0), dense(spatial.X)[even]
    xyz = np.asarray(spatial.obsm["spatial"], dtype=float)
    truth, places, values = xyz[odd], xyz[even], thin(levels, how, rng)[odd]
    linked = np.sort(rng.permutation(spatial.n_vars)[:LINKED])
    # other names than in the tissue: equal ones would make a space of all 84 genes, and only 12 are to be known
    names, genes = [f"rna_{g}" for g in rna.var_names], list(spatial.var_names)
    links = pd.DataFrame({"rna": [names[i] for i in linked], "spatial": [genes[i] for i in linked]})
    mdata = align(values, names, spots, genes, places, links, settings | {"random_state": seed})

    def error(at: np.ndarray) -> float:
        return float(np.median(np.linalg.norm(at - truth, axis=1)))

    found = {method: error(placed(mdata, method)) for method in METHODS}
    found["centroid"] = error(places.mean(0)[None])
    for name, correlation in (("neighbour 12", False), ("neighbour 12, correlation", True)):
        found[name] = error(places[nearest(values[:, linked], spots[:, linked], correlation=correlation)])
    found["knows all 84"] = error(knows_all(values, levels, spots, places, how))
    distance = np.linalg.norm(placed(mdata, "nearest") - truth, axis=1)
    spread = smm.get.coordinates(mdata, "rna", "spatial")["spread"]
    found["spread"] = float(spread.median())
    found["spread, rank correlation with the error"] = float(spread.corr(pd.Series(distance, spread.index), "spearman"))
    found["verdict"] = smm.get.diagnosis(mdata, "rna", "spatial")["verdict"]
    return found


def dropseq(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Real cells: mean correlation of 20 genes, hidden from both sides, with their levels at the nearest real position."""
    rng = np.random.default_rng(seed)
    rna, spatial = load("drosophila_embryo", "rna"), load("drosophila_embryo", "spatial")
    order = rng.permutation(spatial.n_obs)
    hidden = np.sort(rng.permutation(spatial.n_vars)[:HIDDEN])
    kept = np.setdiff1d(np.arange(spatial.n_vars), hidden)
    genes = np.asarray(spatial.var_names)
    own, levels = dense(rna[:, genes[hidden]].X), dense(spatial.X)[order][:, hidden]
    spots, places = dense(spatial.X)[order][:, kept], np.asarray(spatial.obsm["spatial"], dtype=float)[order]
    rest = ~rna.var_names.isin(genes[hidden])
    cells = dense(rna[:, rest].X)
    mdata = align(
        cells, list(rna.var_names[rest]), spots, list(genes[kept]), places, "auto", settings | {"random_state": seed}
    )

    def read(rows: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(own[:, j], levels[rows, j])[0, 1] for j in range(HIDDEN)]))

    tree, measured = cKDTree(places), dense(rna[:, genes[kept]].X)
    found: dict[str, Any] = {method: read(tree.query(placed(mdata, method))[1]) for method in METHODS}
    for name, correlation in (("neighbour 64", False), ("neighbour 64, correlation", True)):
        found[name] = read(nearest(measured, spots, correlation=correlation))
    found["verdict"] = smm.get.diagnosis(mdata, "rna", "spatial")["verdict"]
    return found


def table(rows: list[dict[str, Any]]) -> None:
    """Median and worst over seeds."""
    frame = pd.DataFrame(rows)
    for case, part in frame.groupby("case", sort=False):
        values = part.drop(columns=["case", "seed", "seconds", "verdict", "max_steps"]).dropna(axis=1)
        worst = values.min() if case == "dropseq" else values.max()
        print(f"\n{case}: seeds {sorted(part['seed'])}; verdicts {sorted(set(part['verdict']))}")
        print(pd.DataFrame({"median": values.median(), "worst": worst}).round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", default=["thinned", "caught", "masked", "dropseq"])
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    if arguments.table:
        table(rows)
        return
    done = {(row["case"], row["seed"]) for row in rows}
    settings = {} if arguments.max_steps is None else {"max_steps": arguments.max_steps}
    for seed in arguments.seeds:
        for case in arguments.cases:
            if (case, seed) in done:
                continue
            start = time.perf_counter()
            found = dropseq(seed, settings) if case == "dropseq" else embryo(case, seed, settings)
            more = {"seconds": time.perf_counter() - start, "max_steps": arguments.max_steps or 1_000}
            row = {"case": case, "seed": seed, **found, **more}
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
