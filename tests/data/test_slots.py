"""What an alignment leaves in the MuData, and what survives a file. Nothing here depends on the quality of the map."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm
from scmmgan.data import slots as _slots
from scmmgan.data.keys import FORMAT, Keys
from scmmgan.data.modality import layers_of
from scmmgan.data.read import given
from scmmgan.model.coupling import couple
from scmmgan.model.evidence import populations
from scmmgan.model.problem import Problem
from scmmgan.model.space.domain import Domain

FOUND: dict[tuple, Any] = {}


def once(function: Callable) -> Callable:
    """The same result for the same problem, which many of these tests begin with."""

    def wrapped(problem: Problem, domains: Mapping[str, Domain], *rest: Any, **settings: Any) -> Any:
        cells = [(m, hashlib.sha256(d.x.tobytes()).hexdigest()) for m, d in domains.items()]
        key = (function, problem.fingerprint, *cells, *settings.items())
        if key not in FOUND:
            FOUND[key] = function(problem, domains, *rest, **settings)
        return deepcopy(FOUND[key])

    return wrapped


COUPLE, DIAGNOSE = once(couple.couple), once(populations.diagnose)


@pytest.fixture(autouse=True)
def _quick(few_tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Couplings and evidence of some kind: looking for good ones takes most of the time."""
    monkeypatch.setattr("scmmgan.model.coupling.gromov.N_STARTS", 2)
    monkeypatch.setattr("scmmgan.model.coupling.gromov.N_POLISHED", 1)
    monkeypatch.setattr("scmmgan.model.evidence.heldout.FOLDS", 2)
    monkeypatch.setattr(couple, "couple", COUPLE)
    monkeypatch.setattr(populations, "diagnose", DIAGNOSE)


def toy(n_cells: int = 60, **arguments: Any) -> md.MuData:
    # fewer links than can be held out: nothing here depends on whether they support the map
    return smm.datasets.toy(n_cells=n_cells, **{"n_features": [30, 20], "n_linked": 8, **arguments})


@pytest.fixture
def small() -> md.MuData:
    """60 cells, not aligned: rna with 30 and protein with 20 features, 8 of them linked."""
    return toy()


@pytest.fixture(scope="module")
def _small_aligned() -> md.MuData:
    mdata = toy()
    align(mdata, method="scmmgan", max_steps=10)
    return mdata


@pytest.fixture
def small_aligned(_small_aligned: md.MuData) -> md.MuData:
    return _small_aligned.copy()


def align(mdata: md.MuData, *names: str, **arguments: Any) -> md.MuData | None:
    return smm.tl.align(mdata, *names, **{"links": "gene", "method": "coupling", "progress_bar": False, **arguments})


TRAINED = {"method": "scmmgan", "max_steps": 3}


def shared() -> md.MuData:
    return toy(shared_genes=True, n_features=[60, 60])


def three() -> md.MuData:
    return toy(n_modalities=3, n_features=[30, 20, 25])


# --- names and shapes --------------------------------------------------------------------------------------------


def test_names():
    keys = Keys("k")
    assert (keys.uns, keys.embedding, keys.mapped("b"), keys.plan("b")) == ("k", "X_k", "k_b", "k_plan_b")
    assert keys.landmark == "k_landmark"
    assert Keys().embedding == "X_scmmgan"


def test_every_slot(small_aligned: md.MuData):
    for name, target in (("rna", "protein"), ("protein", "rna")):
        adata, other = small_aligned[name], small_aligned[target]
        assert set(adata.obsm) == {"X_scmmgan", f"scmmgan_{target}", f"scmmgan_plan_{target}"}
        assert set(adata.obs) - {"cell_type", "gradient"} == {
            f"scmmgan_{column}" for column in ("landmark", "unmatched", "ambiguous")
        }
        assert layers_of(adata) == list(adata.varm) == list(adata.uns) == []
        mapped = adata.obsm[f"scmmgan_{target}"]
        assert type(mapped) is np.ndarray
        assert mapped.dtype == np.float32
        assert mapped.shape == (adata.n_obs, other.n_vars)
        assert adata.obsm["X_scmmgan"].shape == (60, 50)
        assert adata.obsm["X_scmmgan"].dtype == np.float32
        assert adata.obs["scmmgan_ambiguous"].dtype == bool
        plan = adata.obsm[f"scmmgan_plan_{target}"]
        assert sp.issparse(plan)
        np.testing.assert_allclose(np.asarray(plan.sum(1)).ravel(), 1, atol=1e-5)
        assert np.diff(sp.csr_matrix(plan).indptr).max() <= 32
    record = small_aligned.uns["scmmgan"]
    core = {"format", "params", "features", "landmarks", "history", "diagnosis", "model", "fingerprint"}
    assert set(record) == {*core, "digest"}
    assert set(record["digest"]) == core
    assert set(record["fingerprint"]) == {"rna", "protein"}
    assert record["format"] == FORMAT
    for name in ("rna", "protein"):
        assert record["features"][name].tolist() == small_aligned[name].var_names.tolist()
    config = json.loads(record["model"]["config"])
    assert config["modalities"] == ["rna", "protein"]
    assert config["widths"] == {"rna": 30, "protein": 20}
    for name in ("rna", "protein"):
        assert config["var_names"][name] == small_aligned[name].var_names.tolist()
        fields = set(record["model"]["transforms"][name])
        assert fields == {"mean", "sd", "encoded", "encoder", "decoder", "scale", "penalty", "lowest"}
    assert len({len(v) for v in record["history"].values()}) == 1


