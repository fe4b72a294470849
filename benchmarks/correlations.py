"""Correlations that mixing makes or hides: planted in aggregated spots, on shuffled data, and in real spots.

    python benchmarks/correlations.py planted|shuffled|real|speed [--seeds 0 1 2] [--data ../shared/data]

`planted`: spots hold cells of three types; A and B share a niche, in varying proportions, C lies around it. Markers of A
and B correlate across spots only through that; genes of A and C correlate in cells, but not across spots.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scmmgan as smm

# genes by the types that express them
ON = {
    "A": (1, 0, 0),
    "B": (0, 1, 0),
    "C": (0, 0, 1),
    "AB": (1, 1, 0),
    "AC": (1, 0, 1),
    "BC": (0, 1, 1),
    "none": (0, 0, 0),
}
# query: genes that correlate with it through mixing only, and genes whose correlation mixing hides
TRUTH = {"A_0": ("B", "AC"), "A_1": ("B", "AC"), "B_0": ("A", "BC"), "B_1": ("A", "BC")}
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


def planted(seed: int, *, n_none: int = 80, n_spots: int = 400, n_cells: int = 600, per_spot: int = 10) -> md.MuData:
    """Spots, each the counts of `per_spot` cells, half of them caught; and other cells of the same types."""
    rng = np.random.default_rng(seed)
    group = np.repeat(list(ON), [20] * 6 + [n_none])
    level = rng.lognormal(np.log(3), 0.5, len(group))
    for g in ON:
        # every type expresses as much as the others: no gene rises because others fall
        level[group == g] *= 3.5 / level[group == g].mean()
    on = np.array([ON[g] for g in group]).T
    mean = np.where(group == "none", level, level * (0.1 + 0.9 * on))

    def counts(types: np.ndarray) -> np.ndarray:
        size, noise = rng.lognormal(0, 0.3, (len(types), 1)), rng.lognormal(0, 0.4, (len(types), len(group)))
        return rng.poisson(mean[types] * size * noise)

    niche, share_a = rng.beta(0.3, 0.3, n_spots), rng.beta(3, 3, n_spots)
    shares = np.column_stack([niche * share_a, niche * (1 - share_a), 1 - niche])
    within = np.concatenate([rng.choice(3, per_spot, p=p) for p in shares])
    spots = rng.binomial(counts(within).reshape(n_spots, per_spot, -1).sum(1), 0.5)
    cells = counts(rng.choice(3, n_cells, p=[0.3, 0.3, 0.4]))
    number = np.concatenate([np.arange(20)] * 6 + [np.arange(n_none)])
    genes = pd.DataFrame(index=[f"{g}_{i}" for g, i in zip(group, number)])
    out = {}
    for name, values in (("spatial", spots), ("rna", cells)):
        scaled = values / values.sum(1, keepdims=True) * np.median(values.sum(1))
        obs = pd.DataFrame(index=[f"{name}_{i}" for i in range(len(values))])
        out[name] = ad.AnnData(np.log1p(scaled).astype(np.float32), obs=obs, var=genes.copy())
    return md.MuData(out)


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
    from scmmgan.model import correlations as cor
    from scmmgan.model.diffusion import smoothing_operator
    from scmmgan.model.transform import SmoothedMatrix, Transform

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
    scores = tick("PCs of the graph", lambda: cor.graph_scores(drawn, None))
    graph = tick("graph", lambda: smoothing_operator(scores))
    matrix = SmoothedMatrix(drawn, graph, 3)
    y = tick("model space", lambda: transform.transform(matrix))
    tick("correlate, measured", lambda: cor.correlate(matrix, *one))
    tick("covary, mapped", lambda: cor.covary_decoded(y, transform.decoder[:, :1], transform.decoder, sd[:1], sd))
    apart = tick("unrelated", lambda: cor.unrelated(rng, SmoothedMatrix(x, graph, 3), x, 3))
    tick("covary, measured", lambda: cor.covary(cor.unit(apart.columns(one[0])), apart, every, sd))
    tick("their decoder", lambda: cor.decoder_of(apart, y, transform))
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
