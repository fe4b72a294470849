"""How uncertain each mapped feature and each mapped cell is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan import get
from scmmgan.data import derived as _derived
from scmmgan.data import kept as _kept
from scmmgan.data import known as _known
from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import BLOCK, LOW_MEAN, MAX_SEED, MIN_DETECTION, MIN_RESTARTS, PANEL_FEATURES
from scmmgan.model.evidence.conformal import half_widths, least_pairs, reached_coverage
from scmmgan.model.progress import shown
from scmmgan.model.space.linear import one_thread
from scmmgan.model.space.smoothing import BatchedMatrix

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.problem import Problem
    from scmmgan.model.space.domain import Domain

logger = logging.getLogger("scmmgan")

METHODS = {
    "coupling": ("coupling",),
    "noise": ("noise",),
    "seeds": ("seeds",),
    "all": ("coupling", "noise", "seeds"),
}


def uncertainty(
    mdata: MuData,
    source: str,
    target: str,
    *,
    method: str = "coupling",
    pairs: str | pd.DataFrame | None = None,
    coverage: float = 0.9,
    n_draws: int = 50,
    n_restarts: int = MIN_RESTARTS,
    random_state: int | None = None,
    key: str = "scmmgan",
    progress_bar: bool = True,
) -> None:
    """Score how uncertain each mapped feature of `target`, and each mapped cell of `source`, is.

    A score is a share of the feature's variance. 0: what `source` measured predicts the feature exactly. 1: it says
    nothing, and the feature varies as in the whole population. Scores are about the smoothed layer, in which mapped values
    are given; single measurements scatter more. Intervals for these need known `pairs`.

    Parameters
    ----------
    mdata
        Aligned data; what was read for the alignment must still be there.
    source
        Modality whose cells were mapped.
    target
        Modality whose features they were mapped to.
    method
        `"coupling"` (default): variance of a feature that remains when the cell's coupling is known. No training.
        `"noise"`: variance over the generators' noise, as in the paper. Generators are trained again, with noise half as
        wide as model space, unless the alignment has a `noise_dim`. They learn to ignore noise; then only the order of
        the features means anything, and a warning says so. `"seeds"`: variance over short trainings with other seeds
        and couplings, those that end in the same map as most. `"all"`: all three; their sum, at most 1, is the score.
    pairs
        Cells known to be the same, as in :func:`scmmgan.tl.align`, for intervals of the measured layer. Pairs that the
        alignment was given are left out. At least 9 for a coverage of .9; 200 are a good number.
    coverage
        Share of measured values that lie inside the intervals (default .9).
    n_draws
        Samples of the noise, with `"noise"` (default 50).
    n_restarts
        Trainings of `"seeds"`, at least 4 (default 4), of at most 300 steps.
    random_state
        Seed of noise and trainings; default: that of the alignment. The coupling is always that of the alignment.
    key
        `key_added` of the alignment.
    progress_bar
        Show the progress of what takes longer than two seconds, and the time that is left.

    Returns
    -------
    `None`. Sets, with a further suffix `_{source}` (features) or `_{target}` (cells) where more than two modalities were
    aligned:

    `mdata[target].var[f"{key}_uncertainty"]` : float
        Score of every feature. NaN (missing, not certain) for features seen in fewer than 1 % of the cells, or, among 50
        features or more, with a mean below the 10 % quantile. A layer with negative values has no unseen features.
    `mdata[target].var[f"{key}_uncertainty_coupling"]`, `_noise`, `_seeds` : float
        The parts that were computed.
    `mdata[target].var[f"{key}_detection"]` : float
        Share of cells in which a feature is above the lowest value of the layer.
    `mdata[source].obs[f"{key}_uncertainty"]` : float
        Score of every cell, 0 to 1: mean over the features that are not missing. A share 1 − w² of the cell counts as fully
        uncertain, w its matched share (1 − `obs["{key}_unmatched"]`).
    `mdata[target].varm[f"{key}_landmark_mean"]`, `_landmark_variance` : float32, features × landmarks
        What :func:`scmmgan.get.uncertainty` needs. With the coupling.
    `mdata[source].obsm[f"{key}_uncertainty_plan_{target}"]` : sparse, cells × landmarks
        The coupling as used, averaged over 30 neighbours, the cell itself among them (at most a tenth of the cells).
        Cells of known pairs are coupled without their own pair, where 10 links or 100 other pairs remain. With the
        coupling.
    `mdata[target].var[f"{key}_interval"]` : float
        With `pairs`: half-width of the interval around mapped values that covers measured, unsmoothed ones.
    `mdata.uns[key]["uncertainty"][source][target]` : dict
        `method`
            As given.
        `linked`, `n_with`, `n_without`, `with_counterpart`, `without_counterpart`, `p`
            With links: names of the scored features that have a linked one in the source; how many have one, and how
            many have none; mean scores of both groups; p of the one-sided rank test that the former are lower.
        `calibration`, `calibration_source`, `calibration_spearman`
            With `pairs` or at least 13 links: table (`feature`, `predicted` score, `observed` share), where the
            observed share comes from, and their rank correlation. "known pairs": squared error over the variance, in
            the smoothed layer. "held-out links": 1 − r² with the linked feature of the source, which is no measurement
            of the target.
        `coverage`, `coverage_reached`, `coverage_table`, `n_pairs`
            With `pairs`: as given; the coverage that intervals reached on pairs left out of them, mean over features
            and (table: `feature`, `reached`) of each; number of pairs used.
        `n_in_mode`
            With `"seeds"`: trainings that ended in the same map.
        `landmark_mass`
            With the coupling: share of the cells that each landmark of the target stands for.

    Raises
    ------
    KeyError
        If there is no such alignment or modality, or what it read is gone.
    ValueError
        If the record is damaged or of another version; cells or features were added, renamed or taken out, or come from
        another alignment; their values, links, pairs or labels have changed since (scaled, say); an argument is out of
        range, `mdata` is a view, no two restarts give the same map, the target was read from a
        representation (`use_rep`), pairs are too few, or the method trains and the alignment was made by
        `method="coupling"`.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.uncertainty(mdata, "rna", "protein")
    >>> bool(mdata["protein"].var["scmmgan_uncertainty"].between(0, 1).all())
    True
    """
    keys, pair = Keys(key), (source, target)
    _slots.check_coupled(mdata, keys)
    params = _slots.record(mdata, keys)["params"]
    aligned = int(params["random_state"])
    several = len(_slots.check_aligned(mdata, pair, keys)["modalities"]) > 2
    parts = _parts(method, source, target, params, several=several)
    coverage = _checked_coverage(coverage)
    n_draws, n_restarts, seed = _numbers(params, parts, n_draws, n_restarts, random_state)
    _modality.check_writable(mdata, pair)
    _derived.check_free(mdata, _slot_names(parts, pair, keys, several=several, intervals=pairs is not None), keys)

    from scmmgan.model.coupling.couple import couple
    from scmmgan.model.evidence import calibration

    with one_thread(), shown(progress_bar):
        ordered = _read.as_aligned(mdata, keys)
        problem, domains = _read.reread(ordered, keys)
        known = _calibration_pairs(ordered, pair, pairs, coverage, problem)
        coupled = _kept.couplings(ordered, problem, keys) or couple(problem, domains, random_state=aligned)
        kept, detection = _expressed(problem.modalities[target].values)
        how = _read.training_settings(params) | {"random_state": seed, "progress_bar": progress_bar}
        how |= {"shared": problem.shared, "centre": problem.centre}
        slots: dict[_derived.Slot, Any] = {(target, "var", keys.detection()): detection}
        record: dict[str, Any] = {"method": method}
        scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if "coupling" in parts:
            found = calibration.from_coupling(problem, domains, pair, coupled[0][pair], kept, aligned)
            scores["coupling"] = found.score, found.cells
            record["landmark_mass"] = found.mass
            slots |= {(target, "varm", k): v.T for k, v in zip(keys.landmark_moments(), (found.mean, found.variance))}
            slots[source, "obsm", keys.cell_plan(target)] = found.plan
            if known is None:
                record |= calibration.calibration(problem, domains, pair, found, kept, aligned)
        trained, more = _of_trainings(
            mdata, parts, problem, domains, pair, coupled, how, kept, (n_draws, n_restarts), key
        )
        scores, record = scores | trained, record | more
    total = np.minimum(np.sum([score for score, _ in scores.values()], axis=0), 1)
    record |= calibration.counterparts(problem, pair, total, kept)
    slots |= _score_slots(scores, total, kept, pair, keys, several=several)
    if known is not None:
        widths, more = _intervals(ordered, domains[target], source, known, coverage, total, kept, seed, keys)
        slots[target, "var", keys.interval(source if several else None)] = widths
        record |= more
    uns = {"uncertainty": _merged(mdata, pair, _slots.storable_record(record), keys)}
    _derived.write(mdata, _read.as_now(mdata, slots, keys), keys, uns=uns)


def _score_slots(
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]],
    total: np.ndarray,
    kept: np.ndarray,
    pair: tuple[str, str],
    keys: Keys,
    *,
    several: bool,
) -> dict[_derived.Slot, Any]:
    """Scores of features, of each part and in all, and of cells."""
    source, target = pair
    suffix = source if several else None
    parts: dict[str | None, np.ndarray] = {None: total, **{part: score for part, (score, _) in scores.items()}}
    slots: dict[_derived.Slot, Any] = {
        (target, "var", keys.uncertainty(part, suffix)): np.where(kept, score, np.nan) for part, score in parts.items()
    }
    # a cell may be more variable than the population
    cells = np.clip(np.sum([cell for _, cell in scores.values()], axis=0), 0, 1)
    slots[source, "obs", keys.cell_uncertainty(target if several else None)] = cells
    return slots


def _of_trainings(
    mdata: MuData,
    parts: tuple[str, ...],
    problem: Problem,
    domains: Mapping[str, Domain],
    pair: tuple[str, str],
    coupled: Any,
    how: Mapping[str, Any],
    kept: np.ndarray,
    n: tuple[int, int],
    key: str,
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """Scores over the generators' noise and over restarts, where they are asked for, and what is recorded of them."""
    from scmmgan.model.evidence import retraining

    scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    record: dict[str, Any] = {}
    if "noise" in parts:
        aligner = get.model(mdata, key=key).aligner
        scores["noise"] = retraining.over_noise(domains, aligner, pair, coupled, how, kept, n_draws=n[0])
    if "seeds" in parts:
        found = retraining.over_restarts(problem, domains, pair, coupled, how, kept, n_restarts=n[1])
        scores["seeds"], record["n_in_mode"] = found
    return scores, record


