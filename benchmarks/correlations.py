"""Spurious and novel correlations of `tl.correlations` against the truth.

    python benchmarks/correlations.py hybrid_pbmc hybrid_pdac --data DIR          # spots made of real cells
    python benchmarks/correlations.py hybrid_pdac --data DIR --shuffled           # every gene of the spots permuted: nothing is true
    python benchmarks/correlations.py planted --data DIR                          # simulated spots of tests/planted.py
    python benchmarks/correlations.py visium_lymph pdac_st --data DIR             # real spots, no truth: all genes with evidence

Truth of the hybrids: correlation over noise-free spots (`layers["expected"]`), and over metacells of the reference (k-means, 20
cells each). "Spurious" is right where the correlation over cells is below .1, "novel" where it is .3 or more. `_spots`: share of
the calls whose correlation noise-free spots have (spurious, .1 or more) or lack (novel). Recall is over the pairs of genes whose
correlation mixing makes (spots ≥ .3, cells < .1) or hides (cells ≥ .3, spots < .1).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import mudata
import numpy as np
import pandas as pd
from common import Case, Rows, arguments, dense, hide, log_share, read
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

import scmmgan as smm

CASE = Case("spatial", "rna", "var_names")
REAL = ("visium_lymph", "pdac_st")
KINDS = ("spurious", "novel")
N_ASKED = 20  # genes of a hybrid, drawn by the seed


class Truth(NamedTuple):
    """Genes that count, those that are asked for, and by kind: what is right to call, what there is to find, and which pairs
    noise-free spots have (spurious: .1 or more) or lack (novel: less)."""

    genes: pd.Index
    asked: list[str]
    right: dict[str, np.ndarray]
    made: dict[str, np.ndarray]
    spots: dict[str, np.ndarray]


def of_hybrid(whole: mudata.MuData, seed: int) -> Truth:
    spots, counts = whole["spatial"], dense(whole["rna"].layers["counts"])
    scores = PCA(30, random_state=0).fit_transform(log_share(counts))
    metacell = KMeans(len(counts) // 20, n_init=1, random_state=0).fit(scores).labels_
    meta = log_share(np.array([counts[metacell == i].sum(0) for i in np.unique(metacell)]))
    seen = ((dense(spots.layers["counts"]) > 0).mean(0) > 0.2) & ((counts > 0).mean(0) > 0.1)
    s, c = (np.corrcoef(x[:, seen].T) for x in (dense(spots.layers["expected"]), meta))
    genes = spots.var_names[seen]
    asked = genes[np.sort(np.random.default_rng(50_000 + seed).permutation(len(genes))[:N_ASKED])]
    made = {"spurious": (s >= 0.3) & (c < 0.1), "novel": (c >= 0.3) & (s < 0.1)}
    in_spots = {"spurious": s >= 0.1, "novel": s < 0.1}
    return Truth(genes, list(asked), {"spurious": c < 0.1, "novel": c >= 0.3}, made, in_spots)


def of_planted(whole: mudata.MuData) -> Truth:
    from planted import TRUTH

    genes = whole["rna"].var_names
    group = genes.str.split("_").str[0].to_numpy()
    right = {kind: np.zeros((len(genes), len(genes)), dtype=bool) for kind in KINDS}
    for query, groups in TRUTH.items():
        for kind, partner in zip(KINDS, groups):
            right[kind][genes.get_loc(query)] = group == partner
    return Truth(genes, list(TRUTH), right, right, right)


def score(table: pd.DataFrame, column: str, truth: Truth | None, *, shuffled: bool) -> dict[str, Any]:
    """Calls of a column of the table; with a truth also precision, what a random call would have, and recall."""
    row: dict[str, Any] = {}
    for kind in KINDS:
        called = (table[column].astype(str) == kind).to_numpy()
        row[f"{kind}_called"] = int(called.sum())
        if truth and not shuffled:
            a, b = (truth.genes.get_indexer(table[c]) for c in ("query", "feature"))
            right, made = truth.right[kind][a, b], truth.made[kind][a, b]
            row[f"{kind}_precision"] = float(right[called].mean()) if called.any() else np.nan
            row[f"{kind}_spots"] = float(truth.spots[kind][a, b][called].mean()) if called.any() else np.nan
            row[f"{kind}_chance"] = float(right.mean())
            row[f"{kind}_recall"] = float(called[made].mean()) if made.any() else np.nan
    return row


def evident(mdata: mudata.MuData) -> list[str]:
    """Genes with evidence of their own."""
    links = smm.get.diagnosis(mdata, *CASE[:2])["links"]
    return [str(gene) for gene in links.loc[links["q"] < 0.05, CASE.source]]


def run(folder: Path, name: str, seed: int, args: Any) -> dict[str, Any]:
    if name == "planted":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
        from planted import planted

        whole = planted(seed)
    else:
        whole = read(folder, name)
    truth = of_hybrid(whole, seed) if name.startswith("hybrid") else of_planted(whole) if name == "planted" else None
    hidden = hide(whole.mod, CASE, seed, permuted=["spatial"] if args.shuffled else ()).mdata
    how = {"links": "var_names", "random_state": seed, "progress_bar": False, **dict(args.set)}
    smm.tl.align(hidden, *CASE[:2], **how)
    start = time.perf_counter()
    asked = truth.asked if truth else evident(hidden)
    smm.tl.correlations(hidden, *CASE[:2], gene=asked, n_top=args.n_top, method=args.method)
    seconds = time.perf_counter() - start
    table = smm.get.correlations(hidden, *CASE[:2])
    if truth:
        table = table[table["feature"].isin(truth.genes)]
    verdict = smm.get.diagnosis(hidden, *CASE[:2])["verdict"]
    row = {"data": name + (", shuffled" if args.shuffled else ""), "seed": seed, "verdict": verdict, "seconds": seconds}
    # where genes have no evidence no verdict is given, only candidates
    row |= score(table, "verdict", truth, shuffled=args.shuffled)
    return row | {f"{k}_candidates": int((table["candidate"].astype(str) == k).sum()) for k in KINDS}


def main() -> None:
    parser = arguments(__doc__, ["planted", "hybrid_pbmc", "hybrid_pdac", *REAL])
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--n-top", type=int)
    parser.add_argument("--method", default="auto", help="what spots are compared with: auto, cells or generator")
    args = parser.parse_args()
    rows = Rows(args.out)
    for name in args.names:
        for seed in args.seeds:
            rows.add(run(args.data, name, seed, args))
    rows.summary(["data"], ("seconds",))


if __name__ == "__main__":
    main()
