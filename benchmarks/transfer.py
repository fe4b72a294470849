"""`tl.match`, `tl.transfer` and `tl.importance` against the truth, with and without a population that one side lacks.

    python benchmarks/transfer.py --data DIR --out transfer.csv              # all cases: 41 alignments
    python benchmarks/transfer.py snare_cellline --data DIR --seeds 0        # one data set
    python benchmarks/transfer.py pbmc5k_cite --data DIR --removed none      # nothing removed
    python benchmarks/transfer.py hybrid_pbmc hybrid_pdac --data DIR         # compositions of spots

Rows are shuffled and cells renamed in every modality, labels are not shown to `tl.align`, all arguments are the defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mudata
import numpy as np
import pandas as pd
from common import CASES, Hidden, Rows, arguments, cell_types, correlation, dense, hide, joint, read
from scipy.optimize import nnls
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import scmmgan as smm

POPULATIONS = ["CD14 Mono", "CD4 T naive", "B", "NK", "CD8 T memory", "DC"]
REMOVED = {"pbmc5k_cite": POPULATIONS, "pbmc10k_cite": POPULATIONS, "snare_cellline": ["K562", "H1"]}
ALL_SEEDS = 2  # so many of the removed populations are run with all seeds, the others with the first
N_EXPLAINED, N_VALUES = 30, 5


def area(positive: np.ndarray, score: np.ndarray) -> float:
    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else float("nan")


def calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over bins of equal size."""
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    off = [abs(probability[p].mean() - right[p].mean()) * len(p) for p in parts if len(p)]
    return float(sum(off) / len(right))


def matches(mdata: mudata.MuData, a: str, b: str, types: dict, match: np.ndarray) -> dict[str, float]:
    """How often the partner has the right label, and what its confidence is worth."""
    smm.tl.match(mdata, a, b)
    confidence = mdata[a].obs[f"scmmgan_match_{b}_confidence"].to_numpy()
    partner = mdata[b].obs_names.get_indexer(mdata[a].obs[f"scmmgan_match_{b}"].astype(str))
    right, known = types[b][partner] == types[a], match >= 0
    # distance of the partner from the true one in what the target measured: 1 is a random cell
    z = dense(mdata[b].X)
    z = (z - z.mean(0)) / np.maximum(z.std(0), 1e-9)
    away = ((z[partner[known]] - z[match[known]]) ** 2).sum(1) / (2 * z.var(0).sum())
    return {
        "match_right": float(right[known].mean()),
        "match_auc": area(right, confidence),
        "confidence ~ distance": float(spearmanr(confidence[known], away)[0]),
    }


def labels(mdata: mudata.MuData, a: str, b: str, types: dict) -> dict[str, float]:
    """Labels carried over: how many are right, how many unassigned, and whether probabilities mean what they say."""
    z, orphan = joint(mdata), ~np.isin(types[a], types[b])
    found = {"label_1nn": smm.metrics.label_transfer(z[a][~orphan], types[a][~orphan], z[b], types[b], k=1)}
    mdata[b].obs["cell_type"] = types[b]
    for form in ("", "_unflagged"):
        if form:  # had no cell been flagged as ambiguous
            mdata[a].obs["scmmgan_ambiguous"] = False
        smm.tl.transfer(mdata, a, b, obs="cell_type")
        slot = f"scmmgan_{b}_cell_type"
        label = mdata[a].obs[slot].astype(object)
        none, right = label.isna().to_numpy(), label.to_numpy() == types[a]
        if not form:
            probability, names = mdata[a].obsm[slot], np.asarray(mdata.uns["scmmgan"]["transfer"][a][slot])
            best = names[probability.argmax(1)] == types[a]
            given = probability.max(1) / np.maximum(1 - mdata[a].obs[f"{slot}_unassigned"].to_numpy(), 1e-9)
            found["label_most_likely"] = float(best[~orphan].mean())
            found["calibration_error"] = calibration_error(given[~orphan], best[~orphan])
            found["label_assigned"] = float(right[~orphan & ~none].mean())
            found["label_assigned_all"] = float(right[~none].mean())
        found[f"unassigned{form}"] = float(none[~orphan].mean())
        if orphan.any():
            found[f"removed_unassigned{form}"] = float(none[orphan].mean())
    return found


def values(mdata: mudata.MuData, a: str, b: str, match: np.ndarray) -> dict[str, float]:
    """Random features of the target as numbers of its cells, against the values of the true partners."""
    chosen = np.random.default_rng(0).permutation(mdata[b].n_vars)[:N_VALUES]
    names, truth = [f"value_{i}" for i in range(N_VALUES)], dense(mdata[b].X[:, chosen])
    for name, column in zip(names, truth.T):
        mdata[b].obs[name] = column
    smm.tl.transfer(mdata, a, b, obs=names)
    carried, spread = (mdata[a].obs[[f"scmmgan_{b}_{n}{s}" for n in names]].to_numpy() for s in ("", "_spread"))
    known = (match >= 0) & np.isfinite(carried).all(1)
    truth, carried, spread = truth[match[known]], carried[known], spread[known]
    return {
        "value_r": correlation(carried, truth),
        "value_r_mapped": correlation(dense(smm.get.mapped(mdata, a, b).X)[known][:, chosen], truth),
        "value_covered": float((np.abs(truth - carried) <= 1.96 * spread).mean()),
    }


