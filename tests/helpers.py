"""What several test files share: reading the slots of an alignment, and clouds of cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import mudata as md
import numpy as np
import pytest
import torch

import scmmgan as smm
from scmmgan.model.space.transform import Transform

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and here is none")


def extra(name: str, package: str) -> Any:
    """The package of an extra; a skip where it is not installed, an error where it is and cannot be imported."""
    if find_spec(package) is None:
        pytest.skip(f"needs the extra `{name}`")
    return import_module(package)


def transform_of(mdata: md.MuData, name: str) -> Transform:
    return Transform.from_state(mdata.uns["scmmgan"]["model"]["transforms"][name])


def own_space(mdata: md.MuData, name: str) -> np.ndarray:
    """Model-space cells of a modality, from its own block of the embedding."""
    return space_of(mdata, name, name)


def space_of(mdata: md.MuData, name: str, space: str) -> np.ndarray:
    """Cells of a modality in the model space of one, from its block of the embedding."""
    model = smm.get.model(mdata).aligner
    start = sum(model.widths[m] for m in model.modalities[: model.modalities.index(space)])
    block = mdata[name].obsm["X_scmmgan"][:, start : start + model.widths[space]] * model.block_sd[space]
    return block @ np.linalg.inv(model.metric[space].astype(np.float64)) if model.metric else block


def swiss_roll(n: int = 256, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = 1.5 * np.pi * (1 + 2 * rng.random(n))
    return np.column_stack([t * np.cos(t), 21 * rng.random(n), t * np.sin(t)])


def noisy(n: int = 256, seed: int = 0) -> np.ndarray:
    """Three populations with a gradient, all in two dimensions, under noise in fifty."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 50))
    x[:, :2] += 4 * rng.normal(size=(3, 2))[rng.integers(3, size=n)]
    x[:, 0] += 3 * rng.random(n)
    return x


def check_slopes(
    loss: Callable[..., torch.Tensor], reference: Callable[..., float], *values: np.ndarray, step: float = 1e-6
) -> None:
    """A loss of float64 tensors has the value of a reference, and its gradient is that of central differences."""
    tensors = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    found = loss(*tensors)
    np.testing.assert_allclose(float(found.detach()), reference(*values), rtol=1e-9, atol=1e-11)
    found.backward()
    for i, tensor in enumerate(tensors):
        slope = np.zeros(values[i].shape)
        for at in np.ndindex(*slope.shape):
            moved = [[v.copy() for v in values] for _ in range(2)]
            moved[0][i][at] += step
            moved[1][i][at] -= step
            slope[at] = (reference(*moved[0]) - reference(*moved[1])) / (2 * step)
        np.testing.assert_allclose(tensor.grad.numpy(), slope, rtol=1e-5, atol=1e-7)


@contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Ctrl-C before that step of the training, as `KeyboardInterrupt` is raised inside."""
    from scmmgan.model.nets import training

    real = training._step

    def broken(at: int, *rest: Any) -> Any:
        if at == step:
            raise KeyboardInterrupt
        return real(at, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_step", broken)
        with pytest.raises(KeyboardInterrupt):
            yield