@pytest.mark.parametrize("n_modalities", [2, 3])
def test_landmarks(n_modalities: int):
    """Every cell has one, numbered as the columns of plans into its modality, by the cell that stands for it."""
    mdata = toy() if n_modalities == 2 else three()
    align(mdata)
    for name, adata in mdata.mod.items():
        label, names = adata.obs["scmmgan_landmark"], mdata.uns["scmmgan"]["landmarks"][name]
        assert label.dtype == np.int32
        assert sorted(set(label)) == list(range(30))
        assert len(set(names)) == 30
        # k-means: a centroid's nearest cell lies in its cluster
        assert label[names].tolist() == list(range(30))
        for other in mdata.mod:
            if other != name:
                assert mdata[other].obsm[f"scmmgan_plan_{name}"].shape == (60, 30)


def test_landmarks_of_the_cells_that_are_left(small_aligned: md.MuData):
    part = small_aligned["rna"][20:40]
    assert part.obs["scmmgan_landmark"].tolist() == small_aligned["rna"].obs["scmmgan_landmark"].tolist()[20:40]


def test_params_say_what_was_used(small_aligned: md.MuData):
    params = small_aligned.uns["scmmgan"]["params"]
    assert params["modalities"].tolist() == ["rna", "protein"]
    assert params["links"] == "gene"
    assert params["weights"] == {
        "adversarial": 0.5,
        "cycle": 1,
        "anchors": 5,
        "links": 1,
        "geometry": 0.1,
        "identity": 10,
        "consistency": 0,
    }
    assert (params["max_steps"], params["batch_size"], params["lr"], params["random_state"]) == (10, 128, 2e-3, 0)
    assert params["device"] in ("cpu", "cuda")
    assert params["shared_space"] is False
    # the steps that were taken, not that they were left to what is known
    assert params["smooth"] == {"rna": 1, "protein": 1}
    assert len(params["known"]) == 64
    assert params["coupling"]["rna"]["protein"]["kind"] == "links"
    assert params["versions"]["scmmgan"] == smm.__version__
    assert list(params["seconds"]) == ["reading", "graph", "coupling", "evidence", "training", "scores", "writing"]
    assert all(0 < seconds < 600 for seconds in params["seconds"].values())


def test_embedding_of_the_whole(small_aligned: md.MuData):
    joint = small_aligned.obsm["X_scmmgan"]
    for name in ("rna", "protein"):
        at = small_aligned.obs_names.get_indexer(small_aligned[name].obs_names)
        np.testing.assert_array_equal(joint[at], small_aligned[name].obsm["X_scmmgan"])
    assert np.isfinite(joint).all()


def test_whole_embedding_in_another_order(small: md.MuData):
    """The MuData's own order of cells counts."""
    a, b = small["rna"].copy(), small["protein"].copy()
    mdata = md.MuData({"protein": b, "rna": a})
    align(mdata, "rna", "protein")
    at = mdata.obs_names.get_indexer(mdata["rna"].obs_names)
    assert at[0] == 60
    np.testing.assert_array_equal(mdata.obsm["X_scmmgan"][at], mdata["rna"].obsm["X_scmmgan"])


def test_cell_names_in_two_modalities(small: md.MuData, caplog: pytest.LogCaptureFixture):
    parts = {name: adata.copy() for name, adata in small.mod.items()}
    for adata in parts.values():
        adata.obs_names = [f"cell{i}" for i in range(60)]
    mdata = md.MuData(parts)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        align(mdata)
    assert "X_scmmgan" not in mdata.obsm
    assert "get.embedding" in caplog.text
    found = smm.get.embedding(mdata)
    assert found.obs_names.is_unique
    assert found.obs_names[0] == "rna:cell0"
    assert found.n_obs == 120


def test_whole_embedding_needs_all_cells():
    mdata = three()
    align(mdata, "rna", "protein")
    assert "X_scmmgan" not in mdata.obsm
    assert list(mdata["atac"].obsm) == []
    align(mdata)
    assert mdata.obsm["X_scmmgan"].shape == (180, 75)


