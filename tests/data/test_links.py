"""Tables of linked features: equal names, `var` columns, the user's own."""

from __future__ import annotations

import logging
import re
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

from scmmgan.data.links import link_table


def make(
    rna: list[str], protein: list[str], *, names: tuple[str, str] = ("rna", "protein"), **columns: Any
) -> md.MuData:
    """Modalities with these features; columns as `rna_genes=[...]`."""
    parts = {}
    for name, side, features in zip(names, ("rna", "protein"), (rna, protein)):
        var = {c.removeprefix(f"{side}_"): v for c, v in columns.items() if c.startswith(side)}
        x = np.random.default_rng(0).random((40, len(features))).astype(np.float32)
        obs = pd.DataFrame(index=[f"{name}{i}" for i in range(40)])
        parts[name] = ad.AnnData(x, obs=obs, var=pd.DataFrame(var, index=features))
    return md.MuData(parts)


def pairs(table: pd.DataFrame | None) -> set[tuple[str, str]]:
    assert table is not None
    return set(table.iloc[:, :2].itertuples(index=False, name=None))


GENES = [f"G{i}" for i in range(12)]


def test_equal_names():
    mdata = make([*GENES, "X", "Y"], ["Z", *GENES[::-1]])
    for links in ("auto", "var_names"):
        table = link_table(mdata, "rna", "protein", links)
        assert list(table.columns) == ["rna", "protein", "weight", "sign"]
        assert pairs(table) == {(g, g) for g in GENES}
        assert (table["weight"] == 1).all()
        assert (table["sign"] == 1).all()
    assert pairs(link_table(mdata, "protein", "rna", "auto")) == {(g, g) for g in GENES}
    assert link_table(mdata, "rna", "protein", None) is None


