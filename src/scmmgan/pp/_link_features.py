"""Tables of linked features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scmmgan.data.genomic import WINDOW, genomic_links
from scmmgan.data.links import antibody_links, link_table

if TYPE_CHECKING:
    import pandas as pd
    from mudata import MuData


def link_features(
    mdata: MuData,
    source: str,
    target: str,
    *,
    on: str | pd.DataFrame = "var_names",
    window: int = WINDOW,
    genes: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Link features of two modalities: by name, by a column, by the user's table, antigen, or place in the genome.

    Parameters
    ----------
    mdata
        Data with both modalities.
    source
        First modality.
    target
        Second modality.
    on
        `"var_names"` (default): equal names. A `var` column that names genes, in one or both modalities; `var_names`
        serve where a modality lacks the column. `"antibody"`: antibodies of one modality (either) with the genes of
        their antigens in the other. `"genomic"`: genes of one modality (either) with the peaks of the other. Or a table
        with one column of feature names per modality and optional columns `weight` and `sign`, which is checked and
        completed.
    window
        With `on="genomic"`: base pairs upstream of the transcription start, on the gene's strand, in which peaks belong
        to the gene. Default 2,000, the promoter of Signac's gene activities and of GLUE; ArchR takes 5,000.
    genes
        With `on="genomic"`: where the genes are, if their `var` does not say it: a table with gene names as in
        `var_names` (its index, or a column `gene`) and the columns `chrom`, `start`, `end` and, if known, `strand`.

    Returns
    -------
    A table with the columns `source`, `target` (named after the modalities), `weight` (not negative) and `sign`
    (1 or -1), one row per link. Nothing is written to `mdata`; hand the table to `tl.align(links=)`.

    Raises
    ------
    KeyError
        If a modality or column is not there.
    TypeError
        If `on` or `genes` is of no known kind.
    ValueError
        If fewer than 3 features match, `var_names` occur twice, or weights or signs are not valid. With
        `on="antibody"` if no modality has antibodies that are known here. With
        `on="genomic"` also if it is not clear which modality holds genes and which peaks, or if places are missing or
        wrong or share no chromosome.

    Notes
    -----
    Names. `"CD3D;CD3E"` is a list of keys; `,`, `|` and `/` separate keys too where the parts are names of the other
    side. Gaps link nothing, also those written as text: `nan`, `None`, `NA`, `<NA>`, `-`. A key that 3 or more features
    have on both sides, and that would make more than 60 links, is taken for a filler: it links nothing, with a warning.
    Isotype controls are recognised by their names and never linked.

    Antibodies. A table in this package names 428 antigens, with their other names, common clones, and genes in human and
    mouse; its column `confirmed` says which rows data have confirmed (29, human genes). Species, tags, barcodes and clones
    beside the name do not matter: `Hu.CD3_UCHT1`, `CD3_TotalSeqB`, `PD-1 (CD279)`. Complexes are linked with the genes of all
    their chains. Antibodies that the table lacks are linked with the gene of their own name. Genes are gene symbols, from
    `var_names` or the `var` column that names most of them.

    Genomic links. Intervals are those of the `var` columns `chrom`, `start`, `end` (and `strand`: "+", "-", 1, -1;
    "." or missing is unknown), under these names or those of other tools (`chromStart`, `Chromosome`, `seqnames`,
    `start_position`), or of a column `interval`, else of peak names: `chr1:10-20`, `chr1_10_20`, `chr1-10-20`. They count from 0 and do
    not contain `end`, as in BED files; `start` is the smaller number on both strands. `chr` prefixes and case do not
    matter. Both modalities must use one genome build, which nothing here can check. A peak is linked with every gene
    whose body or upstream window it touches (the window lies on both sides where the strand is unknown), with the
    weight `(1 + d / 1000) ** -0.75`, d base pairs from the gene body: 1 in it, .59 at 1,000, .44 at 2,000, .03 at
    100,000; this is the power law of GLUE (Cao and Gao 2022). Several rows of `genes` for one gene all count; a peak
    near two of them is linked once, by the nearer. All signs are 1: open chromatin goes with expression.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> list(smm.pp.link_features(mdata, "rna", "protein", on="gene").columns)
    ['rna', 'protein', 'weight', 'sign']

    Antibodies and genes:

    >>> mdata["rna"].var_names = ["CD3D", "CD3E", "MS4A1", "NCAM1", *mdata["rna"].var_names[4:]]
    >>> mdata["protein"].var_names = ["CD3", "CD20", "CD56", *mdata["protein"].var_names[3:]]
    >>> table = smm.pp.link_features(mdata, "rna", "protein", on="antibody")
    >>> dict(zip(table["rna"][:4], table["protein"][:4]))
    {'CD3D': 'CD3', 'CD3E': 'CD3', 'MS4A1': 'CD20', 'NCAM1': 'CD56'}

    Genes and peaks:

    >>> import pandas as pd
    >>> peaks = mdata["protein"].var_names
    >>> mdata["protein"].var_names = [f"chr1:{1000 * i}-{1000 * i + 500}" for i in range(len(peaks))]
    >>> genes = pd.DataFrame({"chrom": "1", "start": 8000, "end": 9000, "strand": "-"}, index=mdata["rna"].var_names[:1])
    >>> smm.pp.link_features(mdata, "rna", "protein", on="genomic", genes=genes)["protein"].tolist()
    ['chr1:8000-8500', 'chr1:9000-9500', 'chr1:10000-10500']
    """
    if on is None or (isinstance(on, str) and on == "auto"):
        raise ValueError(f"`on` must be 'var_names', a `var` column, 'antibody', 'genomic' or a table, got {on!r}.")
    if isinstance(on, str) and on == "genomic":
        return genomic_links(mdata, source, target, window=window, genes=genes)
    if genes is not None or window != WINDOW:
        raise ValueError('`genes` and `window` are for `on="genomic"`. Add that, or leave them out.')
    if isinstance(on, str) and on == "antibody":
        return antibody_links(mdata, source, target)
    table = link_table(mdata, source, target, on)
    if table is None:
        raise ValueError(f"Nothing links {source!r} with {target!r} on {on!r}.")
    return table
