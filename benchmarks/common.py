"""What the scripts of this folder share: data sets with known truth, hiding that truth, command line, tables.

A data set is a file `NAME.h5mu` in the folder that `--data` names: one AnnData per modality; cells of one name are the same
cell, which only scores may know; `obs["cell_type"]` where there are labels, `layers["counts"]` where there are counts,
`obsm["spatial"]` where there are coordinates. accuracy.md says where the data come from.
"""

from __future__ import annotations

import argparse
import ast
import logging
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import mudata
import numpy as np
import pandas as pd


class Case(NamedTuple):
    """Two modalities, and what links their features: a `var` column, "var_names", or nothing."""

    source: str
    target: str
    links: str | None


CASES = {
    "pbmc5k_cite": Case("rna", "prot", "genes"),
    "pbmc10k_cite": Case("rna", "prot", "genes"),
    "snare_cellline": Case("rna", "atac", None),
    "scgem": Case("rna", "meth", None),
    "scicar_a549": Case("rna", "atac", None),
    "sim_branch": Case("a", "b", None),
    "sim_swissroll": Case("a", "b", None),
    "sim_frustum": Case("a", "b", None),
    "sim_counts": Case("rna", "atac", None),
    "visium_lymph": Case("spatial", "rna", "var_names"),
    "pdac_st": Case("spatial", "rna", "var_names"),
    "osmfish_starmap": Case("osmfish", "starmap", "gene"),
    "hybrid_pbmc": Case("spatial", "rna", "var_names"),
    "hybrid_pdac": Case("spatial", "rna", "var_names"),
}
HELD_OUT = 0.25  # share of the linked features that spatial sets do not show
MIN_DETECTION = 0.05  # share of the cells in which a held-out feature must be seen


def dense(values: Any) -> np.ndarray:
    """A dense float64 copy."""
    return np.array(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float64)


def log_share(counts: np.ndarray) -> np.ndarray:
    """log1p of counts per 10,000."""
    return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1))


def depth(adata: anndata.AnnData) -> np.ndarray:
    """Log of a cell's total: of the counts where they are there, else of the values."""
    return np.log1p(np.clip(dense(adata.layers.get("counts", adata.X)), 0, None).sum(1))


