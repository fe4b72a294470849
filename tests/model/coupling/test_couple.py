"""Which knowledge makes the coupling: links, pairs or labels, many or few; and what they become in model space."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.data import known as _known
from scmmgan.data import links as _links
from scmmgan.data import modality as _domain
from scmmgan.model.coupling import couple as _prior


def read(mdata: md.MuData, links: Any = None, smooth: int | None = None) -> tuple[list[_domain.Domain], dict, bool]:
    names = list(mdata.mod)
    nothing = dict.fromkeys(names)
    tables = _prior.tables(mdata, names, links, nothing)
    domains, shared = _domain.read_domains(
        mdata, names, layer=nothing, use_rep=nothing, mask_var=nothing, smooth=dict.fromkeys(names, smooth), n_pcs=nothing,
        links=tables, batches=nothing, labels=None, denoise=False, own_share=0.0, random_state=0,
    )  # fmt: skip
    return domains, tables, shared


def true_pairs(mdata: md.MuData, k: int) -> np.ndarray:
    """Row numbers of k cells that are the same."""
    rows = [np.argsort(mdata.uns["truth"][m]["cell"]) for m in ("rna", "protein")]
    return np.stack(rows, axis=1)[np.random.default_rng(0).permutation(mdata["rna"].n_obs)[:k]]


def couple(mdata: md.MuData, links: Any = None, pairs: int = 0, labels: bool = False) -> tuple[dict, dict]:
    domains, tables, shared = read(mdata, links)
    known = {("rna", "protein"): true_pairs(mdata, pairs)} if pairs else {}
    codes = _known.read_labels(mdata, list(mdata.mod), dict.fromkeys(mdata.mod, "cell_type")) if labels else None
    return _prior.couplings(domains, tables, known, codes, shared=shared, random_state=0)


@pytest.fixture
def tiny() -> md.MuData:
    """120 cells, for what Gromov-Wasserstein is run on."""
    return smm.datasets.toy(n_cells=120, n_features=[30, 20])


@pytest.mark.parametrize(
    ("links", "pairs", "labels", "kind", "relaxed"),
    [
        ("gene", 0, False, "links", True),
        ("gene", 5, True, "links", True),
        (None, 100, False, "pairs", True),
        (None, 100, True, "pairs", True),
        (None, 99, False, "geometry", False),
        (None, 0, True, "geometry", True),
        (None, 0, False, "geometry", False),
    ],
)
def test_what_makes_the_coupling(tiny: md.MuData, links: Any, pairs: int, labels: bool, kind: str, relaxed: bool):
    found, loadings = couple(tiny, links, pairs, labels)
    assert set(found) == {("rna", "protein"), ("protein", "rna")}
    for c in found.values():
        assert c.info["kind"] == kind
        assert c.relaxed == relaxed
        assert c.known.sum() == pairs
        assert ("link_weight" in c.info) == (links is not None)
    assert set(loadings) == (set(found) if links else set())


def test_nine_links_with_pairs_serve_the_loss_only():
    mdata = smm.datasets.toy(n_cells=130, n_linked=9, n_features=[30, 20])
    found, loadings = couple(mdata, "gene", pairs=110)
    assert found["rna", "protein"].info["kind"] == "pairs"
    source, target, sign, weight = loadings["rna", "protein"]
    assert source.shape == (30, 9)
    assert target.shape == (20, 9)
    np.testing.assert_array_equal(sign, 1)
    np.testing.assert_array_equal(weight, 1)


def test_loadings_weigh_as_the_links_earned(tiny: md.MuData):
    """The weights of the table, over the largest, times those that links earn; wrong links have next to none."""
    table = _links.link_table(tiny, "rna", "protein", "gene")
    wrong = pd.DataFrame({"rna": tiny["rna"].var_names[-3:], "protein": tiny["protein"].var_names[-3:]})
    table = pd.concat([table.assign(weight=2.0), wrong.assign(weight=2.0, sign=1.0)], ignore_index=True)
    found, loadings = couple(tiny, table)
    earned = found["rna", "protein"].info["link_weight"]
    for (a, b), (source, target, _, weight) in loadings.items():
        np.testing.assert_allclose(weight, earned)
        domains = {d.name: d for d in read(tiny, table)[0]}
        for m, loading in ((a, source), (b, target)):
            at = domains[m].var_names.get_indexer(table[m])
            np.testing.assert_allclose(loading, domains[m].transform.decoder[:, at], atol=1e-6)
    assert earned[:-3].mean() > 2 * earned[-3:].mean()


def test_linked_values_carry_signs_and_weights(tiny: md.MuData):
    domains, tables, _ = read(tiny, "gene")
    table = tables["rna", "protein"].assign(weight=4.0)
    table.loc[3, "sign"] = -1.0
    plain = _prior.linked_values(*domains, tables["rna", "protein"], shared=False)
    found = _prior.linked_values(*domains, table, shared=False)
    turned = np.where(np.arange(15) == 3, -2, 2)
    np.testing.assert_allclose(found["rna"], plain["rna"] * turned, atol=1e-5)
    np.testing.assert_allclose(found["protein"], plain["protein"] * 2, atol=1e-5)
    np.testing.assert_allclose(plain["rna"].std(0), 1, atol=1e-3)


def test_noisy_links_are_read_smoothed(caplog: pytest.LogCaptureFixture):
    mdata = smm.datasets.toy(n_cells=300)
    for noise in (0, 3):
        for m, rng in zip(mdata.mod, np.random.default_rng(0).spawn(2)):
            at = mdata[m].var["gene"].isin(set.intersection(*(set(mdata[k].var["gene"]) for k in mdata.mod))).to_numpy()
            spread = mdata[m].X[:, at].std(0)
            mdata[m].X[:, at] += (noise * spread * rng.normal(size=(300, at.sum()))).astype(np.float32)
        domains, tables, shared = read(mdata, "gene", smooth=2)
        with caplog.at_level(logging.INFO, logger="scmmgan"):
            _prior.couplings(domains, tables, {}, None, shared=shared, random_state=0)
        assert ("'rna' and 'protein' are read smoothed" in caplog.text) == (noise > 0)


def test_verdicts_read_smoothed_links(tiny: md.MuData):
    """They compare landmarks, in which a cell's own values are lost anyway."""
    domains, tables, _ = read(tiny, "gene", smooth=3)
    found = _prior.linked_values(*domains, tables["rna", "protein"], shared=False)
    half = _prior.linked_values(*domains, tables["rna", "protein"], shared=False, half=True)
    for d in domains:
        at = d.var_names.get_indexer(pd.Index(tables["rna", "protein"][d.name]))
        np.testing.assert_allclose(found[d.name], d.zscored(at), atol=1e-5)
        np.testing.assert_allclose(half[d.name], d.half_smoothed(at), atol=1e-5)
        assert np.abs(found[d.name] - half[d.name]).max() > 0.1


