"""The read side of every slot."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import derived as _derived
from scmmgan.data import record as _record
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.data.modality import listed, missing_key, modality

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scmmgan.model.nets.trained import Trained

__all__ = [
    "coordinates",
    "correlations",
    "diagnosis",
    "embedding",
    "history",
    "mapped",
    "model",
    "uncertainty",
    "uncertainty_summary",
]


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
        If there is no such alignment, modality or feature, or the embedding was deleted.
    ValueError
        If the record is damaged or of another version, cells were added, renamed or come from another alignment, the
        values of `target` that were aligned have changed since (scaled, say), or nothing was written and `features` is
        not given.

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
    _copy_places(cells, out)
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
    by side, axes weighed by what returns of them (:func:`scmmgan.tl.align`); `obs_names` are `{modality}:{cell}`,
    `obs["modality"]` (categorical) next to the modalities' own columns, categories in their order (a column of theirs
    that is named so is `obs["own_modality"]`);
    `var["modality"]` names the block of every dimension. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, a modality of it is gone, or the embedding was deleted.
    ValueError
        If the record is damaged or of another version, or cells were added, renamed or come from another alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.get.embedding(mdata).n_obs == mdata.n_obs
    True
    """
    return _joint(mdata, Keys(key))


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
    A dict, as :func:`scmmgan.tl.diagnose` describes it: `verdict`, `grade`, `supported`, `statement`, the tables
    `populations` and `links` (evidence link by link), and what else was tested. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, modality or diagnosis.
    ValueError
        If the record is damaged or of another version, or cells were added, renamed or come from another alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.get.diagnosis(mdata, "rna", "protein")["grade"]
    'supported'
    """
    return deepcopy(_slots.diagnosis(mdata, source, target, Keys(key)))


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
    ValueError
        If the record is damaged or of another version.

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
    A table, cells × (`x`, `y`, where there is one `z`, `spread`), in the units of the target's coordinates, and `section`
    (categorical) where cells were placed in sections; its `attrs` name the `method`, the target's `obsm` key, `spatial`,
    and its column of sections, `library_key`. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, or cells were not placed.
    ValueError
        If the record is damaged or of another version, or cells were added, renamed or come from another alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(spatial=True)
    >>> smm.tl.align(mdata, links="gene", spatial="spatial", max_steps=50, progress_bar=False)
    >>> smm.tl.place(mdata, "protein", "rna")
    >>> list(smm.get.coordinates(mdata, "protein", "rna"))
    ['x', 'y', 'spread']
    """
    return _places(mdata, source, target, Keys(key))


def model(mdata: MuData, *, key: str = "scmmgan") -> Trained:
    """The trained model, rebuilt from the arrays in `uns`.

    Parameters
    ----------
    mdata
        Aligned data, also one that was written and read again.
    key
        `key_added` of the alignment.

    Returns
    -------
    A `Trained` on the CPU: networks (`aligner`), `transforms` between features and model space, and the training cells
    that new cells are smoothed with. :func:`scmmgan.tl.translate` takes it; `translate(x, source, target)`,
    `embed(x, modality)` and `decode(y, target)` are for cells in model space. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment.
    ValueError
        If the record is damaged or of another version, or was made with `save_model=False`.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.get.model(mdata).modalities
    ['rna', 'protein']
    """
    from scmmgan.model.nets.trained import Trained

    stored = _slots.stored_model(mdata, Keys(key))
    try:
        return Trained.from_record(stored)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _record.damaged(Keys(key), str(error)) from error


