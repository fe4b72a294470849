"""A copy of two modalities that holds what an alignment is given, and nothing that would score it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import derived as _derived
from scmmgan.data import known as _known
from scmmgan.data import record as _record
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.data.modality import layers_of, per_modality
from scmmgan.settings import unpulled

if TYPE_CHECKING:
    from mudata import MuData

# arguments of `tl.align` that name what is read of a modality
_OBS = ("labels", "batch", "covariates", "library_key")
_OBSM = ("use_rep", "spatial")


@dataclass(frozen=True)
class Blinded:
    """The copy, the arguments as they are to be given with it, and the row (n,) of the original of each of its cells."""

    mdata: MuData
    arguments: dict[str, Any]
    rows: dict[str, np.ndarray]

    def as_before(self, name: str, values: np.ndarray) -> np.ndarray:
        """Values of the copy's cells (n × d) in the order of the original's."""
        out = np.empty_like(values)
        out[self.rows[name]] = values
        return out


def blinded(
    mdata: MuData, names: Sequence[str], arguments: Mapping[str, Any], hidden: Collection[str], *, random_state: int
) -> Blinded:
    """Copy what `arguments` of `tl.align` read, in another order of cells, which get other names.

    Of `obs`, `obsm` and `layers` only what the arguments name is there, and nothing of `uns`, `obsp` and the like: equal
    names, rows in one order or columns may be the truth. `hidden`: features that the first modality does not have.
    """
    import mudata as md

    rng = np.random.default_rng(random_state)
    rows = {name: rng.permutation(mdata[name].n_obs) for name in names}
    modalities = {name: _part(mdata, names, name, arguments, rows[name], hidden) for name in names}
    with unpulled():
        copy = md.MuData(modalities)
    given = dict(arguments)
    if given.get("pairs") is not None:
        given["pairs"] = _renamed(mdata, names, given["pairs"], rows)
    if isinstance(links := given.get("links"), pd.DataFrame) and names[0] in links:
        given["links"] = links[~links[names[0]].astype(str).isin(set(hidden))]
    if hidden and given.get("mask_var") is not None:
        given["mask_var"] = _cut_masks(mdata, names, given["mask_var"], hidden)
    return Blinded(copy, given, rows)


def _part(
    mdata: MuData,
    names: Sequence[str],
    name: str,
    arguments: Mapping[str, Any],
    rows: np.ndarray,
    hidden: Collection[str],
) -> Any:
    """One modality with what the arguments name."""
    from anndata import AnnData

    adata = mdata[name]
    columns: Any = slice(None)
    if name == names[0] and len(hidden):
        columns = np.flatnonzero(~adata.var_names.isin(list(hidden)))
    read = slots_read(mdata, names, name, arguments)
    # in one go: what is left in a file takes no view of a view
    cut = adata[rows, columns]
    # what is not read is not copied
    x = cut.X if read["X"] else None
    out = AnnData(
        None if x is None else x.copy(),
        obs=adata.obs[read["obs"]].iloc[rows].set_axis(_cells(name, len(rows)), axis=0),
        var=adata.var.iloc[columns].drop(columns=columns_written(mdata, name)),
    )
    for layer in read["layers"]:
        out.layers[layer] = cut.layers[layer].copy()
    for key in read["obsm"]:
        out.obsm[key] = np.asarray(adata.obsm[key])[rows]
    return out


def columns_written(mdata: MuData, name: str) -> list[str]:
    """Columns of `var` that earlier alignments, and tools after them, wrote."""
    ours: set[str] = set()
    for key, of in mdata.uns.items():
        if _record.is_alignment(of):
            ours |= _slots.slots_of(mdata, name, Keys(key))
            ours |= {slot for m, _, slot in _derived.recorded(of) if m == name}
    return [column for column in mdata[name].var if column in ours]


def slots_read(mdata: MuData, names: Sequence[str], name: str, arguments: Mapping[str, Any]) -> dict[str, list[str]]:
    """Columns of `obs`, keys of `obsm` and `layers` that the arguments name of one modality and that are there; X, or not."""

    def named(*of: str) -> list[str]:
        found: list[str] = []
        for argument in of:
            value = arguments.get(argument)
            value = value.get(name) if isinstance(value, Mapping) else value
            found += [value] if isinstance(value, str) else [] if value is None else [str(entry) for entry in value]
        return list(dict.fromkeys(found))

    adata = mdata[name]
    counts = per_modality(arguments.get("counts", "auto"), names, "counts", "auto")[name]
    layers = [*named("layer"), "counts" if counts == "auto" else counts]
    by_x = not named("layer", "use_rep") and adata.X is not None
    return {
        "X": ["X"] if by_x else [],
        "obs": [column for column in named(*_OBS) if column in adata.obs],
        "obsm": [key for key in named(*_OBSM) if key in adata.obsm],
        "layers": [layer for layer in dict.fromkeys(layers) if layer in layers_of(adata)],
    }


def _cells(name: str, n: int) -> list[str]:
    return [f"{name}_{i}" for i in range(n)]


def _renamed(
    mdata: MuData, names: Sequence[str], pairs: str | pd.DataFrame, rows: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Known pairs under the names of the copy's cells."""
    (found,) = _known.read_pairs(mdata, names, pairs).values()
    partners = _known.read_partners(mdata, names[0], names[1], pairs)
    table: dict[str, np.ndarray] = {} if partners is None else {_known.PAIR_WEIGHT: partners[1]}
    for name, of in zip(names, (found if partners is None else partners[0]).T):
        cells = np.array(_cells(name, len(rows[name])), dtype=object)
        table[name] = cells[np.argsort(rows[name])[of]]
    return pd.DataFrame(table)


def _cut_masks(mdata: MuData, names: Sequence[str], masks: Any, hidden: Collection[str]) -> dict[str, Any]:
    """Masks of features without the hidden ones; names of columns stay."""
    of = per_modality(masks, names, "mask_var")
    if isinstance(of[names[0]], str) or of[names[0]] is None:
        return of
    there = ~mdata[names[0]].var_names.isin(list(hidden))
    return {**of, names[0]: np.asarray(of[names[0]])[there]}
