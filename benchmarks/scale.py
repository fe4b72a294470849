"""Seconds and memory of one alignment of n + n made cells, stage by stage, each size in a process of its own.

    python benchmarks/scale.py 10000 100000 1000000                     # n of each modality
    python benchmarks/scale.py 20000 50000 --src ../other/src src       # two checkouts in turn
    python benchmarks/scale.py --forced pbmc5k_cite --data DIR          # what is done for many cells, done for few

"rna" (CSR, 2,000 genes, log1p of counts per 10,000) and "protein" (100 features, dense) are Poisson counts of the same
low-rank structure with 40 populations, made in chunks; each protein is linked to a gene. Rows are independent draws, so
that no cell is in both. Mapped values of the proteins are written; genes where they fit (2·10⁸ values).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

CHUNK, GENES, PROTEINS, POPULATIONS, RANK = 10_000, 2_000, 100, 40, 20

# stage -> functions whose time it is, less that of other stages inside
STAGES = {
    "reading": ["data.read.read"],
    "neighbours": ["model.space.domain.neighbor_graphs"],
    "model space": ["model.space.domain.model_space"],
    "landmarks": ["model.coupling.couple.find_landmarks"],
    "coupling": ["model.coupling.couple.couple"],
    "evidence": ["model.evidence.populations.diagnose"],
    "training": ["model.nets.methods.fit_problem"],
    "scores": ["model.evidence.quality.score_map", "model.evidence.quality.depth_correlations"],
    "writing": ["data.slots.write", "data.kept.keep"],
}


# --- made cells ---------------------------------------------------------------------------------------------------


def made(n: int, seed: int = 0) -> dict[str, Any]:
    """AnnData of n + n cells."""
    import anndata

    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(POPULATIONS, RANK))
    shares = rng.dirichlet(np.full(POPULATIONS, 3.0))
    loadings = rng.normal(size=(RANK, GENES)) * 0.45
    base = rng.normal(-4.1, 1.2, size=GENES)
    parts: dict[str, list[Any]] = {"rna": [], "protein": []}
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        for name, of in parts.items():
            latent = centres[rng.choice(POPULATIONS, size, p=shares)] + 0.5 * rng.normal(size=(size, RANK))
            if name == "rna":
                rate = np.exp(latent @ loadings + base + 0.3 * rng.normal(size=(size, 1)))
                counts = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
                total = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
                counts.data = np.log1p(counts.data * np.repeat(np.float32(1e4) / total, np.diff(counts.indptr)))
                of.append(counts.astype(np.float32))
            else:
                # the first genes, seen far more often
                rate = 8 * np.exp(0.7 * (latent @ loadings[:, :PROTEINS]))
                of.append(np.log1p(rng.poisson(rate)).astype(np.float32))
    values = {"rna": sp.vstack(parts.pop("rna"), format="csr"), "protein": np.vstack(parts.pop("protein"))}
    found = {}
    for name, x in values.items():
        genes = [f"gene_{i}" for i in range(x.shape[1])]
        var = pd.DataFrame({"gene": genes}, index=[f"{name}_{gene}" for gene in genes])
        found[name] = anndata.AnnData(x, obs=pd.DataFrame(index=[f"{name}:{i}" for i in range(n)]), var=var)
    return found


# --- stages -------------------------------------------------------------------------------------------------------


class Stages:
    """Wall and CPU seconds and the peak of memory by stage, of nested stages the innermost."""

    def __init__(self) -> None:
        self.stack, self.table = ["rest"], {}
        self.mark = self._now()

    def _now(self) -> tuple[float, float]:
        # the highest mark of memory starts anew
        Path("/proc/self/clear_refs").write_text("5")
        return time.perf_counter(), time.process_time()

    def settle(self) -> None:
        """Book what passed since the last change to the stage that is under way."""
        peak = memory("VmHWM")
        row = self.table.setdefault(self.stack[-1], {"wall": 0.0, "cpu": 0.0, "gib": 0.0})
        before, self.mark = self.mark, self._now()
        row["wall"] += self.mark[0] - before[0]
        row["cpu"] += self.mark[1] - before[1]
        row["gib"] = max(row["gib"], peak)

    def watched(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.settle()
            self.stack.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.settle()
                self.stack.pop()

        return run


def memory(entry: str) -> float:
    """GiB that this process holds ("VmRSS"), or held at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 2**20


