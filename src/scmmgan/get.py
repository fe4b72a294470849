"""The read side of every slot."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan import _slots
from scmmgan._domain import modality
from scmmgan._keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scmmgan.model.aligner import Aligner

__all__ = ["coordinates", "diagnosis", "embedding", "history", "mapped", "model"]


def mapped(
    mdata: MuData, source: str, target: str, *, features: str | Sequence[str] | None = None, key: str = "scmmgan"
) -> AnnData:
    """Cells of `source` expressed in the features of `target`.

    Parameters
    ----------
    mdata
        Aligned data.
    source
        Modality whose cells are mapped.
    target
        Modality whose features they are mapped to.
    features
        Features of `target`, in the order wanted; default: those that `tl.align` wrote. Features that were not
        written are decoded from the joint embedding with the stored model.
    key
        `key_added` of the alignment.

    Returns
    -------
    A new AnnData, cells of `source` × features of `target`: `X` float32 in the units of the (smoothed) layer of
    `target` that was read, never counts; `obs`, and where there `obsm["spatial"]` and `uns["spatial"]`, of the
    source; `var` of the target. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, modality or feature.
    ValueError
        If nothing was written and `features` is not given.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.get.mapped(mdata, "rna", "protein").n_vars == mdata["protein"].n_vars
    True
    """
    from anndata import AnnData

    values, names = _slots.mapped_values(mdata, source, target, features, Keys(key))
    cells, var = modality(mdata, source), modality(mdata, target).var
    # a representation (`use_rep`) has columns that are no features
    known = set(names) <= set(var.index)
    var = var.loc[names].copy() if known else pd.DataFrame(index=pd.Index(names, dtype=object))
    out = AnnData(values.copy(), obs=cells.obs.copy(), var=var)
    if "spatial" in cells.obsm:
        out.obsm["spatial"] = np.array(cells.obsm["spatial"])
    if "spatial" in cells.uns:
        out.uns["spatial"] = deepcopy(cells.uns["spatial"])
    return out


def embedding(mdata: MuData, *, key: str = "scmmgan") -> AnnData:
    """Joint embedding of all aligned cells.

    Parameters
    ----------
    mdata
        Aligned data.
    key
        `key_added` of the alignment.

    Returns
    -------
    A new AnnData, all cells × dimensions: `X` the joint embedding (float32), the blocks of all modality spaces side
    by side; `obs_names` are `{modality}:{cell}`, `obs["modality"]` (categorical) next to the modalities' own columns (one
    of that name is replaced in the copy); `var["modality"]` names the block of every dimension. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.get.embedding(mdata).n_obs == mdata.n_obs
    True
    """
    from anndata import AnnData

    keys = Keys(key)
    names = _slots.config(mdata, keys)["modalities"]
    found = _slots.check_aligned(mdata, names, keys)
    parts = []
    for name in names:
        obs = mdata[name].obs.copy()
        # categories of one name may differ between modalities
        obs = obs.astype({c: object for c in obs if isinstance(obs[c].dtype, pd.CategoricalDtype)})
        obs["modality"] = name
        parts.append(obs.set_axis([f"{name}:{cell}" for cell in mdata[name].obs_names], axis=0))
    # a column without any value in one modality would decide the type of the others'
    obs = pd.concat([part.dropna(axis=1, how="all") for part in parts])
    for column in obs.select_dtypes(object).columns:
        obs[column] = pd.Categorical(obs[column].where(obs[column].isna(), obs[column].astype(str)))
    obs["modality"] = pd.Categorical(obs["modality"], categories=names)
    var = pd.DataFrame(
        {"modality": np.repeat(names, [found["widths"][m] for m in names])},
        index=[f"{m}_{i}" for m in names for i in range(found["widths"][m])],
    )
    x = np.vstack([np.asarray(mdata[name].obsm[keys.embedding]) for name in names])
    return AnnData(x, obs=obs, var=var)


def diagnosis(mdata: MuData, source: str, target: str, *, key: str = "scmmgan") -> dict[str, Any]:
    """Verdict on the alignment of two modalities, and the numbers that it rests on.

    Parameters
    ----------
    mdata
        Aligned data.
    source
        One of the two modalities.
    target
        The other; the order does not matter.
    key
        `key_added` of the alignment.

    Returns
    -------
    A dict, as :func:`scmmgan.tl.diagnose` describes it: `verdict`, `supported`, `statement`, the table `populations`, and
    what was tested. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, modality or diagnosis.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.get.diagnosis(mdata, "rna", "protein")["verdict"]
    'supported by links'
    """
    return _slots.diagnosis(mdata, source, target, Keys(key))


def history(mdata: MuData, *, key: str = "scmmgan") -> pd.DataFrame:
    """Training history.

    Parameters
    ----------
    mdata
        Aligned data.
    key
        `key_added` of the alignment.

    Returns
    -------
    A table indexed by training step with one column per loss term and gradient norm, each the mean over the steps
    since the row before. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> int(smm.get.history(mdata).index[-1])
    50
    """
    found = _slots.record(mdata, Keys(key))["history"]
    return pd.DataFrame({name: np.asarray(values) for name, values in found.items()}).set_index("step")


def coordinates(mdata: MuData, source: str, target: str, *, key: str = "scmmgan") -> pd.DataFrame:
    """Where :func:`scmmgan.tl.place` put the cells of `source` in the tissue of `target`.

    Parameters
    ----------
    mdata
        Aligned data, with cells placed.
    source
        Modality whose cells were placed.
    target
        Modality with the tissue.
    key
        `key_added` of the alignment.

    Returns
    -------
    A table, cells × (`x`, `y`, where there is one `z`, `spread`), in the units of the target's coordinates; its `attrs`
    name the `method` and the target's `obsm` key, `spatial`. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, or cells were not placed.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(spatial=True)
    >>> smm.tl.align(mdata, links="gene", spatial="spatial", max_steps=50, progress_bar=False)
    >>> smm.tl.place(mdata, "protein", "rna")
    >>> list(smm.get.coordinates(mdata, "protein", "rna"))
    ['x', 'y', 'spread']
    """
    keys = Keys(key)
    found = _slots.check_aligned(mdata, (source, target), keys)
    used = _slots.record(mdata, keys).get("coordinates", {}).get(source, {}).get(target)
    slot = keys.coordinates(target)
    if used is None or slot not in mdata[source].obsm:
        raise KeyError(f"Cells of {source!r} have no place in {target!r}. Run `scmmgan.tl.place(mdata, ...)` first.")
    places = np.asarray(mdata[source].obsm[slot])
    out = pd.DataFrame(places, index=mdata[source].obs_names, columns=list("xyz")[: places.shape[1]])
    out["spread"] = (
        mdata[source].obs[keys.spread(target if len(found["modalities"]) > 2 else None)].to_numpy(dtype=float)
    )
    out.attrs = {name: str(value) for name, value in used.items()}
    return out


def model(mdata: MuData, *, key: str = "scmmgan") -> Aligner:
    """The trained aligner, rebuilt from the arrays in `uns`.

    Parameters
    ----------
    mdata
        Aligned data, also one that was written and read again.
    key
        `key_added` of the alignment.

    Returns
    -------
    An `Aligner` on the CPU with `translate(x, source, target)` and `embed(x, modality)` for cells in model space.
    Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.get.model(mdata).modalities
    ['rna', 'protein']
    """
    from scmmgan.model.aligner import Aligner

    stored = _slots.record(mdata, Keys(key))["model"]
    return Aligner.from_state(str(stored["config"]), stored["weights"])
