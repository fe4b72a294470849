"""Two donors in one modality pair (common genes and proteins of pbmc5k and pbmc10k): FOSCTTM per donor, alone and together.

python benchmarks/donors.py --data DIR --seeds 0 1 2
"""

from __future__ import annotations

import anndata
import mudata
import numpy as np
import pandas as pd
from common import Case, Rows, arguments, dense, hide, joint, read

import scmmgan as smm

DONORS = ("pbmc5k_cite", "pbmc10k_cite")
CASE = Case("rna", "prot", "genes")


def joined(whole: dict[str, mudata.MuData], names: tuple[str, ...]) -> dict[str, anndata.AnnData]:
    """Cells of the donors on the features that both donors have."""
    genes = whole[DONORS[0]]["rna"].var_names.intersection(whole[DONORS[1]]["rna"].var_names)
    proteins = {d: whole[d]["prot"].var["genes"].astype(str).drop_duplicates() for d in DONORS}
    common = [g for g in proteins[DONORS[0]] if g in set(proteins[DONORS[1]])]
    parts = {}
    for m in ("rna", "prot"):
        values, obs = [], []
        for d in names:
            of_gene = pd.Series(proteins[d].index, index=proteins[d])
            a = whole[d][m][:, genes if m == "rna" else of_gene[common].tolist()]
            values.append(dense(a.X).astype(np.float32))
            obs.append(pd.DataFrame({"donor": d}, index=d + "_" + a.obs_names))
        features = pd.DataFrame(index=genes if m == "rna" else [f"p_{g}" for g in common])
        if m == "prot":
            features["genes"] = common
        parts[m] = anndata.AnnData(np.vstack(values), obs=pd.concat(obs), var=features)
    return parts


def main() -> None:
    args = arguments(__doc__).parse_args()
    rows, whole = Rows(args.out), {d: read(args.data, d) for d in DONORS}
    settings = [((d,), None) for d in DONORS] + [(DONORS, "donor"), (DONORS, None)]
    for seed in args.seeds:
        for names, batch in settings:
            parts = joined(whole, names)
            hidden = hide(parts, CASE, seed)
            for m in parts:
                hidden.mdata[m].obs["donor"] = parts[m].obs["donor"].reindex(hidden.cells[m]).to_numpy()
            how = {"links": "genes", "batch": batch, "random_state": seed, "progress_bar": False, **dict(args.set)}
            smm.tl.align(hidden.mdata, *CASE[:2], **how)
            z, match = joint(hidden.mdata), hidden.partner("rna", "prot")
            for d in names:
                at = np.flatnonzero(hidden.mdata["rna"].obs["donor"] == d)
                score = smm.metrics.foscttm(z["rna"][at], z["prot"][match[at]])
                setting = "alone" if len(names) == 1 else f"together, batch={batch}"
                rows.add({"donor": d, "setting": setting, "seed": seed, "foscttm": score})
    rows.summary(["donor", "setting"], ("foscttm",))


if __name__ == "__main__":
    main()