# --- layers and chosen features ----------------------------------------------------------------------------------


def test_equal_names_go_to_layers_too():
    mdata = shared()
    align(mdata, links="var_names")
    for name, target in (("rna", "protein"), ("protein", "rna")):
        in_obsm, in_layers = (getattr(mdata[name], where)[f"scmmgan_{target}"] for where in ("obsm", "layers"))
        np.testing.assert_array_equal(in_obsm, in_layers)
        assert not np.shares_memory(in_obsm, in_layers)
        assert mdata[name].layers[f"scmmgan_{target}"].shape == (60, 60)
        assert type(mdata[name].layers[f"scmmgan_{target}"]) is np.ndarray
        assert mdata[name].layers[f"scmmgan_{target}"].dtype == np.float32


def test_equal_names_in_another_order_do_not():
    mdata = shared()
    parts = {"rna": mdata["rna"].copy(), "protein": mdata["protein"][:, ::-1].copy()}
    mdata = md.MuData(parts)
    align(mdata, links="var_names")
    assert "scmmgan_protein" in mdata["rna"].obsm
    assert layers_of(mdata["rna"]) == []
    names = mdata.uns["scmmgan"]["features"]["protein"]
    assert names.tolist() == mdata["protein"].var_names.tolist()


def test_all_features_in_another_order_do_not():
    mdata = shared()
    wanted = mdata["rna"].var_names[::-1].tolist()
    align(mdata, links="var_names", features=wanted)
    assert layers_of(mdata["rna"]) == []
    whole = shared()
    align(whole, links="var_names")
    got = pd.DataFrame(mdata["rna"].obsm["scmmgan_protein"], columns=mdata.uns["scmmgan"]["features"]["protein"])
    expected = pd.DataFrame(whole["rna"].layers["scmmgan_protein"], columns=whole["rna"].var_names)
    assert got.columns.tolist() == wanted
    np.testing.assert_allclose(got[expected.columns], expected, atol=1e-5)


def test_chosen_features(small: md.MuData):
    whole = small.copy()
    align(whole)
    names = small["protein"].var_names
    wanted = [names[7], names[2], names[11]]
    align(small, features={"protein": wanted, "rna": []})
    got = small["rna"].obsm["scmmgan_protein"]
    np.testing.assert_allclose(got, whole["rna"].obsm["scmmgan_protein"][:, [7, 2, 11]], atol=1e-5)
    assert small.uns["scmmgan"]["features"]["protein"].tolist() == wanted
    assert "scmmgan_rna" not in small["protein"].obsm
    assert len(small.uns["scmmgan"]["features"]["rna"]) == 0
    # one name is a name, not letters
    align(small, features={"protein": wanted[0]})
    assert small["rna"].obsm["scmmgan_protein"].shape == (60, 1)


def test_too_many_values_are_not_written(
    small: md.MuData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(_slots, "MAX_WRITTEN", 60 * 20)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        align(small)
    # protein's 20 features fit, rna's 30 do not
    assert small["rna"].obsm["scmmgan_protein"].shape == (60, 20)
    assert "scmmgan_rna" not in small["protein"].obsm
    assert "60 × 30 mapped values for 'rna' are not written" in caplog.text
    with pytest.raises(ValueError, match="which `features`"):
        smm.get.mapped(small, "protein", "rna")
    assert smm.get.mapped(small, "protein", "rna", features=small["rna"].var_names[:4]).shape == (60, 4)
    # asked for, they are written whatever their number
    align(small, features={"rna": small["rna"].var_names.tolist()})
    assert small["protein"].obsm["scmmgan_rna"].shape == (60, 30)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ({"protein": ["protein_gene_00"]}, KeyError, "feature in 'protein' 'protein_gene_00'.*Closest"),
        (["protein_gene_0"], KeyError, "feature in 'rna' 'protein_gene_0'.*dict"),
        ({"protein": ["protein_gene_0", "protein_gene_0"]}, ValueError, "twice"),
        ({"atac": ["x"]}, KeyError, r"`features` names modalities \['atac'\]"),
        (3, TypeError, "`features` must be names of features, one or a list"),
    ],
)
def test_wrong_features(small: md.MuData, fingerprint: Callable, features: Any, error: type[Exception], message: str):
    before = fingerprint(small)
    with pytest.raises(error, match=message):
        align(small, features=features)
    assert fingerprint(small) == before


# --- several alignments ------------------------------------------------------------------------------------------


