"""Damaged records: one message, nothing run, nothing allocated; and an alignment can always be made again."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.data import record as _record

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

NAMES = ("rna", "protein")


def align(mdata: md.MuData) -> None:
    smm.tl.align(mdata, links="gene", max_steps=2, progress_bar=False)


@pytest.fixture(scope="module")
def _aligned() -> md.MuData:
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    align(mdata)
    smm.tl.uncertainty(mdata, "rna", "protein")
    smm.tl.transfer(mdata, "rna", "protein", obs="cell_type")
    smm.tl.correlations(mdata, "rna", "protein", gene="protein_gene_0", reference="target")
    return mdata


@pytest.fixture
def aligned(_aligned: md.MuData) -> md.MuData:
    return _aligned.copy()


READERS: dict[str, Callable[[md.MuData], Any]] = {
    "model": lambda m: smm.get.model(m),
    "mapped": lambda m: smm.get.mapped(m, *NAMES),
    "decoded": lambda m: smm.get.mapped(m, *NAMES, features="protein_gene_0"),
    "history": lambda m: smm.get.history(m),
    "diagnosis": lambda m: smm.get.diagnosis(m, *NAMES),
    "embedding": lambda m: smm.get.embedding(m),
    "match": lambda m: smm.tl.match(m, *NAMES),
    "importance": lambda m: smm.tl.importance(m, *NAMES, features="protein_gene_0"),
}
# what tools added, and who reads it
ADDED = {
    "correlations": lambda m: smm.get.correlations(m, *NAMES),
    "uncertainty": lambda m: smm.get.uncertainty_summary(m, *NAMES),
    "transfer": lambda m: smm.tl.transfer(m, *NAMES, obs="cell_type"),
}


class Trap:
    """Says when any of its code is run."""

    def __repr__(self) -> str:
        raise RuntimeError("code of the record was run")

    __str__ = __len__ = __iter__ = __array__ = __float__ = __repr__  # type: ignore[assignment]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all entries of nested dicts."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield (*path, name)
            yield from places(entry, (*path, name))


def mutated(value: Any, rng: np.random.Generator) -> Any:
    """Something else in the place of a value: of another type, shape or length, or one number or letter changed."""
    others: list[Any] = [None, "x", -1, 10**12, np.nan, [], {}, {"a": 1}, np.zeros(3), Trap(), pd.DataFrame({"a": [1]})]
    if isinstance(value, str) and value:
        at = int(rng.integers(len(value)))
        others += [value[:at], value[:at] + "\x00" + value[at + 1 :], value + value] * 3
    if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iuf":
        changed = value.copy()
        changed.flat[rng.integers(value.size)] += 1
        others += [changed, value[..., :-1] if value.ndim else value + 1, value[None], np.full(value.shape, np.nan)] * 3
    if isinstance(value, np.ndarray) and value.size and value.dtype.kind == "O":
        others += [value[:-1], np.r_[value[1:], ["x"]].astype(object)] * 3
    if isinstance(value, pd.DataFrame) and len(value):
        others += [value.iloc[:-1], value.iloc[:, :-1], value.rename(columns={value.columns[0]: "z"})] * 3
    return others[rng.integers(len(others))]


def test_a_thousand_mutations(aligned: md.MuData):
    whole = aligned.uns["scmmgan"]
    core = [path for path in places(whole) if path[0] in _record.CORE]
    added = [path for path in places(whole) if path[0] in ADDED]
    rng, readers = np.random.default_rng(0), list(READERS.values())
    for number in range(1_000):
        path = (core if number % 5 else added)[rng.integers(len(core if number % 5 else added))]
        damaged = dict(whole)
        holder = damaged
        for name in path[:-1]:
            holder[name] = dict(holder[name])
            holder = holder[name]
        if rng.random() < 0.3:
            del holder[path[-1]]
        else:
            before = holder[path[-1]]
            holder[path[-1]] = mutated(before, rng)
            if _record.digest(before) == _record.digest(holder[path[-1]]):
                continue
        if path[0] in ADDED and path[0] not in damaged:
            continue
        aligned.uns["scmmgan"] = damaged
        read = ADDED[path[0]] if path[0] in ADDED else readers[number % len(readers)]
        with pytest.raises(ValueError, match=r"is damaged: align again|another version.*Align again"):
            read(aligned)


@pytest.mark.parametrize("fmt", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_whole_after_a_file(aligned: md.MuData, fmt: str, tmp_path: Path):
    path = tmp_path / f"a.{fmt}"
    aligned.write(path) if fmt == "h5mu" else aligned.write_zarr(path)
    read = md.read(path) if fmt == "h5mu" else md.read_zarr(path)
    for reader in (*READERS.values(), *ADDED.values()):
        reader(read)


def test_digests():
    assert _record.digest({"a": 1, "b": "x"}) == _record.digest({"b": "x", "a": np.int64(1)})
    assert _record.digest(np.array([])) == _record.digest(np.array([], dtype=object))
    assert _record.digest(np.array(["a", "b"])) == _record.digest(np.array(["a", "b"], dtype=object))
    assert _record.digest(np.array(["a", "b"])) != _record.digest(np.array(["ab", ""]))
    assert _record.digest(np.zeros((2, 3))) != _record.digest(np.zeros((3, 2)))
    assert _record.digest(np.zeros(2)) != _record.digest(np.zeros(2, dtype=np.int64))
    assert _record.digest({"a": {"b": 1}}) != _record.digest({"a": {}, "b": 1})
    a = pd.DataFrame({"x": [1.0], "y": ["a"]})
    assert _record.digest(a) == _record.digest(a.set_axis(["9"], axis=0))
    assert _record.digest(Trap()) != _record.digest(1)


def resealed(mdata: md.MuData, change: Callable[[dict[str, Any]], None]) -> None:
    """A record that somebody made to look whole."""
    model = deepcopy(mdata.uns["scmmgan"]["model"])
    change(model)
    mdata.uns["scmmgan"] = _record.sealed({"model": model}, mdata.uns["scmmgan"])


def wide(model: dict[str, Any]) -> None:
    found = json.loads(model["config"])
    found["widths"] = dict.fromkeys(found["widths"], 10**7)
    model["config"] = json.dumps(found)


def noisy(model: dict[str, Any]) -> None:
    model["config"] = json.dumps({**json.loads(model["config"]), "noise": {"rna": 10**9}})


def not_finite(model: dict[str, Any]) -> None:
    model["weights"]["0:skip.bias"] = np.full_like(model["weights"]["0:skip.bias"], np.nan)


def unknown(model: dict[str, Any]) -> None:
    model["config"] = json.dumps({**json.loads(model["config"]), "networks": "os.system"})


def lacking(model: dict[str, Any]) -> None:
    del model["weights"]["0:skip.bias"]


@pytest.mark.parametrize("change", [wide, noisy, not_finite, unknown, lacking])
def test_weights_are_compared_before_memory_is_taken(aligned: md.MuData, change: Callable):
    smm.get.model(aligned)
    resealed(aligned, change)
    size = sum(v.nbytes for v in aligned.uns["scmmgan"]["model"]["weights"].values())
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged: align again"):
        smm.get.model(aligned)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * size + 1_000_000


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "text cut": lambda r: r["model"].update(config=r["model"]["config"][:50]),
    "no text": lambda r: r["model"].update(config=None),
    "deep text": lambda r: r["model"].update(config="[" * 100_000),
    "no model": lambda r: r.update(model=None),
    "no dicts": lambda r: r.update({name: 3 for name in r if name != "format"}),
    "other tools": lambda r: r.update(derived={"rna": 3, "protein": np.array(["x", "uns:y", "obs:"]), "z": "obs:a"}),
    "only the format": lambda r: [r.pop(name) for name in [*r] if name != "format"],
    "other format": lambda r: r.update(format=1),
    "format of another type": lambda r: r.update(format="two"),
    "a trap": lambda r: r.update(params=Trap()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_align_replaces_it(aligned: md.MuData, kind: str):
    aligned.uns["scmmgan"] = deepcopy(dict(aligned.uns["scmmgan"]))
    DAMAGE[kind](aligned.uns["scmmgan"])
    align(aligned)
    assert smm.get.mapped(aligned, *NAMES).shape == (60, 20)
    assert set(aligned.uns["scmmgan"]) == {*_record.CORE, "digest"}


def test_a_users_own_entry_is_not_replaced():
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    mdata.uns["scmmgan"] = {"params": {"method": "mine"}}
    with pytest.raises(ValueError, match="holds something else"):
        align(mdata)
    with pytest.raises(KeyError, match="No alignment"):
        smm.get.model(mdata)
