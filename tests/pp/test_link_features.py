"""`pp.link_features`: links by names, columns, tables and places in the genome."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm


def test_default_is_equal_names():
    mdata = smm.datasets.toy(n_cells=50, shared_genes=True)
    table = smm.pp.link_features(mdata, "rna", "protein")
    assert list(table.columns) == ["rna", "protein", "weight", "sign"]
    assert (table["rna"] == table["protein"]).all()
    assert len(table) == 60


def test_column(small: md.MuData):
    table = smm.pp.link_features(small, "rna", "protein", on="gene")
    genes = {m: small[m].var["gene"] for m in ("rna", "protein")}
    assert len(table) == 15
    assert genes["rna"][table["rna"]].tolist() == genes["protein"][table["protein"]].tolist()


def test_equal_names_are_not_counted(small: md.MuData):
    small["rna"].var_names = [f"f{i}" for i in range(30)]
    small["protein"].var_names = [f"f{i + 26}" for i in range(20)]
    assert smm.pp.link_features(small, "rna", "protein")["rna"].tolist() == ["f26", "f27", "f28", "f29"]


def test_table_is_checked_and_completed(small: md.MuData):
    mine = pd.DataFrame({"protein": small["protein"].var_names[:5], "rna": small["rna"].var_names[:5]})
    table = smm.pp.link_features(small, "rna", "protein", on=mine)
    assert list(table.columns) == ["rna", "protein", "weight", "sign"]
    assert table["weight"].tolist() == table["sign"].tolist() == [1.0] * 5


@pytest.mark.usefixtures("few_tables")
def test_the_table_is_what_align_takes(small: md.MuData):
    by_column, by_table = small.copy(), small.copy()
    smm.tl.align(by_column, links="gene", method="coupling", progress_bar=False)
    table = smm.pp.link_features(small, "rna", "protein", on="gene")
    smm.tl.align(by_table, links=table, method="coupling", progress_bar=False)
    assert (by_column["rna"].obsm["scmmgan_protein"] == by_table["rna"].obsm["scmmgan_protein"]).all()


def test_nothing_is_written(small: md.MuData, fingerprint: Callable):
    before = fingerprint(small)
    smm.pp.link_features(small, "rna", "protein", on="gene")
    assert fingerprint(small) == before


def test_refusals(small: md.MuData):
    for wrong in (None, "auto"):
        with pytest.raises(ValueError, match="`on` must be 'var_names', a `var` column, 'antibody', 'genomic' or"):
            smm.pp.link_features(small, "rna", "protein", on=wrong)
    with pytest.raises(TypeError, match="got int"):
        smm.pp.link_features(small, "rna", "protein", on=3)
    with pytest.raises(KeyError, match=r"'gen'.*Closest: \['gene'\]"):
        smm.pp.link_features(small, "rna", "protein", on="gen")
    with pytest.raises(ValueError, match="matches 0 features"):
        smm.pp.link_features(small, "rna", "protein")
    with pytest.raises(KeyError, match="No modality 'proteins'"):
        smm.pp.link_features(small, "rna", "proteins", on="gene")
    with pytest.raises(TypeError, match=r"must be a MuData.*got AnnData"):
        smm.pp.link_features(small["rna"], "rna", "protein", on="gene")


# --- genomic -----------------------------------------------------------------------------------------------------

GENES = pd.DataFrame(
    {
        "chrom": ["chr1", "chr1", "chr2"],
        "start": [10_000, 30_000, 10_000],
        "end": [12_000, 31_000, 11_000],
        "strand": ["+", "-", "+"],
    },
    index=["PLUS", "MINUS", "TWO"],
)
PEAKS = {
    "chr1:10500-10600": {"PLUS": 1.0},  # in the body
    "chr1:11900-12500": {"PLUS": 1.0},  # over its end
    "chr1:9000-9500": {"PLUS": 1.5**-0.75},  # 500 bp upstream
    "chr1:7900-8001": {"PLUS": 2.999**-0.75},  # the last base of the promoter
    "chr1:7900-8000": {},  # ends before it, half-open
    "chr1:12000-12100": {},  # behind the gene
    "chr1:31500-31600": {"MINUS": 1.5**-0.75},  # upstream on the other strand
    "chr1:29000-29900": {},
    "chr1:9000-40000": {"PLUS": 1.0, "MINUS": 1.0},  # over both
    "chr2:10500-10600": {"TWO": 1.0},
    "chr3:10500-10600": {},
}
EXPECTED = {(gene, peak): weight for peak, genes in PEAKS.items() for gene, weight in genes.items()}


def multiome(rna: Any, atac: Any, *, n_cells: int = 40) -> md.MuData:
    """Modalities with these features: names, or a `var` table."""
    parts = {}
    for name, side in (("rna", rna), ("atac", atac)):
        var = side if isinstance(side, pd.DataFrame) else pd.DataFrame(index=list(side))
        x = sp.random(n_cells, len(var), 0.2, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
        obs = pd.DataFrame(index=[f"{name}{i}" for i in range(n_cells)])
        parts[name] = ad.AnnData(x, obs=obs, var=var.copy())
    return md.MuData(parts)


def links_of(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    assert not table.duplicated(["rna", "atac"]).any()
    return {(gene, peak): weight for gene, peak, weight in table[["rna", "atac", "weight"]].itertuples(index=False)}


def columns(peaks: Sequence[str]) -> pd.DataFrame:
    """Peaks with columns and names that say nothing."""
    parsed = [p.replace(":", "-").split("-") for p in peaks]
    table = pd.DataFrame(parsed, columns=["chrom", "start", "end"]).astype({"start": int, "end": int})
    return table.set_index(pd.Index([f"peak{i}" for i in range(len(peaks))]))


def test_genomic_places_and_weights():
    table = smm.pp.link_features(multiome(GENES, PEAKS), "rna", "atac", on="genomic")
    assert list(table.columns) == ["rna", "atac", "weight", "sign"]
    assert (table["sign"] == 1).all()
    assert links_of(table) == pytest.approx(EXPECTED)
    # in the order of the features, source first
    assert table["rna"].tolist() == sorted(table["rna"], key=list(GENES.index).index)


def test_genomic_from_either_side_and_any_source():
    """Columns or names, the user's table or `var`, genes first or peaks first: the same links."""
    plain, bare = columns(list(PEAKS)), list(GENES.index)
    renamed = {(gene, f"peak{list(PEAKS).index(peak)}"): w for (gene, peak), w in EXPECTED.items()}
    with_column = GENES.rename_axis("x").reset_index().rename(columns={"x": "gene"})
    for rna, atac, genes, expected in (
        (GENES, PEAKS, None, EXPECTED),
        (GENES, plain, None, renamed),
        (bare, PEAKS, GENES, EXPECTED),
        (bare, plain, GENES, renamed),
        (bare, PEAKS, with_column.sample(frac=1, random_state=0), EXPECTED),
        # the user's table counts, not what `var` says
        (GENES.assign(chrom="chr9"), PEAKS, GENES, EXPECTED),
    ):
        mdata = multiome(rna, atac)
        table = smm.pp.link_features(mdata, "rna", "atac", on="genomic", genes=genes)
        assert links_of(table) == pytest.approx(expected)
        other = smm.pp.link_features(mdata, "atac", "rna", on="genomic", genes=genes)
        assert list(other.columns) == ["atac", "rna", "weight", "sign"]
        assert links_of(other) == pytest.approx(expected)


