"""What an alignment made is kept while its MuData lives: tools give the same bits without making it again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import mudata as md
import numpy as np
import pytest
import scipy.sparse as sp

import scmmgan as smm
from scmmgan.data import kept, read
from scmmgan.model.nets.aligner import Aligner
from scmmgan.model.problem import Modality, Problem

pytestmark = pytest.mark.usefixtures("few_tables_throughout")


def toy(n_cells: int = 60) -> md.MuData:
    mdata = smm.datasets.toy(n_cells=n_cells, n_features=[30, 20])
    smm.tl.align(mdata, links="gene", method="coupling", progress_bar=False)
    return mdata


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no model space can be made."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("made once more")

    monkeypatch.setattr(read, "model_space", refuse)


TOOLS: dict[str, Callable[[md.MuData], Any]] = {
    "diagnose": lambda m: smm.tl.diagnose(m),
    "uncertainty": lambda m: smm.tl.uncertainty(m, "rna", "protein", method="coupling"),
    "correlations": lambda m: smm.tl.correlations(m, "rna", "protein", gene="protein_gene_0"),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_same_without_making_it_again(tool: str, fingerprint: Callable, monkeypatch: pytest.MonkeyPatch):
    mdata = toy()
    again = mdata.copy()
    TOOLS[tool](again)
    forbid(monkeypatch)
    TOOLS[tool](mdata)
    found, expected = fingerprint(mdata), fingerprint(again)
    # `mdata.copy()` pulls columns of the modalities into the whole
    assert found == {slot: expected[slot] for slot in found}
    assert len(found) > 20
    with pytest.raises(AssertionError, match="made once more"):
        TOOLS[tool](again)


@pytest.mark.parametrize("arguments", [{"method": "coupling"}, {"max_steps": 2}], ids=str)
def test_cells_are_mapped_once(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """The joint embedding, mapped values and scores share the images of all cells."""
    real, seen = Aligner.translate, []

    def counted(self: Aligner, x: np.ndarray, source: str, target: str) -> np.ndarray:
        if source != target:
            seen.append((x, source, target))
        return real(self, x, source, target)

    monkeypatch.setattr(Aligner, "translate", counted)
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    smm.tl.align(mdata, links="gene", progress_bar=False, **arguments)
    times = [sum(of is x and (s, t) == (a, b) for of, s, t in seen) for x, a, b in seen]
    assert {(a, b) for _, a, b in seen} == {("rna", "protein"), ("protein", "rna")}
    assert max(times) == 1


def test_any_value_that_changed_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """Also one that is not in the sample of the record."""
    mdata = toy(n_cells=80)
    forbid(monkeypatch)
    smm.tl.diagnose(mdata)
    sampled = mdata.uns["scmmgan"]["fingerprint"]["rna"]["rows"]
    mdata["rna"].X[np.setdiff1d(np.arange(mdata["rna"].n_obs), sampled)[0], 0] += 0.5
    with pytest.raises(AssertionError, match="made once more"):
        smm.tl.diagnose(mdata)


def test_slots_of_another_seed_are_noticed(monkeypatch: pytest.MonkeyPatch):
    """All slots of an alignment of the same data, put into the object of another."""
    mdata, other = toy(), smm.datasets.toy(n_cells=60, n_features=[30, 20])
    smm.tl.align(other, links="gene", method="coupling", random_state=7, progress_bar=False)
    forbid(monkeypatch)
    smm.tl.diagnose(mdata)
    for name, adata in other.mod.items():
        mdata[name].obs = adata.obs.copy()
        for key, values in adata.obsm.items():
            mdata[name].obsm[key] = values
    mdata.uns["scmmgan"] = other.uns["scmmgan"]
    with pytest.raises(AssertionError, match="made once more"):
        smm.tl.diagnose(mdata)


@pytest.mark.parametrize("storage", [np.array, sp.csr_matrix, sp.csc_array])
def test_digest(storage: Callable):
    """Of values, and of all that the space is made by; not of what only later steps read."""
    rng = np.random.default_rng(0)
    x = np.round(rng.random((6, 4)) * rng.integers(0, 2, (6, 4)), 3).astype(np.float32)
    names = np.array(list("abcdef"), dtype=object)

    def of(values: np.ndarray, **more: Any) -> bytes:
        modality = Modality("a", storage(values), names, names[:4], **more)
        return kept.digest(Problem({"a": modality}, {}, fingerprint="links"), "seed 0")

    changed = x.copy()
    changed[5, 3] += 1e-6
    other = [{"n_pcs": 3}, {"steps": 2}, {"allowed": np.arange(3)}, {"batches": (np.arange(3), np.arange(3, 6))}]
    other += [{"covariates": np.ones((6, 1))}, {"covariates": np.zeros((6, 1))}]
    found = [of(x), of(changed), of(x[:, ::-1]), *(of(x, **more) for more in other)]
    assert len(set(found)) == len(found)
    assert of(x, counts=x) == of(x.copy()) == of(x)


def test_no_longer_than_the_object():
    mdata = toy()
    assert list(kept._KEPT[mdata]) == ["scmmgan"]
    smm.tl.align(mdata, links="gene", method="coupling", key_added="other", progress_bar=False)
    assert list(kept._KEPT[mdata]) == ["scmmgan", "other"]
    alive = weakref.ref(mdata)
    del mdata
    gc.collect()
    assert alive() is None
