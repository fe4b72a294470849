"""The read side of every slot."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import comparison as _comparison
from scmmgan.data import record as _record
from scmmgan.data import slots as _slots
from scmmgan.data import tables as _tables
from scmmgan.data.keys import Keys
from scmmgan.data.modality import modality

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scmmgan.model.nets.trained import Trained, TrainedLatent

__all__ = [
    "comparison",
    "coordinates",
    "correlations",
    "diagnosis",
    "embedding",
    "history",
    "importance",
    "mapped",
    "match",
    "model",
    "transfer",
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
    A new AnnData, cells of `source` × features of `target`, that scanpy and squidpy work on as it is: `X` float32 in the units of
    the (smoothed) layer of `target` that was read, never counts; `obs` of the source, with the colors of its columns, and
    where there `obsm["spatial"]`, `uns["spatial"]` and `uns["spatialdata_attrs"]`; `obsm[f"X_{key}"]`, the joint embedding of the cells; `var` of the
    target, uncertainty and evidence of the map from `source` among it, without a suffix. With `features`, and after
    :func:`scmmgan.tl.uncertainty` of the coupling, `layers["uncertainty"]`: the variance that the coupling leaves over the
    feature's variance in the population, as `layers["relative"]` of :func:`scmmgan.get.uncertainty`. Nothing is written to
    `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment, modality or feature, or the embedding was deleted.
    ValueError
        If the record is damaged or of another version, cells are not those that were aligned, the values of `target` have
        changed since (scaled, say), or nothing was written and `features` is not given.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.get.mapped(mdata, "rna", "protein").n_vars == mdata["protein"].n_vars
    True
    """
    keys = Keys(key)
    out = _tables.mapped_cells(mdata, source, target, features, keys, lambda: model(mdata, key=key))
    if features is not None and out.n_vars and _tables.has_moments(mdata, source, target, keys, out.var_names):
        variance, total, _ = _conditional_variance(mdata, source, target, list(out.var_names), keys)
        out.layers["uncertainty"] = _tables.relative(variance, total)
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
    A new AnnData, all cells × dimensions: `X`, and once more `obsm[f"X_{key}"]`, the joint embedding (float32), the blocks of all modality spaces side
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
    return _tables.joint(mdata, Keys(key))


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
    return _tables.places(mdata, source, target, Keys(key))


