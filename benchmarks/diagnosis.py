#!/usr/bin/env python
"""Verdicts of `tl.diagnose` against the truth: couplings that should be supported, and negative controls.

    python benchmarks/diagnosis.py --out verdicts.jsonl              # all cases; those in the file already are skipped
    python benchmarks/diagnosis.py --out verdicts.jsonl --only pairs # names that contain a text
    python benchmarks/diagnosis.py --out verdicts.jsonl --table      # the tables of diagnosis.md, nothing is run

Nothing is trained: the verdict rests on the coupling, and FOSCTTM is the coupling's, in the joint space, without the known
pairs. Rows are shuffled in every modality before the package sees them.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd

SHARED = Path(__file__).resolve().parents[2] / "shared"
sys.path.insert(0, str(SHARED / "bench"))
import run as bench  # noqa: E402
import scores  # noqa: E402

from scmmgan.data import links as _links
from scmmgan.model.coupling import couple as _prior
from scmmgan.model.evidence import populations as _evidence
from scmmgan.model.evidence import readings as _smoothing
from scmmgan.model.evidence import verdict as _verdict

T_CELLS = ["CD4 T naive", "CD4 T memory", "CD8 T naive", "CD8 T memory"]
MYELOID = ["CD14 Mono", "DC"]
PAIRED = ["pbmc5k_cite", "pbmc10k_cite", "snare_cellline", "scgem", "sim_branch", "sim_swissroll", "sim_frustum"]
PAIRED += ["sim_counts", "scicar_a549"]


@cache
def load(name: str) -> mudata.MuData:
    return mudata.read(SHARED / "data" / f"{name}.h5mu")


def hidden(
    a: anndata.AnnData, m: str, rng: np.random.Generator, types: list[str] | None, permute: bool
) -> tuple[anndata.AnnData, np.ndarray]:
    """A copy with shuffled rows and new names (`permute`: every feature over cells by itself), and the rows taken."""
    rows = np.arange(a.n_obs)
    if types is not None:
        rows = rows[np.isin(a.obs["cell_type"].astype(str).to_numpy(), types)]
    rows = rng.permutation(rows)
    values = a.X[rows]
    if permute:
        values = rng.permuted(bench.dense(values), axis=0)
    names = pd.DataFrame(index=[f"{m}_{i}" for i in range(len(rows))])
    return anndata.AnnData(values.copy(), obs=names, var=a.var.copy()), rows


def judge(
    a: anndata.AnnData,
    b: anndata.AnnData,
    links: Any = None,
    *,
    names: tuple[str, str] = ("a", "b"),
    seed: int = 0,
    types: tuple[list[str] | None, list[str] | None] = (None, None),
    permute: str = "",
    shuffle: str = "",
    wrong: float = 0.0,
    keep: int = 0,
    pairs: float = 0,
    labels: float = 0.0,
) -> dict[str, Any]:
    """Couple two modalities, diagnose, and score where the truth is known. `shuffle`: "links", "pairs" or "labels"."""
    rng = np.random.default_rng(10_000 + seed)
    data, rows = {}, {}
    for m, adata, chosen in zip(names, (a, b), types):
        data[m], rows[m] = hidden(adata, m, rng, chosen, permute == m)
    mdata = mudata.MuData(data)
    table = None if links is None else links_of(mdata, names, links, rng, shuffle == "links", wrong, keep)
    match = b.obs_names[rows[names[1]]].get_indexer(a.obs_names[rows[names[0]]])
    known: dict = {}
    if pairs:
        at = rng.permutation(np.flatnonzero(match >= 0))
        at = at[: round(pairs * len(at)) if pairs < 1 else int(pairs)]
        known[names] = np.stack([at, rng.permutation(match[at]) if shuffle == "pairs" else match[at]], axis=1)
    codes = code_labels({m: (a, b)[i].obs["cell_type"].astype(str).to_numpy()[rows[m]] for i, m in enumerate(names)}, rng, labels, shuffle) if labels else (None, [])  # fmt: skip
    none = dict.fromkeys(names)
    tables = {} if table is None else {names: table}
    domains, shared, _ = _smoothing.read_domains(
        mdata, list(names), layer=none, use_rep=none, mask_var=none, smooth=dict.fromkeys(names, "auto"), pairs=known,
        n_pcs=dict.fromkeys(names, 50), links=tables, batches=none, labels=codes[0], random_state=seed,
    )  # fmt: skip
    tables = _prior.telling(tables, {d.name: d for d in domains}, explicit=True)
    start = time.perf_counter()
    couplings, _ = _prior.couplings(domains, tables, known, codes[0], shared=shared, random_state=seed)
    coupled = time.perf_counter()
    records, _ = _evidence.diagnose_couplings(
        domains, couplings, tables, known, *codes, shared=shared, random_state=seed
    )
    record = _verdict.judge(records[names], names)
    row = {k: v for k, v in record.items() if isinstance(v, str | bool | float | int)}
    row |= {f"{k}_max" if k == "links_null" else f"{k}_min": float((np.max if k == "links_null" else np.min)(v)) for k, v in record.items() if k.endswith("_null")}  # fmt: skip
    row |= {"seconds": time.perf_counter() - coupled, "seconds_coupling": coupled - start, "n_links": len(table) if table is not None else 0}  # fmt: skip
    scored = match >= 0
    if known:
        scored[known[names][:, 0]] = False
    if not permute and scored.any():
        x, y = (d.x for d in domains)
        first = np.hstack([x / x.std(), couplings[names].anchors / y.std()])
        second = np.hstack([couplings[names[::-1]].anchors / x.std(), y / y.std()])
        row["foscttm"] = float(scores.foscttm(first[scored], second[match[scored]]))
    return row


def links_of(
    mdata: mudata.MuData, names: tuple[str, str], links: Any, rng: np.random.Generator, shuffle: bool, wrong: float, keep: int
) -> pd.DataFrame:  # fmt: skip
    table = _links.link_table(mdata, *names, links)
    if table is None:
        raise ValueError("no links")
    if keep:
        table = table.iloc[np.sort(rng.permutation(len(table))[:keep])].reset_index(drop=True)
    if wrong:
        bad = rng.permutation(len(table))[: round(wrong * len(table))]
        table.loc[bad, names[0]] = rng.choice(mdata[names[0]].var_names, len(bad))
    if shuffle:
        table[names[1]] = rng.permutation(table[names[1]].to_numpy())
    return table


def code_labels(
    types: dict[str, np.ndarray], rng: np.random.Generator, share: float, shuffle: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Codes with gaps; `shuffle`: "labels" over the cells of one side, "names" of one side renamed in a circle."""
    names = sorted(set.union(*(set(v) for v in types.values())))
    codes = {m: np.searchsorted(names, v) for m, v in types.items()}
    last = list(codes)[-1]
    if shuffle == "labels":
        codes[last] = rng.permutation(codes[last])
    if shuffle == "names":
        codes[last] = (codes[last] + 1) % len(names)
    return {m: np.where(rng.random(len(v)) < share, v, -1) for m, v in codes.items()}, names


