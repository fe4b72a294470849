"""Labels and values of cells, transferred to the cells of another modality."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import cells as _cells
from scmmgan.data import derived as _derived
from scmmgan.data import known as _known
from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import MAX_CODES, MAX_SEED, MIN_PROBABILITY, VOTES

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.evidence.matching import Votes

logger = logging.getLogger("scmmgan")


def transfer(
    mdata: MuData,
    source: str,
    target: str,
    *,
    obs: str | Sequence[str],
    random_state: int = 0,
    key: str = "scmmgan",
) -> None:
    """Give the cells of `source` what the cells of `target` have in `obs`: labels or numbers.

    Annotate `target`, and `source` gets it. The 15 nearest cells of `target` in the joint embedding vote, and votes are
    averaged over a cell and its 14 nearest ones in `source`.

    Labels of spots are compositions: where both modalities share their features and have counts (`counts` of
    :func:`scmmgan.tl.align`), the counts of each cell of `source` are explained as a mixture of the mean profiles of the
    labels, with a rate for every gene, and shares are shares of cells, not of molecules. Nobody votes then, and the
    unassigned share is the mass without a partner (`obs[f"{key}_unmatched"]`) as it is: mixtures are always matched a little
    less, and a type that `target` lacks is mostly taken for others.

    Of votes, a share of each cell is unassigned. That is the share without a partner (`obs[f"{key}_unmatched"]`, where the alignment
    has it: a tenth of the mass unmatched counts half), and half of an ambiguous cell (`obs[f"{key}_ambiguous"]`). Both
    are averaged over the same neighbours. Where shapes alone decide (no links, pairs or labels), no cell is unmatched,
    and a population that `target` lacks is not found. Where it is found, populations that resemble it are often
    unassigned, too. Populations of fewer than about ten cells are outvoted by their neighbours.

    Parameters
    ----------
    mdata
        Aligned data.
    source
        Modality whose cells get labels or values.
    target
        Modality whose cells have them.
    obs
        One or more columns of `mdata[target].obs`. Text, categories, booleans and whole numbers of at most 100 kinds
        (clusters) are labels, other numbers are values; `.astype(float)` makes values of whole ones, too. Gaps (NaN, text
        as "nan" or "-", infinite numbers) do not vote.
    random_state
        Seed of the approximate neighbour search, above 20,000 cells.
    key
        `key_added` of the alignment.

    Returns
    -------
    `None`. Sets, for every column, in `mdata[source]`:

    `obs[f"{key}_{target}_{column}"]` : categorical (whole numbers: Int64), or float32
        Label, or mean of the votes; NaN where the label's probability, or the assigned share, is at most .5. Of spots: the
        label of most of the cells, if there is one.
    `obs[f"{key}_{target}_{column}_unassigned"]` : float32
        Unassigned share, 0 to 1.
    `obs[f"{key}_{target}_{column}_probability"]` : float32, labels only
        Probability of the most likely label, unassigned or not.
    `obsm[f"{key}_{target}_{column}"]` : float32, cells × labels, labels only
        Probability of every label, of spots the share of their cells; with the unassigned share they add up to 1. Names of
        the labels, in order, in
        `mdata.uns[key]["transfer"][source][f"{key}_{target}_{column}"]`.
    `obs[f"{key}_{target}_{column}_spread"]` : float32, values only
        Standard deviation of the votes.

    Raises
    ------
    KeyError
        If there is no such alignment, modality or column, or a slot of the alignment was deleted.
    TypeError
        If a column holds neither labels nor numbers, or `obs` is of another type.
    ValueError
        If the record is damaged or of another version, cells were added, renamed or come from another alignment,
        `source` is `target`, `obs` names no column, a column holds only gaps or has a name with a slash, `mdata` is a
        view, or a slot holds something else.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.transfer(mdata, "rna", "protein", obs="cell_type")
    >>> mdata["rna"].obs["scmmgan_protein_cell_type"].cat.categories.tolist()
    ['type_A', 'type_B', 'type_C', 'type_D', 'type_E']
    """
    keys = Keys(key)
    cells = _cells.read_cells(mdata, source, target, keys)
    random_state = _modality.whole_number(random_state, "random_state", low=0, high=MAX_SEED)
    columns = {name: _column(mdata, source, target, name) for name in _names(obs)}
    labels = {name: isinstance(column, pd.Categorical) for name, column in columns.items()}
    slots = [slot for name in columns for slot in _slots_of(source, target, name, labels[name], keys)]
    if len(set(slots)) < len(slots):
        twice = next(slot for slot in slots if slots.count(slot) > 1)
        raise ValueError(
            f"Two of the columns {list(columns)} would share the slot {twice[2]!r}. Transfer one, or rename it."
        )
    _derived.check_free(mdata, slots, keys)
    _cells.warn_of_verdict(mdata, source, target, keys)

    from scmmgan.model.evidence import matching
    from scmmgan.model.evidence.mixtures import compositions
    from scmmgan.model.space.diffusion import nearest

    counts = _read.shared_counts(mdata, source, target, keys) if any(labels.values()) else None
    neighbors = matching.own_neighbors(cells.source, random_state=random_state)
    indices, _ = nearest(cells.source, cells.target, VOTES, random_state=random_state)
    votes = matching.Votes(indices, neighbors)
    share = matching.assigned(cells.unmatched, cells.ambiguous, neighbors)
    written: dict[_derived.Slot, Any] = {}
    vocabularies = {}
    for name, column in columns.items():
        if not isinstance(column, pd.Categorical):
            parts = _values(votes, column, share)
        elif counts is None:
            parts = _labels(matching.carry_labels(votes, column.codes, len(column.categories)), column, share)
        else:
            parts = _labels(compositions(*counts, column.codes, len(column.categories)), column, 1 - cells.unmatched)
        if isinstance(column, pd.Categorical) and pd.api.types.is_integer_dtype(_typed(mdata[target].obs[name]).dtype):
            parts[0] = pd.array([None if pd.isna(code) else int(code) for code in parts[0]], dtype="Int64")
        written |= dict(zip(_slots_of(source, target, name, labels[name], keys), parts))
        if isinstance(column, pd.Categorical):
            vocabularies[keys.transferred(target, name)] = column.categories.to_numpy(dtype=object)
        of_spots = labels[name] and counts is not None
        _say_missing(name, (source, target), parts[0], keys.transferred(target, name) if of_spots else None)
    before = _slots.added(mdata, keys, "transfer")
    names = [keys.transferred(target, name) for name in columns]
    kept = {name: of for name, of in before.get(source, {}).items() if name not in names}
    uns = {"transfer": {**before, source: kept | vocabularies}} if before or vocabularies else None
    # a column may have held labels before and hold numbers now
    either = [
        slot for name in columns for kind in (True, False) for slot in _slots_of(source, target, name, kind, keys)
    ]
    _derived.write(mdata, written, keys, uns=uns, instead_of=either)


def _say_missing(name: str, pair: tuple[str, str], found: Any, shares: str | None) -> None:
    """How many cells got nothing; `shares`: obsm key of the compositions of spots, of which few have one label."""
    missing, (source, target) = 100 * np.asarray(pd.isna(found)).mean(), pair
    if shares is None:
        logger.info("%r of %r: %.1f %% of the cells of %r are unassigned.", name, target, missing, source)
    else:
        logger.info(
            "%r of %r: in %.1f %% of the spots of %r no label has more than half. Shares of all are in obsm[%r].",
            name, target, missing, source, shares,
        )  # fmt: skip


def _names(obs: str | Sequence[str]) -> list[str]:
    """Names of columns, each once."""
    names = [obs] if isinstance(obs, str) else obs
    if not pd.api.types.is_list_like(names) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`obs` must be one or more names of columns, got {obs!r}.")
    if not len(names):
        raise ValueError("`obs` names no column. Name at least one.")
    return list(dict.fromkeys(names))


def _column(mdata: MuData, source: str, target: str, name: str) -> pd.Categorical | np.ndarray:
    """A column of the target as categories (text) or as float64, gaps as NaN."""
    found, own = mdata[target].obs, mdata[source].obs
    if name not in found:
        hint = ""
        if name in own:
            hint = (
                f"{source!r} has it, but cells of the source get what cells of the target have: "
                f"`scmmgan.tl.transfer(mdata, {target!r}, {source!r}, obs={name!r})`."
            )
        raise _modality.missing_key(
            f"obs column in {target!r}", name, list(found), hint or _modality.in_joint(mdata, name)
        )
    if not _modality.storable(name):
        raise ValueError(f"The name of the obs column {name!r} cannot be stored: HDF5 and zarr take it for a path.")
    values = _typed(found[name])
    number = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    if number and _are_codes(values):
        if pd.api.types.is_integer_dtype(values.dtype):
            logger.warning(
                "%r of %r holds %d different whole numbers: taken for labels, as of clusters. For means, make them values: "
                "`.astype(float)`; for names, categories: `.astype('category')`.", name, target, values.nunique(),
            )  # fmt: skip
            codes = sorted(int(code) for code in values.dropna().unique())
            text = pd.Series([None if pd.isna(v) else str(int(v)) for v in values], dtype=object)
            return pd.Categorical(text, categories=[str(code) for code in codes])
        logger.warning(
            "%r of %r holds %d different whole numbers, as floats: their mean is carried over. If they name clusters, make "
            "them categories first: `.astype('Int64').astype('category')`.", name, target, values.nunique(),
        )  # fmt: skip
    if number:
        column: Any = values.astype(np.float64).to_numpy(na_value=np.nan)
        column = np.where(np.isfinite(column), column, np.nan)
    elif isinstance(values.dtype, pd.CategoricalDtype) or values.dtype.kind in "ObU" or _is_text(values):
        text = _known.as_text(values)
        # the order of the target's own categories; those without a cell are left out
        there = sorted(set(text.dropna()))
        ordered = _known.as_text(pd.Series(values.cat.categories)).tolist() if hasattr(values, "cat") else there
        column = pd.Categorical(text, categories=[c for c in dict.fromkeys(ordered) if c in there])
    else:
        raise TypeError(f"obs column {name!r} of {target!r} is of dtype {values.dtype}: neither labels nor numbers.")
    if pd.isna(column).all():
        raise ValueError(f"obs column {name!r} of {target!r} has no value in any cell: there is nothing to carry over.")
    return column


def _typed(values: pd.Series) -> pd.Series:
    """The column, as numbers or booleans where these are stored as objects."""
    return values.convert_dtypes() if values.dtype == object else values


def _are_codes(values: pd.Series) -> bool:
    """Whether numbers are whole and of so few kinds that they name clusters."""
    known = values.dropna().to_numpy(dtype=np.float64)
    kinds = np.unique(known)
    few = len(kinds) <= min(MAX_CODES, len(known) / 3)
    return bool(len(kinds) > 1 and few and np.array_equal(kinds, np.round(kinds)))


def _is_text(values: pd.Series) -> bool:
    return pd.api.types.is_string_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype)


def _slots_of(source: str, target: str, name: str, labels: bool, keys: Keys) -> list[_derived.Slot]:
    """Slots of one column, in the order in which `_labels` and `_values` give what belongs there."""
    parts = (None, "unassigned", "probability" if labels else "spread")
    slots = [(source, "obs", keys.transferred(target, name, part)) for part in parts]
    return [*slots, (source, "obsm", keys.transferred(target, name))] if labels else slots


def _labels(shares: np.ndarray, column: pd.Categorical, share: np.ndarray) -> list[Any]:
    """Label, unassigned share and best probability of every cell, and all probabilities, from the shares of labels."""
    carried = shares * share[:, None]
    best, code = carried.max(1), carried.argmax(1)
    label = pd.Categorical.from_codes(np.where(best > MIN_PROBABILITY, code, -1), categories=column.categories)
    # where no vote is known nothing adds up to the assigned share
    unassigned = np.clip(1 - carried.sum(1), 0, 1)
    return [label, unassigned.astype(np.float32), best.astype(np.float32), carried.astype(np.float32)]


def _values(votes: Votes, column: np.ndarray, share: np.ndarray) -> list[Any]:
    """Value, unassigned share and spread of every cell."""
    from scmmgan.model.evidence import matching

    mean, spread = matching.carry_values(votes, column)
    share = np.where(np.isnan(mean), 0.0, share)
    value = np.where(share > MIN_PROBABILITY, mean, np.nan)
    return [value.astype(np.float32), (1 - share).astype(np.float32), spread.astype(np.float32)]
