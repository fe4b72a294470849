"""The names that features go by: `var_names` or a `var` column, with gaps and lists in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from scmmgan.data.modality import GAPS, modality

if TYPE_CHECKING:
    from mudata import MuData

LIST = re.compile(r"[;,|/]")
NAME = re.compile(r"[A-Za-z][\w.-]*")
FILLER = re.compile(r"(?:nan|none|null|na|n/a|<na>)[-_.]\d+", re.IGNORECASE)  # what makes repeated gaps unique names
NUMBER_OR_CHROMOSOME = re.compile(r"(?:chr)?(?:[-+]?[\d.,]+(?:e[-+]?\d+)?|X|Y|Z|W|MT?)", re.IGNORECASE)
SHORT = 1  # characters: letters of clusters


def keys(mdata: MuData, name: str, column: str) -> pd.Series:
    """Feature names (index) and the keys that link them (values); one row per key of a `;` list, none for gaps."""
    var = modality(mdata, name).var
    found = pd.Series(var.index if column == "var_names" else var.get(column, var.index), index=var.index)
    # a categorical column would keep its categories through the split
    found = found.astype(object).where(found.notna(), "").astype(str).str.split(";").explode().str.strip()
    return found[~gaps(found)]


def gaps(names: pd.Series) -> pd.Series:
    """Which entries are gaps: missing, or text that stands for it, also with a number that makes it unique."""
    return names.isna() | names.isin(GAPS) | names.astype(str).str.fullmatch(FILLER)


def unlisted(first: pd.Series, second: pd.Series) -> list[pd.Series]:
    """The keys of two sides, and the parts of lists with `,`, `|` or `/` that are keys, or parts, of the other side."""
    lists = [keys[keys.str.contains(LIST)] for keys in (first, second)]
    parts = [keys.str.split(LIST).explode().str.strip() for keys in lists]
    # lists on both sides meet in their parts only where these look like names: "chr1:1,000-2,000" is a place
    named = [p[p.str.fullmatch(NAME) & ~p.str.fullmatch(NUMBER_OR_CHROMOSOME)] for p in parts]
    found = [
        pd.concat([own, own_parts[own_parts.isin({*other, *other_named})]])
        for own, own_parts, other, other_named in (
            (first, parts[0], second, named[1]),
            (second, parts[1], first, named[0]),
        )
    ]
    return [keys[~gaps(keys)] for keys in found]


def name_columns(mdata: MuData, name: str) -> list[str]:
    """`var_names` and the `var` columns that may name features: text, most entries different, no numbers or places."""
    var = modality(mdata, name).var
    found = []
    columns = {"var_names": var.index.to_series(), **{str(c): var[c] for c in var if c != "var_names"}}
    for column, values in columns.items():
        names = values.astype(object)
        if pd.api.types.infer_dtype(names, skipna=True) != "string":
            continue
        names = names[names.notna()].str.strip()
        names = names[~gaps(names)]
        # beside one filler
        counts = names.value_counts()
        if counts.iloc[:1].gt(2).any():
            names = names[names != counts.index[0]]
        if 2 * names.nunique() <= len(names):
            continue
        plain = names.str.fullmatch(NUMBER_OR_CHROMOSOME)
        if column != "var_names":
            plain |= names.str.len() <= SHORT
        if 2 * plain.sum() < len(names):
            found.append(column)
    return found