def test_two_alignments_side_by_side(small: md.MuData, fingerprint: Callable):
    align(small)
    before = fingerprint(small)
    align(small, key_added="other", random_state=1)
    after = fingerprint(small)
    assert {name: after[name] for name in before} == before
    assert set(small.uns) == {"truth", "scmmgan", "other"}
    assert {"X_other", "other_protein", "other_plan_protein"} <= set(small["rna"].obsm)
    first, second = (smm.get.mapped(small, "rna", "protein", key=key).X for key in ("scmmgan", "other"))
    assert not np.array_equal(first, second)


def test_second_alignment_replaces_the_first(small: md.MuData):
    align(small)
    align(small, features={"protein": small["protein"].var_names[:3].tolist(), "rna": []}, random_state=1)
    assert set(small["protein"].obsm) == {"X_scmmgan", "scmmgan_plan_rna"}
    assert [c for c in small["protein"].obs if c.startswith("scmmgan")] == [
        f"scmmgan_{column}" for column in ("landmark", "unmatched", "ambiguous")
    ]
    assert small["rna"].obsm["scmmgan_protein"].shape == (60, 3)


def test_second_alignment_of_fewer_modalities_leaves_nothing_behind():
    mdata = three()
    align(mdata)
    assert set(mdata["atac"].obsm) == {
        *("X_scmmgan", "scmmgan_rna", "scmmgan_protein"),
        *("scmmgan_plan_rna", "scmmgan_plan_protein"),
    }
    align(mdata, "rna", "protein")
    assert list(mdata["atac"].obsm) == []
    assert set(mdata["atac"].obs) == {"cell_type", "gradient"}
    assert set(mdata["rna"].obsm) == {"X_scmmgan", "scmmgan_protein", "scmmgan_plan_protein"}
    assert "X_scmmgan" not in mdata.obsm
    assert smm.get.embedding(mdata).n_obs == 120


def test_layers_of_the_first_go_when_the_second_needs_none():
    mdata = shared()
    align(mdata, links="var_names")
    align(mdata, links="var_names", features=mdata["rna"].var_names[:5].tolist())
    assert layers_of(mdata["rna"]) == []
    assert mdata["rna"].obsm["scmmgan_protein"].shape == (60, 5)


# --- nothing that is not ours is replaced ------------------------------------------------------------------------


