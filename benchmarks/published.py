"""Protocols of published tables: python benchmarks/published.py --data DIR --out CSV

con-aae   the table of Con-AAE on A549 cells: labels of both sides, the last 358 of 1,791 cells are scored (scicar_conaae_split.csv);
          CMAE on the same. At the published width: --set hidden=published
snare     two logistic regressions on the cell lines of SNARE-seq, a random fifth of which is scored
ablation  its losses added one by one, three seeds
jamie     all, three quarters and half of the pairs of two simulated sets, beside canonical correlation of the same pairs
imputation   JAMIE beside five nearest neighbours: which predicts more features of a random fifth of the cells better
cite      scMODAL and matching over links on blood cells with 27 linked proteins

Rows that CSV has already are not computed again. Steps are far below the published ones: `--steps` multiplies them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
from common import CASES, Rows, arguments, dense, hide, joint, known_pairs, read
from scipy.spatial.distance import cdist
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsRegressor

import scmmgan as smm

PARTS = ("con-aae", "ablation", "snare", "jamie", "imputation", "cite")
# losses beside reconstruction and labels
ABLATION = {
    "basic": (), "+ mmd": ("mmd",), "+ adversary": ("adversarial",), "+ cycle": ("cycle",), "+ contrast": ("contrast",),
    "+ adversary, cycle": ("adversarial", "cycle"), "all": ("adversarial", "cycle", "contrast"),
}  # fmt: skip
STEPS = {"con-aae": 500, "jamie": 500, "scmodal": 300}  # published: 180,000, 2,500-10,000, 10,000
QUIET = {"progress_bar": False}
CITE_CELLS = 2_000
CCA_COMPONENTS = 10


def split(
    whole: mudata.MuData, folder: Path
) -> tuple[dict[str, anndata.AnnData], dict[str, anndata.AnnData], pd.DataFrame]:
    """Cells that train and cells that are scored of both modalities, in the order of the published table, and their labels."""
    table = pd.read_csv(folder / "scicar_conaae_split.csv", dtype=str)
    train, test = (table["name"][table["split"] == part] for part in ("train", "test"))
    return {m: whole[m][train].copy() for m in whole.mod}, {m: whole[m][test].copy() for m in whole.mod}, table


def con_aae(args: Any, *, ablation: bool = False) -> Iterator[dict[str, Any]]:
    """ATAC → RNA in the latent space of cells that did not train."""
    train, test, table = split(read(args.data, "scicar_a549"), args.data)
    label = table.set_index("name")["label"]
    truth = label[test["rna"].obs_names].to_numpy()

    def perfect() -> tuple[np.ndarray, np.ndarray]:
        # cells of one label in a random order
        noise = np.random.default_rng(0).normal(size=(2, len(truth), 2)) * 1e-3
        kinds = np.unique(truth, return_inverse=True)[1][:, None]
        return kinds + noise[0], kinds + noise[1]

    def paired() -> tuple[np.ndarray, np.ndarray]:
        parts = [components(train[m], test[m]) for m in ("atac", "rna")]
        fit = CCA(CCA_COMPONENTS, max_iter=2_000).fit(parts[0][0], parts[1][0])
        return fit.transform(parts[0][1], parts[1][1])

    def trained(method: str, seed: int = 0, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        hidden = hide(train, CASES["scicar_a549"], seed)
        for m in train:
            hidden.mdata[m].obs["label"] = pd.Categorical(label[hidden.cells[m]])
        how |= {"features": {m: [] for m in train}, "random_state": seed}
        smm.tl.align(hidden.mdata, "rna", "atac", method=method, labels="label", **how, **QUIET)
        z = []
        for s, t in (("atac", "rna"), ("rna", "atac")):
            some = hidden.mdata[t].var_names[:1]
            z.append(smm.tl.translate(test[s], s, t, model=hidden.mdata, features=list(some)).obsm["X_scmmgan"])
        return z[0], z[1]

    steps = {"max_steps": round(args.steps * STEPS["con-aae"])}
    if ablation:
        chosen = {
            name: {of: 10.0 if of in on else 0.0 for of in ("mmd", "adversarial", "cycle", "contrast")}
            for name, on in ABLATION.items()
        }
        runs = {
            (name, str(seed)): partial(trained, "con-aae", seed, weights=weights, **steps)
            for seed in range(3)
            for name, weights in chosen.items()
        }
    else:
        runs = {
            ("perfect labels", ""): perfect,
            ("paired-cca", ""): paired,
            ("label-probability", ""): partial(probabilities, train, test, label, ("atac", "rna")),
            ("con-aae", ""): partial(trained, "con-aae", **steps, **dict(args.set)),
            ("cmae", ""): partial(trained, "cmae", **steps, **dict(args.set)),
            ("coupling", ""): partial(trained, "coupling"),
        }
    for (name, seed), of in runs.items():
        if args.done("A549", name, seed):
            continue
        start = time.process_time()
        distance = cdist(*of())
        seconds = time.process_time() - start
        # the seed stands in the column of the pairs, of which none are given
        yield {"data": "A549", "method": name, "pairs": seed, **latent_scores(distance, truth), "seconds": seconds}


def components(train: anndata.AnnData, test: anndata.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """50 principal components (fewer of fewer features) of z-scored training cells, and those cells that are scored in them."""
    x, new = dense(train.X), dense(test.X)
    mean, sd = x.mean(0), np.maximum(x.std(0), 1e-9)
    pcs = PCA(min(50, x.shape[1]), random_state=0).fit((x - mean) / sd)
    return pcs.transform((x - mean) / sd), pcs.transform((new - mean) / sd)


def probabilities(train: Any, test: Any, label: pd.Series, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Of the labels, by a logistic regression of each modality; prints how many of its own cells each gets right."""
    found = []
    for m in names:
        a, b = components(train[m], test[m])
        fit = LogisticRegression(max_iter=2_000).fit(a, label[train[m].obs_names])
        found.append(fit.predict_proba(b))
        print(f"classifier of {m}: {fit.score(b, label[test[m].obs_names]):.3f}")
    return found[0], found[1]


