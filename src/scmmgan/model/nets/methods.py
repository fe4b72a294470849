"""Methods by name: which aligner fits them, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from scmmgan.model.coupling.couple import Domains, Loadings
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.defaults import BATCH_SIZE, LEARNING_RATE, LOSS_WEIGHTS, MAX_STEPS
from scmmgan.model.nets.aligner import Aligner
from scmmgan.model.nets.losses import GEOMETRIES
from scmmgan.model.nets.training import Recipe
from scmmgan.model.problem import Pair, Problem, Sections


@dataclass(frozen=True)
class Method:
    """Defaults of what users may change, and `settings` of the aligner that belong to the method."""

    weights: dict[str, float] = field(default_factory=lambda: dict(LOSS_WEIGHTS))
    max_steps: int = MAX_STEPS
    batch_size: int = BATCH_SIZE
    lr: float = LEARNING_RATE
    geometry: str | None = "heat"
    betas: tuple[float, float] = (0.5, 0.99)
    plain: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "scmmgan": Method(),
    "coupling": Method(settings={"networks": "coupling"}),
    "scmmgan-paper": Method(
        # as published
        weights={"adversarial": 1.0, "cycle": 1.0, "anchors": 10.0, "links": 10.0, "geometry": 1.0, "identity": 0.0},
        max_steps=20_000,
        batch_size=256,
        lr=1e-4,
        geometry="eigvec",
        betas=(0.9, 0.999),
        plain=True,
        settings={"networks": "paper", "coupled": False},
    ),
    "cyclegan": Method(
        weights={**LOSS_WEIGHTS, "adversarial": 1.0, "anchors": 0.0, "links": 0.0, "identity": 0.0},
        geometry=None,
        settings={"coupled": False},
    ),
}


def lookup(method: str) -> Method:
    """The method of that name, or a ValueError that lists all."""
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}, got {method!r}.{_hint(method, METHODS)}")
    return METHODS[method]


def check_geometry(geometry: str | None) -> str | None:
    """A known geometry or None, or a ValueError that lists all."""
    if geometry is not None and (not isinstance(geometry, str) or geometry not in GEOMETRIES):
        known = [*GEOMETRIES, None]
        raise ValueError(f"`geometry` must be one of {known}, got {geometry!r}.{_hint(geometry, GEOMETRIES)}")
    return geometry


def _hint(name: object, known: Mapping[str, Any]) -> str:
    close = get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


# arguments of `tl.align` that the training takes
SETTINGS = (
    "method", "weights", "max_steps", "batch_size", "lr", "geometry", "cycle_as_real", "random_state", "device",
    "noise_dim", "progress_bar",
)  # fmt: skip


def fit_problem(
    problem: Problem,
    domains: Domains,
    couplings: Mapping[Pair, Coupling],
    loadings: Mapping[Pair, Loadings],
    settings: Mapping[str, Any],
) -> tuple[Aligner, dict[str, list[float]]]:
    """Fit the method that `settings` (of `fit`) name, coordinates that the problem maps along included."""
    coordinates = {name: m.coordinates for name, m in problem.modalities.items() if m.coordinates is not None}
    sections = {name: m.sections for name, m in problem.modalities.items() if m.sections is not None}
    x = {m: d.x for m, d in domains.items()}
    return fit(
        x=x, couplings=couplings, loadings=loadings, shared=problem.shared is not None, coordinates=coordinates,
        sections=sections, **settings,
    )  # fmt: skip


def fit(
    method: str,
    x: Mapping[str, np.ndarray],
    couplings: Mapping[Pair, Coupling],
    loadings: Mapping[Pair, Loadings],
    *,
    shared: bool,
    weights: Mapping[str, float],
    max_steps: int,
    batch_size: int,
    lr: float,
    geometry: str | None,
    cycle_as_real: bool,
    random_state: int,
    device: str,
    progress_bar: bool,
    noise_dim: int | Mapping[str, int] = 0,
    coordinates: Mapping[str, np.ndarray] | None = None,
    sections: Mapping[str, Sections] | None = None,
) -> tuple[Aligner, dict[str, list[float]]]:
    """Fit a method's aligner on model-space cells (n × p per modality); returns it, on CPU, and the history.

    `noise_dim`: width of the noise that generators take beside the cells, for all or by source modality. `coordinates`
    (n × d) of some modalities are mapped along, inside their `sections`.
    """
    found = lookup(method)
    noise = {m: int(noise_dim.get(m, 0) if isinstance(noise_dim, Mapping) else noise_dim) for m in x}
    recipe = Recipe(max_steps, batch_size, lr, check_geometry(geometry), cycle_as_real, found.betas, found.plain)
    return Aligner.fit(
        x,
        couplings,
        loadings,
        shared=shared,
        weights=weights,
        recipe=recipe,
        random_state=random_state,
        device=device,
        progress_bar=progress_bar,
        noise=noise,
        coordinates=coordinates,
        sections=sections,
        **found.settings,
    )