def test_automatic_choice_needs_three(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        assert link_table(make(GENES, GENES[:2]), "rna", "protein", "auto") is None
    assert "2 equal var_names, at least 3 are needed" in caplog.text
    for links in ("auto", "var_names"):
        assert len(link_table(make(GENES, GENES[:3]), "rna", "protein", links)) == 3


def test_what_other_spellings_would_match(caplog: pytest.LogCaptureFixture):
    mdata = make(["Cd3d", "Cd4.1", "MS4A1-2"], ["CD3D", "CD4", "MS4A1", "x"])
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        assert link_table(mdata, "rna", "protein", "auto") is None
    assert "After upper-casing 1 names would match, and 3 without version suffixes" in caplog.text
    with pytest.raises(ValueError, match="upper-casing 1 names would match, and 3 without"):
        link_table(mdata, "rna", "protein", "var_names")


def said(mdata: md.MuData, links: str = "var_names") -> str:
    """What a choice that matches too few says would match."""
    with pytest.raises(ValueError, match="features of 'rna' with 'protein'; at least 3 are needed") as error:
        link_table(mdata, "rna", "protein", links)
    return str(error.value)


def typed(mdata: md.MuData, message: str) -> pd.DataFrame | None:
    """The table after typing what the message says."""
    code = [part for part in re.findall(r"`([^`]*)`", message) if part.startswith("mdata[")]
    for line in code:
        exec(line, {"mdata": mdata})
    (links,) = set(re.findall(r"`links='([^`]*)'`", message))
    return link_table(mdata, "rna", "protein", links)


IDS = [f"ENSG000000{i:05d}" for i in range(12)]


def test_versions_of_ensembl_ids():
    first, second = [f"{g}.{i}" for i, g in enumerate(IDS)], [f"{g}.{i + 1}" for i, g in enumerate(IDS)]
    for a, b, n in ((first, second, 12), (first, IDS, 12), (IDS[:7], second, 7), (first, GENES, 0)):
        message = said(make(a, b))
        assert f"After upper-casing 0 names would match, and {n} without version suffixes" in message
        assert "spelt alike" in message if n else "spelt alike" not in message
    mdata = make(first, second)
    assert pairs(typed(mdata, said(mdata))) == set(zip(first, second))


@pytest.mark.parametrize(
    ("rna", "protein", "n"),
    [
        (["CD3D-1", "CD4.2", "CD8A_1"], ["CD3D", "CD4", "CD8A"], 3),
        # two genes that differ in the number are not one gene in two versions
        (["TRAV8-2", "NKX2-5", "RP11-1.1"], ["TRAV8-3", "NKX2-1", "RP11-1.2"], 0),
        (["HLA-A", "HLA-DRB1", "H1-0"], ["HLA-B", "HLA-C", "HLA"], 0),
        # what matches as it is does not match once more without its suffix
        (["TRAV8-2", "CD3D"], ["TRAV8-2", "TRAV8", "CD3D-1"], 2),
        # one name, however many copies of it there are
        (["CD3D-1", "CD3D-2", "CD3D-3"], ["CD3D", "x"], 1),
        (["ENSG00000000003.14_PAR_Y", "MT-CO1.1x"], ["ENSG00000000003", "MT-CO1"], 0),
    ],
)
def test_suffixes_are_not_stripped_to_nonsense(rna: list[str], protein: list[str], n: int):
    for a, b in ((rna, protein), (protein, rna)):
        assert f"and {n} without version suffixes" in said(make(a, b))


def test_names_in_another_case_can_be_typed():
    mdata = make([g.lower() for g in GENES], GENES)
    message = said(mdata)
    assert "After upper-casing 12 names would match, and 12 without" in message
    assert pairs(typed(mdata, message)) == {(g.lower(), g) for g in GENES}


def test_another_column_would_match(caplog: pytest.LogCaptureFixture):
    mdata = make(IDS, GENES, rna_feature_name=GENES, rna_gene_ids=IDS, rna_highly_variable=[True] * 12)
    message = said(mdata)
    assert "After upper-casing 0 names would match, and 0 without" in message
    assert "12 entries of var['feature_name'] of 'rna' are in var_names of 'protein': `links='feature_name'`" in message
    assert pairs(typed(mdata, message)) == set(zip(IDS, GENES))
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        assert pairs(link_table(mdata, "rna", "protein", "auto")) == set(zip(IDS, GENES))
    assert "12 linked features between 'rna' and 'protein': var['feature_name'] of 'rna'" in caplog.text
    # also where a column was chosen that matches none
    assert "`links='feature_name'`" in said(mdata, "gene_ids")


def test_columns_of_other_names_or_on_both_sides():
    mdata = make(list("abcdefghijkl"), list("mnopqr"), rna_gene_ids=IDS, protein_ensembl=IDS[:6])
    message = said(mdata)
    assert "6 entries of var['gene_ids'] of 'rna' are in var['ensembl'] of 'protein'" in message
    assert pairs(typed(mdata, message)) == set(zip("abcdef", "mnopqr"))
    # a column that both have is read in both, so its name alone would not do
    mdata = make(IDS, GENES, rna_symbol=GENES, protein_symbol=[f"alias{i}" for i in range(12)])
    message = said(mdata)
    assert "12 entries of var['symbol'] of 'rna' are in var_names of 'protein': `mdata['rna']" in message
    assert pairs(typed(mdata, message)) == set(zip(IDS, GENES))
    mdata = make(list("abcdefghijkl"), GENES, rna_symbol=GENES, protein_symbol=GENES)
    assert pairs(typed(mdata, said(mdata))) == set(zip("abcdefghijkl", GENES))


def test_a_column_in_another_spelling_would_match():
    mdata = make(GENES, IDS, rna_gene_ids=[f"{g}.{i}" for i, g in enumerate(IDS)])
    message = said(mdata)
    assert "12 entries of var['gene_ids'] of 'rna' are in var_names of 'protein' when spelt alike" in message
    assert pairs(typed(mdata, message)) == set(zip(GENES, IDS))


def test_columns_that_name_no_features_are_not_offered():
    chromosomes = ["1", "2", "3", "4"] * 6
    features = {"rna": [f"a{i}" for i in range(24)], "protein": [f"b{i}" for i in range(24)]}
    columns = {f"{m}_{c}": v for m in features for c, v in {"chrom": chromosomes, "rank": range(24)}.items()}
    mixed = [1, "1", None] * 8
    message = said(make(features["rna"], features["protein"], **columns, rna_mixed=mixed, protein_mixed=mixed))
    assert "entries of" not in message
    assert "links='linked'" not in message


# --- features and links that occur twice -------------------------------------------------------------------------


def test_features_of_one_name():
    mdata = make([*GENES, "more"], GENES)
    mdata["rna"].var_names = [*GENES, "G0"]
    for links in ("auto", "var_names", own_table()):
        with pytest.raises(ValueError, match=r"var_names of 'rna' are not unique, e.g. 'G0'.*var_names_make_unique"):
            link_table(mdata, "rna", "protein", links)


def test_one_gene_of_several_features():
    """All pairs: the link weights that `align` learns tell them apart."""
    mdata = make(["A", "A-1", "B", "C"], ["p", "q", "r"], rna_gene=["A", "A", "B", "C"], protein_gene=["A", "A", "C"])
    expected = {("A", "p"), ("A-1", "p"), ("A", "q"), ("A-1", "q"), ("C", "r")}
    assert pairs(link_table(mdata, "rna", "protein", "gene")) == expected


def test_links_given_twice(caplog: pytest.LogCaptureFixture):
    mdata = make(GENES, ANTIBODIES)
    twice = pd.concat([own_table(weight=[1, 2, 3, 4]), own_table(weight=[1, 2, 9, 4], sign=[1, 1, 1, -1])])
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        table = link_table(mdata, "rna", "protein", twice.assign(sign=twice["sign"].fillna(1)))
    assert table["weight"].tolist() == [1, 2, 3, 4]
    assert table["sign"].tolist() == [1, 1, 1, 1]
    assert "2 links repeat a pair with another weight or sign: the first of each pair counts" in caplog.text
    caplog.clear()
    assert len(link_table(mdata, "rna", "protein", pd.concat([own_table(), own_table()]))) == 4
    assert "repeat" not in caplog.text


def test_unknown_names_in_a_table_in_other_spellings(caplog: pytest.LogCaptureFixture):
    links = pd.DataFrame({"rna": ["g0", "G1.1", "G2", "G3", "x?"], "protein": ["A0", "A1", "A2", "A3", "A4"]})
    with caplog.at_level(logging.WARNING, logger="scmmgan"), pytest.raises(ValueError, match="matches 2 features"):
        link_table(make(GENES, ANTIBODIES), "rna", "protein", links)
    assert "Of 5 names for 'rna' 2 are there, 3 after upper-casing, 4 without version suffixes." in caplog.text
    assert "Of 5 names for 'protein' 5 are there, 5 after" in caplog.text


def test_genomic_is_no_column():
    with pytest.raises(KeyError, match=r"'genomic'.*pp.link_features\(mdata, 'rna', 'protein', on='genomic'\)"):
        link_table(make(GENES, ANTIBODIES), "rna", "protein", "genomic")


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three(n: int):
    mdata = make(GENES, [*GENES[:n], "other", "more"])
    with pytest.raises(
        ValueError, match=rf"`links` matches {n} features of 'rna' with 'protein'; at least 3.*links=None"
    ):
        link_table(mdata, "rna", "protein", "var_names")


def test_columns_and_lists():
    mdata = make(
        ["CD3D", "CD3E", "CD4", "CD8A", "PTPRC"],
        ["CD3", "CD4", "CD8a", "CD45RA", "CD45RO", "IgG"],
        protein_genes=["CD3D;CD3E", "CD4", " CD8A ", "PTPRC", "PTPRC;", None],
    )
    table = link_table(mdata, "rna", "protein", "genes")
    assert pairs(table) == {
        ("CD3D", "CD3"),
        ("CD3E", "CD3"),
        ("CD4", "CD4"),
        ("CD8A", "CD8a"),
        ("PTPRC", "CD45RA"),
        ("PTPRC", "CD45RO"),
    }
    assert len(table) == 6


def test_column_on_both_sides():
    """Where both have it, names do not count."""
    mdata = make(list("uvwx"), list("wxyz"), rna_gene=["A", "B", "C", "D"], protein_gene=["D", "C", "B", "E"])
    assert pairs(link_table(mdata, "rna", "protein", "gene")) == {("v", "y"), ("w", "x"), ("x", "w")}


@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_column_types_and_gaps(dtype: str):
    column = pd.array(["A;B", None, "C", "nan", ""], dtype=dtype) if dtype != "category" else None
    column = pd.Categorical(["A;B", None, "C", "nan", ""]) if column is None else column
    mdata = make(["A", "B", "C", "nan", "None"], list("pqrst"), protein_gene=column)
    # an empty entry links nothing, nor does one that stands for it
    assert pairs(link_table(mdata, "rna", "protein", "gene")) == {("A", "p"), ("B", "p"), ("C", "r")}


@pytest.mark.parametrize("other", [float, "Int64", str])
def test_numbers_of_any_type_are_keys(other: Any):
    """A gap makes floats of whole numbers, as of Entrez ids: 7.0 is 7."""
    rna = pd.Series([7.0, None, 12.0, 30.0, 41.0])
    mdata = make(list("abcde"), list("vwxy"), rna_entrez=rna.to_numpy(), protein_entrez=np.array([12, 7, 41, 5]))
    mdata["protein"].var["entrez"] = mdata["protein"].var["entrez"].astype(other)
    assert pairs(link_table(mdata, "rna", "protein", "entrez")) == {("a", "w"), ("c", "v"), ("e", "x")}


def test_no_link_twice():
    mdata = make(["A", "B", "C"], ["p", "q", "r"], protein_gene=["A;A", "B;A;B", "C"])
    table = link_table(mdata, "rna", "protein", "gene")
    assert len(table) == 4
    assert not table.duplicated().any()


def test_odd_names():
    odd = ["a/b", "c;d", "é > ü", "x y", '"q"', "1.5"]
    mdata = make(odd, odd)
    # a `;` separates names, also here: the two halves link the feature with itself
    assert pairs(link_table(mdata, "rna", "protein", "var_names")) == {(n, n) for n in odd}


@pytest.mark.parametrize("names", [("key", "b"), ("a", "key"), ("index", "level_0"), ("a b.c", "d>e")])
def test_modalities_of_any_name(names: tuple[str, str]):
    table = link_table(make(GENES, GENES[::-1], names=names), *names, "auto")
    assert list(table.columns) == [*names, "weight", "sign"]
    assert pairs(table) == {(g, g) for g in GENES}


@pytest.mark.parametrize("names", [("weight", "b"), ("a", "sign")])
def test_modalities_called_like_the_other_columns(names: tuple[str, str]):
    mdata = make(GENES, GENES, names=names)
    with pytest.raises(ValueError, match=r"'weight' and 'sign'.*rename"):
        link_table(mdata, *names, "auto")
    assert link_table(mdata, *names, None) is None


def test_unknown_column():
    mdata = make(GENES, GENES, rna_gene_ids=GENES)
    with pytest.raises(KeyError, match=r"No var column in 'rna' or 'protein' 'gene_id'.*gene_ids.*table"):
        link_table(mdata, "rna", "protein", "gene_id")
    with pytest.raises(KeyError, match="No modality 'atac'"):
        link_table(mdata, "rna", "atac", "auto")
    with pytest.raises(ValueError, match="two different modalities"):
        link_table(mdata, "rna", "rna", "var_names")


@pytest.mark.parametrize("links", [3, True, ["G0"], {"rna": "G0"}])
def test_links_of_no_known_kind(links: Any):
    with pytest.raises(TypeError, match=rf"`links` must be a str, a DataFrame or None, got {type(links).__name__}"):
        link_table(make(GENES, GENES), "rna", "protein", links)


# --- tables ------------------------------------------------------------------------------------------------------


def own_table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"rna": GENES[:4], "protein": ["A0", "A1", "A2", "A3"], **columns}, index=[7, 7, 1, 0])


