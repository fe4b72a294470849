"""The cells of another modality that a cell resembles most."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgan.data import cells as _cells
from scmmgan.data import derived as _derived
from scmmgan.data import modality as _modality
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import MAX_SEED, VOTES

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")


def match(mdata: MuData, source: str, target: str, *, k: int = 5, random_state: int = 0, key: str = "scmmgan") -> None:
    """Find for every cell of `source` its partners among the cells of `target`, with a confidence.

    Partners are the nearest cells in the joint embedding. Several cells may have one partner.

    Confidence is a product. First, 1 less the mean squared distance to the 15 nearest cells of `target` over that to all
    of them. Second, the share of the cell and its 14 nearest ones that found a partner at all: a tenth of a cell's mass
    unmatched (`obs[f"{key}_unmatched"]`, where the alignment has it) counts half. Cells with a high confidence have a
    partner of the right type more often, but it is no probability. Nor does it know whether the whole alignment is a
    mirror image: see :func:`scmmgan.tl.diagnose`.

    Parameters
    ----------
    mdata
        Aligned data.
    source
        Modality whose cells get partners.
    target
        Modality that the partners belong to.
    k
        Partners of each cell (default 5); all where `target` has fewer cells.
    random_state
        Seed of the approximate neighbour search, above 20,000 cells.
    key
        `key_added` of the alignment.

    Returns
    -------
    `None`. Sets:

    `mdata[source].obs[f"{key}_match_{target}"]` : str
        Name of the best partner.
    `mdata[source].obs[f"{key}_match_{target}_confidence"]` : float32
        Confidence, 0 to 1.
    `mdata[source].obsm[f"{key}_match_{target}"]` : sparse float32, cells of `source` × cells of `target`
        Weights of the k partners, larger for nearer ones; rows sum to the confidence. Columns are the cells of `target` in
        their order when this was run.

    Raises
    ------
    KeyError
        If there is no such alignment or modality, or a slot of it was deleted.
    TypeError
        If a number is not whole.
    ValueError
        If the record is damaged or of another version, cells were added, renamed or come from another alignment,
        `source` is `target`, `k` is below 1, `mdata` is a view, or a slot holds something else.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.match(mdata, "rna", "protein")
    >>> mdata["rna"].obs["scmmgan_match_protein"].isin(mdata["protein"].obs_names).all()
    np.True_
    """
    keys = Keys(key)
    cells = _cells.read_cells(mdata, source, target, keys)
    k = _modality.whole_number(k, "k", low=1)
    random_state = _modality.whole_number(random_state, "random_state", low=0, high=MAX_SEED)
    best, trusted, weights = keys.match(target), keys.match_confidence(target), keys.match(target)
    slots = [(source, "obs", best), (source, "obs", trusted), (source, "obsm", weights)]
    _derived.check_free(mdata, slots, keys)
    _cells.warn_of_verdict(mdata, source, target, keys)

    from scmmgan.model.evidence import matching
    from scmmgan.model.space.diffusion import nearest

    neighbors = matching.own_neighbors(cells.source, random_state=random_state)
    n = max(k, VOTES)
    indices, distances = nearest(cells.source, cells.target, n, random_state=random_state)
    close = matching.closeness(cells.source, cells.target, distances)
    certain = matching.assigned(cells.unmatched, np.zeros(len(cells.unmatched), dtype=bool), neighbors)
    confidence = close[:, :VOTES].mean(1) * certain
    share = np.maximum(close[:, :k], 1e-6)
    share *= (confidence / share.sum(1))[:, None]
    names = mdata[target].obs_names.to_numpy(dtype=object)[indices[:, 0]]
    values = (
        pd.Series(names, index=mdata[source].obs_names, dtype=object),
        confidence.astype(np.float32),
        matching.partners(indices[:, :k], share, len(cells.target)),
    )
    _derived.write(mdata, dict(zip(slots, values)), keys)
