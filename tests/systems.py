"""Systems of autoencoders on a few cells, for the tests of each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from scmmgan.model.nets.autoencoder import Batch, Cells, System, Task
from scmmgan.model.nets.networks import BatchNorm
from scmmgan.model.problem import Known, Links, Modality, Problem
from scmmgan.model.space.reading import fit_reading


def problem(
    n: int = 40, *, labels: bool = False, pairs: bool = False, links: bool = False, m: int | None = None
) -> Problem:
    """Cells of three kinds in two modalities of 12 and 8 features; the first 6 of both are linked, the first 10 cells pairs."""
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=max(n, m or n))
    values = {}
    for name, (size, width) in {"a": (n, 12), "b": (m or n, 8)}.items():
        centre = 2 * np.random.default_rng(1).normal(size=(3, 6)) @ np.eye(6, width)
        values[name] = (centre[kind[:size]] + rng.normal(size=(size, width))).astype(np.float32)
    modalities = {
        name: Modality(
            name,
            v,
            np.array([f"{i}" for i in range(len(v))], dtype=object),
            np.array([f"{i}" for i in range(v.shape[1])], dtype=object),
            steps=0,
        )
        for name, v in values.items()
    }
    at = np.arange(6)
    known = Known(
        ("a", "b"),
        Links(at, at, np.ones(6), np.ones(6)) if links else None,
        np.stack([np.arange(10)] * 2, axis=1) if pairs else None,
        {name: kind[: len(v)] for name, v in values.items()} if labels else None,
    )
    return Problem(modalities, {("a", "b"): known}, ["x", "y", "z"] if labels else [])


def made(
    system: type[System],
    found: Problem | None = None,
    *,
    hidden: Any = 8,
    batch_size: int = 32,
    geometry: Any = "auto",
    weights: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
    **known: bool,
) -> System:
    """A system that has not been trained; `step()` gives its terms on the next batch."""
    found = problem(**known) if found is None else found
    readings, x = {}, {}
    for m, of in found.modalities.items():
        readings[m], matrix = fit_reading(
            of, np.arange(6) if found.known["a", "b"].n_links else np.arange(0), n_pcs=system.n_pcs
        )
        x[m] = torch.as_tensor(readings[m].of_matrix(matrix))
    rows = {m: torch.arange(len(v)) for m, v in x.items()}
    labels = {m: torch.as_tensor(codes) for m, codes in (found.labels or {}).items()}
    own = system.weights | dict(weights or {}), system.options | dict(options or {})
    geometry = system.geometry if geometry == "auto" else geometry
    task = Task(found, readings, x, labels, rows, rows, batch_size, 10, geometry, 0, *own)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = system(task, hidden, "cpu")
    batches = out.batches()

    def step() -> dict[str, torch.Tensor]:
        drawn = next(batches)
        cells = {m: task.x[m][at] for m, at in drawn.items()}
        return out.terms(Batch(0, drawn, cells, out.encode(cells)))

    out.step = step  # type: ignore[attr-defined]
    return out


# --- losses against a reference ----------------------------------------------------------------------------------


def networks(system: System) -> dict[str, nn.Module]:
    """All networks of a system by name."""
    kinds = {"encoder": system.encoders, "decoder": system.decoders, "critic": system.critics, "other": system.others}
    return {f"{kind} {name}": net for kind, nets in kinds.items() for name, net in nets.items()}


def exact(system: System) -> System:
    """The same system in double precision, what it reads included."""
    for net in networks(system).values():
        net.double()
    for m, x in system.task.x.items():
        system.task.x[m] = x.double()
    return system


def with_gaps(
    system: type[System], **how: Any
) -> tuple[System, np.ndarray, dict[str, np.ndarray], dict[str, list[int]]]:
    """A system that knows pairs and labels with gaps, these (-1: none), and rows of batches of unequal size."""
    found = problem(labels=True)
    pairs = np.stack([np.arange(10), np.arange(10)[::-1] + 5], axis=1)
    found.known["a", "b"].__dict__["pairs"] = pairs
    out = exact(made(system, found, batch_size=4, **how))
    labels = {m: codes.numpy() for m, codes in out.task.labels.items()}
    labels["a"][3] = labels["b"][[9, 20]] = -1
    return out, pairs, labels, {"a": [3, 0, 7, 11, 19, 2], "b": [9, 1, 30, 20, 8]}


def arrays(cells: Cells) -> dict[str, np.ndarray]:
    """Cells of each modality as numpy has them."""
    return {m: v.detach().numpy() for m, v in cells.items()}


def passed(net: nn.Module, x: np.ndarray, slope: float = 0.0) -> np.ndarray:
    """Cells (n × p) through the layers of a network in training; `slope` of LeakyReLU below 0."""
    for layer in net.children() if isinstance(net, nn.Sequential) else [net]:
        own = [v.detach().numpy() for v in layer.parameters()]
        if isinstance(layer, nn.Linear):
            x = x @ own[0].T + own[1]
        elif isinstance(layer, BatchNorm):
            x = own[0] * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + own[1]
        elif isinstance(layer, nn.Sigmoid):
            x = 1 / (1 + np.exp(-x))
        elif isinstance(layer, nn.ReLU | nn.LeakyReLU):
            x = np.where(x > 0, x, slope * x)
        else:
            x = passed(layer, x, slope)
    return x


def check_terms(
    system: System,
    rows: dict[str, list[int]],
    expected: Callable[[dict[str, np.ndarray]], dict[str, float]],
    *,
    at: int = 0,
    step: float = 1e-6,
) -> None:
    """All terms and the `"critic"`'s loss have the values of a reference, and its slopes in the weights of every network.

    `expected`: from what is read (B × p) of the cells at `rows`. A slope is that along one random direction.
    """
    drawn = {m: torch.tensor(of) for m, of in rows.items()}
    x = {m: system.task.x[m][of] for m, of in drawn.items()}
    z = system.encode(x)
    batch = Batch(at, drawn, x, z)
    found = dict(system.terms(batch))
    if system.critics:
        found["critic"] = system.critic_loss(batch)
    reference = partial(expected, arrays(x))
    nets, values, rng = networks(system), reference(), np.random.default_rng(0)
    assert set(found) == set(values)
    for name, loss in found.items():
        np.testing.assert_allclose(float(loss.detach()), values[name], rtol=1e-9, err_msg=name)
    slopes, wanted = {}, {}
    towards = {of: [torch.as_tensor(rng.normal(size=v.shape)) for v in net.parameters()] for of, net in nets.items()}
    for (of, net), (name, loss) in product(nets.items(), found.items()):
        grads = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
        slopes[name, of] = sum(float((g * v).sum()) for g, v in zip(grads, towards[of]) if g is not None)
    for of, net in nets.items():
        moved = []
        for way in (step, -2 * step, step):
            with torch.no_grad():
                for v, direction in zip(net.parameters(), towards[of]):
                    v += way * direction
            moved.append(reference())
        wanted |= {(name, of): (moved[0][name] - moved[1][name]) / (2 * step) for name in found}
    for which, slope in slopes.items():
        np.testing.assert_allclose(slope, wanted[which], rtol=1e-5, atol=1e-7, err_msg=" by ".join(which))