@pytest.mark.parametrize("spelling", ["{}:{}-{}", "{}_{}_{}", "{}-{}-{}"])
@pytest.mark.parametrize(
    "chrom", ["chr1", "1", "CHR1", "chrUn_KI270742v1", "GL000194.1", "chr1_GL383518v1_alt", "2-micron"]
)
def test_peak_names(spelling: str, chrom: str):
    peaks = [spelling.format(chrom, start, start + 100) for start in (100, 300, 500, 5_000)]
    genes = pd.DataFrame({"chrom": chrom, "start": 0, "end": 700, "strand": "-"}, index=["G"])
    table = smm.pp.link_features(multiome(["G", "H"], peaks), "rna", "atac", on="genomic", genes=genes)
    assert table["atac"].tolist() == peaks[:3]


def test_interval_column_and_thousands():
    """Genes and peaks as 10x multiome files have them, and numbers as genome browsers write them."""
    genes = pd.DataFrame({"interval": ["chr1:0-7000"], "strand": "-"}, index=["G"])
    peaks = pd.DataFrame(
        {"interval": [f"chr1:{s:,}-{s + 100:,}" for s in (1_000, 3_000, 5_000, 90_000)]}, index=list("abcd")
    )
    table = smm.pp.link_features(multiome(genes, peaks), "rna", "atac", on="genomic")
    assert table["atac"].tolist() == ["a", "b", "c"]


