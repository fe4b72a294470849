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
from scmmgan.model.defaults import MAX_SEED, N_TOP
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
) -> None:
    """Find spurious and novel correlations of genes: measured but not mapped, and mapped but not measured.

    Two correlations of the gene with every other feature are compared. a: over the measured cells of `source`, in the
    layer that the alignment read, smoothed as it was read. b: over the same cells mapped to `target`. A correlation is
    *spurious* when it is present in a and absent in b, and *novel* the other way round. Present: among the `n_top`
    strongest, at least `threshold`, and q < .05. Absent: the upper one-sided 95 % bootstrap limit (200 resamples of the
    cells, no retraining) lies below `threshold`.

    Smoothing and mapping make any two features correlate, even those of shuffled data. So p comes from three nulls of 20
    permutations each, and the largest p counts. In the first, every source feature is permuted over the cells (of its
    batch) on its own; then all are smoothed, mapped and decoded as the data were. In the other two the cells and their
    neighbours stay as they are, and either the other features are permuted or the gene is: what correlations do features
    reach that have nothing to do with the cells? Fisher's z is standardised by each feature's mean and sd under the null;
    p is its rank among those of all features and permutations; q is Benjamini and Hochberg's over the features compared
    with one gene.

    A verdict compares two correlations. Whether the mapped one is true depends on the alignment. Where nothing supports
    that (:func:`scmmgan.tl.diagnose`), no verdict is given, only candidates: maps of shuffled data give many of these.

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
        How many of the strongest correlations count (default: a tenth of the features, at most 700 as in the paper).
    threshold
        Correlation below which one is absent (default .1, as in the paper).
    signed
        Whether only positive correlations count, as in the paper (default); otherwise magnitudes are compared.
    reference
        Where a is measured. `"source"` (default), or `"target"`: over the measured cells of `target`, for all of its
        features. Then spurious means absent from the mapped cells, and novel added by the map.
    method
        What maps the cells. `"generator"`: the trained map, as in :func:`scmmgan.get.mapped`. `"coupling"`: the coupling
        that the training started from, averaged over the 15 nearest cells. `"auto"` (default): the coupling where
        modalities share their features, evidence supports the alignment and its method is `"scmmgan"` (there the trained
        map keeps mixed spots mixed); else the generator.
    random_state
        Seed of permutations and resamples; default: that of the alignment.
    key
        `key_added` of the alignment.

    Returns
    -------
    `None`. Sets:

    `mdata.uns[key]["correlations"][source][target]` : dict
        `table`
            One row per gene asked for (`query`) and `feature` of `target`, with `measured_as` (its name where a is
            measured). For a (`measured`) and b (`mapped`): `r_*` (correlation), `rank_*` (1: the strongest), `z_*` (sds
            above the mean of its null), `p_*`, `q_*`, `upper_*` (bootstrap limit). `change`: Fisher's z of b less that
            of a. Three columns with "spurious", "novel" or "": `listed`, the paper's lists, by rank and threshold alone
            (what is on both is on neither); `candidate`, those that pass the nulls and limits; `verdict`, the same where
            evidence supports the alignment, else "".
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
    (59, 19)
    """
    keys = Keys(key)
    params = _slots.record(mdata, keys)["params"]
    _slots.check_aligned(mdata, (source, target), keys)
    settings = _settings(params, source, target, n_top, threshold, signed, reference, method, random_state)
    genes = _genes(gene)
    _check_measured(params, (source, target))
    supported = bool(_slots.diagnosis(mdata, source, target, keys)["supported"])
    if settings["method"] == "auto":
        # only the default method follows the coupling; where nothing supports that it invents more than the generator
        follows = params["shared_space"] and params["method"] == "scmmgan" and supported
        settings["method"] = "coupling" if follows else "generator"

    from scmmgan.model.evidence.correlations import with_nulls

    with one_thread():
        problem, domains = _read.reread(mdata, keys)
        measured_in = source if reference == "source" else target
        rows = _rows(domains[source], domains[target], problem.of(source, target), reference)
        queries = np.array([_query(rows, name, domains[source], domains[target], reference) for name in genes])
        varies = _varies(rows, domains[measured_in], domains[target])
        for name, i in zip(genes, queries):
            if not varies[i]:
                raise ValueError(f"{name!r} is constant where it was measured or mapped: it correlates with nothing.")
        logger.info("%d features are compared, %d more are constant.", varies.sum(), (~varies).sum())
        settings["n_top"] = settings["n_top"] or max(1, min(N_TOP, int(varies.sum() - 1) // 10))
        translate = partial(_map(mdata, problem, domains, params, settings, key), source=source, target=target)
        found = with_nulls(
            domains, source, target, measured_in, _positions(rows[varies]), _positions(rows.iloc[queries]), translate,
            steps=problem.steps, denoise=not problem.by_shape, signed=signed, seed=settings["random_state"], graph_seed=int(params["random_state"]),
        )  # fmt: skip
    tables = [
        _table(name, rows[varies], rows.iloc[i], found, j, settings) for j, (name, i) in enumerate(zip(genes, queries))
    ]
    if not supported:
        logger.warning("Nothing supports the alignment of %r and %r (`tl.diagnose`): correlations are candidates, without a verdict.", source, target)  # fmt: skip
        tables = [table.assign(verdict=pd.Series("", table.index, dtype=object)) for table in tables]
    _store(mdata, source, target, tables, settings | {"supported": supported}, keys)


def _map(
    mdata: MuData,
    problem: Problem,
    domains: Mapping[str, Domain],
    params: Mapping[str, Any],
    settings: Mapping[str, Any],
    key: str,
) -> Any:
    """What maps the cells: the trained generators, or the coupling between the nearest cells."""
    if settings["method"] != "coupling":
        return get.model(mdata, key=key).translate

    from scmmgan.model.coupling.couple import couple
    from scmmgan.model.nets import methods

    how = _read.training_settings(params) | {"method": "coupling", "noise_dim": 0, "progress_bar": False}
    couplings, loadings = couple(problem, domains, random_state=int(params["random_state"]))
    return methods.fit_problem(problem, domains, couplings, loadings, how)[0].translate


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
    if not isinstance(method, str) or method not in ("auto", "generator", "coupling"):
        raise ValueError(f"`method` must be 'auto', 'generator' or 'coupling', got {method!r}.")
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

    rule = {name: settings[name] for name in ("n_top", "threshold", "signed")}
    table = pd.DataFrame({"query": gene, "feature": rows["feature"], "measured_as": rows["measured_as"]}, dtype=object)
    classified, sides = {}, ("measured", "mapped")
    for side in sides:
        of = found[side]
        r, limit = (of[part][number][others].astype(float) for part in ("r", "limit"))
        correlated = of["correlated"][number][:, others] if "correlated" in of else None
        covaried = [null[number][:, others] for null in of["covaried"]]
        classified[side] = model.classify(r, limit, correlated=correlated, covaried=covaried, **rule)
        table[f"r_{side}"] = r
    for name in ("rank", "z", "p", "q", "upper"):
        for side in sides:
            table[f"{name}_{side}"] = classified[side][name]
    table["change"] = model.strength(table["r_mapped"].to_numpy(), True) - model.strength(
        table["r_measured"].to_numpy(), True
    )
    spurious = classified["measured"]["present"] & classified["mapped"]["absent"]
    novel = classified["mapped"]["present"] & classified["measured"]["absent"]
    table["listed"] = model.listed(
        *(table[f"{name}_{side}"].to_numpy() for name in ("r", "rank") for side in sides), **rule
    )
    table["candidate"] = model.called(spurious, novel)
    table["verdict"] = table["candidate"]
    logger.info("%s: %d spurious and %d novel correlations with %d features.", gene, spurious.sum(), novel.sum(), len(rows))  # fmt: skip
    return table.reset_index(drop=True)


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
