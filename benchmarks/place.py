"""Dissociated cells placed in the fly embryo: distance from the true place, and hidden genes read at the placed positions.

    python benchmarks/place.py --data DIR                        # all four cases, half a minute to three per run
    python benchmarks/place.py caught real --data DIR --seeds 0 --set max_steps=250

`caught`, `thinned`, `masked`: cells made from the odd positions of drosophila_bdtnp, 12 of 84 genes linked, placed among the even
ones; median distance from the truth in µm. `real`: Drop-seq cells of drosophila_embryo, 64 genes linked; 20 more are hidden from
both sides, and correlated with the levels where the cells were placed. Half an embryo, left of its mirror plane.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
from common import Rows, arguments, correlation, dense, read
from scipy.spatial import cKDTree

import scmmgan as smm

METHODS = ("nearest", "generator", "plan")
LINKED, HIDDEN, DETECTED = 12, 20, 0.1
NEAREST = {"nearest neighbour": False, "nearest neighbour by correlation": True}


def rate(levels: np.ndarray) -> float:
    """Molecules per unit of level at which a tenth of all values is detected (at most 100 molecules each)."""
    low, high = 0.0, 100.0
    for _ in range(60):
        mid = (low + high) / 2
        seen = 1 - (1 - np.clip(levels * mid / 100, 0, 1)) ** 100
        low, high = (mid, high) if seen.mean() < DETECTED else (low, mid)
    return low


def thin(levels: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    """`caught`: a tenth of the 100 molecules that a level of 1 has, log1p (78 % of all values are above 0).

    `thinned`: the same at the rate that leaves a tenth of all values above 0. `masked`: a tenth of all values is left.
    """
    if how == "masked":
        return np.where(rng.random(levels.shape) < DETECTED, levels, 0)
    share = levels * (DETECTED if how == "caught" else rate(levels) / 100)
    return np.log1p(rng.binomial(100, np.clip(share, 0, 1)))


def nearest(a: np.ndarray, b: np.ndarray, *, by_correlation: bool) -> np.ndarray:
    """Row of b that is nearest to each row of a, both z-scored."""
    a, b = ((v - v.mean(0)) / np.maximum(v.std(0), 1e-9) for v in (a, b))
    if by_correlation:
        a, b = (v - v.mean(1, keepdims=True) for v in (a, b))
        a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9) for v in (a, b))
    return cKDTree(b).query(a)[1]


def bound(values: np.ndarray, levels: np.ndarray, spots: np.ndarray, how: str) -> np.ndarray:
    """Most likely position where the pairing of all 84 genes and the way of thinning are given: no rival, but a bound."""
    if how == "masked":
        weight = 1 / spots.var(0)
        return ((values > 0) @ (spots**2 * weight).T - 2 * (values * weight) @ spots.T).argmin(1)
    per_level = DETECTED if how == "caught" else rate(levels) / 100
    p = np.clip(np.maximum(spots, 1e-3) * per_level, 1e-9, 1 - 1e-9)
    return (np.round(np.expm1(values)) @ np.log(p / (1 - p)).T + 100 * np.log(1 - p).sum(1)).argmax(1)


def align(cells: pd.DataFrame, spots: pd.DataFrame, xyz: np.ndarray, how: Mapping[str, Any]) -> mudata.MuData:
    parts = {"rna": cells, "spatial": spots}
    found = {
        m: anndata.AnnData(x.set_axis([f"{m}_{i}" for i in range(len(x))]).astype(np.float32)) for m, x in parts.items()
    }
    found["spatial"].obsm["spatial"] = xyz
    mdata = mudata.MuData(found)
    smm.tl.align(mdata, "rna", "spatial", **{"spatial": "spatial", "progress_bar": False, **how})
    return mdata


def placed(mdata: mudata.MuData, method: str) -> np.ndarray:
    smm.tl.place(mdata, "rna", "spatial", method=method)
    return smm.get.coordinates(mdata, "rna", "spatial")[["x", "y", "z"]].to_numpy()


def made(folder: Path, how: str, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Thinned odd rows against even rows: median distance from the true place."""
    rng = np.random.default_rng(seed)
    rna, spatial = read(folder, "drosophila_bdtnp")["rna"], read(folder, "drosophila_embryo")["spatial"]
    odd, even = rng.permutation(np.arange(1, rna.n_obs, 2)), rng.permutation(np.arange(0, spatial.n_obs, 2))
    levels, spots, xyz = np.maximum(dense(rna.X), 0), dense(spatial.X)[even], dense(spatial.obsm["spatial"])
    truth, places, values = xyz[odd], xyz[even], thin(levels, how, rng)[odd]
    linked = np.sort(rng.permutation(spatial.n_vars)[:LINKED])
    # other names than in the tissue: equal ones would make a shared space of all 84, and only 12 are to be known
    cells = pd.DataFrame(values, columns=[f"rna_{g}" for g in rna.var_names])
    tissue = pd.DataFrame(spots, columns=spatial.var_names)
    links = pd.DataFrame({"rna": cells.columns[linked], "spatial": tissue.columns[linked]})
    mdata = align(cells, tissue, places, {"links": links, "random_state": seed, **options})

    def error(at: np.ndarray) -> float:
        return float(np.median(np.linalg.norm(at - truth, axis=1)))

    row: dict[str, Any] = {method: error(placed(mdata, method)) for method in METHODS}
    for name, by in NEAREST.items():
        row[name] = error(places[nearest(values[:, linked], spots[:, linked], by_correlation=by)])
    row |= {
        "all at the centroid": error(places.mean(0)[None]),
        "bound": error(places[bound(values, levels, spots, how)]),
    }
    distance = np.linalg.norm(placed(mdata, "nearest") - truth, axis=1)
    spread = smm.get.coordinates(mdata, "rna", "spatial")["spread"]
    row |= {
        "spread": float(spread.median()),
        "spread ~ error": float(spread.corr(pd.Series(distance, spread.index), "spearman")),
    }
    return row | {"verdict": smm.get.diagnosis(mdata, "rna", "spatial")["verdict"]}


