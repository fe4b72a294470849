"""Aligned toys that several test files of this folder share: made once, handed out as copies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import mudata as md
import pytest

import scmmgan as smm


@pytest.fixture(scope="session")
def _aligned_toy(assessed: Callable[[], AbstractContextManager[None]]) -> md.MuData:
    mdata = smm.datasets.toy()
    with assessed():
        smm.tl.align(mdata, links="gene", max_steps=150, progress_bar=False)
    return mdata


@pytest.fixture
def aligned_toy(_aligned_toy: md.MuData) -> md.MuData:
    """`datasets.toy()`, aligned on its linked genes; trained long enough to be accurate."""
    return _aligned_toy.copy()


@pytest.fixture(scope="session")
def _without_e(assessed: Callable[[], AbstractContextManager[None]]) -> md.MuData:
    mdata = smm.datasets.toy(overlap=0.8)
    with assessed():
        smm.tl.align(mdata, links="gene", max_steps=40, batch_size=64, progress_bar=False)
    return mdata


@pytest.fixture
def without_e(_without_e: md.MuData) -> md.MuData:
    """An aligned toy whose "protein" lacks "type_E"."""
    return _without_e.copy()


@pytest.fixture(scope="session")
def _small_coupled(assessed: Callable[[], AbstractContextManager[None]]) -> md.MuData:
    mdata = smm.datasets.toy(n_cells=120, n_features=[30, 20])
    with assessed():
        smm.tl.align(mdata, links="gene", method="coupling", progress_bar=False)
    return mdata


@pytest.fixture
def small_coupled(_small_coupled: md.MuData) -> md.MuData:
    """The toy of `small`, the coupling itself as the map: no networks, quick to write and to read."""
    return _small_coupled.copy()


@pytest.fixture(scope="session")
def _three_aligned(assessed: Callable[[], AbstractContextManager[None]]) -> md.MuData:
    mdata = smm.datasets.toy(n_cells=80, n_modalities=3, n_features=[20, 20, 20], spatial=True)
    with assessed():
        smm.tl.align(
            mdata, links="gene", spatial="spatial", method="coupling", key_added="mine", progress_bar=False,
        )  # fmt: skip
    return mdata


@pytest.fixture
def three_aligned(_three_aligned: md.MuData) -> md.MuData:
    """Rna with coordinates, protein and atac, coupled as "mine"."""
    return _three_aligned.copy()


@pytest.fixture
def tiny() -> md.MuData:
    """A toy of 60 cells, not aligned: what `small` is, for what no number depends on."""
    return smm.datasets.toy(n_cells=60, n_features=[30, 20])


@pytest.fixture
def coarse_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes are matched over 24 landmarks, not 150, from few starts: for what does not depend on how well they are."""
    from scmmgan.model.coupling import couple, gromov

    monkeypatch.setattr(couple, "SHAPE_LANDMARKS", 24)
    monkeypatch.setattr(gromov, "N_STARTS", 20)
    monkeypatch.setattr(gromov, "N_POLISHED", 3)
