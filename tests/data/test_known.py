"""Pairs, labels and batches: every form that is read, the row numbers that come out, and everything refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

from scmmgan.data import known as _known
from scmmgan.data import modality as _modality
from scmmgan.data.links import link_table
from scmmgan.settings import unpulled

SIZES = {"a": 60, "b": 50, "c": 40}


def make(*names: str, common: int = 0, **obs: dict[str, Any]) -> md.MuData:
    """Modalities with shuffled cells, the first `common` of which have equal names; `obs` by modality."""
    rng = np.random.default_rng(0)
    parts = {}
    for m in names or ("a", "b"):
        n = SIZES[m]
        cells = np.array([f"cell{i}" if i < common else f"{m}{i}" for i in range(n)], dtype=object)
        frame = pd.DataFrame(obs.get(m, {}), index=cells)
        order = rng.permutation(n)
        parts[m] = ad.AnnData(rng.random((n, 4)).astype(np.float32)[order], obs=frame.iloc[order])
        parts[m].var_names = [f"{m}_f{i}" for i in range(4)]
    return md.MuData(parts)


def names_of(mdata: md.MuData, found: dict, a: str = "a", b: str = "b") -> set[tuple[str, str]]:
    rows = found[a, b]
    assert rows.dtype.kind == "i"
    assert rows.shape[1] == 2
    return set(zip(mdata[a].obs_names[rows[:, 0]], mdata[b].obs_names[rows[:, 1]]))


def table(k: int = 5, **changes: Any) -> pd.DataFrame:
    """Cells a0 b1, a1 b2, …"""
    return pd.DataFrame({"a": [f"a{i}" for i in range(k)], "b": [f"b{i + 1}" for i in range(k)], **changes})


# --- pairs -------------------------------------------------------------------------------------------------------


def test_no_pairs():
    assert _known.read_pairs(make(), ["a", "b"], None) == {}


def test_pairs_by_equal_names(caplog: pytest.LogCaptureFixture):
    mdata = make(common=7)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        found = _known.read_pairs(mdata, ["a", "b"], "obs_names")
    assert names_of(mdata, found) == {(f"cell{i}", f"cell{i}") for i in range(7)}
    assert "7 known pairs of 'a' and 'b'" in caplog.text
    # rows are shuffled: equal names are not equal row numbers
    assert (found["a", "b"][:, 0] != found["a", "b"][:, 1]).any()


@pytest.mark.parametrize("dtype", ["bool", "boolean", "category"])
@pytest.mark.parametrize("sides", ["a", "b", "ab"])
def test_pairs_by_a_boolean_column(dtype: str, sides: str):
    marked = {m: pd.Series(np.arange(SIZES[m]) % 2 == 0).astype(dtype).to_numpy() for m in "ab"}
    if dtype == "boolean":
        marked = {m: pd.array(v, dtype="boolean") for m, v in marked.items()}
    elif dtype == "category":
        marked = {m: pd.Categorical(v) for m, v in marked.items()}
    mdata = make(common=12, **{m: {"paired": marked[m]} for m in sides})
    found = _known.read_pairs(mdata, ["a", "b"], "paired")
    # beyond the 12 common names the column marks cells without a partner
    assert names_of(mdata, found) == {(f"cell{i}", f"cell{i}") for i in range(0, 12, 2)}


def test_both_columns_must_mark_a_pair():
    a, b = np.arange(60) < 9, np.arange(50) >= 4
    mdata = make(common=12, a={"paired": a}, b={"paired": b})
    found = _known.read_pairs(mdata, ["a", "b"], "paired")
    assert names_of(mdata, found) == {(f"cell{i}", f"cell{i}") for i in range(4, 9)}


@pytest.mark.parametrize("kind", ["boolean", "category"])
def test_gaps_of_a_boolean_column_are_no_pairs(kind: str):
    values = pd.array([True] * 5 + [None] * 55, dtype="boolean")
    mdata = make(common=12, a={"paired": values if kind == "boolean" else pd.Categorical(values)})
    found = _known.read_pairs(mdata, ["a", "b"], "paired")
    assert names_of(mdata, found) == {(f"cell{i}", f"cell{i}") for i in range(5)}


@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_pairs_by_a_table(dtype: str):
    mdata = make()
    pairs = table().sample(frac=1, random_state=0).astype(dtype)
    # in any order, with other columns beside
    pairs = pairs.assign(note=1)[["note", "b", "a"]]
    found = _known.read_pairs(mdata, ["a", "b"], pairs)
    assert names_of(mdata, found) == {(f"a{i}", f"b{i + 1}") for i in range(5)}


def weighted() -> pd.DataFrame:
    """Five cells of a, the first with three partners, two cells of b with two."""
    rows = [("a0", "b1", 0.2), ("a0", "b2", 0.9), ("a0", "b3", 0.5), ("a1", "b2", 0.4), ("a1", "b4", 0.3)]
    rows += [("a2", "b5", 1.0), ("a3", "b6", 0.7), ("a4", "b6", 0.6)]
    return pd.DataFrame(rows, columns=["a", "b", "weight"])


def test_partners_with_weights():
    mdata, table = make(), weighted()
    rows, weight = _known.read_partners(mdata, "a", "b", table)
    named = [(mdata["a"].obs_names[i], mdata["b"].obs_names[j], w) for (i, j), w in zip(rows, weight)]
    assert named == list(table.itertuples(index=False, name=None))
    # where one partner is wanted it is the heaviest, of those that are left
    found = _known.read_pairs(mdata, ["a", "b"], table.sample(frac=1, random_state=1))
    assert names_of(mdata, found) == {("a0", "b2"), ("a2", "b5"), ("a3", "b6")}
    assert _known.read_partners(mdata, "a", "b", table.drop(columns="weight")) is None
    assert _known.read_partners(mdata, "a", "b", "obs_names") is None


@pytest.mark.parametrize("weight", [0, -0.5, 1.5, np.nan, "much"])
def test_weights_that_are_none(weight: Any):
    table = weighted().astype({"weight": object})
    table.loc[2, "weight"] = weight
    with pytest.raises(ValueError, match="1 values of the column 'weight' of `pairs` are not above 0"):
        _known.read_partners(make(), "a", "b", table)


def test_the_same_two_cells_twice():
    with pytest.raises(ValueError, match="the same two cells twice"):
        _known.read_partners(make(), "a", "b", pd.concat([weighted(), weighted()[:1]]))


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA, "", "nan"])
def test_gaps_in_a_table(gap: Any):
    mdata = make()
    pairs = pd.concat([table(), pd.DataFrame({"a": ["a7", gap, gap], "b": [gap, "b7", gap]}, dtype=object)])
    found = _known.read_pairs(mdata, ["a", "b"], pairs)
    assert names_of(mdata, found) == {(f"a{i}", f"b{i + 1}") for i in range(5)}


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("dtype", ["int64", "float64", "Int64", "object", "category"])
def test_cells_that_are_named_by_numbers(dtype: str, gaps: bool):
    """Whole numbers, which pandas turns into floats where there are gaps."""
    mdata = make()
    for m in "ab":
        mdata.mod[m].obs_names = [str(i) for i in range(SIZES[m])]
    pairs = pd.DataFrame({"a": [3, 5, 7, 9], "b": [4, 6, 8, 10]}, dtype=dtype)
    if gaps:
        pairs = pd.concat([pairs.astype(object), pd.DataFrame({"a": [1, np.nan], "b": [np.nan, 2]}, dtype=object)])
        pairs = pairs.astype("float64" if dtype == "int64" else dtype)
    found = _known.read_pairs(mdata, ["a", "b"], pairs)
    assert names_of(mdata, found) == {("3", "4"), ("5", "6"), ("7", "8"), ("9", "10")}


def test_pairs_among_three_modalities():
    """Each row of the table names two of them; the third pair of modalities has none."""
    mdata = make("a", "b", "c")
    ab = table(4)
    bc = pd.DataFrame({"b": [f"b{i}" for i in range(10, 16)], "c": [f"c{i}" for i in range(6)]})
    found = _known.read_pairs(mdata, ["a", "b", "c"], pd.concat([ab, bc]))
    assert set(found) == {("a", "b"), ("b", "c")}
    assert names_of(mdata, found) == {(f"a{i}", f"b{i + 1}") for i in range(4)}
    assert names_of(mdata, found, "b", "c") == {(f"b{i + 10}", f"c{i}") for i in range(6)}
    # without the third column
    assert set(_known.read_pairs(mdata, ["a", "b", "c"], ab)) == {("a", "b")}
    # rows that name all three say three pairs, in the order of the modalities asked for
    whole = table(4).assign(c=[f"c{i}" for i in range(4)])
    assert set(_known.read_pairs(mdata, ["c", "a", "b"], whole)) == {("c", "a"), ("c", "b"), ("a", "b")}


def test_equal_names_in_two_of_three_modalities():
    mdata = make("a", "b", "c", common=9)
    mdata["c"].obs_names = [f"other{i}" for i in range(40)]
    assert set(_known.read_pairs(mdata, ["a", "b", "c"], "obs_names")) == {("a", "b")}
    mdata["a"].obs["paired"] = True
    assert set(_known.read_pairs(mdata, ["a", "b", "c"], "paired")) == {("a", "b")}
    # a column of the third alone marks nothing
    mdata["c"].obs["elsewhere"] = True
    with pytest.raises(ValueError, match=r"no 3 pairs of any two of the modalities \['a', 'b', 'c'\]"):
        _known.read_pairs(mdata, ["a", "b", "c"], "elsewhere")


BAD_PAIRS: dict[str, tuple[Any, type[Exception], str]] = {
    "number": (3, TypeError, "`pairs` must be a str, a DataFrame or None, got int"),
    "list": ([("a0", "b1")], TypeError, "`pairs` must be a str, a DataFrame or None, got list"),
    "column": ("paird", KeyError, r"No obs column in 'a' or 'b' 'paird'. Closest: \['paired'\]. `pairs` also takes"),
    "no boolean": (
        "n",
        ValueError,
        r"obs column 'n' of 'a' must be boolean \(is this cell's partner known\?\), got int",
    ),
    "text": ("text", ValueError, "obs column 'text' of 'a' must be boolean.*got"),
    "no names": ("obs_names", ValueError, r"gives 0 pairs of 'a' and 'b'; at least 3 are needed.*\['a\d+', 'a\d+'\]"),
    "false": ("paired", ValueError, "gives 0 pairs of 'a' and 'b'"),
    "two": (table(2), ValueError, "gives 2 pairs of 'a' and 'b'; at least 3 are needed"),
    "empty": (table(0), ValueError, "gives 0 pairs of 'a' and 'b'"),
    "gaps": (table(5, b=None), ValueError, "gives 0 pairs of 'a' and 'b'"),
    "one side": (table()[["a"]], KeyError, r"No column in the table `pairs` 'b'. Found: \['a'\]. One per modality"),
    "misspelt": (table().rename(columns={"a": "A"}), KeyError, r"'a'.*\['A', 'b'\]"),
    "unknown": (
        table(5, b=["b1", "x2", "x3", "b4", "b5"]),
        KeyError,
        r"names 2 cells that are not in 'b', e.g. 'x2'; its cells are named like \['b\d+', 'b\d+'\]",
    ),
    "swapped": (table().rename(columns={"a": "b", "b": "a"}), KeyError, "names 5 cells that are not in 'a', e.g. 'b1'"),
    "twice": (
        table(5, b=["b1", "b2", "b3", "b2", "b5"]),
        ValueError,
        "names 'b2' of 'b' twice: a cell has one partner",
    ),
    "same row twice": (pd.concat([table(), table()]), ValueError, "names 'a0' of 'a' twice"),
    "columns twice": (
        pd.concat([table(), table()], axis=1),
        ValueError,
        r"columns of one name: \['a', 'b', 'a', 'b'\]",
    ),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_pairs_refused(case: str, fingerprint: Callable):
    pairs, error, message = BAD_PAIRS[case]
    mdata = make(a={"n": 2, "text": "yes", "paired": False})
    before = fingerprint(mdata)
    with pytest.raises(error, match=message) as raised:
        _known.read_pairs(mdata, ["a", "b"], pairs)
    assert raised.type is error
    assert fingerprint(mdata) == before


@pytest.mark.parametrize("pairs", ["obs_names", table()])
def test_pairs_need_unique_names(pairs: Any):
    mdata = make(common=5)
    mdata["b"].obs_names = ["cell1", *mdata["b"].obs_names[1:-1], "cell1"]
    with pytest.raises(ValueError, match=r"obs_names of 'b' are not unique, e.g. 'cell1'.*make_unique"):
        _known.read_pairs(mdata, ["a", "b"], pairs)


# --- labels ------------------------------------------------------------------------------------------------------


def labelled(a: Any, b: Any) -> md.MuData:
    return make(a={"type": a}, b={"type": b})


def read_labels(mdata: md.MuData, **columns: str | None) -> tuple[dict[str, np.ndarray], list[str]]:
    return _known.read_labels(mdata, list(columns), columns)[:2]


def codes_of(mdata: md.MuData, **columns: str | None) -> dict[str, np.ndarray]:
    """Codes alone, which point into a sorted vocabulary and nowhere else."""
    codes, vocabulary = read_labels(mdata, **columns)
    assert codes is not None
    assert vocabulary == sorted(set(vocabulary))
    for found in codes.values():
        assert found.min() >= -1
        assert found.max() < len(vocabulary)
    return codes


def decoded(mdata: md.MuData, found: dict[str, np.ndarray], column: str = "type") -> dict[int, set]:
    """Code -> the labels, of all modalities, that got it."""
    out: dict[int, set] = {}
    for m, codes in found.items():
        assert codes.dtype == int
        assert len(codes) == mdata[m].n_obs
        for code, label in zip(codes, mdata[m].obs[column]):
            out.setdefault(int(code), set()).add(None if pd.isna(label) else str(label))
    return out


@pytest.mark.parametrize("dtype", ["object", "category", "string"])
def test_labels_have_one_vocabulary(dtype: str):
    a = pd.Series(np.resize(["T", "B", "NK"], 60)).astype(dtype).to_numpy()
    b = pd.Series(np.resize(["NK", "T"], 50)).astype(dtype).to_numpy()
    if dtype == "category":
        # categories that no cell has are no labels
        a, b = pd.Categorical(a, categories=["x", "T", "B", "NK"]), pd.Categorical(b)
    mdata = labelled(a, b)
    found, vocabulary = read_labels(mdata, a="type", b="type")
    assert decoded(mdata, found) == {0: {"B"}, 1: {"NK"}, 2: {"T"}}
    assert vocabulary == ["B", "NK", "T"]


def test_no_labels():
    assert read_labels(make(), a=None, b=None) == ({}, [])


def test_labels_of_other_columns():
    mdata = make(a={"type": np.resize(["T", "B"], 60)}, b={"kind": np.resize(["B", "T", "T"], 50)})
    found = codes_of(mdata, a="type", b="kind")
    for m, column in (("a", "type"), ("b", "kind")):
        assert (np.array(["B", "T"])[found[m]] == mdata[m].obs[column]).all()


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA, "", "nan", "None"])
def test_gaps_of_labels(gap: Any):
    a = pd.Series(np.resize(["T", "B", "NK"], 60), dtype=object)
    a[::4] = gap
    mdata = labelled(a.to_numpy(), np.resize(["NK", "T", "B"], 50))
    found = codes_of(mdata, a="type", b="type")
    assert (found["a"] == -1).sum() == 15
    assert (found["b"] >= 0).all()
    kept = found["a"] >= 0
    assert (np.array(["B", "NK", "T"])[found["a"][kept]] == mdata["a"].obs["type"][kept]).all()


def test_numbers_as_labels():
    """Whole numbers beside gaps are floats; they are the same labels."""
    a = np.resize([0.0, 1.0, np.nan, 2.0], 60)
    mdata = labelled(a, pd.Categorical(np.resize([2, 1, 0], 50)))
    found = codes_of(mdata, a="type", b="type")
    assert decoded(mdata, {"b": found["b"]}) == {0: {"0"}, 1: {"1"}, 2: {"2"}}
    for code in range(3):
        assert (mdata["a"].obs["type"][found["a"] == code] == code).all()
    assert (found["a"] == -1).sum() == 15


def test_labels_that_one_side_lacks(caplog: pytest.LogCaptureFixture):
    mdata = labelled(np.resize(["T", "B", "NK"], 60), np.resize(["T", "B"], 50))
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        found = codes_of(mdata, a="type", b="type")
    assert caplog.messages == ["Labels ['NK'] of 'a' are missing in 'b': those cells count as unmatched."]
    assert set(found["b"]) == {0, 2}


def test_different_vocabularies_are_shown():
    mdata = labelled(np.resize(["T", "B", "NK"], 60), np.resize(["T cell", "B cell", "NK"], 50))
    with pytest.raises(
        ValueError,
        match=r"share 1 names.*'a' has \['B', 'NK', 'T'\], 'b' has \['B cell', 'NK', 'T cell'\]. Rename them alike",
    ):
        read_labels(mdata, a="type", b="type")
    # two in common of five are too few; of four they will do
    mdata = labelled(np.resize(list("TBxyz"), 60), np.resize(list("TBuvw"), 50))
    with pytest.raises(ValueError, match="share 2 names"):
        read_labels(mdata, a="type", b="type")
    found = codes_of(labelled(np.resize(list("TBxy"), 60), np.resize(list("TBuvw"), 50)), a="type", b="type")
    assert found["a"].max() == 4 + 5 - 2 - 1


def test_vocabulary_of_three_modalities():
    mdata = make("a", "b", "c")
    for m, values in (("a", "TBN"), ("b", "TBM"), ("c", "BT")):
        mdata[m].obs["type"] = np.resize(list(values), SIZES[m])
    found, vocabulary = read_labels(mdata, a="type", b="type", c="type")
    assert decoded(mdata, found) == {0: {"B"}, 1: {"M"}, 2: {"N"}, 3: {"T"}}
    assert vocabulary == ["B", "M", "N", "T"]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"a": "typ", "b": "typ"}, KeyError, r"No obs column in 'a' for `labels` 'typ'. Closest: \['type'\]"),
        ({"a": "type", "b": "kind"}, KeyError, "No obs column in 'b' for `labels` 'kind'"),
        ({"a": "type", "b": None}, KeyError, "`labels` names no obs column of 'b'. Name one for every modality"),
        ({"a": 3, "b": 3}, TypeError, "`labels` must name an obs column.*got 3"),
        ({"a": ["type"], "b": ["type"]}, TypeError, r"`labels` must name an obs column.*got \['type'\]"),
        ({"a": "gaps", "b": "type"}, ValueError, r"share 0 names.*'a' has \[\], 'b' has \['B', 'T'\]"),
        ({"a": "one", "b": "type"}, ValueError, r"share 1 names.*'a' has \['T'\]"),
        ({"a": "cell", "b": "type"}, ValueError, "obs column 'cell' of 'a' names 60 kinds of 60 cells.*are `pairs`"),
    ],
)
def test_labels_refused(columns: Any, error: type[Exception], message: str):
    mdata = make(
        a={"type": np.resize(["T", "B"], 60), "gaps": np.nan, "one": "T", "cell": np.arange(60)},
        b={"type": np.resize(["T", "B"], 50)},
    )
    with pytest.raises(error, match=message):
        read_labels(mdata, **columns)


# --- batches -----------------------------------------------------------------------------------------------------


def read_batches(mdata: md.MuData, **columns: Any) -> dict[str, dict[str, np.ndarray] | None]:
    return _known.read_batches(mdata, ["a", "b"], {"a": None, "b": None, **columns})


def batched(values: Any) -> md.MuData:
    """Modality "a" with 80 cells and a column `donor`."""
    obs = pd.DataFrame({"donor": values}, index=[f"a{i}" for i in range(80)])
    rng = np.random.default_rng(0)
    parts = {"a": ad.AnnData(rng.random((80, 3)).astype(np.float32), obs=obs.sample(frac=1, random_state=0))}
    parts["b"] = make()["b"].copy()
    for m, adata in parts.items():
        adata.var_names = [f"{m}{i}" for i in range(adata.n_vars)]
    return md.MuData(parts)


@pytest.mark.parametrize("values", [["x", "y"], [7, 12], [True, False]])
@pytest.mark.parametrize("category", [False, True])
def test_batches(values: list, category: bool):
    donor = np.resize(values, 80)
    mdata = batched(pd.Categorical(donor) if category else donor)
    found = read_batches(mdata, a="donor")
    assert found["b"] is None
    # row numbers in their own order, every row in one batch
    assert list(found["a"]) == sorted(map(str, values))
    rows = list(found["a"].values())
    assert len(rows) == 2
    assert sorted(np.concatenate(rows)) == list(range(80))
    for part in rows:
        assert (np.diff(part) > 0).all()
    seen = [set(mdata["a"].obs["donor"].iloc[part]) for part in rows]
    assert sorted(seen, key=str) == sorted(({v} for v in values), key=str)


def test_one_batch_is_none():
    assert read_batches(batched("x"), a="donor") == {"a": None, "b": None}
    assert read_batches(make()) == {"a": None, "b": None}


def test_just_enough_cells_in_a_batch():
    found = read_batches(batched(np.repeat(["x", "y"], [48, 32])), a="donor")
    assert sorted(len(rows) for rows in found["a"].values()) == [32, 48]


@pytest.mark.parametrize(
    ("values", "column", "error", "message"),
    [
        (
            np.repeat(["x", "y"], [49, 31]),
            "donor",
            ValueError,
            "Batch 'y' of 'a' has 31 cells; 32 are the minimum. Merge",
        ),
        (np.r_[np.full(40, "x"), np.full(39, "y"), [None]], "donor", ValueError, "'donor' of 'a' has gaps: every cell"),
        (np.full(80, np.nan), "donor", ValueError, "'donor' of 'a' has gaps"),
        ("x", "donr", KeyError, r"No obs column in 'a' for `batch` 'donr'. Closest: \['donor'\]"),
        ("x", 1, TypeError, "`batch` must name an obs column.*got 1"),
    ],
)
def test_batches_refused(values: Any, column: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        read_batches(batched(values), a=column)


# --- input that people have --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["object", "0 and 1", "floats with gaps", "text", "categories of text"])
def test_pairs_marked_in_other_forms(form: str):
    yes = np.array([True] * 5 + [False] * 55)
    columns = {
        "object": np.where(yes, True, None), "0 and 1": yes.astype(int), "floats with gaps": np.where(yes, 1.0, np.nan),
        "text": np.where(yes, "True", "False"), "categories of text": pd.Categorical(np.where(yes, "True", "")),
    }  # fmt: skip
    mdata = make(common=12, a={"paired": columns[form]})
    found = names_of(mdata, _known.read_pairs(mdata, ["a", "b"], "paired"))
    assert found == {(f"cell{i}", f"cell{i}") for i in range(5)}


@pytest.mark.parametrize("dtype", [int, float, object, "category", "Int64"])
def test_cluster_numbers_are_labels(dtype: Any):
    mdata = make(a={"c": pd.Series(np.arange(60) % 3).astype(dtype).to_numpy()}, b={"c": np.arange(50) % 3})
    codes, vocabulary, _ = _known.read_labels(mdata, ["a", "b"], {"a": "c", "b": "c"})
    assert vocabulary == ["0", "1", "2"]
    assert codes is not None
    np.testing.assert_array_equal(codes["a"], mdata["a"].obs["c"].astype(int))


@pytest.mark.parametrize("argument", ["labels", "batch", "pairs"])
def test_columns_of_the_whole_are_named_and_the_code_runs(argument: str):
    mdata = make(common=12)
    with unpulled():
        mdata.update()
    mdata.obs["mine"] = np.arange(len(mdata.obs)) % 2 == 0
    read = {
        "labels": lambda: _known.read_labels(mdata, ["a", "b"], {"a": "mine", "b": "mine"}),
        "batch": lambda: _known.read_batches(mdata, ["a", "b"], {"a": "mine", "b": None}),
        "pairs": lambda: _known.read_pairs(mdata, ["a", "b"], "mine"),
    }[argument]
    with pytest.raises(KeyError, match=r"`mdata.obs` has 'mine': run `mdata.push_obs\(\['mine'\]\)`") as raised:
        read()
    exec(raised.value.args[0].split("`")[-2], {"mdata": mdata})
    assert "mine" in mdata["a"].obs
    if argument != "batch":
        read()


@pytest.mark.parametrize("argument", ["mask_var", "links"])
def test_columns_of_all_features_are_named_and_the_code_runs(argument: str):
    mdata = make(common=12)
    with unpulled():
        mdata.update()
    mdata.var["mine"] = True
    read = {
        "mask_var": lambda: _modality.read_mask(mdata, "a", "mine", None),
        "links": lambda: link_table(mdata, "a", "b", "mine"),
    }[argument]
    with pytest.raises(KeyError, match=r"`mdata.var` has 'mine': run `mdata.push_var\(\['mine'\]\)`") as raised:
        read()
    exec(raised.value.args[0].split("`")[-2], {"mdata": mdata})
    assert mdata["a"].var["mine"].all()


# --- gaps that are written as text -------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", ["nan", "NaN", "None", "NA", "N/A", "<NA>", "-", "", " ", "null", "Null", "?"])
def test_text_that_stands_for_a_gap(gap: str):
    column = pd.Series(["T", "B", gap, f" {gap} ", "NK", "A-1"], dtype="category")
    assert _known.as_text(column).tolist() == ["T", "B", None, None, "NK", "A-1"]
