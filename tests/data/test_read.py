"""A MuData and the arguments of `tl.align` as one problem of arrays; nothing touches the MuData until it is written."""

from __future__ import annotations

import contextlib
import importlib
import logging
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm
from scmmgan.data import links as _links
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.data.record import sealed
from scmmgan.model.problem import Links, Modality, Problem
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.domain import Domain, model_space
from scmmgan.model.space.graphs import graph_scores


def read(mdata: md.MuData, names: list[str] | None = None, **arguments: Any) -> Problem:
    """The problem of these arguments; nothing is known of the cells, and nothing is smoothed, unless they say so."""
    defaults = {**_read.PER_MODALITY, "links": None, "pairs": None, "spatial": None, "smooth": 0}
    assert set(arguments) <= {*defaults, "maps"}
    return _read.read(mdata, names or list(mdata.mod), defaults | arguments)


def domains_of(problem: Problem) -> dict[str, Domain]:
    return model_space(problem, random_state=0)


def link_names(problem: Problem, a: str = "rna", b: str = "protein") -> list[tuple[str, str]]:
    """Linked features by name, in order."""
    known = problem.of(a, b)
    sides = [problem.modalities[m].features[known.positions(m)] for m in known.names]
    return list(zip(*(side.tolist() for side in sides)))


def toy(n_cells: int = 60, **arguments: Any) -> md.MuData:
    return smm.datasets.toy(n_cells=n_cells, **{"n_features": [30, 20], **arguments})


# --- modalities --------------------------------------------------------------------------------------------------


def test_modalities_as_arrays():
    mdata = toy(spatial=True)
    problem = read(mdata, smooth={"rna": 2, "protein": None}, n_pcs={"rna": 7, "protein": None}, spatial="spatial")
    assert problem.names == ["rna", "protein"]
    for name, found in problem.modalities.items():
        assert found.name == name
        assert found.values.dtype == np.float32
        np.testing.assert_array_equal(found.values, mdata[name].X)
        for names, expected in ((found.cells, mdata[name].obs_names), (found.features, mdata[name].var_names)):
            assert type(names) is np.ndarray
            assert names.tolist() == expected.tolist()
        assert found.allowed is None
        assert found.batches is None
        assert not found.embedded
    assert problem.steps == {"rna": 2, "protein": 0}
    assert {m: of.n_pcs for m, of in problem.modalities.items()} == {"rna": 7, "protein": 50}
    np.testing.assert_array_equal(problem.modalities["rna"].coordinates, mdata["rna"].obsm["spatial"])
    assert problem.modalities["protein"].coordinates is None


def test_order_of_the_modalities_asked_for():
    problem = read(toy(), ["protein", "rna"], links="gene")
    assert problem.names == ["protein", "rna"]
    assert list(problem.known) == [("protein", "rna")]
    known = problem.known["protein", "rna"]
    assert known.names == ("protein", "rna")
    np.testing.assert_array_equal(known.positions("protein"), known.links.first)


def test_arguments_reach_their_modality():
    mdata = toy()
    mdata["rna"].layers["other"] = mdata["rna"].X[::-1].copy()
    mdata["protein"].obsm["X_rep"] = mdata["protein"].X[:, :4].copy()
    mdata["rna"].var["hv"] = np.arange(30) < 12
    problem = read(mdata, layer={"rna": "other"}, use_rep={"protein": "X_rep"}, smooth=3, mask_var={"rna": "hv"})
    rna, protein = problem.modalities.values()
    np.testing.assert_array_equal(rna.values, mdata["rna"].layers["other"])
    np.testing.assert_array_equal(rna.allowed, np.arange(12))
    # a representation is taken as it is: no smoothing, whatever was asked for, and features of its own
    assert protein.embedded
    assert protein.features.tolist() == [f"X_rep_{i}" for i in range(4)]
    assert problem.steps == {"rna": 3, "protein": 0}
    domains = domains_of(problem)
    assert not np.allclose(domains["rna"].smoothed.columns(np.arange(30)), rna.values)
    np.testing.assert_array_equal(domains["protein"].smoothed.columns(np.arange(4)), protein.values)
    r = np.corrcoef(domains["protein"].x[:, 0], mdata["protein"].X[:, 0])[0, 1]
    assert r == pytest.approx(1, abs=1e-5)
    assert np.sqrt((domains["protein"].x ** 2).mean()) == pytest.approx(1, abs=1e-4)


def test_smoothing_that_is_left_to_what_is_known():
    mdata = toy()
    assert read(mdata, links="gene", smooth="auto").steps == {"rna": 1, "protein": 1}
    assert read(mdata, smooth="auto").steps == {"rna": 3, "protein": 3}
    assert read(mdata, links="gene", smooth={"rna": 2}).steps == {"rna": 2, "protein": 1}
    mdata["protein"].obsm["X_rep"] = mdata["protein"].X[:, :4].copy()
    assert read(mdata, use_rep={"protein": "X_rep"}, smooth="auto").steps == {"rna": 3, "protein": 0}


def test_default_number_of_components():
    # min(50, g, n - 1)
    assert {m: d.x.shape[1] for m, d in domains_of(read(toy(120))).items()} == {"rna": 30, "protein": 20}
    assert domains_of(read(toy(80, n_features=[60, 20])))["rna"].x.shape == (80, 50)
    assert domains_of(read(toy(50, n_features=[60, 20])))["rna"].x.shape == (50, 49)


