"""Tables of linked features, from equal names, `var` columns, antibodies or the user's own table."""

from __future__ import annotations

import logging
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgan.data import antibodies as _antibodies
from scmmgan.data import names as _names
from scmmgan.data.modality import in_joint, missing_key, modality
from scmmgan.data.spellings import described, spellings, would_match
from scmmgan.model.defaults import (
    MANY_KEY_LINKS,
    MAX_KEY_LINKS,
    MAX_LINK_TABLE,
    MIN_FILLED,
    MIN_LINKS,
    NEARLY_ONE_TO_ONE,
)

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")

Pair = tuple[str, str]

NAMES = ("var_names", "var_names")


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
    if isinstance(links, str) and links == "auto":
        return _automatic(mdata, source, target)
    column = ""
    if isinstance(links, pd.DataFrame):
        if not required and not {source, target} <= set(links):
            return None
        table = _from_table(mdata, source, target, links)
    elif isinstance(links, str):
        column = links if required or _has(mdata, (source, target), links) else "var_names"
        table = _from_column(mdata, source, target, column)
    else:
        raise TypeError(f"`links` must be a str, a DataFrame or None, got {type(links).__name__}.")
    if len(table) < MIN_LINKS and not required:
        logger.warning("`links` matches %d features of %r with %r: no links for this pair.", len(table), source, target)
        return None
    if len(table) < MIN_LINKS:
        hint = f"{_hint(mdata, (source, target), (column, column), least=len(table))[1]} " if column else ""
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
                f"Run `mdata[{name!r}].var_names_make_unique()`."
            )


def antibody_links(mdata: MuData, source: str, target: str) -> pd.DataFrame:
    """Table of links between the antibodies of one modality and the genes of the other, see `pp.link_features`."""
    check_pair(mdata, source, target)
    panel, known = _antibodies.panel(mdata, source, target)
    if not known:
        features = {m: list(modality(mdata, m).var_names[:3]) for m in (source, target)}
        raise ValueError(
            f"Neither {source!r} nor {target!r} has antibodies that are known here: their features are named like "
            f"{features[source]} and {features[target]}. Give a `var` column that names genes, or a table."
        )
    pairs, what = _antibodies.pairs(mdata, source, target, panel)
    if len(pairs) < MIN_LINKS:
        other = target if panel == source else source
        raise ValueError(
            f"The antibodies of {panel!r} match {len(pairs)} genes of {other!r}; at least {MIN_LINKS} links are needed. "
            f"{other!r} needs gene symbols as var_names or in a `var` column; its features are named like "
            f"{list(modality(mdata, other).var_names[:3])}."
        )
    _log_controls(mdata, (source, target))
    features = modality(mdata, panel).var_names
    features = features[~_antibodies.isotype_controls(features)]
    without = features[~features.isin(pairs["a" if panel == source else "b"])]
    if len(without):
        logger.warning(
            "%d of %d antibodies of %r have no gene in the other modality, by the table or by their own name: %s.",
            len(without), len(features), panel, list(without[:20]),
        )  # fmt: skip
    logger.info("%d linked features between %r and %r: %s.", len(pairs), source, target, what)
    return _finished(pairs, (source, target))


# --- by names ----------------------------------------------------------------------------------------------------


def _has(mdata: MuData, pair: Pair, column: str) -> bool:
    """Whether a modality of the two has the `var` column."""
    return column == "var_names" or any(column in modality(mdata, m).var for m in pair)


def _from_column(mdata: MuData, source: str, target: str, column: str) -> pd.DataFrame:
    pair = (source, target)
    if not _has(mdata, pair, column):
        found = sorted({str(c) for m in pair for c in modality(mdata, m).var})
        table = f": `links={_call(pair, column)}`" if column in ("genomic", "antibody") else ""
        hint = in_joint(mdata, column, "var") or f"`links` also takes a table{table}."
        raise missing_key(f"var column in {source!r} or {target!r}", column, found, hint)
    first, second = _names.unlisted(*(_keys(mdata, m, column) for m in pair))
    counts = _counts(first, second)
    if counts["links"].sum() > MAX_LINK_TABLE:
        raise ValueError(
            f"{column!r} gives {counts['links'].sum()} links, {counts['links'].max()} of them by "
            f"{counts['links'].idxmax()!r} alone: it does not name genes. Give a column that does, or a table."
        )
    _warn_of_fillers(mdata, pair, (column, column), counts)
    _log_controls(mdata, pair)
    return _finished(_merged(first, second, counts), pair)


