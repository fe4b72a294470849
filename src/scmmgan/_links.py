"""Tables of linked features, from equal names, `var` columns or the user's own table."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgan._domain import missing_key, modality

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")

MIN_AUTO = 10  # equal names below which they may be chance
MIN_LINKS = 3
MAX_LINKS = 500_000


def link_table(mdata: MuData, source: str, target: str, links: str | pd.DataFrame | None) -> pd.DataFrame | None:
    """Linked features as a table with columns source, target, weight, sign; None when nothing is linked.

    `links` is what `tl.align` takes: "auto", "var_names", a `var` column, a table, or None.
    """
    if links is None:
        return None
    if source == target or {source, target} & {"weight", "sign"}:
        raise ValueError(
            f"Cannot link {source!r} with {target!r}: the table has one column per modality, 'weight' and 'sign'. "
            "Name two different modalities, and rename one that is called like the other columns."
        )
    if isinstance(links, pd.DataFrame):
        table = _from_table(mdata, source, target, links)
    elif isinstance(links, str):
        column = "var_names" if links == "auto" else links
        table = _from_names(mdata, source, target, column)
    else:
        raise TypeError(f"`links` must be a str, a DataFrame or None, got {type(links).__name__}.")
    if isinstance(links, str) and links == "auto" and len(table) < MIN_AUTO:
        logger.info(
            "%d equal var_names in %r and %r, fewer than %d: no links. %s",
            len(table), source, target, MIN_AUTO, _would_match(mdata, source, target),
        )  # fmt: skip
        return None
    if len(table) < MIN_LINKS:
        raise ValueError(
            f"`links` matches {len(table)} features of {source!r} with {target!r}; at least {MIN_LINKS} are needed. "
            f"{_would_match(mdata, source, target)} Give a `var` column or a table, or `links=None`."
        )
    logger.info("%d linked features between %r and %r.", len(table), source, target)
    return table


def _keys(mdata: MuData, name: str, column: str) -> pd.Series:
    """Feature names (index) and the keys that link them (values); one row per key of a `;` list."""
    var = modality(mdata, name).var
    keys = pd.Series(var.index if column == "var_names" else var.get(column, var.index), index=var.index)
    # a categorical column would keep its categories through the split
    keys = keys.astype(object).where(keys.notna(), "").astype(str).str.split(";").explode().str.strip()
    return keys[keys != ""]


def _from_names(mdata: MuData, source: str, target: str, column: str) -> pd.DataFrame:
    if column != "var_names" and not any(column in modality(mdata, m).var for m in (source, target)):
        found = sorted({c for m in (source, target) for c in modality(mdata, m).var})
        raise missing_key(f"var column in {source!r} or {target!r}", column, found, "`links` also takes a table.")
    sides = [_keys(mdata, m, column) for m in (source, target)]
    # modalities may have any name, so they name the columns last
    first, second = (pd.DataFrame({"key": keys.to_numpy(), side: keys.index}) for keys, side in zip(sides, "ab"))
    counts = first["key"].value_counts().mul(second["key"].value_counts(), fill_value=0)
    if counts.sum() > MAX_LINKS:
        raise ValueError(
            f"{column!r} gives {int(counts.sum())} links, {int(counts.max())} of them by {counts.idxmax()!r} alone: it "
            "does not name genes. Give a column that does, or a table."
        )
    table = first.merge(second, on="key")[["a", "b"]].drop_duplicates(ignore_index=True)
    return table.set_axis([source, target], axis=1).assign(weight=1.0, sign=1.0)


def _from_table(mdata: MuData, source: str, target: str, links: pd.DataFrame) -> pd.DataFrame:
    for name in (source, target):
        if name not in links:
            raise missing_key(
                "column in the table `links`", name, [str(c) for c in links], "One column per modality is needed."
            )
    if not links.columns.is_unique:
        raise ValueError(f"The table `links` has columns of one name: {list(links)}. Drop or rename them.")
    table = pd.DataFrame({m: links[m].astype(object).to_numpy() for m in (source, target)}).astype(str).astype(object)
    for extra in ("weight", "sign"):
        numbers = pd.to_numeric(links[extra], errors="coerce") if extra in links else pd.Series(1.0, links.index)
        table[extra] = numbers.to_numpy(dtype=float, na_value=np.nan)
    if (
        not np.isfinite(table["weight"]).all()
        or (table["weight"] < 0).any()
        or (len(table) and not table["weight"].any())
    ):
        raise ValueError("`weight` of the table `links` must be finite numbers, none negative and not all 0.")
    if not table["sign"].isin([-1.0, 1.0]).all():
        raise ValueError(f"`sign` of the table `links` must be 1 or -1, got {list(links['sign'].unique())[:5]}.")
    known = np.logical_and.reduce([table[m].isin(modality(mdata, m).var_names) for m in (source, target)])
    if not known.all():
        logger.warning(
            "%d of %d links name a feature that is not in `mdata` and are left out.", (~known).sum(), len(known)
        )
    # a weight of 0 is no link
    return table[known & (table["weight"] > 0)].drop_duplicates([source, target], ignore_index=True)


def _would_match(mdata: MuData, source: str, target: str) -> str:
    """How many names would be equal after upper-casing and after stripping version suffixes."""
    names = [set(modality(mdata, m).var_names.astype(str)) for m in (source, target)]
    upper = [{n.upper() for n in side} for side in names]
    stripped = [{re.sub(r"[.\-_]\d+$", "", n) for n in side} for side in upper]
    return (
        f"After upper-casing {len(upper[0] & upper[1])} names would match, "
        f"and {len(stripped[0] & stripped[1])} without version suffixes."
    )