def correlations(
    mdata: MuData, source: str, target: str, *, gene: str | Sequence[str] | None = None, key: str = "scmmgan"
) -> pd.DataFrame:
    """Spurious and novel correlations.

    Parameters
    ----------
    mdata
        Data after :func:`scmmgan.tl.correlations`.
    source
        Modality whose cells were mapped.
    target
        Modality whose features they were mapped to.
    gene
        Genes asked for, as they were named there; default: all.
    key
        `key_added` of the alignment.

    Returns
    -------
    A new table, one row per gene and feature compared with it; :func:`scmmgan.tl.correlations` describes the columns.
    Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, or no correlations of the two modalities or of a gene.
    ValueError
        If the record is damaged or of another version, or cells were added, renamed or come from another alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(shared_genes=True)
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.tl.correlations(mdata, "rna", "protein", gene="gene_0")
    >>> table = smm.get.correlations(mdata, "rna", "protein", gene="gene_0")
    >>> table["feature"].is_unique
    True
    """
    _slots.check_aligned(mdata, (source, target), Keys(key))
    found = _slots.added(mdata, Keys(key), "correlations").get(source, {})
    if target not in found:
        raise KeyError(
            f"No correlations of {source!r} mapped to {target!r} for the alignment {key!r}. "
            f"Run `scmmgan.tl.correlations(mdata, {source!r}, {target!r}, gene=...)`."
        )
    table = pd.DataFrame(found[target]["table"]).reset_index(drop=True)
    if gene is None:
        return table
    wanted, there = [gene] if isinstance(gene, str) else list(dict.fromkeys(gene)), table["query"].unique().tolist()
    if unknown := [name for name in wanted if name not in there]:
        raise KeyError(f"No correlations of {unknown}. Found: {there}. Run `scmmgan.tl.correlations` for them.")
    return pd.concat([table[table["query"] == name] for name in wanted], ignore_index=True)


def uncertainty(
    mdata: MuData, source: str, target: str, *, features: str | Sequence[str], key: str = "scmmgan"
) -> AnnData:
    """Variance that the coupling leaves to chosen features in each cell of `source`.

    Parameters
    ----------
    mdata
        Aligned data, after :func:`scmmgan.tl.uncertainty` with `method="coupling"` or `"all"`.
    source
        Modality whose cells were mapped.
    target
        Modality whose features they were mapped to.
    features
        Features of `target`, in the order wanted.
    key
        `key_added` of the alignment.

    Returns
    -------
    A new AnnData, cells of `source` × `features`: `X` float32, the variance in squared units of the (smoothed) layer of
    `target` that was read; `layers["relative"]` the same over the feature's variance in the population: 0 known exactly, 1 as
    variable as the population, beyond it where a cell is coupled with several kinds of cells (NaN for features that do not
    vary). Cells without a partner count as variable as the population, as far as they lack one. `obs`, `var`, `obsm["spatial"]` and
    `uns["spatial"]` as in :func:`scmmgan.get.mapped`. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, modality or feature, or no uncertainty of the coupling.
    ValueError
        If the record is damaged or of another version, cells were added, renamed or come from another alignment, or the
        values of `target` that were aligned have changed since.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.uncertainty(mdata, "rna", "protein")
    >>> names = list(mdata["protein"].var_names[:2])
    >>> smm.get.uncertainty(mdata, "rna", "protein", features=names).layers["relative"].shape == (mdata["rna"].n_obs, 2)
    True
    """
    from anndata import AnnData

    variance, total, names = _conditional_variance(mdata, source, target, features, Keys(key))
    cells = modality(mdata, source)
    out = AnnData(variance, obs=cells.obs.copy(), var=modality(mdata, target).var.loc[names].copy())
    with np.errstate(invalid="ignore", divide="ignore"):
        out.layers["relative"] = np.where(total > 0, variance / total, np.nan).astype(np.float32)
    _copy_places(cells, out)
    return out