def test_masks_choose_what_enters_the_space():
    mdata = toy()
    chosen = np.arange(30) < 12
    mdata["rna"].var["hv"] = chosen
    for mask in ("hv", chosen, chosen.tolist()):
        domains = domains_of(read(mdata, mask_var={"rna": mask}))
        np.testing.assert_array_equal(domains["rna"].transform.encoded, np.arange(12))
        assert domains["rna"].x.shape == (60, 12)
        np.testing.assert_array_equal(domains["protein"].transform.encoded, np.arange(20))
    mdata["rna"].X[:, :3] = 2
    with pytest.raises(ValueError, match="All features of 'rna' that `mask_var` chooses are constant"):
        read(mdata, mask_var={"rna": np.arange(30) < 3})


def test_linked_features_enter_the_space(monkeypatch: pytest.MonkeyPatch):
    """With few places the flattest features stay outside, unless they are linked."""
    monkeypatch.setattr("scmmgan.model.space.pca.N_DISPERSED", 5)
    problem = read(toy(), links="gene")
    for name, domain in domains_of(problem).items():
        linked = problem.of("rna", "protein").positions(name)
        assert len(linked) == 15
        assert set(linked) <= set(domain.transform.encoded)
        assert 15 <= len(domain.transform.encoded) <= 20


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_model_space_of_what_was_read(convert: Callable, fingerprint: Callable):
    """Smoothed over neighbours, z-scored, principal components, one scale; the input stays as it is."""
    mdata = toy(n_features=[30, 20])
    for adata in mdata.mod.values():
        adata.X = convert(adata.X)
    before = fingerprint(mdata)
    domains = domains_of(read(mdata, smooth=3, n_pcs=10, links="gene"))
    assert fingerprint(mdata) == before
    for name, d in domains.items():
        x = mdata[name].X.toarray() if sp.issparse(mdata[name].X) else mdata[name].X
        operator = smoothing_operator(graph_scores(x)).toarray().astype(float)
        s = np.linalg.matrix_power(operator, 3) @ x
        z = (s - s.mean(0)) / s.std(0)
        scores = z @ np.linalg.svd(z, full_matrices=False)[2][:10].T
        expected = scores / np.sqrt((scores**2).mean())
        # up to the signs of the axes
        np.testing.assert_allclose(np.abs(d.x), np.abs(expected), atol=2e-3)
        assert d.x.dtype == np.float32
        assert d.x.shape == (60, 10)
        np.testing.assert_allclose(d.zscored(np.array([4, 1])), z[:, [4, 1]], atol=1e-4)


def test_unsorted_and_doubled_entries():
    """Legal CSR: descending indices, and one entry in two parts. Read as what it stands for, and left as it is."""
    mdata = toy(50, n_features=[15, 20])
    x = mdata["rna"].X + 1
    indices = np.tile([*range(14, -1, -1), 0], 50)
    data = np.column_stack([x[:, ::-1], np.full(50, 0.5)]).ravel()
    mdata["rna"].X = sp.csr_matrix((data.astype(np.float32), indices, np.arange(0, 801, 16)), shape=(50, 15))
    stored = mdata["rna"].X
    before = stored.indices.copy(), stored.data.copy()
    found = domains_of(read(mdata, smooth=3))["rna"].x
    np.testing.assert_array_equal(mdata["rna"].X.indices, before[0])
    np.testing.assert_array_equal(mdata["rna"].X.data, before[1])
    x[:, 0] += 0.5
    mdata["rna"].X = x
    np.testing.assert_allclose(found, domains_of(read(mdata, smooth=3))["rna"].x, atol=1e-4)


@pytest.mark.parametrize("fmt", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("steps", [0, 3])
def test_half_smoothed_features(fmt: Callable, steps: int):
    """z-scores before and after the smoothing count alike, however much it takes away."""
    mdata = toy()
    before, at = mdata["rna"].X.copy(), np.array([4, 1, 7])
    mdata["rna"].X = fmt(before)
    d = domains_of(read(mdata, smooth=steps, links="gene"))["rna"]
    x, s = d.smoothed.measured(at).astype(float), d.smoothed.columns(at).astype(float)
    np.testing.assert_array_equal(x, before[:, at])
    assert (s.std(0) < 0.9 * x.std(0)).all() == bool(steps)
    both = (x - x.mean(0)) / x.std(0) + (s - s.mean(0)) / s.std(0)
    found = d.half_smoothed(at)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, both / both.std(0), atol=1e-4)


# --- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["rna", "protein"], ["protein", "rna"]])
def test_links_become_positions(names: list[str]):
    """The table's order, signs and weights, these over the largest."""
    mdata = toy()
    table = pd.DataFrame(
        {"rna": mdata["rna"].var_names[[7, 2, 9, 2]], "protein": mdata["protein"].var_names[[1, 5, 3, 0]]}
    )
    table = table.assign(weight=[2.0, 8, 4, 1], sign=[1, -1, 1, 1])
    links = read(mdata, names, links=table).known[tuple(names)].links
    sides = {"rna": [7, 2, 9, 2], "protein": [1, 5, 3, 0]}
    assert links.first.tolist() == sides[names[0]]
    assert links.second.tolist() == sides[names[1]]
    assert links.weight.tolist() == [0.25, 1, 0.5, 0.125]
    assert links.sign.tolist() == [1, -1, 1, 1]
    assert len(links) == 4
    assert read(mdata, names).known[tuple(names)].links is None


