"""What each loss term contributes: terms are added one by one to the anchors; the last row of a data set is the default.

python benchmarks/ablation.py --data DIR --seeds 0 1 2
"""

from __future__ import annotations

from typing import Any

from accuracy import LOW_IS_BETTER, run
from common import CASES, Rows, arguments, read

SETS = ("pbmc5k_cite", "snare_cellline", "scgem", "sim_branch", "visium_lymph")
ADDED = ("cycle", "adversarial", "geometry", "links", "identity")


def ladder(links: str | None) -> dict[str, dict[str, Any]]:
    """Arguments of `tl.align` by name of the row."""
    rows: dict[str, dict[str, Any]] = {"coupling alone": {"method": "coupling"}}
    off = dict.fromkeys(ADDED, 0)
    rows["anchors"] = {"weights": dict(off)}
    for term in ADDED:
        del off[term]
        # without links, and outside of a shared space, these terms are not there
        if (term != "links" or links) and (term != "identity" or links == "var_names"):
            rows[f"+ {term}"] = {"weights": dict(off)}
    return rows


def main() -> None:
    args = arguments(__doc__, SETS).parse_args()
    rows = Rows(args.out)
    for name in args.names:
        whole = read(args.data, name)
        for term, options in ladder(CASES[name].links).items():
            for seed in args.seeds:
                rows.add({"terms": term, **run(whole, name, seed, {**dict(args.set), **options})})
    rows.summary(["data", "terms"], LOW_IS_BETTER)


if __name__ == "__main__":
    main()
