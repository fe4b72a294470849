"""What supports an alignment, and which populations could be swapped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from scmmgan import get, metrics
from scmmgan.data import kept as _kept
from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import MAX_SEED, MIN_RESTARTS, SHORT_TRAINING
from scmmgan.model.progress import shown, tracked
from scmmgan.model.space.linear import one_thread

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
    """Assess an alignment without knowing the true partners: what supports it, and which populations could be swapped.

    :func:`scmmgan.tl.align` runs the short form by itself. The coupling in use is assessed, whatever `random_state` is.
    Evidence is what the coupling did not use: links, pairs or labels that were held out. It has four grades:

    - *supported*. Better than with each of 99 shuffled tables (p = .01), and large. Links: a fifth of them is held out at a
      time, and they correlate at least 1/3 with their partners as the coupling without them predicts these, the standard
      error taken off; of at least 10 different features. Pairs: at most 30 % of all cells are nearer than the partner of a
      held-out pair (chance: 50 %), the standard error added; of at least 5 pairs. Ten or more pairs that fail outweigh
      links that agree.
    - *supported in part*. Better than with each shuffled table, and at least 3 features have q < .05 by themselves, and the
      mean reaches a fifth of what noise allows. Or pairs, with 40 % in place of 30 %, and 3 pairs by themselves. Or labels
      alone: cells of one label are neighbours, and the distances between labels agree in both modalities (p ≤ .01 over
      renamed labels); inside a label they say nothing.
    - *weak*. Better than with each shuffled table, and not more than that.
    - *not identifiable*. No evidence, or shapes alone: a mirror image may cost less than the truth.

    What noise allows (the ceiling) is measured: two random halves of a modality, of at most 2,000 cells each, are aligned
    with each other. The ceiling of a link is the geometric mean of what its two features reach. Where the modalities have
    more than a few thousand cells it is an estimate from below.

    "Supported" means that populations correspond. It does not say that every cell or gene is right. Cells of the same
    types from another donor are supported. Cells of other types or tissues are not, but they may be supported in part:
    genes of the cell cycle, of stress and of common cell types agree between any two tissues. Which genes have evidence
    of their own is in `var` and in the table `links`.

    Parameters
    ----------
    mdata
        Aligned data; what was read for the alignment must still be there.
    key
        `key_added` of the alignment.
    full
        Train again, too: `n_restarts` times with other seeds and couplings, and once with partners shuffled over the
        cells (default `False`).
    n_restarts
        Trainings that are compared, at least 4 (default 4).
    max_steps
        Steps of each of them (default 300; not more than the alignment had).
    random_state
        Seed of the folds, the shuffled tables and the trainings; default: that of the alignment.
    progress_bar
        Show the progress of what takes longer than two seconds, and the time that is left.

    Returns
    -------
    `None`. Sets, for all modalities a and b aligned:

    `mdata[a].obs[f"{key}_ambiguous"]` : bool (suffix `_{b}` with more than two modalities)
        Couplings made without a fifth of the links or pairs, or rivals of nearly the same cost, send the cell elsewhere
        in b.
    `mdata[b].var[f"{key}_evidence"]`, `[f"{key}_evidence_q"]`, `[f"{key}_evidence_ceiling"]` : float (suffix `_{a}` with more than two modalities)
        Where there are links: held-out correlation of each linked feature of b with its partner in a, its q, and the share
        of its ceiling that it reaches, 0 to 1 (NaN where that is below .05). Of several links the one that correlates
        most; NaN for features without a link.
    `mdata.uns[key]["diagnosis"][a][b]` : dict, see :func:`scmmgan.get.diagnosis`
        `verdict`, `grade`, `supported`, `statement`
            "supported by links", "by pairs" or "by links and pairs"; "supported in part by links: N of M features", "by
            pairs: N of M pairs" or "by labels: N labels"; "weak: more than chance, " and what it lacks; or "not
            identifiable". Where shapes decide, with "; ambiguous: A and B could be swapped". The grade: "supported", "in part",
            "weak" or "not identifiable"; whether it is the first. The verdict with its numbers, in sentences.
        `kind`, `swap_limit`, `through`
            What made the coupling: "links", "pairs", "geometry" (shapes, with labels or fewer than 100 pairs if given), or
            "through": the couplings with a third modality, and which. Without evidence of their own such two are graded as
            the weaker of the couplings with that one, and supported in part at most.
            The swap gap below which populations are called hard to distinguish.
        `links`
            Where there are links: a table of all of them, the features of both modalities and `correlation` (held out), `p`
            (one-sided; against the same link in shuffled tables), `q` (Benjamini-Hochberg; not below `links_p`),
            `ceiling` and `share` (of the ceiling, 0 to 1).
        `links_mean`, `links_error`, `links_p`, `links_null`, `links_in_use`
            Their mean, its standard error, its p, the means of the 99 shuffled tables; and the mean correlation under the
            coupling in use, which knew the links. Of more than 300 links, those of 300 random ones, of which couplings are
            made; the others are carried over by these.
        `links_ceiling`, `links_ceiling_error`, `links_share`, `links_share_error`
            The ceiling of that mean and the share that is reached, with standard errors over features.
        `links_features`, `links_evident`
            Different features in the links, on the side with fewer, and how many of them have q < .05.
        `pairs`, `pairs_mean`, `pairs_error`, `pairs_p`, `pairs_null`, `pairs_n`, `pairs_in_use`
            Where there are pairs: share of cells nearer than the partner, of each held-out pair; the same numbers; the
            number of all pairs.
        `pairs_q`
            q of each held-out pair.
        `labels_separated`, `labels_order`, `labels_p`, `labels_n`
            Where there are labels: chance-corrected purity of labels among neighbours (0: chance, 1: perfect),
            correlation of the labels' distances between the modalities, its p, and how many labels both have.
        `gaps`
            Where shapes decided: relative costs of the rival couplings.
        `populations`
            Table, one row for each population of either modality: `modality`, `population`, `share` of the cells, its
            `partner`, the population that it could best be swapped with (`swap`, "" if none), the swap `gap` (1: all
            evidence speaks against the swap, 0: none), and the shares of its cells that are `ambiguous` and `unmatched`.
        `ambiguous_{a}`, `ambiguous_{b}`, `unmatched_{a}`, `unmatched_{b}`
            Shares of the cells.
        `quality_cycle`, `quality_overlap`, `quality_overlap_chance`, `quality_auc`, `quality_follows`, `quality_held_out`
            Scores of the map, means of both directions. Squared error of the round trip over the variance. Share of a
            cell's 20 nearest neighbours that stay, and that share by chance. AUC of a classifier of mapped against
            measured cells (.5: indistinguishable). Share of cells nearer to a mapped cell than its coupled place (0: the
            map follows the coupling, .5: it does not). Whether the cells scored took no part in the training: False
            where fewer than 50 were held out (below about 1,000 cells), and all cells are scored.
        `quality_consistency`
            With three modalities or more: squared difference between the map and those that lead round about a third
            modality, over the variance of the target's cells, mean of all ways. 0: the maps agree. Not where there is no
            other way.
        `depth_{a}`, `depth_{b}`
            Mean absolute correlation of the features mapped from a with the log depth of a's cells: their counts, or else their
            values, where none is below 0. From .5 on a warning is logged: depth is the main content of the map.
        `restart_agreement`, `restart_modes`, `restart_share`
            With `full`: similarity of the maps of any two restarts (1: the same, 0: unrelated), the group of like
            maps that each restart belongs to, and the share of the largest group.
        `short_cycle`, `short_overlap`, `short_auc`, `null_cycle`, `null_overlap`, `null_auc`
            With `full`: the scores of the first restart, and of the training on shuffled partners.

    Raises
    ------
    KeyError
        If there is no such alignment, or a layer or column that it read is gone.
    ValueError
        If the record is damaged or of another version; cells or features were added, renamed or taken out, or come from
        another alignment; their values, links, pairs or labels have changed since; `mdata` is a view, or `n_restarts` is
        below 4.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> smm.tl.diagnose(mdata)
    >>> smm.get.diagnosis(mdata, "rna", "protein")["grade"]
    'supported'
    """
    keys = Keys(key)
    _slots.check_coupled(mdata, keys)
    params = _slots.record(mdata, keys)["params"]
    n_restarts = _modality.whole_number(n_restarts, "n_restarts", low=MIN_RESTARTS)
    steps = min(_modality.whole_number(max_steps, "max_steps", low=1), int(params["max_steps"]))
    trained = int(params["random_state"])
    seed = trained if random_state is None else random_state
    seed = _modality.whole_number(seed, "random_state", low=0, high=MAX_SEED - n_restarts)
    _modality.check_writable(mdata, [str(m) for m in params["modalities"]])

    from scmmgan.model.coupling.couple import couple
    from scmmgan.model.evidence import populations, quality, verdict

    with one_thread(), shown(progress_bar):
        problem, domains = _read.reread(mdata, keys)
        # the coupling in use and the cells that its training held out, whatever the seed of the diagnosis
        coupled = _kept.couplings(mdata, problem, keys) or couple(problem, domains, random_state=trained)
        couplings = coupled[0]
        records, ambiguous = populations.diagnose(problem, domains, couplings, random_state=seed)
        aligner = get.model(mdata, key=key).aligner
        how: dict[str, Any] = {
            "two_sample_auc": metrics.two_sample_auc,
            "random_state": trained,
            "centre": problem.centre,
        }
        more: dict[Pair, dict[str, Any]] = {**quality.score_map(aligner, domains, couplings, **how)}
        images = {(a, b): aligner.translate(domains[a].x, a, b) for a, b in couplings}
        depths = quality.depth_correlations(domains, images)
        if full:
            settings = _read.training_settings(params) | {"max_steps": steps, "progress_bar": progress_bar}
            settings |= {"shared": problem.shared, "centre": problem.centre}
            found = _retrain(problem, domains, coupled, settings, n_restarts, seed)
            more = {pair: {**more[pair], **found[pair]} for pair in more}
    found = verdict.verdicts(records, more, depths)
    verdict.warn_of_depth(found)
    _slots.write_diagnosis(mdata, found, ambiguous, keys)


def _retrain(
    problem: Problem,
    domains: Domains,
    coupled: tuple[Mapping[Pair, Coupling], Mapping[Pair, Loadings]],
    settings: Mapping[str, Any],
    n_restarts: int,
    seed: int,
) -> dict[Pair, dict[str, Any]]:
    """Similarity of restarts with other seeds and couplings, and scores of a training on shuffled anchors."""
    from scmmgan.model.evidence import quality, restarts, retraining
    from scmmgan.model.nets import methods

    x = {m: d.x for m, d in domains.items()}
    rows = retraining.probed(domains, seed)
    images: dict[Pair, list[np.ndarray]] = {pair: [] for pair in combinations(x, 2)}
    auc = metrics.two_sample_auc
    short: dict[Pair, Any] = {}
    for i in tracked(range(n_restarts), "restarts"):
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
    coupled: tuple[Mapping[Pair, Coupling], Mapping[Pair, Loadings]],
    i: int,
    seed: int,
) -> tuple[Mapping[Pair, Coupling], Mapping[Pair, Loadings]]:
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
