"""Methods and baselines side by side: python benchmarks/methods.py pbmc5k_cite scgem --data DIR --keep FOLDER

One comparison for each data set, by `scmmgan.tl.compare`: every run is written to FOLDER as it ends, and what is there is not
computed again. All methods get the links where there are any; "+ labels" also the labels of half of the cells, "+ pairs" also a
fifth of the pairs. What any of them is given is scored for none.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mudata
import numpy as np
import pandas as pd
from common import CASES, HELD_OUT, Case, arguments, dense, hide, known_pairs, markdown, read, show_labels

import scmmgan as smm
from scmmgan.model.evidence import resources

NAMES = (
    "scgem",
    "snare_cellline",
    "sim_branch",
    "visium_lymph",
    "hybrid_pdac",
    "pbmc5k_cite",
    "sim_counts",
    "pbmc10k_cite",
)
CELLS = 2_000  # of a modality, the same ones in both: all runs of a method take about as long
# defaults: 20,000, 192,000, 180,000, 10,000, 10,000, 10,000; scmmgan and cyclegan take all of theirs
STEPS = {"scmmgan-paper": 300, "cmae": 1_000, "con-aae": 500, "scmodal": 200, "scmodal-cca": 200, "jamie": 300}
PAIRS = 0.2  # of all, that methods "+ pairs" know
LINKED = ("links-matching", "scmodal", "links-correlation", "links-cca")
LABELLED = ("coupling", "cmae", "con-aae", "label-only", "label-probability")
# by what a method needs, beside those without options
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "labels": {"cmae, conditional + labels": {"method": "cmae", "options": {"conditional_adversary": True}}},
    "pairs": {"jamie, ratio .5 + pairs": {"method": "jamie", "options": {"ratio": 0.5}}},
    "links": {"links-matching, weak links": {"method": "links-matching", "options": {"weak_links": True}}},
}
PAIRED = ("coupling", "jamie", "paired-cca", "procrustes")


def entries(case: Case, known: pd.DataFrame | None, *, labels: bool) -> dict[str, dict[str, Any]]:
    """Methods by the names of the table; those that need what there is not are left out."""
    names = ["scmmgan", "coupling", "scmmgan-paper", "cyclegan", "cmae", "con-aae", "jamie", "scmodal-cca"]
    names += [*(LINKED if case.links else ()), "random", "depth"]
    names += ["moment-matching"] if case.links == "var_names" else []
    found: dict[str, dict[str, Any]] = {name: {"method": name} for name in names}
    if case.links:
        found["gw"] = {"method": "coupling", "links": None}
    if labels:
        found |= {f"{name} + labels": {"method": name, "labels": "label"} for name in LABELLED}
    if known is not None:
        found |= {f"{name} + pairs": {"method": name, "pairs": known} for name in PAIRED}
    given = {"labels": "label" if labels else None, "pairs": known, "links": case.links}
    for needs, some in OPTIONS.items():
        if given[needs] is not None:
            found |= {name: {**of, needs: given[needs]} for name, of in some.items()}
    for of in found.values():
        of |= {"max_steps": STEPS[of["method"]]} if of["method"] in STEPS else {}
        # as the published code
        of |= {"batch_size": 64} if of["method"] == "scmmgan-paper" else {}
    return found


def prepare(whole: mudata.MuData, case: Case) -> tuple[mudata.MuData, dict[str, Any], pd.DataFrame | None]:
    """Shuffled and renamed cells, at most so many; what scores them; and pairs that some methods know."""
    a, b = case.source, case.target
    parts, paired = {m: whole[m] for m in (a, b)}, whole[a].obs_names.equals(whole[b].obs_names)
    if paired and whole[a].n_obs > CELLS:
        rows = np.sort(np.random.default_rng(0).permutation(whole[a].n_obs)[:CELLS])
        parts = {m: of[rows].copy() for m, of in parts.items()}
    hidden, how = hide(parts, case, 0), {}
    mdata, known = hidden.mdata, None
    if all("cell_type" in parts[m].obs for m in (a, b)):
        show_labels(hidden, parts, 0.5, 0)
        for m in (a, b):
            # what is given scores nothing, whichever methods are run
            given = mdata[m].obs["label"].notna()
            mdata[m].obs["scored"] = pd.Series(hidden.of(parts, m), mdata[m].obs_names).mask(given)
        how["labels"] = "scored"
    if paired:
        known, rows = known_pairs(hidden, parts, case, PAIRS, 0)
        every = pd.DataFrame({m: mdata[m].obs_names[hidden.cells[m].argsort()] for m in (a, b)})
        how["pairs"] = every[~every[a].isin(known[a])].reset_index(drop=True)
    else:
        # values are normalised by what is shown: the totals of all would say what the rest sums up to
        shown = hide(parts, case, 0, held_out=HELD_OUT)
        how["heldout_features"] = list(shown.held_out[a])
        x = pd.DataFrame(dense(mdata[a].X), columns=mdata[a].var_names)
        x[shown.mdata[a].var_names] = dense(shown.mdata[a].X)
        mdata[a].X = x.to_numpy(dtype=np.float32)
    return mdata, how, known


# columns of the printed table: metric, and its name there
SCORES = {
    "foscttm": "FOSCTTM", "label_transfer": "label transfer", "correlation": "r", "held-out correlation given depth": "held-out r given depth",
    "two_sample_auc": "AUC", "neighborhood_overlap": "overlap", "seconds": "CPU s", "memory": "MB",
}  # fmt: skip


def summary(table: pd.DataFrame, methods: dict[str, dict[str, Any]]) -> None:
    """Print medians | worst seed, the mean of both directions, as Markdown; the best FOSCTTM or held-out r first."""
    of = table.groupby(["method", "metric"], sort=False)[["median", "worst", "seeds"]].mean().unstack("metric")
    there = [metric for metric in SCORES if metric in of["median"]]
    first = "foscttm" if "foscttm" in there else "held-out correlation given depth"
    of = of.sort_values(("median", first), ascending=first == "foscttm")
    rows = []
    for method, row in of.iterrows():
        cells = []
        for metric in there:
            median, worst, n = row["median", metric], row["worst", metric], row["seeds", metric]
            form = ".0f" if metric in ("seconds", "memory") else ".3f"
            text = "" if np.isnan(median) else f"{median:{form}}" + (f" \\| {worst:{form}}" if n > 1 else "")
            cells.append(text)
        rows.append([method, methods.get(str(method), {}).get("max_steps", ""), *cells])
    markdown(["method", "steps", *(SCORES[metric] for metric in there)], rows)


def main() -> None:
    parser = arguments(__doc__, NAMES)
    parser.add_argument("--keep", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", help="names of the table; default: all")
    args = parser.parse_args()
    # seconds of CPU: other jobs do not count
    resources.time = SimpleNamespace(perf_counter=time.process_time)
    for name in args.names:
        case = CASES[name]
        mdata, how, known = prepare(read(args.data, name), case)
        methods = entries(case, known, labels="labels" in how)
        methods = {key: {**of, **dict(args.set)} for key, of in methods.items() if key in (args.methods or methods)}
        if not methods:
            continue
        table = smm.tl.compare(
            mdata, case.source, case.target, methods=methods, seeds=args.seeds, links=case.links, keep=args.keep / name,
            progress_bar=False, **how,
        )  # fmt: skip
        table.to_csv(args.keep / f"{name}.csv", index=False)
        figure = smm.pl.compare(mdata, case.source, case.target, return_fig=True)
        figure.savefig(args.keep / f"{name}.png", dpi=150, bbox_inches="tight")
        print(f"\n{name}", flush=True)
        summary(table, methods)


if __name__ == "__main__":
    main()
