"""Links of genes with the peaks in them and upstream of them, from intervals in base pairs (0-based, half-open)."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgan.data.links import check_pair
from scmmgan.data.modality import GAPS, modality, whole_number
from scmmgan.data.names import gaps as text_gaps
from scmmgan.data.spellings import spellings
from scmmgan.model.defaults import MAX_LINK_TABLE, MIN_LINKS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mudata import MuData

logger = logging.getLogger("scmmgan")

WINDOW = 2_000  # bp upstream of the TSS: the promoter of Signac's GeneActivity and of GLUE's guidance graph
# weight at d bp from the gene body: (1 + d / 1000) ** -.75, the power law of GLUE (contact falls with distance)
SCALE, POWER = 1_000.0, 0.75
COLUMNS = ["chrom", "start", "end"]
# names of the same in tables of other tools (UCSC, Ensembl BioMart, GTF readers, GRanges), in lower case, letters only
ALIASES = {
    "chrom": ("chrom", "chromosome", "chr", "seqnames", "seqname", "seqid", "chromosomename", "chromosomescaffoldname",
              "chromname", "contig", "genechrom", "genechr", "peakchrom", "peakchr"),
    "start": ("start", "chromstart", "chromosomestart", "startposition", "genestartbp", "genestart", "txstart",
              "chrstart", "startbp", "startpos", "posstart", "peakstart", "begin"),
    "end": ("end", "chromend", "chromosomeend", "endposition", "geneendbp", "geneend", "txend", "chrend", "endbp",
            "endpos", "posend", "peakend", "stop"),
    "strand": ("strand", "genestrand", "chromstrand", "chromosomestrand"),
}  # fmt: skip
PEAK_NAME = r"^([^:]+)([:_-])([0-9]+)([_-])([0-9]+)$"
MAX_POSITION = 2**40  # far beyond any chromosome, and chromosome × position still fits 64 bits
STRANDS = {"+": 1, "1": 1, "+1": 1, "-": -1, "-1": -1, ".": 0, "*": 0, "0": 0, "?": 0}
STRANDS |= dict.fromkeys((gap for gap in GAPS if gap != "-"), 0)
MAX_NAMED = 20  # different wrong entries that a message spells out
HELP = (
    "Genes need the `var` columns chrom, start, end (and strand; or as other tools name them) or interval, or a table "
    "`genes=`; "
    "peaks need names like 'chr1:10-20', 'chr1_10_20' or 'chr1-10-20', or the same columns."
)


def genomic_links(
    mdata: MuData, source: str, target: str, *, window: int = WINDOW, genes: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Table of links between the genes of one modality and the peaks of the other, see `pp.link_features`."""
    check_pair(mdata, source, target)
    window = whole_number(window, "window", low=0, high=MAX_POSITION)
    if genes is not None and not isinstance(genes, pd.DataFrame):
        raise TypeError(
            f"`genes` must be a DataFrame with the columns {COLUMNS} and strand, got {type(genes).__name__}."
        )
    var = {name: _placed(modality(mdata, name).var) for name in (source, target)}
    gene_side = _gene_side(var, genes)
    peak_side = target if gene_side == source else source
    gene = _genes(var[gene_side], gene_side, genes, _leave_out(modality(mdata, gene_side).var, gene_side))
    peak = _peaks(var[peak_side], peak_side)
    _name_chromosomes(gene, peak, gene_side, peak_side)
    if unknown := int((gene["strand"] == 0).sum()):
        logger.info("%d of %d genes of %r have no strand: both ends count as upstream.", unknown, len(gene), gene_side)
    table = _overlaps(gene, peak, window)
    used = [table[column].nunique() for column in ("gene", "peak")]
    if len(table) < MIN_LINKS:
        raise ValueError(
            f"{len(table)} of {len(peak)} peaks of {peak_side!r} lie in the {gene['at'].nunique()} genes of {gene_side!r} "
            f"with a place or {window} bp upstream of them; at least {MIN_LINKS} links are needed. "
            "Check that both have coordinates of one genome build, or raise `window`."
        )
    logger.info(
        "%d genomic links: %d of %d genes of %r have a peak, %d of %d peaks of %r have a gene.",
        len(table), used[0], len(var[gene_side]), gene_side, used[1], len(var[peak_side]), peak_side,
    )  # fmt: skip
    at = {gene_side: table["gene"].to_numpy(), peak_side: table["peak"].to_numpy()}
    order = np.lexsort((at[target], at[source]))
    out = {name: var[name].index.astype(object).to_numpy()[at[name][order]] for name in (source, target)}
    return pd.DataFrame({**out, "weight": table["weight"].to_numpy()[order], "sign": 1.0})


