"""Tables of linked features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scmmgan._links import link_table

if TYPE_CHECKING:
    import pandas as pd
    from mudata import MuData


def link_features(mdata: MuData, source: str, target: str, *, on: str | pd.DataFrame = "var_names") -> pd.DataFrame:
    """Link features of two modalities.

    Parameters
    ----------
    mdata
        Data with both modalities.
    source
        First modality.
    target
        Second modality.
    on
        `"var_names"` (default): equal names. A `var` column that names genes, `"CD3D;CD3E"` lists allowed, in one or
        both modalities; `var_names` serve where a modality lacks the column. Or a table with one column of feature
        names per modality and optional columns `weight` and `sign`, which is checked and completed.

    Returns
    -------
    A table with the columns `source`, `target` (named after the modalities), `weight` (not negative) and `sign`
    (1 or -1), one row per link. Nothing is written to `mdata`; hand the table to `tl.align(links=)`.

    Raises
    ------
    KeyError
        If a modality or column is not there.
    ValueError
        If fewer than 3 features match, or weights or signs are not valid.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> list(smm.pp.link_features(mdata, "rna", "protein", on="gene").columns)
    ['rna', 'protein', 'weight', 'sign']
    """
    if on is None or (isinstance(on, str) and on == "auto"):
        raise ValueError(f"`on` must be 'var_names', a `var` column or a table, got {on!r}.")
    table = link_table(mdata, source, target, on)
    if table is None:
        raise ValueError(f"Nothing links {source!r} with {target!r} on {on!r}.")
    return table
