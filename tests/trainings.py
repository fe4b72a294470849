"""A small problem of model-space cells, couplings and links, and its training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from scmmgan.model.coupling.coupling import couple_known
from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.defaults import LOSS_WEIGHTS
from scmmgan.model.nets import training
from scmmgan.model.nets.aligner import Aligner


def data(n: int = 130, modalities: str = "ab", seed: int = 0) -> tuple[dict, dict, dict]:
    """Model-space cells of one population, couplings by 12 links, loadings of 3 links."""
    rng = np.random.default_rng(seed)
    x, linked, loadings = {}, {}, {}
    directions = rng.normal(size=(3, 12))
    for i, m in enumerate(modalities):
        latent = rng.normal(size=(n - 10 * i, 3)) * [2, 1, 0.7]
        noise = 0.3 * rng.normal(size=(len(latent), 1))
        x[m] = np.hstack([latent, noise]) @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
        x[m] = (x[m] / x[m].std()).astype(np.float32)
        linked[m] = latent @ directions + 0.2 * rng.normal(size=(len(latent), 12))
    couplings: dict = {}
    for i, a in enumerate(modalities):
        for b in modalities[i + 1 :]:
            own, marks = {a: x[a], b: x[b]}, {m: find_landmarks(x[m]) for m in (a, b)}
            couplings |= couple_known(own, marks, {a: linked[a], b: linked[b]})
            sides = {m: np.linalg.lstsq(x[m], linked[m][:, :3], rcond=None)[0] for m in (a, b)}
            for s, t in ((a, b), (b, a)):
                loadings[s, t] = (sides[s], sides[t], np.ones(3), np.ones(3))
    return x, couplings, loadings


def fit(x: dict, couplings: dict, loadings: dict, **arguments: Any) -> tuple[Aligner, dict[str, list[float]]]:
    rules = {"max_steps": 20, "batch_size": 32, "lr": 1e-3}
    names = {field.name for field in dataclasses.fields(training.Recipe)}
    rules |= {name: arguments.pop(name) for name in names & set(arguments)}
    settings = {
        "shared": (),
        "random_state": 0,
        "device": "cpu",
        "progress_bar": False,
        **arguments,
        "recipe": training.Recipe(**rules),
        "weights": {**LOSS_WEIGHTS, **arguments.get("weights", {})},
    }
    return Aligner.fit(x, couplings, loadings, **settings)


def state(aligner: Aligner) -> dict[str, np.ndarray]:
    return aligner.state()[1]