def one(n: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Align n + n cells in this process; seconds and GiB by stage."""
    import logging

    import mudata

    warnings.simplefilter("ignore")
    if hasattr(mudata, "set_options"):  # until mudata 0.3
        mudata.set_options(pull_on_update=False)
    mdata = mudata.MuData(made(n))
    data = memory("VmRSS")
    import scmmgan as smm
    from scmmgan.model import defaults
    from scmmgan.model.space.diffusion import nearest_neighbors

    logging.getLogger("scmmgan").setLevel(logging.ERROR)
    stages = Stages()
    for stage, functions in STAGES.items():
        for path in functions:
            module, name = path.rsplit(".", 1)
            found = import_module(f"scmmgan.{module}")
            setattr(found, name, stages.watched(stage, getattr(found, name)))
    stages.settle()
    stages.table.clear()
    if n > defaults.EXACT_NEIGHBORS_BELOW:
        # the same for all sizes, once in a process
        stages.watched("compiling", nearest_neighbors)(
            np.random.default_rng(0).normal(size=(20_001, 50)).astype("f4"), 15
        )
    smm.tl.align(mdata, "rna", "protein", links="gene", progress_bar=False, **settings)
    stages.settle()
    table = stages.table
    table["all"] = {k: f(row[k] for row in table.values()) for k, f in (("wall", sum), ("cpu", sum), ("gib", max))}
    record = mdata.uns["scmmgan"]
    seconds = record["params"]["seconds"]
    return {
        "n": n,
        "data_gib": data,
        "stages": table,
        "grade": str(record["diagnosis"]["rna"]["protein"]["grade"]),
        "links": float(record["diagnosis"]["rna"]["protein"]["links_mean"]),
        "seconds": dict(seconds) if isinstance(seconds, dict) else seconds,
    }


def run(n: int, settings: dict[str, Any], src: Path) -> dict[str, Any]:
    """The same in a process of its own, with the package from `src`, on one thread."""
    env = os.environ | {"PYTHONPATH": str(src.resolve()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--one", str(n), json.dumps(settings)]
    return json.loads(
        subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
    )


def forced(name: str, data: Path) -> None:
    """FOSCTTM of couplings of a small set, as they are and with all that is done for many cells from 1,000 cells on."""
    from accuracy import run as scores
    from common import read

    from scmmgan.model.space import diffusion, linear, pca

    whole = read(data, name)
    for limit in (None, 1_000):
        if limit:
            linear.BLOCKED_FROM = pca.PCA_CELLS = diffusion.EXACT_NEIGHBORS_BELOW = limit
        found = [scores(whole, name, seed, {"method": "coupling"})["foscttm"] for seed in (0, 1, 2)]
        print(f"{name}, {'forced' if limit else 'as it is'}: FOSCTTM", *(f"{v:.4f}" for v in found), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(int(sys.argv[2]), json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", metavar="n")
    parser.add_argument("--forced", metavar="NAME", help="a data set of accuracy.md")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with NAME.h5mu")
    own = Path(__file__).resolve().parent.parent / "src"
    parser.add_argument("--src", type=Path, nargs="+", default=[own], metavar="FOLDER", help="checkouts to compare")
    parser.add_argument("--max-steps", type=int, default=100, help="of training: its cost does not depend on n")
    args = parser.parse_args()
    if args.forced and not args.data:
        parser.error("--forced needs --data")
    if args.forced:
        forced(args.forced, args.data)
    before: dict[Path, dict[str, Any]] = {}
    for n in args.sizes:
        for src in args.src:
            found = run(n, {"max_steps": args.max_steps}, src)
            print(
                f"\n{n:,} + {n:,} cells, {src}: data {found['data_gib']:.2f} GiB, {found['grade']}, links {found['links']:.3f}"
            )
            for stage, row in found["stages"].items():
                line = f"| {stage} | {row['wall']:.1f} | {row['cpu']:.1f} | {row['gib']:.2f} |"
                if src in before and stage in before[src]["stages"]:
                    ratio = row["cpu"] / max(before[src]["stages"][stage]["cpu"], 1e-3)
                    line += f" n^{np.log(max(ratio, 1e-3)) / np.log(n / before[src]['n']):.2f} |"
                print(line, flush=True)
            before[src] = found


if __name__ == "__main__":
    main()
