"""Antibodies and the genes of their antigens, from the table `antibodies.csv` beside this file; isotype controls.

The table is from general knowledge. Its column `confirmed` is "yes" where `var["genes"]` of the two CITE-seq sets of the
benchmarks names the same human genes, else "no"; nothing here confirms mouse genes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgan.data import names as _names
from scmmgan.data.modality import modality
from scmmgan.data.spellings import SUFFIX, affixes, slot, without
from scmmgan.model.defaults import MAX_PANEL, PANEL_SHARE

if TYPE_CHECKING:
    from mudata import MuData

# "IgG1_control", "Mouse IgG2b, κ isotype Ctrl", "Rat-IgG1-2", "IgG", clones that bind nothing; not "IgG Fc" or "IgM"
BEFORE = r"(?:^|[\W_]|mouse|rat|hamster|hu|ms|rt|m|r)"
ISOTYPE = re.compile(
    rf"isotype|{BEFORE}(?:mopc[\W_]?\d+|mpc[\W_]?11|rtk\d{{4}}|htk888)"
    rf"|{BEFORE}ig(?:[ademy]|g\d?[abc]?)[\W_]*(?:k|κ|λ|kappa|lambda)?[\W_]*(?:ctrl|ctl|control|iso)(?![a-z])"
    rf"|{BEFORE}igg(?:[1-4][abc]?)?[kκλ]?(?![a-z\d])(?![\W_]*fc)",
    re.IGNORECASE,
)
GREEK = str.maketrans("αβγδεζκλμΑΒΓΔΕΖΚΛΜ", "abgdezklmABGDEZKLM")
BRACKETS = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
WORD = re.compile(r"[A-Z0-9]+")
# words before the name of an antigen
LEADING = re.compile(
    r"ADT|AB|ANTI|ANTIBODY|PROT|PROTEIN|CITE|CITESEQ|SURFACE|TOTALSEQ[A-D]?|[A-D]\d{4}"
    r"|HUMAN|MOUSE|RAT|H|M|R|(?:HU|MU|MS|RT|RH)+"
)
# words behind it: tags, catalogue numbers, barcodes
TRAILING = re.compile(
    r"(?:[-_. ]+(?:TotalSeq[-_ ]?[A-D]?|[A-D]?\d{4}|[ACGT]{8,}|ADT|PROT|protein|antibody))+$", re.IGNORECASE
)


@cache
def table() -> pd.DataFrame:
    """The table: antigen, its other names, genes in human and mouse, common clones (`;` lists), confirmed or not."""
    return pd.read_csv(Path(__file__).with_name("antibodies.csv"), dtype=str, keep_default_na=False)


def isotype_controls(names: Iterable[str]) -> np.ndarray:
    """Which antibodies bind nothing: isotype controls."""
    return np.array([_control(str(name)) for name in names], dtype=bool)


def _control(name: str) -> bool:
    # of many names few are worth the long pattern
    plain = name.lower()
    likely = "ig" in plain or "iso" in plain or "mopc" in plain or "mpc" in plain or "tk" in plain
    return likely and ISOTYPE.search(name) is not None


def antigens(names: Iterable[str]) -> list[str | None]:
    """Antigen of each antibody as the table names it; None for isotype controls and what the table lacks.

    Species, tags, clones and bracketed names beside it do not matter: "Hu.CD3_UCHT1", "CD3-TotalSeqB", "PD-1 (CD279)".
    """
    every = [str(name) for name in names]
    plain = without(pd.Series(every, dtype=object), affixes(every))
    # what most names share may also be part of them: "HLA-"
    return [
        None if control else _antigen(name) or _antigen(rest)
        for name, rest, control in zip(every, plain, isotype_controls(every))
    ]


def genes(names: Iterable[str]) -> list[str]:
    """Human genes of each antibody's antigen as a `;` list, empty where the table has none."""
    of = table().set_index("antigen")["human"]
    return ["" if antigen is None else str(of[antigen]) for antigen in antigens(names)]


def _antigen(name: str) -> str | None:
    bracketed = BRACKETS.findall(name)
    for text in (BRACKETS.sub(" ", name), *bracketed):
        words = WORD.findall(text.translate(GREEK).upper())
        while words:
            for end in range(len(words), 0, -1):
                if (found := _known().get(_joined(words[:end]))) is not None:
                    return found
            if LEADING.fullmatch(words[0]) is None:
                break
            words = words[1:]
    return None