def test_names_that_say_no_place_are_left_out(caplog: pytest.LogCaptureFixture):
    odd = ["ATACfeat_003", "chr1_100_200-1", "chr1:100_200", "TRAV8-2", "chr1:100-200:+"]
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        table = smm.pp.link_features(multiome(GENES, [*odd, *PEAKS]), "rna", "atac", on="genomic")
    assert links_of(table) == pytest.approx(EXPECTED)
    assert "5 of 16 names of 'atac' say no place, e.g. 'ATACfeat_003', and are left out" in caplog.text


def test_spelling_of_chromosomes(caplog: pytest.LogCaptureFixture):
    genes = pd.concat([GENES, GENES.iloc[:1].set_axis(["MITO"]).assign(chrom="chrM")])
    genes["chrom"] = genes["chrom"].astype("category")
    peaks = [p.replace("chr", "") for p in PEAKS] + ["MT:10500-10600"]
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        table = smm.pp.link_features(multiome(genes, peaks), "rna", "atac", on="genomic")
    expected = {(gene, peak.replace("chr", "")): w for (gene, peak), w in EXPECTED.items()}
    assert links_of(table) == pytest.approx(expected | {("MITO", "MT:10500-10600"): 1.0})
    assert "3 of 3 chromosomes are spelt differently, e.g. 'chr1' in 'rna' and '1' in 'atac'" in caplog.text
    assert "3 chromosomes in common; 0 genes of 'rna' and 1 peaks of 'atac' lie on others" in caplog.text
    assert "9 genomic links: 4 of 4 genes of 'rna' have a peak, 8 of 12 peaks of 'atac' have a gene" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        smm.pp.link_features(multiome(GENES, PEAKS), "rna", "atac", on="genomic")
    assert "spelt" not in caplog.text


def test_numbers_as_chromosomes_and_text_as_positions():
    genes = GENES.assign(chrom=[1.0, 1.0, 2.0], start=GENES["start"].astype(str), end=GENES["end"].astype("Int64"))
    table = smm.pp.link_features(multiome(GENES.index, PEAKS), "rna", "atac", on="genomic", genes=genes)
    assert links_of(table) == pytest.approx(EXPECTED)


@pytest.mark.parametrize("strand", [[1, -1, 1], ["1", "-1", "1"], [1.0, -1.0, np.nan], ["+", " -", None]])
def test_strands(strand: list):
    table = smm.pp.link_features(multiome(GENES.assign(strand=strand), PEAKS), "rna", "atac", on="genomic")
    assert links_of(table) == pytest.approx(EXPECTED)


def test_unknown_strand_looks_both_ways(caplog: pytest.LogCaptureFixture):
    both = {("PLUS", "chr1:12000-12100"): 1.0, ("MINUS", "chr1:29000-29900"): 1.1**-0.75}
    for genes in (GENES.drop(columns="strand"), GENES.assign(strand=".")):
        with caplog.at_level(logging.INFO, logger="scmmgan"):
            table = smm.pp.link_features(multiome(genes, PEAKS), "rna", "atac", on="genomic")
        assert links_of(table) == pytest.approx(EXPECTED | both)
        assert "3 of 3 genes of 'rna' have no strand: both ends count as upstream" in caplog.text