def model(mdata: MuData, *, key: str = "scmmgan") -> Trained | TrainedLatent:
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
    `embed(x, modality)` and `decode(y, target)` are for cells in model space. Of a method without a coupling a
    `TrainedLatent`, with the same functions and without `aligner`; its `decode` is for cells in the joint embedding. Nothing is
    written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment.
    ValueError
        If the record is damaged or of another version, was made with `save_model=False`, or its method keeps no model.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.get.model(mdata).modalities
    ['rna', 'protein']
    """
    from scmmgan.model.nets.trained import rebuilt

    stored = _slots.stored_model(mdata, Keys(key))
    try:
        return rebuilt(stored)
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
    return _tables.chosen_rows(pd.DataFrame(found[target]["table"]), "query", gene, "correlations")


def match(mdata: MuData, source: str, target: str, *, key: str = "scmmgan") -> pd.DataFrame:
    """Partners that :func:`scmmgan.tl.match` found for the cells of `source`.

    Parameters
    ----------
    mdata
        Data after :func:`scmmgan.tl.match`.
    source
        Modality whose cells got partners.
    target
        Modality of the partners.
    key
        `key_added` of the alignment.

    Returns
    -------
    A table, cells of `source` × (`match`, name of the best partner; `confidence`, 0 to 1). The weights of all `k` partners
    are in `mdata[source].obsm[f"{key}_match_{target}"]`. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment or modality, or cells were not matched.
    ValueError
        If the record is damaged or of another version, or cells were added, renamed or come from another alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.match(mdata, "rna", "protein")
    >>> list(smm.get.match(mdata, "rna", "protein"))
    ['match', 'confidence']
    """
    return _tables.matches(mdata, source, target, Keys(key))


def transfer(mdata: MuData, source: str, target: str, *, obs: str, key: str = "scmmgan") -> pd.DataFrame:
    """What :func:`scmmgan.tl.transfer` gave to the cells of `source`.

    Parameters
    ----------
    mdata
        Data after :func:`scmmgan.tl.transfer`.
    source
        Modality whose cells got labels or values.
    target
        Modality whose cells have them.
    obs
        Column of `mdata[target].obs` that was carried over.
    key
        `key_added` of the alignment.

    Returns
    -------
    A table, cells of `source` × columns: `value`, the label or number; `unassigned`, the share without one; of labels
    `probability`, and for each of them `share_{label}`, which add up to 1 with `unassigned`; of numbers `spread`. Nothing
    is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment or modality, the column was not carried over, or a part of it was deleted.
    ValueError
        If the record is damaged or of another version, or cells were added, renamed or come from another alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.transfer(mdata, "rna", "protein", obs="cell_type")
    >>> list(smm.get.transfer(mdata, "rna", "protein", obs="cell_type"))[:4]
    ['value', 'unassigned', 'probability', 'share_type_A']
    """
    return _tables.transferred(mdata, source, target, obs, Keys(key))


def importance(
    mdata: MuData, source: str, target: str, *, features: str | Sequence[str] | None = None, key: str = "scmmgan"
) -> pd.DataFrame:
    """Features of `source` that drive mapped features of `target`.

    Parameters
    ----------
    mdata
        Data after :func:`scmmgan.tl.importance`.
    source
        Modality whose cells were mapped.
    target
        Modality whose features were explained.
    features
        Explained features asked for; default: all.
    key
        `key_added` of the alignment.

    Returns
    -------
    A new table, one row per explained feature and feature of `source`, largest share first;
    :func:`scmmgan.tl.importance` describes the columns. Nothing is written to `mdata`.

    Raises
    ------
    KeyError
        If there is no such alignment or modality, or no importance for the two or for a feature.
    ValueError
        If the record is damaged or of another version, or cells were added, renamed or come from another alignment.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.importance(mdata, "rna", "protein", features="protein_gene_0")
    >>> round(float(smm.get.importance(mdata, "rna", "protein")["share"].sum()), 3)
    1.0
    """
    return _tables.importance(mdata, source, target, features, Keys(key))


def comparison(
    mdata: MuData, source: str, target: str, *, every_seed: bool = False, key: str = "scmmgan"
) -> pd.DataFrame:
    """Scores of several methods on the same data.

    Parameters
    ----------
    mdata
        Data after :func:`scmmgan.tl.compare`.
    source
        Modality that was named first there.
    target
        The other one.
    every_seed
        One row for each seed, as :func:`scmmgan.tl.evaluate` gives them, in place of their median and the worst.
    key
        `key_added` of the comparison.

    Returns
    -------
    A new table, one row for each `method`, `metric` (`seconds`, peak `memory` in MB, too), `direction`: `median` and `worst`
    of the `seeds` that did not fail (`failed`: how many did; `error`: why), `chance`, `best`, `n`, `needs` (as `tl.evaluate`),
    what it `uses`, whether predictions are `mapped` "values" or those of "neighbors", its `verdict`. `mdata` stays as it is.

    Raises
    ------
    KeyError
        If the two were not compared.
    ValueError
        If the record is damaged or of another version.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(n_cells=80)
    >>> table = smm.tl.compare(mdata, "rna", "protein", methods=["coupling"], seeds=[0], progress_bar=False)
    >>> smm.get.comparison(mdata, "rna", "protein").equals(table)
    True
    """
    return _comparison.table(mdata, (source, target), Keys(key), every_seed=every_seed)


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
        If the record is damaged or of another version, or cells or values of `target` are not those that were aligned.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.uncertainty(mdata, "rna", "protein")
    >>> smm.get.uncertainty(mdata, "rna", "protein", features="protein_gene_0").n_vars
    1
    """
    from anndata import AnnData

    variance, total, names = _conditional_variance(mdata, source, target, features, Keys(key))
    cells = modality(mdata, source)
    out = AnnData(variance, obs=cells.obs.copy(), var=modality(mdata, target).var.loc[names].copy())
    out.layers["relative"] = _tables.relative(variance, total)
    _tables.copy_places(cells, out)
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
        If the record is damaged or of another version, cells are not those that were aligned, or the units of intervals.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.uncertainty(mdata, "rna", "protein")
    >>> list(smm.get.uncertainty_summary(mdata, "rna", "protein")["features"].columns)
    ['uncertainty', 'coupling', 'detection']
    """
    return _tables.summary(mdata, source, target, Keys(key))


# --- what needs the model ------------------------------------------------------------------------------------------


def _conditional_variance(
    mdata: MuData, source: str, target: str, features: str | Sequence[str], keys: Keys
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Conditional variance (cells × features), variance in the population (features,), names."""
    from scmmgan.model.evidence import uncertainty as _model

    plan, mass, mean, variance, matched, names = _tables.moments(mdata, source, target, features, keys)
    total, found = _model.total_variance(mass, mean, variance), _model.conditional_variance(plan, mean, variance)
    if matched is not None:
        found += (_model.without_partner(matched)[:, None] * (total - found)).astype(np.float32)
    return found, total, names
