"""Places of dissociated cells in a tissue."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scmmgan import get
from scmmgan.data import derived as _derived
from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import PLACE_NEIGHBORS
from scmmgan.model.space.diffusion import nearest

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")

METHODS = ("nearest", "generator", "plan")


def place(
    mdata: MuData,
    source: str,
    target: str,
    *,
    method: str = "nearest",
    spatial: str | None = None,
    key: str = "scmmgan",
) -> None:
    """Place cells of `source` in the tissue of `target`, and report how far apart the places are that fit a cell.

    Parameters
    ----------
    mdata
        Aligned data.
    source
        Modality whose cells are placed, dissociated ones say.
    target
        Modality with coordinates.
    method
        `"nearest"` (default, the most accurate of the three on the tissues where the truth is known): of the 20 real spots
        nearest to the mapped cell in the target's model space, the place of the one nearest to the others. Always a real
        place. `"generator"`: coordinates that the map to `target` was trained to give, by `tl.align(spatial=)`.
        `"plan"`: the mean place under the coupling.
    spatial
        `obsm` key of the target's coordinates, 2 or 3 columns; default: the one that was aligned, else `"spatial"`.
    key
        `key_added` of the alignment.

    Returns
    -------
    `None`. Sets:

    `mdata[source].obsm[f"{key}_coordinates_{target}"]` : float64, cells × 2 or 3
        Places in the units of the target's coordinates. Where several places fit a cell alike, the generator and the plan
        give a mean of them, which may lie between them or outside of the tissue.
    `mdata[source].obs[f"{key}_spread"]` : float32 (suffix `_{target}` with more than two modalities)
        Root mean squared distance, under the coupling, from the mean place: how far apart the places are that fit the
        cell, in the same units, whatever the method. A cell is coupled with landmarks; the places of one are those of
        all spots that it stands for (`mdata[target].obs[f"{key}_landmark"]`). It is no error bar: a wrong coupling may
        have a small spread. See :func:`scmmgan.tl.diagnose` first.
    `mdata.uns[key]["coordinates"][source][target]` : dict
        `method` and `spatial` as used.

    Raises
    ------
    KeyError
        If there is no such alignment, modality or `obsm` key, or cells of the target are gone.
    ValueError
        If `method` is unknown, or the generator emits no coordinates; if these are not 2 or 3 columns of finite numbers;
        if slots of these names hold something else, or `mdata` is a view.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(spatial=True)
    >>> smm.tl.align(mdata, links="gene", spatial="spatial", max_steps=50, progress_bar=False)
    >>> smm.tl.place(mdata, "protein", "rna")
    >>> mdata["protein"].obsm["scmmgan_coordinates_rna"].shape == (mdata["protein"].n_obs, 2)
    True
    """
    keys = Keys(key)
    found = _slots.check_aligned(mdata, (source, target), keys)
    _modality.check_writable(mdata, [source])
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}. Name the modality with coordinates as `target`.")
    trained = _trained(mdata, target, keys)
    _check_method(method, trained, spatial, target)
    spatial = spatial or trained or "spatial"
    places = _modality.coordinates(mdata, target, spatial)
    several = len(found["modalities"]) > 2
    slots = (
        (source, "obsm", keys.coordinates(target)),
        (source, "obs", keys.spread(target if several else None)),
    )
    _derived.check_free(mdata, slots, keys)
    means, spread = _under_plan(mdata, source, target, places, keys)
    if method == "generator":
        cells = _slots.model_space(mdata, source, source, keys)
        placed = get.model(mdata, key=key).aligner.place(cells, source, target)
    elif method == "nearest":
        cells, spots = (_slots.model_space(mdata, name, target, keys) for name in (source, target))
        placed = _nearest(cells, spots, places)
    else:
        placed = means
    record = _slots.added(mdata, keys, "coordinates")
    record[source] = {**record.get(source, {}), target: {"method": method, "spatial": spatial}}
    values = dict(zip(slots, (placed, spread.astype(np.float32))))
    _derived.write(mdata, values, keys, uns={"coordinates": record})


def _trained(mdata: MuData, target: str, keys: Keys) -> str | None:
    """The obsm key of the coordinates that the alignment maps along, if it does for this target."""
    if target not in _slots.config(mdata, keys).get("frames", {}):
        return None
    chosen = _slots.record(mdata, keys)["params"]["spatial"]
    return str(_read.given(chosen[target] if isinstance(chosen, Mapping) else chosen))


def _check_method(method: str, trained: str | None, spatial: str | None, target: str) -> None:
    """ValueError on an unknown method, or a generator that does not emit these coordinates."""
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}, got {method!r}.")
    if method == "generator" and trained is None:
        raise ValueError(
            f"The alignment does not map coordinates of {target!r} along. Give `spatial` to `scmmgan.tl.align`, or take "
            "`method='nearest'`."
        )
    if method == "generator" and spatial not in (None, trained):
        raise ValueError(
            f"The alignment maps obsm[{trained!r}] along, not {spatial!r}. Take `method='nearest'` for that."
        )
    if trained is None:
        logger.info("%r was aligned without `spatial`: no generator knows its coordinates; method %r.", target, method)


def _nearest(cells: np.ndarray, spots: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of the places of the spots nearest to each cell, the one with the least sum of distances to the others."""
    near = places[nearest(cells, spots, PLACE_NEIGHBORS)[0]]
    apart = np.zeros(near.shape[:2])
    for other in range(near.shape[1]):
        apart += np.linalg.norm(near - near[:, other, None], axis=2)
    return near[np.arange(len(near)), apart.argmin(1)]


def _under_plan(
    mdata: MuData, source: str, target: str, places: np.ndarray, keys: Keys
) -> tuple[np.ndarray, np.ndarray]:
    """Mean place (n × d) and root mean squared distance from it (n,) under the plan; landmarks are clusters of spots."""
    plan = sp.csr_matrix(_slots.needed(mdata, source, "obsm", keys.plan(target), "align")).astype(np.float64)
    label, m = np.asarray(_slots.needed(mdata, target, "obs", keys.landmark, "align"), dtype=int), plan.shape[1]
    size = np.bincount(label, minlength=m)
    if gone := int((size == 0).sum()):
        raise KeyError(
            f"{gone} of {m} landmarks of the alignment {keys.key!r} have no cell left in {target!r}: align it again, or use "
            "the whole object."
        )
    member = sp.csr_matrix((np.ones(len(label)), (label, np.arange(len(label)))), shape=(m, len(label)))
    # squares about the tissue's centre: about a far origin they would round away
    centre = places.mean(0)
    around = places - centre
    mean = np.asarray(plan @ ((member @ around) / size[:, None]))
    squares = np.asarray(plan @ ((member @ (around**2)) / size[:, None]))
    spread = np.sqrt(np.maximum((squares - mean**2).sum(1), 0))
    return mean + centre, spread