ANTIBODIES = [f"A{i}" for i in range(6)]


def test_tables():
    mdata = make(GENES, ANTIBODIES)
    table = link_table(mdata, "rna", "protein", own_table(note="x", weight=[1, 2.5, 1, 3], sign=[1, -1, 1, 1]))
    assert list(table.columns) == ["rna", "protein", "weight", "sign"]
    assert table["weight"].tolist() == [1, 2.5, 1, 3]
    assert table["sign"].tolist() == [1, -1, 1, 1]
    assert table["rna"].tolist() == GENES[:4]
    plain = link_table(mdata, "protein", "rna", own_table())
    assert plain["weight"].tolist() == plain["sign"].tolist() == [1.0] * 4
    assert plain["protein"].tolist() == ["A0", "A1", "A2", "A3"]


@pytest.mark.parametrize("dtype", ["string", "category"])
def test_tables_of_other_types(dtype: str):
    table = link_table(make(GENES, ANTIBODIES), "rna", "protein", own_table().astype(dtype))
    assert pairs(table) == set(zip(GENES[:4], ANTIBODIES))
    assert table["rna"].dtype == table["protein"].dtype == object


def test_space_around_the_names_of_a_table():
    spaced = own_table().apply(lambda names: " " + names.astype(str) + "\t")
    mdata = make([*GENES[1:], " G0\t"], ANTIBODIES)
    # a name that is there as it is written stays
    assert pairs(link_table(mdata, "rna", "protein", spaced)) == {(" G0\t", "A0"), *zip(GENES[1:4], ANTIBODIES[1:4])}


