"""What a copy without the truth holds: exactly what arguments name, under other names and in another order."""

from __future__ import annotations

import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm
from scmmgan.data.blinded import blinded, slots_read
from scmmgan.data.modality import layers_of

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

NAMES = ("rna", "protein")


@pytest.fixture
def mdata() -> md.MuData:
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20], spatial=True)
    for m in NAMES:
        mdata[m].layers["log"], mdata[m].layers["counts"] = sp.csr_matrix(mdata[m].X), mdata[m].X.round()
        mdata[m].obs["donor"] = pd.Categorical(np.arange(60) % 2)
        mdata[m].obsm["X_pca"] = np.asarray(mdata[m].X[:, :4])
    return mdata


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"X": ["X"], "obs": [], "obsm": [], "layers": ["counts"]}),
        ({"layer": "log", "counts": None}, {"X": [], "obs": [], "obsm": [], "layers": ["log"]}),
        ({"layer": {"protein": "log"}}, {"X": ["X"], "obs": [], "obsm": [], "layers": ["counts"]}),
        ({"use_rep": {"rna": "X_pca"}}, {"X": [], "obs": [], "obsm": ["X_pca"], "layers": ["counts"]}),
        (
            {
                "batch": "donor",
                "labels": {"rna": "cell_type"},
                "covariates": ["gradient", "depth"],
                "spatial": "spatial",
            },
            {"X": ["X"], "obs": ["cell_type", "donor", "gradient"], "obsm": ["spatial"], "layers": ["counts"]},
        ),
    ],
)
def test_slots_that_arguments_name(mdata: md.MuData, arguments: dict, expected: dict):
    assert slots_read(mdata, NAMES, "rna", arguments) == expected
    copy = blinded(mdata, NAMES, arguments, [], random_state=0)
    adata = copy.mdata["rna"]
    assert list(adata.obs) == expected["obs"]
    assert list(adata.obsm) == expected["obsm"]
    assert layers_of(adata) == expected["layers"]
    assert (adata.X is not None) == bool(expected["X"])


def test_rows_go_back(mdata: md.MuData):
    copy = blinded(mdata, NAMES, {"layer": "log", "batch": "donor"}, [], random_state=3)
    for m in NAMES:
        found = copy.mdata[m]
        values = found.layers["log"].toarray()
        np.testing.assert_array_equal(copy.as_before(m, values), mdata[m].X)
        np.testing.assert_array_equal(values, mdata[m].X[copy.rows[m]])
        assert found.obs["donor"].tolist() == mdata[m].obs["donor"].iloc[copy.rows[m]].tolist()
    # what is done to the copy is not done to the data
    before = mdata["rna"].X.copy()
    copy.mdata["rna"].layers["log"].data[:] = 0
    np.testing.assert_array_equal(mdata["rna"].layers["log"].toarray(), before)


def test_hidden_features_are_cut_out_of_all_that_names_them(mdata: md.MuData):
    names = mdata["rna"].var_names
    links = pd.DataFrame({"rna": names[:5], "protein": mdata["protein"].var_names[:5]})
    mask = np.arange(30) % 3 > 0
    arguments = {"links": links, "mask_var": {"rna": mask}, "counts": "counts"}
    copy = blinded(mdata, NAMES, arguments, [names[1], names[4]], random_state=0)
    kept = ~names.isin([names[1], names[4]])
    assert copy.mdata["rna"].var_names.tolist() == names[kept].tolist()
    assert copy.mdata["rna"].layers["counts"].shape == (60, 28)
    assert copy.arguments["links"]["rna"].tolist() == names[[0, 2, 3]].tolist()
    np.testing.assert_array_equal(copy.arguments["mask_var"]["rna"], mask[kept])
    assert copy.mdata["protein"].n_vars == 20
    assert len(arguments["links"]) == 5


def test_pairs_get_the_names_of_the_copy(mdata: md.MuData):
    for m in NAMES:
        mdata[m].obs_names = [f"cell_{i}" for i in mdata.uns["truth"][m]["cell"]]
        mdata[m].obs["known"] = mdata.uns["truth"][m]["cell"] < 12
    copy = blinded(mdata, NAMES, {"pairs": "known"}, [], random_state=0)
    pairs = copy.arguments["pairs"]
    assert len(pairs) == 12
    cells = [mdata.uns["truth"][m]["cell"][copy.rows[m][copy.mdata[m].obs_names.get_indexer(pairs[m])]] for m in NAMES]
    np.testing.assert_array_equal(*cells)
    assert sorted(cells[0]) == list(range(12))


def test_weights_of_partners_come_along(mdata: md.MuData):
    cells = {m: mdata[m].obs_names[[3, 3, 5, 7, 8]] for m in NAMES}
    table = pd.DataFrame({NAMES[0]: cells[NAMES[0]], NAMES[1]: cells[NAMES[1]][[0, 4, 1, 2, 3]]})
    table["weight"] = [0.2, 0.4, 0.6, 0.8, 1.0]
    copy = blinded(mdata, NAMES, {"pairs": table}, [], random_state=0)
    found = copy.arguments["pairs"]
    assert found["weight"].tolist() == table["weight"].tolist()
    for m in NAMES:
        back = mdata[m].obs_names[copy.rows[m][copy.mdata[m].obs_names.get_indexer(found[m])]]
        assert back.tolist() == table[m].tolist()


def test_what_earlier_alignments_wrote_is_not_there(mdata: md.MuData):
    """Their columns of `var` would be in the way of the copy's own; a user's stay."""
    columns = list(mdata["rna"].var)
    for key in ("scmmgan", "other"):
        smm.tl.align(mdata, *NAMES, links="gene", method="coupling", key_added=key, progress_bar=False)
    assert {"scmmgan_evidence", "other_evidence_q"} < set(mdata["rna"].var)
    mdata["rna"].var["mine_evidence"] = 1.0
    copy = blinded(mdata, NAMES, {}, [], random_state=0).mdata
    assert list(copy["rna"].var) == [*columns, "mine_evidence"]
    smm.tl.align(copy, *NAMES, links="gene", method="coupling", progress_bar=False)
