"""Verdicts against the truth: alignments that should be supported, other tissues, and negative controls.

    python benchmarks/diagnosis.py --data DIR --out verdicts.csv                 # 220 cases, an hour
    python benchmarks/diagnosis.py --data DIR --only "pairs shuffled"            # names that contain a text

Nothing is trained (`method="coupling"`): the verdict rests on the coupling, and FOSCTTM is scored in its joint embedding,
without the known pairs. Rows are shuffled and cells renamed in every modality.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from common import CASES, Case, Rows, arguments, hide, joint, known_pairs, link_table, markdown, read, show_labels

import scmmgan as smm

T_CELLS = ("CD4 T naive", "CD4 T memory", "CD8 T naive", "CD8 T memory")
MYELOID = ("CD14 Mono", "DC")
CITE = ("pbmc5k_cite", "pbmc10k_cite")
TISSUES = ("visium_lymph", "pdac_st", "osmfish_starmap", "hybrid_pbmc", "hybrid_pdac")
PAIRED = tuple(name for name in CASES if name not in TISSUES)
NUMBERS = (
    *("links_mean", "links_error", "links_p", "links_ceiling", "links_ceiling_error", "links_share", "links_in_use"),
    *("links_features", "links_evident", "pairs_mean", "pairs_error", "pairs_p", "pairs_n", "pairs_in_use"),
    *("labels_separated", "labels_p"),
)
GRADES = ("supported", "in part", "weak", "not identifiable")
load = cache(read)


def check(
    whole: Mapping[str, anndata.AnnData],
    case: Case,
    *,
    seed: int = 0,
    keep: Mapping[str, Collection[str]] | None = None,
    permute: str = "",
    shuffle: str = "",
    wrong: float = 0,
    n_links: int = 0,
    pairs: float = 0,
    labels: float = 0,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Couple, diagnose, and score where the truth is known. `shuffle`: "links", "pairs", "labels" or "names" of labels."""
    rng = np.random.default_rng(seed)
    hidden = hide(whole, case, seed, keep=keep, permuted=[permute] if permute else ())
    given: dict[str, Any] = {"links": None}
    match = hidden.partner(case.source, case.target)
    scored = match >= 0
    if case.links:
        given["links"] = link_table(hidden, case, seed, n=n_links, wrong=wrong, shuffled=shuffle == "links")
    if pairs:
        given["pairs"], known = known_pairs(hidden, whole, case, pairs, seed)
        scored &= ~known
        if shuffle == "pairs":
            given["pairs"][case.target] = rng.permutation(given["pairs"][case.target].to_numpy())
    if labels:
        show_labels(hidden, whole, labels, seed)
        given["labels"], of = "label", hidden.mdata[case.target].obs
        if shuffle == "labels":
            of["label"] = rng.permutation(of["label"].to_numpy())
        if shuffle == "names":
            names = sorted(of["label"].dropna().unique())
            of["label"] = of["label"].map(dict(zip(names, names[1:] + names[:1])))
    # counts serve what comes after the verdict
    how = {"method": "coupling", "counts": None, "save_model": False, "progress_bar": False}
    smm.tl.align(hidden.mdata, *case[:2], **{**how, **given, **(more or {})})
    record = smm.get.diagnosis(hidden.mdata, *case[:2])
    row = {"verdict": record["verdict"], "grade": record["grade"], "supported": bool(record["supported"])}
    if scored.any() and not permute:
        z = joint(hidden.mdata)
        row["foscttm"] = smm.metrics.foscttm(z[case.source][scored], z[case.target][match[scored]])
    if "pairs_q" in record:
        row["pairs_evident"] = int((np.asarray(record["pairs_q"]) < 0.05).sum())
    return row | {k: float(record[k]) for k in NUMBERS if k in record}


def random_modalities(kind: str, seed: int) -> dict[str, anndata.AnnData]:
    """White noise, or eight populations on six factors, each modality by itself."""
    found = {}
    for m, n, g in (("a", 1_500, 300), ("b", 1_200, 40)):
        rng = np.random.default_rng((seed, g))
        x = rng.normal(size=(n, g))
        if kind == "structure":
            factors = 2 * rng.normal(size=(8, 6))[rng.integers(0, 8, n)] + rng.normal(size=(n, 6))
            x += factors @ rng.normal(size=(6, g))
        cells, features = (
            pd.DataFrame(index=[f"{m}{i}" for i in range(n)]),
            pd.DataFrame(index=[f"{m}_{i}" for i in range(g)]),
        )
        features["key"] = [f"{i}" if i < 30 else f"{m}{i}" for i in range(g)]
        found[m] = anndata.AnnData(x.astype(np.float32), obs=cells, var=features)
    return found


