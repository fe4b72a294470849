import mudata
import numpy as np
import pytest

import scmmgan as smm
from scmmgan.data import derived as _derived
from scmmgan.data.keys import Keys

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

KEYS = Keys()


@pytest.fixture(scope="module")
def trained() -> mudata.MuData:
    mdata = smm.datasets.toy(n_cells=60, n_linked=8)
    smm.tl.align(mdata, links="gene", method="coupling")
    return mdata


def slots(mdata):
    return {
        ("rna", "obs", "scmmgan_score"): np.arange(mdata["rna"].n_obs, dtype=float),
        ("protein", "var", "scmmgan_score"): np.ones(mdata["protein"].n_vars),
        ("rna", "obsm", "scmmgan_places"): np.zeros((mdata["rna"].n_obs, 2)),
    }


def test_written_recorded_and_kept_through_a_file(trained, tmp_path):
    mdata = trained.copy()
    _derived.write(mdata, slots(mdata), KEYS, uns={"table": np.arange(3)})
    mdata.update()
    mdata.write(tmp_path / "a.h5mu")
    again = mudata.read(tmp_path / "a.h5mu")
    assert again["rna"].obs["scmmgan_score"].tolist() == list(range(again["rna"].n_obs))
    assert again.uns["scmmgan"]["table"].tolist() == [0, 1, 2]
    # what a tool wrote it may write again, also after reading
    _derived.write(again, slots(again), KEYS)
    smm.tl.align(again, links="gene", method="coupling")
    assert "scmmgan_score" not in again["rna"].obs
    assert "scmmgan_score" not in again["protein"].var
    assert "scmmgan_places" not in again["rna"].obsm
    assert not [c for c in (*again.obs, *again.var) if "scmmgan_score" in c]
    assert not {"table", "derived"} & set(again.uns["scmmgan"])


def test_a_users_own_column_is_not_replaced(trained):
    mdata = trained.copy()
    mdata["rna"].obs["scmmgan_score"] = 7.0
    with pytest.raises(ValueError, match="scmmgan_score"):
        _derived.write(mdata, slots(mdata), KEYS)
    assert (mdata["rna"].obs["scmmgan_score"] == 7).all()
    assert "scmmgan_places" not in mdata["rna"].obsm
    assert "derived" not in mdata.uns["scmmgan"]


def test_results_that_the_next_alignment_would_read_are_not_deleted():
    mdata = smm.datasets.toy(n_cells=60, n_linked=8)
    smm.tl.align(mdata, links="gene", method="coupling")
    smm.tl.transfer(mdata, "protein", "rna", obs="cell_type")
    labels = {"rna": "cell_type", "protein": "scmmgan_rna_cell_type"}
    with pytest.raises(ValueError, match="is read and would be replaced"):
        smm.tl.align(mdata, links="gene", labels=labels, method="coupling")
    smm.tl.align(mdata, links="gene", labels=labels, key_added="second", method="coupling")
    assert "scmmgan_rna_cell_type" in mdata["protein"].obs


def test_a_view_is_refused(trained):
    view = trained[:, :]
    with pytest.raises(ValueError, match="view"):
        smm.tl.match(view, "rna", "protein")
    assert view.is_view