def test_tables_are_left_alone():
    links = own_table(weight=[1, 2, 3, 4])
    before = links.copy()
    link_table(make(GENES, ANTIBODIES), "rna", "protein", links)
    pd.testing.assert_frame_equal(links, before)


def test_unknown_features_are_left_out(caplog: pytest.LogCaptureFixture):
    mdata = make(GENES[:3], ANTIBODIES)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        assert len(link_table(mdata, "rna", "protein", own_table())) == 3
    assert "1 of 4 links name a feature that is not in `mdata`" in caplog.text
    with pytest.raises(ValueError, match="`links` matches 2 features"):
        link_table(make(GENES[:2], ANTIBODIES), "rna", "protein", own_table())


def test_links_without_weight_are_no_links():
    mdata = make(GENES, ANTIBODIES)
    assert len(link_table(mdata, "rna", "protein", own_table(weight=[1, 0, 2, 3]))) == 3
    with pytest.raises(ValueError, match="matches 2 features"):
        link_table(mdata, "rna", "protein", own_table(weight=[1, 0, 0, 3]))


@pytest.mark.parametrize("weight", [[1, -1, 1, 1], [1, np.nan, 1, 1], [np.inf] * 4, ["a"] * 4, [None] * 4, [0] * 4])
def test_wrong_weights(weight: list):
    with pytest.raises(ValueError, match="`weight` of the table `links` must be finite numbers"):
        link_table(make(GENES, ANTIBODIES), "rna", "protein", own_table(weight=weight))