def test_window():
    mdata = multiome(GENES, PEAKS)
    none = smm.pp.link_features(mdata, "rna", "atac", on="genomic", window=0)
    assert links_of(none) == {pair: w for pair, w in EXPECTED.items() if w == 1}
    wide = links_of(smm.pp.link_features(mdata, "rna", "atac", on="genomic", window=100_000))
    assert wide["PLUS", "chr1:7900-8000"] == pytest.approx(3**-0.75)
    assert ("PLUS", "chr1:12000-12100") not in wide
    for wrong, error in ((-1, ValueError), (1.5, TypeError), ("2kb", TypeError)):
        with pytest.raises(error, match="`window` must be"):
            smm.pp.link_features(mdata, "rna", "atac", on="genomic", window=wrong)


def random_genome(n_genes: int, n_peaks: int, length: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(3)
    start = rng.integers(0, length, n_genes)
    genes = pd.DataFrame(
        {
            "chrom": rng.choice(["chr1", "chr2", "chrX"], n_genes),
            "start": start,
            "end": start + rng.integers(0, length // 10, n_genes),
            "strand": rng.choice(["+", "-", "."], n_genes),
        },
        index=[f"G{i}" for i in range(n_genes)],
    )
    start = rng.integers(0, length, n_peaks)
    end = start + rng.integers(0, length // 20, n_peaks)
    peaks = pd.DataFrame({"chrom": rng.choice(["1", "2", "Y"], n_peaks), "start": start, "end": end})
    return genes, peaks.set_index(pd.Index([f"P{i}" for i in range(n_peaks)]))


@pytest.mark.parametrize("window", [0, 7, 100, 5_000])
def test_genomic_against_every_pair(window: int):
    """Nested, overlapping and empty intervals, genes before the first base: all pairs looked at one by one."""
    genes, peaks = random_genome(60, 200, 2_000)
    table = smm.pp.link_features(multiome(genes, peaks), "rna", "atac", on="genomic", window=window)
    expected = {}
    for g, gene in genes.iterrows():
        left = gene["start"] - (window if gene["strand"] != "-" else 0)
        gene_end = max(gene["end"], gene["start"] + 1)
        right = gene_end + (window if gene["strand"] != "+" else 0)
        for p, peak in peaks[peaks["chrom"] == gene["chrom"][3:]].iterrows():
            end = max(peak["end"], peak["start"] + 1)
            if peak["start"] < right and end > left:
                gap = max(gene["start"] - end, peak["start"] - gene_end, 0)
                expected[g, p] = (1 + gap / 1000) ** -0.75
    assert len(expected) > 200
    assert links_of(table) == pytest.approx(expected)


def test_genes_with_several_rows(caplog: pytest.LogCaptureFixture):
    """Transcripts, or one name in two places: every row counts, the nearer one where both reach a peak."""
    more = GENES.loc[["PLUS", "PLUS"]].assign(chrom=["chr1", "chr3"], start=[9_200, 10_000], end=[9_400, 11_000])
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        mdata = multiome(GENES.index, PEAKS)
        table = smm.pp.link_features(mdata, "rna", "atac", on="genomic", genes=pd.concat([GENES, more]))
    near = {("PLUS", "chr1:9000-9500"): 1.0, ("PLUS", "chr3:10500-10600"): 1.0}
    near |= {("PLUS", "chr1:7900-8000"): 2.2**-0.75, ("PLUS", "chr1:7900-8001"): 2.199**-0.75}
    assert links_of(table) == pytest.approx(EXPECTED | near)
    assert "1 genes have more than one row in `genes`: every row counts" in caplog.text


@pytest.mark.usefixtures("few_tables")
def test_genomic_is_what_align_takes(fingerprint: Callable):
    rng = np.random.default_rng(0)
    genes, peaks = random_genome(30, 60, 20_000)
    mdata = multiome(genes, peaks, n_cells=80)
    for name in ("rna", "atac"):
        mdata[name].X = rng.random(mdata[name].shape).astype(np.float32)
    before = fingerprint(mdata)
    table = smm.pp.link_features(mdata, "rna", "atac", on="genomic")
    assert fingerprint(mdata) == before
    smm.tl.align(mdata, links=table, max_steps=3, progress_bar=False)
    assert mdata["rna"].obsm["scmmgan_atac"].shape == (80, 60)
    pd.testing.assert_frame_equal(smm.pp.link_features(mdata, "rna", "atac", on=table), table, check_dtype=False)


def test_large_genomes_take_seconds():
    """20,000 genes and 200,000 peaks, one of them as long as its chromosome."""
    genes, peaks = random_genome(20_000, 200_000, 200_000_000)
    rng = np.random.default_rng(0)
    genes["end"] = genes["start"] + rng.integers(1_000, 60_000, len(genes))
    peaks["end"] = peaks["start"] + 800
    peaks.iloc[0] = ["1", 0, 200_000_000]
    mdata = multiome(genes, peaks, n_cells=32)
    start = time.process_time()
    table = smm.pp.link_features(mdata, "rna", "atac", on="genomic")
    assert time.process_time() - start < 20
    assert 100_000 < len(table) < 500_000


def test_too_many_links_are_refused_before_they_are_made():
    genes = pd.DataFrame({"chrom": "1", "start": 0, "end": 10**6, "strand": "+"}, index=[f"G{i}" for i in range(2_000)])
    mdata = multiome(genes, [f"chr1:{i}-{i + 10}" for i in range(2_000)])
    with pytest.raises(ValueError, match=r"4000000 links within 2000 bp.*at most 500000 fit. Lower `window`"):
        smm.pp.link_features(mdata, "rna", "atac", on="genomic")


# --- genomic: what is refused ------------------------------------------------------------------------------------


def refused(rna: Any, atac: Any, **arguments: Any) -> str:
    mdata = multiome(rna, atac)
    with pytest.raises(ValueError) as error:
        smm.pp.link_features(mdata, "rna", "atac", on="genomic", **arguments)
    with pytest.raises(ValueError) as swapped:
        smm.pp.link_features(mdata, "atac", "rna", on="genomic", **arguments)
    assert type(error.value) is type(swapped.value) is ValueError
    return str(error.value)


def test_which_side_holds_genes_is_not_clear():
    bare = list(GENES.index)
    message = refused(bare, columns(list(PEAKS)))
    assert "it is not clear which holds genes and which holds peaks" in message
    assert "'rna' has 3 features, 0 of them named like peaks, no interval columns" in message
    assert "'atac' has 11 features, 0 of them named like peaks, columns chrom, start, end" in message
    assert "a table `genes=`" in message
    assert "columns chrom, start, end;" in refused(GENES.drop(columns="strand"), columns(list(PEAKS)))
    assert "the names of both look like peaks" in refused(["chr1:1-2", "chr1:3-4"], PEAKS)
    assert "not clear" in refused(bare, [f"p{i}" for i in range(5)])
    stranded = columns(list(PEAKS)).assign(strand="+")
    assert "not clear" in refused(GENES, stranded)
    # a strand that says nothing does not make genes of peaks
    smm.pp.link_features(multiome(GENES, stranded.assign(strand="*")), "rna", "atac", on="genomic")


def test_genes_without_place():
    assert "The genes of 'rna' have no place: `var` lacks ['chrom', 'start', 'end']" in refused(GENES.index, PEAKS)
    lacking = GENES.drop(columns="end")
    assert "`var` lacks ['end']" in refused(lacking, PEAKS)
    assert "`genes` lacks the columns ['end']. Found: ['chrom', 'start', 'strand']" in refused(
        GENES.index, PEAKS, genes=lacking
    )
    message = refused(GENES.index, ["a", "b", "c"], genes=GENES)
    assert "The features of 'atac' have no place: 0 of 3 names read like 'chr1:10-20', e.g. ['a', 'b', 'c']" in message


def test_a_table_of_other_genes():
    other = GENES.set_axis(["plus.1", "minus.2", "two"]).assign(symbol=GENES.index)
    message = refused(GENES.index, PEAKS, genes=other)
    assert "None of the 3 var_names of 'rna' is in the 3 rows of `genes`" in message
    assert "After upper-casing 1 would be, and 3 without version suffixes" in message
    assert "'symbol' of `genes` names 3 of them: `genes=genes.assign(gene=genes['symbol'])`" in message
    mdata = multiome(GENES.index, PEAKS)
    table = smm.pp.link_features(mdata, "rna", "atac", on="genomic", genes=other.assign(gene=other["symbol"]))
    assert links_of(table) == pytest.approx(EXPECTED)
    wrong = GENES.assign(gene="?")
    assert "'index' of `genes` names 3 of them: `genes=genes.drop(columns='gene')`" in refused(
        GENES.index, PEAKS, genes=wrong
    )
    with pytest.raises(TypeError, match=r"`genes` must be a DataFrame.*got dict"):
        smm.pp.link_features(mdata, "rna", "atac", on="genomic", genes={"PLUS": 1})


def test_a_table_of_some_genes(caplog: pytest.LogCaptureFixture):
    """Rows that no feature is named by are not read."""
    genes = pd.concat([GENES.iloc[:2], GENES.iloc[:1].set_axis(["OTHER"]).assign(start=-5, chrom=None)])
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        table = smm.pp.link_features(multiome(GENES.index, PEAKS), "rna", "atac", on="genomic", genes=genes)
    assert set(table["rna"]) == {"PLUS", "MINUS"}
    assert "2 of 3 features of 'rna' are in `genes`" in caplog.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"start": [10_000, None, 10_000]}, r"1 of 3 intervals in .* have no chrom, start or end"),
        ({"chrom": ["chr1", None, np.nan]}, r"2 of 3 intervals .* e.g. 'MINUS'. Fill them in, or"),
        ({"end": ["x", "31000", "y"]}, r"2 of 3 intervals .*missing or no number"),
        ({"end": [np.inf, 31_000, 11_000]}, r"1 of 3 intervals .* no chrom, start or end"),
        ({"start": [20_000, 30_000, 10_000]}, r"1 of 3 .*start after end.*'PLUS': 20000 to 12000"),
        ({"start": [-1, 30_000, 10_000]}, r"1 of 3 .*below 0.*'PLUS': -1 to 12000"),
        ({"start": [0.5, 30_000, 10_000]}, r"1 of 3 .*no whole number"),
        ({"end": [2.0**41] * 3}, r"3 of 3 "),
        ({"strand": ["+", "x", "forward"]}, r"2 entries of strand .* are not '\+', '-', 1, -1 or '.', e.g. 'x'"),
    ],
)
def test_wrong_intervals(changes: dict, says: str):
    mdata, genes = multiome(GENES.index, PEAKS), GENES.assign(**changes)
    with pytest.raises(ValueError, match=says):
        smm.pp.link_features(mdata, "rna", "atac", on="genomic", genes=genes)
    if np.inf not in changes.get("end", []):  # mudata itself stumbles over it
        with pytest.raises(ValueError, match=says):
            smm.pp.link_features(multiome(genes, PEAKS), "rna", "atac", on="genomic")


