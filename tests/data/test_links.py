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


def test_automatic_choice_needs_ten(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        assert link_table(make(GENES, GENES[:9]), "rna", "protein", "auto") is None
    assert "9 equal var_names" in caplog.text
    assert "fewer than 10" in caplog.text
    assert len(link_table(make(GENES, GENES[:10]), "rna", "protein", "auto")) == 10
    # asked for by name, fewer will do
    assert len(link_table(make(GENES, GENES[:3]), "rna", "protein", "var_names")) == 3


def test_what_other_spellings_would_match(caplog: pytest.LogCaptureFixture):
    mdata = make(["Cd3d", "Cd4.1", "MS4A1-2"], ["CD3D", "CD4", "MS4A1", "x"])
    with caplog.at_level(logging.INFO, logger="scmmgan"):
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
        assert link_table(mdata, "rna", "protein", "auto") is None
    assert "0 equal var_names" in caplog.text
    assert "`links='feature_name'`" in caplog.text
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
    links = pd.DataFrame({"rna": ["g0", "G1.1", "G2", "G3", "?"], "protein": ["A0", "A1", "A2", "A3", "A4"]})
    with caplog.at_level(logging.WARNING, logger="scmmgan"), pytest.raises(ValueError, match="matches 2 features"):
        link_table(make(GENES, ANTIBODIES), "rna", "protein", links)
    assert "Of 5 names for 'rna' 2 are there, 3 after upper-casing, 4 without version suffixes." in caplog.text
    assert "Of 5 names for 'protein' 5 are there, 5 after" in caplog.text


def test_genomic_is_no_column():
    with pytest.raises(KeyError, match=r"'genomic'.*pp.link_features\(on='genomic'\)"):
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
    # an empty entry links nothing; a gene that is really called nan is a name
    assert pairs(link_table(mdata, "rna", "protein", "gene")) == {("A", "p"), ("B", "p"), ("C", "r"), ("nan", "s")}


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
