"""Generated inputs: every public function gives a result that is finite and complete, or one of our errors and nothing else.

131 cases by default; `HYPOTHESIS_PROFILE=thorough` makes 2,000. The same cases in every run.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, Phase, event, given, reject, settings
from hypothesis import strategies as st

import scmmgan as smm
from scmmgan.settings import unpulled

PACKAGE = str(Path(smm.__file__).parent)
TIMES = 15 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 1


def cases(n: int) -> Callable:
    return settings(
        max_examples=n * TIMES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Three shuffled tables for 99 and few landmarks and starts of shapes: no number depends on them here, and they cost most."""
    from scmmgan.model.coupling import couple, gromov
    from scmmgan.model.evidence import heldout

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "held_out_links", partial(heldout.held_out_links, n_null=3))
        patch.setattr(couple, "SHAPE_LANDMARKS", 12)
        patch.setattr(gromov, "N_STARTS", 20)
        patch.setattr(gromov, "N_POLISHED", 3)
        yield


# --- what is generated -------------------------------------------------------------------------------------------

MATRICES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "counts": lambda x, rng: rng.poisson(x).astype(np.float32),
    "whole": lambda x, rng: rng.poisson(x),
    "bytes": lambda x, rng: rng.poisson(x).astype(np.uint8),
    "boolean": lambda x, rng: x > 1,
    "half": lambda x, rng: np.log1p(x).astype(np.float16),
    "double": lambda x, rng: np.log1p(x),
    "tiny": lambda x, rng: np.log1p(x) * 1e-30,
    "huge": lambda x, rng: np.log1p(x) * 1e30,
    "beyond float32": lambda x, rng: np.log1p(x) * 1e200,
    "scaled": lambda x, rng: (x - x.mean(0)) / np.maximum(x.std(0), 1e-9) if len(x) else x,
    "negative": lambda x, rng: -np.log1p(x),
    "constant": lambda x, rng: np.ones_like(x),
    "zeros": lambda x, rng: np.zeros_like(x),
    "nearly constant": lambda x, rng: np.where(np.arange(x.size).reshape(x.shape) == 0, 1.0, 0.0),
    "copies": lambda x, rng: np.log1p(np.repeat(x[:1], len(x), axis=0)) if len(x) else x,
    "two kinds": lambda x, rng: np.log1p(x[np.arange(len(x)) % 2]) if len(x) > 1 else x,
    "rank one": lambda x, rng: np.outer(np.arange(x.shape[0]), np.ones(x.shape[1])),
    "nan": lambda x, rng: np.where(rng.random(x.shape) < 0.02, np.nan, x),
    "infinite": lambda x, rng: np.where(rng.random(x.shape) < 0.02, -np.inf, x),
    "complex": lambda x, rng: x.astype(np.complex64),
    "rare": lambda x, rng: np.where(rng.random(x.shape) < 0.03, x, 0),
}
STORAGE: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr array": sp.csr_array,
    "with zeros": lambda x: stored_zeros(x),
}


def stored_zeros(x: np.ndarray) -> sp.csr_matrix:
    """Every entry stored, columns backwards."""
    n, g = x.shape
    return sp.csr_matrix((x[:, ::-1].ravel(), np.tile(np.arange(g)[::-1], n), np.arange(n + 1) * g), shape=x.shape)