def test_genes_without_place_can_be_left_out_as_the_message_says():
    genes = GENES.assign(start=[10_000, None, 10_000])
    message = refused(genes, PEAKS)
    assert "1 of 3 intervals in `var` of 'rna' have no" in message
    mdata = multiome(genes, PEAKS)
    (typed,) = re.findall(r"`genes=([^`]*)`", message)
    table = smm.pp.link_features(mdata, "rna", "atac", on="genomic", genes=eval(typed, {"mdata": mdata}))
    assert links_of(table) == pytest.approx({pair: w for pair, w in EXPECTED.items() if pair[0] != "MINUS"})


def test_wrong_peaks():
    assert "1 of 12 intervals in the names of 'atac' are none (start after end" in refused(GENES, [*PEAKS, "chr1:9-5"])
    gap = columns(list(PEAKS)).astype({"start": float})
    gap.loc["peak2", "start"] = np.nan
    assert "1 of 11 intervals in `var` of 'atac' have no" in refused(GENES, gap)


def test_nothing_in_common():
    message = refused(GENES, [p.replace("chr", "scaffold") for p in PEAKS])
    assert "No chromosome in common: 'rna' has 2 with 3 genes, e.g. ['chr1', 'chr2']" in message
    assert "'atac' has 3 with 11 peaks, e.g. ['scaffold1', 'scaffold2', 'scaffold3']" in message
    message = refused(GENES, [f"chr1:{i}-{i + 1}" for i in range(500_000, 500_010)])
    assert "0 of 10 peaks of 'atac' lie in the 3 genes of 'rna'" in message
    assert "at least 3 links are needed. Check that both have coordinates of one genome build" in message


