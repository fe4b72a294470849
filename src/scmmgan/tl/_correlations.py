"""Spurious and novel correlations of genes: measured but not mapped, and mapped but not measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan import get
from scmmgan.data import derived as _derived
from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import (
    ABSENT_ALPHA,
    CORRELATION_ALPHA,
    EVIDENCE_Q,
    MAX_SEED,
    N_TOP,
    PRESENT_ALPHA,
    PRESENT_CORRELATION,
)
from scmmgan.model.progress import shown
from scmmgan.model.space.linear import one_thread

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.problem import Known, Problem
    from scmmgan.model.space.domain import Domain

logger = logging.getLogger("scmmgan")


def correlations(
    mdata: MuData,
    source: str,
    target: str,
    *,
    gene: str | Sequence[str],
    n_top: int | None = None,
    threshold: float = 0.1,
    signed: bool = True,
    reference: str = "source",
    method: str = "auto",
    random_state: int | None = None,
    key: str = "scmmgan",
    progress_bar: bool = True,
) -> None:
    """Find correlations of genes that one technology invented (spurious) or hid (novel).

    Two correlations of a gene with every other feature are compared. a: over the cells of `source`, as they were measured.
    b: over pools of about 15 similar cells of `target` that have counterparts in `source`, their counts summed (without
    counts: the layer averaged). Spots mix cells, and depth varies over a tissue: a shows correlations that no cell has. Spots
    lose molecules: a lacks correlations that cells have.

    A correlation is *spurious* when a shows it and cells do not: in a at least `threshold` and q < .05, and in b surely below
    `threshold`. It is *novel* when cells have it and a does not show it: in b surely at least .3, and in a surely below
    `threshold`, given the depth of each cell. "Surely" is a one-sided limit: in b by a jackknife over cells, of
    97.5 % below and 99.7 % above; in a Fisher's, of 95 %.

    The test of a: smoothing makes any two features correlate, even those of shuffled data. So p comes from three nulls of 20
    permutations each, and the largest p counts. In the first, every feature is permuted over the cells (of its batch) on its
    own, and smoothed as the data were. In the other two the cells and their neighbours stay as they are, and either the
    other features are permuted or the gene is. q is Benjamini and Hochberg's over the features compared with one gene.

    A verdict needs evidence that cells correspond: of the alignment (*supported*), or, where it is *supported in part* or
    *weak*, of both genes (held-out q < .05; :func:`scmmgan.tl.diagnose`). Else there are candidates only.

    Parameters
    ----------
    mdata
        Aligned data; what was read for the alignment must still be there.
    source
        Modality whose cells are mapped.
    target
        Modality whose features they are mapped to.
    gene
        One gene or several, by the name of a feature of `source` or, where it has none of that name, of `target`.
        Compared are features that both modalities have under one name, or that a link joins (links of sign −1 aside).
    n_top
        How many of the strongest are on the paper's lists (`listed`; default: a tenth of the features, at most 700 as in
        the paper). Verdicts do not depend on it.
    threshold
        Correlation below which one is absent (default .1, as in the paper).
    signed
        Whether only positive correlations count, as in the paper (default); otherwise magnitudes are compared.
    reference
        Where a is measured. `"source"` (default), or `"target"`: over the cells of `target`, for all of its features, against
        mapped cells. Then spurious means absent from the mapped cells, and novel added by the map.
    method
        What b is taken over. `"cells"`: cells of the target. `"generator"`: mapped cells (the trained map); it smooths, so
        what it shows or lacks is a candidate, never a verdict. Present and absent are then decided by nulls (source features
        permuted and mapped) and by bootstrap limits. Default `"auto"`: cells; generator with `reference="target"`.
    random_state
        Seed of permutations and resamples; default: that of the alignment.
    key
        `key_added` of the alignment.
    progress_bar
        Show the progress of what takes longer than two seconds, and the time that is left.

    Returns
    -------
    `None`. Sets:

    `mdata.uns[key]["correlations"][source][target]` : dict
        `table`
            One row per gene asked for (`query`) and `feature` of `target`, with `measured_as` (its name where a is
            measured). For a (`measured`) and b (`mapped`): `r_*` (correlation; a smoothed as the alignment read it), `rank_*`
            (1: the strongest), `z_*` (sds above the null), `p_*`, `q_*`, `upper_*` (limit: 95 % of a, without smoothing and
            given depth; 97.5 % of b), and `lower_mapped` (99.7 %). `change`: Fisher's z of b less that of a. Three columns with "spurious", "novel" or "":
            `listed`, the paper's lists, by rank and threshold alone (what is on both is on neither); `candidate`, by the rules
            above; `verdict`, the same where both genes have evidence, else "".
        `n_top`, `threshold`, `signed`, `reference`, `method`, `random_state`
            As used.
        `supported`
            Whether evidence supports the alignment.

    Each pair of modalities has its own. Genes of earlier calls stay in the table while the settings are the same; else
    they are replaced, and that is logged.

    Raises
    ------
    KeyError
        If there is no such alignment, diagnosis, modality or feature, or if a gene is measured on one side only.
    TypeError
        If a number is not whole, or `gene` or `signed` is of another type.
    ValueError
        If the record is damaged or of another version; cells or features were added, renamed or taken out, or come from
        another alignment; their values, links, pairs or labels have changed since; a number is out of range, `source` is
        `target`, a gene is constant or has several partners, or a modality was read from `use_rep`.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(shared_genes=True)
    >>> smm.tl.align(mdata, max_steps=50, progress_bar=False)
    >>> smm.tl.correlations(mdata, "rna", "protein", gene="gene_0")
    >>> smm.get.correlations(mdata, "rna", "protein").shape
    (59, 20)
    """
    keys = Keys(key)
    _slots.check_coupled(mdata, keys)
    params = _slots.record(mdata, keys)["params"]
    _slots.check_aligned(mdata, (source, target), keys)
    settings = _settings(params, source, target, n_top, threshold, signed, reference, method, random_state)
    genes = _genes(gene)
    _check_measured(params, (source, target))
    found = _slots.diagnosis(mdata, source, target, keys)
    if settings["method"] == "auto":
        settings["method"] = "cells" if reference == "source" else "generator"

    with one_thread(), shown(progress_bar):
        ordered = _read.as_aligned(mdata, keys)
        problem, domains = _read.reread(ordered, keys, counts=True)
        measured_in = source if reference == "source" else target
        rows = _rows(domains[source], domains[target], problem.of(source, target), reference)
        queries = np.array([_query(rows, name, domains[source], domains[target], reference) for name in genes])
        varies = _varies(rows, domains[measured_in], domains[target])
        for name, i in zip(genes, queries):
            if not varies[i]:
                raise ValueError(f"{name!r} is constant where it was measured or mapped: it correlates with nothing.")
        logger.info("%d features are compared, %d more are constant.", varies.sum(), (~varies).sum())
        settings["n_top"] = settings["n_top"] or max(1, min(N_TOP, int(varies.sum() - 1) // 10))
        at = (_positions(rows[varies]), _positions(rows.iloc[queries]))
        sides = _sides(
            ordered, problem, domains, (source, target, measured_in), at, settings, int(params["random_state"]), keys
        )
    tables = [
        _table(name, rows[varies], rows.iloc[i], sides, j, settings) for j, (name, i) in enumerate(zip(genes, queries))
    ]
    supported = bool(found["supported"])
    tables = [_with_verdict(table, found, (source, target), settings["method"]) for table in tables]
    _store(mdata, source, target, tables, settings | {"supported": supported}, keys)


def _sides(
    mdata: MuData,
    problem: Problem,
    domains: Mapping[str, Domain],
    names: tuple[str, str, str],
    at: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
    settings: Mapping[str, Any],
    aligned: int,
    keys: Keys,
) -> dict[str, dict[str, Any]]:
    """What was measured and what b shows: correlations (queries × features), nulls and limits."""
    from scmmgan.model.evidence import pooled
    from scmmgan.model.evidence.correlations import with_nulls

    (source, target, measured_in), (rows, queries) = names, at
    signed, seed, cells = settings["signed"], settings["random_state"], settings["method"] == "cells"
    translate = None if cells else partial(get.model(mdata, key=keys.key).translate, source=source, target=target)
    sides = with_nulls(
        domains, source, target, measured_in, rows, queries, translate, steps=problem.steps, denoise=not problem.by_shape,
        signed=signed, seed=seed, graph_seed=aligned,
    )  # fmt: skip
    if cells:
        unmatched = _slots.unmatched(mdata, target, source, keys)
        weight = np.ones(len(domains[target].x)) if unmatched is None else 1 - unmatched.astype(np.float64)
        r, error = pooled.pooled_correlations(
            domains[target], weight, queries["mapped"], rows["mapped"], random_state=seed
        )
        lower = pooled.limits(r, error, signed=signed, alpha=PRESENT_ALPHA)[0]
        upper = pooled.limits(r, error, signed=signed, alpha=ABSENT_ALPHA)[1]
        z, p = pooled.significance(r, error, signed=signed)
        sides["mapped"] = {"r": r, "limit": upper, "lower": lower, "z": z, "p": p}
        own = pooled.given_depth(domains[source], queries["measured"], rows["measured"])
        sides["measured"]["limit"] = pooled.limits(own, pooled.fisher_error(len(domains[source].x)), signed=signed)[1]
    return sides


def _positions(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    return {side: rows[side].to_numpy() for side in ("measured", "mapped")}


def _settings(
    params: Mapping[str, Any],
    source: str,
    target: str,
    n_top: int | None,
    threshold: float,
    signed: bool,
    reference: str,
    method: str,
    random_state: int | None,
) -> dict[str, Any]:
    """Checked arguments."""
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}: nothing is mapped. Name two modalities.")
    if isinstance(threshold, bool) or not (isinstance(threshold, Real) and 0 < float(threshold) < 1):
        raise ValueError(f"`threshold` must be a correlation between 0 and 1, got {threshold!r}.")
    if not isinstance(signed, bool):
        raise TypeError(f"`signed` must be True or False, got {signed!r}.")
    if reference not in ("source", "target"):
        raise ValueError(f"`reference` must be 'source' or 'target', got {reference!r}.")
    if not isinstance(method, str) or method not in ("auto", "generator", "cells"):
        raise ValueError(f"`method` must be 'auto', 'cells' or 'generator', got {method!r}.")
    if method == "cells" and reference == "target":
        raise ValueError(
            "`reference='target'` compares the cells of the target with mapped ones: use `method='generator'`."
        )
    seed = int(params["random_state"]) if random_state is None else random_state
    return {
        "n_top": None if n_top is None else _modality.whole_number(n_top, "n_top", low=1),
        "threshold": float(threshold),
        "signed": signed,
        "reference": reference,
        "method": method,
        "random_state": _modality.whole_number(seed, "random_state", low=0, high=MAX_SEED),
    }


def _genes(gene: str | Sequence[str]) -> list[str]:
    """Names asked for, each one once."""
    names = [gene] if isinstance(gene, str) else gene
    if not pd.api.types.is_list_like(names) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`gene` must be the name of a feature or several names, got {gene!r}.")
    if not len(names):
        raise ValueError("`gene` names no feature. Name at least one.")
    return list(dict.fromkeys(names))


def _check_measured(params: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if (rep := _read.argument(params, "use_rep", name)) is not None:
            raise ValueError(
                f"{name!r} was read from obsm {rep!r}: a representation has no genes to correlate. "
                "Align without `use_rep` first."
            )


def _rows(source: Domain, target: Domain, known: Known, reference: str) -> pd.DataFrame:
    """Features to compare: name where measured, name where mapped, and their positions."""
    names = {d.name: pd.Index(d.modality.features) for d in (source, target)}
    own, other = names[source.name], names[target.name]
    if reference == "target":
        rows = pd.DataFrame({"measured_as": other, "feature": other}, dtype=object)
        return rows.assign(measured=np.arange(len(rows)), mapped=np.arange(len(rows)))
    common = own[own.isin(other)]
    parts = [pd.DataFrame({"measured_as": common, "feature": common}, dtype=object)]
    if known.links is not None:
        linked = {m: names[m][known.positions(m)] for m in names}
        # a feature that is on both sides stands for itself
        used = (known.links.sign > 0) & ~linked[source.name].isin(common) & ~linked[target.name].isin(common)
        both = {"measured_as": linked[source.name][used], "feature": linked[target.name][used]}
        parts.append(pd.DataFrame(both, dtype=object))
    rows = pd.concat(parts, ignore_index=True).drop_duplicates(ignore_index=True)
    return rows.assign(
        measured=own.get_indexer(pd.Index(rows["measured_as"], dtype=object)),
        mapped=other.get_indexer(pd.Index(rows["feature"], dtype=object)),
    )


def _query(rows: pd.DataFrame, gene: str, source: Domain, target: Domain, reference: str) -> int:
    """Row number of a gene; an error that says why it cannot be compared."""
    for column in ("measured_as", "feature"):
        found = np.flatnonzero((rows[column] == gene).to_numpy())
        if len(found) == 1:
            return int(found[0])
        if len(found) > 1:
            other = "feature" if column == "measured_as" else "measured_as"
            raise ValueError(
                f"{gene!r} is linked to {len(found)} features: {rows[other].iloc[found].tolist()[:10]}. "
                "Name the one that is meant."
            )
    sides = [domain for domain in (source, target) if gene in domain.modality.features]
    if reference == "source" and sides:
        lacking = target if sides[0] is source else source
        hint = "`reference='target'` needs it there only." if sides[0] is target else ""
        raise KeyError(
            f"{gene!r} is a feature of {sides[0].name!r}, but {lacking.name!r} has none of that name and none linked with "
            f"it: there is nothing to compare. {hint}".strip()
        )
    raise _modality.missing_key(f"feature of {source.name!r} and {target.name!r}", gene, rows["feature"].tolist())


def _varies(rows: pd.DataFrame, measured: Domain, target: Domain) -> np.ndarray:
    """Which features vary both where they were measured, as it was read, and where they are mapped."""
    # decoders of constant features are 0, also of those that differ between batches only
    own, other = (np.asarray(d.transform.decoder.any(axis=0)) for d in (measured, target))
    return np.asarray(own[rows["measured"]] & other[rows["mapped"]])


def _table(
    gene: str,
    rows: pd.DataFrame,
    query: pd.Series,
    found: Mapping[str, Mapping[str, Any]],
    number: int,
    settings: Mapping[str, Any],
) -> pd.DataFrame:
    """All that was found of one gene, the gene itself left out."""
    others = ((rows["measured"] != query["measured"]) & (rows["mapped"] != query["mapped"])).to_numpy()
    if others.sum() < 2:
        raise ValueError(f"Only {others.sum()} features can be compared with {gene!r}; at least 2 are needed.")
    rows = rows[others]
    from scmmgan.model.evidence import correlations as model

    threshold, signed = settings["threshold"], settings["signed"]
    table = pd.DataFrame({"query": gene, "feature": rows["feature"], "measured_as": rows["measured_as"]}, dtype=object)
    numbers, present, absent = {}, {}, {}
    for side, of in found.items():
        part = {
            name: of[name][number][others].astype(float) for name in ("r", "limit", "lower", "z", "p") if name in of
        }
        r = part["r"]
        strong = model.strength(r, signed)
        if "p" in part:
            tests = {"rank": model.ranks(strong), "z": part["z"], "p": part["p"], "q": model.adjusted(part["p"])}
        else:
            correlated = of["correlated"][number][:, others] if "correlated" in of else None
            covaried = [null[number][:, others] for null in of["covaried"]]
            tests = model.against_nulls(r, correlated=correlated, covaried=covaried, signed=signed)
        numbers[side] = {"r": r, **tests, "upper": part["limit"], "lower": part.get("lower", np.full(len(r), np.nan))}
        absent[side] = part["limit"] < threshold
        present[side] = (tests["q"] < CORRELATION_ALPHA) & (strong >= np.arctanh(threshold))
        if "lower" in part:
            present[side] &= part["lower"] >= PRESENT_CORRELATION
    for name in ("r", "rank", "z", "p", "q", "upper"):
        for side in ("measured", "mapped"):
            table[f"{name}_{side}"] = numbers[side][name]
    table["lower_mapped"] = numbers["mapped"]["lower"]
    change = [model.strength(numbers[side]["r"], True) for side in ("mapped", "measured")]
    table["change"] = change[0] - change[1]
    spurious, novel = present["measured"] & absent["mapped"], present["mapped"] & absent["measured"]
    table["listed"] = model.listed(
        *(numbers[side][name] for name in ("r", "rank") for side in ("measured", "mapped")),
        n_top=settings["n_top"], threshold=threshold, signed=signed,
    )  # fmt: skip
    table["candidate"] = model.called(spurious, novel)
    logger.info("%s: %d spurious and %d novel correlations with %d features.", gene, spurious.sum(), novel.sum(), len(rows))  # fmt: skip
    return table.reset_index(drop=True)


def _with_verdict(
    table: pd.DataFrame, diagnosis: Mapping[str, Any], pair: tuple[str, str], method: str
) -> pd.DataFrame:
    """The candidates, where the alignment is supported, or both genes have evidence of their own."""
    source, target = pair
    links = diagnosis.get("links")
    known = np.full(len(table), bool(diagnosis["supported"]) and method == "cells")
    if method == "cells" and links is not None and diagnosis["grade"] in ("in part", "weak"):
        sure = links[links["q"] < EVIDENCE_Q]
        own, other = set(sure[source]), set(sure[target])
        gene = table["query"].isin(own | other)
        known = (gene & table["measured_as"].isin(own) & table["feature"].isin(other)).to_numpy()
    if not known.any():
        logger.warning(
            "%s: no verdict, only candidates: %s.", table["query"].iloc[0],
            "mapped cells are smoothed" if method != "cells" else "the alignment has no evidence for this gene (`tl.diagnose`)",
        )  # fmt: skip
    return table.assign(verdict=table["candidate"].where(known, ""))


def _store(
    mdata: MuData, source: str, target: str, tables: list[pd.DataFrame], settings: Mapping[str, Any], keys: Keys
) -> None:
    """Into the table of the pair, beside earlier genes of the same settings."""
    found = {a: dict(of) for a, of in _slots.added(mdata, keys, "correlations").items()}
    earlier = found.get(source, {}).get(target)
    table = pd.concat(tables, ignore_index=True)
    if earlier is not None:
        kept = earlier["table"][~earlier["table"]["query"].isin(table["query"])]
        if all(earlier.get(name) == value for name, value in settings.items()):
            table = pd.concat([kept, table], ignore_index=True)
        elif len(kept):
            logger.info("Correlations of %s were made with other settings and are replaced.", kept["query"].unique().tolist())  # fmt: skip
    found.setdefault(source, {})[target] = {"table": table, **settings}
    _derived.write(mdata, {}, keys, uns={"correlations": found})
