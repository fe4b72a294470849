"""Names in other spellings and columns: what would match, and what to type for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from scmmgan.data.modality import modality
from scmmgan.data.names import NUMBER_OR_CHROMOSOME, SHOWN, are_places, keys, name_columns
from scmmgan.model.defaults import MAX_AFFIXES

if TYPE_CHECKING:
    from mudata import MuData

Pair = tuple[str, str]
Affix = tuple[str, str]  # "prefix" or "suffix" and its text, or "pattern" and a regular expression

ENSEMBL = re.compile(r"^(ENS[A-Z]*[EGPRT]\d{11})\.\d+$")  # the version of an Ensembl id
SPELL = r".str.upper().str.replace(r'^(ENS\w+)\.\d+$', r'\1', regex=True)"  # what a user may type for the first
SUFFIX = re.compile(r"[._-]\d+$")  # what keeps repeated names apart, "CD3D-1"; part of the name in "TRAV8-2"
FIRST = re.compile(r"^[^-_.:|/\s]+[-_.:|/\s]+")
LAST = re.compile(r"[-_.:|/\s]+[^-_.:|/\s]+$")
# behind names: clones in brackets; barcodes, and numbers of barcodes and genes: "-A0034", "_ENSG00000167286.5"
PATTERNS = (r"\s*[(\[][^()\[\]]*[)\]]$", r"[-_ |](?:[ACGT]{10,}|[A-D]\d{3,4}|ENS[A-Z]*\d{11}(?:\.\d+)?)$")


def spellings(first: Iterable[str], second: Iterable[str]) -> tuple[int, int]:
    """How many names of two sets would be equal after upper-casing, and without version suffixes besides."""
    sides = [_spelt(names) for names in (first, second)]
    return len(sides[0][1] & sides[1][1]), len(_without_suffix(*sides))


def _spelt(names: Iterable[str]) -> tuple[set[str], ...]:
    """The names as they are; in upper case; then without the versions of Ensembl ids."""
    exact = {str(name) for name in names}
    upper = {name.upper() for name in exact}
    return exact, upper, {ENSEMBL.sub(r"\1", name) if name.startswith("ENS") else name for name in upper}


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


# --- affixes -----------------------------------------------------------------------------------------------------


def affixes(names: Iterable[str]) -> list[Affix]:
    """What most names begin or end with, a word and what separates it: "Hu.", "adt_", "_TotalSeqB", " (UCHT1)".

    Not what leaves numbers, or the same name twice: "gene_1" is no 1.
    """
    every = sorted({str(name) for name in names})
    # some of many names show what most have
    left = pd.Series(every[:: max(1, len(every) // SHOWN)], dtype=object)
    found: list[Affix] = []
    while len(left) > 2 and len(found) < MAX_AFFIXES:
        for affix in _common(left):
            rest = without(left, [affix])
            plain = rest.str.fullmatch(NUMBER_OR_CHROMOSOME) | (rest == "")
            if rest.nunique() == len(left) and 2 * plain.sum() < len(left):
                found, left = [*found, affix], rest
                break
        else:
            break
    return found


def _common(names: pd.Series) -> list[Affix]:
    """Affixes of more than half of the names."""
    found: list[Affix] = [("pattern", p) for p in PATTERNS if 2 * names.str.contains(p, regex=True).sum() > len(names)]
    for kind, pattern in (("suffix", LAST), ("prefix", FIRST)):
        counts = Counter(match.group() for name in names if (match := pattern.search(name)) is not None)
        found += [(kind, text) for text, n in counts.most_common(1) if 2 * n > len(names)]
    return found


def without(names: pd.Series, found: Iterable[Affix]) -> pd.Series:
    """The names without these affixes."""
    for kind, text in found:
        if kind == "pattern":
            names = names.str.replace(text, "", regex=True)
        else:
            names = names.str.removeprefix(text) if kind == "prefix" else names.str.removesuffix(text)
    return names


def _stripping(found: Iterable[Affix]) -> str:
    """What to type behind a column to have its entries without these affixes."""
    code = {"pattern": ".str.replace({!r}, '', regex=True)", "prefix": ".str.removeprefix({!r})"}
    return "".join(code.get(kind, ".str.removesuffix({!r})").format(text) for kind, text in found)


def _named(found: Iterable[Affix]) -> str:
    words = dict(
        zip((*PATTERNS, SUFFIX.pattern), ("what stands in brackets", "barcodes or identifiers", "version suffixes"))
    )
    return " and ".join(words[text] if kind == "pattern" else f"the {kind} {text!r}" for kind, text in found)


# --- what would match ---------------------------------------------------------------------------------------------


def would_match(mdata: MuData, pair: Pair, columns: Pair, *, least: int = 0) -> tuple[int, str]:
    """How many names would be equal in other spellings and in other `var` columns, and what to type for the most.

    The first is the largest of these numbers, 0 if none exceeds what matches as it is, or `least`.
    """
    entries = [_entries(mdata, name, own) for name, own in zip(pair, columns)]
    sides = [{c: _spelt(names) for c, names in side.items()} for side in entries]
    used = [side[own] for side, own in zip(sides, columns)]
    matched = max(len(used[0][0] & used[1][0]), least)
    upper, stripped = len(used[0][1] & used[1][1]), len(_without_suffix(*used))
    text = [f"After upper-casing {upper} names would match, and {stripped} without version suffixes."]
    # of equally good columns those that need no typing, then the names themselves
    combos = [((c, d), a, b) for c, a in sides[0].items() for d, b in sides[1].items()]
    n, _, at = max(((len(a[0] & b[0]), _argument(mdata, pair, at) is not None, at) for at, a, b in combos), key=_most)
    if n > matched:
        text.append(f"{n} entries of {described(pair, at)}: {_how(mdata, pair, at)}.")
    most = max(n, matched)
    m, _, at = max(((len(a[2] & b[2]), at[0] == at[1], at) for at, a, b in combos), key=_most)
    if m > most:
        text.append(
            f"{m} entries of {described(pair, at)} when spelt alike: {_type(mdata, pair, at, ([], []), SPELL)}."
        )
    most = max(m, most)
    k, at, found, spell = _without_affixes(entries)
    if k > most:
        said = " and ".join(f"without {_named(of)} of {name!r}" for name, of in zip(pair, found) if of)
        text.append(f"{k} entries of {described(pair, at)} {said}: {_type(mdata, pair, at, found, spell)}.")
    most = max(k, most)
    return (most if most > matched else 0), " ".join(text)


def _entries(mdata: MuData, name: str, column: str) -> dict[str, pd.Series]:
    """Different entries of the columns that may name features, and of this one; places in a genome have one spelling."""
    found = {c: keys(mdata, name, c).drop_duplicates() for c in dict.fromkeys((*name_columns(mdata, name), column))}
    return {c: names for c, names in found.items() if c == column or not are_places(names)}


def _most(entry: tuple[int, bool, Pair]) -> tuple[int, bool]:
    return entry[:2]


def _without_affixes(entries: list[dict[str, pd.Series]]) -> tuple[int, Pair, tuple[list[Affix], list[Affix]], str]:
    """Most entries that are equal without affixes of one or both sides: number, columns, affixes, further spelling."""
    version: Affix = ("pattern", SUFFIX.pattern)
    sides = []
    for side in entries:
        options: list[tuple[str, list[Affix]]] = []
        for column, names in side.items():
            places = are_places(names)
            options += [(column, [])] + [(column, of) for of in (affixes(names), [version]) if of and not places]
        sides.append([(c, found, _spelt(without(side[c], found))) for c, found in options])
    best: tuple[tuple[int, int, int], Pair, tuple[list[Affix], list[Affix]], str] = ((0, 0, 0), ("", ""), ([], []), "")
    for c, own, a in sides[0]:
        for d, other, b in sides[1]:
            # numbers tell names of one side apart: "TRAV8-2" and "TRAV8-3" are not the same
            if not own + other or own == other == [version]:
                continue
            exact, alike = len(a[0] & b[0]), len(a[2] & b[2])
            # of equal numbers those that need less typing
            score = (max(exact, alike), -(len(own) + len(other)), int(exact == alike))
            if score > best[0]:
                best = score, (c, d), (own, other), "" if exact == alike else SPELL
    return best[0][0], *best[1:]


def _argument(mdata: MuData, pair: Pair, columns: Pair) -> str | None:
    """The value of `links` that reads these columns, if there is one."""
    if {"auto", "antibody", "genomic"} & set(columns):
        return None
    if columns[0] == columns[1]:
        return columns[0]
    for own, other, name in ((columns[0], columns[1], pair[1]), (columns[1], columns[0], pair[0])):
        if other == "var_names" and own not in modality(mdata, name).var:
            return own
    return None


def slot(column: str) -> str:
    """A column of `var`, or its index, as one writes it."""
    return "var_names" if column == "var_names" else f"var[{column!r}]"


def described(pair: Pair, columns: Pair) -> str:
    """Columns of both sides in words."""
    return f"{slot(columns[0])} of {pair[0]!r} are in {slot(columns[1])} of {pair[1]!r}"


def _how(mdata: MuData, pair: Pair, columns: Pair) -> str:
    if (links := _argument(mdata, pair, columns)) is not None:
        return f"`links={links!r}`"
    return _type(mdata, pair, columns, ([], []), "")


def _type(mdata: MuData, pair: Pair, columns: Pair, found: tuple[list[Affix], list[Affix]], spell: str) -> str:
    """Code that writes a column of equal names on both sides, under a name that is free in both."""
    new = "linked"
    while any(new in modality(mdata, name).var for name in pair):
        new += "_"
    lines = [
        f"`mdata[{name!r}].var[{new!r}] = mdata[{name!r}].{slot(column)}{_stripping(of)}{spell}`"
        for name, column, of in zip(pair, columns, found)
    ]
    return f"{' and '.join(lines)}, then `links={new!r}`"