def test_other_data_is_not_replaced(small: md.MuData, fingerprint: Callable):
    small["rna"].obsm["X_pca"] = np.ones((60, 2))
    small["protein"].obsm["mine_rna"] = np.ones((60, 2))
    small["protein"].layers["ours_rna"] = np.ones((60, 20))
    before = fingerprint(small)
    for key, message in (
        ("truth", r"`mdata.uns\['truth'\]` holds something else than an alignment"),
        ("pca", "'rna' has 'X_pca' already"),
        ("mine", "'protein' has 'mine_rna' already"),
        ("ours", "'protein' has 'ours_rna' already"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*another `key_added`"):
            align(small, key_added=key)
        assert fingerprint(small) == before


def test_what_is_read_is_not_replaced():
    mdata = shared()
    align(mdata, links="var_names")
    with pytest.raises(ValueError, match="'scmmgan_protein' of 'rna' is read and would be replaced"):
        align(mdata, links="var_names", layer={"rna": "scmmgan_protein"})
    with pytest.raises(ValueError, match="'X_scmmgan' of 'rna' is read and would be replaced"):
        align(mdata, links=None, use_rep="X_scmmgan")
    # under another name it is data as any other
    align(mdata, links="var_names", layer={"rna": "scmmgan_protein"}, key_added="again")
    assert "again_protein" in mdata["rna"].layers


# --- unmatched cells ---------------------------------------------------------------------------------------------


def unmatched_of(mdata: md.MuData) -> dict[str, list[str]]:
    return {name: [c for c in adata.obs if "unmatched" in c] for name, adata in mdata.mod.items()}


def test_unmatched_cells_are_written(small_aligned: md.MuData):
    assert Keys("k").unmatched() == "k_unmatched"
    assert Keys("k").unmatched("b") == "k_unmatched_b"
    for adata in small_aligned.mod.values():
        values = adata.obs["scmmgan_unmatched"]
        assert values.dtype == np.float32
        assert values.between(0, 1).all()
        assert 0 < values.mean() < 0.5


def test_unmatched_cells_name_the_target_where_there_are_several():
    mdata = three()
    align(mdata)
    for name, columns in unmatched_of(mdata).items():
        assert columns == [f"scmmgan_unmatched_{b}" for b in mdata.mod if b != name]
    # other names again for two of them; what the third has is deleted
    align(mdata, "atac", "rna")
    assert unmatched_of(mdata) == {"rna": ["scmmgan_unmatched"], "protein": [], "atac": ["scmmgan_unmatched"]}


def test_unmatched_cells_go_with_the_alignment_that_flagged_them(small: md.MuData):
    """Shapes alone flag nothing; the copies that MuData keeps of the columns go, too."""
    align(small)
    align(small, key_added="other")
    small.pull_obs()
    assert {"rna:scmmgan_unmatched", "protein:other_unmatched"} <= set(small.obs)
    align(small, links=None)
    assert unmatched_of(small) == {"rna": ["other_unmatched"], "protein": ["other_unmatched"]}
    assert sorted(c for c in small.obs if "unmatched" in c) == ["protein:other_unmatched", "rna:other_unmatched"]
    align(small, labels="cell_type", links=None)
    assert unmatched_of(small)["rna"] == ["other_unmatched", "scmmgan_unmatched"]


def test_copies_of_columns_where_features_are_shared():
    mdata = md.MuData({m: adata.copy() for m, adata in shared().mod.items()}, axis=1)
    align(mdata, links="auto")
    mdata.pull_obs()
    assert "scmmgan_unmatched" in mdata.obs
    align(mdata, links=None)
    mdata.update()
    assert [c for c in mdata.obs if "unmatched" in c] == []


def test_a_column_of_the_user_is_not_replaced(small: md.MuData, fingerprint: Callable):
    small["protein"].obs["scmmgan_unmatched"] = "mine"
    before = fingerprint(small)
    for links in ("gene", None):
        with pytest.raises(ValueError, match=r"'protein' has 'scmmgan_unmatched' already.*another `key_added`"):
            align(small, links=links)
        assert fingerprint(small) == before
    align(small, key_added="other")
    assert (small["protein"].obs["scmmgan_unmatched"] == "mine").all()


@pytest.mark.parametrize("column", ["landmark", "ambiguous"])
def test_other_columns_of_the_user_are_not_replaced(small: md.MuData, fingerprint: Callable, column: str):
    small["rna"].obs[f"scmmgan_{column}"] = "mine"
    before = fingerprint(small)
    with pytest.raises(ValueError, match=f"'rna' has 'scmmgan_{column}' already.*another `key_added`"):
        align(small)
    assert fingerprint(small) == before


@pytest.mark.parametrize("reload", [False, True])
def test_a_column_beside_an_alignment_that_flagged_nothing(small: md.MuData, reload: bool, tmp_path: Path):
    """The alignment is there, but the column is not its own."""
    align(small, links=None)
    small["rna"].obs["scmmgan_unmatched"] = "mine"
    if reload:
        small = reread(small, tmp_path, "h5mu")
    with pytest.raises(ValueError, match="'rna' has 'scmmgan_unmatched' already"):
        align(small)
    assert (small["rna"].obs["scmmgan_unmatched"] == "mine").all()
    # its own is replaced, from a file as well
    del small["rna"].obs["scmmgan_unmatched"]
    align(small)
    (tmp_path / "again").mkdir()
    small = reread(small, tmp_path / "again", "h5mu") if reload else small
    align(small, random_state=1)
    assert small["rna"].obs["scmmgan_unmatched"].dtype == np.float32


def test_columns_of_modalities_that_join_later():
    mdata = three()
    align(mdata, "rna", "protein")
    mdata["atac"].obsm["scmmgan_rna"] = np.ones((60, 2))
    with pytest.raises(ValueError, match="'atac' has 'scmmgan_rna' already"):
        align(mdata)
    del mdata["atac"].obsm["scmmgan_rna"]
    mdata["rna"].obs["scmmgan_unmatched_atac"] = "mine"
    with pytest.raises(ValueError, match="'rna' has 'scmmgan_unmatched_atac' already"):
        align(mdata)
    assert (mdata["rna"].obs["scmmgan_unmatched_atac"] == "mine").all()


# --- files -------------------------------------------------------------------------------------------------------


def same(first: Any, second: Any, where: str = "") -> None:
    """Equal values, whatever container the format gives back."""
    if isinstance(first, Mapping):
        assert set(map(str, first)) == set(map(str, second)), where
        for key in first:
            same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, pd.DataFrame):
        pd.testing.assert_frame_equal(first, second, check_dtype=False, check_categorical=False, obj=where)
    elif sp.issparse(first):
        assert sp.issparse(second), where
        assert first.dtype == second.dtype, where
        assert (first != second).nnz == 0, where
    else:
        a, b = np.asarray(first), np.asarray(second)
        assert a.shape == b.shape, where
        if a.dtype.kind == "f":
            assert a.dtype == b.dtype, where
        np.testing.assert_array_equal(a, b, err_msg=where)


def reread(mdata: md.MuData, path: Path, fmt: str) -> md.MuData:
    if fmt == "h5mu":
        mdata.write(path / "x.h5mu")
        return md.read_h5mu(path / "x.h5mu")
    mdata.write_zarr(path / "x.zarr")
    return md.read_zarr(path / "x.zarr")


def check_equal(mdata: md.MuData, again: md.MuData) -> None:
    same(mdata.uns, again.uns)
    same(dict(mdata.obsm), dict(again.obsm))
    for name, adata in mdata.mod.items():
        for slot in ("layers", "obsm", "obs", "var", "X"):
            value, other = getattr(adata, slot), getattr(again[name], slot)
            if slot in ("layers", "obsm"):
                value, other = dict(value), dict(other)
            same(value, other, f"{name}.{slot}")


def check_usable(again: md.MuData, names: list[str], key: str = "scmmgan") -> None:
    """Everything that reads an alignment works on the file's content, and a further one can be added."""
    model = smm.get.model(again, key=key).aligner
    assert model.modalities == names
    assert smm.get.embedding(again, key=key).n_obs == sum(again[m].n_obs for m in names)
    assert len(smm.get.history(again, key=key)) >= 1
    for source in names:
        for target in names:
            if source != target:
                written = smm.get.mapped(again, source, target, key=key)
                some = written.var_names[[5, 1]]
                decoded = smm.get.mapped(again, source, target, features=some, key=key)
                np.testing.assert_allclose(decoded.X, written[:, some].X, atol=1e-4)


CASES = {
    "two": (lambda: toy(n_linked=15), TRAINED),
    "three": (three, {}),
    "layers": (shared, {"links": "var_names", **TRAINED}),
    "sparse": (lambda: sparse_toy(), {}),
    "spatial": (lambda: toy(spatial=True), {"spatial": "spatial", **TRAINED}),
    "geometry": (toy, {"links": None}),
}


def sparse_toy() -> md.MuData:
    mdata = toy()
    for adata in mdata.mod.values():
        adata.X = sp.csr_matrix(adata.X)
    return mdata


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c == "sparse")) for c in CASES])
def test_round_trip(case: str, tmp_path: Path):
    make, arguments = CASES[case]
    mdata = make()
    align(mdata, **arguments)
    again = reread(mdata, tmp_path, "h5mu")
    check_equal(mdata, again)
    check_usable(again, list(mdata.mod))
    if case == "spatial":
        smm.pl.history(again, show=False)
        smm.pl.alignment(again, show=False)
        names = again["protein"].var_names[:2].tolist()
        smm.pl.spatial_map(again, names, source="rna", target="protein", show=False)
    if case == "three":
        return
    align(again, **arguments, key_added="again")
    # the same seed on the same values
    for source, target in (("rna", "protein"), ("protein", "rna")):
        first, second = (smm.get.mapped(again, source, target, key=key).X for key in ("scmmgan", "again"))
        np.testing.assert_array_equal(first, second)
    if case == "two":
        (tmp_path / "second").mkdir()
        check_equal(again, reread(again, tmp_path / "second", "h5mu"))


