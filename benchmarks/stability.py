"""Does another seed give another map? Twenty seeds of `tl.align` on data with known truth; a seed shuffles the rows, too.

    python benchmarks/stability.py --data DIR                      # pbmc5k_cite, snare_cellline, hybrid_pdac, a toy
    python benchmarks/stability.py snare_cellline --data DIR --seeds 0 1 2 3

Prints every run, then median, worst and their ratio. spread: variance of the mapped cells over that of the target's
(smoothed) cells in model space, lowest and highest of both directions; 0 is a collapse.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
from accuracy import held_out_features
from common import CASES, HELD_OUT, Case, Rows, arguments, dense, hide, joint, markdown, read

import scmmgan as smm

NAMES = ("pbmc5k_cite", "snare_cellline", "hybrid_pdac", "toy")
TOY = Case("rna", "protein", "gene")


def run(whole: Any, name: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Hide, align, score."""
    case = CASES.get(name, TOY)
    paired = len(whole[case.source].obs_names.intersection(whole[case.target].obs_names)) > 0
    hidden = hide(whole.mod, case, seed, held_out=0 if paired else HELD_OUT)
    settings = {"links": case.links, "random_state": seed, "progress_bar": False, **options}
    start = time.perf_counter()
    smm.tl.align(hidden.mdata, *case[:2], **settings)
    row: dict[str, Any] = {"data": name, "seed": seed, "seconds": time.perf_counter() - start}
    z = joint(hidden.mdata)
    if paired:
        match = hidden.partner(case.source, case.target)
        kept = match >= 0
        row["foscttm"] = smm.metrics.foscttm(z[case.source][kept], z[case.target][match[kept]])
    else:
        mapped = dense(smm.get.mapped(hidden.mdata, case.source, case.target).X)
        row["r_heldout_true"] = held_out_features(whole, hidden, case, mapped)["r_heldout_true"]
    found = spread(hidden.mdata, z, case)
    return row | {"spread_low": min(found), "spread_high": max(found)}


def spread(mdata: Any, z: dict[str, np.ndarray], case: Case) -> list[float]:
    """Of both directions, in the joint embedding's block of the target."""
    widths, found = smm.get.model(mdata).aligner.widths, []
    for source, target in ((case.source, case.target), (case.target, case.source)):
        start = sum(widths[m] for m in list(widths)[: list(widths).index(target)])
        block = slice(start, start + widths[target])
        found.append(float(z[source][:, block].var(0).sum() / z[target][:, block].var(0).sum()))
    return found


def renamed(toy: Any) -> Any:
    """The toy with one name for each true cell."""
    for m, adata in toy.mod.items():
        adata.obs_names = [f"cell_{i}" for i in toy.uns["truth"][m]["cell"]]
    return toy


def main() -> None:
    parser = arguments(__doc__, NAMES)
    parser.set_defaults(seeds=list(range(20)))
    args = parser.parse_args()
    rows = Rows(args.out)
    for name in args.names:
        whole = renamed(smm.datasets.toy()) if name == "toy" else read(args.data, name)
        for seed in args.seeds:
            rows.add(run(whole, name, seed, dict(args.set)))
    table = []
    for name, of in pd.DataFrame(rows).groupby("data", sort=False):
        score = "foscttm" if of.get("foscttm", pd.Series(dtype=float)).notna().any() else "r_heldout_true"
        median, worst = of[score].median(), of[score].max() if score == "foscttm" else of[score].min()
        spreads = f"{of['spread_low'].min():.2f}-{of['spread_high'].max():.2f}"
        table.append([name, score, len(of), f"{median:.4f}", f"{worst:.4f}", f"{worst / median:.3f}", spreads])
    markdown(["data", "score", "seeds", "median", "worst", "worst / median", "spread"], table)


if __name__ == "__main__":
    main()