def test_genomic_arguments_belong_to_genomic(small: md.MuData):
    for arguments in ({"genes": GENES}, {"window": 5_000}):
        with pytest.raises(ValueError, match='`genes` and `window` are for `on="genomic"`'):
            smm.pp.link_features(small, "rna", "protein", on="gene", **arguments)
    mdata = multiome(GENES, PEAKS)
    with pytest.raises(ValueError, match="two different modalities"):
        smm.pp.link_features(mdata, "rna", "rna", on="genomic")
    with pytest.raises(KeyError, match="No modality 'atacs'"):
        smm.pp.link_features(mdata, "rna", "atacs", on="genomic")
    twice = multiome([*GENES.index, "more"], PEAKS)
    twice["rna"].var_names = [*GENES.index, "PLUS"]
    with pytest.raises(ValueError, match=r"var_names of 'rna' are not unique, e.g. 'PLUS'"):
        smm.pp.link_features(twice, "rna", "atac", on="genomic", genes=GENES)


# --- genomic: columns of other tools, and code in messages -------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("chrom", "chromStart", "chromEnd", "strand"),  # UCSC, GLUE
        ("Chromosome", "Start", "End", "Strand"),  # pyranges
        ("seqnames", "start", "end", "strand"),  # GRanges
        ("seqname", "start", "end", "strand"),  # GTF
        ("chromosome_name", "start_position", "end_position", "strand"),  # BioMart, biomaRt
        ("Chromosome/scaffold name", "Gene start (bp)", "Gene end (bp)", "Strand"),  # BioMart, downloaded
        ("#chrom", "txStart", "txEnd", "strand"),
        ("chromosome", "start", "end", "strand"),  # inferCNV
        ("chr", "gene_start", "gene_end", "gene_strand"),
        ("CHR", "START", "STOP", "STRAND"),
    ],
)
def test_columns_under_the_names_of_other_tools(names: tuple[str, ...]):
    genes = GENES.rename(columns=dict(zip(["chrom", "start", "end", "strand"], names)))
    peaks = columns(list(PEAKS)).rename(columns=dict(zip(["chrom", "start", "end"], names)))
    renamed = {(gene, f"peak{list(PEAKS).index(peak)}"): w for (gene, peak), w in EXPECTED.items()}
    for rna, atac, table, expected in (
        (genes, PEAKS, None, EXPECTED),
        (GENES.index, PEAKS, genes, EXPECTED),
        (genes, peaks, None, renamed),
    ):
        found = smm.pp.link_features(multiome(rna, atac), "rna", "atac", on="genomic", genes=table)
        assert links_of(found) == pytest.approx(expected)