def snare(args: Any) -> Iterator[dict[str, Any]]:
    """Label probabilities of 210 cells, from regressions on the others."""
    whole = read(args.data, "snare_cellline")
    a, b = CASES["snare_cellline"][:2]
    names = np.random.default_rng(0).permutation(whole[a].obs_names)
    test, train = ({m: whole[m][of] for m in (a, b)} for of in np.split(names, [210]))
    label = whole[a].obs["cell_type"].astype(str)
    found = probabilities(train, test, label, (a, b))
    scores = latent_scores(cdist(*found), label[test[a].obs_names].to_numpy())
    yield {
        "data": "SNARE",
        "method": "label-probability",
        "pairs": "",
        **scores,
        "foscttm": smm.metrics.foscttm(*found),
    }


def imputation(args: Any) -> Iterator[dict[str, Any]]:
    """Of how many features are values of cells that did not train nearer to the measured ones, by r and by AUROC (above the median)."""
    case, whole = CASES["sim_branch"], read(args.data, "sim_branch")
    a, b = case.source, case.target
    names = np.random.default_rng(0).permutation(whole[a].obs_names)
    test, train = ({m: whole[m][of].copy() for m in (a, b)} for of in np.split(names, [len(names) // 5]))
    hidden = hide(train, case, 0)
    at = {m: hidden.cells[m].argsort() for m in hidden.cells}
    known = pd.DataFrame({m: hidden.mdata[m].obs_names[rows] for m, rows in at.items()})
    steps = round(args.steps * STEPS["jamie"])
    for dropout, (s, t) in product((0.0, 0.6), ((a, b), (b, a))):
        what, key = f"{s} > {t}, dropout {dropout}", f"dropout{dropout}"
        if args.done("sim_branch", "imputation", what):
            continue
        if key not in hidden.mdata.uns:
            how = {"max_steps": steps, "options": {"dropout": dropout}, "key_added": key}
            smm.tl.align(hidden.mdata, a, b, method="jamie", pairs=known, links=None, **how, **QUIET)
        own = dense(smm.tl.translate(test[s], s, t, model=hidden.mdata, key=key, **QUIET).X)
        near = KNeighborsRegressor(5).fit(dense(train[s].X), dense(train[t].X)).predict(dense(test[s].X))
        measured = dense(test[t].X)
        row = {"data": "sim_branch", "method": "imputation", "pairs": what, "features": measured.shape[1]}
        for name, score in (("r", smm.metrics.column_correlation), ("auroc", smm.metrics.column_auroc)):
            first, second = (np.asarray(score(of, measured)) for of in (own, near))
            row |= {f"{name} JAMIE": np.nanmedian(first), f"{name} neighbors": np.nanmedian(second)}
            row |= {f"{name} wins": int((first > second).sum()), f"{name} losses": int((first < second).sum())}
        yield row


def latent_scores(distance: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Label accuracy of the nearest cell and of a greedy one-to-one assignment in the order of the file, and recall at k."""
    rank = np.argsort(np.argsort(distance, 1), 1).diagonal()
    free, taken = distance.copy(), np.empty(len(distance), dtype=int)
    for i in range(len(distance)):
        taken[i] = free[i].argmin()
        free[:, taken[i]] = np.inf
    found = {"nearest": (truth[distance.argmin(1)] == truth).mean(), "greedy": (truth[taken] == truth).mean()}
    return found | {f"recall@{k}": (rank < k).mean() for k in (10, 20, 30, 40, 50)}


def jamie(args: Any) -> Iterator[dict[str, Any]]:
    """Cells with known partners and the others apart."""
    for name in ("sim_branch", "sim_counts"):
        case, whole = CASES[name], read(args.data, name)
        for share in (1.0, 0.75, 0.5):
            hidden = hide(whole, case, 0)
            if share == 1:
                at = {m: hidden.cells[m].argsort() for m in hidden.cells}
                known = pd.DataFrame({m: hidden.mdata[m].obs_names[rows] for m, rows in at.items()})
                paired = np.ones(whole[case.source].n_obs, dtype=bool)
            else:
                known, paired = known_pairs(hidden, whole, case, share, 0)
            for method in ("paired-cca", "jamie"):
                if args.done(name, method, f"{share:.0%}"):
                    continue
                how = {"max_steps": round(args.steps * STEPS["jamie"])} if method == "jamie" else {}
                start = time.process_time()
                smm.tl.align(
                    hidden.mdata, case.source, case.target, method=method, pairs=known, links=None, **how, **QUIET
                )
                seconds = time.process_time() - start
                partner = hidden.partner(case.source, case.target)
                yield {
                    "data": name, "method": method, "pairs": f"{share:.0%}", "seconds": seconds,
                    **{f"{of} {score}": value
                       for of, rows in (("paired", paired), ("unpaired", ~paired)) if rows.sum() > 20
                       for score, value in pair_scores(hidden, whole, case, rows, partner).items()},
                }  # fmt: skip


def pair_scores(
    hidden: Any, whole: mudata.MuData, case: Any, rows: np.ndarray, partner: np.ndarray
) -> dict[str, float]:
    """FOSCTTM among these cells, and label transfer from the target with five neighbours."""
    z = joint(hidden.mdata)
    x, y = z[case.source][rows], z[case.target][partner[rows]]
    a, b = hidden.of(whole, case.source)[rows], hidden.of(whole, case.target)[partner[rows]]
    return {"foscttm": smm.metrics.foscttm(x, y), "label transfer": smm.metrics.label_transfer(y, b, x, a, k=5)}


def cite(args: Any) -> Iterator[dict[str, Any]]:
    """Methods that live on links."""
    case, whole = CASES["pbmc5k_cite"], read(args.data, "pbmc5k_cite")
    rows = np.sort(np.random.default_rng(0).permutation(whole[case.source].n_obs)[:CITE_CELLS])
    parts = mudata.MuData({m: whole[m][rows].copy() for m in (case.source, case.target)})
    for method in ("links-correlation", "links-matching", "scmodal"):
        if args.done("pbmc5k_cite", method, ""):
            continue
        hidden = hide(parts, case, 0)
        how = {"max_steps": round(args.steps * STEPS["scmodal"])} if method == "scmodal" else {}
        start = time.process_time()
        smm.tl.align(hidden.mdata, case.source, case.target, method=method, links=case.links, **how, **QUIET)
        seconds = time.process_time() - start
        every = np.ones(len(rows), dtype=bool)
        scores = pair_scores(hidden, parts, case, every, hidden.partner(case.source, case.target))
        yield {"data": "pbmc5k_cite", "method": method, "pairs": "", "seconds": seconds, **scores}


def main() -> None:
    parser = arguments(__doc__, PARTS, seeds=False)
    parser.add_argument("--steps", type=float, default=1.0, help="times the steps of this page")
    args = parser.parse_args()
    rows = Rows(args.out)
    if args.out is not None and args.out.exists():
        rows.extend(pd.read_csv(args.out, dtype={"pairs": str}, keep_default_na=False, na_values={}).to_dict("records"))
    there = {(row["data"], row["method"], row["pairs"]) for row in rows}
    args.done = lambda *what: what in there
    for part in args.names:
        runs = {"con-aae": con_aae, "ablation": partial(con_aae, ablation=True), "jamie": jamie, "cite": cite}
        for row in (runs | {"snare": snare, "imputation": imputation})[part](args):
            rows.add(row)


if __name__ == "__main__":
    main()