# --- which modality holds genes ----------------------------------------------------------------------------------


def _gene_side(var: Mapping[str, pd.DataFrame], genes: pd.DataFrame | None) -> str:
    """The modality that holds the genes, or a ValueError that says what was found in both."""
    first, second = var
    other = {first: second, second: first}
    by_name = [name for name in var if 2 * _named(var[name]) > len(var[name])]
    if len(by_name) == 1:
        return other[by_name[0]]
    placed = [name for name in var if _has_columns(var[name])]
    if not by_name and genes is not None:
        known = {name: var[name].index.isin(_gene_names(genes)).sum() for name in var}
        if known[first] != known[second]:
            return max(known, key=lambda name: known[name])
    elif not by_name and len(placed) == 2:
        stranded = [name for name in var if "strand" in var[name] and _strand(var[name]["strand"], name).any()]
        if len(stranded) == 1:
            return stranded[0]
    unclear = "it is not clear which holds genes and which holds peaks"
    reason = "the names of both look like peaks" if len(by_name) == 2 else unclear
    found = "; ".join(f"{name!r} has {_found(var[name], genes)}" for name in var)
    raise ValueError(f"No genomic links between {first!r} and {second!r}: {reason}. Found: {found}. {HELP}")


def _found(var: pd.DataFrame, genes: pd.DataFrame | None) -> str:
    have = [c for c in (*COLUMNS, "strand") if c in var]
    text = f"{len(var)} features, {_named(var)} of them named like peaks, {'columns ' + ', '.join(have) if have else 'no interval columns'}"
    return text if genes is None else text + f", {var.index.isin(_gene_names(genes)).sum()} names in `genes`"


def _placed(var: pd.DataFrame) -> pd.DataFrame:
    """The table with chrom, start, end and strand, under whatever name it has them, or from "chr1:10-20" in `interval`."""
    renamed = var.rename(columns={column: role for role, column in _columns(var).items()})
    if _has_columns(renamed) or "interval" not in var:
        return renamed
    # 10x multiome files
    return renamed.drop(columns=COLUMNS, errors="ignore").join(_parse(pd.Index(var["interval"])).set_axis(var.index))


def _columns(var: pd.DataFrame) -> dict[str, str]:
    """The columns that hold chrom, start, end and strand: those names first, then what other tools call them."""
    plain: dict[str, str] = {}
    for column in var:
        plain.setdefault(re.sub(r"[^a-z]", "", str(column).lower()), str(column))
    found = {
        role: role if role in var else next((plain[a] for a in names if a in plain), None)
        for role, names in ALIASES.items()
    }
    return {role: column for role, column in found.items() if column is not None}


