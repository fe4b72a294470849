"""Mapped values of other tools, in every form that they write."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm
from scmmgan.data.others import embedding, keys_by_seed, mapped


def test_layers_obsm_tables_and_nothing():
    mdata = smm.datasets.toy(n_cells=50, n_features=[20, 20])
    rna, protein = mdata["rna"], mdata["protein"]
    values = np.random.default_rng(0).random((50, 20)).astype(np.float32)
    rna.obsm["dense"], rna.obsm["sparse"] = values, sp.csr_matrix(values)
    rna.obsm["table"] = pd.DataFrame(values[:, :3], index=rna.obs_names, columns=[*protein.var_names[[5, 2]], "other"])
    for key in ("dense", "sparse"):
        found, names = mapped(mdata, "rna", "protein", key)
        np.testing.assert_array_equal(found, values)
        assert names.tolist() == protein.var_names.tolist()
    found, names = mapped(mdata, "rna", "protein", "table")
    assert names.tolist() == protein.var_names[[2, 5]].tolist()
    np.testing.assert_array_equal(found, values[:, [1, 0]])
    assert mapped(mdata, "protein", "rna", "dense") is None
    rna.obsm["dense"] = values[:, :7]
    with pytest.raises(ValueError, match="has 7 columns and 'protein' 20 features"):
        mapped(mdata, "rna", "protein", "dense")


def test_a_layer_has_the_features_that_both_have():
    mdata = smm.datasets.toy(n_cells=50, shared_genes=True)
    mdata = type(mdata)({"rna": mdata["rna"][:, :40].copy(), "protein": mdata["protein"][:, 10:].copy()})
    mdata["rna"].layers["theirs"] = sp.csr_matrix(mdata["rna"].X * 2)
    found, names = mapped(mdata, "rna", "protein", "theirs")
    assert names.tolist() == mdata["rna"].var_names[10:].tolist()
    np.testing.assert_array_equal(found, mdata["rna"].X[:, 10:] * 2)


def test_keys_one_or_one_for_each_seed():
    assert keys_by_seed({"a": "X_a", 1: ["X_b", "X_c"]}, "embeddings") == {"a": ("X_a",), "1": ("X_b", "X_c")}
    assert keys_by_seed(None, "embeddings") == {}
    for wrong in (None, [], 3, [None], {"rna": "X_a"}):
        with pytest.raises(TypeError, match=r"`layers\['a'\]` must be a key, or a list of one for each seed, got"):
            keys_by_seed({"a": wrong}, "layers")


def test_values_that_cannot_be_scored_are_refused_by_name():
    mdata = smm.datasets.toy(n_cells=50, n_features=[20, 20])
    rna, names = mdata["rna"], mdata["protein"].var_names
    values = pd.DataFrame(np.ones((50, 20)), index=rna.obs_names, columns=names)
    rna.layers["own"] = rna.X
    rna.obsm["foreign"] = values.add_suffix("_x")
    for key in ("own", "foreign"):
        with pytest.raises(ValueError, match=rf"\['{key}'\] of 'rna' has none of the features of 'protein'"):
            mapped(mdata, "rna", "protein", key)
    rna.obsm["twice"] = pd.DataFrame(values.to_numpy(), index=rna.obs_names, columns=[names[0]] * 20)
    with pytest.raises(ValueError, match=r"obsm\['twice'\] of 'rna' has columns of one name"):
        mapped(mdata, "rna", "protein", "twice")
    rna.obsm["gaps"] = np.where(np.eye(50, 20) > 0, np.nan, 1)
    with pytest.raises(ValueError, match=r"obsm\['gaps'\] of 'rna' holds 20 NaN or infinite values"):
        mapped(mdata, "rna", "protein", "gaps")


def test_embeddings_sparse_ones_too_and_where_they_are():
    mdata = smm.datasets.toy(n_cells=50)
    values = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    mdata["rna"].obsm["X_a"], mdata["rna"].obsm["X_b"] = values, sp.csr_matrix(values)
    for key in ("X_a", "X_b"):
        np.testing.assert_array_equal(embedding(mdata, "rna", key), values)
    mdata.obsm["X_all"] = np.zeros((mdata.n_obs, 2))
    with pytest.raises(KeyError, match="has it, for the cells of all modalities: store the rows of each"):
        embedding(mdata, "rna", "X_all")
    mdata["rna"].obsm["X_empty"] = values[:, :0]
    with pytest.raises(ValueError, match="'X_empty' of 'rna' has no columns"):
        embedding(mdata, "rna", "X_empty")
    with pytest.raises(KeyError, match="No obsm key in 'rna' 'X_none'"):
        embedding(mdata, "rna", "X_none")
