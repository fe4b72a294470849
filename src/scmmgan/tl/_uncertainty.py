"""How far each mapped feature, and each mapped cell, is determined by the source (METHOD §7)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan import get
from scmmgan.data import derived as _derived
from scmmgan.data import modality as _domain
from scmmgan.data import read as _problem
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.evidence import calibration as _determined
from scmmgan.model.evidence import conformal as _intervals
from scmmgan.model.evidence import draws as _draws

if TYPE_CHECKING:
    from mudata import MuData

METHODS = {
    "coupling": ("coupling",),
    "noise": ("noise",),
    "seeds": ("seeds",),
    "all": ("coupling", "noise", "seeds"),
}
MIN_RESTARTS = 4
MIN_DETECTION = 0.01  # share of cells, METHOD §7
LOW_MEAN = 0.1  # quantile of the features' means, METHOD §7


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
    """Say how far each feature of `target`, and each cell of `source`, is determined by what `source` measured.

    Every score is a share of the feature's variance: 0 determined, 1 as variable as in the whole population. It is about
    the smoothed layer that mapped values live in; single measurements scatter more. Scores are about the coupling and the
    map, also where links tell values instead (:func:`scmmgan.tl.align`); intervals are about the values.

    Parameters
    ----------
    mdata
        Aligned data; what was read for the alignment must still be there.
    source
        Modality whose cells were mapped.
    target
        Modality whose features they were mapped to.
    method
        `"coupling"` (default): conditional variance of a feature given the landmarks that a cell is coupled with, no
        training. `"noise"`: variance over draws of the generators' noise, as published; they are trained once more, with
        noise half as wide as model space, unless the alignment has a `noise_dim`. Generators learn to ignore noise, and
        then only ranks mean anything: a warning says so. `"seeds"`: variance over short trainings with other seeds and
        couplings that end in the same map as most. `"all"`: all three, and their sum, at most 1, as the score: what the
        coupling leaves open and what training adds (`benchmarks/uncertainty.md`).
    pairs
        Cells known to be the same, as in :func:`scmmgan.tl.align`, for intervals of the measured layer. Pairs that the
        alignment was given are left out. At least 9 for a coverage of .9; 200 are a good number.
    coverage
        Share of measured values that are to lie inside the intervals (default .9).
    n_draws
        Draws of `"noise"` (default 50, METHOD §7).
    n_restarts
        Trainings of `"seeds"`, at least 4 (default 4, METHOD §7), of at most 300 steps.
    random_state
        Seed of draws and trainings; default: that of the alignment. The coupling is always that of the alignment.
    key
        `key_added` of the alignment.
    progress_bar
        Show the progress of trainings.

    Returns
    -------
    `None`. Sets, with a further suffix `_{source}` (features) or `_{target}` (cells) where more than two modalities were
    aligned:

    `mdata[target].var[f"{key}_uncertainty"]` : float
        Score of every feature. NaN for features seen in fewer than 1 % of the cells, or, among 50 features or more, with a
        mean below the 10 % quantile: missing, not certain. (A layer with negative values has no unseen features.)
    `mdata[target].var[f"{key}_uncertainty_coupling"]`, `_noise`, `_seeds` : float
        The parts that were computed.
    `mdata[target].var[f"{key}_detection"]` : float
        Share of cells in which a feature is above the lowest value of the layer.
    `mdata[source].obs[f"{key}_uncertainty"]` : float
        Score of every cell: mean over the features that are not missing. 1 − w² of it, w the matched share of the cell
        (1 − `obs["{key}_unmatched"]`), counts as not determined at all.
    `mdata[target].varm[f"{key}_landmark_mean"]`, `_landmark_variance` : float32, features × landmarks
        What :func:`scmmgan.get.uncertainty` needs (with the coupling).
    `mdata[source].obsm[f"{key}_uncertainty_plan_{target}"]` : sparse, cells × landmarks
        The coupling as used: averaged over 30 neighbours, itself among them (at most a tenth of the cells), and cells of
        known pairs coupled without their own pair (where links decide, or from 125 pairs on). With the coupling.
    `mdata[target].var[f"{key}_interval"]` : float
        With `pairs`: half-width of the interval around mapped values that covers measured, unsmoothed ones.
    `mdata.uns[key]["uncertainty"][source][target]` : dict
        `method`; with links: `with_counterpart` and `without_counterpart` (mean scores of features with and without a
        linked one), their numbers `n_with`, `n_without`, the names `linked`, and `p` of the one-sided rank test that linked ones are lower;
        `calibration` (table: `feature`, `predicted` score, `observed` share), `calibration_source` ("known pairs": error
        over variance in the smoothed layer; "held-out links": 1 − r² with the linked feature of the source, which is no
        measurement of the target), `calibration_spearman`; with `pairs`: `coverage`, `coverage_reached` (mean over
        features, cross-fitted), `coverage_table` (table: `feature`, `reached`), `n_pairs`; for `"seeds"`:
        `n_in_mode` trainings; with the coupling `landmark_mass`.

    Raises
    ------
    KeyError
        If there is no such alignment or modality, or what it read is gone.
    ValueError
        If an argument is out of range, `mdata` is a view, no two restarts give the same map, the target was read from a representation (`use_rep`), pairs are too few, or the
        method needs trainings and the alignment was made by `method="coupling"`.

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
    params = _slots.record(mdata, keys)["params"]
    several = len(_slots.check_aligned(mdata, pair, keys)["modalities"]) > 2
    parts = _parts(method, source, target, params, several=several)
    coverage = _checked_coverage(coverage)
    n_draws = _domain.whole_number(n_draws, "n_draws", low=2)
    n_restarts = _domain.whole_number(n_restarts, "n_restarts", low=MIN_RESTARTS)
    seed = int(params["random_state"]) if random_state is None else random_state
    seed = _domain.whole_number(seed, "random_state", low=0, high=_domain.MAX_SEED - n_restarts * ("seeds" in parts))
    _domain.check_writable(mdata, pair)
    _derived.check_free(mdata, _slot_names(parts, pair, keys, several=several, intervals=pairs is not None), keys)
    problem = _problem.reread(mdata, keys)
    known = _intervals.calibration_pairs(mdata, pair, pairs, coverage, problem)
    prior = problem.couple(int(params["random_state"]))
    kept, detection = expressed(_intervals.read_layer(mdata, target, params))
    slots: dict[_derived.Slot, Any] = {(target, "var", keys.detection()): detection}
    record: dict[str, Any] = {"method": method}
    scores: dict[str, _draws.Scores] = {}
    if "coupling" in parts:
        found = _determined.from_coupling(problem, pair, prior[0][pair], kept, int(params["random_state"]))
        scores["coupling"] = found.score, found.cells
        record["landmark_mass"] = found.mass
        slots |= {(target, "varm", k): v.T for k, v in zip(keys.landmark_moments(), (found.mean, found.variance))}
        slots[source, "obsm", keys.cell_plan(target)] = found.plan
        if known is None:
            record |= _determined.calibration(problem, pair, found, kept, int(params["random_state"]))
    settings: dict[str, Any] = {"random_state": seed, "progress_bar": progress_bar}
    if "noise" in parts:
        aligner = get.model(mdata, key=key)
        scores["noise"] = _draws.noise(problem, aligner, params, pair, prior, kept, n_draws=n_draws, **settings)
    if "seeds" in parts:
        scores["seeds"], mode = _draws.seeds(problem, params, pair, prior, kept, n_restarts=n_restarts, **settings)
        record["n_in_mode"] = mode
    total = np.minimum(np.sum([score for score, _ in scores.values()], axis=0), 1)
    record |= _determined.counterparts(problem, pair, total, kept)
    suffix = source if several else None
    slots[target, "var", keys.uncertainty(None, suffix)] = np.where(kept, total, np.nan)
    for part, (score, _) in scores.items():
        slots[target, "var", keys.uncertainty(part, suffix)] = np.where(kept, score, np.nan)
    cells = np.sum([cell for _, cell in scores.values()], axis=0)
    slots[source, "obs", keys.cell_uncertainty(target if several else None)] = cells
    if known is not None:
        widths, more = _intervals.conformal(mdata, problem, params, pair, known, coverage, total, kept, seed, keys)
        slots[target, "var", keys.interval(suffix)] = widths
        record |= more
    _derived.write(mdata, slots, keys, uns={"uncertainty": _merged(mdata, pair, record, keys)})


def _parts(method: str, source: str, target: str, params: Mapping[str, Any], *, several: bool) -> tuple[str, ...]:
    """Parts to compute, or a ValueError that says what stands against it."""
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}, got {method!r}.")
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}: nothing is mapped.")
    if (used := _problem.argument(params, "use_rep", target)) is not None:
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


def expressed(matrix: np.ndarray | sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Which features (g,) are expressed highly enough to be judged, and the share of cells (g,) that they are seen in.

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
    if g >= _domain.PANEL:
        mean = np.asarray(matrix.mean(0), dtype=np.float64).ravel()
        kept &= mean >= np.quantile(mean, LOW_MEAN)
    return kept, detection


def _merged(mdata: MuData, pair: tuple[str, str], record: dict[str, Any], keys: Keys) -> dict[str, Any]:
    """Tables of all pairs of modalities; what an earlier call found for this one stays where this one did not look."""
    source, target = pair
    before = {s: dict(of) for s, of in _slots.record(mdata, keys).get("uncertainty", {}).items()}
    own = before.setdefault(source, {})
    # a calibration is that of the score beside it
    kept = {k: v for k, v in own.get(target, {}).items() if not k.startswith("calibration")}
    own[target] = {**kept, **record}
    return before
