"""`pp.link_features`: the public face of `_links`."""

from __future__ import annotations

from collections.abc import Callable

import mudata as md
import pandas as pd
import pytest

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
    """Fewer than the ten that `links="auto"` asks for, but asked for."""
    small["rna"].var_names = [f"f{i}" for i in range(30)]
    small["protein"].var_names = [f"f{i + 26}" for i in range(20)]
    assert smm.pp.link_features(small, "rna", "protein")["rna"].tolist() == ["f26", "f27", "f28", "f29"]


def test_table_is_checked_and_completed(small: md.MuData):
    mine = pd.DataFrame({"protein": small["protein"].var_names[:5], "rna": small["rna"].var_names[:5]})
    table = smm.pp.link_features(small, "rna", "protein", on=mine)
    assert list(table.columns) == ["rna", "protein", "weight", "sign"]
    assert table["weight"].tolist() == table["sign"].tolist() == [1.0] * 5


def test_the_table_is_what_align_takes(small: md.MuData):
    by_column, by_table = small.copy(), small.copy()
    smm.tl.align(by_column, links="gene", max_steps=3, progress_bar=False)
    table = smm.pp.link_features(small, "rna", "protein", on="gene")
    smm.tl.align(by_table, links=table, max_steps=3, progress_bar=False)
    assert (by_column["rna"].obsm["scmmgan_protein"] == by_table["rna"].obsm["scmmgan_protein"]).all()


def test_nothing_is_written(small: md.MuData, fingerprint: Callable):
    before = fingerprint(small)
    smm.pp.link_features(small, "rna", "protein", on="gene")
    assert fingerprint(small) == before


def test_refusals(small: md.MuData):
    for wrong in (None, "auto"):
        with pytest.raises(ValueError, match="`on` must be 'var_names', a `var` column or a table"):
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