NAMES: dict[str, Callable[[int, str], list[str]]] = {
    "shared": lambda n, of: [f"GENE{i}" for i in range(n)],
    "own": lambda n, of: [f"{of}_{i}" for i in range(n)],
    "case": lambda n, of: [f"gene{i}" for i in range(n)],
    "affix": lambda n, of: [f"GENE{i}_TotalSeqB" for i in range(n)],
    "antibodies": lambda n, of: [f"CD{i}" for i in range(1, n + 1)],
    "places": lambda n, of: [f"chr1:{1000 * i}-{1000 * i + 500}" for i in range(n)],
    "numbers": lambda n, of: [str(i) for i in range(n)],
    "gaps": lambda n, of: [("nan", "None", "<NA>", "-", "NA")[i] if i < 5 else f"GENE{i}" for i in range(n)],
    "lists": lambda n, of: [f"GENE{i},GENE{i + 1}" for i in range(n)],
    "odd": lambda n, of: [("/", " ", "é\u0301", "\u0000", "a;b", "|", ";")[i % 7] + str(i) for i in range(n)],
    "equal": lambda n, of: ["GENE1" for i in range(n)],
}
COLUMNS: dict[str, Callable[[int, np.random.Generator], Any]] = {
    "text": lambda n, rng: rng.choice(["A", "B"], n).astype(object),
    "categories": lambda n, rng: pd.Categorical(rng.choice(["A", "B"], n), categories=["C", "B", "A"]),
    "gaps": lambda n, rng: np.where(rng.random(n) < 0.5, "A", rng.choice(["nan", "B"], n)).astype(object),
    "whole": lambda n, rng: rng.integers(0, 3, n),
    "nullable": lambda n, rng: pd.array([None, *rng.integers(0, 3, n)][:n], dtype="Int64"),
    "numbers": lambda n, rng: rng.normal(size=n),
    "infinite": lambda n, rng: np.where(np.arange(n) == 0, np.inf, rng.normal(size=n)),
    "boolean": lambda n, rng: rng.random(n) < 0.7,
    "yes and no": lambda n, rng: rng.choice(["True", "False"], n).astype(object),
    "one kind": lambda n, rng: np.full(n, "A", dtype=object),
    "all different": lambda n, rng: np.array([f"L{i}" for i in range(n)], dtype=object),
    "nothing": lambda n, rng: np.full(n, np.nan),
    "dates": lambda n, rng: pd.date_range("2020-01-01", periods=n),
    "mixed": lambda n, rng: np.array([("A", 1, None, 2.5)[i % 4] for i in range(n)], dtype=object),
}