def _keys(mdata: MuData, name: str, column: str) -> pd.Series:
    """Features and their keys, without isotype controls: these measure nothing."""
    keys = _names.keys(mdata, name, column)
    return keys[~_antibodies.isotype_controls(keys.index)]


def _call(pair: Pair, on: str) -> str:
    return f"scmmgan.pp.link_features(mdata, {pair[0]!r}, {pair[1]!r}, on={on!r})"


def _counts(first: pd.Series, second: pd.Series) -> pd.DataFrame:
    """Features of both sides that each common key names, the links these are, and whether the key is a filler."""
    sides = [pd.DataFrame({"key": k.to_numpy(dtype=object), "of": k.index}).drop_duplicates() for k in (first, second)]
    counts = pd.concat([side["key"].value_counts() for side in sides], axis=1, keys=["a", "b"], join="inner")
    counts["links"] = counts["a"] * counts["b"]
    return counts.assign(filler=(counts[["a", "b"]].min(axis=1) >= MIN_FILLED) & (counts["links"] > MAX_KEY_LINKS))


def _merged(first: pd.Series, second: pd.Series, counts: pd.DataFrame) -> pd.DataFrame:
    """Features `a` and `b` with a key in common that is no filler."""
    used = counts.index[~counts["filler"]]
    sides = [
        pd.DataFrame({"key": of.to_numpy(dtype=object), side: of.index.to_numpy(dtype=object)})
        for side, of in (("a", first[first.isin(used)]), ("b", second[second.isin(used)]))
    ]
    return sides[0].merge(sides[1], on="key")[["a", "b"]].drop_duplicates(ignore_index=True)


