"""Diffusion on cells: sparse smoothing operator for graphs (numpy), kernel and operator of a batch (tensors)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import EXACT_NEIGHBORS_BELOW, SMOOTHING_NEIGHBORS, WIDTH_NEIGHBOR

if TYPE_CHECKING:
    from torch import Tensor


def nearest_neighbors(x: np.ndarray, k: int, *, random_state: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices and Euclidean distances (n × k) of the k nearest OTHER cells; approximate above 20,000 cells."""
    n = len(x)
    k = min(k, n - 1)
    if n <= EXACT_NEIGHBORS_BELOW:
        from sklearn.neighbors import NearestNeighbors

        # without a query the cell itself is left out, duplicates included
        distances, indices = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
        return indices, distances
    from pynndescent import NNDescent

    indices, distances = NNDescent(x, n_neighbors=k + 1, random_state=random_state).neighbor_graph
    is_self = indices == np.arange(n)[:, None]
    # where the search lost the cell itself (duplicates), the farthest neighbour goes instead
    is_self[~is_self.any(1), -1] = True
    keep = ~is_self
    return indices[keep].reshape(n, k), distances[keep].reshape(n, k).astype(np.float64)


def nearest(x: np.ndarray, y: np.ndarray, k: int, *, random_state: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers and Euclidean distances (n × k) of the k cells of y nearest each of x; approximate above 20,000."""
    k = min(k, len(y))
    if len(y) <= EXACT_NEIGHBORS_BELOW:
        from sklearn.neighbors import NearestNeighbors

        distances, indices = NearestNeighbors(n_neighbors=k).fit(y).kneighbors(x)
        return indices, distances
    from pynndescent import NNDescent

    # a search for one neighbour alone misses it too often
    indices, distances = NNDescent(y, n_neighbors=max(k, 15), random_state=random_state).query(x, k=k)
    return indices, distances.astype(np.float64)


def smoothing_operator(
    x: np.ndarray, *, n_neighbors: int = SMOOTHING_NEIGHBORS, labels: np.ndarray | None = None, random_state: int = 0
) -> sp.csr_matrix:
    """Row-stochastic n × n sparse operator P: adaptive Gaussian kernel on the kNN graph.

    Bandwidth of a cell: the distance to its 5th neighbour; the kernel is symmetrised before it is normalised. Cells
    with one of the `labels` (codes, -1: none) choose neighbours of that label, the others among all cells.
    """
    n = len(x)
    codes = np.zeros(n, dtype=int) if labels is None else labels
    kernel = sp.csr_matrix((n, n))
    for code in np.unique(codes):
        own = np.flatnonzero(codes == code)
        among = np.arange(n) if code < 0 else own
        if len(among) > 1:
            kernel = kernel + _kernel(x, own, among, n_neighbors, random_state)
    kernel = kernel + kernel.T + 2 * sp.identity(n, format="csr")
    degree = np.asarray(kernel.sum(1)).ravel()
    return (sp.diags(1 / degree) @ kernel).tocsr().astype(np.float32)


def _kernel(x: np.ndarray, own: np.ndarray, among: np.ndarray, n_neighbors: int, random_state: int) -> sp.csr_matrix:
    """Rows of the directed kernel (n × n) for cells `own`, whose neighbours are `among` (own in it; both sorted)."""
    indices, distances = nearest_neighbors(x[among], n_neighbors, random_state=random_state)
    at = np.searchsorted(among, own)
    indices, distances = among[indices[at]], distances[at]
    bandwidth = distances[:, min(WIDTH_NEIGHBOR, distances.shape[1]) - 1]
    # duplicates: a cell whose nearest neighbours are copies of it still needs a width
    bandwidth = np.maximum(bandwidth, max(1e-6 * distances.mean(), 1e-12))
    weights = np.exp(-((distances / bandwidth[:, None]) ** 2))
    rows = np.repeat(own, indices.shape[1])
    return sp.csr_matrix((weights.ravel(), (rows, indices.ravel())), shape=(len(x), len(x)))


def geodesics(
    x: np.ndarray, nodes: np.ndarray, *, n_neighbors: int, random_state: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Path lengths and hop counts between `nodes` (m × m each) on the kNN graph of `x`, its components joined."""
    from scipy.sparse.csgraph import connected_components, dijkstra

    n = len(x)
    indices, distances = nearest_neighbors(x, n_neighbors, random_state=random_state)
    rows = np.repeat(np.arange(n), indices.shape[1])
    # a length of zero would be no edge at all
    lengths = np.maximum(distances.ravel(), 1e-9 * max(distances.max(), 1e-9))
    graph = sp.csr_matrix((lengths, (rows, indices.ravel())), shape=(n, n))
    graph = graph.maximum(graph.T)
    while (parts := connected_components(graph, directed=False))[0] > 1:
        graph = graph.maximum(bridges(x, parts[1]))
    lengths = dijkstra(graph, directed=False, indices=nodes)[:, nodes]
    hops = dijkstra(graph, directed=False, unweighted=True, indices=nodes)[:, nodes]
    return lengths, hops


def bridges(x: np.ndarray, component: np.ndarray) -> sp.csr_matrix:
    """One edge from every component but the largest to the nearest cell outside of it (a round of Boruvka)."""
    from sklearn.neighbors import NearestNeighbors

    edges = []
    counts = np.bincount(component)
    for c in np.delete(np.arange(len(counts)), counts.argmax()):
        inside, outside = np.flatnonzero(component == c), np.flatnonzero(component != c)
        distance, nearest = NearestNeighbors(n_neighbors=1).fit(x[outside]).kneighbors(x[inside])
        at = distance[:, 0].argmin()
        edges.append((inside[at], outside[nearest[at, 0]], max(distance[at, 0], 1e-12)))
    rows, cols, lengths = (np.array(v) for v in zip(*edges))
    bridge = sp.csr_matrix((lengths, (rows, cols)), shape=(len(x), len(x)))
    return bridge.maximum(bridge.T)


def pairwise_distances(x: Tensor) -> Tensor:
    """Euclidean distances B × B, differentiable, exactly 0 on the diagonal."""
    x = x - x.mean(0).detach()  # smaller norms cancel better in float32
    norms = (x * x).sum(1)
    squared = norms[:, None] + norms[None, :] - 2 * x @ x.T
    # the diagonal is filled, not computed: rounding there has an infinite slope under the root
    diagonal = x.new_ones(len(x)).diag().bool()
    return (squared.clamp(min=0) + 1e-12).sqrt().masked_fill(diagonal, 0.0)


def kernel_widths(distances: Tensor) -> Tensor:
    """Distance (B,) of every cell to its k-th nearest other cell, k = a tenth of the batch, detached."""
    n = len(distances)
    k = min(max(5, round(0.1 * n)), n - 1)
    distances = distances.detach()
    # the nearest is the cell itself; not by `kthvalue`, which is slower and on a GPU has no deterministic form
    width = distances.topk(k + 1, dim=1, largest=False, sorted=False).values.amax(1)
    # k copies of a cell: no division by zero
    return width.maximum((1e-3 * distances.mean()).clamp(min=1e-9))


def diffusion_kernel(x: Tensor) -> Tensor:
    """Triangle kernel K (B × B) with a floor that keeps one component."""
    distances = pairwise_distances(x)
    mean, width = distances.mean(), kernel_widths(distances)
    triangle = (1 - distances / (width[:, None] * width[None, :]).sqrt()).clamp(min=0)
    return triangle + 1e-3 * (-distances / mean.clamp(min=1e-9)).exp()


def paper_kernel(x: Tensor) -> Tensor:
    """The published kernel (B × B): max(0, 1 - d / s_a), symmetrised, without a floor."""
    distances = pairwise_distances(x)
    triangle = (1 - distances / kernel_widths(distances)[:, None]).clamp(min=0)
    return (triangle + triangle.T) / 2


def symmetric_operator(kernel: Tensor) -> Tensor:
    """S = K / sqrt(q_a q_b): symmetric, with the spectrum of the random walk diag(q)^-1 K."""
    root = kernel.sum(1).sqrt()
    return kernel / (root[:, None] * root[None, :])


def heat_operator(x: Tensor) -> Tensor:
    """A = ((S + I) / 2)^8 by three squarings."""
    operator = symmetric_operator(diffusion_kernel(x))
    operator = (operator + operator.new_ones(len(operator)).diag()) / 2
    for _ in range(3):
        operator = operator @ operator
    return operator


def spectrum(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, and eigenvectors (columns) of S = K / sqrt(q_a q_b), the trivial one last; detached.

    The trivial eigenvector sqrt(q) of eigenvalue 1 is taken out beforehand: two far clusters have a second one.
    """
    import torch

    with torch.no_grad():
        root = kernel.sum(1).sqrt()
        trivial = root / root.norm()
        values, vectors = torch.linalg.eigh(kernel / torch.outer(root, root) - 2 * torch.outer(trivial, trivial))
        values, vectors = values.flip(0), vectors.flip(1)
        # shifted from 1 to the lower end of the spectrum
        values[-1] = 1.0
    return values, vectors
