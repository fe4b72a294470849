"""Tables of linked features: equal names, `var` columns, the user's own."""

from __future__ import annotations

import logging
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

from scmmgan._links import link_table


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
    monkeypatch.setattr("scmmgan._links.MAX_LINKS", 20)
    with pytest.raises(ValueError, match=r"'feature_types' gives \d+ links, .* does not name genes"):
        link_table(mdata, "rna", "protein", "feature_types")