def _finished(pairs: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    # modalities may have any name, so they name the columns last
    return pairs.set_axis(list(pair), axis=1).assign(weight=1.0, sign=1.0)


def _warn_of_fillers(mdata: MuData, pair: Pair, columns: Pair, counts: pd.DataFrame) -> None:
    """Name the keys that many features share on both sides."""
    many = counts[(counts[["a", "b"]].min(axis=1) > 1) & (counts["links"] > MANY_KEY_LINKS)].sort_values("links")
    slots = [f"mdata[{m!r}].var[{c!r}]" for m, c in zip(pair, columns) if c in modality(mdata, m).var]
    for key, row in many[::-1][:3].iterrows():
        what = "It looks like a filler and links nothing" if row["filler"] else "All of these are linked"
        gap = (
            f"; a gap in its place: `{slots[0]} = {slots[0]}.astype(object).replace({{{key!r}: None}})`"
            if slots
            else ""
        )
        logger.warning(
            "%r names %d features of %r and %d of %r, %d links. %s%s. If it is a gene, give a table.",
            key, row["a"], pair[0], row["b"], pair[1], row["links"], what, gap,
        )  # fmt: skip
    if len(many) > 3:
        logger.warning("%d more keys are shared by many features of %r and of %r.", len(many) - 3, *pair)


def _log_controls(mdata: MuData, pair: Pair) -> None:
    for name in pair:
        features = modality(mdata, name).var_names
        controls = features[_antibodies.isotype_controls(features)]
        if len(controls):
            logger.info("%d isotype controls of %r link nothing, e.g. %r.", len(controls), name, controls[0])


# --- automatic choice --------------------------------------------------------------------------------------------


def _automatic(mdata: MuData, source: str, target: str) -> pd.DataFrame | None:
    """Links by whatever links most features, nearly one to one: names, `var` columns, antibodies; a line says which."""
    pair = (source, target)
    columns, pairs, counts = _best_columns(mdata, pair)
    what = "equal var_names" if columns == NAMES else described(pair, columns)
    panel, _ = _antibodies.panel(mdata, source, target)
    if _antibodies.is_panel(mdata, panel):
        by_antigen, of_antigens = _antibodies.pairs(mdata, source, target, panel)
        if _linked(by_antigen) > _linked(pairs):
            pairs, what, columns = by_antigen, of_antigens, ("", "")
    more, text = _hint(mdata, pair, NAMES, least=len(pairs) + int(counts["filler"].sum()))
    if _linked(pairs) < MIN_LINKS:
        _say_of_no_links(mdata, pair, more, text)
        return None
    if not more:
        # what other columns hold is less, but names in another case are easily overlooked
        names = [modality(mdata, m).var_names for m in pair]
        text = f"(Equal var_names: {len({*names[0]} & {*names[1]})}, after upper-casing {spellings(*names)[0]}.)"
    if columns[0]:
        _warn_of_fillers(mdata, pair, columns, counts)
    _log_controls(mdata, pair)
    said = "" if columns == NAMES and not more else f" {text}"
    logger.info("%d linked features between %r and %r: %s.%s", len(pairs), source, target, what, said)
    return _finished(pairs, pair)


def _linked(pairs: pd.DataFrame) -> int:
    """Linked features of the side that has fewer."""
    return int(min(pairs["a"].nunique(), pairs["b"].nunique()))


def _best_columns(mdata: MuData, pair: Pair) -> tuple[Pair, pd.DataFrame, pd.DataFrame]:
    """The columns of both sides that link most features, nearly one to one; their pairs of features, and common keys."""
    sides = [{c: _keys(mdata, m, c) for c in _names.name_columns(mdata, m)} for m in pair]
    reach = [{c: {*keys, *_names.parts(keys)} for c, keys in side.items()} for side in sides]
    none = pd.Series(dtype=object)
    best = ((0, 0, 0), NAMES, pd.DataFrame({"a": [], "b": []}, dtype=object), _counts(none, none))
    for c, d in product(*sides):
        if len(reach[0][c] & reach[1][d]) < MIN_LINKS:
            continue
        first, second = _names.unlisted(sides[0][c], sides[1][d])
        counts = _counts(first, second)
        if len(counts) < MIN_LINKS or counts["links"].sum() > MAX_LINK_TABLE:
            continue
        # nobody has asked for this column, so every key of many features is left out
        counts["filler"] = counts[["a", "b"]].min(axis=1) >= MIN_FILLED
        pairs = _merged(first, second, counts)
        # of equally good columns the names themselves, then those of one name, then fewer links
        score = (_linked(pairs), int((c, d) == NAMES) + int(c == d), -len(pairs))
        if len(pairs) <= NEARLY_ONE_TO_ONE * score[0] and score > best[0]:
            best = score, (c, d), pairs, counts
    return best[1:]


def _hint(mdata: MuData, pair: Pair, columns: Pair, *, least: int) -> tuple[int, str]:
    """What would match more than `least`, and how many: other spellings, other columns, antibodies; 0 if nothing does."""
    n, text = would_match(mdata, pair, columns, least=least)
    panel, known = _antibodies.panel(mdata, *pair)
    # where nothing links, a few antibodies of a panel are something, too
    if _antibodies.is_panel(mdata, panel) or (known and least < MIN_LINKS):
        m = _linked(_antibodies.pairs(mdata, *pair, panel)[0])
        if m >= MIN_LINKS and m > max(n, least):
            return m, f"{text} {m} are antibodies and genes: `links={_call(pair, 'antibody')}`."
    return n, text


def _say_of_no_links(mdata: MuData, pair: Pair, more: int, text: str) -> None:
    """A warning where something would match, else a line for those who look for it."""
    same = len(modality(mdata, pair[0]).var_names.intersection(modality(mdata, pair[1]).var_names))
    # numbers, as AnnData gives them to features without names
    numbers = (
        f" {same} names are equal numbers; if these name features: `links='var_names'`." if same >= MIN_LINKS else ""
    )
    level = logging.WARNING if more >= MIN_LINKS or numbers else logging.INFO
    logger.log(
        level, "No links between %r and %r: %d equal var_names, at least %d are needed.%s %s",
        *pair, 0 if numbers else same, MIN_LINKS, numbers, text,
    )  # fmt: skip


# --- the user's own table ----------------------------------------------------------------------------------------


def _from_table(mdata: MuData, source: str, target: str, links: pd.DataFrame) -> pd.DataFrame:
    for name in (source, target):
        if name not in links:
            raise missing_key(
                "column in the table `links`", name, [str(c) for c in links], "One column per modality is needed."
            )
    if not links.columns.is_unique:
        raise ValueError(f"The table `links` has columns of one name: {list(links)}. Drop or rename them.")
    # a row with a gap is a link of other modalities
    links = links[~np.logical_or.reduce([_names.gaps(links[m]).to_numpy(dtype=bool) for m in (source, target)])]
    table = pd.DataFrame({m: _features(mdata, m, links[m]) for m in (source, target)}, dtype=object)
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


def _features(mdata: MuData, name: str, entries: pd.Series) -> np.ndarray:
    """Names of a table's column, without the space around those that are no features as they are."""
    names = pd.Series(entries.astype(object).to_numpy(), dtype=object).astype(str)
    return names.where(names.isin(modality(mdata, name).var_names), names.str.strip()).to_numpy(dtype=object)


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