@pytest.mark.parametrize("constant", [0.1, 3.0, 1e6])
def test_links_that_are_constant_but_for_rounding_are_left_out(caplog: pytest.LogCaptureFixture, constant: float):
    """Smoothing leaves 1e-7 of a constant, which z-scores would take for a feature."""
    mdata = smm.datasets.toy(n_cells=120, n_features=[30, 20])
    names = mdata["rna"].var_names[mdata["rna"].var["gene"].isin(mdata["protein"].var["gene"])][:4]
    mdata["rna"].X[:, mdata["rna"].var_names.get_indexer(names)] = constant
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        domains, tables, _ = read(mdata, "gene", smooth=3)
        names_left = _prior.telling(tables, {d.name: d for d in domains}, explicit=True)["rna", "protein"]["rna"]
    assert "4 of 15 links name a constant feature" in caplog.text
    assert not names_left.isin(names).any()
    assert not domains[0].half_smoothed(domains[0].var_names.get_indexer(names)).any()


def test_links_compare_cells_by_what_they_are_themselves(monkeypatch: pytest.MonkeyPatch):
    """Where neighbours are alike in other features, smoothing blurs the linked ones: half of each is as they were measured."""
    rng, mods = np.random.default_rng(0), {}
    for m in ("a", "b"):
        own, common = rng.normal(size=(500, 4)), rng.normal(size=(500, 3))
        slopes = np.random.default_rng(1).normal(size=(3, 12))
        linked = common @ slopes + 0.5 * rng.normal(size=(500, 12))
        # many features of its own decide who is a neighbour
        rest = own @ rng.normal(size=(4, 60)) + 0.3 * rng.normal(size=(500, 60))
        names = [f"g{i}" for i in range(12)] + [f"{m}_own{i}" for i in range(60)]
        obs = pd.DataFrame(common, columns=list("xyz")).set_axis([f"{m}{i}" for i in range(500)])
        mods[m] = ad.AnnData(np.hstack([linked, rest]).astype(np.float32), obs=obs, var=pd.DataFrame(index=names))
    mdata = md.MuData(mods)
    domains, tables, shared = read(mdata, "var_names", smooth=3)

    def carried() -> float:
        found, _ = _prior.couplings(domains, tables, {}, None, shared=shared, random_state=0)
        there = found["a", "b"].plan @ found["a", "b"].landmarks.mean(mdata["b"].obs.to_numpy())
        return float(np.mean([np.corrcoef(v, w)[0, 1] for v, w in zip(there.T, mdata["a"].obs.to_numpy().T)]))

    assert not shared
    both = carried()
    monkeypatch.setattr(_domain.Domain, "half_smoothed", _domain.Domain.zscored)
    smoothed_only = carried()
    assert both > 0.6
    assert both > smoothed_only + 0.1