def uncertainty_summary(mdata: MuData, source: str, target: str, *, key: str = "scmmgan") -> dict[str, Any]:
    """Uncertainty of all mapped features, and what is known of its calibration.

    Parameters
    ----------
    mdata
        Aligned data, after :func:`scmmgan.tl.uncertainty`.
    source
        Modality whose cells were mapped.
    target
        Modality whose features they were mapped to.
    key
        `key_added` of the alignment.

    Returns
    -------
    A dict: `features`, a table indexed by the features of `target` with the columns `uncertainty`, where computed
    `coupling`, `noise`, `seeds` and `interval`, and `detection`; and what :func:`scmmgan.tl.uncertainty` wrote to `uns`:
    `method`, the means with and without counterpart, `calibration`, `coverage`. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, modality or uncertainty, or a column of it was deleted.
    ValueError
        If the record is damaged or of another version, cells were added, renamed or come from another alignment, or there
        are intervals and the values of `target` have changed since.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.uncertainty(mdata, "rna", "protein")
    >>> list(smm.get.uncertainty_summary(mdata, "rna", "protein")["features"].columns)
    ['uncertainty', 'coupling', 'detection']
    """
    return _summary(mdata, source, target, Keys(key))


# --- what is put together from the slots ---------------------------------------------------------------------------


def _joint(mdata: MuData, keys: Keys) -> AnnData:
    """Joint embedding of all aligned cells, see `get.embedding`."""
    from anndata import AnnData

    names = _slots.config(mdata, keys)["modalities"]
    found = _slots.check_aligned(mdata, names, keys)
    parts, own = [], []
    for name in names:
        obs = mdata[name].obs.rename(columns={"modality": "own_modality"})
        own.append(obs)
        # categories of one name may differ between modalities
        obs = obs.astype({c: object for c in obs if isinstance(obs[c].dtype, pd.CategoricalDtype)})
        obs["modality"] = name
        parts.append(obs.set_axis([f"{name}:{cell}" for cell in mdata[name].obs_names], axis=0))
    # a column without any value in one modality would decide the type of the others'
    obs = pd.concat([part.dropna(axis=1, how="all") for part in parts])
    for column in obs.select_dtypes(object).columns:
        obs[column] = _as_categories(obs[column], [part[column] for part in own if column in part])
    obs["modality"] = pd.Categorical(obs["modality"], categories=names)
    var = pd.DataFrame(
        {"modality": np.repeat(names, [found["widths"][m] for m in names])},
        index=[f"{m}_{i}" for m in names for i in range(found["widths"][m])],
    )
    x = np.vstack([np.asarray(mdata[name].obsm[keys.embedding]) for name in names])
    return AnnData(x, obs=obs, var=var)


def _as_categories(values: pd.Series, own: Sequence[pd.Series]) -> pd.Categorical:
    """Text of all modalities as categories, in the modalities' own order where they have one; ordered where all agree."""
    text = values.where(values.isna(), values.astype(str))
    typed = [column.cat for column in own if isinstance(column.dtype, pd.CategoricalDtype)]
    first = dict.fromkeys(str(label) for of in typed for label in of.categories)
    there = sorted(set(text.dropna()) - set(first))
    lists = {tuple(of.categories) for of in typed}
    ordered = len(lists) == 1 and len(typed) == len(own) and all(of.ordered for of in typed)
    used = set(text.dropna())
    return pd.Categorical(text, categories=[*(c for c in first if c in used), *there], ordered=ordered)


def _copy_places(cells: AnnData, out: AnnData) -> None:
    """Coordinates and pictures of the source's cells."""
    if "spatial" in cells.obsm:
        out.obsm["spatial"] = np.array(cells.obsm["spatial"])
    if "spatial" in cells.uns:
        out.uns["spatial"] = deepcopy(cells.uns["spatial"])


def _uncertainty_record(mdata: MuData, source: str, target: str, keys: Keys) -> dict[str, Any]:
    """What `tl.uncertainty` wrote to `uns` for two modalities; KeyError where it was not run."""
    found = _slots.added(mdata, keys, "uncertainty").get(source, {}).get(target)
    if found is None:
        raise KeyError(
            f"No uncertainty from {source!r} to {target!r} in the alignment {keys.key!r}. "
            f"Run `scmmgan.tl.uncertainty(mdata, {source!r}, {target!r})`."
        )
    return dict(found)