@pytest.mark.parametrize("weight", [1e80, 1e-60])
def test_extreme_weights(weight: float):
    mdata = toy()
    table = _links.link_table(mdata, "rna", "protein", "gene")
    links = read(mdata, links=table.assign(weight=weight)).of("rna", "protein").links
    assert (links.weight == 1).all()


def linked_positions(mdata: md.MuData, name: str) -> np.ndarray:
    """Positions of linked features, in the order of the links."""
    table = _links.link_table(mdata, "rna", "protein", "gene")
    return mdata[name].var_names.get_indexer(table[name])


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("side", ["rna", "protein"])
def test_constant_links_are_left_out(caplog: pytest.LogCaptureFixture, side: str, convert: Callable):
    mdata = toy()
    at = linked_positions(mdata, side)
    x = mdata[side].X.copy()
    x[:, at[:8]] = 3
    mdata[side].X = convert(x)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        problem = read(mdata, links="gene")
    assert "8 of 15 links name a constant feature and are left out." in caplog.messages
    np.testing.assert_array_equal(problem.of("rna", "protein").positions(side), at[8:])
    caplog.clear()
    assert problem.of("rna", "protein").n_links == 7
    # what varies is left in without a word
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        assert read(toy(), links="gene").of("rna", "protein").n_links == 15
    assert caplog.messages == []


@pytest.mark.parametrize("constant", [0.1, 3.0, 1e6])
def test_links_that_are_constant_but_for_rounding_are_left_out(constant: float):
    """float32 keeps 1e-7 of a constant, which z-scores would take for a feature."""
    mdata = toy()
    at = linked_positions(mdata, "rna")[:4]
    rng = np.random.default_rng(0)
    for noise in (0, 1e-7):
        mdata["rna"].X[:, at] = (constant * (1 + noise * rng.normal(size=(60, 4)))).astype(np.float32)
        problem = read(mdata, links="gene", smooth=3)
        assert problem.of("rna", "protein").n_links == 11
        assert not set(at) & set(problem.of("rna", "protein").positions("rna"))
        assert not domains_of(problem)["rna"].half_smoothed(at).any()


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix])
def test_links_that_differ_between_batches_only_are_left_out(convert: Callable):
    """Shifted to one mean per batch nothing of them is left; features that vary in one batch stay."""
    mdata = toy(80)
    batch = np.resize(["x", "y"], 80)
    mdata["rna"].obs["donor"] = batch
    at = linked_positions(mdata, "rna")
    x = mdata["rna"].X.copy()
    x[:, at[:4]] = np.where(batch == "x", 1.0, 2.5)[:, None]
    x[batch == "x", at[4]] = 7
    mdata["rna"].X = convert(x)
    without = read(mdata, links="gene").of("rna", "protein")
    np.testing.assert_array_equal(without.positions("rna"), at)
    problem = read(mdata, links="gene", batch={"rna": "donor"})
    assert [len(rows) for rows in problem.modalities["rna"].batches] == [40, 40]
    assert problem.modalities["protein"].batches is None
    np.testing.assert_array_equal(problem.of("rna", "protein").positions("rna"), at[4:])


@pytest.mark.parametrize("n_left", [0, 2])
def test_too_few_links_that_vary(n_left: int):
    mdata = toy()
    mdata["protein"].X[:, linked_positions(mdata, "protein")[n_left:]] = 1
    message = (
        f"Of 15 links between 'rna' and 'protein' {n_left} have features that vary in both; at least 3.*links=None"
    )
    with pytest.raises(ValueError, match=message):
        read(mdata, links="gene")


def test_equal_names_that_do_not_vary_are_no_links():
    """What was not asked for is no error."""
    mdata = toy(shared_genes=True, n_features=[20, 20])
    mdata["protein"].X[:, 2:] = 1
    assert read(mdata, links="auto").of("rna", "protein").links is None
    with pytest.raises(ValueError, match="2 have features that vary in both"):
        read(mdata, links="var_names")
    mdata["protein"].X[:, 2] = mdata["protein"].X[:, 0]
    assert read(mdata, links="auto").of("rna", "protein").n_links == 3