@pytest.mark.parametrize("shared_genes", [False, True])
def test_links_are_smoothed_by_half_outside_of_shared_spaces(monkeypatch: pytest.MonkeyPatch, shared_genes: bool):
    from scmmgan.model.coupling import coupling

    mdata = smm.datasets.toy(n_cells=120, n_features=[60, 60], shared_genes=shared_genes)
    domains, tables, shared = read(mdata, "auto" if shared_genes else "gene", smooth=2)
    assert shared == shared_genes
    seen, original = {}, coupling.couple_known
    monkeypatch.setattr(
        coupling, "couple_known", lambda x, linked, **k: (seen.update(linked), original(x, linked, **k))[1]
    )
    _prior.couplings(domains, tables, {}, None, shared=shared, random_state=0)
    for d in domains:
        table = next(iter(tables.values()))
        at = d.var_names.get_indexer(pd.Index(table[d.name]))
        weight = np.sqrt(table["weight"].to_numpy()) * (table["sign"].to_numpy() if d is domains[0] else 1)
        halves = {True: d.zscored(at), False: d.half_smoothed(at)}
        np.testing.assert_allclose(seen[d.name], halves[shared] * weight, atol=1e-5)
        assert np.abs(halves[True] - halves[False]).max() > 0.1


@pytest.fixture
def lacking() -> md.MuData:
    """A toy whose protein side lacks the type of the first cell of rna."""
    mdata = smm.datasets.toy(n_cells=200, n_features=[60, 60])
    kept = mdata["protein"].obs["cell_type"] != mdata["rna"].obs["cell_type"].iloc[0]
    mdata.mod["protein"] = mdata["protein"][kept].copy()
    return mdata


def alone_and_found(
    monkeypatch: pytest.MonkeyPatch, problem: tuple, pairs: dict, labels: dict | None
) -> tuple[dict, dict]:
    """Couplings as they are made, and as `_prior.couplings` hands them out."""
    from scmmgan.model.coupling import coupling

    domains, tables, shared = problem
    alone: dict = {}

    def recorded(couple: Any) -> Any:
        def wrapped(*args: Any, **settings: Any) -> dict:
            one = couple(*args, **settings)
            alone.update(one)
            return one

        return wrapped

    for name in ("couple_known", "couple_geometry"):
        monkeypatch.setattr(coupling, name, recorded(getattr(coupling, name)))
    return alone, _prior.couplings(domains, tables, pairs, labels, shared=shared, random_state=0)[0]


def averaged(weight: np.ndarray, domain: _domain.Domain) -> np.ndarray:
    """By two steps, however many the features took."""
    step = domain.smoothed.operator.toarray().astype(np.float64)
    return step @ step @ weight.astype(np.float64)


@pytest.mark.parametrize("smooth", [None, 1, 3])
@pytest.mark.parametrize(("links", "n_pairs"), [("gene", 0), ("gene", 30), (None, 100)])
def test_cells_are_matched_as_far_as_their_neighbours_are(
    monkeypatch: pytest.MonkeyPatch, lacking: md.MuData, links: str | None, n_pairs: int, smooth: int | None
):
    domains, *rest = read(lacking, links, smooth=smooth)
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(len(d.x))[:n_pairs] for d in domains], axis=1)
    pairs = {("rna", "protein"): rows} if n_pairs else {}
    alone, found = alone_and_found(monkeypatch, (domains, *rest), pairs, None)
    for i, d in enumerate(domains):
        pair = (d.name, domains[1 - i].name)
        expected = averaged(alone[pair].weight, d) if smooth else alone[pair].weight.copy()
        if smooth:
            assert np.abs(expected - alone[pair].weight).max() > 0.01
        expected[rows[:, i]] = 1
        weight = found[pair].weight
        assert weight.dtype == np.float32
        assert weight.min() >= 0
        assert weight.max() <= 1
        np.testing.assert_allclose(weight, expected, atol=1e-5)
        # nothing else is touched
        np.testing.assert_array_equal(found[pair].anchors, alone[pair].anchors)
        assert (found[pair].plan != alone[pair].plan).nnz == 0
        # from 0 to 1
        of = lacking[d.name].obs["cell_type"]
        whole = replace(alone[pair], weight=(of != of.iloc[0]).to_numpy(dtype=np.float32))
        drawn = _prior._with_neighbors(whole, d.smoothed).weight[~whole.known]
        assert drawn.min() < 0.2
        assert drawn.max() > 0.9
        expected = averaged(whole.weight, d) if smooth else whole.weight
        np.testing.assert_allclose(drawn, expected[~whole.known], atol=1e-5)


