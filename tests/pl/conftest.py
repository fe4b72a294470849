"""Aligned modalities with slots filled by hand: no training, all numbers known."""

from __future__ import annotations

import json
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scmmgan.data import fingerprint as _fingerprint
from scmmgan.data import record as _record
from scmmgan.data import slots as _slots
from scmmgan.data.keys import FORMAT
from scmmgan.model.problem import Modality
from scmmgan.settings import unpulled

N_SPOTS, N_CELLS, N_STEPS = 60, 45, 200


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests write by hand is not compared with the record: tests/data/test_fingerprint.py, test_damage.py."""
    monkeypatch.setattr(_record, "whole", lambda found, keys, *also: dict(found))
    monkeypatch.setattr(_fingerprint, "recorded_rows", lambda adata, *_: np.arange(adata.n_obs))
    monkeypatch.setattr(_slots, "check_values", lambda *_: None)


@pytest.fixture
def aligned() -> md.MuData:
    """Spots on a grid with spacing 2 (genes G0-G7, sparse), cells (antibodies that name genes, one gene each or two)."""
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(8)]
    spots = ad.AnnData(
        sp.csr_matrix(rng.poisson(1.0, (N_SPOTS, 8)).astype(np.float32)),
        obs=pd.DataFrame(
            {"layer": pd.Categorical(np.repeat(["outer", "inner"], 30), ["outer", "inner"]), "depth": rng.random(60)},
            index=[f"spot{i}" for i in range(N_SPOTS)],
        ),
        var=pd.DataFrame(index=genes),
    )
    spots.layers["halved"] = spots.X / 2
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(6.0)), axis=-1).reshape(-1, 2) * 2
    spots.obsm["spatial"] = np.column_stack([rng.permutation(grid), np.arange(N_SPOTS)])
    spots.obsm["X_flat"] = spots.obsm["spatial"][:, :2] * 3
    cells = ad.AnnData(
        rng.normal(size=(N_CELLS, 4)).astype(np.float32),
        obs=pd.DataFrame(
            {"layer": np.resize(np.array(["inner", "outer", np.nan], dtype=object), N_CELLS)},
            index=[f"cell{i}" for i in range(N_CELLS)],
        ),
        var=pd.DataFrame({"gene": ["G1", "G2;G3", "other", "G0"]}, index=["A1", "A23", "A-none", "G0"]),
    )
    spots.obsm["X_scmmgan"] = rng.normal(size=(N_SPOTS, 5)).astype(np.float32) * np.array([1, 5, 1, 1, 1], np.float32)
    cells.obsm["X_scmmgan"] = rng.normal(size=(N_CELLS, 5)).astype(np.float32) * np.array([1, 5, 1, 1, 1], np.float32)
    widths, block_sd, transforms = {"spots": 3, "cells": 2}, {"spots": 2.0, "cells": 4.0}, {}
    for adata, other, name, block in ((cells, spots, "cells", slice(3, 5)), (spots, cells, "spots", slice(0, 3))):
        loadings, sd = rng.normal(size=(widths[name], adata.n_vars)), 1 + rng.random(adata.n_vars)
        mean, encoded = rng.random(adata.n_vars), np.arange(adata.n_vars)
        transforms[name] = {
            "mean": mean,
            "sd": sd,
            "encoded": encoded,
            "encoder": loadings,
            "decoder": loadings,
            "scale": 3.0,
        }
        own_space = other.obsm["X_scmmgan"][:, block] * block_sd[name]
        other.obsm[f"scmmgan_{name}"] = (own_space @ (3.0 * loadings * sd) + mean).astype(np.float32)
    with warnings.catch_warnings(), unpulled():
        # a feature of one name on both sides is meant here
        warnings.filterwarnings("ignore", message="var_names are not unique")
        mdata = md.MuData({"spots": spots, "cells": cells})
    decay = np.exp(-np.arange(N_STEPS) / 20.0)
    history = {
        "step": np.arange(N_STEPS) * 5,
        "cycle": 1e-3 + decay,
        "geometry": 0.5 + rng.random(N_STEPS) * 0.1,
        "links": np.zeros(N_STEPS),
        "discriminator gradient": np.ones(N_STEPS),
    }
    var_names = {"spots": genes, "cells": cells.var_names.tolist()}
    config = {"modalities": ["spots", "cells"], "widths": widths, "block_sd": block_sd, "var_names": var_names}
    mdata.uns["scmmgan"] = {
        "format": FORMAT,
        "params": {"modalities": np.array(["spots", "cells"]), "links": "gene", "layer": "None", "use_rep": "None"},
        "fingerprint": {
            name: _fingerprint.of(
                Modality(name, adata.X, adata.obs_names.to_numpy(), adata.var_names.to_numpy()),
                adata.obsm["X_scmmgan"],
                transforms[name]["mean"],
            )
            for name, adata in (("spots", spots), ("cells", cells))
        },
        "features": {name: np.array(found, dtype=object) for name, found in var_names.items()},
        "history": history,
        "model": {"config": json.dumps(config), "weights": {}, "transforms": transforms},
    }
    return mdata