def cell_types(adata: anndata.AnnData) -> np.ndarray:
    return adata.obs["cell_type"].astype(str).to_numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over columns; nan where no column of `b` varies."""
    from scmmgan.metrics import column_correlation

    return float(np.nanmean(column_correlation(a, b)))


# --- hiding the truth ---------------------------------------------------------------------------------------------


@dataclass
class Hidden:
    """What the package sees, and what only scores may know."""

    mdata: mudata.MuData
    cells: dict[str, pd.Index]  # true names, in the hidden order
    held_out: pd.DataFrame  # features that the source does not show, by modality

    def partner(self, a: str, b: str) -> np.ndarray:
        """Row of b that is the same cell as each row of a; -1 where there is none."""
        return self.cells[b].get_indexer(self.cells[a])

    def of(self, whole: mudata.MuData, modality: str, column: str = "cell_type") -> np.ndarray:
        """A column of the original `obs` in the hidden order."""
        return whole[modality].obs[column].reindex(self.cells[modality]).astype(str).to_numpy()


def hide(
    whole: Mapping[str, anndata.AnnData],
    case: Case,
    seed: int,
    *,
    held_out: float = 0.0,
    keep: Mapping[str, Collection[str]] | None = None,
    permuted: Collection[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Hidden:
    """Shuffle the rows of both modalities independently and rename the cells; labels and embeddings are left out.

    `held_out`: share of the linked features that the source does not show; the counts that it shows are then normalised by
    themselves. `keep`: cell types that a modality keeps. `permuted`: modalities whose features are permuted over the cells,
    each on its own. `values`: values that replace `X`.
    """
    rng = np.random.default_rng(10_000 + seed)
    parts, cells = {}, {}
    for m in (case.source, case.target):
        adata = whole[m]
        rows = np.arange(adata.n_obs)
        if keep and m in keep:
            rows = rows[np.isin(cell_types(adata), list(keep[m]))]
        rows = rng.permutation(rows)
        x = (values[m] if values and m in values else adata.X)[rows]
        names = pd.DataFrame(index=[f"{m}_{i}" for i in range(len(rows))])
        part = anndata.AnnData(x.copy(), obs=names, var=adata.var.copy())
        if "counts" in adata.layers:
            part.layers["counts"] = adata.layers["counts"][rows].copy()
        if "spatial" in adata.obsm:
            part.obsm["spatial"] = np.asarray(adata.obsm["spatial"], dtype=float)[rows]
        if m in permuted:
            order = rng.permuted(np.tile(np.arange(part.n_obs)[:, None], part.n_vars), axis=0)
            part.X = np.take_along_axis(dense(part.X), order, 0).astype(np.float32)
            for layer in part.layers:
                part.layers[layer] = np.take_along_axis(dense(part.layers[layer]), order, 0).astype(np.float32)
        parts[m], cells[m] = part, adata.obs_names[rows]
    chosen = pd.DataFrame({case.source: [], case.target: []}, dtype=str)
    if held_out:
        chosen = _choose(parts, case, held_out, rng)
        shown = parts[case.source][:, ~parts[case.source].var_names.isin(chosen[case.source])].copy()
        per_10k = np.allclose(np.expm1(dense(whole[case.source].X[:50])).sum(1), 1e4, rtol=1e-2)
        if "counts" in shown.layers and per_10k:
            # else the totals of what is shown would give away the sum of what is not
            shown.X = log_share(dense(shown.layers["counts"])).astype(np.float32)
        parts[case.source] = shown
    return Hidden(mudata.MuData(parts), cells, chosen)


def _choose(parts: Mapping[str, anndata.AnnData], case: Case, share: float, rng: np.random.Generator) -> pd.DataFrame:
    """Linked features that are seen in the source, drawn at random."""
    assert case.links is not None
    a, b = parts[case.source], parts[case.target]
    one, other = (p.var.get(case.links, p.var_names.to_series()).astype(str) for p in (a, b))
    name_of = {key: name for name, key in other.items()}
    seen = (dense(a.X) > 0).mean(0) > MIN_DETECTION
    linked = [(name, name_of[key]) for (name, key), ok in zip(one.items(), seen) if ok and key in name_of]
    picked = rng.permutation(len(linked))[: max(1, int(share * len(linked)))]
    return pd.DataFrame([linked[i] for i in picked], columns=[case.source, case.target])


def known_pairs(
    hidden: Hidden, whole: mudata.MuData, case: Case, n: float, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """A table of known pairs for `tl.align(pairs=)`, and which rows of the source are in it. Below 1, `n` is a share."""
    cells = whole[case.source].obs_names.intersection(hidden.cells[case.target])
    n = round(n * len(cells)) if n < 1 else int(n)
    if n > len(cells) - 20:
        raise SystemExit(f"{n} known pairs leave fewer than 20 of {len(cells)} to be scored.")
    cells = cells[np.random.default_rng(20_000 + seed).permutation(len(cells))[:n]]
    rows = {m: hidden.cells[m].get_indexer(cells) for m in (case.source, case.target)}
    table = pd.DataFrame({m: hidden.mdata[m].obs_names[at] for m, at in rows.items()})
    return table, np.isin(np.arange(hidden.mdata[case.source].n_obs), rows[case.source])


def link_table(
    hidden: Hidden, case: Case, seed: int, *, n: int = 0, wrong: float = 0.0, shuffled: bool = False
) -> pd.DataFrame:
    """The links as a table of names: `n` of them at random, a share `wrong` pointing elsewhere, or all `shuffled`."""
    import scmmgan as smm

    table = smm.pp.link_features(hidden.mdata, case.source, case.target, on=case.links)[[case.source, case.target]]
    rng = np.random.default_rng(30_000 + seed)
    if n:
        table = table.iloc[np.sort(rng.permutation(len(table))[:n])].reset_index(drop=True)
    bad = rng.permutation(len(table))[: round(wrong * len(table))]
    table.loc[bad, case.source] = rng.choice(hidden.mdata[case.source].var_names, len(bad))
    if shuffled:
        table[case.target] = rng.permutation(table[case.target].to_numpy())
    return table


def show_labels(hidden: Hidden, whole: mudata.MuData, share: float, seed: int) -> None:
    """Put the labels of a random share of the cells into `obs["label"]`."""
    rng = np.random.default_rng(40_000 + seed)
    for m in hidden.cells:
        labels = hidden.of(whole, m).astype(object)
        labels[rng.random(len(labels)) >= share] = np.nan
        hidden.mdata[m].obs["label"] = pd.Categorical(labels)


def joint(mdata: mudata.MuData) -> dict[str, np.ndarray]:
    """Joint embedding by modality."""
    return {m: np.asarray(a.obsm["X_scmmgan"], dtype=np.float64) for m, a in mdata.mod.items() if "X_scmmgan" in a.obsm}


# --- command line and tables --------------------------------------------------------------------------------------


def arguments(doc: str | None, names: Iterable[str] = (), *, seeds: bool = True) -> argparse.ArgumentParser:
    """Arguments that the scripts have in common: data sets, folder, seeds, settings of `tl.align`, output."""
    warnings.simplefilter("ignore")
    logging.getLogger("scmmgan").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if names := list(names):
        parser.add_argument("names", nargs="*", default=names, metavar="name", help=f"default: {', '.join(names)}")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with NAME.h5mu")
    if seeds:
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="argument of tl.align"
    )
    parser.add_argument("--out", type=Path, metavar="CSV", help="rows of all runs")
    return parser


def _setting(item: str) -> tuple[str, Any]:
    """Key and value, which is Python where it can be read as such, else text."""
    key, value = item.split("=", 1)
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def read(folder: Path, name: str) -> mudata.MuData:
    file = folder / f"{name}.h5mu"
    if not file.exists():
        raise SystemExit(f"{str(file)!r} is not there. Data sets are listed in accuracy.md.")
    return mudata.read(file)


class Rows(list[dict[str, Any]]):
    """Rows of runs, printed and written as they come."""

    def __init__(self, out: Path | None) -> None:
        super().__init__()
        self.out = out

    def add(self, row: Mapping[str, Any]) -> None:
        self.append(dict(row))
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        if self.out:
            pd.DataFrame(self).to_csv(self.out, index=False)

    def summary(self, by: list[str], low_is_better: Collection[str] = (), **of: Any) -> None:
        """Print median | worst over the runs as a Markdown table; `of`: only rows with these values."""
        frame = pd.DataFrame([row for row in self if all(row[k] == v for k, v in of.items())]).dropna(axis=1, how="all")
        if frame.empty:
            return
        scores = [c for c in frame.select_dtypes("number") if c not in {*by, "seed"}]
        table = []
        for key, group in frame.groupby(by, sort=False):
            cells = [number(group[c], low=c in low_is_better) for c in scores]
            table.append([*(key if isinstance(key, tuple) else (key,)), len(group), *cells])
        markdown([*by, "runs", *scores], table)


def number(values: pd.Series, *, low: bool) -> str:
    """Median | worst, of more than one value."""
    values = values.dropna()
    if values.empty:
        return ""
    form = ".0f" if pd.api.types.is_integer_dtype(values) or values.abs().median() >= 100 else ".3f"
    worst = f" \\| {values.max() if low else values.min():{form}}" if len(values) > 1 else ""
    return f"{values.median():{form}}{worst}"


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    head = list(head)
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
