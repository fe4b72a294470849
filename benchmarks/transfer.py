#!/usr/bin/env python
"""`tl.match`, `tl.transfer` and `tl.importance` against the truth, with and without a population that one side lacks.

    python benchmarks/transfer.py --out transfer.jsonl --cache aligned/    # all cases; those in the file are skipped
    python benchmarks/transfer.py --out transfer.jsonl --only pbmc5k       # names that contain a text
    python benchmarks/transfer.py --out transfer.jsonl --table             # the tables of transfer.md, nothing is run

Rows are shuffled and cells renamed in every modality before the package sees them; labels are never shown to `tl.align`.
`--cache` keeps aligned data, so that scores can be changed without training again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

SHARED = Path(__file__).resolve().parents[2] / "shared"
sys.path.insert(0, str(SHARED / "bench"))
import run as bench  # noqa: E402

import scmmgan as smm  # noqa: E402
from scmmgan.data import read as _problem
from scmmgan.data.keys import Keys  # noqa: E402
from scmmgan.model.space.smoothing import SmoothedMatrix  # noqa: E402

# looked at while the shares were chosen (seed 0), and not
REMOVED = {
    "pbmc5k_cite": ["CD14 Mono", "CD4 T naive", "B", "NK", "CD8 T memory", "DC"],
    "pbmc10k_cite": ["CD14 Mono", "CD4 T naive", "B", "NK", "CD8 T memory", "DC"],
    "snare_cellline": ["K562", "H1"],
}
EXPLAINED = ["pbmc5k_cite", "pbmc10k_cite", "visium_lymph"]
N_FEATURES, N_REMOVED, N_DRAWS, N_CELLS = 20, 10, 10, 500

Job = tuple[str, str, str, int]  # data, removed population, side it is removed from, seed


def jobs() -> Iterator[Job]:
    for seed in range(3):
        for name in ("pbmc5k_cite", "snare_cellline", "pbmc10k_cite", "scgem", "visium_lymph"):
            yield name, "", "", seed
    for seed in range(3):
        for name, types in REMOVED.items():
            sides = bench.CASES[name][:2]
            for i, label in enumerate(types):
                if i < 2 or seed == 0:
                    yield name, label, sides[(i + seed) % 2], seed


def aligned(job: Job, cache: Path | None) -> mudata.MuData:
    """Hidden and aligned data; `obs["true"]` names the cell."""
    name, removed, side, seed = job
    file = f"{name}_{removed or 'none'}_{side or '-'}_{seed}.h5mu".replace(" ", "-")
    if cache and (cache / file).exists():
        return mudata.read(cache / file)
    mdata = mudata.read(SHARED / "data" / f"{name}.h5mu")
    source, target, links = bench.CASES[name]
    rng = np.random.default_rng(10_000 + seed)
    data = {}
    for m in (source, target):
        a = mdata[m]
        rows = np.arange(a.n_obs)
        if removed and m == side:
            rows = rows[(a.obs["cell_type"].astype(str) != removed).to_numpy()]
        rows = rng.permutation(rows)
        obs = pd.DataFrame({"true": a.obs_names[rows]}, index=[f"{m}_{i}" for i in range(len(rows))])
        if "cell_type" in a.obs:
            obs["cell_type"] = a.obs["cell_type"].astype(str).to_numpy()[rows]
        data[m] = anndata.AnnData(a.X[rows].copy(), obs=obs, var=a.var[[c for c in a.var if c in ("genes", "gene")]])
    hidden = mudata.MuData(data)
    smm.tl.align(hidden, source, target, links=links, random_state=seed, progress_bar=False)
    if cache:
        cache.mkdir(exist_ok=True)
        hidden.write(cache / f"tmp_{file}")
        (cache / f"tmp_{file}").rename(cache / file)
    return hidden


# --- matches and labels ------------------------------------------------------------------------------------------


def error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over bins of equal size."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return float(sum(abs(confidence[p].mean() - right[p].mean()) * len(p) for p in parts if len(p)) / len(confidence))


def area(positive: np.ndarray, score: np.ndarray) -> float:
    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else float("nan")


def rank_of_truth(x: np.ndarray, y: np.ndarray, match: np.ndarray) -> np.ndarray:
    """Share of cells nearer than the true partner (FOSCTTM by cell); NaN without one."""
    rank = np.full(len(x), np.nan)
    rows = np.flatnonzero(match >= 0)
    for start in range(0, len(rows), 500):
        at = rows[start : start + 500]
        distance = cdist(x[at], y)
        rank[at] = (distance < distance[np.arange(len(at)), match[at]][:, None]).mean(1)
    return rank


def score_matches(mdata: mudata.MuData, a: str, b: str) -> dict[str, Any]:
    start = time.perf_counter()
    smm.tl.match(mdata, a, b)
    seconds = time.perf_counter() - start
    first, second = mdata[a].obs, mdata[b].obs
    confidence = first[f"scmmgan_match_{b}_confidence"].to_numpy()
    partner = second.index.get_indexer(first[f"scmmgan_match_{b}"].astype(str))
    match = pd.Index(second["true"]).get_indexer(first["true"])
    right = second["cell_type"].to_numpy()[partner] == first["cell_type"].to_numpy()
    x, y = (np.asarray(mdata[m].obsm["X_scmmgan"], dtype=np.float64) for m in (a, b))
    rank = rank_of_truth(x, y, match)
    known = match >= 0
    # how far the partner is from the true one, in what the target measured: 1 is a random cell
    z = mdata[b].X.toarray() if hasattr(mdata[b].X, "toarray") else np.asarray(mdata[b].X)
    z = (z - z.mean(0)) / np.maximum(z.std(0), 1e-9)
    away = ((z[partner[known]] - z[match[known]]) ** 2).sum(1) / (2 * z.var(0).sum())
    fifths = np.array_split(np.argsort(confidence, kind="stable"), 5)
    return {
        "match_seconds": seconds,
        "match_right": float(right[known].mean()),
        "match_auc": area(right[known], confidence[known]),
        "match_auc_all": area(right, confidence),
        "match_rank": float(spearmanr(confidence[known], rank[known])[0]),
        "match_away": float(spearmanr(confidence[known], away)[0]),
        "fifth_confidence": [float(confidence[p].mean()) for p in fifths],
        "fifth_right": [float(right[p].mean()) for p in fifths],
        "fifth_rank": [float(np.nanmean(rank[p])) for p in fifths],
    }


def score_labels(mdata: mudata.MuData, a: str, b: str) -> dict[str, Any]:
    start = time.perf_counter()
    smm.tl.transfer(mdata, a, b, obs="cell_type")
    slot = f"scmmgan_{b}_cell_type"
    obs = mdata[a].obs
    row: dict[str, Any] = {"transfer_seconds": time.perf_counter() - start}
    truth = obs["cell_type"].to_numpy()
    reference = mdata[b].obs["cell_type"].to_numpy()
    orphan = ~np.isin(truth, reference)
    x, y = (np.asarray(mdata[m].obsm["X_scmmgan"], dtype=np.float64) for m in (a, b))
    for k in (1, 5):
        row[f"label_{k}nn"] = smm.metrics.label_transfer(x[~orphan], truth[~orphan], y, reference, k=k)
    names = np.asarray(mdata.uns["scmmgan"]["transfer"][a][slot])
    carried, unassigned = mdata[a].obsm[slot], obs[f"{slot}_unassigned"].to_numpy()
    best = names[carried.argmax(1)] == truth
    row["label_best"] = float(best[~orphan].mean())
    given = (carried.max(1) / np.maximum(1 - unassigned, 1e-9))[~orphan]
    row["ece_given"] = error(given, best[~orphan])
    row["ece"] = error(carried.max(1), best)
    edges = [0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.01]
    row["reliability"] = [
        [int(of.sum()), float(given[of].mean()), float(best[~orphan][of].mean())] if of.any() else [0, 0, 0]
        for of in (((given >= low) & (given < high)) for low, high in pairwise(edges))
    ]
    for form in ("", "_unflagged"):
        if form:  # the same, had no cell been flagged as ambiguous
            mdata[a].obs["scmmgan_ambiguous"] = False
            smm.tl.transfer(mdata, a, b, obs="cell_type")
        label = mdata[a].obs[slot].astype(object)
        none = label.isna().to_numpy()
        row[f"unassigned_others{form}"] = float(none[~orphan].mean())
        row[f"right_assigned{form}"] = float((label.to_numpy() == truth)[~orphan & ~none].mean())
        row[f"right_all_assigned{form}"] = float((label.to_numpy() == truth)[~none].mean())
        if orphan.any():
            row[f"unassigned_removed{form}"] = float(none[orphan].mean())
    return row


def score_values(mdata: mudata.MuData, a: str, b: str) -> dict[str, Any]:
    """Five of the target's features as numbers of its cells, against the true partners' values."""
    chosen = np.random.default_rng(0).permutation(mdata[b].n_vars)[:5]
    names = [f"value_{i}" for i in range(5)]
    for name, j in zip(names, chosen):
        column = mdata[b].X[:, j]
        mdata[b].obs[name] = np.asarray(column.toarray() if hasattr(column, "toarray") else column).ravel()
    smm.tl.transfer(mdata, a, b, obs=names)
    match = pd.Index(mdata[b].obs["true"]).get_indexer(mdata[a].obs["true"])
    found, covered, mapped = [], [], []
    values = smm.get.mapped(mdata, a, b).X
    for name, j in zip(names, chosen):
        carried = mdata[a].obs[f"scmmgan_{b}_{name}"].to_numpy()
        spread = mdata[a].obs[f"scmmgan_{b}_{name}_spread"].to_numpy()
        known = (match >= 0) & np.isfinite(carried)
        truth = mdata[b].obs[name].to_numpy()[match[known]]
        found.append(float(np.corrcoef(carried[known], truth)[0, 1]))
        mapped.append(float(np.corrcoef(values[known, j], truth)[0, 1]))
        covered.append(float((np.abs(truth - carried[known]) <= 1.96 * spread[known]).mean()))
    return {"value_r": float(np.nanmean(found)), "value_r_mapped": float(np.nanmean(mapped)), "value_covered": float(np.mean(covered))}  # fmt: skip


# --- importance --------------------------------------------------------------------------------------------------


def score_importance(mdata: mudata.MuData, a: str, b: str, seed: int) -> dict[str, Any]:
    """Change of the prediction when the top 10 source features are set to their mean, against 10 random ones."""
    rng = np.random.default_rng(seed)
    domains = {d.name: d for d in _problem.reread(mdata, Keys()).domains}
    source, target = domains[a], domains[b]
    model = smm.get.model(mdata)
    features = np.sort(rng.permutation(len(target.var_names))[:N_FEATURES])
    start = time.perf_counter()
    smm.tl.importance(mdata, a, b, features=target.var_names[features].tolist(), random_state=seed)
    seconds = time.perf_counter() - start
    table = mdata.uns["scmmgan"]["importance"][a][b]
    rows = np.sort(rng.permutation(len(source.x))[:N_CELLS])
    blocks = [source.cells.columns(np.arange(i, min(i + 256, len(source.var_names)))) for i in range(0, len(source.var_names), 256)]  # fmt: skip
    cells, mean = np.hstack([block[rows] for block in blocks]), np.concatenate([block.mean(0) for block in blocks])

    def predicted(without: np.ndarray) -> np.ndarray:
        changed = cells.copy()
        changed[:, without] = mean[without]
        x = source.transform.transform(SmoothedMatrix(changed))
        return target.transform.inverse(model.translate(x, a, b), features)

    whole = predicted(np.array([], dtype=int))
    draws = [predicted(rng.permutation(len(source.var_names))[:N_REMOVED]) for _ in range(N_DRAWS)]
    at_random = np.array([np.abs(d - whole).mean(0) for d in draws])  # draws × features
    wins, ratio = [], []
    for i, feature in enumerate(target.var_names[features]):
        top = table.loc[table["feature"] == feature, "source_feature"].to_numpy()[:N_REMOVED]
        change = np.abs(predicted(source.var_names.get_indexer(top)) - whole).mean(0)[i]
        if np.ptp(whole[:, i]) > 1e-6 * max(abs(float(whole[:, i].mean())), 1e-6):
            wins.append(float((change > at_random[:, i]).mean()))
            ratio.append(float(change / np.maximum(np.median(at_random[:, i]), 1e-12)))
    return {
        "seconds": seconds, "n_features": len(wins), "n_source": len(source.var_names), "wins": float(np.mean(wins)),
        "features_over_90": float(np.mean(np.array(wins) >= 0.9)), "ratio": float(np.median(ratio)),
    }  # fmt: skip


def run(job: Job, cache: Path | None) -> Iterator[dict[str, Any]]:
    name, removed, side, seed = job
    mdata = aligned(job, cache)
    first, second, _ = bench.CASES[name]
    directions = [(first, second), (second, first)]
    if removed:  # the annotated side lacks it
        directions = [(a, b) for a, b in directions if b == side]
    for a, b in directions:
        row = {"data": name, "removed": removed, "source": a, "target": b, "seed": seed}
        if name != "visium_lymph":
            scores = score_matches(mdata, a, b)
            if not removed and name.startswith("pbmc"):
                scores |= score_values(mdata, a, b)
            yield {**row, "what": "transfer", **scores, **score_labels(mdata, a, b)}
        if name in EXPLAINED and not removed:
            yield {**row, "what": "importance", **score_importance(mdata, a, b, seed)}


# --- tables ------------------------------------------------------------------------------------------------------


WHOLE = {
    "match_right": ("partner's label right", True),
    "match_auc": ("AUROC of confidence for that", True),
    "match_away": ("confidence, distance of partner from truth", False),
    "match_rank": ("confidence, FOSCTTM rank", False),
    "label_1nn": ("1-NN label", True),
    "label_best": ("most likely label", True),
    "right_assigned": ("label, where assigned", True),
    "unassigned_others": ("unassigned", False),
    "unassigned_others_unflagged": ("of that without the ambiguous", False),
    "ece_given": ("ECE of assigned shares", False),
    "ece": ("ECE of probabilities", False),
}
LACKING = {
    "unassigned_removed": ("removed, unassigned", True),
    "unassigned_removed_unflagged": ("of that without the ambiguous", True),
    "unassigned_others": ("others, unassigned", False),
    "unassigned_others_unflagged": ("of that without the ambiguous", False),
    "right_assigned": ("others: label right, where assigned", True),
    "right_all_assigned": ("all assigned: label right", True),
    "label_1nn": ("others: 1-NN label", True),
    "match_auc_all": ("AUROC of confidence", True),
}
VALUES = {
    "value_r": ("carried over", True),
    "value_r_mapped": ("`get.mapped`", True),
    "value_covered": ("within 1.96 spreads", True),
}


def head(*columns: str) -> None:
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))


def row_of(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


def summary(values: pd.Series, low_is_worse: bool) -> str:
    """Median and worst."""
    return f"{values.median():.3f}, {values.min() if low_is_worse else values.max():.3f}"


def summaries(group: pd.DataFrame, columns: dict[str, tuple[str, bool]]) -> list[str]:
    return [summary(group[c], low) if group[c].notna().all() else "–" for c, (_, low) in columns.items()]


def tables(found: pd.DataFrame) -> None:
    carried = found[found["what"] == "transfer"]
    whole, lacking = carried[carried["removed"] == ""], carried[carried["removed"] != ""]
    by = ["data", "source", "target"]
    head("data, source → target", "seeds", *(name for name, _ in WHOLE.values()))
    for key, group in whole.groupby(by, sort=False):
        row_of(f"{key[0]}, {key[1]} → {key[2]}", len(group), *summaries(group, WHOLE))
    head("data, removed from the target", "seeds", *(name for name, _ in LACKING.values()))
    for key, group in lacking.groupby(["data", "removed"], sort=False):
        row_of(", ".join(key), len(group), *summaries(group, LACKING))
    head("data, source → target", "lowest fifth", "2", "3", "4", "highest fifth")
    for key, group in whole.groupby(by, sort=False):
        parts = [np.mean(group[f"fifth_{c}"].tolist(), axis=0) for c in ("confidence", "right", "rank")]
        row_of(f"{key[0]}, {key[1]} → {key[2]}", *(f"{c:.2f}: {r:.3f}, {k:.3f}" for c, r, k in zip(*parts)))
    head("data", "below .5", ".5-.7", ".7-.8", ".8-.9", ".9-.95", ".95-1")
    for name, group in whole.groupby("data", sort=False):
        bins = np.array(group["reliability"].tolist())
        n = bins[:, :, 0]
        means = [(n * bins[:, :, i]).sum(0) / np.maximum(n.sum(0), 1) for i in (1, 2)]
        row_of(name, *(f"{int(c)}: {p:.2f} → {r:.2f}" for c, p, r in zip(n.sum(0), *means)))
    head("data, source → target", "seeds", *(name for name, _ in VALUES.values()))
    for key, group in whole[whole["value_r"].notna()].groupby(by, sort=False):
        row_of(f"{key[0]}, {key[1]} → {key[2]}", len(group), *summaries(group, VALUES))
    explained = {"wins": ("", True), "features_over_90": ("", True), "ratio": ("", True), "seconds": ("", False)}
    head("data, source → target", "source features", "features tried × seeds", "(feature, draw) won", "features that win 9 of 10", "change, over random", "seconds")  # fmt: skip
    rows = found[found["what"] == "importance"]
    for key, group in rows.groupby(by, sort=False):
        tried = f"{int(group['n_features'].iloc[0])} × {len(group)}"
        row_of(f"{key[0]}, {key[1]} → {key[2]}", int(group["n_source"].iloc[0]), tried, *summaries(group, explained))
    weight = rows["n_features"] / rows["n_features"].sum()
    print(f"\nall features tried: {(weight * rows['wins']).sum():.3f} of (feature, draw) won, {(weight * rows['features_over_90']).sum():.3f} of features win 9 of 10")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--aligned-only", action="store_true", help="skip what is not in the cache")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.table:
        tables(pd.DataFrame(rows))
        return
    done = {(r["data"], r["removed"], r["seed"]) for r in rows}
    for job in jobs():
        name, removed, side, seed = job
        file = f"{name}_{removed or 'none'}_{side or '-'}_{seed}.h5mu".replace(" ", "-")
        missing = options.aligned_only and not (options.cache / file).exists()
        if (name, removed, seed) in done or missing or options.only not in " ".join(map(str, job)):
            continue
        found = list(run(job, options.cache))
        with options.out.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in found)
        print(*job, flush=True)


if __name__ == "__main__":
    main()
