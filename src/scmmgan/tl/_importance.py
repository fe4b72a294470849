"""Importance of source features for mapped features."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgan import get
from scmmgan.data import derived as _derived
from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import ATTRIBUTION_GAP, MAX_SEED

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.space.domain import Domain

logger = logging.getLogger("scmmgan")


def importance(
    mdata: MuData,
    source: str,
    target: str,
    *,
    features: str | Sequence[str],
    n_cells: int = 500,
    random_state: int = 0,
    key: str = "scmmgan",
) -> None:
    """Rank the features of `source` by how much they drive mapped features of `target` (integrated gradients).

    The whole chain is explained: smoothed values of the source, z-scores, PCA, generator, decoder, value of the mapped
    feature. The path of integration runs from the mean cell to each cell. Attributions of all source features add up to
    the cell's prediction less that of the mean cell. What is explained is a cell's smoothed values, which mix it with its
    neighbours. Source features that did not enter the PCA have no part in the map and are not listed.

    Importance is what the map uses, not what causes what: features that vary together share it.

    Parameters
    ----------
    mdata
        Aligned data; what was read for the alignment must still be there.
    source
        Modality whose cells are mapped.
    target
        Modality whose features are explained.
    features
        One or more features of `target`.
    n_cells
        Cells of `source` that are averaged over, a random sample where there are more (default 500).
    random_state
        Seed of the sample.
    key
        `key_added` of the alignment.

    Returns
    -------
    `None`. Sets `mdata.uns[key]["importance"][source][target]`, a table with one row for every mapped and source feature,
    largest share first, which replaces an earlier one:

    `feature`, `source_feature` : str
        The mapped feature, and the one of the source.
    `share` : float
        Part of the mapped feature's variation about the mean cell that is attributed to the source feature, over cells:
        mean of attribution × sum of all attributions, over the mean square of that sum. Shares of all source features add
        up to 1; below 0 a feature works against the others.
    `importance` : float
        Mean absolute attribution over cells, in units of the target's (smoothed) layer.
    `effect` : float
        Signed: change of the mapped feature that is attributed to one sd of the source feature, in the same units.

    Raises
    ------
    ImportError
        If captum is not installed.
    KeyError
        If there is no such alignment, modality or feature, or a layer or column that was read is gone.
    TypeError
        If a number is not whole, or `features` are no names.
    ValueError
        If the record is damaged or of another version; cells or features were added, renamed or taken out, or come from
        another alignment; their values, links, pairs or labels have changed since; `source` is `target`, `features` is
        empty, or `n_cells` is below 1.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.importance(mdata, "rna", "protein", features="protein_gene_0")
    >>> smm.get.importance(mdata, "rna", "protein").columns.tolist()
    ['feature', 'source_feature', 'share', 'importance', 'effect']
    """
    keys = Keys(key)
    _slots.check_coupled(mdata, keys)
    found = _slots.check_aligned(mdata, (source, target), keys)
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}: nothing is mapped. Name two modalities.")
    n_cells = _modality.whole_number(n_cells, "n_cells", low=1)
    random_state = _modality.whole_number(random_state, "random_state", low=0, high=MAX_SEED)
    chosen = _slots.positions(features, pd.Index(found["var_names"][target]), target)
    if not len(chosen):
        raise ValueError("`features` names no feature. Name at least one.")

    from scmmgan.model.evidence.attribution import check_captum

    check_captum()
    _, domains = _read.reread(mdata, keys)
    table = _explain(mdata, domains[source], domains[target], chosen, n_cells, random_state, key)
    before = _slots.added(mdata, keys, "importance")
    merged = {**before, source: {**before.get(source, {}), target: table}}
    _derived.write(mdata, {}, keys, uns={"importance": merged})


def _explain(
    mdata: MuData, source: Domain, target: Domain, chosen: np.ndarray, n_cells: int, random_state: int, key: str
) -> pd.DataFrame:
    """The table of all chosen features."""
    from scmmgan.model.evidence import attribution

    rows = np.sort(np.random.default_rng(random_state).permutation(len(source.x))[:n_cells])
    own, other = source.transform, target.transform
    loadings = float(other.scale) * other.decoder[:, chosen] * other.sd[chosen]
    generator = get.model(mdata, key=key).aligner.generator(source.name, target.name)
    paths = attribution.path_gradients(generator, source.x[rows], loadings)
    for position, gap in zip(chosen, paths.gap(source.x[rows])):
        if gap > ATTRIBUTION_GAP:
            logger.warning(
                "Attributions of %r miss %.0f %% of what it differs from the mean cell's: the map is not smooth there.",
                target.modality.features[position], 100 * gap,
            )  # fmt: skip

    cells = source.smoothed

    def deviations(at: slice) -> np.ndarray:
        values = cells.columns(own.encoded[at]).astype(np.float64)
        return (values - values.mean(0))[rows]

    weights = own.encoder / (own.sd[own.encoded] * float(own.scale))
    found = attribution.pull_back(paths.gradient, source.x[rows], weights, deviations)
    names = source.modality.features[own.encoded]
    parts = []
    for i, position in enumerate(chosen):
        order = np.argsort(-found.share[i], kind="stable")
        columns = {
            "feature": np.full(len(names), target.modality.features[position], dtype=object),
            "source_feature": names[order],
            "share": found.share[i, order],
            "importance": found.size[i, order],
            "effect": found.slope[i, order],
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)