def many_links(n_genes: int = 6, per_gene: int = 6) -> tuple[Modality, Modality, Links]:
    """Genes of standard deviations 1, 5, 2, 4, 3, .5 around 1, each with peaks of falling weight."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, n_genes))
    z = (z - z.mean(0)) / z.std(0)
    genes = (1 + z * np.resize([1.0, 5, 2, 4, 3, 0.5], n_genes)).astype(np.float32)
    peaks = rng.random((60, n_genes * per_gene)).astype(np.float32)
    cells = np.array([f"c{i}" for i in range(60)], dtype=object)
    rna = Modality("rna", genes, cells, np.array([f"g{i}" for i in range(n_genes)], dtype=object))
    names = [f"g{i}_p{j}" for i in range(n_genes) for j in range(per_gene)]
    atac = Modality("atac", peaks, cells, np.array(names, dtype=object))
    first, rank = np.repeat(np.arange(n_genes), per_gene), np.tile(np.arange(per_gene), n_genes)
    backwards = np.arange(len(first))[::-1]
    return rna, atac, Links(first, np.arange(len(first)), 1 / (1 + rank), np.ones(len(first))).take(backwards)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix])
def test_of_too_many_links_the_heaviest_of_the_most_variable_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, swapped: bool, convert: Callable
):
    """Six peaks a gene: one each is kept, and of the genes those with the largest variance over mean."""
    monkeypatch.setattr(_read, "MAX_LINKS_USED", 4)
    rna, atac, links = many_links()
    rna = Modality("rna", convert(rna.values), rna.cells, rna.features)
    sides = (rna, atac)
    if swapped:
        links, sides = Links(links.second, links.first, links.weight, links.sign), (atac, rna)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        kept = _read._fewer(links, *sides)
    genes, peaks = (kept.second, kept.first) if swapped else (kept.first, kept.second)
    # in the order in which they were
    assert [rna.features[i] for i in genes] == ["g4", "g3", "g2", "g1"]
    assert [atac.features[i] for i in peaks] == ["g4_p0", "g3_p0", "g2_p0", "g1_p0"]
    assert caplog.messages == ["4 of 36 links are used: one for each feature of 'rna', those that vary most."]
    # few enough stay as they are
    assert len(_read._fewer(links.take(np.arange(4)), *sides)) == 4
    # equal names make a shared space, which chooses by itself
    named = Modality("atac", atac.values, atac.cells, rna.features[np.repeat(np.arange(6), 6)])
    if not swapped:
        assert len(_read._fewer(links, rna, named)) == 36


def test_no_more_than_five_thousand_links():
    """A table of 6,000 links between different features, as `tl.align` takes it."""
    rng = np.random.default_rng(0)
    parts = {}
    for name in ("rna", "atac"):
        x = rng.random((40, 6_000)).astype(np.float32)
        obs = pd.DataFrame(index=[f"{name}{i}" for i in range(40)])
        parts[name] = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"{name}_{i}" for i in range(6_000)]))
    mdata = md.MuData(parts)
    table = pd.DataFrame({name: adata.var_names for name, adata in mdata.mod.items()})
    problem = read(mdata, links=table)
    links = problem.of("rna", "atac").links
    assert len(links) == 5_000
    np.testing.assert_array_equal(links.first, links.second)
    x = problem.modalities["rna"].values.astype(float)
    dispersion = x.var(0) / x.mean(0)
    assert dispersion[links.first].min() >= np.delete(dispersion, links.first).max()


def test_many_links_of_few_features_cost_no_memory():
    """Which features vary is asked once of each feature, not of each link."""
    n, k = 200, 100_000
    cells = np.array([f"c{i}" for i in range(n)], dtype=object)
    x = np.random.default_rng(0).random((n, 400)).astype(np.float32)
    modality = Modality("m", x, cells, np.array([f"f{i}" for i in range(400)], dtype=object))
    at = np.resize(np.arange(400), k)
    tracemalloc.start()
    try:
        assert _read._varying(modality, at).all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # a column for each link would take 80 MB
    assert peak < 20e6


# --- three modalities --------------------------------------------------------------------------------------------


def three(n_cells: int = 60) -> md.MuData:
    return toy(n_cells, n_modalities=3, n_features=[30, 20, 25])


def test_of_three_modalities_some_may_share_no_links(caplog: pytest.LogCaptureFixture):
    """A `var` column or a table that names features of two of three; a choice that links none is still an error."""
    mdata = three()
    del mdata["atac"].var["gene"]
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        problem = read(mdata, links="gene")
    assert list(problem.known) == [("rna", "protein"), ("rna", "atac"), ("protein", "atac")]
    assert problem.of("rna", "protein").n_links == 15
    for other in ("rna", "protein"):
        assert problem.of(other, "atac").links is None
        assert f"`links` matches 0 features of {other!r} with 'atac': no links for this pair." in caplog.messages
    table = _links.link_table(mdata, "rna", "protein", "gene")
    found = read(mdata, links=table)
    assert [pair for pair, known in found.known.items() if known.links is not None] == [("rna", "protein")]
    with pytest.raises(KeyError, match="genes"):
        read(mdata, links="genes")
    with pytest.raises(ValueError, match="at least 3"):
        read(mdata, links=table[:2])


def test_each_of_several_pairs_goes_by_what_it_has(caplog: pytest.LogCaptureFixture):
    """Too few links, pairs or labels of one pair are no reason to refuse the others."""
    mdata = three()
    gene, truth = mdata["atac"].var["gene"].copy(), mdata.uns["truth"]
    common = gene[gene.isin(mdata["rna"].var["gene"])]
    gene[common.index[2:]] = "none"
    mdata["atac"].var["gene"] = gene
    cells = {m: mdata[m].obs_names[np.argsort(truth[m]["cell"])] for m in mdata.mod}
    pairs = pd.concat([pd.DataFrame({"rna": cells["rna"][:9], "protein": cells["protein"][:9]}),
                       pd.DataFrame({"rna": cells["rna"][9:11], "atac": cells["atac"][9:11]})])  # fmt: skip
    del mdata["atac"].obs["cell_type"]
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        problem = read(mdata, links="gene", pairs=pairs, labels="cell_type")
    of = {pair: (k.n_links, k.n_pairs, k.labels is not None) for pair, k in problem.known.items()}
    assert of == {("rna", "protein"): (15, 9, True), ("rna", "atac"): (0, 0, False), ("protein", "atac"): (0, 0, False)}
    for said in ("`pairs` gives 2 pairs of 'rna' and 'atac'", "['atac'] have no column that `labels` names"):
        assert said in caplog.text
    # another vocabulary
    mdata["atac"].obs["cell_type"] = "x"
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        assert [p for p, k in read(mdata, labels="cell_type").known.items() if k.labels] == [("rna", "protein")]
    assert "`labels` of 'rna' and 'atac' share 0 names" in caplog.text
    mdata["protein"].obs["cell_type"] = "y"
    with pytest.raises(ValueError, match=r"no two of the modalities .* share a vocabulary"):
        read(mdata, labels="cell_type")


def test_a_representation_beside_links_of_others():
    mdata = three()
    mdata["atac"].obsm["X_rep"] = mdata["atac"].X[:, :5].copy()
    problem = read(mdata, links="gene", use_rep={"rna": None, "protein": None, "atac": "X_rep"})
    assert [k.n_links for k in problem.known.values()] == [15, 0, 0]


def test_the_centre_of_a_star_is_the_first_modality_named():
    assert read(three()).centre is None
    assert read(three(), maps="star").centre == "rna"
    assert read(three(), ["atac", "rna", "protein"], maps="star").centre == "atac"
    assert read(three(), ["atac", "rna"], maps="star").centre is None


def test_link_tables_with_gaps():
    mdata = three()
    tables = {m: _links.link_table(mdata, "rna", m, "gene")[["rna", m]] for m in ("protein", "atac")}
    problem = read(mdata, links=pd.concat(tables.values()))
    for m, table in tables.items():
        assert link_names(problem, "rna", m) == list(table.itertuples(index=False, name=None))
    assert problem.of("protein", "atac").links is None


def test_pairs_and_labels_of_three_modalities():
    mdata = three()
    truth = mdata.uns["truth"]
    cells = {m: mdata[m].obs_names[np.argsort(truth[m]["cell"])][:5] for m in ("rna", "atac")}
    problem = read(mdata, pairs=pd.DataFrame(cells), labels="cell_type")
    assert problem.label_names == [f"type_{c}" for c in "ABCDE"]
    assert {pair: known.n_pairs for pair, known in problem.known.items()} == {
        ("rna", "protein"): 0, ("rna", "atac"): 5, ("protein", "atac"): 0,
    }  # fmt: skip
    rows = problem.of("rna", "atac").pairs
    assert mdata["rna"].obs_names[rows[:, 0]].tolist() == cells["rna"].tolist()
    assert mdata["atac"].obs_names[rows[:, 1]].tolist() == cells["atac"].tolist()
    names = np.array(problem.label_names)
    for pair, known in problem.known.items():
        assert tuple(known.labels) == pair
        for m, codes in known.labels.items():
            assert names[codes].tolist() == mdata[m].obs["cell_type"].tolist()


def test_links_of_a_representation():
    mdata = toy()
    mdata["rna"].obsm["r"] = mdata["rna"].X[:, :4].copy()
    message = r"`links` names features, but 'rna' or 'protein' is read from obsm 'r', which has none.*links=None"
    for links in ("gene", "var_names", _links.link_table(mdata, "rna", "protein", "gene")):
        with pytest.raises(ValueError, match=message):
            read(mdata, links=links, use_rep={"rna": "r"})
    # what was not asked for is no error
    for links in ("auto", None):
        assert read(mdata, links=links, use_rep={"rna": "r"}).of("rna", "protein").links is None


# --- shared space ------------------------------------------------------------------------------------------------


def genes_in_common(n_common: int, n_own: int = 10) -> md.MuData:
    """Two modalities with `n_common` equal names each in its own order, and more of their own."""
    rng = np.random.default_rng(0)
    latent, loadings = rng.normal(size=(90, 4)), rng.normal(size=(4, n_common))
    parts = {}
    for name, rows in (("a", slice(0, 50)), ("b", slice(50, 90))):
        x = np.hstack([latent[rows] @ loadings, latent[rows] @ rng.normal(size=(4, n_own))])
        names = [f"g{i}" for i in range(n_common)] + [f"{name}_{i}" for i in range(n_own)]
        order = rng.permutation(len(names))
        x = (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
        obs = pd.DataFrame(index=[f"{name}{i}" for i in range(len(x))])
        parts[name] = ad.AnnData(x[:, order], obs=obs, var=pd.DataFrame(index=[names[i] for i in order]))
    return md.MuData(parts)


def shared_names(problem: Problem) -> list[str]:
    """Names of the shared features, which every modality must have in one order."""
    names = [problem.modalities[m].features[at].tolist() for m, at in problem.spaces[0].items()]
    assert all(other == names[0] for other in names)
    return names[0]


@pytest.mark.parametrize(
    ("n_common", "n_own", "expected"),
    [(60, 10, True), (50, 10, True), (49, 10, False), (60, 60, True), (60, 61, False)],
    ids=["many", "just enough", "one too few", "half", "less than half"],
)
def test_equal_names_make_a_shared_space(n_common: int, n_own: int, expected: bool):
    problem = read(genes_in_common(n_common, n_own), links="auto", n_pcs=8)
    assert bool(problem.shared) == expected
    a, b = (d.transform for d in domains_of(problem).values())
    assert (a.encoder.shape == b.encoder.shape and np.array_equal(a.encoder, b.encoder)) == expected
    if expected:
        assert sorted(shared_names(problem)) == sorted(f"g{i}" for i in range(n_common))
        # axis by axis the same features, whatever their positions
        first, second = (problem.modalities[m].features[t.encoded] for m, t in (("a", a), ("b", b)))
        assert first.tolist() == second.tolist()
        assert set(first) == {f"g{i}" for i in range(n_common)}


def test_the_smaller_modality_decides_what_is_half():
    """A panel of 60 genes, all of them among the other side's 200."""
    mdata = genes_in_common(60, 140)
    panel = mdata["b"][:, mdata["b"].var_names.str.startswith("g")].copy()
    assert read(md.MuData({"a": mdata["a"].copy(), "b": panel}), links="auto").shared


