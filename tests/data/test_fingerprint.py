"""Readers know whose cells, whose features and which units they are given."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm
from scmmgan.data import fingerprint as _fingerprint
from scmmgan.data import modality as _modality
from scmmgan.data.keys import Keys
from scmmgan.model.problem import Modality
from scmmgan.settings import unpulled

pytestmark = pytest.mark.usefixtures("few_tables_throughout")


def toy(random_state: int = 0, **arguments: Any) -> md.MuData:
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20], spatial=True, random_state=random_state)
    smm.tl.align(mdata, links="gene", method="coupling", progress_bar=False, **arguments)
    return mdata


@pytest.fixture(scope="module")
def _aligned() -> md.MuData:
    mdata = toy()
    smm.tl.uncertainty(mdata, "rna", "protein")
    smm.tl.place(mdata, "protein", "rna")
    return mdata


@pytest.fixture
def aligned(_aligned: md.MuData) -> md.MuData:
    return _aligned.copy()


def joined(mdata: md.MuData, **changed: ad.AnnData) -> md.MuData:
    """The object with other modalities, and its `uns`."""
    with unpulled():
        out = md.MuData({name: changed.get(name, mdata[name]) for name in mdata.mod})
    out.uns = mdata.uns
    return out


def genes(mdata: md.MuData, n: int = 3) -> list[str]:
    return [str(name) for name in mdata["protein"].var_names[:n]]


# readers of cells, and what each gives for cells of rna or protein in the order of now
READERS: dict[str, Callable[[md.MuData], pd.DataFrame]] = {
    "mapped": lambda m: smm.get.mapped(m, "rna", "protein").to_df(),
    "decoded": lambda m: smm.get.mapped(m, "rna", "protein", features=["protein_gene_0", "protein_1"][:1]).to_df(),
    "embedding": lambda m: smm.get.embedding(m).to_df(),
    "coordinates": lambda m: smm.get.coordinates(m, "protein", "rna"),
    "uncertainty": lambda m: smm.get.uncertainty(m, "rna", "protein", features="protein_gene_0").to_df(),
    "summary": lambda m: smm.get.uncertainty_summary(m, "rna", "protein")["features"].drop(columns="detection"),
}
WRITERS: dict[str, Callable[[md.MuData], Any]] = {
    "match": lambda m: smm.tl.match(m, "rna", "protein"),
    "transfer": lambda m: smm.tl.transfer(m, "rna", "protein", obs="cell_type"),
    "place": lambda m: smm.tl.place(m, "protein", "rna"),
    "cluster": lambda m: smm.tl.cluster(m, "rna", "protein", n_clusters=3),
    "importance": lambda m: smm.tl.importance(m, "rna", "protein", features="protein_gene_0", n_cells=5),
    "uncertainty": lambda m: smm.tl.uncertainty(m, "rna", "protein"),
    "diagnose": lambda m: smm.tl.diagnose(m),
    "correlations": lambda m: smm.tl.correlations(
        m, "rna", "protein", gene=str(m["protein"].var_names[0]), reference="target"
    ),
}
PICTURES: dict[str, Callable[[md.MuData], Any]] = {
    "alignment": lambda m: smm.pl.alignment(m, show=False),
    "spatial_map": lambda m: smm.pl.spatial_map(m, ["protein_gene_0"], source="rna", target="protein", show=False),
    "coordinates": lambda m: smm.pl.coordinates(m, "protein", "rna", show=False),
    "uncertainty": lambda m: smm.pl.uncertainty(m, "rna", "protein", show=False),
}
REREADERS = ("importance", "uncertainty", "diagnose", "correlations")


@pytest.mark.parametrize("reader", READERS)
def test_readers_take_parts_and_other_orders(aligned: md.MuData, reader: str):
    expected = READERS[reader](aligned)
    rng = np.random.default_rng(1)
    parts = {}
    for name, adata in aligned.mod.items():
        features = np.r_[adata.var_names.get_indexer([f"{name}_gene_0"]), rng.permutation(adata.n_vars)]
        features = features[np.sort(np.unique(features, return_index=True)[1])][:12]
        parts[name] = adata[rng.permutation(60)[:40], features[features >= 0]].copy()
    found = READERS[reader](joined(aligned, **parts))
    assert len(found) >= 12
    pd.testing.assert_frame_equal(found, expected.loc[found.index, found.columns], check_column_type=False)


@pytest.mark.parametrize("writer", ["match", "transfer", "cluster"])
def test_tools_take_few_cells(aligned: md.MuData, writer: str):
    few = joined(aligned, rna=aligned["rna"][[7, 3, 50, 11, 12]].copy())
    WRITERS[writer](few)
    one = joined(aligned, rna=aligned["rna"][[7]].copy(), protein=aligned["protein"][[7, 1]].copy())
    if writer != "cluster":
        WRITERS[writer](one)


def test_what_is_written_follows_the_order_of_now(aligned: md.MuData, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scmmgan.model.evidence.correlations.PERMUTATIONS", 4)
    rng = np.random.default_rng(2)
    other = joined(
        aligned,
        rna=aligned["rna"][rng.permutation(60), rng.permutation(30)].copy(),
        protein=aligned["protein"][rng.permutation(60), rng.permutation(20)].copy(),
    )
    for mdata in (aligned, other):
        for name in mdata.mod:
            mdata[name].obs = mdata[name].obs.assign(scmmgan_ambiguous=False)
        for writer in REREADERS:
            WRITERS[writer](mdata) if writer != "correlations" else smm.tl.correlations(
                mdata, "rna", "protein", gene="protein_gene_0", reference="target"
            )
        smm.tl.uncertainty(mdata, "rna", "protein")
    for name in aligned.mod:
        a, b = aligned[name], other[name]
        pd.testing.assert_frame_equal(b.obs.loc[a.obs_names], a.obs)
        pd.testing.assert_frame_equal(b.var.loc[a.var_names], a.var)
    at = other["rna"].obs_names.get_indexer(aligned["rna"].obs_names)
    slot = "scmmgan_uncertainty_plan_protein"
    np.testing.assert_array_equal(
        other["rna"].obsm[slot][at].toarray(), sp.csr_matrix(aligned["rna"].obsm[slot]).toarray()
    )
    a, b = (m.uns["scmmgan"] for m in (aligned, other))
    pd.testing.assert_frame_equal(a["importance"]["rna"]["protein"], b["importance"]["rna"]["protein"])
    pd.testing.assert_frame_equal(
        a["correlations"]["rna"]["protein"]["table"], b["correlations"]["rna"]["protein"]["table"]
    )
    assert set(a["importance"]["rna"]["protein"]["feature"]) == {"protein_gene_0"}


@pytest.mark.parametrize("writer", REREADERS)
@pytest.mark.parametrize("part", ["cells", "features"])
def test_what_needs_all_says_so(aligned: md.MuData, writer: str, part: str, fingerprint: Callable):
    protein = aligned["protein"][:50] if part == "cells" else aligned["protein"][:, :19]
    less = joined(aligned, protein=protein.copy())
    before = fingerprint(less)
    with pytest.raises(ValueError, match=f"of .0 {part} of 'protein' that were aligned .* are gone.*whole object"):
        WRITERS[writer](less)
    assert fingerprint(less) == before


# --- other cells -------------------------------------------------------------------------------------------------


def added(mdata: md.MuData) -> md.MuData:
    rna = mdata["rna"]
    new = ad.AnnData(rna.X[:10].copy(), obs=rna.obs[["cell_type"]].iloc[:10], var=rna.var[[]])
    new.obs_names = [f"new_{i}" for i in range(10)]
    return joined(mdata, rna=ad.concat([rna, new], join="outer", merge="same"))


def renamed(mdata: md.MuData) -> md.MuData:
    rna = mdata["rna"].copy()
    rna.obs_names = "x_" + rna.obs_names
    return joined(mdata, rna=rna)


def two_donors(mdata: md.MuData) -> md.MuData:
    other = toy(random_state=7)
    for adata in other.mod.values():
        adata.obs_names = "b_" + adata.obs_names
    parts = {m: ad.concat([mdata[m], other[m]], merge="same", join="outer") for m in mdata.mod}
    return joined(mdata, **parts)


def twice(mdata: md.MuData) -> md.MuData:
    rna = mdata["rna"]
    return joined(mdata, rna=rna[np.r_[0:60, 5]].copy())


FOREIGN: dict[str, tuple[Callable[[md.MuData], md.MuData], str]] = {
    "added": (added, r"10 of 70 cells of 'rna' were added .*'new_0'.*no embedding.*Align again"),
    "of another alignment": (lambda m: joined(m, rna=toy(random_state=1)["rna"]), "60 of 60 cells of 'rna'.*another"),
    "of another donor": (
        two_donors,
        "60 of 120 cells of '(rna|protein)' were not part of the alignment.*'b_(rna|protein)_0'",
    ),
    "renamed": (renamed, "60 of 60 cells of 'rna' were renamed.*'x_rna_0'"),
    "twice": (twice, "1 cells of 'rna' are there more than once"),
    "none": (lambda m: joined(m, rna=m["rna"][:0].copy()), "'rna' has no cells left"),
}


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning", "ignore:obs_names:UserWarning")
@pytest.mark.filterwarnings("ignore:Cannot join columns:UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", FOREIGN)
def test_other_cells_are_refused_by_all(aligned: md.MuData, kind: str):
    make, message = FOREIGN[kind]
    mdata = make(aligned)
    for read in (*READERS.values(), *WRITERS.values(), *PICTURES.values()):
        with pytest.raises(ValueError, match=message):
            read(mdata)


@pytest.mark.parametrize("how", ["same", "unique", "only", "first"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_records_that_were_concatenated(aligned: md.MuData, how: str):
    other = toy(random_state=7)
    for adata in other.mod.values():
        adata.obs_names = "b_" + adata.obs_names
    other.update()
    both = md.concat([aligned, other], uns_merge=how)
    with pytest.raises((ValueError, KeyError), match=r"not part of the alignment|[Aa]lign again|tl\.align"):
        smm.get.mapped(both, "rna", "protein")
    with pytest.raises((ValueError, KeyError), match=r"lign"):
        smm.get.embedding(both)


# --- units -------------------------------------------------------------------------------------------------------


def scaled(mdata: md.MuData, name: str) -> None:
    x = mdata[name].X
    x = x.toarray() if sp.issparse(x) else x
    mdata[name].X = ((x - x.mean(0)) / np.maximum(x.std(0), 1e-6)).astype(np.float32)


@pytest.mark.parametrize("writer", REREADERS)
def test_changed_units_are_refused(aligned: md.MuData, writer: str, fingerprint: Callable):
    scaled(aligned, "protein")
    before = fingerprint(aligned)
    with pytest.raises(
        ValueError, match=r"X of 'protein' is not what was aligned.*differ, e\.g\..*Restore these values"
    ):
        WRITERS[writer](aligned)
    assert fingerprint(aligned) == before


def test_pictures_of_measured_beside_mapped_values(aligned: md.MuData):
    pairs = pd.DataFrame({name: aligned[name].obs_names[:20] for name in aligned.mod})
    given = {"source": "rna", "target": "protein", "features": genes(aligned), "pairs": pairs, "show": False}
    smm.pl.alignment(aligned, **given)
    scaled(aligned, "protein")
    with pytest.raises(ValueError, match="X of 'protein' is not what was aligned"):
        smm.pl.alignment(aligned, **given)


IN_UNITS = ("mapped", "decoded", "uncertainty", "spatial_map")


@pytest.mark.parametrize("reader", IN_UNITS)
def test_values_in_units_of_then_are_refused(aligned: md.MuData, reader: str, fingerprint: Callable):
    read = {**PICTURES, **READERS}[reader]
    before = read(aligned)
    # what the source measured is not in mapped values, and nothing is left to compare with once values are gone
    scaled(aligned, "rna")
    if reader != "spatial_map":
        pd.testing.assert_frame_equal(read(aligned), before)
    scaled(aligned, "protein")
    kept = fingerprint(aligned)
    message = r"X of 'protein' is not what was aligned.*differ, e\.g\..*units of then\. Restore these values, or align"
    with pytest.raises(ValueError, match=message):
        read(aligned)
    # in a part of the cells and features, too
    with pytest.raises(ValueError, match=message):
        read(joined(aligned, protein=aligned["protein"][20:, ::-1].copy()))
    assert fingerprint(aligned) == kept


def test_what_has_no_units_is_read_in_any(aligned: md.MuData):
    readers = {k: READERS[k] for k in ("embedding", "coordinates", "summary")}
    before = {name: read(aligned) for name, read in readers.items()}
    for name in aligned.mod:
        scaled(aligned, name)
    for name, read in readers.items():
        pd.testing.assert_frame_equal(read(aligned), before[name])
    assert smm.get.mapped(aligned, "rna", "protein", features=[]).shape == (60, 0)
    for writer in ("match", "transfer", "place", "cluster"):
        WRITERS[writer](aligned)


def test_intervals_have_units(aligned: md.MuData):
    truth = smm.datasets.toy(n_cells=60, n_features=[30, 20], spatial=True).uns["truth"]
    pairs = pd.DataFrame({m: aligned[m].obs_names[np.argsort(truth[m]["cell"])] for m in aligned.mod})
    smm.tl.uncertainty(aligned, "rna", "protein", pairs=pairs)
    assert "interval" in READERS["summary"](aligned)
    scaled(aligned, "protein")
    with pytest.raises(ValueError, match="X of 'protein' is not what was aligned"):
        READERS["summary"](aligned)


@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_values_are_compared_in_any_storage(aligned: md.MuData, layout: Callable):
    x = aligned["protein"].X
    x = x.toarray() if sp.issparse(x) else x
    aligned["protein"].X = layout(x)
    smm.get.mapped(aligned, "rna", "protein")
    aligned["protein"].X = layout(2 * x)
    with pytest.raises(ValueError, match="X of 'protein' is not what was aligned"):
        smm.get.mapped(aligned, "rna", "protein")


@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix])
def test_half_floats_that_scipy_cannot_cut(layout: Callable):
    x = layout(np.random.default_rng(0).poisson(1.0, (40, 6)).astype(np.float32))
    x.data = x.data.astype(np.float16)
    adata = ad.AnnData(x, var=pd.DataFrame(index=list("abcdef")))
    rows, columns = np.array([3, 1, 7]), np.array([5, 0])
    expected = np.asarray(x.astype(np.float32).todense())[rows][:, columns]
    np.testing.assert_array_equal(_modality.part(adata, rows, columns), expected)
    adata.layers["half"] = x
    np.testing.assert_array_equal(_modality.part(adata, rows, columns, "half"), expected)


def test_layers_and_representations():
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    mdata["rna"].layers["log"] = mdata["rna"].X.copy()
    x = mdata["protein"].X
    mdata["protein"].obsm["rep"] = np.asarray(x.toarray() if sp.issparse(x) else x)[:, :9]
    smm.tl.align(
        mdata, links=None, layer={"rna": "log"}, use_rep={"protein": "rep"}, method="coupling", progress_bar=False
    )
    for name in mdata.mod:
        # X was not read
        scaled(mdata, name)
    for a, b in (("rna", "protein"), ("protein", "rna")):
        smm.get.mapped(mdata, a, b)
    mdata["protein"].obsm["rep"] = 2 * mdata["protein"].obsm["rep"]
    with pytest.raises(ValueError, match=r"obsm\['rep'\] of 'protein' is not what was aligned"):
        smm.get.mapped(mdata, "rna", "protein")
    mdata["rna"].layers["log"] = 2 * mdata["rna"].layers["log"]
    with pytest.raises(ValueError, match=r"layers\['log'\] of 'rna' is not what was aligned"):
        smm.get.mapped(mdata, "protein", "rna")
    # what is gone cannot differ
    del mdata["rna"].layers["log"]
    smm.get.mapped(mdata, "protein", "rna")


# --- columns that are needed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "container", "slot", "reader"),
    [
        ("rna", "obs", "scmmgan_unmatched", WRITERS["match"]),
        ("rna", "obs", "scmmgan_unmatched", READERS["uncertainty"]),
        ("rna", "obs", "scmmgan_ambiguous", WRITERS["transfer"]),
        ("rna", "obs", "scmmgan_landmark", WRITERS["place"]),
        ("protein", "obsm", "scmmgan_plan_rna", WRITERS["place"]),
        ("protein", "obs", "scmmgan_spread", READERS["coordinates"]),
        ("protein", "var", "scmmgan_uncertainty", READERS["summary"]),
        ("rna", "obsm", "X_scmmgan", READERS["mapped"]),
    ],
)
def test_slots_that_are_needed(aligned: md.MuData, name: str, container: str, slot: str, reader: Callable):
    del getattr(aligned[name], container)[slot]
    with pytest.raises(KeyError, match=f"{slot}.*run `scmmgan.tl"):
        reader(aligned)


def test_what_was_read_and_is_gone(aligned: md.MuData, fingerprint: Callable):
    del aligned["rna"].var["gene"]
    before = fingerprint(aligned)
    with pytest.raises(ValueError, match=r"'scmmgan' was aligned with cannot be read any more. Restore it.*`links`"):
        WRITERS["diagnose"](aligned)
    assert fingerprint(aligned) == before


def test_mapped_values_that_were_cut(aligned: md.MuData):
    aligned["rna"].obsm["scmmgan_protein"] = aligned["rna"].obsm["scmmgan_protein"][:, :5]
    with pytest.raises(ValueError, match="not 20 columns"):
        smm.get.mapped(aligned, "rna", "protein")
    del aligned["rna"].obsm["scmmgan_protein"]
    with pytest.raises(ValueError, match=r"is gone.*decoded"):
        smm.get.mapped(aligned, "rna", "protein")


# --- the check itself --------------------------------------------------------------------------------------------


def test_hashes():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = _fingerprint.cell_hashes(np.array(list("abcd")), x)
    assert found.dtype == np.uint64
    assert len(set(found)) == 4
    np.testing.assert_array_equal(_fingerprint.cell_hashes(np.array(list("dcba")), x[::-1])[::-1], found)
    # a name, or one bit of a row
    assert _fingerprint.cell_hashes(np.array(["e"]), x[:1])[0] != found[0]
    assert _fingerprint.cell_hashes(np.array(["a"]), np.nextafter(x[:1], np.float32(9)))[0] != found[0]
    assert len(_fingerprint.cell_hashes(np.array([]), x[:0])) == 0


def test_check_is_cheap():
    n = 100_000
    adata = ad.AnnData(sp.csr_matrix((n, 1), dtype=np.float32))
    adata.obs_names = [f"cell_{i}" for i in range(n)]
    adata.obsm["X_scmmgan"] = np.random.default_rng(0).normal(size=(n, 100)).astype(np.float32)
    stored = {"cells": _fingerprint.cell_hashes(adata.obs_names, adata.obsm["X_scmmgan"])}
    start = time.process_time()
    rows = _fingerprint.recorded_rows(adata, "a", stored, Keys())
    assert time.process_time() - start < 1
    np.testing.assert_array_equal(rows, np.arange(n))


@pytest.mark.parametrize("shape", [(40, 3), (500, 300)])
def test_sample(shape: tuple[int, int]):
    values = np.random.default_rng(0).poisson(0.1, size=shape).astype(np.float32)
    n, g = shape
    names = np.array([f"c{i}" for i in range(n)], dtype=object), np.array([f"g{i}" for i in range(g)], dtype=object)
    found = _fingerprint.of(Modality("a", sp.csr_matrix(values), *names), np.zeros((n, 2)), values.mean(0))
    assert len(found["rows"]) == min(n, 64)
    assert len(found["columns"]) <= 64
    assert np.argmax(values.mean(0)) in found["columns"]
    np.testing.assert_array_equal(found["values"], values[found["rows"]][:, found["columns"]])
