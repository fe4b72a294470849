"""Accuracy of `tl.align` on data with known truth, which is hidden from it: rows are shuffled, cells renamed.

    python benchmarks/accuracy.py --data DIR                                          # all data sets, three seeds
    python benchmarks/accuracy.py pbmc5k_cite --data DIR --set method=cyclegan --set max_steps=500
    python benchmarks/accuracy.py pbmc5k_cite --data DIR --set links=None --pairs 30  # known pairs, which are not scored
    python benchmarks/accuracy.py pbmc5k_cite --data DIR --labels .5                  # labels of a random half of the cells
    python benchmarks/accuracy.py pbmc5k_cite --data DIR --drop "CD4 T naive"         # the target lacks that type
    python benchmarks/accuracy.py pbmc5k_cite --data DIR --wrong-links .2 --links 10  # ten links, two of them wrong
    python benchmarks/accuracy.py visium_lymph --data DIR --baseline knn-joint

Prints every run, then median | worst over the seeds. Spatial sets have no true pairs: a quarter of the linked features is
not shown in the source, whose counts are normalised without them, and mapped values are compared with what was measured.
"""

from __future__ import annotations

import time
from typing import Any

import mudata
import numpy as np
from baselines import BASELINES
from common import (  # fmt: skip
    CASES,
    HELD_OUT,
    Case,
    Hidden,
    Rows,
    arguments,
    cell_types,
    correlation,
    dense,
    depth,
    hide,
    joint,
    known_pairs,
    link_table,
    read,
    show_labels,
)
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import scmmgan as smm

LOW_IS_BETTER = ("foscttm", "mmd", "auc", "seconds")


def run(
    whole: mudata.MuData,
    name: str,
    seed: int,
    options: dict[str, Any] | None = None,
    *,
    baseline: str | None = None,
    pairs: float = 0,
    labels: float = 0,
    drop: str | None = None,
    n_links: int = 0,
    wrong_links: float = 0,
) -> dict[str, Any]:
    """Hide, align, score. `options` are arguments of `tl.align`."""
    case, options = CASES[name], dict(options or {})
    links: Any = options.pop("links", case.links)
    paired = len(whole[case.source].obs_names.intersection(whole[case.target].obs_names)) > 0
    kept = {case.target: set(cell_types(whole[case.target])) - {drop}} if drop else None
    hidden = hide(whole.mod, case, seed, held_out=0 if links is None or paired else HELD_OUT, keep=kept)
    known = np.zeros(hidden.mdata[case.source].n_obs, dtype=bool)
    if pairs:
        options["pairs"], known = known_pairs(hidden, whole, case, pairs, seed)
    if labels:
        show_labels(hidden, whole, labels, seed)
        options["labels"] = "label"
    if n_links or wrong_links:
        links = link_table(hidden, case, seed, n=n_links, wrong=wrong_links)
    start = time.perf_counter()
    if baseline:
        z, mapped = BASELINES[baseline](hidden.mdata, case._replace(links=links), seed)
    else:
        smm.tl.align(
            hidden.mdata, *case[:2], **{"links": links, "random_state": seed, "progress_bar": False, **options}
        )
        both = ((case.source, case.target), (case.target, case.source))
        z, mapped = joint(hidden.mdata), {a: dense(smm.get.mapped(hidden.mdata, a, b).X) for a, b in both}
    row = {"data": name, "seed": seed, "seconds": time.perf_counter() - start}
    row |= distribution(whole, hidden, case, z, mapped, seed)
    if paired:
        row |= against_partners(hidden, case, z, mapped, known)
    if all("cell_type" in whole[m].obs for m in case[:2]):
        row |= labels_kept(whole, hidden, case, z, drop)
    if case.links == "var_names":
        shared = hidden.mdata[case.source].var_names
        values = mapped[case.source][:, hidden.mdata[case.target].var_names.get_indexer(shared)]
        row["r_kept"] = spearman(values, dense(hidden.mdata[case.source].X))
    if len(hidden.held_out):
        row |= held_out_features(whole, hidden, case, mapped[case.source])
    return row


def distribution(
    whole: mudata.MuData, hidden: Hidden, case: Case, z: dict, mapped: dict, seed: int
) -> dict[str, float]:
    """How mapped cells follow the measured ones; other cells on the two sides, else true partners would be compared."""
    half = whole.obs_names[np.random.default_rng(seed).random(whole.n_obs) < 0.5]
    one = z[case.source][hidden.cells[case.source].isin(half)]
    other = z[case.target][~hidden.cells[case.target].isin(half)]
    spread = mapped[case.source].var(0).sum() / dense(whole[case.target].X).var(0).sum()
    return {
        "mmd": smm.metrics.mmd(one, other),
        "auc": smm.metrics.two_sample_auc(one, other),
        "spread": float(spread),
    }


