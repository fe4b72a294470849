"""What these tests share: a small problem of arrays, read, smoothed and coupled, whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from scmmgan.model.coupling.couple import Loadings, couple
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.defaults import ALPHA
from scmmgan.model.evidence import heldout, verdict
from scmmgan.model.problem import Known, Links, Modality, Pair, Problem
from scmmgan.model.space.domain import Domain, model_space


@pytest.fixture(scope="module", autouse=True)
def _all_tables() -> Iterator[None]:
    """As users have it: these are the tests of what tables show."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("held_out_links", "held_out_pairs"):
            patch.setattr(heldout, name, getattr(heldout, name).func)
        patch.setattr(verdict, "ALPHA", ALPHA)
        yield


@dataclass(frozen=True)
class Planted:
    """A problem of two modalities a and b, in model space and coupled; row `partner[i]` of b is the cell i of a."""

    problem: Problem
    domains: dict[str, Domain]
    couplings: dict[Pair, Coupling]
    loadings: dict[Pair, Loadings]
    partner: np.ndarray
    population: dict[str, np.ndarray]

    @property
    def known(self) -> Known:
        return self.problem.of("a", "b")

    @property
    def x(self) -> dict[str, np.ndarray]:
        return {m: d.x for m, d in self.domains.items()}


def planted(
    n: int = 120,
    *,
    n_links: int = 12,
    n_pairs: int = 0,
    labels: bool = False,
    shared: bool = False,
    own: int = 0,
    noise: float = 0.5,
    coupled_by: int | None = None,
    seed: int = 0,
) -> Planted:
    """Four populations with gradients. `own` features of b follow a latent that a does not have; `coupled_by` links only.

    Linked features are the first of both sides; those of b run the other way for every third link.
    """
    rng = np.random.default_rng(seed)
    group = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
    latent = (3 * rng.normal(size=(4, 4)))[group] + rng.normal(size=(n, 4))
    order = rng.permutation(n)
    linked = rng.normal(size=(4, n_links))
    sign = np.where(np.arange(n_links) % 3 == 2, -1.0, 1.0)
    sign = np.ones(n_links) if shared else sign
    modalities, population = {}, {}
    for m, rows, extra in (("a", np.arange(n), 12), ("b", order, 8)):
        z = latent[rows]
        clean = np.hstack([z @ linked * (sign if m == "b" else 1), z @ rng.normal(size=(4, 0 if shared else extra))])
        if m == "b":
            clean = np.hstack([clean, rng.normal(size=(n, 2)) @ rng.normal(size=(2, own)) * 2])
        values = (clean + noise * rng.normal(size=clean.shape)).astype(np.float32)
        names = np.array([f"{m}_{j}" for j in range(values.shape[1])], dtype=object)
        cells = np.array([f"{m}{i}" for i in range(n)], dtype=object)
        modalities[m] = Modality(m, values, cells, names)
        population[m] = group[rows]
    partner = np.argsort(order)
    used = n_links if coupled_by is None else coupled_by
    at = np.arange(used)
    links = Links(at, at, np.ones(used), sign[:used]) if used else None
    rows = np.sort(rng.permutation(n)[:n_pairs])
    pairs = np.stack([rows, partner[rows]], axis=1) if n_pairs else None
    known = Known(("a", "b"), links, pairs, population if labels else None)
    names = ["one", "two", "three", "four"] if labels else ()
    spaces = [{m: np.arange(n_links) for m in modalities}] if shared else []
    problem = Problem(modalities, {("a", "b"): known}, names, spaces)
    domains = model_space(problem, random_state=0)
    couplings, loadings = couple(problem, domains, random_state=0)
    return Planted(problem, domains, couplings, loadings, partner, population)


@pytest.fixture(scope="session")
def make_planted() -> Callable[..., Planted]:
    """The same problem for the same arguments, made once."""
    made: dict[Any, Planted] = {}

    def make(n: int = 120, **arguments: Any) -> Planted:
        key = (n, *sorted(arguments.items()))
        if key not in made:
            made[key] = planted(n, **arguments)
        return made[key]

    return make
