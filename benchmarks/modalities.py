"""Three modalities at once against pairs of them: two gene panels and proteins of pbmc5k, measured on different cells.

python benchmarks/modalities.py --data DIR --seeds 0

Each modality gets a third of the cells. Panels have the genes of the proteins and 100 dispersed ones in common ("common"), or no
gene ("disjoint": these of the proteins are dealt out, and the panels are coupled through the proteins). Scores: label transfer
between the disjoint cells, mean of both ways; FOSCTTM of cells as they were aligned with what the other assay measured of
the same cells, which no training saw (`tl.translate`).
"""

from __future__ import annotations

import time
from itertools import combinations

import anndata
import numpy as np
from common import Rows, arguments, cell_types, dense, read

import scmmgan as smm

NAMES = ("panel_a", "panel_b", "prot")
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
    args = arguments(__doc__).parse_args()
    rows, whole = Rows(args.out), read(args.data, "pbmc5k_cite")
    whole = {"rna": whole["rna"], "prot": whole["prot"][whole["rna"].obs_names].copy()}
    for seed in args.seeds:
        for setting in ("common", "disjoint"):
            rng = np.random.default_rng(50_000 + seed)
            every = panels(whole, setting, rng)
            thirds = dict(zip(NAMES, np.array_split(rng.permutation(whole["rna"].n_obs), 3)))
            types = cell_types(whole["rna"])
            runs = [(pair, "all") for pair in combinations(NAMES, 2)] + [(NAMES, "all"), (NAMES[::-1], "star")]
            for names, maps in runs:
                parts = {}
                for m in names:
                    part = every[m][thirds[m]]
                    parts[m] = anndata.AnnData(
                        part.X.copy(), var=part.var.copy(), layers={"counts": part.layers["counts"].copy()}
                    )
                    parts[m].obs_names = [f"{m}_{i}" for i in range(part.n_obs)]
                start = time.perf_counter()
                how = {"links": "genes", "maps": maps, "random_state": seed, "progress_bar": False, **dict(args.set)}
                if setting == "disjoint" and set(names) == {"panel_a", "panel_b"}:
                    how["links"] = None
                mdata = smm.tl.align(parts, **how)
                seconds = time.perf_counter() - start
                for a, b in combinations([m for m in NAMES if m in names], 2):
                    found = smm.get.diagnosis(mdata, a, b)
                    z = {m: np.asarray(mdata[m].obsm["X_scmmgan"]) for m in (a, b)}
                    labels = {m: types[thirds[m]] for m in (a, b)}
                    transfer = [
                        smm.metrics.label_transfer(z[s], labels[s], z[t], labels[t]) for s, t in ((a, b), (b, a))
                    ]
                    foscttm = []
                    for s, t in ((a, b), (b, a)):
                        # what t's assay measured of the cells of s
                        cells = every[t][thirds[s]].copy()
                        new = smm.tl.translate(cells, t, s, model=mdata, features=mdata[s].var_names[:1])
                        foscttm.append(smm.metrics.foscttm(z[s], new.obsm["X_scmmgan"]))
                    rows.add(
                        {
                            "setting": setting,
                            "modalities": len(names),
                            "maps": maps if len(names) > 2 else "",
                            "pair": f"{a}, {b}",
                            "seed": seed,
                            "label_transfer": float(np.mean(transfer)),
                            "foscttm": float(np.mean(foscttm)),
                            "consistency": float(found.get("quality_consistency", np.nan)),
                            "seconds": seconds,
                            "verdict": found["verdict"],
                        }
                    )
    rows.summary(["setting", "pair", "modalities", "maps"], ("foscttm", "consistency", "seconds"))


if __name__ == "__main__":
    main()