def test_no_shared_space_without_links_that_say_so():
    mdata = genes_in_common(60)
    assert not read(mdata).shared
    crossed = pd.DataFrame({"a": [f"g{i}" for i in range(12)], "b": [f"g{(i + 1) % 12}" for i in range(12)]})
    assert not read(mdata, links=crossed).shared
    # more than half of the links
    half = pd.DataFrame({"a": [f"g{i}" for i in range(12)], "b": [f"g{i if i < 6 else 17 - i}" for i in range(12)]})
    assert not read(mdata, links=half).shared
    half.loc[11, "b"] = "g11"
    assert read(mdata, links=half).shared
    mdata["a"].obsm["r"] = np.random.default_rng(0).normal(size=(50, 3))
    assert not read(mdata, links="auto", use_rep={"a": "r"}).shared


def test_masks_limit_the_shared_space():
    mdata = genes_in_common(60)
    keep = mdata["a"].var_names.isin([f"g{i}" for i in range(55)])
    problem = read(mdata, links="auto", mask_var={"a": keep})
    assert set(shared_names(problem)) == {f"g{i}" for i in range(55)}
    domains = domains_of(problem)
    assert set(problem.modalities["b"].features[domains["b"].transform.encoded]) == {f"g{i}" for i in range(55)}
    few = mdata["a"].var_names.isin(["g0", "g1"])
    assert not read(mdata, links="auto", mask_var={"a": few}).shared


