#!/usr/bin/env python
"""Uncertainty against the truth: planted genes, unmatched cells, conformal coverage, cost.

    python benchmarks/uncertainty.py planted pbmc5k_cite --draw 0 --out uncertainty.jsonl     # prot -> rna
    python benchmarks/uncertainty.py planted sim_counts --draw 0 --out uncertainty.jsonl      # rna -> atac, nothing known
    python benchmarks/uncertainty.py conformal pbmc5k_cite --draw 0 --out uncertainty.jsonl   # five draws of 200 pairs
    python benchmarks/uncertainty.py unmatched pbmc5k_cite --draw 0 --out uncertainty.jsonl   # "CD4 T naive" dropped
    python benchmarks/uncertainty.py cost synthetic --out uncertainty.jsonl                   # 5,000 cells x 20,000 genes

Rows are shuffled and cells renamed in every modality before the package sees them; the truth only scores.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import scmmgan as smm
from scmmgan.data import read as _problem
from scmmgan.data.keys import Keys
from scmmgan.model.evidence import calibration as _determined
from scmmgan.model.evidence import uncertainty
from scmmgan.tl._uncertainty import expressed

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
QUIET: dict[str, Any] = {"progress_bar": False}
CASES = {"pbmc5k_cite": ("prot", "rna", "genes"), "pbmc10k_cite": ("prot", "rna", "genes"), "sim_counts": ("rna", "atac", "auto")}  # fmt: skip


def dense(x: Any) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def hidden(values: dict[str, Any], var: dict[str, pd.DataFrame], names: dict[str, pd.Index], seed: int) -> tuple[mudata.MuData, dict[str, pd.Index]]:  # fmt: skip
    """Modalities with shuffled rows and new names, and the true names in that order."""
    rng, parts, truth = np.random.default_rng(10_000 + seed), {}, {}
    for m, x in values.items():
        order = rng.permutation(x.shape[0])
        parts[m] = anndata.AnnData(x[order].copy(), obs=pd.DataFrame(index=[f"{m}_{i}" for i in range(len(order))]), var=var[m].copy())  # fmt: skip
        truth[m] = names[m][order]
    return mudata.MuData(parts), truth


def plant(
    mdata: mudata.MuData, source: str, target: str, links: str, draw: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target values with 300 of the 600 most variable unlinked features permuted in three blocks; the 600, the 300."""
    rng = np.random.default_rng(20_000 + draw)
    y, var = dense(mdata[target].X).copy(), mdata[target].var
    named = mdata[source].var[links] if links in mdata[source].var else mdata[source].var_names
    own = var[links].astype(str) if links in var else mdata[target].var_names
    linked = own.isin({key for entry in named.astype(str) for key in entry.split(";")})
    variance = np.where(linked, -1.0, y.var(0))
    top = np.argsort(-variance)[:600]
    unique = rng.permutation(top)[:300]
    for block in np.array_split(unique, 3):
        y[:, block] = y[rng.permutation(len(y))][:, block]
    return y, top, unique


def planted(name: str, draw: int) -> list[dict[str, Any]]:
    source, target, links = CASES[name]
    mdata = mudata.read(DATA / f"{name}.h5mu")
    y, top, unique = plant(mdata, source, target, links, draw)
    values = {source: mdata[source].X, target: sp.csr_matrix(y) if sp.issparse(mdata[target].X) else y}
    hid, truth = hidden(values, {m: mdata[m].var for m in values}, {m: mdata[m].obs_names for m in values}, draw)
    partner = truth[target].get_indexer(truth[source])
    start = time.perf_counter()
    smm.tl.align(hid, source, target, links=links, random_state=draw, **QUIET)
    seconds = {"align": time.perf_counter() - start}
    domains = {d.name: d for d in _problem.reread(hid, Keys()).domains}
    smoothed = domains[target].smoothed.columns(np.arange(len(y[0])))[partner]
    layers = {"smoothed": smoothed, "raw": y[mdata[target].obs_names.get_indexer(truth[source])]}
    mapped = smm.get.mapped(hid, source, target).X
    rows, parts = [], {}
    for method in ("coupling", "noise", "seeds"):
        start = time.perf_counter()
        smm.tl.uncertainty(hid, source, target, method=method, **QUIET)
        seconds[method] = time.perf_counter() - start
        var = hid[target].var
        parts[method] = var["scmmgan_uncertainty"].to_numpy(), hid[source].obs["scmmgan_uncertainty"].to_numpy()
    parts["sum"] = np.minimum(sum(v[0] for v in parts.values()), 1), sum(v[1] for v in parts.values())
    for method, (score, cell) in parts.items():
        row = {"what": "planted", "data": name, "draw": draw, "method": method, "seconds": seconds.get(method), "seconds_align": seconds["align"]}  # fmt: skip
        rows.append(row | scored(score, cell, mapped, layers, top, unique))
    table = hid.uns["scmmgan"]["uncertainty"][source][target]
    rows[0] |= {k: float(table[k]) for k in ("calibration_spearman",) if k in table}
    return rows