def real(folder: Path, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Real cells: correlation of 20 hidden genes with their levels at the real position nearest to the place."""
    rng = np.random.default_rng(seed)
    rna, spatial = (read(folder, "drosophila_embryo")[m].to_df() for m in ("rna", "spatial"))
    xyz = dense(read(folder, "drosophila_embryo")["spatial"].obsm["spatial"])
    order = rng.permutation(len(spatial))
    hidden = spatial.columns[np.sort(rng.permutation(spatial.shape[1])[:HIDDEN])]
    own, levels = dense(rna[hidden]), dense(spatial[hidden])[order]
    cells, tissue, places = rna.drop(columns=hidden), spatial.drop(columns=hidden).iloc[order], xyz[order]
    mdata = align(cells, tissue, places, {"random_state": seed, **options})
    tree = cKDTree(places)
    row: dict[str, Any] = {m: correlation(levels[tree.query(placed(mdata, m))[1]], own) for m in METHODS}
    for name, by in NEAREST.items():
        row[name] = correlation(levels[nearest(dense(cells[tissue.columns]), dense(tissue), by_correlation=by)], own)
    return row | {"verdict": smm.get.diagnosis(mdata, "rna", "spatial")["verdict"]}


def main() -> None:
    args = arguments(__doc__, ["caught", "thinned", "masked", "real"]).parse_args()
    rows = Rows(args.out)
    for case in args.names:
        for seed in args.seeds:
            found = (
                real(args.data, seed, dict(args.set)) if case == "real" else made(args.data, case, seed, dict(args.set))
            )
            rows.add({"case": case, "seed": seed, **found})
    for case in args.names:  # distances are better low, correlations high
        rows.summary(["case"], () if case == "real" else (*METHODS, *NEAREST, "bound"), case=case)


if __name__ == "__main__":
    main()
