"""Simple methods with the inputs of `tl.align`, scored by `accuracy.py --baseline NAME`.

Each takes hidden data, the case and a seed, and returns the embedding of both modalities, and the cells of each modality in the
features of the other.
"""

from __future__ import annotations

import mudata
import numpy as np
from common import Case, dense, depth, log_share
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_svd

Found = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # embedding, and mapped cells, by modality of the cells


def zscored(x: np.ndarray, limit: float = 10.0) -> np.ndarray:
    return np.clip((x - x.mean(0)) / (x.std(0) + 1e-9), -limit, limit)


def unit(x: np.ndarray) -> np.ndarray:
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-9)


def linked(mdata: mudata.MuData, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """z-scored linked features of both modalities, in one order."""
    import scmmgan as smm

    if case.links is None:
        raise SystemExit("This baseline needs linked features.")
    table = smm.pp.link_features(mdata, case.source, case.target, on=case.links)
    first, second = (dense(mdata[m][:, table[m].tolist()].X) for m in (case.source, case.target))
    return zscored(first), zscored(second)


def neighbor_means(mdata: mudata.MuData, z: dict[str, np.ndarray], k: int) -> Found:
    """Mean of the k nearest cells of the other modality."""
    a, b = z
    mapped = {}
    for one, other in ((a, b), (b, a)):
        nearest = NearestNeighbors(n_neighbors=min(k, len(z[other]))).fit(z[other]).kneighbors(z[one])[1]
        mapped[one] = dense(mdata[other].X)[nearest].mean(1)
    return z, mapped


def random(mdata: mudata.MuData, case: Case, seed: int) -> Found:
    rng = np.random.default_rng(seed)
    return neighbor_means(mdata, {m: rng.normal(size=(mdata[m].n_obs, 10)) for m in (case.source, case.target)}, 15)


def depth_only(mdata: mudata.MuData, case: Case, seed: int) -> Found:
    """The cell's total as the one prediction for every feature."""
    total = {m: depth(mdata[m])[:, None] for m in (case.source, case.target)}
    a, b = total
    return total, {a: np.tile(total[a], mdata[b].n_vars), b: np.tile(total[b], mdata[a].n_vars)}


def knn_links(mdata: mudata.MuData, case: Case, seed: int) -> Found:
    """15 nearest cells by correlation over the linked features."""
    z = [unit(x - x.mean(1, keepdims=True)) for x in linked(mdata, case)]
    return neighbor_means(mdata, dict(zip((case.source, case.target), z)), 15)


def links_cca(mdata: mudata.MuData, case: Case, seed: int) -> Found:
    """Singular vectors of the cells' similarity over linked features, the unsupervised CCA of Seurat."""
    a, b = linked(mdata, case)
    u, s, v = randomized_svd(a @ b.T, n_components=min(20, a.shape[1]), random_state=seed)
    z = [unit(x * np.sqrt(s) - (x * np.sqrt(s)).mean(1, keepdims=True)) for x in (u, v.T)]
    return neighbor_means(mdata, dict(zip((case.source, case.target), z)), 15)


def knn_joint(mdata: mudata.MuData, case: Case, seed: int) -> Found:
    """100 nearest cells by cosine in a joint PCA of the linked features."""
    a, b = linked(mdata, case)
    u, s, _ = randomized_svd(np.vstack([a, b]), n_components=min(50, a.shape[1]), random_state=seed)
    z = unit(u * s)
    return neighbor_means(mdata, {case.source: z[: len(a)], case.target: z[len(a) :]}, 100)


def moment(mdata: mudata.MuData, case: Case, seed: int) -> Found:
    """Every shared feature shifted and scaled to mean and sd of the other side; all other features at their mean."""
    shared = mdata[case.source].var_names.intersection(mdata[case.target].var_names)
    if not len(shared):
        raise SystemExit("This baseline needs features of equal names.")
    x = {m: dense(mdata[m][:, shared].X) for m in (case.source, case.target)}
    mapped = {}
    for a, b in ((case.source, case.target), (case.target, case.source)):
        mapped[a] = np.tile(dense(mdata[b].X).mean(0), (len(x[a]), 1))
        at = mdata[b].var_names.get_indexer(shared)
        mapped[a][:, at] = (x[a] - x[a].mean(0)) / (x[a].std(0) + 1e-9) * x[b].std(0) + x[b].mean(0)
    at = mdata[case.target].var_names.get_indexer(shared)
    return {case.source: mapped[case.source][:, at], case.target: x[case.target]}, mapped


def thinned_ridge(mdata: mudata.MuData, case: Case, seed: int, *, n: int = 3_000) -> Found:
    """Cells of the other modality, thinned to the depth and capture rates of this one, train a ridge regression from shared
    to all features, which is then applied to the cells of this one."""
    rng = np.random.default_rng(seed)
    shared = mdata[case.source].var_names.intersection(mdata[case.target].var_names)
    if not len(shared) or any("counts" not in mdata[m].layers for m in (case.source, case.target)):
        raise SystemExit("This baseline needs features of equal names, and counts.")
    mapped = {}
    for a, b in ((case.source, case.target), (case.target, case.source)):
        own, other = dense(mdata[a][:, shared].layers["counts"]), dense(mdata[b].layers["counts"])
        other = other[rng.permutation(len(other))[:n]]
        both = other[:, mdata[b].var_names.get_indexer(shared)]
        rate = (own.sum(0) / own.sum() + 1e-6) / (both.sum(0) / both.sum() + 1e-6)
        share = both * np.clip(rate, 0.1, 10)
        total = rng.choice(own.sum(1), len(share))[:, None]
        thinned = rng.poisson(share / np.maximum(share.sum(1, keepdims=True), 1) * total).astype(float)
        train, test = zscored(log_share(thinned)), zscored(log_share(own))
        pca = PCA(min(50, len(shared) - 1, len(train) - 1), random_state=seed).fit(train)
        ridge = RidgeCV(np.logspace(0, 5, 11)).fit(pca.transform(train), log_share(other))
        mapped[a] = ridge.predict(pca.transform(test))
    # no joint embedding of its own: predicted and measured cells in the shared features of the target
    at = mdata[case.target].var_names.get_indexer(shared)
    measured = log_share(dense(mdata[case.target][:, shared].layers["counts"]))
    return {case.source: mapped[case.source][:, at], case.target: measured}, mapped


BASELINES = {
    "random": random,
    "depth": depth_only,
    "knn-links": knn_links,
    "knn-joint": knn_joint,
    "links-cca": links_cca,
    "moment": moment,
    "thinned-ridge": thinned_ridge,
}