def scored(score: np.ndarray, cell: np.ndarray, mapped: np.ndarray, layers: dict[str, np.ndarray], top: np.ndarray, unique: np.ndarray) -> dict[str, float]:  # fmt: skip
    kept = np.isfinite(score)
    planted = np.isin(np.arange(len(score)), unique)
    top = top[kept[top]]
    shared = kept & ~planted
    row = {"n_kept": int(kept.sum()), "auroc": roc_auc_score(planted[kept], score[kept]), "auroc_600": roc_auc_score(planted[top], score[top])}  # fmt: skip
    row |= {"shared": score[shared].mean(), "shared_600": score[top][~planted[top]].mean(), "unique": score[kept & planted].mean()}  # fmt: skip
    for layer, y in layers.items():
        square = (mapped - y) ** 2 / np.maximum(y.var(0), 1e-12)
        error = square.mean(0)
        row |= {f"rho_{layer}": spearmanr(score[kept], error[kept])[0], f"rho_600_{layer}": spearmanr(score[top], error[top])[0]}  # fmt: skip
        row |= {f"error_shared_{layer}": error[shared].mean(), f"error_unique_{layer}": error[kept & planted].mean()}
        row[f"cell_{layer}"] = spearmanr(cell, square[:, kept].mean(1))[0]
    return {k: float(v) for k, v in row.items()}


def conformal(name: str, draw: int) -> list[dict[str, Any]]:
    """200 pairs, five times; coverage on all other cells. The first time through `tl`, then its function for half-widths."""
    rows, mdata = [], mudata.read(DATA / f"{name}.h5mu")
    values = {m: mdata[m].X for m in ("prot", "rna")}
    hid, truth = hidden(values, {m: mdata[m].var for m in values}, {m: mdata[m].obs_names for m in values}, draw)
    smm.tl.align(hid, "prot", "rna", links="genes", random_state=draw, **QUIET)
    for source, target in (("prot", "rna"), ("rna", "prot")):
        partner = truth[target].get_indexer(truth[source])
        mapped, y = smm.get.mapped(hid, source, target).X, dense(hid[target].X)[partner]
        residuals, found = np.abs(y.astype(np.float64) - mapped), []
        for i in range(5):
            known = np.random.default_rng(100 * draw + i).permutation(len(partner))[:200]
            half = uncertainty.half_widths(residuals[known], 0.9)
            row: dict[str, Any] = {"what": "conformal", "data": name, "draw": draw, "to": target, "pairs": i}
            if i == 0:
                cells = {source: hid[source].obs_names[known], target: hid[target].obs_names[partner[known]]}
                smm.tl.uncertainty(hid, source, target, pairs=pd.DataFrame(cells), **QUIET)
                np.testing.assert_allclose(hid[target].var["scmmgan_interval"], half, rtol=1e-4, atol=1e-5)
                table = hid.uns["scmmgan"]["uncertainty"][source][target]
                row |= {k: float(table[k]) for k in ("coverage_reached", "calibration_spearman")}
                kept = hid[target].var["scmmgan_uncertainty"].notna().to_numpy()
            test = np.setdiff1d(np.arange(len(partner)), known)
            covered = (residuals[test] <= half).mean(0)
            found.append(covered)
            rows.append(row | coverage(covered, kept))
        rows.append({**row, "pairs": "mean of 5", **coverage(np.mean(found, 0), kept)})
    return rows


