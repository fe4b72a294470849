"""The names that features go by: `var_names` or a `var` column, with gaps and lists in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from scmmgan.data.modality import GAPS, modality
from scmmgan.model.defaults import MIN_NAME

if TYPE_CHECKING:
    from mudata import MuData

LIST = re.compile(r"[;,|/]")
NAME = re.compile(r"[A-Za-z][\w.-]*")
FILLER = re.compile(r"(?:nan|none|null|na|n/a|<na>)[-_.]\d+", re.IGNORECASE)  # what makes repeated gaps unique names
NUMBER_OR_CHROMOSOME = re.compile(r"(?:chr)?(?:[-+]?[\d.,]+(?:e[-+]?\d+)?|X|Y|Z|W|MT?)", re.IGNORECASE)
PLACE = re.compile(r"[^:]+[:_-][\d,]+[_-][\d,]+")
SHOWN = 2_000  # of many names, that show what most are like


def keys(mdata: MuData, name: str, column: str) -> pd.Series:
    """Feature names (index) and the keys that link them (values); one row per key of a `;` list, none for gaps."""
    var = modality(mdata, name).var
    entries = var.index if column == "var_names" or column not in var else var[column]
    if pd.api.types.is_numeric_dtype(entries.dtype):
        # 7.0, which gaps make of an Entrez id, is 7
        entries = pd.Series(entries).convert_dtypes()
    features, found = [], []
    # a loop: of 200,000 peaks every pass of pandas over text takes a tenth of a second
    for feature, entry, missing in zip(*(list(values) for values in (var.index, entries, entries.isna()))):
        for key in () if missing else str(entry).split(";"):
            if not _is_gap(key):
                features.append(feature)
                found.append(key.strip())
    return pd.Series(found, pd.Index(features, dtype=object), dtype=object)


def gaps(names: pd.Series) -> pd.Series:
    """Which entries are gaps: missing, or text that stands for it, also with a number that makes it unique."""
    return pd.Series(
        [bool(missing) or _is_gap(str(n)) for n, missing in zip(names, names.isna())], names.index, dtype=bool
    )


def _is_gap(text: str) -> bool:
    text = text.strip()
    return text in GAPS or (text[0] in "nN<" and FILLER.fullmatch(text) is not None)


def parts(names: pd.Series) -> pd.Series:
    """The parts of those keys that are lists with `,`, `|` or `/`."""
    return names[names.str.contains(LIST)].str.split(LIST).explode().str.strip()


def unlisted(first: pd.Series, second: pd.Series) -> list[pd.Series]:
    """The keys of two sides, and the parts of lists that are keys, or parts of lists, of the other side."""
    opened = [parts(keys) for keys in (first, second)]
    # lists on both sides meet in their parts only where these look like names: "chr1:1,000-2,000" is a place
    named = [p[p.str.fullmatch(NAME) & ~p.str.fullmatch(NUMBER_OR_CHROMOSOME)] if len(p) else p for p in opened]
    found = []
    for own, own_parts, other, other_named in (
        (first, opened[0], second, named[1]),
        (second, opened[1], first, named[0]),
    ):
        if len(own_parts):
            inside = own_parts[own_parts.isin({*other, *other_named})]
            own = pd.concat([own, inside[~gaps(inside)]])
        found.append(own)
    return found


def are_places(names: pd.Series) -> bool:
    """Whether most names are intervals of a genome."""
    some = names[:: max(1, len(names) // SHOWN)]
    return 2 * some.str.fullmatch(PLACE).sum() > len(some)


def name_columns(mdata: MuData, name: str) -> list[str]:
    """`var_names` and the `var` columns that may name features: text, most entries different, no numbers or places."""
    var = modality(mdata, name).var
    found = []
    columns = {"var_names": var.index.to_series(), **{str(c): var[c] for c in var if c != "var_names"}}
    for column, values in columns.items():
        names = values[:: max(1, len(values) // SHOWN)].astype(object)
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
            plain |= names.str.len() < MIN_NAME
        if 2 * plain.sum() < len(names):
            found.append(column)
    return found