def test_cells_are_matched_as_their_neighbours_in_shared_spaces_and_between_all_modalities(
    monkeypatch: pytest.MonkeyPatch,
):
    shared = smm.datasets.toy(n_cells=150, n_features=[60, 60], shared_genes=True)
    problem = read(shared, "auto", smooth=1)
    assert problem[2]
    three = md.MuData(dict(shared.mod.items()) | {"third": shared["protein"][20:].copy()})
    for of in (problem, read(three, "auto", smooth=1)):
        alone, found = alone_and_found(monkeypatch, of, {}, None)
        assert len(found) == len(of[0]) * (len(of[0]) - 1)
        for d in of[0]:
            for pair in (pair for pair in found if pair[0] == d.name):
                np.testing.assert_allclose(found[pair].weight, averaged(alone[pair].weight, d), atol=1e-5)


@pytest.mark.parametrize("swapped", [0.0, 0.4])
def test_neighbours_do_not_match_cells_of_a_label_that_the_other_side_lacks(
    monkeypatch: pytest.MonkeyPatch, lacking: md.MuData, swapped: float
):
    domains, *rest = read(lacking, "gene", smooth=2)
    codes = {m: lacking[m].obs["cell_type"].astype("category").cat.codes.to_numpy().astype(int) for m in lacking.mod}
    names = lacking["rna"].obs["cell_type"].astype("category").cat.categories
    codes["protein"] = names.get_indexer(lacking["protein"].obs["cell_type"])
    missing = codes["rna"][0]
    # neighbours do not bear such labels out: the smoothing crosses them
    rng = np.random.default_rng(0)
    out = rng.random(len(codes["rna"])) < swapped
    codes["rna"] = np.where(out, rng.permutation(codes["rna"]), codes["rna"])
    alone, found = alone_and_found(monkeypatch, (domains, *rest), {}, codes)
    for pair, coupling in found.items():
        np.testing.assert_array_equal(coupling.weight, alone[pair].weight)
    weight = found["rna", "protein"].weight
    assert weight[codes["rna"] == missing].max() < 0.05
    assert np.median(weight[codes["rna"] != missing]) > 0.95


def test_shapes_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch, lacking: md.MuData):
    alone, found = alone_and_found(monkeypatch, read(lacking, None, smooth=2), {}, None)
    for pair, coupling in found.items():
        np.testing.assert_array_equal(coupling.weight, alone[pair].weight)


def test_telling_links(tiny: md.MuData, caplog: pytest.LogCaptureFixture):
    tiny["protein"].X[:, :2] = 3
    flat = set(tiny["protein"].var_names[:2])
    table = pd.DataFrame({m: tiny[m].var_names[:6] for m in ("rna", "protein")}).assign(weight=1.0, sign=1.0)
    domains, tables, _ = read(tiny, table)
    by_name = {d.name: d for d in domains}
    kept = _prior.telling(tables, by_name, explicit=True)["rna", "protein"]
    assert len(kept) == 4
    assert not flat & set(kept["protein"])
    assert "2 of 6 links name a constant feature" in caplog.text
    few = {pair: t.iloc[:4] for pair, t in tables.items()}
    with pytest.raises(ValueError, match="Of 4 links between 'rna' and 'protein' 2 have features that vary in both"):
        _prior.telling(few, by_name, explicit=True)
    assert _prior.telling(few, by_name, explicit=False) == {}


@pytest.mark.parametrize(
    ("pairs", "labels", "level", "message"),
    [
        (0, False, logging.INFO, "No links say which populations of 'rna' and 'protein' correspond.*mirror image"),
        (4, False, logging.INFO, "coupled by their shapes with the help of 4 known pairs"),
        (4, True, logging.INFO, "coupled by their shapes with the help of 4 known pairs and labels"),
        (0, True, logging.INFO, "coupled by their shapes with the help of labels"),
    ],
)
def test_what_is_said_of_shapes(caplog: pytest.LogCaptureFixture, pairs: int, labels: bool, level: int, message: str):
    given = {"pairs": np.zeros((pairs, 2), int) if pairs else None, "labels": {} if labels else None}
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        _prior._warn_of_geometry("rna", "protein", given)
    (record,) = caplog.records
    assert record.levelno == level
    assert pd.Series([record.getMessage()]).str.contains(message).all()