def unrelated(kind: str, seed: int) -> tuple[anndata.AnnData, anndata.AnnData, pd.DataFrame]:
    """Two random modalities: white noise, or eight populations on six factors, each by itself; 30 links between them."""
    sides = []
    for m, n, g in (("a", 1_500, 300), ("b", 1_200, 40)):
        rng = np.random.default_rng((seed, g))
        values = rng.normal(size=(n, g))
        if kind == "structure":
            factors = 2 * rng.normal(size=(8, 6))[rng.integers(0, 8, n)] + rng.normal(size=(n, 6))
            values += factors @ rng.normal(size=(6, g))
        cells = pd.DataFrame(index=[f"{m}{i}" for i in range(n)])
        sides.append(anndata.AnnData(values.astype(np.float32), obs=cells, var=pd.DataFrame(index=[f"{m}_f{i}" for i in range(g)])))  # fmt: skip
    links = pd.DataFrame({"a": sides[0].var_names[:30], "b": sides[1].var_names[:30]})
    return sides[0], sides[1], links


Case = tuple[str, str, Callable[[], dict[str, Any]]]  # name, "related" or "control" or "open", run


def standard(name: str, links: Any = "default", **options: Any) -> Callable[[], dict[str, Any]]:
    def go() -> dict[str, Any]:
        source, target, column = bench.CASES[name]
        mdata = load(name)
        given = column if isinstance(links, str) and links == "default" else links
        return judge(mdata[source], mdata[target], given, names=(source, target), **options)

    return go