def _leave_out(var: pd.DataFrame, name: str) -> str:
    """What to type to leave out the genes of a modality that have no place."""
    columns = [column for role, column in _columns(var).items() if role != "strand"]
    if len(columns) < len(COLUMNS):
        if "interval" not in var:
            return "leave these genes out"
        columns = ["interval"]
    bad: list[object] = []
    for column in columns:
        values = var[column].astype(object)
        if column == "interval":
            wrong = _parse(pd.Index(values))["chrom"].isna().to_numpy()
        elif column == columns[0]:
            wrong = text_gaps(values).to_numpy(dtype=bool)
        else:
            wrong = ~np.isfinite(pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan))
        bad += values[wrong & values.notna().to_numpy()].unique().tolist()
    if len(bad) > MAX_NAMED:
        return "leave these genes out"
    # names of genes are read from a column "gene" where there is one
    table = f"mdata[{name!r}].var" + (".drop(columns='gene')" if "gene" in var else "")
    if bad:
        listed = ", ".join(f"float({str(v)!r})" if isinstance(v, float) else repr(v) for v in dict.fromkeys(bad))
        table += f"[~mdata[{name!r}].var[{columns}].isin([{listed}]).any(axis=1)]"
    return f"leave them out: `genes={table}.dropna(subset={columns})`"


def _has_columns(var: pd.DataFrame) -> bool:
    return all(column in var for column in COLUMNS)


def _gene_names(genes: pd.DataFrame) -> pd.Index:
    return pd.Index(genes.get("gene", genes.index)).astype(object)


# --- intervals ---------------------------------------------------------------------------------------------------


def _genes(var: pd.DataFrame, name: str, genes: pd.DataFrame | None, instead: str) -> pd.DataFrame:
    """Intervals of genes: `at` (position of the feature), chrom, start, end, strand; several per gene are allowed."""
    if genes is None:
        if not _has_columns(var):
            raise ValueError(
                f"The genes of {name!r} have no place: `var` lacks {[c for c in COLUMNS if c not in var]}. Add these "
                "columns, or hand in a table: `genes=` with gene names as index (or in a column gene), chrom, start, "
                "end and strand."
            )
        return _intervals(
            var,
            np.arange(len(var)),
            f"`var` of {name!r}",
            instead,
        )
    names = _gene_names(genes)
    at = var.index.get_indexer(names)
    if not (at >= 0).any():
        raise ValueError(
            f"None of the {len(var)} var_names of {name!r} is in the {len(genes)} rows of `genes`. {_other_names(var, genes)}"
        )
    placed = _intervals(_placed(genes[at >= 0]), at[at >= 0], "`genes`", "drop these rows")
    here = placed["at"].nunique()
    logger.info("%d of %d features of %r are in `genes`.", here, len(var), name)
    if len(placed) > here:
        logger.info(
            "%d genes have more than one row in `genes`: every row counts.", (placed["at"].value_counts() > 1).sum()
        )
    return placed


def _other_names(var: pd.DataFrame, genes: pd.DataFrame) -> str:
    """Which column or spelling of `genes` would name the features."""
    upper, stripped = spellings(var.index, _gene_names(genes))
    text = f"After upper-casing {upper} would be, and {stripped} without version suffixes."
    columns = {str(c): var.index.isin(v).sum() for c, v in {"index": genes.index, **dict(genes.items())}.items()}
    best = max(columns, key=lambda column: columns[column])
    if columns[best]:
        how = "genes.drop(columns='gene')" if best == "index" else f"genes.assign(gene=genes[{best!r}])"
        text += f" {best!r} of `genes` names {columns[best]} of them: `genes={how}`."
    return text


def _peaks(var: pd.DataFrame, name: str) -> pd.DataFrame:
    """Intervals of peaks from columns or else from names; names that say no place are left out."""
    at = np.arange(len(var))
    if _has_columns(var):
        return _intervals(var, at, f"`var` of {name!r}", "drop these peaks")
    parsed = _parse(var.index)
    read = parsed.notna().all(axis=1).to_numpy()
    if not read.any():
        raise ValueError(
            f"The features of {name!r} have no place: 0 of {len(var)} names read like 'chr1:10-20', e.g. "
            f"{list(var.index[:3])}, and `var` lacks {[c for c in COLUMNS if c not in var]}. {HELP}"
        )
    if not read.all():
        logger.warning(
            "%d of %d names of %r say no place, e.g. %r, and are left out.",
            (~read).sum(), len(read), name, var.index[~read][0],
        )  # fmt: skip
    return _intervals(parsed[read], at[read], f"the names of {name!r}", "drop these peaks")