def test_three_modalities_share_a_space_where_all_do():
    mdata = toy(n_modalities=3, shared_genes=True, n_features=[60] * 3)
    problem = read(mdata, links="auto")
    assert shared_names(problem) == mdata["rna"].var_names.tolist()
    other = {name: adata.copy() for name, adata in mdata.mod.items()}
    other["atac"].var_names = [f"peak{i}" for i in range(60)]
    assert read(md.MuData(other), links="auto").shared == [("rna", "protein"), ("protein", "rna")]


def test_a_third_modality_leaves_two_their_space():
    """Whatever comes first; and four modalities may make two spaces."""
    two = genes_in_common(60)
    third = ad.AnnData(
        np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(40)]),
        var=pd.DataFrame(index=["g0", "g1", "g2", "g3", "own"]),
    )
    alone = domains_of(read(two.copy(), links="auto"))
    fourth = third[::-1].copy()
    for parts in ({"c": third}, {"c": third, "d": fourth}):
        for names in (["a", "b", *parts], [*parts, "b", "a"]):
            mdata = md.MuData({m: {**dict(two.mod.items()), **parts}[m].copy() for m in names})
            problem = read(mdata, links="auto")
            assert [set(space) for space in problem.spaces] == [{"a", "b"}]
            domains = domains_of(problem)
            for m in "ab":
                np.testing.assert_allclose(domains[m].x, alone[m].x, atol=1e-4)
            assert domains["c"].x.shape == (40, 5)
    more = {f"{m}2": mdata[m][:, [n.startswith("g") for n in mdata[m].var_names]].copy() for m in "ab"}
    for adata in more.values():
        adata.var_names = [n.replace("g", "peak") for n in adata.var_names]
    problem = read(md.MuData({**dict(two.mod.items()), **more}), links="auto")
    assert [set(space) for space in problem.spaces] == [{"a", "b"}, {"a2", "b2"}]


# --- fingerprint -------------------------------------------------------------------------------------------------


def knowledge(mdata: md.MuData, k: int = 20) -> dict[str, Any]:
    """Links, pairs and labels as tables and columns."""
    truth = mdata.uns["truth"]
    cells = {m: mdata[m].obs_names[np.argsort(truth[m]["cell"])][:k] for m in ("rna", "protein")}
    links = _links.link_table(mdata, "rna", "protein", "gene")
    return {"links": links, "pairs": pd.DataFrame(cells), "labels": "cell_type"}


def test_fingerprint_of_what_is_known(tmp_path: Path):
    mdata = toy()
    known = knowledge(mdata)
    before = read(mdata, **known).fingerprint
    assert len(before) == 64
    assert before == read(mdata, **known).fingerprint
    mdata.write(tmp_path / "x.h5mu")
    assert read(md.read_h5mu(tmp_path / "x.h5mu"), **known).fingerprint == before
    # only ratios of weights count; neither how cells are smoothed nor what they measured are knowledge
    for links in ("gene", known["links"].assign(weight=3.0)):
        assert read(mdata, **{**known, "links": links}).fingerprint == before
    assert read(mdata, **known, smooth=2, n_pcs=5).fingerprint == before
    mdata["rna"].X = mdata["rna"].X + 1
    assert read(mdata, **known).fingerprint == before


