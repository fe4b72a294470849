"""Three modalities at once against pairs of them, measured on different cells.

python benchmarks/modalities.py --data DIR --seeds 0                      # all settings
python benchmarks/modalities.py common --data DIR --seeds 0 --together    # only all three at once

"common", "disjoint": two gene panels and the proteins of pbmc5k, each of a third of the cells. Panels have the genes of
the proteins and 100 dispersed ones in common, or no gene (these of the proteins are dealt out, and the panels are coupled
through the proteins). "hybrid_pbmc": spots and cells of hybrid_pbmc and the proteins of pbmc10k_cite, of which the hybrid
was made: one vocabulary of labels, no cell of a common name. The label of a spot is its main type.

Scores: label transfer between the cells of two modalities, mean of both ways; of the panels FOSCTTM of cells as they were
aligned with what the other assay measured of the same cells, which no training saw (`tl.translate`).
"""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path

import anndata
import mudata
import numpy as np
from common import Rows, arguments, cell_types, dense, read

import scmmgan as smm

NAMES, HYBRID = ("panel_a", "panel_b", "prot"), ("spatial", "prot", "rna")
N_COMMON = 100


def panels(whole: dict[str, anndata.AnnData], setting: str, rng: np.random.Generator) -> dict[str, anndata.AnnData]:
    """All cells in each modality, rows as they are."""
    rna, prot = whole["rna"], whole["prot"]
    named = {g for genes in prot.var["genes"].astype(str) for g in genes.split(";")}
    is_named = np.asarray(rna.var_names.isin(named))
    x = dense(rna.X)
    dispersion = x.var(0) / np.maximum(x.mean(0), 1e-9)
    common = np.argsort(-np.where(is_named, -1, dispersion), kind="stable")[:N_COMMON]
    common = np.union1d(common, np.flatnonzero(is_named))
    if setting == "disjoint":
        common = common[:0]
    rest = rng.permutation(np.setdiff1d(np.arange(rna.n_vars), common))
    found = {m: rna[:, np.union1d(common, own)].copy() for m, own in zip(NAMES, np.array_split(rest, 2))}
    for m in found:
        found[m].var["genes"] = found[m].var_names
    return {**found, "prot": prot.copy()}


def main() -> None:
    parser = arguments(__doc__, ["common", "disjoint", "hybrid_pbmc"])
    parser.add_argument("--together", action="store_true", help="only all three modalities at once, no star")
    args = parser.parse_args()
    rows = Rows(args.out)
    for setting in args.names:
        for seed in args.seeds:
            if setting == "hybrid_pbmc":
                (parts, labels), measured, names = hybrid(args.data, seed), {}, HYBRID
            else:
                (parts, labels, measured), names = thirds(args.data, setting, seed), NAMES
            runs = [(names, {"maps": "all"}), (names, {"maps": "all", "weights": {"consistency": 1.0}})]
            if not args.together:
                pairs = [(pair, {}) for pair in combinations(names, 2)]
                runs = [*pairs, runs[0], (names[::-1], {"maps": "star"}), runs[1]]
            for run, how in runs:
                if setting == "disjoint" and set(run) == {"panel_a", "panel_b"}:
                    how = {"links": None}
                start = time.perf_counter()
                how = {"links": "genes", "random_state": seed, "progress_bar": False, **how, **dict(args.set)}
                mdata = smm.tl.align({m: parts[m] for m in run}, **how)
                seconds = time.perf_counter() - start
                z = {m: np.asarray(mdata[m].obsm["X_scmmgan"]) for m in run}
                for a, b in combinations([m for m in names if m in run], 2):
                    found, ways = smm.get.diagnosis(mdata, a, b), ((a, b), (b, a))
                    row = {
                        "setting": setting,
                        "pair": f"{a}, {b}",
                        "modalities": len(run),
                        "maps": how.get("maps", ""),
                        "weight": how.get("weights", {}).get("consistency", 0.0),
                        "seed": seed,
                    }
                    right = [smm.metrics.label_transfer(z[s], labels[s], z[t], labels[t]) for s, t in ways]
                    row |= {"label_transfer": float(np.mean(right))}
                    if measured:
                        row["foscttm"] = float(np.mean([new_cells(mdata, z, measured, s, t) for s, t in ways]))
                    row["consistency"] = float(found.get("quality_consistency", np.nan))
                    rows.add(row | {"seconds": seconds, "verdict": found["verdict"]})
    rows.summary(["setting", "pair", "modalities", "maps", "weight"], ("foscttm", "consistency", "seconds"))


def thirds(folder: Path, setting: str, seed: int) -> tuple[dict, dict, dict]:
    """A third of the cells for each modality, their types, and for each two what the second measures of the first's cells."""
    whole = read(folder, "pbmc5k_cite")
    parts = {"rna": whole["rna"], "prot": whole["prot"][whole["rna"].obs_names].copy()}
    rng = np.random.default_rng(50_000 + seed)
    every = panels(parts, setting, rng)
    rows = dict(zip(NAMES, np.array_split(rng.permutation(whole["rna"].n_obs), 3)))
    types = cell_types(whole["rna"])
    measured = {(s, t): every[t][rows[s]].copy() for s in NAMES for t in NAMES if s != t}
    return {m: plain(every[m][rows[m]], m) for m in NAMES}, {m: types[rows[m]] for m in NAMES}, measured


def hybrid(folder: Path, seed: int) -> tuple[dict, dict]:
    """Spots, cells and proteins in random order, and their types; of spots the main one."""
    spots, proteins = read(folder, "hybrid_pbmc"), read(folder, "pbmc10k_cite")
    whole = {"spatial": spots["spatial"], "rna": spots["rna"], "prot": proteins["prot"]}
    names = np.asarray(spots.uns["labels"]).astype(str)
    types = {m: cell_types(whole[m]) for m in ("rna", "prot")}
    types["spatial"] = names[np.asarray(spots["spatial"].obsm["composition"]).argmax(1)]
    rng = np.random.default_rng(50_000 + seed)
    rows = {m: rng.permutation(a.n_obs) for m, a in whole.items()}
    parts = {m: plain(a[rows[m]], m) for m, a in whole.items()}
    for m in ("spatial", "rna"):
        parts[m].var["genes"] = parts[m].var_names
    return parts, {m: types[m][rows[m]] for m in whole}


def plain(part: anndata.AnnData, name: str) -> anndata.AnnData:
    """Values and counts, without names or labels of the cells."""
    found = anndata.AnnData(part.X.copy(), var=part.var.copy(), layers={"counts": part.layers["counts"].copy()})
    found.obs_names = [f"{name}_{i}" for i in range(part.n_obs)]
    return found


def new_cells(mdata: mudata.MuData, z: dict, measured: dict, s: str, t: str) -> float:
    """FOSCTTM of the cells of s with what t's assay measured of them."""
    new = smm.tl.translate(measured[s, t], t, s, model=mdata, features=mdata[s].var_names[:1])
    return smm.metrics.foscttm(z[s], new.obsm["X_scmmgan"])


if __name__ == "__main__":
    main()
