"""Systems of autoencoders on a few cells, for the tests of each method."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from scmmgan.model.nets.autoencoder import Batch, System, Task
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
    task = Task(
        found, readings, x, labels, rows, rows, batch_size, 10, system.geometry if geometry == "auto" else geometry, 0
    )
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
