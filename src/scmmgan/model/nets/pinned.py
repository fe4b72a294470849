"""Torch as networks expect it, whatever the user has made of its global state; afterwards that is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Matrix products on a GPU with the 10 bits of `"tf32"`, else in full single precision."""
    before, wanted = _precision(), "high" if precision == "tf32" else "highest"
    if wanted == before:
        yield
        return
    of: list[Any] = [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    backends = [(backend, backend.fp32_precision) for backend in of if hasattr(backend, "fp32_precision")]
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)
        for backend, value in backends:
            # what was inherited stays so
            backend.fp32_precision = "none"
            if backend.fp32_precision != value:
                backend.fp32_precision = value


def _precision() -> str | None:
    """What `torch.set_float32_matmul_precision` set; None where backends have precisions of their own (since PyTorch 2.9)."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@contextmanager
def pinned() -> Iterator[None]:
    """Single precision, tensors on the CPU unless said otherwise, gradients, no autocast, full products, one thread.

    Global state, as seeds are: `torch.set_default_dtype`, `set_default_device`, `no_grad`, `inference_mode`, `autocast`,
    `set_float32_matmul_precision`. Small networks gain nothing from threads: one keeps results independent of the cores,
    and leaves no threads behind that a fork would lack. Also a decorator; the outermost one, where there are several.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        stack.enter_context(products("float32"))
        if torch.empty(0).device.type != "cpu":
            # costs time in every call of torch
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