def test_names_of_the_interface_come_first():
    genes = GENES.assign(Chromosome="chr9", chromStart=0, stop=1)
    assert links_of(smm.pp.link_features(multiome(genes, PEAKS), "rna", "atac", on="genomic")) == pytest.approx(
        EXPECTED
    )


def placeless(kind: str) -> pd.DataFrame:
    """Genes of which the second has no place."""
    genes = GENES.astype({"start": object, "end": object})
    second = genes.index[1]
    if kind.startswith("interval"):
        places = pd.Series(
            [f"{c}:{s}-{e}" for c, s, e in zip(genes["chrom"], genes["start"], genes["end"])], genes.index
        )
        places = places.astype(object)
        places[second] = {"interval": np.nan, "interval as text": "nan", "interval of another kind": "scaffold"}[kind]
        return genes[["strand"]].assign(interval=places)
    if kind == "chromosome":
        genes.loc[second, "chrom"] = np.nan
    elif kind == "category":
        genes["chrom"] = pd.Categorical(["chr1", "NA", "chr2"])
    elif kind == "text":
        genes.loc[second, ["chrom", "start", "end"]] = ["nan", "unknown", "-"]
    elif kind == "other names":
        genes.loc[second, ["start", "end"]] = np.nan
        genes = genes.rename(columns={"chrom": "seqnames", "start": "chromStart", "end": "stop"})
    else:
        genes.loc[second, ["start", "end"]] = np.nan
    return genes.assign(gene=["a", "b", "c"]) if kind == "a column gene" else genes