def _calibration_pairs(
    mdata: MuData, pair: tuple[str, str], pairs: str | pd.DataFrame | None, coverage: float, problem: Problem
) -> np.ndarray | None:
    """Row numbers (k × 2) of known pairs of which no cell belongs to a pair that the alignment was given."""
    if pairs is None:
        return None
    found = _known.read_pairs(mdata, pair, pairs)[pair]
    known, total = problem.of(*pair), len(found)
    if known.pairs is not None:
        used = known.pairs if known.names == pair else known.pairs[:, ::-1]
        found = found[~np.isin(found[:, 0], used[:, 0]) & ~np.isin(found[:, 1], used[:, 1])]
    if len(found) < (least := least_pairs(coverage)):
        raise ValueError(
            f"{len(found)} of {total} `pairs` hold no cell that the alignment was given as a pair; intervals of coverage "
            f"{coverage:g} need at least {least} such. Keep some pairs out of `tl.align(pairs=...)`."
        )
    if len(found) < total:
        logger.warning(
            "%d of %d pairs hold cells of the alignment's own pairs and are left out.", total - len(found), total
        )
    return found


def _intervals(
    mdata: MuData,
    domain: Domain,
    source: str,
    rows: np.ndarray,
    coverage: float,
    score: np.ndarray,
    kept: np.ndarray,
    random_state: int,
    keys: Keys,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Half-widths (g,); coverage that cross-fitting reached, and `score` against the error in the smoothed layer."""
    from scmmgan.model.evidence.calibration import calibrated

    features = domain.modality.features
    half, reached, error = (np.empty(len(features)) for _ in range(3))
    decode = _slots.decoder(mdata, source, domain.name, keys)
    for start in range(0, len(features), BLOCK):
        at = np.arange(start, min(start + BLOCK, len(features)))
        mapped = decode(rows[:, 0], at)
        residuals = np.abs(_measured(domain, rows[:, 1], at).astype(np.float64) - mapped)
        half[at] = half_widths(residuals, coverage)
        # the same folds for all features
        reached[at] = reached_coverage(residuals, coverage, np.random.default_rng(random_state))
        smoothed = domain.smoothed.columns(at)[rows[:, 1]]
        with np.errstate(invalid="ignore", divide="ignore"):
            error[at] = ((smoothed - mapped) ** 2).mean(0) / np.maximum(domain.transform.sd[at] ** 2, 1e-300)
    names = features[kept]
    points = {"feature": names, "predicted": score[kept], "observed": error[kept]}
    return half, {
        "coverage": coverage,
        "coverage_reached": float(reached[kept].mean()),
        "coverage_table": {"feature": names, "reached": reached[kept]},
        "n_pairs": len(rows),
        **calibrated(points, "known pairs"),
    }


def _measured(domain: Domain, rows: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Cells of the layer that was read, not smoothed; batches shifted and scaled as the alignment did."""
    if isinstance(domain.smoothed, BatchedMatrix):
        return domain.smoothed.measured(features)[rows]
    values = domain.modality.values[rows][:, features]
    return values if isinstance(values, np.ndarray) else values.toarray()


def _parts(method: str, source: str, target: str, params: Mapping[str, Any], *, several: bool) -> tuple[str, ...]:
    """Parts to compute, or a ValueError that says what stands against it."""
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}, got {method!r}.")
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}: nothing is mapped.")
    if (used := _read.argument(params, "use_rep", target)) is not None:
        raise ValueError(
            f"{target!r} was read from obsm {used!r}, whose columns are no features in `var`. Align a layer of it."
        )
    if method != "coupling" and params["method"] == "coupling":
        raise ValueError(
            f"`method={method!r}` trains again, but this alignment was made by `method='coupling'`, which trains nothing. "
            "Use `method='coupling'` here, too."
        )
    names, known = [str(m) for m in params["modalities"]], METHODS["all"]
    if several and any(m in known or m in {f"{part}_{name}" for part in known for name in names} for m in names):
        raise ValueError(f"Columns named after the modality {source!r} would be those of a method. Rename it.")
    return METHODS[method]


