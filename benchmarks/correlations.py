"""Correlations that mixing makes or hides: planted in aggregated spots, on shuffled data, and in real spots.

    python benchmarks/correlations.py planted|shuffled|real|speed [--seeds 0 1 2] [--data ../shared/data]

`planted`: the spots of `tests/planted.py`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scmmgan as smm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from planted import TRUTH, planted

REAL = {
    "visium_lymph": ["HLA-DQA1", "CD81", "CD14", "SYNGR2", "PDIA4"],
    "pdac_st": ["COL1A1", "CD3D", "HLA-DRA", "PRSS1", "SLC2A1"],
}
WAYS = {
    "coupling, equal names": {"method": "coupling"},
    "default, names linked by a column": {"links": "gene"},
    "default, equal names": {},
    "default without identity term, equal names": {"weights": {"identity": 0.0}},
}


def shuffled(mdata: md.MuData, source: str, seed: int) -> md.MuData:
    """Every feature of the source permuted over its cells."""
    mdata, rng = mdata.copy(), np.random.default_rng([seed, 7])
    x = mdata[source].X
    x = x.toarray() if sp.issparse(x) else np.array(x)
    mdata[source].X = rng.permuted(x, axis=0)
    return mdata


def score(table: pd.DataFrame) -> dict[str, float]:
    """Precision and recall of both verdicts over all queries."""
    group = table["feature"].str.split("_").str[0]
    found = {}
    for i, verdict in enumerate(("spurious", "novel")):
        truth = group == table["query"].map(lambda query, i=i: TRUTH[query][i])
        called = table["candidate"] == verdict  # supported or not
        found[f"{verdict}_called"] = int(called.sum())
        found[f"{verdict}_precision"] = float((called & truth).sum() / max(called.sum(), 1))
        found[f"{verdict}_recall"] = float((called & truth).sum() / truth.sum())
    for query, (spurious, novel) in list(TRUTH.items())[:1]:
        own = table["query"] == query
        for g in (spurious, novel):
            found |= {
                f"{g}_{side}": float(table.loc[own & (group == g), f"r_{side}"].mean())
                for side in ("measured", "mapped")
            }
    return found


def run_planted(seeds: list[int], ways: list[str], shuffle: bool) -> None:
    for seed in seeds:
        mdata = planted(seed)
        mdata = shuffled(mdata, "spatial", seed) if shuffle else mdata
        for way in ways:
            kwargs = dict(WAYS[way])
            data = mdata.copy()
            if kwargs.get("links") == "gene":
                for name in data.mod:
                    data[name].var["gene"] = data[name].var_names.to_numpy()
                data["rna"].var_names = [f"{g}_rna" for g in data["rna"].var_names]
                data = md.MuData({m: data[m] for m in data.mod})
            smm.tl.align(data, "spatial", "rna", random_state=seed, progress_bar=False, **kwargs)
            start = time.perf_counter()
            smm.tl.correlations(data, "spatial", "rna", gene=list(TRUTH), n_top=100)
            seconds = time.perf_counter() - start
            table = smm.get.correlations(data, "spatial", "rna")
            table["feature"] = table["measured_as"]
            text = "  ".join(f"{k} {v:.3g}" for k, v in score(table).items())
            print(
                f"seed {seed}  {way}: supported {smm.get.diagnosis(data, 'spatial', 'rna')['supported']} {text}  ({seconds:.0f} s)",
                flush=True,
            )


def run_real(seeds: list[int], folder: Path, shuffle: bool) -> None:
    for name, genes in REAL.items():
        for seed in seeds:
            mdata = md.read(folder / f"{name}.h5mu")
            rng = np.random.default_rng(seed)
            mdata = md.MuData({m: mdata[m][rng.permutation(mdata[m].n_obs)].copy() for m in ("spatial", "rna")})
            mdata = shuffled(mdata, "spatial", seed) if shuffle else mdata
            start = time.perf_counter()
            smm.tl.align(mdata, "spatial", "rna", random_state=seed, progress_bar=False)
            trained = time.perf_counter() - start
            there = [g for g in genes if g in mdata["spatial"].var_names and g in mdata["rna"].var_names]
            start = time.perf_counter()
            smm.tl.correlations(mdata, "spatial", "rna", gene=there)
            seconds = time.perf_counter() - start
            table = smm.get.correlations(mdata, "spatial", "rna")
            for gene in there:
                own = table[table["query"] == gene]
                counts = own["candidate"].value_counts()
                top = own.loc[own["change"].abs().sort_values(ascending=False).index]
                named = {v: top[top["candidate"] == v]["feature"].head(5).tolist() for v in ("spurious", "novel")}
                present = {s: int((own[f"q_{s}"] < 0.05).sum()) for s in ("measured", "mapped")}
                print(
                    name,
                    seed,
                    gene,
                    len(own),
                    dict(counts.drop("", errors="ignore")),
                    "q<.05",
                    present,
                    named,
                    flush=True,
                )
            print(
                f"{name} seed {seed}: trained in {trained:.0f} s, correlations of {len(there)} genes {seconds:.1f} s",
                flush=True,
            )


def run_speed(n_cells: int, n_genes: int) -> None:
    """One gene against all of a sparse matrix: CPU seconds of every part of one permutation."""
    from scmmgan.model.evidence import correlations as cor
    from scmmgan.model.space.diffusion import smoothing_operator
    from scmmgan.model.space.smoothing import SmoothedMatrix
    from scmmgan.model.space.transform import Transform, decoder_of

    rng = np.random.default_rng(0)
    rate = rng.lognormal(-2, 1, n_genes)
    blocks = [rng.poisson(rate * np.exp(rng.normal(size=(500, n_genes)) * 0.5)) for _ in range(n_cells // 500)]
    x = sp.vstack([sp.csr_matrix(np.log1p(block).astype(np.float32)) for block in blocks]).tocsr()
    every, sd = np.arange(n_genes), np.ones(n_genes)
    one = (np.array([0]), every)
    transform = Transform(
        np.zeros(n_genes), sd, every[:2000], rng.normal(size=(50, 2000)), rng.normal(size=(50, n_genes)), np.ones(())
    )
    print(f"{n_cells} cells × {n_genes} genes, {x.nnz / np.prod(x.shape):.1%} not zero")
    spent = []

    def tick(name: str, function: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        found = function()
        spent.append(time.process_time() - cpu)
        print(f"{name}: {spent[-1]:.2f} s CPU, {time.perf_counter() - wall:.2f} s", flush=True)
        return found

    drawn = tick("permute", lambda: cor.permuted(x, rng))
    scores = tick("PCs of the graph", lambda: cor.graph_scores(drawn, None, denoise=True))
    graph = tick("graph", lambda: smoothing_operator(scores))
    matrix = SmoothedMatrix(drawn, graph, 3)
    y = tick("model space", lambda: transform.transform(matrix))
    tick("correlate, measured", lambda: cor.correlate(matrix, *one))
    tick("covary, mapped", lambda: cor.covary_decoded(y, transform.decoder[:, :1], transform.decoder, sd[:1], sd))
    apart = tick("unrelated", lambda: cor.unrelated(rng, SmoothedMatrix(x, graph, 3), x, 3))
    tick("covary, measured", lambda: cor.covary(cor.unit(apart.columns(one[0])), apart, every, sd))
    tick("their decoder", lambda: decoder_of(apart, y, transform))
    print(f"one permutation: {sum(spent):.2f} s CPU")
    weights = cor.resampled(n_cells, rng)
    tick("limits, measured (once)", lambda: cor.limits(cor.by_column(SmoothedMatrix(x, graph, 3)), *one, weights, True))
    tick("limits, mapped (once)", lambda: cor.limits_decoded(y, transform.decoder, *one, weights, True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["planted", "shuffled", "real", "real_shuffled", "speed"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--data", type=Path, default=Path("/work/shared/data"))
    parser.add_argument("--cells", type=int, default=3_000)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("scmmgan").setLevel(logging.ERROR)
    if chosen.what == "speed":
        run_speed(chosen.cells, 20_000)
    elif chosen.what.startswith("real"):
        run_real(chosen.seeds, chosen.data, chosen.what == "real_shuffled")
    else:
        run_planted(chosen.seeds, chosen.ways, chosen.what == "shuffled")
