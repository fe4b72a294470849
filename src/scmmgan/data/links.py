"""Tables of linked features, from equal names, `var` columns or the user's own table."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgan.data.modality import missing_key, modality
from scmmgan.model.defaults import MAX_LINK_TABLE, MIN_AUTO, MIN_LINKS

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")

ENSEMBL = re.compile(r"^(ENS[A-Z]*[EGPRT]\d{11})\.\d+$")  # the version of an Ensembl id
SPELL = r".str.upper().str.replace(r'^(ENS\w+)\.\d+$', r'\1', regex=True)"  # what a user may type for the first
SUFFIX = re.compile(r"[._-]\d+$")  # what keeps repeated names apart, "CD3D-1"; part of the name in "TRAV8-2"


def link_table(
    mdata: MuData, source: str, target: str, links: str | pd.DataFrame | None, *, required: bool = True
) -> pd.DataFrame | None:
    """Linked features as a table with columns source, target, weight, sign; None when nothing is linked.

    `links` is what `tl.align` takes: "auto", "var_names", a `var` column, a table, or None. Too few matches of an
    explicit choice are an error, or where it is not `required` of this pair None and a warning.
    """
    if links is None:
        return None
    check_pair(mdata, source, target)
    column = ""
    if isinstance(links, pd.DataFrame):
        if not required and not {source, target} <= set(links):
            return None
        table = _from_table(mdata, source, target, links)
    elif isinstance(links, str):
        column = "var_names" if links == "auto" else links
        if not required and not _named(mdata, (source, target), column):
            column = "var_names"
        table = _from_names(mdata, source, target, column)
    else:
        raise TypeError(f"`links` must be a str, a DataFrame or None, got {type(links).__name__}.")
    if isinstance(links, str) and links == "auto" and len(table) < MIN_AUTO:
        logger.info(
            "%d equal var_names in %r and %r, fewer than %d: no links. %s",
            len(table), source, target, MIN_AUTO, _would_match(mdata, source, target, column),
        )  # fmt: skip
        return None
    if len(table) < MIN_LINKS and not required:
        logger.warning("`links` matches %d features of %r with %r: no links for this pair.", len(table), source, target)
        return None
    if len(table) < MIN_LINKS:
        hint = f"{_would_match(mdata, source, target, column)} " if column else ""
        raise ValueError(
            f"`links` matches {len(table)} features of {source!r} with {target!r}; at least {MIN_LINKS} are needed. "
            f"{hint}Give a `var` column or a table, or `links=None`."
        )
    logger.info("%d linked features between %r and %r.", len(table), source, target)
    return table


def check_pair(mdata: MuData, source: str, target: str) -> None:
    """Two different modalities whose features have unique names, neither called like a column of the table."""
    if source == target or {source, target} & {"weight", "sign"}:
        raise ValueError(
            f"Cannot link {source!r} with {target!r}: the table has one column per modality, 'weight' and 'sign'. "
            "Name two different modalities, and rename one that is called like the other columns."
        )
    for name in (source, target):
        names = modality(mdata, name).var_names
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            raise ValueError(
                f"var_names of {name!r} are not unique, e.g. {twice!r}: links name features. "
                "Run `var_names_make_unique()` on it."
            )


def _keys(mdata: MuData, name: str, column: str) -> pd.Series:
    """Feature names (index) and the keys that link them (values); one row per key of a `;` list."""
    var = modality(mdata, name).var
    keys = pd.Series(var.index if column == "var_names" else var.get(column, var.index), index=var.index)
    # a categorical column would keep its categories through the split
    keys = keys.astype(object).where(keys.notna(), "").astype(str).str.split(";").explode().str.strip()
    return keys[keys != ""]


def _named(mdata: MuData, pair: tuple[str, str], column: str) -> bool:
    """Whether a modality of the two has the `var` column."""
    return column == "var_names" or any(column in modality(mdata, m).var for m in pair)


def _from_names(mdata: MuData, source: str, target: str, column: str) -> pd.DataFrame:
    if not _named(mdata, (source, target), column):
        found = sorted({c for m in (source, target) for c in modality(mdata, m).var})
        hint = "`links` also takes a table" + (
            ": that of `pp.link_features(on='genomic')`." if column == "genomic" else "."
        )
        raise missing_key(f"var column in {source!r} or {target!r}", column, found, hint)
    sides = [_keys(mdata, m, column) for m in (source, target)]
    # modalities may have any name, so they name the columns last
    first, second = (pd.DataFrame({"key": keys.to_numpy(), side: keys.index}) for keys, side in zip(sides, "ab"))
    counts = first["key"].value_counts().mul(second["key"].value_counts(), fill_value=0)
    if counts.sum() > MAX_LINK_TABLE:
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
    # a row with a gap is a link of other modalities
    links = links[links[[source, target]].notna().all(axis=1)]
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
            "%d of %d links name a feature that is not in `mdata` and are left out. %s",
            (~known).sum(), len(known), _unknown(mdata, table, (source, target)),
        )  # fmt: skip
    # a weight of 0 is no link
    table = table[known & (table["weight"] > 0)]
    first = table.drop_duplicates([source, target], ignore_index=True)
    if (n := len(table.drop_duplicates()) - len(first)) > 0:
        logger.warning("%d links repeat a pair with another weight or sign: the first of each pair counts.", n)
    return first


def _unknown(mdata: MuData, table: pd.DataFrame, pair: tuple[str, str]) -> str:
    """How many names of a table are features, as written and in other spellings."""
    text = []
    for name in pair:
        features = modality(mdata, name).var_names
        wanted = set(table[name])
        upper, stripped = spellings(wanted, features)
        text.append(
            f"Of {len(wanted)} names for {name!r} {len(wanted & set(features))} are there, {upper} after upper-casing, "
            f"{stripped} without version suffixes."
        )
    return " ".join(text)


# --- what would match ---------------------------------------------------------------------------------------------


def spellings(first: Iterable[str], second: Iterable[str]) -> tuple[int, int]:
    """How many names of two sets would be equal after upper-casing, and without version suffixes besides."""
    sides = [_spelt(names) for names in (first, second)]
    return len(sides[0][1] & sides[1][1]), len(_without_suffix(*sides))


def _spelt(names: Iterable[str]) -> tuple[set[str], ...]:
    """The names as they are; in upper case; then without the versions of Ensembl ids."""
    exact = {str(name) for name in names}
    upper = {name.upper() for name in exact}
    return exact, upper, {ENSEMBL.sub(r"\1", name) for name in upper}


def _without_suffix(first: tuple[set[str], ...], second: tuple[set[str], ...]) -> set[str]:
    """Names that are equal without suffixes.

    Versions of Ensembl ids fall on both sides. Any other suffix falls on one side only, of names that nothing equals
    yet, and has to leave a name that the other side spells out: "CD3D-1" is CD3D where there is a CD3D, but "TRAV8-2"
    and "TRAV8-3" are two genes.
    """
    a, b = first[2], second[2]
    same = a & b
    for some, others in ((a, b), (b, a)):
        same = same | ({SUFFIX.sub("", name) for name in some - others} & others)
    return same


def _would_match(mdata: MuData, source: str, target: str, column: str) -> str:
    """How many names would be equal in other spellings and in other `var` columns, and what to type for the most."""
    pair = (source, target)
    used = [_spelt(_keys(mdata, name, column)) for name in pair]
    matched, upper = len(used[0][0] & used[1][0]), len(used[0][1] & used[1][1])
    stripped = len(_without_suffix(*used))
    text = [f"After upper-casing {upper} names would match, and {stripped} without version suffixes."]
    sides = [{c: _spelt(_keys(mdata, name, c)) for c in _name_columns(mdata, name)} for name in pair]
    # of equally good columns those that need no typing, then the names themselves
    combos = [((c, d), a, b) for c, a in sides[0].items() for d, b in sides[1].items()]
    n, _, columns = max(
        ((len(a[0] & b[0]), _argument(mdata, pair, at) is not None, at) for at, a, b in combos), key=_most
    )
    if n > matched:
        text.append(f"{n} entries of {_described(pair, columns)}: {_how(mdata, pair, columns)}.")
    m, _, columns = max(((len(a[2] & b[2]), at[0] == at[1], at) for at, a, b in combos), key=_most)
    if m > max(n, matched):
        typed = " and ".join(
            f"`mdata[{name!r}].var['linked'] = mdata[{name!r}].{_slot(c)}{SPELL}`" for name, c in zip(pair, columns)
        )
        text.append(f"{m} entries of {_described(pair, columns)} when spelt alike: {typed}, then `links='linked'`.")
    return " ".join(text)


def _most(entry: tuple[int, bool, tuple[str, str]]) -> tuple[int, bool]:
    return entry[:2]


def _name_columns(mdata: MuData, name: str) -> list[str]:
    """`var_names` and the `var` columns that may name features: text, most entries different."""
    var = modality(mdata, name).var
    found = ["var_names"]
    for column, values in var.items():
        names = values.astype(object)
        text = pd.api.types.infer_dtype(names, skipna=True) == "string"
        if text and column != "var_names" and 2 * names.nunique() > names.notna().sum():
            found.append(str(column))
    return found


def _argument(mdata: MuData, pair: tuple[str, str], columns: tuple[str, str]) -> str | None:
    """The value of `links` that reads these columns, if there is one."""
    if columns[0] == columns[1]:
        return columns[0]
    for own, other, name in ((columns[0], columns[1], pair[1]), (columns[1], columns[0], pair[0])):
        if other == "var_names" and own not in modality(mdata, name).var:
            return own
    return None


def _slot(column: str) -> str:
    return "var_names" if column == "var_names" else f"var[{column!r}]"


def _described(pair: tuple[str, str], columns: tuple[str, str]) -> str:
    return f"{_slot(columns[0])} of {pair[0]!r} are in {_slot(columns[1])} of {pair[1]!r}"


def _how(mdata: MuData, pair: tuple[str, str], columns: tuple[str, str]) -> str:
    if (links := _argument(mdata, pair, columns)) is not None:
        return f"`links={links!r}`"
    typed = [f"`mdata[{m!r}].var['linked'] = mdata[{m!r}].{_slot(c)}`" for m, c in zip(pair, columns)]
    return f"{typed[0]}, {typed[1]} and `links='linked'`"
