"""Whether an alignment is identifiable, and what says so."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from scmmgan import get, metrics
from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import MAX_SEED, MIN_RESTARTS, SHORT_TRAINING

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.coupling.couple import Domains, Loadings
    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.problem import Problem

logger = logging.getLogger("scmmgan")

Pair = tuple[str, str]


def diagnose(
    mdata: MuData,
    *,
    key: str = "scmmgan",
    full: bool = False,
    n_restarts: int = MIN_RESTARTS,
    max_steps: int = SHORT_TRAINING,
    random_state: int | None = None,
    progress_bar: bool = True,
) -> None:
    """Judge an alignment without labels: what supports it, what could be swapped, and do restarts agree.

    `tl.align` runs the cheap form by itself. Support is evidence that the coupling did not use, better than with any of
    99 shuffled tables (p ≤ .01) and large: links that were held out in five folds correlate at least 1/3 with their
    partners carried over (the standard error over the links is taken off); or at most 30 % of all cells are nearer than the
    partner of a known pair that was held out (chance: 50 %; the standard error over the pairs is added). Ten or more pairs
    that fail outweigh links that agree. Labels alone count when cells keep them among their neighbours and the labels'
    distances agree on both sides (p ≤ .01 over renamings); inside a label they say
    nothing. Shapes alone are never support: a mirror image may cost less than the truth. "Supported" means the
    populations are the right way round; it does not say that every cell or gene is right. Another donor's cells of the
    same types are supported, cells of other types or tissues are not (`benchmarks/diagnosis.md`).

    Parameters
    ----------
    mdata
        Aligned data; what was read for the alignment must still be there.
    key
        `key_added` of the alignment.
    full
        Also train again: `n_restarts` times with other seeds and couplings, and once with anchors shuffled over the cells.
    n_restarts
        Trainings that are compared, at least 4 (default 4).
    max_steps
        Steps of each of them (default 300; not more than the alignment had).
    random_state
        Seed; default: that of the alignment.
    progress_bar
        Show the progress of the trainings.

    Returns
    -------
    `None`. Sets, for all modalities a and b aligned:

    `mdata[a].obs[f"{key}_ambiguous"]` : bool (suffix `_{b}` with more than two modalities)
        Rival couplings send the cell elsewhere in b.
    `mdata.uns[key]["diagnosis"][a][b]` : dict, see :func:`scmmgan.get.diagnosis`
        `verdict` ("supported by links", "supported by pairs", "supported by labels", "ambiguous: populations A and B could
        be swapped", "not identifiable"), `supported`, `statement` (the verdict with its numbers); where tested:
        `links` (table with the correlation of each), `pairs` (share of cells nearer, each), `links_mean`, `links_error` (standard
        error of the mean), `links_p`, `links_null` and the same for pairs, `links_in_use` (how the coupling in use carries the links
        over), `labels_separated`, `labels_order`, `labels_p`; `populations` (table: partner,
        the one it could best be `swap`ped with, `gap`, shares ambiguous and unmatched); `gaps` (relative costs of rival
        couplings by shape; 0 where one costs less than that in use); `ambiguous_{a}`, `unmatched_{a}`; `quality_cycle`, `quality_overlap`, `quality_auc`,
        `quality_follows` on held-out cells. With `full`: `restart_modes` (mode of each restart), `restart_share` (of the
        largest one; modes are never averaged), `restart_agreement` (restarts × restarts, 1: the same map, 0: unrelated),
        and `null_cycle`, `null_overlap`, `null_auc` beside `short_cycle`, `short_overlap`, `short_auc`.

    Raises
    ------
    KeyError
        If there is no such alignment, or a layer or column that it read is gone.
    ValueError
        If the cells or their values are not those that were aligned, `mdata` is a view, or `n_restarts` is below 4.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.diagnose(mdata)
    >>> smm.get.diagnosis(mdata, "rna", "protein")["verdict"]
    'supported by links'
    """
    keys = Keys(key)
    params = _slots.record(mdata, keys)["params"]
    n_restarts = _modality.whole_number(n_restarts, "n_restarts", low=MIN_RESTARTS)
    steps = min(_modality.whole_number(max_steps, "max_steps", low=1), int(params["max_steps"]))
    trained = int(params["random_state"])
    seed = trained if random_state is None else random_state
    seed = _modality.whole_number(seed, "random_state", low=0, high=MAX_SEED - n_restarts)
    _modality.check_writable(mdata, [str(m) for m in params["modalities"]])

    from threadpoolctl import threadpool_limits

    from scmmgan.model.coupling.couple import couple
    from scmmgan.model.evidence import populations, quality, verdict

    with threadpool_limits(1):
        problem, domains = _read.reread(mdata, keys)
        # the coupling in use and the cells that its training held out, whatever the seed of the diagnosis
        couplings, loadings = couple(problem, domains, random_state=trained)
        records, ambiguous = populations.diagnose(problem, domains, couplings, random_state=seed)
        aligner = get.model(mdata, key=key)
        auc = metrics.two_sample_auc
        more: dict[Pair, dict[str, Any]] = {
            **quality.score_map(aligner, domains, couplings, two_sample_auc=auc, random_state=trained)
        }
        if full:
            settings = _read.training_settings(params) | {"max_steps": steps, "progress_bar": progress_bar}
            settings["shared"] = problem.shared is not None
            found = _retrain(problem, domains, (couplings, loadings), settings, n_restarts, seed)
            more = {pair: {**more[pair], **found[pair]} for pair in more}
    _slots.write_diagnosis(mdata, verdict.verdicts(records, more), ambiguous, keys)


def _retrain(
    problem: Problem,
    domains: Domains,
    coupled: tuple[dict[Pair, Coupling], dict[Pair, Loadings]],
    settings: Mapping[str, Any],
    n_restarts: int,
    seed: int,
) -> dict[Pair, dict[str, Any]]:
    """Agreement of restarts with other seeds and couplings, and scores of a training on shuffled anchors."""
    from scmmgan.model.evidence import quality, restarts, retraining
    from scmmgan.model.nets import methods

    x = {m: d.x for m, d in domains.items()}
    rows = retraining.probed(domains, seed)
    images: dict[Pair, list[np.ndarray]] = {pair: [] for pair in combinations(x, 2)}
    auc = metrics.two_sample_auc
    short: dict[Pair, Any] = {}
    for i in range(n_restarts):
        logger.info("Restart %d of %d.", i + 1, n_restarts)
        used, loads = coupled if i == 0 else _another(problem, domains, coupled, i, seed)
        aligner, _ = methods.fit(x=x, couplings=used, loadings=loads, **{**settings, "random_state": seed + i})
        if i == 0:
            short = quality.score_map(aligner, domains, used, two_sample_auc=auc, random_state=seed)
        for pair, found in images.items():
            found.append(retraining.images(aligner, domains, rows, pair))
    logger.info("Training on shuffled anchors.")
    null = {pair: _shuffled(c, seed) for pair, c in coupled[0].items()}
    rng = np.random.default_rng(seed)
    # partners of links are shuffled, too
    loads = {pair: (f[:, rng.permutation(f.shape[1])], g, s, w) for pair, (f, g, s, w) in coupled[1].items()}
    aligner, _ = methods.fit(x=x, couplings=null, loadings=loads, **{**settings, "random_state": seed})
    shuffled = quality.score_map(aligner, domains, null, two_sample_auc=auc, random_state=seed)
    records: dict[Pair, dict[str, Any]] = {}
    for pair, found in images.items():
        similarity = restarts.map_similarity(found)
        modes = restarts.modes(similarity)
        records[pair] = {
            "restart_agreement": similarity,
            "restart_modes": modes,
            "restart_share": float(np.bincount(modes).max() / len(modes)),
        }
        for name in ("cycle", "overlap", "auc"):
            records[pair][f"short_{name}"] = short[pair][f"quality_{name}"]
            records[pair][f"null_{name}"] = shuffled[pair][f"quality_{name}"]
    return records


def _another(
    problem: Problem,
    domains: Domains,
    coupled: tuple[dict[Pair, Coupling], dict[Pair, Loadings]],
    i: int,
    seed: int,
) -> tuple[dict[Pair, Coupling], dict[Pair, Loadings]]:
    """Rival couplings where shapes decided, for the i-th restart; else couplings on other landmarks."""
    from scmmgan.model.coupling.couple import couple
    from scmmgan.model.evidence import restarts

    couplings, loadings = coupled
    if not any(len(c.rivals) for c in couplings.values()):
        return couple(problem, domains, random_state=seed + i)
    found = dict(couplings)
    for (a, b), c in couplings.items():
        # restarts take turns between the best and its rivals
        if len(c.rivals) and (turn := i % (1 + len(c.rivals))):
            found[a, b] = restarts.follow(c, c.rivals[turn - 1], couplings[b, a].landmarks, domains[b].x)
    return found, loadings


def _shuffled(coupling: Coupling, seed: int) -> Coupling:
    """Every cell with the anchor of another one."""
    order = np.random.default_rng(seed).permutation(len(coupling.anchors))
    changed = {name: getattr(coupling, name)[order] for name in ("plan", "anchors", "weight", "known")}
    return replace(coupling, **changed)
