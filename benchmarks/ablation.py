#!/usr/bin/env python
"""What each part of the default pays: losses added one by one to the anchors, scored as `../shared/bench/run.py` does.

python benchmarks/ablation.py pbmc5k_cite snare_cellline scgem sim_branch visium_lymph --seeds 0 1 2 --out ablation.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared"
sys.path.insert(0, str(SHARED / "bench"))
import run as bench  # noqa: E402

OFF = dict.fromkeys(("adversarial", "cycle", "links", "geometry", "identity"), 0)
ADDED = ("cycle", "adversarial", "geometry", "links", "identity")


def rows() -> dict[str, dict[str, Any]]:
    """Arguments of `tl.align` by name of the row; the last one with all terms is the default."""
    found: dict[str, dict[str, Any]] = {"coupling": {"method": "coupling"}, "anchors": {"weights": dict(OFF)}}
    left = dict(OFF)
    for name in ADDED:
        del left[name]
        found[f"+ {name}"] = {"weights": dict(left)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    with open(args.out, "a", encoding="utf-8") as out:
        for name in args.sets:
            for row, options in rows().items():
                # without links, and without a shared space, these terms are not there at all
                linked, shared = bench.CASES[name][2] is not None, bench.CASES[name][2] == "var_names"
                if (row == "+ links" and not linked) or (row == "+ identity" and not shared):
                    continue
                for seed in args.seeds:
                    found = bench.run(name, seed, dict(options))
                    out.write(json.dumps({**found, "row": row}, default=float) + "\n")
                    out.flush()


if __name__ == "__main__":
    main()
