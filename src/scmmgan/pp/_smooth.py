"""Diffusion smoothing of dropouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scmmgan import _domain
from scmmgan.model.transform import fit_operator

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
    """Smooth expression over the cells' kNN graph: P^t X with an adaptive Gaussian kernel (the MAGIC idea).

    Parameters
    ----------
    mdata
        Data with the modality.
    modality
        Modality to smooth.
    t
        Diffusion steps (default 3, METHOD §2).
    n_neighbors
        Neighbours in the graph (default 15); a cell's bandwidth is the distance to the 5th.
    n_pcs
        Principal components of the z-scored matrix on which the graph is built.
    layer
        Normalised values to read; default: `X`.
    key_added
        Layer to write.
    random_state
        Seed of the approximate neighbour search above 20,000 cells.

    Returns
    -------
    `None`. Sets:

    `mdata[modality].layers[key_added]` : float32, cells × features
        Smoothed values, sparse where the input is sparse. `tl.align` smooths by itself: hand it the unsmoothed layer.

    Raises
    ------
    KeyError
        If the modality or layer is not there.
    ValueError
        If `t` or `n_neighbors` is below 1, if `key_added` is the layer that is read, or values are not finite.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.pp.smooth(mdata, "rna")
    >>> mdata["rna"].layers["smoothed"].shape == mdata["rna"].shape
    True
    """
    if t < 1 or n_neighbors < 1 or n_pcs < 1:
        raise ValueError(f"`t`, `n_neighbors` and `n_pcs` must be at least 1, got {t}, {n_neighbors} and {n_pcs}.")
    if layer is not None and layer == key_added:
        raise ValueError(
            f"`key_added` {key_added!r} is the layer that is read, and inputs stay as they are. Name another."
        )
    values, _ = _domain.read_matrix(mdata, modality, layer=layer)
    operator = fit_operator(values, n_pcs=n_pcs, n_neighbors=n_neighbors, random_state=random_state)
    for _ in range(t):
        values = operator @ values
    mdata[modality].layers[key_added] = values