def _joined(words: Iterable[str]) -> str:
    """Words without what separates them, but between two digits: "CD3-1" is not CD31."""
    return re.sub(r"(?<!\d)-|-(?!\d)", "", "-".join(words))


@cache
def _known() -> Mapping[str, str]:
    """Antigen by all of its names, those of clones last."""
    found: dict[str, str] = {}
    for column in ("antigen", "aliases", "clones"):
        for antigen, entry in zip(table()["antigen"], table()[column]):
            for name in entry.split(";") if entry else ():
                found.setdefault(_joined(WORD.findall(name.upper())), antigen)
    return found


# --- links -------------------------------------------------------------------------------------------------------


def panel(mdata: MuData, source: str, target: str) -> tuple[str, float]:
    """Which modality is more of a panel of antibodies, and the share of its features that the table knows."""
    share = {}
    for name in (source, target):
        features = modality(mdata, name).var_names
        features = features[~isotype_controls(features)] if len(features) <= MAX_PANEL else features[:0]
        share[name] = float(np.mean([a is not None for a in antigens(features)])) if len(features) else 0.0
    best = max(share, key=lambda name: (share[name], -modality(mdata, name).n_vars))
    return best, share[best]


def is_panel(mdata: MuData, name: str) -> bool:
    """Whether a modality looks like a panel of antibodies: most names are known, and some are not those of genes."""
    features = modality(mdata, name).var_names
    if len(features) > MAX_PANEL:
        return False
    features = features[~isotype_controls(features)]
    found = antigens(features)
    if not len(features) or np.mean([antigen is not None for antigen in found]) < PANEL_SHARE:
        return False
    of = table().set_index("antigen")[["human", "mouse"]].agg(";".join, axis=1).str.upper().str.split(";")
    symbols = [SUFFIX.sub("", name.upper()) for name in _plain(features)]
    return any(antigen is not None and symbol not in of[antigen] for symbol, antigen in zip(symbols, found))


def pairs(mdata: MuData, source: str, target: str, panel: str) -> tuple[pd.DataFrame, str]:
    """Features of the source (`a`) and the target (`b`) of which one is the antibody and one its gene, and these in words.

    Genes are those of the `var` column that names most of them. Antibodies that the table lacks go with the gene of
    their own name.
    """
    other = target if panel == source else source
    wanted = _wanted(pd.Index(modality(mdata, panel).var_names))
    best, column = pd.DataFrame({"of": [], "gene": []}, dtype=object), "var_names"
    for candidate in _names.name_columns(mdata, other):
        keys = _names.keys(mdata, other, candidate)
        # "GRCh38_CD4"
        for spelt in (keys, without(keys, affixes(keys))):
            side = pd.DataFrame(
                {"key": spelt.str.upper().to_numpy(dtype=object), "gene": spelt.index.to_numpy(dtype=object)}
            )
            found = wanted.merge(side, on="key")[["of", "gene"]].drop_duplicates(ignore_index=True)
            if found["of"].nunique() > best["of"].nunique():
                best, column = found, candidate
    order = ["of", "gene"] if panel == source else ["gene", "of"]
    text = f"antibodies of {panel!r} and the genes of their antigens in {slot(column)} of {other!r}"
    return best[order].set_axis(["a", "b"], axis=1), text


def _wanted(features: pd.Index) -> pd.DataFrame:
    """Antibodies (`of`) and the genes in upper case (`key`) that they may go with."""
    of = table().set_index("antigen")
    controls, plain = isotype_controls(features), _plain(features)
    rows = []
    for name, own, antigen, control in zip(features, plain, antigens(features), controls):
        if antigen is not None:
            human, mouse = of.loc[antigen, ["human", "mouse"]]
            rows += [(name, gene.upper()) for gene in f"{human};{mouse}".split(";") if gene]
        elif not control:
            rows.append((name, own.upper()))
    return pd.DataFrame(rows, columns=["of", "key"], dtype=object).drop_duplicates(ignore_index=True)


def _plain(features: pd.Index) -> pd.Series:
    """Names without what is common to most of them, brackets and tags."""
    names = features.to_series().astype(str)
    return (
        without(names, affixes(names))
        .str.replace(BRACKETS, "", regex=True)
        .str.replace(TRAILING, "", regex=True)
        .str.strip()
    )