@pytest.mark.parametrize(
    ("a", "b", "fmt"), [("my mod.x", "d>e", "h5mu"), pytest.param("ü (1)", "key", "zarr", marks=pytest.mark.slow)]
)
def test_round_trip_of_every_argument_and_of_odd_names(a: str, b: str, fmt: str, tmp_path: Path):
    """Arguments are stored as used, in whatever form they came, and those that are stored serve again."""
    plain = toy(80, n_linked=12)
    parts = {new: adata.copy() for new, adata in zip((a, b), plain.mod.values())}
    for name, adata in parts.items():
        adata.var_names = [f"{i}/{name};'\"> ü" for i in range(adata.n_vars)]
        adata.obs_names = [f"{name}/{i}" for i in range(80)]
    mdata = md.MuData(parts)
    mdata[a].layers["log"] = mdata[a].X.copy()
    links = smm.pp.link_features(mdata, a, b, on="gene")
    links = pd.DataFrame(
        {
            a: links[a].astype("string"),
            b: pd.Categorical(links[b]),
            "weight": np.arange(1, 13),
            "sign": [1] * 11 + [-1],
            "date": pd.Timestamp("2020-01-01"),
            "a/b": None,
            3: [{"x"}] * 12,
        }
    )
    truth = dict(zip((a, b), plain.uns["truth"].values()))
    cells = {m: mdata[m].obs_names[np.argsort(truth[m]["cell"])][:27].to_list() for m in (a, b)}
    pairs = pd.DataFrame({**cells, "a/b": [{"x"}] * 27, 3: pd.Timestamp("2020-01-01")})
    pairs.loc[25, a] = None
    pairs.loc[26, b] = np.nan
    mdata[a].obs["type"] = mdata[a].obs["cell_type"].astype(object).where(np.arange(80) % 3 > 0)
    mdata[a].obs["donor"] = np.repeat([1, 2], 40)
    known = {"labels": {a: "type", b: "cell_type"}, "batch": {a: "donor"}}
    align(
        mdata,
        b,
        a,
        links=links,
        pairs=pairs,
        **known,
        features={a: mdata[a].var_names[:6]},
        layer={a: "log"},
        mask_var={a: np.arange(30) < 20},
        n_pcs={a: np.int64(9)},
        smooth={b: None, a: 1},
        weights={"cycle": np.float32(2)},
        method="scmmgan",
        max_steps=np.int64(4),
        random_state=np.int32(3),
        key_added="my key.1",
    )
    again = reread(mdata, tmp_path, fmt)
    check_equal(mdata, again)
    check_usable(again, [b, a], key="my key.1")
    assert again.uns["my key.1"]["format"] == FORMAT
    params = again.uns["my key.1"]["params"]
    assert params["n_pcs"][a] == 9
    assert params["smooth"] == {b: 0, a: 1}
    assert params["weights"]["cycle"] == 2
    assert (params["max_steps"], params["random_state"]) == (4, 3)
    assert list(params["links"].columns) == [b, a, "weight", "sign"]
    assert params["links"][a].tolist() == links[a].tolist()
    assert list(params["pairs"].columns) == [b, a]
    assert params["pairs"][a].tolist()[:25] == cells[a][:25]
    unmatched = again[a].obs["my key.1_unmatched"]
    assert unmatched.dtype == np.float32
    assert unmatched[cells[a][:25]].max() == 0
    assert {name: params[name] for name in known} == {**known, "batch": {a: "donor", b: "None"}}
    if fmt == "h5mu":
        per = (*known, "features", "layer", "mask_var", "n_pcs", "smooth")
        # files hold no None
        used: dict[str, Any] = {name: {m: given(value) for m, value in params[name].items()} for name in per}
        used |= {name: params[name] for name in ("links", "pairs", "weights", "method", "max_steps", "random_state")}
        align(again, b, a, **used, key_added="second")
        np.testing.assert_array_equal(again[a].obsm["X_second"], mdata[a].obsm["X_my key.1"])