@pytest.mark.parametrize(
    "changed",
    ["no links", "fewer links", "sign", "weight", "feature", "no pairs", "pair", "no labels", "label", "names"],
)
def test_fingerprint_changes_with_what_is_known(changed: str):
    mdata = toy()
    known = knowledge(mdata)
    before = read(mdata, **known).fingerprint
    links, pairs, labels = known["links"].copy(), known["pairs"].copy(), mdata["protein"].obs["cell_type"].astype(str)
    if changed == "fewer links":
        links = links[:-1]
    elif changed in ("sign", "weight"):
        links.loc[2, changed] = {"sign": -1.0, "weight": 0.5}[changed]
    elif changed == "feature":
        links.loc[[0, 1], "protein"] = links.loc[[1, 0], "protein"].to_numpy()
    elif changed == "pair":
        pairs.loc[[0, 1], "protein"] = pairs.loc[[1, 0], "protein"].to_numpy()
    elif changed == "label":
        labels.iloc[0] = "type_B" if labels.iloc[0] == "type_A" else "type_A"
    elif changed == "names":
        # the same codes, of other labels
        for m in mdata.mod:
            mdata[m].obs["cell_type"] = mdata[m].obs["cell_type"].astype(str).str.replace("type_A", "type_AA")
    if changed == "label":
        mdata["protein"].obs["cell_type"] = labels
    known = {
        "links": None if changed == "no links" else links,
        "pairs": None if changed == "no pairs" else pairs,
        "labels": None if changed == "no labels" else "cell_type",
    }
    assert read(mdata, **known).fingerprint != before


# --- an alignment that is there ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _known_aligned() -> md.MuData:
    mdata = toy(80)
    mdata["rna"].obs["donor"] = np.resize(["x", "y"], 80)
    mdata["protein"].var["hv"] = np.arange(20) < 18
    arguments = {
        "batch": {"rna": "donor"},
        "smooth": {"protein": None},
        "n_pcs": {"rna": 9},
        "mask_var": {"protein": "hv"},
    }
    smm.tl.align(mdata, method="coupling", **knowledge(mdata), **arguments)
    return mdata


@pytest.fixture
def known_aligned(_known_aligned: md.MuData) -> md.MuData:
    """Aligned with links, pairs, labels, batches, and arguments that differ between the modalities."""
    return _known_aligned.copy()


@pytest.mark.parametrize("file", [False, True])
def test_an_alignment_is_read_again(known_aligned: md.MuData, file: bool, tmp_path: Path):
    mdata = known_aligned
    if file:
        mdata.write(tmp_path / "x.h5mu")
        mdata = md.read_h5mu(tmp_path / "x.h5mu")
    problem, domains = _read.reread(mdata, Keys())
    assert problem.fingerprint == str(mdata.uns["scmmgan"]["params"]["known"])
    assert (problem.of("rna", "protein").n_links, problem.of("rna", "protein").n_pairs) == (15, 20)
    assert problem.label_names == [f"type_{c}" for c in "ABCDE"]
    assert len(problem.modalities["rna"].batches) == 2
    assert problem.steps == {"rna": 1, "protein": 0}
    assert {m: d.x.shape[1] for m, d in domains.items()} == {"rna": 9, "protein": 18}
    for name, domain in domains.items():
        np.testing.assert_allclose(domain.x, _slots.model_space(mdata, name, name, Keys()), atol=1e-3)


@pytest.mark.parametrize("changed", ["label", "link feature", "pair"])
def test_knowledge_that_is_no_longer_there(known_aligned: md.MuData, changed: str, fingerprint: Callable):
    record = known_aligned.uns["scmmgan"]
    params = dict(record["params"])
    if changed == "label":
        known_aligned["rna"].obs["cell_type"] = known_aligned["rna"].obs["cell_type"].to_numpy()[::-1]
    elif changed == "link feature":
        params["links"] = params["links"].iloc[1:]
    else:
        params["pairs"] = params["pairs"].iloc[1:]
    known_aligned.uns["scmmgan"] = sealed({"params": params}, record)
    before = fingerprint(known_aligned)
    message = (
        "Links, pairs or labels are no longer those that 'scmmgan' was aligned with. Restore their columns, or align"
    )
    with pytest.raises(ValueError, match=message):
        _read.reread(known_aligned, Keys())
    assert fingerprint(known_aligned) == before


@pytest.mark.parametrize("changed", ["values", "width", "batches"])
def test_values_that_are_no_longer_there(known_aligned: md.MuData, changed: str):
    message = "'rna' is no longer what was aligned as 'scmmgan': align again"
    if changed == "values":
        known_aligned["rna"].X = known_aligned["rna"].X[::-1].copy()
        message = "X of 'rna' is not what was aligned as 'scmmgan' .*Restore these values, or align again"
    elif changed == "width":
        record = known_aligned.uns["scmmgan"]
        params = {**record["params"], "n_pcs": {"rna": 5, "protein": 50}}
        known_aligned.uns["scmmgan"] = sealed({"params": params}, record)
    else:
        known_aligned["rna"].obs["donor"] = np.repeat(["x", "y"], 40)
    with pytest.raises(ValueError, match=message):
        _read.reread(known_aligned, Keys())


def test_either_of_two_in_one_space_may_have_changed():
    """An unsampled value of one moves the common space, in which the other is compared first."""
    mdata = smm.datasets.toy(n_cells=80, shared_genes=True)
    smm.tl.align(mdata, "protein", "rna", method="coupling", progress_bar=False)
    sampled = mdata.uns["scmmgan"]["fingerprint"]["rna"]["rows"]
    mdata["rna"].X[np.setdiff1d(np.arange(80), sampled)] *= -9
    with pytest.raises(ValueError, match="'protein' or 'rna' is no longer what was aligned as 'scmmgan': align again"):
        _read.reread(mdata.copy(), Keys())


def test_a_column_that_is_no_longer_there(known_aligned: md.MuData):
    del known_aligned["rna"].obs["donor"]
    with pytest.raises(
        ValueError, match=r"Restore it, or align again. Found: No obs column in 'rna' for `batch` 'donor'"
    ):
        _read.reread(known_aligned, Keys())