def _parse(names: pd.Index) -> pd.DataFrame:
    """chrom, start, end of names like `chr1:10-20`, `chr1_10_20` and `chr1-10-20`; missing where they are not."""
    # browsers write thousands apart
    parts = pd.Series(names.astype(str).astype(object), index=names).str.replace(",", "").str.extract(PEAK_NAME)
    same = (parts[1] + parts[3]).isin([":-", "__", "--"])
    return parts.loc[:, [0, 2, 4]].where(same).set_axis(COLUMNS, axis=1)


def _named(var: pd.DataFrame) -> int:
    return int(_parse(var.index)["chrom"].notna().sum())


def _intervals(table: pd.DataFrame, at: np.ndarray, what: str, instead: str) -> pd.DataFrame:
    """Checked intervals: `at`, chrom (str), start, end (int64), strand (1, -1, or 0 where unknown)."""
    if missing := [column for column in COLUMNS if column not in table]:
        raise ValueError(f"{what} lacks the columns {missing}. Found: {[str(c) for c in table][:10]}.")
    start, end = (
        pd.to_numeric(table[c], errors="coerce").to_numpy(dtype=float, na_value=np.nan) for c in ("start", "end")
    )
    gaps = ~np.isfinite(start) | ~np.isfinite(end) | text_gaps(table["chrom"]).to_numpy(dtype=bool)
    if gaps.any():
        raise ValueError(
            f"{gaps.sum()} of {len(table)} intervals in {what} have no chrom, start or end (missing or no number), e.g. "
            f"{table.index[gaps][0]!r}. Fill them in, or {instead}."
        )
    wrong = (start > end) | (start < 0) | (end >= MAX_POSITION) | (start % 1 != 0) | (end % 1 != 0)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{wrong.sum()} of {len(table)} intervals in {what} are none (start after end, below 0, or no whole number), "
            f"e.g. {table.index[first]!r}: {start[first]:g} to {end[first]:g}. Positions count from 0, and start comes "
            "first on both strands."
        )
    strand = _strand(table["strand"], what) if "strand" in table else np.zeros(len(table), dtype=np.int64)
    # an interval without length is a point of one bp
    start, end = start.astype(np.int64), np.maximum(end, start + 1).astype(np.int64)
    return pd.DataFrame(
        {"at": at, "chrom": _text(table["chrom"]).to_numpy(), "start": start, "end": end, "strand": strand}
    )


def _text(column: pd.Series) -> pd.Series:
    """Entries as str; whole numbers without the decimals that a gap in the column gives them."""
    return column.astype(object).map(lambda v: f"{v:.0f}" if pd.api.types.is_float(v) else str(v).strip())


def _strand(column: pd.Series, what: str) -> np.ndarray:
    """Strand as 1, -1, or 0 where unknown."""
    text = _text(column)
    strand = text.map(STRANDS)
    if (bad := strand.isna()).any():
        raise ValueError(
            f"{bad.sum()} entries of strand in {what} are not '+', '-', 1, -1 or '.', e.g. {text[bad].iloc[0]!r}. "
            "Write unknown ones as '.'."
        )
    return strand.to_numpy(dtype=np.int64)