@pytest.mark.parametrize("sign", [[1, 0, 1, 1], [2] * 4, ["+"] * 4, [np.nan] * 4])
def test_wrong_signs(sign: list):
    with pytest.raises(ValueError, match="`sign` of the table `links` must be 1 or -1, got"):
        link_table(make(GENES, ANTIBODIES), "rna", "protein", own_table(sign=sign))


def test_wrong_tables():
    mdata = make(GENES, ANTIBODIES)
    with pytest.raises(KeyError, match=r"No column in the table `links` 'protein'.*One column per modality"):
        link_table(mdata, "rna", "protein", own_table().rename(columns={"protein": "adt"}))
    with pytest.raises(ValueError, match="columns of one name"):
        link_table(mdata, "rna", "protein", pd.concat([own_table(), own_table()], axis=1))
    with pytest.raises(ValueError, match="`links` matches 0 features"):
        link_table(mdata, "rna", "protein", own_table().iloc[:0])


def test_a_column_called_var_names_does_not_stand_for_the_names():
    mdata = make(GENES, GENES)
    for m in ("rna", "protein"):
        mdata[m].var["var_names"] = "same"
    table = link_table(mdata, "rna", "protein", "var_names")
    assert (table["rna"] == table["protein"]).all()


def test_a_column_that_names_no_genes_is_refused(monkeypatch: pytest.MonkeyPatch):
    mdata = make(GENES, ANTIBODIES)
    for m in ("rna", "protein"):
        mdata[m].var["feature_types"] = "Gene Expression"
    monkeypatch.setattr("scmmgan.data.links.MAX_LINK_TABLE", 20)
    with pytest.raises(ValueError, match=r"'feature_types' gives \d+ links, .* does not name genes"):
        link_table(mdata, "rna", "protein", "feature_types")


# --- gaps, fillers, lists ----------------------------------------------------------------------------------------

FILLERS = [
    "nan",
    "NaN",
    "None",
    "none",
    "NA",
    "N/A",
    "<NA>",
    "-",
    "",
    " ",
    "null",
    "Null",
    "Na",
    "N.A.",
    "--",
    "?",
    "nan-1",
    "NA-2",
]


@pytest.mark.parametrize("gap", FILLERS)
def test_text_that_stands_for_a_gap_links_nothing(gap: str):
    genes = {"rna_gene": [*GENES[:5], *[gap] * 7], "protein_gene": [*GENES[:5], gap]}
    table = link_table(make(list("abcdefghijkl"), list("mnopqr"), **genes), "rna", "protein", "gene")
    assert pairs(table) == set(zip("abcde", "mnopq"))