def _numbers(
    params: Mapping[str, Any], parts: tuple[str, ...], n_draws: int, n_restarts: int, random_state: int | None
) -> tuple[int, int, int]:
    """Checked numbers of samples and restarts, and the seed."""
    n_draws = _modality.whole_number(n_draws, "n_draws", low=2)
    n_restarts = _modality.whole_number(n_restarts, "n_restarts", low=MIN_RESTARTS)
    seed = int(params["random_state"]) if random_state is None else random_state
    highest = MAX_SEED - n_restarts * ("seeds" in parts)
    return n_draws, n_restarts, _modality.whole_number(seed, "random_state", low=0, high=highest)


def _checked_coverage(coverage: float) -> float:
    if isinstance(coverage, bool) or not isinstance(coverage, Real) or not 0 < float(coverage) < 1:
        raise ValueError(f"`coverage` must be a number between 0 and 1, got {coverage!r}.")
    return float(coverage)


def _slot_names(
    parts: tuple[str, ...], pair: tuple[str, str], keys: Keys, *, several: bool, intervals: bool
) -> list[_derived.Slot]:
    """All slots that may be written."""
    source, target = pair
    suffix = source if several else None
    columns = [keys.uncertainty(part, suffix) for part in (None, *parts)] + [keys.detection()]
    return [
        *((target, "var", name) for name in (*columns, *([keys.interval(suffix)] if intervals else []))),
        *((target, "varm", name) for name in keys.landmark_moments()),
        (source, "obs", keys.cell_uncertainty(target if several else None)),
        (source, "obsm", keys.cell_plan(target)),
    ]


