"""Antibodies and the genes of their antigens; isotype controls; links by them."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.data import antibodies
from scmmgan.data.links import link_table

DATA = Path(os.environ.get("SCMMGAN_DATA", "/work/shared/data"))
CITE = ["pbmc5k_cite", "pbmc10k_cite"]


def make(rna: list[str], protein: list[str], **columns: list) -> md.MuData:
    parts = {}
    for name, features in (("rna", rna), ("protein", protein)):
        x = np.random.default_rng(0).random((40, len(features))).astype(np.float32)
        obs = pd.DataFrame(index=[f"{name}{i}" for i in range(40)])
        var = {c.removeprefix(f"{name}_"): v for c, v in columns.items() if c.startswith(name)}
        parts[name] = ad.AnnData(x, obs=obs, var=pd.DataFrame(var, index=features))
    return md.MuData(parts)


def pairs(table: pd.DataFrame | None) -> set[tuple[str, str]]:
    assert table is not None
    return set(table.iloc[:, :2].itertuples(index=False, name=None))


# --- the table ---------------------------------------------------------------------------------------------------


def test_table():
    table = antibodies.table()
    assert list(table.columns) == ["antigen", "aliases", "human", "mouse", "clones", "confirmed"]
    assert (table["human"] != "").sum() >= 350
    assert (table["mouse"] != "").sum() >= 300
    assert table["antigen"].is_unique
    assert ((table["human"] != "") | (table["mouse"] != "")).all()
    for organism, pattern in (("human", r"[A-Z][A-Z0-9-]*[A-Z0-9]|C[0-9]orf\d+"), ("mouse", r"[A-Z][a-zA-Z0-9-]+")):
        symbols = table[organism].str.split(";").explode()
        assert [s for s in symbols if s and not re.fullmatch(pattern, s)] == []


def test_every_name_has_one_antigen():
    found = defaultdict(set)
    table = antibodies.table()
    for column in ("antigen", "aliases", "clones"):
        for antigen, entry in zip(table["antigen"], table[column]):
            for name in filter(None, entry.split(";")):
                found[antibodies._joined(antibodies.WORD.findall(name.upper()))].add(antigen)
                # no name is short enough, or number enough, to be met by chance
                assert len(re.sub(r"[^A-Za-z0-9]", "", name)) > 2
                assert not name.isdigit()
    assert {name: of for name, of in found.items() if len(of) > 1} == {}
    # and is read back
    for antigen, aliases in zip(table["antigen"], table["aliases"]):
        assert set(antibodies.antigens([antigen, *filter(None, aliases.split(";"))])) == {antigen}


@pytest.mark.parametrize("name", CITE)
def test_confirmed_rows_are_those_of_the_cite_sets(name: str):
    if not (DATA / f"{name}.h5mu").exists():
        pytest.skip("the data sets of the benchmarks are not here")
    var = md.read(DATA / f"{name}.h5mu", backed=True)["prot"].var
    assert antibodies.genes(var.index) == var["genes"].tolist()
    table = antibodies.table().set_index("antigen")
    assert (table.loc[antibodies.antigens(var.index), "confirmed"] == "yes").all()


def test_only_confirmed_rows_are_marked_so():
    table = antibodies.table()
    assert (table["confirmed"] == "yes").sum() == 29
    assert set(table["confirmed"]) == {"yes", "no"}
    # the data sets that come with the package name the same genes
    for entry in smm.datasets._ANTIBODY_GENES.split(" "):
        antibody, genes = entry.split("=")
        assert antibodies.genes([antibody]) == [genes]


def test_the_table_is_in_the_package():
    folder = Path(smm.__file__).parent / "data"
    assert (folder / "antibodies.csv").is_file()
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'packages = [ "src/scmmgan" ]' in project
    assert "exclude" not in project.split("[tool.hatch")[1].split("[tool.ruff")[0]


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "genes"),
    [
        *[(spell.format("CD3"), "CD3D;CD3E;CD3G") for spell in (
            "{}", "{}_TotalSeqB", "{}-TotalSeqA", "Hu.{}", "Hu.{}_UCHT1", "adt_{}", "prot:{}", "anti-human_{}", "{} (UCHT1)",
            "{}-CTCATTGTAACTCCT", "A0034_{}", "{}-A0034", "ADT-{}", "{}-1", "HuMsRt.{}", "Anti-Human {} [UCHT1]",
        )],
        ("UCHT1", "CD3D;CD3E;CD3G"),
        ("CD31", "PECAM1"),
        ("CD8", "CD8A"),
        ("CD8_SK1", "CD8A"),
        ("CD4-RPA.T4", "CD4"),
        ("CD45RO_UCHL1", "PTPRC"),
        ("CD279 (PD-1)", "PDCD1"),
        ("PD-1 (CD279)", "PDCD1"),
        ("B7 homologue 1 (CD274)", "CD274"),
        ("CD62L_L-selectin", "SELL"),
        ("HLA-A-B-C", "HLA-A;HLA-B;HLA-C"),
        ("HLA-A,B,C", "HLA-A;HLA-B;HLA-C"),
        ("HLA.DR", "HLA-DRA;HLA-DRB1"),
        ("CD66a/c/e", "CEACAM1;CEACAM6;CEACAM5"),
        ("FcεRIα", "FCER1A"),
        ("TCRγδ", "TRDC;TRGC1;TRGC2"),
        ("TCR α/β", "TRAC;TRBC1;TRBC2"),
        ("4-1BB", "TNFRSF9"),
        ("IgM", "IGHM"),
        ("IgG Fc", "IGHG1;IGHG2;IGHG3;IGHG4"),
    ],
)  # fmt: skip
def test_spellings_of_antibodies(name: str, genes: str):
    assert antibodies.genes([name]) == [genes]


@pytest.mark.parametrize(
    "name", ["", "X", "CD", "CD999", "ACTB", "TCR-2", "Ig", "HLA", "B7", "IL-99", "feature_1", "nan"]
)
def test_unknown_antibodies(name: str):
    assert antibodies.antigens([name]) == [None]


@pytest.mark.parametrize(
    "name",
    ["IgG1", "IgG2a", "IgG2b_control_TotalSeqB", "Mouse IgG1, κ isotype Ctrl", "Rat-IgG1-2", "Rag-IgG2c", "mIgG1", "IgG1K",
     "Isotype_MOPC.21", "MOPC-173", "Ms.IgG2b", "Armenian Hamster IgG", "isotype_HTK888", "RTK2758", "Mouse_IgM_isotype",
     "IgA control", "adt_IgG1", "IgG"],
)  # fmt: skip
def test_isotype_controls(name: str):
    assert antibodies.isotype_controls([name]).tolist() == [True]
    assert antibodies.antigens([name]) == [None]


@pytest.mark.parametrize(
    "name", ["IgM", "IgD", "IgE", "IgA", "IgG Fc", "IGHG1", "ISOC1", "HIGD1A", "CD3", "Ig light chain κ", ""]
)
def test_what_is_no_isotype_control(name: str):
    assert antibodies.isotype_controls([name]).tolist() == [False]


# --- links -------------------------------------------------------------------------------------------------------

HUMAN = ["CD3D", "CD3E", "CD4", "CD8A", "MS4A1", "NCAM1", "EGFR", "ACTB", "PTPRC"]
PANEL = ["CD3_TotalSeqB", "CD4_TotalSeqB", "CD8a_TotalSeqB", "CD20_TotalSeqB", "CD56_TotalSeqB", "EGFR_TotalSeqB",
         "CD45RA_TotalSeqB", "CD45RO_TotalSeqB", "IgG1_control_TotalSeqB"]  # fmt: skip
EXPECTED = {("CD3D", "CD3"), ("CD3E", "CD3"), ("CD4", "CD4"), ("CD8A", "CD8a"), ("MS4A1", "CD20"), ("NCAM1", "CD56"),
            ("EGFR", "EGFR"), ("PTPRC", "CD45RA"), ("PTPRC", "CD45RO")}  # fmt: skip
EXPECTED = {(gene, f"{antibody}_TotalSeqB") for gene, antibody in EXPECTED}


def test_antibodies_and_genes(caplog: pytest.LogCaptureFixture):
    mdata = make(HUMAN, PANEL)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        table = smm.pp.link_features(mdata, "rna", "protein", on="antibody")
    assert list(table.columns) == ["rna", "protein", "weight", "sign"]
    assert pairs(table) == EXPECTED
    assert (table["weight"] == 1).all()
    assert (table["sign"] == 1).all()
    assert "1 isotype controls of 'protein' link nothing, e.g. 'IgG1_control_TotalSeqB'" in caplog.text
    other = smm.pp.link_features(mdata, "protein", "rna", on="antibody")
    assert list(other.columns) == ["protein", "rna", "weight", "sign"]
    assert pairs(other) == {(b, a) for a, b in EXPECTED}


def test_genes_of_mouse_in_a_column_or_with_the_genome_before_them():
    mouse = {"CD3E": "Cd3e", "CD3D": "Cd3d", "PTPRC": "Ptprc", "EGFR": "Egfr"}
    mdata = make([mouse.get(g, g.capitalize()) for g in HUMAN], PANEL)
    assert {(a.upper(), b) for a, b in pairs(smm.pp.link_features(mdata, "rna", "protein", on="antibody"))} == EXPECTED
    ids = [f"ENSG000000{i:05d}" for i in range(len(HUMAN))]
    mdata = make(ids, PANEL, rna_gene_symbols=HUMAN, rna_genome=["GRCh38"] * len(HUMAN))
    found = pairs(smm.pp.link_features(mdata, "rna", "protein", on="antibody"))
    assert {(HUMAN[ids.index(a)], b) for a, b in found} == EXPECTED
    mdata = make([f"GRCh38_{g}" for g in HUMAN], PANEL)
    found = pairs(smm.pp.link_features(mdata, "rna", "protein", on="antibody"))
    assert {(a.removeprefix("GRCh38_"), b) for a, b in found} == EXPECTED


def test_antibodies_without_a_gene_are_named(caplog: pytest.LogCaptureFixture):
    mdata = make(HUMAN, [*PANEL, "CD19_TotalSeqB", "strange_TotalSeqB"])
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        assert pairs(smm.pp.link_features(mdata, "rna", "protein", on="antibody")) == EXPECTED
    assert "2 of 10 antibodies of 'protein' have no gene in the other modality" in caplog.text
    assert "['CD19_TotalSeqB', 'strange_TotalSeqB']" in caplog.text


def test_refusals():
    with pytest.raises(ValueError, match="Neither 'rna' nor 'protein' has antibodies that are known here"):
        smm.pp.link_features(make(list("abcd"), list("efgh")), "rna", "protein", on="antibody")
    with pytest.raises(ValueError, match=r"antibodies of 'protein' match 0 genes of 'rna'.*needs gene symbols"):
        smm.pp.link_features(make([f"ENSG{i}" for i in range(9)], PANEL), "rna", "protein", on="antibody")
    with pytest.raises(ValueError, match="two different modalities"):
        smm.pp.link_features(make(HUMAN, PANEL), "rna", "rna", on="antibody")
    with pytest.raises(KeyError, match=r"scmmgan.pp.link_features\(mdata, 'rna', 'protein', on='antibody'\)"):
        link_table(make(HUMAN, PANEL), "rna", "protein", "antibody")


def test_automatic_choice_knows_antibodies(caplog: pytest.LogCaptureFixture):
    mdata = make(HUMAN, PANEL)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        assert pairs(link_table(mdata, "rna", "protein", "auto")) == EXPECTED
    assert (
        "9 linked features between 'rna' and 'protein': antibodies of 'protein' and the genes of their" in caplog.text
    )
    # a column that names as many genes is preferred
    caplog.clear()
    mdata["protein"].var["genes"] = [*antibodies.genes(PANEL[:5]), "EGFR", "PTPRC", "PTPRC", "IGHG1"]
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        assert pairs(link_table(mdata, "rna", "protein", "auto")) == EXPECTED
    assert "var['genes'] of 'protein'" in caplog.text


def test_genes_are_no_antibodies():
    """A panel of marker genes goes by its names, whatever the table knows of them."""
    genes = ["CD4", "CD8A", "CD19", "CD14", "MS4A1", "CD3E"]
    table = link_table(make([*genes, "FCGR3A"], [*genes, "FCGR3A"]), "rna", "protein", "auto")
    assert pairs(table) == {(g, g) for g in [*genes, "FCGR3A"]}
    assert not antibodies.is_panel(make(genes, PANEL), "rna")
    assert antibodies.is_panel(make(genes, PANEL), "protein")
    assert not antibodies.is_panel(make([f"G{i}" for i in range(9)], PANEL), "rna")


@pytest.mark.parametrize("links", ["var_names", "auto", "gene"])
def test_controls_are_not_linked_by_names_or_columns(links: str):
    names = ["IgG1", "IgG2a_control", "AAA1", "BBB2", "CCC3"]
    mdata = make(names, names, rna_gene=names, protein_gene=names)
    assert pairs(link_table(mdata, "rna", "protein", links)) == {(n, n) for n in names[2:]}


def test_the_code_of_a_hint_runs():
    mdata = make(HUMAN, PANEL)
    with pytest.raises(ValueError, match="matches 0 features") as error:
        link_table(mdata, "rna", "protein", "var_names")
    (code,) = re.findall(r"`links=(scmmgan[^`]*)`", str(error.value))
    assert pairs(eval(code, {"mdata": mdata, "scmmgan": smm})) == EXPECTED


def test_a_few_known_antibodies_are_named_where_nothing_links(caplog: pytest.LogCaptureFixture):
    mdata = make([*HUMAN, *(f"GENE{i}" for i in range(100))], [*PANEL, *(f"marker-{i}" for i in range(20))])
    assert link_table(mdata, "rna", "protein", "auto") is None
    (said,) = [r for r in caplog.records if "No links between" in r.getMessage()]
    assert said.levelname == "WARNING"
    (code,) = re.findall(r"`links=(scmmgan[^`]*)`", said.getMessage())
    assert pairs(eval(code, {"mdata": mdata, "scmmgan": smm})) == EXPECTED


@pytest.mark.parametrize("name", CITE)
def test_real_panels(name: str):
    if not (DATA / f"{name}.h5mu").exists():
        pytest.skip("the data sets of the benchmarks are not here")
    mdata = md.read(DATA / f"{name}.h5mu", backed=True)
    by_column = pairs(link_table(mdata, "rna", "prot", "genes"))
    assert pairs(smm.pp.link_features(mdata, "rna", "prot", on="antibody")) == by_column
    assert pairs(link_table(mdata, "rna", "prot", "auto")) == by_column
    bare = md.MuData({m: ad.AnnData(var=mdata[m].var[[]], obs=mdata[m].obs) for m in mdata.mod})
    assert pairs(link_table(bare, "rna", "prot", "auto")) == by_column