def test_one_set_of_landmarks_per_modality(monkeypatch: pytest.MonkeyPatch):
    """Pairs tell two of three modalities apart, shapes the others: landmarks of a modality are the same for all."""
    from scmmgan.model.coupling import landmarks

    monkeypatch.setattr(landmarks, "GEOMETRY_LANDMARKS", 20)
    mdata = smm.datasets.toy(n_cells=130, n_modalities=3, n_features=[30, 20, 25])
    domains, _, _ = read(mdata)
    pairs = {("rna", "protein"): np.tile(np.arange(110)[:, None], (1, 2))}
    found, _ = _prior.couplings(domains, {}, pairs, None, shared=False, random_state=0)
    for m in mdata.mod:
        first, second = (c.landmarks for (_, b), c in found.items() if b == m)
        np.testing.assert_array_equal(first.label, second.label)
        assert len(first.mass) == 20
    assert found["rna", "protein"].info["kind"] == "pairs"
    assert found["atac", "protein"].info["kind"] == "geometry"


def test_of_too_many_links_the_heaviest_of_the_most_variable_serve(monkeypatch: pytest.MonkeyPatch):
    """Six peaks a gene: one each is kept, and of the genes those with the largest variance over mean."""
    monkeypatch.setattr(_prior, "MAX_LINKED", 4)
    genes = [f"g{i}" for i in range(6)]
    table = pd.DataFrame(
        [(gene, f"{gene}_p{j}", 1 / (1 + j), 1.0) for gene in genes for j in range(6)][::-1],
        columns=["rna", "atac", "weight", "sign"],
    )
    transform = SimpleNamespace(sd=np.array([1.0, 5, 2, 4, 3, 0.5]), mean=np.ones(6))
    domains: Any = {"rna": SimpleNamespace(var_names=pd.Index(genes), transform=transform)}
    kept = _prior._fewer(table, domains)
    assert sorted(kept["rna"]) == ["g1", "g2", "g3", "g4"]
    assert set(kept["atac"]) == {f"{gene}_p0" for gene in kept["rna"]}
    assert len(_prior._fewer(table[:4], domains)) == 4
    # equal names make a shared space, which chooses by itself
    named = table.assign(atac=table["rna"])
    assert len(_prior._fewer(named, domains)) == len(named)


def test_of_three_modalities_some_may_share_no_links(caplog: pytest.LogCaptureFixture):
    """A `var` column or a table that names features of two of three; a choice that links none is still an error."""
    mdata = smm.datasets.toy(n_cells=60, n_modalities=3, n_features=[30, 20, 25])
    del mdata["atac"].var["gene"]
    nothing = dict.fromkeys(mdata.mod)
    names = list(mdata.mod)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        found = _prior.tables(mdata, names, "gene", nothing)
    assert ("rna", "protein") in found
    assert all(len(table) >= 3 for table in found.values())
    table = found["rna", "protein"]
    assert list(_prior.tables(mdata, names, table, nothing)) == [("rna", "protein")]
    with pytest.raises(KeyError, match="genes"):
        _prior.tables(mdata, names, "genes", nothing)
    with pytest.raises(ValueError, match="at least 3"):
        _prior.tables(mdata, names, table[:2], nothing)


def test_link_tables_with_gaps_and_extreme_weights():
    mdata = smm.datasets.toy(n_cells=60, n_modalities=3, n_features=[30, 20, 25])
    nothing = dict.fromkeys(mdata.mod)
    gene = _links.link_table(mdata, "rna", "protein", "gene")
    both = pd.concat([gene[["rna", "protein"]], _links.link_table(mdata, "rna", "atac", "gene")[["rna", "atac"]]])
    found = _prior.tables(mdata, list(mdata.mod), both, nothing)
    assert set(found) == {("rna", "protein"), ("rna", "atac")}
    assert len(found["rna", "protein"]) == len(gene)
    for weight in (1e80, 1e-60):
        scaled = _prior.tables(mdata, ["rna", "protein"], gene.assign(weight=weight), nothing)
        assert (scaled["rna", "protein"]["weight"] == 1).all()
