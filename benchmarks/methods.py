#!/usr/bin/env python
"""Methods of `tl.align` on data with known truth, scored as `../shared/bench/run.py` does, also while they train.

    python benchmarks/methods.py pbmc5k_cite --method scmmgan-paper --every 1000 --out paper.jsonl
    python benchmarks/methods.py snare_cellline --method scmmgan --set geometry=subspace --seeds 0 1 2 --out geometry.jsonl

One JSON line per look at the averaged weights (`step`) and per finished run (`step` null).
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time
from pathlib import Path
from typing import Any

import mudata
import numpy as np

SHARED = Path(__file__).resolve().parents[2] / "shared"
sys.path.insert(0, str(SHARED / "bench"))
import run as bench  # noqa: E402
import scores  # noqa: E402

from scmmgan.model.nets import training


def truth(name: str, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Rows of the shuffled modalities that are the same cells, and the labels of all rows."""
    source, target, links = bench.CASES[name]
    mdata = mudata.read(SHARED / "data" / f"{name}.h5mu")
    _, order, _ = bench.hide(mdata, source, target, seed, links)
    pairs = mdata[source].obs_names.intersection(mdata[target].obs_names)
    at = {m: mdata[m].obs_names[order[m]].get_indexer(pairs) for m in (source, target)}
    return at, {m: mdata[m].obs["cell_type"].astype(str).to_numpy()[order[m]] for m in (source, target)}


def watch(name: str, seed: int, every: int, write: Any) -> None:
    """Score the averaged weights every so many steps, where the training looks at its held-out cells."""
    at, types = truth(name, seed)
    (a, b), original, start, looks = at, training._held_out_score, time.perf_counter(), [0]

    def scored(generators: Any, parameters: Any, average: Any, problem: Any) -> float:
        score = original(generators, parameters, average, problem)
        looks[0] += 1
        if (looks[0] * training.CHECK) % every == 0:
            current = [p.detach().clone() for p in parameters]
            training._load(parameters, average)
            joint = {}
            for m in (a, b):
                with training.torch.no_grad():
                    blocks = {t: net.eval()(problem.x[s]) for (s, t), net in generators.items() if s == m}
                blocks[m] = problem.x[m]
                joint[m] = np.hstack([(blocks[t] / problem.x[t].std()).numpy().astype(float) for t in (a, b)])
            for net in generators.values():
                net.train()
            training._load(parameters, current)
            write(
                {"step": looks[0] * training.CHECK, "seconds": time.perf_counter() - start, "held_out": score}
                | simple_scores(joint, at, types)
            )
        return score

    training._held_out_score = scored


def simple_scores(
    joint: dict[str, np.ndarray], at: dict[str, np.ndarray], types: dict[str, np.ndarray]
) -> dict[str, float]:
    a, b = joint
    z = {m: joint[m][at[m]] for m in at}
    half = np.random.default_rng(0).random(len(z[a])) < 0.5
    transfer = [scores.label_transfer(joint[s], types[s], joint[t], types[t]) for s, t in ((a, b), (b, a))]
    return {
        "foscttm": scores.foscttm(z[a], z[b]),
        "lta": float(np.mean(transfer)),
        "recall10": scores.recall_at(z[a], z[b], 10),
        "c2st_auc": scores.two_sample_auc(z[a][half], z[b][~half]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", choices=list(bench.CASES))
    parser.add_argument("--method", default="scmmgan")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--every", type=int, default=0, help="steps between looks; 0: none")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    options: dict[str, Any] = {"method": args.method}
    for item in args.set:
        key, value = item.split("=", 1)
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    for name in args.data:
        for seed in args.seeds:

            def write(row: dict[str, Any], name: str = name, seed: int = seed) -> None:
                with args.out.open("a") as file:
                    file.write(
                        json.dumps({"data": name, "seed": seed, **options, "step": None, **row}, default=float) + "\n"
                    )

            held_out = training._held_out_score
            if args.every:
                watch(name, seed, args.every, write)
            write({k: v for k, v in bench.run(name, seed, options).items() if k not in ("data", "seed")})
            training._held_out_score = held_out


if __name__ == "__main__":
    main()
