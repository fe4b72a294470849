"""Two donors of one modality pair (pbmc5k, pbmc10k, common genes and proteins): FOSCTTM per donor, alone and together.

python benchmarks/donors.py 0 1 2      # seeds; needs ../shared/data and ../shared/bench
"""

import sys
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np

import scmmgan as smm

SHARED = Path(__file__).resolve().parents[2] / "shared"
sys.path.insert(0, str(SHARED / "bench"))
import scores  # noqa: E402

DONORS = ("pbmc5k_cite", "pbmc10k_cite")


def build(whole: dict[str, md.MuData], keys: tuple[str, ...], seed: int) -> tuple[md.MuData, dict[str, np.ndarray]]:
    """The donors' cells on common features, rows of each modality shuffled; and the true names in that order."""
    rng = np.random.default_rng(seed)
    genes = whole[DONORS[0]]["rna"].var_names.intersection(whole[DONORS[1]]["rna"].var_names)
    named = {k: whole[k]["prot"].var["genes"].astype(str).drop_duplicates() for k in DONORS}
    common = [g for g in named[DONORS[0]] if g in set(named[DONORS[1]])]
    columns = {k: {"rna": genes, "prot": [named[k].index[named[k] == g][0] for g in common]} for k in keys}
    mods, names = {}, {}
    for mod in ("rna", "prot"):
        parts = [whole[k][mod][:, columns[k][mod]] for k in keys]
        dense = [p.X.toarray() if hasattr(p.X, "toarray") else np.asarray(p.X) for p in parts]
        adata = ad.AnnData(np.vstack(dense).astype(np.float32))
        adata.var_names = list(genes) if mod == "rna" else [f"p_{g}" for g in common]
        if mod == "prot":
            adata.var["genes"] = common
        adata.obs["donor"] = np.repeat(list(keys), [p.n_obs for p in parts])
        cells = np.concatenate([[f"{k}_{c}" for c in p.obs_names] for k, p in zip(keys, parts)])
        order = rng.permutation(len(cells))
        mods[mod], names[mod] = adata[order].copy(), cells[order]
        mods[mod].obs_names = [f"{mod}_{i}" for i in range(len(cells))]
    return md.MuData(mods), names


def main() -> None:
    whole = {k: md.read(SHARED / "data" / f"{k}.h5mu") for k in DONORS}
    for seed in map(int, sys.argv[1:]):
        for keys, batch in (((DONORS[0],), None), ((DONORS[1],), None), (DONORS, "donor"), (DONORS, None)):
            mdata, names = build(whole, keys, seed)
            smm.tl.align(mdata, "rna", "prot", links="genes", batch=batch, random_state=seed, progress_bar=False)
            position = {cell: i for i, cell in enumerate(names["prot"])}
            partner = np.array([position[cell] for cell in names["rna"]])
            joint = {m: mdata[m].obsm["X_scmmgan"] for m in ("rna", "prot")}
            for k in keys:
                rows = np.flatnonzero((mdata["rna"].obs["donor"] == k).to_numpy())
                score = scores.foscttm(joint["rna"][rows], joint["prot"][partner[rows]])
                sys.stdout.write(f"seed {seed}: {k} {'alone' if len(keys) == 1 else f'batch={batch}'} {score:.4f}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
