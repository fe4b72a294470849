"""Scores of joint embeddings by the package scib-metrics: how well modalities mix, and whether labels stay apart."""

from __future__ import annotations

import numpy as np

from scmmgan.model.defaults import MAX_TESTED_CELLS, SCIB_NEIGHBORS
from scmmgan.model.space.diffusion import nearest


def check_scib() -> None:
    """ImportError that says what to install."""
    try:
        import scib_metrics  # noqa: F401
    except ImportError as error:
        raise ImportError("`scib=True` needs scib-metrics. Install it with `pip install 'scmmgan[scib]'`.") from error


def scib_scores(
    z: tuple[np.ndarray, np.ndarray], codes: tuple[np.ndarray, np.ndarray] | None, *, random_state: int
) -> dict[str, tuple[float, int, bool]]:
    """Score, number of cells, and whether it needs labels, by name: of embedded cells (n × d) and labels (n,), -1: none.

    Of at most 2,000 cells of either modality. All are 1 at best; modalities are what scib calls batches.
    """
    import scib_metrics as scib
    from scib_metrics.nearest_neighbors import NeighborsResults

    lisi, connectivity = SCIB_NEIGHBORS
    rng = np.random.default_rng(random_state)
    rows = [rng.permutation(len(of))[:MAX_TESTED_CELLS] for of in z]
    x = np.concatenate([of[at] for of, at in zip(z, rows)]).astype(np.float32)
    batch = np.repeat([0, 1], [len(at) for at in rows])

    def graph(of: np.ndarray, k: int) -> NeighborsResults:
        index, distance = nearest(of, of, min(k, len(of) - 1))
        return NeighborsResults(indices=index, distances=distance)

    found = {"scib iLISI": (float(scib.ilisi_knn(graph(x, lisi), batch)), len(x), False)}
    if codes is None:
        return found
    label = np.concatenate([of[at] for of, at in zip(codes, rows)])
    known = label >= 0
    x, batch, label = x[known], batch[known], label[known]
    if len(np.unique(label)) < 2 or len(np.unique(batch)) < 2:
        return found
    clusters = scib.nmi_ari_cluster_labels_kmeans(x, label)
    scores = {
        "scib cLISI": scib.clisi_knn(graph(x, lisi), label),
        "scib silhouette label": scib.silhouette_label(x, label),
        "scib BRAS": scib.bras(x, label, batch),
        "scib graph connectivity": scib.graph_connectivity(graph(x, connectivity), label),
        "scib NMI": clusters["nmi"],
        "scib ARI": clusters["ari"],
    }
    return found | {name: (float(value), len(x), True) for name, value in scores.items()}