def least_squares(spots: np.ndarray, cells: np.ndarray, types: np.ndarray, names: list[str]) -> np.ndarray:
    """Compositions by non-negative least squares on mean profiles, over the mean total of each type."""
    mean = np.array([cells[types == name].mean(0) for name in names])
    total = mean.sum(1)
    return np.array([nnls((mean / total[:, None]).T, y / y.sum())[0] for y in spots]) / total


def mixtures(mdata: mudata.MuData, hidden: Hidden, whole: mudata.MuData, a: str, b: str) -> dict[str, float]:
    """Error of the compositions of spots, whose truth is known, and of least squares; assigned shares sum to 1."""
    names, types = [str(name) for name in whole.uns["labels"]], hidden.of(whole, b)
    truth = np.asarray(whole[a].obsm["composition"])[whole[a].obs_names.get_indexer(hidden.cells[a])]
    mdata[b].obs["cell_type"] = types
    smm.tl.transfer(mdata, a, b, obs="cell_type")
    slot = f"scmmgan_{b}_cell_type"
    order = pd.Index(mdata.uns["scmmgan"]["transfer"][a][slot]).get_indexer(names)
    counts = {m: dense(mdata[m].layers["counts"]) for m in (a, b)}
    shares = {"": mdata[a].obsm[slot][:, order], "_least_squares": least_squares(counts[a], counts[b], types, names)}
    found = {
        f"composition_rmse{k}": float(np.sqrt(((v / v.sum(1, keepdims=True) - truth) ** 2).mean()))
        for k, v in shares.items()
    }
    return found | {"composition_unassigned": float(mdata[a].obs[f"{slot}_unassigned"].mean())}


def importance(mdata: mudata.MuData, a: str, b: str, links: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Rank of the linked source feature among all that drive a mapped feature."""
    pairs = links.drop_duplicates(b)
    pairs = pairs.iloc[np.random.default_rng(seed).permutation(len(pairs))[:N_EXPLAINED]]
    smm.tl.importance(mdata, a, b, features=pairs[b].tolist(), random_state=seed)
    table = mdata.uns["scmmgan"]["importance"][a][b]
    share = table.pivot(index="feature", columns="source_feature", values="share")
    pairs = pairs[pairs[a].isin(share.columns)]
    rank = np.array([(share.loc[f] > share.loc[f, s]).sum() + 1 for s, f in zip(pairs[a], pairs[b])])
    return {
        "n_source": share.shape[1],
        "linked_rank": float(np.median(rank)),
        "linked_top10": float((rank <= 10).mean()),
    }


def run(whole: mudata.MuData, name: str, seed: int, removed: str, side: str, options: dict) -> Iterator[dict[str, Any]]:
    """One alignment, both directions; where a population is removed only the one whose annotated side lacks it."""
    case = CASES[name]
    keep = {side: set(cell_types(whole[side])) - {removed}} if removed else None
    hidden: Hidden = hide(whole.mod, case, seed, keep=keep)
    mdata = hidden.mdata
    smm.tl.align(mdata, *case[:2], **{"links": case.links, "random_state": seed, "progress_bar": False, **options})
    for a, b in ((case.source, case.target), (case.target, case.source)):
        if removed and b != side:
            continue
        what = "one removed" if removed else "all there"
        row: dict[str, Any] = {"case": what, "data": name, "map": f"{a} → {b}", "removed": removed, "seed": seed}
        if case.links and not removed:
            links = smm.pp.link_features(mdata, *case[:2], on=case.links)
            row |= importance(mdata, a, b, links, seed)
        if name.startswith("hybrid") and a == case.source:
            row |= mixtures(mdata, hidden, whole, a, b)
        if case.links != "var_names":
            match, types = hidden.partner(a, b), {m: hidden.of(whole, m) for m in (a, b)}
            row |= matches(mdata, a, b, types, match)
            if case.links and not removed:
                row |= values(mdata, a, b, match)
            row |= labels(mdata, a, b, types)
        yield row


def main() -> None:
    parser = arguments(__doc__, ["pbmc5k_cite", "pbmc10k_cite", "snare_cellline", "scgem", "visium_lymph"])
    parser.add_argument("--removed", metavar="TYPE", help="only this population; 'none': nothing removed")
    args = parser.parse_args()
    rows = Rows(args.out)
    for name in args.names:
        whole = read(args.data, name)
        for i, removed in enumerate(["", *REMOVED.get(name, [])]):
            if args.removed and args.removed != (removed or "none"):
                continue
            for seed in args.seeds if i <= ALL_SEEDS else args.seeds[:1]:
                side = CASES[name][(i - 1 + seed) % 2] if removed else ""
                for row in run(whole, name, seed, removed, side, dict(args.set)):
                    rows.add(row)
    low = (
        "unassigned", "unassigned_unflagged", "calibration_error", "confidence ~ distance", "linked_rank",
        "composition_rmse", "composition_rmse_least_squares",
    )  # fmt: skip
    rows.summary(["data", "map"], low, case="all there")
    rows.summary(["data", "removed"], low, case="one removed")


if __name__ == "__main__":
    main()
