"""What uncertainty scores are worth: genes without a counterpart, cells without a partner, coverage of intervals.

    python benchmarks/uncertainty.py planted --data DIR          # prot → rna of pbmc5k, rna → atac of sim_counts
    python benchmarks/uncertainty.py planted --data DIR --method all
    python benchmarks/uncertainty.py unmatched --data DIR        # the target lacks "CD4 T naive"
    python benchmarks/uncertainty.py intervals --data DIR        # 200 known pairs, five times
    python benchmarks/uncertainty.py cost --data DIR             # 5,000 cells × 20,000 simulated genes

`planted`: of the 600 most variable target features that no link names 300 are permuted over cells, in three blocks, so that the
target alone knows them. Error of a feature: mean squared error of the mapped values at the true partners, over its variance.
"""

from __future__ import annotations

import ast
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import CASES, Case, Rows, arguments, cell_types, dense, hide, read
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import scmmgan as smm

PLANTED = {"pbmc5k_cite": Case("prot", "rna", "genes"), "sim_counts": Case("rna", "atac", None)}
CITE = ("pbmc5k_cite", "pbmc10k_cite")
DROPPED = "CD4 T naive"
N_PAIRS, COVERAGE, WITHIN = 200, 0.9, 0.03
N_CELLS, N_GENES, N_PROTEINS = 5_000, 20_000, 30  # of the simulated set


def align(mdata: mudata.MuData, case: Case, seed: int, options: dict[str, Any]) -> float:
    start = time.perf_counter()
    smm.tl.align(mdata, *case[:2], **{"links": case.links, "random_state": seed, "progress_bar": False, **options})
    return time.perf_counter() - start