def again(seed: int) -> str:
    return f", seed {seed}" if seed else ""


def cases(folder: Path, more: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Callable[[], dict[str, Any]]]]:
    """Kind (control, other tissues and cell types, related, open), family, case, and what runs it; `more`: arguments of `tl.align`."""
    run = partial(check, more=more)

    def of(name: str, links: bool = True, **options: Any) -> Callable[[], dict[str, Any]]:
        case = CASES[name] if links else CASES[name]._replace(links=None)
        return lambda: run(load(folder, name).mod, case, **options)

    def crossed(a: str, m: str, b: str, n: str, types: Any = (None, None)) -> Callable[[], dict[str, Any]]:
        """Modality m of one data set with modality n of another."""

        def go() -> dict[str, Any]:
            one, other = load(folder, a)[m], load(folder, b)[n].copy()
            if a != b:
                other.obs_names = "other_" + other.obs_names
            keep = {k: t for k, t in zip(("x", "y"), types) if t}
            return run({"x": one, "y": other}, Case("x", "y", "genes" if n == "prot" else "var_names"), keep=keep)

        return go

    for name in CITE:
        for s in range(3):
            yield "related", "links", f"{name}, seed {s}", of(name, seed=s)
            yield "related", "links, 20 % wrong", f"{name}, seed {s}", of(name, seed=s, wrong=0.2)
            yield "related", "links, 10 of them", f"{name}, seed {s}", of(name, seed=s, n_links=10)
        for s in range(5):
            yield "control", "links shuffled", f"{name}, seed {s}", of(name, seed=s, shuffle="links")
        for m in ("rna", "prot"):
            for s in range(2):
                yield "control", "links, permuted features", f"{name}, {m}{again(s)}", of(name, seed=s, permute=m)
        yield "related", "links and 30 pairs", name, of(name, pairs=30)
        yield "open", "links and 30 shuffled pairs", name, of(name, pairs=30, shuffle="pairs")
        yield "control", "100 pairs, permuted features", name, of(name, links=False, pairs=100, permute="prot")
    for name in TISSUES:
        kind, family = (
            ("related", "links, spots of real cells") if "hybrid" in name else ("open", "links, tissue and cells")
        )
        yield kind, family, name, of(name)
        for s in range(2):
            yield "control", "links shuffled", f"{name}, seed {s}", of(name, seed=s, shuffle="links")
            yield "control", "links, permuted features", name + again(s), of(name, seed=s, permute=CASES[name].source)
    for kind in ("noise", "structure"):
        for s in range(6):
            yield "control", f"random {kind}, 30 links", f"seed {s}", lambda k=kind, s=s: run(random_modalities(k, s), Case("a", "b", "key"))  # fmt: skip
    for a, b in (CITE, CITE[::-1]):
        yield "related", "links, another donor", f"{a}, {b}", crossed(a, "rna", b, "prot")
        for one, other in ((T_CELLS, MYELOID), (MYELOID, T_CELLS), (("B",), T_CELLS), (("NK",), ("B",))):
            case = f"rna of {one[0]} …, proteins of {other[0]} … ({a}, {b})"
            yield "other", "links, other cell types", case, crossed(a, "rna", b, "prot", (one, other))
    yield "related", "links, another donor", "rna of both", crossed(CITE[0], "rna", CITE[1], "rna")
    yield "related", "links, T cells only", CITE[0], crossed(CITE[0], "rna", CITE[0], "prot", (T_CELLS, T_CELLS))
    yield "open", "links, T cells only", "another donor", crossed(CITE[0], "rna", CITE[1], "prot", (T_CELLS, T_CELLS))
    for a, m, b, n in (
        ("visium_lymph", "spatial", "pdac_st", "rna"),
        ("pdac_st", "spatial", "visium_lymph", "rna"),
        (CITE[0], "rna", "pdac_st", "rna"),
        (CITE[0], "rna", "pdac_st", "spatial"),
        (CITE[1], "rna", "pdac_st", "rna"),
    ):
        yield "other", "links, other tissues", f"{a} {m}, {b} {n}", crossed(a, m, b, n)
    yield "open", "links, blood and lymph node", "", crossed(CITE[0], "rna", "visium_lymph", "spatial")
    for name in PAIRED:
        for n in (10, 30, 100, 0.5):
            if not (name == "scgem" and n == 100):
                kind = "open" if name == "scicar_a549" else "related"  # whose modalities hardly agree
                yield kind, f"{n if n > 1 else 'half of the'} pairs", name, of(name, links=False, pairs=n)
        for n in (10, 30 if name == "scgem" else 100):
            for s in range(3):
                case = of(name, links=False, seed=s, pairs=n, shuffle="pairs")
                yield "control", f"{n} pairs shuffled", name + again(s), case
        yield "open", "nothing known", name, of(name, links=False)
    for name in ("pbmc5k_cite", "snare_cellline", "scgem", "sim_counts"):
        for share in (0.5, 1.0):
            yield "open", f"labels of {share:.0%}", name, of(name, links=False, labels=share)
        for s in range(2):
            case = of(name, links=False, seed=s, labels=1.0, shuffle="labels")
            yield "control", "labels shuffled over cells", name + again(s), case
        yield "control", "labels renamed on one side", name, of(name, links=False, labels=1.0, shuffle="names")
    for n in (5, 9):
        yield "open", "fewer than ten links", f"{CITE[0]}, {n}", of(CITE[0], n_links=n)
    yield "control", "fewer than ten links", f"{CITE[0]}, 9 shuffled", of(CITE[0], n_links=9, shuffle="links")
    yield "control", "nothing known, permuted features", CITE[0], of(CITE[0], links=False, permute="rna")