def test_round_trip_of_a_name_that_begins_as_another(tmp_path: Path):
    small = toy(50, n_features=[20, 16])
    mdata = md.MuData({new: adata.copy() for new, adata in zip(("b", "b:x"), small.mod.values())})
    align(mdata)
    again = reread(mdata, tmp_path, "h5mu")
    check_equal(mdata, again)
    check_usable(again, ["b", "b:x"])


def test_round_trip_of_pairs_by_number(small: md.MuData, tmp_path: Path):
    for m in small.mod:
        small.mod[m].obs_names = [str(i) for i in range(60)]
    small = md.MuData(dict(small.mod))
    pairs = pd.DataFrame({"rna": range(30), "protein": range(30, 60)}).astype("Int64")
    pairs.loc[4, "rna"] = pd.NA
    dtypes = ("Int64", "float64", "category")
    for dtype in dtypes:
        align(small, pairs=pairs.astype(dtype), key_added=dtype)
    again = reread(small, tmp_path, "h5mu")
    check_equal(small, again)
    for dtype in dtypes:
        align(again, pairs=again.uns[dtype]["params"]["pairs"], key_added="second")
        np.testing.assert_array_equal(again["rna"].obsm["X_second"], small["rna"].obsm[f"X_{dtype}"])


def test_nothing_that_files_cannot_hold(small_aligned: md.MuData):
    """Str, bool, numbers, arrays, tables with string columns, dicts with str keys without "/"."""

    def wrong(value: Any, where: str) -> list[str]:
        if isinstance(value, Mapping):
            found = [f"{where}: key {key!r}" for key in value if not isinstance(key, str) or "/" in key]
            return found + [w for key, entry in value.items() for w in wrong(entry, f"{where}/{key}")]
        if isinstance(value, np.ndarray):
            return [where] if value.dtype == object and not all(isinstance(v, str) for v in value.ravel()) else []
        return [] if isinstance(value, str | bool | int | float | np.number | pd.DataFrame) else [f"{where}: {value!r}"]

    assert wrong(small_aligned.uns["scmmgan"], "uns") == []


# --- reading -----------------------------------------------------------------------------------------------------


OLD = [None, FORMAT - 1, FORMAT + 1, "2.0"]


def aged(mdata: md.MuData, number: Any) -> md.MuData:
    """The same alignment, as a version of other slots would have left it: earlier ones knew no digests."""
    later = isinstance(number, int) and number > FORMAT
    left_out = {"format"} if later else {"format", "digest", "fingerprint"}
    record = {name: value for name, value in mdata.uns["scmmgan"].items() if name not in left_out}
    mdata.uns["scmmgan"] = record if number is None else record | {"format": number}
    return mdata