def test_stored_arguments(known_aligned: md.MuData):
    params = known_aligned.uns["scmmgan"]["params"]
    assert _read.argument(params, "n_pcs", "rna") == 9
    assert _read.argument(params, "n_pcs", "protein") == 50
    assert _read.argument(params, "batch", "rna") == "donor"
    assert _read.argument(params, "batch", "protein") is None
    assert _read.argument(params, "layer", "rna") is None
    assert _read.argument(params, "labels", "protein") == "cell_type"
    assert [_read.given(v) for v in ("None", "gene", np.int64(3), np.bool_(True), None)] == [
        None,
        "gene",
        3,
        True,
        None,
    ]
    settings = _read.training_settings(params)
    assert settings["method"] == "coupling"
    assert settings["device"] == "cpu"
    assert settings["weights"] == {str(k): float(v) for k, v in params["weights"].items()}
    assert type(settings["max_steps"]) is int


# --- nothing touches the MuData between reading and writing ------------------------------------------------------


class TouchedError(Exception):
    """Someone asked a MuData or AnnData for something while nobody may."""


@contextlib.contextmanager
def untouchable(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """From the end of `read.read` to the beginning of `slots.write`, no MuData or AnnData answers."""
    state = {"closed": 0, "read": 0, "written": 0}

    def guarded(cls: type) -> Callable:
        original = cls.__getattribute__

        def answer(self: Any, name: str) -> Any:
            if state["closed"]:
                raise TouchedError(f"{cls.__name__}.{name}")
            return original(self, name)

        return answer

    def closing(*arguments: Any, **settings: Any) -> Problem:
        problem = read_now(*arguments, **settings)
        state.update(closed=1, read=state["read"] + 1)
        return problem

    def opening(write: Callable) -> Callable:
        def written(*arguments: Any, **settings: Any) -> None:
            state.update(closed=0, written=state["written"] + 1)
            write(*arguments, **settings)

        return written

    read_now = _read.read
    with monkeypatch.context() as patch:
        for cls in (md.MuData, ad.AnnData):
            patch.setattr(cls, "__getattribute__", guarded(cls))
        patch.setattr(_read, "read", closing)
        for name in ("write", "write_latent"):
            patch.setattr(_slots, name, opening(getattr(_slots, name)))
        try:
            yield state
        finally:
            state["closed"] = 0


PATHS: dict[str, Mapping[str, Any]] = {
    "links": {"links": "gene", "max_steps": 2},
    "shapes": {"links": None, "method": "coupling"},
    "everything": {"links": "gene", "pairs": "known", "labels": "cell_type", "batch": {"rna": "donor"}, "max_steps": 2},
    "tissue": {"links": "gene", "spatial": "spatial", "max_steps": 2, "smooth": 2, "features": []},
    "representation": {"use_rep": {"protein": "X_rep"}, "links": None, "method": "coupling"},
    "shared space": {"links": "var_names", "max_steps": 2},
    "no coupling": {"labels": "cell_type", "method": "con-aae", "max_steps": 2, "hidden": 8},
}


@pytest.mark.parametrize("path", PATHS)
def test_nothing_touches_the_mudata_between_reading_and_writing(monkeypatch: pytest.MonkeyPatch, path: str):
    genes = {"shared_genes": True, "n_features": [50, 50]} if path == "shared space" else {"n_linked": 8}
    mdata = toy(64, spatial=True, **genes)
    mdata["rna"].obs["donor"] = np.resize(["x", "y"], 64)
    mdata["protein"].obsm["X_rep"] = mdata["protein"].X[:, :6].copy()
    if path == "everything":
        mdata["protein"].obs_names = [*mdata["rna"].obs_names[:4], *mdata["protein"].obs_names[4:]]
        mdata["rna"].obs["known"] = True
    with untouchable(monkeypatch) as state:
        smm.tl.align(mdata, progress_bar=False, **PATHS[path])
    assert (state["read"], state["written"]) == (1, 1)
    assert "X_scmmgan" in mdata["rna"].obsm


@pytest.mark.parametrize(
    ("peek", "stage"),
    [
        ("mdata.n_obs", "coupling.couple.couple"),
        pytest.param("mdata['rna']", "evidence.populations.diagnose", marks=pytest.mark.slow),
        pytest.param("'rna' in mdata.mod", "nets.methods.fit_problem", marks=pytest.mark.slow),
        ("adata.X", "evidence.quality.score_map"),
        pytest.param("adata[:3]", "evidence.verdict.verdicts", marks=pytest.mark.slow),
    ],
)
def test_the_checker_sees_a_peek(monkeypatch: pytest.MonkeyPatch, peek: str, stage: str):
    """A stage that looks at the data once more, after it has been read."""
    mdata = toy(50, n_linked=8)
    adata, (module, name) = mdata["rna"], stage.rsplit(".", 1)
    original, peeked = getattr(importlib.import_module(f"scmmgan.model.{module}"), name), []

    def peeking(*arguments: Any, **settings: Any) -> Any:
        peeked.append(eval(peek, {"mdata": mdata, "adata": adata}))
        return original(*arguments, **settings)

    monkeypatch.setattr(f"scmmgan.model.{stage}", peeking)
    with untouchable(monkeypatch), pytest.raises(TouchedError):
        smm.tl.align(mdata, links="gene", method="coupling")
    assert peeked == []
    # without the guard it goes unseen
    smm.tl.align(mdata, links="gene", method="coupling")
    assert len(peeked) == 1
