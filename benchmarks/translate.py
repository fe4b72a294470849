"""New cells through a trained model, `tl.translate`, against as many cells that the model was trained on.

    python benchmarks/translate.py --data DIR --out translate.csv               # all data sets and removed types
    python benchmarks/translate.py pbmc5k_cite --data DIR --seeds 0 --removed none

A fifth of the cells is held out before aligning (of spatial sets: of the spots); where cells are known by name, the same
cells of both modalities. With `--removed`, a cell type is in no training cell: how well does the out-of-distribution
score know its cells among the other new ones?
"""

from __future__ import annotations

from typing import Any

import mudata
import numpy as np
from common import CASES, Hidden, Rows, arguments, cell_types, dense, hide, joint, read
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

import scmmgan as smm

HELD_OUT = 5  # one cell in so many
NAMES = ["pbmc5k_cite", "pbmc10k_cite", "snare_cellline", "hybrid_pbmc", "hybrid_pdac"]
REMOVED = {"pbmc5k_cite": ["B", "NK"]}


def split(
    hidden: Hidden, seed: int, *, both: bool, removed: str | None, types: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Which rows are new, by modality: a fifth of the cells, the same ones of both, and all of a removed type."""
    rng = np.random.default_rng(50_000 + seed)
    source, target = hidden.cells
    names = hidden.cells[source]
    out = set(names[rng.permutation(len(names))[: len(names) // HELD_OUT]])
    new = {source: names.isin(out), target: hidden.cells[target].isin(out) & both}
    return {m: rows | (types[m] == removed) for m, rows in new.items()} if removed else new


def accuracy(name: str, whole: mudata.MuData, seed: int, settings: dict[str, Any]) -> dict[str, float]:
    case = CASES[name]
    spatial = name.startswith("hybrid")
    hidden = hide(whole.mod, case, seed, held_out=0.25 if spatial else 0.0)
    new = split(hidden, seed, both=not spatial, removed=None, types={})
    train = mudata.MuData({m: a[~new[m]].copy() for m, a in hidden.mdata.mod.items()})
    smm.tl.align(train, *case[:2], **{"links": case.links, "random_state": seed, "progress_bar": False} | settings)
    a, b = case.source, case.target
    mapped = {
        (s, t): smm.tl.translate(hidden.mdata[s][new[s]], s, t, model=train)
        for s, t in ((a, b), (b, a))
        if new[s].any()
    }
    n, row = int(new[a].sum()), {}
    if spatial:
        genes = hidden.held_out
        truth = whole[a][:, genes[a]].layers["expected"]
        truth = dense(truth)[whole[a].obs_names.get_indexer(hidden.cells[a])]
        old = smm.get.mapped(train, a, b, features=genes[b].tolist())
        some = np.random.default_rng(seed).permutation(len(old))[:n]
        row["new"] = spearman(dense(mapped[a, b][:, genes[b]].X), truth[new[a]])
        row["trained"] = spearman(dense(old.X)[some], truth[~new[a]][some])
        row["trained, all"] = spearman(dense(old.X), truth[~new[a]])
    else:
        z = joint(train)
        cells = {m: hidden.cells[m][~new[m]] for m in z}
        some = np.random.default_rng(seed).permutation(len(cells[a]))[:n]
        row["new"] = smm.metrics.foscttm(
            *paired(
                mapped[a, b].obsm["X_scmmgan"],
                hidden.cells[a][new[a]],
                mapped[b, a].obsm["X_scmmgan"],
                hidden.cells[b][new[b]],
            )
        )
        row["trained"] = smm.metrics.foscttm(z[a][some], z[b][cells[b].get_indexer(cells[a][some])])
        row["label transfer, new"] = smm.metrics.label_transfer(
            mapped[a, b].obsm["X_scmmgan"], hidden.of(whole, a)[new[a]], z[b], hidden.of(whole, b)[~new[b]]
        )
        row["label transfer, trained"] = smm.metrics.label_transfer(
            z[a][some], hidden.of(whole, a)[~new[a]][some], z[b], hidden.of(whole, b)[~new[b]]
        )
    for (s, _), of in mapped.items():
        row[f"ood > .95, {s}"] = float((of.obs["scmmgan_ood"] > 0.95).mean())
    return row


def unknown(name: str, whole: mudata.MuData, removed: str, seed: int, settings: dict[str, Any]) -> dict[str, float]:
    """A type is in no training cell; and in none of the target's."""
    case, row = CASES[name], {}
    hidden = hide(whole.mod, case, seed)
    types = {m: hidden.of(whole, m) for m in hidden.cells}
    new = split(hidden, seed, both=True, removed=removed, types=types)
    for kind in ("both", "target"):
        rows = (
            new
            if kind == "both"
            else {
                m: split(hidden, seed, both=True, removed=None, types={})[m]
                | ((types[m] == removed) & (m == case.target))
                for m in new
            }
        )
        train = mudata.MuData({m: a[~rows[m]].copy() for m, a in hidden.mdata.mod.items()})
        smm.tl.align(train, *case[:2], **{"links": case.links, "random_state": seed, "progress_bar": False} | settings)
        for s, t in (case[:2], case[1::-1]) if kind == "both" else (case[:2],):
            of = smm.tl.translate(hidden.mdata[s][rows[s]], s, t, model=train)
            is_removed = types[s][rows[s]] == removed
            score = "ood" if kind == "both" else "unmatched"
            row[f"{score}, {s}"] = float(roc_auc_score(is_removed, of.obs[f"scmmgan_{score}"]))
    return row


def paired(x: np.ndarray, names: Any, y: np.ndarray, others: Any) -> tuple[np.ndarray, np.ndarray]:
    return x, y[others.get_indexer(names)]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.nanmean(smm.metrics.column_correlation(rankdata(a, axis=0), rankdata(b, axis=0))))


def main() -> None:
    parser = arguments(__doc__, NAMES)
    parser.add_argument("--removed", nargs="*", help="cell types; none: nothing is removed")
    args = parser.parse_args()
    rows = Rows(args.out)
    for name in args.names:
        whole = read(args.data, name)
        for seed in args.seeds:
            if not args.removed or "none" in args.removed:
                rows.add({"data": name, "seed": seed, **accuracy(name, whole, seed, dict(args.set))})
            for removed in args.removed if args.removed is not None else REMOVED.get(name, []):
                if removed != "none" and removed in set(cell_types(whole[CASES[name].source])):
                    rows.add(
                        {
                            "data": f"{name} without {removed}",
                            "seed": seed,
                            **unknown(name, whole, removed, seed, dict(args.set)),
                        }
                    )
    rows.summary(["data"], low_is_better={"new", "trained"})


if __name__ == "__main__":
    main()