def test_gaps_in_names_and_tables():
    assert pairs(link_table(make([*GENES[:3], "nan", "nan-1"], [*GENES[:3], "nan", "nan-1"]), "rna", "protein", "auto")) == {
        (g, g) for g in GENES[:3]
    }  # fmt: skip
    mdata = make([*GENES[:4], "nan"], [*ANTIBODIES[:4], "nan"])
    table = pd.concat([own_table(), pd.DataFrame({"rna": ["nan", "G0", "-"], "protein": ["nan", "<NA>", "A1"]})])
    assert pairs(link_table(mdata, "rna", "protein", table)) == set(zip(GENES[:4], ANTIBODIES[:4]))


def filled(filler: str, n: int, m: int) -> md.MuData:
    """Five genes in common and a filler on n features of the first side and m of the second."""
    names = [[f"{side}{i}" for i in range(5 + k)] for side, k in (("f", n), ("p", m))]
    return make(*names, rna_gene=[*GENES[:5], *[filler] * n], protein_gene=[*GENES[:5], *[filler] * m])


def test_a_filler_links_nothing(caplog: pytest.LogCaptureFixture):
    for n, m in ((100, 3), (3, 100), (21, 3), (8, 8)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="scmmgan"):
            assert len(link_table(filled("unknown", n, m), "rna", "protein", "gene")) == 5
        assert f"'unknown' names {n} features of 'rna' and {m} of 'protein', {n * m} links" in caplog.text
        assert "looks like a filler and links nothing" in caplog.text
    for n, m in ((100, 3), (8, 4)):
        caplog.clear()
        assert len(link_table(filled("unknown", n, m), "rna", "protein", "auto")) == 5
        assert f"'unknown' names {n} features of 'rna' and {m} of 'protein'" in caplog.text