def coverage(covered: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    near = np.abs(covered - 0.9) <= 0.03
    return {"mean": float(covered.mean()), "within": float(near.mean()), "mean_kept": float(covered[kept].mean()), "within_kept": float(near[kept].mean())}  # fmt: skip


def unmatched(name: str, draw: int, dropped: str = "CD4 T naive") -> list[dict[str, Any]]:
    """AUROC of the cells whose type the target lacks, in both directions; the error of the other cells."""
    rows, mdata = [], mudata.read(DATA / f"{name}.h5mu")
    types = mdata["rna"].obs["cell_type"].astype(str)
    for source, target in (("rna", "prot"), ("prot", "rna")):
        keep = (types.reindex(mdata[target].obs_names) != dropped).to_numpy()
        values = {source: mdata[source].X, target: mdata[target].X[keep]}
        names = {source: mdata[source].obs_names, target: mdata[target].obs_names[keep]}
        hid, truth = hidden(values, {m: mdata[m].var for m in values}, names, draw)
        # scores of cells are the coupling's: nothing has to be trained
        none: dict[str, Any] = dict.fromkeys((source, target))
        how = {"layer": none, "use_rep": none, "mask_var": none, "labels": none, "batch": none, "smooth": dict.fromkeys(none, 3), "n_pcs": dict.fromkeys(none, 50)}  # fmt: skip
        problem = _problem.read(hid, [source, target], how, links="genes", pairs=None, random_state=draw)
        kept, _ = expressed(hid[target].X)
        coupling = problem.couple(draw)[0][source, target]
        found = _determined.from_coupling(problem, (source, target), coupling, kept, draw)
        orphan = types.reindex(truth[source]).to_numpy() == dropped
        partner = truth[target].get_indexer(truth[source])
        smoothed, mapped = problem.domains[1].smoothed.columns(np.flatnonzero(kept)), problem.domains[1].transform.inverse(coupling.anchors, np.flatnonzero(kept))  # fmt: skip
        y = smoothed[partner[~orphan]]
        error = ((mapped[~orphan] - y) ** 2 / y.var(0)).mean(1)
        row = {"what": "unmatched", "data": name, "draw": draw, "to": target}
        row |= {"auroc": float(roc_auc_score(orphan, found.cells)), "auroc_unmatched": float(roc_auc_score(orphan, 1 - coupling.weight))}  # fmt: skip
        row["cell_smoothed_rest"] = float(spearmanr(found.cells[~orphan], error)[0])
        rows.append(row)
    return rows


def cost(name: str, draw: int) -> list[dict[str, Any]]:
    """5,000 cells × 20,000 genes, a tenth of them seen per cell, against a panel of 30 linked features."""
    rng = np.random.default_rng(draw)
    z = rng.normal(size=(10_000, 10)) + 2 * rng.normal(size=(8, 10))[rng.integers(8, size=10_000)]
    blocks = []
    for rows in np.array_split(np.arange(5_000), 10):
        rate = np.exp(0.3 * z[rows] @ np.random.default_rng(1).normal(size=(10, 20_000)) - 2.5)
        blocks.append(sp.csr_matrix(np.log1p(rng.poisson(np.minimum(rate, 50))).astype(np.float32)))
    genes = pd.Index([f"g{i}" for i in range(20_000)])
    loadings = np.random.default_rng(1).normal(size=(10, 20_000))[:, :30]
    panel = (z[5_000:] @ loadings + rng.normal(size=(5_000, 30))).astype(np.float32)
    hid = mudata.MuData({
        "prot": anndata.AnnData(panel, obs=pd.DataFrame(index=[f"p{i}" for i in range(5_000)]), var=pd.DataFrame(index=genes[:30])),
        "rna": anndata.AnnData(sp.vstack(blocks).tocsr(), obs=pd.DataFrame(index=[f"r{i}" for i in range(5_000)]), var=pd.DataFrame(index=genes)),
    })  # fmt: skip
    gib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # noqa: E731
    row: dict[str, Any] = {"what": "cost", "data": name, "density": hid["rna"].X.nnz / 1e8, "gib_data": gib()}
    start = time.perf_counter()
    smm.tl.align(
        hid, "prot", "rna", links="var_names", features={"prot": list(genes[:30]), "rna": list(genes[:30])}, **QUIET
    )
    row |= {"seconds_align": time.perf_counter() - start, "gib_align": gib()}
    start = time.perf_counter()
    smm.tl.uncertainty(hid, "prot", "rna", **QUIET)
    return [row | {"seconds_coupling": time.perf_counter() - start, "gib_coupling": gib()}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["planted", "conformal", "unmatched", "cost"])
    parser.add_argument("data")
    parser.add_argument("--draw", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for row in globals()[args.what](args.data, args.draw):
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(line, flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