def crossed(
    first: tuple[str, str, list[str] | None], second: tuple[str, str, list[str] | None], links: str
) -> Callable[[], dict[str, Any]]:
    def go() -> dict[str, Any]:
        a, b = load(first[0])[first[1]], load(second[0])[second[1]]
        same = first[0] == second[0]
        if not same:  # cells of different data may have one name
            b = b.copy()
            b.obs_names = [f"other_{c}" for c in b.obs_names]
        return judge(a, b, links, types=(first[2], second[2]))

    return go


def cases() -> Iterator[Case]:
    yield from linked_cases()
    yield from crossed_cases()
    for name in PAIRED:
        for n in (10, 30, 100, 0.5):
            if not (name == "scgem" and n == 100):
                yield f"pairs: {name}, {'half' if n < 1 else n}", "related", standard(name, None, pairs=n)
        for n in (10, 100 if name != "scgem" else 30):
            yield f"pairs shuffled: {name}, {n}", "control", standard(name, None, pairs=n, shuffle="pairs")
    for name in ("pbmc5k_cite", "pbmc10k_cite"):
        yield f"links and pairs: {name}, 30", "related", standard(name, pairs=30)
        yield f"links and shuffled pairs: {name}, 30", "control", standard(name, pairs=30, shuffle="pairs")
        yield f"pairs, permuted features: {name}, 100", "control", standard(name, None, pairs=100, permute="prot")
    for name in ("pbmc5k_cite", "snare_cellline", "scgem", "sim_counts"):
        for share in (0.5, 1.0):
            yield f"labels: {name}, {share:.0%}", "open", standard(name, None, labels=share)
        yield f"labels shuffled over cells: {name}", "control", standard(name, None, labels=1.0, shuffle="labels")
        yield f"labels renamed: {name}", "control", standard(name, None, labels=1.0, shuffle="names")
    for name in PAIRED:
        yield f"nothing known: {name}", "open", standard(name, None)
    yield "nothing known, permuted features: pbmc5k_cite", "control", standard("pbmc5k_cite", None, permute="rna")
    yield "5 links: pbmc5k_cite", "open", standard("pbmc5k_cite", keep=5)
    yield "9 links: pbmc5k_cite", "open", standard("pbmc5k_cite", keep=9)
    yield "9 links shuffled: pbmc5k_cite", "control", standard("pbmc5k_cite", keep=9, shuffle="links")


def linked_cases() -> Iterator[Case]:
    for name in ("pbmc5k_cite", "pbmc10k_cite"):
        for seed in range(3):
            yield f"links: {name}, seed {seed}", "related", standard(name, seed=seed)
            yield f"links, 20 % wrong: {name}, seed {seed}", "related", standard(name, seed=seed, wrong=0.2)
            yield f"links, 10 of them: {name}, seed {seed}", "related", standard(name, seed=seed, keep=10)
            yield f"links shuffled: {name}, seed {seed}", "control", standard(name, seed=seed, shuffle="links")
        for m in ("rna", "prot"):
            yield f"links, permuted features of {m}: {name}", "control", standard(name, permute=m)
    for name in ("visium_lymph", "pdac_st", "osmfish_starmap"):
        yield f"links: {name}", "open", standard(name)
        yield f"links shuffled: {name}", "control", standard(name, shuffle="links")
        yield f"links, permuted features: {name}", "control", standard(name, permute=bench.CASES[name][0])
    for kind in ("noise", "structure"):
        for seed in range(3):
            yield f"random {kind}, seed {seed}", "control", lambda k=kind, s=seed: judge(*unrelated(k, s))