def against_partners(hidden: Hidden, case: Case, z: dict, mapped: dict, known: np.ndarray) -> dict[str, float]:
    """Scores over the true pairs that were not handed over."""
    a, b = case.source, case.target
    match = hidden.partner(a, b)
    rows = {a: np.flatnonzero((match >= 0) & ~known)}
    rows[b] = match[rows[a]]
    first, second = z[a][rows[a]], z[b][rows[b]]
    row = {"foscttm": smm.metrics.foscttm(first, second), "recall10": smm.metrics.recall_at_k(first, second, k=10)}
    for one, other in ((a, b), (b, a)):
        row[f"r_{one}>{other}"] = correlation(mapped[one][rows[one]], dense(hidden.mdata[other].X)[rows[other]])
    if case.links:
        names = smm.pp.link_features(hidden.mdata, a, b, on=case.links)[a].unique()
        at = hidden.mdata[a].var_names.get_indexer(names)
        row["r_linked"] = correlation(mapped[b][rows[b]][:, at], dense(hidden.mdata[a].X)[rows[a]][:, at])
    return row


def labels_kept(whole: mudata.MuData, hidden: Hidden, case: Case, z: dict, drop: str | None) -> dict[str, float]:
    types = {m: hidden.of(whole, m) for m in case[:2]}
    if not set(types[case.source]) & set(types[case.target]):
        return {}
    both = ((case.source, case.target), (case.target, case.source))
    found = [smm.metrics.label_transfer(z[a], types[a], z[b], types[b]) for a, b in both]
    row = {"label_transfer": float(np.mean(found))}
    if drop and "scmmgan_unmatched" in hidden.mdata[case.source].obs:
        unmatched = hidden.mdata[case.source].obs["scmmgan_unmatched"]
        row["unmatched_auroc"] = float(roc_auc_score(types[case.source] == drop, unmatched))
    return row


def held_out_features(whole: mudata.MuData, hidden: Hidden, case: Case, mapped: np.ndarray) -> dict[str, float]:
    """Features that the source did not show: Spearman correlation over its cells, mean over the features."""
    shown, cells = hidden.mdata[case.source], hidden.cells[case.source]
    full = whole[case.source][cells, hidden.held_out[case.source].tolist()]
    measured = dense(full.X)
    values = mapped[:, hidden.mdata[case.target].var_names.get_indexer(hidden.held_out[case.target])]
    total = depth(shown)
    row = {
        "r_heldout": spearman(values, measured),
        "r_heldout_adj": adjusted(values, measured, total),
        "r_depth": spearman(np.tile(total[:, None], measured.shape[1]), measured),
    }
    if "spatial" in shown.obsm:  # one spot is noisy: the mean of a spot and its six nearest
        near = NearestNeighbors(n_neighbors=6).fit(shown.obsm["spatial"]).kneighbors()[1]
        near = np.column_stack([np.arange(len(near)), near])
        row["r_heldout_tissue"] = adjusted(values, measured[near].mean(1), total[near].mean(1))
    if "expected" in full.layers:
        row["r_heldout_true"] = spearman(values, dense(full.layers["expected"]))
    return row


def spearman(mapped: np.ndarray, measured: np.ndarray) -> float:
    return float(np.nanmean(smm.metrics.column_correlation(mapped, measured, method="spearman")))


def adjusted(mapped: np.ndarray, measured: np.ndarray, given: np.ndarray) -> float:
    """Spearman correlation that a covariate of the cells, such as depth, does not explain."""
    design = np.column_stack([np.ones(len(given)), rankdata(given)])
    ranks = [rankdata(x, axis=0) for x in (mapped, measured)]
    return correlation(*(r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks))


def main() -> None:
    # of 11 linked genes two would be hidden: too few to score, unless asked for
    parser = arguments(__doc__, [name for name in CASES if name != "osmfish_starmap"])
    parser.add_argument("--baseline", choices=BASELINES)
    parser.add_argument("--pairs", type=float, default=0, metavar="N", help="known pairs: a number, or a share below 1")
    parser.add_argument("--labels", type=float, default=0, metavar="SHARE")
    parser.add_argument("--drop", metavar="TYPE", help="cell type that the target lacks")
    parser.add_argument("--links", type=int, default=0, metavar="N", help="only N of the links, at random")
    parser.add_argument("--wrong-links", type=float, default=0, metavar="SHARE")
    args = parser.parse_args()
    known = {"pairs": args.pairs, "labels": args.labels, "drop": args.drop}
    known |= {"n_links": args.links, "wrong_links": args.wrong_links, "baseline": args.baseline}
    rows = Rows(args.out)
    for name in args.names:
        whole = read(args.data, name)
        for seed in args.seeds:
            rows.add(run(whole, name, seed, dict(args.set), **known))
    rows.summary(["data"], LOW_IS_BETTER)


if __name__ == "__main__":
    main()
