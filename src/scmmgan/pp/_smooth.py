"""Diffusion smoothing of dropouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import scipy.sparse as sp

from scmmgan.data import modality as _modality
from scmmgan.model.defaults import CHUNK, MAX_SEED, SMOOTHING_NEIGHBORS
from scmmgan.model.space.diffusion import smoothing_operator
from scmmgan.model.space.graphs import graph_scores
from scmmgan.model.space.scratch import rowwise
from scmmgan.pp._normalize import _writable

if TYPE_CHECKING:
    from mudata import MuData


def smooth(
    mdata: MuData,
    modality: str,
    *,
    t: int = 3,
    n_neighbors: int = 15,
    n_pcs: int = 50,
    layer: str | None = None,
    key_added: str = "smoothed",
    random_state: int = 0,
) -> None:
    """Smooth expression over the cells' kNN graph: P^t X with an adaptive Gaussian kernel, as in MAGIC.

    :func:`scmmgan.tl.align` smooths by itself: give it the unsmoothed layer.

    Parameters
    ----------
    mdata
        Data with the modality.
    modality
        Modality to smooth.
    t
        Diffusion steps (default 3).
    n_neighbors
        Neighbours of a cell in the graph (default 15). The kernel's bandwidth is the distance to the 5th.
    n_pcs
        Principal components of the z-scored matrix, denoised, on which the graph is built (default 50).
    layer
        Normalised values to read; default: `X`.
    key_added
        Layer to write (default `"smoothed"`).
    random_state
        Seed of the approximate neighbour search, above 20,000 cells (default 0).

    Returns
    -------
    `None`. Sets:

    `mdata[modality].layers[key_added]` : float32, cells × features
        Smoothed values, sparse where the input is sparse.

    Raises
    ------
    KeyError
        If the modality or layer is not there.
    TypeError
        If a number is not whole, or the values are no matrix of real numbers.
    ValueError
        If `t`, `n_neighbors` or `n_pcs` is below 1, `key_added` is the layer that is read or no name without slashes, the modality
        is a view, has fewer than 32 cells or names that are not unique, or values are not finite or constant.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.pp.smooth(mdata, "rna")
    >>> mdata["rna"].layers["smoothed"].shape == mdata["rna"].shape
    True
    """
    t = _modality.whole_number(t, "t", low=1)
    n_neighbors = _modality.whole_number(n_neighbors, "n_neighbors", low=1)
    n_pcs = _modality.whole_number(n_pcs, "n_pcs", low=1)
    random_state = _modality.whole_number(random_state, "random_state", low=0, high=MAX_SEED)
    adata = _writable(mdata, modality)
    _modality.check_key_added(key_added)
    if layer == key_added:
        raise ValueError(
            f"`key_added` {key_added!r} is the layer that is read, and inputs stay as they are. Name another."
        )
    values, _ = _modality.read_matrix(mdata, modality, layer=layer)
    scores = graph_scores(values, n_pcs=n_pcs)
    operator = smoothing_operator(scores, n_neighbors=n_neighbors, random_state=random_state)
    smoothed: Any = values
    for _ in range(t):
        smoothed = _step(operator, smoothed)
    adata.layers[key_added] = smoothed


def _step(operator: sp.csr_matrix, values: Any) -> Any:
    """One step of smoothing; of values larger than memory few rows at a time, as theirs are those of many neighbours."""
    return rowwise(values, lambda rows: operator[rows] @ values, CHUNK // SMOOTHING_NEIGHBORS)