def mostly(usual: list, odd: list) -> st.SearchStrategy:
    """The usual 15 times of 16, about."""
    return st.sampled_from(usual * -(-15 * len(odd) // len(usual)) + odd)


SHAPES = mostly([(32, 5), (40, 12), (48, 20), (34, 3)], [(31, 5), (0, 3), (1, 1), (40, 1), (33, 0), (70, 30)])


@st.composite
def modalities(draw: Any, of: str, *, well: bool = True) -> ad.AnnData:
    """A modality: values in any type and storage; names; a layer, a representation, coordinates and columns."""
    n, g = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    usual = ["double", "half", "scaled"] if well else ["counts", "whole", "bytes"]
    # one cell in the rows of both modalities, so that links may find it
    cells, loadings = np.random.default_rng(0).normal(size=(n, 3)), np.random.default_rng(1).normal(size=(3, g))
    x = MATRICES[draw(mostly(usual, list(MATRICES)))](np.exp(cells @ loadings + rng.normal(0, 0.3, (n, g))), rng)
    store = STORAGE[draw(st.sampled_from(list(STORAGE)))]
    obs_names = NAMES[draw(mostly(["shared", "own"], ["equal", "odd", "numbers"]))](n, of)
    var_names = NAMES[draw(mostly(["shared", "own", "antibodies", "lists"], list(NAMES)))](g, of)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            out = ad.AnnData(store(x), obs=pd.DataFrame(index=obs_names), var=pd.DataFrame(index=var_names))
            out.layers["other"] = store(np.abs(x))
        except (ValueError, TypeError):
            reject()  # AnnData takes no such matrix
    out.var["gene"] = np.array(NAMES[draw(mostly(["shared"], list(NAMES)))](g, of), dtype=object)
    out.var["mask"] = draw(mostly([True], [False])) & (np.arange(g) % 3 > 0)
    out.obsm["rep"] = rng.normal(size=(n, draw(st.integers(1, 4))))
    out.obsm["spatial"] = rng.normal(size=(n, 2)) if draw(mostly([True], [False])) else np.full((n, 2), np.nan)
    for column in ("first", "second"):
        out.obs[column] = COLUMNS[draw(mostly(["text", "categories", "whole", "boolean"], list(COLUMNS)))](n, rng)
    return out


@st.composite
def objects(draw: Any) -> dict[str, ad.AnnData]:
    """Two modalities, rarely three."""
    pair = ("rna", "protein")
    odd = [("rna", "protein", "atac"), ("weight", "ж"), ("a/b", "c"), ("x", "x_plan_x")]
    return {name: draw(modalities(name)) for name in draw(mostly([pair], odd))}


def joined(parts: dict[str, ad.AnnData]) -> md.MuData:
    """The modalities as one object, without what MuData says of them; no case where it does not take them."""
    with warnings.catch_warnings(), unpulled():
        warnings.simplefilter("ignore")
        try:
            return md.MuData(parts)
        except (ValueError, TypeError, KeyError, IndexError, pd.errors.InvalidIndexError):
            reject()


@st.composite
def tables(draw: Any, mdata: md.MuData, axis: str) -> pd.DataFrame:
    """A table of links or pairs: names of both sides, some of them wrong, missing or repeated."""
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    sides = {name: getattr(adata, f"{axis}_names") for name, adata in mdata.mod.items()}
    n = min(draw(st.sampled_from([0, 2, 3, 12, 40])), *(len(names) for names in sides.values()))
    table = pd.DataFrame({name: names[:n].to_numpy(dtype=object) for name, names in sides.items()})
    if n and (change := draw(mostly([""], ["unknown", "gap", "twice", "number", "column"]))):
        first = table.columns[0]
        if change == "column":
            return table.rename(columns={first: "other"})
        table.loc[0, first] = {"unknown": "no such", "gap": None, "twice": table[first].iloc[-1], "number": 3}[change]
    if axis == "var" and draw(st.booleans()):
        table["weight"] = rng.random(n) if draw(mostly([True], [False])) else -1.0
        table["sign"] = draw(mostly([1], [-1, 0, "x", np.nan]))
    return table


# --- the contract ------------------------------------------------------------------------------------------------


def attempt(call: Callable[[], Any], mdata: md.MuData, fingerprint: Callable) -> tuple[bool, Any]:
    """Whether there is a result, and which, with inputs as they were; else one of our errors, and nothing written."""
    before, out, error = fingerprint(mdata), None, None
    try:
        out = call()
    except (ValueError, KeyError, TypeError) as found:
        error = found
    if error is not None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        assert where.filename.startswith(PACKAGE), f"raised in {where}: {error!r}"
        assert str(where.line).startswith("raise"), f"{where}: {error!r}"
        # what was wrong, and what to do
        assert isinstance(error.args[0], str)
        assert len(error.args[0].split()) > 5, error
    event("a result" if error is None else "refused")
    after = fingerprint(mdata)
    if error is not None:
        assert after == before
    else:
        # what tools write may replace what they wrote before
        inputs = [slot for slot in before if "scmmgan" not in slot and not slot.endswith(".var")]
        assert {slot: after.get(slot) for slot in inputs} == {slot: before[slot] for slot in inputs}
    return error is None, out


def finite(values: Any) -> bool:
    return bool(np.isfinite(values.data if sp.issparse(values) else np.asarray(values, dtype=float)).all())


# arguments of which at most two are not the default
ODD: dict[str, list] = {
    "links": ["gene", "auto", "table", "var_names", None, "none such", "mask"],
    "pairs": ["table", "obs_names", "first", "none such"],
    "labels": ["first", "second", {"rna": "first"}],
    "batch": ["first", {"rna": "second"}],
    "layer": ["other", {"rna": "other"}, "none such"],
    "use_rep": ["rep", {"protein": "rep"}, "none such"],
    "mask_var": ["mask", "gene"],
    "spatial": ["spatial", "rep", "none such"],
    "n_pcs": [1, 3, 0],
    "smooth": [0, 2, None, -1],
    "features": [["GENE1"], [], ["none such"]],
    "key_added": ["x", "a/b", ""],
}


@cases(27)
@given(data=st.data())
def test_align(data: st.DataObject, fingerprint: Callable):
    mdata, draw = joined(data.draw(objects())), data.draw
    names = list(mdata.mod)
    arguments: dict[str, Any] = {"links": draw(mostly(["gene", "auto", "table"], [None])), "key_added": "scmmgan"}
    for name in draw(st.lists(st.sampled_from(list(ODD)), max_size=2, unique=True)):
        arguments[name] = draw(st.sampled_from(ODD[name]))
    if isinstance(arguments["links"], str) and arguments["links"] == "table":
        arguments["links"] = draw(tables(mdata, "var"))
    if arguments.get("pairs") == "table":
        arguments["pairs"] = draw(tables(mdata, "obs"))
    done, _ = attempt(
        lambda: smm.tl.align(mdata, method="coupling", progress_bar=False, **arguments), mdata, fingerprint
    )
    if not done:
        return
    key = arguments["key_added"]
    trained = smm.get.model(mdata, key=key)
    joint = smm.get.embedding(mdata, key=key)
    assert joint.n_obs == sum(adata.n_obs for adata in mdata.mod.values())
    assert finite(joint.X)
    features = mdata.uns[key]["features"]
    for a in names:
        for b in names:
            if a == b:
                continue
            rows, columns = smm.get.mapped(mdata, a, b, key=key, features=list(features[b])).shape
            assert (rows, columns) == (mdata[a].n_obs, len(features[b]))
            if len(features[b]):
                assert finite(smm.get.mapped(mdata, a, b, key=key).X)
            plan = mdata[a].obsm[f"{key}_plan_{b}"]
            assert finite(plan)
            assert plan.shape == (mdata[a].n_obs, len(mdata.uns[key]["landmarks"][b]))
            assert isinstance(smm.get.diagnosis(mdata, a, b, key=key)["verdict"], str)
    assert trained.modalities == names


@cases(35)
@given(data=st.data())
def test_link_features(data: st.DataObject, fingerprint: Callable):
    mdata = joined(data.draw(objects()))
    first, second = list(mdata.mod)[:2]
    on = data.draw(mostly(["gene", "table", "antibody", "genomic"], ["var_names", "mask", "auto", "none such"]))
    if on == "table":
        on = data.draw(tables(mdata, "var"))
    done, table = attempt(lambda: smm.pp.link_features(mdata, first, second, on=on), mdata, fingerprint)
    if done:
        assert list(table) == [first, second, "weight", "sign"]
        assert len(table) >= 3
        assert not table[[first, second]].duplicated().any()
        for name in (first, second):
            assert table[name].isin(mdata[name].var_names).all()
        assert finite(table["weight"])
        assert (table["weight"] >= 0).all()
        assert table["sign"].isin([-1, 1]).all()


@cases(25)
@given(data=st.data())
def test_normalize(data: st.DataObject, fingerprint: Callable):
    mdata = joined({"rna": data.draw(modalities("rna", well=False))})
    arguments = {
        "kind": data.draw(mostly(["log1p", "clr", "tfidf"], ["log", None, ["clr"]])),
        "layer": data.draw(mostly([None, "other"], ["none such", 1])),
        "key_added": data.draw(mostly([None, "new"], ["a/b", "", 3])),
        "corrected": data.draw(st.booleans()),
    }
    done, _ = attempt(lambda: smm.pp.normalize(mdata, "rna", **arguments), mdata, fingerprint)
    if done:
        values = mdata["rna"].layers[arguments["key_added"] or arguments["kind"]]
        assert finite(values)
        assert values.dtype == np.float32
        assert sp.issparse(values) == sp.issparse(mdata["rna"].X)


@cases(20)
@given(data=st.data())
def test_smooth(data: st.DataObject, fingerprint: Callable):
    mdata = joined({"rna": data.draw(modalities("rna"))})
    arguments = {
        "t": data.draw(mostly([1, 3], [0, 2.5, None])),
        "n_neighbors": data.draw(mostly([5, 15], [1, 10_000, -1])),
        "n_pcs": data.draw(mostly([50, 2], [0, 1])),
        "layer": data.draw(mostly([None, "other"], ["none such"])),
        "key_added": data.draw(mostly(["smoothed"], ["a/b", "", None])),
    }
    done, _ = attempt(lambda: smm.pp.smooth(mdata, "rna", **arguments), mdata, fingerprint)
    if done:
        assert finite(mdata["rna"].layers["smoothed"])


# --- what reads an alignment -------------------------------------------------------------------------------------

NUMBERS = ("spread", "uncertainty", "confidence", "probability", "unassigned")
PAIR = ("rna", "protein")
READERS: dict[str, Callable[[md.MuData, Any], Any]] = {
    "mapped": lambda m, f: smm.get.mapped(m, *PAIR).X,
    "decoded": lambda m, f: smm.get.mapped(m, *PAIR, features=f).X,
    "embedding": lambda m, f: smm.get.embedding(m).X,
    "variance": lambda m, f: smm.get.uncertainty(m, *PAIR, features=f).X,
    "coordinates": lambda m, f: smm.get.coordinates(m, "protein", "rna"),
    "history": lambda m, f: smm.get.history(m),
    "match": lambda m, f: smm.tl.match(m, *PAIR, k=4),
    "transfer": lambda m, f: smm.tl.transfer(m, *PAIR, obs="cell_type"),
    "column": lambda m, f: smm.tl.transfer(m, *PAIR, obs="column"),
    "place": lambda m, f: smm.tl.place(m, "protein", "rna"),
    "plan": lambda m, f: smm.tl.place(m, "protein", "rna", method="plan"),
    "cluster": lambda m, f: smm.tl.cluster(m, *PAIR, n_clusters=3),
    "importance": lambda m, f: smm.tl.importance(m, *PAIR, features=f, n_cells=5),
    "uncertainty": lambda m, f: smm.tl.uncertainty(m, *PAIR),
    "correlations": lambda m, f: smm.tl.correlations(m, *PAIR, gene=f, reference="target"),
}


@pytest.fixture(scope="module")
def aligned() -> md.MuData:
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20], spatial=True)
    smm.tl.align(mdata, links="gene", method="coupling", progress_bar=False)
    smm.tl.uncertainty(mdata, *PAIR)
    smm.tl.place(mdata, "protein", "rna")
    return mdata