def _conditional_variance(
    mdata: MuData, source: str, target: str, features: str | Sequence[str], keys: Keys
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Conditional variance (cells × features), variance in the population (features,), names."""
    from scmmgan.model.evidence import uncertainty as _model

    features_then = _slots.check_aligned(mdata, (source, target), keys)["var_names"][target]
    cells, other, plan = mdata[source], mdata[target], keys.cell_plan(target)
    table = _uncertainty_record(mdata, source, target, keys)
    if "landmark_mass" not in table or plan not in cells.obsm or keys.landmark_moments()[0] not in other.varm:
        raise KeyError(
            f"The uncertainty from {source!r} to {target!r} is not that of the coupling. "
            f"Run `scmmgan.tl.uncertainty(mdata, {source!r}, {target!r})`."
        )
    names = listed(features)
    at = other.var_names.get_indexer(pd.Index(names, dtype=object))
    if unknown := [name for name, i in zip(names, at) if i < 0 or name not in features_then]:
        raise missing_key(f"feature in {target!r}", unknown[0], [f for f in other.var_names if f in set(features_then)])
    _slots.check_values(mdata, target, keys)
    mean, variance = (np.asarray(other.varm[name])[at].T for name in keys.landmark_moments())
    total = _model.total_variance(np.asarray(table["landmark_mass"]), mean, variance)
    found = _model.conditional_variance(cells.obsm[plan], mean, variance)
    unmatched = _slots.unmatched(mdata, source, target, keys)
    if unmatched is not None:
        alone = _model.without_partner(1 - unmatched.astype(np.float32))[:, None]
        found += (alone * (total - found)).astype(np.float32)
    return found, total, names


def _summary(mdata: MuData, source: str, target: str, keys: Keys) -> dict[str, Any]:
    """Uncertainty of all mapped features, see `get.uncertainty_summary`."""
    several = len(_slots.check_aligned(mdata, (source, target), keys)["modalities"]) > 2
    found, var = _uncertainty_record(mdata, source, target, keys), mdata[target].var
    suffix = source if several else None
    columns = {"uncertainty": keys.uncertainty(None, suffix)}
    columns |= {part: keys.uncertainty(part, suffix) for part in ("coupling", "noise", "seeds")}
    columns |= {"interval": keys.interval(suffix), "detection": keys.detection()}
    written = {slot for name, container, slot in _derived.recorded(_slots.record(mdata, keys)) if name == target}
    for column in columns.values():
        if column in written:
            _slots.needed(mdata, target, "var", column, "uncertainty")
    if columns["interval"] in var:
        # the one column that has units
        _slots.check_values(mdata, target, keys)
    table = pd.DataFrame({name: var[column] for name, column in columns.items() if column in var}, index=var.index)
    return {"features": table, **found}


def _places(mdata: MuData, source: str, target: str, keys: Keys) -> pd.DataFrame:
    """Where cells were placed, see `get.coordinates`."""
    found = _slots.check_aligned(mdata, (source, target), keys)
    used = _slots.added(mdata, keys, "coordinates").get(source, {}).get(target)
    slot = keys.coordinates(target)
    if used is None or slot not in mdata[source].obsm:
        raise KeyError(f"Cells of {source!r} have no place in {target!r}. Run `scmmgan.tl.place(mdata, ...)` first.")
    where = np.asarray(mdata[source].obsm[slot])
    out = pd.DataFrame(where, index=mdata[source].obs_names, columns=list("xyz")[: where.shape[1]])
    spread = keys.spread(target if len(found["modalities"]) > 2 else None)
    out["spread"] = np.asarray(_slots.needed(mdata, source, "obs", spread, "place"), dtype=float)
    if "library_key" in used:
        out["section"] = pd.Categorical(_slots.needed(mdata, source, "obs", keys.section(target), "place"))
    out.attrs = {name: str(value) for name, value in used.items()}
    return out