def crossed_cases() -> Iterator[Case]:
    five, ten = "pbmc5k_cite", "pbmc10k_cite"
    for a, b in ((five, ten), (ten, five)):
        yield (
            f"another donor: rna of {a}, prot of {b}",
            "related",
            crossed((a, "rna", None), (b, "prot", None), "genes"),
        )
        for text, left, right in (("T, prot of myeloid", T_CELLS, MYELOID), ("myeloid, prot of T", MYELOID, T_CELLS), ("B, prot of T", ["B"], T_CELLS), ("NK, prot of B", ["NK"], ["B"])):  # fmt: skip
            yield f"other types: rna of {text} ({a}, {b})", "control", crossed((a, "rna", left), (b, "prot", right), "genes")  # fmt: skip
    yield "T cells only: pbmc5k_cite", "related", crossed((five, "rna", T_CELLS), (five, "prot", T_CELLS), "genes")
    yield "T cells only, another donor", "open", crossed((five, "rna", T_CELLS), (ten, "prot", T_CELLS), "genes")
    yield "another donor: rna of both pbmc", "related", crossed((five, "rna", None), (ten, "rna", None), "var_names")
    for text, a, b in (
        ("lymph node spots, pdac cells", ("visium_lymph", "spatial"), ("pdac_st", "rna")),
        ("pdac spots, lymph node cells", ("pdac_st", "spatial"), ("visium_lymph", "rna")),
        ("blood cells, pdac cells", (five, "rna"), ("pdac_st", "rna")),
        ("blood cells, pdac spots", (five, "rna"), ("pdac_st", "spatial")),
        ("blood cells of donor 2, pdac cells", (ten, "rna"), ("pdac_st", "rna")),
    ):
        yield f"other tissues: {text}", "control", crossed((*a, None), (*b, None), "var_names")
    yield "blood cells, lymph node spots", "open", crossed((five, "rna", None), ("visium_lymph", "spatial", None), "var_names")  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The tables of diagnosis.md."""
    text = []
    of = {kind: [r for r in rows if r["kind_of_case"] == kind] for kind in ("related", "control", "open")}
    near = [r for r in of["related"] if r.get("foscttm", 0) < 0.25]
    text.append(f"- negative controls: {len(of['control'])}, supported: {sum(r['supported'] for r in of['control'])}")
    text.append(
        f"- links or pairs and FOSCTTM < .25 (or another donor): {len(near)}, supported: {sum(r['supported'] for r in near)} "
        f"({np.mean([r['supported'] for r in near]):.0%})"
    )
    far = [r for r in rows if r.get("foscttm", 0) >= 0.25]
    text.append(f"- FOSCTTM ≥ .25, whatever was known: {len(far)}, supported: {sum(r['supported'] for r in far)}")
    for kind, title in (("control", "Negative controls"), ("related", "Links or pairs"), ("open", "Everything else")):
        text += [f"\n### {title}\n", "| case | FOSCTTM | held-out links (shuffled, at most) | held-out pairs ± standard error (shuffled, at least) | labels separated, p | verdict |", "|---|---|---|---|---|---|"]  # fmt: skip
        for r in of[kind]:
            links = f"{r['links_mean']:.2f} ({r['links_null_max']:.2f})" if "links_mean" in r else ""
            pairs = (
                f"{r['pairs_mean']:.2f} ± {r['pairs_error']:.2f} ({r['pairs_null_min']:.2f})"
                if "pairs_mean" in r
                else ""
            )
            labels = f"{r['labels_separated']:.2f}, {r['labels_p']:.3f}" if "labels_p" in r else ""
            error = f"{r['foscttm']:.3f}" if "foscttm" in r else ""
            text.append(f"| {r['case']} | {error} | {links} | {pairs} | {labels} | {r['verdict']} |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    logging.getLogger("scmmgan").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        print(table(done))
        return
    for name, kind, go in cases():
        if args.only not in name or name in {row["case"] for row in done}:
            continue
        row = {"case": name, "kind_of_case": kind, **go()}
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row["statement"], "| FOSCTTM", row.get("foscttm"), f"{row['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
