"""What all tests share: pictures need no display and are closed after each test; an aligned toy; fingerprints."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import matplotlib
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scmmgan as smm
from scmmgan.model.defaults import N_SHUFFLED
from scmmgan.model.evidence import heldout, populations, verdict
from scmmgan.model.evidence.ceiling import Ceiling

matplotlib.use("Agg")

HELD_OUT = {name: getattr(heldout, name) for name in ("held_out_links", "held_out_pairs")}
CEILING, TWO_SAMPLE_AUC = populations.ceiling, smm.metrics.two_sample_auc


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products: threads cost more than they give, and tens of times more on a busy machine."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


# --- shuffled tables ---------------------------------------------------------------------------------------------


def with_tables(patch: pytest.MonkeyPatch, n_tables: int) -> None:
    """Whatever is held out is compared with so many; the verdict stays "better than every one of them"."""
    for name, function in HELD_OUT.items():
        patch.setattr(heldout, name, partial(function, n_null=n_tables))
    patch.setattr(verdict, "ALPHA", 1 / (n_tables + 1))


@pytest.fixture(scope="session", autouse=True)
def _fewer_tables() -> Iterator[None]:
    """24, not 99: most of what a small alignment costs."""
    with pytest.MonkeyPatch.context() as patch:
        with_tables(patch, 24)
        yield


@contextmanager
def _assessed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        with_tables(patch, 24)
        patch.setattr(populations, "ceiling", CEILING)
        patch.setattr("scmmgan.metrics.two_sample_auc", TWO_SAMPLE_AUC)
        yield


@pytest.fixture(scope="session")
def assessed() -> Callable[[], AbstractContextManager[None]]:
    """For what all files share: the same evidence, whichever file asks for it first."""
    return _assessed


@pytest.fixture
def all_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it."""
    with_tables(monkeypatch, N_SHUFFLED)


def _unassessed(patch: pytest.MonkeyPatch) -> None:
    with_tables(patch, 3)
    patch.setattr(populations, "ceiling", lambda known, *_, **__: Ceiling(np.full(known.n_links, 0.5), 0.5, 0.1))
    patch.setattr("scmmgan.metrics.two_sample_auc", lambda *_, **__: 0.5)


@pytest.fixture
def few_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence and scores of some kind: for what does not depend on the verdict."""
    _unassessed(monkeypatch)


@pytest.fixture(scope="module")
def few_tables_throughout() -> Iterator[None]:
    """The same for all tests of a file, and for what its fixtures align."""
    with pytest.MonkeyPatch.context() as patch:
        _unassessed(patch)
        yield


# --- small aligned data ------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> md.MuData:
    """A toy of 120 cells, not aligned: rna with 30 and protein with 20 features, 15 of them linked by `var["gene"]`."""
    return smm.datasets.toy(n_cells=120, n_features=[30, 20])


@pytest.fixture(scope="session")
def _small_aligned(assessed: Callable[[], AbstractContextManager[None]]) -> md.MuData:
    mdata = smm.datasets.toy(n_cells=120, n_features=[30, 20])
    with assessed():
        smm.tl.align(mdata, links="gene", max_steps=10, progress_bar=False)
    return mdata


@pytest.fixture
def small_aligned(_small_aligned: md.MuData) -> md.MuData:
    """The same, hardly trained: for what does not depend on the quality of the map."""
    return _small_aligned.copy()


# --- fingerprints ------------------------------------------------------------------------------------------------


def _hash(value: Any) -> str:
    """Of all bits: dtype, shape, order of stored entries, names."""
    digest = hashlib.sha256(type(value).__name__.encode())
    if isinstance(value, pd.DataFrame):
        parts = [value.index, *(v for name, column in value.items() for v in (str(name), column))]
    elif sp.issparse(value):
        value = value.tocoo() if value.format not in ("csr", "csc") else value
        names = ("data", "row", "col") if value.format == "coo" else ("data", "indices", "indptr")
        parts = [str(value.shape), *(np.asarray(getattr(value, name)) for name in names)]
    elif isinstance(value, pd.Series | pd.Index):
        parts = [str(value.dtype), str(value.name), repr(value.tolist())]
    elif isinstance(value, np.ndarray):
        content = repr(value.tolist()).encode() if value.dtype == object else np.ascontiguousarray(value).tobytes()
        parts = [str(value.dtype), str(value.shape), content]
    elif hasattr(value, "items"):
        parts = [v for name, entry in value.items() for v in (str(name), entry)]
    else:
        parts = [repr(value)]
    for part in parts:
        digest.update(
            part if isinstance(part, bytes) else part.encode() if isinstance(part, str) else _hash(part).encode()
        )
    return digest.hexdigest()


def _fingerprint(mdata: md.MuData) -> dict[str, str]:
    containers = {"": mdata, **mdata.mod}
    found = {"modalities": repr(list(mdata.mod))}
    for name, data in containers.items():
        found[f"{name}.obs"], found[f"{name}.var"] = _hash(data.obs.index), _hash(data.var.index)
        found |= {f"{name}.obs[{column}]": _hash(values) for column, values in data.obs.items()}
        found |= {f"{name}.var[{column}]": _hash(values) for column, values in data.var.items()}
        for slot in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            if getattr(data, slot, None) is not None:
                found |= {f"{name}.{slot}[{key}]": _hash(v) for key, v in getattr(data, slot).items() if key}
        if name and data.X is not None:
            found[f"{name}.X"] = _hash(data.X)
    return found


@pytest.fixture
def fingerprint() -> Callable[[md.MuData], dict[str, str]]:
    """A hash of every slot of a MuData and its modalities, by name."""
    return _fingerprint