CHANGES: dict[str, Callable[[ad.AnnData, np.random.Generator], Any]] = {
    "nothing": lambda a, rng: a,
    "some cells": lambda a, rng: a[rng.permutation(a.n_obs)[: rng.integers(1, a.n_obs)]].copy(),
    "other order": lambda a, rng: a[rng.permutation(a.n_obs), rng.permutation(a.n_vars)].copy(),
    "some features": lambda a, rng: a[:, np.sort(rng.permutation(a.n_vars)[:12])].copy(),
    "no cells": lambda a, rng: a[:0].copy(),
    "scaled": lambda a, rng: replaced(a, X=np.asarray(a.X.toarray() if sp.issparse(a.X) else a.X) * 3 + 1),
    "csc": lambda a, rng: replaced(a, X=sp.csc_matrix(a.X)),
    "renamed cells": lambda a, rng: replaced(a, obs_names=[f"n{i}" for i in range(a.n_obs)]),
    "renamed features": lambda a, rng: replaced(a, var_names=[f"n{i}" for i in range(a.n_vars)]),
    "shuffled embedding": lambda a, rng: with_slot(a, "obsm", "X_scmmgan", a.obsm["X_scmmgan"][::-1].copy()),
    "no embedding": lambda a, rng: with_slot(a, "obsm", "X_scmmgan", None),
    "no plan": lambda a, rng: with_slot(a, "obsm", "scmmgan_plan_rna", None),
    "no unmatched": lambda a, rng: with_slot(a, "obs", "scmmgan_unmatched", None),
    "lost coordinates": lambda a, rng: with_slot(a, "obsm", "spatial", np.full((a.n_obs, 2), np.nan)),
}