def _expressed(matrix: np.ndarray | sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Which features (g,) are expressed highly enough to be scored, and the share of cells (g,) that they are seen in.

    Seen: above the lowest value of the layer. With negative values (CLR, z-scores) that and the mean say nothing, and all
    features that vary are kept; of a small panel those that are seen.
    """
    n, g = matrix.shape
    if sp.issparse(matrix):
        varies = (matrix.max(axis=0).toarray() > matrix.min(axis=0).toarray()).ravel()
    else:
        varies = np.ptp(matrix, axis=0) > 0
    if sp.issparse(matrix):
        stored = matrix.tocoo()
        low = min(float(stored.data.min(initial=0)), 0.0)
        seen = np.bincount(stored.col[stored.data > low], minlength=g)
        if low < 0:
            seen = seen + n - np.bincount(stored.col, minlength=g)
    else:
        low = float(matrix.min())
        seen = (matrix > low).sum(0)
    detection = seen / n
    if low < 0:
        return varies, detection
    kept = varies & (detection >= MIN_DETECTION)
    # of a chosen panel no tenth is lowly expressed
    if g >= PANEL_FEATURES:
        mean = np.asarray(matrix.mean(0), dtype=np.float64).ravel()
        kept &= mean >= np.quantile(mean, LOW_MEAN)
    return kept, detection


def _merged(mdata: MuData, pair: tuple[str, str], record: dict[str, Any], keys: Keys) -> dict[str, Any]:
    """Tables of all pairs of modalities; what an earlier call found for this one stays where this one did not look."""
    source, target = pair
    before = {s: dict(of) for s, of in _slots.added(mdata, keys, "uncertainty").items()}
    own = before.setdefault(source, {})
    # a calibration is that of the score beside it
    kept = {k: v for k, v in own.get(target, {}).items() if not k.startswith("calibration")}
    own[target] = {**kept, **record}
    return before