READERS: dict[str, Callable[[md.MuData], Any]] = {
    "record": lambda mdata: _slots.record(mdata, Keys()),
    "config": lambda mdata: _slots.config(mdata, Keys()),
    "check_aligned": lambda mdata: _slots.check_aligned(mdata, ["rna"], Keys()),
    "model_space": lambda mdata: _slots.model_space(mdata, "rna", "protein", Keys()),
    "mapped": lambda mdata: smm.get.mapped(mdata, "rna", "protein"),
    "embedding": smm.get.embedding,
    "history": smm.get.history,
    "model": smm.get.model,
    "diagnosis": lambda mdata: smm.get.diagnosis(mdata, "rna", "protein"),
    "coordinates": lambda mdata: smm.get.coordinates(mdata, "rna", "protein"),
    "tl.diagnose": smm.tl.diagnose,
    "tl.match": lambda mdata: smm.tl.match(mdata, "rna", "protein"),
    "tl.transfer": lambda mdata: smm.tl.transfer(mdata, "rna", "protein", obs="cell_type"),
    "tl.cluster": lambda mdata: smm.tl.cluster(mdata, "rna", "protein", n_clusters=3),
    "tl.uncertainty": lambda mdata: smm.tl.uncertainty(mdata, "rna", "protein"),
    "tl.place": lambda mdata: smm.tl.place(mdata, "protein", "rna"),
    "pl.history": lambda mdata: smm.pl.history(mdata, show=False),
}


@pytest.mark.parametrize("reader", READERS)
def test_records_of_another_format(small_aligned: md.MuData, reader: str, fingerprint: Callable):
    """One clear error, whatever is asked for, and nothing is written."""
    for number in OLD if reader == "record" else OLD[:2]:
        before = fingerprint(aged(small_aligned, number))
        message = (
            rf"'scmmgan' was written by another version of scmmgan \(format {number}; this one reads {FORMAT}\). Align"
        )
        with pytest.raises(ValueError, match=message):
            READERS[reader](small_aligned)
        assert fingerprint(small_aligned) == before


@pytest.mark.parametrize("number", OLD)
def test_an_alignment_replaces_one_of_another_format(number: Any):
    """With all that it left: slots that are written no more, and what tools made of it."""
    mdata = three()
    align(mdata)
    smm.tl.match(mdata, "rna", "protein")
    aged(mdata, number)
    for name, adata in mdata.mod.items():
        for other in set(mdata.mod) - {name}:
            adata.obsm[f"scmmgan_told_{other}"] = np.ones((60, 2))
    mdata["rna"].obsm["X_mine"] = np.ones((60, 2))
    align(mdata, "rna", "protein")
    assert mdata.uns["scmmgan"]["format"] == FORMAT
    assert set(mdata["rna"].obsm) == {"X_mine", "X_scmmgan", "scmmgan_protein", "scmmgan_plan_protein"}
    assert set(mdata["atac"].obsm) == set()
    for name in mdata.mod:
        left = {c for c in mdata[name].obs if c.startswith("scmmgan")}
        assert left == ({f"scmmgan_{c}" for c in ("landmark", "unmatched", "ambiguous")} if name != "atac" else set())
    assert smm.get.mapped(mdata, "rna", "protein").shape == (60, 20)


def test_a_record_of_another_format_is_no_alignment_of_the_user(small_aligned: md.MuData, fingerprint: Callable):
    """What is read is not replaced, also where an earlier version wrote it."""
    aged(small_aligned, 1)
    before = fingerprint(small_aligned)
    with pytest.raises(ValueError, match="'X_scmmgan' of 'rna' is read and would be replaced"):
        align(small_aligned, links=None, use_rep="X_scmmgan")
    assert fingerprint(small_aligned) == before


def test_records_that_are_not_there(small: md.MuData):
    keys = Keys()
    with pytest.raises(KeyError, match=r"No alignment 'scmmgan' in `mdata.uns` \(keys found: \['truth'\]\).*tl.align"):
        _slots.record(small, keys)
    for other in ("truth", "nothing"):
        with pytest.raises(KeyError, match=f"No alignment '{other}'.*`key`"):
            _slots.record(small, Keys(other))


def test_modalities_that_were_not_aligned():
    mdata = three()
    align(mdata, "rna", "protein")
    with pytest.raises(KeyError, match=r"'atac' is not part of the alignment 'scmmgan' of \['rna', 'protein'\]"):
        _slots.check_aligned(mdata, ["rna", "atac"], Keys())
    with pytest.raises(KeyError, match="No modality 'adt'"):
        _slots.check_aligned(mdata, ["adt"], Keys())
    del mdata["rna"].obsm["X_scmmgan"]
    with pytest.raises(KeyError, match=r"'rna' has no obsm\['X_scmmgan'\].*again"):
        _slots.check_aligned(mdata, ["rna"], Keys())