@pytest.mark.parametrize(
    "kind",
    ["missing", "chromosome", "category", "text", "other names", "a column gene", "interval", "interval as text",
     "interval of another kind"],
)  # fmt: skip
def test_the_code_that_leaves_genes_out_runs(kind: str):
    mdata = multiome(placeless(kind), PEAKS)
    with pytest.raises(ValueError, match=r"1 of 3 intervals in `var` of 'rna' have no chrom, start or end") as error:
        smm.pp.link_features(mdata, "rna", "atac", on="genomic")
    (typed,) = re.findall(r"`genes=([^`]*)`", str(error.value))
    table = smm.pp.link_features(mdata, "rna", "atac", on="genomic", genes=eval(typed, {"mdata": mdata}))
    assert links_of(table) == pytest.approx({pair: w for pair, w in EXPECTED.items() if pair[0] != "MINUS"})


@pytest.mark.parametrize("column", ["gene", "symbol"])
def test_the_code_for_tables_of_other_names_runs(column: str):
    genes = GENES.set_axis(["a", "b", "c"]).assign(
        **{column: GENES.index}, **({} if column == "gene" else {"gene": "?"})
    )
    genes = genes if column == "symbol" else genes.assign(gene="?").set_axis(GENES.index)
    (typed,) = re.findall(r"`genes=([^`]*)`", refused(GENES.index, PEAKS, genes=genes))
    table = smm.pp.link_features(
        multiome(GENES.index, PEAKS), "rna", "atac", on="genomic", genes=eval(typed, {"genes": genes})
    )
    assert links_of(table) == pytest.approx(EXPECTED)


def test_the_code_for_repeated_names_runs():
    mdata = multiome([*GENES.index, "more"], PEAKS)
    mdata["rna"].var_names = [*GENES.index, "PLUS"]
    with pytest.raises(ValueError, match="not unique") as error:
        smm.pp.link_features(mdata, "rna", "atac", on="genomic", genes=GENES)
    (typed,) = re.findall(r"`(mdata[^`]*)`", str(error.value))
    exec(typed, {"mdata": mdata})
    assert links_of(smm.pp.link_features(mdata, "rna", "atac", on="genomic", genes=GENES)) == pytest.approx(EXPECTED)


# --- what a user meets -------------------------------------------------------------------------------------------


def test_the_toy_in_other_spellings(small: md.MuData, caplog: pytest.LogCaptureFixture):
    """The columns link; the line says that names in another case would, too."""
    small["rna"].var_names = small["rna"].var["gene"].str.capitalize()
    small["protein"].var_names = small["protein"].var["gene"].str.upper()
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        smm.tl.align(small, links="auto", method="coupling", progress_bar=False)
    assert "15 linked features between 'rna' and 'protein': var['gene'] of 'rna'" in caplog.text
    assert "Equal var_names: 0, after upper-casing 15" in caplog.text


def test_affixes_of_all_antibodies_are_named(small: md.MuData):
    genes = {m: small[m].var.pop("gene") for m in small.mod}
    for spell in ("{}_TotalSeqB", "Hu.{}", "adt_{}", "prot:{}", "{} (UCHT1)"):
        small["rna"].var_names = genes["rna"].astype(str).to_numpy()
        small["protein"].var_names = [spell.format(g) for g in genes["protein"]]
        with pytest.raises(ValueError, match="15 entries of var_names") as error:
            smm.pp.link_features(small, "rna", "protein")
        for code in (part for part in re.findall(r"`([^`]*)`", str(error.value)) if part.startswith("mdata[")):
            exec(code, {"mdata": small})
        assert len(smm.pp.link_features(small, "rna", "protein", on="linked")) == 15
        for m in small.mod:
            del small[m].var["linked"]