def replaced(adata: ad.AnnData, **values: Any) -> ad.AnnData:
    adata = adata.copy()
    for name, value in values.items():
        setattr(adata, name, value)
    return adata


def with_slot(adata: ad.AnnData, container: str, slot: str, value: Any) -> ad.AnnData:
    adata = adata.copy()
    held = getattr(adata, container)
    if value is not None:
        held[slot] = value
    elif slot in held:
        del held[slot]
    return adata


@cases(24)
@given(data=st.data())
def test_readers(data: st.DataObject, aligned: md.MuData, fingerprint: Callable):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    changes = mostly(["nothing", "some cells", "other order"], list(CHANGES))
    parts = {name: CHANGES[data.draw(changes)](adata, rng) for name, adata in aligned.mod.items()}
    mdata = joined({name: adata.copy() for name, adata in parts.items()})
    mdata.uns = aligned.copy().uns
    kind = data.draw(mostly(["text", "categories", "numbers", "whole"], list(COLUMNS)))
    mdata["protein"].obs["column"] = COLUMNS[kind](mdata["protein"].n_obs, rng)
    features = data.draw(mostly(["protein_gene_0"], ["none such", ["protein_gene_0", "protein_gene_0"], [], None, 3]))
    reader = data.draw(st.sampled_from(list(READERS)))
    done, out = attempt(lambda: READERS[reader](mdata, features), mdata, fingerprint)
    if not done:
        return
    assert out is None or finite(out)
    for adata in mdata.mod.values():
        for slot, values in adata.obsm.items():
            assert slot == "spatial" or finite(values), slot
        for column in adata.obs:
            assert not column.endswith(NUMBERS) or finite(adata.obs[column]), column