def half(row: Mapping[str, Any]) -> str:
    """The thresholds were set on the first half of the cases, and are reported on the second: by a hash of the name."""
    name = f"{row['kind']}: {row['family']}: {row['case']}"
    return "first" if zlib.crc32(name.encode()) % 2 else "second"


def report(rows: list[dict[str, Any]]) -> None:
    """Grades by kind and half, then by family, with the ranges of what was measured."""
    frame = pd.DataFrame(rows)
    frame["half"] = [half(row) for row in rows]
    evident = frame.get("links_evident", pd.Series(np.nan, frame.index))
    table = []
    for (kind, of), group in frame.groupby(["kind", "half"], sort=False):
        tested = evident[group.index].dropna()
        table.append([kind, of, len(group), *_grades(group), f"{int((tested > 0).sum())} of {len(tested)}"])
    markdown(["kind", "half", "cases", *GRADES, "tables of links with any q < .05"], table)
    measured = ["foscttm", "links_mean", "links_share", "links_evident", "pairs_mean", "labels_separated"]
    table = []
    for (kind, family), group in frame.groupby(["kind", "family"], sort=False):
        ranges = [
            f"{v.min():.2f} to {v.max():.2f}" if c in group and len(v := group[c].dropna()) else "" for c in measured
        ]
        table.append([kind, family, len(group), *_grades(group), *ranges])
    markdown(["kind", "family", "cases", *GRADES, *measured], table)


def _grades(group: pd.DataFrame) -> list[int]:
    return [int((group["grade"] == grade).sum()) for grade in GRADES]


def main() -> None:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--only", default="", metavar="TEXT")
    args = parser.parse_args()
    rows = Rows(args.out)
    if args.out and args.out.exists():
        rows += pd.read_csv(args.out, keep_default_na=False, na_values=[""]).fillna({"case": ""}).to_dict("records")
    done = {(row["kind"], row["family"], row["case"]) for row in rows}
    for kind, family, case, go in cases(args.data, dict(args.set)):
        if args.only in f"{kind}: {family}: {case}" and (kind, family, case) not in done:
            start = time.perf_counter()
            row = {"kind": kind, "family": family, "case": case, **go()}
            rows.add({**row, "seconds": time.perf_counter() - start})
    report(rows)


if __name__ == "__main__":
    main()
