"""All scores of an alignment in one table, with and without the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan import get, metrics
from scmmgan.data import known as _known
from scmmgan.data import modality as _modality
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.coupling.views import unit_rows
from scmmgan.model.defaults import BASELINE_NEIGHBORS, FOLDS, MAX_SEED, MAX_TESTED_CELLS, SCORED_FEATURES
from scmmgan.model.evidence.neighborhoods import overlaps, round_trips
from scmmgan.model.space.diffusion import nearest
from scmmgan.model.space.graphs import graph_scores
from scmmgan.model.space.linear import one_thread

if TYPE_CHECKING:
    from mudata import MuData


def evaluate(
    mdata: MuData,
    source: str,
    target: str,
    *,
    pairs: str | pd.DataFrame | None = None,
    labels: str | None = None,
    features: Sequence[str] | None = None,
    k: int = 10,
    random_state: int = 0,
    key: str = "scmmgan",
) -> pd.DataFrame:
    """Score an alignment by all metrics that what is known allows, in both directions.

    Without any truth: whether mapped cells have the distribution of the measured ones, and, where both modalities measured
    the same features, whether cells keep their own values. Pairs that the alignment did not know say how near cells come to
    their partner and how well features are predicted; labels, how often cells come to their kind.

    Parameters
    ----------
    mdata
        Aligned data.
    source
        One of two modalities.
    target
        The other one.
    pairs
        Cells that are the same, as in :func:`scmmgan.tl.align`: `"obs_names"`, a boolean `obs` column, or a table. Hold back
        from the alignment those that are to be scored; at least 10.
    labels
        `obs` column of both modalities with one vocabulary; cells without a label are left out.
    features
        Features that are scored, of either modality; default: at most 500 of each, drawn at random.
    k
        Of `recall_at_k`: how many nearest cells may hold the partner (default 10).
    random_state
        Seed of draws and folds.
    key
        `key_added` of the alignment.

    Returns
    -------
    A table, one row for each metric and direction; nothing is written to `mdata`:

    `metric`, `direction` : str
        Of :mod:`scmmgan.metrics`, and `"{source} → {target}"`, the way back, or `"both"`.
    `value`, `error` : float
        The score, and its standard error: over five folds of the cells, or over features.
    `chance`, `best` : float
        What cells or values exchanged at random score, where that is known, and what a perfect map does.
    `n` : int
        Cells or features that it is the mean of.
    `needs` : str
        `"nothing"`, `"shared features"`, `"pairs"` or `"labels"`.

    `foscttm`, `recall_at_k`, `label_transfer`, `matched_label_accuracy`, `mmd` and `two_sample_auc` compare cells in the joint
    embedding; the last two one half of either modality, so that no cell meets the partner that `pairs` name. `foscttm` takes
    Euclidean distances, `foscttm by correlation` 1 - Pearson's correlation of two cells over the axes (three or more).
    `neighborhood_overlap`: share of a cell's 20 nearest neighbours by what was measured (denoised principal components)
    that are neighbours in the embedding, too. `cycle`: squared distance from a cell to where its 5 nearest cells of the
    other modality, and the 5 nearest of each of these, bring it back, over the variance. Both on at most 2,000 cells.
    `correlation`, `correlation given depth` (ranks; log total of the mapped cell's own values), `auroc` and `js_distance`
    are means over features of mapped against measured values. `wins against neighbors`: share of the features that
    correlate better than under 5-nearest-neighbour regression that was trained on four fifths of the pairs, on the last
    fifth (two-sided sign test in `p`; the baseline knows pairs, the map need not).

    Raises
    ------
    KeyError
        If there is no such alignment, modality, column or feature.
    ValueError
        If the record is damaged or of another version, cells were added or renamed, there are fewer than 10 pairs, `source` is `target`, or nothing was written and `save_model=False`.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> table = smm.tl.evaluate(mdata, "rna", "protein", labels="cell_type")
    >>> bool(table.set_index(["metric", "direction"]).loc[("label_transfer", "rna → protein"), "value"] > 0.8)
    True
    """
    keys = Keys(key)
    config = _slots.check_aligned(mdata, (source, target), keys)
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}: name two modalities.")
    k = _modality.whole_number(k, "k", low=1)
    random_state = _modality.whole_number(random_state, "random_state", low=0, high=MAX_SEED)
    known = None if pairs is None else _pairs(mdata, source, target, pairs)
    codes = None if labels is None else _known.read_labels(mdata, (source, target), {source: labels, target: labels})[0]
    with one_thread():
        ways = ((source, target), (target, source))
        found = _Scored(
            (source, target),
            {m: np.asarray(mdata[m].obsm[keys.embedding]) for m in (source, target)},
            {m: _own_space(mdata, m, config["inputs"][m]) for m in (source, target)},
            {(a, b): _read(mdata, a, b, features, config, random_state, key) for a, b in ways},
            known,
            None if codes is None else {m: codes[m] for m in (source, target)},
        )
        return pd.DataFrame(_score(found, k=k, random_state=random_state))


@dataclass
class _Table:
    """Rows of the table, and folds to find errors by."""

    random_state: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        metric: str,
        way: str,
        value: float,
        error: float,
        n: int,
        needs: str,
        chance: float = np.nan,
        best: float = np.nan,
        p: float = np.nan,
    ) -> None:
        """One row."""
        names = ("metric", "direction", "value", "error", "chance", "best", "n", "needs", "p")
        self.rows.append(dict(zip(names, (metric, way, value, error, chance, best, n, needs, p))))

    def cells(
        self,
        metric: str,
        way: str,
        score: Callable[[np.ndarray], float],
        n: int,
        needs: str,
        chance: float,
        best: float,
        least: int = 2,
    ) -> None:
        """The score of all n rows, its error that of five folds of at least so many."""
        order, folds = np.random.default_rng(self.random_state).permutation(n), min(FOLDS, n // least)
        parts = [score(np.sort(order[i::folds])) for i in range(folds)] if folds > 1 else []
        error = float(np.std(parts, ddof=1) / np.sqrt(folds)) if parts else np.nan
        self.add(metric, way, score(np.arange(n)), error, n, needs, chance, best)

    def mean(self, metric: str, way: str, scores: np.ndarray, needs: str, chance: float, best: float) -> None:
        """The mean over features, or over cells."""
        found = scores[np.isfinite(scores)]
        error = float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else np.nan
        self.add(metric, way, float(found.mean()) if len(found) else np.nan, error, len(found), needs, chance, best)


@dataclass(frozen=True)
class _Values:
    """Mapped values of the source's cells, measured ones of the target's (cells × features), and those of the source.

    `own`: of the features that the source measured, too, at the positions `shared`. `depth` (n,): of the source's cells.
    `hidden_own` (n × l): what the source measured of features that were held out, linked with those at `hidden`.
    """

    mapped: np.ndarray
    measured: np.ndarray
    own: np.ndarray
    shared: np.ndarray
    depth: np.ndarray
    hidden: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))
    hidden_own: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))


@dataclass(frozen=True)
class _Scored:
    """What two modalities are scored by, in the order of their cells: arrays by modality, values by direction.

    `z` (n × d): joint embedding, none where there are mapped values only. `own` (n × p): principal components of what was measured. `pairs` (k × 2): row numbers
    of the first and second. `codes` (n,): labels, -1 none; `tested` (n,): cells whose labels are scored, all by default.
    """

    names: tuple[str, str]
    z: Mapping[str, np.ndarray]
    own: Mapping[str, np.ndarray]
    values: Mapping[tuple[str, str], _Values]
    pairs: np.ndarray | None = None
    codes: Mapping[str, np.ndarray] | None = None
    tested: Mapping[str, np.ndarray] | None = None


def _score(found: _Scored, *, k: int, random_state: int) -> list[dict[str, Any]]:
    """Rows of the table: all scores that the arrays allow."""
    table, (a, b), pairs = _Table(random_state), found.names, found.pairs
    if found.z:
        _distributions(table, found.z[a], found.z[b], pairs)
    if found.z and pairs is not None:
        _partners(table, found.z[a], found.z[b], pairs, (a, b), min(k, len(pairs)))
    for s, t, rows in ((a, b, pairs), (b, a, None if pairs is None else pairs[:, ::-1])):
        way = f"{s} → {t}"
        if found.z and found.codes is not None:
            tested = None if found.tested is None else found.tested[s]
            _kinds(table, way, (found.z[s], found.z[t]), (found.codes[s], found.codes[t]), tested)
        if found.z:
            _neighborhoods(table, way, (found.z[s], found.z[t]), found.own[s])
        if (s, t) in found.values:
            _values(table, way, found.values[s, t], found.own[s], rows)
    return table.rows


def _pairs(mdata: MuData, source: str, target: str, pairs: str | pd.DataFrame) -> np.ndarray:
    """Row numbers (k × 2) of the pairs; ValueError where they are too few to be scored."""
    found = _known.read_pairs(mdata, (source, target), pairs)
    (rows,) = found.values() or (np.empty((0, 2), dtype=int),)
    if len(rows) < 2 * FOLDS:
        raise ValueError(f"{len(rows)} `pairs` are too few to be scored; {2 * FOLDS} are the minimum.")
    return rows


def _distributions(table: _Table, x: np.ndarray, y: np.ndarray, pairs: np.ndarray | None) -> None:
    """Of half of the cells of either modality: of known pairs one cell each, as a partner beside it would flatter both."""
    rng = np.random.default_rng(table.random_state)
    first, second = (rng.permutation(len(of)) % 2 == 0 for of in (x, y))
    if pairs is not None:
        first[pairs[:, 0]] = half = rng.permutation(len(pairs)) % 2 == 0
        second[pairs[:, 1]] = ~half
    a, b = rng.permutation(np.flatnonzero(first)), rng.permutation(np.flatnonzero(second))
    n = min(len(a), len(b))

    def of(score: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray], float]:
        return lambda rows: score(x[a[rows]], y[b[rows]])

    table.cells("mmd", "both", of(metrics.mmd), n, "nothing", np.nan, 0.0)
    table.cells("two_sample_auc", "both", of(metrics.two_sample_auc), n, "nothing", 1.0, 0.5, least=20)


def _partners(table: _Table, x: np.ndarray, y: np.ndarray, pairs: np.ndarray, names: tuple[str, str], k: int) -> None:
    """How near cells come to the cells that they are."""
    x, y, n = x[pairs[:, 0]], y[pairs[:, 1]], len(pairs)
    table.cells("foscttm", "both", lambda rows: metrics.foscttm(x[rows], y[rows]), n, "pairs", 0.5, 0.0)
    # of two axes all rows correlate by 1 or -1
    if x.shape[1] > 2:
        u, v = (unit_rows(of.astype(np.float64)) for of in (x, y))
        table.cells(
            "foscttm by correlation", "both", lambda rows: metrics.foscttm(u[rows], v[rows]), n, "pairs", 0.5, 0.0
        )
    for a, b, way in ((x, y, "{} → {}".format(*names)), (y, x, "{} → {}".format(*names[::-1]))):
        value = metrics.recall_at_k(a, b, k=k)
        table.add(f"recall_at_{k}", way, value, float(np.sqrt(value * (1 - value) / n)), n, "pairs", k / n, 1.0)


def _kinds(
    table: _Table,
    way: str,
    z: tuple[np.ndarray, np.ndarray],
    codes: tuple[np.ndarray, np.ndarray],
    tested: np.ndarray | None,
) -> None:
    """How often cells come to cells of their kind; of the `tested` cells (n,) only."""
    labelled = [c >= 0 for c in codes]
    if tested is not None:
        labelled[0] = labelled[0] & tested
    if not all(of.any() for of in labelled):
        return
    (x, y), (a, b) = ([of[there] for of, there in zip(values, labelled)] for values in (z, codes))
    share = [np.bincount(c, minlength=1 + max(a.max(), b.max())) / len(c) for c in (a, b)]
    for name, score, chance in (
        ("label_transfer", metrics.label_transfer, float(share[0][share[1].argmax()])),
        ("matched_label_accuracy", metrics.matched_label_accuracy, float(share[0] @ share[1])),
    ):
        value = score(x, a, y, b)
        error = float(np.sqrt(value * (1 - value) / len(x)))
        table.add(name, way, value, error, len(x), "labels", chance, 1.0)


def _neighborhoods(table: _Table, way: str, z: tuple[np.ndarray, np.ndarray], own: np.ndarray) -> None:
    """Whether cells keep their neighbours (of `own`, n × p) in the embedding, and come back to where they were by it."""
    rng = np.random.default_rng(table.random_state)
    rows, others = (np.sort(rng.permutation(len(of))[:MAX_TESTED_CELLS]) for of in z)
    x, y, cells = z[0][rows], z[1][others], own[rows]
    kept, chance = overlaps(cells, x)
    table.mean("neighborhood_overlap", way, kept, "nothing", chance, 1.0)
    table.mean("cycle", way, round_trips(cells, x, y), "nothing", 1.0, 0.0)


def _read(
    mdata: MuData,
    source: str,
    target: str,
    features: Sequence[str] | None,
    config: dict[str, Any],
    random_state: int,
    key: str,
) -> _Values:
    """Values of an alignment: of at most 500 features, or of those asked for."""
    inputs, names = config["inputs"], pd.Index(config["var_names"][target], dtype=object)
    if features is not None:
        names = names[_asked(features, config, source, target)]
    names = _still_there(mdata, target, names, inputs)
    names = _drawn(names, random_state) if features is None else names
    written = [str(name) for name in _slots.record(mdata, Keys(key))["features"][target]]
    if set(names) <= set(written):
        mapped = get.mapped(mdata, source, target, key=key)[:, names].X
    else:
        mapped = get.mapped(mdata, source, target, features=list(names), key=key).X
    own_names = _still_there(mdata, source, pd.Index(config["var_names"][source], dtype=object), inputs)
    return _with_mapped(mdata, (source, target), names, own_names, inputs, np.asarray(mapped))


def _still_there(mdata: MuData, name: str, features: pd.Index, inputs: Mapping[str, Mapping[str, Any]]) -> pd.Index:
    """Those of the features that were aligned that the modality still has: others have no measured values."""
    if inputs[name]["use_rep"] is not None:
        return features
    return features[features.isin(mdata[name].var_names)]


def _drawn(names: pd.Index, random_state: int) -> pd.Index:
    """At most 500 features."""
    return names[np.sort(np.random.default_rng(random_state).permutation(len(names))[:SCORED_FEATURES])]


def _with_mapped(
    mdata: MuData,
    pair: tuple[str, str],
    names: pd.Index,
    own_names: pd.Index,
    inputs: Mapping[str, Mapping[str, Any]],
    mapped: np.ndarray,
) -> _Values:
    """Mapped values (n × names) of the source beside what both measured; `own_names`: features that the source has."""
    source, target = pair
    measured = _measured(mdata, target, names, inputs[target])
    shared = np.flatnonzero(names.isin(own_names))
    own = _measured(mdata, source, names[shared], inputs[source])
    every = _every(mdata, source, inputs[source])
    total = abs(every).sum(1) if sp.issparse(every) else np.abs(every).sum(1, dtype=np.float64)
    return _Values(mapped, measured, own, shared, np.log1p(np.asarray(total)).ravel())


def _every(mdata: MuData, name: str, of: Mapping[str, Any]) -> np.ndarray | sp.csr_matrix:
    """All values of a modality, as they were aligned."""
    return _modality.read_values(mdata[name], name, layer=of["layer"], use_rep=of["use_rep"])


def _own_space(mdata: MuData, name: str, of: Mapping[str, Any]) -> np.ndarray:
    """Denoised principal components of what a modality measured, where neighbours are looked for."""
    return graph_scores(_every(mdata, name, of))


def _asked(features: Sequence[str], config: dict[str, Any], source: str, target: str) -> np.ndarray:
    """Positions of those of the features that are the target's; KeyError on one that neither modality has."""
    names = {m: pd.Index(config["var_names"][m], dtype=object) for m in (source, target)}
    wanted = _modality.listed(features)
    if unknown := [name for name in wanted if not any(name in of for of in names.values())]:
        raise _modality.missing_key(
            f"feature in {source!r} or {target!r}", unknown[0], [*names[target], *names[source]]
        )
    return names[target].get_indexer([name for name in wanted if name in names[target]])


def _measured(mdata: MuData, name: str, features: pd.Index, of: Mapping[str, Any]) -> np.ndarray:
    """Values (n × features) that a modality was aligned with."""
    if of["use_rep"] is not None:
        values = np.asarray(_modality.read_values(mdata[name], name, use_rep=of["use_rep"]))
        return values[:, [int(str(feature).rpartition("_")[2]) for feature in features]]
    columns = mdata[name].var_names.astype(object).get_indexer(features)
    if (columns < 0).any():
        raise _modality.missing_key(f"feature in {name!r}", features[columns < 0][0], list(mdata[name].var_names))
    if not len(columns):
        return np.empty((mdata[name].n_obs, 0), dtype=np.float32)
    found = _modality.read_values(mdata[name], name, layer=of["layer"], columns=columns)
    return found.toarray() if sp.issparse(found) else np.asarray(found)


def _values(table: _Table, way: str, found: _Values, cells: np.ndarray, pairs: np.ndarray | None) -> None:
    """Mapped against measured values, feature by feature; `cells` (n × p): of the source, where a baseline has neighbours."""
    if not found.mapped.shape[1]:
        return
    table.mean("js_distance", way, metrics.column_js_distance(found.mapped, found.measured), "nothing", np.nan, 0.0)
    if len(found.shared):
        scores = metrics.column_correlation(found.mapped[:, found.shared], found.own, method="spearman")
        table.mean("correlation with own values", way, scores, "shared features", 0.0, 1.0)
    if len(found.hidden):
        mapped = found.mapped[:, found.hidden]
        scores = metrics.column_correlation(mapped, found.hidden_own)
        table.mean("held-out correlation", way, scores, "held-out features", 0.0, 1.0)
        scores = metrics.column_correlation(mapped, found.hidden_own, method="spearman", given=found.depth)
        table.mean("held-out correlation given depth", way, scores, "held-out features", 0.0, 1.0)
    if pairs is None:
        return
    mapped, measured, depth = found.mapped[pairs[:, 0]], found.measured[pairs[:, 1]], found.depth[pairs[:, 0]]
    table.mean("correlation", way, metrics.column_correlation(mapped, measured), "pairs", 0.0, 1.0)
    given = metrics.column_correlation(mapped, measured, method="spearman", given=depth)
    table.mean("correlation given depth", way, given, "pairs", 0.0, 1.0)
    table.mean("auroc", way, metrics.column_auroc(mapped, measured), "pairs", 0.5, 1.0)
    test = np.random.default_rng(table.random_state).permutation(len(pairs)) % FOLDS == 0
    predicted = _by_neighbors(cells[pairs[:, 0]], measured, test)
    scores, baseline = (metrics.column_correlation(of, measured[test]) for of in (mapped[test], predicted))
    sign = metrics.binomial_test(scores, baseline)
    n = int(sign["wins"] + sign["losses"])
    error = float(np.sqrt(sign["share"] * (1 - sign["share"]) / n)) if n else np.nan
    table.add("wins against neighbors", way, sign["share"], error, n, "pairs", 0.5, 1.0, sign["p"])


def _by_neighbors(cells: np.ndarray, values: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Means of the measured values of the 5 nearest cells that are not tested."""
    return values[~test][nearest(cells[test], cells[~test], BASELINE_NEIGHBORS)[0]].mean(1)