def plant(whole: mudata.MuData, case: Case, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target values with 300 features permuted; the 600 most variable features, and the 300."""
    rng = np.random.default_rng(20_000 + seed)
    y = dense(whole[case.target].X).astype(np.float32)
    variance = y.var(0)
    if case.links:
        linked = smm.pp.link_features(whole, *case[:2], on=case.links)[case.target]
        variance[whole[case.target].var_names.isin(linked)] = -1
    top = np.argsort(-variance)[:600]
    unique = rng.permutation(top)[:300]
    for block in np.array_split(unique, 3):
        y[:, block] = y[rng.permutation(len(y))][:, block]
    return y, top, unique


def planted(folder: Path, seed: int, method: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, case in PLANTED.items():
        whole = read(folder, name)
        y, top, unique = plant(whole, case, seed)
        hidden = hide(whole.mod, case, seed, values={case.target: sp.csr_matrix(y)})
        mdata, match = hidden.mdata, hidden.partner(case.source, case.target)
        seconds = align(mdata, case, seed, options)
        start = time.perf_counter()
        smm.tl.uncertainty(mdata, *case[:2], method=method, progress_bar=False)
        row: dict[str, Any] = {"data": name, "seed": seed, "method": method, "seconds": time.perf_counter() - start}
        row["seconds_align"] = seconds
        score = mdata[case.target].var["scmmgan_uncertainty"].to_numpy()
        kept, is_unique = np.isfinite(score), np.isin(np.arange(len(score)), unique)
        high = top[kept[top]]
        row |= {
            "auroc": roc_auc_score(is_unique[kept], score[kept]),
            "auroc_600": roc_auc_score(is_unique[high], score[high]),
        }
        row |= {"score_shared": score[kept & ~is_unique].mean(), "score_unique": score[kept & is_unique].mean()}
        mapped, cell = dense(smm.get.mapped(mdata, *case[:2]).X), mdata[case.source].obs["scmmgan_uncertainty"]
        # mapped values live on the smoothed scale: errors on it, and against the values as measured
        steps = ast.literal_eval(str(mdata.uns["scmmgan"]["params"]["smooth"]))
        smm.pp.smooth(mdata, case.target, t=steps[case.target] if isinstance(steps, dict) else steps)
        for scale, truth in (("smoothed", mdata[case.target].layers["smoothed"]), ("raw", mdata[case.target].X)):
            truth = dense(truth)[match]
            square = (mapped - truth) ** 2 / np.maximum(truth.var(0), 1e-12)
            error = square.mean(0)
            row[f"rho_{scale}"] = spearmanr(score[kept], error[kept])[0]
            row[f"rho_600_{scale}"] = spearmanr(score[high], error[high])[0]
            row |= {
                f"error_shared_{scale}": error[kept & ~is_unique].mean(),
                f"error_unique_{scale}": error[kept & is_unique].mean(),
            }
            row[f"cells_{scale}"] = spearmanr(cell, square[:, kept].mean(1))[0]
        yield {k: v if isinstance(v, str | int) else float(v) for k, v in row.items()}


def unmatched(folder: Path, seed: int, method: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """AUROC of the cells whose type the target lacks."""
    for name in CITE:
        whole = read(folder, name)
        for case in (CASES[name], CASES[name]._replace(source="prot", target="rna")):
            keep = {case.target: set(cell_types(whole[case.target])) - {DROPPED}}
            hidden = hide(whole.mod, case, seed, keep=keep)
            align(hidden.mdata, case, seed, {"method": "coupling", **options})
            smm.tl.uncertainty(hidden.mdata, *case[:2], progress_bar=False)
            orphan, obs = hidden.of(whole, case.source) == DROPPED, hidden.mdata[case.source].obs
            row = {
                f"auroc_{c}": float(roc_auc_score(orphan, obs[f"scmmgan_{c}"])) for c in ("unmatched", "uncertainty")
            }
            yield {"data": name, "map": f"{case.source} → {case.target}", "seed": seed, **row}


def intervals(folder: Path, seed: int, method: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Coverage on the cells that did not calibrate, by feature; five sets of known pairs, and the mean over them."""
    for name in CITE:
        whole = read(folder, name)
        hidden = hide(whole.mod, CASES[name], seed)
        mdata = hidden.mdata
        align(mdata, CASES[name], seed, options)
        for a, b in (("prot", "rna"), ("rna", "prot")):
            match, covered = hidden.partner(a, b), []
            off = np.abs(dense(mdata[b].X)[match] - dense(smm.get.mapped(mdata, a, b).X))
            for i in range(5):
                known = np.random.default_rng(100 * seed + i).permutation(len(match))[:N_PAIRS]
                pairs = pd.DataFrame({a: mdata[a].obs_names[known], b: mdata[b].obs_names[match[known]]})
                smm.tl.uncertainty(mdata, a, b, pairs=pairs, coverage=COVERAGE, progress_bar=False)
                rest = np.setdiff1d(np.arange(len(match)), known)
                covered.append((off[rest] <= mdata[b].var["scmmgan_interval"].to_numpy()).mean(0))
            each = np.abs(np.array(covered) - COVERAGE) <= WITHIN
            row = {
                "coverage": float(np.mean(covered)),
                "within": float(each.mean()),
                "within_worst": float(each.mean(1).min()),
            }
            row["within_of_mean"] = float((np.abs(np.mean(covered, 0) - COVERAGE) <= WITHIN).mean())
            yield {"data": name, "map": f"{a} → {b}", "seed": seed, **row}


def cost(folder: Path, seed: int, method: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """5,000 cells × 20,000 genes, 18 % not zero, and 5,000 cells × 30 linked proteins: seconds, peak memory."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2 * N_CELLS, 10)) + 2 * rng.normal(size=(8, 10))[rng.integers(8, size=2 * N_CELLS)]
    loadings = np.random.default_rng(1).normal(size=(10, N_GENES))
    blocks = []
    for rows in np.array_split(np.arange(N_CELLS), 10):
        rate = np.exp(0.3 * z[rows] @ loadings - 2.5)
        blocks.append(sp.csr_matrix(np.log1p(rng.poisson(np.minimum(rate, 50))).astype(np.float32)))
    panel = z[N_CELLS:] @ loadings[:, :N_PROTEINS] + rng.normal(size=(N_CELLS, N_PROTEINS))
    parts = {}
    for m, x in (("prot", panel.astype(np.float32)), ("rna", sp.vstack(blocks).tocsr())):
        obs, var = ([f"{p}{i}" for i in range(n)] for p, n in zip((m, "g"), x.shape))
        parts[m] = anndata.AnnData(x, obs=pd.DataFrame(index=obs), var=pd.DataFrame(index=var))
    mdata = mudata.MuData(parts)
    genes = list(mdata["prot"].var_names)
    row: dict[str, Any] = {
        "seconds_align": align(mdata, Case("prot", "rna", "var_names"), seed, {"features": genes, **options})
    }
    start = time.perf_counter()
    smm.tl.uncertainty(mdata, "prot", "rna", progress_bar=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield {"data": "simulated", "seed": seed, **row, "seconds": time.perf_counter() - start, "peak_gib": peak}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("what", choices=["planted", "unmatched", "intervals", "cost"])
    parser.add_argument("--method", default="coupling", help="of tl.uncertainty: coupling, noise, seeds or all")
    args = parser.parse_args()
    rows = Rows(args.out)
    for seed in args.seeds:
        for row in globals()[args.what](args.data, seed, args.method, dict(args.set)):
            rows.add(row)
    low = ("score_shared", "seconds", "seconds_align", "error_shared_smoothed", "error_shared_raw", "peak_gib")
    rows.summary([c for c in ("data", "map", "method") if c in rows[0]], low)


if __name__ == "__main__":
    main()
