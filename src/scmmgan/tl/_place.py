"""Places of dissociated cells in a tissue."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan import get
from scmmgan.data import derived as _derived
from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.data import sections as _sections
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import MAP_CHUNK, PLACE_NEIGHBORS
from scmmgan.model.problem import Sections
from scmmgan.model.progress import shown, tracked
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
    library_key: str | None = None,
    key: str = "scmmgan",
    progress_bar: bool = True,
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
    library_key
        `obs` column of the target with sections that share no frame of coordinates. A cell goes to the section that most of
        the 20 nearest spots are of, among those that it is coupled with; its place and spread are those inside this
        section. Default: the column that was aligned, else the one whose values are the keys of `uns["spatial"]`, else
        `"library_id"`; a warning where there seem to be several frames and no column.
    key
        `key_added` of the alignment.
    progress_bar
        Show the progress of what takes longer than two seconds, and the time that is left.

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
    `mdata[source].obs[f"{key}_section_{target}"]` : categorical, only where there are sections
        Section of the target that the cell was placed in. Which one is certain only as far as sections differ.
    `mdata.uns[key]["coordinates"][source][target]` : dict
        `method`, `spatial` and, where there are sections, `library_key` as used.

    Raises
    ------
    KeyError
        If there is no such alignment, modality, `obsm` key or column, or cells of the target are gone.
    ValueError
        If the record is damaged or of another version; if cells were added, renamed or come from another alignment;
        if `method` is unknown, or the generator emits no coordinates, or those of other sections; if these are not
        2 or 3 columns of finite numbers; if the column of sections has gaps, or several are possible and disagree;
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
    _slots.check_coupled(mdata, keys)
    found = _slots.check_aligned(mdata, (source, target), keys)
    _modality.check_writable(mdata, [source])
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}. Name the modality with coordinates as `target`.")
    trained = _trained(mdata, target, keys)
    _check_method(method, trained, spatial, target)
    spatial = spatial or trained or "spatial"
    places = _modality.coordinates(mdata, target, spatial)
    sections = _sections_of(mdata, target, library_key, places, keys)
    several = len(found["modalities"]) > 2
    slots = (
        (source, "obsm", keys.coordinates(target)),
        (source, "obs", keys.spread(target if several else None)),
        (source, "obs", keys.section(target)),
    )
    _derived.check_free(mdata, slots, keys)
    number = _numbers_then(mdata, target, sections, keys) if method == "generator" else np.zeros(1, dtype=int)
    plan, label = _coupled(mdata, source, target, keys)
    cells, spots = (_slots.model_space(mdata, name, target, keys) for name in (source, target))
    codes = np.zeros(len(places), dtype=int) if sections is None else sections.codes
    chosen = np.zeros(len(cells), dtype=int) if sections is None else _section(cells, spots, codes, plan, label)
    placed, spread = np.empty((len(cells), places.shape[1])), np.empty(len(cells))
    with shown(progress_bar):
        for code in tracked(np.unique(chosen), "sections"):
            rows, there = np.flatnonzero(chosen == code), np.flatnonzero(codes == code)
            placed[rows], spread[rows] = _under_plan(plan[rows], label, places, there)
            if method == "nearest":
                placed[rows] = _nearest(cells[rows], spots[there], places[there])
    if method == "generator":
        own = _slots.model_space(mdata, source, source, keys)
        placed = get.model(mdata, key=key).aligner.place(own, source, target, number[chosen])
    record = _slots.added(mdata, keys, "coordinates")
    used = {"method": method, "spatial": spatial} | ({} if sections is None else {"library_key": sections.column})
    record[source] = {**record.get(source, {}), target: used}
    values = dict(zip(slots, (placed, spread.astype(np.float32))))
    if sections is not None:
        values[slots[2]] = pd.Categorical(
            np.array(sections.names, dtype=object)[chosen], categories=list(sections.names)
        )
    _derived.write(mdata, values, keys, uns={"coordinates": record}, instead_of=slots)


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


def _sections_of(
    mdata: MuData, target: str, library_key: str | None, places: np.ndarray, keys: Keys
) -> Sections | None:
    """Sections of the target: as asked for, as aligned, or as found; None where there is one frame."""
    column = library_key or _sections.column_aligned(mdata, target, keys.key)
    if column is None:
        return _sections.find_sections(mdata, target, places)
    return _sections.read_column(mdata, target, column)


def _numbers_then(mdata: MuData, target: str, sections: Sections | None, keys: Keys) -> np.ndarray:
    """Number that every section had when the generator was trained; ValueError where it was trained on others."""
    then = list(_slots.config(mdata, keys)["frames"][target].get("sections", []))
    now = [] if sections is None else list(sections.names)
    if (bool(now) and not then) or (len(then) > 1 and not now) or set(now) - set(then):
        raise ValueError(
            f"The alignment maps coordinates of the sections {then[:10] or 'of one frame'} of {target!r} along, not of "
            f"{now[:10] or 'one frame'}. Name the column that was aligned as `library_key`, align again with this one, or take "
            "`method='nearest'`."
        )
    return np.array([then.index(name) for name in now] or [0])


def _coupled(mdata: MuData, source: str, target: str, keys: Keys) -> tuple[sp.csr_matrix, np.ndarray]:
    """The plan (cells × landmarks), and the landmark (n,) of every spot; landmarks are clusters of spots."""
    plan = sp.csr_matrix(_slots.needed(mdata, source, "obsm", keys.plan(target), "align")).astype(np.float64)
    label, m = np.asarray(_slots.needed(mdata, target, "obs", keys.landmark, "align"), dtype=int), plan.shape[1]
    if gone := int((np.bincount(label, minlength=m) == 0).sum()):
        raise KeyError(
            f"{gone} of {m} landmarks of the alignment {keys.key!r} have no cell left in {target!r}: align it again, or use "
            "the whole object."
        )
    return plan, label


def _section(
    cells: np.ndarray, spots: np.ndarray, codes: np.ndarray, plan: sp.csr_matrix, label: np.ndarray
) -> np.ndarray:
    """Section (n,) that most of the spots nearest to a cell are of, among those with spots that it is coupled with."""
    count, m = int(codes.max()) + 1, plan.shape[1]
    share = np.bincount(label * count + codes, minlength=m * count).reshape(m, count) / np.bincount(label)[:, None]
    near, found = codes[nearest(cells, spots, PLACE_NEIGHBORS)[0]], []
    for start in range(0, len(cells), MAP_CHUNK):
        part = near[start : start + MAP_CHUNK]
        votes = np.bincount((np.arange(len(part))[:, None] * count + part).ravel(), minlength=len(part) * count)
        mass = plan[start : start + MAP_CHUNK] @ share
        # mass is 1 at most: it decides between sections with as many votes
        found.append(np.where(mass > 0, votes.reshape(len(part), count) + mass, -1).argmax(1))
    return np.concatenate(found)


def _nearest(cells: np.ndarray, spots: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of the places of the spots nearest to each cell, the one with the least sum of distances to the others."""
    near = places[nearest(cells, spots, PLACE_NEIGHBORS)[0]]
    apart = np.zeros(near.shape[:2])
    for other in range(near.shape[1]):
        apart += np.linalg.norm(near - near[:, other, None], axis=2)
    return near[np.arange(len(near)), apart.argmin(1)]


def _under_plan(
    plan: sp.csr_matrix, label: np.ndarray, places: np.ndarray, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean place (n × d) and root mean squared distance from it (n,) under the plan, of the spots `there` (row numbers)."""
    m = plan.shape[1]
    member = sp.csr_matrix((np.ones(len(there)), (label[there], np.arange(len(there)))), shape=(m, len(there)))
    # squares about the centre: about a far origin they would round away
    centre = places[there].mean(0)
    around = places[there] - centre
    size = np.bincount(label, minlength=m)[:, None]
    mass = plan @ (np.bincount(label[there], minlength=m)[:, None] / size)
    mass[mass == 0] = 1  # a cell without any coupling
    mean = np.asarray(plan @ ((member @ around) / size)) / mass
    squares = np.asarray(plan @ ((member @ (around**2)) / size)) / mass
    spread = np.sqrt(np.maximum((squares - mean**2).sum(1), 0))
    return mean + centre, spread