def _name_chromosomes(gene: pd.DataFrame, peak: pd.DataFrame, gene_side: str, peak_side: str) -> None:
    """Spell the chromosomes of both alike (no `chr`, lower case, M for MT), and say what the other side lacks."""
    spelt = {name: side["chrom"].unique() for name, side in ((gene_side, gene), (peak_side, peak))}
    for side in (gene, peak):
        side["chrom"] = _plain(side["chrom"])
    # plain name -> name as written, on both sides
    by_gene, by_peak = (dict(zip(_plain(pd.Series(names)), names)) for names in spelt.values())
    shared = [chrom for chrom in by_gene if chrom in by_peak]
    if not shared:
        raise ValueError(
            f"No chromosome in common: {gene_side!r} has {len(by_gene)} with {len(gene)} genes, e.g. "
            f"{list(by_gene.values())[:3]}; {peak_side!r} has {len(by_peak)} with {len(peak)} peaks, e.g. "
            f"{list(by_peak.values())[:3]}. Give both the same names (a `chr` prefix and case do not matter)."
        )
    if other := [chrom for chrom in shared if by_gene[chrom] != by_peak[chrom]]:
        logger.info(
            "%d of %d chromosomes are spelt differently, e.g. %r in %r and %r in %r: matched without `chr` and case.",
            len(other), len(shared), by_gene[other[0]], gene_side, by_peak[other[0]], peak_side,
        )  # fmt: skip
    alone = [int((~side["chrom"].isin(shared)).sum()) for side in (gene, peak)]
    if any(alone):
        logger.info(
            "%d chromosomes in common; %d genes of %r and %d peaks of %r lie on others and are not linked.",
            len(shared), alone[0], gene_side, alone[1], peak_side,
        )  # fmt: skip


def _plain(chrom: pd.Series) -> pd.Series:
    return chrom.str.lower().str.removeprefix("chr").replace("mt", "m")


# --- overlaps ----------------------------------------------------------------------------------------------------


def _overlaps(gene: pd.DataFrame, peak: pd.DataFrame, window: int) -> pd.DataFrame:
    """gene, peak (positions of features) and weight of every peak that touches a gene body or its upstream window.

    Two intervals overlap where either the peak starts in the region, or the region starts behind the peak's start and
    before its end: both are ranges in sorted starts, so nothing larger than the answer is made.
    """
    left = np.where(gene["strand"] >= 0, window, 0)
    right = np.where(gene["strand"] <= 0, window, 0)
    begin, stop = np.maximum(gene["start"].to_numpy() - left, 0), gene["end"].to_numpy() + right
    start, end = peak["start"].to_numpy(), peak["end"].to_numpy()
    # chromosomes one behind the other, far enough apart, make one axis
    code = pd.factorize(pd.concat([gene["chrom"], peak["chrom"]]))[0].astype(np.int64)
    origin = code * (max(stop.max(), end.max()) + 1)
    of_gene, of_peak = origin[: len(gene)], origin[len(gene) :]
    by_start, by_begin = np.argsort(of_peak + start, kind="stable"), np.argsort(of_gene + begin, kind="stable")
    starts, begins = (of_peak + start)[by_start], (of_gene + begin)[by_begin]
    within = starts.searchsorted(of_gene + begin), starts.searchsorted(of_gene + stop)
    across = begins.searchsorted(of_peak + start, side="right"), begins.searchsorted(of_peak + end)
    total = sum(int(np.maximum(high - low, 0).sum()) for low, high in (within, across))
    if total > MAX_LINK_TABLE:
        raise ValueError(
            f"{total} links within {window} bp of {len(gene)} genes and {len(peak)} peaks; at most "
            f"{MAX_LINK_TABLE} fit. Lower `window`, or keep the variable genes and peaks."
        )
    (genes_a, peaks_a), (peaks_b, genes_b) = _expand(*within), _expand(*across)
    g, p = np.concatenate([genes_a, by_begin[genes_b]]), np.concatenate([by_start[peaks_a], peaks_b])
    gap = np.maximum(np.maximum(gene["start"].to_numpy()[g] - end[p], start[p] - gene["end"].to_numpy()[g]), 0)
    links = {"gene": gene["at"].to_numpy()[g], "peak": peak["at"].to_numpy()[p], "weight": (1 + gap / SCALE) ** -POWER}
    # several intervals of one gene: the nearest counts
    return pd.DataFrame(links).groupby(["gene", "peak"], as_index=False).max()


def _expand(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and positions of the ranges low..high, one after the other."""
    counts = np.maximum(high - low, 0)
    rows = np.repeat(np.arange(len(low)), counts)
    return rows, np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - low, counts)
