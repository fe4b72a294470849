"""Aggregated spots whose correlations are known: what mixing makes, and what it hides."""

from __future__ import annotations

import warnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd

# genes by the types that express them
ON = {
    "A": (1, 0, 0),
    "B": (0, 1, 0),
    "C": (0, 0, 1),
    "AB": (1, 1, 0),
    "AC": (1, 0, 1),
    "BC": (0, 1, 1),
    "none": (0, 0, 0),
}
# query: genes that correlate with it through mixing only, and genes whose correlation mixing hides
TRUTH = {"A_0": ("B", "AC"), "A_1": ("B", "AC"), "B_0": ("A", "BC"), "B_1": ("A", "BC")}


def planted(seed: int, *, n_spots: int = 400, n_cells: int = 600) -> md.MuData:
    """Spots, each the counts of ten cells, half of them caught; and other cells of the same types.

    A and B share a niche, in varying proportions, C lies around it. Markers of A and B correlate across spots only through
    that; genes of A and C correlate in cells, but not across spots.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat(list(ON), [20] * 6 + [80])
    level = rng.lognormal(np.log(3), 0.5, len(group))
    for g in ON:
        # every type expresses as much as the others: no gene rises because others fall
        level[group == g] *= 3.5 / level[group == g].mean()
    on = np.array([ON[g] for g in group]).T
    mean = np.where(group == "none", level, level * (0.1 + 0.9 * on))

    def counts(types: np.ndarray) -> np.ndarray:
        size, noise = rng.lognormal(0, 0.3, (len(types), 1)), rng.lognormal(0, 0.4, (len(types), len(group)))
        return rng.poisson(mean[types] * size * noise)

    niche, share_a = rng.beta(0.3, 0.3, n_spots), rng.beta(3, 3, n_spots)
    shares = np.column_stack([niche * share_a, niche * (1 - share_a), 1 - niche])
    within = np.concatenate([rng.choice(3, 10, p=p) for p in shares])
    spots = rng.binomial(counts(within).reshape(n_spots, 10, -1).sum(1), 0.5)
    cells = counts(rng.choice(3, n_cells, p=[0.45, 0.4, 0.15]))
    number = np.concatenate([np.arange(20)] * 6 + [np.arange(80)])
    genes = pd.DataFrame(index=[f"{g}_{i}" for g, i in zip(group, number)])
    out = {}
    for name, values in (("spatial", spots), ("rna", cells)):
        scaled = values / values.sum(1, keepdims=True) * np.median(values.sum(1))
        obs = pd.DataFrame(index=[f"{name}_{i}" for i in range(len(values))])
        out[name] = ad.AnnData(np.log1p(scaled).astype(np.float32), obs=obs, var=genes.copy())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="var_names are not unique")
        return md.MuData(out)


def mixed_spots(
    seed: int, *, n_spots: int = 150, n_cells: int = 240, n_genes: int = 90
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts of spots; what five cells hold before most of it is lost; shares of the types; counts of other cells; their types.

    A spot holds cells of up to three of six types. Every gene is caught at a rate of its own, and depth varies.
    """
    rng = np.random.default_rng(seed)
    profile = np.exp(rng.normal(size=(6, n_genes)))
    profile *= 400 / profile.sum(1, keepdims=True)

    def expected(types: np.ndarray) -> np.ndarray:
        return profile[types] * rng.lognormal(0, 0.3, (len(types), 1)) * rng.lognormal(0, 0.2, (len(types), n_genes))

    niche = rng.integers(6, size=(n_spots, 3))
    within = niche[np.arange(n_spots)[:, None], rng.integers(3, size=(n_spots, 5))]
    whole = expected(within.ravel()).reshape(n_spots, 5, -1).sum(1)
    spots = rng.poisson(whole * rng.lognormal(0, 0.7, n_genes) * rng.uniform(0.005, 0.1, (n_spots, 1)))
    types = rng.integers(6, size=n_cells)
    return spots, whole, np.eye(6)[within].mean(1), rng.poisson(expected(types)), types