def test_a_filler_is_no_better_choice(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        assert len(link_table(filled("unknown", 7, 4), "rna", "protein", "auto")) == 5
    assert "entries of" not in caplog.text


@pytest.mark.parametrize(
    ("n", "m", "said"), [(8, 4, True), (20, 3, True), (50, 2, True), (200, 1, False), (5, 4, False)]
)
def test_keys_of_many_features_are_named(caplog: pytest.LogCaptureFixture, n: int, m: int, said: bool):
    """A gene with many peaks, or antibodies with isoforms, are no filler."""
    mdata = filled("PTPRC", n, m)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        assert len(link_table(mdata, "rna", "protein", "gene")) == 5 + n * m
    assert ("'PTPRC' names" in caplog.text) == said
    if said:
        (code,) = re.findall(r"`([^`]*)`", caplog.text)
        exec(code, {"mdata": mdata})
        assert len(link_table(mdata, "rna", "protein", "gene")) == 5


@pytest.mark.parametrize("separator", [";", ",", "|", "/", "; ", ", ", " / ", " | "])
def test_lists(separator: str):
    lists = [f"CD3D{separator}CD3E", f"X{separator}CD4", "CD8A", "none of these, really", f"Y{separator}Z"]
    mdata = make(["CD3D", "CD3E", "CD4", "CD8A"], list("pqrst"), protein_gene=lists)
    expected = {("CD3D", "p"), ("CD3E", "p"), ("CD4", "q"), ("CD8A", "r")}
    for links in ("gene", "auto"):
        assert pairs(link_table(mdata, "rna", "protein", links)) == expected
    # on the other side too, and on both
    assert pairs(link_table(mdata, "protein", "rna", "gene")) == {(b, a) for a, b in expected}
    both = make(
        list("abc"),
        list("pqr"),
        rna_gene=[f"AA{separator}BB", "CC", "DD"],
        protein_gene=[f"BB{separator}X", "CC", "DD"],
    )
    assert pairs(link_table(both, "rna", "protein", "gene")) == set(zip("abc", "pqr"))


def test_names_with_separators_are_no_lists():
    names = ["chr1:1,000-2,000", "chr1:1,000-3,000", "chr1:5,000-6,000", "H2-Aa/b"]
    assert pairs(link_table(make(names, names[::-1]), "rna", "protein", "var_names")) == {(n, n) for n in names}
    table = link_table(make(["a/b", "a", "c", "d"], ["a/b", "x", "c", "d"]), "rna", "protein", "var_names")
    assert pairs(table) == {("a/b", "a/b"), ("a", "a/b"), ("c", "c"), ("d", "d")}


# --- affixes -----------------------------------------------------------------------------------------------------

MARKERS = ["KLRB1", "NCAM1", "HLA-DRA", "MS4A1", "PTPRC", "SELL", "IL7R", "H2-K1"]


SPELLINGS = [
    "{}_TotalSeqB", "{}-TotalSeqA", "{}_TotalSeq_C", "Hu.{}", "adt_{}", "prot:{}", "anti-human {}", "{} (UCHT1)",
    "{}-ACGTTGCATGCATGA", "adt_{}_TotalSeqB", "GRCh38_{}", "{}.ADT", "{}-A00%s", "{}_ENSG000000000%s.2",
]  # fmt: skip
SIDES = [(spell, (i + turn) % 2, turn) for turn in (0, 1) for i, spell in enumerate(SPELLINGS)]


@pytest.mark.parametrize(
    ("spell", "side"),
    [pytest.param(spell, side, marks=[pytest.mark.slow] * turn) for spell, side, turn in SIDES],
)
def test_affixes_are_found_and_what_to_type(spell: str, side: int, caplog: pytest.LogCaptureFixture):
    spelt = [spell.format(g).replace("%s", f"{22 + i}") for i, g in enumerate(MARKERS)]
    sides = [[*MARKERS, "ACTB", "EEF2"], spelt]
    mdata = make(*(sides if side else sides[::-1]))
    message = said(mdata)
    assert "8 entries of var_names" in message
    expected = set(zip(MARKERS, spelt)) if side else set(zip(spelt, MARKERS))
    assert pairs(typed(mdata, message)) == expected
    # the automatic choice says the same, or knows the antibodies
    mdata = make(*[[g.replace("1", "x") for g in of] for of in (sides if side else sides[::-1])])
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        if link_table(mdata, "rna", "protein", "auto") is None:
            assert "then `links='linked'`" in caplog.text


def test_affixes_and_case():
    mdata = make([f"Hu.{g.lower()}" for g in MARKERS], [f"{g}_TotalSeqA" for g in MARKERS])
    message = said(mdata)
    assert "without the prefix 'Hu.' of 'rna' and without the suffix '_TotalSeqA' of 'protein'" in message
    assert len(typed(mdata, message)) == 8
    # a column of the name is left alone
    mdata["rna"].var["linked"] = "mine"
    message = said(mdata)
    assert "links='linked_'" in message
    assert len(typed(mdata, message)) == 8
    assert (mdata["rna"].var["linked"] == "mine").all()


@pytest.mark.parametrize(
    ("rna", "protein"),
    [
        # what is left would be numbers, or the same name twice
        ([f"gene_{i}" for i in range(9)], [f"peak_{i}" for i in range(9)]),
        ([f"HLA-{c}" for c in "ABCDEF"], [f"chr{i}" for i in range(6)]),
        (["CD3_a", "CD3_b", "CD3_c"], ["CD3", "CD4", "CD8"]),
    ],
)
def test_affixes_that_say_nothing(rna: list[str], protein: list[str]):
    assert "links='linked'" not in said(make(rna, protein))


# --- automatic choice --------------------------------------------------------------------------------------------


def automatic(mdata: md.MuData, caplog: pytest.LogCaptureFixture) -> tuple[set[tuple[str, str]], str]:
    """What `links="auto"` takes, and what it says."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        table = link_table(mdata, "rna", "protein", "auto")
    return set() if table is None else pairs(table), caplog.text


def test_whatever_links_most(caplog: pytest.LogCaptureFixture):
    a, b = [f"a{c}x" for c in "bcdefghijklm"], [f"b{c}x" for c in "bcdefg"]
    # a column of one side against names, or a column of the other, of the same name or another
    for columns, names in (({"rna_symbol": b + a[6:]}, "symbol"), ({"rna_id": IDS, "protein_id": IDS[:6]}, "id"),
                           ({"rna_id": IDS, "protein_ensembl": IDS[:6]}, "ensembl"), ({"protein_of": a[:6]}, "of")):  # fmt: skip
        found, text = automatic(make(a, b, **columns), caplog)
        assert found == set(zip(a, b)), columns
        assert "6 linked features between 'rna' and 'protein'" in text
        assert f"var['{names}']" in text
        assert "Equal var_names: 0, after upper-casing 0" in text
    # equal names, where they are as many, and where they are more
    both = make(GENES, GENES, rna_id=IDS, protein_id=IDS)
    assert "equal var_names" in automatic(both, caplog)[1]
    few = make(GENES, GENES, rna_id=IDS, protein_id=[*IDS[:8], "w", "x", "y", "z"])
    assert automatic(few, caplog)[0] == {(g, g) for g in GENES}
    many = make(GENES, [*GENES[:4], *b], rna_id=IDS, protein_id=IDS[:10])
    assert automatic(many, caplog)[0] == set(zip(GENES, [*GENES[:4], *b]))


def test_what_links_more_is_said(caplog: pytest.LogCaptureFixture):
    mdata = make(GENES, [*GENES[:3], *[g.lower() for g in GENES[3:]]])
    found, text = automatic(mdata, caplog)
    assert found == {(g, g) for g in GENES[:3]}
    assert "After upper-casing 12 names would match" in text
    assert len(typed(mdata, text)) == 12


def test_the_warning_says_what_to_type(caplog: pytest.LogCaptureFixture):
    """In a session without logging a warning is all that is seen."""
    mdata = make([g.capitalize() for g in MARKERS], [g.upper() for g in MARKERS], rna_n=[1] * 8)
    mdata["protein"].var_names = [f"{g}X" for g in mdata["protein"].var_names]
    mdata["rna"].var_names = [f"{g}x" for g in mdata["rna"].var_names]
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        assert link_table(mdata, "rna", "protein", "auto") is None
    assert "After upper-casing 8 names would match" in caplog.text
    assert len(typed(mdata, caplog.text)) == 8
    # nothing would: nothing to type
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        assert link_table(make(GENES, ANTIBODIES), "rna", "protein", "auto") is None
    assert caplog.text == ""


@pytest.mark.parametrize(
    "values",
    [
        lambda n: ["GRCh38"] * n,
        lambda n: ["Gene Expression"] * n,
        lambda n: list(range(n)),
        lambda n: [str(i) for i in range(n)],
        lambda n: [f"{i}.5" for i in range(n)],
        lambda n: [i % 2 == 0 for i in range(n)],
        lambda n: [str(i % 2 == 0) for i in range(n)],
        lambda n: [f"chr{i}" for i in range(1, n + 1)],
        lambda n: list("abcdefghijklmnop"[:n]),
        lambda n: ["+", "-"] * (n // 2),
        lambda n: ["protein_coding", "lncRNA", "TR_V", "IG_C"] * (n // 4),
        lambda n: [None] * n,
        lambda n: pd.Categorical(["a", "b"] * (n // 2)),
        lambda n: np.linspace(0, 1, n),
    ],
)
def test_columns_that_name_nothing_are_not_taken(values: Any, caplog: pytest.LogCaptureFixture):
    a, b = [f"a{c}x" for c in "bcdefghijklm"], [f"b{c}x" for c in "bcdefghi"]
    mdata = make(a, b, rna_what=values(12), protein_what=values(8), rna_other=values(12))
    found, text = automatic(mdata, caplog)
    assert found == set()
    assert "WARNING" not in text


def test_numbers_are_no_names(caplog: pytest.LogCaptureFixture):
    """AnnData numbers features that have no names."""
    numbers = [str(i) for i in range(20)]
    found, text = automatic(make(numbers, numbers), caplog)
    assert found == set()
    assert "WARNING" in text
    assert "20 names are equal numbers; if these name features: `links='var_names'`" in text
    assert len(link_table(make(numbers, numbers), "rna", "protein", "var_names")) == 20


def test_one_gene_of_many_peaks_is_not_taken_but_named(caplog: pytest.LogCaptureFixture):
    peaks = [f"chr1:{i}00-{i}50" for i in range(36)]
    mdata = make(GENES, peaks, protein_nearest=[f"G{i // 3}" for i in range(36)])
    assert automatic(mdata, caplog)[0] == set()
    mdata["protein"].var["nearest"] = [f"G{i // 3}" if i % 3 else f"own{i}" for i in range(36)]
    mdata["protein"].var["most"] = [f"G{i // 3}" if i % 3 == 0 else f"own{i}" for i in range(36)]
    assert automatic(mdata, caplog)[0] == {(f"G{i // 3}", p) for i, p in enumerate(peaks) if i % 3 == 0}


def test_nine_equal_names_are_used(caplog: pytest.LogCaptureFixture):
    assert automatic(make(GENES, GENES[:9]), caplog)[0] == {(g, g) for g in GENES[:9]}
