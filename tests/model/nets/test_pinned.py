"""Torch's global state decides nothing, and is as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import attrgetter
from typing import Any

import mudata as md
import numpy as np
import pytest
import torch

import scmmgan as smm
from scmmgan.model.evidence.attribution import path_gradients
from scmmgan.model.nets.networks import Generator
from scmmgan.model.nets.pinned import _precision, pinned

# that have a precision, since PyTorch 2.9
BACKENDS = ("cuda.matmul", "mkldnn.matmul", "all") if hasattr(torch.backends, "fp32_precision") else ()


@contextmanager
def changed(set_to: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


@pytest.mark.skipif(not BACKENDS, reason="PyTorch before 2.9: backends have no precision of their own")
def test_what_backends_inherit_they_inherit_afterwards():
    try:
        torch.backends.fp32_precision = "tf32"
        with pinned():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"


@contextmanager
def precision_of(name: str) -> Iterator[None]:
    """As PyTorch advises since 2.9: for a backend, or for all; then it refuses to say what the old function set."""
    backend = torch.backends if name == "all" else attrgetter(name)(torch.backends)
    backend.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="mix of the legacy and new"):
            torch.get_float32_matmul_precision()
        yield
    finally:
        backend.fp32_precision = "none"


def precisions() -> list[str | None]:
    """What products are computed in, by the old function and of each backend."""
    of = [torch.backends, torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    return [_precision(), *(getattr(backend, "fp32_precision", None) for backend in of)]


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: changed(torch.set_default_device, "meta", None),
    "device context": lambda: torch.device("meta"),
    "precision": lambda: changed(torch.set_float32_matmul_precision, "medium", "highest"),
    **{f"precision of {name}": partial(precision_of, name) for name in BACKENDS},
    "deterministic": lambda: changed(torch.use_deterministic_algorithms, True, False),
}


def state() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(), torch.empty(0).device, torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"), *precisions(), torch.get_num_threads(),
    )  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_inside_and_afterwards(name: str):
    with STATES[name]():
        before = state()
        with pytest.raises(KeyError), pinned():  # noqa: PT012
            inside = torch.ones(2, requires_grad=True) * 2
            assert inside.requires_grad
            assert not inside.is_inference()
            assert inside.dtype == torch.float32
            assert inside.device.type == "cpu"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            assert torch.get_num_threads() == 1
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert state() == before


def results(mdata: md.MuData) -> list[np.ndarray]:
    """Of everything that trains a network or goes through one."""
    smm.tl.align(mdata, links="gene", max_steps=5, noise_dim=2, spatial="spatial", progress_bar=False)
    smm.tl.place(mdata, "protein", "rna", method="generator")
    model = smm.get.model(mdata).aligner
    x = np.ones((3, model.widths["rna"]), np.float32)
    return [
        mdata["rna"].obsm["X_scmmgan"],
        mdata["protein"].obsm["scmmgan_coordinates_rna"],
        model.translate(x, "rna", "protein"),
        model.sample(x, "rna", "protein", np.random.default_rng(0)),
    ]


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    return results(smm.datasets.toy(n_cells=100, spatial=True))


@pytest.mark.parametrize("name", STATES)
def test_same_bits(name: str, expected: list[np.ndarray]):
    with STATES[name]():
        before = state()
        found = results(smm.datasets.toy(n_cells=100, spatial=True))
        assert state() == before
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", STATES)
def test_gradients_along_paths(name: str):
    torch.manual_seed(0)
    generator, x = Generator(4, 3), np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = path_gradients(generator, x, np.eye(3, 2))
    with STATES[name]():
        found = path_gradients(generator, x, np.eye(3, 2))
    np.testing.assert_array_equal(found.gradient, expected.gradient)
    np.testing.assert_array_equal(found.mapped, expected.mapped)
